//! The layer over stores in memory, in paused time: what programs get, and what each store is
//! asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::entry::UNIT_BYTES;
use super::*;
use crate::store::{ObjectStore, ObjectVersion};
use crate::testing::fault::{Fault, FaultyStore, Operation};
use crate::testing::fuzz;
use crate::testing::memory::MemoryStore;

const MS: Duration = Duration::from_millis(1);

/// What the store of the entries does to its next answers.
#[derive(Clone, Debug, Default, PartialEq)]
enum Trouble {
    #[default]
    None,
    Late(Duration),
    /// The same, but for claims.
    Slow(Duration),
    /// The same, but for one in seven.
    Sometimes(Duration),
    /// One answer in each such time.
    Queues(Duration),
    Fails(StoreError),
    /// This byte of what is asked for is another.
    Flips(usize),
    /// The body ends here.
    Breaks(usize),
    /// The body stops here.
    Stalls(usize),
    /// The entry is shorter.
    Truncates,
}

/// Entries in memory, 1 ms away.
#[derive(Default)]
struct Shelf {
    entries: Mutex<HashMap<String, (Vec<u8>, Instant)>>,
    asked: AtomicUsize,
    puts: AtomicUsize,
    /// It stores what must be absent in any case, as Garage does.
    is_blind: AtomicBool,
    turn: tokio::sync::Mutex<()>,
    trouble: Mutex<(Trouble, Trouble)>,
}

struct ShelfBody {
    bytes: std::io::Cursor<Vec<u8>>,
    trouble: Trouble,
}

#[async_trait]
impl EntryBody for ShelfBody {
    async fn take(&mut self, length: u64, into: &mut Vec<u8>) -> Result<(), StoreError> {
        let at = size(self.bytes.position());
        let end = at + size(length);
        match self.trouble {
            Trouble::Breaks(after) if end > after => {
                return Err(StoreError::Unavailable("broke".to_owned()));
            }
            Trouble::Stalls(after) if end > after => std::future::pending().await,
            _ => {}
        }
        into.extend_from_slice(&self.bytes.get_ref()[at..end]);
        self.bytes.set_position(end as u64);
        Ok(())
    }
}

impl Shelf {
    /// To GETs, and to PUTs.
    fn troubles(&self, gets: Trouble, puts: Trouble) {
        *self.trouble.lock() = (gets, puts);
    }

    /// Entries, and claims in place of one.
    fn held(&self) -> (usize, usize) {
        let entries = self.entries.lock();
        let is_beside =
            |key: &str| key.rsplit_once('/').is_some_and(|(_, unit)| unit.contains('-'));
        let mut held = (0, 0);
        for (_, (bytes, _)) in entries.iter().filter(|(key, _)| !is_beside(key)) {
            *if bytes == CLAIM { &mut held.1 } else { &mut held.0 } += 1;
        }
        held
    }
}

async fn meet(trouble: &Trouble) -> Result<(), StoreError> {
    sleep(MS).await;
    match trouble {
        Trouble::Late(time) => sleep(*time).await,
        Trouble::Fails(error) => return Err(error.clone()),
        _ => {}
    }
    Ok(())
}

#[async_trait]
impl EntryStore for Shelf {
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<FoundEntry>, StoreError> {
        let trouble = self.trouble.lock().0.clone();
        meet(&trouble).await?;
        match trouble {
            Trouble::Sometimes(time)
                if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(7) =>
            {
                sleep(time).await;
            }
            Trouble::Queues(time) => {
                let _turn = self.turn.lock().await;
                sleep(time).await;
            }
            _ => {}
        }
        let Some((bytes, stored)) = self.entries.lock().get(key).cloned() else {
            return Ok(None);
        };
        let length = bytes.len() as u64 - u64::from(trouble == Trouble::Truncates);
        if range.start >= length {
            return Ok(None);
        }
        let mut bytes = bytes[size(range.start)..size(range.end.min(length))].to_vec();
        if let Trouble::Flips(at) = trouble {
            let at = at % bytes.len();
            bytes[at] ^= 0x20;
        }
        let body = Box::new(ShelfBody { bytes: std::io::Cursor::new(bytes), trouble });
        Ok(Some(FoundEntry { length, age: Some(stored.elapsed()), body }))
    }

    async fn put(
        &self,
        key: &str,
        entry: &[Bytes],
        only_if_absent: bool,
    ) -> Result<bool, StoreError> {
        let entry = entry.concat();
        let trouble = self.trouble.lock().1.clone();
        self.puts.fetch_add(1, Ordering::Relaxed);
        meet(&trouble).await?;
        if let Trouble::Slow(time) = trouble
            && entry != CLAIM
        {
            sleep(time).await;
        }
        let mut entries = self.entries.lock();
        let is_blind = self.is_blind.load(Ordering::Relaxed);
        if only_if_absent && !is_blind && entries.contains_key(key) {
            return Ok(false);
        }
        entries.insert(key.to_owned(), (entry, Instant::now()));
        Ok(true)
    }
}

/// A source 15 ms away, and a shelf, for any number of mounts.
struct Site {
    memory: Arc<MemoryStore>,
    source: Arc<FaultyStore>,
    shelf: Arc<Shelf>,
    gets: Arc<AtomicUsize>,
    heads: Arc<AtomicUsize>,
    /// To an answer of the source.
    distance: Arc<Mutex<Duration>>,
}

impl Site {
    fn new() -> Self {
        let memory = Arc::new(MemoryStore::new());
        let source = Arc::new(FaultyStore::new(memory.clone()));
        let (gets, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (get, head) = (gets.clone(), heads.clone());
        let distance = Arc::new(Mutex::new(15 * MS));
        let far = distance.clone();
        source.hook(move |call| {
            match call.operation {
                Operation::Get => get.fetch_add(1, Ordering::Relaxed),
                Operation::Head => head.fetch_add(1, Ordering::Relaxed),
                Operation::List => 0,
            };
            Fault::Delay(*far.lock())
        });
        Self { memory, source, shelf: Arc::default(), gets, heads, distance }
    }

    fn put(&self, key: &str, bytes: u64) -> (ObjectVersion, Vec<u8>) {
        let seed = key.len() as u64 + bytes;
        let mut text: Vec<u8> = (0..251_u64).map(|at| (at * seed).to_le_bytes()[0]).collect();
        text = text.repeat(size(bytes / 251 + 1));
        text.truncate(size(bytes));
        (self.memory.put(key, text.clone()).version, text)
    }

    /// Small objects, of two blocks each.
    fn family(&self, name: &str, count: u64) -> Vec<(ObjectVersion, Vec<u8>)> {
        (0..count).map(|at| self.put(&format!("{name}/{at}"), 140_000 + at)).collect()
    }

    /// The same, which another mount has stored.
    async fn filled(&self, name: &str, count: u64) -> Vec<(ObjectVersion, Vec<u8>)> {
        let objects = self.family(name, count);
        read_each(&self.mount().0, &objects).await;
        settle().await;
        self.gets();
        objects
    }

    fn mount(&self) -> (SharedCached, Arc<Stats>) {
        self.mount_with(Sealer::without_key(), true)
    }

    fn mount_with(&self, sealer: Sealer, trusts: bool) -> (SharedCached, Arc<Stats>) {
        self.mount_in(SharedCache::memory_of(512 << 20), sealer, trusts)
    }

    fn mount_in(
        &self,
        memory_bytes: u64,
        sealer: Sealer,
        trusts: bool,
    ) -> (SharedCached, Arc<Stats>) {
        let stats = Arc::new(Stats::default());
        let policy = SharedPolicy { sealer, trusts, hedges: true, memory_bytes };
        let cache = SharedCache::new(self.shelf.clone(), policy, stats.clone());
        let origin = SharedOrigin::new("AWS", "b");
        (SharedCached::new(self.source.clone(), origin, cache), stats)
    }

    /// The machine, or the network, gets busy: source and cache take longer.
    fn slows(&self, source: Duration, cache: Duration) {
        *self.distance.lock() = source;
        self.shelf.troubles(Trouble::Late(cache), Trouble::Late(cache));
    }

    fn gets(&self) -> usize {
        self.gets.swap(0, Ordering::Relaxed)
    }

    fn heads(&self) -> usize {
        self.heads.swap(0, Ordering::Relaxed)
    }
}

async fn read(
    mount: &SharedCached,
    version: &ObjectVersion,
    range: Range<u64>,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    mount.get_range(version, range, &mut bytes).await.map(|()| bytes)
}

/// Background fills end.
async fn settle() {
    sleep(Duration::from_secs(1)).await;
}

/// In parts of 2 MiB, as a stream does; the time that it took.
async fn read_all(mount: &SharedCached, version: &ObjectVersion, want: &[u8]) -> Duration {
    read_in(UNIT_BYTES, mount, version, want).await
}

async fn read_in(
    part_bytes: u64,
    mount: &SharedCached,
    version: &ObjectVersion,
    want: &[u8],
) -> Duration {
    let begun = Instant::now();
    let mut at = 0;
    while at < version.size_bytes {
        let end = version.size_bytes.min(at + part_bytes);
        let bytes = read(mount, version, at..end).await.unwrap();
        assert!(bytes == want[size(at)..size(end)], "wrong bytes at {at}");
        at = end;
    }
    begun.elapsed()
}

async fn read_each(mount: &SharedCached, objects: &[(ObjectVersion, Vec<u8>)]) -> Duration {
    let begun = Instant::now();
    for (version, want) in objects {
        read_all(mount, version, want).await;
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_one_mount_fetched_another_reads_from_the_cache() {
    let site = Site::new();
    let (version, want) = site.put("k", 5 * UNIT_BYTES + 300_001);
    let (one, stats) = site.mount();
    read_all(&one, &version, &want).await;
    assert_eq!(site.gets(), 6);
    settle().await;
    assert_eq!(site.shelf.held(), (6, 0));
    assert_eq!(stats.shared_filled_bytes.get(), version.size_bytes);
    let (other, stats) = site.mount();
    read_all(&other, &version, &want).await;
    assert_eq!((site.gets(), site.heads()), (0, 0));
    assert_eq!(stats.shared_hit_bytes.get(), version.size_bytes);
    // Any range, over units and inside of blocks, costs about its own bytes.
    for range in [0..1, 100..200_000, UNIT_BYTES - 1..UNIT_BYTES + 1, 3 << 20..7 << 20] {
        let bytes = read(&other, &version, range.clone()).await.unwrap();
        assert!(bytes == want[size(range.start)..size(range.end)], "{range:?}");
    }
    assert_eq!(site.gets(), 0);
    // Another version has other entries.
    let (version, want) = site.put("k", 5 * UNIT_BYTES + 300_002);
    read_all(&other, &version, &want).await;
    assert_eq!(site.gets(), 6);
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Whatever a mount reads at once: the unit, or with a small budget a part of it. What was shown
/// before the wrong block is not read again, so only the next reader has all of it.
#[tokio::test(start_paused = true)]
async fn what_is_wrong_or_was_claimed_by_one_that_died_is_replaced_by_the_second_reader() {
    let damages: [(&str, Damage); 5] = [
        ("a bit at its beginning", &|bytes| bytes[100] ^= 1),
        ("a bit in the middle", &|bytes| bytes[1_300_000] ^= 1),
        ("a bit in the last block", &|bytes| *bytes.last_mut().unwrap() ^= 1),
        ("cut", &|bytes| bytes.truncate(1_000_000)),
        ("a claim", &|bytes| *bytes = CLAIM.to_vec()),
    ];
    for part_bytes in [UNIT_BYTES, UNIT_BYTES / 4] {
        let site = Site::new();
        let (version, want) = site.put("k", 3 * UNIT_BYTES);
        read_in(part_bytes, &site.mount().0, &version, &want).await;
        settle().await;
        assert_eq!(site.shelf.held(), (3, 0), "{part_bytes}");
        for (what, damage) in damages {
            {
                let mut entries = site.shelf.entries.lock();
                damage(&mut entries.values_mut().nth(1).unwrap().0);
            }
            // Claims are old by then.
            sleep(Duration::from_mins(1)).await;
            for _ in 0..2 {
                read_in(part_bytes, &site.mount().0, &version, &want).await;
                settle().await;
            }
            site.gets();
            read_in(part_bytes, &site.mount().0, &version, &want).await;
            assert_eq!(site.gets(), 0, "{what}, in parts of {part_bytes}");
            assert_eq!(site.shelf.held(), (3, 0), "{what}, in parts of {part_bytes}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_source_is_asked_once_whether_an_object_may_be_read() {
    let site = Site::new();
    let (version, want) = site.put("k", 3 * UNIT_BYTES);
    let (one, _) = site.mount_with(Sealer::without_key(), false);
    read_all(&one, &version, &want).await;
    settle().await;
    assert_eq!((site.gets(), site.heads()), (3, 0), "a GET of it is enough");
    let (other, _) = site.mount_with(Sealer::without_key(), false);
    read_all(&other, &version, &want).await;
    assert_eq!((site.gets(), site.heads()), (0, 1));
    // A lookup has asked already.
    let (third, _) = site.mount_with(Sealer::without_key(), false);
    third.head("k").await.unwrap();
    site.heads();
    read_all(&third, &version, &want).await;
    assert_eq!((site.gets(), site.heads()), (0, 0));
    // Who may not read it gets what the source says.
    let (stranger, stats) = site.mount_with(Sealer::without_key(), false);
    let denied = || StoreError::Denied("no".to_owned());
    site.source.hook(move |_| Fault::Fail(denied()));
    assert_eq!(read(&stranger, &version, 0..10).await, Err(denied()));
    assert_eq!(stats.shared_hit_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn eight_mounts_that_start_together_fetch_once() {
    let site = Site::new();
    let mut objects = site.family("small", 40);
    objects.push(site.put("large", 8 * UNIT_BYTES));
    let mut mounts = JoinSet::new();
    for number in 0..8 {
        let ((mount, _), objects) = (site.mount(), objects.clone());
        mounts.spawn(async move {
            sleep(number * 12 * MS).await;
            read_each(&mount, &objects).await
        });
    }
    let times = mounts.join_all().await;
    let gets = site.gets();
    assert!((48..=57).contains(&gets), "{gets} GETs instead of 48");
    // One after the other the source alone takes 48 × 15 ms.
    assert!(times.iter().all(|took| *took < 48 * 24 * MS), "{times:?}");
    settle().await;
    assert_eq!(site.shelf.held(), (48, 0));
}

/// A stream asks for all of its window at once, which is more than there is memory to store.
#[tokio::test(start_paused = true)]
async fn a_window_is_claimed_whole_and_stored_as_it_comes() {
    const UNITS: u64 = 24;
    let site = Site::new();
    let (version, want) = site.put("large", UNITS * UNIT_BYTES);
    let want = Arc::new(want);
    let mut mounts = JoinSet::new();
    for number in 0..4 {
        // For three units.
        let (mount, _) = site.mount_in(7 << 20, Sealer::without_key(), true);
        let (mount, version, want) = (Arc::new(mount), version.clone(), want.clone());
        mounts.spawn(async move {
            sleep(number * 12 * MS).await;
            let mut reads = JoinSet::new();
            for unit in 0..UNITS {
                let (mount, version, want) = (mount.clone(), version.clone(), want.clone());
                reads.spawn(async move {
                    let range = unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES;
                    let bytes = read(&mount, &version, range.clone()).await.unwrap();
                    assert!(bytes == want[size(range.start)..size(range.end)]);
                });
            }
            reads.join_all().await;
        });
    }
    mounts.join_all().await;
    let gets = site.gets();
    assert!(gets <= 26, "{gets} GETs of four mounts for 24 units");
    settle().await;
    assert_eq!(site.shelf.held(), (24, 0));
}

/// Four reads at once, each of the next unit; the time that it took.
async fn stream(mount: &Arc<SharedCached>, version: &ObjectVersion) -> Duration {
    let begun = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut reads = JoinSet::new();
    for _ in 0..4 {
        let (mount, version, next) = (mount.clone(), version.clone(), next.clone());
        reads.spawn(async move {
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed) as u64 * UNIT_BYTES;
                if start >= version.size_bytes {
                    return;
                }
                read(&mount, &version, start..start + UNIT_BYTES).await.unwrap();
            }
        });
    }
    reads.join_all().await;
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_stored_whole_where_the_cache_takes_as_much_as_comes() {
    const UNITS: u64 = 96;
    let site = Site::new();
    let (version, _) = site.put("large", UNITS * UNIT_BYTES);
    // There is room for four units, which are stored in 12 ms; four come in 15 ms.
    site.shelf.troubles(Trouble::None, Trouble::Slow(10 * MS));
    let (mount, stats) = site.mount_in(8 << 20, Sealer::without_key(), true);
    let took = stream(&Arc::new(mount), &version).await;
    settle().await;
    assert_eq!(site.shelf.held(), (96, 0));
    assert_eq!(stats.shared_dropped_bytes.get(), 0);
    assert!(took < 24 * 15 * MS * 6 / 5, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_is_alone_waits_once_for_a_cache_that_takes_less_than_comes() {
    const UNITS: u64 = 400;
    let site = Site::new();
    // Three units a second, and 266 come.
    site.shelf.troubles(Trouble::None, Trouble::Slow(Duration::from_secs(1)));
    let (mount, stats) = site.mount_in(7 << 20, Sealer::without_key(), true);
    let took = stream(&Arc::new(mount), &site.put("large", UNITS * UNIT_BYTES).0).await;
    // Once for room, and it looks before it fetches in the first two seconds.
    let alone = u32::try_from(UNITS / 4).unwrap() * 15 * MS;
    assert!(took < alone * 21 / 20 + 500 * MS + 30 * MS, "{took:?} instead of {alone:?}");
    settle().await;
    assert!(stats.shared_filled_bytes.get() >= 3 * UNIT_BYTES);
}

/// So many objects at once, each of which is read once; the time that it took.
async fn read_at_once(
    reads_at_once: usize,
    mount: SharedCached,
    objects: &[(ObjectVersion, Vec<u8>)],
) -> Duration {
    let (mount, begun) = (Arc::new(mount), Instant::now());
    let mut reads = JoinSet::new();
    for objects in objects.chunks(objects.len().div_ceil(reads_at_once)) {
        let (mount, objects) = (mount.clone(), objects.to_vec());
        reads.spawn(async move { read_each(&mount, &objects).await });
    }
    reads.join_all().await;
    begun.elapsed()
}

/// Small ones take less memory, and more requests.
#[tokio::test(start_paused = true)]
async fn small_files_are_stored_as_quickly_as_they_come() {
    let site = Site::new();
    // Of 470 a second, there is room for 58.
    site.shelf.troubles(Trouble::None, Trouble::Slow(30 * MS));
    let (mount, stats) = site.mount_in(8 << 20, Sealer::without_key(), true);
    read_at_once(8, mount, &site.family("k", 400)).await;
    settle().await;
    assert_eq!((site.shelf.held(), stats.shared_dropped_bytes.get()), ((400, 0), 0));
}

/// One that begins before the others is ahead of them, and not alone.
#[tokio::test(start_paused = true)]
async fn a_mount_that_is_ahead_fetches_for_those_behind() {
    const UNITS: u64 = 200;
    let site = Site::new();
    let (version, _) = site.put("large", UNITS * UNIT_BYTES);
    // There is room for three units, which are stored in 22 ms; each mount could fetch six then.
    site.shelf.troubles(Trouble::None, Trouble::Slow(20 * MS));
    let mut mounts = JoinSet::new();
    for number in 0..4 {
        let ((mount, _), version) =
            (site.mount_in(7 << 20, Sealer::without_key(), true), version.clone());
        mounts.spawn(async move {
            sleep(number * 200 * MS).await;
            stream(&Arc::new(mount), &version).await
        });
    }
    mounts.join_all().await;
    let gets = site.gets();
    assert!(gets <= 220, "{gets} GETs of four mounts for 200 units");
}

/// Mounts that ask a cache for more than it gives at once make it late, all of them.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_busy_with_their_own_questions_is_waited_for() {
    let site = Site::new();
    let objects = site.filled("k", 160).await;
    // Of 128 at once, the last is answered after 0.64 s.
    *site.distance.lock() = 200 * MS;
    site.shelf.troubles(Trouble::Queues(5 * MS), Trouble::None);
    let mut mounts = JoinSet::new();
    for _ in 0..8 {
        let ((mount, stats), objects) = (site.mount(), objects.clone());
        mounts.spawn(async move {
            read_at_once(16, mount, &objects).await;
            stats.shared_pauses.get()
        });
    }
    assert_eq!(mounts.join_all().await, [0; 8]);
    let gets = site.gets();
    assert!(gets <= 16, "{gets} GETs of eight mounts for 160 objects that are there");
}

/// A few answers that are late are no reason to ask for all of them twice.
#[tokio::test(start_paused = true)]
async fn a_cache_that_answers_meanwhile_is_waited_for() {
    let site = Site::new();
    let objects = site.filled("k", 400).await;
    site.shelf.troubles(Trouble::Sometimes(300 * MS), Trouble::None);
    let (mount, stats) = site.mount();
    read_at_once(8, mount, &objects).await;
    // 57 answers are late; at the end one may be the only one that is waited for.
    let gets = site.gets();
    assert!(gets <= 12, "{gets} GETs for 400 objects that are there");
    assert_eq!(stats.shared_pauses.get(), 0);
}

/// Its answers come one after the other, but none of them in time.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_slow_to_many_questions_is_left_alone() {
    let site = Site::new();
    let objects = site.filled("k", 1600).await;
    site.shelf.troubles(Trouble::Queues(60 * MS), Trouble::None);
    let (mount, stats) = site.mount();
    let took = read_at_once(16, mount, &objects).await;
    assert!(stats.shared_pauses.get() > 0);
    // The source alone takes 1.5 s; five rounds of a second each until that is known.
    assert!(took < Duration::from_secs(9), "{took:?}");
}

/// Where others wait for it, what was claimed is stored, although that is slower than to fetch it.
#[tokio::test(start_paused = true)]
async fn mounts_that_have_met_store_what_they_claim() {
    const UNITS: u64 = 120;
    let site = Site::new();
    let (version, _) = site.put("large", UNITS * UNIT_BYTES);
    // There is room for three units, which are stored in 22 ms; each mount could fetch six then.
    site.shelf.troubles(Trouble::None, Trouble::Slow(20 * MS));
    let mut mounts = JoinSet::new();
    for _ in 0..2 {
        let ((mount, _), version) =
            (site.mount_in(7 << 20, Sealer::without_key(), true), version.clone());
        mounts.spawn(async move { stream(&Arc::new(mount), &version).await });
    }
    mounts.join_all().await;
    let gets = site.gets();
    assert!(gets <= 144, "{gets} GETs of two mounts for 120 units");
    settle().await;
    assert_eq!(site.shelf.held(), (120, 0));
}

/// A pause of the machine or the network makes everything late that is on its way.
#[tokio::test(start_paused = true)]
async fn a_moment_in_which_a_cache_is_late_is_no_reason_to_leave_it_alone() {
    let site = Site::new();
    let objects = site.family("k", 200);
    read_each(&site.mount().0, &objects).await;
    settle().await;
    let (mount, stats) = site.mount();
    let mount = Arc::new(mount);
    read_each(&mount, &objects[..100]).await;
    site.gets();
    site.shelf.troubles(Trouble::Late(3000 * MS), Trouble::None);
    let mut reads = JoinSet::new();
    let late = objects[100..140].to_vec();
    for (version, want) in late {
        let mount = mount.clone();
        reads.spawn(async move { read_all(&mount, &version, &want).await });
    }
    reads.join_all().await;
    assert_eq!((site.gets(), stats.shared_pauses.get()), (40, 0), "each was fetched meanwhile");
    site.shelf.troubles(Trouble::None, Trouble::None);
    read_each(&mount, &objects[140..]).await;
    assert_eq!(site.gets(), 0);
}

/// A machine whose cores are full: what was learnt of the cache before is no measure any more.
#[tokio::test(start_paused = true)]
async fn a_cache_is_compared_with_what_the_source_takes_at_present() {
    let site = Site::new();
    let (before, after) = (site.family("before", 100), site.family("after", 300));
    for objects in [&before, &after] {
        read_each(&site.mount().0, objects).await;
    }
    settle().await;
    let (mount, stats) = site.mount();
    read_each(&mount, &before).await;
    site.slows(400 * MS, 300 * MS);
    site.gets();
    read_each(&mount, &after).await;
    let gets = site.gets();
    assert!(gets < 50, "{gets} GETs for 300 objects that are there");
    assert_eq!(stats.shared_pauses.get(), 0);
    // The source is fast again, and the cache is not.
    *site.distance.lock() = 15 * MS;
    let took = read_each(&mount, &after).await;
    // It is found out within 10 s, by five that are late.
    assert!(stats.shared_pauses.get() > 0 && took < 300 * 60 * MS, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn mounts_on_a_busy_machine_wait_for_one_another_longer() {
    let site = Site::new();
    // To claim, to fetch and to store takes 1.2 s.
    site.slows(900 * MS, 150 * MS);
    let objects = site.family("k", 20);
    let mut mounts = JoinSet::new();
    for _ in 0..4 {
        let ((mount, _), objects) = (site.mount(), objects.clone());
        mounts.spawn(async move { read_each(&mount, &objects).await });
    }
    mounts.join_all().await;
    let gets = site.gets();
    assert!(gets <= 24, "{gets} GETs of four mounts for 20 objects");
}

/// A claim that takes long, but no longer than the source.
#[tokio::test(start_paused = true)]
async fn a_mount_that_starts_on_a_busy_machine_stores_what_it_fetches() {
    let site = Site::new();
    site.slows(1500 * MS, 800 * MS);
    let (mount, stats) = site.mount();
    let mount = Arc::new(mount);
    let mut reads = JoinSet::new();
    for (version, want) in site.family("k", 8) {
        let mount = mount.clone();
        reads.spawn(async move { read_all(&mount, &version, &want).await });
    }
    reads.join_all().await;
    settle().await;
    settle().await;
    assert_eq!((site.shelf.held(), stats.shared_pauses.get()), ((8, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_get_of_several_units_is_for_all_of_them() {
    let site = Site::new();
    let (version, want) = site.put("k", 3 * UNIT_BYTES + 100_000);
    let mut mounts = JoinSet::new();
    for number in 0..4 {
        let ((mount, _), version) = (site.mount(), version.clone());
        mounts.spawn(async move {
            sleep(number * 2 * MS).await;
            read(&mount, &version, 0..version.size_bytes).await.unwrap()
        });
    }
    for bytes in mounts.join_all().await {
        assert!(bytes == want);
    }
    assert_eq!(site.gets(), 1);
    settle().await;
    assert_eq!(site.shelf.held(), (4, 0));
    // What another has is left out.
    let (version, _) = site.put("other", 3 * UNIT_BYTES);
    read(&site.mount().0, &version, UNIT_BYTES..2 * UNIT_BYTES).await.unwrap();
    settle().await;
    site.gets();
    let (mount, stats) = site.mount();
    read(&mount, &version, 0..version.size_bytes).await.unwrap();
    assert_eq!((site.gets(), stats.shared_hit_bytes.get()), (2, UNIT_BYTES));
}

#[tokio::test(start_paused = true)]
async fn a_cold_cache_costs_a_mount_that_is_alone_nothing() {
    let site = Site::new();
    let (mount, _) = site.mount();
    let mut times = Vec::new();
    for round in 0..20 {
        times.push(read_each(&mount, &site.family(&format!("{round}"), 20)).await);
    }
    // It has fetched 32 files then.
    let alone = times[2..].iter().max().unwrap();
    assert!(*alone <= 20 * 15 * MS * 21 / 20, "{times:?}");
    settle().await;
    assert_eq!(site.shelf.held(), (400, 0));
    // It finds out when it is not alone any more.
    let objects = site.filled("new", 60).await;
    read_each(&mount, &objects).await;
    let gets = site.gets();
    assert!(gets <= 2, "{gets} of 60 although they were there");
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_is_alone_finds_others_where_the_cache_refuses_nothing() {
    let site = Site::new();
    site.shelf.is_blind.store(true, Ordering::Relaxed);
    let (mount, _) = site.mount();
    read_each(&mount, &site.family("old", 60)).await;
    let objects = site.filled("new", 120).await;
    read_each(&mount, &objects).await;
    // One in 16 is looked for.
    let gets = site.gets();
    assert!((2..60).contains(&gets), "{gets} of 120 although they were there");
}

/// Those that are ahead take themselves for alone soon, and find out that they are not.
#[tokio::test(start_paused = true)]
async fn small_files_are_fetched_once_whenever_the_mounts_begin() {
    for behind in [0, 12, 100, 300, 1000] {
        let site = Site::new();
        let objects: Vec<_> = (0..800).map(|at| site.put(&format!("k/{at}"), 1000 + at)).collect();
        // All in one order, 16 at once.
        let threads = (0..16).map(|thread| objects.iter().skip(thread).step_by(16));
        let objects: Vec<_> = threads.flatten().cloned().collect();
        let mut mounts = JoinSet::new();
        for number in 0..8 {
            let ((mount, _), objects) = (site.mount(), objects.clone());
            mounts.spawn(async move {
                sleep(number * behind * MS).await;
                read_at_once(16, mount, &objects).await
            });
        }
        mounts.join_all().await;
        let gets = site.gets();
        assert!(gets <= 880, "{gets} GETs of eight mounts for 800 files, each {behind} ms later");
        settle().await;
        assert_eq!(site.shelf.held(), (800, 0));
    }
}

/// The one that is behind has stored nothing itself: it knows by its waits what that takes.
#[tokio::test(start_paused = true)]
async fn a_mount_that_only_follows_waits_as_long_as_the_other_takes() {
    let site = Site::new();
    let (ahead, follower) = (Arc::new(site.mount().0), Arc::new(site.mount().0));
    for (name, ms) in [("fast", 1500), ("slow", 4000)] {
        site.shelf.troubles(Trouble::None, Trouble::Slow(ms * MS));
        let mut reads = JoinSet::new();
        for (version, want) in site.family(name, 16) {
            let (ahead, follower) = (ahead.clone(), follower.clone());
            reads.spawn(async move {
                read_all(&ahead, &version, &want).await;
                read_all(&follower, &version, &want).await;
            });
        }
        reads.join_all().await;
        assert_eq!(site.gets(), 16, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_may_only_read_is_refused_once_and_finds_what_others_have_replaced() {
    let site = Site::new();
    let objects = site.filled("k", 40).await;
    // What is before it has been shown when it is found.
    for (bytes, _) in site.shelf.entries.lock().values_mut().take(4) {
        *bytes.last_mut().unwrap() ^= 1;
    }
    let refuses = |puts| site.shelf.troubles(Trouble::None, puts);
    refuses(Trouble::Fails(StoreError::Denied("no".to_owned())));
    let (mount, stats) = site.mount();
    site.shelf.puts.store(0, Ordering::Relaxed);
    read_each(&mount, &objects).await;
    settle().await;
    assert_eq!((stats.shared_wrong.get(), site.shelf.puts.load(Ordering::Relaxed)), (4, 1));
    refuses(Trouble::None);
    for _ in 0..2 {
        read_each(&site.mount().0, &objects).await;
        settle().await;
    }
    sleep(Duration::from_mins(1)).await;
    site.gets();
    read_each(&mount, &objects).await;
    assert_eq!((site.gets(), stats.shared_wrong.get()), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn random_reads_fetch_what_they_ask_for_and_nothing_else() {
    let site = Site::new();
    let (version, want) = site.put("k", 20 * UNIT_BYTES);
    let (mount, stats) = site.mount();
    for at in 0..100_u64 {
        let start = (at * 7919 * 4096) % (version.size_bytes - (128 << 10));
        let range = start..start + (128 << 10);
        let bytes = read(&mount, &version, range.clone()).await.unwrap();
        assert!(bytes == want[size(range.start)..size(range.end)]);
    }
    assert_eq!(site.gets(), 100);
    assert_eq!(stats.shared_missed_bytes.get(), 100 * (128 << 10));
    settle().await;
    assert_eq!(site.shelf.held(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whatever_the_cache_does_reads_are_right_and_hardly_slower() {
    let denied = || StoreError::Denied("no".to_owned());
    let broken = || StoreError::Unavailable("503".to_owned());
    for (gets, puts) in [
        (Trouble::None, Trouble::None),
        (Trouble::Flips(7_000), Trouble::None),
        (Trouble::Flips(135_000), Trouble::None),
        (Trouble::Truncates, Trouble::None),
        (Trouble::Breaks(135_000), Trouble::None),
        (Trouble::Stalls(135_000), Trouble::None),
        (Trouble::Stalls(0), Trouble::Stalls(0)),
        (Trouble::Late(3000 * MS), Trouble::Late(3000 * MS)),
        (Trouble::Fails(broken()), Trouble::Fails(broken())),
        (Trouble::Fails(denied()), Trouble::Fails(denied())),
        (Trouble::None, Trouble::Fails(denied())),
        (Trouble::None, Trouble::Late(3000 * MS)),
    ] {
        for is_filled in [false, true] {
            let site = Site::new();
            let objects = site.family("k", 60);
            if is_filled {
                read_each(&site.mount().0, &objects).await;
                settle().await;
            }
            let wrong = matches!(gets, Trouble::Flips(_) | Trouble::Truncates) && is_filled;
            site.shelf.troubles(gets.clone(), puts.clone());
            let (mount, stats) = site.mount();
            let took = read_each(&mount, &objects).await;
            let alone = 60 * 15 * MS;
            // In all: five first bytes of 200 ms, five bodies of 200 ms; the first of each takes
            // longer, because it is not known what the source takes.
            let limit = alone * 21 / 20 + 1200 * MS + 750 * MS;
            assert!(took < limit, "{gets:?} {puts:?} {is_filled}: {took:?}");
            assert_eq!(stats.shared_wrong.get() > 0, wrong, "{gets:?} {is_filled}");
            if is_filled && gets != Trouble::None {
                assert!(stats.shared_pauses.get() > 0, "{gets:?}");
            }
            // Once it is well again, so are we, in a while.
            site.shelf.troubles(Trouble::None, Trouble::None);
            sleep(Duration::from_mins(10)).await;
            for _ in 0..3 {
                read_each(&mount, &objects).await;
                settle().await;
            }
            site.gets();
            read_each(&mount, &objects).await;
            let gets_then = site.gets();
            assert!(gets_then < 12, "{gets:?} {puts:?} {is_filled}: {gets_then}");
        }
    }
}

/// One of the mounts that wait takes the place of one that died, lately or a while ago.
#[tokio::test(start_paused = true)]
async fn what_a_mount_that_died_had_claimed_is_fetched_once() {
    const UNITS: u64 = 8;
    for seconds in [0, 60] {
        let site = Site::new();
        let (version, _) = site.put("k", UNITS * UNIT_BYTES);
        let (dead, _) = site.mount();
        for start in (0..UNITS * UNIT_BYTES).step_by(size(UNIT_BYTES)) {
            // It dies with its request.
            let read = timeout(5 * MS, read(&dead, &version, start..start + UNIT_BYTES)).await;
            assert!(read.is_err());
        }
        sleep(Duration::from_secs(seconds)).await;
        site.gets();
        *site.distance.lock() = 400 * MS;
        let mut mounts = JoinSet::new();
        for _ in 0..8 {
            let ((mount, _), version) = (site.mount(), version.clone());
            mounts.spawn(async move { stream(&Arc::new(mount), &version).await });
        }
        let times = mounts.join_all().await;
        let gets = site.gets();
        assert!(gets <= 9, "{gets} GETs of eight mounts for 8 units, after {seconds} s");
        let longest = times.iter().max().unwrap();
        assert!(*longest < Duration::from_secs(6), "{longest:?}");
        settle().await;
        assert_eq!(site.shelf.held(), (8, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_a_mount_that_died_delays_each_unit_once_and_is_replaced() {
    let site = Site::new();
    let (version, want) = site.put("k", 8 * UNIT_BYTES);
    let (dead, _) = site.mount();
    for unit in 0..8 {
        let range = unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES;
        // It dies with its request.
        let read = timeout(5 * MS, read(&dead, &version, range)).await;
        assert!(read.is_err());
    }
    assert_eq!(site.shelf.held(), (0, 8));
    let (mount, stats) = site.mount();
    let took = read_all(&mount, &version, &want).await;
    assert!(took < 8 * 15 * MS + 4000 * MS, "{took:?}");
    assert!(stats.shared_late.get() > 0);
    sleep(SPREAD * 2).await;
    assert_eq!(site.shelf.held(), (8, 0));
    site.gets();
    read_all(&site.mount().0, &version, &want).await;
    assert_eq!(site.gets(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_the_key_nobody_makes_an_entry_that_is_believed() {
    let site = Site::new();
    let (version, want) = site.put("k", 2 * UNIT_BYTES);
    let key = || Sealer::with_key(b"the key of the nodes");
    let (one, _) = site.mount_with(key(), true);
    read_all(&one, &version, &want).await;
    settle().await;
    site.gets();
    read_all(&site.mount_with(key(), true).0, &version, &want).await;
    assert_eq!(site.gets(), 0);
    // Who can write the cache, but has not the key, changes what is there.
    for (bytes, _) in site.shelf.entries.lock().values_mut() {
        bytes[1000] ^= 1;
    }
    let (other, stats) = site.mount_with(key(), true);
    read_all(&other, &version, &want).await;
    assert_eq!((site.gets(), stats.shared_wrong.get()), (2, 2));
    settle().await;
    read_all(&site.mount_with(key(), true).0, &version, &want).await;
    assert_eq!(site.gets(), 0, "what was wrong is replaced");
}

/// Any reads, by several mounts, of a cache that does anything: the bytes are right.
#[test]
fn any_trouble_gives_right_bytes() {
    let size_bytes = UNIT_BYTES + 200_000;
    let trouble = prop_oneof![
        Just(Trouble::None),
        (0_u64..400).prop_map(|ms| Trouble::Late(Duration::from_millis(ms))),
        Just(Trouble::Fails(StoreError::Unavailable("503".to_owned()))),
        (0_usize..3 << 20).prop_map(Trouble::Flips),
        (0_usize..3 << 20).prop_map(Trouble::Breaks),
        (0_usize..3 << 20).prop_map(Trouble::Stalls),
        Just(Trouble::Truncates),
    ];
    let step = (0_usize..3, 0..size_bytes, 1..size_bytes, trouble.clone(), trouble);
    let steps = prop::collection::vec(step, 1..12);
    fuzz::each(steps, |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let site = Site::new();
            let (version, want) = site.put("k", size_bytes);
            let mounts: Vec<_> = (0..3).map(|_| site.mount().0).collect();
            for (mount, start, length, gets, puts) in steps {
                site.shelf.troubles(gets, puts);
                let range = start..(start + length).min(size_bytes);
                let bytes = read(&mounts[mount], &version, range.clone()).await.unwrap();
                prop_assert!(bytes == want[size(range.start)..size(range.end)], "{:?}", range);
                sleep(50 * MS).await;
            }
            Ok(())
        })
    });
}
