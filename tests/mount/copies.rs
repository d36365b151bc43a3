//! Programs that copy a tree, compare it later or index it: tar, rsync, cp, updatedb.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;

use crate::common::{Scene, can_mount, errno, eventually, is_root, skipped};

/// The mtime of a directory that has not changed: 2006-03-14.
const UNCHANGED: Duration = Duration::from_hours(13_221 * 24);

/// A tree whose directories are found by name, in a listing, and in a walk.
fn scene() -> Scene {
    let scene = Scene::new();
    for directory in ["d", "d/below", "d/below/deep", "e/1", "e/2", "e/3", "e/4", "e/5"] {
        for name in ["a", "b"] {
            scene.bucket().put(&format!("{directory}/{name}"), vec![7; 30 << 10]);
        }
    }
    scene
}

/// The mtimes of all directories, in nanoseconds since 1970, each looked at before it is listed.
fn mtimes(below: &Path) -> BTreeMap<PathBuf, i64> {
    let mut mtimes = BTreeMap::new();
    let mut left = vec![below.to_owned()];
    while let Some(directory) = left.pop() {
        let stat = std::fs::metadata(&directory).unwrap();
        mtimes.insert(directory.clone(), stat.mtime() * 1_000_000_000 + stat.mtime_nsec());
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    mtimes
}

/// A4
#[test]
fn directories_keep_their_mtimes_over_listings_their_ends_and_remounts() {
    if !can_mount() {
        return;
    }
    let mount = scene().mount(&["--metadata-ttl=1s"]);
    let first = mtimes(&mount.path(""));
    assert_eq!(first.len(), 10);
    assert!(first.values().all(|at| i128::from(*at) == UNCHANGED.as_nanos().cast_signed()));
    let lists = mount.counts().list;
    eventually("another listing", || {
        assert_eq!(mtimes(&mount.path("")), first);
        mount.counts().list > lists
    });
    let (_, _, scene) = mount.end(Signal::TERM);
    let mount = scene.mount(&["--metadata-ttl=1s"]);
    // Now known by name first.
    assert!(std::fs::metadata(mount.path("d/below/deep/a")).is_ok());
    assert_eq!(mtimes(&mount.path("")), first);
}

/// A4
#[test]
fn who_looks_at_nothing_but_a_directorys_mtime_sees_that_it_has_changed() {
    if !can_mount() {
        return;
    }
    let mount = scene().mount(&["--metadata-ttl=1s"]);
    assert_eq!(mount.names("d"), ["a", "b", "below"]);
    let mtime = || std::fs::metadata(mount.path("d")).unwrap().modified().unwrap();
    let before = mtime();
    let put = mount.bucket().put("d/new", "").last_modified;
    eventually("the new mtime", || mtime() != before);
    let second = put.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(mtime().duration_since(UNIX_EPOCH).unwrap().as_secs(), second);
    eventually("the new name", || mount.names("d") == ["a", "b", "below", "new"]);
}

/// A4
#[test]
fn tar_of_a_tree_that_takes_longer_than_the_ttl_sees_no_change() {
    if !can_mount() {
        return;
    }
    let mount = scene().mount(&["--metadata-ttl=1s"]);
    let mut tar = Command::new("tar");
    tar.args(["--checkpoint=4", "--checkpoint-action=sleep=2", "-cf", "/dev/null", "-C"]);
    let output = tar.arg(mount.path("")).arg("d").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// A4
#[test]
fn rsync_reports_no_directory_that_has_not_changed() {
    if !can_mount() {
        return;
    }
    if Command::new("rsync").arg("--version").output().is_err() {
        skipped("rsync is not installed");
        return;
    }
    let mut scene = scene();
    let copy = scene.folder.path().join("copy");
    for round in 0..2 {
        let mount = scene.mount(&["--metadata-ttl=1s"]);
        let rsync = || {
            let mut rsync = Command::new("rsync");
            let output = rsync.arg("-ai").arg(mount.path("")).arg(&copy).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(rsync().is_empty(), round > 0);
        let lists = mount.counts().list;
        eventually("another listing", || {
            assert_eq!(rsync(), "");
            mount.counts().list > lists
        });
        scene = mount.end(Signal::TERM).2;
    }
}

/// A2, E2
#[test]
fn a_copy_with_writable_modes_can_be_written_and_deleted_and_the_mount_cannot() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = scene();
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scene.folder.path(), everybody).unwrap();
    let copy = scene.folder.path().join("copy");
    let mount = scene.mount(&["--allow-other", "--file-mode=0644", "--dir-mode=0755"]);
    // As a user without rights, into a directory that is open to all.
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(
        "umask 022 && cp -r \"$0/d\" \"$1\" && echo new >>\"$1/a\" && echo >\"$1/below/new\" && \
         rm -r \"$1\"",
    );
    let output = sh.arg(mount.path("")).arg(&copy).uid(65_534).gid(65_534).output().unwrap();
    assert!(output.status.success() && !copy.exists(), "{output:?}");
    assert_eq!(errno(std::fs::write(mount.path("d/a"), "new")), Some(libc::EROFS));
    assert_eq!(errno(std::fs::remove_file(mount.path("d/a"))), Some(libc::EROFS));
}

/// The command of the package's unit, and what docs/operations.md does to the configuration.
#[test]
fn updatedb_stays_outside_if_it_is_told_so() {
    if !can_mount() || !is_root() {
        return;
    }
    if Command::new("updatedb.plocate").arg("--version").output().is_err() {
        skipped("plocate is not installed");
        return;
    }
    let unit = include_str!("../../systemd/updatedb.conf");
    let command = unit.lines().filter_map(|line| line.strip_prefix("ExecStart=")).next_back();
    let packaged: Vec<_> = command.unwrap().split(' ').collect();
    let mount = scene().mount(&[]);
    let database = mount.scene.folder.path().join("database");
    let run = |words: &[&str]| {
        let mut updatedb = Command::new(words[0]);
        // /tmp is left out by the configuration.
        updatedb.args(&words[1..]).args(["--prunepaths", "", "--require-visibility", "no"]);
        updatedb.arg("--database-root").arg(mount.scene.folder.path()).arg("-o").arg(&database);
        let output = updatedb.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        mount.counts().list
    };
    let before = mount.counts().list;
    assert_eq!(run(&packaged), before);
    assert!(run(&packaged[..1]) > before);

    let documented = include_str!("../../docs/operations.md");
    let sed = documented.lines().find(|line| line.contains("sed -i") && line.contains("PRUNEFS"));
    let conf = mount.scene.folder.path().join("updatedb.conf");
    std::fs::copy("/etc/updatedb.conf", &conf).unwrap();
    let sed = sed.unwrap().replace("/etc/updatedb.conf", conf.to_str().unwrap());
    assert!(Command::new("sh").args(["-c", &sed]).status().unwrap().success());
    assert!(std::fs::read_to_string(&conf).unwrap().contains("\nPRUNEFS=\"fuse.fasts3 NFS "));
}
