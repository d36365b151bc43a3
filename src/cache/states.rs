//! The states of a chunk's blocks, which say which threads may touch their bytes. Readers take no
//! lock.
//!
//! - Under a lock of the owner, an empty block is taken by one writer, and given back by it.
//! - The writer of a block that is being fetched writes to its bytes, and no other thread touches
//!   them.
//! - It publishes the block with `Release`, and a reader that has seen it ready with `Acquire` sees
//!   all of its bytes. A ready block stays ready.
//!
//! In `tests/block_states.rs` loom tries every order in which threads may do this: the parent
//! module chooses the atomics.

use std::ops::Range;

use super::atomic::{AtomicU8, Ordering};

/// Holds nothing and is not charged.
const EMPTY: u8 = 0;
/// Charged on the budget; its writer awaits the bytes.
const FETCHING: u8 = 1;
/// Charged on the budget; holds the object's bytes.
const READY: u8 = 2;

#[derive(Debug)]
pub(super) struct States(Box<[AtomicU8]>);

impl States {
    pub(super) fn new(blocks: usize) -> Self {
        Self((0..blocks).map(|_| AtomicU8::new(EMPTY)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All blocks of this run are ready, and their bytes may be read from now on.
    pub(super) fn are_ready(&self, blocks: Range<usize>) -> bool {
        self.0[blocks].iter().all(|state| state.load(Ordering::Acquire) == READY)
    }

    /// A block of this run is neither ready nor being fetched.
    pub(super) fn have_empty(&self, blocks: Range<usize>) -> bool {
        self.0[blocks].iter().any(|state| state.load(Ordering::Acquire) == EMPTY)
    }

    /// It may be taken. Stays so only under the lock.
    pub(super) fn is_empty(&self, block: usize) -> bool {
        self.0[block].load(Ordering::Relaxed) == EMPTY
    }

    /// Under the lock: these empty blocks have a writer from now on.
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
