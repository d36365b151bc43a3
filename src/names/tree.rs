//! The rules from keys to a tree, all of them, and nothing else: no I/O, no state.
//!
//! - **N1** A key is cut at its `/` into components: the last one names a file, those before it
//!   name directories. A directory needs no object of its own.
//! - **N2** A key that ends with `/` is a directory's marker: it makes the directory exist and is
//!   not shown.
//! - **N3** If both `a` and keys below `a/` exist, the directory wins and the object `a` is hidden.
//! - **N4** A key with an empty component (`a//b`, a leading `/`) is hidden.
//! - **N5** A key with a component `.` or `..` is hidden.
//! - **N6** A key with a NUL byte in a component is hidden.
//! - **N7** A key with a component of more than 255 bytes is hidden, and asking for a name of more
//!   than 255 bytes is an error of its own.
//! - **N8** A key that is not UTF-8 is hidden, and a name that is not UTF-8 is not found.
//! - **N9** Names are bytes: no Unicode normalisation, no case folding.
//! - **N10** A directory's entries are in key order, in which a subdirectory stands as `name/`.
//! - **N11** A key has at most 1024 bytes: what would need a longer one is not found.
//! - **N12** A directory exists as long as any key begins with its path and a `/`, were it a marker
//!   or a hidden key. The root always exists.

use std::cmp::Ordering;
use std::fmt;

use crate::store::ListEntry;

/// The longest name that Linux file systems know (`NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;

/// The longest key of S3, in bytes of UTF-8 ("Naming Amazon S3 objects", S3 user guide).
pub const MAX_KEY_BYTES: usize = 1024;

/// What one entry of a directory's delimited listing means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// The directory's own marker.
    Marker,
    /// A file of this name; hidden after all if a directory of the same name follows.
    File(&'a str),
    /// A directory of this name.
    Directory(&'a str),
    /// Keys that cannot be shown.
    Hidden(Hidden),
}

/// Why a key is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hidden {
    /// N4
    EmptyComponent,
    /// N5
    DotComponent,
    /// N6
    Nul,
    /// N7
    TooLong,
    /// N3
    ShadowedByDirectory,
    /// N8
    NotUtf8,
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyComponent => "a component of its path is empty",
            Self::DotComponent => "a component of its path is `.` or `..`",
            Self::Nul => "its path holds a NUL byte",
            Self::TooLong => "a component of its path is longer than 255 bytes",
            Self::ShadowedByDirectory => "a directory has the same name",
            Self::NotUtf8 => "it is not UTF-8",
        })
    }
}

/// What an entry means in the listing of the directory `prefix`; `None` when it cannot belong
/// there, because the store did not roll up at the delimiter or listed outside of the prefix.
pub fn meaning<'a>(prefix: &str, entry: &'a ListEntry) -> Option<Meaning<'a>> {
    let below = entry.key().strip_prefix(prefix)?;
    let (name, of_kind): (_, fn(&'a str) -> Meaning<'a>) = match entry {
        ListEntry::Object(_) if below.is_empty() => return Some(Meaning::Marker),
        ListEntry::Object(_) => (below, Meaning::File),
        ListEntry::Prefix(_) => (below.strip_suffix('/')?, Meaning::Directory),
    };
    if name.contains('/') {
        return None;
    }
    Some(hidden_name(name.as_bytes()).map_or_else(|| of_kind(name), Meaning::Hidden))
}

/// The key that a name asks for in the directory `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No key can have this name.
    Nothing,
    /// The name is too long to be one.
    TooLong,
    /// This key, or keys below it.
    Key(String),
}

/// What the kernel asks for with a name.
pub fn asked(prefix: &str, name: &[u8]) -> Asked {
    match hidden_name(name) {
        Some(Hidden::TooLong) => return Asked::TooLong,
        Some(_) => return Asked::Nothing,
        None if name.contains(&b'/') => return Asked::Nothing,
        None => {}
    }
    match std::str::from_utf8(name) {
        Ok(name) if prefix.len() + name.len() <= MAX_KEY_BYTES => {
            Asked::Key(format!("{prefix}{name}"))
        }
        _ => Asked::Nothing,
    }
}

/// The prefix under which the keys of a directory `key` lie, if N11 allows any.
pub fn directory_prefix(key: &str) -> Option<String> {
    (key.len() < MAX_KEY_BYTES).then(|| format!("{key}/"))
}

/// The directory that shows a key, and the name under which it does: `a/b/` and `c` for `a/b/c`,
/// `a/` and `b` for the directory `a/b/`. `None` for the empty prefix, which lies nowhere.
pub fn parent_and_name(key: &str) -> Option<(&str, &str)> {
    let path = key.strip_suffix('/').unwrap_or(key);
    let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
    (!key.is_empty()).then(|| path.split_at(name_at))
}

/// N10: compares two entries, each a name and whether it is a directory.
pub fn entry_order(a: (&[u8], bool), b: (&[u8], bool)) -> Ordering {
    fn rest((name, directory): (&[u8], bool), from: usize) -> impl Iterator<Item = u8> + '_ {
        name[from..].iter().copied().chain(directory.then_some(b'/'))
    }
    let common = a.0.len().min(b.0.len());
    a.0[..common].cmp(&b.0[..common]).then_with(|| rest(a, common).cmp(rest(b, common)))
}

fn hidden_name(name: &[u8]) -> Option<Hidden> {
    match name {
        b"" => Some(Hidden::EmptyComponent),
        b"." | b".." => Some(Hidden::DotComponent),
        _ if name.len() > MAX_NAME_BYTES => Some(Hidden::TooLong),
        _ if name.contains(&0) => Some(Hidden::Nul),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::{ObjectMeta, ObjectVersion};

    fn object(key: &str) -> ListEntry {
        let version = ObjectVersion { key: key.to_owned(), etag: String::new(), size_bytes: 0 };
        let last_modified = SystemTime::UNIX_EPOCH;
        ListEntry::Object(ObjectMeta { version, last_modified, archived: false })
    }

    fn common(prefix: &str) -> ListEntry {
        ListEntry::Prefix(prefix.to_owned())
    }

    #[test]
    fn n1_components_name_directories_and_the_last_one_a_file() {
        assert_eq!(meaning("", &common("a/")), Some(Meaning::Directory("a")));
        assert_eq!(meaning("a/", &common("a/b/")), Some(Meaning::Directory("b")));
        assert_eq!(meaning("a/b/", &object("a/b/c")), Some(Meaning::File("c")));
        assert_eq!(asked("a/b/", b"c"), Asked::Key("a/b/c".to_owned()));
        assert_eq!(parent_and_name("a/b/c"), Some(("a/b/", "c")));
        assert_eq!(parent_and_name("a/b/"), Some(("a/", "b")));
        assert_eq!(parent_and_name("a"), Some(("", "a")));
        assert_eq!(parent_and_name(""), None);
    }

    #[test]
    fn n1_an_entry_that_is_not_one_step_below_the_directory_means_nothing() {
        assert_eq!(meaning("", &object("a/b")), None);
        assert_eq!(meaning("", &common("a/b/")), None);
        assert_eq!(meaning("", &common("a")), None);
        assert_eq!(meaning("a/", &common("a/")), None);
        assert_eq!(meaning("a/", &object("b")), None);
    }

    #[test]
    fn n2_a_marker_is_not_shown() {
        assert_eq!(meaning("a/", &object("a/")), Some(Meaning::Marker));
    }

    #[test]
    fn n4_n5_n6_n7_keys_that_cannot_be_paths_are_hidden() {
        let long = "x".repeat(256);
        for (name, reason) in [
            ("", Hidden::EmptyComponent),
            (".", Hidden::DotComponent),
            ("..", Hidden::DotComponent),
            ("a\0b", Hidden::Nul),
            (long.as_str(), Hidden::TooLong),
        ] {
            assert_eq!(
                meaning("d/", &common(&format!("d/{name}/"))),
                Some(Meaning::Hidden(reason))
            );
            if !name.is_empty() {
                assert_eq!(
                    meaning("d/", &object(&format!("d/{name}"))),
                    Some(Meaning::Hidden(reason))
                );
            }
        }
        for name in
            ["...", ".a", " ", "\n", "\u{7f}", "x".repeat(255).as_str(), "é".repeat(127).as_str()]
        {
            assert_eq!(meaning("", &object(name)), Some(Meaning::File(name)));
        }
    }

    #[test]
    fn n7_n8_a_name_that_no_key_can_have_is_not_asked_for() {
        assert_eq!(asked("", &[b'x'; 256]), Asked::TooLong);
        for name in [&b""[..], b".", b"..", b"a\0", b"a/b", b"\xff", b"\xc3"] {
            assert_eq!(asked("d/", name), Asked::Nothing, "{name:?}");
        }
    }

    #[test]
    fn n9_names_are_bytes() {
        let (composed, decomposed) = ("\u{e9}", "e\u{301}");
        assert_ne!(asked("", composed.as_bytes()), asked("", decomposed.as_bytes()));
        assert_ne!(asked("", b"A"), asked("", b"a"));
    }

    #[test]
    fn n10_entries_are_in_key_order() {
        let names = ["a", "a!", "a-b", "a.b", "a0", "aa", "b", "é"];
        let entries: Vec<_> = names.iter().flat_map(|name| [(name, false), (name, true)]).collect();
        for (a, a_dir) in &entries {
            for (b, b_dir) in &entries {
                let key = |name: &str, dir: bool| format!("{name}{}", if dir { "/" } else { "" });
                assert_eq!(
                    entry_order((a.as_bytes(), *a_dir), (b.as_bytes(), *b_dir)),
                    key(a, *a_dir).cmp(&key(b, *b_dir)),
                );
            }
        }
    }

    #[test]
    fn n11_a_key_has_at_most_1024_bytes() {
        let prefix = format!("{}/", "p".repeat(1000));
        assert_eq!(asked(&prefix, &[b'n'; 24]), Asked::Nothing);
        let Asked::Key(key) = asked(&prefix, &[b'n'; 23]) else { panic!("1024 bytes are a key") };
        assert_eq!(directory_prefix(&key), None);
        assert_eq!(directory_prefix(&key[..1023]).map(|prefix| prefix.len()), Some(1024));
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// What is shown of any key is a name that a path can have, and leads to that key.
        #[test]
        fn any_key_is_shown_by_a_name_that_leads_to_it_or_not_at_all() {
            let key = "[a-c/.\u{0}ä]{0,12}|(a|/|\\.\\.){1,6}|[a-z]{250,260}|(ä|x{30}/?){0,40}";
            let key = fuzz::text(key);
            fuzz::each(key, |key| {
                // Component by component, as a listing shows it and a lookup asks for it.
                let mut prefix = String::new();
                loop {
                    let below = &key[prefix.len()..];
                    let entry = match below.split_once('/') {
                        Some((name, _)) => common(&format!("{prefix}{name}/")),
                        None => object(&key),
                    };
                    let Some(meaning) = meaning(&prefix, &entry) else {
                        return Err(TestCaseError::fail("is listed in its own directory"));
                    };
                    let (Meaning::File(name) | Meaning::Directory(name)) = meaning else {
                        let odd = |part: &str| hidden_name(part.as_bytes()).is_some();
                        prop_assert!(below.is_empty() || odd(below.split('/').next().unwrap()));
                        return Ok(());
                    };
                    let bytes = name.as_bytes();
                    prop_assert!(!matches!(name, "" | "." | "..") && bytes.len() <= MAX_NAME_BYTES);
                    prop_assert!(!bytes.contains(&b'/') && !bytes.contains(&0));
                    let path = format!("{prefix}{name}");
                    let wanted = if path.len() <= MAX_KEY_BYTES {
                        Asked::Key(path.clone())
                    } else {
                        Asked::Nothing
                    };
                    prop_assert_eq!(asked(&prefix, bytes), wanted);
                    prop_assert_eq!(parent_and_name(entry.key()), Some((&*prefix, name)));
                    if matches!(meaning, Meaning::File(_)) {
                        prop_assert_eq!(path, key);
                        return Ok(());
                    }
                    prefix = path + "/";
                }
            });
        }

        /// And whatever bytes the kernel asks with, what is asked for is shown by that name.
        #[test]
        fn any_name_asks_for_a_key_that_it_is_shown_for_or_for_nothing() {
            let bytes = prop_oneof![
                prop::collection::vec(any::<u8>(), 0..6),
                fuzz::text("[a./ä\u{0}]{0,5}|[a-z]{250,260}").prop_map(String::into_bytes),
            ];
            let prefix = fuzz::text("|a/|(b{100}/){8,11}");
            fuzz::each((prefix, bytes), |(prefix, name)| {
                match asked(&prefix, &name) {
                    Asked::Key(key) => {
                        prop_assert!(key.len() <= MAX_KEY_BYTES);
                        let name = std::str::from_utf8(&name).unwrap();
                        let object = object(&key);
                        prop_assert_eq!(meaning(&prefix, &object), Some(Meaning::File(name)));
                    }
                    Asked::TooLong => prop_assert!(name.len() > MAX_NAME_BYTES),
                    Asked::Nothing => {
                        let is_name = std::str::from_utf8(&name).is_ok_and(|text| {
                            !text.is_empty()
                                && !text.contains(['/', '\0'])
                                && text != "."
                                && text != ".."
                        });
                        prop_assert!(!is_name || prefix.len() + name.len() > MAX_KEY_BYTES);
                    }
                }
                Ok(())
            });
        }
    }
}
