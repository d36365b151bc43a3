//! Bytes: the right ones, all of them, at any offset and for any number of readers.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use devserver::content::first_difference;

use crate::common::{Mount, Scene, can_mount, is_mounted};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Chunks of eight blocks and parts of two, so that small objects have many of each.
const SMALL: [&str; 2] = ["--chunk-size=1MiB", "--part-size=256KiB"];

/// Opens past the kernel's page cache: every read asks the daemon.
pub(crate) fn open_directly(path: &Path) -> File {
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Reads a range in as many calls as it takes, and checks it against the object.
fn check_range(mount: &Mount, file: &File, key: &str, offset: u64, length: u64) {
    let size = mount.bucket().info(key).unwrap().size;
    let expected = mount.bucket().bytes(key, offset.min(size)..size.min(offset + length));
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64).unwrap() {
            0 => break,
            more => filled += more,
        }
    }
    assert_eq!(filled, expected.len(), "{length} bytes at {offset} of {size}");
    assert!(bytes[..filled] == expected, "{length} bytes at {offset} of {size} differ");
}

/// R1
#[test]
fn objects_of_every_size_are_read_whole() {
    if !can_mount() {
        return;
    }
    let around = |size: u64| [size - 1, size, size + 1];
    let sizes: Vec<u64> = [0, 1, 2]
        .into_iter()
        .chain([4 * KIB, 128 * KIB, 256 * KIB, MIB, 2 * MIB, 4 * MIB].into_iter().flat_map(around))
        .chain([5 * MIB + 12_345])
        .collect();
    let scene = Scene::new();
    for size in &sizes {
        scene.bucket().put_synthetic(&size.to_string(), *size);
    }
    let mount = scene.mount(&SMALL);
    for size in sizes {
        let key = size.to_string();
        let bytes = mount.read(&key).unwrap();
        assert!(bytes == mount.bucket().bytes(&key, 0..size), "{size}");
        let file = open_directly(&mount.path(&key));
        check_range(&mount, &file, &key, 0, size + 1);
    }
}

/// R1
#[test]
fn any_range_is_read_and_what_lies_beyond_the_end_is_nothing() {
    if !can_mount() {
        return;
    }
    let size = 3 * MIB + 300 * KIB + 77;
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", size);
    let mount = scene.mount(&SMALL);
    let buffered = File::open(mount.path("object")).unwrap();
    let direct = open_directly(&mount.path("object"));
    // On, before and behind the borders of pages, blocks, parts, chunks and the object.
    let borders =
        [0, 4 * KIB, 128 * KIB, 256 * KIB, MIB, 2 * MIB, 3 * MIB, 3 * MIB + 256 * KIB, size];
    for border in borders.iter().rev() {
        for offset in [border.saturating_sub(1), *border, border + 1] {
            for length in [1, 2, 4096, 128 * KIB, 128 * KIB + 1, MIB + 5] {
                check_range(&mount, &buffered, "object", offset, length);
                check_range(&mount, &direct, "object", offset, length);
            }
        }
    }
    for file in [buffered, direct] {
        for offset in [size, size + 1, size + 10 * MIB, 1 << 40] {
            assert_eq!(file.read_at(&mut [0; 100], offset).unwrap(), 0, "at {offset}");
        }
        assert_eq!(file.read_at(&mut [0; 100], size - 3).unwrap(), 3);
    }
}

/// R4
#[test]
fn hundreds_of_threads_read_one_file() {
    const THREADS: u64 = 256;

    if !can_mount() {
        return;
    }
    let size = 16 * MIB + 1;
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", size);
    let mount = scene.mount(&SMALL);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let mount = &mount;
            threads.spawn(move || {
                let file = File::open(mount.path("object")).unwrap();
                // An offset of its own, a shared one, and one beyond a border.
                check_range(mount, &file, "object", size / THREADS * thread, size / THREADS);
                check_range(mount, &file, "object", 5 * MIB - 7, 14);
                check_range(mount, &file, "object", size - 1 - thread * 100, 5 * KIB);
            });
        }
    });
    let (sent, counts) = (mount.counts().body_bytes, mount.counts());
    assert!(sent <= size + MIB, "every byte is fetched about once: {counts:?}");
}

/// R4, F7
#[test]
fn hundreds_of_threads_read_many_files() {
    const FILES: u64 = 100;

    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let key = |index: u64| format!("d{}/{index}", index % 7);
    for index in 0..FILES {
        scene.bucket().put_synthetic(&key(index), 1000 * index);
    }
    let mount = scene.mount(&SMALL);
    std::thread::scope(|threads| {
        for thread in 0..200 {
            let mount = &mount;
            threads.spawn(move || {
                for step in 0..10 {
                    let index = (thread * 13 + step * 31) % FILES;
                    let size = 1000 * index;
                    let expected = mount.bucket().bytes(&key(index), 0..size);
                    assert!(mount.read(&key(index)).unwrap() == expected, "{index}");
                    assert_eq!(
                        mount.names(&format!("d{}", index % 7)).len(),
                        14 + usize::from(index % 7 < 2)
                    );
                }
            });
        }
    });
    assert!(mount.counts().get <= FILES, "readers of one file share its GET");
}

/// The peak of a process's own memory.
pub(crate) fn most_resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * KIB
}

/// R6
#[test]
fn memory_stays_within_the_budget() {
    const THREADS: u64 = 8;

    if !can_mount() {
        return;
    }
    let size = 256 * MIB;
    let scene = Scene::new();
    let seed = scene.bucket().put_synthetic("object", size).seed.unwrap();
    let mount = scene.mount(&["--memory-budget=32MiB"]);
    let share = size / THREADS;
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let mount = &mount;
            threads.spawn(move || {
                let file = File::open(mount.path("object")).unwrap();
                let mut bytes = vec![0; 1 << 20];
                for step in 0..share / MIB {
                    let offset = thread * share + step * MIB;
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    assert_eq!(first_difference(seed, offset, &bytes), None);
                }
            });
        }
    });
    let most = most_resident_bytes(mount.daemon.pid());
    println!("most resident: {} MiB", most / MIB);
    // Besides the budget: the program itself (25 MiB unoptimised), threads, and what 64
    // connections have received but not yet handed on.
    assert!(most <= (32 + 64) * MIB, "{} MiB", most / MIB);
    assert!(is_mounted(&mount.scene.mountpoint()));
}
