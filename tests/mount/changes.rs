//! The bucket changes under the mount: what is read is one version, whole, or ESTALE; and names are
//! believed no longer than they may be.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;

use crate::common::{Daemon, Mount, Scene, can_mount, errno, eventually, names, skipped};
use crate::reads::open_directly;

const MIB: usize = 1 << 20;

/// An object whose every byte tells its version; so does its length.
fn version(number: u8) -> Vec<u8> {
    vec![number; MIB + usize::from(number)]
}

/// Reads until the new version is seen: until then it is ESTALE, or all of the old version.
fn eventually_reads(mount: &Mount, key: &str, new: &[u8], old: Option<&[u8]>) {
    eventually("the new version", || match mount.read(key) {
        Ok(bytes) if bytes == new => true,
        Ok(bytes) => {
            assert!(Some(&bytes[..]) == old, "{} bytes of neither version", bytes.len());
            false
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
            false
        }
    });
}

/// R2, E4
#[test]
fn an_object_overwritten_before_it_is_read_is_stale_and_then_new() {
    if !can_mount() {
        return;
    }
    for ttl in ["0s", "1s"] {
        let scene = Scene::new();
        scene.bucket().put("object", version(1));
        let mount = scene.mount(&[&format!("--metadata-ttl={ttl}")]);
        let file = File::open(mount.path("object")).unwrap();
        mount.bucket().put("object", version(2));
        let mut bytes = [0; 4096];
        assert_eq!(errno(file.read_at(&mut bytes, 0)), Some(libc::ESTALE));
        assert_eq!(file.metadata().unwrap().len(), version(1).len() as u64);
        eventually_reads(&mount, "object", &version(2), None);
        // An open file keeps its version.
        assert_eq!(errno(file.read_at(&mut bytes, 0)), Some(libc::ESTALE));
    }
}

/// R2
#[test]
fn an_object_overwritten_while_it_is_read_is_never_mixed() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let old = scene.bucket().put_synthetic("object", 32 * MIB as u64).seed.unwrap();
    let mount = scene.mount(&["--metadata-ttl=0s"]);
    let file = open_directly(&mount.path("object"));
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let new = mount.bucket().put_synthetic("object", 32 * MIB as u64).seed.unwrap();
    // Bytes fetched before may still be read, and none of the new version.
    let mut stale = 0;
    for offset in (0..32 * MIB as u64).step_by(MIB) {
        match file.read_at(&mut bytes, offset) {
            Ok(length) => {
                assert_eq!(length, bytes.len());
                assert_eq!(devserver::content::first_difference(old, offset, &bytes), None);
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
                stale += 1;
            }
        }
    }
    assert!(stale > 20, "{stale}");
    let whole = mount.read("object").unwrap();
    assert_eq!(devserver::content::first_difference(new, 0, &whole), None);
}

/// R2
#[test]
fn under_a_storm_of_overwrites_every_read_is_one_version() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("object", version(1));
    let mount = scene.mount(&["--metadata-ttl=0s", "--chunk-size=256KiB", "--part-size=128KiB"]);
    let (stop, reads, stale) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                threads.spawn(|| {
                    while reads.load(Relaxed) < 60 {
                        match mount.read("object") {
                            Ok(bytes) => {
                                assert!(bytes == version(bytes[0]), "{} bytes", bytes.len());
                                reads.fetch_add(1, Relaxed);
                            }
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
                                stale.fetch_add(1, Relaxed);
                            }
                        }
                    }
                })
            })
            .collect();
        let (mount, stop) = (&mount, &stop);
        threads.spawn(move || {
            for number in (1..=200).cycle() {
                if stop.load(Relaxed) {
                    break;
                }
                mount.bucket().put("object", version(number));
                std::thread::sleep(Duration::from_millis(u64::from(number) / 2));
            }
        });
        let outcomes: Vec<_> =
            readers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, Relaxed);
        assert!(outcomes.iter().all(Result::is_ok), "a reader saw a mix or another error");
    });
    println!("{} reads, {} of them stale", reads.into_inner(), stale.into_inner());
}

/// E4
#[test]
fn an_object_deleted_after_its_listing_is_stale_and_then_gone() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/deleted", "bytes");
    scene.bucket().put("d/kept", "kept");
    let mount = scene.mount(&["--metadata-ttl=2s"]);
    assert_eq!(mount.names("d"), ["deleted", "kept"]);
    let file = File::open(mount.path("d/deleted"));
    mount.bucket().delete("d/deleted");
    if let Ok(file) = file {
        assert_eq!(errno(file.read_at(&mut [0; 10], 0)), Some(libc::ESTALE));
    }
    eventually("the name to go", || match errno(mount.read("d/deleted")) {
        Some(libc::ENOENT) => true,
        other => {
            assert_eq!(other, Some(libc::ESTALE));
            false
        }
    });
    eventually("the entry to go", || mount.names("d") == ["kept"]);
}

/// E4
#[test]
fn after_a_stale_read_the_next_open_sees_the_new_truth() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/object", version(1));
    scene.bucket().put("d/gone", version(1));
    // Nothing expires here: only the ESTALE shows that the names are old.
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("d"), ["gone", "object"]);
    let file = File::open(mount.path("d/object")).unwrap();
    mount.bucket().put("d/object", version(2));
    assert_eq!(errno(file.read_at(&mut [0; 10], 0)), Some(libc::ESTALE));
    assert!(mount.read("d/object").unwrap() == version(2));

    // The same for a deleted object, which its directory then does not show either.
    let file = File::open(mount.path("d/gone")).unwrap();
    mount.bucket().delete("d/gone");
    assert_eq!(errno(file.read_at(&mut [0; 10], 0)), Some(libc::ESTALE));
    assert_eq!(errno(mount.read("d/gone")), Some(libc::ENOENT));
    assert_eq!(mount.names("d"), ["object"]);
}

#[test]
fn a_stale_file_that_is_read_again_and_again_costs_its_directory_one_listing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for name in ["object", "other"] {
        scene.bucket().put(&format!("d/{name}"), version(1));
    }
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("d"), ["object", "other"]);
    let file = File::open(mount.path("d/object")).unwrap();
    mount.bucket().put("d/object", version(2));
    mount.forget_counts();
    for _ in 0..5 {
        // A program keeps reading an open file while others look around.
        assert_eq!(errno(file.read_at(&mut [0; 10], 0)), Some(libc::ESTALE));
        assert_eq!(mount.names("d"), ["object", "other"]);
        assert_eq!(std::fs::metadata(mount.path("d/object")).unwrap().len(), (1 << 20) + 2);
    }
    let counts = mount.counts();
    // The HEAD tells that it has changed indeed (E15).
    assert_eq!((counts.list, counts.head), (1, 1), "{counts:?}");
}

/// A7, F5, R3
#[test]
fn the_same_bytes_put_again_move_the_mtime_and_are_not_fetched_again() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["d/looked up", "d/other", "listed/object"] {
        scene.bucket().put(key, key);
        scene.bucket().set_last_modified(key, UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    }
    let mount = scene.mount(&["--metadata-ttl=1s"]);
    let stat = |key| std::fs::metadata(mount.path(key)).unwrap();
    for (key, is_listed) in [("d/looked up", false), ("listed/object", true)] {
        assert_eq!(mount.read(key).unwrap(), key.as_bytes());
        let before = stat(key);
        let gets = mount.counts().get;
        let put = mount.bucket().put(key, key).last_modified;
        eventually("the new time", || {
            if is_listed {
                mount.names("listed");
            }
            let now = stat(key);
            assert_eq!(now.ino(), before.ino());
            assert!([put, before.modified().unwrap()].contains(&now.modified().unwrap()));
            now.modified().unwrap() == put
        });
        assert_eq!(mount.read(key).unwrap(), key.as_bytes());
        assert_eq!(mount.counts().get, gets);
    }
}

/// A4, F1
#[test]
fn a_directory_that_was_scanned_shows_what_is_new_when_its_life_is_over() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/b", "b");
    let mount = scene.mount(&["--metadata-ttl=1s"]);
    for _ in 0..3 {
        // Several times, so that the kernel keeps the directory's pages itself.
        assert_eq!(mount.names("d"), ["b"]);
    }
    for (key, expected) in
        [("d/a", &["a", "b"][..]), ("d/c/x", &["a", "b", "c"]), ("d/d", &["a", "b", "c", "d"])]
    {
        mount.bucket().put(key, key);
        eventually("the new name", || {
            let names = mount.names("d");
            assert!(names.len() == expected.len() || names.len() + 1 == expected.len());
            names == expected
        });
        assert_eq!(mount.read(key).unwrap(), key.as_bytes());
    }
    mount.bucket().delete("d/b");
    eventually("the deleted name to go", || mount.names("d") == ["a", "c", "d"]);
    for key in ["d/a", "d/c/x", "d/d"] {
        mount.bucket().delete(key);
    }
    eventually("the directory to go", || mount.names("").is_empty());
    eventually("its path to go", || !mount.path("d").exists());
}

/// F4
#[test]
fn a_listing_is_believed_for_as_long_as_it_may_be() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/a", "a");
    let mount = scene.mount(&["--metadata-ttl=indefinite"]);
    assert_eq!(mount.names("d"), ["a"]);
    mount.bucket().put("d/b", "b");
    // A mount with a finite TTL has seen the change by now.
    let second = mount.scene.folder.path().join("second");
    std::fs::create_dir(&second).unwrap();
    let mut command = mount.scene.program();
    command.arg("data").arg(&second).arg("--metadata-ttl=1s");
    let other = Daemon::start(&mut command, &second);
    assert_eq!(names(&second.join("d")).unwrap(), ["a", "b"]);
    mount.bucket().put("d/c", "c");
    eventually("the end of a second", || names(&second.join("d")).unwrap().len() == 3);
    drop(other);
    mount.forget_counts();
    assert_eq!(mount.names("d"), ["a"]);
    assert!(!mount.path("d/b").exists());
    assert_eq!(mount.counts().requests(), 0);
}

/// F3
#[test]
fn absence_is_believed_for_its_own_time() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("other", "other");
    let mount = scene.mount(&["--metadata-ttl=1h", "--negative-ttl=1s"]);
    assert_eq!(errno(mount.read("late")), Some(libc::ENOENT));
    mount.bucket().put("late", "bytes");
    eventually("the name", || match mount.read("late") {
        Ok(bytes) => bytes == b"bytes",
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
            false
        }
    });
}

#[test]
fn an_object_becomes_a_directory_and_an_object_again() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("name", "bytes");
    let mount = scene.mount(&["--metadata-ttl=1s", "--negative-ttl=1s"]);
    assert_eq!(mount.read("name").unwrap(), b"bytes");
    mount.bucket().put("name/below", "below");
    eventually("the directory", || mount.read("name/below").is_ok_and(|bytes| bytes == b"below"));
    mount.bucket().delete("name/below");
    eventually("the object", || mount.read("name").is_ok_and(|bytes| bytes == b"bytes"));
}

/// Since Linux 6.16 the kernel can be told that names are old.
fn kernel_can_be_told() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 16) || skipped("this kernel keeps names until their time has come")
}

/// F10, F5
#[test]
fn sighup_has_every_name_asked_for_anew_and_nothing_else() {
    if !can_mount() || !kernel_can_be_told() {
        return;
    }
    let scene = Scene::new();
    for key in ["kept", "changed", "d/1"] {
        scene.bucket().put(key, "before");
    }
    let mount = scene.mount(&["--metadata-ttl=indefinite", "--negative-ttl=1h"]);
    let inode = |key| std::fs::metadata(mount.path(key)).unwrap().ino();
    assert_eq!(mount.names(""), ["changed", "d", "kept"]);
    assert_eq!(mount.names("d"), ["1"]);
    assert_eq!(mount.read("kept").unwrap(), b"before");
    assert_eq!(mount.read("changed").unwrap(), b"before");
    assert!(!mount.path("new").exists() && !mount.path("d/2").exists());
    let before = ["kept", "changed", "d"].map(inode);
    for key in ["changed", "new", "d/2"] {
        mount.bucket().put(key, "after");
    }
    mount.forget_counts();
    assert!(!mount.path("new").exists());
    assert_eq!(mount.read("changed").unwrap(), b"before");
    assert_eq!(mount.names("d"), ["1"]);
    assert_eq!(mount.counts().requests(), 0);

    mount.daemon.signal(Signal::HUP);
    eventually("the new names", || mount.path("new").exists());
    assert_eq!(mount.names(""), ["changed", "d", "kept", "new"]);
    assert_eq!(mount.names("d"), ["1", "2"]);
    assert_eq!(mount.read("d/2").unwrap(), b"after");
    assert_eq!(mount.read("changed").unwrap(), b"after");
    let after = ["kept", "changed", "d"].map(inode);
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_ne!(after[1], before[1]);
    let gets = mount.counts().get;
    assert_eq!(mount.read("kept").unwrap(), b"before");
    assert_eq!(mount.counts().get, gets, "from the page cache still");
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGHUP: dropped all cached names\n"), "{log}");
}
