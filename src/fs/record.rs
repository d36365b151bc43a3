//! The record of first touches: which names and bytes programs use, in the order in which they do
//! so first. Played back as hints ([`super::prefetch`]), it is ahead of the next start of the same
//! program.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::BucketFs;
use super::prefetch::Touch;
use crate::cache::Source;
use crate::names::{Ino, Inode, Names};

/// Touches that are kept; a start that makes more is recorded up to here.
const MOST_TOUCHES: usize = 100_000;

/// Reads of one file that are no further apart are one touch: the kernel's requests of a mapped
/// file, and the blocks between them.
const GAP_BYTES: u64 = 1 << 20;

/// A directory with more entries than some pages hold is left out: its files are looked up.
const MOST_ENTRIES: usize = 10_000;

#[derive(Default)]
pub(super) struct Recorder {
    is_on: AtomicBool,
    touches: Mutex<Touches>,
}

#[derive(Default)]
struct Touches {
    directories: Vec<Arc<str>>,
    listed: HashSet<Ino>,
    bytes: Vec<(Source, Range<u64>)>,
    /// The index of each object's last touch.
    last: HashMap<Ino, usize>,
}

/// A recording; ends when it is dropped.
pub struct Recording(Arc<BucketFs>);

impl Recorder {
    /// A program has asked for names in a directory.
    pub(super) fn names(&self, names: &Names, directory: Ino) {
        if !self.is_on.load(Relaxed) {
            return;
        }
        let mut touches = self.touches.lock();
        if touches.listed.len() < MOST_TOUCHES
            && touches.listed.insert(directory)
            && let Ok(Inode::Directory(prefix)) = names.inode(directory)
        {
            touches.directories.push(prefix);
        }
    }

    /// A program has read bytes of a file.
    pub(super) fn bytes(&self, source: &Source, want: &Range<u64>) {
        if self.is_on.load(Relaxed) {
            self.touches.lock().add(source, want);
        }
    }
}

impl Touches {
    fn add(&mut self, source: &Source, want: &Range<u64>) {
        if let Some((_, last)) = self.last.get(&source.id).map(|&at| &mut self.bytes[at])
            && want.start <= last.end + GAP_BYTES
            && last.start <= want.end + GAP_BYTES
        {
            *last = last.start.min(want.start)..last.end.max(want.end);
        } else if self.bytes.len() < MOST_TOUCHES {
            self.last.insert(source.id, self.bytes.len());
            self.bytes.push((source.clone(), want.clone()));
        }
    }
}

impl BucketFs {
    /// Begins a recording; `None` while there is one.
    pub fn record(self: &Arc<Self>) -> Option<Recording> {
        let begins = !self.record.is_on.swap(true, Relaxed);
        begins.then(|| Recording(self.clone()))
    }
}

impl Recording {
    /// What was touched so far: directories first, because their names are needed first.
    pub fn touches(&self) -> Vec<Touch> {
        let (names, touches) = (&self.0.names, self.0.record.touches.lock());
        let path = |key: &str| names.path_below_root(key).map(str::to_owned);
        let is_short = |prefix: &&Arc<str>| {
            names.listed_entries(prefix).is_some_and(|entries| entries <= MOST_ENTRIES)
        };
        let directories = touches.directories.iter().filter(is_short);
        let directories = directories.filter_map(|prefix| Some(Touch::Names(path(prefix)?)));
        let bytes = touches.bytes.iter().filter_map(|(source, range)| {
            Some(Touch::Bytes(path(&source.meta.version.key)?, range.clone()))
        });
        directories.chain(bytes).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.0.record.is_on.store(false, Relaxed);
        *self.0.record.touches.lock() = Touches::default();
    }
}
