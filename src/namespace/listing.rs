//! A directory's complete listing: fetched page by page, kept compact, immutable.
//!
//! A listing is all or nothing: a page that fails or makes no sense fails the whole, because a
//! directory that silently lacks files is worse than an error.

use std::sync::Arc;
use std::time::SystemTime;

use super::tree::{self, Hidden, Meaning};
use super::{Ino, inodes::Inode, inodes::InodeRef};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, ObjectMeta, ObjectStore, ObjectVersion, StoreError,
    check_page,
};

/// So many empty pages in a row, each with a token that leads on, are not a listing any more. S3
/// sends some when it skips deleted versions; a broken store might send them for ever.
const MAX_EMPTY_PAGES: u32 = 100;

/// Fetches a directory's listing page by page.
pub struct Pager<'a> {
    store: &'a dyn ObjectStore,
    request: ListRequest,
    empty_pages: u32,
    done: bool,
}

impl<'a> Pager<'a> {
    /// Lists what stands one step below `prefix`, `page_keys` entries at a time.
    pub fn new(store: &'a dyn ObjectStore, prefix: &str, page_keys: u16) -> Self {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: true,
            from: ListFrom::Start,
            max_keys: page_keys,
        };
        Self { store, request, empty_pages: 0, done: false }
    }

    /// The next page, `None` behind the last one.
    ///
    /// Ends for every store that has an end: each page must lead on, or [`StoreError::Protocol`].
    pub async fn next(&mut self) -> Result<Option<ListPage>, StoreError> {
        if self.done {
            return Ok(None);
        }
        let page = self.store.list_page(&self.request).await?;
        check_page(&self.request, &page)?;
        let last = if let Some(entry) = page.entries.last() {
            self.empty_pages = 0;
            entry.key().to_owned()
        } else {
            self.empty_pages += 1;
            match std::mem::replace(&mut self.request.from, ListFrom::Start) {
                ListFrom::Token { last, .. } => last,
                ListFrom::Start | ListFrom::After(_) => String::new(),
            }
        };
        match &page.next {
            Some(_) if self.empty_pages >= MAX_EMPTY_PAGES => {
                let prefix = &self.request.prefix;
                return Err(StoreError::Protocol(format!(
                    "{MAX_EMPTY_PAGES} empty pages in a row in the listing of {prefix:?}"
                )));
            }
            Some(token) => self.request.from = ListFrom::Token { token: token.clone(), last },
            None => self.done = true,
        }
        Ok(Some(page))
    }
}

/// Whether any key begins with `prefix` (N12): one request, unless the store sends empty pages.
pub async fn any_key_below(store: &dyn ObjectStore, prefix: &str) -> Result<bool, StoreError> {
    let mut pager = Pager::new(store, prefix, 1);
    while let Some(page) = pager.next().await? {
        if !page.entries.is_empty() || page.undecodable > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A directory's entries in key order (N10), each with its inode number.
#[derive(Debug)]
pub struct Listing {
    prefix: Arc<str>,
    /// Unique in a mount, never 0: the high half of the cookies of scans over this listing.
    generation: u32,
    /// Each entry's name, and behind it a file's `ETag`. One allocation for all, for a directory
    /// of a million files should not cost three million.
    bytes: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    ino: Ino,
    bytes_at: u64,
    /// At most 255 (N7).
    name_bytes: u8,
    kind: Kind,
    etag_bytes: u32,
    size_bytes: u64,
    last_modified: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    ArchivedFile,
}

impl Listing {
    /// The directory's prefix.
    #[must_use]
    pub fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    /// What tells this listing from every other.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Where the entry of this name stands.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        let search = |directory| {
            let order = |record: &Record| tree::entry_order(self.place(record), (name, directory));
            self.records.binary_search_by(order).ok()
        };
        search(true).or_else(|| search(false))
    }

    /// An entry's name.
    #[must_use]
    pub fn name(&self, index: usize) -> &[u8] {
        self.place(&self.records[index]).0
    }

    /// An entry's inode number.
    #[must_use]
    pub fn ino(&self, index: usize) -> Ino {
        self.records[index].ino
    }

    /// Whether an entry is a directory.
    #[must_use]
    pub fn is_directory(&self, index: usize) -> bool {
        self.records[index].kind == Kind::Directory
    }

    /// A file's size; `None` for a directory, and for a file that cannot be read.
    #[must_use]
    pub fn file_bytes(&self, index: usize) -> Option<u64> {
        let record = &self.records[index];
        (record.kind == Kind::File).then_some(record.size_bytes)
    }

    /// What an entry's number names.
    #[must_use]
    pub fn inode(&self, index: usize) -> Inode {
        let record = &self.records[index];
        let (name, etag) = self.texts(record);
        let (name, etag) = (String::from_utf8_lossy(name), String::from_utf8_lossy(etag));
        let prefix = &self.prefix;
        if record.kind == Kind::Directory {
            return Inode::Directory(format!("{prefix}{name}/").into());
        }
        Inode::File(Arc::new(ObjectMeta {
            version: ObjectVersion {
                key: format!("{prefix}{name}"),
                etag: etag.into_owned(),
                size_bytes: record.size_bytes,
            },
            last_modified: record.last_modified,
            archived: record.kind == Kind::ArchivedFile,
        }))
    }

    /// The number of what has this name here, if it is the same thing as `of`.
    #[must_use]
    pub fn number(&self, of: InodeRef<'_>) -> Option<Ino> {
        self.same(of).map(|index| self.records[index].ino)
    }

    /// Where the first entry stands that comes behind entry `index` of `older`, a listing of the
    /// same directory at another time.
    #[must_use]
    pub fn behind(&self, older: &Listing, index: usize) -> usize {
        let place = older.place(&older.records[index]);
        self.records.partition_point(|record| tree::entry_order(self.place(record), place).is_le())
    }

    /// Whether both show the same things under the same numbers.
    #[must_use]
    pub fn is_same(&self, other: &Listing) -> bool {
        let places = |a: &Record, b: &Record| {
            a.ino == b.ino && a.kind == b.kind && self.place(a) == other.place(b)
        };
        self.records.len() == other.records.len()
            && self.records.iter().zip(&other.records).all(|(a, b)| places(a, b))
    }

    /// Gives an entry the number under which a lookup has meanwhile shown the same thing.
    pub(super) fn adopt(&mut self, ino: Ino, of: InodeRef<'_>) {
        if let Some(index) = self.same(of) {
            self.records[index].ino = ino;
        }
    }

    /// Gives the finished listing its generation.
    pub(super) fn set_generation(&mut self, generation: u32) {
        self.generation = generation;
    }

    fn same(&self, of: InodeRef<'_>) -> Option<usize> {
        let (_, name) = tree::parent_and_name(of.key())?;
        let index = self.find(name.as_bytes())?;
        let record = &self.records[index];
        let same = match (of, record.kind) {
            (InodeRef::Directory(_), Kind::Directory) => true,
            (InodeRef::File(meta), Kind::File | Kind::ArchivedFile) => {
                meta.version.size_bytes == record.size_bytes
                    && meta.archived == (record.kind == Kind::ArchivedFile)
                    && meta.version.etag.as_bytes() == self.texts(record).1
            }
            _ => false,
        };
        same.then_some(index)
    }

    /// Name and `ETag`.
    fn texts(&self, record: &Record) -> (&[u8], &[u8]) {
        let at = usize::try_from(record.bytes_at).expect("an offset into memory");
        let etag_at = at + usize::from(record.name_bytes);
        let end = etag_at + record.etag_bytes as usize;
        (&self.bytes[at..etag_at], &self.bytes[etag_at..end])
    }

    /// What entries are ordered by.
    fn place(&self, record: &Record) -> (&[u8], bool) {
        (self.texts(record).0, record.kind == Kind::Directory)
    }
}

/// A listing under construction, and what it cannot show.
#[derive(Debug)]
pub struct Builder {
    listing: Listing,
    shadowed: Vec<usize>,
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
    /// The first of them, if it can be written.
    pub example: Option<String>,
}

/// A complete listing.
#[derive(Debug)]
pub struct Complete {
    /// What is shown; its generation is 0 until set.
    pub listing: Listing,
    /// What is not, one item a reason.
    pub hidden: Vec<HiddenKeys>,
    /// N12: some key begins with the prefix.
    pub exists: bool,
}

impl Builder {
    /// Of the directory `prefix`.
    #[must_use]
    pub fn new(prefix: Arc<str>) -> Self {
        let listing = Listing { prefix, generation: 0, bytes: Vec::new(), records: Vec::new() };
        Self { listing, shadowed: Vec::new(), marker: false, hidden: Vec::new() }
    }

    /// Appends a page that the [`Pager`] has checked; `number` gives each entry its inode number.
    pub fn add(
        &mut self,
        page: &ListPage,
        mut number: impl FnMut(InodeRef<'_>) -> Ino,
    ) -> Result<(), StoreError> {
        if page.undecodable > 0 {
            self.hide(Hidden::NotUtf8, page.undecodable, None);
        }
        let prefix = self.listing.prefix.clone();
        for entry in &page.entries {
            let key = entry.key();
            match (tree::meaning(&prefix, entry), entry) {
                (Some(Meaning::Directory(name)), _) => {
                    if let Some(file) = self.listing.find(name.as_bytes()) {
                        self.shadowed.push(file);
                        let shadowed = key.strip_suffix('/').unwrap_or(key);
                        self.hide(Hidden::ShadowedByDirectory, 1, Some(shadowed));
                    }
                    self.push(name, None, number(InodeRef::Directory(key)))?;
                }
                (Some(Meaning::File(name)), ListEntry::Object(meta)) => {
                    self.push(name, Some(meta), number(InodeRef::File(meta)))?;
                }
                (Some(Meaning::Marker), _) => self.marker = true,
                (Some(Meaning::Hidden(reason)), _) => self.hide(reason, 1, Some(key)),
                (Some(Meaning::File(_)) | None, _) => {
                    return Err(StoreError::Protocol(format!(
                        "{key:?} in a delimited listing of {prefix:?}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Behind the last page.
    #[must_use]
    pub fn finish(mut self) -> Complete {
        let exists = self.marker || !self.hidden.is_empty() || !self.listing.is_empty();
        // In the order of their directories, which is not that of the files: `a-/` < `a/`.
        self.shadowed.sort_unstable();
        let mut shadowed = self.shadowed.iter().copied().peekable();
        let mut index = 0..;
        self.listing.records.retain(|_| shadowed.next_if_eq(&index.next().unwrap_or(0)).is_none());
        self.listing.records.shrink_to_fit();
        self.listing.bytes.shrink_to_fit();
        Complete { listing: self.listing, hidden: self.hidden, exists }
    }

    fn push(&mut self, name: &str, of: Option<&ObjectMeta>, ino: Ino) -> Result<(), StoreError> {
        let Listing { bytes, records, .. } = &mut self.listing;
        let etag = of.map_or("", |meta| &meta.version.etag);
        let record = Record {
            ino,
            bytes_at: bytes.len() as u64,
            name_bytes: u8::try_from(name.len()).expect("longer names are hidden"),
            kind: match of {
                None => Kind::Directory,
                Some(meta) if meta.archived => Kind::ArchivedFile,
                Some(_) => Kind::File,
            },
            etag_bytes: u32::try_from(etag.len())
                .map_err(|_| StoreError::Protocol("an endless ETag".to_owned()))?,
            size_bytes: of.map_or(0, |meta| meta.version.size_bytes),
            last_modified: of.map_or(SystemTime::UNIX_EPOCH, |meta| meta.last_modified),
        };
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(etag.as_bytes());
        records.push(record);
        Ok(())
    }

    fn hide(&mut self, reason: Hidden, count: usize, example: Option<&str>) {
        if let Some(keys) = self.hidden.iter_mut().find(|keys| keys.reason == reason) {
            keys.count += count;
        } else {
            let example = example.map(str::to_owned);
            self.hidden.push(HiddenKeys { reason, count, example });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fault::{BadPage, Fault, FaultyStore, Operation};
    use crate::store::memory::MemoryStore;

    async fn list(
        store: &dyn ObjectStore,
        prefix: &str,
        page_keys: u16,
    ) -> Result<Complete, StoreError> {
        let mut pager = Pager::new(store, prefix, page_keys);
        let mut builder = Builder::new(prefix.into());
        let mut ino = 1;
        while let Some(page) = pager.next().await? {
            builder.add(&page, |_| {
                ino += 1;
                ino
            })?;
        }
        Ok(builder.finish())
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
            let complete = list(&*store, "", page_keys).await.expect("complete");
            // N10: key order.
            assert_eq!(names(&complete.listing), ["a-/", "a-b", "a/", "b"]);
            let hidden = &complete.hidden[0];
            assert_eq!((hidden.reason, hidden.count), (Hidden::ShadowedByDirectory, 2));
            assert_eq!(hidden.example.as_deref(), Some("a-"));
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
        let listing = list(&*store, "d/", 1000).await.expect("complete").listing;
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
            let complete = list(&*store, "d/", 1).await.expect("complete");
            assert_eq!(complete.exists, exists, "{keys:?}");
            assert_eq!(any_key_below(&*store, "d/").await, Ok(exists), "{keys:?}");
        }
    }

    #[tokio::test]
    async fn n8_keys_that_nobody_can_decode_are_counted_and_make_a_directory_exist() {
        let store = FaultyStore::new(store(&[]));
        let undecodable = Fault::Page(BadPage::Undecodable(2));
        store.next(Operation::List, undecodable.clone());
        let complete = list(&store, "d/", 10).await.expect("complete");
        let (reason, example) = (Hidden::NotUtf8, None);
        assert_eq!(complete.hidden, [HiddenKeys { reason, count: 2, example }]);
        assert!(complete.exists);
        store.next(Operation::List, undecodable);
        assert_eq!(any_key_below(&store, "d/").await, Ok(true));
    }

    #[tokio::test]
    async fn a_page_that_repeats_its_token_is_an_error_never_a_loop() {
        for bad in [BadPage::RepeatsToken, BadPage::GoesBackwards, BadPage::OutsidePrefix] {
            let store = FaultyStore::new(store(&["d/1", "d/2", "d/3"]));
            store.hook(move |_| Fault::Page(bad));
            let listed = list(&store, "d/", 1).await.map(|complete| complete.listing.len());
            assert!(matches!(listed, Err(StoreError::Protocol(_))), "{bad:?}: {listed:?}");
        }
    }

    #[tokio::test]
    async fn some_empty_pages_are_followed_and_endless_ones_are_an_error() {
        let store = FaultyStore::new(store(&["1", "2"]));
        store.hook(|call| match call.number {
            0 | 2 | 3 => Fault::Page(BadPage::Empty),
            _ => Fault::None,
        });
        let complete = list(&store, "", 1).await.expect("complete");
        assert_eq!((names(&complete.listing), store.calls()), (vec!["1".into(), "2".into()], 5));

        store.hook(|_| Fault::Page(BadPage::Empty));
        let listed = list(&store, "", 1).await.map(|complete| complete.listing.len());
        assert!(matches!(listed, Err(StoreError::Protocol(_))), "{listed:?}");
        assert_eq!(store.calls(), 5 + u64::from(MAX_EMPTY_PAGES));
    }

    #[tokio::test]
    async fn a_failed_page_is_an_error_never_a_shorter_directory() {
        for failing in 0..3 {
            let store = FaultyStore::new(store(&["1", "2", "3"]));
            store.hook(move |call| {
                if call.number == failing {
                    Fault::Fail(StoreError::Throttled)
                } else {
                    Fault::None
                }
            });
            let listed = list(&store, "", 1).await.map(|complete| complete.listing.len());
            assert_eq!(listed, Err(StoreError::Throttled));
        }
    }
}
