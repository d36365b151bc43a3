//! One page of a listing, by the rules of `ListObjectsV2`. Pure.

use std::ops::Bound;
use std::sync::Arc;

use crate::objects::{Object, Objects};

/// The most keys and common prefixes a page holds, whatever the client asks for.
pub(crate) const MAX_KEYS: usize = 1000;

/// Where a page starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// After this key.
    After(Vec<u8>),
    /// After every key that starts with this.
    Past(Vec<u8>),
}

impl Position {
    /// The opaque form in which clients hand it back.
    pub(crate) fn to_token(&self) -> String {
        let (kind, bytes) = match self {
            Self::After(key) => ('1', key),
            Self::Past(prefix) => ('2', prefix),
        };
        bytes.iter().fold(String::from(kind), |token, byte| token + &format!("{byte:02x}"))
    }

    pub(crate) fn from_token(token: &str) -> Option<Self> {
        let (kind, hex) = token.split_at_checked(1)?;
        if hex.len() % 2 != 0 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        match kind {
            "1" => Some(Self::After(bytes)),
            "2" => Some(Self::Past(bytes)),
            _ => None,
        }
    }
}

pub(crate) struct Query<'a> {
    pub(crate) prefix: &'a str,
    /// Empty for none.
    pub(crate) delimiter: &'a str,
    pub(crate) from: Option<Position>,
    pub(crate) max_keys: usize,
}

#[derive(Debug)]
pub(crate) enum Item {
    Object(Vec<u8>, Arc<Object>),
    CommonPrefix(Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct Page {
    /// In byte order, objects and common prefixes together.
    pub(crate) items: Vec<Item>,
    /// Where the next page starts; `None` when there is nothing more.
    pub(crate) next: Option<Position>,
}

impl Objects {
    /// Costs time by what the page holds, not by what the bucket or a common prefix does.
    pub(crate) fn page(&self, query: &Query<'_>) -> Page {
        let mut page = Page { items: Vec::new(), next: None };
        let max_keys = query.max_keys.min(MAX_KEYS);
        if max_keys == 0 {
            return page; // S3 calls an empty page complete, even of a full bucket
        }
        let prefix = query.prefix.as_bytes();
        let mut cursor = match &query.from {
            Some(Position::After(key)) if key.as_slice() >= prefix => {
                self.cursor(Bound::Excluded(key))
            }
            Some(Position::Past(past)) if past.as_slice() >= prefix => {
                let Some(start) = successor(past) else { return page };
                self.cursor(Bound::Included(&start))
            }
            _ => self.cursor(Bound::Included(prefix)),
        };

        let mut last = None;
        while let Some((key, object)) = cursor.next() {
            if !key.starts_with(prefix) {
                break;
            }
            if page.items.len() == max_keys {
                page.next = last;
                break;
            }
            if let Some(length) = common_prefix(&key[prefix.len()..], query.delimiter.as_bytes()) {
                let mut common = key;
                common.truncate(prefix.len() + length);
                page.items.push(Item::CommonPrefix(common.clone()));
                let Some(start) = successor(&common) else { break };
                cursor.seek(Bound::Included(&start));
                last = Some(Position::Past(common));
            } else {
                last = Some(Position::After(key.clone()));
                page.items.push(Item::Object(key, object));
            }
        }
        page
    }
}

/// The length of `rest` up to the end of the first delimiter in it.
fn common_prefix(rest: &[u8], delimiter: &[u8]) -> Option<usize> {
    if delimiter.is_empty() {
        return None;
    }
    let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(at + delimiter.len())
}

/// The first byte string after all that start with `prefix`; `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}
