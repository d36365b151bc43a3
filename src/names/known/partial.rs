//! The first page of a directory that has more, which a lookup has seen. It answers lookups and
//! keeps its inode numbers; a listing that begins soon continues behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::expiry::Expiry;
use crate::names::entries::Listing;
use crate::store::{ListEntry, ListPage};

/// The oldest page that a listing continues, because stores may forget tokens. Nor does it continue
/// one that has spent a quarter of its TTL: a listing is believed no longer than its first page.
const PAGE_LASTS: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Partial {
    pub(super) listing: Arc<Listing>,
    /// `None` if the directory's names were dropped; its numbers are still used.
    pub(super) expiry: Option<Expiry>,
    only_files: bool,
    /// The page as it came, and its memory in bytes.
    pub(super) page: Option<(ListPage, usize)>,
    pub(super) asked: Instant,
    epoch: u64,
}

impl Partial {
    /// `listing` holds the entries that `page` shows for certain.
    pub(super) fn new(
        listing: Listing,
        page: ListPage,
        asked: Instant,
        epoch: u64,
        expiry: Expiry,
    ) -> Self {
        let only_files = (0..listing.len()).all(|index| !listing.key(index).is_directory);
        let bytes = page_bytes(&page);
        let (listing, page) = (Arc::new(listing), Some((page, bytes)));
        Self { listing, expiry: Some(expiry), only_files, page, asked, epoch }
    }

    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.expiry?.remaining(now)
    }

    /// It is believed, and shows no directory.
    pub(super) fn shows_only_files(&self, now: Instant) -> bool {
        self.only_files && self.remaining(now).is_some()
    }

    /// A listing of this epoch may begin with its page.
    pub(super) fn is_young(&self, now: Instant, ttl: Option<Duration>, epoch: u64) -> bool {
        let age = now - self.asked;
        ttl.is_none_or(|ttl| age < ttl / 4) && age < PAGE_LASTS && self.epoch >= epoch
    }

    pub(super) fn memory_bytes(&self, of: impl Fn(&Listing) -> usize) -> usize {
        of(&self.listing) + self.page.as_ref().map_or(0, |(_, bytes)| *bytes)
    }
}

fn page_bytes(page: &ListPage) -> usize {
    let entry = |entry: &ListEntry| {
        let texts = match entry {
            ListEntry::Object(meta) => meta.version.key.len() + meta.version.etag.len(),
            ListEntry::Untold(key) | ListEntry::Prefix(key) => key.len(),
        };
        size_of::<ListEntry>() + texts
    };
    size_of::<ListPage>() + page.entries.iter().map(entry).sum::<usize>()
}
