//! Each rule, and properties of any key and any name.

use std::time::SystemTime;

use super::*;
use crate::store::{ObjectMeta, ObjectVersion};

fn object(key: &str) -> ListEntry {
    let version = ObjectVersion { key: key.to_owned(), etag: String::new(), size_bytes: 0 };
    let last_modified = SystemTime::UNIX_EPOCH;
    ListEntry::Object(ObjectMeta { version, last_modified, archived: false })
}

fn entry_key(name: &str, is_directory: bool) -> EntryKey<'_> {
    EntryKey { name: name.as_bytes(), is_directory }
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
fn n1_a_key_that_the_store_has_not_rolled_up_makes_its_directory_exist() {
    assert_eq!(meaning("", &object("a/b")), Some(Meaning::Directory("a")));
    assert_eq!(meaning("p/", &object("p/a/")), Some(Meaning::Directory("a")));
    assert!(matches!(meaning("", &object("/x")), Some(Meaning::Hidden(_))));
}

#[test]
fn n1_an_entry_that_is_not_one_step_below_the_directory_means_nothing() {
    assert_eq!(meaning("", &common("a/b/")), None);
    assert_eq!(meaning("", &common("a")), None);
    assert_eq!(meaning("a/", &object("b")), None);
}

#[test]
fn n2_a_marker_is_not_shown() {
    for entry in [object("a/"), common("a/"), ListEntry::Untold("a/".to_owned())] {
        assert_eq!(meaning("a/", &entry), Some(Meaning::Marker));
    }
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
        assert_eq!(meaning("d/", &common(&format!("d/{name}/"))), Some(Meaning::Hidden(reason)));
        if !name.is_empty() {
            assert_eq!(meaning("d/", &object(&format!("d/{name}"))), Some(Meaning::Hidden(reason)));
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
                entry_key(a, *a_dir).cmp(&entry_key(b, *b_dir)),
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
