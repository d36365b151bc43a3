//! A listing that is being made: what there is of it can be read, and its end be waited for.

use std::sync::Arc;

use tokio::sync::watch;

use crate::errno::FsError;
use crate::names::entries::listing::Listing;
use crate::names::known::expiry::Expiry;

/// Parts of a listing that one scan looks at in one piece: some thousand entries, more than any
/// reply to the kernel holds.
const PARTS_AT_ONCE: usize = 4;

/// A listing under way, for all who want it. Its task runs to its end even when every caller has
/// gone, for what it learns is worth keeping.
#[derive(Clone, Debug)]
pub(crate) struct Growing {
    /// The epoch of the directory when it began: who comes after its names were dropped must not
    /// be told what was true before.
    pub(crate) epoch: u64,
    pub(crate) generation: u32,
    /// Until when what it says is believed.
    pub(crate) expiry: Expiry,
    growth: watch::Receiver<Growth>,
}

/// How far a listing has come.
#[derive(Debug)]
pub(crate) struct Growth {
    /// A correct beginning.
    pub(crate) listing: Listing,
    /// What became of it: itself, or another one with what has meanwhile been found out.
    pub(crate) outcome: Option<Result<Arc<Listing>, FsError>>,
}

/// Where its task tells how far it has come.
pub(crate) type Grower = watch::Sender<Growth>;

/// Where a scan goes on.
#[derive(Clone, Debug)]
pub(crate) enum Onward {
    /// At an entry by its index.
    At(usize),
    /// Behind an entry that was in another listing: its name, and whether it is a directory.
    Behind(Vec<u8>, bool),
}

impl Growing {
    /// A listing that begins in `epoch`.
    pub(crate) fn new(listing: Listing, epoch: u64, expiry: Expiry) -> (Self, Grower) {
        let generation = listing.generation();
        let (grower, growth) = watch::channel(Growth { listing, outcome: None });
        (Self { epoch, generation, expiry, growth }, grower)
    }

    /// Whether a caller of this epoch may wait for it: not if it began in another one, nor if its
    /// task has died and left the slot as if nobody were at work.
    pub(crate) fn takes_on(&self, epoch: u64) -> bool {
        self.epoch == epoch && (self.growth.has_changed().is_ok() || self.is_over())
    }

    /// Whether it has come to an end.
    pub(crate) fn is_over(&self) -> bool {
        self.growth.borrow().outcome.is_some()
    }

    /// What there is of it now.
    pub(crate) fn now(&self) -> watch::Ref<'_, Growth> {
        self.growth.borrow()
    }

    /// Waits for an entry behind a position, or the end of all; gives a listing and an index in it.
    /// `None` if the task died, which it does only when the runtime shuts down.
    pub(crate) async fn read(
        mut self,
        from: &Onward,
    ) -> Option<Result<(Arc<Listing>, usize), FsError>> {
        let has_more =
            |growth: &Growth| growth.outcome.is_some() || growth.index(from) < growth.listing.len();
        let growth = self.growth.wait_for(has_more).await.ok()?;
        Some(match &growth.outcome {
            Some(Ok(listing)) => Ok((listing.clone(), growth.index_in(listing, from))),
            Some(Err(error)) => Err(error.clone()),
            None => {
                let index = growth.index(from);
                Ok((Arc::new(growth.listing.tail(index, PARTS_AT_ONCE)), index))
            }
        })
    }
}

impl Growth {
    /// Where a scan goes on in what there is.
    fn index(&self, from: &Onward) -> usize {
        match from {
            Onward::At(index) => *index,
            Onward::Behind(name, directory) => self.listing.behind((name, *directory)),
        }
    }

    /// Where it goes on in what became of it.
    fn index_in(&self, listing: &Listing, from: &Onward) -> usize {
        match from {
            Onward::At(index) if listing.generation() == self.listing.generation() => *index,
            Onward::At(index) => {
                index.checked_sub(1).map_or(0, |last| listing.behind(self.listing.place(last)))
            }
            Onward::Behind(name, directory) => listing.behind((name, *directory)),
        }
    }
}
