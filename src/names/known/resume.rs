//! The continuation of a scan from a cookie: a listing, and a place in it.

use std::sync::Arc;

use super::progress::Progress;
use crate::names::entries::Listing;
use crate::names::rules::EntryKey;

/// Where a scan goes on in a listing: at an index, or behind an entry of another listing.
#[derive(Clone, Debug)]
pub(crate) enum ScanFrom {
    Index(usize),
    Behind { name: Vec<u8>, is_directory: bool },
}

#[derive(Clone, Debug)]
pub(crate) enum Resume {
    /// From this index of this listing.
    At(Arc<Listing>, usize),
    /// In a listing under way.
    In(Progress, ScanFrom),
    /// In a listing that begins now.
    Relist(ScanFrom),
    /// The listing of the cookie is forgotten.
    Stale,
}

impl ScanFrom {
    /// Behind the entry before `index` of `listing`.
    pub(super) fn behind(listing: &Listing, index: usize) -> Self {
        index.checked_sub(1).map_or(Self::Index(0), |last| {
            let EntryKey { name, is_directory } = listing.key(last);
            Self::Behind { name: name.to_vec(), is_directory }
        })
    }

    /// The index of the next entry in `listing`; an index is one of the same generation.
    pub(crate) fn index(&self, listing: &Listing) -> usize {
        match self {
            Self::Index(index) => *index,
            Self::Behind { name, is_directory } => {
                listing.behind(EntryKey { name, is_directory: *is_directory })
            }
        }
    }

    /// The index of the next entry in `listing`, which `shown` has become.
    pub(crate) fn index_in(&self, listing: &Listing, shown: &Listing) -> usize {
        match self {
            Self::Index(index) if listing.generation != shown.generation => {
                Self::behind(shown, *index).index(listing)
            }
            Self::Index(_) | Self::Behind { .. } => self.index(listing),
        }
    }
}
