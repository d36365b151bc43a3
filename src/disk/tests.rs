//! The layer over a store in memory and a real directory: what an outsider sees is bytes, requests
//! and files.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::stats::Counter;
use crate::testing::fault::{Fault, FaultyStore, Operation};
use crate::testing::memory::MemoryStore;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// One process over a directory that it may share with others.
struct Process {
    memory: Arc<MemoryStore>,
    cached: DiskCached,
    stats: Arc<Stats>,
}

fn config(path: &Path) -> DiskConfig {
    let (path, size_bytes) = (path.to_owned(), Some(64 * MIB));
    let (reserve, memory_bytes, waiting_bytes) = (Reserve::Bytes(0), 16 * MIB, 32 * MIB);
    DiskConfig { path, size_bytes, reserve, memory_bytes, waiting_bytes }
}

impl Process {
    async fn start(memory: &Arc<MemoryStore>, path: &Path) -> Self {
        Self::over(memory.clone(), memory, config(path)).await
    }

    async fn over(
        store: Arc<dyn ObjectStore>,
        memory: &Arc<MemoryStore>,
        config: DiskConfig,
    ) -> Self {
        // However busy the machine is.
        let minute = Duration::from_mins(1);
        let patience = Patience { answer: minute, elsewhere: minute };
        Self::as_patient_as(patience, store, memory, config).await
    }

    async fn as_patient_as(
        patience: Patience,
        store: Arc<dyn ObjectStore>,
        memory: &Arc<MemoryStore>,
        config: DiskConfig,
    ) -> Self {
        let (stats, memory) = (Arc::new(Stats::default()), memory.clone());
        let mut disk = Disk::start(config, stats.clone()).await.unwrap();
        Arc::get_mut(&mut disk).unwrap().patience = patience;
        // Nothing is dropped.
        disk.be_patient(Duration::from_mins(10));
        let cached = DiskCached::new(store, Origin::new("http://s3", "bucket"), disk);
        Self { memory, cached, stats }
    }

    /// Reads a range in the parts in which a stream does, and compares every byte.
    async fn read(&self, version: &ObjectVersion, range: Range<u64>) {
        let mut start = range.start;
        while start < range.end {
            let end = (start / (4 * MIB) + 1).saturating_mul(4 * MIB).min(range.end);
            let mut into = Vec::new();
            self.cached.get_range(version, start..end, &mut into).await.unwrap();
            assert!(into == bytes(&version.key, start..end), "{} {start}..{end}", version.key);
            start = end;
        }
    }

    async fn settle(&self) {
        self.cached.disk.settle(Duration::from_secs(20)).await;
    }

    /// Requests to the store since the last call.
    fn gets(&self, before: &mut u64) -> u64 {
        let now = self.memory.counts().gets;
        now - std::mem::replace(before, now)
    }
}

/// Bytes that differ by object and place.
fn bytes(key: &str, range: Range<u64>) -> Vec<u8> {
    let seed: u64 = key.bytes().map(u64::from).sum();
    let first = range.start / 4096 * 4096;
    let mut bytes = Vec::new();
    for page in (first..range.end).step_by(4096) {
        bytes.extend_from_slice(&(page ^ seed).to_le_bytes().repeat(512));
    }
    bytes.truncate(usize::try_from(range.end - first).unwrap());
    bytes.split_off(usize::try_from(range.start - first).unwrap())
}

fn put(memory: &MemoryStore, key: &str, size: u64) -> ObjectVersion {
    memory.put(key, bytes(key, 0..size)).version
}

fn files(path: &Path) -> Vec<PathBuf> {
    let inside = path.join(folder::NAME).join("segments");
    let entries = std::fs::read_dir(inside).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn scene() -> (Arc<MemoryStore>, TempDir) {
    (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap())
}

/// R8
#[tokio::test]
async fn what_was_read_costs_the_next_process_no_request() {
    let (memory, folder) = scene();
    let large = put(&memory, "large", 9 * MIB + 12_345);
    let small: Vec<_> = (0..50).map(|n| put(&memory, &format!("s/{n}"), 1 + n * 3_000)).collect();
    let first = Process::start(&memory, folder.path()).await;
    first.read(&large, 0..large.size_bytes).await;
    for version in &small {
        first.read(version, 0..version.size_bytes).await;
    }
    first.settle().await;
    let mut gets = 0;
    assert_eq!(first.gets(&mut gets), 53);
    let second = Process::start(&memory, folder.path()).await;
    second.read(&large, 0..large.size_bytes).await;
    second.read(&large, 5 * MIB + 17..5 * MIB + 170_000).await;
    for version in &small {
        second.read(version, 0..version.size_bytes).await;
    }
    assert_eq!(second.gets(&mut gets), 0);
    assert_eq!(second.stats.disk_missed_bytes.get(), 0);
    first.read(&large, 0..large.size_bytes).await;
    assert_eq!(first.gets(&mut gets), 0, "and this one neither");
    assert_eq!(first.stats.disk_dropped_bytes.get(), 0);
    // A new version is another object.
    let newer = put(&memory, "large", 9 * MIB + 12_345);
    second.read(&newer, 0..MIB).await;
    assert_eq!(second.gets(&mut gets), 1);
}

#[tokio::test]
async fn only_what_is_missing_is_fetched() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 16 * MIB);
    let process = Process::start(&memory, folder.path()).await;
    process.read(&object, 5 * MIB..6 * MIB).await;
    process.read(&object, 9 * MIB + 128 * KIB..9 * MIB + 256 * KIB).await;
    process.settle().await;
    process.read(&object, 4 * MIB..8 * MIB).await;
    process.read(&object, 8 * MIB..12 * MIB).await;
    process.settle().await;
    let missed = MIB + 128 * KIB + 3 * MIB + 4 * MIB;
    assert_eq!(process.stats.disk_missed_bytes.get(), missed, "128 KiB are not worth a request");
    assert_eq!(process.stats.disk_hit_bytes.get(), MIB);
    let mut gets = process.memory.counts().gets;
    process.read(&object, 4 * MIB..12 * MIB).await;
    assert_eq!(process.gets(&mut gets), 0);
}

/// The pieces of eight units share a page of the index, which has places for 51.
#[tokio::test]
async fn a_file_that_was_read_in_small_pieces_is_whole() {
    let (memory, folder) = scene();
    let process = Process::start(&memory, folder.path()).await;
    let blocks = || (0..128_u32).map(|block| u64::from(block) * 128 * KIB);
    let every_second = blocks().step_by(2).chain(blocks().skip(1).step_by(2));
    let halves = blocks().take(64).rev().chain(blocks().skip(64));
    let orders: [(&str, Vec<u64>); 4] = [
        ("in order", blocks().collect()),
        ("backwards", blocks().rev().collect()),
        ("every second, then the others", every_second.collect()),
        ("one half backwards", halves.collect()),
    ];
    for (order, starts) in orders {
        let object = put(&memory, order, 16 * MIB);
        for start in starts {
            process.read(&object, start..start + 128 * KIB).await;
            process.settle().await;
        }
        let mut gets = process.memory.counts().gets;
        process.read(&object, 0..object.size_bytes).await;
        assert_eq!(process.gets(&mut gets), 0, "{order}");
        let copy = process.cached.local_copy(&object).unwrap();
        assert!(copy.file().await.is_some(), "{order}");
    }
}

/// R8: whatever happens to the files, the bytes are right.
#[tokio::test]
async fn no_flipped_bit_and_no_torn_file_is_ever_shown() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 3 * MIB + 5);
    let small = put(&memory, "small", 40_000);
    let inside = folder.path().join(folder::NAME);
    let fill_it = async || {
        let process = Process::start(&memory, folder.path()).await;
        process.read(&object, 0..object.size_bytes).await;
        process.read(&small, 0..small.size_bytes).await;
        process.settle().await;
    };
    let check = async |why: &str, costs: bool| {
        let mut gets = memory.counts().gets;
        let process = Process::start(&memory, folder.path()).await;
        process.read(&object, 0..object.size_bytes).await;
        process.read(&small, 0..small.size_bytes).await;
        assert_eq!(process.gets(&mut gets) > 0, costs, "{why}");
        process.settle().await;
        process.read(&object, 0..object.size_bytes).await;
        process.read(&small, 0..small.size_bytes).await;
        assert_eq!(process.gets(&mut gets), 0, "{why}: it was kept again");
        process.stats.disk_wrong.get()
    };
    fill_it().await;
    assert_eq!(check("untouched", false).await, 0);
    let flip = |path: &Path, at: u64| {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    for at in [0, 70_000, MIB, 3 * MIB + 4] {
        flip(files(folder.path()).first().unwrap(), at);
        assert_eq!(check("a bit of a segment", true).await, 1);
        clear(folder.path());
        fill_it().await;
    }
    // Every extent of the index, in several places of each.
    let index = inside.join("index");
    let length = std::fs::metadata(&index).unwrap().len();
    for inside_extent in [3, 17, 26, 33, 50, 73] {
        for page in 1..length / 4096 {
            for slot in 0..2 {
                flip(&index, page * 4096 + slot * 80 + inside_extent);
            }
        }
        check("bits of the index", true).await;
    }
    clear(folder.path());
    fill_it().await;
    flip(&inside.join("index"), 5);
    assert_eq!(check("the head of the index", true).await, 1, "all is made anew");
    for length in [0, 4096, MIB + 9] {
        let segment = files(folder.path()).pop().unwrap();
        std::fs::File::options().write(true).open(segment).unwrap().set_len(length).unwrap();
        assert!(check("a truncated segment", true).await > 0);
        clear(folder.path());
        fill_it().await;
    }
    let segment = files(folder.path()).pop().unwrap();
    std::fs::rename(&segment, folder.path().join("elsewhere")).unwrap();
    symlink(folder.path().join("elsewhere"), &segment).unwrap();
    check("a symbolic link is not followed", true).await;
}

fn clear(path: &Path) {
    inspect::clear(path).unwrap();
}

#[tokio::test]
async fn eviction_keeps_the_bound_and_what_is_read_again() {
    let (memory, folder) = scene();
    let hot = put(&memory, "hot", 8 * MIB);
    let scan: Vec<_> = (0..18).map(|n| put(&memory, &format!("scan/{n}"), 8 * MIB)).collect();
    let processes = [
        Process::start(&memory, folder.path()).await,
        Process::start(&memory, folder.path()).await,
    ];
    processes[0].read(&hot, 0..hot.size_bytes).await;
    processes[0].settle().await;
    for (n, version) in scan.iter().enumerate() {
        processes[n % 2].read(version, 0..version.size_bytes).await;
        processes[n % 2].read(&hot, 0..hot.size_bytes).await;
        processes[n % 2].settle().await;
        let stored: u64 =
            files(folder.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(stored <= 64 * MIB, "{stored}");
    }
    let evicted = processes.iter().map(|process| process.stats.disk_evicted_bytes.get());
    assert!(evicted.sum::<u64>() >= 80 * MIB);
    let fetched = processes.iter().map(|process| process.stats.disk_missed_bytes.get());
    let fetched = fetched.sum::<u64>() - 18 * 8 * MIB;
    assert_eq!(fetched, hot.size_bytes, "read once from the store, and never again");
}

/// Two mounts that read the same at the same time.
#[tokio::test]
async fn what_another_process_fetches_is_waited_for() {
    let (memory, folder) = scene();
    let large = put(&memory, "large", 48 * MIB);
    let small: Vec<_> = (0..50).map(|n| put(&memory, &format!("s/{n}"), 50_000)).collect();
    let faults = Arc::new(FaultyStore::new(memory.clone()));
    faults.delay(Operation::Get, Duration::from_millis(20));
    let processes = [
        Process::over(faults.clone(), &memory, config(folder.path())).await,
        Process::over(faults.clone(), &memory, config(folder.path())).await,
    ];
    let read = async |process: &Process| {
        process.read(&large, 0..large.size_bytes).await;
        for version in &small {
            process.read(version, 0..50_000).await;
        }
    };
    tokio::join!(read(&processes[0]), read(&processes[1]));
    let missed = processes.iter().map(|process| process.stats.disk_missed_bytes.get());
    let (missed, all) = (missed.sum::<u64>(), large.size_bytes + 50 * 50_000);
    assert!(missed <= all + all / 10, "{missed} of {all}");
}

#[tokio::test]
async fn a_process_that_never_finishes_is_not_waited_for_for_ever() {
    let (memory, folder) = scene();
    let faults = Arc::new(FaultyStore::new(memory.clone()));
    let start = || Process::as_patient_as(PATIENCE, faults.clone(), &memory, config(folder.path()));
    let processes = [start().await, start().await];
    faults.next(Operation::Get, Fault::Hang);
    let more = put(&memory, "more", MIB);
    tokio::select! {
        () = processes[0].read(&more, 0..MIB) => panic!("it hangs"),
        () = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            processes[1].read(&more, 0..MIB).await;
        } => {}
    }
}

/// The thread that writes waits for the lock of the directory.
#[tokio::test]
async fn a_disk_that_lags_drops_bytes_and_delays_nobody() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 60 * MIB);
    let process = Process::start(&memory, folder.path()).await;
    process.cached.disk.be_patient(Duration::ZERO);
    let lock = std::fs::File::open(folder.path().join(folder::NAME).join("lock")).unwrap();
    lock.lock().unwrap();
    process.read(&object, 0..object.size_bytes).await;
    let dropped = process.stats.disk_dropped_bytes.get();
    assert!(dropped >= 24 * MIB, "32 MiB may wait: {dropped}");
    lock.unlock().unwrap();
    // It may be left alone for a while.
    let written = || process.stats.disk_written_bytes.get();
    for n in (0..100).take_while(|_| written() == 0) {
        process.read(&put(&memory, &format!("{n}"), 1000), 0..1000).await;
        process.settle().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let dropped = process.stats.disk_dropped_bytes.get();
    assert!(process.cached.disk.be_patient(Duration::from_mins(1)), "it tells that some was");
    assert!(!process.cached.disk.be_patient(Duration::from_mins(1)), "and tells it once");
    process.read(&object, 0..object.size_bytes).await;
    assert_eq!(process.stats.disk_dropped_bytes.get(), dropped, "each waits for the disk");
}

/// A segment that a process writes is not given up: its own must not be in its own way.
#[tokio::test]
async fn large_objects_that_come_fast_take_the_place_of_each_other() {
    let (memory, folder) = scene();
    let objects: Vec<_> = (0..6).map(|n| put(&memory, &format!("{n}"), 16 * MIB)).collect();
    let process = Process::start(&memory, folder.path()).await;
    for object in &objects {
        process.read(object, 0..object.size_bytes).await;
    }
    process.settle().await;
    assert_eq!(process.stats.disk_pauses.get(), 0);
    assert_eq!(process.stats.disk_dropped_bytes.get(), 0);
    assert!(process.stats.disk_evicted_bytes.get() >= 32 * MIB);
}

/// As long as nobody has written to it, and the machine was not started anew.
#[tokio::test]
async fn a_file_that_one_process_has_seen_whole_is_whole_for_the_next() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 16 * MIB);
    let first = Process::start(&memory, folder.path()).await;
    let is_whole = async |process: &Process| {
        let copy = process.cached.local_copy(&object).unwrap();
        copy.file().await.is_some()
    };
    first.read(&object, 0..15 * MIB).await;
    first.settle().await;
    assert!(!is_whole(&Process::start(&memory, folder.path()).await).await, "some is missing");
    first.read(&object, 15 * MIB..16 * MIB).await;
    first.settle().await;
    let mut gets = memory.counts().gets;
    let second = Process::start(&memory, folder.path()).await;
    assert!(is_whole(&second).await && second.stats.disk_hit_bytes.get() == 0);
    // A mark of eviction is no write.
    let fresh = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&files(folder.path())[0], fresh).unwrap();
    assert!(is_whole(&Process::start(&memory, folder.path()).await).await);
    let file = std::fs::File::options().write(true).open(&files(folder.path())[0]).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[1, 2, 3], 5 * MIB).unwrap();
    let third = Process::start(&memory, folder.path()).await;
    assert!(!is_whole(&third).await, "somebody has written to it");
    // Even if the kernel says that nobody has, as of bytes that the disk has lost.
    file.set_modified(written).unwrap();
    third.read(&object, 0..object.size_bytes).await;
    assert_eq!(third.stats.disk_wrong.get(), 1);
    assert!(!is_whole(&Process::start(&memory, folder.path()).await).await, "one has found it");
    third.settle().await;
    assert_eq!(third.gets(&mut gets), 1);
    assert!(!is_whole(&third).await, "all of it is compared anew");
    third.read(&object, 0..object.size_bytes).await;
    assert!(is_whole(&third).await);
    assert!(is_whole(&Process::start(&memory, folder.path()).await).await);
}

#[tokio::test]
async fn a_directory_that_is_removed_is_made_anew() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 12 * MIB);
    let path = folder.path().join("cache");
    let process = Process::start(&memory, &path).await;
    process.read(&object, 0..4 * MIB).await;
    process.settle().await;
    std::fs::remove_dir_all(&path).unwrap();
    process.read(&object, 0..8 * MIB).await;
    process.settle().await;
    // The segment that is open takes 4 MiB; another one cannot be made.
    process.read(&object, 0..12 * MIB).await;
    process.settle().await;
    process.cached.disk.state.tidy();
    assert!(path.join(folder::NAME).join("index").exists());
    process.read(&object, 0..12 * MIB).await;
    process.settle().await;
    let mut gets = process.memory.counts().gets;
    Process::start(&memory, &path).await.read(&object, 0..12 * MIB).await;
    assert_eq!(process.gets(&mut gets), 0);
}

#[tokio::test]
async fn a_disk_that_hangs_is_left_alone_after_three_waits_in_vain() {
    let (memory, folder) = scene();
    let objects: Vec<_> = (0..40).map(|n| put(&memory, &format!("{n}"), 20_000)).collect();
    let (config, second) = (config(folder.path()), Duration::from_secs(1));
    let patience = Patience { answer: second, ..PATIENCE };
    let process = Process::as_patient_as(patience, memory.clone(), &memory, config).await;
    for object in &objects {
        process.read(object, 0..20_000).await;
    }
    process.settle().await;
    let (tell, hang) = std::sync::mpsc::channel::<()>();
    let hang = Arc::new(std::sync::Mutex::new(hang));
    let jobs: Vec<_> = (0..READERS)
        .map(|_| {
            let hang = hang.clone();
            process.cached.disk.threads.run(move || hang.lock().map(|hang| hang.recv()).is_ok())
        })
        .collect();
    let read_all = async || {
        let reads = objects.iter().map(|object| process.read(object, 0..20_000));
        futures_util::future::join_all(reads).await;
    };
    for waits in 1..=3 {
        assert_eq!(process.stats.disk_pauses.get(), 0, "{waits}: those that wait together are one");
        // The second time there are no buffers any more.
        read_all().await;
    }
    assert_eq!((process.stats.disk_pauses.get(), process.stats.disk_hit_bytes.get()), (1, 0));
    let begun = Instant::now();
    read_all().await;
    assert!(begun.elapsed() < second, "nobody waits");
    drop(tell);
    for job in jobs {
        job.await.unwrap();
    }
    // One tries it after the pause.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    process.read(&objects[0], 0..20_000).await;
    process.read(&objects[1], 0..20_000).await;
    assert_eq!(process.stats.disk_hit_bytes.get(), 40_000);
}

/// A small budget has few buffers: readers that wait for each other say nothing about the disk.
#[tokio::test]
async fn readers_that_wait_for_buffers_do_not_blame_the_disk() {
    let (memory, folder) = scene();
    let objects: Vec<_> = (0..20).map(|n| put(&memory, &format!("{n}"), 20_000)).collect();
    let config = DiskConfig { memory_bytes: 2 * MIB, ..config(folder.path()) };
    let patience = Patience { answer: Duration::from_secs(1), ..PATIENCE };
    let process = Process::as_patient_as(patience, memory.clone(), &memory, config).await;
    for object in &objects {
        process.read(object, 0..20_000).await;
        process.settle().await;
    }
    let disk = &process.cached.disk;
    let held = (disk.buffers.take().await, disk.buffers.take().await);
    for _ in 0..4 {
        let reads = objects.iter().map(|object| process.read(object, 0..20_000));
        let answered = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            disk.state.answered();
        };
        tokio::join!(futures_util::future::join_all(reads), answered);
    }
    assert_eq!((process.stats.disk_pauses.get(), process.stats.disk_hit_bytes.get()), (0, 0));
    drop(held);
    process.read(&objects[0], 0..20_000).await;
    assert_eq!(process.stats.disk_hit_bytes.get(), 20_000);
}

/// Whatever somebody does to the files, it heals in the process that uses them, with no late answer
/// and no restart.
#[tokio::test]
async fn damage_heals_in_the_running_process() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 12 * MIB);
    let inside = folder.path().join(folder::NAME);
    let process = Process::start(&memory, folder.path()).await;
    let read_all = async || {
        process.read(&object, 0..object.size_bytes).await;
        process.settle().await;
    };
    let cut = |name: &str, length| {
        let file = std::fs::File::options().write(true).open(inside.join(name)).unwrap();
        file.set_len(length).unwrap();
    };
    let pipe = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 11] = [
        ("the index is cut", &|| cut("index", 4096)),
        ("the index is empty", &|| cut("index", 0)),
        ("the index is gone", &|| std::fs::remove_file(inside.join("index")).unwrap()),
        ("the index is a pipe", &|| pipe(&inside.join("index"))),
        ("the index is a directory", &|| {
            std::fs::remove_file(inside.join("index")).unwrap();
            std::fs::create_dir(inside.join("index")).unwrap();
        }),
        ("no segments", &|| std::fs::remove_dir_all(inside.join("segments")).unwrap()),
        ("a file instead of segments", &|| {
            std::fs::remove_dir_all(inside.join("segments")).unwrap();
            std::fs::write(inside.join("segments"), "").unwrap();
        }),
        ("the lock is a link", &|| {
            std::fs::remove_file(inside.join("lock")).unwrap();
            symlink("/dev/zero", inside.join("lock")).unwrap();
        }),
        ("the claims are a pipe", &|| pipe(&inside.join("claims"))),
        ("all is gone", &|| std::fs::remove_dir_all(&inside).unwrap()),
        ("the directory is gone", &|| {
            std::fs::remove_dir_all(folder.path()).unwrap();
        }),
    ];
    let mut gets = 0;
    for (what, damage) in damages {
        read_all().await;
        damage();
        read_all().await;
        process.cached.disk.state.tidy();
        read_all().await;
        process.gets(&mut gets);
        read_all().await;
        assert_eq!(process.gets(&mut gets), 0, "{what}: it is stored again");
        let other = Process::start(&memory, folder.path()).await;
        other.read(&object, 0..object.size_bytes).await;
        assert_eq!(process.gets(&mut gets), 0, "{what}: and for others");
        assert_eq!(process.stats.disk_pauses.get(), 0, "{what}");
    }
}

type Make<'a> = &'a dyn Fn(&Path);

/// They are thrown away as if they had never been there. Opening a pipe would not end.
#[tokio::test]
async fn what_is_no_file_is_not_opened_or_followed_but_removed() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", 3 * MIB);
    let first = Process::start(&memory, folder.path()).await;
    let mut gets = 0;
    let kinds: [(&str, Make); 4] = [
        ("pipe", &|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("directory", &|path| std::fs::create_dir_all(path.join("inside")).unwrap()),
        ("link", &|path| symlink("/dev/zero", path).unwrap()),
        ("socket", &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
    ];
    for (what, make) in kinds {
        first.read(&object, 0..object.size_bytes).await;
        first.settle().await;
        let segment = files(folder.path()).pop().unwrap();
        std::fs::remove_file(&segment).unwrap();
        make(&segment);
        first.gets(&mut gets);
        let other = Process::start(&memory, folder.path()).await;
        other.read(&object, 0..object.size_bytes).await;
        assert!(first.gets(&mut gets) > 0, "{what}");
        assert!(!segment.exists() && !segment.is_symlink(), "{what} was removed");
        other.settle().await;
        other.read(&object, 0..object.size_bytes).await;
        assert_eq!(first.gets(&mut gets), 0, "{what}");
        assert_eq!((other.stats.disk_pauses.get(), other.stats.disk_wrong.get()), (0, 0), "{what}");
    }
    // No extent points to these, so the hand removes them.
    let made: Vec<_> = (1..)
        .zip(kinds)
        .map(|(number, (_, make))| {
            let path = folder.path().join(folder::NAME).join(format!("segments/{number:016x}"));
            make(&path);
            path
        })
        .collect();
    let scan = put(&memory, "scan", 80 * MIB);
    first.read(&scan, 0..scan.size_bytes).await;
    first.settle().await;
    assert!(made.iter().all(|path| path.symlink_metadata().is_err()));
}

/// It begins with places for 2,000 files.
#[tokio::test]
async fn the_index_grows_with_its_content_for_all_who_use_it() {
    let (memory, folder) = scene();
    let small: Vec<_> = (0..2500).map(|n| put(&memory, &format!("{n}"), 5_000)).collect();
    let config = || DiskConfig { size_bytes: Some(256 * MIB), ..config(folder.path()) };
    let start = || Process::over(memory.clone(), &memory, config());
    let processes = [start().await, start().await];
    let reads_only = start().await;
    let length = || folder.path().join(folder::NAME).join("index").metadata().unwrap().len();
    let (before, mut gets) = (length(), 0);
    for (some, process) in small.chunks(100).zip(processes.iter().cycle()) {
        for object in some {
            process.read(object, 0..5_000).await;
        }
        process.settle().await;
    }
    assert!(length() > before && length() < 5 * before, "{} {before}", length());
    processes[0].gets(&mut gets);
    for process in [&processes[0], &reads_only] {
        for object in &small {
            process.read(object, 0..5_000).await;
        }
        assert_eq!(process.gets(&mut gets), 0);
    }
    assert_eq!(inspect::survey(folder.path(), true, |_| ()).unwrap().extents, 2500);
    assert_eq!([0, 1].map(|at| processes[at].stats.disk_wrong.get()), [0, 0]);
}

/// Twice as large as the cache, and read in the same order each time.
#[tokio::test]
async fn a_scan_that_is_larger_than_the_cache_hits_by_what_fits() {
    let (memory, folder) = scene();
    let scan: Vec<_> = (0..512).map(|n| put(&memory, &format!("{n}"), 256 * KIB)).collect();
    let process = Process::start(&memory, folder.path()).await;
    process.cached.disk.be_patient(Duration::ZERO);
    let mut before = [0; 2];
    for epoch in 0..6 {
        for some in scan.chunks(8) {
            for object in some {
                process.read(object, 0..256 * KIB).await;
            }
            process.settle().await;
        }
        let now =
            [&process.stats.disk_hit_bytes, &process.stats.disk_written_bytes].map(Counter::get);
        let [hit, written] = [0, 1].map(|at| (now[at] - before[at]) / MIB);
        before = now;
        assert!(epoch < 3 || hit >= 128 / 4, "{epoch}: {hit} of 128");
        assert!(epoch < 5 || written <= 128 / 4, "{epoch}: {written} of 128");
    }
    assert!(process.stats.disk_passed_over_bytes.get() > 0);
    // Warming is told to keep all.
    process.cached.disk.be_patient(Duration::from_mins(1));
    let passed_over = process.stats.disk_passed_over_bytes.get();
    let more = put(&memory, "more", 40 * MIB);
    process.read(&more, 0..more.size_bytes).await;
    process.settle().await;
    assert_eq!(process.stats.disk_passed_over_bytes.get(), passed_over);
}

/// Its `ETag` is part of the name.
#[tokio::test]
async fn an_object_that_is_overwritten_while_it_is_cached_leaves_nothing_wrong() {
    let (memory, folder) = scene();
    let process = Process::start(&memory, folder.path()).await;
    let old = put(&memory, "object", 8 * MIB);
    process.read(&old, 0..4 * MIB).await;
    let new = memory.put("object", vec![7; 8 << 20]).version;
    let mut into = Vec::new();
    let rest = process.cached.get_range(&old, 4 * MIB..8 * MIB, &mut into).await;
    assert!(matches!(rest, Err(StoreError::Changed)), "{rest:?}");
    process.settle().await;
    into.clear();
    process.cached.get_range(&new, 0..8 * MIB, &mut into).await.unwrap();
    assert!(into.iter().all(|&byte| byte == 7));
    process.settle().await;
    let other = Process::start(&memory, folder.path()).await;
    other.read(&old, 0..4 * MIB).await;
    into.clear();
    other.cached.get_range(&new, 0..8 * MIB, &mut into).await.unwrap();
    assert!(into.iter().all(|&byte| byte == 7));
    assert_eq!(other.stats.disk_missed_bytes.get(), 0);
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let started = Disk::start(config(folder.path()), Arc::default()).await;
        started.map(drop).map_err(|refused| refused.to_string())
    };
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o775);
    let sentence = start().await.unwrap_err();
    assert!(sentence.contains("is open to other users; close it with `chmod go-w"), "{sentence}");
    mode(folder.path(), 0o755);
    start().await.unwrap();
    let inside = folder.path().join(folder::NAME);
    assert_eq!(inside.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for file in [inside.join("index"), inside.join("lock")] {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    mode(&inside, 0o750);
    let sentence = start().await.unwrap_err();
    assert!(sentence.contains("chmod go-rwx"), "{sentence}");
    mode(&inside, 0o700);
    std::fs::rename(&inside, folder.path().join("elsewhere")).unwrap();
    symlink(folder.path().join("elsewhere"), &inside).unwrap();
    let sentence = start().await.unwrap_err();
    assert!(sentence.contains("is not a directory"), "{sentence}");
    std::fs::remove_file(&inside).unwrap();
    if nix::unistd::geteuid().is_root() {
        let nobody = Some(nix::unistd::Uid::from_raw(65534));
        nix::unistd::chown(folder.path(), nobody, None).unwrap();
        let sentence = start().await.unwrap_err();
        assert!(sentence.contains("belongs to another user (65534)"), "{sentence}");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_tried_again_later() {
    let (memory, folder) = scene();
    let object = put(&memory, "object", MIB);
    let path = folder.path().join("missing/cache");
    let process = Process::start(&memory, &path).await;
    process.read(&object, 0..MIB).await;
    assert_eq!(process.stats.disk_pauses.get(), 1);
    assert_eq!(process.cached.disk.usage(), None);
    std::fs::create_dir(folder.path().join("missing")).unwrap();
    // As the thread that keeps house does, after the pause.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    process.cached.disk.state.tidy();
    process.read(&object, 0..MIB).await;
    process.settle().await;
    assert_eq!(process.stats.disk_written_bytes.get(), MIB);
}

#[tokio::test]
async fn an_operator_can_survey_verify_and_clear_it() {
    let (memory, folder) = scene();
    assert!(inspect::survey(folder.path(), false, |_| ()).is_err(), "nothing there, nothing made");
    assert_eq!(files_of(folder.path()), 0);
    let object = put(&memory, "object", 3 * MIB + 1);
    let process = Process::start(&memory, folder.path()).await;
    process.read(&object, 0..object.size_bytes).await;
    process.settle().await;
    let survey = |verify| inspect::survey(folder.path(), verify, |_| ()).unwrap();
    let found = survey(true);
    assert_eq!((found.segments, found.extents, found.wrong), (1, 4, 0));
    assert_eq!(found.usable_bytes, object.size_bytes);
    let segment = std::fs::File::options().write(true).open(&files(folder.path())[0]).unwrap();
    segment.write_all_at(&[1, 2, 3, 4], MIB).unwrap();
    assert_eq!((survey(false).extents, survey(true).wrong), (4, 1));
    assert_eq!((survey(true).extents, survey(true).wrong), (3, 0), "it was removed");
    assert!(inspect::clear(folder.path()).unwrap() > 3 * MIB);
    assert_eq!(files_of(folder.path()), 0);
}

fn files_of(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}
