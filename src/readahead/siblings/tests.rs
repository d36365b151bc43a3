//! Programs that read a directory in every way, over a cache that is a list.

use std::cell::Cell;

use proptest::prelude::*;

use super::pattern::*;
use super::*;
use crate::readahead::bits::Bits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const NO_LIMITS: SiblingLimits =
    SiblingLimits { small_bytes: 4 * MIB, ahead_bytes: 1 << 40, life_bytes: 1 << 40 };

struct Folder {
    path: Arc<str>,
    generation: u32,
    sizes: Vec<Option<u64>>,
    /// How often a size was asked for.
    asked: Cell<usize>,
}

impl Folder {
    fn new(path: &str, sizes: Vec<Option<u64>>) -> Self {
        Self { path: path.into(), generation: 1, sizes, asked: Cell::new(0) }
    }

    fn of(files: usize) -> Self {
        Self::new("d/", vec![Some(110 * KIB); files])
    }
}

impl Listed for Folder {
    fn path(&self) -> &Arc<str> {
        &self.path
    }

    fn generation(&self) -> u32 {
        self.generation
    }

    fn entries(&self) -> usize {
        self.sizes.len()
    }

    fn file_bytes(&self, index: usize) -> Option<u64> {
        self.asked.set(self.asked.get() + 1);
        self.sizes[index]
    }
}

/// A program that reads files of one directory whole, and what the cache does for it.
struct Program<'a> {
    folder: &'a Folder,
    siblings: &'a Siblings,
    /// Which files are there, and whether they were read.
    cache: LruCache<usize, bool>,
    cached_bytes: u64,
    cache_bytes: u64,
    served_bytes: u64,
    missed: usize,
    ahead: usize,
    evicted_unused: usize,
}

impl<'a> Program<'a> {
    fn new(folder: &'a Folder, siblings: &'a Siblings, cache_bytes: u64) -> Self {
        Self {
            folder,
            siblings,
            cache: LruCache::unbounded(),
            cached_bytes: 0,
            cache_bytes,
            served_bytes: 0,
            missed: 0,
            ahead: 0,
            evicted_unused: 0,
        }
    }

    fn read(&mut self, index: usize) -> Vec<usize> {
        let cached = self.cache.contains(&index);
        let served_bytes = self.served_bytes;
        let access = SmallRead { index, from_start: true, cached, served_bytes };
        self.missed += usize::from(!cached);
        self.keep(index, true);
        let chosen = self.siblings.read(self.folder, access);
        for &sibling in &chosen {
            assert!(self.folder.sizes[sibling].is_some_and(|bytes| bytes <= 4 * MIB));
            self.ahead += 1;
            self.keep(sibling, false);
        }
        self.served_bytes += self.folder.sizes[index].expect("only files are read");
        chosen
    }

    fn keep(&mut self, index: usize, read: bool) {
        let size = |index: usize| self.folder.sizes[index].unwrap_or_default();
        if self.cache.put(index, read).is_none() {
            self.cached_bytes += size(index);
        }
        while self.cached_bytes > self.cache_bytes {
            let (oldest, read) = self.cache.pop_lru().expect("has bytes");
            self.cached_bytes -= size(oldest);
            self.evicted_unused += usize::from(!read);
        }
    }

    /// The cache is emptied.
    fn forget(&mut self) {
        self.cache.clear();
        self.cached_bytes = 0;
    }

    fn read_all(&mut self, order: impl IntoIterator<Item = usize>) {
        for index in order {
            self.read(index);
        }
    }

    fn fetched(&self) -> usize {
        self.missed + self.ahead
    }

    /// What was fetched and not read, of what is cached.
    fn unused(&self) -> usize {
        self.cache.iter().filter(|(_, read)| !**read).count() + self.evicted_unused
    }
}

fn siblings(limits: SiblingLimits) -> Siblings {
    Siblings::new(limits, Arc::default())
}

fn ahead_bytes(siblings: &Siblings) -> u64 {
    siblings.state.lock().account.ahead_bytes
}

/// The numbers below `count` in an order that has none, the same every time.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, usize::try_from(state % (at as u64 + 1)).unwrap());
    }
    order
}

/// R7
#[test]
fn a_shuffled_epoch_is_read_ahead_once_a_tenth_of_it_was_read() {
    for seed in 1..10 {
        let (folder, siblings) = (Folder::of(2000), siblings(NO_LIMITS));
        let mut program = Program::new(&folder, &siblings, u64::MAX);
        program.read_all(shuffled(2000, seed));
        assert_eq!(program.fetched(), 2000, "each file once");
        assert!(program.missed < 500, "a reader waited for {} of 2000", program.missed);
    }
}

/// R7
#[test]
fn a_sampled_tenth_wastes_less_than_a_tenth() {
    for seed in 1..10 {
        let (folder, siblings) = (Folder::of(2000), siblings(NO_LIMITS));
        let mut program = Program::new(&folder, &siblings, u64::MAX);
        program.read_all(shuffled(2000, seed).into_iter().take(200));
        assert!(program.unused() * 10 <= program.fetched(), "{} files", program.unused());
    }
}

/// The figures of docs/decisions.md, D13: readers share a directory, each a random part of it.
#[test]
fn the_bet_costs_a_reader_of_a_share_what_is_written_of_it() {
    let wasted = [(2, 50), (3, 67), (4, 75), (5, 75), (6, 71), (8, 55), (10, 10), (16, 10)];
    for (nodes, percent) in wasted {
        let (folder, siblings) = (Folder::of(4000), siblings(NO_LIMITS));
        let mut program = Program::new(&folder, &siblings, u64::MAX);
        program.read_all(shuffled(4000, 7).into_iter().take(4000 / nodes));
        let found = program.unused() * 100 / program.fetched();
        assert!(found <= percent, "{found} % of {nodes} nodes");
    }
}

#[test]
fn who_reads_in_order_waits_for_a_few_files_only() {
    let (folder, siblings) = (Folder::of(5000), siblings(NO_LIMITS));
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    let mut most = 0;
    for index in 0..5000 {
        program.read(index);
        most = most.max(program.unused());
        assert!(program.unused() <= index + 1, "as many as were read at most");
    }
    assert_eq!((program.fetched(), program.missed), (5000, BEYOND_CHANCE));
    assert!(most > WINDOW_FILES / 2 && most <= WINDOW_FILES, "{most} were ahead");
}

#[test]
fn sixteen_threads_that_take_turns_read_in_order() {
    let (folder, siblings) = (Folder::of(4096), siblings(NO_LIMITS));
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    for (turn, seed) in (0..256).zip(1..) {
        program.read_all(shuffled(16, seed).into_iter().map(|thread| turn * 16 + thread));
    }
    assert_eq!(program.fetched(), 4096);
    assert!(program.missed <= 48, "waited for {}", program.missed);
}

#[test]
fn so_do_eight_workers_with_a_batch_each() {
    let (folder, siblings) = (Folder::of(8 * 32 * 8), siblings(NO_LIMITS));
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    for round in 0..8 {
        for step in 0..32 {
            program.read_all((0..8).map(|worker| (round * 8 + worker) * 32 + step));
        }
    }
    assert_eq!(program.fetched(), 2048);
    assert!(program.missed <= 512, "waited for {}", program.missed);
}

#[test]
fn whoever_stops_in_order_wastes_what_was_read_at_most() {
    for stop in 1..300 {
        let (folder, siblings) = (Folder::of(1000), siblings(NO_LIMITS));
        let mut program = Program::new(&folder, &siblings, u64::MAX);
        program.read_all(0..stop);
        assert!(program.unused() <= stop);
    }
}

#[test]
fn a_few_files_start_nothing() {
    for count in 0..=LEAST_FILES {
        let (folder, siblings) = (Folder::of(1000), siblings(NO_LIMITS));
        let mut program = Program::new(&folder, &siblings, u64::MAX);
        program.read_all((0..count).map(|number| number * 61));
        assert!(program.unused() <= 1);
    }
}

#[test]
fn a_file_read_in_pieces_is_read_once() {
    let (folder, siblings) = (Folder::of(100), siblings(NO_LIMITS));
    let mut begun = 0;
    for pieces in 0..3 {
        for file in 0..64 {
            begun += usize::from(siblings.begins(file + 2, 110 * KIB));
        }
        assert_eq!(begun, 64, "after {pieces} pieces of each");
    }
    assert!(!siblings.begins(1000, 5 * MIB), "a large file is none of this");
    // So many other files between two pieces that only its offset tells.
    let access = |from_start| SmallRead { index: 7, from_start, cached: true, served_bytes: 0 };
    siblings.read(&folder, access(false));
    siblings.read(&folder, access(false));
    assert_eq!(read_again(&siblings, &folder), Some(0));
    siblings.read(&folder, access(true));
    assert_eq!(read_again(&siblings, &folder), Some(1));
}

#[test]
fn after_much_waste_the_tenth_is_the_rule_until_it_is_long_ago() {
    let (folder, siblings) = (Folder::of(2000), siblings(NO_LIMITS));
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    // Half of the files is read, over and over, and all are read ahead at first.
    let half: Vec<_> = shuffled(2000, 1).into_iter().take(1000).collect();
    program.read_all(half.iter().copied());
    assert_eq!(program.unused(), 1000);
    program.read_all(half.iter().copied());
    let stats = siblings.state.lock().account.stats.clone();
    assert_eq!(stats.siblings_wasted.get(), 1000);
    // In other orders, with a cache that was emptied.
    for seed in 2..6 {
        program.forget();
        let ahead = program.ahead;
        program.read_all(shuffled(1000, seed).into_iter().map(|at| half[at]));
        assert_eq!(program.ahead - ahead, 0, "epoch {seed}");
    }
    // Whole epochs from now on.
    let mut missed = Vec::new();
    for seed in 6..30 {
        program.forget();
        let before = program.missed;
        program.read_all(shuffled(2000, seed));
        missed.push(program.missed - before);
    }
    assert!(missed.last().is_some_and(|&last| last < 500), "{missed:?}");
}

#[test]
fn after_a_whole_epoch_the_next_one_is_believed_in_at_once() {
    let (folder, siblings) = (Folder::of(2000), siblings(NO_LIMITS));
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    program.read_all(shuffled(2000, 1));
    program.forget();
    let before = program.missed;
    program.read_all(shuffled(2000, 2));
    assert!(program.missed - before < 300, "waited for {}", program.missed - before);
    assert_eq!(program.fetched(), 4000);
}

/// A cache of any size, LRU as the real one is: what was read ahead is read before it is given up.
#[test]
fn nothing_is_evicted_before_it_is_used_however_small_the_budget() {
    for files in [100, 300, 1000] {
        let bytes = files as u64 * 110 * KIB;
        for eighths in 1..=10 {
            let budget = bytes * eighths / 8;
            let limits = SiblingLimits {
                small_bytes: 4 * MIB,
                ahead_bytes: budget / 4,
                life_bytes: budget / 4 * 3,
            };
            let (folder, siblings) = (Folder::of(files), siblings(limits));
            let mut program = Program::new(&folder, &siblings, budget);
            program.read_all(shuffled(files, eighths));
            assert_eq!(program.evicted_unused, 0, "{files} files, {eighths} eighths of them fit");
            assert_eq!(program.fetched(), files);
            assert!(eighths < 8 || program.missed < files / 2);
        }
    }
}

#[test]
fn directories_share_what_may_be_ahead_and_idle_ones_give_theirs_up() {
    let limits =
        SiblingLimits { small_bytes: 4 * MIB, ahead_bytes: 20 * MIB, life_bytes: 100 * MIB };
    let siblings = siblings(limits);
    let folders: Vec<_> = (0..4)
        .map(|number| Folder::new(&format!("{number}/"), vec![Some(100 * KIB); 500]))
        .collect();
    let mut served = 0;
    for folder in &folders[..3] {
        let mut program = Program::new(folder, &siblings, u64::MAX);
        program.served_bytes = served;
        program.read_all(shuffled(500, 1).into_iter().take(200));
        served = program.served_bytes;
        assert!(ahead_bytes(&siblings) <= limits.ahead_bytes);
    }
    let ahead = |number: usize| {
        siblings.state.lock().by_path.peek(&folders[number].path).map(|it| it.ahead_bytes)
    };
    assert!(ahead(0) > Some(19 * MIB), "the first was served");
    assert!(ahead(1) < Some(MIB), "the next had to wait");
    let mut program = Program::new(&folders[3], &siblings, u64::MAX);
    program.served_bytes = served + 200 * MIB;
    program.read_all(shuffled(500, 1).into_iter().take(200));
    assert_eq!(ahead(0), Some(0), "nobody has read there for long");
    assert!(ahead(3) > Some(15 * MIB));
}

/// R7
#[test]
fn a_small_directory_is_fetched_at_its_second_file() {
    let few = |path: &str| Folder::new(path, vec![Some(5 * KIB); 20]);
    let large = [
        Folder::new("files/", vec![Some(KIB); 129]),
        Folder::new("bytes/", vec![Some(MIB); 5]),
        Folder::new("entries/", [vec![None; 1020], vec![Some(KIB); 5]].concat()),
    ];
    let siblings = siblings(NO_LIMITS);
    for folder in &large {
        let mut program = Program::new(folder, &siblings, u64::MAX);
        program.read_all((0..3).map(|back| folder.sizes.len() - 1 - back));
        assert_eq!(program.ahead, 0, "{}", folder.path);
    }
    // Files of more than 1 MiB are no part of it.
    let folder = Folder::new("d/", [vec![Some(5 * KIB); 20], vec![Some(5 * MIB); 4]].concat());
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    assert!(program.read(7).is_empty());
    assert_eq!(program.read(3).len(), 18);
    program.read_all(0..20);
    assert_eq!((program.fetched(), program.unused()), (20, 0));
    // It was used: in the next one, a name is enough.
    let next = few("e/");
    assert!(siblings.enters(7));
    assert_eq!(siblings.enter((7, &next), 0).len(), 20);
    assert!(!siblings.enters(7));
}

/// R7
#[test]
fn small_directories_that_are_not_used_cost_no_more_than_is_written_of_it() {
    let folder = |number: usize| Folder::new(&format!("{number}/"), vec![Some(5 * KIB); 20]);
    let first = siblings(NO_LIMITS);
    let mut ahead = 0;
    for number in 0..1000 {
        let folder = folder(number);
        let mut program = Program::new(&folder, &first, u64::MAX);
        program.read_all([4, 11]);
        ahead += program.ahead;
    }
    assert!((100..=128 + 2000 / 64).contains(&ahead), "{ahead}");

    // A program that has read all of four, and then looks at the names of a thousand.
    let second = siblings(NO_LIMITS);
    for number in 0..4 {
        Program::new(&folder(number), &second, u64::MAX).read_all(0..20);
    }
    let entered =
        (4_u16..1000).map(|number| second.enter((number.into(), &folder(number.into())), 0).len());
    assert_eq!(entered.sum::<usize>(), 8 * 20);
}

#[test]
fn another_listing_begins_anew_and_owes_nothing() {
    let siblings = siblings(NO_LIMITS);
    let mut folder = Folder::of(500);
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    program.read_all(shuffled(500, 1).into_iter().take(100));
    assert!(program.unused() > 10);
    drop(program);
    folder.generation += 1;
    folder.sizes.truncate(200);
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    program.read_all(0..2);
    assert_eq!((program.ahead, ahead_bytes(&siblings)), (0, 0));
}

#[test]
fn what_was_not_fetched_is_not_ahead() {
    let (folder, siblings) = (Folder::of(500), siblings(NO_LIMITS));
    let order = shuffled(500, 1);
    for &index in &order[..100] {
        let access = SmallRead { index, from_start: true, cached: false, served_bytes: 0 };
        let chosen = siblings.read(&folder, access);
        siblings.not_fetched(&folder, &chosen);
        assert_eq!(ahead_bytes(&siblings), 0);
    }
}

#[test]
fn large_files_and_directories_are_left_alone_and_cost_little() {
    // Of a million entries, one in a thousand is a small file.
    let size = |index: usize| match index % 1000 {
        0 => Some(110 * KIB),
        1 => None,
        _ => Some(100 * MIB),
    };
    let folder = Folder::new("d/", (0..1_000_000).map(size).collect());
    let siblings = siblings(NO_LIMITS);
    let mut program = Program::new(&folder, &siblings, u64::MAX);
    for file in shuffled(1000, 1) {
        folder.asked.set(0);
        program.read(file * 1000);
        assert!(folder.asked.get() <= ENTRIES_EXAMINED + SAMPLED + CHOSEN_AT_ONCE);
    }
}

#[test]
fn a_set_of_bits_finds_the_first_free_place() {
    for len in [1, 63, 64, 65, 130] {
        let (mut a, mut b) = (Bits::new(len), Bits::new(len));
        for index in shuffled(len, 3) {
            let set = if index % 2 == 0 { &mut a } else { &mut b };
            assert!(set.set(index) && !set.set(index) && set.has(index));
            for at in 0..len {
                let free = (at..len).find(|&free| !a.has(free) && !b.has(free));
                let found = Some(a.first_without(&b, at, len)).filter(|&found| found < len);
                assert_eq!(found, free);
            }
        }
        assert_eq!((a.count() + b.count()), len);
        assert!(a.unset(0) && !a.unset(0) && !a.has(0));
    }
}

/// What is read and what is ahead; bytes and number of the latter.
fn books(siblings: &Siblings, folder: &Folder) -> (Vec<(bool, bool)>, u64, u64) {
    let state = siblings.state.lock();
    let Some(pattern) = state.by_path.peek(&folder.path) else { return (Vec::new(), 0, 0) };
    assert_eq!(pattern.ahead_bytes, state.account.ahead_bytes);
    let marks = (0..folder.sizes.len()).map(|at| (pattern.read.has(at), pattern.ahead.has(at)));
    (marks.collect(), pattern.ahead_bytes, pattern.ahead.count() as u64)
}

/// The number of files that were read again in this epoch.
fn read_again(siblings: &Siblings, folder: &Folder) -> Option<usize> {
    siblings.state.lock().by_path.peek(&folder.path).map(|pattern| pattern.again.count())
}

#[test]
fn reads_that_looked_at_the_clock_in_another_order_change_nothing() {
    let siblings = Siblings::new(NO_LIMITS, Arc::new(Stats::default()));
    let folder = Folder::of(1000);
    for (index, served_bytes) in [(0, 200 * KIB), (500, 90 * KIB), (250, 310 * KIB)] {
        let access = SmallRead { index, from_start: true, cached: false, served_bytes };
        assert!(siblings.read(&folder, access).is_empty());
    }
    let state = siblings.state.lock();
    let pattern = state.by_path.peek("d/").unwrap();
    assert_eq!(pattern.served_per_read(), 110 * KIB / 3);
}

proptest! {
    /// Whatever is read in whatever order, with any limits and sizes: what is chosen is a small
    /// file that was neither read nor chosen before in the epoch, the share is kept, and the books
    /// agree.
    #[test]
    fn any_reading_keeps_to_the_rules(
        sizes in proptest::collection::vec(
            prop_oneof![
                8 => (1..200 * KIB).prop_map(Some),
                1 => Just(None),
                1 => Just(Some(9 * MIB)),
                1 => Just(Some(0))
            ],
            1..300,
        ),
        stretches in proptest::collection::vec(
            (0..300_usize, 1..80_usize, 0..4_u8, any::<bool>()),
            1..8,
        ),
        share in 0..30 * MIB,
        life in 0..60 * MIB,
        refusing in any::<bool>(),
    ) {
        let limits = SiblingLimits { small_bytes: 4 * MIB, ahead_bytes: share, life_bytes: life };
        let stats = Arc::new(Stats::default());
        let (folder, siblings) = (Folder::new("d/", sizes), Siblings::new(limits, stats.clone()));
        let files: Vec<_> = (0..folder.sizes.len())
            .filter(|&index| folder.sizes[index].is_some_and(|bytes| bytes > 0 && bytes <= 4 * MIB))
            .collect();
        prop_assume!(!files.is_empty());
        let (mut served_bytes, mut chosen_ever) = (0, 0);
        for (start, count, way, cached) in stretches {
            let order = shuffled(files.len(), start as u64 + 1);
            for step in 0..count {
                let at = start + step;
                let index = match way {
                    0 => files[at % files.len()],
                    1 => files[(at * 3) % files.len()],
                    2 => files[(start + count - step) % files.len()],
                    _ => files[order[at % files.len()]],
                };
                let access = SmallRead { index, from_start: true, cached, served_bytes };
                let (before, _, _) = books(&siblings, &folder);
                let again = read_again(&siblings, &folder);
                let chosen = siblings.read(&folder, access);
                served_bytes += folder.sizes[index].unwrap();
                let (marked, ahead, ahead_count) = books(&siblings, &folder);
                let began_anew = read_again(&siblings, &folder) < again;
                for (nth, &sibling) in chosen.iter().enumerate() {
                    prop_assert!(files.contains(&sibling), "a small file");
                    prop_assert!(!chosen[..nth].contains(&sibling), "only once");
                    let (was_read, was_ahead) = before.get(sibling).copied().unwrap_or_default();
                    prop_assert!(!was_ahead || began_anew, "it was ahead already");
                    prop_assert!(!was_read || began_anew, "it was read already");
                    prop_assert_eq!(marked[sibling], (false, true));
                }
                chosen_ever += chosen.len() as u64;
                prop_assert!(ahead <= share);
                let settled = stats.siblings_used.get() + stats.siblings_wasted.get();
                if refusing {
                    siblings.not_fetched(&folder, &chosen);
                    prop_assert_eq!((ahead_bytes(&siblings), settled), (0, 0));
                } else {
                    prop_assert_eq!(chosen_ever, settled + ahead_count);
                }
            }
        }
    }
}
