//! What is known of one chunk beside its bytes: who waits for which blocks, which the kernel's page
//! cache has taken, and why parts of it could not be fetched lately.

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

/// A chunk of an object.
pub(super) struct Chunk {
    memory: Arc<Memory>,
    failures: Mutex<Failures>,
    /// For each block, whether a reader has ever had to wait for it; told when one does.
    waited_for: Box<[AtomicBool]>,
    wanted: Notify,
    /// For each block, whether the page cache has taken its end; and how many it has not.
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

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn failures(&self) -> &Mutex<Failures> {
        &self.failures
    }

    /// Told when a reader begins to wait for blocks.
    pub(super) fn wanted(&self) -> &Notify {
        &self.wanted
    }

    /// The page cache has taken all of it.
    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// It is spent from here on; whether it was not before.
    pub(super) fn spend(&self) -> bool {
        !self.spent.swap(true, Ordering::Relaxed)
    }

    /// The page cache has lost it again.
    pub(super) fn unspend(&self) {
        self.spent.store(false, Ordering::Relaxed);
        // First the number: who takes a block meanwhile counts from it.
        self.not_taken.store(self.taken.len(), Ordering::Relaxed);
        self.taken.iter().for_each(|taken| taken.store(false, Ordering::Release));
    }

    /// The page cache takes these bytes; whether it has now taken all of the chunk. Who reads a
    /// block's end has mostly read its beginning.
    pub(super) fn take(&self, blocks: &Range<usize>, bytes: &Range<usize>) -> bool {
        let mut ended = blocks.clone();
        if self.memory.block_end(blocks.end - 1) > bytes.end {
            ended.end -= 1;
        }
        // Acquire and Release: who sees a block given back sees the number with all of them.
        let is_new = |block: &&AtomicBool| !block.swap(true, Ordering::Acquire);
        let new = self.taken[ended].iter().filter(is_new).count();
        new > 0 && self.not_taken.fetch_sub(new, Ordering::Relaxed) == new
    }

    /// Bytes that are here and that the page cache has not taken to the ends of their blocks.
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

    /// A reader waits for these blocks: their fetch must not wait for its turn.
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

/// The last few failed fetches of a chunk: for those who waited for them, and for a moment for
/// everybody. The kernel asks for each page of a failed readahead once more, and what has failed
/// until its deadline would cost another one.
#[derive(Default)]
pub(super) struct Failures {
    count: u64,
    recent: VecDeque<Failure>,
}

struct Failure {
    number: u64,
    blocks: Range<usize>,
    error: StoreError,
    at: Instant,
}

impl Failures {
    /// Who waits finds the failure before eight others have followed; if not, it tries itself.
    const KEPT: usize = 8;
    /// How long a failure is everybody's.
    const REMEMBERED: Duration = Duration::from_secs(1);

    pub(super) fn add(&mut self, blocks: Range<usize>, error: StoreError) {
        self.count += 1;
        self.recent.push_back(Failure { number: self.count, blocks, error, at: Instant::now() });
        if self.recent.len() > Self::KEPT {
            self.recent.pop_front();
        }
    }

    /// How many there have been.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The latest failure of any of these blocks that is after the first `since` ones, or fresh.
    pub(super) fn find(&self, since: u64, blocks: &Range<usize>) -> Option<StoreError> {
        let counts =
            |failure: &&Failure| failure.number > since || failure.at.elapsed() < Self::REMEMBERED;
        let overlaps = |other: &Range<usize>| other.start < blocks.end && blocks.start < other.end;
        let mut latest = self.recent.iter().rev().take_while(counts);
        latest.find(|failure| overlaps(&failure.blocks)).map(|failure| failure.error.clone())
    }
}
