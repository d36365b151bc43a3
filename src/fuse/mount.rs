//! The mount: made or taken over, served, unmounted.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use fuser::{MountOption, Notifier, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::Adapter;
use super::opens::{self, Opens, Passthrough};
use super::takeover::{self, Agreement, TakenOver};
use crate::base::mountinfo;
use crate::fs::BucketFs;

#[derive(Clone, Debug)]
pub struct MountOptions {
    pub mountpoint: PathBuf,
    /// What `mount` and `df` show as the device: `s3://bucket/prefix`.
    pub source: String,
    pub access: Access,
    /// Forbid the execution of programs in the mount.
    pub no_exec: bool,
    /// The kernel's readahead of each file; 0 leaves it as it is.
    pub kernel_readahead_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Owner,
    /// That user and root (`--allow-root`).
    OwnerAndRoot,
    Everyone,
}

/// A mount that another process has made and that no process serves yet.
#[derive(Debug)]
pub struct HandedOver {
    /// A descriptor of `/dev/fuse`.
    pub device: OwnedFd,
    /// `major:minor` of the mount, if the kernel tells it.
    pub device_number: Option<String>,
    /// Its mountpoint, if this process sees it.
    pub mountpoint: Option<PathBuf>,
}

/// A mount that is there already.
#[derive(Debug)]
pub enum Existing {
    HandedOver(HandedOver),
    TakenOver(TakenOver),
}

/// A live mount; dropping it unmounts.
pub struct Mounted {
    /// Where this process has mounted; `None` for a mount that was handed over.
    place: Option<Place>,
    /// Of a mount of ours, by which the next process can take it over.
    agreement: Option<Agreement>,
    /// It stays for that process.
    is_left: AtomicBool,
    pub(super) notifier: Notifier,
    pub(super) device: File,
    ended: watch::Receiver<bool>,
}

struct Place {
    /// Without symbolic links.
    mountpoint: PathBuf,
    /// `major:minor`, the kernel's name of this mount.
    device_number: String,
}

/// Mounts `fs`, or takes a mount that is there, and serves it on threads of its own; requests that
/// must wait continue in `runtime`. Returns when the kernel has accepted the mount.
pub fn mount(
    fs: &Arc<BucketFs>,
    options: &MountOptions,
    passthrough: Option<&Passthrough>,
    existing: Option<Existing>,
    runtime: &Handle,
) -> io::Result<Mounted> {
    let opens = match &existing {
        Some(Existing::TakenOver(TakenOver { agreement, .. })) => {
            let (asks, open) = (agreement.asks_to_open(), fs.names.opens());
            Opens::go_on(passthrough, asks, open, |ino| fs.local_copy(ino))
        }
        _ => Opens::new(passthrough),
    };
    let (kernel, opens) = (Arc::new(OnceLock::new()), Arc::new(opens));
    let offered = Arc::new(OnceLock::new());
    let adapter = || {
        let (kernel, opens) = (kernel.clone(), opens.clone());
        Adapter::new(fs.clone(), runtime.clone(), kernel, opens, offered.clone())
    };
    let mut new_at = None;
    let (session, mut place, mut agreement, handed_number) = match existing {
        Some(Existing::HandedOver(HandedOver { device, device_number, .. })) => {
            let config = served_config(options);
            let session = fuser::Session::from_fd(adapter(), device, config.acl, config)?;
            (session, None, None, device_number)
        }
        Some(Existing::TakenOver(taken)) => {
            let TakenOver { device, mountpoint, device_number, agreement } = taken;
            let config = served_config(options);
            let session = takeover::take(adapter(), &device, &agreement, &config)?;
            (session, Some(Place { mountpoint, device_number }), Some(agreement), None)
        }
        None => {
            new_at = Some(options.mountpoint.canonicalize()?);
            let new = |typed| {
                let config = session_config(options, typed);
                fuser::Session::new(adapter(), &options.mountpoint, &config)
            };
            // A kernel before 5.4 knows no subtype, and does not say which option it refuses.
            (new(true).or_else(|_| new(false))?, None, None, None)
        }
    };
    let notifier = session.notifier();
    let _ = kernel.set(notifier.clone());
    let device = File::from(session.as_fd().try_clone_to_owned()?);
    if let Some(Passthrough { sample: Some(sample), always }) = passthrough {
        try_out(sample, *always, &device, &opens)?;
    }
    let ended = serve(session)?;
    if let Some(mountpoint) = new_at {
        place = Some(Place::of(mountpoint)?);
        let offered = offered.get().copied();
        let agreed = offered.map(|(flags, minor)| Agreement::of(flags, minor, adapter()));
        // Without one the mount works, and ends with this process.
        agreement = agreed.and_then(Result::ok);
    }
    let number = place.as_ref().map(|place| &place.device_number).or(handed_number.as_ref());
    if let Some(number) = number {
        raise_readahead(options.kernel_readahead_bytes, number);
    }
    let is_left = AtomicBool::new(false);
    Ok(Mounted { place, agreement, is_left, notifier, device, ended })
}

/// For a mount that is there: the kernel keeps out the users that its maker did not admit.
fn served_config(options: &MountOptions) -> fuser::Config {
    let mut config = session_config(options, true);
    config.acl = match options.access {
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Owner | Access::Everyone => SessionACL::All,
    };
    config
}

/// Ends passthrough if the kernel refuses it; an error if the mount must not be without.
fn try_out(sample: &File, always: bool, device: &File, opens: &Opens) -> io::Result<()> {
    let refused = if opens.asks() {
        // The sample stays registered until the unmount: fuser closes none that it does not use.
        let tried = fuser::BackingId::create_raw(device, sample);
        tried.err().map(|error| opens::why(&error))
    } else {
        Some(opens::NOT_OFFERED.to_owned())
    };
    let Some(reason) = refused else { return Ok(()) };
    opens.end();
    if always {
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    tracing::debug!("no passthrough: {reason}");
    Ok(())
}

/// `typed` gives the mount the type `fuse.fasts3`, by which findmnt and fstab know it, instead of
/// `fuse`; fuser's own `Subtype` does not reach the kernel.
fn session_config(options: &MountOptions, typed: bool) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        // Commas separate mount options, so they cannot be shown.
        MountOption::FSName(options.source.replace([',', '\\'], "_")),
    ];
    if typed {
        config.mount_options.push(MountOption::CUSTOM("subtype=fasts3".to_owned()));
    }
    if options.no_exec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    // More threads than cores gain nothing (measured), one makes small reads three times slower.
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, 16));
    config
}

/// Starts the session's threads. The result becomes true when the session has ended.
fn serve(session: fuser::Session<Adapter>) -> io::Result<watch::Receiver<bool>> {
    let (end, ended) = watch::channel(false);
    let session = session.spawn()?;
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        // The whole session: a part that the closure does not use would be dropped, which unmounts.
        let session = session;
        if let Ok(Err(error)) = session.guard.join() {
            tracing::error!(%error, "the FUSE session failed");
        }
        // It fails if no receiver is left.
        let _ = end.send(true);
        // Kept until the process ends: fuser 0.18 takes a connection that has ended for one that is
        // mounted, so dropping the session would unmount whatever is on the mountpoint by now.
        loop {
            std::thread::park();
        }
    })?;
    Ok(ended)
}

impl Place {
    /// Of what was just mounted. The mount itself is not asked: a daemon that is killed while a
    /// thread of its own waits for it never ends.
    fn of(mountpoint: PathBuf) -> io::Result<Self> {
        let mounts = std::fs::read("/proc/self/mountinfo")?;
        let there = mountinfo::topmost(&mounts, &mountpoint);
        let gone = || io::Error::other("it was unmounted in this moment");
        let device_number = there.ok_or_else(gone)?.device;
        Ok(Self { mountpoint, device_number })
    }
}

/// Raises the kernel's readahead of each file, which halves the CPU of a sequential read
/// (docs/performance.md) and which the protocol does not let a daemon ask for. It takes root.
fn raise_readahead(bytes: u64, device: &str) {
    if bytes == 0 {
        return;
    }
    let kib = bytes.div_ceil(1024);
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, kib.to_string()) {
        tracing::info!(
            "the kernel's readahead stays at 128KiB, so large files are slower: {error}; as root: \
             `echo {kib} > {file}`"
        );
    }
}

impl Mounted {
    /// `major:minor` of the mount that this process has made; `None` if it was handed over.
    pub fn device_number(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.device_number.as_str())
    }

    /// What the next process needs to take the mount over: its descriptor, where it is, and what
    /// was agreed on; `None` if it cannot be taken over.
    pub fn to_be_taken_over(&self) -> Option<(BorrowedFd<'_>, &Path, &str, Agreement)> {
        let Place { mountpoint, device_number } = self.place.as_ref()?;
        let agreement = self.agreement.filter(Agreement::can_resend)?;
        Some((self.device.as_fd(), mountpoint, device_number, agreement))
    }

    /// The mount stays when this process ends, for the next one.
    pub fn leave(&self) {
        self.is_left.store(true, Relaxed);
    }

    /// Another process has made this mount, and will also unmount it.
    pub fn handed_over(&self) -> bool {
        self.place.is_none()
    }

    /// Unmounts, lazily while files are open. Does nothing if another file system is on the
    /// mountpoint, or if the mount was handed over or is left.
    pub fn unmount(&self) -> io::Result<()> {
        if self.is_left.load(Relaxed) {
            return Ok(());
        }
        let Some(Place { mountpoint, device_number }) = &self.place else { return Ok(()) };
        unmount(mountpoint, device_number)
    }

    /// The kernel has ended the session.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Returns when the kernel has ended the session, for example by an unmount from outside.
    pub async fn ended(&self) {
        // An error means that the serving thread is gone, which is an end as well.
        let _ = self.ended.clone().wait_for(|&ended| ended).await;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "could not unmount");
        }
    }
}

/// Unmounts what is on this path, lazily while files are open; nothing, if another file system is.
fn unmount(mountpoint: &Path, device_number: &str) -> io::Result<()> {
    if !is_topmost(mountpoint, device_number)? {
        return Ok(());
    }
    let unmounted = match umount2(mountpoint, MntFlags::empty()) {
        Err(Errno::EBUSY) => {
            tracing::info!("the mount is busy: unmounting lazily");
            umount2(mountpoint, MntFlags::MNT_DETACH)
        }
        outcome => outcome,
    };
    match unmounted {
        // EINVAL: it was unmounted in this moment.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EPERM) => unmount_by_helper(mountpoint),
        Err(error) => Err(error.into()),
    }
}

/// The same for a mount that nobody serves: also ends the connection, whoever has its descriptor.
/// Programs that wait get an error.
pub(crate) fn free(mountpoint: &Path, device_number: &str) -> io::Result<()> {
    if is_topmost(mountpoint, device_number)? {
        // It ends the connection of a mount that is in use, too. Ordinary users may not.
        let _ = umount2(mountpoint, MntFlags::MNT_FORCE);
    }
    unmount(mountpoint, device_number)
}

fn is_topmost(mountpoint: &Path, device_number: &str) -> io::Result<bool> {
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let there = mountinfo::topmost(&mounts, mountpoint);
    Ok(there.is_some_and(|mount| mount.device == device_number))
}

/// Unmounts lazily with fusermount3, which has also made the mounts of ordinary users.
pub(crate) fn unmount_by_helper(mountpoint: &Path) -> io::Result<()> {
    let ended = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).output()?;
    if ended.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}
