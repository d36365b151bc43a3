//! The answers of stat(2) and statfs(2), and the right to read.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::{Scene, can_mount, errno, eventually, is_root};

const NOBODY: u32 = 65_534;

/// `cat` of a file as a user without rights; only root can become another user.
fn cat_as_nobody(path: &Path) -> Output {
    run_as("cat", path, NOBODY, NOBODY)
}

/// A program about a path, as a user in no other group than this.
fn run_as(program: &str, path: &Path, uid: u32, gid: u32) -> Output {
    Command::new(program).arg(path).uid(uid).gid(gid).output().unwrap()
}

/// Lets every user reach the mountpoint, which is in a private folder.
fn open_the_way(scene: &Scene) {
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(scene.folder.path(), everybody).unwrap();
}

/// A1, A2, A5
#[test]
fn stat_tells_what_the_store_knows() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let listed = scene.bucket().put("listed/file", vec![7; 1001]);
    let asked = scene.bucket().put("asked/file", vec![7; 2002]);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("listed"), ["file"]);
    for (key, info) in [("listed/file", listed), ("asked/file", asked)] {
        let stat = std::fs::metadata(mount.path(key)).unwrap();
        assert_eq!(stat.len(), info.size);
        assert_eq!(stat.modified().unwrap(), info.last_modified);
        assert_eq!(stat.mode(), libc::S_IFREG | 0o444);
        assert_eq!((stat.uid(), stat.gid(), stat.nlink()), (uid, gid, 1));
        assert_eq!(stat.blocks(), info.size.div_ceil(512));
    }
    for directory in ["", "listed", "asked"] {
        let stat = std::fs::metadata(mount.path(directory)).unwrap();
        assert_eq!(stat.mode(), libc::S_IFDIR | 0o555);
        assert_eq!((stat.uid(), stat.gid()), (uid, gid));
        assert_eq!((stat.len(), stat.nlink()), (0, 1));
    }
}

/// A2
#[test]
fn owner_and_modes_are_as_configured() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/f", "bytes");
    let mount = scene.mount(&["--uid=1234", "--gid=2345", "--file-mode=0440", "--dir-mode=0550"]);
    let root = std::fs::metadata(mount.path("")).unwrap();
    assert_eq!((root.mode(), root.uid(), root.gid()), (libc::S_IFDIR | 0o550, 1234, 2345));
    if !is_root() {
        return;
    }
    let file = std::fs::metadata(mount.path("d/f")).unwrap();
    assert_eq!((file.mode(), file.uid(), file.gid()), (libc::S_IFREG | 0o440, 1234, 2345));
}

#[test]
fn others_may_use_the_mount_only_when_allowed() {
    if !can_mount() || !is_root() {
        return;
    }
    for (options, allowed) in [(&["--allow-other"][..], true), (&[], false)] {
        let scene = Scene::new();
        open_the_way(&scene);
        scene.bucket().put("f", "bytes");
        let mount = scene.mount(options);
        let output = cat_as_nobody(&mount.path("f"));
        assert_eq!(output.status.success(), allowed, "{output:?}");
        assert_eq!(output.stdout, if allowed { &b"bytes"[..] } else { b"" });
    }
}

#[test]
fn modes_are_enforced_for_others() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    open_the_way(&scene);
    scene.bucket().put("f", "bytes");
    let mount = scene.mount(&["--allow-other", "--file-mode=0440"]);
    assert_eq!(mount.read("f").unwrap(), b"bytes");
    let output = cat_as_nobody(&mount.path("f"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}");
}

/// A2
#[test]
fn owner_group_and_others_may_do_exactly_what_the_modes_say() {
    const OWNER: (u32, u32) = (1234, NOBODY);
    const GROUP: (u32, u32) = (NOBODY, 2345);
    const OTHER: (u32, u32) = (NOBODY, NOBODY);
    if !can_mount() || !is_root() {
        return;
    }
    // A member of the group has the group's rights only, even if others have more.
    for (file_mode, dir_mode, may) in [
        ("0400", "0500", &[OWNER][..]),
        ("0440", "0550", &[OWNER, GROUP]),
        ("0444", "0555", &[OWNER, GROUP, OTHER]),
        ("0404", "0505", &[OWNER, OTHER]),
    ] {
        let scene = Scene::new();
        open_the_way(&scene);
        scene.bucket().put("d/f", "bytes");
        let (file_mode, dir_mode) =
            (format!("--file-mode={file_mode}"), format!("--dir-mode={dir_mode}"));
        let mount =
            scene.mount(&["--allow-other", "--uid=1234", "--gid=2345", &file_mode, &dir_mode]);
        for who in [OWNER, GROUP, OTHER] {
            let (uid, gid) = who;
            let allowed = may.contains(&who);
            for (program, path, said) in [("cat", "d/f", "bytes"), ("ls", "d", "f\n")] {
                let output = run_as(program, &mount.path(path), uid, gid);
                assert_eq!(output.status.success(), allowed, "{who:?} {file_mode} {output:?}");
                let said = if allowed { said } else { "" };
                assert_eq!(String::from_utf8_lossy(&output.stdout), said, "{who:?} {file_mode}");
            }
        }
    }
}

/// A3, E5
#[test]
fn an_archived_object_has_mode_000_and_cannot_be_read() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    open_the_way(&scene);
    for (key, class) in [
        ("glacier", "GLACIER"),
        ("deep", "DEEP_ARCHIVE"),
        ("instant", "GLACIER_IR"),
        ("dir/asked", "GLACIER"),
    ] {
        scene.bucket().put(key, "bytes");
        scene.bucket().set_storage_class(key, class);
    }
    let root = is_root();
    let mount = scene.mount(if root { &["--allow-other"] } else { &[] });
    assert_eq!(mount.names(""), ["deep", "dir", "glacier", "instant"]);
    for key in ["glacier", "deep", "dir/asked"] {
        let stat = std::fs::metadata(mount.path(key)).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.len()), (0, 5), "{key}");
        // The kernel refuses to open it; root may open everything, and then the daemon refuses.
        assert_eq!(errno(mount.read(key)), Some(libc::EACCES), "{key}");
        if root {
            let output = cat_as_nobody(&mount.path(key));
            assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
        }
    }
    assert_eq!(mount.counts().get, 0, "what is known to be refused is not asked for");
    assert_eq!(mount.read("instant").unwrap(), b"bytes");
}

/// F5
#[test]
fn inode_numbers_are_stable_and_name_one_thing_each() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for index in 0..300 {
        scene.bucket().put(&format!("d/{index}"), "x");
        scene.bucket().put(&format!("e/{index}/x"), "x");
    }
    let mount = scene.mount(&["--metadata-ttl=1s"]);
    let numbers = || {
        let mut numbers = HashMap::new();
        for directory in ["d", "e"] {
            for entry in std::fs::read_dir(mount.path(directory)).unwrap() {
                use std::os::unix::fs::DirEntryExt as _;
                let entry = entry.unwrap();
                assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
                numbers.insert(entry.path(), entry.ino());
            }
        }
        numbers
    };
    let first = numbers();
    assert_eq!(first.len(), 600);
    assert_eq!(first.values().collect::<std::collections::HashSet<_>>().len(), 600);
    assert_eq!(numbers(), first);
    // Also beyond the listing's TTL, after which it was fetched again.
    let lists = mount.counts().list;
    eventually("another listing", || {
        assert_eq!(numbers(), first);
        mount.counts().list > lists
    });
    assert_eq!(numbers(), first);
}

/// A6
#[test]
fn statfs_says_read_only_room_and_names_of_255_bytes() {
    if !can_mount() {
        return;
    }
    let mount = Scene::new().mount(&[]);
    let statvfs = rustix::fs::statvfs(mount.path("")).unwrap();
    assert_eq!(statvfs.f_namemax, 255);
    // Some programs multiply with the one, some with the other.
    assert_eq!((statvfs.f_frsize, statvfs.f_bsize), (1 << 20, 1 << 20));
    let room = [statvfs.f_blocks, statvfs.f_bfree, statvfs.f_bavail];
    assert_eq!(room, [1 << 30; 3], "a PiB, all of it free");
    assert_eq!((statvfs.f_files, statvfs.f_ffree), (0, 0));
    let df = Command::new("df").arg("--output=size,used,pcent").arg(mount.path("")).output();
    let df = String::from_utf8(df.unwrap().stdout).unwrap();
    assert!(df.contains("1099511627776") && df.contains(" 0 ") && df.contains("0%"), "{df}");
    assert!(statvfs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mountpoint = mount.scene.mountpoint();
    let line = mounts.lines().find(|line| line.contains(mountpoint.to_str().unwrap())).unwrap();
    assert!(line.contains(" s3://data/ ro"), "{line}");
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
}
