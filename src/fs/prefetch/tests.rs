//! Hints over a store in memory: what an outsider sees is bytes, requests and counters.

use std::time::Duration;

use futures_util::stream;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::*;
use crate::base::layout::Layout;
use crate::fs::{FsConfig, NamesConfig, Ownership, ReadConfig, ReadKind};
use crate::names::ROOT;
use crate::testing::memory::MemoryStore;

const FILES: usize = 500;
const FILE_BYTES: usize = 100_000;

struct Rig {
    store: Arc<MemoryStore>,
    fs: Arc<BucketFs>,
}

impl Rig {
    fn new(budget_bytes: u64) -> Self {
        let store = Arc::new(MemoryStore::new());
        for number in 0..FILES {
            store.put(&path(number), vec![1; FILE_BYTES]);
        }
        store.put("d/large", vec![2; 40 << 20]);
        store.put("other/file", "bytes");
        let ownership = Ownership { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
        let names = NamesConfig {
            root_prefix: String::new(),
            metadata_ttl: None,
            negative_ttl: Duration::ZERO,
            listings_bytes: usize::MAX,
            page_keys: 1000,
            pages_at_once: 4,
            is_unordered: false,
        };
        let reading = ReadConfig {
            layout: Layout::within(budget_bytes, None, None),
            memory_budget_bytes: budget_bytes,
            max_connections: 128,
            keeps_small: true,
            unit_bytes: 0,
        };
        let config = FsConfig { ownership, names, reading };
        let fs = BucketFs::new(store.clone(), config, Handle::current(), Arc::default()).unwrap();
        Self { store, fs }
    }

    async fn tell(&self, touches: impl IntoIterator<Item = Touch>, teller: TellerId) -> Hinted {
        let touches: Vec<_> = touches.into_iter().collect();
        self.fs.prefetch_all(stream::iter(touches), teller).await
    }

    /// Until nothing happens any more, but not as long as unread bytes are kept.
    async fn rest(&self) {
        sleep(Duration::from_secs(5)).await;
    }

    async fn ino(&self, path: &str) -> Ino {
        let mut ino = ROOT;
        for name in path.split('/') {
            ino = self.fs.lookup(ino, name.as_bytes()).await.unwrap().ino;
        }
        ino
    }

    async fn read(&self, path: &str) {
        let ino = self.ino(path).await;
        let mut at = 0;
        loop {
            let data = self.fs.read(ino, at, 1 << 20, ReadKind::Buffered).await.unwrap();
            at += data.len() as u64;
            if data.is_empty() {
                return;
            }
        }
    }

    fn gets(&self) -> u64 {
        self.store.counts().gets
    }
}

fn path(number: usize) -> String {
    format!("d/{number:05}.jpg")
}

fn files(numbers: impl IntoIterator<Item = usize>) -> Vec<Touch> {
    numbers.into_iter().map(|number| Touch::Whole(path(number))).collect()
}

/// H1
#[tokio::test(start_paused = true)]
async fn hinted_files_are_there_before_they_are_read_and_no_others_are_fetched() {
    let rig = Rig::new(256 << 20);
    // Shuffled; siblings would be guessed after a tenth of them.
    let order: Vec<usize> = (0..400).map(|number| number * 389 % FILES).collect();
    let hinted = rig.tell(files(order.clone()), 1).await;
    assert_eq!((hinted.files, hinted.missing, hinted.refused), (400, 0, 0));
    rig.rest().await;
    assert_eq!((rig.gets(), rig.fs.readahead.hints.waiting()), (400, (0, 0)));
    for number in order {
        rig.read(&path(number)).await;
    }
    rig.rest().await;
    let stats = &rig.fs.stats;
    assert_eq!((rig.gets(), stats.siblings_ahead.get()), (400, 0));
    assert_eq!((stats.hints_used.get(), stats.hints_wasted.get()), (400, 0));
}

/// H1
#[tokio::test(start_paused = true)]
async fn a_hint_that_its_reader_has_overtaken_costs_nothing() {
    let rig = Rig::new(256 << 20);
    rig.read(&path(7)).await;
    let before = rig.gets();
    rig.tell(files([7, 7, 8, 8]), 1).await;
    rig.rest().await;
    assert_eq!(rig.gets(), before + 1);
}

/// H2, R6
#[tokio::test(start_paused = true)]
async fn a_large_file_is_fetched_ahead_of_its_reader_within_a_quarter_of_the_budget() {
    let rig = Rig::new(32 << 20);
    rig.tell([Touch::Whole("d/large".to_owned())], 1).await;
    rig.rest().await;
    let stats = &rig.fs.stats;
    let first = stats.bytes_fetched.get();
    assert!((7 << 20..=8 << 20).contains(&first), "{first}");
    rig.read("d/large").await;
    rig.rest().await;
    assert_eq!((stats.bytes_fetched.get(), stats.hints_wasted.get()), (40 << 20, 0));
}

/// H3
#[tokio::test(start_paused = true)]
async fn who_does_not_read_what_it_hints_may_have_less_ahead() {
    let rig = Rig::new(32 << 20);
    let mut fetched = Vec::new();
    for _ in 0..3 {
        let before = rig.fs.stats.bytes_fetched.get();
        rig.tell(files(0..FILES), 1).await;
        rig.rest().await;
        fetched.push(rig.fs.stats.bytes_fetched.get() - before);
        rig.fs.drop_bytes();
        rig.rest().await;
        rig.fs.drop_bytes();
        rig.rest().await;
    }
    assert!(fetched[0] > 7 << 20 && fetched[2] < fetched[0] / 3, "{fetched:?}");
    assert!(rig.fs.stats.hints_wasted.get() > 90);
    // Another teller is believed, and finds room while all that others have hinted lies unread.
    rig.tell(files(0..200), 3).await;
    rig.rest().await;
    rig.tell(files([490]), 2).await;
    rig.rest().await;
    let gets = rig.gets();
    rig.read(&path(490)).await;
    assert_eq!(rig.gets(), gets);
}

/// H3
#[tokio::test(start_paused = true)]
async fn a_second_epoch_is_left_to_the_page_cache_as_long_as_that_has_it() {
    let rig = Rig::new(32 << 20);
    for epoch in 1..=3 {
        rig.tell(files(0..400), 1).await;
        rig.rest().await;
        if epoch == 1 {
            for number in 0..400 {
                rig.read(&path(number)).await;
            }
        }
        assert_eq!((rig.gets(), rig.fs.readahead.hints.waiting()), (400, (0, 0)), "{epoch}");
    }
    // The kernel asks for one again: it has dropped what is as old.
    rig.fs.cache.evict_all();
    rig.read(&path(7)).await;
    rig.tell(files([3, 300]), 1).await;
    rig.rest().await;
    assert_eq!(rig.gets(), 402);
    // Nobody reads it, so the page cache had it, and who told it is believed.
    rig.fs.cache.evict_all();
    rig.rest().await;
    rig.tell(files(400..500), 1).await;
    rig.rest().await;
    for number in 400..500 {
        rig.read(&path(number)).await;
    }
    assert_eq!((rig.gets(), rig.fs.stats.hints_wasted.get()), (502, 0));
}

/// H1: each sample of a shard leads to its shard. The samples of several are shuffled.
#[tokio::test(start_paused = true)]
async fn a_large_file_that_is_hinted_again_and_again_waits_once() {
    let rig = Rig::new(32 << 20);
    let shards = 8;
    for number in 0..shards {
        rig.store.put(&format!("d/shard{number}"), vec![3; 20 << 20]);
    }
    let samples = (0..40_000).map(|sample| Touch::Whole(format!("d/shard{}", sample * 5 % shards)));
    let told = rig.tell(samples.chain(files([5])), 1).await;
    assert_eq!((told.files, told.refused), (40_001, 0));
    rig.rest().await;
    // The first of them may have been begun when it was told again.
    assert!(
        rig.fs.readahead.hints.waiting().0 <= shards + 2,
        "{:?}",
        rig.fs.readahead.hints.waiting()
    );
}

/// H2
#[tokio::test(start_paused = true)]
async fn an_endless_list_is_refused_beyond_the_queue() {
    // A budget so small that nothing is fetched of it.
    let rig = Rig::new(16 << 20);
    let source = |id| {
        let version = crate::store::ObjectVersion {
            key: "none".to_owned(),
            etag: "\"e\"".to_owned(),
            size_bytes: 1 << 40,
        };
        let last_modified = std::time::SystemTime::UNIX_EPOCH;
        Source { id, meta: Arc::new(ObjectMeta { version, last_modified, archived: false }) }
    };
    let hints = &rig.fs.readahead.hints;
    let told = (0..100_000).filter(|&n| hints.tell(1, source(1 << 40 | n), 0..1 << 40)).count();
    assert_eq!((told, hints.waiting().0), (32_768, 32_768));
    // Others are heard, and the queue of one that has said nothing for long makes way for them.
    for teller in 2..1000 {
        hints.tell(teller, source(1 << 41 | u64::from(teller)), 0..1 << 40);
    }
    assert!(hints.waiting().0 <= 256, "{:?}", hints.waiting());
}

/// H1, N5
#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_counted_and_a_directory_stands_for_its_files() {
    let rig = Rig::new(256 << 20);
    let missing =
        ["d/none", "none/x", "d/00000.jpg/x", "../d/00000.jpg", "d//x", &"x".repeat(3000)];
    let missing = missing.map(|path| Touch::Whole(path.to_owned()));
    assert_eq!(rig.tell(missing, 1).await, Hinted { missing: 6, ..Hinted::default() });
    assert_eq!(rig.fs.stats.hints_missing.get(), 6);
    let other = rig.tell([Touch::Whole("other".to_owned())], 1).await;
    assert_eq!(other, Hinted { files: 1, directories: 1, ..Hinted::default() });
    // Not recursively.
    let root = rig.tell([Touch::Whole(String::new())], 1).await;
    assert_eq!(root, Hinted { directories: 1, ..Hinted::default() });
    rig.rest().await;
    assert_eq!(rig.gets(), 1);
}

/// H4
#[tokio::test(start_paused = true)]
async fn what_was_recorded_once_is_there_the_next_time() {
    let first = Rig::new(256 << 20);
    let recording = first.fs.record().unwrap();
    assert!(first.fs.record().is_none(), "one at a time");
    for touched in ["other/file", &path(3), &path(1), &path(3)] {
        first.read(touched).await;
    }
    let large = first.ino("d/large").await;
    for at in [20 << 20, 21 << 20, 0] {
        first.fs.read(large, at, 1 << 20, ReadKind::Buffered).await.unwrap();
    }
    first.fs.lookup(ROOT, b"missing").await.unwrap_err();
    let touches = recording.touches();
    let bytes = |path: &str, range| Touch::Bytes(path.to_owned(), range);
    assert_eq!(
        touches,
        [
            Touch::Names(String::new()),
            Touch::Names("other".to_owned()),
            Touch::Names("d".to_owned()),
            bytes("other/file", 0..5),
            bytes(&path(3), 0..100_000),
            bytes(&path(1), 0..100_000),
            bytes("d/large", 20 << 20..22 << 20),
            bytes("d/large", 0..1 << 20),
        ]
    );
    drop(recording);
    assert!(first.fs.record().is_some_and(|next| next.touches().is_empty()));

    let second = Rig::new(256 << 20);
    let hinted = second.tell(touches.clone(), 1).await;
    assert_eq!(hinted, Hinted { files: 5, directories: 3, ..Hinted::default() });
    second.rest().await;
    let before = second.store.counts();
    assert_eq!((before.lists, before.heads), (3, 0), "the directories are listed, at once");
    for touched in ["other/file", &path(3), &path(1)] {
        second.read(touched).await;
    }
    let large = second.ino("d/large").await;
    second.fs.read(large, 21 << 20, 1 << 20, ReadKind::Buffered).await.unwrap();
    second.fs.lookup(ROOT, b"missing").await.unwrap_err();
    let stats = &second.fs.stats;
    assert_eq!((second.store.counts().heads, stats.reads_waited.get()), (0, 0));
}

/// A profile of a time when the directories had other names.
#[tokio::test(start_paused = true)]
async fn directories_that_are_known_not_to_exist_cost_no_request() {
    let rig = Rig::new(256 << 20);
    rig.tell([Touch::Names(String::new())], 1).await;
    rig.rest().await;
    let before = rig.store.counts().lists;
    let none = (0..1000).map(|number| Touch::Names(format!("none{number}")));
    let told = rig.tell(none.chain([Touch::Names("d".to_owned())]), 1).await;
    assert_eq!((told.directories, told.missing), (1, 1000));
    assert_eq!(rig.store.counts().lists - before, 1);
}

/// H4: a start that looks into hundreds of directories beside each other.
#[tokio::test(start_paused = true)]
async fn many_directories_of_one_parent_are_listed_together_with_those_below_them() {
    let rig = Rig::new(256 << 20);
    for number in 0..300 {
        for file in ["v1/a.json", "v1/b.json", "v2/a.json"] {
            rig.store.put(&format!("data/{number:03}/{file}"), "{}");
        }
    }
    // In the middle of a run, and too large for it.
    for number in 0..9000 {
        rig.store.put(&format!("data/200-large/{number:04}"), "");
    }
    let names = Touch::Names;
    let wanted = || {
        let below = (0..300).map(|number| names(format!("data/{number:03}/v1")));
        // No order is needed.
        let some = below.chain((0..300).rev().map(|number| names(format!("data/{number:03}"))));
        let none = (0..50).map(|number| names(format!("data/none{number}")));
        some.chain(none).chain([names("data".to_owned())])
    };
    let told = rig.tell(wanted(), 1).await;
    assert_eq!((told.directories, told.missing), (601, 50));
    let counts = rig.store.counts();
    // It and three runs; one of them comes to the large directory, and goes on behind it.
    assert!((4..=8).contains(&counts.lists) && counts.heads == 0, "{counts:?}");
    for number in 0..300 {
        rig.ino(&format!("data/{number:03}/v1/b.json")).await;
    }
    // The root's names were not asked for.
    let asked = rig.store.counts().lists - counts.lists;
    assert!(asked <= 5, "{asked}");
    let before = rig.store.counts().lists;
    let told = rig.tell(wanted(), 1).await;
    assert_eq!((told.directories, rig.store.counts().lists), (601, before), "all of it is known");
    // As many in directories of their own need a request each.
    let apart = (0..20).map(|number| names(format!("apart{number}/x")));
    assert_eq!(rig.tell(apart, 1).await.missing, 20);
    assert_eq!(rig.store.counts().lists - before, 20);
}
