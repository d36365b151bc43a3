//! The adapter: one kernel request, one [`BucketFs`] call, one reply. The only `use fuser`.
//!
//! There are no file handles: `open`, `opendir` and `flush` answer ENOSYS, after which the kernel
//! sends none of them again, nor release, and keeps file and directory pages by itself (the
//! kernel's `Documentation/filesystems/fuse`, `FUSE_NO_OPEN_SUPPORT`). The mount is read-only for
//! the kernel too; the EROFS here is for what slips past it.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, Notifier,
    OpenFlags, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use nix::errno::Errno as SystemError;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{major, minor};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::app::config::{Access, Config};
use crate::base::mountinfo;
use crate::fs::{Attributes, BucketFs, DirectoryEntry, FsError, Kind, Known, Space, Taker};
use crate::names::Ino;
use crate::stats::{Operation, Stats};

mod waiter;

use waiter::Waiter;

/// Inode numbers are never reused while mounted, so one generation does.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have in flight on its own account (readahead, async direct I/O), which
/// every buffered read is. Its default of 12 would hold eight readers with readahead back; 64 readers
/// of objects that the store does not give would take all of 64 (the others waited for 28 s, measured
/// before this and the cache's `Gate` let them pass).
const MAX_BACKGROUND: u16 = 1024;

/// The reply to a stale read waits so long for the kernel to forget the name, which it mostly does
/// in microseconds.
const LONGEST_FORGETTING: Duration = Duration::from_secs(1);

/// The kernel is told of names one by one for so long: some 2 µs each, unless it waits.
const LONGEST_EXPIRING: Duration = Duration::from_secs(5);

/// How the kernel was told to ask anew for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// Of all with one word.
    AtOnce,
    /// As it had to be before Linux 6.16.
    OneByOne {
        /// Of so many files.
        names: usize,
        /// There were no more.
        all: bool,
    },
}

/// A live mount; dropping it unmounts.
pub struct Mounted {
    /// What was mounted here, and is to be unmounted; none of a mount that others have made.
    place: Option<Place>,
    notifier: Notifier,
    /// The connection to the kernel.
    device: File,
    ended: watch::Receiver<bool>,
}

struct Place {
    /// Without symbolic links.
    mountpoint: PathBuf,
    /// `major:minor`, by which the kernel knows this mount.
    device_number: String,
}

/// A mount that others have made and nobody serves yet.
#[derive(Debug)]
pub struct Unserved {
    /// A descriptor of `/dev/fuse`.
    pub device: OwnedFd,
    /// `major:minor` of the mount, if that is known.
    pub device_number: Option<String>,
}

/// Mounts `fs`, unless there is a mount already, and serves it on threads of its own; what cannot be
/// answered at once goes on in `runtime`. Returns when the kernel has accepted the mount.
pub fn mount(
    fs: &Arc<BucketFs>,
    config: &Config,
    unserved: Option<Unserved>,
    runtime: &Handle,
) -> io::Result<Mounted> {
    // More threads than cores gain nothing (measured), one makes small reads three times slower.
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let kernel = Arc::new(OnceLock::new());
    let adapter = || {
        let (fs, runtime, kernel) = (fs.clone(), runtime.clone(), kernel.clone());
        Adapter { fs, runtime, kernel, no_open: false, no_opendir: false }
    };
    let options = |typed: bool| {
        let mut options = fuser::Config::default();
        options.mount_options = mount_options(config, typed);
        options.acl = match config.access {
            Access::Owner => SessionACL::Owner,
            Access::OwnerAndRoot => SessionACL::RootAndOwner,
            Access::Everyone => SessionACL::All,
        };
        options.n_threads = Some(cores.clamp(2, 16));
        options
    };
    let (session, mountpoint, given_number) =
        if let Some(Unserved { device, device_number }) = unserved {
            // The kernel keeps out whom the mount's maker did not admit.
            let acl = match config.access {
                Access::OwnerAndRoot => SessionACL::RootAndOwner,
                Access::Owner | Access::Everyone => SessionACL::All,
            };
            let session = fuser::Session::from_fd(adapter(), device, acl, options(true))?;
            (session, None, device_number)
        } else {
            let mountpoint = config.mountpoint.canonicalize()?;
            let new = |typed| fuser::Session::new(adapter(), &config.mountpoint, &options(typed));
            // A kernel before 5.4 knows no subtype, and does not say what it is that it refuses.
            (new(true).or_else(|_| new(false))?, Some(mountpoint), None)
        };
    let notifier = session.notifier();
    let _ = kernel.set(notifier.clone());
    let device = File::from(session.as_fd().try_clone_to_owned()?);
    let (end, ended) = watch::channel(false);
    let session = session.spawn()?;
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        // All of it, or what is not used here would be dropped, which unmounts.
        let session = session;
        if let Ok(Err(error)) = session.guard.join() {
            tracing::error!(%error, "the FUSE session failed");
        }
        // Nobody may be waiting any more.
        let _ = end.send(true);
        // What is left of the session would now unmount whatever is on the mountpoint, be it not
        // ours: fuser 0.18 takes a connection that has ended for one that is mounted. So it is kept,
        // and ends with the process.
        loop {
            std::thread::park();
        }
    })?;
    let place = mountpoint.map(Place::of).transpose()?;
    let known_number = place.as_ref().map(|place| &place.device_number).or(given_number.as_ref());
    if let Some(device_number) = known_number {
        raise_readahead(config, device_number);
    }
    Ok(Mounted { place, notifier, device, ended })
}

impl Place {
    /// Of a mount that was just made.
    fn of(mountpoint: PathBuf) -> io::Result<Self> {
        let root = std::fs::metadata(&mountpoint).inspect_err(|_| {
            // Nothing else can be there yet.
            let _ = umount2(&mountpoint, MntFlags::MNT_DETACH);
        })?;
        let device_number = format!("{}:{}", major(root.dev()), minor(root.dev()));
        Ok(Self { mountpoint, device_number })
    }
}

/// With the type `fuse.fasts3`, by which findmnt and fstab know it, or else `fuse`. fuser's own
/// `Subtype` does not reach the kernel.
fn mount_options(config: &Config, typed: bool) -> Vec<MountOption> {
    let mut options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(source(config)),
    ];
    if typed {
        options.push(MountOption::CUSTOM("subtype=fasts3".to_owned()));
    }
    if config.no_exec {
        options.push(MountOption::NoExec);
    }
    options
}

/// Raises how far the kernel reads ahead of a file, which halves the CPU of a sequential read
/// (docs/performance.md) and which the protocol does not let a daemon ask for. Only root may.
fn raise_readahead(config: &Config, device: &str) {
    if config.kernel_readahead_bytes == 0 {
        return;
    }
    let kib = config.kernel_readahead_bytes.div_ceil(1024);
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let raised = std::fs::write(&file, kib.to_string())
        .map_err(|error| io::Error::other(format!("{error}; as root: `echo {kib} > {file}`")));
    if let Err(error) = raised {
        tracing::info!(
            "the kernel's readahead stays at 128KiB, so large files are slower: {error}"
        );
    }
}

/// What `mount` and `df` show. Commas separate mount options, so they cannot be shown.
fn source(config: &Config) -> String {
    format!("s3://{}/{}", config.bucket, config.prefix).replace([',', '\\'], "_")
}

impl Mounted {
    /// `major:minor` of what was mounted here; none of a mount that others have made.
    pub fn device_number(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.device_number.as_str())
    }

    /// Whether others have made this mount, who will also unmount it.
    pub fn is_others(&self) -> bool {
        self.place.is_none()
    }

    /// Unmounts: plainly, or lazily when files are still open. Once it is unmounted, by us or from
    /// outside, nothing is done: what is on the mountpoint then is somebody else's. So is a mount
    /// that others have made.
    pub fn unmount(&self) -> io::Result<()> {
        let Some(Place { mountpoint, device_number }) = &self.place else { return Ok(()) };
        let mounts = std::fs::read("/proc/self/mountinfo")?;
        let there = mountinfo::topmost(&mounts, mountpoint);
        if there.is_none_or(|mount| mount.device != *device_number) {
            return Ok(());
        }
        match umount2(mountpoint, MntFlags::empty()) {
            // Somebody else was faster.
            Ok(()) | Err(SystemError::EINVAL) => Ok(()),
            Err(SystemError::EBUSY) => {
                tracing::info!("the mount is busy: unmounting lazily");
                match umount2(mountpoint, MntFlags::MNT_DETACH) {
                    Ok(()) | Err(SystemError::EINVAL) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Err(SystemError::EPERM) => unmount_by_helper(mountpoint),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the kernel ask anew for every name, and for the attributes of these directories, by which
    /// it learns that the directory pages it keeps are old. What is open or read stays.
    ///
    /// The kernel may wait for requests under way, so not on a thread that answers them. Before Linux
    /// 6.16 it is told of each of the `known` names.
    pub fn expire_names(&self, directories: &[Ino], known: impl FnOnce() -> Vec<Known>) -> Expired {
        /// `FUSE_NOTIFY_INC_EPOCH`, since protocol 7.44, as a `fuse_out_header` without a request:
        /// length, code, and no number. fuser has no name for it.
        const EPOCH_ENDS: (u32, u32, u64) = (16, 8, 0);
        let (length, code, number) = EPOCH_ENDS;
        let mut message = [0; 16];
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..8].copy_from_slice(&code.to_ne_bytes());
        message[8..].copy_from_slice(&number.to_ne_bytes());
        let at_once = (&self.device).write_all(&message).is_ok();
        let expired = if at_once { Expired::AtOnce } else { self.expire_each(&known()) };
        for ino in directories {
            // A negative offset: attributes only. What it does not know it calls missing.
            let _ = self.notifier.inval_inode(INodeNo(*ino), -1, 0);
        }
        expired
    }

    /// Has the kernel ask anew for each of these names that is a file's. It waits for lookups in
    /// their directories that are under way, and gives up after some seconds: then the others live on
    /// as long as it was told.
    ///
    /// A directory's name stays: before Linux 6.2 it would be cut off from its path, under whoever
    /// works in it. What is in it is asked for anew all the same.
    pub fn expire_each(&self, known: &[Known]) -> Expired {
        /// `FUSE_NOTIFY_INVAL_ENTRY`, and the flag that a name is to be asked for anew, not dropped,
        /// since protocol 7.38; before that nobody looks at it. fuser has no name for it.
        const ENTRY: u32 = 3;
        const EXPIRE_ONLY: u32 = 1;
        let begun = Instant::now();
        let mut names = 0;
        for Known { parent, name, .. } in known.iter().filter(|known| !known.is_directory) {
            if begun.elapsed() > LONGEST_EXPIRING {
                return Expired::OneByOne { names, all: false };
            }
            // `fuse_out_header` and `fuse_notify_inval_entry_out`, then the name and a NUL.
            let Ok(length) = u32::try_from(name.len()) else { continue };
            let mut message = Vec::with_capacity(33 + name.len());
            message.extend_from_slice(&(33 + length).to_ne_bytes());
            message.extend_from_slice(&ENTRY.to_ne_bytes());
            message.extend_from_slice(&0_u64.to_ne_bytes());
            message.extend_from_slice(&parent.to_ne_bytes());
            message.extend_from_slice(&length.to_ne_bytes());
            message.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
            message.extend_from_slice(name.as_bytes());
            message.push(0);
            // What it has forgotten already it calls missing, which is as well.
            let _ = (&self.device).write_all(&message);
            names += 1;
        }
        Expired::OneByOne { names, all: true }
    }

    /// Has the kernel forget the names and the pages of these. It waits for reads of them that are
    /// under way, so this is never called on a thread that answers requests.
    pub fn forget(&self, known: &[Known]) {
        for Known { ino, parent, name, .. } in known {
            // What it has forgotten already it calls missing, which is as well.
            let _ = self.notifier.inval_entry(INodeNo(*parent), name.as_ref());
            // From the first byte to the last: 0 is "to the end".
            let _ = self.notifier.inval_inode(INodeNo(*ino), 0, 0);
        }
    }

    /// Whether the kernel has ended the session already.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Returns when the kernel has ended the session, be it by an unmount from outside.
    pub async fn ended(&self) {
        // An error means that the serving thread is gone, which is an end as well.
        let _ = self.ended.clone().wait_for(|&ended| ended).await;
    }
}

/// An ordinary user's mount was made by fusermount3, and so it ends, lazily.
fn unmount_by_helper(mountpoint: &Path) -> io::Result<()> {
    let ended = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).output()?;
    if ended.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "could not unmount");
        }
    }
}

struct Adapter {
    fs: Arc<BucketFs>,
    runtime: Handle,
    /// Whom to tell of names that are no longer true; set once there is a session.
    kernel: Arc<OnceLock<Notifier>>,
    /// The kernel knows what ENOSYS to `open` means (since 3.16), and to `opendir` (5.1).
    no_open: bool,
    no_opendir: bool,
}

impl Adapter {
    /// Runs what answers a request, and notes how long that took: on this very thread as long as it need not wait, for a task
    /// switch costs more than a cached read does. A panic drops the reply, which fuser turns into
    /// EIO, and ends neither the thread nor the mount.
    fn answer(&self, operation: Operation, request: impl Future<Output = ()> + Send + 'static) {
        let answering = Stats::answering(self.fs.stats().clone(), operation);
        let mut request = Box::pin(async move {
            let _answering = answering;
            request.await;
        });
        let _runtime = self.runtime.enter();
        let first = catch_unwind(AssertUnwindSafe(|| {
            request.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        }));
        if let Ok(Poll::Pending) = first {
            // A task is polled when it is spawned, so no wake-up is lost.
            self.runtime.spawn(request);
        }
    }
}

/// Methods whose only answer is one error.
macro_rules! refuse {
    ($errno:ident: $(fn $name:ident($($argument:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        })*
    };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut enable = |flag| config.add_capabilities(flag).is_ok();
        self.no_open = enable(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = enable(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            // Attributes with the names when somebody asks for them, and only then.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // Makes the kernel compare a directory's mtime before it trusts its directory pages.
            // A file's inode names one version, so for files it never fires.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ] {
            if !enable(flag) {
                tracing::info!("the kernel does not offer {flag:?}: some requests cost more");
            }
        }
        // Neither can fail with a number that is not 0.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let waiter = Waiter::new(request.pid());
        self.answer(Operation::Lookup, async move {
            match waiter.waits_for(fs.lookup(parent.0, &name)).await {
                Ok(entry) => reply.entry_with_ttls(
                    &entry.attributes_ttl,
                    &entry.name_ttl,
                    &file_attr(&entry.attributes),
                    GENERATION,
                ),
                // Inode 0 is how the protocol says "no such name, and you may remember it".
                Err(FsError::NotFound { ttl }) if !ttl.is_zero() => reply.entry_with_ttls(
                    &Duration::ZERO,
                    &ttl,
                    &file_attr(&Attributes::NONE),
                    GENERATION,
                ),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _answering = Stats::answering(&**self.fs.stats(), Operation::Getattr);
        match self.fs.attributes(ino.0) {
            Ok(entry) => reply.attr(&entry.attributes_ttl, &file_attr(&entry.attributes)),
            Err(error) => reply.error(errno(&self.fs, &error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, kernel) = (self.fs.clone(), self.kernel.clone());
        let thread = request.pid();
        let past_page_cache = flags.0 & libc::O_DIRECT != 0;
        let taker = if past_page_cache { Taker::Program } else { Taker::PageCache };
        // Who waits for a page can be killed, and whoever asked for it may have gone on.
        let waiter = Waiter::new(if past_page_cache { thread } else { 0 });
        self.answer(Operation::Read, async move {
            match waiter.waits_for(fs.read(ino.0, offset, size, taker)).await {
                Ok(data) => {
                    fs.stats().files.add(ino.0, data.len() as u64);
                    fs.stats().threads.add(thread.into(), data.len() as u64);
                    reply.data(&data);
                }
                Err(error) => {
                    if error == FsError::Stale {
                        forget_name(fs.name_of(ino.0), kernel).await;
                    }
                    reply.error(errno(&fs, &error));
                }
            }
        });
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (fs, waiter) = (self.fs.clone(), Waiter::new(request.pid()));
        self.answer(Operation::Readdir, async move {
            let add = |entry: &DirectoryEntry<'_>| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name)
            };
            match waiter.waits_for(fs.read_directory(ino.0, offset, add)).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (fs, waiter) = (self.fs.clone(), Waiter::new(request.pid()));
        self.answer(Operation::Readdirplus, async move {
            let add = |entry: &DirectoryEntry<'_>, known: &crate::fs::Entry| {
                !reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    OsStr::from_bytes(entry.name),
                    // One field for both lives in fuser; the name's is the shorter one.
                    &known.name_ttl.min(known.attributes_ttl),
                    &file_attr(&known.attributes),
                    GENERATION,
                )
            };
            match waiter.waits_for(fs.read_directory_plus(ino.0, offset, add)).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let waiter = Waiter::new(request.pid());
        self.answer(Operation::Getxattr, async move {
            match waiter.waits_for(fs.xattr(ino.0, &name)).await {
                Ok(value) => give_value(reply, size, &value),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fs.xattr_names(ino.0) {
            Ok(names) => give_value(reply, size, &names),
            Err(error) => reply.error(errno(&self.fs, &error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let Space { blocks, block_bytes, name_bytes } = Space::OF_A_BUCKET;
        reply.statfs(blocks, blocks, blocks, 0, 0, block_bytes, name_bytes, block_bytes);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    // The kernel remembers ENOSYS, does not ask again, and answers the program itself: to flush and
    // fsync that all is well, for nothing is ever dirty. A flush comes with every close.
    refuse! { ENOSYS:
        fn flush(INodeNo, FileHandle, LockOwner) -> ReplyEmpty;
        fn fsync(INodeNo, FileHandle, bool) -> ReplyEmpty;
        fn bmap(INodeNo, u32, u64) -> ReplyBmap;
        fn lseek(INodeNo, FileHandle, i64, i32) -> ReplyLseek;
    }
    refuse! { ENOTTY:
        fn ioctl(INodeNo, FileHandle, IoctlFlags, u32, &[u8], u32) -> ReplyIoctl;
    }
    refuse! { EINVAL:
        fn readlink(INodeNo) -> ReplyData;
    }
    refuse! { EROFS:
        fn setattr(INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>) -> ReplyAttr;
        fn mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        fn mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        fn unlink(INodeNo, &OsStr) -> ReplyEmpty;
        fn rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        fn symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        fn rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        fn link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        fn create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        fn write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>)
            -> ReplyWrite;
        fn fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        fn copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64,
            CopyFileRangeFlags) -> ReplyWrite;
        fn setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        fn removexattr(INodeNo, &OsStr) -> ReplyEmpty;
    }
}

/// Makes the kernel ask anew for a name before its life is over. `open` is never sent, so without
/// this it would lead to the same stale file again.
async fn forget_name(name: Option<(Ino, String)>, kernel: Arc<OnceLock<Notifier>>) {
    let Some((parent, name)) = name else { return };
    // The kernel takes the directory's lock, for which it may wait: not on this thread.
    let telling = spawn_blocking(move || {
        let outcome = kernel.get().map(|kernel| kernel.inval_entry(INodeNo(parent), name.as_ref()));
        if let Some(Err(error)) = outcome {
            tracing::debug!(parent, name, %error, "the kernel did not forget a name");
        }
    });
    // Nor for ever: whoever holds that lock may be waiting for the very read that this is about.
    let _ = tokio::time::timeout(LONGEST_FORGETTING, telling).await;
}

/// A size of 0 asks how much room the value needs.
fn give_value(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// The errno of a failure, counted.
fn errno(fs: &BucketFs, error: &FsError) -> Errno {
    fs.stats().fuse.failed(error.errno());
    Errno::from_i32(error.errno())
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino),
        size: attributes.size_bytes,
        blocks: attributes.size_bytes.div_ceil(512),
        atime: attributes.mtime,
        mtime: attributes.mtime,
        ctime: attributes.mtime,
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        // A directory's links are not counted; 1 is how a file system says so to find(1).
        nlink: 1,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        // What buffered readers such as Python's take as their buffer size.
        blksize: 128 << 10,
        flags: 0,
    }
}
