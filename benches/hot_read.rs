//! The hot path without the kernel: reads of 1 MiB that the cache holds, as `O_DIRECT` asks for
//! them, through [`BucketFs`].
//!
//! `cargo bench --bench hot_read` says how long they take. Before that it counts allocations and
//! fails when one read makes an allocation anywhere near its size: it would be a copy.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use fasts3_mount::app::{config, daemon};
use fasts3_mount::fs::{BucketFs, ReadKind};
use fasts3_mount::names::{Ino, ROOT};
use fasts3_mount::testing::memory::MemoryStore;
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;
const OBJECT_BYTES: u64 = 64 * MIB;
/// The kernel's largest request.
const READ_BYTES: u32 = 1 << 20;
/// A future, a lease, a path: small things are allowed, a hundredth of a read and less.
const SMALL_BYTES: usize = READ_BYTES as usize / 100;

/// The system's allocator, with a count of its calls.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
static LARGEST_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands every call on to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    CALLS.fetch_add(1, Relaxed);
    LARGEST_BYTES.fetch_max(bytes, Relaxed);
}

fn main() {
    allocations_of_a_cached_read();
    divan::main();
}

/// One object, wholly in the cache.
struct Hot {
    runtime: Runtime,
    fs: Arc<BucketFs>,
    ino: Ino,
}

impl Hot {
    fn new() -> Self {
        let runtime = Runtime::new().expect("threads can be started");
        let store = Arc::new(MemoryStore::new());
        store.put("hot", vec![7; usize::try_from(OBJECT_BYTES).expect("64 bits")]);
        let arguments = ["fasts3-mount", "--memory-budget", "512MiB", "bucket", "/"];
        let config = config::parse(arguments.map(OsString::from)).expect("the arguments are right");
        let context = runtime.enter();
        let fs = daemon::stack(vec![store], &daemon::Tiers::default(), &config, Arc::default());
        let fs = fs.expect("512 MiB of addresses are free");
        drop(context);
        let entry = runtime.block_on(fs.lookup(ROOT, b"hot")).expect("it was put");
        let hot = Self { runtime, fs, ino: entry.ino };
        for offset in Hot::offsets() {
            hot.read(offset);
        }
        hot
    }

    fn offsets() -> impl Iterator<Item = u64> + Clone {
        (0..OBJECT_BYTES).step_by(READ_BYTES as usize)
    }

    fn read(&self, offset: u64) {
        let data =
            self.runtime.block_on(self.fs.read(self.ino, offset, READ_BYTES, ReadKind::Direct));
        assert_eq!(divan::black_box(data.expect("it is cached")).len(), READ_BYTES as usize);
    }
}

fn allocations_of_a_cached_read() {
    let hot = Hot::new();
    // The rest of the fill may allocate too.
    std::thread::sleep(Duration::from_millis(200));
    let gets = hot.fs.stats.gets.get();
    CALLS.store(0, Relaxed);
    LARGEST_BYTES.store(0, Relaxed);
    for offset in Hot::offsets() {
        hot.read(offset);
    }
    let (calls, largest) = (CALLS.load(Relaxed), LARGEST_BYTES.load(Relaxed));
    assert_eq!(hot.fs.stats.gets.get(), gets, "all of it was cached");
    let reads = OBJECT_BYTES / u64::from(READ_BYTES);
    println!("{reads} cached reads of 1 MiB: {calls} allocations, the largest of {largest} bytes");
    assert!(largest <= SMALL_BYTES, "a cached read allocated {largest} bytes");
}

#[divan::bench]
fn cached_read_of_1_mib(bencher: Bencher) {
    let hot = Hot::new();
    let mut offsets = Hot::offsets().cycle();
    bencher.counter(BytesCount::new(u64::from(READ_BYTES))).bench_local(|| {
        hot.read(offsets.next().expect("it goes round"));
    });
}

/// With the next step of the kernel: a copy to the reader.
#[divan::bench]
fn cached_read_of_1_mib_and_a_copy(bencher: Bencher) {
    let hot = Hot::new();
    let mut offsets = Hot::offsets().cycle();
    let mut buffer = vec![0; READ_BYTES as usize];
    bencher.counter(BytesCount::new(u64::from(READ_BYTES))).bench_local(|| {
        let offset = offsets.next().expect("it goes round");
        let data = hot.runtime.block_on(hot.fs.read(hot.ino, offset, READ_BYTES, ReadKind::Direct));
        buffer.copy_from_slice(&data.expect("it is cached"));
        divan::black_box(&buffer);
    });
}
