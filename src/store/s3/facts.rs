//! What one answer tells of an object: a HEAD, or its entry in a listing. Either may lack something
//! that the other has. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::store::{ObjectMeta, ObjectVersion, StoreError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) size_bytes: Option<u64>,
    /// Strong, and in quotes.
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<SystemTime>,
    pub(super) archived: bool,
}

impl Facts {
    pub(super) fn are_whole(&self) -> bool {
        self.size_bytes.is_some() && self.etag.is_some() && self.last_modified.is_some()
    }

    /// With what another answer tells and this one does not. One about another version tells
    /// nothing.
    pub(super) fn or(self, other: Self) -> Self {
        if self.etag.is_some() && other.etag.is_some() && self.etag != other.etag {
            return self;
        }
        Self {
            size_bytes: self.size_bytes.or(other.size_bytes),
            etag: self.etag.or(other.etag),
            last_modified: self.last_modified.or(other.last_modified),
            archived: self.archived,
        }
    }

    /// A time that nobody tells is that of 1970.
    pub(super) fn meta(self, key: String) -> Result<ObjectMeta, StoreError> {
        let missing =
            |what| StoreError::nonsense(format!("the store does not tell {what} {key:?}"));
        let size_bytes = self.size_bytes.ok_or_else(|| missing("the size of"))?;
        let etag = self.etag.ok_or_else(|| missing("the ETag of"))?;
        let last_modified = self.last_modified.unwrap_or(UNIX_EPOCH);
        let version = ObjectVersion { key, etag, size_bytes };
        Ok(ObjectMeta { version, last_modified, archived: self.archived })
    }
}

/// An `ETag` as a strong one in quotes; none if there is nothing in it. Some stores list it without
/// quotes, and proxies that compress mark it weak (`W/`), which no `If-Match` would match.
pub(super) fn etag(text: &str) -> Option<String> {
    let bare = text.trim();
    let bare = bare.strip_prefix("W/").unwrap_or(bare).trim_matches('"');
    (!bare.is_empty()).then(|| ["\"", bare, "\""].concat())
}

/// No file has more bytes than this.
pub(super) fn size_bytes(text: &str) -> Option<u64> {
    text.trim().parse::<i64>().ok().and_then(|size| u64::try_from(size).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_differ_only_by_what_is_between_the_quotes() {
        for text in ["\"x-1\"", "x-1", "W/\"x-1\"", " \"x-1\" "] {
            assert_eq!(etag(text).as_deref(), Some("\"x-1\""));
        }
        assert_eq!((etag(""), etag("\"\"")), (None, None));
    }

    #[test]
    fn two_answers_about_one_version_are_put_together() {
        let one = Facts { etag: etag("e"), ..Facts::default() };
        let other = Facts { size_bytes: Some(7), ..Facts::default() };
        let both = one.clone().or(other.clone());
        assert_eq!((both.size_bytes, both.etag.as_deref()), (Some(7), Some("\"e\"")));
        let meta = both.meta("k".to_owned()).unwrap();
        assert_eq!((meta.version.size_bytes, meta.last_modified), (7, UNIX_EPOCH));
        let newer = Facts { etag: etag("f"), ..other };
        assert_eq!(one.clone().or(newer), one);
        assert!(one.meta("k".to_owned()).is_err());
    }
}
