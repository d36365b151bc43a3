//! What can be known of the machine before anything is asked of the store.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::StartError;

/// Whether `/dev/fuse` is there and opens.
pub(crate) fn fuse_device() -> Result<(), StartError> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_device) => Ok(()),
        Err(error) => Err(StartError::NoFuse(no_device(&error))),
    }
}

fn no_device(error: &Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => {
            "load the kernel module with `modprobe fuse`, or start the container with `--device \
             /dev/fuse --cap-add SYS_ADMIN`"
        }
        ErrorKind::PermissionDenied => {
            "give this user access to it, or start the container with `--device /dev/fuse --cap-add \
             SYS_ADMIN`"
        }
        _ => "check that this kernel supports FUSE",
    };
    format!("/dev/fuse cannot be opened: {error}; {remedy}")
}

/// Whether something can be mounted here.
pub(super) fn mountpoint(path: &Path) -> Result<(), StartError> {
    let shown = path.display();
    let real = path.canonicalize().map_err(|error| unusable(path, &error))?;
    let metadata = real.metadata().map_err(|error| unusable(path, &error))?;
    if !metadata.is_dir() {
        return Err(StartError::NoMountpoint(format!(
            "mountpoint {shown} is not a directory; give an existing directory"
        )));
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    if let Some(kind) = mounted_kind(&mounts, &real) {
        // The attributes of a dead mount's root may be cached; how full it is never is.
        if statvfs(&real).err() == Some(Errno::ENOTCONN) {
            return Err(StartError::Stale { mountpoint: shown.to_string() });
        }
        return Err(StartError::Busy(format!(
            "mountpoint {shown} is in use: a {kind} file system is mounted there; unmount it, or \
             give another directory"
        )));
    }
    if real.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!("mountpoint {shown} is not empty: its files are hidden while mounted");
    }
    Ok(())
}

fn unusable(path: &Path, error: &Error) -> StartError {
    let shown = path.display();
    // "Transport endpoint is not connected": the kernel's answer for a mount without its daemon.
    if error.raw_os_error() == Some(libc::ENOTCONN) {
        return StartError::Stale { mountpoint: shown.to_string() };
    }
    StartError::NoMountpoint(match error.kind() {
        ErrorKind::NotFound => {
            format!("mountpoint {shown} does not exist; create it with `mkdir -p {shown}`")
        }
        _ => format!("mountpoint {shown} cannot be used: {error}; give an existing directory"),
    })
}

/// The type of the file system whose mount point a path is. Format: `proc_pid_mountinfo(5)`.
fn mounted_kind(mountinfo: &[u8], path: &Path) -> Option<String> {
    mountinfo.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        if unescaped(fields.nth(4)?) != path.as_os_str().as_bytes() {
            return None;
        }
        // Optional fields end with a lone hyphen; the type follows.
        fields.find(|field| *field == b"-")?;
        Some(String::from_utf8_lossy(fields.next()?).into_owned())
    })
}

/// Space, tab, newline and backslash are written `\ooo`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_with_their_type() {
        let info = b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 - fuse.other x rw\n\
                     37 35 98:0 / /mnt/c rw - tmpfs tmpfs rw\n";
        let kind = |path: &str| mounted_kind(info, Path::new(path));
        assert_eq!(kind("/mnt/a b").as_deref(), Some("fuse.other"));
        assert_eq!(kind("/mnt/c").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/mnt"), None);
        assert_eq!(mounted_kind(b"garbage", Path::new("/")), None);
    }

    #[test]
    fn each_unusable_mountpoint_has_its_own_kind() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mountpoint(folder.path()), Ok(()));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(mountpoint(&file), Err(StartError::NoMountpoint(_))));
        assert!(matches!(mountpoint(&file.join("x")), Err(StartError::NoMountpoint(_))));
        let missing = mountpoint(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("mkdir -p"), "{missing}");
        assert!(matches!(mountpoint(Path::new("/proc")), Err(StartError::Busy(_))));
        let stale = unusable(Path::new("/mnt"), &Error::from_raw_os_error(libc::ENOTCONN));
        assert!(stale.to_string().contains("umount -l /mnt"), "{stale}");
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
