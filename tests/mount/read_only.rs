//! Nothing can be written, and the errno says so: EROFS, whatever is tried.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs as unix;
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::mount::MountFlags;

use crate::common::{Mount, Scene, can_mount, errno, is_root};

fn mounted() -> Mount {
    let scene = Scene::new();
    scene.bucket().put("d/file", "bytes");
    scene.bucket().put("d/other", "others");
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("d"), ["file", "other"]);
    mount
}

/// Everything that changes a file system by a path.
fn mutations(mount: &Mount) -> Vec<(&'static str, io::Result<()>)> {
    let (directory, file) = (mount.path("d"), mount.path("d/file"));
    let new = mount.path("d/new");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let time = Timespec { tv_sec: i64::try_from(now.as_secs()).unwrap(), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let reader = File::open(&file).unwrap();
    vec![
        ("create", File::create(&new).map(drop)),
        ("create exclusively", File::create_new(&new).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(&directory)),
        ("rename", fs::rename(&file, &new)),
        ("rename over another", fs::rename(&file, mount.path("d/other"))),
        ("symlink", unix::symlink("file", &new)),
        ("link", fs::hard_link(&file, &new)),
        ("mknod", {
            let mode = Mode::RUSR;
            rustix::fs::mknodat(CWD, &new, FileType::Fifo, mode, 0).map_err(io::Error::from)
        }),
        ("chmod", {
            let mode = Mode::from_raw_mode(0o400);
            rustix::fs::chmod(&file, mode).map_err(io::Error::from)
        }),
        ("chown", unix::chown(&file, Some(0), Some(0))),
        ("utimensat", {
            let flags = rustix::fs::AtFlags::empty();
            rustix::fs::utimensat(CWD, &file, &times, flags).map_err(io::Error::from)
        }),
        ("futimens", reader.set_modified(SystemTime::UNIX_EPOCH)),
        ("setxattr", {
            let flags = XattrFlags::empty();
            rustix::fs::setxattr(&file, c"user.name", b"value", flags).map_err(io::Error::from)
        }),
    ]
}

/// E2
#[test]
fn every_mutation_is_erofs() {
    if !can_mount() {
        return;
    }
    let mount = mounted();
    for (what, outcome) in mutations(&mount) {
        assert_eq!(errno(outcome), Some(libc::EROFS), "{what}");
    }
    let file = mount.path("d/file");
    for (what, options) in [
        ("open to write", OpenOptions::new().write(true)),
        ("open to append", OpenOptions::new().append(true)),
        ("open to read and write", OpenOptions::new().read(true).write(true)),
        ("open to truncate", OpenOptions::new().write(true).truncate(true)),
    ] {
        assert_eq!(errno(options.open(&file)), Some(libc::EROFS), "{what}");
    }
    assert_eq!(mount.names("d"), ["file", "other"]);
    assert_eq!(mount.read("d/file").unwrap(), b"bytes");
    let counts = mount.counts();
    assert_eq!((counts.get, counts.other), (1, 0), "{counts:?}");
}

/// E2
#[test]
fn what_the_kernel_lets_through_is_erofs_too() {
    if !can_mount() || !is_root() {
        return;
    }
    let mount = mounted();
    // An administrator can tell the kernel that the mount may be written to.
    rustix::mount::mount_remount(mount.scene.mountpoint(), MountFlags::empty(), c"").unwrap();
    for (what, outcome) in mutations(&mount) {
        assert_eq!(errno(outcome), Some(libc::EROFS), "{what}");
    }
    let file = mount.path("d/file");
    assert_eq!(errno(fs::write(&file, "changed")), Some(libc::EROFS));
    let mut appended = OpenOptions::new().append(true).open(&file).unwrap();
    assert_eq!(errno(io::Write::write(&mut appended, b"more")), Some(libc::EROFS));
    assert_eq!(errno(appended.set_len(1)), Some(libc::EROFS));
    assert_eq!(mount.read("d/file").unwrap(), b"bytes");
    assert_eq!(mount.names("d"), ["file", "other"]);
    assert_eq!(mount.counts().other, 0);
}
