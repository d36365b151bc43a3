//! Mountpoints as they may be given: those that work, whatever they are called, and those that do
//! not, each with one sentence and an exit code.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;

use crate::common::{Daemon, Scene, can_mount};

/// The number of mounts below a folder. Names may be odd, so each is asked by its device.
fn mounts_in(folder: &Path) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    let device = folder.metadata().unwrap().dev();
    let entries = std::fs::read_dir(folder).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().metadata().unwrap().dev() != device).count()
}

#[test]
fn a_mountpoint_may_have_any_name() {
    if !can_mount() {
        return;
    }
    for name in ["with a space", "new\nline", "tab\tback\\slash", "ä'\"$(x)%s", "-rf", "ends in "]
    {
        let scene = Scene::new();
        scene.bucket().put("file", "bytes");
        let mountpoint = scene.mountpoint().join(name);
        std::fs::create_dir(&mountpoint).unwrap();
        let daemon =
            Daemon::start(scene.program().arg("data").arg("--").arg(&mountpoint), &mountpoint);
        assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes", "{name:?}");
        assert_eq!(mounts_in(&scene.mountpoint()), 1, "{name:?}");
        let status = scene.program().arg("status").arg(&mountpoint).output().unwrap();
        assert!(status.status.success(), "{name:?}: {status:?}");
        let again = scene.program().arg("data").arg("--").arg(&mountpoint).output().unwrap();
        assert_eq!(again.status.code(), Some(73), "{name:?}: {again:?}");
        assert_eq!(String::from_utf8(again.stderr).unwrap().lines().count(), 1, "{name:?}");
        let (code, log) = daemon.end(Signal::TERM);
        assert_eq!(code, Some(0), "{name:?}: {log}");
        assert_eq!(mounts_in(&scene.mountpoint()), 0, "{name:?}");
    }
}

#[test]
fn a_link_to_a_mountpoint_is_as_good() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let (mountpoint, link) = (scene.mountpoint(), scene.folder.path().join("link"));
    symlink(&mountpoint, &link).unwrap();
    let daemon = Daemon::start(scene.program().arg("data").arg(&link), &mountpoint);
    assert_eq!(mounts_in(scene.folder.path()), 1);
    for place in [&mountpoint, &link] {
        assert_eq!(std::fs::read(place.join("file")).unwrap(), b"bytes");
        let status = scene.program().arg("status").arg(place).output().unwrap();
        assert!(status.status.success(), "{status:?}");
        // Whichever name is used, it is one place, and it is taken.
        let again = scene.program().arg("data").arg(place).output().unwrap();
        assert_eq!(again.status.code(), Some(73), "{again:?}");
    }
    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(mounts_in(scene.folder.path()), 0);
    assert!(link.is_symlink(), "the link stays");
}

#[test]
fn a_mountpoint_that_cannot_be_one_has_one_sentence_and_a_code() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let folder = scene.folder.path();
    std::fs::write(folder.join("file"), "").unwrap();
    symlink(folder.join("nothing"), folder.join("dangling")).unwrap();
    symlink(folder.join("circle"), folder.join("circle")).unwrap();
    symlink(folder.join("file"), folder.join("to a file")).unwrap();
    for (place, code, says) in [
        ("missing", 72, "does not exist; create it with `mkdir -p "),
        ("mis\nsing", 72, "mis\\nsing does not exist"),
        ("file", 72, "is not a directory"),
        ("file/below", 72, "cannot be used: Not a directory"),
        ("to a file", 72, "is not a directory"),
        ("dangling", 72, "does not exist"),
        ("circle", 72, "Too many levels of symbolic links"),
        ("/", 73, "mountpoint / is in use"),
        ("/proc", 73, "a proc file system is mounted there"),
        ("", 64, "MOUNTPOINT"),
    ] {
        let place = if place.is_empty() { place.into() } else { folder.join(place) };
        let output = scene.program().arg("data").arg(&place).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{place:?}: {said}");
        assert!(said.starts_with("fasts3-mount: ") && said.contains(says), "{place:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(mounts_in(&scene.mountpoint()), 0);
    assert_eq!(scene.server.counts().requests(), 0, "nobody was asked");
}
