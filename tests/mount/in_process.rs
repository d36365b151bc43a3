//! A mount in this process, of a store that the test makes: for faults that no server can be made
//! to show, and for notifications of the kernel.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use fasts3_mount::app::{config, daemon};
use fasts3_mount::fs::BucketFs;
use fasts3_mount::fuse::{self, Mounted};
use fasts3_mount::store::ObjectStore;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Fields are dropped in this order: unmounted first.
pub(crate) struct InProcess {
    pub(crate) mounted: Mounted,
    pub(crate) fs: Arc<BucketFs>,
    pub(crate) folder: TempDir,
    _runtime: Runtime,
}

impl InProcess {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place: [OsString; 3] = ["fasts3-mount".into(), "data".into(), folder.path().into()];
        let options = options.iter().map(OsString::from);
        let config = config::parse(place.into_iter().chain(options)).unwrap();
        let runtime = Runtime::new().unwrap();
        let context = runtime.enter();
        let fs =
            daemon::stack(vec![store], &daemon::Tiers::default(), &config, Arc::default()).unwrap();
        drop(context);
        let mounted = fuse::mount(
            &fs,
            &config.mount_options(config.mountpoint.clone()),
            None,
            None,
            runtime.handle(),
        )
        .unwrap();
        Self { mounted, fs, folder, _runtime: runtime }
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }
}
