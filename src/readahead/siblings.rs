//! One directory's access pattern: which of a small file's siblings to fetch ahead.
//!
//! A program that reads small files one by one waits for a first byte each time: 16 threads behind
//! 15 ms read 970 files a second, however fast the network is. No call says what will be read next,
//! but a listed directory says what there is to be read, and its files are mostly read in one of
//! two ways:
//!
//! - **In order**: by `cp`, `tar`, `cat *`, or workers that take turns. As many of the following
//!   files are read ahead as were read in order, up to a window.
//! - **Shuffled**, each once: an epoch. Whether a program will go on to read all files, or stop
//!   after some, cannot be told from the first ones: a random order looks the same in both cases.
//!   So it is a bet. Until more than a tenth of the directory has been read, the files read ahead
//!   and not used stay under a tenth of those read. From then on each read allows for six more,
//!   until all the rest is cached.
//!
//! A third way concerns small directories, as those of programs: a file waits for a round trip, and
//! in its time all files of such a directory would come. So they are fetched together ([`small`]).
//!
//! The first two are bets, and a ledger of the directory checks them: when more than a tenth of the
//! files read ahead were not used, the directory is held to the tenth until that is long ago.
//!
//! Files read ahead must still be cached when they are wanted. So they take no more than a share of
//! the memory budget for all directories together, and in a shuffled epoch nothing is read ahead
//! before the rest of the epoch, and all that is read meanwhile, fits into the budget.
//!
//! An access costs amortised O(1), whatever the size of the directory; its state is three bits for
//! each entry. Time is measured in bytes served, the clock by which a cache forgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use lru::LruCache;
use parking_lot::Mutex;

use self::pattern::{ENTRIES_EXAMINED, Ledger, Pattern};
use crate::base::credit::Credit;
use crate::stats::Stats;

mod pattern;
mod small;
#[cfg(test)]
mod tests;

/// Files whose first read is so recent that another one is its continuation. Programs read small
/// files in pieces, and the kernel sends a large piece as several, out of order.
const RECENT: usize = 64;

/// Directories that are remembered, some 300 bytes each and three bits for each entry.
const DIRECTORIES: usize = 32_768;

/// Their entries in all: twice as many as the names room keeps listings of, 6 MB of bits.
const ENTRIES: usize = 16_000_000;

pub(crate) trait Listed {
    /// Identifies the directory.
    fn path(&self) -> &Arc<str>;
    /// Identifies this listing of it: indices have the same meaning as long as this is the same.
    fn generation(&self) -> u32;
    fn entries(&self) -> usize;
    /// The size of the file at an index below [`Self::entries`]; `None` if none can be read there.
    fn file_bytes(&self, index: usize) -> Option<u64>;
}

/// The bounds on reading siblings ahead.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names)] // the unit of each
pub(crate) struct SiblingLimits {
    pub(crate) small_bytes: u64,
    /// The most that may be ahead and not used, for all directories together.
    pub(crate) ahead_bytes: u64,
    /// The cache keeps a file until this many bytes were read after it.
    pub(crate) life_bytes: u64,
}

/// The first read of a small file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallRead {
    /// The file's index in its directory.
    pub(crate) index: usize,
    /// It begins at offset 0.
    pub(crate) from_start: bool,
    /// The cache holds or awaits the file.
    pub(crate) cached: bool,
    pub(crate) served_bytes: u64,
}

/// The access patterns of all directories.
pub(crate) struct Siblings {
    limits: SiblingLimits,
    state: Mutex<Patterns>,
    /// Files that were read first lately.
    read: Recent,
    /// Directories that were entered lately.
    entered: Recent,
    /// Directories are worth fetching as soon as they are entered.
    is_trusted: AtomicBool,
}

/// The last few inode numbers of some kind, and where the next one goes.
struct Recent {
    numbers: [AtomicU64; RECENT],
    next: AtomicUsize,
}

impl Recent {
    fn new() -> Self {
        Self { numbers: std::array::from_fn(|_| AtomicU64::new(0)), next: AtomicUsize::new(0) }
    }

    fn has(&self, number: u64) -> bool {
        self.numbers.iter().any(|recent| recent.load(Relaxed) == number)
    }

    fn add(&self, number: u64) {
        let place = self.next.fetch_add(1, Relaxed) % RECENT;
        self.numbers[place].store(number, Relaxed);
    }
}

struct Patterns {
    by_path: LruCache<Arc<str>, Pattern>,
    /// Entries of all of them.
    entries: usize,
    account: Account,
}

struct Account {
    limits: SiblingLimits,
    /// Bytes of files that are ahead and not used.
    ahead_bytes: u64,
    /// What small directories may cost.
    credit: Credit,
    entered: Credit,
    /// First reads since the credit recovered.
    reads: usize,
    stats: Arc<Stats>,
}

impl Siblings {
    pub(crate) fn new(limits: SiblingLimits, stats: Arc<Stats>) -> Self {
        let (credit, entered) = small::credits();
        let directories = DIRECTORIES.try_into().expect("not zero");
        Self {
            limits,
            state: Mutex::new(Patterns {
                by_path: LruCache::new(directories),
                entries: 0,
                account: Account { limits, ahead_bytes: 0, credit, entered, reads: 0, stats },
            }),
            read: Recent::new(),
            entered: Recent::new(),
            is_trusted: AtomicBool::new(false),
        }
    }

    /// [`Self::read`] must be called for a read of object `id`: the file is small, and the read is
    /// not the continuation of another one. Costs some nanoseconds.
    pub(crate) fn begins(&self, id: u64, size_bytes: u64) -> bool {
        if size_bytes > self.limits.small_bytes || self.limits.ahead_bytes == 0 {
            return false;
        }
        let is_new = !self.read.has(id);
        if is_new {
            self.read.add(id);
        }
        is_new
    }

    /// [`Self::enter`] may be called for a lookup in the directory with this inode number. Costs
    /// some nanoseconds.
    pub(crate) fn enters(&self, directory: u64) -> bool {
        self.is_trusted.load(Relaxed) && !self.entered.has(directory)
    }

    /// Notes the first read of a small file. Returns the indices of the siblings to fetch ahead,
    /// the likeliest first. None of them was read or fetched ahead in this epoch.
    pub(crate) fn read(&self, directory: &dyn Listed, read: SmallRead) -> Vec<usize> {
        if read.index >= directory.entries() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        state.admit(directory, read.served_bytes);
        let Patterns { by_path, account, .. } = &mut *state;
        let pattern = by_path.get_mut(directory.path()).expect("was admitted");
        if !pattern.note(directory, read, account) {
            return Vec::new();
        }
        account.count_read();
        let small = pattern.choose_small(directory, account);
        self.is_trusted.store(account.credit.is_trusted(), Relaxed);
        if !small.is_empty() {
            return small;
        }
        let front = pattern.front(read.index);
        pattern.pass_by(directory, front, account);
        let chosen = pattern.choose(directory, front, account);
        if account.ahead_bytes + self.limits.small_bytes > self.limits.ahead_bytes {
            state.give_up_idle(read.served_bytes);
        }
        chosen
    }

    /// A program has looked a name up in a directory. Returns what is worth fetching before it
    /// reads anything there: the files of a small directory, where others before were used.
    pub(crate) fn enter(
        &self,
        (number, directory): (u64, &dyn Listed),
        served_bytes: u64,
    ) -> Vec<usize> {
        self.entered.add(number);
        let mut state = self.state.lock();
        state.admit(directory, served_bytes);
        let Patterns { by_path, account, .. } = &mut *state;
        let pattern = by_path.get_mut(directory.path()).expect("was admitted");
        pattern.choose_entered(directory, account)
    }

    /// These were chosen, but nothing was fetched: the budget was full, or they are cached.
    pub(crate) fn not_fetched(&self, directory: &dyn Listed, indices: &[usize]) {
        let Patterns { by_path, account, .. } = &mut *self.state.lock();
        let Some(pattern) = by_path.peek_mut(directory.path()) else { return };
        if pattern.generation == directory.generation() {
            for &index in indices {
                let bytes = pattern.take_ahead(directory, index, account);
                if let Some(bytes) = bytes.filter(|_| pattern.is_small) {
                    account.credit.give_back(small::cost(bytes));
                }
            }
        }
    }
}

impl Patterns {
    /// Makes the pattern of this listing of a directory, and the most recently used one.
    fn admit(&mut self, directory: &dyn Listed, served_bytes: u64) {
        let (path, generation) = (directory.path(), directory.generation());
        let mut ledger = Ledger::default();
        match self.by_path.get_mut(path) {
            Some(pattern) if pattern.generation == generation => return,
            // Indices have another meaning now. The ledger of the directory's readers stays.
            Some(pattern) => ledger = std::mem::take(&mut pattern.ledger),
            None => {}
        }
        let mut pattern = Pattern::new(directory, &self.account.limits, served_bytes);
        pattern.ledger = ledger;
        self.entries += pattern.entries();
        if let Some((_, old)) = self.by_path.push(path.clone(), pattern) {
            self.forget(old);
        }
        while self.entries > ENTRIES && self.by_path.len() > 1 {
            if let Some((_, oldest)) = self.by_path.pop_lru() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, mut pattern: Pattern) {
        self.entries -= pattern.entries();
        pattern.waste_all(&mut self.account);
    }

    /// Frees the share of the least recently used directory that has files ahead, if the cache
    /// cannot hold them any more.
    fn give_up_idle(&mut self, served_bytes: u64) {
        let Self { by_path, account, .. } = self;
        // Few of them have anything ahead at all.
        let oldest = by_path.iter_mut().rev().take(ENTRIES_EXAMINED);
        let mut oldest = oldest.map(|(_, pattern)| pattern);
        if let Some(pattern) = oldest.find(|pattern| pattern.ahead_bytes > 0)
            && served_bytes.saturating_sub(pattern.read_at) > account.limits.life_bytes
        {
            pattern.waste_all(account);
        }
    }
}
