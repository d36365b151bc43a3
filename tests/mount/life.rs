//! How a mount ends.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::common::{Daemon, Scene, can_mount, errno, eventually, is_mounted, is_root, unmount};

#[test]
fn a_busy_mount_is_ended_by_a_signal_too() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let scene = Scene::new();
        scene.bucket().put_synthetic("object", 10 << 20);
        let mount = scene.mount(&[]);
        let mountpoint = mount.scene.mountpoint();
        let held = File::open(mount.path("object")).unwrap();
        let directory = File::open(mount.path("")).unwrap();
        held.read_exact_at(&mut [0; 10], 0).unwrap();
        let (code, log, _scene) = mount.end(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("unmounting lazily"), "{log}");
        assert!(!is_mounted(&mountpoint));
        // Whoever holds a file hears of the end: an error, no wait for ever.
        let after = errno(held.read_at(&mut [0; 10], 9 << 20));
        assert!(
            matches!(after, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)),
            "{after:?}"
        );
        drop(directory);
        assert!(std::fs::read_dir(&mountpoint).unwrap().next().is_none());
    }
}

#[test]
fn a_signal_ends_a_mount_in_the_middle_of_a_read() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 10 << 20);
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["object"]);
    // Longer than the test: the answer is never seen.
    mount.scene.server.set_first_byte_latency(Duration::from_mins(10));
    let path = mount.path("object");
    let reader = std::thread::spawn(move || errno(std::fs::read(path)));
    eventually("the request", || mount.counts().get > 0);
    let start = Instant::now();
    let (code, log, scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(!is_mounted(&scene.mountpoint()));
    assert!(reader.join().unwrap().is_some(), "a read without an answer fails");
}

#[test]
fn a_reader_can_be_killed_while_it_waits() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 10 << 20);
    scene.bucket().put("other", "bytes");
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["object", "other"]);
    mount.scene.server.set_first_byte_latency(Duration::from_mins(10));
    let mut cat = Command::new("cat").arg(mount.path("object")).spawn().unwrap();
    eventually("the request", || mount.counts().get > 0);
    cat.kill().unwrap();
    eventually("the end of the reader", || cat.try_wait().unwrap().is_some());
    mount.scene.server.set_first_byte_latency(Duration::ZERO);
    assert_eq!(mount.read("other").unwrap(), b"bytes");
}

#[test]
fn unmounting_from_outside_ends_the_daemon_with_0() {
    if !can_mount() || !is_root() {
        return;
    }
    for busy in [false, true] {
        let scene = Scene::new();
        scene.bucket().put("file", "bytes");
        let mut mount = scene.mount(&[]);
        let mountpoint = mount.scene.mountpoint();
        let held = File::open(mount.path("file")).unwrap();
        if busy {
            // Detached, but served as long as somebody holds a file.
            rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).unwrap();
            assert!(!is_mounted(&mountpoint));
            held.read_exact_at(&mut [0; 5], 0).unwrap();
            drop(held);
        } else {
            drop(held);
            unmount(&mountpoint);
        }
        let (code, log) = mount.daemon.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("unmounted from outside"), "{log}");
    }
}

#[test]
fn what_others_mount_on_the_mountpoint_later_is_left_alone() {
    if !can_mount() || !is_root() {
        return;
    }
    // Ended by the last reader, or by a signal.
    for signal in [None, Some(Signal::TERM)] {
        let scene = Scene::new();
        scene.bucket().put("file", "bytes");
        let mut mount = scene.mount(&[]);
        let mountpoint = mount.scene.mountpoint();
        let held = File::open(mount.path("file")).unwrap();
        rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("other", &mountpoint, "tmpfs", flags, None).unwrap();
        match signal {
            None => drop(held),
            Some(signal) => mount.daemon.signal(signal),
        }
        let (code, log) = mount.daemon.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(is_mounted(&mountpoint), "somebody else's mount is gone: {log}");
        assert!(!log.contains("WARN"), "{log}");
        rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_killed_daemon_leaves_a_stale_mount_and_the_next_start_takes_it_away() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mut mount = scene.mount(&[]);
    let mountpoint = mount.scene.mountpoint();
    // The kernel knows the root's attributes now, and goes on telling them without a daemon.
    assert!(std::fs::metadata(&mountpoint).unwrap().is_dir());
    mount.daemon.signal(Signal::KILL);
    assert_eq!(mount.daemon.ended().0, None);
    assert!(is_mounted(&mountpoint));
    assert_eq!(errno(mount.read("file")), Some(libc::ENOTCONN));

    let mut command = mount.scene.program();
    let again = Daemon::start(command.arg("data").arg(&mountpoint), &mountpoint);
    assert_eq!(mount.read("file").unwrap(), b"bytes");
    let (code, log) = again.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("is freed"), "{log}");
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_mountpoint_can_be_used_again_and_by_one_daemon_only() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    scene.bucket().put("file", "bytes");
    for _ in 0..3 {
        let mount = scene.mount(&[]);
        assert_eq!(mount.read("file").unwrap(), b"bytes");
        let mut second = mount.scene.program();
        let output = second.arg("data").arg(mount.scene.mountpoint()).output().unwrap();
        assert_eq!(output.status.code(), Some(73), "{output:?}");
        let (code, log, left) = mount.end(Signal::TERM);
        assert_eq!(code, Some(0), "{log}");
        scene = left;
    }
}

/// Only root can leave such a mount behind without a daemon.
#[test]
fn a_stale_mount_of_others_is_left_alone() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    let mountpoint = scene.mountpoint();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    nix::mount::mount(
        Some("elsewhere"),
        &mountpoint,
        Some("fuse.other"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    drop(device);
    let output = scene.program().arg("data").arg(&mountpoint).output().unwrap();
    let left = is_mounted(&mountpoint);
    rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(74), "{said}");
    assert!(said.contains(&format!("umount -l {}", mountpoint.display())), "{said}");
    assert!(left);
}

/// 32 readers, a listing and a store that fails now and then.
#[test]
fn a_signal_under_load_ends_the_daemon_with_0() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    for index in 0..32 {
        scene.bucket().put_synthetic(&format!("d/{index}"), 64 << 20);
    }
    let mount = scene.mount(&[]);
    mount.add(devserver::proxy::Rule::on_all(devserver::proxy::Fault::slow_down()).every(5));
    let readers: Vec<_> = (0..32)
        .map(|index| {
            let path = mount.path(&format!("d/{index}"));
            std::thread::spawn(move || drop(std::fs::read(path)))
        })
        .collect();
    eventually("load", || mount.counts().body_bytes > 100 << 20);
    let start = Instant::now();
    let (code, log, scene) = mount.end(Signal::TERM);
    let took = start.elapsed();
    assert_eq!(code, Some(0), "{log}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!is_mounted(&scene.mountpoint()));
    for reader in readers {
        reader.join().unwrap();
    }
}
