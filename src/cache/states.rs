//! The states of a chunk's blocks, which say who may touch the bytes behind them. Readers take no
//! lock.
//!
//! - Under a lock of the owner, an empty block is taken by one writer, and given back by it.
//! - The writer of a block that is being fetched writes to its bytes, and nobody else touches them.
//! - It publishes the block with `Release`, and a reader that has seen it ready with `Acquire` sees
//!   all of its bytes. What is ready stays so.
//!
//! `tests/block_states.rs` has loom try every order in which threads may do this, which is why the
//! atomics come from above.

use std::ops::Range;

use super::atomic::{AtomicU8, Ordering};

/// Holds nothing and costs nothing.
const EMPTY: u8 = 0;
/// Charged on the budget; its writer awaits the bytes.
const FETCHING: u8 = 1;
/// Charged on the budget; holds the object's bytes.
const READY: u8 = 2;

/// A state for each block.
#[derive(Debug)]
pub(super) struct States(Box<[AtomicU8]>);

impl States {
    /// All empty.
    pub(super) fn new(blocks: usize) -> Self {
        Self((0..blocks).map(|_| AtomicU8::new(EMPTY)).collect())
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all blocks of this run are ready, and their bytes may be read from here on.
    pub(super) fn are_ready(&self, blocks: Range<usize>) -> bool {
        self.0[blocks].iter().all(|state| state.load(Ordering::Acquire) == READY)
    }

    /// Whether a block of this run is neither ready nor awaited.
    pub(super) fn have_empty(&self, blocks: Range<usize>) -> bool {
        self.0[blocks].iter().any(|state| state.load(Ordering::Acquire) == EMPTY)
    }

    /// Whether it may be taken: only under the lock does that stay so.
    pub(super) fn is_empty(&self, block: usize) -> bool {
        self.0[block].load(Ordering::Relaxed) == EMPTY
    }

    /// Under the lock: these empty blocks have a writer from here on.
    pub(super) fn take(&self, blocks: Range<usize>) {
        for state in &self.0[blocks] {
            state.store(FETCHING, Ordering::Relaxed);
        }
    }

    /// Its writer has written all of it.
    pub(super) fn publish(&self, block: usize) {
        self.0[block].store(READY, Ordering::Release);
    }

    /// Under the lock: their writer gives up these blocks, which it has not published.
    pub(super) fn give_back(&self, blocks: Range<usize>) {
        for state in &self.0[blocks] {
            state.store(EMPTY, Ordering::Relaxed);
        }
    }
}
