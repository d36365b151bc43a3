//! A page of a listing, read from XML in one pass. Pure.
//!
//! A document that is incomplete or of another kind is an error: an empty page in its place would
//! be an empty directory. Unknown elements are skipped; namespaces are ignored.

use super::facts::{self, Facts};
use super::times;
use super::xml::{self, Document, not_xml, wrong};
use crate::store::{ListEntry, ListPage, ObjectMeta, ObjectVersion, StoreError};

/// Reads a page of the listing of `prefix`; its entries are in the order in which the store wrote
/// them. An entry whose key cannot be one is counted, and costs the others nothing.
pub(super) fn read(xml: &[u8], prefix: &str) -> Result<ListPage, StoreError> {
    found(xml)?.page(prefix)
}

/// What a page tells of this key.
pub(super) fn facts(xml: &[u8], key: &str) -> Result<Option<Facts>, StoreError> {
    let mut found = found(xml)?;
    if found.is_encoded {
        found.objects.retain_mut(|(key, _)| decode(key));
    }
    Ok(found.objects.into_iter().find_map(|(listed, facts)| (listed == key).then_some(facts)))
}

/// The page declares its keys as URL-encoded.
pub(super) fn is_encoded(xml: &[u8]) -> Result<bool, StoreError> {
    Ok(found(xml)?.is_encoded)
}

fn found(xml: &[u8]) -> Result<Found, StoreError> {
    let mut document = Document::new(xml);
    let root = document.child()?.ok_or_else(|| not_xml(&"there is nothing in it"))?;
    let mut found = Found::default();
    match root.local_name().as_ref() {
        b"ListBucketResult" => found.read(&mut document)?,
        // A store may learn of an error after it has sent its status, 200.
        b"Error" => {
            let (code, message) = xml::error(xml).unwrap_or_default();
            return Err(wrong(&format!("an error in place of a listing: {code}: {message}")));
        }
        other => return Err(odd("document", &String::from_utf8_lossy(other))),
    }
    if document.child()?.is_some() {
        return Err(not_xml(&"something follows it"));
    }
    Ok(found)
}

/// The elements of a document; keys and prefixes are still encoded.
#[derive(Default)]
struct Found {
    /// The prefix that the page says it is a listing of.
    prefix: Option<String>,
    objects: Vec<(String, Facts)>,
    prefixes: Vec<String>,
    /// Entries whose key cannot be read.
    unreadable: usize,
    is_encoded: bool,
    is_truncated: Option<bool>,
    token: Option<String>,
    key_count: Option<usize>,
}

impl Found {
    fn read(&mut self, document: &mut Document<'_>) -> Result<(), StoreError> {
        while let Some(element) = document.child()? {
            match element.local_name().as_ref() {
                b"Contents" => match object(document)? {
                    Some(object) => self.objects.push(object),
                    None => self.unreadable += 1,
                },
                b"CommonPrefixes" => {
                    let before = self.prefixes.len();
                    prefixes(document, &mut self.prefixes)?;
                    self.unreadable += usize::from(self.prefixes.len() == before);
                }
                b"Prefix" => self.prefix = document.text()?.map(str::to_owned),
                // Absent when the store does not encode; it may follow the keys.
                b"EncodingType" => self.is_encoded = document.text()? == Some("url"),
                b"IsTruncated" => {
                    let text = document.text()?.unwrap_or_default();
                    let told = text.trim().to_ascii_lowercase().parse();
                    self.is_truncated = Some(told.map_err(|_| odd("IsTruncated", text))?);
                }
                b"NextContinuationToken" => self.token = document.text()?.map(str::to_owned),
                b"KeyCount" => self.key_count = document.text()?.and_then(|n| n.parse().ok()),
                _ => document.skip()?,
            }
        }
        Ok(())
    }

    fn page(mut self, prefix: &str) -> Result<ListPage, StoreError> {
        let next = match (self.is_truncated, self.token) {
            (Some(true), Some(token)) if !token.is_empty() => Some(token),
            (Some(true), _) => return Err(wrong("a truncated listing page without a token")),
            (Some(false), _) => None,
            (None, _) => return Err(wrong("a listing page that does not say whether more follow")),
        };
        let listed = self.objects.len() + self.prefixes.len() + self.unreadable;
        if let Some(promised) = self.key_count.filter(|promised| *promised > listed) {
            let what = format!("a listing page of {listed} entries that promises {promised}");
            return Err(wrong(&what));
        }
        if self.is_encoded {
            self.objects.retain_mut(|(key, _)| decode(key));
            self.prefixes.retain_mut(decode);
            self.prefix.as_mut().map(decode);
        }
        let readable = self.objects.len() + self.prefixes.len();
        self.objects.retain(|(key, _)| key.starts_with(prefix));
        self.prefixes.retain(|common| common.starts_with(prefix) && common.ends_with('/'));
        let kept = self.objects.len() + self.prefixes.len();
        let foreign = readable - kept;
        if foreign > 0 && kept == 0 && self.prefix.as_deref() != Some(prefix) {
            let of = self.prefix;
            return Err(wrong(&format!("asked for keys of {prefix:?}, got others, of {of:?}")));
        }
        let objects = self.objects.into_iter().map(|(key, facts)| entry(key, facts)).collect();
        let prefixes = self.prefixes.into_iter().map(ListEntry::Prefix).collect();
        let undecodable = listed - readable;
        Ok(ListPage { entries: merge(objects, prefixes), next, undecodable, foreign })
    }
}

fn entry(key: String, facts: Facts) -> ListEntry {
    let Facts {
        size_bytes: Some(size_bytes),
        etag: Some(etag),
        last_modified: Some(time),
        archived,
    } = facts
    else {
        return ListEntry::Untold(key);
    };
    let version = ObjectVersion { key, etag, size_bytes };
    ListEntry::Object(ObjectMeta { version, last_modified: time, archived })
}

/// `<Contents>`, whose children may come in any order. None without a key that can be read.
fn object(document: &mut Document<'_>) -> Result<Option<(String, Facts)>, StoreError> {
    let (mut key, mut facts) = (None, Facts::default());
    let (mut cold, mut restore) = (false, Restore::default());
    while let Some(element) = document.child()? {
        match element.local_name().as_ref() {
            b"Key" => key = document.text()?.map(str::to_owned),
            b"ETag" => facts.etag = document.text()?.and_then(facts::etag),
            b"Size" => facts.size_bytes = document.text()?.and_then(facts::size_bytes),
            b"LastModified" => facts.last_modified = document.text()?.and_then(times::read),
            // INTELLIGENT_TIERING's archive tiers are known by HEAD only; GLACIER_IR is readable.
            b"StorageClass" => {
                cold = matches!(document.text()?, Some("GLACIER" | "DEEP_ARCHIVE"));
            }
            b"RestoreStatus" => restore = restore_status(document)?,
            _ => document.skip()?,
        }
    }
    facts.archived = match restore {
        Restore::NotTold => cold,
        Restore::Done => false,
        Restore::Begun => true,
    };
    Ok(key.map(|key| (key, facts)))
}

/// Of an archived object, if the store was asked for it.
#[derive(Default)]
enum Restore {
    /// It is not restored.
    #[default]
    NotTold,
    Begun,
    Done,
}

fn restore_status(document: &mut Document<'_>) -> Result<Restore, StoreError> {
    let (mut is_begun, mut is_done) = (false, false);
    while let Some(element) = document.child()? {
        match element.local_name().as_ref() {
            b"IsRestoreInProgress" => is_begun = document.text()? == Some("true"),
            b"RestoreExpiryDate" => is_done = document.text()?.is_some(),
            _ => document.skip()?,
        }
    }
    Ok(match (is_begun, is_done) {
        (true, _) => Restore::Begun,
        (false, true) => Restore::Done,
        (false, false) => Restore::NotTold,
    })
}

/// S3 has one in each element; some stores have all in one.
fn prefixes(document: &mut Document<'_>, into: &mut Vec<String>) -> Result<(), StoreError> {
    while let Some(element) = document.child()? {
        match element.local_name().as_ref() {
            b"Prefix" => into.extend(document.text()?.map(str::to_owned)),
            _ => document.skip()?,
        }
    }
    Ok(())
}

/// Two lists in key order become one. A list out of order stays so:
/// [`check_page`](crate::store::check_page) finds it, and sorting would hide it.
fn merge(objects: Vec<ListEntry>, prefixes: Vec<ListEntry>) -> Vec<ListEntry> {
    if prefixes.is_empty() {
        return objects;
    }
    let mut merged = Vec::with_capacity(objects.len() + prefixes.len());
    let mut objects = objects.into_iter().peekable();
    for prefix in prefixes {
        while let Some(object) = objects.next_if(|object| object.key() <= prefix.key()) {
            merged.push(object);
        }
        merged.push(prefix);
    }
    merged.extend(objects);
    merged
}

/// `encoding-type=url` is a form's: a space is `+`. False when the key is not UTF-8.
fn decode(key: &mut String) -> bool {
    let Some(first) = key.bytes().position(|byte| matches!(byte, b'+' | b'%')) else { return true };
    // In place: decoded text is never longer.
    let mut bytes = std::mem::take(key).into_bytes();
    let (mut from, mut to) = (first, first);
    while let Some(byte) = bytes.get(from).copied() {
        let digits = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let pair = digits(from + 1).zip(digits(from + 2));
        let (decoded, used) = match (byte, pair) {
            (b'+', _) => (b' ', 1),
            (b'%', Some((high, low))) => (u8::try_from(high << 4 | low).expect("two digits"), 3),
            _ => (byte, 1),
        };
        bytes[to] = decoded;
        from += used;
        to += 1;
    }
    bytes.truncate(to);
    String::from_utf8(bytes).map(|decoded| *key = decoded).is_ok()
}

fn odd(what: &str, text: &str) -> StoreError {
    wrong(&format!("a listing page with the {what} {text:?}"))
}

#[cfg(test)]
mod tests;
