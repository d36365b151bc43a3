//! A directory's entries: compact, in key order, and never changed once they are shown.
//!
//! A listing is made of parts, which are shown one after the other as pages arrive. It is all or
//! nothing all the same: a page that fails or makes no sense fails the whole, because a directory
//! that silently lacks files is worse than an error.

use std::sync::Arc;

use super::node::{Ino, Inode, InodeRef};
use super::run::{Part, Place};
use crate::names::rules;

/// What a part of a listing costs beside its entries: an `Arc`, two vectors, and their allocations.
pub(crate) const PART_BYTES: usize = 128;

/// A directory's entries in key order (N10), each with its inode number.
///
/// While it grows, it is a beginning of the whole.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    prefix: Arc<str>,
    /// Unique in a mount, never 0: the high half of the cookies of scans over this listing.
    generation: u32,
    /// Not empty, each with the index of its first entry. Indices are those of the whole directory,
    /// also where the first parts have been left out.
    parts: Vec<(usize, Arc<Part>)>,
    length: usize,
}

impl Listing {
    /// Of the directory `prefix`, with nothing in it yet.
    pub(crate) fn new(prefix: Arc<str>, generation: u32) -> Self {
        Self { prefix, generation, parts: Vec::new(), length: 0 }
    }

    /// The directory's prefix.
    pub(crate) fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    /// What tells this listing from every other.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let parts = self.parts.iter().map(|(_, part)| part.memory_bytes() + PART_BYTES);
        parts.sum::<usize>() + self.prefix.len() + size_of::<Self>()
    }

    /// Where the entry of this name stands.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        [true, false].into_iter().find_map(|directory| {
            let index = self.lower_bound((name, directory));
            (index < self.length && self.place(index) == (name, directory)).then_some(index)
        })
    }

    /// What an entry is ordered by, and its inode number.
    pub(crate) fn entry(&self, index: usize) -> (Place<'_>, Ino) {
        let (part, index) = self.at(index);
        (part.place(index), part.ino(index))
    }

    /// An entry's name.
    pub(crate) fn name(&self, index: usize) -> &[u8] {
        self.place(index).0
    }

    /// What an entry is ordered by.
    pub(crate) fn place(&self, index: usize) -> Place<'_> {
        let (part, index) = self.at(index);
        part.place(index)
    }

    /// An entry's inode number.
    pub(crate) fn ino(&self, index: usize) -> Ino {
        let (part, index) = self.at(index);
        part.ino(index)
    }

    /// Whether an entry is a directory.
    pub(crate) fn is_directory(&self, index: usize) -> bool {
        self.place(index).1
    }

    /// A file's size; `None` for a directory, and for a file that cannot be read.
    pub(crate) fn file_bytes(&self, index: usize) -> Option<u64> {
        let (part, index) = self.at(index);
        part.file_bytes(index)
    }

    /// What an entry's number names.
    pub(crate) fn inode(&self, index: usize) -> Inode {
        let (part, index) = self.at(index);
        part.inode(index, &self.prefix)
    }

    /// The number of what has this name here, if it is the same thing as `of`.
    pub(crate) fn number(&self, of: InodeRef<'_>) -> Option<Ino> {
        let (_, name) = rules::parent_and_name(of.key())?;
        let (part, index) = self.at(self.find(name.as_bytes())?);
        part.is(index, of).then(|| part.ino(index))
    }

    /// The number of the entry with this index, if it has the name of an entry of `part` and is the
    /// same thing: what has not changed has the index it had, give or take what came and went.
    pub(crate) fn number_near(&self, index: usize, part: &Part, at: usize) -> Option<Ino> {
        let (own, own_at) = (index < self.length).then(|| self.at(index))?;
        own.is_same(own_at, part, at).then(|| own.ino(own_at))
    }

    /// Where the first entry stands that comes behind this place.
    pub(crate) fn behind(&self, place: Place<'_>) -> usize {
        let index = self.lower_bound(place);
        if index < self.length && self.place(index) == place { index + 1 } else { index }
    }

    /// Whether the entries from `start` on begin with those of `part`, under the same numbers.
    pub(crate) fn continues_with(&self, start: usize, part: &Part) -> bool {
        start + part.len() <= self.length
            && (0..part.len()).all(|at| {
                let (own, own_at) = self.at(start + at);
                own.shows_same(own_at, part, at)
            })
    }

    /// Appends entries that come behind all others.
    pub(crate) fn push(&mut self, part: Arc<Part>) {
        if part.is_empty() {
            return;
        }
        self.length += part.len();
        self.parts.push((self.length - part.len(), part));
    }

    /// The same listing without what stands before the part of entry `index`, and with at most
    /// `parts` parts.
    pub(crate) fn tail(&self, index: usize, parts: usize) -> Self {
        let first = self.parts.partition_point(|(start, _)| *start <= index).saturating_sub(1);
        let parts: Vec<_> = self.parts.iter().skip(first).take(parts).cloned().collect();
        let length = parts.last().map_or(self.length, |(start, part)| start + part.len());
        Self { prefix: self.prefix.clone(), generation: self.generation, parts, length }
    }

    fn at(&self, index: usize) -> (&Part, usize) {
        let at = match self.parts.binary_search_by_key(&index, |(start, _)| *start) {
            Ok(at) => at,
            Err(behind) => behind - 1,
        };
        let (start, part) = &self.parts[at];
        (part, index - start)
    }

    fn lower_bound(&self, place: Place<'_>) -> usize {
        let begins_before =
            |(_, part): &(usize, Arc<Part>)| rules::entry_order(part.place(0), place).is_lt();
        let Some(at) = self.parts.partition_point(begins_before).checked_sub(1) else { return 0 };
        let (start, part) = &self.parts[at];
        start + part.lower_bound(place)
    }
}
