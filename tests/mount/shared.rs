//! The cache that nodes share: several mounts of one bucket, and a second server between them.

use std::path::PathBuf;

use devserver::proxy::{Fault, FaultProxy, Rule};
use devserver::{Kind, Server};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Daemon, Scene, can_mount, eventually, program};

/// A bucket, and a server that holds what its mounts share.
struct Nodes {
    scene: Scene,
    cache: Server,
    proxy: FaultProxy,
}

impl Nodes {
    fn new() -> Self {
        let scene = Scene::new();
        scene.bucket().put_synthetic("big", (11 << 20) + 12_345);
        for number in 0..60 {
            scene.bucket().put_synthetic(&format!("small/{number:02}"), 3_000 + number * 2_000);
        }
        let cache = Server::builder().start_blocking().unwrap();
        let _ = cache.bucket("cache");
        let proxy = FaultProxy::start_blocking(cache.address()).unwrap();
        Self { scene, cache, proxy }
    }

    fn options(&self) -> Vec<String> {
        let at = self.proxy.endpoint_url();
        vec![
            "--shared-cache=s3://cache/of/nodes".to_owned(),
            format!("--shared-cache-endpoint-url={at}"),
        ]
    }

    /// A mount on a place of its own, as on another node.
    fn mount(&self, name: &str, more: &[&str]) -> Node {
        let place = self.scene.folder.path().join(name);
        let _ = std::fs::create_dir(&place);
        let mut command = self.scene.program();
        command.arg("data").arg(&place).args(self.options()).args(more);
        let home = self.scene.folder.path().join("home");
        Node { _daemon: Daemon::start(&mut command, &place), place, home }
    }

    /// Another mount has stored all that the bucket holds, which is this.
    fn fill(&self, more: &[&str]) -> Vec<Vec<u8>> {
        let want = self.want();
        // A busy machine may store less at once than comes: what is left out is read again.
        eventually("all is stored", || {
            assert_eq!(self.mount("one", more).read_all(), want);
            self.held() == ENTRIES
        });
        want
    }

    fn want(&self) -> Vec<Vec<u8>> {
        let whole = |key: &String| {
            let size = self.scene.bucket().info(key).unwrap().size;
            self.scene.bucket().bytes(key, 0..size).to_vec()
        };
        keys().iter().map(whole).collect()
    }

    /// Entries on the server, and claims.
    fn held(&self) -> usize {
        let bucket = self.cache.bucket("cache");
        bucket.keys().iter().filter(|key| bucket.info(key).unwrap().size > 10).count()
    }
}

struct Node {
    _daemon: Daemon,
    place: PathBuf,
    home: PathBuf,
}

impl Node {
    fn read_all(&self) -> Vec<Vec<u8>> {
        keys().iter().map(|key| std::fs::read(self.place.join(key)).unwrap()).collect()
    }

    fn total(&self, name: &str) -> u64 {
        let mut status = program(&self.home);
        let output = status.arg("status").arg(&self.place).arg("--json").output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["totals"][name].as_u64().unwrap()
    }
}

fn keys() -> Vec<String> {
    let small = (0..60).map(|number| format!("small/{number:02}"));
    small.chain(["big".to_owned()]).collect()
}

/// Units of 2 MiB: 60 small files, and 6 of the large one.
const ENTRIES: usize = 66;

/// R11
#[test]
fn what_one_node_fetched_the_others_read_from_the_shared_cache() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    let want = nodes.fill(&[]);
    for (name, options, heads) in [
        ("two", &["--shared-cache-trust"][..], 0),
        ("three", &[], 61),
        ("four", &["--cache-dir=DIR", "--cache-reserve=0"], 61),
    ] {
        let dir = nodes.scene.folder.path().join("disk");
        let dir = format!("--cache-dir={}", dir.display());
        let options: Vec<&str> =
            options.iter().map(|&it| if it == "--cache-dir=DIR" { &*dir } else { it }).collect();
        nodes.scene.server.reset();
        let node = nodes.mount(name, &options);
        assert_eq!(node.read_all(), want, "{name}");
        let counts = nodes.scene.server.counts();
        // A busy machine may let the cache be late.
        assert!(counts.get <= 6, "{name}: {counts:?}");
        assert!(counts.head >= heads, "{name}: the right to read each was asked for: {counts:?}");
        let all: usize = want.iter().map(Vec::len).sum();
        assert!(node.total("shared_hit_bytes") > all as u64 / 2, "{name}");
    }
    // The mount writes to the cache, and never to the bucket.
    let log = nodes.scene.server.log();
    assert!(log.iter().all(|request| request.kind != Kind::Other), "{log:?}");
}

/// Units are what nodes claim and store, so a stream asks for whole ones from the beginning on.
#[test]
fn a_stream_asks_for_whole_units_from_the_beginning_on() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    let keys: Vec<_> = (0..10).map(|number| format!("streams/{number}")).collect();
    for key in &keys {
        nodes.scene.bucket().put_synthetic(key, 6 << 20);
    }
    let node = nodes.mount("one", &["--shared-cache-trust"]);
    nodes.scene.server.reset();
    for key in &keys {
        std::fs::read(node.place.join(key)).unwrap();
    }
    let log = nodes.scene.server.log();
    let is_whole = |range: &Option<String>| {
        let (first, last) = range.as_ref()?.strip_prefix("bytes=")?.split_once('-')?;
        let (first, end) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()? + 1);
        Some(first % (2 << 20) == 0 && end % (2 << 20) == 0)
    };
    let in_units = |key: &&String| {
        let mut gets = log.iter().filter(|got| got.kind == Kind::Get && got.key == **key);
        gets.all(|got| is_whole(&got.range) == Some(true))
    };
    // The kernel may send the first two requests for a file in the other order.
    assert!(keys.iter().any(|key| in_units(&key)), "{log:?}");
}

/// Small files, which are all claimed whole; `store::shared` has the rest.
#[test]
fn nodes_that_start_together_wait_for_one_another() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    // Mounts wait for one another in proportion to it; on a busy machine all else is late, too.
    nodes.scene.server.set_first_byte_latency(std::time::Duration::from_millis(400));
    let small: Vec<_> = keys().into_iter().filter(|key| key != "big").collect();
    let mounts: Vec<_> =
        ["a", "b", "c", "d"].map(|name| nodes.mount(name, &["--shared-cache-trust"])).into();
    nodes.scene.server.reset();
    std::thread::scope(|threads| {
        for node in &mounts {
            threads.spawn(|| {
                for key in &small {
                    std::fs::read(node.place.join(key)).unwrap();
                }
            });
        }
    });
    let (gets, once) = (nodes.scene.server.counts().get, small.len() as u64);
    // Four times as many without a cache; how few it takes is seen in simulated time, by
    // `store::shared`, for on a busy machine waits end before what they wait for.
    assert!(gets < 7 * once / 2, "{gets} GETs of four mounts, {once} of one");
}

/// Whatever happens to the cache, reads are right.
#[test]
fn no_fault_of_the_shared_cache_reaches_a_program() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    let want = nodes.fill(&[]);
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    let gone = Fault::Status { status: 404, code: "NoSuchBucket".to_owned() };
    for (number, (fault, counter)) in [
        (Fault::Corrupt { at: 1_000 }, Some("shared_wrong")),
        (Fault::Truncate { after: 1_000 }, Some("shared_pauses")),
        (Fault::Stall { after: 1_000, pause: None }, Some("shared_pauses")),
        (Fault::Stall { after: 0, pause: None }, Some("shared_pauses")),
        (Fault::BodyLength(500), None),
        (Fault::Reset { after: 1_000 }, Some("shared_pauses")),
        (Fault::Hangup, Some("shared_pauses")),
        (Fault::slow_down(), Some("shared_pauses")),
        (Fault::Html, None),
        (denied, Some("shared_pauses")),
        (gone, Some("shared_pauses")),
    ]
    .into_iter()
    .enumerate()
    {
        nodes.proxy.add(Rule::new(|request| request.kind() != Kind::List, fault.clone()));
        let name = format!("faulty{number}");
        let node = nodes.mount(&name, &["--shared-cache-trust"]);
        assert_eq!(node.read_all(), want, "{fault:?}");
        if let Some(counter) = counter {
            assert!(node.total(counter) > 0, "{fault:?}");
        }
        nodes.proxy.clear();
    }
    // It dies while it is read.
    let node = nodes.mount("last", &["--shared-cache-trust"]);
    let Nodes { scene, cache, proxy } = nodes;
    std::thread::scope(|threads| {
        threads.spawn(|| assert_eq!(node.read_all(), want));
        std::thread::sleep(std::time::Duration::from_millis(30));
        proxy.cut();
        drop((proxy, cache));
    });
    drop((node, scene));
}

/// Each question to the cache is a round trip for which a reader of small files waits.
#[test]
fn a_node_that_finds_nobody_soon_asks_the_shared_cache_no_more() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    // One in each directory: nothing is fetched ahead. 250 ms are for no more than 25 of them.
    nodes.scene.server.set_first_byte_latency(std::time::Duration::from_millis(10));
    let keys: Vec<_> = (0..120).map(|number| format!("{number}/file")).collect();
    for key in &keys {
        nodes.scene.bucket().put_synthetic(key, 5000);
    }
    let node = nodes.mount("one", &["--shared-cache-trust"]);
    for key in &keys {
        std::fs::read(node.place.join(key)).unwrap();
    }
    // 32, and one in 16.
    let looks = nodes.cache.counts().get;
    assert!(looks < 80, "{looks} looks of a mount that is alone");
}

/// What it finds wrong it cannot replace.
#[test]
fn a_node_that_may_only_read_does_not_go_on_trying_to_write() {
    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    let keys: Vec<_> = (0..4).map(|number| format!("wrong{number}/file")).collect();
    for key in &keys {
        nodes.scene.bucket().put_synthetic(key, 300_000);
    }
    let read = |node: &Node, key: &String| std::fs::read(node.place.join(key)).unwrap();
    let trust = &["--shared-cache-trust"];
    eventually("all is stored", || {
        let one = nodes.mount("one", trust);
        for key in &keys {
            read(&one, key);
        }
        nodes.held() == keys.len()
    });
    let cache = nodes.cache.bucket("cache");
    for entry in cache.keys() {
        let mut bytes = cache.bytes(&entry, 0..cache.info(&entry).unwrap().size).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        cache.put(&entry, bytes);
    }
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    let puts = nodes.proxy.add(Rule::new(|request| request.kind() == Kind::Other, denied));
    let node = nodes.mount("two", trust);
    let right = |key: &String| {
        let want = nodes.scene.bucket().bytes(key, 0..300_000).to_vec();
        assert_eq!(read(&node, key), want, "{key}");
    };
    right(&keys[0]);
    eventually("it is refused", || node.total("shared_pauses") > 0);
    let refused = puts.hits();
    keys[1..].iter().for_each(right);
    drop(node);
    // A machine that takes a minute for that has it tried again.
    assert!(refused > 0 && puts.hits() <= refused + 1, "{refused} and then {}", puts.hits());
}

#[test]
fn a_mount_starts_and_ends_although_its_shared_cache_is_not_there() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("a", vec![7; 100_000]);
    let nowhere = "--shared-cache-endpoint-url=http://127.0.0.1:9";
    let mounted = scene.mount(&["--shared-cache=s3://cache", nowhere]);
    assert_eq!(mounted.read("a").unwrap(), vec![7; 100_000]);
    let (code, log, _) = mounted.end(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(log.contains("the shared cache is s3://cache/ at http://127.0.0.1:9"), "{log}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    if !can_mount() {
        return;
    }
    let nodes = Nodes::new();
    let key = nodes.scene.folder.path().join("key");
    std::fs::write(&key, "a secret of all nodes\n").unwrap();
    let set_mode = |mode| {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let option = format!("--shared-cache-key={}", key.display());
    set_mode(0o644);
    let mut command = nodes.scene.program();
    command.arg("data").arg(nodes.scene.mountpoint()).args(nodes.options()).arg(&option);
    let refused = command.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(said.contains("--shared-cache-key: ") && said.contains("chmod 600"), "{said}");
    set_mode(0o600);
    let want = nodes.fill(&[&option]);
    nodes.scene.server.reset();
    assert_eq!(nodes.mount("two", &[&option, "--shared-cache-trust"]).read_all(), want);
    assert!(nodes.scene.server.counts().get <= 6);
    // A node without it sees nothing of theirs, and they nothing of its.
    nodes.scene.server.reset();
    assert_eq!(nodes.mount("three", &["--shared-cache-trust"]).read_all(), want);
    assert!(nodes.scene.server.counts().get > 6);
}
