//! What must outlive the process, in a file in memory: the inodes that the kernel knows, and which
//! names it was last told of directories. The next process goes on with them ([`KeptNames::open`]).
//!
//! The file begins with [`DESCRIPTION_BYTES`] for whoever passes it on; behind them are counters,
//! each with a checksum; the ring of [`ToldScans`]; and the pages of [`InodeSlots`], which grow. It
//! is written as the kernel is told. A file in memory makes no caller wait, and nobody syncs it: it
//! is as good as the machine is. What cannot be written any more is cut to nothing, so that no
//! process goes on with half of it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use self::layout::{COUNTERS_AT, SLOTS_AT, number, sum};
pub use self::layout::{DESCRIPTION_BYTES, Damage, FORMAT};
use self::scans::ToldScans;
use self::slots::InodeSlots;
pub use self::slots::KeptOpen;
pub(crate) use self::slots::{KeptInode, Slot};
use crate::names::entries::{Ino, Inode, Listing, ROOT};
use crate::names::known::mtime::Mtime;

mod layout;
mod scans;
mod slots;

/// Numbers, or generations, that are reserved with one write.
const RESERVED_NUMBERS: u64 = 1 << 20;
const RESERVED_GENERATIONS: u32 = 1 << 10;

/// The counters, each in a place of its own.
#[derive(Clone, Copy)]
enum Counted {
    Pages,
    Numbers,
    Generations,
}

#[derive(Debug)]
pub struct KeptNames {
    file: File,
    slots: InodeSlots,
    scans: ToldScans,
    /// Numbers below this may have been given out.
    numbers: Ino,
    /// Generations below this may have been told.
    generations: u32,
    /// The first of this process.
    generations_begin: u32,
    opens: HashMap<Ino, KeptOpen>,
    /// Until they are taken.
    inodes: Vec<KeptInode>,
}

impl KeptNames {
    /// Begins an empty file.
    pub fn new(file: File) -> io::Result<Self> {
        file.set_len(SLOTS_AT)?;
        let (slots, scans) = (InodeSlots::default(), ToldScans::default());
        let (numbers, inodes) = (ROOT + 1, Vec::new());
        let (generations, generations_begin) = (1, 1);
        let opens = HashMap::new();
        let mut new =
            Self { file, slots, scans, numbers, generations, generations_begin, opens, inodes };
        new.count(Counted::Pages, 0);
        new.count(Counted::Numbers, new.numbers);
        new.count(Counted::Generations, new.generations.into());
        Ok(new)
    }

    /// Reads what another process has left.
    pub fn open(file: File) -> Result<Self, Damage> {
        let count = |counted: Counted| {
            let mut bytes = [0; 16];
            let read = file.read_exact_at(&mut bytes, COUNTERS_AT + 16 * counted as u64);
            read.map_err(Damage::of)?;
            (bytes == counter(counted, number(&bytes)))
                .then(|| number(&bytes))
                .ok_or(Damage::Checksum)
        };
        let (slots, inodes) = InodeSlots::read(&file, count(Counted::Pages)?)?;
        let numbers = count(Counted::Numbers)?;
        let generations = count(Counted::Generations)?;
        let generations = u32::try_from(generations).map_err(|_| Damage::Checksum)?;
        let scans = ToldScans::read(&file);
        let generations_begin = generations;
        let opens = inodes.iter().filter_map(|one| Some((one.ino, one.open?))).collect();
        Ok(Self { file, slots, scans, numbers, generations, generations_begin, opens, inodes })
    }

    /// The number of inodes that were read.
    pub fn known(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn take(&mut self) -> Vec<KeptInode> {
        std::mem::take(&mut self.inodes)
    }

    /// The first number, and the first generation, that no process has used.
    pub(super) fn first_unused(&self) -> (Ino, u32) {
        (self.numbers, self.generations)
    }

    /// Before this number is given out.
    pub(super) fn will_issue(&mut self, ino: Ino) {
        if ino >= self.numbers {
            self.numbers = ino + RESERVED_NUMBERS;
            self.count(Counted::Numbers, self.numbers);
        }
    }

    /// The kernel will know an inode; in the file after [`Self::flush`].
    pub(super) fn add(&mut self, ino: Ino, inode: &Inode) -> Option<Slot> {
        let added = self.slots.add(&self.file, ino, inode);
        self.or_lose(added)
    }

    /// Writes an inode anew, whose key has stayed.
    pub(super) fn replace(
        &mut self,
        slot: Slot,
        lookups: u64,
        ino: Ino,
        inode: &Inode,
        mtime: Option<Mtime>,
    ) {
        let open = self.opens.get(&ino).copied();
        let replaced = slots::encode(ino, inode, mtime, lookups, open)
            .and_then(|bytes| self.slots.write(&self.file, slot, &bytes));
        self.or_lose(replaced);
    }

    pub(super) fn count_lookups(&mut self, slot: Slot, ino: Ino, lookups: u64) {
        let counted = self.slots.count(&self.file, slot, ino, lookups);
        self.or_lose(counted);
    }

    /// What [`Self::replace`] writes of an inode from here on.
    pub(super) fn set_open(&mut self, ino: Ino, open: Option<KeptOpen>) {
        match open {
            Some(open) => self.opens.insert(ino, open),
            None => self.opens.remove(&ino),
        };
    }

    /// Large files that are open.
    pub(super) fn opens(&self) -> Vec<(Ino, KeptOpen)> {
        self.opens.iter().map(|(&ino, &open)| (ino, open)).collect()
    }

    pub(super) fn remove(&mut self, slot: Slot, ino: Ino, inode: &Inode) {
        self.opens.remove(&ino);
        let removed = self.slots.remove(&self.file, slot, ino, inode);
        self.or_lose(removed);
    }

    /// Writes what was added: before the kernel is told of it.
    pub(super) fn flush(&mut self) {
        let flushed = self.slots.flush(&self.file);
        if let Some(Some(pages)) = self.or_lose(flushed) {
            self.count(Counted::Pages, pages);
        }
    }

    /// The kernel is being told the `told` entries of `directory` from index `first` on.
    pub(super) fn scanned(&mut self, directory: Ino, listing: &Listing, first: usize, told: usize) {
        if listing.generation >= self.generations {
            self.generations = listing.generation + RESERVED_GENERATIONS;
            self.count(Counted::Generations, self.generations.into());
        }
        if told > 0 {
            let written = self.scans.write(&self.file, directory, listing, first..first + told);
            self.or_lose(written);
        }
    }

    /// A process before this one has told it.
    pub(super) fn is_older(&self, generation: u32) -> bool {
        generation < self.generations_begin
    }

    /// The last of the first `entries` entries of a listing that another process has told.
    pub(super) fn last_told(
        &self,
        directory: Ino,
        generation: u32,
        entries: usize,
    ) -> Option<(Vec<u8>, bool)> {
        self.scans.last(&self.file, directory, generation, entries)
    }

    fn count(&mut self, counted: Counted, value: u64) {
        let at = COUNTERS_AT + 16 * counted as u64;
        let written = self.file.write_all_at(&counter(counted, value), at);
        self.or_lose(written);
    }

    fn or_lose<T>(&mut self, outcome: io::Result<T>) -> Option<T> {
        outcome
            .inspect_err(|_| {
                // Then the memory that it had is enough for its end.
                let _ = self.file.set_len(0);
            })
            .ok()
    }
}

fn counter(counted: Counted, value: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8] = counted as u8;
    let sum = sum(&bytes[..12]);
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
