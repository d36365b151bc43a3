//! A panic ends one request, and nothing else: a mount in this very process, of a store that panics
//! for chosen keys.

use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BufMut;
use fasts3_mount::config;
use fasts3_mount::fs::{BucketFs, ReadConfig};
use fasts3_mount::fuse;
use fasts3_mount::namespace::NamespaceConfig;
use fasts3_mount::store::memory::MemoryStore;
use fasts3_mount::store::{
    ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
};

use crate::common::{can_mount, errno, names};

struct Panicking(MemoryStore);

#[async_trait::async_trait]
impl ObjectStore for Panicking {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        assert_ne!(request.prefix, "panic/", "a panic of the test");
        self.0.list_page(request).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.0.head(key).await
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        assert_ne!(version.key, "get", "a panic of the test");
        self.0.get_range(version, range, into).await
    }
}

#[test]
fn a_panic_is_eio_for_its_request_and_the_mount_goes_on() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Panicking(MemoryStore::new());
    for key in ["get", "well", "panic/file", "d/well"] {
        store.0.put(key, "bytes");
    }
    // More than the page that a lookup of `d` asks for, so that `d/head` is not in it.
    for index in 0..1200 {
        store.0.put(&format!("d/a{index:04}"), "bytes");
    }
    let arguments: [OsString; 3] = ["fasts3-mount".into(), "data".into(), folder.path().into()];
    let config = config::parse(arguments).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let names_config = NamespaceConfig {
        root_prefix: String::new(),
        metadata_ttl: config.metadata_ttl,
        negative_ttl: config.negative_ttl,
        mounted_at: SystemTime::now(),
        listings_bytes: 1 << 20,
        page_keys: 1000,
        pages_at_once: 4,
    };
    let handle = runtime.handle().clone();
    let reading = ReadConfig::new(&config);
    let store = Arc::new(store);
    let fs = BucketFs::new(store, &config, names_config, reading, handle.clone(), Arc::default());
    let mounted = fuse::mount(&fs.unwrap(), &config, None, &handle).unwrap();

    let path = |key: &str| folder.path().join(key);
    for _ in 0..3 {
        assert_eq!(errno(names(&path("panic"))), Some(libc::EIO));
        assert_eq!(errno(std::fs::read(path("get"))), Some(libc::EIO));
        assert_eq!(std::fs::read(path("well")).unwrap(), b"bytes");
        assert_eq!(std::fs::read(path("d/well")).unwrap(), b"bytes");
    }
    drop(mounted);
    assert_eq!(names(folder.path()).unwrap(), [""; 0]);
}
