//! Several buckets under one root.

use std::process::Command;

use serde_json::Value;

use crate::common::{Daemon, Mount, Scene, can_mount, errno, eventually, names, program};

/// The buckets `data` and `other`, mounted as this says.
fn mounted(buckets: &str) -> Mount {
    let scene = Scene::new();
    for key in ["train/a/1", "train/a/2", "train/b", "elsewhere"] {
        scene.bucket().put(key, key);
    }
    for key in ["1", "deep/er/2", "date=1,x/3"] {
        scene.server.bucket("other").put(key, key);
    }
    let mut command = scene.program();
    command.arg(buckets).arg(scene.mountpoint()).arg("--metadata-ttl=1s");
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    Mount { daemon, scene }
}

fn status(mount: &Mount) -> Value {
    let mut status = program(&mount.scene.folder.path().join("home"));
    let output = status.arg("status").arg(mount.path("")).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// M1, M2
#[test]
fn several_buckets_are_directories_of_one_root() {
    if !can_mount() {
        return;
    }
    let source = "labels=s3://other,images=s3://data/train,dates=other/date=1,x,none=data/no";
    let mount = mounted(source);
    assert_eq!(mount.names(""), ["dates", "images", "labels", "none"]);
    assert_eq!(mount.names("images"), ["a", "b"]);
    assert_eq!(mount.names("labels"), ["1", "date=1,x", "deep"]);
    assert_eq!(mount.names("none"), [""; 0]);
    for (path, bytes) in [
        ("images/a/2", "train/a/2"),
        ("images/b", "train/b"),
        ("labels/deep/er/2", "deep/er/2"),
        ("dates/3", "date=1,x/3"),
    ] {
        assert_eq!(mount.read(path).unwrap(), bytes.as_bytes());
    }
    assert_eq!(errno(mount.read("images/elsewhere")), Some(libc::ENOENT));
    let find = Command::new("find").arg(mount.path("")).args(["-type", "f"]).output().unwrap();
    assert_eq!(String::from_utf8(find.stdout).unwrap().lines().count(), 3 + 3 + 1);
    mount.scene.server.bucket("other").put("new", "new");
    eventually("the new name", || mount.read("labels/new").is_ok());

    let status = status(&mount);
    let shown = "labels=s3://other/,images=s3://data/train/,dates=s3://other/date=1,x/,\
                 none=s3://data/no/";
    assert_eq!(status["settings"]["source"], shown);
    assert_eq!(status["buckets"]["images"]["source"], "s3://data/train/");
    for directory in ["dates", "images", "labels", "none"] {
        let bucket = &status["buckets"][directory];
        assert!(bucket["answered"].as_u64().unwrap() > 0, "{bucket}");
        assert_eq!(bucket["failed"], 0, "{bucket}");
    }
}

/// M3
#[test]
fn a_bucket_that_fails_does_not_take_the_others_down() {
    if !can_mount() {
        return;
    }
    let mount = mounted("good=data/train,bad=missing");
    assert_eq!(mount.names(""), ["bad", "good"]);
    assert_eq!(errno(names(&mount.path("bad"))), Some(libc::EIO));
    assert_eq!(errno(mount.read("bad/1")), Some(libc::EIO));
    assert_eq!(mount.names("good"), ["a", "b"]);
    assert_eq!(mount.read("good/a/1").unwrap(), b"train/a/1");
    let log = mount.daemon.log_so_far();
    assert!(log.contains("bad/ answers with errors until its bucket is there: "), "{log}");
    let status = status(&mount);
    assert!(status["buckets"]["bad"]["failed"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(status["buckets"]["good"]["failed"], 0);
    mount.scene.server.bucket("missing").put("1", "now");
    eventually("the bucket", || mount.read("bad/1").is_ok_and(|bytes| bytes == b"now"));
}

/// M3
#[test]
fn a_mount_of_which_no_bucket_answers_does_not_start() {
    let scene = Scene::new();
    let mut command = scene.program();
    let output = command.arg("a=missing,b=missed").arg(scene.mountpoint()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{said}");
    assert!(said.contains("there is no bucket missing"), "{said}");
}
