//! Extended attributes, `user.s3.…`: facts about an object that a file system has no field for.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::Instant;

use super::{BucketFs, FsError};
use crate::names::{HiddenKeys, Ino, Inode};
use crate::store::{ObjectDetails, ObjectMeta, ObjectStore, StoreError};

const KEY: &str = "user.s3.key";
const ETAG: &str = "user.s3.etag";
/// Asking for it is a hint. Not in the list of names: who copies attributes reads no more by it.
const PREFETCH: &str = "prefetch";

/// Attributes of files that cost a HEAD, as do those that begin with [`META`].
const DETAILS: [&str; 4] = ["storage-class", "version-id", "content-type", "metadata"];
const META: &str = "meta.";

/// `XATTR_SIZE_MAX` of Linux.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// Cached answers, of a few hundred bytes each. Tools ask for one attribute of every file of a
/// directory, and then for the next.
const MAX_CACHED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// Characters that would break the lines or columns of a list of keys.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Attributes that have cost a request. A program asks for a value's size before the value.
pub(super) struct AttributeCache {
    store: Arc<dyn ObjectStore>,
    ttl: Option<Duration>,
    pub(super) cached: Mutex<LruCache<Ino, (Instant, CachedAttributes)>>,
}

#[derive(Clone)]
pub(super) enum CachedAttributes {
    Details(Arc<ObjectDetails>),
    Hidden(Arc<Vec<HiddenKeys>>),
}

impl AttributeCache {
    /// Answers are believed for `ttl`; `None` is forever.
    pub(super) fn new(store: Arc<dyn ObjectStore>, ttl: Option<Duration>) -> Self {
        Self { store, ttl, cached: Mutex::new(LruCache::new(MAX_CACHED)) }
    }

    fn get(&self, ino: Ino) -> Option<CachedAttributes> {
        let mut cached = self.cached.lock();
        let (asked, answer) = cached.get(&ino)?;
        self.ttl.is_none_or(|ttl| asked.elapsed() < ttl).then(|| answer.clone())
    }

    fn put(&self, ino: Ino, asked: Instant, answer: CachedAttributes) {
        self.cached.lock().put(ino, (asked, answer));
    }
}

impl BucketFs {
    /// The value of an extended attribute (docs/semantics.md, "Extended attributes"), for a thread.
    pub async fn xattr(&self, ino: Ino, name: &[u8], thread: u32) -> Result<Vec<u8>, FsError> {
        // There are no access control lists, labels or capabilities here, for any file: ls(1) stops
        // asking after EOPNOTSUPP, but not after ENODATA.
        let name = name.strip_prefix(b"user.").ok_or(FsError::NotSupported)?;
        let name = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("s3."));
        let value = match (self.names.inode(ino)?, name.ok_or(FsError::NoSuchAttribute)?) {
            (inode @ (Inode::File(_) | Inode::Directory(_)), PREFETCH) => {
                self.prefetch(ino, inode, thread)
            }
            (Inode::File(object), "key") => object.version.key.clone(),
            (Inode::File(object), "etag") => object.version.etag.trim_matches('"').to_owned(),
            (Inode::File(object), name) if DETAILS.contains(&name) || name.starts_with(META) => {
                let details = self.details(ino, &object).await?;
                detail(name, &details).ok_or(FsError::NoSuchAttribute)?
            }
            (Inode::Directory(prefix), "key") => prefix.to_string(),
            (Inode::Directory(prefix), "hidden") => count(&self.hidden(ino, &prefix).await?),
            (Inode::Directory(prefix), "hidden-keys") => list(&self.hidden(ino, &prefix).await?),
            (Inode::Untold(_), _) => return Err(FsError::Stale),
            (Inode::File(_) | Inode::Directory(_), _) => return Err(FsError::NoSuchAttribute),
        };
        Ok(value.into_bytes())
    }

    /// The names of the attributes that cost no request, each with a NUL behind it. Not the others:
    /// `cp -a` and `tar --xattrs` ask for all values whose names they get.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let names: &[&str] = match self.names.inode(ino)? {
            Inode::File(_) | Inode::Untold(_) => &[KEY, ETAG],
            Inode::Directory(_) => &[KEY],
        };
        Ok(names.iter().flat_map(|name| [name.as_bytes(), b"\0"]).flatten().copied().collect())
    }

    async fn details(&self, ino: Ino, object: &ObjectMeta) -> Result<Arc<ObjectDetails>, FsError> {
        if let Some(CachedAttributes::Details(details)) = self.xattrs.get(ino) {
            return Ok(details);
        }
        let asked = Instant::now();
        let head = match self.xattrs.store.head(&object.version.key).await {
            // It describes another version.
            Ok(head) if head.meta.version != object.version => Err(StoreError::Changed),
            head => head,
        };
        let head = head.map_err(|error| self.failed(ino, error))?;
        let details = Arc::new(head.details);
        self.xattrs.put(ino, asked, CachedAttributes::Details(details.clone()));
        Ok(details)
    }

    async fn hidden(&self, ino: Ino, prefix: &Arc<str>) -> Result<Arc<Vec<HiddenKeys>>, FsError> {
        if let Some(CachedAttributes::Hidden(hidden)) = self.xattrs.get(ino) {
            return Ok(hidden);
        }
        let asked = Instant::now();
        let hidden = Arc::new(self.names.hidden_keys(prefix).await?);
        self.xattrs.put(ino, asked, CachedAttributes::Hidden(hidden.clone()));
        Ok(hidden)
    }
}

/// The value of one of [`DETAILS`] or of an entry of an object's own metadata.
fn detail(name: &str, details: &ObjectDetails) -> Option<String> {
    match name {
        "storage-class" => Some(details.storage_class.clone()),
        "version-id" => details.version_id.clone(),
        "content-type" => details.content_type.clone(),
        "metadata" => {
            let lines = details.metadata.iter().map(|(name, value)| format!("{name}: {value}"));
            Some(within_a_value(lines))
        }
        entry => details.metadata.get(entry.strip_prefix(META)?).cloned(),
    }
}

fn count(hidden: &[HiddenKeys]) -> String {
    hidden.iter().map(|hidden| hidden.count).sum::<usize>().to_string()
}

/// A line for each key: the key, a tab, and the reason. The keys that were not kept are counted.
fn list(hidden: &[HiddenKeys]) -> String {
    within_a_value(hidden.iter().flat_map(|HiddenKeys { reason, count, keys }| {
        let known = keys.iter().map(|key| utf8_percent_encode(key, ESCAPED).to_string());
        let others = count.saturating_sub(keys.len());
        let rest = (others > 0).then(|| format!("({others} more)"));
        known.chain(rest).map(move |key| format!("{key}\t{reason}"))
    }))
}

/// The first lines, as many as fit into a value.
fn within_a_value(lines: impl Iterator<Item = String>) -> String {
    let mut value = String::new();
    for line in lines {
        if value.len() + line.len() + 1 > MAX_VALUE_BYTES {
            break;
        }
        value += &line;
        value.push('\n');
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::rules::Hidden;

    #[test]
    fn x3_hidden_keys_are_told_one_a_line_as_many_as_a_value_holds() {
        let hidden = |reason, count, keys: &[&str]| {
            let keys = keys.iter().map(ToString::to_string).collect();
            HiddenKeys { reason, count, keys }
        };
        let some = [
            hidden(Hidden::EmptyComponent, 3, &["a//b%\n", "ä//"]),
            hidden(Hidden::NotUtf8, 2, &[]),
        ];
        assert_eq!(count(&some), "5");
        assert_eq!(
            list(&some),
            "a//b%25%0A\ta component of its path is empty\n\
             %C3%A4//\ta component of its path is empty\n\
             (1 more)\ta component of its path is empty\n\
             (2 more)\tit is not UTF-8, or holds characters that the listing cannot carry\n"
        );
        let keys: Vec<_> = (0..100).map(|n| format!("{n:01000}")).collect();
        let many: Vec<_> = keys.iter().map(String::as_str).collect();
        let value = list(&[hidden(Hidden::TooLong, 100, &many)]);
        assert!(value.len() <= MAX_VALUE_BYTES && value.lines().count() > 60, "{}", value.len());
        assert_eq!(list(&[]), "");
    }
}
