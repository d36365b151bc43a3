//! Against Ceph, as source and as the cache that nodes share. `make ceph` starts one, and tells
//! where by `FASTS3_CONTRACT_ENDPOINT`.

use std::path::Path;

use aws_sdk_s3::Client;
use tokio::runtime::Runtime;

use crate::common::{Daemon, Scene, can_mount, eventually};

struct Ceph {
    endpoint: String,
    client: Client,
    runtime: Runtime,
}

impl Ceph {
    /// Nothing where none was started.
    fn find() -> Option<Self> {
        let Ok(endpoint) = std::env::var("FASTS3_CONTRACT_ENDPOINT") else {
            eprintln!("FASTS3_CONTRACT_ENDPOINT is not set: nothing to do");
            return None;
        };
        let keys = aws_sdk_s3::config::Credentials::new("testing", "testing", None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .credentials_provider(keys)
            .build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Some(Self { endpoint, client: Client::from_conf(config), runtime })
    }

    fn make(&self, bucket: &str) {
        self.runtime.block_on(self.client.create_bucket().bucket(bucket).send()).unwrap();
    }

    fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        let put = self.client.put_object().bucket(bucket).key(key).body(bytes.to_vec().into());
        self.runtime.block_on(put.send()).unwrap();
    }

    /// The objects that are more than a claim.
    fn held(&self, bucket: &str) -> usize {
        let list = self.client.list_objects_v2().bucket(bucket).send();
        let listed = self.runtime.block_on(list).unwrap();
        listed.contents().iter().filter(|object| object.size().unwrap_or(0) > 10).count()
    }

    /// Its keys, as a profile for programs whose home this is.
    fn write_profile(&self, home: &Path) {
        std::fs::create_dir_all(home.join(".aws")).unwrap();
        let keys = "[ceph]\naws_access_key_id = testing\naws_secret_access_key = testing\n";
        std::fs::write(home.join(".aws/credentials"), keys).unwrap();
        let config = format!("[profile ceph]\nendpoint_url = {}\n", self.endpoint);
        std::fs::write(home.join(".aws/config"), config).unwrap();
    }
}

fn computed(size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

#[test]
fn a_bucket_on_ceph_is_read_through_a_mount() {
    let Some(ceph) = Ceph::find().filter(|_| can_mount()) else { return };
    ceph.make("source");
    let objects =
        [("a/large", 40 << 20), ("a/odd name ü+%", 3 << 20), ("b/small", 1_000), ("empty", 0)]
            .map(|(key, size)| (key, computed(size)));
    for (key, bytes) in &objects {
        ceph.put("source", key, bytes);
    }
    let scene = Scene::new();
    ceph.write_profile(&scene.folder.path().join("home"));
    let mut command = scene.program();
    command.env("FASTS3_ENDPOINT_URL", &ceph.endpoint).args(["--profile", "ceph", "source"]);
    let daemon = Daemon::start(command.arg(scene.mountpoint()), &scene.mountpoint());
    for (key, bytes) in &objects {
        assert!(&std::fs::read(scene.mountpoint().join(key)).unwrap() == bytes, "{key}");
    }
    let names: Vec<_> = std::fs::read_dir(scene.mountpoint())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "empty"]);
    drop(daemon);
}

#[test]
fn what_mounts_share_is_held_by_ceph() {
    let Some(ceph) = Ceph::find().filter(|_| can_mount()) else { return };
    ceph.make("shared");
    let scene = Scene::new();
    ceph.write_profile(&scene.folder.path().join("home"));
    scene.bucket().put_synthetic("large", (11 << 20) + 12_345);
    let small: Vec<_> = (0..40).map(|number| format!("small-{number:02}")).collect();
    for (number, key) in (0..).zip(&small) {
        scene.bucket().put_synthetic(key, 3_000 + number * 2_000);
    }
    // Units of 2 MiB: six of the large one.
    let entries = small.len() + 6;
    let keys = || small.iter().map(String::as_str).chain(["large"]);
    for is_first in [true, false] {
        let mut command = scene.program();
        command.args(["data", "--shared-cache=s3://shared/of/nodes", "--shared-cache-trust"]);
        command.arg(format!("--shared-cache-endpoint-url={}", ceph.endpoint));
        command.args(["--shared-cache-profile=ceph", "--shared-cache-region=us-east-1"]);
        let daemon = Daemon::start(command.arg(scene.mountpoint()), &scene.mountpoint());
        scene.server.reset();
        for key in keys() {
            let size = scene.bucket().info(key).unwrap().size;
            let want = scene.bucket().bytes(key, 0..size);
            assert!(std::fs::read(scene.mountpoint().join(key)).unwrap() == want, "{key}");
        }
        let gets = scene.server.counts().get;
        if is_first {
            assert!(gets > 0);
            eventually("all is stored", || ceph.held("shared") == entries);
        } else {
            // A busy machine may let the cache be late.
            assert!(gets <= 6, "{gets} GETs");
        }
        drop(daemon);
    }
}
