//! What pages of a listing without a delimiter prove of the directories in it. Pure.
//!
//! All keys of a directory, those further down included, stand together. So a key proves that each
//! directory on its path exists; and a directory whose end has come, by a key behind it or by the
//! end of the listing, is known as completely as if it had been listed itself. What the pages have
//! come to the middle of is known to exist, and no more.
//!
//! Each directory's keys are rolled up at the next `/`, as the store does it for a delimiter, and
//! go through the same [`Assembly`]: so there is one set of naming rules.

use std::ops::Range;
use std::sync::Arc;

use super::listing::{Assembly, Part, Rest};
use super::tree::{self, Meaning};
use crate::store::{ListEntry, ListPage, StoreError};

/// Directories below this level are not told apart: 1,000 keys of 1,024 bytes may hold half a
/// million directories, which nobody has asked for.
const DEEPEST: usize = 16;

/// Sorts behind every name that a key is likely to have.
const LAST: char = '\u{10ffff}';

/// Undelimited pages of one prefix, in their order.
#[derive(Debug)]
pub(super) struct Flat {
    /// The prefix, and below it the directories that the last key stands in.
    open: Vec<Open>,
    /// Keys in this directory are not looked at: it was left in its middle.
    left: Option<String>,
    /// The pages do not begin at the first key of the prefix, so it is never known completely.
    begun_behind: bool,
}

#[derive(Debug)]
struct Open {
    assembly: Assembly,
    prefix: Arc<str>,
    /// What has come of it on this page, rolled up.
    entries: Vec<ListEntry>,
    /// The last thing that was rolled up.
    rolled_up: String,
    parts: Vec<Part>,
    keys: usize,
}

/// A directory that is known completely.
#[derive(Debug)]
pub(super) struct Proved {
    pub(super) prefix: Arc<str>,
    /// Its entries, in pieces and without numbers.
    pub(super) parts: Vec<Part>,
    /// What it does not show.
    pub(super) rest: Rest,
    /// How many keys are in and below it.
    pub(super) keys: usize,
}

impl Flat {
    /// Pages that begin at the first key of the directory `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self { open: vec![Open::new(prefix.into())], left: None, begun_behind: false }
    }

    /// Pages that begin between two names of the directory `prefix`.
    pub(super) fn begun_behind(prefix: &str) -> Self {
        Self { begun_behind: true, ..Self::new(prefix) }
    }

    /// Where to begin a listing behind a directory. Keys of the directory that come all the same
    /// are not looked at.
    pub(super) fn start_behind(directory: &str) -> String {
        format!("{directory}{LAST}")
    }

    /// Takes the next page, checked, and gives the directories that it has come to the end of, in
    /// the order of their ends.
    ///
    /// A page with keys that nobody can decode proves nothing complete, for nobody knows where they
    /// stand: [`Nonsense::Protocol`].
    pub(super) fn add(&mut self, page: ListPage) -> Result<Vec<Proved>, StoreError> {
        if page.undecodable > 0 {
            return Err(StoreError::nonsense("keys that are not UTF-8".to_owned()));
        }
        let mut proved = Vec::new();
        for entry in page.entries {
            if self.left.as_ref().is_some_and(|left| entry.key().starts_with(left)) {
                continue;
            }
            while self.open.len() > 1 && !entry.key().starts_with(&*self.innermost().prefix) {
                proved.extend(self.open.pop().map(Open::end).transpose()?);
            }
            self.put(entry);
        }
        for open in &mut self.open {
            open.flush()?;
        }
        Ok(proved)
    }

    /// The listing has come to its end, and so have all directories.
    pub(super) fn end(mut self) -> Result<Vec<Proved>, StoreError> {
        let complete = usize::from(self.begun_behind)..self.open.len();
        self.open.drain(complete).rev().map(Open::end).collect()
    }

    /// The directories that the last key stands in, below the prefix and outermost first: they
    /// exist.
    pub(super) fn in_middle_of(&self) -> impl Iterator<Item = &Arc<str>> {
        self.open[1..].iter().map(|open| &open.prefix)
    }

    /// The directory right below the prefix that the last key stands in, and how many of its keys
    /// have come.
    pub(super) fn in_child(&self) -> Option<(&Arc<str>, usize)> {
        self.open.get(1).map(|open| (&open.prefix, open.keys))
    }

    /// Gives the directory of [`Self::in_child`] up; the next page may begin behind it.
    pub(super) fn leave_child(&mut self) {
        if let Some(child) = self.open.drain(1..).next() {
            self.left = Some(child.prefix.to_string());
        }
    }

    fn innermost(&self) -> &Open {
        self.open.last().expect("the prefix is never closed")
    }

    /// Puts a key into each directory on its path.
    fn put(&mut self, entry: ListEntry) {
        for open in &mut self.open {
            open.keys += 1;
        }
        loop {
            let (depth, open) = (self.open.len(), self.open.last_mut().expect("never closed"));
            let key = entry.key();
            let Some(slash) = key[open.prefix.len()..].find('/') else {
                open.entries.push(entry);
                return;
            };
            let directory = &key[..=open.prefix.len() + slash];
            if open.rolled_up == directory {
                // It is not looked into.
                return;
            }
            directory.clone_into(&mut open.rolled_up);
            let rolled_up = ListEntry::Prefix(directory.to_owned());
            let is_shown =
                matches!(tree::meaning(&open.prefix, &rolled_up), Some(Meaning::Directory(_)));
            open.entries.push(rolled_up);
            if !is_shown || depth > DEEPEST {
                return;
            }
            let directory = Open { keys: 1, ..Open::new(directory.into()) };
            self.open.push(directory);
        }
    }
}

impl Open {
    fn new(prefix: Arc<str>) -> Self {
        Self {
            assembly: Assembly::new(prefix.clone()),
            prefix,
            entries: Vec::new(),
            rolled_up: String::new(),
            parts: Vec::new(),
            keys: 0,
        }
    }

    /// Packs what has come.
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.entries);
        let all: Range<usize> = 0..entries.len();
        let page = ListPage { entries, next: None, undecodable: 0 };
        let part = self.assembly.part(&page, all)?;
        self.assembly.append(part)?;
        self.parts.push(self.assembly.settled()?);
        Ok(())
    }

    fn end(mut self) -> Result<Proved, StoreError> {
        self.flush()?;
        self.parts.push(self.assembly.last()?);
        self.parts.retain(|part| !part.is_empty());
        let Self { prefix, parts, keys, .. } = self;
        Ok(Proved { prefix, parts, rest: self.assembly.rest(), keys })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::super::inodes::Inode;
    use super::super::listing::{HiddenKeys, Listing};
    use super::super::pages::Pages;
    use super::super::split::StartAfter;
    use super::*;
    use crate::store::{ListFrom, ListRequest, ObjectMeta, ObjectStore};
    use crate::testing::memory::MemoryStore;

    /// A directory as somebody would see it: what is in it, and what is hidden.
    type Seen = (Vec<Entry>, Vec<HiddenKeys>, bool);

    #[derive(Debug, PartialEq)]
    enum Entry {
        Directory(String),
        File(ObjectMeta),
    }

    fn seen(prefix: &str, parts: Vec<Part>, rest: Rest) -> Seen {
        let mut listing = Listing::new(prefix.into(), 1);
        for part in parts {
            listing.push(Arc::new(part));
        }
        let entry = |index| match listing.inode(index) {
            Inode::Directory(prefix) => Entry::Directory(prefix.to_string()),
            Inode::File(meta) => Entry::File((*meta).clone()),
        };
        ((0..listing.len()).map(entry).collect(), rest.hidden, rest.exists)
    }

    /// The same by a listing of its own.
    async fn listed(store: Arc<MemoryStore>, prefix: &str) -> Seen {
        let mut pages = Pages::new(store, prefix.into(), 1000, 1, StartAfter::Fails);
        let mut parts = Vec::new();
        while let Some(more) = pages.next().await.expect("complete") {
            parts.extend(more);
        }
        seen(prefix, parts, pages.rest())
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
                            let Proved { prefix, parts, rest, .. } = proved;
                            (prefix.to_string(), seen(&prefix, parts, rest))
                        })
                        .collect();
                    assert_eq!(count, proved.len(), "each of them once");
                    assert_eq!(proved, expected);
                }
            });
        }

        /// From the middle on, and over a directory that is left in its middle: nothing is proved of what
        /// was not seen whole.
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
                for Proved { prefix, parts, rest, .. } in proved {
                    assert!(!prefix.is_empty() && left.as_deref() != Some(&*prefix), "{prefix:?}");
                    let seen = seen(&prefix, parts, rest);
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
            assert!(proved.iter().all(|proved| proved.parts[0].len() == 1));
        });
    }

    #[test]
    fn n8_a_page_with_keys_that_nobody_can_decode_proves_nothing() {
        let mut flat = Flat::new("");
        let page = ListPage { undecodable: 1, ..ListPage::default() };
        assert!(flat.add(page).is_err());
    }
}
