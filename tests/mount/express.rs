//! Directory buckets (S3 Express One Zone): sessions, and listings in no order.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Daemon, Mount, Scene, can_mount, eventually};

const SOURCE: &str = "data--use1-az4--x-s3";
const CACHE: &str = "cache--use1-az4--x-s3";

/// A directory bucket with 60 files in two directories.
fn scene() -> Scene {
    let scene = Scene::new();
    for key in keys() {
        scene.server.bucket(SOURCE).put(&key, text(&key));
    }
    let _ = scene.server.bucket(CACHE);
    scene
}

fn keys() -> impl Iterator<Item = String> {
    (0..60).map(|number| format!("{}/{number:02}", ["a", "b c"][number % 2]))
}

fn text(key: &str) -> String {
    key.repeat(1000)
}

fn assert_reads(mount: &Mount, key: &str) {
    assert!(mount.read(key).unwrap() == text(key).as_bytes(), "{key}");
}

/// F12
#[test]
fn a_directory_bucket_is_read_in_sessions_that_are_renewed() {
    if !can_mount() {
        return;
    }
    let scene = scene();
    // The mount asks for no right to write.
    scene.server.set_sessions_read_only(true);
    let mount = scene.mount_as(SOURCE, &["--metadata-ttl=1s"]);
    let server = &mount.scene.server;
    assert_eq!(mount.names(""), ["a", "b c"]);
    let even: Vec<_> = (0..60).step_by(2).map(|number| format!("{number:02}")).collect();
    assert_eq!(mount.names("a"), even);
    let keys: Vec<_> = keys().collect();
    let (first, rest) = keys.split_at(20);
    for key in first {
        assert_reads(&mount, key);
    }
    assert_eq!(server.sessions(), 1);
    // The store ends it before its time; the next ones are so short that each is the last.
    server.set_session_life(Duration::from_secs(11));
    server.end_sessions();
    let mut rest = rest.iter().cycle();
    eventually("three more sessions", || {
        assert_reads(&mount, rest.next().unwrap());
        // What is not believed any more is asked of the store.
        assert_eq!(mount.names("a"), even);
        server.sessions() >= 4
    });
    let (code, log, _) = mount.end(rustix::process::Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(!log.contains("WARN") && !log.contains("AKIADEVSERVER0000000/"), "{log}");
}

struct Node {
    _daemon: Daemon,
    place: PathBuf,
}

impl Node {
    /// A mount of the bucket with a directory bucket as its shared cache.
    fn new(scene: &Scene, name: &str) -> Self {
        let place = scene.folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        let cache = format!("--shared-cache=s3://{CACHE}/of/nodes");
        let mut command = scene.program();
        command.arg(SOURCE).arg(&place).args([&cache, "--shared-cache-trust"]);
        Self { _daemon: Daemon::start(&mut command, &place), place }
    }

    fn assert_reads(&self, keys: impl Iterator<Item = String>) {
        for key in keys {
            assert_eq!(std::fs::read_to_string(self.place.join(&key)).unwrap(), text(&key));
        }
    }

    fn total(&self, scene: &Scene, name: &str) -> u64 {
        let output = scene.program().arg("status").arg(&self.place).arg("--json").output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["totals"][name].as_u64().unwrap()
    }
}

/// R11
#[test]
fn a_directory_bucket_is_a_shared_cache() {
    if !can_mount() {
        return;
    }
    let scene = scene();
    // Whoever may only read it reads it, and stores nothing.
    scene.server.set_sessions_read_only(true);
    let reads_only = Node::new(&scene, "reads only");
    reads_only.assert_reads(keys());
    assert_eq!(scene.server.bucket(CACHE).keys(), [""; 0]);
    drop(reads_only);
    scene.server.set_sessions_read_only(false);
    let first = Node::new(&scene, "first");
    first.assert_reads(keys());
    let held = || {
        let bucket = scene.server.bucket(CACHE);
        bucket.keys().iter().filter(|key| bucket.info(key).unwrap().size > 10).count()
    };
    eventually("all is stored", || held() == 60);
    let second = Node::new(&scene, "second");
    second.assert_reads(keys().take(30));
    scene.server.end_sessions();
    second.assert_reads(keys().skip(30));
    assert_eq!(second.total(&scene, "shared_pauses"), 0);
    let all: usize = keys().map(|key| text(&key).len()).sum();
    // A busy machine may let the cache be late.
    assert!(second.total(&scene, "shared_hit_bytes") > all as u64 / 2);
}
