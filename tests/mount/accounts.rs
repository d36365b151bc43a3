//! Accounts as people have them: policies that allow a part.

use std::io::ErrorKind;
use std::process::Command;

use devserver::Kind;
use devserver::proxy::{Fault, RequestHead, Rule};
use rustix::process::Signal;

use crate::common::{Mount, Scene, can_mount, errno, names};

fn log_of(mount: Mount) -> String {
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    log
}

fn denied() -> Fault {
    Fault::Status { status: 403, code: "AccessDenied".to_owned() }
}

/// A bucket behind a policy that allows these listings, by their prefix and whether they have a
/// delimiter, and hides which keys do not exist.
fn policy(may_list: impl Fn(&str, bool) -> bool + Send + Sync + 'static) -> Scene {
    let scene = Scene::with_proxy();
    let keys = ["home/a/one", "home/a/two", "home/b/three", "home/four", "five"];
    for key in keys {
        scene.bucket().put(key, key);
    }
    scene.add(Rule::new(
        move |request: &RequestHead| {
            let prefix = request.query("prefix").unwrap_or_default();
            request.kind() == Kind::List && !may_list(&prefix, request.query("delimiter").is_some())
        },
        denied(),
    ));
    scene.add(Rule::new(
        move |request: &RequestHead| {
            request.kind() == Kind::Head && !keys.contains(&request.key().as_str())
        },
        denied(),
    ));
    scene
}

/// F13
#[test]
fn a_policy_that_wants_a_delimiter_is_enough() {
    if !can_mount() {
        return;
    }
    let mount = policy(|_, delimited| delimited).mount(&[]);
    // Lookups without a listing before them.
    assert_eq!(mount.read("home/a/one").unwrap(), b"home/a/one");
    assert_eq!(mount.read("five").unwrap(), b"five");
    assert_eq!(mount.read("home/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.read("home/a/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.names("home"), ["a", "b", "four"]);
    let found = Command::new("find").arg(mount.path("")).arg("-type").arg("f").output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().count(), 5);
    assert!(found.stderr.is_empty());
    let log = log_of(mount);
    let line = "listings without a delimiter are denied";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert_eq!(log.matches("access is denied").count(), 1 + heads_denied(&log), "{log}");
}

fn heads_denied(log: &str) -> usize {
    log.lines().filter(|line| line.contains("access is denied") && line.contains("head")).count()
}

/// F13: "home" and what is in it may be listed, as in AWS's example of home directories.
#[test]
fn a_policy_for_some_prefixes_is_enough_for_them() {
    if !can_mount() {
        return;
    }
    let may = |prefix: &str, delimited: bool| {
        matches!(prefix, "" | "home/") && delimited || prefix.starts_with("home/a/")
    };
    let mount = policy(may).mount(&[]);
    assert_eq!(mount.read("home/a/two").unwrap(), b"home/a/two");
    assert_eq!(mount.read("home/four").unwrap(), b"home/four");
    assert_eq!(mount.read("home/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.names("home/a"), ["one", "two"]);
    assert_eq!(errno(names(&mount.path("home/b"))), Some(libc::EACCES));
    // A key that may be read is read, although nobody may list what is beside it.
    assert_eq!(mount.read("home/b/three").unwrap(), b"home/b/three");

    // The same bucket from the prefix that is allowed, without a right to its neighbours.
    let scene = policy(|prefix, _| prefix.starts_with("home/a/"));
    let mount = scene.mount_as("data/home/a", &[]);
    assert_eq!(mount.names(""), ["one", "two"]);
    assert_eq!(mount.read("one").unwrap(), b"home/a/one");
    assert_eq!(mount.read("none").unwrap_err().kind(), ErrorKind::NotFound);
}
