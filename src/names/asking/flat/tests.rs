//! What undelimited pages prove, against listings of each directory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::names::asking::pages::Pages;
use crate::names::asking::plan::ListingOrder;
use crate::names::entries::{HiddenKeys, Inode, Listing};
use crate::store::{ListFrom, ListRequest, ObjectMeta, ObjectStore};
use crate::testing::memory::MemoryStore;

/// A directory as somebody would see it: what is in it, and what is hidden.
type Seen = (Vec<Entry>, Vec<HiddenKeys>, bool);

#[derive(Debug, PartialEq)]
enum Entry {
    Directory(String),
    File(ObjectMeta),
}

fn seen(prefix: &str, runs: Vec<EntryRun>, rest: Rest) -> Seen {
    let mut listing = Listing::new(prefix.into(), 1);
    for run in runs {
        listing.push(Arc::new(run));
    }
    let entry = |index| match listing.inode(index) {
        Inode::Directory(prefix) => Entry::Directory(prefix.to_string()),
        Inode::File(meta) => Entry::File((*meta).clone()),
        Inode::Untold(key) => panic!("{key} is told"),
    };
    ((0..listing.len()).map(entry).collect(), rest.hidden, rest.exists)
}

/// The same by a listing of its own.
async fn listed(store: Arc<MemoryStore>, prefix: &str) -> Seen {
    let mut pages = Pages::new(store, prefix.into(), 1000, 1, ListingOrder::Sequential);
    let mut runs = Vec::new();
    while let Some(more) = pages.next().await.expect("complete") {
        runs.extend(more);
    }
    seen(prefix, runs, pages.rest())
}

/// Every directory that can be reached.
async fn walk(store: &Arc<MemoryStore>, prefix: &str) -> BTreeMap<String, Seen> {
    let mut found = BTreeMap::new();
    let mut open = vec![prefix.to_owned()];
    while let Some(prefix) = open.pop() {
        let seen = listed(store.clone(), &prefix).await;
        for entry in &seen.0 {
            if let Entry::Directory(prefix) = entry {
                open.push(prefix.clone());
            }
        }
        found.insert(prefix, seen);
    }
    found
}

/// Pages of so many keys, from a place on.
async fn pages(store: &MemoryStore, prefix: &str, from: ListFrom, keys: u16) -> Vec<ListPage> {
    let (mut pages, mut from) = (Vec::new(), from);
    loop {
        let prefix = prefix.to_owned();
        let request =
            ListRequest { prefix, delimited: false, from, max_keys: keys, any_order: false };
        let page = store.list_page(&request).await.expect("a page");
        let last = page.entries.last().map(|entry| entry.key().to_owned());
        let next = page.next.clone();
        pages.push(page);
        let Some(token) = next else { return pages };
        from = ListFrom::Token { token, last: last.expect("a page that leads on has keys") };
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(test)
}

fn store(keys: &BTreeSet<String>) -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    for key in keys {
        store.put(key, "x");
    }
    Arc::new(store)
}

fn keys() -> impl Strategy<Value = BTreeSet<String>> {
    let key = prop_oneof![
        4 => "[ab/.-]{1,6}",
        2 => "[ab](/[ab-]{1,2}){1,3}/?",
        1 => "d/[ab0-](/[ab])?",
        1 => "[a\u{1}\u{10ffff}](/[b\u{10ffff}]{1,2})?",
    ];
    proptest::collection::btree_set(key, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        rng_seed: RngSeed::Fixed(5),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// N1 to N12: however the pages are cut, what they prove of a directory is what its own
    /// listing says, and in the end it is all directories.
    #[test]
    fn what_flat_pages_prove_is_what_each_directory_lists(keys in keys(), page_keys in 1..8_u16) {
        run(async move {
            let store = store(&keys);
            for prefix in ["", "a/"] {
                let expected = walk(&store, prefix).await;
                let mut flat = Flat::new(prefix);
                let mut proved = Vec::new();
                for page in pages(&store, prefix, ListFrom::Start, page_keys).await {
                    proved.extend(flat.add(page).expect("keys that can be decoded"));
                    for directory in flat.in_middle_of() {
                        assert!(expected.contains_key(&**directory), "{directory:?}");
                    }
                }
                proved.extend(flat.end().expect("complete"));
                let proved: Vec<_> = proved.into_iter().collect();
                let count = proved.len();
                let proved: BTreeMap<_, _> = proved
                    .into_iter()
                    .map(|proved| {
                        let Proved { prefix, runs, rest, .. } = proved;
                        (prefix.to_string(), seen(&prefix, runs, rest))
                    })
                    .collect();
                assert_eq!(count, proved.len(), "each of them once");
                assert_eq!(proved, expected);
            }
        });
    }

    /// From the middle on, and over a directory that is left in its middle: nothing is proved of
    /// what was not seen whole.
    #[test]
    fn what_was_not_seen_whole_is_not_proved(
        keys in keys(),
        page_keys in 1..8_u16,
        leave_at in 0..6_usize,
    ) {
        run(async move {
            let store = store(&keys);
            let expected = walk(&store, "").await;
            let mut flat = Flat::begun_behind("");
            let (mut proved, mut left) = (Vec::new(), None);
            let from = ListFrom::After("a".to_owned());
            let pages = pages(&store, "", from, page_keys).await;
            for (number, page) in pages.into_iter().enumerate() {
                proved.extend(flat.add(page).expect("keys that can be decoded"));
                if number == leave_at {
                    left = flat.in_child().map(|(child, _)| child.to_string());
                    flat.leave_child();
                }
            }
            proved.extend(flat.end().expect("complete"));
            for Proved { prefix, runs, rest, .. } in proved {
                assert!(!prefix.is_empty() && left.as_deref() != Some(&*prefix), "{prefix:?}");
                let seen = seen(&prefix, runs, rest);
                assert_eq!(Some(&seen), expected.get(&*prefix), "{prefix:?}, left {left:?}");
            }
        });
    }
}

#[test]
fn a_page_of_one_deep_key_proves_the_directories_above_it() {
    run(async {
        let store = store(&["a/b/c/x".to_owned(), "a/b/c/y".to_owned()].into());
        let mut flat = Flat::new("a/");
        let first = pages(&store, "a/", ListFrom::Start, 1).await.remove(0);
        assert!(flat.add(first).expect("good").is_empty());
        let exist: Vec<_> = flat.in_middle_of().map(ToString::to_string).collect();
        assert_eq!(exist, ["a/b/", "a/b/c/"]);
    });
}

#[test]
fn directories_are_told_apart_sixteen_levels_deep() {
    run(async {
        let store = store(&["x/".repeat(400) + "end"].into());
        let mut flat = Flat::new("");
        for page in pages(&store, "", ListFrom::Start, 1000).await {
            assert!(flat.add(page).expect("good").is_empty());
        }
        let proved = flat.end().expect("good");
        assert_eq!(proved.len(), 1 + DEEPEST);
        assert!(proved.iter().all(|proved| proved.runs[0].len() == 1));
    });
}

#[test]
fn n8_a_page_with_keys_that_nobody_can_decode_proves_nothing() {
    let mut flat = Flat::new("");
    let page = ListPage { undecodable: 1, ..ListPage::default() };
    assert!(flat.add(page).is_err());
}
