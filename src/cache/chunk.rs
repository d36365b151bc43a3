//! One chunk: its memory, the blocks that readers wait for, the blocks that the kernel's page cache
//! has taken, and recent failures of fetches.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::arena::Memory;
use crate::store::StoreError;

pub(super) struct Chunk {
    pub(super) memory: Arc<Memory>,
    pub(super) failures: Mutex<RecentFailures>,
    /// Blocks that a reader has ever waited for.
    waited_for: Box<[AtomicBool]>,
    /// Notified by [`Self::want`].
    pub(super) wanted: Notify,
    /// Blocks whose end the page cache has taken, and the number of the others.
    taken: Box<[AtomicBool]>,
    not_taken: AtomicUsize,
    /// Changed under the lock of the cache's chunks.
    spent: AtomicBool,
}

impl Chunk {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        let blocks = memory.blocks();
        let flags = || (0..blocks).map(|_| AtomicBool::new(false)).collect();
        Self {
            memory,
            failures: Mutex::default(),
            waited_for: flags(),
            wanted: Notify::new(),
            taken: flags(),
            not_taken: AtomicUsize::new(blocks),
            spent: AtomicBool::new(false),
        }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Marks it as spent. False if it was already.
    pub(super) fn spend(&self) -> bool {
        !self.spent.swap(true, Ordering::Relaxed)
    }

    pub(super) fn unspend(&self) {
        self.spent.store(false, Ordering::Relaxed);
        // First the number: a concurrent `take` counts from it.
        self.not_taken.store(self.taken.len(), Ordering::Relaxed);
        self.taken.iter().for_each(|taken| taken.store(false, Ordering::Release));
    }

    /// The page cache takes these bytes. True if it has now taken all of the chunk. A reader of a
    /// block's end has mostly read its beginning.
    pub(super) fn take(&self, blocks: &Range<usize>, bytes: &Range<usize>) -> bool {
        let mut ended = blocks.clone();
        if self.memory.block_end(blocks.end - 1) > bytes.end {
            ended.end -= 1;
        }
        // Acquire, with the Release of `unspend`: a cleared flag is seen with the reset number.
        let is_new = |block: &&AtomicBool| !block.swap(true, Ordering::Acquire);
        let new = self.taken[ended].iter().filter(is_new).count();
        new > 0 && self.not_taken.fetch_sub(new, Ordering::Relaxed) == new
    }

    /// Bytes of ready blocks whose ends the page cache has not taken.
    pub(super) fn unread_bytes(&self) -> u64 {
        if self.not_taken.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let start = |block: usize| if block == 0 { 0 } else { self.memory.block_end(block - 1) };
        let unread = self.taken.iter().enumerate().filter(|(block, taken)| {
            !taken.load(Ordering::Relaxed) && self.memory.is_ready(*block..block + 1)
        });
        unread.map(|(block, _)| (self.memory.block_end(block) - start(block)) as u64).sum()
    }

    /// A reader waits for these blocks: their fetch is demand from now on.
    pub(super) fn want(&self, blocks: &Range<usize>) {
        for block in &self.waited_for[blocks.clone()] {
            block.store(true, Ordering::Release);
        }
        self.wanted.notify_waiters();
    }

    pub(super) fn is_wanted(&self, blocks: &Range<usize>) -> bool {
        self.waited_for[blocks.clone()].iter().any(|block| block.load(Ordering::Acquire))
    }
}

/// The last failed fetches of a chunk: for the readers that waited for them, and for a moment for
/// all readers, because the kernel requests each page of a failed readahead once more, and a fetch
/// that failed at its deadline would take another deadline.
#[derive(Default)]
pub(super) struct RecentFailures {
    /// Failures so far.
    pub(super) count: u64,
    recent: VecDeque<FetchFailure>,
}

struct FetchFailure {
    number: u64,
    blocks: Range<usize>,
    error: StoreError,
    at: Instant,
}

impl RecentFailures {
    /// A waiting reader whose failure is no longer kept tries again.
    const KEPT: usize = 8;
    /// A failure is reported to all readers for this long.
    const REMEMBERED: Duration = Duration::from_secs(1);

    pub(super) fn add(&mut self, blocks: Range<usize>, error: StoreError) {
        self.count += 1;
        let (number, at) = (self.count, Instant::now());
        self.recent.push_back(FetchFailure { number, blocks, error, at });
        if self.recent.len() > Self::KEPT {
            self.recent.pop_front();
        }
    }

    /// The latest failure of these blocks that came after the first `since` ones, or is recent.
    pub(super) fn find(&self, since: u64, blocks: &Range<usize>) -> Option<StoreError> {
        let counts =
            |one: &&FetchFailure| one.number > since || one.at.elapsed() < Self::REMEMBERED;
        let overlaps = |other: &Range<usize>| other.start < blocks.end && blocks.start < other.end;
        let mut latest = self.recent.iter().rev().take_while(counts);
        latest.find(|failure| overlaps(&failure.blocks)).map(|failure| failure.error.clone())
    }
}
