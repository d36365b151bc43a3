//! The chunk cache: object bytes in recycled memory, the least recently used chunks evicted first.
//!
//! - Object bytes live only in chunks, and a block is charged on the budget before its bytes are
//!   requested: so one number bounds memory.
//! - A block is fetched by at most one GET at a time, which holds its [`arena::BlockWriter`]; every
//!   other reader waits on the block.
//! - A leased chunk ([`Lease`]) is not evicted. No reader waits for room while it holds a lease: so
//!   all chunks that readers hold become free, and the wait ends.
//! - A fetch, once begun, continues without its reader. A failed one leaves its blocks empty and
//!   reports the error to the readers that waited for it; the next reader tries again.
//! - A chunk of a large object whose every byte is in the kernel's page cache is a second copy: it
//!   leaves, and its memory is that of the next chunk. So streams need what they have in flight.
//! - Bytes that were fetched ahead are not evicted by readahead before they are read ([`queues`]).

use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Weak, atomic};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::MutexGuard;
use tokio::time::sleep;

use self::arena::{Arena, BlockWriter};
use self::chunk::Chunk;
use self::gate::Gate;
pub use self::lease::Data;
use self::lease::{Lease, Slice};
pub(crate) use self::pace::NetworkPace;
use self::populate::Populator;
use self::queues::Queues;
use self::slots::Full;
use crate::base::layout::{Layout, Span};
use crate::stats::Stats;
use crate::store::{ObjectMeta, ObjectStore, StoreError};

mod arena;
mod chunk;
mod fetch;
mod gate;
mod lease;
mod pace;
mod populate;
mod queues;
mod slots;
mod states;
#[cfg(test)]
mod tests;

/// The inode number, which stands for one version of an object.
pub(crate) type ObjectId = u64;

/// With the index of the chunk in its object.
type ChunkKey = (ObjectId, u32);

/// Memory that was idle for this long is returned to the system, at most twice as late.
const IDLE: Duration = Duration::from_secs(10);

/// After so many times [`IDLE`] without received bytes, those that were fetched ahead and not read
/// are given up: their reader has gone.
const SILENT: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// Into the kernel's page cache, which keeps them.
    Buffered,
    /// To a program, past the page cache (`O_DIRECT`).
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A reader waits for it.
    Demand,
    /// A reader will probably want it.
    Ahead,
}

#[derive(Clone, Copy, Debug)]
pub struct ReadConfig {
    pub layout: Layout,
    /// The bound on cached and in-flight object bytes.
    pub memory_budget_bytes: u64,
    pub max_connections: usize,
    /// Small objects that were read stay while there is room: no disk has them.
    pub keeps_small: bool,
    /// Streams are fetched in whole multiples of this, as a shared cache keeps them; 0 for any.
    pub unit_bytes: u64,
}

/// The cache's memory at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Use {
    /// Bytes that are requested and have not come.
    pub(crate) awaited_bytes: u64,
    /// Lengths of the chunks with bytes that nobody has read.
    pub(crate) unread_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) id: ObjectId,
    pub(crate) meta: Arc<ObjectMeta>,
}

pub(crate) struct ChunkCache {
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    keeps_small: bool,
    arena: Arc<Arena>,
    chunks: Mutex<Queues>,
    /// Held by the one reader that waits for room; the others queue for it.
    turn: tokio::sync::Mutex<()>,
    gate: Arc<Gate>,
    populator: Populator,
    runtime: Handle,
    stats: Arc<Stats>,
}

impl ChunkCache {
    /// Fails when the address space cannot be reserved, or a thread not be started. Fetches are
    /// spawned on `runtime`.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        config: ReadConfig,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> std::io::Result<Arc<Self>> {
        let ReadConfig { layout, memory_budget_bytes, max_connections, keeps_small, .. } = config;
        Ok(Arc::new(Self {
            store,
            layout,
            keeps_small,
            arena: Arena::reserve(layout, memory_budget_bytes)?,
            chunks: Mutex::new(Queues::new()),
            turn: tokio::sync::Mutex::new(()),
            gate: Gate::new(max_connections),
            populator: Populator::start()?,
            runtime,
            stats,
        }))
    }

    /// From now on returns memory to the system that is no longer needed.
    pub(crate) fn release_idle_memory(self: &Arc<Self>) {
        self.runtime.spawn(release_idle_memory(Arc::downgrade(self)));
    }

    pub(crate) fn network_pace(&self) -> NetworkPace {
        self.gate.network_pace(self.layout.part_bytes)
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.arena.usage().used
    }

    pub(crate) fn used(&self) -> Use {
        Use { awaited_bytes: self.arena.awaited(), unread_bytes: self.chunks.lock().unread_bytes() }
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.arena.usage().budget
    }

    /// Evicts every chunk that is not leased.
    pub(crate) fn evict_all(&self) {
        let mut chunks = self.chunks.lock();
        while self.evict(&mut chunks, Purpose::Demand).is_ok() {}
        drop(chunks);
        self.arena.freed.notify_waiters();
    }

    /// A chunk of the object is in the cache, or on its way there.
    pub(crate) fn holds(&self, id: ObjectId, chunk: u32) -> bool {
        self.chunks.lock().contains((id, chunk))
    }

    /// Waits until nothing of a range inside a chunk is being fetched. False if not all of it came.
    pub(crate) async fn settled(self: &Arc<Self>, source: &Source, span: &Span) -> bool {
        let Some(found) = self.chunks.lock().get((source.id, span.chunk)) else { return false };
        let lease = Lease::new(found, source, span.chunk, self);
        let (memory, blocks) = (&lease.memory, span.blocks());
        loop {
            let mut progress = pin!(memory.progress().notified());
            progress.as_mut().enable();
            let is_settled = |block| memory.is_empty(block) || memory.is_ready(block..block + 1);
            if blocks.clone().all(is_settled) {
                return memory.is_ready(blocks);
            }
            progress.await;
        }
    }

    /// The first bytes of an object, if they are here; fewer if it has fewer.
    pub(crate) fn beginning(&self, id: ObjectId, bytes: usize) -> Option<Vec<u8>> {
        let chunk = self.chunks.lock().peek((id, 0)).cloned()?;
        let bytes = bytes.min(chunk.memory.len());
        chunk.memory.bytes(0..bytes).map(<[u8]>::to_vec)
    }

    /// Starts fetching the empty blocks of `range` in GETs of at most `piece_bytes`. Returns the
    /// offset that it has reached: the range's end, or the place where the budget was full.
    pub(crate) fn fetch(
        self: &Arc<Self>,
        source: &Source,
        range: Range<u64>,
        piece_bytes: u64,
        purpose: Purpose,
    ) -> u64 {
        // Readers that wait for room take precedence.
        if purpose == Purpose::Ahead && self.turn.try_lock().is_err() {
            return range.start;
        }
        let mut reached = range.start;
        for span in self.layout.spans(range.clone()) {
            let Ok(lease) = self.lease(source, span.chunk, purpose) else { return reached };
            for blocks in span.parts(piece_bytes) {
                // What has just failed is for a reader to ask for again.
                if lease.failures.lock().find(u64::MAX, &blocks).is_some() {
                    return reached;
                }
                let bytes = self.layout.block_bytes(&blocks, lease.memory.len());
                let writers = self.claim_making_room(&lease, blocks, purpose);
                let Ok(writers) = writers else { return reached };
                self.spawn_fetches(&lease, writers, purpose);
                reached = lease.span(bytes).object_range().end;
            }
        }
        reached.min(range.end)
    }

    /// The bytes of `range`, which lies inside the object, as soon as they have arrived.
    pub(crate) async fn read(
        self: &Arc<Self>,
        source: &Source,
        range: Range<u64>,
        kind: ReadKind,
    ) -> Result<Data, StoreError> {
        let length = range.end - range.start;
        let mut spans = self.layout.spans(range);
        let Some(first) = spans.next() else { return Ok(Data::EMPTY) };
        let first = self.read_span(source, first, kind).await?;
        if first.len() as u64 == length {
            return Ok(Data::Slice(first));
        }
        // Across a chunk boundary, which the kernel's aligned reads of a default mount never are.
        let mut joined = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        joined.extend_from_slice(&first);
        drop(first);
        for span in spans {
            joined.extend_from_slice(&self.read_span(source, span, kind).await?);
        }
        Ok(Data::Joined(joined))
    }

    async fn read_span(
        self: &Arc<Self>,
        source: &Source,
        span: Span,
        kind: ReadKind,
    ) -> Result<Slice, StoreError> {
        let blocks = span.blocks();
        let mut turn = None;
        loop {
            let mut freed = pin!(self.arena.freed.notified());
            freed.as_mut().enable();
            if let Ok(lease) = self.lease(source, span.chunk, Purpose::Demand) {
                match self.wait_for_blocks(&lease, &blocks, &mut turn).await {
                    Ok(()) => {
                        self.was_read(&lease, &blocks, &span.bytes, kind);
                        return Ok(Slice { lease, bytes: span.bytes });
                    }
                    Err(Wait::Failed(error)) => return Err(error),
                    // The reader that waits for room must not be woken by its own lease's end.
                    Err(Wait::Full) if turn.is_some() => lease.end_quietly(),
                    Err(Wait::Full) => {}
                }
            }
            if turn.is_some() {
                freed.await;
            } else {
                turn = Some(self.turn.lock().await);
            }
        }
    }

    /// Waits until all the blocks are ready; fetches those that are empty. Ends the caller's turn
    /// to wait for room when all of them are charged.
    async fn wait_for_blocks(
        &self,
        lease: &Lease,
        blocks: &Range<usize>,
        turn: &mut Option<MutexGuard<'_, ()>>,
    ) -> Result<(), Wait> {
        let since = lease.failures.lock().count;
        let mut waited = false;
        loop {
            let mut progress = pin!(lease.memory.progress().notified());
            progress.as_mut().enable();
            if lease.memory.is_ready(blocks.clone()) {
                return Ok(());
            }
            if let Some(error) = lease.failures.lock().find(since, blocks) {
                return Err(Wait::Failed(error));
            }
            if lease.memory.has_empty(blocks.clone()) {
                let writers = self.claim_making_room(lease, blocks.clone(), Purpose::Demand);
                self.spawn_fetches(lease, writers.map_err(|Full| Wait::Full)?, Purpose::Demand);
            }
            // All of it is charged, by this reader or by others.
            *turn = None;
            lease.want(blocks);
            if !std::mem::replace(&mut waited, true) {
                self.stats.reads_waited.add(1);
            }
            progress.await;
        }
    }

    /// The chunk, made if it is missing, and now the most recently used one.
    fn lease(
        self: &Arc<Self>,
        source: &Source,
        index: u32,
        purpose: Purpose,
    ) -> Result<Lease, Full> {
        let mut chunks = self.chunks.lock();
        let key = (source.id, index);
        if let Some(found) = chunks.get(key) {
            return Ok(Lease::new(found, source, index, self));
        }
        let len = self.layout.chunk_len(source.meta.version.size_bytes, index);
        // The chunk will be where room is made now: in memory that is populated already. If none
        // can be made, none is needed yet.
        if self.arena.usage().available() < self.layout.part_bytes.min(len as u64) {
            let _ = self.evict(&mut chunks, purpose);
        }
        let memory = loop {
            match self.arena.memory(len) {
                Ok(memory) => break memory,
                Err(Full) => self.evict(&mut chunks, purpose)?,
            }
        };
        let made = Arc::new(Chunk::new(memory));
        chunks.insert(key, made.clone());
        Ok(Lease::new(made, source, index, self))
    }

    /// Claims the empty blocks of a run; evicts the oldest chunks for them if necessary.
    fn claim_making_room(
        &self,
        lease: &Lease,
        blocks: Range<usize>,
        purpose: Purpose,
    ) -> Result<Vec<BlockWriter>, Full> {
        let writers = loop {
            match lease.memory.claim(blocks.clone()) {
                Ok(writers) => break writers,
                Err(Full) => self.evict(&mut self.chunks.lock(), purpose)?,
            }
        };
        if !writers.is_empty() {
            lease.requested(self.arena.received());
            self.chunks.lock().settle(lease.key(), lease.chunk());
        }
        Ok(writers)
    }

    fn spawn_fetches(&self, lease: &Lease, writers: Vec<BlockWriter>, purpose: Purpose) {
        for writer in writers {
            let bytes = writer.bytes().len() as u64;
            // Not in the task: tasks begin in any order, and the nearest bytes are wanted first.
            let place = self.gate.enter(purpose, bytes, lease.source.id);
            self.runtime.spawn(fetch::fetch(lease.clone(), writer, purpose, place));
        }
    }

    /// Evicts one chunk that is not leased. Bytes that were fetched ahead keep their place against
    /// readahead until a whole budget has come since: then their reader has gone elsewhere.
    fn evict(&self, chunks: &mut Queues, purpose: Purpose) -> Result<(), Full> {
        let (received, patience) = (self.arena.received(), self.budget_bytes());
        let evicted = chunks.evict(purpose, |chunk| chunk.age(received) > patience).ok_or(Full)?;
        self.stats.bytes_unread.add(evicted.unread_bytes());
        self.stats.evictions.add(1);
        Ok(())
    }

    fn was_read(&self, lease: &Lease, blocks: &Range<usize>, bytes: &Range<usize>, kind: ReadKind) {
        let whole = lease.mark_read(blocks, bytes);
        // Small objects stay for readers that come after the kernel has dropped them.
        let is_small = lease.source.meta.version.size_bytes <= self.layout.small_bytes;
        if whole && kind == ReadKind::Buffered && !(is_small && self.keeps_small) {
            self.chunks.lock().remove(lease.key(), lease.chunk());
        } else if !lease.has_unread() {
            self.chunks.lock().settle(lease.key(), lease.chunk());
        }
    }
}

enum Wait {
    /// The budget has no room for the blocks now.
    Full,
    Failed(StoreError),
}

/// Ends with the cache.
async fn release_idle_memory(cache: Weak<ChunkCache>) {
    let (mut before, mut silent) = (0, 0);
    loop {
        sleep(IDLE).await;
        let Some(cache) = cache.upgrade() else { return };
        let received = cache.arena.received();
        silent = if received == before { silent + 1 } else { 0 };
        before = received;
        if silent == SILENT {
            let abandoned = cache.chunks.lock().take_unread();
            cache.stats.bytes_unread.add(abandoned.iter().map(|chunk| chunk.unread_bytes()).sum());
        }
        cache.arena.release_idle();
    }
}
