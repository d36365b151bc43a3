//! Epochs of small files over a store in memory: what an outsider sees is bytes, requests and
//! counters.

use super::*;
use crate::base::layout::Layout;
use crate::names::ROOT;
use crate::testing::memory::MemoryStore;

mod replay;

const FILES: usize = 1000;
const FILE_BYTES: usize = 32_000;

struct Rig {
    store: Arc<MemoryStore>,
    fs: Arc<BucketFs>,
}

impl Rig {
    /// A bucket of [`FILES`] files in one directory; with a `ttl` of zero, listings are never
    /// believed.
    fn new(budget_bytes: u64, ttl: Option<Duration>) -> Self {
        let store = Arc::new(MemoryStore::new());
        for number in 0..FILES {
            store.put(&name(number), bytes(number));
        }
        let fs = file_system(store.clone(), budget_bytes, ttl);
        Self { store, fs }
    }

    async fn list(&self) {
        let entries = self.fs.names.read_directory(ROOT, 0).await.unwrap().iter().count();
        assert_eq!(entries, FILES + 2);
    }

    /// Reads these files whole, in steps of `step` bytes, and waits until nothing is in flight.
    async fn read(&self, files: impl IntoIterator<Item = usize>, step: u32) {
        for number in files {
            let name = name(number);
            let entry = self.fs.lookup(ROOT, name.as_bytes()).await.unwrap();
            let mut found = Vec::new();
            while found.len() < FILE_BYTES {
                let ino = entry.ino;
                found.extend_from_slice(
                    &self.fs.read(ino, found.len() as u64, step, ReadKind::Buffered).await.unwrap(),
                );
            }
            assert!(found == bytes(number));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    fn gets(&self) -> usize {
        usize::try_from(self.store.counts().gets).unwrap()
    }
}

/// With a `ttl` of zero, listings are never believed.
fn file_system(
    store: Arc<dyn ObjectStore>,
    budget_bytes: u64,
    ttl: Option<Duration>,
) -> Arc<BucketFs> {
    let ownership = Ownership { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let names = NamesConfig {
        root_prefix: String::new(),
        metadata_ttl: ttl,
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
    BucketFs::new(store, config, Handle::current(), Arc::default()).unwrap()
}

fn name(number: usize) -> String {
    format!("{number:05}.jpg")
}

fn bytes(number: usize) -> Vec<u8> {
    (0..FILE_BYTES).map(|at| u8::try_from((at + number) % 251).unwrap()).collect()
}

/// All files in an order without order: 1,000 and 389 have no common divisor.
fn shuffled() -> impl Iterator<Item = usize> {
    (1..=FILES).map(|number| number * 389 * 7 % FILES)
}

/// R3, R7
#[tokio::test(start_paused = true)]
async fn an_epoch_costs_a_get_a_file_and_the_next_one_none() {
    for step in [1 << 20, 6000] {
        let rig = Rig::new(256 << 20, None);
        rig.list().await;
        rig.read(shuffled(), step).await;
        assert_eq!(rig.gets(), FILES);
        let stats = &rig.fs.stats;
        assert!(stats.siblings_ahead.get() > 700, "{stats:?}");
        assert_eq!(stats.siblings_used.get(), stats.siblings_ahead.get());
        assert_eq!(stats.siblings_used_bytes.get(), stats.siblings_used.get() * FILE_BYTES as u64);
        rig.read(shuffled().map(|number| FILES - 1 - number), step).await;
        assert_eq!((rig.gets(), stats.siblings_wasted.get()), (FILES, 0));
    }
}

/// R7
#[tokio::test(start_paused = true)]
async fn a_sampled_tenth_wastes_less_than_a_tenth() {
    let rig = Rig::new(256 << 20, None);
    rig.list().await;
    rig.read(shuffled().take(FILES / 10), 1 << 20).await;
    assert!(rig.gets() * 9 <= FILES, "{} GETs for {} files", rig.gets(), FILES / 10);
}

/// R7
#[tokio::test(start_paused = true)]
async fn a_directory_that_is_not_listed_is_left_alone() {
    let rig = Rig::new(256 << 20, Some(Duration::ZERO));
    rig.read(0..FILES / 2, 1 << 20).await;
    assert_eq!(rig.gets(), FILES / 2);
    assert_eq!(rig.fs.stats.siblings_ahead.get(), 0);
}

/// R6, R7
#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_unused_when_the_directory_does_not_fit() {
    // 32 MB of files.
    for budget_mib in [8, 12, 20] {
        let rig = Rig::new(budget_mib << 20, None);
        rig.list().await;
        rig.read(shuffled(), 1 << 20).await;
        let stats = &rig.fs.stats;
        assert_eq!((rig.gets(), stats.siblings_wasted.get()), (FILES, 0), "{budget_mib} MiB");
        assert!(stats.siblings_used.get() > 50 && stats.evictions.get() > 300, "{stats:?}");
        rig.read(shuffled(), 1 << 20).await;
        assert!(rig.gets() <= 2 * FILES, "{} GETs for two epochs", rig.gets());
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_read_while_it_is_read_ahead_is_fetched_once() {
    let rig = Rig::new(256 << 20, None);
    rig.list().await;
    let mut readers = tokio::task::JoinSet::new();
    let order: Vec<_> = shuffled().collect();
    for part in order.chunks(FILES / 16) {
        let (fs, part) = (rig.fs.clone(), part.to_vec());
        readers.spawn(async move {
            for number in part {
                let entry = fs.lookup(ROOT, name(number).as_bytes()).await.unwrap();
                let data = fs.read(entry.ino, 0, 1 << 20, ReadKind::Buffered).await.unwrap();
                assert!(*data == bytes(number));
            }
        });
    }
    readers.join_all().await;
    assert_eq!(rig.gets(), FILES);
}
