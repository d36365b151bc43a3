//! The mountpoint `/dev/fd/N`: a privileged parent, here a Python program, has made the mount, and
//! an ordinary user serves it.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::common::{Daemon, Scene, can_mount, errno, is_mounted, is_root, skipped_but_not_in_ci};

/// Debian's "nobody".
const USER: u32 = 65534;

fn can_be_given() -> bool {
    let python = || Command::new("python3").arg("--version").output();
    can_mount()
        && is_root()
        && (python().is_ok_and(|output| output.status.success())
            || skipped_but_not_in_ci("there is no python3"))
}

/// A bucket with a file, and a home that the user may use.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.bucket().put_synthetic("folder/object", 10 << 20);
    scene.bucket().put("file", "bytes");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(scene.folder.path(), open).unwrap();
    chown(scene.folder.path().join("home"), Some(USER), Some(USER)).unwrap();
    scene
}

/// The program, started by a parent that has made its mount in some way.
fn given(scene: &Scene, how: &str, place: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/mount_and_exec.py");
    let ours = scene.program();
    let mut command = Command::new("python3");
    command.env_clear().stdin(std::process::Stdio::null());
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg("-B").arg(script).arg(how).arg(scene.mountpoint()).arg(USER.to_string());
    command.arg(ours.get_program()).args(["data", place]);
    command
}

/// A word, as root: exit code, standard output and error.
fn word(scene: &Scene, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = scene.program().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn unmount(mountpoint: &Path) {
    rustix::mount::unmount(mountpoint, UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_mount_that_the_parent_has_made_is_served_without_privileges() {
    if !can_be_given() {
        return;
    }
    let scene = scene();
    let mountpoint = scene.mountpoint();
    let place = mountpoint.to_str().unwrap();
    let mut daemon = Daemon::start(&mut given(&scene, "seen", "/dev/fd/{}"), &mountpoint);
    let process = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(process.contains("\nUid:\t65534\t65534\t65534\t65534\n"), "{process}");
    assert!(process.contains("\nCapEff:\t0000000000000000\n"), "{process}");

    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    assert_eq!(std::fs::read(mountpoint.join("folder/object")).unwrap().len(), 10 << 20);
    assert_eq!(errno(std::fs::write(mountpoint.join("new"), "")), Some(libc::EROFS));

    // Found by its mountpoint, which the kernel has told.
    let (code, status, error) = word(&scene, &["status", place]);
    assert_eq!(code, Some(0), "{error}");
    assert!(status.contains(&format!("s3://data/ on {place}")), "{status}");
    let (code, _, error) = word(&scene, &["unmount", place]);
    assert_eq!(code, Some(70));
    assert!(error.contains("whoever has made the mount has to unmount it"), "{error}");
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");

    unmount(&mountpoint);
    let (code, log) = daemon.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("unmounted from outside"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("the mount stays"), "{log}");
}

#[test]
fn a_mount_out_of_sight_is_served_and_stays_when_its_daemon_ends() {
    if !can_be_given() {
        return;
    }
    let scene = scene();
    let mountpoint = scene.mountpoint();
    let mut command = given(&scene, "hidden", "/dev/fd/{}");
    // A manager that watches it hears of it.
    command.env("WATCHDOG_USEC", "1000000");
    let daemon = Daemon::start(&mut command, &mountpoint);
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");

    // Its name is all that is known of the place.
    let log = daemon.log_so_far();
    let (_, name) = log.split_once("mounted s3://data/ on ").unwrap();
    let name = name.split_whitespace().next().unwrap();
    assert!(name.starts_with("/dev/fd/"), "{log}");
    let (code, status, error) = word(&scene, &["status", name]);
    assert_eq!(code, Some(0), "{error}");
    assert!(status.contains(&format!("s3://data/ on {name}")), "{status}");

    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the mount stays"), "{log}");
    assert!(!log.contains("WARN"), "{log}");
    // `end` has taken away what it left, as its maker would have to.
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_daemon_that_was_given_a_mount_leaves_it_dead() {
    if !can_be_given() {
        return;
    }
    let scene = scene();
    let mountpoint = scene.mountpoint();
    let mut daemon = Daemon::start(&mut given(&scene, "seen", "/dev/fd/{}"), &mountpoint);
    daemon.signal(Signal::TERM);
    let (code, log) = daemon.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(is_mounted(&mountpoint));
    assert_eq!(errno(std::fs::read(mountpoint.join("file"))), Some(libc::ENOTCONN));
    unmount(&mountpoint);
}

#[test]
fn a_daemon_in_the_background_keeps_the_mount_that_it_was_given() {
    if !can_be_given() {
        return;
    }
    let scene = scene();
    let mountpoint = scene.mountpoint();
    let output = given(&scene, "seen", "/dev/fd/{}").arg("--daemon").output().unwrap();
    let read = std::fs::read(mountpoint.join("file"));
    unmount(&mountpoint);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read.unwrap(), b"bytes");
}

#[test]
fn a_descriptor_that_is_no_mount_is_72() {
    if !can_be_given() {
        return;
    }
    for (how, place, says) in [
        ("unmounted", "/dev/fd/{}", "is open on /dev/fuse, but not mounted"),
        ("served", "/dev/fd/{}", "is a mount that has been served already"),
        ("other", "/dev/fd/{}", "is not open on /dev/fuse, but on /dev/null"),
        ("other", "/dev/fd/99", "is not open"),
        ("other", "/dev/fd/0", "is standard input"),
    ] {
        let scene = scene();
        let output = given(&scene, how, place).output().unwrap();
        if how == "served" {
            unmount(&scene.mountpoint());
        }
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(72), "{how}: {said}");
        assert!(said.starts_with("fasts3-mount: mountpoint /dev/fd/"), "{said}");
        assert!(said.contains(says), "{how}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!is_mounted(&scene.mountpoint()));
        assert_eq!(scene.server.counts().requests(), 0, "nobody was asked");
    }
}
