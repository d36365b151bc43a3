//! One kernel request, one [`BucketFs`] call, one reply.
//!
//! There are no file handles: `open`, `opendir` and `flush` answer ENOSYS, after which the kernel
//! sends none of them again, nor release, and keeps file and directory pages by itself (the
//! kernel's `Documentation/filesystems/fuse`, `FUSE_NO_OPEN_SUPPORT`). Where files are passed
//! through, `open` is answered (`opens`). The mount is read-only for
//! the kernel too; the EROFS here is for requests that slip past it.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::notify::{drop_pages, forget_name};
use super::opens::{OpenAnswer, Opens};
use super::takeover::is_sent_again;
use super::waiter::Waiter;
use crate::fs::{Attributes, BucketFs, FsError, ReadKind, STATFS_BLOCKS, ScanEntry};
use crate::stats::Operation;

/// Inode numbers are never reused while mounted, so one generation does.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have in flight on its own account (readahead, asynchronous direct
/// I/O), as every buffered read is. With its default of 12, eight readers with readahead wait for
/// each other; with 64, readers of 64 objects that the store does not deliver hold up all others.
const MAX_BACKGROUND: u16 = 1024;

#[derive(Clone)]
pub(super) struct Adapter {
    fs: Arc<BucketFs>,
    runtime: Handle,
    /// Takes notifications; set once there is a session.
    kernel: Arc<OnceLock<Notifier>>,
    opens: Arc<Opens>,
    /// What the kernel has offered, and its version of the protocol; set by the handshake.
    offered: Arc<OnceLock<(u64, u32)>>,
    /// The kernel knows what ENOSYS to `open` means (since 3.16), and to `opendir` (5.1).
    no_open: bool,
    no_opendir: bool,
}

impl Adapter {
    pub(super) fn new(
        fs: Arc<BucketFs>,
        runtime: Handle,
        kernel: Arc<OnceLock<Notifier>>,
        opens: Arc<Opens>,
        offered: Arc<OnceLock<(u64, u32)>>,
    ) -> Self {
        Self { fs, runtime, kernel, opens, offered, no_open: false, no_opendir: false }
    }

    /// Runs the future that answers a request, on this thread until it must wait, because a task
    /// switch costs more than a cached read. A panic drops the reply, which fuser turns into EIO.
    fn answer(&self, operation: Operation, request: impl Future<Output = ()> + Send + 'static) {
        let answering = self.fs.stats.answering(operation);
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

impl Adapter {
    fn opened(&self, opened: OpenAnswer, reply: ReplyOpen) {
        // Nobody asks for it: reading state is the inode's.
        let (stats, handle) = (&self.fs.stats, FileHandle(0));
        match opened {
            OpenAnswer::Unasked if self.no_open => reply.error(Errno::ENOSYS),
            OpenAnswer::Unasked | OpenAnswer::ByDaemon => {
                stats.opened_by_daemon.add(1);
                reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE);
            }
            OpenAnswer::Through(backing) => {
                stats.opened_through.add(1);
                reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
            }
        }
    }
}

macro_rules! refuse {
    ($errno:ident: $(fn $name:ident($($argument:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        })*
    };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = self.offered.set((config.capabilities().bits(), config.kernel_abi().1));
        let mut enable = |flag| config.add_capabilities(flag).is_ok();
        self.no_open = enable(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = enable(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            // Attributes with the names while programs ask for them, and only then.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // Asks for a directory's attributes before its pages are used. It also drops a file's
            // pages if its time moves, which is seldom.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ] {
            if !enable(flag) {
                tracing::info!("the kernel does not offer {flag:?}: some requests cost more");
            }
        }
        // A file system on this one may lie on two.
        if self.opens.asks()
            && !(enable(InitFlags::FUSE_PASSTHROUGH) && config.set_max_stack_depth(1).is_ok())
        {
            self.opens.end();
        }
        // Neither can fail with a number that is not 0.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let waiter = Waiter(request.pid());
        self.answer(Operation::Lookup, async move {
            match waiter.waits_for(fs.lookup(parent.0, &name)).await {
                Ok(entry) => reply.entry_with_ttls(
                    &entry.attr_ttl,
                    &entry.name_ttl,
                    &file_attr(&entry),
                    GENERATION,
                ),
                // Inode 0 is how the protocol says "no such name, and you may remember it".
                Err(FsError::NotFound { ttl }) if !ttl.is_zero() => reply.entry_with_ttls(
                    &Duration::ZERO,
                    &ttl,
                    &file_attr(&Attributes::none(ttl)),
                    GENERATION,
                ),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        if self.fs.names.forget(ino.0, lookups) {
            self.opens.forget(ino.0);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, kernel, ino) = (self.fs.clone(), self.kernel.clone(), ino.0);
        self.answer(Operation::Getattr, async move {
            // The kernel asks this before it uses a directory's pages.
            if let Some(old) = fs.names.old_pages(ino)
                && drop_pages(ino, kernel).await
            {
                fs.names.pages_dropped(ino, old);
            }
            match fs.attributes(ino) {
                Ok(entry) => reply.attr(&entry.attr_ttl, &file_attr(&entry)),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
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
        let kind = if past_page_cache { ReadKind::Direct } else { ReadKind::Buffered };
        // A thread that waits for a page can be killed, and the one that asked for it may have
        // moved on.
        let waiter = Waiter(if past_page_cache { thread } else { 0 });
        self.answer(Operation::Read, async move {
            match waiter.waits_for(fs.read(ino.0, offset, size, kind)).await {
                Ok(data) => {
                    fs.stats.files.add(ino.0, data.len() as u64);
                    fs.stats.threads.add(thread.into(), data.len() as u64);
                    reply.data(&data);
                }
                Err(error) => {
                    if error == FsError::Stale {
                        forget_name(fs.names.name_of(ino.0), kernel).await;
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
        let (fs, waiter) = (self.fs.clone(), Waiter(request.pid()));
        self.answer(Operation::Readdir, async move {
            match waiter.waits_for(fs.names.read_directory(ino.0, offset)).await {
                Ok(scan) => {
                    let mut told = 0;
                    for ScanEntry { ino, cookie, is_directory, name, .. } in scan.iter() {
                        let (ino, name) = (INodeNo(ino), OsStr::from_bytes(name));
                        if reply.add(ino, cookie, file_type(is_directory), name) {
                            break;
                        }
                        told += 1;
                    }
                    fs.names.told(&scan, told);
                    reply.ok();
                }
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
        let (fs, waiter) = (self.fs.clone(), Waiter(request.pid()));
        self.answer(Operation::Readdirplus, async move {
            let add = |entry: &ScanEntry<'_>, known: &Attributes| {
                !reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    OsStr::from_bytes(entry.name),
                    // One field for both lives in fuser; the name's is the shorter one.
                    &known.name_ttl.min(known.attr_ttl),
                    &file_attr(known),
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
        let (fs, name, thread) = (self.fs.clone(), name.as_bytes().to_vec(), request.pid());
        let waiter = Waiter(thread);
        self.answer(Operation::Getxattr, async move {
            match waiter.waits_for(fs.xattr(ino.0, &name, thread)).await {
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
        let (blocks, block_bytes) = STATFS_BLOCKS;
        // 0 inodes, as in file systems without a limit on them; names of at most 255 bytes.
        reply.statfs(blocks, blocks, blocks, 0, 0, block_bytes, 255, block_bytes);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if !self.opens.asks() {
            return self.opened(OpenAnswer::Unasked, reply);
        }
        let (adapter, ino) = (self.clone(), ino.0);
        self.answer(Operation::Open, async move {
            let Adapter { fs, opens, .. } = &adapter;
            let copy = fs.local_copy(ino);
            let file = match &copy {
                Some(copy) if opens.may_pass_through(ino) => copy.file().await,
                _ => None,
            };
            let opened = opens.open(ino, copy, file, &reply, &fs.names);
            adapter.opened(opened, reply);
        });
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if !is_sent_again(request) {
            self.opens.release(ino.0, &self.fs.names);
        }
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    // The kernel remembers ENOSYS and does not ask again: flush and fsync then succeed.
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

/// A size of 0 asks how much room the value needs.
fn give_value(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

fn errno(fs: &BucketFs, error: &FsError) -> Errno {
    fs.stats.fuse.failed(error.errno());
    Errno::from_i32(error.errno())
}

fn file_type(is_directory: bool) -> FileType {
    if is_directory { FileType::Directory } else { FileType::RegularFile }
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
        kind: file_type(attributes.is_directory),
        perm: attributes.mode,
        // A directory's links are not counted; 1 is how a file system says so to find(1).
        nlink: 1,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        // Buffered readers such as Python's take it as their buffer size.
        blksize: 128 << 10,
        flags: 0,
    }
}
