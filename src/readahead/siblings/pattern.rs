//! The pattern in which one directory is read (in order, at several places, or shuffled), and the
//! files that are worth fetching ahead because of it.

use super::{Account, Listed, SiblingLimits, SmallRead, small};
use crate::readahead::bits::Bits;

/// In a shuffled epoch, and of the files read ahead: one in this many is a little.
const LITTLE: usize = 10;

/// No order is recognised before this many files were read: a batch, or one for each thread.
pub(super) const LEAST_FILES: usize = 16;

/// Files that may be ahead for each file read, once a shuffled epoch is recognised. 16 threads
/// behind 15 ms read 970 files a second, so six keep 96 connections busy. More would only
/// waste more when an epoch ends early.
const AHEAD_PER_READ: usize = 6;

/// Fewer files mean nothing: three that are read in a row, or three read ahead in vain, are chance.
pub(super) const BEYOND_CHANCE: usize = 4;

/// The largest distance of the next file from a front: 16 threads that take turns are at most twice
/// their number apart. Less in a small directory: one for each [`ENTRIES_PER_TOLERANCE`] entries.
const TOLERANCE: usize = 32;
const ENTRIES_PER_TOLERANCE: usize = 128;

/// Fronts of a directory: the workers of a data loader, each in a batch of its own. Fewer in a
/// small directory, one for each [`ENTRIES_PER_FRONT`] entries: with many fronts, any file is near
/// to one.
const FRONTS: usize = 16;
const ENTRIES_PER_FRONT: usize = 64;

/// The window of files read ahead in order: at 15 ms to the first byte, 48 connections are busy
/// with 48 files; ten times that for a network with ten times the delay.
pub(super) const WINDOW_FILES: usize = 512;

/// The same in bytes: half of the window of a stream in a large file.
const WINDOW_BYTES: u64 = 64 << 20;

/// Files that one read may choose: 5 µs each, on the thread that has the read to answer.
pub(super) const CHOSEN_AT_ONCE: usize = 32;

/// Entries that one read examines to find them; the next read continues the search.
pub(super) const ENTRIES_EXAMINED: usize = 256;

/// Entries that are examined to estimate how many files of a directory are small.
pub(super) const SAMPLED: usize = 256;

pub(super) struct Pattern {
    pub(super) generation: u32,
    /// An estimate of the number of its small files.
    small_files: usize,
    /// Read in this epoch.
    pub(super) read: Bits,
    /// Read again in this epoch: when there are enough of them, the next epoch has begun.
    pub(super) again: Bits,
    /// Read ahead and not used.
    pub(super) ahead: Bits,
    pub(super) ahead_bytes: u64,
    /// The search of this epoch has come to this index.
    considered: usize,
    /// Bytes served when the epoch began, and at the last read.
    began_at: u64,
    pub(super) read_at: u64,
    /// The previous epoch read the whole directory.
    was_whole: bool,
    /// All of it is worth a round trip.
    pub(super) is_small: bool,
    /// It was fetched before one of its files was read.
    pub(super) was_entered: bool,
    fronts: Vec<Front>,
    pub(super) ledger: Ledger,
}

/// A place where a program reads on in order.
struct Front {
    /// Index of the first file.
    begun: usize,
    /// Behind the furthest one.
    position: usize,
    /// Number of files read.
    run: usize,
    /// The search has come to this index.
    considered: usize,
    /// Files ahead before this index were passed by.
    passed: usize,
    /// The number of its last read.
    used: u64,
}

/// Outcomes of files that were read ahead; older ones count less.
#[derive(Default)]
pub(super) struct Ledger {
    reads: u64,
    used: usize,
    wasted: usize,
}

impl Pattern {
    pub(super) fn new(directory: &dyn Listed, limits: &SiblingLimits, served_bytes: u64) -> Self {
        let len = directory.entries();
        let sampled = (0..len).step_by(len.div_ceil(SAMPLED).max(1));
        let small = |&index: &usize| is_small(directory, index, limits).is_some();
        let (examined, found) = (sampled.len().max(1), sampled.filter(small).count());
        Self {
            generation: directory.generation(),
            small_files: (len * found).div_ceil(examined).max(1),
            read: Bits::new(len),
            again: Bits::new(len),
            ahead: Bits::new(len),
            ahead_bytes: 0,
            considered: 0,
            began_at: served_bytes,
            read_at: served_bytes,
            was_whole: false,
            is_small: small::is_small(directory),
            was_entered: false,
            fronts: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    pub(super) fn entries(&self) -> usize {
        self.read.len()
    }

    /// Notes a read. False if it is the continuation of one.
    pub(super) fn note(
        &mut self,
        directory: &dyn Listed,
        read: SmallRead,
        account: &mut Account,
    ) -> bool {
        let SmallRead { index, from_start, cached, served_bytes } = read;
        // Reads at the same time may have taken their numbers in another order.
        self.read_at = self.read_at.max(served_bytes);
        if self.read.has(index) {
            if !from_start || !self.again.set(index) {
                return false;
            }
            let enough = if self.is_whole() { 0 } else { self.read.count() / 4 };
            if self.again.count() >= enough.max(LEAST_FILES) {
                self.begin_epoch(served_bytes, account);
            }
        } else {
            self.read.set(index);
            self.read_small(account);
            if let Some(bytes) = self.take_ahead(directory, index, account) {
                self.settle(1, bytes, cached, account);
                if self.is_small && cached {
                    account.credit.win(small::GAIN * small::cost(bytes));
                }
            }
        }
        self.ledger.count_read(self.small_files);
        true
    }

    /// Begins the next epoch: files are read again.
    fn begin_epoch(&mut self, served_bytes: u64, account: &mut Account) {
        self.was_whole = self.is_whole();
        let each = self.served_per_read();
        self.waste_all(account);
        std::mem::swap(&mut self.read, &mut self.again);
        self.again.clear();
        self.considered = 0;
        self.began_at = served_bytes.saturating_sub(each * self.read.count() as u64);
        self.fronts.clear();
    }

    fn is_whole(&self) -> bool {
        self.read.count() >= self.small_files - self.small_files / 16
    }

    /// The front that a file belongs to: the nearest within the tolerance, or a new one that
    /// replaces the least recently used.
    pub(super) fn front(&mut self, index: usize) -> usize {
        let now = self.ledger.reads;
        let distance = |front: &Front| front.position.abs_diff(index);
        let tolerance = (self.entries() / ENTRIES_PER_TOLERANCE).clamp(1, TOLERANCE);
        let near = (0..self.fronts.len()).filter(|&at| distance(&self.fronts[at]) <= tolerance);
        if let Some(at) = near.min_by_key(|&at| distance(&self.fronts[at])) {
            let front = &mut self.fronts[at];
            front.begun = front.begun.min(index);
            front.position = front.position.max(index + 1);
            front.run += 1;
            front.used = now;
            if front.run >= 2 * WINDOW_FILES {
                // Recent reads count more.
                front.run /= 2;
                front.begun = front.position - (front.position - front.begun) / 2;
            }
            return at;
        }
        if self.fronts.len() == (self.entries() / ENTRIES_PER_FRONT).clamp(1, FRONTS) {
            let oldest = (0..self.fronts.len()).min_by_key(|&at| self.fronts[at].used);
            self.fronts.swap_remove(oldest.expect("not empty"));
        }
        let position = index + 1;
        let begun = index;
        let (considered, passed) = (position, index);
        self.fronts.push(Front { begun, position, run: 1, considered, passed, used: now });
        self.fronts.len() - 1
    }

    /// Files ahead that a front has left behind unread were read ahead in vain.
    pub(super) fn pass_by(&mut self, directory: &dyn Listed, front: usize, account: &mut Account) {
        let front = &mut self.fronts[front];
        let until = front.position.saturating_sub(4 * TOLERANCE);
        if !front.is_in_order() || until <= front.passed {
            return;
        }
        let range = std::mem::replace(&mut front.passed, until)..until;
        for index in range {
            if let Some(bytes) = self.take_ahead(directory, index, account) {
                self.settle(1, bytes, false, account);
            }
        }
    }

    /// Chooses the files to fetch ahead, and marks them as ahead.
    pub(super) fn choose(
        &mut self,
        directory: &dyn Listed,
        front: usize,
        account: &mut Account,
    ) -> Vec<usize> {
        let limits = account.limits;
        let Front { position, run, considered, .. } = self.fronts[front];
        let in_order = self.fronts[front].is_in_order();
        let (range, files, bytes) = if in_order {
            let until = (position + run.min(WINDOW_FILES)).min(directory.entries());
            (considered.max(position)..until, self.in_order(), WINDOW_BYTES)
        } else {
            let files = if self.fits(&limits) { self.shuffled() } else { 0 };
            (self.considered..directory.entries(), files, limits.ahead_bytes)
        };
        let mut chosen = Vec::new();
        let mut at = range.start;
        for _ in 0..ENTRIES_EXAMINED {
            if chosen.len() == CHOSEN_AT_ONCE || self.ahead.count() >= files {
                break;
            }
            at = self.read.first_without(&self.ahead, at, range.end);
            if at >= range.end {
                break;
            }
            if let Some(size) = is_small(directory, at, &limits) {
                if self.ahead_bytes + size > bytes
                    || account.ahead_bytes + size > limits.ahead_bytes
                {
                    break;
                }
                self.mark_ahead(at, size, account);
                chosen.push(at);
            }
            at += 1;
        }
        if in_order {
            self.fronts[front].considered = at;
        } else {
            self.considered = at;
        }
        chosen
    }

    /// Number of files that may be ahead of all fronts.
    fn in_order(&self) -> usize {
        if !self.is_trusted() {
            return self.little();
        }
        let in_order = self.fronts.iter().filter(|front| front.is_in_order());
        in_order.map(|front| front.run).sum::<usize>().min(WINDOW_FILES)
    }

    /// Number of files that may be ahead in a shuffled epoch.
    fn shuffled(&self) -> usize {
        let little = self.little();
        if !self.is_trusted() {
            return little;
        }
        let doubtful = if self.was_whole { 0 } else { self.small_files / LITTLE };
        let beyond = self.read.count().saturating_sub(doubtful.max(LEAST_FILES));
        little.max(beyond * AHEAD_PER_READ)
    }

    /// Number of files that may be ahead even if none of them is used.
    fn little(&self) -> usize {
        (self.read.count() / LITTLE).saturating_sub(self.ledger.wasted)
    }

    /// The rest of a shuffled epoch will be read before the cache evicts what is fetched now, with
    /// all that is read in between.
    fn fits(&self, limits: &SiblingLimits) -> bool {
        let left = self.small_files.saturating_sub(self.read.count()) as u64;
        left.saturating_mul(self.served_per_read()) <= limits.life_bytes
    }

    /// Bytes served, of any file, for each file of this directory that was read in this epoch.
    pub(super) fn served_per_read(&self) -> u64 {
        (self.read_at - self.began_at) / (self.read.count() as u64).max(1)
    }

    fn is_trusted(&self) -> bool {
        let Ledger { used, wasted, .. } = self.ledger;
        wasted * LITTLE <= used + wasted || wasted < BEYOND_CHANCE
    }

    pub(super) fn mark_ahead(&mut self, index: usize, bytes: u64, account: &mut Account) {
        self.ahead.set(index);
        self.ahead_bytes += bytes;
        account.ahead_bytes += bytes;
    }

    /// Unmarks a file as ahead. Returns its size if it was.
    pub(super) fn take_ahead(
        &mut self,
        directory: &dyn Listed,
        index: usize,
        account: &mut Account,
    ) -> Option<u64> {
        if !self.ahead.unset(index) {
            return None;
        }
        let bytes = directory.file_bytes(index).unwrap_or_default();
        self.ahead_bytes -= bytes;
        account.ahead_bytes -= bytes;
        Some(bytes)
    }

    /// Gives up all files that are ahead.
    pub(super) fn waste_all(&mut self, account: &mut Account) {
        let (files, bytes) = (self.ahead.count(), std::mem::take(&mut self.ahead_bytes));
        self.ahead.clear();
        account.ahead_bytes -= bytes;
        self.settle(files, bytes, false, account);
    }

    /// Counts the outcome of files that were ahead.
    fn settle(&mut self, files: usize, bytes: u64, used: bool, account: &Account) {
        let stats = &account.stats;
        let (mine, all, all_bytes) = if used {
            (&mut self.ledger.used, &stats.siblings_used, &stats.siblings_used_bytes)
        } else {
            (&mut self.ledger.wasted, &stats.siblings_wasted, &stats.siblings_wasted_bytes)
        };
        *mine += files;
        all.add(files as u64);
        all_bytes.add(bytes);
    }
}

impl Front {
    /// Most of the files between its first and its last one were read.
    fn is_in_order(&self) -> bool {
        self.run >= BEYOND_CHANCE && self.run * 2 >= self.position - self.begun
    }
}

impl Ledger {
    /// Halves the older outcomes each time that `files` files, a whole directory, were read.
    fn count_read(&mut self, files: usize) {
        self.reads += 1;
        if self.reads.is_multiple_of(files.max(ENTRIES_EXAMINED) as u64) {
            self.used /= 2;
            self.wasted /= 2;
        }
    }
}

/// The size of a small file; `None` for any other entry.
fn is_small(directory: &dyn Listed, index: usize, limits: &SiblingLimits) -> Option<u64> {
    directory.file_bytes(index).filter(|&bytes| bytes > 0 && bytes <= limits.small_bytes)
}
