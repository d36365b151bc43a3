//! The cache on a local disk, through real mounts of real daemons.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Daemon, Mount, Scene, can_mount, eventually, is_root};

/// A place for the cache beside the mountpoint.
pub(crate) fn place(scene: &Scene) -> PathBuf {
    scene.folder.path().join("cache")
}

fn options(scene: &Scene) -> [String; 3] {
    let dir = place(scene);
    [format!("--cache-dir={}", dir.display()), "--cache-reserve=0".into(), "--hedging=never".into()]
}

pub(crate) fn mount(scene: Scene, more: &[&str]) -> Mount {
    let options = options(&scene);
    let options: Vec<&str> =
        options.iter().map(String::as_str).chain(more.iter().copied()).collect();
    scene.mount(&options)
}

/// Ends the mount, and mounts again in the same place.
pub(crate) fn again(mounted: Mount, signal: Signal) -> Mount {
    let (_, _, scene) = mounted.end(signal);
    mount(scene, &[])
}

pub(crate) fn filled() -> Scene {
    let scene = Scene::new();
    scene.bucket().put_synthetic("big", 20 << 20);
    for number in 0..60 {
        scene.bucket().put_synthetic(&format!("small/{number:02}"), 3_000 + number * 2_000);
    }
    scene
}

fn keys() -> Vec<String> {
    let small = (0..60).map(|number| format!("small/{number:02}"));
    small.chain(["big".to_owned()]).collect()
}

/// Reads everything and compares it with what a mount without a cache gave first.
pub(crate) fn read_all(mounted: &Mount) -> Vec<Vec<u8>> {
    keys().iter().map(|key| mounted.read(key).unwrap()).collect()
}

pub(crate) fn status(mounted: &Mount) -> Value {
    let mut command = mounted.scene.program();
    let output =
        command.arg("status").arg(mounted.scene.mountpoint()).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn segments(scene: &Scene) -> Vec<PathBuf> {
    let inside = place(scene).join("fasts3-cache-1/segments");
    std::fs::read_dir(inside).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// R8
#[test]
fn a_second_mount_reads_all_from_the_disk_and_sends_no_get() {
    if !can_mount() {
        return;
    }
    let first = filled().mount(&[]);
    let want = read_all(&first);
    let (_, _, scene) = first.end(Signal::TERM);
    let cold = mount(scene, &[]);
    assert_eq!(read_all(&cold), want);
    let warm = again(cold, Signal::TERM);
    assert_eq!(read_all(&warm), want);
    assert_eq!(warm.counts().get, 0, "all of it came from the disk");
    let status = status(&warm);
    let total = |name: &str| status["totals"][name].as_u64().unwrap();
    let all: usize = want.iter().map(Vec::len).sum();
    // Large files may be read by the kernel alone (R9).
    let small: usize = want.iter().map(Vec::len).filter(|&length| length < 16 << 20).sum();
    assert!(total("disk_hit_bytes") >= small as u64);
    assert_eq!((total("disk_missed_bytes"), total("disk_wrong")), (0, 0));
    assert!(total("disk_used_bytes") >= all as u64);
    // Nobody else reads it.
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place(&warm.scene)), 0o700);
    for segment in segments(&warm.scene) {
        assert_eq!(mode(&segment) & 0o077, 0);
    }
    // An overwritten object is another one.
    warm.bucket().put("small/07", vec![7; 17_000]);
    warm.daemon.signal(Signal::HUP);
    eventually("the new version", || warm.read("small/07").unwrap() == vec![7; 17_000]);
}

/// kill -9 at any moment, while two daemons read and evict.
#[test]
fn a_killed_daemon_leaves_a_cache_that_is_right() {
    if !can_mount() {
        return;
    }
    let first = filled().mount(&[]);
    let want = read_all(&first);
    let (_, _, scene) = first.end(Signal::TERM);
    let other_place = scene.folder.path().join("other");
    std::fs::create_dir(&other_place).unwrap();
    let mut mounted = mount(scene, &["--cache-size=64MiB"]);
    for round in 0..6 {
        let mut command = mounted.scene.program();
        command.arg("data").arg(&other_place).args(options(&mounted.scene));
        command.arg("--cache-size=64MiB");
        let other = Daemon::start(&mut command, &other_place);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for (key, want) in keys().iter().zip(&want) {
                    // Its daemon is killed meanwhile: an error is right, wrong bytes are not.
                    let read = std::fs::read(other_place.join(key));
                    assert!(read.is_err() || read.unwrap() == *want, "{key}");
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(40 * round));
            other.signal(Signal::KILL);
        });
        drop(other);
        assert_eq!(read_all(&mounted), want);
        mounted = again(mounted, Signal::KILL);
    }
    assert_eq!(read_all(&mounted), want);
    assert_eq!(status(&mounted)["totals"]["disk_wrong"], 0);
}

/// The directory below its mount is on the disk of the system, which the cache must not fill.
#[test]
fn a_disk_that_is_unmounted_is_left_alone_and_nothing_is_made_below() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = filled();
    let dir = place(&scene);
    std::fs::create_dir_all(&dir).unwrap();
    let run = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    let shown = dir.to_str().unwrap();
    run(&["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "none", shown]);
    let mounted = mount(scene, &[]);
    let want = read_all(&mounted);
    run(&["umount", "--lazy", shown]);
    let said = format!("the file system that it was on is gone ({shown})");
    eventually("it is noticed", || {
        let mut drop = mounted.scene.program();
        assert!(drop.arg("drop").arg(mounted.scene.mountpoint()).status().unwrap().success());
        assert_eq!(read_all(&mounted), want);
        mounted.daemon.log_so_far().contains(&said)
    });
    assert_eq!(read_all(&mounted), want);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

/// A disk without room, and one that is read-only: reads are right, and nothing is stored.
#[test]
fn a_full_or_read_only_disk_is_left_alone() {
    if !can_mount() || !is_root() {
        return;
    }
    let first = filled().mount(&[]);
    let want = read_all(&first);
    let (_, _, mut scene) = first.end(Signal::TERM);
    for option in ["size=3m", "size=64m,ro"] {
        let dir = place(&scene);
        std::fs::create_dir_all(&dir).unwrap();
        let tmpfs = |arguments: &[&str]| {
            let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).status();
            assert!(status.unwrap().success(), "{arguments:?}");
        };
        let shown = dir.to_str().unwrap();
        tmpfs(&["mount", "-t", "tmpfs", "-o", &format!("{option},mode=0700"), "none", shown]);
        let mounted = mount(scene, &[]);
        assert_eq!(read_all(&mounted), want, "{option}");
        let log = mounted.daemon.log_so_far();
        let (_, _, ended) = mounted.end(Signal::TERM);
        tmpfs(&["umount", shown]);
        scene = ended;
        assert!(log.contains("the disk cache is left alone for 1 s"), "{option}: {log}");
    }
}

#[test]
fn a_directory_that_others_can_write_to_refuses_the_start() {
    if !can_mount() {
        return;
    }
    let scene = filled();
    let dir = place(&scene);
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = scene.program();
    command.arg("data").arg(scene.mountpoint()).args(options(&scene));
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(73), "{error}");
    assert!(
        error.contains("--cache-dir cannot be used: ") && error.contains("chmod go-w"),
        "{error}"
    );
}

#[test]
fn the_cache_commands_survey_verify_and_clear_while_it_is_used() {
    if !can_mount() {
        return;
    }
    let mounted = mount(filled(), &[]);
    let run = |word: &str| {
        let mut command = mounted.scene.program();
        let output =
            command.args(["cache", word, "--json"]).arg(place(&mounted.scene)).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json)
    };
    let want = read_all(&mounted);
    let all: usize = want.iter().map(Vec::len).sum();
    eventually("all is written", || run("status").1["usable_bytes"] == all);
    assert_eq!(run("verify").1["wrong"], 0);
    // A bit flips.
    let segment = segments(&mounted.scene).pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (code, found) = run("verify");
    assert_eq!((code, &found["wrong"]), (Some(74), &Value::from(1)));
    assert_eq!(run("verify").0, Some(0), "it was removed");
    let (code, cleared) = run("clear");
    assert_eq!(code, Some(0));
    assert!(cleared["removed_bytes"].as_u64().unwrap() >= all as u64);
    let (code, none) = run("status");
    assert_eq!(code, Some(66), "{none}");
    assert_eq!(read_all(&mounted), want);
}

/// What the disk did not take is in memory only.
#[test]
fn warm_to_disk_puts_there_what_the_disk_did_not_take() {
    if !can_mount() {
        return;
    }
    let mounted = mount(filled(), &[]);
    // The thread that writes waits for it, in vain.
    let lock = std::fs::File::open(place(&mounted.scene).join("fasts3-cache-1/lock")).unwrap();
    lock.lock().unwrap();
    let file = std::fs::File::open(mounted.path("big")).unwrap();
    for chunk in 0..5 {
        // A chunk of which not all was read stays in memory.
        file.read_exact_at(&mut [0; 4096], (chunk << 22) + (1 << 20)).unwrap();
    }
    eventually("the disk does not take it", || {
        status(&mounted)["totals"]["disk_dropped_bytes"].as_u64() > Some(0)
    });
    lock.unlock().unwrap();
    eventually("all of it was taken", || {
        let mut command = mounted.scene.program();
        command.args(["warm", "--to-disk"]).arg(mounted.path("big")).status().unwrap().success()
    });
    let again = again(mounted, Signal::TERM);
    again.read("big").unwrap();
    assert_eq!(again.counts().get, 0);
}

/// Files that are in the page cache already, too.
#[test]
fn warm_to_disk_puts_files_on_the_disk_and_waits_for_it() {
    if !can_mount() {
        return;
    }
    let mounted = mount(filled(), &["--memory-budget=32MiB"]);
    let want = mounted.read("small/10").unwrap();
    let mut command = mounted.scene.program();
    let output =
        command.args(["warm", "--to-disk"]).arg(mounted.scene.mountpoint()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("read 61 files"), "{said}");
    assert_eq!(status(&mounted)["totals"]["disk_dropped_bytes"], 0);
    let again = again(mounted, Signal::TERM);
    read_all(&again);
    assert_eq!((again.counts().get, again.read("small/10").unwrap()), (0, want));
    // A mount without a disk cache says so.
    let (_, _, scene) = again.end(Signal::TERM);
    let without = scene.mount(&[]);
    let mut command = without.scene.program();
    let output =
        command.args(["warm", "--to-disk"]).arg(without.scene.mountpoint()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("refuses: the mount has no --cache-dir"), "{error}");
    assert_eq!(output.status.code(), Some(70));
}
