//! The layer over a store in memory and a real directory: what an outsider sees is bytes, requests
//! and files.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::*;
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
    DiskConfig { path, size_bytes, reserve: Reserve::Bytes(0), memory_bytes: 16 * MIB }
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
        let (stats, memory) = (Arc::new(Stats::default()), memory.clone());
        let disk = Disk::start(config, stats.clone()).await.unwrap();
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
    let first = range.start / 64 * 64;
    let mut bytes = Vec::new();
    for line in (first..range.end).step_by(64) {
        bytes.extend_from_slice(&[(line ^ seed).to_le_bytes(); 8].concat());
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
    let large = put(&memory, "large", 16 * MIB);
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
    // A process that never finishes is not waited for for ever.
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
    let object = put(&memory, "object", 40 * MIB);
    let process = Process::start(&memory, folder.path()).await;
    let lock = std::fs::File::open(folder.path().join(folder::NAME).join("lock")).unwrap();
    lock.lock().unwrap();
    process.read(&object, 0..object.size_bytes).await;
    let dropped = process.stats.disk_dropped_bytes.get();
    assert!(dropped >= 24 * MIB, "there are 8 buffers: {dropped}");
    lock.unlock().unwrap();
    // It may be left alone for a while.
    let written = || process.stats.disk_written_bytes.get();
    for n in (0..100).take_while(|_| written() == 0) {
        process.read(&put(&memory, &format!("{n}"), 1000), 0..1000).await;
        process.settle().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let dropped = process.stats.disk_dropped_bytes.get();
    process.cached.disk.be_patient(Duration::from_mins(1));
    process.read(&object, 0..object.size_bytes).await;
    assert_eq!(process.stats.disk_dropped_bytes.get(), dropped, "each waits for the disk");
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

/// A named pipe in place of a segment: opening it does not end.
#[tokio::test]
async fn a_disk_that_hangs_is_left_alone_after_three_late_answers() {
    let (memory, folder) = scene();
    let objects: Vec<_> = (0..40).map(|n| put(&memory, &format!("{n}"), 20_000)).collect();
    let process = Process::start(&memory, folder.path()).await;
    for object in &objects {
        process.read(object, 0..20_000).await;
    }
    process.settle().await;
    let segment = files(folder.path()).pop().unwrap();
    std::fs::remove_file(&segment).unwrap();
    nix::unistd::mkfifo(&segment, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let other = Process::start(&memory, folder.path()).await;
    for object in &objects {
        other.read(object, 0..20_000).await;
    }
    assert_eq!(other.stats.disk_hit_bytes.get(), 0);
    assert!((1..5).contains(&other.stats.disk_pauses.get()));
    // Lets the threads go.
    drop(std::fs::File::options().read(true).write(true).open(&segment));
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
