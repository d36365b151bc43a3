//! A directory read in pieces: positions, cookies, entries.
//!
//! There are no directory handles: a cookie holds the listing's generation in its high half and the
//! number of entries taken, `.` and `..` included, in its low half. It stays positive as the signed
//! offset that the kernel makes of it, and 0 is the beginning.

use std::sync::Arc;
use std::time::Duration;

use super::asking::shared::{Names, now, shut_down};
use super::entries::{FOREVER, Ino, Inode, Listing, Node};
use super::known::{Progress, ScanFrom, Shown};
use super::rules::EntryKey;
use crate::errno::FsError;

/// Runs of a listing that one scan looks at in one piece: some thousand entries, more than any
/// reply to the kernel holds.
const RUNS_AT_ONCE: usize = 4;

const DOTS: [&[u8]; 2] = [b".", b".."];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScanPosition {
    pub(crate) generation: u32,
    /// Of `.` and `..`, those that were taken.
    pub(crate) dots: usize,
    pub(crate) entries: usize,
}

impl ScanPosition {
    /// `None` is the beginning.
    pub(crate) fn of_cookie(cookie: u64) -> Option<Self> {
        let taken = usize::try_from(cookie & u64::from(u32::MAX)).expect("32 bits");
        let generation = u32::try_from(cookie >> 32).expect("32 bits");
        let dots = taken.min(DOTS.len());
        (cookie != 0).then_some(Self { generation, dots, entries: taken - dots })
    }

    fn cookie(self) -> u64 {
        u64::from(self.generation) << 32 | (self.dots + self.entries) as u64
    }
}

/// A directory's entries from a position on, `.` and `..` first: all of them, unless the directory
/// is being listed. There is at least one until the directory ends.
#[derive(Clone, Debug)]
pub struct Scan {
    pub(super) listing: Arc<Listing>,
    pub(super) dots: usize,
    pub(super) index: usize,
    pub(super) ino: Ino,
    pub(super) parent: Ino,
    pub(super) name_ttl: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct ScanEntry<'a> {
    pub name: &'a [u8],
    /// The kernel may not know it yet.
    pub ino: Ino,
    pub is_directory: bool,
    /// The position behind this entry, for [`Names::read_directory`].
    pub cookie: u64,
    scan: &'a Scan,
    /// `None` for `.` and `..`.
    index: Option<usize>,
}

impl Scan {
    /// The entries, in key order, made one by one.
    pub fn iter(&self) -> impl Iterator<Item = ScanEntry<'_>> {
        let generation = self.listing.generation;
        let dots = (self.dots..DOTS.len()).map(move |dot| ScanEntry {
            name: DOTS[dot],
            ino: [self.ino, self.parent][dot],
            is_directory: true,
            cookie: ScanPosition { generation, dots: dot + 1, entries: 0 }.cookie(),
            scan: self,
            index: None,
        });
        let entries = (self.index..self.listing.len()).map(move |index| {
            let (EntryKey { name, is_directory }, ino) = self.listing.entry(index);
            let cookie = ScanPosition { generation, dots: DOTS.len(), entries: index + 1 }.cookie();
            ScanEntry { name, ino, is_directory, cookie, scan: self, index: Some(index) }
        });
        dots.chain(entries)
    }
}

/// Waits for an entry behind a position of a listing under way, or for its end; gives a listing and
/// an index in it.
pub(super) async fn read_on(
    progress: Progress,
    from: &ScanFrom,
) -> Result<(Arc<Listing>, usize), FsError> {
    let mut cell = progress.cell;
    let has_more =
        |shown: &Shown| shown.outcome.is_some() || from.index(&shown.listing) < shown.listing.len();
    let shown = cell.wait_for(has_more).await.map_err(|_| shut_down())?;
    match &shown.outcome {
        Some(Ok(listing)) => Ok((listing.clone(), from.index_in(listing, &shown.listing))),
        Some(Err(error)) => Err(error.clone()),
        None => {
            let index = from.index(&shown.listing);
            Ok((Arc::new(shown.listing.tail(index, RUNS_AT_ONCE)), index))
        }
    }
}

impl Names {
    /// A scan's entry with its attributes, as readdirplus wants it.
    pub fn node(&self, entry: &ScanEntry<'_>) -> Node {
        let mut known = self.known();
        let listing = &entry.scan.listing;
        let listed = match entry.index {
            Some(index) => listing.inode(index),
            None => Inode::Directory(listing.prefix.clone()),
        };
        let listed = (entry.ino, known.inodes.latest(entry.ino, listed));
        let (ino, inode) = known.told(&listing.prefix, listed, now());
        let dot_ttl = self.config.metadata_ttl.unwrap_or(FOREVER);
        let ttl = entry.index.map_or(dot_ttl, |_| entry.scan.name_ttl);
        known.node(ino, inode, ttl, now())
    }

    /// The kernel is being told the first `told` entries of a scan, `.` and `..` included: in the
    /// next process the scan goes on behind them, and what was remembered stays known.
    pub fn told(&self, scan: &Scan, told: usize) {
        let mut known = self.known();
        known.flush();
        let told = told.saturating_sub(DOTS.len() - scan.dots);
        known.scanned(scan.ino, &scan.listing, scan.index, told);
    }

    /// Counts one kernel lookup of an entry that readdirplus has handed out as this node; the
    /// kernel counts none for `.` and `..`.
    pub fn remember(&self, entry: &ScanEntry<'_>, node: &Node) {
        if entry.index.is_some() {
            self.known().remember(node.ino, &node.inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_gives_its_position_back_and_is_a_positive_offset() {
        assert_eq!(ScanPosition::of_cookie(0), None);
        for (dots, entries) in [(1, 0), (2, 0), (2, 1), (2, 1_000_000)] {
            for generation in [1, 2, u32::MAX >> 1] {
                let position = ScanPosition { generation, dots, entries };
                let cookie = position.cookie();
                assert_eq!(ScanPosition::of_cookie(cookie), Some(position));
                assert!(i64::try_from(cookie).is_ok_and(|offset| offset > 0));
            }
        }
    }
}
