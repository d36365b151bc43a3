//! A directory's modification time. A bucket keeps none, so it is made of the content.

use std::time::{Duration, SystemTime};

use crate::names::entries::Listing;

/// The time of a directory of which no change is known: 2006-03-14, when S3 opened, so no object is
/// older. It is the same in every mount and costs no request, which any time that says more of a
/// directory that is not listed would. zip cannot tell times before 1980.
const UNCHANGED: Duration = Duration::from_hours(13_221 * 24);

/// Invariant: it moves if and only if a listing shows another content than the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mtime {
    /// Digest of the last listing.
    pub(super) content: Option<u64>,
    pub(super) changed: Option<SystemTime>,
}

impl Mtime {
    pub(super) fn at(&self) -> SystemTime {
        self.changed.unwrap_or(SystemTime::UNIX_EPOCH + UNCHANGED)
    }

    /// The directory was listed at some time.
    pub(super) fn is_known(&self) -> bool {
        self.content.is_some()
    }

    /// The directory was listed whole. After a change, its time is that of its newest file, and the
    /// fraction of a second tells contents apart that have the same newest file.
    pub(super) fn listed(&mut self, listing: &Listing) {
        let before = self.content.replace(listing.digest);
        if before.is_some_and(|before| before != listing.digest) {
            let newest = listing.newest().unwrap_or(SystemTime::UNIX_EPOCH + UNCHANGED);
            // Not 0, so that it is never the time of an unchanged directory.
            self.changed = Some(newest + Duration::from_nanos(1 + listing.digest % 999_999_999));
        }
    }
}
