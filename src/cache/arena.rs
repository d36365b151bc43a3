//! Memory for chunks: one mapping, reserved at start and recycled, and the state of every block
//! in it. The only file of the core with `unsafe`.
//!
//! Not `Vec<u8>`: fresh memory costs 0.3 to 0.7 CPU seconds a GB in page faults, more than
//! receiving the bytes does, and a reply is cut from bytes that are next to each other.
//!
//! It is sound because of four rules, which this file alone keeps:
//!
//! - A block is empty, being fetched or ready ([`States`]). It stops being empty only under the
//!   lock of [`Arena::slots`], when one [`BlockWriter`] takes it; so no two writers share a block.
//! - Only its writer writes to a block, and only until it is ready.
//! - The writer publishes a block with `Release`, and [`Memory::bytes`] reads it only after it
//!   has seen it ready with `Acquire`. It stays ready as long as its [`Memory`] lives.
//! - A [`Memory`] owns its slot alone, from [`Arena::memory`] to its drop, and both writers and
//!   readers of it keep it alive.

#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::slots::{Charged, Full, LEAST_SPREAD, SPREAD, Slot, Slots, Usage};
use super::states::States;
use crate::base::layout::Layout;
use crate::base::proc;
use crate::store::Destination;

/// A huge page of x86-64, and of arm64 with pages of 4 KiB. Elsewhere it is only an alignment.
const HUGE_BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct Arena {
    /// Where offsets count from: a multiple of [`HUGE_BYTES`] inside the mapping.
    start: NonNull<u8>,
    mapping: NonNull<u8>,
    mapped_bytes: usize,
    page_bytes: usize,
    layout: Layout,
    slots: Mutex<Slots>,
    /// Bytes that all writers have received from the network.
    received: AtomicU64,
    /// Bytes of blocks that have a writer.
    awaited: AtomicU64,
    /// Notified when a chunk may have become evictable, or a charge has ended.
    pub(super) freed: Notify,
}

// SAFETY: the pointer is to a mapping that lives as long as the arena and is not tied to a
// thread; the rules above say which code may touch which bytes.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves as much address space as is useful, or else as the system gives. Memory is added as
    /// it is touched, up to `budget_bytes`.
    pub(super) fn reserve(layout: Layout, budget_bytes: u64) -> std::io::Result<Arc<Self>> {
        // Tests have blocks smaller than a page. Their memory is not handed back, only counted.
        let granule = layout.block_bytes.min(4096);
        let huge = HUGE_BYTES as u64;
        let least_bytes = budget_bytes / LEAST_SPREAD;
        let mut class_bytes =
            if proc::counts_address_space() { least_bytes } else { budget_bytes * SPREAD };
        let (slots, mapped_bytes, base) = loop {
            let Layout { chunk_bytes, block_bytes, .. } = layout;
            let slots =
                Slots::new(chunk_bytes, block_bytes, granule, huge, budget_bytes, class_bytes);
            let bytes = slots.address_bytes() + huge;
            if let Some((base, mapped_bytes)) = map(bytes) {
                break (slots, mapped_bytes, base);
            }
            if class_bytes <= least_bytes {
                let needs = format!("it needs {} MiB at least", bytes >> 20);
                return Err(std::io::Error::new(std::io::ErrorKind::OutOfMemory, needs));
            }
            class_bytes = (class_bytes / 2).max(least_bytes);
        };
        // SAFETY: our own mapping. With huge pages one touched block of 128 KiB would cost 2 MiB
        // that is not counted, so they are enabled only where whole ones are charged
        // ([`Memory::populate`]). Object bytes do not belong into core files. A kernel may refuse
        // either advice; nothing depends on it.
        let page = unsafe {
            libc::madvise(base.as_ptr().cast(), mapped_bytes, libc::MADV_NOHUGEPAGE);
            libc::madvise(base.as_ptr().cast(), mapped_bytes, libc::MADV_DONTDUMP);
            libc::sysconf(libc::_SC_PAGESIZE)
        };
        let page_bytes = usize::try_from(page).unwrap_or(4096);
        // Multiples of HUGE_BYTES in the arena are huge pages in memory: one more is mapped.
        // SAFETY: less than a huge page further, so still inside the mapping.
        let start = unsafe { base.add(base.align_offset(HUGE_BYTES)) };
        Ok(Arc::new(Self {
            start,
            mapping: base,
            mapped_bytes,
            page_bytes,
            layout,
            slots: Mutex::new(slots),
            received: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            freed: Notify::new(),
        }))
    }

    /// Address space for a chunk of `len` bytes, all of its blocks empty.
    pub(super) fn memory(self: &Arc<Self>, len: usize) -> Result<Arc<Memory>, Full> {
        let slot = self.slots.lock().take(len as u64)?;
        let states = States::new(self.layout.blocks(&(0..len)).len());
        Ok(Arc::new(Memory { arena: self.clone(), slot, len, states, progress: Notify::new() }))
    }

    pub(super) fn usage(&self) -> Usage {
        self.slots.lock().usage()
    }

    /// Returns memory to the system that was idle ever since the last call.
    pub(super) fn release_idle(&self) {
        let mut slots = self.slots.lock();
        for range in slots.take_surplus() {
            self.release(&range);
        }
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn awaited(&self) -> u64 {
        self.awaited.load(Ordering::Relaxed)
    }

    fn release(&self, bytes: &Range<u64>) {
        let (Ok(start), Ok(end)) = (usize::try_from(bytes.start), usize::try_from(bytes.end))
        else {
            return;
        };
        let start = start.next_multiple_of(self.page_bytes);
        let end = end / self.page_bytes * self.page_bytes;
        if start < end {
            debug_assert!(end <= self.mapped_bytes - HUGE_BYTES);
            // SAFETY: inside the mapping, and idle: no block there is charged, so no writer or
            // reader uses it. Its contents are not needed.
            unsafe {
                let at = self.start.as_ptr().add(start);
                libc::madvise(at.cast(), end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Address space at a place of the kernel's choice.
fn map(bytes: u64) -> Option<(NonNull<u8>, usize)> {
    let bytes = usize::try_from(bytes).ok()?;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
    // NORESERVE: the address space is many times the memory that will be used.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    let base = NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED)?;
    Some((base, bytes))
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this length. Every `Memory` keeps the arena alive, so no
        // pointer into it is left.
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapped_bytes);
        }
    }
}

#[derive(Debug)]
pub(super) struct Memory {
    arena: Arc<Arena>,
    slot: Slot,
    len: usize,
    states: States,
    /// Notified whenever a block has become ready, or empty again.
    progress: Notify,
}

impl Memory {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where a block ends, in bytes from the chunk's beginning.
    pub(super) fn block_end(&self, block: usize) -> usize {
        self.arena.layout.block_bytes(&(block..block + 1), self.len).end
    }

    pub(super) fn blocks(&self) -> usize {
        self.states.len()
    }

    pub(super) fn progress(&self) -> &Notify {
        &self.progress
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        assert!(range.start <= range.end && range.end <= self.len, "inside the chunk");
        if !self.is_ready(self.arena.layout.blocks(&range)) {
            return None;
        }
        // SAFETY: inside our slot. All the blocks were written whole before they were published as
        // ready, which we have seen with Acquire, and they do not change as long as `self` lives.
        Some(unsafe {
            std::slice::from_raw_parts(self.pointer(range.start), range.end - range.start)
        })
    }

    pub(super) fn is_ready(&self, blocks: Range<usize>) -> bool {
        self.states.are_ready(blocks)
    }

    pub(super) fn has_empty(&self, blocks: Range<usize>) -> bool {
        self.states.have_empty(blocks)
    }

    pub(super) fn is_empty(&self, block: usize) -> bool {
        self.states.is_empty(block)
    }

    /// Takes all empty blocks of a run and charges them on the budget: a writer for each part of
    /// each stretch of them. Takes none if the budget has no room for all.
    pub(super) fn claim(self: &Arc<Self>, blocks: Range<usize>) -> Result<Vec<BlockWriter>, Full> {
        let layout = self.arena.layout;
        let mut slots = self.arena.slots.lock();
        // Blocks become empty, and stop being empty, only under this lock.
        let mut stretches: Vec<Range<usize>> = Vec::new();
        for block in blocks.filter(|&block| self.states.is_empty(block)) {
            match stretches.last_mut() {
                Some(stretch) if stretch.end == block => stretch.end += 1,
                _ => stretches.push(block..block + 1),
            }
        }
        let addresses: Vec<_> = stretches.iter().map(|blocks| self.addresses(blocks)).collect();
        let Charged { fresh, release } = slots.charge(&addresses)?;
        for range in release {
            self.arena.release(&range);
        }
        let mut writers = Vec::new();
        for stretch in stretches {
            for part in layout.parts(stretch, layout.part_bytes) {
                self.states.take(part.clone());
                let bytes = layout.block_bytes(&part, self.len);
                self.arena.awaited.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                writers.push(BlockWriter {
                    memory: self.clone(),
                    at: bytes.start,
                    bytes,
                    next: part.start,
                    blocks: part,
                    fresh,
                    first_byte: None,
                    is_local: false,
                });
            }
        }
        Ok(writers)
    }

    fn addresses(&self, blocks: &Range<usize>) -> Range<u64> {
        let bytes = self.arena.layout.block_bytes(blocks, self.len);
        self.slot.offset + bytes.start as u64..self.slot.offset + bytes.end as u64
    }

    /// Has the system provide memory for these charged bytes of the chunk all at once: each page
    /// that is first touched by a write costs a trap. Uses huge pages where whole ones fit.
    pub(super) fn populate(&self, bytes: &Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len, "inside the chunk");
        if self.is_ready(self.arena.layout.blocks(bytes)) {
            return;
        }
        let advise = |unit: usize, advice: libc::c_int| {
            let start = self.pointer(bytes.start);
            let inside = start.align_offset(unit);
            let len = (bytes.end - bytes.start).saturating_sub(inside) / unit * unit;
            if len > 0 {
                // SAFETY: inside our slot. No advice used here changes a byte, and a kernel that
                // does not know one refuses it; nothing depends on it.
                unsafe {
                    libc::madvise(start.add(inside).cast(), len, advice);
                }
            }
        };
        advise(HUGE_BYTES, libc::MADV_HUGEPAGE);
        advise(self.arena.page_bytes, libc::MADV_POPULATE_WRITE);
        // Existing huge pages stay; none is made for a single block that is written here later.
        advise(HUGE_BYTES, libc::MADV_NOHUGEPAGE);
    }

    fn pointer(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.len);
        let slot = usize::try_from(self.slot.offset).expect("the slot is inside the mapping");
        // SAFETY: the slot is inside the mapping, and at least as long as the chunk.
        unsafe { self.arena.start.as_ptr().add(slot + at) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut slots = self.arena.slots.lock();
        for block in 0..self.states.len() {
            if !self.states.is_empty(block) {
                slots.discharge(&self.addresses(&(block..block + 1)));
            }
        }
        slots.give(&self.slot);
    }
}

/// The exclusive right to fill a run of blocks: a cursor that network bytes are written to.
///
/// When it passes the end of a block, that block is ready. When it is dropped, the blocks that it
/// has not filled are empty again, and no longer charged.
#[derive(Debug)]
pub(super) struct BlockWriter {
    memory: Arc<Memory>,
    /// The bytes of the chunk that the blocks hold.
    bytes: Range<usize>,
    at: usize,
    blocks: Range<usize>,
    /// The first block that is not ready.
    next: usize,
    /// The blocks may have no memory yet.
    fresh: bool,
    first_byte: Option<Instant>,
    /// Some of the bytes were on this machine.
    is_local: bool,
}

impl BlockWriter {
    pub(super) fn bytes(&self) -> &Range<usize> {
        &self.bytes
    }

    pub(super) fn blocks(&self) -> &Range<usize> {
        &self.blocks
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// When the first byte came from the network; `None` if any of them did not.
    pub(super) fn first_byte(&self) -> Option<Instant> {
        self.first_byte.filter(|_| !self.is_local)
    }

    pub(super) fn written(&self) -> usize {
        self.at - self.bytes.start
    }
}

// SAFETY: `chunk_mut` gives out only bytes of blocks that this writer alone holds and that are
// not ready, from the cursor to the end of the run, and `remaining_mut` is their number;
// `advance_mut` never passes the end.
unsafe impl BufMut for BlockWriter {
    fn remaining_mut(&self) -> usize {
        self.bytes.end - self.at
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        assert!(count <= self.remaining_mut(), "inside the run");
        self.at += count;
        self.first_byte.get_or_insert_with(Instant::now);
        self.memory.arena.received.fetch_add(count as u64, Ordering::Relaxed);
        let layout = self.memory.arena.layout;
        let first = self.next;
        while self.next < self.blocks.end
            && layout.block_bytes(&(self.next..self.next + 1), self.memory.len).end <= self.at
        {
            self.memory.states.publish(self.next);
            self.next += 1;
        }
        if self.next > first {
            self.memory.progress.notify_waiters();
        }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        let (at, left) = (self.memory.pointer(self.at), self.remaining_mut());
        // SAFETY: `at` to `at + left` is inside our slot, in blocks that only this writer
        // touches until they are ready, and the borrow of `self` keeps `advance_mut` away.
        unsafe { UninitSlice::from_raw_parts_mut(at, left) }
    }
}

impl Destination for BlockWriter {
    fn taken(&self) -> &[u8] {
        // SAFETY: this writer has written these bytes of our slot. They do not change any more, as
        // the cursor has passed them, and the memory lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.pointer(self.bytes.start), self.written()) }
    }

    fn share(&self, from: usize) -> Bytes {
        let bytes = self.bytes.start + from..self.at;
        match self.memory.bytes(bytes.clone()) {
            Some(_) => Bytes::from_owner(Shared { memory: Some(self.memory.clone()), bytes }),
            None => Bytes::copy_from_slice(&self.taken()[from..]),
        }
    }

    fn put_local(&mut self, bytes: &[u8]) {
        self.is_local = true;
        self.put_slice(bytes);
        self.memory.arena.received.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Bytes of blocks that are ready, and so stay as they are.
struct Shared {
    /// `None` only in `drop`.
    memory: Option<Arc<Memory>>,
    bytes: Range<usize>,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        let bytes = self.memory.as_ref().and_then(|memory| memory.bytes(self.bytes.clone()));
        bytes.expect("they are ready")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let arena = memory.arena.clone();
            // Its chunk may have been evicted before.
            drop(memory);
            arena.freed.notify_waiters();
        }
    }
}

impl Drop for BlockWriter {
    fn drop(&mut self) {
        self.memory.arena.awaited.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
        let unfilled = self.next..self.blocks.end;
        if unfilled.is_empty() {
            return;
        }
        let mut slots = self.memory.arena.slots.lock();
        slots.discharge(&self.memory.addresses(&unfilled));
        self.memory.states.give_back(unfilled);
        drop(slots);
        self.memory.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { chunk_bytes: 16, block_bytes: 4, part_bytes: 8, small_bytes: 8 };

    fn arena(budget: u64) -> Arc<Arena> {
        Arena::reserve(LAYOUT, budget).unwrap()
    }

    #[test]
    fn a_block_is_readable_once_its_last_byte_is_written() {
        let memory = arena(64).memory(10).unwrap();
        let mut writers = memory.claim(0..3).unwrap();
        assert_eq!(writers.iter().map(|w| w.bytes().clone()).collect::<Vec<_>>(), [0..8, 8..10]);
        writers[0].put_slice(b"abc");
        assert_eq!(memory.bytes(0..1), None);
        writers[0].put_slice(b"de");
        assert_eq!(writers[0].taken(), b"abcde");
        assert_eq!(memory.bytes(0..4), Some(&b"abcd"[..]));
        assert_eq!(memory.bytes(0..5), None);
        let shared = writers[0].share(1);
        writers[1].put_slice(b"xy");
        assert_eq!(memory.bytes(8..10), Some(&b"xy"[..]), "the last block is short");
        writers[0].put_slice(b"fgh");
        let whole = writers[0].share(4);
        drop((writers, memory));
        assert_eq!((&shared[..], &whole[..]), (&b"bcde"[..], &b"efgh"[..]));
    }

    #[test]
    fn readers_that_wait_for_room_are_told_when_shared_bytes_end() {
        let arena = arena(8);
        let memory = arena.memory(8).unwrap();
        let mut writer = memory.claim(0..2).unwrap().remove(0);
        writer.put_slice(b"abcdefgh");
        let shared = writer.share(0);
        drop((writer, memory));
        assert_eq!((&shared[..], arena.usage().used), (&b"abcdefgh"[..], 8));
        let mut freed = std::pin::pin!(arena.freed.notified());
        freed.as_mut().enable();
        drop(shared);
        assert_eq!(arena.usage().used, 0);
        assert!(futures_util::FutureExt::now_or_never(freed).is_some());
    }

    #[test]
    fn a_dropped_writer_leaves_its_unfilled_blocks_empty_and_uncharged() {
        let arena = arena(64);
        let memory = arena.memory(16).unwrap();
        let mut writer = memory.claim(0..2).unwrap().remove(0);
        assert_eq!(arena.usage().used, 8);
        writer.put_slice(b"abcdef");
        drop(writer);
        assert_eq!(arena.usage().used, 4);
        assert_eq!(memory.bytes(0..4), Some(&b"abcd"[..]));
        assert!(memory.has_empty(1..2));
        drop(memory);
        assert_eq!(arena.usage().used, 0);
    }

    #[test]
    fn blocks_are_claimed_once_and_all_or_none() {
        let arena = arena(16);
        let memory = arena.memory(16).unwrap();
        let middle = memory.claim(1..2).unwrap();
        let around = memory.claim(0..3).unwrap();
        assert_eq!(around.iter().map(|w| w.blocks().clone()).collect::<Vec<_>>(), [0..1, 2..3]);
        assert!(memory.claim(0..3).unwrap().is_empty());
        let other = arena.memory(16).unwrap();
        assert_eq!(other.claim(0..2).unwrap_err(), Full);
        assert_eq!(other.claim(0..1).unwrap().len(), 1, "what was refused was not charged");
        drop((middle, around));
    }

    #[test]
    fn recycled_memory_never_shows_old_bytes() {
        let arena = arena(16);
        let memory = arena.memory(16).unwrap();
        memory.claim(0..4).unwrap().iter_mut().for_each(|w| {
            let n = w.remaining_mut();
            w.put_bytes(b'x', n);
        });
        assert_eq!(memory.bytes(0..16), Some(&[b'x'; 16][..]));
        drop(memory);
        let memory = arena.memory(16).unwrap();
        assert_eq!(memory.bytes(0..1), None);
        assert_eq!(memory.bytes(3..3), Some(&[][..]));
    }

    /// Real blocks and pages: memory that other chunks need is handed back to the system.
    #[test]
    fn memory_that_is_not_used_goes_back_to_the_system() {
        let layout = Layout {
            chunk_bytes: 1 << 20,
            block_bytes: 128 << 10,
            part_bytes: 1 << 20,
            small_bytes: 1 << 20,
        };
        let arena = Arena::reserve(layout, 1 << 20).unwrap();
        let fill = |len: usize| {
            let memory = arena.memory(len).unwrap();
            for writer in &mut memory.claim(layout.blocks(&(0..len))).unwrap() {
                let left = writer.remaining_mut();
                writer.put_bytes(7, left);
            }
            memory
        };
        drop(fill(1 << 20));
        let small: Vec<_> = (0..8).map(|_| fill(128 << 10)).collect();
        assert!(
            small.iter().all(|memory| memory.bytes(0..128 << 10).unwrap().iter().all(|&b| b == 7))
        );
        assert_eq!(arena.usage().used, 1 << 20);
    }
}
