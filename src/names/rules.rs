//! All rules from keys to a tree. Pure.
//!
//! - **N1** A key is cut at its `/` into components: the last one names a file, those before it
//!   name directories. A directory needs no object of its own.
//! - **N2** A key that ends with `/` is a directory's marker: it makes the directory exist and is
//!   not shown.
//! - **N3** If both `a` and keys below `a/` exist, the directory wins and the object `a` is hidden.
//! - **N4** A key with an empty component (`a//b`, a leading `/`) is hidden.
//! - **N5** A key with a component `.` or `..` is hidden.
//! - **N6** A key with a NUL byte in a component is hidden.
//! - **N7** A key with a component of more than 255 bytes is hidden, and asking for a name of more
//!   than 255 bytes is an error of its own.
//! - **N8** A key that is not UTF-8 is hidden, and a name that is not UTF-8 is not found.
//! - **N9** Names are bytes: no Unicode normalisation, no case folding.
//! - **N10** A directory's entries are in key order, in which a subdirectory stands as `name/`.
//! - **N11** A key has at most 1024 bytes: what would need a longer one is not found.
//! - **N12** A directory exists as long as any key begins with its path and a `/`, even a marker or
//!   a hidden key. The root always exists.
//! - **N13** An entry of a listing that is not of the listed prefix is hidden.

use std::cmp::Ordering;

use crate::store::ListEntry;

/// `NAME_MAX` of Linux.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// The longest key of S3, in bytes of UTF-8 ("Naming Amazon S3 objects", S3 user guide).
pub(crate) const MAX_KEY_BYTES: usize = 1024;

/// An entry of a directory's listing, as a name in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    Marker,
    /// Hidden after all if a directory of the same name follows.
    File(&'a str),
    Directory(&'a str),
    Hidden(Hidden),
}

/// The reason why a key is not shown: N4, N5, N6, N7, N3, N8 and N13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Hidden {
    #[error("a component of its path is empty")]
    EmptyComponent,
    #[error("a component of its path is `.` or `..`")]
    DotComponent,
    #[error("its path holds a NUL byte")]
    Nul,
    #[error("a component of its path is longer than 255 bytes")]
    TooLong,
    #[error("a directory has the same name")]
    ShadowedByDirectory,
    #[error("it is not UTF-8, or holds characters that the listing cannot carry")]
    NotUtf8,
    /// Unlike the others, it does not make the directory exist.
    #[error("it does not belong into this directory, and yet the store listed it there")]
    Foreign,
}

/// The meaning of an entry in the listing of the directory `prefix`; `None` if it cannot belong
/// there, because the store did not roll up at the delimiter or listed outside of the prefix.
pub(crate) fn meaning<'a>(prefix: &str, entry: &'a ListEntry) -> Option<Meaning<'a>> {
    let below = entry.key().strip_prefix(prefix)?;
    let (name, of_kind): (_, fn(&'a str) -> Meaning<'a>) = match entry {
        _ if below.is_empty() => return Some(Meaning::Marker),
        ListEntry::Object(_) | ListEntry::Untold(_) => match below.split_once('/') {
            // Rolled up here: some gateways list the markers of their folders, or deeper keys.
            Some((name, _)) => (name, Meaning::Directory),
            None => (below, Meaning::File),
        },
        ListEntry::Prefix(_) => (below.strip_suffix('/')?, Meaning::Directory),
    };
    if name.contains('/') {
        return None;
    }
    Some(hidden_name(name.as_bytes()).map_or_else(|| of_kind(name), Meaning::Hidden))
}

/// The key that a name asks for in the directory `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// No key can have this name.
    Nothing,
    TooLong,
    /// This key, or keys below it.
    Key(String),
}

pub(crate) fn asked(prefix: &str, name: &[u8]) -> Asked {
    let fits = prefix.len() + name.len() <= MAX_KEY_BYTES;
    match (hidden_name(name), std::str::from_utf8(name)) {
        (Some(Hidden::TooLong), _) => Asked::TooLong,
        (None, Ok(name)) if fits && !name.contains('/') => Asked::Key(format!("{prefix}{name}")),
        _ => Asked::Nothing,
    }
}

/// A path below the root that a key may have; the empty one is the root's.
pub(crate) fn is_path(path: &str) -> bool {
    let is_shown = |name: &str| hidden_name(name.as_bytes()).is_none();
    path.is_empty() || path.len() <= MAX_KEY_BYTES && path.split('/').all(is_shown)
}

/// The prefix under which the keys of a directory `key` lie, if N11 allows any.
pub(crate) fn directory_prefix(key: &str) -> Option<String> {
    (key.len() < MAX_KEY_BYTES).then(|| format!("{key}/"))
}

/// The directory that shows a key, and the key's name in it: `a/b/` and `c` for `a/b/c`, `a/` and
/// `b` for the directory `a/b/`. `None` for the empty prefix, which lies nowhere.
pub(crate) fn parent_and_name(key: &str) -> Option<(&str, &str)> {
    let path = key.strip_suffix('/').unwrap_or(key);
    let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
    (!key.is_empty()).then(|| path.split_at(name_at))
}

/// N10: what a directory's entries are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryKey<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) is_directory: bool,
}

impl Ord for EntryKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        fn rest<'a>(key: &EntryKey<'a>, from: usize) -> impl Iterator<Item = u8> + 'a {
            key.name[from..].iter().copied().chain(key.is_directory.then_some(b'/'))
        }
        let common = self.name.len().min(other.name.len());
        let by_name = self.name[..common].cmp(&other.name[..common]);
        by_name.then_with(|| rest(self, common).cmp(rest(other, common)))
    }
}

impl PartialOrd for EntryKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn hidden_name(name: &[u8]) -> Option<Hidden> {
    match name {
        b"" => Some(Hidden::EmptyComponent),
        b"." | b".." => Some(Hidden::DotComponent),
        _ if name.len() > MAX_NAME_BYTES => Some(Hidden::TooLong),
        _ if name.contains(&0) => Some(Hidden::Nul),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
