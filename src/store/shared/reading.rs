//! An entry that is being read: proved block by block, before any of it is shown.

use std::ops::Range;

use super::entry::{EntryName, Sealer, size};
use super::{EntryBody, SharedCache};
use crate::base::layout::BLOCK_BYTES;
use crate::store::StoreError;

/// Blocks of an entry that are received and proved together: each time costs a switch of tasks.
const BLOCKS_AT_ONCE: u64 = 4;

/// An entry whose first block has come, and is right.
pub(super) struct Reading {
    pub(super) name: EntryName,
    pub(super) body: Box<dyn EntryBody>,
    /// Blocks that are right, each with its tag behind it.
    pub(super) sealed: Vec<u8>,
    /// Which these are, counted from the unit's beginning.
    pub(super) here: Range<u64>,
    /// The end of those that are wanted.
    pub(super) end: u64,
    /// Its first byte has come later than it may.
    pub(super) is_late: bool,
}

impl Reading {
    /// Receives blocks, at first one, and proves them.
    pub(super) async fn next(&mut self, cache: &SharedCache) -> Result<(), StoreError> {
        let start = self.here.end;
        let count = (2 * (start - self.here.start)).clamp(1, BLOCKS_AT_ONCE);
        self.here = start..self.end.min(start + count);
        let place = cache.sealer.place(&self.name, &self.here);
        self.sealed.clear();
        self.body.take(place.end - place.start, &mut self.sealed).await?;
        let sealed = self.sealed.chunks(size(cache.sealer.sealed_block_bytes()));
        for (block, sealed) in self.here.clone().zip(sealed) {
            if cache.sealer.open(&self.name, self.name.block(block), sealed).is_none() {
                cache.is_wrong(&self.name);
                return Err(StoreError::nonsense("an entry with a block that is not right"));
            }
        }
        Ok(())
    }

    /// The blocks that were received last, and where each begins in the object.
    pub(super) fn blocks(&self, sealer: &Sealer) -> impl Iterator<Item = (u64, &[u8])> {
        let tag_bytes = sealer.tag_bytes();
        let each = self.sealed.chunks(size(sealer.sealed_block_bytes()));
        self.here.clone().zip(each).map(move |(block, sealed)| {
            let start = self.name.object_range().start + block * BLOCK_BYTES;
            (start, &sealed[..sealed.len() - tag_bytes])
        })
    }
}
