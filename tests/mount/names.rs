//! Keys become paths by the rules N1 to N12 of `names/rules.rs`.

use crate::common::{Scene, can_mount, errno};

/// Names that are unusual somewhere on the way: in a URL, in XML, in a signature, in a shell.
const ODD: [&str; 30] = [
    "a b",
    " lead",
    "trail ",
    "a+b",
    "a%2Fb",
    "100%",
    "%",
    "new\nline",
    "tab\t",
    "return\r",
    "\u{1}",
    "\u{7f}",
    "<&>\"'",
    "]]>",
    "*?[a]",
    "back\\slash",
    "-rf",
    "~",
    "...",
    "..a",
    ".hidden",
    "a;b=c?d#e",
    "key=value&x",
    "@:,$!()",
    "\u{e9}",
    "e\u{301}",
    "日本語",
    "🦀",
    "\u{fffd}\u{feff}",
    "A",
];

/// N1, N10, E1
#[test]
fn keys_are_a_tree_in_key_order() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let keys = ["top", "a/b/c/deep", "a/b/file", "a/b.txt", "a-b", "a/b-", "empty"];
    for key in keys {
        scene.bucket().put(key, if key == "empty" { "" } else { key });
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["a-b", "a", "empty", "top"]);
    assert_eq!(mount.names("a"), ["b-", "b.txt", "b"]);
    assert_eq!(mount.names("a/b"), ["c", "file"]);
    assert_eq!(mount.names("a/b/c"), ["deep"]);
    for key in keys {
        let expected = if key == "empty" { "" } else { key };
        assert_eq!(mount.read(key).unwrap(), expected.as_bytes());
    }
    assert_eq!(errno(mount.read("a")), Some(libc::EISDIR));
    assert_eq!(errno(mount.read("top/below")), Some(libc::ENOTDIR));
    assert_eq!(errno(mount.read("a/none")), Some(libc::ENOENT));
    assert_eq!(errno(std::fs::read_dir(mount.path("top"))), Some(libc::ENOTDIR));
}

/// N9
#[test]
fn names_are_bytes_whatever_they_mean_elsewhere() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for (index, name) in ODD.iter().enumerate() {
        scene.bucket().put(&format!("listed/{name}"), format!("listed {name}"));
        scene.bucket().put(&format!("{index}/{name}"), format!("asked {name}"));
        scene.bucket().put(&format!("below/{name}/x"), format!("below {name}"));
    }
    // Nothing is believed, so that the store is asked for each name itself.
    let mount = scene.mount(&["--metadata-ttl=0s"]);
    for (index, name) in ODD.iter().enumerate() {
        let read = mount.read(&format!("{index}/{name}")).unwrap();
        assert_eq!(read, format!("asked {name}").as_bytes());
    }
    assert!(mount.counts().head >= ODD.len() as u64, "{:?}", mount.counts());

    let mut sorted = ODD;
    sorted.sort_unstable();
    assert_eq!(mount.names("listed"), sorted);
    for name in ODD {
        let read = mount.read(&format!("listed/{name}")).unwrap();
        assert_eq!(read, format!("listed {name}").as_bytes());
        assert_eq!(mount.names(&format!("below/{name}")), ["x"]);
        let read = mount.read(&format!("below/{name}/x")).unwrap();
        assert_eq!(read, format!("below {name}").as_bytes());
    }
    // Neither case nor composition is folded.
    assert_eq!(errno(mount.read("listed/a")), Some(libc::ENOENT));
    assert_eq!(errno(mount.read("listed/É")), Some(libc::ENOENT));
}

/// N8
#[test]
fn a_name_that_is_not_utf8_is_not_found() {
    use std::os::unix::ffi::OsStrExt as _;

    if !can_mount() {
        return;
    }
    let mount = Scene::new().mount(&[]);
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let path = mount.scene.mountpoint().join(name);
    assert_eq!(errno(std::fs::metadata(path)), Some(libc::ENOENT));
}

/// N4 to N7, N12
#[test]
fn keys_that_cannot_be_paths_are_hidden() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let long = "x".repeat(256);
    let hidden =
        ["/lead", "a//b", "a//", "b/./c", "b/../c", ".", "..", "c/.", "nul/a\0b", long.as_str()];
    for key in hidden {
        scene.bucket().put(key, "hidden");
    }
    scene.bucket().put(&format!("d/{long}"), "hidden");
    scene.bucket().put(&format!("d/{long}/e"), "hidden");
    scene.bucket().put("d/shown", "shown");
    let mount = scene.mount(&[]);
    // A prefix with nothing but hidden keys is still a directory (N12).
    assert_eq!(mount.names(""), ["a", "b", "c", "d", "nul"]);
    for empty in ["a", "b", "c", "nul"] {
        assert_eq!(mount.names(empty), [""; 0], "{empty}");
    }
    assert_eq!(mount.names("d"), ["shown"]);
    assert_eq!(mount.read("d/shown").unwrap(), b"shown");
}

/// N7, E8
#[test]
fn a_component_has_at_most_255_bytes() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let (longest, too_long) = ("é".repeat(127) + "x", "y".repeat(256));
    assert_eq!(longest.len(), 255);
    for key in [&longest, &format!("{longest}d/in"), &too_long] {
        scene.bucket().put(key, "bytes");
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.read(&longest).unwrap(), b"bytes");
    assert_eq!(mount.names(""), [longest.as_str()]);
    assert_eq!(errno(mount.read(&too_long)), Some(libc::ENAMETOOLONG));
    assert_eq!(errno(mount.read(&format!("{too_long}/x"))), Some(libc::ENAMETOOLONG));
}

/// N11
#[test]
fn a_key_of_1024_bytes_is_read() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let key = ["a", "b", "c"].map(|letter| letter.repeat(255) + "/").concat();
    let key = format!("{key}{}/{}", "d".repeat(128), "e".repeat(127));
    assert_eq!(key.len(), 1024);
    scene.bucket().put(&key, "the longest key");
    let mount = scene.mount(&[]);
    assert_eq!(mount.read(&key).unwrap(), b"the longest key");
    let (directory, name) = key.rsplit_once('/').unwrap();
    assert_eq!(mount.names(directory), [name]);
    // One byte more is no key, so nothing is there, and no request is sent (N11).
    mount.forget_counts();
    assert_eq!(errno(mount.read(&format!("{key}f"))), Some(libc::ENOENT));
    assert_eq!(mount.counts().requests(), 0);
}

/// N3
#[test]
fn a_directory_wins_over_an_object_of_its_name() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["both", "both/below", "both-", "marked", "marked/"] {
        scene.bucket().put(key, key);
    }
    let mount = scene.mount(&[]);
    // By a lookup in a directory that is not listed, and then by the listing.
    for _ in 0..2 {
        assert!(std::fs::metadata(mount.path("both")).unwrap().is_dir());
        assert!(std::fs::metadata(mount.path("marked")).unwrap().is_dir());
        assert_eq!(mount.names(""), ["both-", "both", "marked"]);
    }
    assert_eq!(mount.names("both"), ["below"]);
    assert_eq!(mount.read("both/below").unwrap(), b"both/below");
    assert_eq!(mount.names("marked"), [""; 0]);
}

/// N2
#[test]
fn a_marker_makes_a_directory_and_is_not_shown() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["empty/", "full/", "full/file", "deep/er/"] {
        scene.bucket().put(key, "");
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("empty"), [""; 0]);
    assert_eq!(mount.names("full"), ["file"]);
    assert_eq!(mount.names("deep"), ["er"]);
    assert_eq!(mount.names(""), ["deep", "empty", "full"]);
}

#[test]
fn a_prefix_is_a_root() {
    if !can_mount() {
        return;
    }
    for named in ["data/set/1", "s3://data/set/1/"] {
        let scene = Scene::new();
        for key in ["set/1/a", "set/1/b/c", "set/1-/no", "set/10", "outside"] {
            scene.bucket().put(key, key);
        }
        let mount = scene.mount_as(named, &[]);
        assert_eq!(mount.read("b/c").unwrap(), b"set/1/b/c");
        assert_eq!(mount.names(""), ["a", "b"]);
        assert_eq!(mount.read("a").unwrap(), b"set/1/a");
        assert_eq!(errno(mount.read("outside")), Some(libc::ENOENT));
    }
}

/// N12, E1
#[test]
fn an_empty_bucket_is_an_empty_directory() {
    if !can_mount() {
        return;
    }
    let mount = Scene::new().mount(&[]);
    assert_eq!(mount.names(""), [""; 0]);
    assert_eq!(errno(mount.read("any")), Some(libc::ENOENT));
}

#[test]
fn a_large_directory_is_listed_once_and_wholly() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let (prefix, suffix) = ("many/".to_owned(), ".jpg".to_owned());
    let family = devserver::Family { prefix, count: 5_500, size: 3, suffix };
    let expected: Vec<String> = (0..family.count).map(|index| family.key(index)).collect();
    scene.bucket().put_family(family);
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["many"]);
    mount.forget_counts();
    for _ in 0..2 {
        let names = mount.names("many");
        assert!(names.iter().zip(&expected).all(|(name, key)| key.ends_with(name.as_str())));
        assert_eq!(names.len(), expected.len());
    }
    let counts = mount.counts();
    assert!((6..=7).contains(&counts.list), "six pages, once, and a guess: {counts:?}");
    assert_eq!(counts.requests(), counts.list);
}
