//! The interface to the object store: three methods, and one that only a layer with files of its
//! own has. Retries, counters and injected faults wrap it; `daemon.rs` puts the layers together.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{BufMut, Bytes};

mod error;
mod flow;
pub mod joined;
pub mod metered;
pub mod retry;
pub mod s3;
pub mod shared;
mod wire;

pub use error::{Class, Nonsense, StoreError};

/// The requests of a read-only mount. Keys are UTF-8, as S3 defines them, and compare by their
/// bytes.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// One page of a listing (`ListObjectsV2`), in key order as [`check_page`] wants it: some
    /// stores list in another.
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// Metadata of one object (`HeadObject`); [`StoreError::NotFound`] when there is no such key.
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError>;

    /// Writes `range` of exactly this version into `into` (`GetObject` with `Range` and
    /// `If-Match`). The range is not empty and lies inside the object, and `into` has room for it.
    /// On an error `into` has taken a correct beginning of the range, so a caller may ask for the
    /// rest.
    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError>;

    /// The version as a file of this machine, if it may lie here as one. Waits for nothing.
    fn local_copy(&self, _version: &ObjectVersion) -> Option<Arc<dyn LocalCopy>> {
        None
    }
}

/// A version that may lie on this machine as a file.
#[async_trait]
pub trait LocalCopy: Send + Sync {
    /// The file, if it is there: exactly the object's bytes, each of which this process has
    /// compared with its checksum. It stays as it is while it is open.
    async fn file(&self) -> Option<File>;

    /// Programs have read from the object, and none has it open any more.
    fn released(&self);
}

/// Where a GET writes to.
pub trait Destination: BufMut + Send {
    /// All that it has taken so far.
    fn taken(&self) -> &[u8];

    /// What it has taken from this place on, for whoever needs it longer than this lives.
    fn share(&self, from: usize) -> Bytes {
        Bytes::copy_from_slice(&self.taken()[from..])
    }

    /// Takes bytes that were on this machine: they say nothing about the network.
    fn put_local(&mut self, bytes: &[u8]);
}

impl Destination for Vec<u8> {
    fn taken(&self) -> &[u8] {
        self
    }

    fn put_local(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

/// One version of one object. An inode number stands for one of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectVersion {
    pub key: String,
    /// The `ETag` as the store writes it, quotes included; sent back in `If-Match`.
    pub etag: String,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    pub version: ObjectVersion,
    /// `LastModified`, to the second.
    pub last_modified: SystemTime,
    /// In a storage class that cannot be read before a restore (`GLACIER`, `DEEP_ARCHIVE`).
    pub archived: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    pub meta: ObjectMeta,
    pub details: ObjectDetails,
}

/// Attributes that only a HEAD has. Most of them may change under the same `ETag`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectDetails {
    /// `STANDARD` when the store does not name one.
    pub storage_class: String,
    /// `x-amz-version-id`: none in a bucket without versions.
    pub version_id: Option<String>,
    pub content_type: Option<String>,
    /// `x-amz-meta-…`: names in lower case, without the prefix, and values; by name.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    pub prefix: String,
    /// Roll up what follows the next `/` behind the prefix into one common prefix.
    pub delimited: bool,
    pub from: ListFrom,
    /// At most this many entries, 1 to 1000; a store may return fewer.
    pub max_keys: u16,
    /// The entries may come in any order. Not together with [`ListFrom::After`].
    pub any_order: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListFrom {
    #[default]
    Start,
    /// `start-after`
    After(String),
    /// `continuation-token`
    Token {
        /// [`ListPage::next`] of the page before.
        token: String,
        /// The last entry of the pages before: every entry of this page must be greater, unless
        /// they come in any order.
        last: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Strictly ascending by [`ListEntry::key`], unless the request allows any order.
    pub entries: Vec<ListEntry>,
    /// The token of the next page; `None` on the last one.
    pub next: Option<String>,
    /// The number of keys on this page that cannot be read, such as those that are not UTF-8, so
    /// that no request can name them.
    pub undecodable: usize,
    /// The number of entries that do not belong on this page, such as those outside of the prefix.
    pub foreign: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    Object(ObjectMeta),
    /// An object of which the store does not list all of size, `ETag` and time; a HEAD tells them.
    Untold(String),
    /// A common prefix, its `/` included.
    Prefix(String),
}

impl ListEntry {
    pub fn key(&self) -> &str {
        match self {
            Self::Object(meta) => &meta.version.key,
            Self::Untold(key) | Self::Prefix(key) => key,
        }
    }
}

/// Checks a page against its request: every entry inside the prefix and there once, in ascending
/// order and behind the place where the page begins unless any order will do, and a new next token.
/// Without this, the listing of a store that repeats a token or goes backwards would not end.
pub fn check_page(request: &ListRequest, page: &ListPage) -> Result<(), StoreError> {
    let wrong = |what: String| Err(StoreError::nonsense(what));
    let keys = || page.entries.iter().map(ListEntry::key);
    if let Some(key) = keys().find(|key| !key.starts_with(&request.prefix)) {
        return wrong(format!("listed {key:?} outside of prefix {:?}", request.prefix));
    }
    if let ListFrom::Token { token, .. } = &request.from
        && page.next.as_ref() == Some(token)
    {
        return wrong("the listing's continuation token repeats".to_owned());
    }
    if request.any_order {
        let mut seen = HashSet::new();
        return match keys().find(|key| !seen.insert(*key)) {
            Some(key) => wrong(format!("listed {key:?} twice on a page")),
            None => Ok(()),
        };
    }
    if let Some((last, key)) = keys().zip(keys().skip(1)).find(|(last, key)| key <= last) {
        if key == last {
            return wrong(format!("listed {key:?} twice on a page"));
        }
        let what = format!("listed {key:?} after {last:?}");
        return Err(StoreError::Nonsense(Nonsense::Unordered(what)));
    }
    let behind = match &request.from {
        ListFrom::Start => None,
        ListFrom::After(key) => Some(key),
        ListFrom::Token { last, .. } => Some(last),
    };
    let Some((behind, first)) = behind.zip(page.entries.first()) else { return Ok(()) };
    // S3 filters before it rolls up: a common prefix that holds the key comes again.
    let again = matches!((&request.from, first), (ListFrom::After(key), ListEntry::Prefix(prefix))
        if key.starts_with(prefix));
    if first.key() <= behind.as_str() && !again {
        let what = format!("listed {:?} after {behind:?}", first.key());
        return Err(StoreError::Nonsense(Nonsense::Backwards(what)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> ListEntry {
        if key.ends_with('/') {
            return ListEntry::Prefix(key.to_owned());
        }
        let version =
            ObjectVersion { key: key.to_owned(), etag: "\"e\"".to_owned(), size_bytes: 1 };
        let last_modified = SystemTime::UNIX_EPOCH;
        ListEntry::Object(ObjectMeta { version, last_modified, archived: false })
    }

    fn page(keys: &[&str], next: Option<&str>) -> ListPage {
        ListPage {
            entries: keys.iter().map(|&key| entry(key)).collect(),
            next: next.map(str::to_owned),
            ..ListPage::default()
        }
    }

    fn request(from: ListFrom) -> ListRequest {
        let prefix = "p".to_owned();
        ListRequest { prefix, delimited: true, from, max_keys: 1000, any_order: false }
    }

    #[test]
    fn a_page_must_ascend_inside_its_prefix_and_lead_on() {
        let nonsense = || Some(StoreError::Nonsense(Nonsense::Protocol(String::new())));
        let backwards = || Some(StoreError::Nonsense(Nonsense::Backwards(String::new())));
        let unordered = || Some(StoreError::Nonsense(Nonsense::Unordered(String::new())));
        let token = || ListFrom::Token { token: "t".to_owned(), last: "pb".to_owned() };
        // The error, and the error when any order will do.
        for (from, keys, next, wrong, wrong_in_any_order) in [
            (ListFrom::Start, &["pa", "pb"][..], Some("t"), None, None),
            (ListFrom::Start, &[], None, None, None),
            (ListFrom::Start, &["pb", "pa"], None, unordered(), None),
            (ListFrom::Start, &["pa", "pa"], None, nonsense(), nonsense()),
            (ListFrom::Start, &["pa", "pb", "pa"], None, unordered(), nonsense()),
            (ListFrom::Start, &["q"], None, nonsense(), nonsense()),
            (ListFrom::After("pa".to_owned()), &["pa"], None, backwards(), None),
            (ListFrom::After("pa".to_owned()), &["pb"], None, None, None),
            (ListFrom::After("pa/x".to_owned()), &["pa/", "pb"], None, None, None),
            (token(), &["pb"], None, backwards(), None),
            (token(), &["pd", "pc"], Some("u"), unordered(), None),
            (token(), &["pa", "pc"], Some("t"), nonsense(), nonsense()),
            (token(), &["pc"], Some("t"), nonsense(), nonsense()),
            (token(), &["pc"], Some("u"), None, None),
        ] {
            for (any_order, wrong) in [(false, &wrong), (true, &wrong_in_any_order)] {
                let request = ListRequest { any_order, ..request(from.clone()) };
                let found = check_page(&request, &page(keys, next)).err();
                let kind = |error: &StoreError| match error {
                    StoreError::Nonsense(nonsense) => std::mem::discriminant(nonsense),
                    other => panic!("{other}"),
                };
                let (found_kind, kind) = (found.as_ref().map(kind), wrong.as_ref().map(kind));
                assert_eq!(found_kind, kind, "{request:?} {keys:?} {next:?}: {found:?}");
            }
        }
    }
}
