//! One chunk: its memory, the blocks that readers wait for, the blocks that were read, and recent
//! failures of fetches.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::arena::Memory;
use crate::store::StoreError;

/// Flags of a block whose first, or last, byte was read.
const BEGINNING: u8 = 1;
const END: u8 = 2;

pub(super) struct Chunk {
    pub(super) memory: Arc<Memory>,
    pub(super) failures: Mutex<RecentFailures>,
    /// Blocks that a reader has ever waited for.
    waited_for: Box<[AtomicBool]>,
    /// Notified by [`Self::want`].
    pub(super) wanted: Notify,
    /// Which ends of each block were read, and the number of the others.
    read: Box<[AtomicU8]>,
    left: AtomicUsize,
    /// Bytes that all chunks had received when blocks of this one were last requested.
    requested_at: AtomicU64,
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
            read: (0..blocks).map(|_| AtomicU8::new(0)).collect(),
            left: AtomicUsize::new(2 * blocks),
            requested_at: AtomicU64::new(0),
        }
    }

    /// These bytes were read. True if now all of the chunk was: both ends of each block. What lies
    /// between them has mostly been read as well.
    pub(super) fn mark_read(&self, blocks: &Range<usize>, bytes: &Range<usize>) -> bool {
        let mut new = 0;
        for block in blocks.clone() {
            let begins = if bytes.start <= self.block_start(block) { BEGINNING } else { 0 };
            let ends = if self.memory.block_end(block) <= bytes.end { END } else { 0 };
            let before = self.read[block].fetch_or(begins | ends, Ordering::Relaxed);
            new += ((begins | ends) & !before).count_ones() as usize;
        }
        self.left.fetch_sub(new, Ordering::Relaxed) == new
    }

    /// A block that holds or awaits bytes was not read.
    pub(super) fn has_unread(&self) -> bool {
        (0..self.read.len()).any(|block| !self.is_read(block) && !self.memory.is_empty(block))
    }

    fn is_read(&self, block: usize) -> bool {
        self.read[block].load(Ordering::Relaxed) == BEGINNING | END
    }

    fn block_start(&self, block: usize) -> usize {
        if block == 0 { 0 } else { self.memory.block_end(block - 1) }
    }

    pub(super) fn requested(&self, received: u64) {
        self.requested_at.store(received, Ordering::Relaxed);
    }

    /// Bytes that were received since blocks of this chunk were requested.
    pub(super) fn age(&self, received: u64) -> u64 {
        received.saturating_sub(self.requested_at.load(Ordering::Relaxed))
    }

    /// Bytes of ready blocks that were not read.
    pub(super) fn unread_bytes(&self) -> u64 {
        let is_unread =
            |block: &usize| !self.is_read(*block) && self.memory.is_ready(*block..block + 1);
        let unread = (0..self.read.len()).filter(is_unread);
        unread.map(|block| (self.memory.block_end(block) - self.block_start(block)) as u64).sum()
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
