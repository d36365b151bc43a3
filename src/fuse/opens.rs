//! Which large files are open, and whether the kernel reads them by itself (passthrough).
//!
//! - The kernel asks at each `open` until the answer is ENOSYS once, and then never again. As long
//!   as it asks, a small file costs one more request, so this ends when that has cost more than
//!   passthrough can have gained.
//! - An inode is read through the daemon or passed through, never both at once: the kernel refuses
//!   an `open` of the other kind (EIO). So what is open decides, until all have closed it, in the
//!   next daemon too: it is left the count of opens and the kernel's number of the file.
//! - That count is never too small: an `open` is written before it is answered, and a closing that
//!   the kernel tells again may have been counted. What is too many ends with the inode.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::{BackingId, ReplyOpen};
use parking_lot::Mutex;

use super::takeover::adopt;
use crate::names::{Ino, KeptOpen, Names};
use crate::store::LocalCopy;

/// Requests that a mount of small files spends before it knows that it is one: some 20 ms.
const FIRST_CREDIT: u64 = 1000;
/// Reading these from the page cache of a local file instead of that of FUSE saves as much time as
/// an `open` that asks costs (docs/performance.md).
const BYTES_PER_OPEN: u64 = 256 << 10;

/// What a mount needs that passes files through.
#[derive(Debug)]
pub struct Passthrough {
    /// A file where the others will lie, to try it out; a mount that is taken over needs none.
    pub sample: Option<File>,
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
pub(super) struct Opens(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    asks: bool,
    /// Files are passed through, and not only those that another process has left so.
    passes: bool,
    /// Small files that may be opened before the kernel is told not to ask.
    credit: u64,
    /// Small files are always read through the daemon, so nobody counts them.
    large: HashMap<Ino, OpenFile>,
    /// Files that the kernel is to close, by its numbers: it takes an `open` to reach them.
    left_over: Vec<u32>,
}

struct OpenFile {
    /// None after a change of options.
    copy: Option<Arc<dyn LocalCopy>>,
    opens: u32,
    through: Option<Through>,
}

/// A file that the kernel has open, and does not let be given up.
#[derive(Debug)]
struct Through {
    /// The kernel's.
    number: u32,
    /// None until the first `open` after a takeover.
    backing: Option<Arc<BackingId>>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} opens, {:?}", self.opens, self.through)
    }
}

impl OpenFile {
    /// What the next daemon must know.
    fn kept(&self) -> KeptOpen {
        let backing = self.through.as_ref().map_or(0, |through| through.number);
        KeptOpen { opens: self.opens, backing }
    }
}

impl Through {
    fn register(file: &File, reply: &ReplyOpen) -> io::Result<Self> {
        let number = reply.open_backing(file)?.into_raw();
        Ok(Self { number, backing: Some(Arc::new(adopt(reply, number))) })
    }
}

impl Opens {
    /// For a new mount.
    pub(super) fn new(wanted: Option<&Passthrough>) -> Self {
        let (passes, credit) = (wanted.is_some(), credit(wanted));
        Self(Mutex::new(Table { asks: passes, passes, credit, ..Table::default() }))
    }

    /// For a mount that is taken over, in which the kernel `asks`, with what is open. `copy` gives
    /// an inode's local copy.
    pub(super) fn go_on(
        wanted: Option<&Passthrough>,
        asks: bool,
        open: Vec<(Ino, KeptOpen)>,
        copy: impl Fn(Ino) -> Option<Arc<dyn LocalCopy>>,
    ) -> Self {
        let left = |(ino, KeptOpen { opens, backing: number })| {
            let through = (number > 0).then_some(Through { number, backing: None });
            (ino, OpenFile { copy: copy(ino), opens, through })
        };
        let (large, left_over) = (open.into_iter().map(left).collect(), Vec::new());
        let (passes, credit) = (wanted.is_some(), credit(wanted));
        Self(Mutex::new(Table { asks, passes, credit, large, left_over }))
    }

    /// The kernel is to ask at each `open`.
    pub(super) fn asks(&self) -> bool {
        self.0.lock().asks
    }

    /// It is to ask no more.
    pub(super) fn end(&self) {
        let mut table = self.0.lock();
        table.credit = 0;
        table.end_without_credit();
    }

    /// Its local copy may be used: nobody has it open.
    pub(super) fn may_pass_through(&self, ino: Ino) -> bool {
        let table = self.0.lock();
        table.passes && !table.large.contains_key(&ino)
    }

    /// A file is opened. If it is a large one, it may have a copy: `file`, if that is there.
    pub(super) fn open(
        &self,
        ino: Ino,
        copy: Option<Arc<dyn LocalCopy>>,
        file: Option<File>,
        reply: &ReplyOpen,
        names: &Names,
    ) -> OpenAnswer {
        let mut table = self.0.lock();
        let Table { credit, large, left_over, .. } = &mut *table;
        left_over.drain(..).for_each(|number| drop(adopt(reply, number)));
        if copy.is_none() && !large.contains_key(&ino) {
            *credit = credit.saturating_sub(1);
        }
        if table.end_without_credit() {
            return OpenAnswer::Unasked;
        }
        let Table { credit, large, .. } = &mut *table;
        let open = match large.get_mut(&ino) {
            Some(open) => open,
            None if copy.is_none() => return OpenAnswer::ByDaemon,
            None => {
                let through = file.and_then(|file| {
                    let registered = Through::register(&file, reply);
                    let told = |error: &io::Error| {
                        tracing::debug!(ino, "not passed through: {}", why(error));
                    };
                    let through = registered.inspect_err(told).ok()?;
                    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
                    *credit = credit.saturating_add(bytes / BYTES_PER_OPEN);
                    Some(through)
                });
                large.entry(ino).or_insert(OpenFile { copy, opens: 0, through })
            }
        };
        open.opens += 1;
        names.keep_open(ino, Some(open.kept()));
        match &mut open.through {
            None => OpenAnswer::ByDaemon,
            Some(Through { number, backing }) => OpenAnswer::Through(
                backing.get_or_insert_with(|| Arc::new(adopt(reply, *number))).clone(),
            ),
        }
    }

    /// One of the opens of a file has ended.
    pub(super) fn release(&self, ino: Ino, names: &Names) {
        let mut table = self.0.lock();
        let Some(open) = table.large.get_mut(&ino) else { return };
        open.opens -= 1;
        if open.opens > 0 {
            names.keep_open(ino, Some(open.kept()));
            return;
        }
        // The next daemon must not take a number for open that is closed.
        names.keep_open(ino, None);
        let copy = table.close(ino);
        drop(table);
        if let Some(copy) = copy {
            copy.released();
        }
    }

    /// The kernel knows the inode no more, so nobody has it open.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().close(ino);
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

    /// Gives the copy of a file that nobody has open any more.
    fn close(&mut self, ino: Ino) -> Option<Arc<dyn LocalCopy>> {
        let OpenFile { copy, through, .. } = self.large.remove(&ino)?;
        if let Some(Through { number, backing: None }) = through {
            self.left_over.push(number);
        }
        copy
    }
}

fn credit(wanted: Option<&Passthrough>) -> u64 {
    wanted.map_or(0, |it| if it.always { u64::MAX } else { FIRST_CREDIT })
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
