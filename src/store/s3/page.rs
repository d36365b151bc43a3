//! A page of a listing, read from XML in one pass. Pure.
//!
//! A document that is incomplete or of another kind is an error: an empty page in its place would
//! be an empty directory. Unknown elements are skipped; namespaces are ignored.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::response::{quoted, whole_seconds};
use super::xml::{self, Document, not_xml, wrong};
use crate::store::{ListEntry, ListPage, ObjectMeta, ObjectVersion, StoreError};

/// Reads a page; its entries are in the order in which the store wrote them.
pub(super) fn read(xml: &[u8]) -> Result<ListPage, StoreError> {
    found(xml)?.page()
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
    objects: Vec<ListEntry>,
    prefixes: Vec<ListEntry>,
    is_encoded: bool,
    is_truncated: Option<bool>,
    token: Option<String>,
    key_count: Option<usize>,
}

impl Found {
    fn read(&mut self, document: &mut Document<'_>) -> Result<(), StoreError> {
        while let Some(element) = document.child()? {
            match element.local_name().as_ref() {
                b"Contents" => self.objects.push(object(document)?),
                b"CommonPrefixes" => self.prefixes.push(prefix(document)?),
                // Absent when the store does not encode; it may follow the keys.
                b"EncodingType" => self.is_encoded = document.text()? == "url",
                b"IsTruncated" => {
                    let text = document.text()?;
                    self.is_truncated = Some(text.parse().map_err(|_| odd("IsTruncated", text))?);
                }
                b"NextContinuationToken" => self.token = Some(document.text()?.to_owned()),
                b"KeyCount" => {
                    let text = document.text()?;
                    self.key_count = Some(text.parse().map_err(|_| odd("KeyCount", text))?);
                }
                _ => document.skip()?,
            }
        }
        Ok(())
    }

    fn page(self) -> Result<ListPage, StoreError> {
        let Self { mut objects, mut prefixes, is_encoded, is_truncated, token, key_count } = self;
        let next = match (is_truncated, token) {
            (Some(true), Some(token)) if !token.is_empty() => Some(token),
            (Some(true), _) => return Err(wrong("a truncated listing page without a token")),
            (Some(false), _) => None,
            (None, _) => return Err(wrong("a listing page that does not say whether more follow")),
        };
        let listed = objects.len() + prefixes.len();
        if let Some(promised) = key_count.filter(|promised| *promised > listed) {
            let what = format!("a listing page of {listed} entries that promises {promised}");
            return Err(wrong(&what));
        }
        if is_encoded {
            objects.retain_mut(decode);
            prefixes.retain_mut(decode);
        }
        let undecodable = listed - objects.len() - prefixes.len();
        Ok(ListPage { entries: merge(objects, prefixes), next, undecodable })
    }
}

/// `<Contents>`, whose children may come in any order.
fn object(document: &mut Document<'_>) -> Result<ListEntry, StoreError> {
    let (mut key, mut etag, mut size, mut modified) = (None, None, None, None);
    let mut archived = false;
    while let Some(element) = document.child()? {
        match element.local_name().as_ref() {
            b"Key" => key = Some(document.text()?.to_owned()),
            b"ETag" => etag = Some(document.text()?).filter(|etag| !etag.is_empty()).map(quoted),
            b"Size" => {
                let text = document.text()?;
                // No file has more bytes than this.
                let bytes = text.parse::<i64>().ok().and_then(|size| u64::try_from(size).ok());
                size = Some(bytes.ok_or_else(|| odd("Size", text))?);
            }
            b"LastModified" => {
                let text = document.text()?;
                modified = Some(time(text).ok_or_else(|| odd("LastModified", text))?);
            }
            // INTELLIGENT_TIERING's archive tiers are known by HEAD only; GLACIER_IR is readable.
            b"StorageClass" => archived = matches!(document.text()?, "GLACIER" | "DEEP_ARCHIVE"),
            _ => document.skip()?,
        }
    }
    let key = key.ok_or_else(|| wrong("a listed object without a key"))?;
    let missing = |what: &str| wrong(&format!("no {what} of the listed object {key:?}"));
    let etag = etag.ok_or_else(|| missing("ETag"))?;
    let size_bytes = size.ok_or_else(|| missing("size"))?;
    let last_modified = modified.ok_or_else(|| missing("modification time"))?;
    let version = ObjectVersion { key, etag, size_bytes };
    Ok(ListEntry::Object(ObjectMeta { version, last_modified, archived }))
}

fn prefix(document: &mut Document<'_>) -> Result<ListEntry, StoreError> {
    let mut prefix = None;
    while let Some(element) = document.child()? {
        match element.local_name().as_ref() {
            b"Prefix" => prefix = Some(document.text()?.to_owned()),
            _ => document.skip()?,
        }
    }
    prefix.map(ListEntry::Prefix).ok_or_else(|| wrong("a common prefix without a name"))
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
fn decode(entry: &mut ListEntry) -> bool {
    let key = match entry {
        ListEntry::Object(meta) => &mut meta.version.key,
        ListEntry::Prefix(prefix) => prefix,
    };
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

/// As S3 writes it, `2024-01-31T23:59:59.000Z`, or in another way that the SDK understands.
fn time(text: &str) -> Option<SystemTime> {
    if let Some(seconds) = written_by_s3(text) {
        return UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    }
    whole_seconds(&DateTime::from_str(text, Format::DateTimeWithOffset).ok()?)
}

/// A listing has a thousand of them, and a parser that knows every way costs as much as all else.
fn written_by_s3(text: &str) -> Option<u64> {
    let text = text.as_bytes();
    let number = |range: Range<usize>| {
        let digits = text.get(range)?;
        digits.iter().try_fold(0, |sum: u64, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
        })
    };
    let sign = |at: usize, sign: u8| text.get(at) == Some(&sign);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let fraction = text.get(19..)?.strip_suffix(b"Z")?;
    let is_fraction = match fraction {
        [] => true,
        [b'.', digits @ ..] => {
            (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u64::from(leap),
        _ => return None,
    };
    let is_time = (1..=longest).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if year < 1970 || !is_time || !is_fraction || !signs.iter().all(|(at, is)| sign(*at, *is)) {
        return None;
    }
    // Years from March end with the leap day; from March of the year 0 to 1970 are 719,468 days.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

fn odd(what: &str, text: &str) -> StoreError {
    wrong(&format!("a listing page with the {what} {text:?}"))
}

#[cfg(test)]
mod tests;
