//! The cost of reading, in requests and bytes, as the server counts them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use devserver::{Counts, Family, Kind};

use crate::common::{Mount, Scene, can_mount, eventually};
use crate::disk::status;
use crate::reads::open_directly;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Pages of listings, HEADs, GETs, others.
fn requests(counts: Counts) -> (u64, u64, u64, u64) {
    (counts.list, counts.head, counts.get, counts.other)
}

/// The ranges of an object that were asked for, in order.
fn ranges(mount: &Mount, key: &str) -> Vec<std::ops::Range<u64>> {
    let log = mount.scene.server.log();
    let gets = log.iter().filter(|request| request.kind == Kind::Get && request.key == key);
    let mut ranges: Vec<_> = gets.map(|request| request.bytes().unwrap()).collect();
    ranges.sort_by_key(|range| range.start);
    ranges
}

fn two_thousand(prefix: &str) -> Family {
    Family { prefix: prefix.to_owned(), count: 2000, size: 5_000, suffix: ".jpg".to_owned() }
}

/// Lists, stats and reads 2,000 files, and counts.
fn list_stat_and_read(mount: &Mount, directory: &str) {
    mount.forget_counts();
    let path = mount.path(directory);
    let entries: Vec<_> = std::fs::read_dir(path).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len(), 2000);
    assert!(entries.iter().all(|entry| entry.metadata().unwrap().len() == 5_000));
    assert_eq!(requests(mount.counts()), (2, 0, 0, 0), "two pages, and every stat from them");
    for entry in &entries {
        assert_eq!(std::fs::read(entry.path()).unwrap().len(), 5_000);
    }
    assert_eq!(requests(mount.counts()), (2, 0, 2000, 0), "one GET a file");
    assert_eq!(mount.counts().body_bytes, 2000 * 5_000);
    for entry in &entries {
        assert_eq!(std::fs::read(entry.path()).unwrap().len(), 5_000);
    }
    assert_eq!(requests(mount.counts()), (2, 0, 2000, 0), "the second epoch costs nothing");
}

/// A1, F1, R3
#[test]
fn two_thousand_files_cost_two_lists_and_a_get_each() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(two_thousand("train/"));
    let mount = scene.mount_as("data/train", &["--metadata-ttl=1h"]);
    list_stat_and_read(&mount, "");
}

#[test]
fn the_same_below_a_root_that_was_listed() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(two_thousand("train/"));
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names(""), ["train"]);
    assert_eq!(requests(mount.counts()), (1, 0, 0, 0));
    list_stat_and_read(&mount, "train");
}

/// R7
#[test]
fn a_small_directory_is_fetched_at_its_second_file() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(Family { count: 20, ..two_thousand("few/") });
    let mount = scene.mount(&[]);
    let names = mount.names("few");
    mount.forget_counts();
    let read = |number: usize| mount.read(&format!("few/{}", names[number])).unwrap().len();
    assert_eq!((read(13), mount.counts().get), (5_000, 1));
    read(4);
    eventually("all of it", || mount.counts().get == 20);
    (0..20).for_each(|number| assert_eq!(read(number), 5_000));
    assert_eq!(requests(mount.counts()), (0, 0, 20, 0));
}

/// F2
#[test]
fn a_cold_long_listing_of_two_thousand_files_costs_three_lists() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(two_thousand("train/"));
    // Long enough that the delimited page is waited for, however busy the machine is.
    scene.server.set_list_latency(std::time::Duration::from_millis(300));
    let mount = scene.mount(&[]);
    mount.forget_counts();
    let entries: Vec<_> = std::fs::read_dir(mount.path("train")).unwrap().collect();
    assert_eq!(entries.len(), 2000);
    assert!(entries.into_iter().all(|entry| entry.unwrap().metadata().unwrap().len() == 5_000));
    assert_eq!(mount.counts().list, 3, "two of the lookup, one of which is the listing's first");
}

/// 2,000 numbers in an order that has none: 2,000 and 1,123 have no common divisor.
fn shuffled() -> Vec<usize> {
    (1..=2000).map(|number| number * 1_123 * 7 % 2000).collect()
}

/// Reads these files with 16 threads that take turns.
fn read_in_threads(paths: &[std::path::PathBuf], order: &[usize]) {
    std::thread::scope(|threads| {
        for thread in 0..16 {
            threads.spawn(move || {
                for &number in order.iter().skip(thread).step_by(16) {
                    assert_eq!(std::fs::read(&paths[number]).unwrap().len(), 5_000);
                }
            });
        }
    });
}

/// R3, R7
#[test]
fn a_shuffled_epoch_costs_a_get_a_file_and_the_next_one_none() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(two_thousand("train/"));
    scene.server.set_first_byte_latency(std::time::Duration::from_millis(5));
    let mount = scene.mount_as("data/train", &["--metadata-ttl=1h"]);
    let paths: Vec<_> = mount.names("").iter().map(|name| mount.path(name)).collect();
    let order = shuffled();
    read_in_threads(&paths, &order);
    assert_eq!(requests(mount.counts()), (2, 0, 2000, 0), "one GET a file");
    let backwards: Vec<_> = order.into_iter().rev().collect();
    read_in_threads(&paths, &backwards);
    // Past the kernel's page cache too.
    for &number in &backwards[..100] {
        let mut direct = [0; 8192];
        let read = open_directly(&paths[number]).read_at(&mut direct, 0);
        assert_eq!(read.unwrap(), 5_000);
    }
    assert_eq!(requests(mount.counts()), (2, 0, 2000, 0), "the second epoch costs nothing");
    let (_, log, scene) = mount.end(rustix::process::Signal::TERM);
    assert_eq!(scene.server.counts().get, 2000);
    let ahead = counted(&log, "siblings_ahead");
    assert!(ahead > 1000, "{ahead} of 2000 read ahead");
    assert_eq!(counted(&log, "siblings_used"), ahead, "{log}");
}

/// R7
#[test]
fn a_reader_of_a_tenth_wastes_less_than_a_tenth() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_family(two_thousand("train/"));
    let mount = scene.mount_as("data/train", &["--metadata-ttl=1h"]);
    let paths: Vec<_> = mount.names("").iter().map(|name| mount.path(name)).collect();
    read_in_threads(&paths, &shuffled()[..200]);
    let (_, log, scene) = mount.end(rustix::process::Signal::TERM);
    let gets = scene.server.counts().get;
    assert!((200..=222).contains(&gets), "{gets} GETs for 200 files: {log}");
}

/// A counter in the line that the daemon ends with.
fn counted(log: &str, name: &str) -> u64 {
    let behind = log.split(&format!("{name}=")).nth(1).expect("is logged");
    behind.split_whitespace().next().and_then(|number| number.parse().ok()).expect("is a number")
}

/// F2
#[test]
fn a_file_opened_by_its_path_costs_one_round_trip_and_a_get() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mount = scene.mount(&[]);
    assert_eq!(mount.read("file").unwrap(), b"bytes");
    assert_eq!(requests(mount.counts()), (2, 1, 1, 0));
    assert_eq!(mount.read("file").unwrap(), b"bytes");
    assert_eq!(mount.counts().requests(), 4);
}

/// F2
#[test]
fn a_cold_path_in_a_small_tree_costs_no_more_than_its_first_component() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["a/b/c/d/file", "a/b/c/d/other", "a/b/x/y", "b/1"] {
        scene.bucket().put(key, key);
    }
    let mount = scene.mount(&[]);
    assert_eq!(std::fs::metadata(mount.path("a/b/c/d/file")).unwrap().len(), 12);
    assert!(!mount.path("a/b/c/d/none").exists());
    assert_eq!(mount.names("a/b"), ["c", "x"]);
    assert_eq!(mount.read("a/b/x/y").unwrap(), b"a/b/x/y");
    // The HEAD is given up when a LIST has found the directory.
    assert!(mount.counts().head <= 1);
    eventually("both pages", || mount.counts().list == 2);
}

/// Requests to the store that have not ended; `None` of a daemon that does not answer in time.
fn in_flight(mount: &Mount) -> Option<u64> {
    let requests = &status(mount)["requests"];
    ["GET", "HEAD", "LIST"].iter().map(|kind| requests[kind]["in_flight"].as_u64()).sum()
}

/// R3
#[test]
fn reading_twice_costs_nothing_even_past_the_page_cache() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    // None has siblings.
    for (key, size) in [("s/small", 10), ("m/middle", 3 * MIB + 1), ("l/large", 20 * MIB)] {
        scene.bucket().put_synthetic(key, size);
    }
    let mount = scene.mount(&["--memory-budget=256MiB", "--metadata-ttl=1h"]);
    for directory in ["", "s", "m", "l"] {
        mount.names(directory);
    }
    for key in ["s/small", "m/middle", "l/large"] {
        let first = mount.read(key).unwrap();
        eventually("the end of all requests", || in_flight(&mount) == Some(0));
        let cost = || mount.counts().head + mount.counts().get;
        let before = cost();
        assert!(mount.read(key).unwrap() == first);
        assert_eq!(cost(), before, "{key} from the kernel's page cache");

        if key == "l/large" {
            // Its memory is that of the next stream.
            continue;
        }
        let file = open_directly(&mount.path(key));
        let mut direct = vec![0; first.len()];
        file.read_exact_at(&mut direct, 0).unwrap();
        assert!(direct == first);
        assert_eq!(cost(), before, "{key} from the daemon's chunks");
    }
}

#[test]
fn an_empty_object_costs_no_get() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("empty", "");
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["empty"]);
    assert_eq!(mount.read("empty").unwrap(), b"");
    let file = open_directly(&mount.path("empty"));
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 0);
    assert_eq!(requests(mount.counts()), (1, 0, 0, 0));
}

/// R4, R5
#[test]
fn a_sequential_read_fetches_each_byte_once() {
    if !can_mount() {
        return;
    }
    let size = 64 * MIB;
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", size);
    let mount = scene.mount(&["--memory-budget=512MiB"]);
    let read = std::io::copy(&mut File::open(mount.path("object")).unwrap(), &mut std::io::sink());
    assert_eq!(read.unwrap(), size);
    let mut until = 0;
    for range in ranges(&mount, "object") {
        assert_eq!(range.start, until, "neither a gap nor an overlap");
        until = range.end;
        let most = (range.start / 8).clamp(MIB, 2 * MIB);
        assert!(range.end - range.start <= most, "{range:?}: it comes after the reader does");
    }
    assert_eq!(until, size);
    assert_eq!(mount.counts().body_bytes, size);
    // The kernel asks in 64 requests of 1 MiB, or 512 of 128 KiB. The first 16 MiB are read ahead
    // of in GETs that grow; a part of 2 MiB is the aim.
    assert!(mount.counts().get <= 48, "{:?}", mount.counts());
}

/// R5
#[test]
fn a_random_read_fetches_little() {
    if !can_mount() {
        return;
    }
    let size = 4 << 30;
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", size);
    let mount = scene.mount(&[]);
    let file = File::open(mount.path("object")).unwrap();
    let mut at = 1;
    for _ in 0..50 {
        // Any multiplier that jumps about; never near to where it was.
        at = (at * 2_654_435_761) % size;
        mount.forget_counts();
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, at).unwrap();
        assert!(mount.bucket().bytes("object", at..at + 4096) == page[..], "at {at}");
        let ranges = ranges(&mount, "object");
        let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(fetched <= 256 * KIB, "{ranges:?} for 4 KiB at {at}");
        assert!(ranges.len() <= 2, "{ranges:?} for 4 KiB at {at}");
    }
}

/// R4
#[test]
fn readers_of_one_block_share_one_get() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 100 * KIB);
    scene.server.set_first_byte_latency(std::time::Duration::from_millis(300));
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["object"]);
    std::thread::scope(|threads| {
        for _ in 0..64 {
            threads.spawn(|| {
                let mut page = vec![0; 4096];
                open_directly(&mount.path("object")).read_exact_at(&mut page, 50_000).unwrap();
                assert!(mount.bucket().bytes("object", 50_000..54_096) == page);
            });
        }
    });
    assert_eq!(requests(mount.counts()), (1, 0, 1, 0));
}

/// F1, F3
#[test]
fn what_is_not_there_is_asked_for_once() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/file", "bytes");
    let mount = scene.mount(&["--negative-ttl=1h", "--metadata-ttl=1h"]);
    for _ in 0..5 {
        assert!(!mount.path("none").exists());
    }
    eventually("a HEAD and two LISTs", || requests(mount.counts()) == (2, 1, 0, 0));
    assert_eq!(mount.names("d"), ["file"]);
    // "none" and "d" have the root listed in the background.
    assert_eq!(mount.names(""), ["d"]);
    eventually("two pages for each of them", || mount.counts().list == 5);
    mount.forget_counts();
    for name in 0..100 {
        assert!(!mount.path(&format!("d/{name}")).exists());
    }
    assert_eq!(mount.counts().requests(), 0, "a listed directory knows what it has not");
}
