//! A listing under way: one task writes it, and any number of callers read what has come.
//!
//! Writer and readers share one cell, so readers need not hold the lock of the names. The task runs
//! to its end even without readers, because its result is worth keeping.

use std::sync::Arc;

use tokio::sync::watch;

use super::expiry::Expiry;
use crate::errno::FsError;
use crate::names::entries::{EntryRun, Listing};

/// A reader's end of a listing under way.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) generation: u32,
    /// The directory's epoch when the listing began. Callers of a later epoch do not use it.
    pub(crate) epoch: u64,
    pub(crate) expiry: Expiry,
    pub(crate) cell: watch::Receiver<Shown>,
}

/// The task's end of a listing under way. It writes through
/// [`Directories`](super::Directories), which charges the memory.
#[derive(Debug)]
pub(crate) struct ListingWriter {
    pub(crate) prefix: Arc<str>,
    pub(crate) generation: u32,
    pub(crate) epoch: u64,
    pub(crate) expiry: Expiry,
    /// Generation of the listing before, as long as the entries shown are the same as there.
    pub(super) same_as: Option<u32>,
    cell: watch::Sender<Shown>,
}

/// The state of a listing under way.
#[derive(Debug)]
pub(crate) struct Shown {
    /// A correct beginning.
    pub(crate) listing: Listing,
    /// Memory of entries that have come and cannot be shown before others.
    waiting_bytes: usize,
    /// The listing in which scans continue: this one, the one that it equals, or a newer one.
    pub(crate) outcome: Option<Result<Arc<Listing>, FsError>>,
}

impl Shown {
    pub(super) fn memory_bytes(&self, of: impl Fn(&Listing) -> usize) -> usize {
        of(&self.listing) + self.waiting_bytes
    }
}

impl Progress {
    /// A caller of this epoch may wait for it: its task is alive.
    pub(super) fn is_under_way(&self, epoch: u64) -> bool {
        self.epoch == epoch && self.cell.has_changed().is_ok() && !self.is_over()
    }

    pub(super) fn is_over(&self) -> bool {
        self.cell.borrow().outcome.is_some()
    }

    pub(crate) fn shown(&self) -> watch::Ref<'_, Shown> {
        self.cell.borrow()
    }
}

impl ListingWriter {
    pub(super) fn new(listing: Listing, epoch: u64, expiry: Expiry, same_as: Option<u32>) -> Self {
        let (prefix, generation) = (listing.prefix.clone(), listing.generation);
        let cell = watch::Sender::new(Shown { listing, waiting_bytes: 0, outcome: None });
        Self { prefix, generation, epoch, expiry, same_as, cell }
    }

    pub(crate) fn progress(&self) -> Progress {
        let Self { generation, epoch, expiry, .. } = *self;
        Progress { generation, epoch, expiry, cell: self.cell.subscribe() }
    }

    pub(crate) fn shown(&self) -> watch::Ref<'_, Shown> {
        self.cell.borrow()
    }

    /// There is a reader beside its directory.
    pub(crate) fn has_readers(&self) -> bool {
        self.cell.receiver_count() > 1
    }

    pub(super) fn push(&self, run: EntryRun) {
        self.cell.send_modify(|shown| shown.listing.push(Arc::new(run)));
    }

    pub(crate) fn set_waiting_bytes(&self, bytes: usize) {
        self.cell.send_if_modified(|shown| {
            shown.waiting_bytes = bytes;
            false
        });
    }

    /// Ends the listing. One that has failed is emptied: a scan in the middle of it gets the error.
    pub(super) fn end(&self, outcome: Result<Arc<Listing>, FsError>) {
        self.cell.send_modify(|shown| {
            if outcome.is_err() {
                shown.listing = Listing::new(self.prefix.clone(), self.generation);
                shown.waiting_bytes = 0;
            }
            shown.outcome = Some(outcome);
        });
    }
}
