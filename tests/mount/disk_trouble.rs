//! The cache on a local disk where the disk, its file system or somebody else makes trouble.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use super::disk::{again, filled, mount, place, read_all, segments, status};
use crate::common::{Mount, can_mount, eventually, is_mounted, is_root};

fn run(words: &[&str]) {
    let status = std::process::Command::new(words[0]).args(&words[1..]).status();
    assert!(status.unwrap().success(), "{words:?}");
}

/// Runs a test of a directory on another file system, which is unmounted after it.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, options: &str, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run(&["mount", "-t", kind, "-o", options, "none", at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(&["umount", "-l", self.0.to_str().unwrap()]);
    }
}

/// R8, where direct I/O, inode numbers and room are not what a local disk has.
#[test]
fn a_directory_on_tmpfs_or_overlay_serves_the_second_mount() {
    if !can_mount() || !is_root() {
        return;
    }
    for kind in ["tmpfs", "overlay"] {
        let scene = filled();
        let below = scene.folder.path().join("below");
        let _tmpfs = Mounted::new("tmpfs", "size=256m,mode=0700", &below);
        let options = if kind == "tmpfs" {
            "size=256m,mode=0700".to_owned()
        } else {
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| below.join(name));
            for path in [&lower, &upper, &work] {
                std::fs::create_dir(path).unwrap();
            }
            let [lower, upper, work] = [lower, upper, work].map(|path| path.display().to_string());
            format!("lowerdir={lower},upperdir={upper},workdir={work}")
        };
        let _there = Mounted::new(kind, &options, &place(&scene));
        let first = mount(scene, &[]);
        let want = read_all(&first);
        let warns = first.daemon.log_so_far().contains("which is memory");
        assert_eq!(warns, kind == "tmpfs", "{}", first.daemon.log_so_far());
        let second = again(first, Signal::TERM);
        assert_eq!(read_all(&second), want);
        assert_eq!(second.counts().get, 0, "{kind}");
        assert_eq!(status(&second)["totals"]["disk_pauses"], 0, "{kind}");
    }
}

/// No scan before serving, nor at any other time: what a mount reads is counted.
#[test]
fn a_million_entries_are_not_read_at_the_start() {
    if !can_mount() {
        return;
    }
    let read_by = |mounted: &Mount| -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", mounted.daemon.pid())).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        line.parse().unwrap()
    };
    let begun = SystemTime::now();
    let without = filled().mount(&[]);
    let (took, read) = (begun.elapsed().unwrap().as_millis(), read_by(&without));
    let (_, _, scene) = without.end(Signal::TERM);
    let inside = place(&scene).join("fasts3-cache-1");
    std::fs::create_dir_all(inside.join("segments")).unwrap();
    for path in [&place(&scene), &inside, &inside.join("segments")] {
        run(&["chmod", "0700", path.to_str().unwrap()]);
    }
    // 51 entries a page, none of them valid; 512 segments, as a large cache has.
    let pages: u64 = 1_000_000 / 51;
    let index = std::fs::File::create(inside.join("index")).unwrap();
    for page in 0..=pages {
        index.write_all_at(&[0xd1; 4096], page * 4096).unwrap();
    }
    index.write_all_at(b"fasts3-mount disk cache\n", 0).unwrap();
    index.write_all_at(&pages.to_le_bytes(), 24).unwrap();
    for number in 1..=512 {
        std::fs::write(inside.join(format!("segments/{number:016x}")), "").unwrap();
    }
    run(&["chmod", "-R", "go-rwx", inside.to_str().unwrap()]);
    let begun = SystemTime::now();
    let with = mount(scene, &["--cache-size=30GiB"]);
    let (took_with, read_with) = (begun.elapsed().unwrap().as_millis(), read_by(&with));
    eprintln!("mounted in {took_with} ms, without a cache in {took} ms");
    assert!(read_with < read + (1 << 20), "{read_with} and {read} bytes read");
    assert!(!with.daemon.log_so_far().contains("made anew"), "{}", with.daemon.log_so_far());
    read_all(&with);
}

/// Another format has another name; and no time stamp counts.
#[test]
fn caches_of_another_format_and_clocks_that_jump_are_no_matter() {
    if !can_mount() {
        return;
    }
    let first = mount(filled(), &[]);
    let want = read_all(&first);
    let (_, _, scene) = first.end(Signal::TERM);
    let other = place(&scene).join("fasts3-cache-2/segments");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("0000000000000001"), vec![1; 5000]).unwrap();
    std::fs::write(place(&scene).join("notes"), "not ours").unwrap();
    let mut mounted = mount(scene, &[]);
    for time in [UNIX_EPOCH, SystemTime::now() + Duration::from_hours(40 * 365 * 24)] {
        let (_, _, scene) = mounted.end(Signal::TERM);
        for segment in segments(&scene) {
            let file = std::fs::File::open(segment).unwrap();
            file.set_modified(time).unwrap();
        }
        mounted = mount(scene, &[]);
        assert_eq!(read_all(&mounted), want);
        assert_eq!(mounted.counts().get, 0);
    }
    assert!(other.join("0000000000000001").exists(), "left to who uses it");
    let mut command = mounted.scene.program();
    command.args(["cache", "clear"]).arg(place(&mounted.scene));
    assert!(command.output().unwrap().status.success());
    assert!(!other.exists() && place(&mounted.scene).join("notes").exists());
}

/// `rm -rf DIR`, and less than that, under a running mount.
#[test]
fn what_is_removed_under_a_running_mount_is_made_anew() {
    if !can_mount() {
        return;
    }
    let mounted = mount(filled(), &["--memory-budget=32MiB"]);
    let want = read_all(&mounted);
    let inside = place(&mounted.scene).join("fasts3-cache-1");
    let removals: [(&str, &dyn Fn()); 3] = [
        ("all", &|| std::fs::remove_dir_all(place(&mounted.scene)).unwrap()),
        ("segments", &|| std::fs::remove_dir_all(inside.join("segments")).unwrap()),
        ("index", &|| {
            let index = std::fs::File::options().write(true).open(inside.join("index")).unwrap();
            index.set_len(100).unwrap();
        }),
    ];
    for (what, remove) in removals {
        remove();
        eventually(what, || {
            // Bytes are right all the time, and stored again soon.
            let mut command = mounted.scene.program();
            let dropped = command.arg("drop").arg(mounted.scene.mountpoint()).output().unwrap();
            assert!(dropped.status.success());
            assert_eq!(read_all(&mounted), want, "{what}");
            let mut command = mounted.scene.program();
            let found = command.args(["cache", "status", "--json"]).arg(place(&mounted.scene));
            let found = found.output().unwrap().stdout;
            serde_json::from_slice::<serde_json::Value>(&found)
                .is_ok_and(|found| found["usable_bytes"].as_u64() > Some(20 << 20))
        });
    }
    assert_eq!(status(&mounted)["totals"]["disk_pauses"], 0, "{}", mounted.daemon.log_so_far());
}

/// A file system of one file, whose bytes nobody ever gets.
struct Hanging {
    length: u64,
    /// Reads that wait; `None` when all reads are to fail.
    held: Arc<Mutex<Option<Vec<fuser::ReplyData>>>>,
}

impl Hanging {
    fn attributes(&self, ino: fuser::INodeNo) -> fuser::FileAttr {
        let is_root = ino == fuser::INodeNo::ROOT;
        let kind = if is_root { fuser::FileType::Directory } else { fuser::FileType::RegularFile };
        fuser::FileAttr {
            ino,
            size: self.length,
            blocks: self.length.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if is_root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Puts the file of a [`Hanging`] in place of a segment.
fn bind(hanging: &Path, segment: PathBuf) -> Mounted {
    let file = hanging.join("file");
    run(&["mount", "--bind", file.to_str().unwrap(), segment.to_str().unwrap()]);
    Mounted(segment)
}

impl fuser::Filesystem for Hanging {
    fn lookup(&self, _: &fuser::Request, _: fuser::INodeNo, _: &OsStr, reply: fuser::ReplyEntry) {
        let attributes = self.attributes(fuser::INodeNo(2));
        reply.entry(&Duration::from_mins(1), &attributes, fuser::Generation(0));
    }

    fn getattr(
        &self,
        _: &fuser::Request,
        ino: fuser::INodeNo,
        _: Option<fuser::FileHandle>,
        reply: fuser::ReplyAttr,
    ) {
        reply.attr(&Duration::from_mins(1), &self.attributes(ino));
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: fuser::INodeNo,
        _: fuser::FileHandle,
        _: u64,
        _: u32,
        _: fuser::OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: fuser::ReplyData,
    ) {
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push(reply),
            None => reply.error(fuser::Errno::EIO),
        }
    }
}

/// A disk of which nothing can be read.
#[test]
fn a_disk_that_fails_is_told_of_with_the_file_that_failed() {
    if !can_mount() || !is_root() {
        return;
    }
    let first = mount(filled(), &[]);
    let want = read_all(&first);
    let (_, _, scene) = first.end(Signal::TERM);
    let dir = scene.folder.path().join("failing");
    std::fs::create_dir(&dir).unwrap();
    let failing = Hanging { length: 256 << 20, held: Arc::default() };
    let session = fuser::spawn_mount(failing, &dir, &fuser::Config::default()).unwrap();
    let (mut bound, mut before) = (Vec::new(), Some(scene));
    // On a busy machine the first reads may be late instead, and what they were for written anew.
    eventually("a failure with its file", || {
        let scene = before.take().unwrap();
        let new = segments(&scene).into_iter().filter(|segment| !is_mounted(segment));
        bound.extend(new.map(|segment| bind(&dir, segment)));
        let mounted = mount(scene, &[]);
        assert_eq!(read_all(&mounted), want);
        let (_, log, scene) = mounted.end(Signal::TERM);
        before = Some(scene);
        let failed = log.lines().find(|line| line.contains("left alone for 1 s: /"));
        failed.is_some_and(|line| {
            let is_named = |file: &Mounted| line.contains(&format!(": {}: ", file.0.display()));
            line.contains("Input/output error") && bound.iter().any(is_named)
        })
    });
    drop(bound);
    session.umount_and_join().unwrap();
}

/// The file is there and can be opened, and its reads do not end: as on a disk that died.
#[test]
fn a_disk_that_hangs_costs_half_seconds_and_no_error() {
    if !can_mount() || !is_root() {
        return;
    }
    let first = mount(filled(), &[]);
    let want = read_all(&first);
    let (_, _, scene) = first.end(Signal::TERM);
    let dir = scene.folder.path().join("hanging");
    std::fs::create_dir(&dir).unwrap();
    let held = Arc::new(Mutex::new(Some(Vec::new())));
    let hanging = Hanging { length: 256 << 20, held: Arc::clone(&held) };
    let session = fuser::spawn_mount(hanging, &dir, &fuser::Config::default()).unwrap();
    let bound: Vec<_> = segments(&scene).into_iter().map(|it| bind(&dir, it)).collect();
    let mounted = mount(scene, &[]);
    assert_eq!(read_all(&mounted), want);
    let totals = status(&mounted)["totals"].clone();
    assert_eq!(totals["disk_hit_bytes"], 0, "{totals}");
    assert!(totals["disk_pauses"].as_u64() >= Some(1), "{totals}");
    let said = "the disk cache is left alone for 1 s: no answer within 500 ms";
    assert!(mounted.daemon.log_so_far().contains(said), "{}", mounted.daemon.log_so_far());
    assert!(held.lock().unwrap().as_ref().is_some_and(|held| !held.is_empty()), "reads wait");
    // Its threads keep the process from ending, but not the mount.
    let Mount { mut daemon, scene } = mounted;
    daemon.signal(Signal::TERM);
    eventually("unmounted", || !is_mounted(&scene.mountpoint()));
    *held.lock().unwrap() = None;
    let (code, log) = daemon.ended();
    assert_eq!(code, Some(0), "{log}");
    drop(bound);
    session.umount_and_join().unwrap();
}
