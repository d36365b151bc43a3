//! One directory's access pattern: which of a small file's siblings to fetch ahead.
//!
//! A program that reads small files one by one waits for a first byte each time: 16 threads behind
//! 15 ms get 970 files a second, however fast the network is. Nobody says what will be read next,
//! but a listed directory says what there is to be read, and its files are mostly read in one of two
//! ways:
//!
//! - **In order**: by `cp`, `tar`, `cat *`, or workers who take turns. As many of the files that
//!   follow are read ahead as were read in order, up to a window.
//! - **Shuffled**, each once: an epoch. Whether a program will go on to read all files, or stops
//!   after some, cannot be told from the first ones: a random order looks the same in both cases. So
//!   it is a bet. Until more than a tenth of the directory has been read, what is read ahead and not
//!   used stays under a tenth of what was read. From there on each read allows for six more, until
//!   all the rest is there.
//!
//! Both are bets that a ledger of the directory watches: when more than a tenth of what was read
//! ahead was in vain, the tenth is the rule for it until that is long ago.
//!
//! What is read ahead must still be there when it is wanted. So it takes no more than a share of the
//! memory budget for all directories together, and in a shuffled epoch nothing is read ahead before
//! what is left of the epoch, and of all that is read meanwhile, fits.
//!
//! An access costs amortised O(1), whatever the size of the directory; its state is three bits for
//! each entry. Time is told in bytes served, for that is the clock by which a cache forgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use lru::LruCache;
use parking_lot::Mutex;

use crate::stats::Stats;

/// In a shuffled epoch, and of what was read ahead: one in so many is a little.
const LITTLE: usize = 10;

/// Nothing is known of an order before so many files were read: a batch, or one for each thread.
const LEAST_FILES: usize = 16;

/// How many more files may be ahead for each that is read, once a shuffled epoch is believed in. 16
/// threads behind 15 ms read 970 files a second, so six keep 96 connections busy. More would only waste
/// more when an epoch ends early.
const AHEAD_PER_READ: usize = 6;

/// Fewer files mean nothing: three that are read one behind the other, or three in vain, are chance.
const BEYOND_CHANCE: usize = 4;

/// How far from the place where somebody reads on the next file may be: 16 threads that take turns are
/// no further apart than twice that. Less in a small directory: one for so many entries.
const TOLERANCE: usize = 32;
const ENTRIES_PER_TOLERANCE: usize = 128;

/// Places of a directory where somebody reads on in order: the workers of a data loader, each in a
/// batch of its own. Fewer in a small directory, one for so many entries: with many places, any file
/// is near to one.
const FRONTS: usize = 16;
const ENTRIES_PER_FRONT: usize = 64;

/// The window of files read ahead in order: at 15 ms to the first byte, 48 connections are busy with
/// 48 files; ten times that for a network with ten times the delay.
const WINDOW_FILES: usize = 512;

/// The same in bytes: half of what is read ahead of a stream in a large file.
const WINDOW_BYTES: u64 = 64 << 20;

/// Files that one read may ask for: 5 µs each, on the thread that has the read to answer.
const AT_ONCE: usize = 32;

/// Entries that one read looks at to find them; what it has not found, the next read goes on to find.
const LOOKED_AT: usize = 256;

/// Entries that are looked at to estimate how many files of a directory are small, and how small.
const SAMPLED: usize = 256;

/// Files whose first read is so recent that another one is its continuation. Programs read small files
/// in pieces, and the kernel sends a large piece as several, out of order.
const RECENT: usize = 64;

/// Directories that are remembered, some 300 bytes each and three bits for each entry.
const DIRECTORIES: usize = 32_768;

/// Their entries in all: twice what the namespace keeps listings of, 6 MB of bits.
const ENTRIES: usize = 16_000_000;

/// A listed directory.
pub trait Directory {
    /// What tells it from every other.
    fn path(&self) -> &Arc<str>;
    /// What tells this listing of it from every other: indices mean the same as long as this does.
    fn generation(&self) -> u32;
    /// Number of its entries.
    fn entries(&self) -> usize;
    /// The size of the file at an index below [`Self::entries`]; `None` if none can be read there.
    fn file_bytes(&self, index: usize) -> Option<u64>;
}

/// What readahead must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Larger files are none of this.
    pub small_bytes: u64,
    /// The most that may be ahead and not used, of all directories together.
    pub ahead_bytes: u64,
    /// What is read ahead lives until so many bytes were read after it.
    pub life_bytes: u64,
}

/// A small file is read.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Where the file stands in its directory.
    pub index: usize,
    /// From its beginning.
    pub from_start: bool,
    /// The cache holds or awaits it.
    pub cached: bool,
    /// Bytes served so far.
    pub served_bytes: u64,
}

/// The access patterns of all directories.
pub struct Siblings {
    limits: Limits,
    state: Mutex<State>,
    /// The files that were read first, by inode number, and where the next one goes.
    recent: [AtomicU64; RECENT],
    next_recent: AtomicUsize,
}

struct State {
    /// By path.
    patterns: LruCache<Arc<str>, Pattern>,
    /// Entries of all of them.
    entries: usize,
    totals: Totals,
}

/// What holds for all directories together.
struct Totals {
    /// Of files that are ahead and not used.
    ahead_bytes: u64,
    stats: Arc<Stats>,
}

/// How a directory is read.
struct Pattern {
    generation: u32,
    /// How many small files it has, about.
    small_files: usize,
    /// Read in this epoch.
    read: Bits,
    /// Read again in this epoch: the next one has begun when there are enough.
    again: Bits,
    /// Read ahead and not used.
    ahead: Bits,
    ahead_bytes: u64,
    /// Everything before it has been considered in this epoch.
    considered: usize,
    /// Bytes served when the epoch began, and at the last read.
    began_at: u64,
    read_at: u64,
    /// The epoch before was of the whole directory.
    was_whole: bool,
    fronts: Vec<Front>,
    ledger: Ledger,
}

/// A place where somebody reads on in order.
struct Front {
    /// Where the first file stood.
    begun: usize,
    /// Behind the furthest one.
    position: usize,
    /// How many there were.
    run: usize,
    /// Everything before it has been considered.
    considered: usize,
    /// What is ahead before it has been passed by.
    passed: usize,
    /// The number of its last read.
    used: u64,
}

/// What became of files that were read ahead, the longer ago the less.
#[derive(Default)]
struct Ledger {
    reads: u64,
    used: usize,
    wasted: usize,
}

impl Siblings {
    /// No directory has been read yet.
    pub fn new(limits: Limits, stats: Arc<Stats>) -> Self {
        let directories = DIRECTORIES.try_into().expect("not zero");
        Self {
            limits,
            state: Mutex::new(State {
                patterns: LruCache::new(directories),
                entries: 0,
                totals: Totals { ahead_bytes: 0, stats },
            }),
            recent: std::array::from_fn(|_| AtomicU64::new(0)),
            next_recent: AtomicUsize::new(0),
        }
    }

    /// Whether a read of `size_bytes` of object `id` is one that [`Self::read`] should know of: of a
    /// small file, and not the continuation of another read. Costs nothing to speak of.
    pub fn begins(&self, id: u64, size_bytes: u64) -> bool {
        if size_bytes > self.limits.small_bytes || self.limits.ahead_bytes == 0 {
            return false;
        }
        if self.recent.iter().any(|recent| recent.load(Relaxed) == id) {
            return false;
        }
        let place = self.next_recent.fetch_add(1, Relaxed) % RECENT;
        self.recent[place].store(id, Relaxed);
        true
    }

    /// A small file is read: which of its siblings are to be fetched ahead, the likeliest first. None
    /// of them was read or fetched ahead in this epoch.
    pub fn read(&self, directory: &dyn Directory, access: Access) -> Vec<usize> {
        if access.index >= directory.entries() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        state.admit(directory, &self.limits, access.served_bytes);
        let State { patterns, totals, .. } = &mut *state;
        let pattern = patterns.get_mut(directory.path()).expect("was admitted");
        if !pattern.note(directory, access, totals) {
            return Vec::new();
        }
        let front = pattern.front(access.index);
        pattern.pass_by(directory, front, totals);
        let chosen = pattern.choose(directory, front, &self.limits, totals);
        if totals.ahead_bytes + self.limits.small_bytes > self.limits.ahead_bytes {
            state.give_up_idle(&self.limits, access.served_bytes);
        }
        chosen
    }

    /// These were chosen, but nothing was fetched: there was no room, or no need.
    pub fn not_fetched(&self, directory: &dyn Directory, indices: &[usize]) {
        let State { patterns, totals, .. } = &mut *self.state.lock();
        let Some(pattern) = patterns.peek_mut(directory.path()) else { return };
        if pattern.generation == directory.generation() {
            for &index in indices {
                pattern.take_ahead(directory, index, totals);
            }
        }
    }
}

impl State {
    /// Makes the pattern of this listing of a directory, and the most recently used one.
    fn admit(&mut self, directory: &dyn Directory, limits: &Limits, served_bytes: u64) {
        let (path, generation) = (directory.path(), directory.generation());
        let mut ledger = Ledger::default();
        match self.patterns.get_mut(path) {
            Some(pattern) if pattern.generation == generation => return,
            // Indices mean something else now. What was learnt of the directory's readers stays.
            Some(pattern) => ledger = std::mem::take(&mut pattern.ledger),
            None => {}
        }
        let mut pattern = Pattern::new(directory, limits, served_bytes);
        pattern.ledger = ledger;
        self.entries += pattern.read.len();
        if let Some((_, old)) = self.patterns.push(path.clone(), pattern) {
            self.forget(old);
        }
        while self.entries > ENTRIES && self.patterns.len() > 1 {
            if let Some((_, oldest)) = self.patterns.pop_lru() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, mut pattern: Pattern) {
        self.entries -= pattern.read.len();
        pattern.waste_all(&mut self.totals);
    }

    /// Gives the share of the longest unused directory to the others, if what it has ahead cannot be
    /// in the cache any more.
    fn give_up_idle(&mut self, limits: &Limits, served_bytes: u64) {
        let Self { patterns, totals, .. } = self;
        // By recency, of which few have anything ahead at all.
        let mut oldest = patterns.iter_mut().rev().take(LOOKED_AT).map(|(_, pattern)| pattern);
        if let Some(pattern) = oldest.find(|pattern| pattern.ahead_bytes > 0)
            && served_bytes.saturating_sub(pattern.read_at) > limits.life_bytes
        {
            pattern.waste_all(totals);
        }
    }
}

impl Pattern {
    fn new(directory: &dyn Directory, limits: &Limits, served_bytes: u64) -> Self {
        let len = directory.entries();
        let sampled = (0..len).step_by(len.div_ceil(SAMPLED).max(1));
        let small = |&index: &usize| is_small(directory, index, limits).is_some();
        let (looked_at, found) = (sampled.len().max(1), sampled.filter(small).count());
        Self {
            generation: directory.generation(),
            small_files: (len * found).div_ceil(looked_at).max(1),
            read: Bits::new(len),
            again: Bits::new(len),
            ahead: Bits::new(len),
            ahead_bytes: 0,
            considered: 0,
            began_at: served_bytes,
            read_at: served_bytes,
            was_whole: false,
            fronts: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    /// Notes a read. False if it is the continuation of one.
    fn note(&mut self, directory: &dyn Directory, access: Access, totals: &mut Totals) -> bool {
        let Access { index, from_start, cached, served_bytes } = access;
        // Reads that come together may have looked at the clock in another order.
        self.read_at = self.read_at.max(served_bytes);
        if self.read.has(index) {
            if !from_start || !self.again.set(index) {
                return false;
            }
            let enough = if self.is_whole() { 0 } else { self.read.count() / 4 };
            if self.again.count() >= enough.max(LEAST_FILES) {
                self.begin_epoch(served_bytes, totals);
            }
        } else {
            self.read.set(index);
            if let Some(bytes) = self.take_ahead(directory, index, totals) {
                self.settle(1, bytes, cached, totals);
            }
        }
        self.ledger.count_read(self.small_files);
        true
    }

    /// Files are read that were read before: the next epoch.
    fn begin_epoch(&mut self, served_bytes: u64, totals: &mut Totals) {
        self.was_whole = self.is_whole();
        let each = self.served_per_read();
        self.waste_all(totals);
        std::mem::swap(&mut self.read, &mut self.again);
        self.again.clear();
        self.considered = 0;
        self.began_at = served_bytes.saturating_sub(each * self.read.count() as u64);
        self.fronts.clear();
    }

    fn is_whole(&self) -> bool {
        self.read.count() >= self.small_files - self.small_files / 16
    }

    /// The front that a file belongs to: the nearest within the tolerance, or a new one in the place
    /// of the longest unused.
    fn front(&mut self, index: usize) -> usize {
        let now = self.ledger.reads;
        let distance = |front: &Front| front.position.abs_diff(index);
        let tolerance = (self.read.len() / ENTRIES_PER_TOLERANCE).clamp(1, TOLERANCE);
        let near = (0..self.fronts.len()).filter(|&at| distance(&self.fronts[at]) <= tolerance);
        if let Some(at) = near.min_by_key(|&at| distance(&self.fronts[at])) {
            let front = &mut self.fronts[at];
            front.begun = front.begun.min(index);
            front.position = front.position.max(index + 1);
            front.run += 1;
            front.used = now;
            if front.run >= 2 * WINDOW_FILES {
                // What counts is how it goes lately.
                front.run /= 2;
                front.begun = front.position - (front.position - front.begun) / 2;
            }
            return at;
        }
        if self.fronts.len() == (self.read.len() / ENTRIES_PER_FRONT).clamp(1, FRONTS) {
            let oldest = (0..self.fronts.len()).min_by_key(|&at| self.fronts[at].used);
            self.fronts.swap_remove(oldest.expect("not empty"));
        }
        let position = index + 1;
        let begun = index;
        let (considered, passed) = (position, index);
        self.fronts.push(Front { begun, position, run: 1, considered, passed, used: now });
        self.fronts.len() - 1
    }

    /// What a front has left behind unread was read ahead in vain.
    fn pass_by(&mut self, directory: &dyn Directory, front: usize, totals: &mut Totals) {
        let front = &mut self.fronts[front];
        let until = front.position.saturating_sub(4 * TOLERANCE);
        if !front.is_in_order() || until <= front.passed {
            return;
        }
        let range = std::mem::replace(&mut front.passed, until)..until;
        for index in range {
            if let Some(bytes) = self.take_ahead(directory, index, totals) {
                self.settle(1, bytes, false, totals);
            }
        }
    }

    /// Chooses what to fetch ahead, and marks it as ahead.
    fn choose(
        &mut self,
        directory: &dyn Directory,
        front: usize,
        limits: &Limits,
        totals: &mut Totals,
    ) -> Vec<usize> {
        let Front { position, run, considered, .. } = self.fronts[front];
        let in_order = self.fronts[front].is_in_order();
        let (range, files, bytes) = if in_order {
            let until = (position + run.min(WINDOW_FILES)).min(directory.entries());
            (considered.max(position)..until, self.in_order(), WINDOW_BYTES)
        } else {
            let files = if self.fits(limits) { self.shuffled() } else { 0 };
            (self.considered..directory.entries(), files, limits.ahead_bytes)
        };
        let mut chosen = Vec::new();
        let mut at = range.start;
        for _ in 0..LOOKED_AT {
            if chosen.len() == AT_ONCE || self.ahead.count() >= files {
                break;
            }
            at = self.read.first_without(&self.ahead, at, range.end);
            if at >= range.end {
                break;
            }
            if let Some(size) = is_small(directory, at, limits) {
                if self.ahead_bytes + size > bytes || totals.ahead_bytes + size > limits.ahead_bytes
                {
                    break;
                }
                self.ahead.set(at);
                self.ahead_bytes += size;
                totals.ahead_bytes += size;
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

    /// How many files may be ahead of all who read in order.
    fn in_order(&self) -> usize {
        if !self.is_trusted() {
            return self.little();
        }
        let in_order = self.fronts.iter().filter(|front| front.is_in_order());
        in_order.map(|front| front.run).sum::<usize>().min(WINDOW_FILES)
    }

    /// How many may be ahead in a shuffled epoch.
    fn shuffled(&self) -> usize {
        let little = self.little();
        if !self.is_trusted() {
            return little;
        }
        let doubtful = if self.was_whole { 0 } else { self.small_files / LITTLE };
        let beyond = self.read.count().saturating_sub(doubtful.max(LEAST_FILES));
        little.max(beyond * AHEAD_PER_READ)
    }

    /// How many may be ahead whatever becomes of them.
    fn little(&self) -> usize {
        (self.read.count() / LITTLE).saturating_sub(self.ledger.wasted)
    }

    /// Whether what is left of a shuffled epoch will be read before the cache forgets what is fetched
    /// now, with all that is read in between.
    fn fits(&self, limits: &Limits) -> bool {
        let left = self.small_files.saturating_sub(self.read.count()) as u64;
        left.saturating_mul(self.served_per_read()) <= limits.life_bytes
    }

    /// Bytes served, here and elsewhere, for each file that was read here in this epoch.
    fn served_per_read(&self) -> u64 {
        (self.read_at - self.began_at) / (self.read.count() as u64).max(1)
    }

    fn is_trusted(&self) -> bool {
        let Ledger { used, wasted, .. } = self.ledger;
        wasted * LITTLE <= used + wasted || wasted < BEYOND_CHANCE
    }

    /// A file is not ahead any more: its size, if it was.
    fn take_ahead(
        &mut self,
        directory: &dyn Directory,
        index: usize,
        totals: &mut Totals,
    ) -> Option<u64> {
        if !self.ahead.unset(index) {
            return None;
        }
        let bytes = directory.file_bytes(index).unwrap_or_default();
        self.ahead_bytes -= bytes;
        totals.ahead_bytes -= bytes;
        Some(bytes)
    }

    /// Nothing is ahead any more.
    fn waste_all(&mut self, totals: &mut Totals) {
        let (files, bytes) = (self.ahead.count(), std::mem::take(&mut self.ahead_bytes));
        self.ahead.clear();
        totals.ahead_bytes -= bytes;
        self.settle(files, bytes, false, totals);
    }

    /// Counts what has become of files that were ahead.
    fn settle(&mut self, files: usize, bytes: u64, used: bool, totals: &Totals) {
        let stats = &totals.stats;
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
    /// Of the files between its first and its last one, most were read.
    fn is_in_order(&self) -> bool {
        self.run >= BEYOND_CHANCE && self.run * 2 >= self.position - self.begun
    }
}

impl Ledger {
    /// In a directory of so many files, what happened counts half for each time that as many were
    /// read since.
    fn count_read(&mut self, files: usize) {
        self.reads += 1;
        if self.reads.is_multiple_of(files.max(LOOKED_AT) as u64) {
            self.used /= 2;
            self.wasted /= 2;
        }
    }
}

/// The size of a file that this is about.
fn is_small(directory: &dyn Directory, index: usize, limits: &Limits) -> Option<u64> {
    directory.file_bytes(index).filter(|&bytes| bytes > 0 && bytes <= limits.small_bytes)
}

/// A set of indices.
struct Bits {
    words: Box<[u64]>,
    len: usize,
    count: usize,
}

impl Bits {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)].into(), len, count: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn count(&self) -> usize {
        self.count
    }

    fn has(&self, index: usize) -> bool {
        self.words[index / 64] & 1 << (index % 64) != 0
    }

    /// False if it was there.
    fn set(&mut self, index: usize) -> bool {
        let new = !self.has(index);
        self.words[index / 64] |= 1 << (index % 64);
        self.count += usize::from(new);
        new
    }

    /// False if it was not there.
    fn unset(&mut self, index: usize) -> bool {
        let there = self.has(index);
        self.words[index / 64] &= !(1 << (index % 64));
        self.count -= usize::from(there);
        there
    }

    fn clear(&mut self) {
        if self.count > 0 {
            self.words.fill(0);
            self.count = 0;
        }
    }

    /// The first index from `at` on that is in neither set; `end` or more if there is none before.
    fn first_without(&self, other: &Self, mut at: usize, end: usize) -> usize {
        while at < end {
            let taken = (self.words[at / 64] | other.words[at / 64]) >> (at % 64);
            let free = taken.trailing_ones() as usize;
            // Shifted-in zeros beyond the word are not free.
            if free < 64 - at % 64 {
                return at + free;
            }
            at += 64 - at % 64;
        }
        at
    }
}

#[cfg(test)]
mod tests;
