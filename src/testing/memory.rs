//! An object store in memory with the semantics of S3, for tests.
//!
//! It follows the API reference where tests care: keys in byte order, roll-up at the delimiter
//! after `start-after` has filtered, tokens that resume behind the last entry (for a common prefix:
//! behind everything inside it), `If-Match`, a new `ETag` for every put. Time is a count of puts,
//! so that every run gives the same answers. Every call yields once, so that concurrent callers
//! interleave as they would around a network.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::{Bound, Range};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::store::{
    Destination, ListEntry, ListFrom, ListPage, ListRequest, ObjectDetails, ObjectHead, ObjectMeta,
    ObjectStore, ObjectVersion, StoreError,
};

/// A bucket in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    bucket: Mutex<Bucket>,
}

/// Requests of each kind that a store has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of [`ObjectStore::list_page`].
    pub lists: u64,
    /// Calls of [`ObjectStore::head`].
    pub heads: u64,
    /// Calls of [`ObjectStore::get_range`].
    pub gets: u64,
}

#[derive(Debug, Default)]
struct Bucket {
    /// `String` orders by its bytes, as S3 orders keys.
    objects: BTreeMap<String, (ObjectMeta, Bytes)>,
    /// Keys of objects that are listed without size, `ETag` and time.
    untold: HashSet<String>,
    /// Only of objects whose details are unusual.
    details: BTreeMap<String, ObjectDetails>,
    puts: u64,
    counts: Counts,
    /// It lists by a hash of the keys, and knows of no `start-after`.
    is_unordered: bool,
}

impl MemoryStore {
    /// An empty bucket.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates or overwrites an object; the `ETag` is new even when the bytes are not.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectMeta {
        self.insert(key, bytes.into(), false)
    }

    /// As [`Self::put`], in a storage class that cannot be read.
    pub fn put_archived(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectMeta {
        self.insert(key, bytes.into(), true)
    }

    /// Puts the same bytes again, after some seconds: only the time is new, and is returned.
    pub fn put_again(&self, key: &str) -> SystemTime {
        let mut bucket = self.bucket.lock();
        bucket.puts += 3;
        let now = time(bucket.puts);
        if let Some((meta, _)) = bucket.objects.get_mut(key) {
            meta.last_modified = now;
        }
        now
    }

    /// Copies an object of another bucket, `ETag` and time included.
    pub fn copy_from(&self, other: &Self, key: &str) {
        if let Some(object) = other.bucket.lock().objects.get(key).cloned() {
            self.bucket.lock().objects.insert(key.to_owned(), object);
        }
    }

    /// `LastModified` of an object.
    pub fn last_modified(&self, key: &str) -> Option<SystemTime> {
        self.bucket.lock().objects.get(key).map(|(meta, _)| meta.last_modified)
    }

    /// Lists the object by its key alone from now on.
    pub fn list_untold(&self, key: &str) {
        self.bucket.lock().untold.insert(key.to_owned());
    }

    /// Sets the attributes that only a HEAD has, for every version of the object.
    pub fn describe(&self, key: &str, details: ObjectDetails) {
        self.bucket.lock().details.insert(key.to_owned(), details);
    }

    /// Deletes an object; like S3, does not mind when there is none.
    pub fn delete(&self, key: &str) {
        self.bucket.lock().objects.remove(key);
    }

    /// Lists in no order from now on.
    pub fn list_in_no_order(&self) {
        self.bucket.lock().is_unordered = true;
    }

    /// Every key, in order.
    pub fn keys(&self) -> Vec<String> {
        self.bucket.lock().objects.keys().cloned().collect()
    }

    /// Requests received since the store was made.
    pub fn counts(&self) -> Counts {
        self.bucket.lock().counts
    }

    fn insert(&self, key: &str, bytes: Bytes, archived: bool) -> ObjectMeta {
        let mut bucket = self.bucket.lock();
        bucket.puts += 1;
        let meta = ObjectMeta {
            version: ObjectVersion {
                key: key.to_owned(),
                etag: format!("\"{:032x}\"", bucket.puts),
                size_bytes: bytes.len() as u64,
            },
            last_modified: time(bucket.puts),
            archived,
        };
        bucket.objects.insert(key.to_owned(), (meta.clone(), bytes));
        meta
    }
}

/// A second for each put.
fn time(puts: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + puts)
}

impl Bucket {
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        if self.is_unordered {
            return Ok(self.list_by_hash(request));
        }
        let prefix = request.prefix.as_str();
        // Everything at or below `behind` has been listed, and so have the keys that it rolled up.
        let (behind, rolled_up) = match &request.from {
            ListFrom::Start => (None, None),
            ListFrom::After(key) => (Some(key.as_str()), None),
            ListFrom::Token { token, .. } => match token.split_at_checked(2) {
                Some(("k:", key)) => (Some(key), None),
                Some(("p:", common)) => (Some(common), Some(common)),
                _ => return Err(StoreError::nonsense(format!("unknown token {token:?}"))),
            },
        };
        let start = match behind {
            Some(behind) if behind >= prefix => Bound::Excluded(behind),
            _ => Bound::Included(prefix),
        };

        let mut page = ListPage::default();
        for (key, (meta, _)) in self.objects.range::<str, _>((start, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if rolled_up.is_some_and(|common| key.starts_with(common)) {
                continue;
            }
            let common = match rest.find('/') {
                Some(slash) if request.delimited => Some(&key[..=prefix.len() + slash]),
                _ => None,
            };
            let last = page.entries.last().map(ListEntry::key);
            if common.is_some() && last == common {
                continue;
            }
            if page.entries.len() >= usize::from(request.max_keys.clamp(1, 1000)) {
                page.next = page.entries.last().map(|last| match last {
                    ListEntry::Object(_) | ListEntry::Untold(_) => format!("k:{}", last.key()),
                    ListEntry::Prefix(common) => format!("p:{common}"),
                });
                break;
            }
            page.entries.push(match common {
                Some(common) => ListEntry::Prefix(common.to_owned()),
                None if self.untold.contains(key) => ListEntry::Untold(key.clone()),
                None => ListEntry::Object(meta.clone()),
            });
        }
        Ok(page)
    }

    /// The token is the hash where the page before has ended.
    fn list_by_hash(&self, request: &ListRequest) -> ListPage {
        let mut entries = BTreeMap::new();
        for (key, (meta, _)) in &self.objects {
            let Some(rest) = key.strip_prefix(&request.prefix) else { continue };
            let entry = match rest.find('/') {
                Some(slash) if request.delimited => {
                    ListEntry::Prefix(key[..=request.prefix.len() + slash].to_owned())
                }
                _ => ListEntry::Object(meta.clone()),
            };
            let mut hasher = DefaultHasher::new();
            entry.key().hash(&mut hasher);
            entries.insert(format!("{:016x}", hasher.finish()), entry);
        }
        let mut entries = match &request.from {
            ListFrom::Token { token, .. } => entries.split_off(&format!("{token}!")),
            ListFrom::Start | ListFrom::After(_) => entries,
        };
        let behind = entries.keys().nth(usize::from(request.max_keys)).cloned();
        let more = behind.map_or_else(BTreeMap::new, |behind| entries.split_off(&behind));
        let next = entries.keys().next_back().filter(|_| !more.is_empty()).cloned();
        ListPage { entries: entries.into_values().collect(), next, ..ListPage::default() }
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.bucket.lock().counts.lists += 1;
        tokio::task::yield_now().await;
        self.bucket.lock().list(request)
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.bucket.lock().counts.heads += 1;
        tokio::task::yield_now().await;
        let bucket = self.bucket.lock();
        let (meta, _) = bucket.objects.get(key).ok_or(StoreError::NotFound)?;
        let usual = || ObjectDetails { storage_class: "STANDARD".to_owned(), ..Default::default() };
        let details = bucket.details.get(key).cloned().unwrap_or_else(usual);
        Ok(ObjectHead { meta: meta.clone(), details })
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        self.bucket.lock().counts.gets += 1;
        tokio::task::yield_now().await;
        let (meta, bytes) =
            self.bucket.lock().objects.get(&version.key).cloned().ok_or(StoreError::NotFound)?;
        if meta.version.etag != version.etag {
            return Err(StoreError::Changed);
        }
        if meta.archived {
            return Err(StoreError::Archived);
        }
        let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let part = bounds
            .filter(|(start, end)| start < end)
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or_else(|| StoreError::nonsense(format!("range {range:?} not satisfiable")))?;
        into.put_slice(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn list(store: &MemoryStore, prefix: &str, from: ListFrom, max_keys: u16) -> ListPage {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: true,
            from,
            max_keys,
            any_order: false,
        };
        store.list_page(&request).await.expect("a page")
    }

    fn keys(page: &ListPage) -> Vec<&str> {
        page.entries.iter().map(ListEntry::key).collect()
    }

    fn store(keys: &[&str]) -> MemoryStore {
        let store = MemoryStore::new();
        for key in keys {
            store.put(key, "x");
        }
        store
    }

    #[tokio::test]
    async fn a_delimited_listing_rolls_up_and_resumes_at_any_page_size() {
        let store = store(&["a", "a-b", "a/x", "a/y", "a/z/1", "b/1", "c", "é/1"]);
        for max_keys in 1..=8 {
            let mut all = Vec::new();
            let mut from = ListFrom::Start;
            loop {
                let page = list(&store, "", from, max_keys).await;
                all.extend(keys(&page).iter().map(ToString::to_string));
                let Some(token) = page.next else { break };
                from = ListFrom::Token { token, last: all.last().cloned().unwrap_or_default() };
            }
            assert_eq!(all, ["a", "a-b", "a/", "b/", "c", "é/"], "{max_keys} keys a page");
        }
    }

    #[tokio::test]
    async fn start_after_filters_before_the_roll_up() {
        let store = store(&["a/1", "a/2", "b"]);
        let after = |key: &str| ListFrom::After(key.to_owned());
        assert_eq!(keys(&list(&store, "", after("a/1"), 1000).await), ["a/", "b"]);
        assert_eq!(keys(&list(&store, "", after("a/2"), 1000).await), ["b"]);
        assert_eq!(keys(&list(&store, "a/", after("A"), 1000).await), ["a/1", "a/2"]);
    }

    #[tokio::test]
    async fn get_range_gives_bytes_of_the_version_or_fails() {
        let store = store(&[]);
        let old = store.put("k", "old bytes").version;
        let mut into = Vec::new();
        assert_eq!(store.get_range(&old, 4..9, &mut into).await, Ok(()));
        assert_eq!(into, b"bytes");
        let new = store.put("k", "new bytes").version;
        assert_eq!(store.get_range(&old, 0..1, &mut into).await, Err(StoreError::Changed));
        assert!(store.get_range(&new, 0..10, &mut into).await.is_err());
        store.delete("k");
        assert_eq!(store.get_range(&new, 0..1, &mut into).await, Err(StoreError::NotFound));
        let cold = store.put_archived("cold", "ice").version;
        assert_eq!(store.get_range(&cold, 0..1, &mut into).await, Err(StoreError::Archived));
        assert_eq!(into, b"bytes");
        assert_eq!(store.counts(), Counts { lists: 0, heads: 0, gets: 5 });
    }
}
