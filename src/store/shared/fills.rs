//! What was fetched from the source and is to be stored in the shared cache: put together from the
//! parts in which it came, and stored in the background. Until then its bytes stay in the chunks
//! into which they were fetched, as many as may; what finds no room is not stored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::entry::{EntryName, SMALL_BYTES, Sealer, size};
use crate::base::layout::BLOCK_BYTES;

/// What requests store at once, which a store of 1 GB/s takes in 8 ms. More of it would compete
/// with the readers of a machine that is busy.
const AT_ONCE_BYTES: u64 = 8 << 20;
/// What a smaller entry counts as: 16 requests at most.
const LEAST_AT_ONCE: u64 = SMALL_BYTES;
/// Smaller pieces that are not a unit's first are of random reads: the rest of it seldom comes.
const LEAST_PIECE: u64 = 256 << 10;
/// Units of which a part has come. The oldest is given up for another.
const UNFINISHED: usize = 16;
/// The unit in which memory is charged.
const CHARGED: u64 = 1 << 10;
/// Once room was waited for in vain, it is not waited for in this time, nor anything claimed.
const BEHIND: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Fills {
    /// Memory, in [`CHARGED`].
    memory: Arc<Semaphore>,
    all: u32,
    /// In [`CHARGED`], too.
    at_once: Semaphore,
    unfinished: Mutex<Vec<PartialEntry>>,
    /// Until when the cache counts as slower than what comes.
    behind: Mutex<Option<Instant>>,
}

/// Why a unit may be stored, and so how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillRight {
    /// It has the claim, or the entry is wrong: in any case.
    Owner,
    /// Nobody was asked: unless there is an entry, or a claim.
    IfAbsent,
    /// Whoever has the claim is late: unless there is an entry some time later.
    Late,
}

/// An entry, as far as its blocks have come.
#[derive(Debug)]
pub(super) struct PartialEntry {
    pub(super) name: EntryName,
    pub(super) right: FillRight,
    memory: OwnedSemaphorePermit,
    /// Those that have come.
    blocks: BTreeMap<u64, Bytes>,
}

impl Fills {
    pub(super) fn new(memory_bytes: u64) -> Self {
        let all = u32::try_from(memory_bytes / CHARGED).unwrap_or(u32::MAX);
        let memory = Arc::new(Semaphore::new(all as usize));
        let at_once = Semaphore::new(size(AT_ONCE_BYTES / CHARGED));
        Self { memory, all, at_once, unfinished: Mutex::default(), behind: Mutex::default() }
    }

    /// The turn of an entry to be stored.
    pub(super) async fn turn(&self, unit_bytes: u64) -> Option<SemaphorePermit<'_>> {
        let charge = unit_bytes.max(LEAST_AT_ONCE).div_ceil(CHARGED);
        self.at_once.acquire_many(u32::try_from(charge).ok()?).await.ok()
    }

    /// No room was waited for in vain lately.
    pub(super) fn keeps_up(&self, now: Instant) -> bool {
        self.behind.lock().is_none_or(|until| now >= until)
    }

    /// Room for a unit, as soon as there is some.
    pub(super) async fn room(
        &self,
        unit_bytes: u64,
        deadline: Instant,
    ) -> Option<OwnedSemaphorePermit> {
        if let Some(memory) = self.reserve(unit_bytes) {
            return Some(memory);
        }
        if !self.keeps_up(Instant::now()) {
            return None;
        }
        let charge = u32::try_from(unit_bytes.div_ceil(CHARGED)).ok()?;
        let room = timeout_at(deadline, self.memory.clone().acquire_many_owned(charge)).await;
        if room.is_err() {
            *self.behind.lock() = Some(Instant::now() + BEHIND);
        }
        room.ok()?.ok()
    }

    /// None if there is no room for the unit.
    fn reserve(&self, unit_bytes: u64) -> Option<OwnedSemaphorePermit> {
        let charge = u32::try_from(unit_bytes.div_ceil(CHARGED)).ok()?;
        let take = || self.memory.clone().try_acquire_many_owned(charge).ok();
        take().or_else(|| {
            let mut unfinished = self.unfinished.lock();
            if unfinished.is_empty() {
                return None;
            }
            drop(unfinished.remove(0));
            take()
        })
    }

    /// Adds a piece of a unit, `range` of its object; gives the entry if it is complete. Gives the
    /// piece's length back as an error if it is not kept for want of room.
    pub(super) fn add(
        &self,
        name: EntryName,
        (range, bytes): (&Range<u64>, &Bytes),
        (right, memory): (FillRight, Option<OwnedSemaphorePermit>),
    ) -> Result<Option<PartialEntry>, u64> {
        let length = range.end - range.start;
        let new = || {
            let memory = memory.or_else(|| self.reserve(name.unit_bytes)).ok_or(length)?;
            Ok::<_, u64>(PartialEntry { name, right, memory, blocks: BTreeMap::new() })
        };
        if length == name.unit_bytes {
            let mut whole = new()?;
            whole.add(range, bytes);
            return Ok(Some(whole));
        }
        let is_first = range.start == name.object_range().start;
        let is_known = |assembly: &PartialEntry| assembly.name == name;
        if !self.unfinished.lock().iter().any(is_known) {
            if length < LEAST_PIECE && !is_first {
                return Ok(None);
            }
            let begun = new()?;
            let mut unfinished = self.unfinished.lock();
            // Another piece may have come meanwhile.
            if !unfinished.iter().any(is_known) {
                if unfinished.len() == UNFINISHED {
                    unfinished.remove(0);
                }
                unfinished.push(begun);
            }
        }
        let mut unfinished = self.unfinished.lock();
        let Some(at) = unfinished.iter().position(is_known) else { return Ok(None) };
        if right == FillRight::Owner {
            unfinished[at].right = right;
        }
        unfinished[at].add(range, bytes);
        let is_complete = unfinished[at].blocks.len() as u64 == name.blocks();
        Ok(is_complete.then(|| unfinished.remove(at)))
    }

    /// Returns when all that is complete was stored, at most after `limit`.
    pub(super) async fn settle(&self, limit: Duration) {
        self.unfinished.lock().clear();
        // What is not stored by then is lost.
        let _ = timeout(limit, self.memory.acquire_many(self.all)).await;
    }
}

impl PartialEntry {
    /// Takes the whole blocks of a piece.
    fn add(&mut self, range: &Range<u64>, bytes: &Bytes) {
        let unit = self.name.object_range();
        let mut at = range.start.next_multiple_of(BLOCK_BYTES);
        while at < range.end {
            let end = unit.end.min(at + BLOCK_BYTES);
            if end > range.end {
                return;
            }
            let bytes = || bytes.slice(size(at - range.start)..size(end - range.start));
            self.blocks.entry((at - unit.start) / BLOCK_BYTES).or_insert_with(bytes);
            at = end;
        }
    }

    /// The entry in pieces: each block, and its tag. The room for it lasts as long as the permit.
    pub(super) fn sealed(self, sealer: &Sealer) -> (Vec<Bytes>, OwnedSemaphorePermit) {
        let Self { name, memory, blocks, .. } = self;
        let pieces = blocks.into_iter().flat_map(|(block, bytes)| {
            let tag = sealer.tag(&name, block, &bytes);
            [bytes, tag]
        });
        (pieces.collect(), memory)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{SharedOrigin, UNIT_BYTES};
    use super::*;
    use crate::store::ObjectVersion;

    fn name(sealer: &Sealer, key: &str, offset: u64) -> EntryName {
        let version =
            ObjectVersion { key: key.to_owned(), etag: "e".to_owned(), size_bytes: 5 << 20 };
        let identity = sealer.identity(&SharedOrigin::new("AWS", "b"), &version);
        EntryName::at(identity, &version, offset)
    }

    #[test]
    fn pieces_in_any_order_make_the_entry_that_the_whole_unit_makes() {
        let (sealer, fills) = (Sealer::without_key(), Fills::new(8 << 20));
        let object: Vec<u8> = (0..5_u32 << 20).map(|at| (at / 1000).to_le_bytes()[0]).collect();
        let piece = |range: &Range<u64>| {
            Bytes::copy_from_slice(&object[size(range.start)..size(range.end)])
        };
        let bytes_of = |entry: PartialEntry| entry.sealed(&sealer).0.concat();
        let unit = UNIT_BYTES..2 * UNIT_BYTES;
        let name = name(&sealer, "k", unit.start);
        let add = |range: &Range<u64>| {
            fills.add(name, (range, &piece(range)), (FillRight::IfAbsent, None)).unwrap()
        };
        let whole = bytes_of(add(&unit).unwrap());
        assert_eq!(whole.len() as u64, sealer.entry_bytes(&name));
        let cuts = [0, 512 << 10, 640 << 10, UNIT_BYTES].map(|at| unit.start + at);
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]] {
            let mut made = None;
            for at in order {
                made = add(&(cuts[at]..cuts[at + 1]));
            }
            if order[0] == 1 {
                assert!(made.is_none(), "a small piece alone begins nothing");
                made = add(&(cuts[1]..cuts[2]));
            }
            assert!(bytes_of(made.unwrap()) == whole, "{order:?}");
        }
        assert!(fills.unfinished.lock().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_what_is_unfinished_goes_first() {
        let (sealer, fills) = (Sealer::without_key(), Fills::new(5 << 20));
        let half = Bytes::from(vec![7; size(UNIT_BYTES / 2)]);
        let name = |key| name(&sealer, key, 0);
        let add = |key| {
            let (piece, right) = ((&(0..UNIT_BYTES / 2), &half), (FillRight::IfAbsent, None));
            fills.add(name(key), piece, right)
        };
        assert!(matches!((add("a"), add("b")), (Ok(None), Ok(None))));
        assert!(matches!(add("c"), Ok(None)), "in place of the first");
        let kept: Vec<_> = fills.unfinished.lock().iter().map(|kept| kept.name).collect();
        assert_eq!(kept, [name("b"), name("c")]);
        let held: Vec<_> = (0..2).map(|_| fills.reserve(UNIT_BYTES).unwrap()).collect();
        assert!(fills.reserve(UNIT_BYTES).is_none());
        assert!(matches!(add("d"), Err(length) if length == UNIT_BYTES / 2));
        drop(held);
        assert!(fills.reserve(UNIT_BYTES).is_some());
    }
}
