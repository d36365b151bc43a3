//! The seam to the object store: three methods, no defaults, held as `Arc<dyn ObjectStore>`.
//!
//! Everything above this file is tested through this trait, and everything that changes how a
//! store is spoken to (retries, injected faults) wraps it. The stack is assembled in one place,
//! `daemon.rs`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BufMut;

pub mod fault;
pub mod measured;
pub mod memory;
pub mod retry;
pub mod s3;
mod wire;

/// What a read-only mount asks of a bucket.
///
/// Keys are UTF-8, as S3 defines them, and compare by their bytes.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// One page of a listing, in key order (`ListObjectsV2`).
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError>;

    /// What is known of one object (`HeadObject`); [`StoreError::NotFound`] when there is no such
    /// key.
    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError>;

    /// Writes exactly the bytes `range` of exactly this version into `into` (`GetObject` with
    /// `Range` and `If-Match`), or fails.
    ///
    /// `range` is not empty and lies inside the object; `into` has room for it. On an error the
    /// bytes that `into` has taken are a correct beginning of the range, so that a caller may ask
    /// for the rest.
    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError>;
}

/// One version of one object: what an inode number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectVersion {
    /// The whole key, as the bucket knows it.
    pub key: String,
    /// The `ETag` as the store writes it, quotes included; sent back in `If-Match`.
    pub etag: String,
    /// Length of the object.
    pub size_bytes: u64,
}

/// What a listing or a HEAD tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Key, `ETag` and size.
    pub version: ObjectVersion,
    /// `LastModified`, to the second.
    pub last_modified: SystemTime,
    /// In a storage class that cannot be read before a restore (`GLACIER`, `DEEP_ARCHIVE`).
    pub archived: bool,
}

/// What a HEAD tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    /// What a listing tells, too.
    pub meta: ObjectMeta,
    /// What it does not.
    pub details: ObjectDetails,
}

/// What only a HEAD tells of an object. Most of it may change under the same `ETag`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectDetails {
    /// `STANDARD`, also where the store does not say.
    pub storage_class: String,
    /// `x-amz-version-id`: none in a bucket without versions.
    pub version_id: Option<String>,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `x-amz-meta-…`: names in lower case, without the prefix, and values; by name.
    pub metadata: BTreeMap<String, String>,
}

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Roll up what follows the next `/` behind the prefix into one common prefix.
    pub delimited: bool,
    /// Where the page begins.
    pub from: ListFrom,
    /// At most this many entries, 1 to 1000; a store may return fewer.
    pub max_keys: u16,
}

/// Where a page of a listing begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListFrom {
    /// At the first key of the prefix.
    Start,
    /// Behind this key (`start-after`).
    After(String),
    /// Where the page before ended (`continuation-token`).
    Token {
        /// [`ListPage::next`] of the page before.
        token: String,
        /// The last entry of the pages before: every entry of this page must be greater.
        last: String,
    },
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects and common prefixes together, strictly ascending by [`ListEntry::key`].
    pub entries: Vec<ListEntry>,
    /// The token of the next page; `None` on the last one.
    pub next: Option<String>,
    /// Keys on this page that are not UTF-8, so that nobody can ask for them.
    pub undecodable: usize,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// A key.
    Object(ObjectMeta),
    /// A common prefix, its `/` included.
    Prefix(String),
}

impl ListEntry {
    /// The key or the common prefix: what listings are ordered by.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Object(meta) => &meta.version.key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

/// Every way in which a store can fail, by meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// 404: no such key.
    #[error("no such key")]
    NotFound,
    /// 412: the object is no longer the version that was asked for.
    #[error("the object has changed")]
    Changed,
    /// 403.
    #[error("access denied: {0}")]
    Denied(String),
    /// A request was refused for its signature, not for what it asked: credentials that have
    /// expired, or the clock. The store has replaced them since, so it may be asked once more.
    #[error("the signature is refused: {0}")]
    SignatureRefused(String),
    /// The object is in an archive storage class and has not been restored.
    #[error("the object is archived")]
    Archived,
    /// 503 `SlowDown`, 429.
    #[error("the store asks to slow down")]
    Throttled,
    /// The store cannot answer now, and says for how long (`Retry-After`).
    #[error("the store asks to come back after {} s", .0.as_secs())]
    Busy(Duration),
    /// The store failed or could not be reached: 5xx, a refused or broken connection.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store did not answer in time.
    #[error("the store did not answer in time: {0}")]
    TimedOut(String),
    /// The response contradicts itself, the request, or the protocol.
    #[error("the store's answer makes no sense: {0}")]
    Protocol(String),
    /// 404 with `NoSuchBucket`.
    #[error("no such bucket")]
    NoSuchBucket,
    /// The credentials chain gave nothing that could sign a request.
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// The bucket lives in another region, which the store may have named.
    #[error("the bucket is in another region")]
    WrongRegion(Option<String>),
}

impl StoreError {
    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled
            | Self::Busy(_)
            | Self::Unavailable(_)
            | Self::TimedOut(_)
            | Self::Protocol(_) => true,
            Self::NotFound
            | Self::Changed
            | Self::Denied(_)
            | Self::SignatureRefused(_)
            | Self::Archived
            | Self::NoSuchBucket
            | Self::NoCredentials(_)
            | Self::WrongRegion(_) => false,
        }
    }
}

/// Checks a page against what was asked: every entry inside the prefix, in strictly ascending
/// order, behind the place where the page begins, and a next token that leads on.
///
/// A store that repeats a token or goes backwards would otherwise be listed for ever.
pub fn check_page(request: &ListRequest, page: &ListPage) -> Result<(), StoreError> {
    let wrong = |what: String| Err(StoreError::Protocol(what));
    let (mut last, token) = match &request.from {
        ListFrom::Start => (None, None),
        ListFrom::After(key) => {
            // S3 filters before it rolls up: a common prefix that holds the key comes again.
            let again = page.entries.first().is_some_and(
                |entry| matches!(entry, ListEntry::Prefix(prefix) if key.starts_with(prefix)),
            );
            ((!again).then_some(key.as_str()), None)
        }
        ListFrom::Token { token, last } => (Some(last.as_str()), Some(token)),
    };
    for entry in &page.entries {
        let key = entry.key();
        if !key.starts_with(&request.prefix) {
            return wrong(format!("listed {key:?} outside of prefix {:?}", request.prefix));
        }
        if last.is_some_and(|last| key <= last) {
            return wrong(format!("listed {key:?} after {last:?}"));
        }
        last = Some(key);
    }
    if page.next.is_some() && page.next.as_ref() == token {
        return wrong("the listing's continuation token repeats".to_owned());
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
            undecodable: 0,
        }
    }

    fn request(from: ListFrom) -> ListRequest {
        ListRequest { prefix: "p".to_owned(), delimited: true, from, max_keys: 1000 }
    }

    #[test]
    fn a_page_must_ascend_inside_its_prefix_and_lead_on() {
        let token = || ListFrom::Token { token: "t".to_owned(), last: "pb".to_owned() };
        for (from, keys, next, good) in [
            (ListFrom::Start, &["pa", "pb"][..], Some("t"), true),
            (ListFrom::Start, &[], None, true),
            (ListFrom::Start, &["pb", "pa"], None, false),
            (ListFrom::Start, &["pa", "pa"], None, false),
            (ListFrom::Start, &["q"], None, false),
            (ListFrom::After("pa".to_owned()), &["pa"], None, false),
            (ListFrom::After("pa".to_owned()), &["pb"], None, true),
            (ListFrom::After("pa/x".to_owned()), &["pa/", "pb"], None, true),
            (token(), &["pb"], None, false),
            (token(), &["pc"], Some("t"), false),
            (token(), &["pc"], Some("u"), true),
        ] {
            let checked = check_page(&request(from.clone()), &page(keys, next));
            assert_eq!(checked.is_ok(), good, "{from:?} {keys:?} {next:?}: {checked:?}");
        }
    }
}
