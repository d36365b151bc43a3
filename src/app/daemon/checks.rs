//! Checks of the machine, before any request to the store.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::statvfs::statvfs;

use crate::app::command_error::CommandError;
use crate::app::exit::Exit;
use crate::base::mountinfo::{self, Mount};
use crate::fuse;

pub(crate) fn fuse_device() -> Result<(), CommandError> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| CommandError::new(Exit::OsErr, no_device(&error)))
}

fn no_device(error: &Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => {
            "load the kernel module with `modprobe fuse`, or start the container with `--device \
             /dev/fuse --cap-add SYS_ADMIN`"
        }
        ErrorKind::PermissionDenied => {
            "give this user access to it, or start the container with `--device /dev/fuse \
             --cap-add SYS_ADMIN`"
        }
        _ => "check that this kernel supports FUSE",
    };
    format!("/dev/fuse cannot be opened: {error}; {remedy}")
}

/// Checks that `path` can be mounted on. A stale mount of a daemon of ours is unmounted; those of
/// other programs are left alone.
pub(super) fn mountpoint(path: &Path) -> Result<(), CommandError> {
    match usable(path).inspect(|()| tell_of_hidden(path)) {
        Err(error) if error.exit == Exit::IoErr && is_our_stale_mount(path) => {
            let shown = path.display();
            free(path).map_err(|error| {
                tracing::warn!("the stale mount on {shown} could not be freed: {error}");
                stale(path)
            })?;
            tracing::warn!("{shown} was a stale mount of a daemon that died: it is freed");
            usable(path)
        }
        outcome => outcome,
    }
}

/// How long another daemon may take to mount, once it knows that it can.
const LONGEST_MOUNT: Duration = Duration::from_secs(5);

/// A mountpoint on which no other daemon mounts until this is dropped.
pub(super) struct Claimed {
    _locked: Option<File>,
}

/// Checks again, just before the mount, that `path` can be mounted on: of several daemons that
/// started at the same time, one mounts. The lock is on the directory that the mount will hide.
pub(super) async fn claim(path: &Path) -> Result<Claimed, CommandError> {
    let begun = Instant::now();
    let locked = loop {
        // What cannot be opened or locked, as on some network file systems, is not claimed.
        let Ok(directory) = File::open(path) else { break None };
        match directory.try_lock() {
            Ok(()) => break Some(directory),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LONGEST_MOUNT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => break None,
        }
    };
    usable(path)?;
    Ok(Claimed { _locked: locked })
}

/// The topmost mount counts, because that is the one that is freed. The path of a dead mount cannot
/// be resolved, but that of its parent can.
fn is_our_stale_mount(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new(".")).canonicalize();
    let Some((parent, name)) = parent.ok().zip(path.file_name()) else { return false };
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounted(&mounts, &parent.join(name)).is_some_and(|mount| mount.is_ours())
}

fn free(path: &Path) -> std::io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => fuse::unmount_by_helper(path),
        outcome => Ok(outcome?),
    }
}

/// Open files besides connections.
const OTHER_FILES: u64 = 64;
/// A request in flight, one that is overdue or sent a second time, and an idle connection.
const FILES_EACH: u64 = 3;

/// The requests in flight at once that the limit on open files allows.
pub(crate) struct Connections {
    pub(crate) allowed: usize,
    pub(crate) open_files: u64,
    /// If fewer are allowed than were asked for: a sentence that says what to do about it.
    pub(crate) shortage: Option<String>,
}

/// Raises the limit on open files as far as `wanted` connections need it and the machine allows.
pub(crate) fn connections(wanted: usize) -> Connections {
    let needed = FILES_EACH * wanted as u64 + OTHER_FILES;
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < needed => {
            let raised = needed.min(hard);
            setrlimit(Resource::RLIMIT_NOFILE, raised, hard).map_or(soft, |()| raised)
        }
        Ok((soft, _)) => soft,
        Err(_) => needed,
    };
    connections_within(limit, wanted)
}

fn connections_within(open_files: u64, wanted: usize) -> Connections {
    let allowed = open_files.saturating_sub(OTHER_FILES) / FILES_EACH;
    let allowed = usize::try_from(allowed).unwrap_or(wanted).clamp(1, wanted.max(1));
    let shortage = (allowed < wanted).then(|| {
        format!(
            "{allowed} requests at once instead of {wanted}: {open_files} open files are allowed; \
             raise the limit to {} (`ulimit -Hn`, or LimitNOFILE= of a systemd unit)",
            FILES_EACH * wanted as u64 + OTHER_FILES
        )
    });
    Connections { allowed, open_files, shortage }
}

/// A core file would contain credentials and the data of readers.
pub(super) fn no_core_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        // A limit that cannot be lowered is 0 already.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, hard);
    }
}

fn usable(path: &Path) -> Result<(), CommandError> {
    let shown = path.display();
    let real = path.canonicalize().map_err(|error| unusable(path, &error))?;
    let metadata = real.metadata().map_err(|error| unusable(path, &error))?;
    if !metadata.is_dir() {
        let sentence = format!("mountpoint {shown} is not a directory; give an existing directory");
        return Err(CommandError::new(Exit::OsFile, sentence));
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    if let Some(Mount { kind, .. }) = mounted(&mounts, &real) {
        // The attributes of a dead mount's root may be cached; the answer to statvfs(3) never is.
        if statvfs(&real).err() == Some(Errno::ENOTCONN) {
            return Err(stale(path));
        }
        let sentence = format!(
            "mountpoint {shown} is in use: a {kind} file system is mounted there; unmount it, or \
             give another directory"
        );
        return Err(CommandError::new(Exit::CantCreat, sentence));
    }
    Ok(())
}

fn tell_of_hidden(path: &Path) {
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let shown = path.display();
        tracing::warn!("mountpoint {shown} is not empty: its files are hidden while mounted");
    }
}

fn unusable(path: &Path, error: &Error) -> CommandError {
    let shown = path.display();
    // "Transport endpoint is not connected": the kernel's answer for a mount without its daemon.
    if error.raw_os_error() == Some(libc::ENOTCONN) {
        return stale(path);
    }
    let sentence = if error.kind() == ErrorKind::NotFound {
        format!("mountpoint {shown} does not exist; create it with `mkdir -p {shown}`")
    } else {
        format!("mountpoint {shown} cannot be used: {error}; give an existing directory")
    };
    CommandError::new(Exit::OsFile, sentence)
}

fn stale(path: &Path) -> CommandError {
    let sentence = format!(
        "{0} is a stale mount: its daemon has died; free it with `fusermount3 -u {0}`, or as root \
         `umount -l {0}`",
        path.display()
    );
    CommandError::new(Exit::IoErr, sentence)
}

/// The mount on a path, except for an automount point, whose purpose is to be mounted on.
fn mounted(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    mountinfo::topmost(mountinfo, path).filter(|mount| mount.kind != "autofs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_automount_point_is_not_in_use_until_it_is_mounted_on() {
        let info = b"38 35 0:40 / /mnt/d rw - autofs systemd-1 rw,direct\n\
                     39 35 0:40 / /mnt/e rw - autofs systemd-1 rw,direct\n\
                     40 39 0:41 / /mnt/e rw - fuse.fasts3 s3://x/ rw\n";
        assert_eq!(mounted(info, Path::new("/mnt/d")), None);
        assert_eq!(mounted(info, Path::new("/mnt/e")).unwrap().kind, "fuse.fasts3");
    }

    #[test]
    fn only_what_is_mounted_last_and_is_ours_is_ours() {
        let ours = |last: &str| {
            let text = format!("1 2 3:4 / /m rw - fuse.fasts3 y rw\n5 6 7:8 / /m rw - {last} rw\n");
            mounted(text.as_bytes(), Path::new("/m")).unwrap().is_ours()
        };
        assert!(ours("fuse.fasts3 s3://data/"));
        assert!(ours("fuse s3://data/"));
        assert!(ours("fuse.mount.fasts3 mount.fasts3"));
        for other in ["fuse data", "fuse.s3fs s3fs", "fuse.rclone s3://data/", "ext4 s3://data/"] {
            assert!(!ours(other), "{other}");
        }
    }

    #[test]
    fn each_unusable_mountpoint_has_its_own_kind() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mountpoint(folder.path()), Ok(()));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(mountpoint(&file), Err(error) if error.exit == Exit::OsFile));
        assert!(matches!(mountpoint(&file.join("x")), Err(error) if error.exit == Exit::OsFile));
        let missing = mountpoint(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("mkdir -p"), "{missing}");
        assert!(
            matches!(mountpoint(Path::new("/proc")), Err(error) if error.exit == Exit::CantCreat)
        );
        let stale = unusable(Path::new("/mnt"), &Error::from_raw_os_error(libc::ENOTCONN));
        assert!(stale.to_string().contains("umount -l /mnt"), "{stale}");
    }

    #[test]
    fn connections_are_bounded_by_descriptors() {
        for (descriptors, wanted, allowed) in
            [(1 << 20, 128, 128), (1024, 4096, 320), (256, 128, 64), (10, 128, 1), (0, 1, 1)]
        {
            let connections = connections_within(descriptors, wanted);
            assert_eq!(connections.allowed, allowed, "{descriptors}");
            assert_eq!(connections.shortage.is_some(), allowed < wanted, "{descriptors}");
        }
    }

    #[test]
    fn a_missing_device_says_what_to_do() {
        for (kind, says) in [
            (ErrorKind::NotFound, "modprobe fuse"),
            (ErrorKind::PermissionDenied, "--device /dev/fuse"),
            (ErrorKind::Other, "supports FUSE"),
        ] {
            assert!(no_device(&Error::from(kind)).contains(says));
        }
    }
}
