//! The cache over a store in memory, in tiny chunks: what an outsider sees is bytes, errors and
//! requests.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::disk::{Disk, DiskCached, DiskConfig, Origin, Reserve};
use crate::store::joined::{Branch, Joined};
use crate::testing::fault::{Fault, FaultyStore, Operation};
use crate::testing::memory::MemoryStore;

const LAYOUT: Layout = Layout { chunk_bytes: 16, block_bytes: 4, part_bytes: 8, small_bytes: 8 };

struct Rig {
    memory: Arc<MemoryStore>,
    faults: Arc<FaultyStore>,
    cache: Arc<ChunkCache>,
    objects: HashMap<ObjectId, (Source, Vec<u8>)>,
}

impl Rig {
    /// A cache of `budget` bytes over objects of these sizes, numbered from 0.
    fn new(budget: u64, sizes: &[usize]) -> Self {
        Self::of(budget, sizes, true)
    }

    fn of(budget: u64, sizes: &[usize], keeps_small: bool) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let faults = Arc::new(FaultyStore::new(memory.clone()));
        let objects = sizes.iter().enumerate().map(|(id, &size)| {
            let bytes: Vec<u8> =
                (0..size).map(|at| u8::try_from((at * 7 + id) % 251).unwrap()).collect();
            let meta = memory.put(&format!("object-{id}"), bytes.clone());
            let source = Source { id: id as ObjectId, meta: Arc::new(meta) };
            (source.id, (source, bytes))
        });
        let objects = objects.collect();
        let stats = Arc::new(Stats::default());
        let runtime = Handle::current();
        let (layout, memory_budget_bytes, max_connections) = (LAYOUT, budget, 4);
        let unit_bytes = 0;
        let config =
            ReadConfig { layout, memory_budget_bytes, max_connections, keeps_small, unit_bytes };
        let cache = ChunkCache::new(faults.clone(), config, runtime, stats).unwrap();
        Self { memory, faults, cache, objects }
    }

    fn read(
        &self,
        id: ObjectId,
        range: Range<u64>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.read_as(ReadKind::Direct, id, range)
    }

    fn read_as(
        &self,
        kind: ReadKind,
        id: ObjectId,
        range: Range<u64>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let (cache, (object, bytes)) = (self.cache.clone(), self.objects[&id].clone());
        async move {
            let data = cache.read(&object, range.clone(), kind).await?;
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert_eq!(&*data, &bytes[range]);
            Ok(())
        }
    }

    fn gets(&self) -> u64 {
        self.memory.counts().gets
    }
}

/// Through a layer above the disk, too.
#[tokio::test]
async fn bytes_from_the_disk_say_nothing_about_the_network() {
    let (memory, folder) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
    let mut meta = memory.put("object", &b"12345678"[..]);
    "a/object".clone_into(&mut meta.version.key);
    let source = Source { id: 0, meta: Arc::new(meta) };
    for (gets, first_bytes) in [(1, 1), (1, 0)] {
        let stats = Arc::new(Stats::default());
        let (path, size_bytes) = (folder.path().to_owned(), Some(64 << 20));
        let reserve = Reserve::Bytes(0);
        let (memory_bytes, waiting_bytes) = (4 << 20, 4 << 20);
        let config = DiskConfig { path, size_bytes, reserve, memory_bytes, waiting_bytes };
        let disk = Disk::start(config, stats.clone()).await.unwrap();
        let origin = Origin::new("http://s3", "bucket");
        let store = Arc::new(DiskCached::new(memory.clone(), origin, disk.clone()));
        let (directory, prefix, counts) = ("a/".to_owned(), String::new(), Arc::default());
        let joined = Joined::new(vec![Branch { directory, prefix, store, counts }]);
        let (layout, memory_budget_bytes, max_connections, keeps_small) = (LAYOUT, 64, 4, false);
        let unit_bytes = 0;
        let config =
            ReadConfig { layout, memory_budget_bytes, max_connections, keeps_small, unit_bytes };
        let runtime = Handle::current();
        let cache = ChunkCache::new(Arc::new(joined), config, runtime, stats.clone()).unwrap();
        let data = cache.read(&source, 0..8, ReadKind::Direct).await.unwrap();
        assert_eq!(&*data, b"12345678");
        disk.settle(Duration::from_secs(20)).await;
        let counted = (memory.counts().gets, stats.first_byte.count(), cache.arena.received());
        assert_eq!(counted, (gets, first_bytes, 8 * first_bytes));
    }
}

/// R4
#[tokio::test]
async fn ten_readers_of_one_block_cost_one_get() {
    let rig = Rig::new(64, &[16]);
    let mut readers = JoinSet::new();
    for start in 0..10 {
        readers.spawn(rig.read(0, start % 4..4));
    }
    assert!(readers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(rig.gets(), 1);
}

#[tokio::test]
async fn reading_twice_costs_no_request() {
    let rig = Rig::new(64, &[40]);
    rig.read(0, 0..40).await.unwrap();
    let gets = rig.gets();
    assert_eq!(gets, 5, "two parts for each whole chunk, and the tail");
    rig.read(0, 3..39).await.unwrap();
    assert_eq!(rig.gets(), gets);
}

/// One thread, which begins with the task that was spawned last: the order is not that of tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn gets_are_sent_in_the_order_in_which_they_were_asked_for() {
    let sent = tokio::spawn(async {
        let rig = Rig::new(256, &[160]);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = sent.clone();
        rig.faults.hook(move |call| {
            seen.lock().push(call.range.start);
            Fault::None
        });
        assert_eq!(rig.cache.fetch(&rig.objects[&0].0, 0..160, 8, Purpose::Ahead), 160);
        while rig.gets() < 20 {
            tokio::task::yield_now().await;
        }
        std::mem::take(&mut *sent.lock())
    });
    let sent = sent.await.unwrap();
    // Three may be in flight, and which of them comes first is not said.
    let is_in_turn = |(before, &start): (usize, &u64)| start <= 8 * (before as u64 + 2);
    assert!(sent.iter().enumerate().all(is_in_turn), "{sent:?}");
}

/// R5
#[tokio::test]
async fn a_random_read_fetches_its_blocks_only() {
    let rig = Rig::new(64, &[40]);
    rig.read(0, 21..23).await.unwrap();
    assert_eq!((rig.gets(), rig.cache.used_bytes()), (1, 4));
}

#[tokio::test]
async fn what_is_fetched_ahead_is_not_fetched_again() {
    let rig = Rig::new(64, &[40]);
    let object = rig.objects[&0].0.clone();
    let _ = rig.cache.fetch(&object, 0..40, 8, Purpose::Ahead);
    rig.read(0, 0..40).await.unwrap();
    assert_eq!(rig.gets(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_told_to_all_who_waited_and_the_next_reader_tries_again() {
    let rig = Rig::new(64, &[16]);
    rig.faults.delay(Operation::Get, Duration::from_secs(1));
    rig.faults.fail_next(Operation::Get, StoreError::Changed);
    let waiting = [tokio::spawn(rig.read(0, 0..4)), tokio::spawn(rig.read(0, 2..4))];
    for reader in waiting {
        assert_eq!(reader.await.unwrap(), Err(StoreError::Changed));
    }
    assert_eq!((rig.gets(), rig.cache.used_bytes()), (0, 0));
    // The kernel's second asking is not paid for again.
    assert_eq!(rig.read(0, 1..3).await, Err(StoreError::Changed));
    assert_eq!(rig.faults.calls(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    rig.read(0, 0..4).await.unwrap();
    assert_eq!(rig.gets(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_keeps_the_blocks_it_filled() {
    let rig = Rig::new(64, &[16]);
    let broken = StoreError::Unavailable("broken".to_owned());
    rig.faults.next(Operation::Get, Fault::BreakAfter(5, broken.clone()));
    assert_eq!(rig.read(0, 0..8).await, Err(broken));
    assert_eq!(rig.cache.used_bytes(), 4);
    rig.read(0, 0..4).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    rig.read(0, 0..8).await.unwrap();
    assert_eq!(rig.gets(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_goes_on_without_its_reader() {
    let rig = Rig::new(64, &[16]);
    rig.faults.delay(Operation::Get, Duration::from_secs(1));
    let impatient = tokio::time::timeout(Duration::from_millis(1), rig.read(0, 0..4)).await;
    assert!(impatient.is_err());
    rig.read(0, 0..4).await.unwrap();
    assert_eq!(rig.gets(), 1);
}

#[tokio::test]
async fn the_least_recently_used_chunk_makes_room() {
    let rig = Rig::new(48, &[16, 16, 16, 16]);
    for id in [0, 1, 2, 0] {
        rig.read(id, 0..16).await.unwrap();
    }
    // Fetch tasks give their leases back a moment after the reader has the bytes.
    tokio::task::yield_now().await;
    rig.read(3, 0..16).await.unwrap();
    let gets = rig.gets();
    rig.read(0, 0..16).await.unwrap();
    rig.read(2, 0..16).await.unwrap();
    assert_eq!(rig.gets(), gets, "1 was the oldest");
    rig.read(1, 0..16).await.unwrap();
    assert_eq!(rig.gets(), gets + 2);
}

#[tokio::test]
async fn a_full_cache_goes_on_in_the_memory_it_has() {
    let rig = Rig::new(64, &[160]);
    let object = rig.objects[&0].0.clone();
    let mut places = std::collections::BTreeSet::new();
    for chunk in 0..10 {
        let data =
            rig.cache.read(&object, chunk * 16..chunk * 16 + 16, ReadKind::Direct).await.unwrap();
        places.insert(data.as_ptr() as usize);
        drop(data);
        // Fetch tasks give their leases back a moment after the reader has the bytes.
        tokio::task::yield_now().await;
    }
    assert_eq!(places.len(), 4, "as many as the budget holds");
}

/// R6
#[tokio::test]
async fn readers_of_far_more_than_the_budget_all_get_their_bytes() {
    let rig = Rig::new(32, &[40; 64]);
    let mut readers = JoinSet::new();
    for id in 0..64 {
        for start in [0, 10, 30] {
            readers.spawn(rig.read(id, start..start + 10));
        }
        let object = rig.objects[&id].0.clone();
        let _ = rig.cache.fetch(&object, 0..40, 8, Purpose::Ahead);
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap().unwrap();
        assert!(rig.cache.used_bytes() <= 32);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_does_not_wait_for_the_turn_of_readahead() {
    let rig = Rig::new(128, &[16; 6]);
    rig.faults.delay(Operation::Get, Duration::from_secs(1));
    for id in 0..6 {
        let object = rig.objects[&id].0.clone();
        let _ = rig.cache.fetch(&object, 0..16, 8, Purpose::Ahead);
    }
    // Four connections let three GETs of readahead run at once; this is the last of twelve.
    let start = tokio::time::Instant::now();
    rig.read(5, 8..16).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn what_the_page_cache_has_taken_whole_is_given_up_first() {
    let rig = Rig::new(48, &[16, 16, 16, 16]);
    let taken = |id: ObjectId, range: Range<u64>| rig.read_as(ReadKind::Buffered, id, range);
    // The newest by use, but a second copy; of the oldest the page cache has not the last block.
    taken(0, 0..12).await.unwrap();
    rig.read(1, 0..16).await.unwrap();
    for start in [8, 0] {
        taken(2, start..start + 8).await.unwrap();
    }
    tokio::task::yield_now().await;
    rig.read(3, 0..16).await.unwrap();
    let gets = rig.gets();
    rig.read(0, 0..12).await.unwrap();
    rig.read(1, 0..16).await.unwrap();
    assert_eq!(rig.gets(), gets, "2 was the one to go");
    rig.read(2, 0..16).await.unwrap();
    assert_eq!(rig.gets(), gets + 2);
}

#[tokio::test]
async fn small_objects_take_nobodys_place_while_there_is_room() {
    let rig = Rig::new(160, &[8, 4, 4]);
    for id in 0..3 {
        let object = rig.objects[&id].0.clone();
        let taken = rig.cache.read(&object, 0..object.meta.version.size_bytes, ReadKind::Buffered);
        taken.await.map(drop).unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.cache.used_bytes(), 16, "though the first was read");
}

/// Fresh memory costs more than reading them from the disk again.
#[tokio::test]
async fn where_a_disk_has_them_small_objects_leave_as_large_ones_do() {
    let rig = Rig::of(160, &[8, 8], false);
    rig.read_as(ReadKind::Buffered, 0, 0..4).await.unwrap();
    rig.read(1, 0..8).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(rig.cache.used_bytes(), 4 + 8, "the page cache has not all of it");
    rig.read_as(ReadKind::Buffered, 0, 4..8).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(rig.cache.used_bytes(), 8);
}

#[tokio::test]
async fn a_stream_goes_on_in_the_memory_of_what_it_has_left_behind_and_in_no_other() {
    let rig = Rig::new(160, &[16, 160]);
    rig.read(0, 0..16).await.unwrap();
    let object = rig.objects[&1].0.clone();
    let mut held = None;
    for chunk in 0..5 {
        let range = chunk * 16..chunk * 16 + 16;
        held = Some(rig.cache.read(&object, range, ReadKind::Buffered).await.unwrap());
        tokio::task::yield_now().await;
        assert!(rig.cache.used_bytes() <= 48, "what is being replied, and the one before");
    }
    drop(held);
    let gets = rig.gets();
    rig.read(0, 0..16).await.unwrap();
    assert_eq!(rig.gets(), gets, "the oldest by use, but no second copy");
}

#[tokio::test]
async fn a_chunk_that_the_page_cache_holds_whole_leaves() {
    let rig = Rig::new(160, &[32]);
    for (range, used_bytes) in [(0..12, 12), (12..16, 0), (20..32, 12), (16..20, 0)] {
        rig.read_as(ReadKind::Buffered, 0, range).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(rig.cache.used_bytes(), used_bytes);
    }
    // The page cache has lost it.
    rig.read_as(ReadKind::Buffered, 0, 0..32).await.unwrap();
}

/// Waits until all fetches have ended: nothing else has a task here.
async fn fetched() {
    while Handle::current().metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn readahead_evicts_what_was_read_and_nothing_that_will_be() {
    let rig = Rig::new(48, &[16, 16, 16, 16, 160]);
    let ahead = |id| rig.cache.fetch(&rig.objects[&id].0, 0..16, 8, Purpose::Ahead);
    rig.read(0, 0..16).await.unwrap();
    for id in 1..=2 {
        assert_eq!(ahead(id), 16);
        fetched().await;
    }
    assert_eq!(ahead(3), 16, "in the place of the one that was read");
    fetched().await;
    let gets = rig.gets();
    assert_eq!(ahead(4), 0, "no room: it will be planned again");
    for id in 1..=2 {
        rig.read(id, 0..16).await.unwrap();
    }
    assert_eq!(rig.gets(), gets);
    rig.read(0, 0..16).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(rig.gets(), gets + 2, "a reader that waits takes a place in any case");
}

#[tokio::test]
async fn bytes_that_no_reader_came_for_go_after_a_while() {
    let rig = Rig::new(32, &[16, 16, 160]);
    let ahead = |id| rig.cache.fetch(&rig.objects[&id].0, 0..16, 8, Purpose::Ahead);
    assert_eq!((ahead(0), ahead(1)), (16, 16));
    fetched().await;
    assert_eq!(ahead(2), 0);
    for chunk in 0..3 {
        rig.read_as(ReadKind::Buffered, 2, chunk * 16..chunk * 16 + 16).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.cache.fetch(&rig.objects[&2].0, 48..80, 8, Purpose::Ahead), 80);
}

#[tokio::test(start_paused = true)]
async fn memory_that_nobody_needs_for_a_while_goes_back_to_the_system() {
    let rig = Rig::new(64, &[16, 16]);
    rig.cache.release_idle_memory();
    rig.read(0, 0..16).await.unwrap();
    tokio::task::yield_now().await;
    rig.cache.evict_all();
    assert_eq!(rig.cache.arena.usage().idle, 16);
    tokio::time::sleep(IDLE * 2 + Duration::from_secs(1)).await;
    assert_eq!(rig.cache.arena.usage().idle, 0);
    rig.read(0, 0..16).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bytes_that_no_reader_came_for_in_a_minute_of_silence_are_given_up() {
    let rig = Rig::new(160, &[16, 16]);
    rig.cache.release_idle_memory();
    let _ = rig.cache.fetch(&rig.objects[&0].0, 0..16, 8, Purpose::Ahead);
    rig.read(1, 0..16).await.unwrap();
    for _ in 0..20 {
        // The thread that populates memory does not know of the clock here.
        std::thread::sleep(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(IDLE * 5).await;
    assert_eq!(rig.cache.used_bytes(), 32);
    tokio::time::sleep(IDLE * 4).await;
    assert_eq!(rig.cache.used_bytes(), 16, "what was read stays");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_others_fetch_keeps_nobody_from_reading_ahead() {
    let rig = Rig::new(64, &[16, 16]);
    rig.faults.delay(Operation::Get, Duration::from_secs(1));
    let (object, other) = (rig.objects[&0].0.clone(), rig.objects[&1].0.clone());
    let _ = rig.cache.fetch(&object, 0..16, 8, Purpose::Demand);
    let lease = rig.cache.lease(&object, 0, Purpose::Demand).unwrap();
    // Its turn has come, and what it wanted room for is fetched already.
    let mut turn = Some(rig.cache.turn.lock().await);
    let mut waiting = pin!(rig.cache.wait_for_blocks(&lease, &(0..4), &mut turn));
    let half = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(half.is_err());
    assert_eq!(rig.cache.fetch(&other, 0..16, 8, Purpose::Ahead), 16);
    assert!(waiting.await.is_ok());
}

#[tokio::test]
async fn a_fetch_says_how_far_there_was_room() {
    let rig = Rig::new(24, &[40, 40]);
    let object = rig.objects[&0].0.clone();
    let other = Source { id: 1, ..object.clone() };
    assert_eq!(rig.cache.fetch(&object, 4..30, 8, Purpose::Ahead), 24);
    assert_eq!(rig.cache.fetch(&other, 0..8, 8, Purpose::Ahead), 0, "all are in flight");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is read at once, whatever fails and whatever is cancelled: right bytes or the
    /// injected error, the budget is kept, and nothing is left hanging.
    /// R1
    #[test]
    fn any_interleaving_gives_the_bytes_or_the_error(
        sizes in prop::collection::vec(1_usize..50, 1..5),
        steps in prop::collection::vec((any::<u8>(), 0_u64..50, 1_u64..30, any::<u8>()), 1..40),
        faults in prop::collection::vec(any::<u8>(), 40),
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let rig = Rig::new(32, &sizes);
            rig.faults.hook(move |call| {
                let n = faults[usize::try_from(call.number).unwrap() % faults.len()];
                match n % 8 {
                    0 => Fault::Fail(StoreError::Throttled { retry_after: None }),
                    1 => Fault::BreakAfter(
                        usize::from(n / 8),
                        StoreError::Throttled { retry_after: None },
                    ),
                    2 | 3 => Fault::Delay(Duration::from_millis(u64::from(n))),
                    _ => Fault::None,
                }
            });
            let mut readers = JoinSet::new();
            for (id, start, len, how) in steps {
                let id = ObjectId::from(id) % sizes.len() as u64;
                let (object, bytes) = &rig.objects[&id];
                let range = start.min(bytes.len() as u64)..(start + len).min(bytes.len() as u64);
                match how % 4 {
                    0 => {
                        let _ = rig.cache.fetch(object, range, 4, Purpose::Ahead);
                    }
                    1 => {
                        let patience = Duration::from_millis(u64::from(how));
                        let read = tokio::time::timeout(patience, rig.read(id, range));
                        readers.spawn(async { read.await.unwrap_or(Ok(())) });
                    }
                    2 => {
                        readers.spawn(rig.read_as(ReadKind::Buffered, id, range));
                    }
                    _ => {
                        readers.spawn(rig.read(id, range));
                    }
                }
                if how % 3 == 0 {
                    tokio::time::sleep(Duration::from_millis(u64::from(how))).await;
                }
                assert!(rig.cache.used_bytes() <= 32);
            }
            for outcome in readers.join_all().await {
                let is_expected =
                    matches!(outcome, Ok(()) | Err(StoreError::Throttled { retry_after: None }));
                assert!(is_expected, "{outcome:?}");
            }
            // Everything comes to rest: no charge is left for bytes that never came.
            tokio::time::sleep(Duration::from_mins(1)).await;
            for _ in 0..1000 {
                rig.cache.evict_all();
                if rig.cache.used_bytes() == 0 {
                    break;
                }
                // The thread that populates memory does not know of the clock here.
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
            }
            assert_eq!(rig.cache.used_bytes(), 0);
        });
    }
}
