//! Which large files are open, and whether the kernel reads them by itself (passthrough). Pure but
//! for the calls that it is given.
//!
//! - The kernel asks at each `open` until the answer is ENOSYS once, and then never again. As long
//!   as it asks, a small file costs one more request, so this ends when that has cost more than
//!   passthrough can have gained.
//! - An inode is read through the daemon or passed through, never both at once: the kernel refuses
//!   an `open` of the other kind (EIO). So what is open decides, until all have closed it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::{BackingId, FileHandle};
use parking_lot::Mutex;

use crate::names::Ino;
use crate::store::LocalCopy;

/// Requests that a mount of small files spends before it knows that it is one: some 20 ms.
const FIRST_CREDIT: u64 = 1000;
/// Reading these from the page cache of a local file instead of that of FUSE saves as much time as
/// an `open` that asks costs (docs/performance.md).
const BYTES_PER_OPEN: u64 = 256 << 10;

/// What a mount needs that passes files through.
#[derive(Debug)]
pub struct Passthrough {
    /// A file where the others will lie, to try it out.
    pub sample: File,
    /// The mount does not begin without, and does not end it for small files.
    pub always: bool,
}

/// The answer to an `open`.
#[derive(Debug)]
pub(super) enum OpenAnswer {
    /// The kernel should not have asked.
    Unasked,
    ByDaemon,
    Through(Arc<BackingId>),
}

#[derive(Debug)]
pub(super) struct Opens {
    table: Mutex<Table>,
    /// Given out with each `open`, for a daemon may meet handles of the one before.
    handle: FileHandle,
}

#[derive(Debug)]
struct Table {
    asks: bool,
    /// Small files that may be opened before the kernel is told not to ask.
    credit: u64,
    /// Small files are always read through the daemon, so nobody counts them.
    large: HashMap<Ino, OpenFile>,
}

struct OpenFile {
    copy: Arc<dyn LocalCopy>,
    opens: u64,
    through: Option<Through>,
}

#[derive(Debug)]
struct Through {
    backing: Arc<BackingId>,
    /// Nobody gives it up while it is open.
    _file: File,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} opens, {:?}", self.opens, self.through)
    }
}

impl OpenFile {
    fn how(&self) -> OpenAnswer {
        self.through
            .as_ref()
            .map_or(OpenAnswer::ByDaemon, |it| OpenAnswer::Through(it.backing.clone()))
    }
}

impl Opens {
    pub(super) fn new(wanted: Option<&Passthrough>) -> Self {
        let credit = wanted.map_or(0, |it| if it.always { u64::MAX } else { FIRST_CREDIT });
        let table = Table { asks: wanted.is_some(), credit, large: HashMap::new() };
        Self { table: Mutex::new(table), handle: FileHandle(std::process::id().into()) }
    }

    /// The kernel is to ask at each `open`.
    pub(super) fn asks(&self) -> bool {
        self.table.lock().asks
    }

    /// It is to ask no more.
    pub(super) fn end(&self) {
        let mut table = self.table.lock();
        table.credit = 0;
        table.end_without_credit();
    }

    pub(super) fn handle(&self) -> FileHandle {
        self.handle
    }

    /// Nobody has it open: its local copy may be used.
    pub(super) fn is_closed(&self, ino: Ino) -> bool {
        !self.table.lock().large.contains_key(&ino)
    }

    /// A file that has no copy is opened.
    pub(super) fn open_small(&self) -> OpenAnswer {
        let mut table = self.table.lock();
        table.credit = table.credit.saturating_sub(1);
        if table.end_without_credit() { OpenAnswer::Unasked } else { OpenAnswer::ByDaemon }
    }

    /// A file that may have a copy is opened: `file`, if it is there. `register` makes it known to
    /// the kernel.
    pub(super) fn open_large(
        &self,
        ino: Ino,
        copy: Arc<dyn LocalCopy>,
        file: Option<File>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> OpenAnswer {
        let mut table = self.table.lock();
        if table.end_without_credit() {
            return OpenAnswer::Unasked;
        }
        if let Some(open) = table.large.get_mut(&ino) {
            open.opens += 1;
            return open.how();
        }
        let through = file.and_then(|file| match register(&file) {
            Ok(backing) => {
                let bytes = file.metadata().map_or(0, |metadata| metadata.len());
                table.credit = table.credit.saturating_add(bytes / BYTES_PER_OPEN);
                Some(Through { backing: Arc::new(backing), _file: file })
            }
            Err(error) => {
                tracing::debug!(ino, "not passed through: {}", why(&error));
                None
            }
        });
        let open = OpenFile { copy, opens: 1, through };
        let how = open.how();
        table.large.insert(ino, open);
        how
    }

    /// One of the opens of a file has ended.
    pub(super) fn release(&self, ino: Ino, handle: FileHandle) {
        let mut table = self.table.lock();
        let Some(open) = table.large.get_mut(&ino).filter(|_| handle == self.handle) else {
            return;
        };
        open.opens -= 1;
        if open.opens == 0 {
            let closed = table.large.remove(&ino);
            drop(table);
            if let Some(closed) = closed {
                closed.copy.released();
            }
        }
    }
}

impl Table {
    /// True when the kernel asks no more. It does not tell of closing then, either, so what is
    /// passed through comes first.
    fn end_without_credit(&mut self) -> bool {
        if self.asks && self.credit == 0 && self.large.values().all(|open| open.through.is_none()) {
            self.asks = false;
            self.large.clear();
        }
        !self.asks
    }
}

/// Why the kernel refuses to pass a file through.
pub(super) fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "it takes root (CAP_SYS_ADMIN)".to_owned(),
        Some(libc::ELOOP) => {
            "the file system of --cache-dir lies on others (overlayfs, FUSE)".to_owned()
        }
        Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP) => NOT_OFFERED.to_owned(),
        _ => error.to_string(),
    }
}

pub(super) const NOT_OFFERED: &str = "the kernel does not offer it, as Linux 6.9 does";
