//! A directory's entries: compact, in key order, and never changed once they are shown.
//!
//! A listing is made of parts, which are shown one after the other as pages arrive. It is all or
//! nothing all the same: a page that fails or makes no sense fails the whole, because a directory
//! that silently lacks files is worse than an error.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

pub use self::part::{Part, Place};
use super::tree::{self, Hidden, Meaning};
use super::{Ino, inodes::Inode, inodes::InodeRef};
use crate::store::{ListEntry, ListPage, StoreError};

mod part;

/// What a part of a listing costs beside its entries: an `Arc`, two vectors, and their allocations.
pub(super) const PART_BYTES: usize = 128;

/// A directory's entries in key order (N10), each with its inode number.
///
/// While it grows, it is a beginning of the whole.
#[derive(Clone, Debug)]
pub struct Listing {
    prefix: Arc<str>,
    /// Unique in a mount, never 0: the high half of the cookies of scans over this listing.
    generation: u32,
    /// Not empty, each with the index of its first entry. Indices are those of the whole directory,
    /// also where the first parts have been left out.
    parts: Vec<(usize, Arc<Part>)>,
    length: usize,
}

impl Listing {
    /// Of the directory `prefix`, with nothing in it yet.
    pub(super) fn new(prefix: Arc<str>, generation: u32) -> Self {
        Self { prefix, generation, parts: Vec::new(), length: 0 }
    }

    /// The directory's prefix.
    pub fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    /// What tells this listing from every other.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        let parts = self.parts.iter().map(|(_, part)| part.memory_bytes() + PART_BYTES);
        parts.sum::<usize>() + self.prefix.len() + size_of::<Self>()
    }

    /// Where the entry of this name stands.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        [true, false].into_iter().find_map(|directory| {
            let index = self.lower_bound((name, directory));
            (index < self.length && self.place(index) == (name, directory)).then_some(index)
        })
    }

    /// What an entry is ordered by, and its inode number.
    pub fn entry(&self, index: usize) -> (Place<'_>, Ino) {
        let (part, index) = self.at(index);
        (part.place(index), part.ino(index))
    }

    /// An entry's name.
    pub fn name(&self, index: usize) -> &[u8] {
        self.place(index).0
    }

    /// What an entry is ordered by.
    pub fn place(&self, index: usize) -> Place<'_> {
        let (part, index) = self.at(index);
        part.place(index)
    }

    /// An entry's inode number.
    pub fn ino(&self, index: usize) -> Ino {
        let (part, index) = self.at(index);
        part.ino(index)
    }

    /// Whether an entry is a directory.
    pub fn is_directory(&self, index: usize) -> bool {
        self.place(index).1
    }

    /// A file's size; `None` for a directory, and for a file that cannot be read.
    pub fn file_bytes(&self, index: usize) -> Option<u64> {
        let (part, index) = self.at(index);
        part.file_bytes(index)
    }

    /// What an entry's number names.
    pub fn inode(&self, index: usize) -> Inode {
        let (part, index) = self.at(index);
        part.inode(index, &self.prefix)
    }

    /// The number of what has this name here, if it is the same thing as `of`.
    pub fn number(&self, of: InodeRef<'_>) -> Option<Ino> {
        let (_, name) = tree::parent_and_name(of.key())?;
        let (part, index) = self.at(self.find(name.as_bytes())?);
        part.is(index, of).then(|| part.ino(index))
    }

    /// The number of the entry with this index, if it has the name of an entry of `part` and is the
    /// same thing: what has not changed has the index it had, give or take what came and went.
    pub(super) fn number_near(&self, index: usize, part: &Part, at: usize) -> Option<Ino> {
        let (own, own_at) = (index < self.length).then(|| self.at(index))?;
        own.is_same(own_at, part, at).then(|| own.ino(own_at))
    }

    /// Where the first entry stands that comes behind this place.
    pub fn behind(&self, place: Place<'_>) -> usize {
        let index = self.lower_bound(place);
        if index < self.length && self.place(index) == place { index + 1 } else { index }
    }

    /// Whether the entries from `start` on begin with those of `part`, under the same numbers.
    pub(super) fn continues_with(&self, start: usize, part: &Part) -> bool {
        start + part.len() <= self.length
            && (0..part.len()).all(|at| {
                let (own, own_at) = self.at(start + at);
                own.shows_same(own_at, part, at)
            })
    }

    /// Appends entries that come behind all others.
    pub(super) fn push(&mut self, part: Arc<Part>) {
        if part.is_empty() {
            return;
        }
        self.length += part.len();
        self.parts.push((self.length - part.len(), part));
    }

    /// The same listing without what stands before the part of entry `index`, and with at most
    /// `parts` parts.
    pub(super) fn tail(&self, index: usize, parts: usize) -> Self {
        let first = self.parts.partition_point(|(start, _)| *start <= index).saturating_sub(1);
        let parts: Vec<_> = self.parts.iter().skip(first).take(parts).cloned().collect();
        let length = parts.last().map_or(self.length, |(start, part)| start + part.len());
        Self { prefix: self.prefix.clone(), generation: self.generation, parts, length }
    }

    fn at(&self, index: usize) -> (&Part, usize) {
        let at = match self.parts.binary_search_by_key(&index, |(start, _)| *start) {
            Ok(at) => at,
            Err(behind) => behind - 1,
        };
        let (start, part) = &self.parts[at];
        (part, index - start)
    }

    fn lower_bound(&self, place: Place<'_>) -> usize {
        let begins_before =
            |(_, part): &(usize, Arc<Part>)| tree::entry_order(part.place(0), place).is_lt();
        let Some(at) = self.parts.partition_point(begins_before).checked_sub(1) else { return 0 };
        let (start, part) = &self.parts[at];
        start + part.lower_bound(place)
    }
}

/// A directory's entries on their way from pages to parts, and what cannot be shown.
///
/// An object is hidden by a directory of the same name (N3), which can stand far behind it: between
/// `a` and `a/` there is room for every `a-…`. So an entry settles when what has come behind it is
/// greater than the directory that might hide it, and is not shown before.
#[derive(Debug)]
pub struct Assembly {
    prefix: Arc<str>,
    /// In key order, the first of them not settled.
    open: Part,
    /// Objects in `open` that a directory may still hide, each one's name a beginning of the next.
    unsettled: Vec<usize>,
    /// Objects in `open` that are hidden.
    shadowed: Vec<usize>,
    shown: bool,
    marker: bool,
    hidden: Vec<HiddenKeys>,
}

/// Keys that a listing hides for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenKeys {
    /// Why.
    pub reason: Hidden,
    /// How many; a common prefix counts as one.
    pub count: usize,
    /// The first of them, in order, at most [`HiddenKeys::MOST_KEPT`]; of those that are not UTF-8,
    /// none.
    pub keys: BTreeSet<String>,
}

impl HiddenKeys {
    /// Whoever has so many has made them by a rule, and sees it by now: 1,000 of 100 bytes are
    /// 100 KB a directory and reason, for as long as it is being listed.
    pub const MOST_KEPT: usize = 1000;
}

/// What a complete listing does not show.
#[derive(Debug)]
pub struct Rest {
    /// Hidden keys, one item a reason.
    pub hidden: Vec<HiddenKeys>,
    /// N12: some key begins with the prefix.
    pub exists: bool,
}

impl Assembly {
    /// Of the directory `prefix`.
    pub fn new(prefix: Arc<str>) -> Self {
        Self {
            prefix,
            open: Part::default(),
            unsettled: Vec::new(),
            shadowed: Vec::new(),
            shown: false,
            marker: false,
            hidden: Vec::new(),
        }
    }

    /// Counts what nobody can decode on a page.
    pub fn count(&mut self, page: &ListPage) {
        if page.undecodable > 0 {
            self.hide(Hidden::NotUtf8, page.undecodable, None);
        }
    }

    /// Some entries of a checked page, to be appended when those before them have been.
    pub fn part(&mut self, page: &ListPage, share: Range<usize>) -> Result<Part, StoreError> {
        let prefix = self.prefix.clone();
        let mut part = Part::default();
        for entry in &page.entries[share] {
            let key = entry.key();
            match (tree::meaning(&prefix, entry), entry) {
                (Some(Meaning::Directory(name)), _) => part.push(name, None)?,
                (Some(Meaning::File(name)), ListEntry::Object(meta)) => {
                    part.push(name, Some(meta))?;
                }
                (Some(Meaning::Marker), _) => self.marker = true,
                (Some(Meaning::Hidden(reason)), _) => self.hide(reason, 1, Some(key)),
                (Some(Meaning::File(_)) | None, _) => {
                    return Err(StoreError::nonsense(format!(
                        "{key:?} in a delimited listing of {prefix:?}"
                    )));
                }
            }
        }
        Ok(part)
    }

    /// Appends what comes behind all that was appended.
    pub fn append(&mut self, part: Part) -> Result<(), StoreError> {
        let open = self.open.len();
        self.open.append(part)?;
        for index in open..self.open.len() {
            let (name, is_directory) = self.open.place(index);
            while let Some(last) = self.unsettled.last() {
                let (object, _) = self.open.place(*last);
                match name.strip_prefix(object) {
                    // `a` and `a-`: `a/` may follow.
                    Some([next, ..]) if *next < b'/' => break,
                    Some([]) if is_directory => {
                        let key = format!("{}{}", self.prefix, String::from_utf8_lossy(object));
                        self.shadowed.push(*last);
                        hide(&mut self.hidden, Hidden::ShadowedByDirectory, 1, Some(&key));
                    }
                    _ => {}
                }
                self.unsettled.pop();
            }
            if !is_directory {
                self.unsettled.push(index);
            }
        }
        Ok(())
    }

    /// Takes what has settled.
    pub fn settled(&mut self) -> Result<Part, StoreError> {
        let settled = self.unsettled.first().copied().unwrap_or(self.open.len());
        if settled == 0 {
            return Ok(Part::default());
        }
        // In the order of their directories, which is not that of the objects: `a-/` < `a/`.
        self.shadowed.sort_unstable();
        let open = self.open.split_off(settled);
        let mut shown = std::mem::replace(&mut self.open, open);
        if self.shadowed.first().is_some_and(|index| *index < settled) {
            let mut shadowed = self.shadowed.iter().copied().peekable();
            let all = std::mem::take(&mut shown);
            for index in 0..settled {
                if shadowed.next_if_eq(&index).is_none() {
                    shown.push_copy(&all, index)?;
                }
            }
        }
        for index in &mut self.unsettled {
            *index -= settled;
        }
        // Those behind are moved with their entries.
        self.shadowed.retain(|index| *index >= settled);
        for index in &mut self.shadowed {
            *index -= settled;
        }
        shown.shrink();
        self.shown |= !shown.is_empty();
        Ok(shown)
    }

    /// Takes what is left behind the last entry: nothing can hide it any more.
    pub fn last(&mut self) -> Result<Part, StoreError> {
        self.unsettled.clear();
        self.settled()
    }

    /// Memory of what has not settled.
    pub fn memory_bytes(&self) -> usize {
        self.open.memory_bytes()
    }

    /// What is not shown.
    pub fn rest(mut self) -> Rest {
        self.hidden.sort_unstable_by_key(|keys| keys.reason);
        let exists = self.shown || self.marker || !self.hidden.is_empty();
        Rest { hidden: self.hidden, exists }
    }

    fn hide(&mut self, reason: Hidden, count: usize, key: Option<&str>) {
        hide(&mut self.hidden, reason, count, key);
    }
}

fn hide(hidden: &mut Vec<HiddenKeys>, reason: Hidden, count: usize, key: Option<&str>) {
    let at = hidden.iter().position(|hidden| hidden.reason == reason);
    let at = at.unwrap_or_else(|| {
        hidden.push(HiddenKeys { reason, count: 0, keys: BTreeSet::new() });
        hidden.len() - 1
    });
    let hidden = &mut hidden[at];
    hidden.count += count;
    // Ranges are listed side by side, so the first to come need not be the first.
    hidden.keys.extend(key.map(str::to_owned));
    if hidden.keys.len() > HiddenKeys::MOST_KEPT {
        hidden.keys.pop_last();
    }
}

#[cfg(test)]
mod tests {
    use super::super::pages::Pages;
    use super::super::split::StartAfter;
    use super::*;
    use crate::store::{Nonsense, ObjectStore};
    use crate::testing::fault::{BadPage, Fault, FaultyStore, Operation};
    use crate::testing::memory::MemoryStore;

    struct Complete {
        listing: Listing,
        hidden: Vec<HiddenKeys>,
        exists: bool,
    }

    async fn list(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        page_keys: u16,
    ) -> Result<Complete, StoreError> {
        let mut pages = Pages::new(store, prefix.into(), page_keys, 1, StartAfter::Untried);
        let mut listing = Listing::new(prefix.into(), 1);
        let mut ino = 1;
        while let Some(parts) = pages.next().await? {
            for mut part in parts {
                for index in 0..part.len() {
                    ino += 1;
                    part.set_ino(index, ino);
                }
                listing.push(Arc::new(part));
            }
        }
        let Rest { hidden, exists } = pages.rest();
        Ok(Complete { listing, hidden, exists })
    }

    fn names(listing: &Listing) -> Vec<String> {
        (0..listing.len())
            .map(|index| {
                let slash = if listing.is_directory(index) { "/" } else { "" };
                format!("{}{slash}", String::from_utf8_lossy(listing.name(index)))
            })
            .collect()
    }

    fn store(keys: &[&str]) -> Arc<MemoryStore> {
        let store = MemoryStore::new();
        for key in keys {
            store.put(key, "x");
        }
        Arc::new(store)
    }

    #[tokio::test]
    async fn n3_the_directory_wins_whatever_stands_between() {
        let store = store(&["a", "a-", "a-/1", "a-b", "a/1", "b"]);
        for page_keys in 1..=7 {
            let complete = list(store.clone(), "", page_keys).await.expect("complete");
            // N10: key order.
            assert_eq!(names(&complete.listing), ["a-/", "a-b", "a/", "b"]);
            let hidden = &complete.hidden[0];
            assert_eq!((hidden.reason, hidden.count), (Hidden::ShadowedByDirectory, 2));
            assert_eq!(hidden.keys.iter().collect::<Vec<_>>(), ["a", "a-"]);
            for (index, name) in ["a-", "a-b", "a", "b"].iter().enumerate() {
                assert_eq!(complete.listing.find(name.as_bytes()), Some(index));
            }
            assert_eq!(complete.listing.find(b"a-c"), None);
        }
    }

    #[tokio::test]
    async fn entries_give_back_what_was_listed() {
        let store = store(&["d/x/1"]);
        let meta = store.put("d/f", "four");
        let cold = store.put_archived("d/cold", "");
        let listing = list(store.clone(), "d/", 1000).await.expect("complete").listing;
        assert!(matches!(listing.inode(0), Inode::File(file) if *file == cold));
        assert!(matches!(listing.inode(1), Inode::File(file) if *file == meta));
        assert!(matches!(listing.inode(2), Inode::Directory(prefix) if &*prefix == "d/x/"));
        assert_eq!(listing.number(InodeRef::File(&meta)), Some(listing.ino(1)));
        assert_eq!(listing.number(InodeRef::Directory("d/x/")), Some(listing.ino(2)));
        let other = store.put("d/f", "four");
        assert_eq!(listing.number(InodeRef::File(&other)), None);
        assert_eq!(listing.number(InodeRef::Directory("d/f/")), None);
    }

    #[tokio::test]
    async fn n12_a_directory_exists_by_an_entry_a_marker_or_a_hidden_key() {
        for (keys, exists) in
            [(&["d/f"][..], true), (&["d/"], true), (&["d//f"], true), (&["d", "d-", "e/"], false)]
        {
            let store = store(keys);
            let complete = list(store.clone(), "d/", 1).await.expect("complete");
            assert_eq!(complete.exists, exists, "{keys:?}");
        }
    }

    #[tokio::test]
    async fn n8_keys_that_nobody_can_decode_are_counted_and_make_a_directory_exist() {
        let store = Arc::new(FaultyStore::new(store(&[])));
        let undecodable = Fault::Page(BadPage::Undecodable(2));
        store.next(Operation::List, undecodable);
        let complete = list(store.clone(), "d/", 10).await.expect("complete");
        let (reason, keys) = (Hidden::NotUtf8, BTreeSet::new());
        assert_eq!(complete.hidden, [HiddenKeys { reason, count: 2, keys }]);
        assert!(complete.exists);
    }

    #[tokio::test]
    async fn a_page_that_repeats_its_token_is_an_error_never_a_loop() {
        for bad in [BadPage::RepeatsToken, BadPage::OutsidePrefix] {
            let store = Arc::new(FaultyStore::new(store(&["d/1", "d/2", "d/3"])));
            store.hook(move |_| Fault::Page(bad));
            let listed = list(store.clone(), "d/", 1).await.map(|complete| complete.listing.len());
            assert!(
                matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
                "{bad:?}: {listed:?}"
            );
        }
    }

    #[tokio::test]
    async fn some_empty_pages_are_followed_and_endless_ones_are_an_error() {
        let store = Arc::new(FaultyStore::new(store(&["1", "2"])));
        store.hook(|call| match call.number {
            0 | 2 | 3 => Fault::Page(BadPage::Empty),
            _ => Fault::None,
        });
        let complete = list(store.clone(), "", 1).await.expect("complete");
        assert_eq!((names(&complete.listing), store.calls()), (vec!["1".into(), "2".into()], 5));

        store.hook(|_| Fault::Page(BadPage::Empty));
        let listed = list(store.clone(), "", 1).await.map(|complete| complete.listing.len());
        assert!(matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{listed:?}");
        assert_eq!(store.calls(), 5 + 100);
    }

    #[tokio::test]
    async fn a_failed_page_is_an_error_never_a_shorter_directory() {
        for failing in 0..3 {
            let store = Arc::new(FaultyStore::new(store(&["1", "2", "3"])));
            store.hook(move |call| {
                if call.number == failing {
                    Fault::Fail(StoreError::Throttled { retry_after: None })
                } else {
                    Fault::None
                }
            });
            let listed = list(store.clone(), "", 1).await.map(|complete| complete.listing.len());
            assert_eq!(listed, Err(StoreError::Throttled { retry_after: None }));
        }
    }
}
