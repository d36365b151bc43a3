//! A directory's entries in key order: runs that are appended as pages arrive and never change.

use std::sync::Arc;
use std::time::SystemTime;

use super::node::{Ino, Inode};
use super::run::EntryRun;
use crate::names::rules::{self, EntryKey};

/// Memory of a run beside its entries: an `Arc`, two vectors, and their allocations.
const RUN_BYTES: usize = 128;

/// The offset basis of FNV-1a.
const DIGEST_OF_NOTHING: u64 = 0xcbf2_9ce4_8422_2325;

/// A directory's entries in key order (N10), each with its inode number; the first of them while
/// the directory is being listed.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) prefix: Arc<str>,
    /// Unique in a mount, never 0: the high half of the cookies of scans over this listing.
    pub(crate) generation: u32,
    /// Not empty, each with the index of its first entry in the whole directory.
    runs: Vec<(usize, Arc<EntryRun>)>,
    length: usize,
    memory_bytes: usize,
    /// Of all entries, without their numbers and times: the same content gives the same digest.
    pub(crate) digest: u64,
}

impl Listing {
    pub(crate) fn new(prefix: Arc<str>, generation: u32) -> Self {
        let memory_bytes = size_of::<Self>() + prefix.len();
        let (runs, digest) = (Vec::new(), DIGEST_OF_NOTHING);
        Self { prefix, generation, runs, length: 0, memory_bytes, digest }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The same, counted anew.
    #[cfg(test)]
    pub(crate) fn recounted_bytes(&self) -> usize {
        let runs = self.runs.iter().map(|(_, run)| run.memory_bytes() + RUN_BYTES);
        runs.sum::<usize>() + self.prefix.len() + size_of::<Self>()
    }

    /// The index of the entry with this name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        [true, false].into_iter().find_map(|is_directory| {
            let key = EntryKey { name, is_directory };
            let index = self.lower_bound(key);
            (index < self.length && self.key(index) == key).then_some(index)
        })
    }

    pub(crate) fn find_inode(&self, name: &[u8]) -> Option<(Ino, Inode)> {
        self.find(name).map(|index| (self.ino(index), self.inode(index)))
    }

    pub(crate) fn entry(&self, index: usize) -> (EntryKey<'_>, Ino) {
        let (run, index) = self.at(index);
        (run.key(index), run.ino(index))
    }

    pub(crate) fn key(&self, index: usize) -> EntryKey<'_> {
        let (run, index) = self.at(index);
        run.key(index)
    }

    pub(crate) fn ino(&self, index: usize) -> Ino {
        let (run, index) = self.at(index);
        run.ino(index)
    }

    /// A file's size; `None` for a directory, and for an archived file.
    pub(crate) fn file_bytes(&self, index: usize) -> Option<u64> {
        let (run, index) = self.at(index);
        run.file_bytes(index)
    }

    pub(crate) fn inode(&self, index: usize) -> Inode {
        let (run, index) = self.at(index);
        run.inode(index, &self.prefix)
    }

    /// The number of the entry that is the same as `of`, name included.
    pub(crate) fn number(&self, of: &Inode) -> Option<Ino> {
        let (_, name) = rules::parent_and_name(of.key())?;
        let (run, index) = self.at(self.find(name.as_bytes())?);
        run.is(index, of).then(|| run.ino(index))
    }

    /// The number of the entry with this index, if it is the same as entry `at` of `run`.
    pub(crate) fn number_near(&self, index: usize, run: &EntryRun, at: usize) -> Option<Ino> {
        let (own, own_at) = (index < self.length).then(|| self.at(index))?;
        own.is_same(own_at, run, at).then(|| own.ino(own_at))
    }

    /// The index of the first entry behind this key.
    pub(crate) fn behind(&self, key: EntryKey<'_>) -> usize {
        let index = self.lower_bound(key);
        if index < self.length && self.key(index) == key { index + 1 } else { index }
    }

    /// The entries from `start` on begin with those of `run`, with the same numbers and times.
    pub(crate) fn continues_with(&self, start: usize, run: &EntryRun) -> bool {
        start + run.len() <= self.length
            && (0..run.len()).all(|at| {
                let (own, own_at) = self.at(start + at);
                own.shows_same(own_at, run, at)
            })
    }

    /// The newest time of a file, if there is one.
    pub(crate) fn newest(&self) -> Option<SystemTime> {
        self.runs.iter().filter_map(|(_, run)| run.newest()).max()
    }

    pub(crate) fn push(&mut self, run: Arc<EntryRun>) {
        if run.is_empty() {
            return;
        }
        self.length += run.len();
        self.memory_bytes += run.memory_bytes() + RUN_BYTES;
        self.digest = run.digest(self.digest);
        self.runs.push((self.length - run.len(), run));
    }

    /// The same listing from the run of entry `index` on, with at most `runs` runs.
    pub(crate) fn tail(&self, index: usize, runs: usize) -> Self {
        let first = self.runs.partition_point(|(start, _)| *start <= index).saturating_sub(1);
        let runs: Vec<_> = self.runs.iter().skip(first).take(runs).cloned().collect();
        let length = runs.last().map_or(self.length, |(start, run)| start + run.len());
        Self { runs, length, ..Self::new(self.prefix.clone(), self.generation) }
    }

    fn at(&self, index: usize) -> (&EntryRun, usize) {
        let behind = self.runs.partition_point(|(start, _)| *start <= index);
        let (start, run) = &self.runs[behind - 1];
        (run, index - start)
    }

    fn lower_bound(&self, key: EntryKey<'_>) -> usize {
        let begins_before = |(_, run): &(usize, Arc<EntryRun>)| run.key(0) < key;
        let Some(at) = self.runs.partition_point(begins_before).checked_sub(1) else { return 0 };
        let (start, run) = &self.runs[at];
        start + run.lower_bound(key)
    }
}
