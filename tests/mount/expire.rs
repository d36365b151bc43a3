//! How the kernel is told that names are to be asked for anew, where it can be told of one at a time
//! only (before Linux 6.16): a mount in this very process, which tells it so on any kernel.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use fasts3_mount::config;
use fasts3_mount::fs::{BucketFs, ReadConfig};
use fasts3_mount::fuse::{self, Expired};
use fasts3_mount::namespace::NamespaceConfig;
use fasts3_mount::store::memory::MemoryStore;

use crate::common::can_mount;

#[test]
fn names_told_one_by_one_are_asked_for_anew_and_open_files_stay() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::new());
    for key in ["file", "gone", "d/file", "d/same"] {
        store.put(key, "old");
    }
    let arguments: [OsString; 4] = [
        "fasts3-mount".into(),
        "data".into(),
        folder.path().into(),
        "--metadata-ttl=indefinite".into(),
    ];
    let config = config::parse(arguments).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let names = NamespaceConfig {
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
    let seam = store.clone();
    let fs = BucketFs::new(seam, &config, names, reading, handle.clone(), Arc::default()).unwrap();
    let mounted = fuse::mount(&fs, &config, None, &handle).unwrap();

    let path = |key: &str| folder.path().join(key);
    let size = |key: &str| std::fs::metadata(path(key)).map(|file| file.len()).ok();
    let all = ["file", "gone", "d/file", "d/same"];
    assert_eq!(all.map(size), [Some(3); 4]);
    let mut open = std::fs::File::open(path("d/file")).unwrap();
    let mut first = [0; 1];
    open.read_exact(&mut first).unwrap();
    let same = std::fs::metadata(path("d/same")).unwrap().ino();
    store.put("file", "newer");
    store.put("d/file", "newer");
    store.delete("gone");

    let _ = fs.drop_names();
    assert_eq!(all.map(size), [Some(3); 4], "the kernel believes what it was told");
    // Four files; the root and `d` are directories.
    assert_eq!(mounted.expire_each(&fs.known()), Expired::OneByOne { names: 4, all: true });
    assert_eq!(all.map(size), [Some(5), None, Some(5), Some(3)]);
    assert_eq!(std::fs::metadata(path("d/same")).unwrap().ino(), same, "the same version");
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (first, rest.as_str()),
        ([b'o'], "ld"),
        "what is open is the version that was opened"
    );
    drop(open);
    drop(mounted);
}
