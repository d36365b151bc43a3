//! A panic ends one request, and nothing else: a mount in this very process, of a store that panics
//! for chosen keys.

use std::ops::Range;
use std::sync::Arc;

use fasts3_mount::store::{
    Destination, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
};
use fasts3_mount::testing::memory::MemoryStore;

use crate::common::{can_mount, errno, names};
use crate::in_process::InProcess;

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
        into: &mut dyn Destination,
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
    let store = Panicking(MemoryStore::new());
    for key in ["get", "well", "panic/file", "d/well"] {
        store.0.put(key, "bytes");
    }
    // More than the page that a lookup of `d` asks for, so that `d/head` is not in it.
    for index in 0..1200 {
        store.0.put(&format!("d/a{index:04}"), "bytes");
    }
    let mount = InProcess::new(Arc::new(store), &[]);
    let path = |key: &str| mount.path(key);
    for _ in 0..3 {
        assert_eq!(errno(names(&path("panic"))), Some(libc::EIO));
        assert_eq!(errno(std::fs::read(path("get"))), Some(libc::EIO));
        assert_eq!(std::fs::read(path("well")).unwrap(), b"bytes");
        assert_eq!(std::fs::read(path("d/well")).unwrap(), b"bytes");
    }
    let InProcess { mounted, folder, .. } = mount;
    drop(mounted);
    assert_eq!(names(folder.path()).unwrap(), [""; 0]);
}
