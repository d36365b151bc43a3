//! Extended attributes, `user.s3.…`: what the store knows and a file system has no field for.
//! Read-only, and asked for by name.

use std::fmt::Write as _;
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

/// The longest value that Linux knows (`XATTR_SIZE_MAX`).
const MAX_VALUE_BYTES: usize = 64 << 10;

/// Answers that are kept, of a few hundred bytes each: as many as a directory has in which somebody
/// asks for one attribute of every file, and then for the next.
const MAX_KEPT: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// In a list of keys, what would break its lines or its columns.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Answers that have cost requests. Whoever wants a value asks for its size first, and tools ask for
/// one name after the other.
pub(super) struct Answers {
    store: Arc<dyn ObjectStore>,
    ttl: Option<Duration>,
    kept: Mutex<LruCache<Ino, (Instant, Answer)>>,
}

#[derive(Clone)]
enum Answer {
    Details(Arc<ObjectDetails>),
    Hidden(Arc<Vec<HiddenKeys>>),
}

/// What is asked for with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked<'a> {
    Key,
    Etag,
    StorageClass,
    VersionId,
    ContentType,
    /// All of an object's own metadata.
    Metadata,
    /// One of it.
    Meta(&'a str),
    /// How many keys a directory hides.
    Hidden,
    /// Which.
    HiddenKeys,
}

impl Answers {
    /// None yet; each is believed for `ttl`, or for ever.
    pub(super) fn new(store: Arc<dyn ObjectStore>, ttl: Option<Duration>) -> Self {
        Self { store, ttl, kept: Mutex::new(LruCache::new(MAX_KEPT)) }
    }

    /// Believes none any more.
    pub(super) fn drop_all(&self) {
        self.kept.lock().clear();
    }

    fn kept(&self, ino: Ino) -> Option<Answer> {
        let mut kept = self.kept.lock();
        let (asked, answer) = kept.get(&ino)?;
        self.ttl.is_none_or(|ttl| asked.elapsed() < ttl).then(|| answer.clone())
    }

    fn keep(&self, ino: Ino, asked: Instant, answer: Answer) {
        self.kept.lock().put(ino, (asked, answer));
    }
}

impl BucketFs {
    /// The value of an extended attribute (docs/semantics.md, "Extended attributes").
    pub async fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let asked = asked(name)?;
        let value = match (asked, self.namespace.inode(ino)?) {
            (Asked::Key, Inode::File(object)) => object.version.key.clone(),
            (Asked::Key, Inode::Directory(prefix)) => prefix.to_string(),
            (Asked::Etag, Inode::File(object)) => object.version.etag.trim_matches('"').to_owned(),
            (Asked::Hidden | Asked::HiddenKeys, Inode::Directory(prefix)) => {
                let hidden = self.hidden(ino, &prefix).await?;
                if asked == Asked::Hidden { count(&hidden) } else { list(&hidden) }
            }
            (Asked::Hidden | Asked::HiddenKeys, Inode::File(_)) | (_, Inode::Directory(_)) => {
                return Err(FsError::NoSuchAttribute);
            }
            (_, Inode::File(object)) => {
                let details = self.details(ino, &object).await?;
                of_details(asked, &details).ok_or(FsError::NoSuchAttribute)?
            }
        };
        Ok(value.into_bytes())
    }

    /// The names of those extended attributes that cost no request, each with a NUL behind it.
    ///
    /// Only those: `ls -l`, `cp -a` and `tar --xattrs` ask for the names at every file, and the
    /// latter two for all values then.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let names: &[&str] = match self.namespace.inode(ino)? {
            Inode::File(_) => &[KEY, ETAG],
            Inode::Directory(_) => &[KEY],
        };
        Ok(names.iter().flat_map(|name| [name.as_bytes(), b"\0"]).flatten().copied().collect())
    }

    async fn details(&self, ino: Ino, object: &ObjectMeta) -> Result<Arc<ObjectDetails>, FsError> {
        if let Some(Answer::Details(details)) = self.answers.kept(ino) {
            return Ok(details);
        }
        let asked = Instant::now();
        let head = match self.answers.store.head(&object.version.key).await {
            // What it says is of another version.
            Ok(head) if head.meta.version != object.version => Err(StoreError::Changed),
            head => head,
        };
        let head = head.map_err(|error| self.failed(ino, &error))?;
        let details = Arc::new(head.details);
        self.answers.keep(ino, asked, Answer::Details(details.clone()));
        Ok(details)
    }

    async fn hidden(&self, ino: Ino, prefix: &Arc<str>) -> Result<Arc<Vec<HiddenKeys>>, FsError> {
        if let Some(Answer::Hidden(hidden)) = self.answers.kept(ino) {
            return Ok(hidden);
        }
        let asked = Instant::now();
        let hidden = Arc::new(self.namespace.hidden_keys(prefix).await?);
        self.answers.keep(ino, asked, Answer::Hidden(hidden.clone()));
        Ok(hidden)
    }
}

fn asked(name: &[u8]) -> Result<Asked<'_>, FsError> {
    // There are no access control lists, labels or capabilities here, for any file: ls(1) asks no
    // further when it is told so, but does when only a file's own are missing.
    let Some(name) = name.strip_prefix(b"user.") else { return Err(FsError::NotSupported) };
    let name = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("s3."));
    Ok(match name.ok_or(FsError::NoSuchAttribute)? {
        "key" => Asked::Key,
        "etag" => Asked::Etag,
        "storage-class" => Asked::StorageClass,
        "version-id" => Asked::VersionId,
        "content-type" => Asked::ContentType,
        "metadata" => Asked::Metadata,
        "hidden" => Asked::Hidden,
        "hidden-keys" => Asked::HiddenKeys,
        other => Asked::Meta(other.strip_prefix("meta.").ok_or(FsError::NoSuchAttribute)?),
    })
}

fn of_details(asked: Asked<'_>, details: &ObjectDetails) -> Option<String> {
    match asked {
        Asked::StorageClass => Some(details.storage_class.clone()),
        Asked::VersionId => details.version_id.clone(),
        Asked::ContentType => details.content_type.clone(),
        Asked::Metadata => {
            let lines = details.metadata.iter().map(|(name, value)| format!("{name}: {value}"));
            Some(within_a_value(lines))
        }
        Asked::Meta(name) => details.metadata.get(name).cloned(),
        Asked::Key | Asked::Etag | Asked::Hidden | Asked::HiddenKeys => None,
    }
}

fn count(hidden: &[HiddenKeys]) -> String {
    hidden.iter().map(|hidden| hidden.count).sum::<usize>().to_string()
}

/// A line for each key: the key, a tab, and why it is hidden. What cannot be told is counted.
fn list(hidden: &[HiddenKeys]) -> String {
    within_a_value(hidden.iter().flat_map(|HiddenKeys { reason, count, keys }| {
        let told = keys.iter().map(|key| utf8_percent_encode(key, ESCAPED).to_string());
        let untold = count.saturating_sub(keys.len());
        let rest = (untold > 0).then(|| format!("({untold} more)"));
        told.chain(rest).map(move |key| format!("{key}\t{reason}"))
    }))
}

/// Lines, as many of them as a value has room for.
fn within_a_value(lines: impl Iterator<Item = String>) -> String {
    let mut value = String::new();
    for line in lines {
        if value.len() + line.len() + 1 > MAX_VALUE_BYTES {
            break;
        }
        writeln!(value, "{line}").expect("writing to a string does not fail");
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
             (2 more)\tit is not UTF-8\n"
        );
        let keys: Vec<_> = (0..100).map(|n| format!("{n:01000}")).collect();
        let many: Vec<_> = keys.iter().map(String::as_str).collect();
        let value = list(&[hidden(Hidden::TooLong, 100, &many)]);
        assert!(value.len() <= MAX_VALUE_BYTES && value.lines().count() > 60, "{}", value.len());
        assert_eq!(list(&[]), "");
    }
}
