//! Extended attributes: their values, and the cost of asking for them.

use std::path::Path;
use std::process::Command;

use devserver::Kind;
use devserver::proxy::{Fault, Rule};
use rustix::fs::{fgetxattr, getxattr, getxattr_query, listxattr};

use crate::common::{Scene, can_mount};

/// Asks for the size first, as programs do.
pub(crate) fn value(path: &Path, name: &str) -> Result<String, Option<i32>> {
    let errno = |error: rustix::io::Errno| Some(error.raw_os_error());
    let mut value = vec![0; getxattr_query(path, name).map_err(errno)?];
    let length = getxattr(path, name, value.as_mut_slice()).map_err(errno)?;
    assert_eq!(length, value.len());
    Ok(String::from_utf8(value).unwrap())
}

fn listed(path: &Path) -> Vec<String> {
    let mut names = vec![0; 1000];
    let length = listxattr(path, names.as_mut_slice()).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

/// X1
#[test]
fn key_and_etag_are_known_without_a_request() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let info = scene.bucket().put("data/d/file", "bytes");
    let mount = scene.mount_as("data/data", &["--metadata-ttl=1h"]);
    let (file, directory) = (mount.path("d/file"), mount.path("d"));
    assert_eq!(mount.names("d"), ["file"]);
    mount.forget_counts();
    assert_eq!(listed(&file), ["user.s3.key", "user.s3.etag"]);
    assert_eq!(value(&file, "user.s3.key").unwrap(), "data/d/file");
    assert_eq!(value(&file, "user.s3.etag").unwrap(), info.etag);
    for (path, prefix) in [(directory, "data/d/"), (mount.path(""), "data/")] {
        assert_eq!(listed(&path), ["user.s3.key"]);
        assert_eq!(value(&path, "user.s3.key").unwrap(), prefix);
    }
    assert_eq!(mount.counts().requests(), 0);
}

/// X2
#[test]
fn what_only_a_head_tells_costs_one_head() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["plain", "told"] {
        scene.bucket().put(key, "bytes");
    }
    scene.bucket().set_content_type("told", "image/jpeg");
    scene.bucket().set_storage_class("told", "STANDARD_IA");
    scene.bucket().set_metadata("told", "label", "cat");
    scene.bucket().set_metadata("told", "author", "somebody else");
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names(""), ["plain", "told"]);
    mount.forget_counts();

    let told = |name: &str| value(&mount.path("told"), &format!("user.s3.{name}"));
    assert_eq!(told("content-type").unwrap(), "image/jpeg");
    assert_eq!(told("storage-class").unwrap(), "STANDARD_IA");
    assert_eq!(told("meta.label").unwrap(), "cat");
    assert_eq!(told("metadata").unwrap(), "author: somebody else\nlabel: cat\n");
    for absent in ["meta.other", "version-id"] {
        assert_eq!(told(absent), Err(Some(libc::ENODATA)), "{absent}");
    }
    let counts = mount.counts();
    assert_eq!((counts.head, counts.requests()), (1, 1));

    let plain = |name: &str| value(&mount.path("plain"), &format!("user.s3.{name}"));
    assert_eq!(plain("storage-class").unwrap(), "STANDARD");
    assert_eq!(plain("metadata").unwrap(), "");
    assert_eq!(mount.counts().requests(), 2);
}

/// X2, E4
#[test]
fn what_a_head_tells_of_another_version_is_not_told() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    let path = mount.path("file");
    assert_eq!(mount.names(""), ["file"]);
    let file = std::fs::File::open(&path).unwrap();
    mount.bucket().put("file", "other bytes");
    mount.bucket().set_content_type("file", "text/plain");
    let told = fgetxattr(&file, "user.s3.content-type", [0; 100].as_mut_slice());
    assert_eq!(told, Err(rustix::io::Errno::STALE));
    // By its name it is the new one.
    assert_eq!(value(&path, "user.s3.content-type").unwrap(), "text/plain");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 11);
}

/// X2, E3
#[test]
fn a_refused_head_is_eacces_and_not_remembered() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put("file", "bytes");
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names(""), ["file"]);
    let path = mount.path("file");
    std::fs::metadata(&path).unwrap();
    let denied = Fault::Status { status: 403, code: "AccessDenied".into() };
    // A HEAD's refusal gives no reason, so the first is taken for one of the credentials (E9).
    mount.add(Rule::new(|request| request.kind() == Kind::Head, denied).times(2));
    assert_eq!(value(&path, "user.s3.storage-class"), Err(Some(libc::EACCES)));
    assert_eq!(value(&path, "user.s3.storage-class").unwrap(), "STANDARD");
}

/// X3
#[test]
fn a_directory_tells_its_hidden_keys_and_why() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["d/both", "d/both/in", "d//f", "d/./f", "d/nul\0/f", "d/shown", "e/shown"] {
        scene.bucket().put(key, "bytes");
    }
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    let directory = mount.path("d");
    assert_eq!(mount.names("d"), ["both", "shown"]);
    mount.forget_counts();
    assert_eq!(value(&directory, "user.s3.hidden").unwrap(), "4");
    assert_eq!(
        value(&directory, "user.s3.hidden-keys").unwrap(),
        "d//\ta component of its path is empty\n\
         d/./\ta component of its path is `.` or `..`\n\
         d/nul%00/\tits path holds a NUL byte\n\
         d/both\ta directory has the same name\n"
    );
    assert_eq!(mount.counts().requests(), 1, "one page, for both");
    assert_eq!(value(&mount.path("e"), "user.s3.hidden").unwrap(), "0");
    assert_eq!(value(&mount.path("e"), "user.s3.hidden-keys").unwrap(), "");
}

/// X4
#[test]
fn other_attributes_are_refused_without_a_request() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/file", "bytes");
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("d"), ["file"]);
    let (file, directory) = (mount.path("d/file"), mount.path("d"));
    std::fs::metadata(&file).unwrap();
    mount.forget_counts();
    for (path, name, expected) in [
        (&file, "user.other", libc::ENODATA),
        (&file, "user.s3.other", libc::ENODATA),
        (&file, "user.s3.hidden", libc::ENODATA),
        (&directory, "user.s3.etag", libc::ENODATA),
        (&directory, "user.s3.content-type", libc::ENODATA),
        (&file, "system.posix_acl_access", libc::EOPNOTSUPP),
        (&directory, "system.posix_acl_default", libc::EOPNOTSUPP),
        (&file, "security.selinux", libc::EOPNOTSUPP),
        (&file, "security.capability", libc::EOPNOTSUPP),
    ] {
        assert_eq!(value(path, name), Err(Some(expected)), "{name}");
    }
    let too_small = getxattr(&file, "user.s3.key", [0; 3].as_mut_slice());
    assert_eq!(too_small, Err(rustix::io::Errno::RANGE));
    assert_eq!(mount.counts().requests(), 0);
}

/// X1, X4
#[test]
fn ls_and_a_copy_with_attributes_cost_no_head() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for number in 0..100 {
        scene.bucket().put(&format!("d/{number:03}"), "bytes");
    }
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("d").len(), 100);
    mount.forget_counts();
    let ls = Command::new("ls").arg("-l").arg(mount.path("d")).output().unwrap();
    assert!(ls.status.success(), "{ls:?}");
    assert_eq!(String::from_utf8(ls.stdout).unwrap().lines().count(), 101);
    assert_eq!(mount.counts().requests(), 0);
    let copy = mount.scene.folder.path().join("copy");
    let cp = Command::new("cp").arg("-a").arg(mount.path("d")).arg(&copy).status().unwrap();
    assert!(cp.success());
    assert_eq!(std::fs::read(copy.join("099")).unwrap(), b"bytes");
    let counts = mount.counts();
    assert_eq!((counts.get, counts.requests()), (100, 100));
}
