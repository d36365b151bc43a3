//! Files that are whole in the cache on the local disk are read by the kernel alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::outlive::{Manager, can_outlive, daemon_of};
use super::xattrs::value;
use crate::common::{Daemon, Mount, Scene, can_mount, eventually, is_root, skipped_but_not_in_ci};

const MIB: u64 = 1 << 20;
/// Not a multiple of anything.
const SIZE: u64 = 20 * MIB + 12_345;
/// `statfs` of overlayfs, which lies on other file systems.
const OVERLAYFS: u64 = 0x794c_7630;

fn can_pass_through() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    let kernel: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let is_overlay = || {
        let kind = rustix::fs::statfs(std::env::temp_dir()).map(|found| found.f_type);
        kind.is_ok_and(|kind| u64::try_from(kind) == Ok(OVERLAYFS))
    };
    can_mount()
        && is_root()
        && (kernel >= (6, 9) || skipped_but_not_in_ci("passthrough takes Linux 6.9"))
        && (!is_overlay() || skipped_but_not_in_ci("overlayfs cannot be passed through"))
}

/// A place for the cache beside the mountpoint.
fn place(scene: &Scene) -> PathBuf {
    scene.folder.path().join("cache")
}

fn options(scene: &Scene, more: &[&str]) -> Vec<String> {
    let dir = format!("--cache-dir={}", place(scene).display());
    let more = more.iter().map(|&option| option.to_owned());
    ["--cache-reserve=0".to_owned(), dir].into_iter().chain(more).collect()
}

fn mount(scene: Scene, more: &[&str]) -> Mount {
    let options = options(&scene, more);
    scene.mount(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

fn filled() -> Scene {
    let scene = Scene::new();
    scene.bucket().put_synthetic("big", SIZE);
    scene.bucket().put_synthetic("d/small", 100_000);
    scene
}

fn status_at(scene: &Scene, mountpoint: &Path) -> Value {
    let output = scene.program().arg("status").arg(mountpoint).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn total(mounted: &Mount, name: &str) -> u64 {
    status_at(&mounted.scene, &mounted.scene.mountpoint())["totals"][name].as_u64().unwrap()
}

fn bytes_of(mounted: &Mount, key: &str) -> Vec<u8> {
    let size = mounted.bucket().info(key).unwrap().size;
    mounted.bucket().bytes(key, 0..size).to_vec()
}

/// Opens the file until the kernel reads it by itself: closing is told late.
fn opened_through(mounted: &Mount, path: &Path) -> File {
    opened_through_at(&mounted.scene, &mounted.scene.mountpoint(), path)
}

fn opened_through_at(scene: &Scene, mountpoint: &Path, path: &Path) -> File {
    let through = || status_at(scene, mountpoint)["totals"]["opened_through"].as_u64().unwrap();
    let (before, mut file) = (through(), None);
    eventually("the kernel reads the file by itself", || {
        drop(file.take());
        file = Some(File::open(path).unwrap());
        through() > before
    });
    file.unwrap()
}

/// A mount that has read the file once, and has it on the disk.
fn read_once(scene: Scene, more: &[&str]) -> Mount {
    let mounted = mount(scene, more);
    assert!(mounted.read("big").unwrap() == bytes_of(&mounted, "big"));
    eventually("it is on the disk", || total(&mounted, "disk_written_bytes") >= SIZE);
    mounted
}

/// Another mount of the same bucket, with the same cache.
fn other(mounted: &Mount, name: &str, more: &[&str]) -> (Daemon, PathBuf) {
    let mountpoint = mounted.scene.folder.path().join(name);
    std::fs::create_dir(&mountpoint).unwrap();
    let mut command = mounted.scene.program();
    command.arg("data").arg(&mountpoint).args(options(&mounted.scene, more));
    (Daemon::start(&mut command, &mountpoint), mountpoint)
}

fn segments(scene: &Scene) -> Vec<PathBuf> {
    let inside = place(scene).join("fasts3-cache-1/segments");
    std::fs::read_dir(inside).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The file that holds exactly the object.
fn whole_file(scene: &Scene) -> PathBuf {
    let is_whole = |path: &PathBuf| path.metadata().unwrap().len() == SIZE;
    segments(scene).into_iter().find(is_whole).expect("a segment of its own")
}

fn flip_a_bit(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

fn read_open(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// R9
#[test]
fn the_kernel_reads_a_whole_file_by_itself_in_every_way() {
    if !can_pass_through() {
        return;
    }
    let mounted = read_once(filled(), &["--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let held = opened_through(&mounted, &path);
    let (reads, gets) = (total(&mounted, "reads"), mounted.counts().get);
    assert!(read_open(&held) == want);
    assert!(std::fs::read(&path).unwrap() == want);
    let mut part = vec![0; 10_000];
    held.read_exact_at(&mut part, SIZE - 10_000).unwrap();
    assert!(part == want[want.len() - 10_000..]);
    assert_eq!(held.read_at(&mut part, SIZE).unwrap(), 0);
    // Direct I/O wants aligned memory; Python's anonymous maps are.
    let script = "
import mmap, os, sys, zlib
path = sys.argv[1]
with open(path, 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(zlib.crc32(mapped))
crc, page = 0, mmap.mmap(-1, 1 << 20)
fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
while length := os.readv(fd, [page]):
    crc = zlib.crc32(page[:length], crc)
print(crc)
";
    let output = Command::new("python3").args(["-c", script]).arg(&path).output();
    if let Ok(output) = output {
        let crc = crc32fast::hash(&want);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, format!("{crc}\n{crc}\n"), "{}", String::from_utf8_lossy(&output.stderr));
    } else {
        skipped_but_not_in_ci("there is no python3");
    }
    assert_eq!(total(&mounted, "reads"), reads, "no READ has reached the daemon");
    assert_eq!(mounted.counts().get, gets);
    // The other files are as ever.
    assert!(mounted.read("d/small").unwrap() == bytes_of(&mounted, "d/small"));
    assert!(total(&mounted, "opened_by_daemon") > 0);
}

/// R9: the first has written all of it, and nobody has since.
#[test]
fn a_second_mount_passes_through_what_another_has_seen_whole() {
    if !can_pass_through() {
        return;
    }
    let (_, _, scene) = read_once(filled(), &[]).end(Signal::KILL);
    let (want, mut scene) = (scene.bucket().bytes("big", 0..SIZE), Some(scene));
    // A disk that answers late is not waited for: another mount is tried.
    eventually("its first open is passed through", || {
        let mounted = mount(scene.take().unwrap(), &[]);
        let path = mounted.path("big");
        assert!(std::fs::read(&path).unwrap() == want[..]);
        let is_through = total(&mounted, "opened_through") == 1;
        assert_eq!(total(&mounted, "reads") == 0, is_through);
        let mut warm = mounted.scene.program();
        let warmed = warm.args(["warm", "--to-disk"]).arg(&path).output().unwrap();
        assert!(warmed.status.success(), "{}", String::from_utf8_lossy(&warmed.stderr));
        assert_eq!(mounted.counts().get, 0);
        let (_, _, ended) = mounted.end(Signal::TERM);
        scene = Some(ended);
        is_through
    });
}

/// As a write does that changes nothing.
fn break_seal(scene: &Scene) {
    let file = File::options().write(true).open(whole_file(scene)).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
}

/// A daemon that has not compared the checksums reads through itself first.
#[test]
fn a_second_mount_passes_through_what_it_has_read() {
    if !can_pass_through() {
        return;
    }
    let (_, _, scene) = read_once(filled(), &[]).end(Signal::TERM);
    break_seal(&scene);
    let mounted = mount(scene, &[]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    assert!(mounted.read("big").unwrap() == want);
    assert_eq!(total(&mounted, "opened_through"), 0);
    let held = opened_through(&mounted, &path);
    // Another mount of the same cache, at the same time.
    let (other, mountpoint) = other(&mounted, "other", &[]);
    let theirs = mountpoint.join("big");
    assert!(std::fs::read(&theirs).unwrap() == want);
    let theirs = opened_through_at(&mounted.scene, &mountpoint, &theirs);
    assert!(read_open(&theirs) == want && read_open(&held) == want);
    drop((theirs, other));
}

/// What nobody has read is compared in the background, when it was used for the second time.
#[test]
fn a_file_that_is_read_in_part_is_compared_in_the_background() {
    if !can_pass_through() {
        return;
    }
    let (_, _, scene) = read_once(filled(), &[]).end(Signal::TERM);
    break_seal(&scene);
    let mounted = mount(scene, &[]);
    let held = opened_through(&mounted, &mounted.path("big"));
    assert!(read_open(&held) == bytes_of(&mounted, "big"));
    assert_eq!((total(&mounted, "reads"), mounted.counts().get), (0, 0));
}

/// The kernel would answer EIO to one that is opened in both ways at once.
#[test]
fn a_file_that_is_open_stays_with_the_daemon_until_it_is_closed() {
    if !can_pass_through() {
        return;
    }
    let scene = filled();
    let mounted = mount(scene, &["--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let held = File::open(&path).unwrap();
    assert!(read_open(&held) == want);
    eventually("it is on the disk", || total(&mounted, "disk_written_bytes") >= SIZE);
    for _ in 0..20 {
        assert!(std::fs::read(&path).unwrap() == want);
    }
    assert_eq!(total(&mounted, "opened_through"), 0);
    drop(held);
    let through = opened_through(&mounted, &path);
    assert!(read_open(&through) == want);
    // And the other way round.
    for _ in 0..20 {
        assert!(std::fs::read(&path).unwrap() == want);
    }
}

/// Eviction leaves it alone; `rm -rf` does not, and the kernel holds it.
#[test]
fn a_file_that_is_open_is_neither_given_up_nor_lost() {
    if !can_pass_through() {
        return;
    }
    let scene = filled();
    for number in 0..8 {
        scene.bucket().put_synthetic(&format!("more/{number}"), 18 * MIB);
    }
    let mounted = read_once(scene, &["--cache-size=96MiB", "--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let held = opened_through(&mounted, &path);
    for _ in 0..3 {
        for number in 0..8 {
            let key = format!("more/{number}");
            assert!(mounted.read(&key).unwrap() == bytes_of(&mounted, &key));
        }
    }
    eventually("others are given up", || total(&mounted, "disk_evicted_bytes") > 18 * MIB);
    assert!(whole_file(&mounted.scene).exists());
    let reads = total(&mounted, "reads");
    assert!(read_open(&held) == want);
    std::fs::remove_dir_all(place(&mounted.scene)).unwrap();
    assert!(read_open(&held) == want);
    assert_eq!(total(&mounted, "reads"), reads);
    assert!(std::fs::read(&path).unwrap() == want, "opened beside it");
    drop(held);
    eventually("it is read through the daemon", || {
        let before = total(&mounted, "opened_by_daemon");
        assert!(std::fs::read(&path).unwrap() == want);
        total(&mounted, "opened_by_daemon") > before
    });
}

#[test]
fn a_flipped_bit_is_found_before_the_kernel_reads_it() {
    if !can_pass_through() {
        return;
    }
    let (_, _, scene) = read_once(filled(), &[]).end(Signal::TERM);
    flip_a_bit(&whole_file(&scene), 7 * MIB + 77);
    let mounted = mount(scene, &["--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    assert!(mounted.read("big").unwrap() == want);
    assert_eq!(total(&mounted, "disk_wrong"), 1);
    // It was written again.
    let held = opened_through(&mounted, &path);
    assert!(read_open(&held) == want);
    drop(held);
    // And where nobody reads: it is found, and not passed through.
    let (_, _, scene) = mounted.end(Signal::TERM);
    flip_a_bit(&whole_file(&scene), SIZE - 1);
    let mounted = mount(scene, &["--passthrough=on"]);
    eventually("it is found", || {
        drop(File::open(&path).unwrap());
        total(&mounted, "disk_wrong") == 1
    });
    for _ in 0..20 {
        drop(File::open(&path).unwrap());
    }
    assert_eq!(total(&mounted, "opened_through"), 0);
    assert!(mounted.read("big").unwrap() == want);
}

/// F5, R2
#[test]
fn an_object_that_is_replaced_is_another_file() {
    if !can_pass_through() {
        return;
    }
    let mounted = read_once(filled(), &["--passthrough=on"]);
    let (path, old) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let held = opened_through(&mounted, &path);
    mounted.bucket().put_synthetic("big", SIZE);
    let new = bytes_of(&mounted, "big");
    assert!(new != old);
    assert!(read_open(&held) == old);
    mounted.daemon.signal(Signal::HUP);
    eventually("the new version", || std::fs::read(&path).unwrap() == new);
    eventually("it is on the disk", || total(&mounted, "disk_written_bytes") >= 2 * SIZE);
    let newer = opened_through(&mounted, &path);
    assert!(read_open(&newer) == new && read_open(&held) == old);
}

#[test]
fn a_daemon_that_is_killed_while_it_writes_leaves_a_file_that_is_completed() {
    if !can_pass_through() {
        return;
    }
    let mut scene = filled();
    for pause in [0, 20, 60] {
        let mounted = mount(scene, &[]);
        let path = mounted.path("big");
        std::thread::scope(|threads| {
            // An error is right, its daemon is killed.
            threads.spawn(|| std::fs::read(&path));
            std::thread::sleep(std::time::Duration::from_millis(pause));
            mounted.daemon.signal(Signal::KILL);
        });
        (_, _, scene) = mounted.end(Signal::KILL);
    }
    let mounted = mount(scene, &["--passthrough=on"]);
    let want = bytes_of(&mounted, "big");
    assert!(mounted.read("big").unwrap() == want);
    let held = opened_through(&mounted, &mounted.path("big"));
    assert!(read_open(&held) == want);
}

/// L1: with a holder, and while no daemon runs.
#[test]
fn a_file_that_is_passed_through_outlives_its_daemon() {
    if !can_pass_through() || !can_outlive() {
        return;
    }
    let mounted = read_once(filled(), &["--outlive=always"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let [held, closed] = [(); 2].map(|()| opened_through(&mounted, &path));
    let holder = Pid::from_raw(i32::try_from(mounted.daemon.pid()).unwrap()).unwrap();
    kill_process(holder, Signal::STOP).unwrap();
    mounted.signal_daemon(Signal::KILL);
    eventually("no daemon", || daemon_of(mounted.daemon.pid()).is_none());
    let expected = want.clone();
    let reader = std::thread::spawn(move || {
        assert!(read_open(&held) == expected, "no daemon is needed");
        held
    });
    eventually("it is read", || reader.is_finished());
    // Its end waits for the next daemon, as this open does.
    drop(closed);
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || File::open(path)
    });
    kill_process(holder, Signal::CONT).unwrap();
    let (held, opened) = (reader.join().unwrap(), waiting.join().unwrap().unwrap());
    assert_eq!(mounted.taken_over(), 1);
    assert!(read_open(&opened) == want && std::fs::read(&path).unwrap() == want);
    assert_eq!((total(&mounted, "reads"), total(&mounted, "opened_by_daemon")), (0, 0));
    drop(opened);
    // And the one after it.
    mounted.replace();
    assert!(read_open(&held) == want && std::fs::read(&path).unwrap() == want);
    assert_eq!((total(&mounted, "reads"), total(&mounted, "opened_by_daemon")), (0, 0));
    drop(held);
    // Closed by all, it is opened as any other.
    assert!(read_open(&opened_through(&mounted, &path)) == want);
}

/// The kernel would answer EIO if the next daemon passed it through.
#[test]
fn a_file_that_is_read_through_the_daemon_stays_so_in_the_next_one() {
    if !can_pass_through() || !can_outlive() {
        return;
    }
    let mounted = mount(filled(), &["--outlive=always", "--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    let held = File::open(&path).unwrap();
    assert!(read_open(&held) == want);
    eventually("it is on the disk", || total(&mounted, "disk_written_bytes") >= SIZE);
    mounted.replace();
    for _ in 0..20 {
        assert!(std::fs::read(&path).unwrap() == want);
    }
    assert_eq!(total(&mounted, "opened_through"), 0);
    drop(held);
    assert!(read_open(&opened_through(&mounted, &path)) == want);
}

/// Of what the kernel reads by itself nothing is an error, whatever the next daemon's options are.
#[test]
fn a_daemon_that_would_pass_nothing_through_goes_on_with_what_is_open() {
    if !can_pass_through() || !can_outlive() {
        return;
    }
    let mut manager = Manager::new(filled());
    let mountpoint = manager.scene.mountpoint();
    let (path, want) = (mountpoint.join("big"), manager.scene.bucket().bytes("big", 0..SIZE));
    let with_cache = options(&manager.scene, &["--passthrough=off"]);
    let with_cache: Vec<&str> = with_cache.iter().map(String::as_str).collect();
    let mut daemon = manager.start(&with_cache[..2]);
    let total = |manager: &Manager, name: &str| {
        status_at(&manager.scene, &mountpoint)["totals"][name].as_u64().unwrap()
    };
    assert!(std::fs::read(&path).unwrap() == want[..]);
    eventually("it is on the disk", || total(&manager, "disk_written_bytes") >= SIZE);
    let held = opened_through_at(&manager.scene, &mountpoint, &path);
    for options in [&with_cache[..], &[]] {
        daemon.end_and_leave(Signal::KILL);
        daemon = manager.start(options);
        assert!(daemon.log_so_far().contains("taking over"), "{}", daemon.log_so_far());
        assert!(read_open(&held) == want[..] && std::fs::read(&path).unwrap() == want[..]);
        assert_eq!(total(&manager, "reads"), 0, "{options:?}");
    }
    drop(held);
    eventually("it is read through the daemon", || {
        assert!(std::fs::read(&path).unwrap() == want[..]);
        total(&manager, "reads") > 0
    });
}

/// Whenever a daemon dies, no program gets an error.
#[test]
fn files_are_opened_and_closed_while_daemons_die() {
    if !can_pass_through() || !can_outlive() {
        return;
    }
    let mounted = read_once(filled(), &["--outlive=always", "--passthrough=on"]);
    let (path, want) = (mounted.path("big"), bytes_of(&mounted, "big"));
    drop(opened_through(&mounted, &path));
    let ends = AtomicBool::new(false);
    let read_all_the_time = |step: u64| {
        let (mut at, mut byte) = (step, [0; 1000]);
        while !ends.load(Ordering::Relaxed) {
            let file = File::open(&path).unwrap();
            file.read_exact_at(&mut byte, at).unwrap();
            assert_eq!(byte[..], want[usize::try_from(at).unwrap()..][..1000]);
            at = (at + step) % (SIZE - 1000);
        }
    };
    std::thread::scope(|threads| {
        let readers = [700_001, 1_300_003, 3_000_017]
            .map(|step| threads.spawn(move || read_all_the_time(step)));
        // Four deaths in 30 s are no reason to give up.
        for _ in 0..3 {
            mounted.replace();
            let before = total(&mounted, "opened_through") + total(&mounted, "opened_by_daemon");
            eventually("files are opened", || {
                let now = total(&mounted, "opened_through") + total(&mounted, "opened_by_daemon");
                now > before + 100 || readers.iter().any(ScopedJoinHandle::is_finished)
            });
        }
        ends.store(true, Ordering::Relaxed);
    });
    // Also what was counted too often ends with the inode.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert!(read_open(&opened_through(&mounted, &path)) == want);
}

/// The layer that joins buckets has the files of those below it.
#[test]
fn a_file_of_one_bucket_among_several_is_passed_through() {
    if !can_pass_through() {
        return;
    }
    let scene = filled();
    scene.server.bucket("other").put("file", "bytes");
    let options = options(&scene, &[]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mounted = scene.mount_as("one=data,other=other", &options);
    let want = bytes_of(&mounted, "big");
    assert!(mounted.read("one/big").unwrap() == want);
    eventually("it is on the disk", || total(&mounted, "disk_written_bytes") >= SIZE);
    let held = opened_through(&mounted, &mounted.path("one/big"));
    let reads = total(&mounted, "reads");
    assert!(read_open(&held) == want);
    assert_eq!(total(&mounted, "reads"), reads);
}

/// What `open` costs small files is bounded, and ends when nothing is passed through.
#[test]
fn a_mount_of_small_files_stops_asking() {
    if !can_pass_through() {
        return;
    }
    let mounted = read_once(filled(), &[]);
    let (small, want) = (mounted.path("d/small"), bytes_of(&mounted, "big"));
    let open = |times: u32| (0..times).for_each(|_| drop(File::open(&small).unwrap()));
    let held = opened_through(&mounted, &mounted.path("big"));
    open(3_000);
    let asked = total(&mounted, "opened_by_daemon");
    assert!(asked >= 3_000, "the kernel asks while a file is passed through: {asked}");
    drop(held);
    eventually("it asks no more", || {
        let before = total(&mounted, "opened_by_daemon");
        open(100);
        total(&mounted, "opened_by_daemon") == before
    });
    assert!(mounted.read("big").unwrap() == want);
    let (_, _, scene) = mounted.end(Signal::TERM);
    // With `on` it does not end.
    let mounted = mount(scene, &["--passthrough=on"]);
    open(3_000);
    assert!(total(&mounted, "opened_by_daemon") >= 3_000);
    let (_, _, scene) = mounted.end(Signal::TERM);
    // With `off` it does not begin.
    let mounted = mount(scene, &["--passthrough=off"]);
    open(100);
    assert_eq!(total(&mounted, "opened_by_daemon"), 0);
}

/// On overlayfs: `on` says so, `auto` does without.
#[test]
fn where_the_kernel_refuses_only_on_fails() {
    if !can_pass_through() {
        return;
    }
    let scene = filled();
    let folder = scene.folder.path().to_owned();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| folder.join(name));
    for path in [&lower, &upper, &work, &place(&scene)] {
        std::fs::create_dir(path).unwrap();
    }
    let layers = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)];
    let layers = layers.map(|(name, path)| format!("{name}={}", path.display())).join(",");
    let mut command = Command::new("mount");
    command.args(["-t", "overlay", "none", "-o", &layers]).arg(place(&scene));
    if !command.status().unwrap().success() {
        skipped_but_not_in_ci("overlayfs cannot be mounted");
        return;
    }
    let mut command = scene.program();
    command.arg("data").arg(scene.mountpoint()).args(options(&scene, &["--passthrough=on"]));
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(71), "{error}");
    assert!(error.contains("--passthrough=on: the file system of --cache-dir"), "{error}");
    let mounted = read_once(scene, &[]);
    assert!(mounted.read("big").unwrap() == bytes_of(&mounted, "big"));
    assert_eq!(total(&mounted, "opened_through") + total(&mounted, "opened_by_daemon"), 0);
    let cache = place(&mounted.scene);
    let (_, _, scene) = mounted.end(Signal::TERM);
    rustix::mount::unmount(&cache, rustix::mount::UnmountFlags::DETACH).unwrap();
    drop(scene);
}

/// H1
#[test]
fn a_hint_for_a_file_that_the_kernel_reads_by_itself_fetches_nothing() {
    if !can_pass_through() {
        return;
    }
    let mounted = read_once(filled(), &[]);
    let _file = opened_through(&mounted, &mounted.path("big"));
    for _ in 0..3 {
        value(&mounted.path("big"), "user.s3.prefetch").unwrap();
    }
    value(&mounted.path("d/small"), "user.s3.prefetch").unwrap();
    let (read, served) = (total(&mounted, "disk_hit_bytes"), total(&mounted, "bytes_served"));
    eventually("the other file is hinted", || total(&mounted, "hints_queued") > 0);
    assert_eq!(total(&mounted, "hints_queued"), 1);
    assert_eq!(
        (total(&mounted, "disk_hit_bytes"), total(&mounted, "bytes_served")),
        (read, served)
    );
}
