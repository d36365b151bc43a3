//! How the kernel is told that names are to be asked for anew, where it can be told of one at a
//! time only (before Linux 6.16): a mount in this very process, which tells it so on any kernel.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use fasts3_mount::fuse::Expired;
use fasts3_mount::testing::memory::MemoryStore;

use crate::common::can_mount;
use crate::in_process::InProcess;

#[test]
fn names_told_one_by_one_are_asked_for_anew_and_open_files_stay() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    for key in ["file", "gone", "d/file", "d/same"] {
        store.put(key, "old");
    }
    let mount = InProcess::new(store.clone(), &["--metadata-ttl=indefinite"]);
    let path = |key: &str| mount.path(key);
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

    let _ = mount.fs.drop_names();
    assert_eq!(all.map(size), [Some(3); 4], "the kernel believes what it was told");
    // Four files; the root and `d` are directories.
    assert_eq!(
        mount.mounted.expire_each(&mount.fs.known()),
        Expired::OneByOne { names: 4, all: true }
    );
    assert_eq!(all.map(size), [Some(5), None, Some(5), Some(3)]);
    assert_eq!(std::fs::metadata(path("d/same")).unwrap().ino(), same, "the same version");
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (first, rest.as_str()),
        ([b'o'], "ld"),
        "what is open is the version that was opened"
    );
}
