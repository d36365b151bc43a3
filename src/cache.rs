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
//! - A chunk whose every byte is in the kernel's page cache is *spent*: a second copy. Spent chunks
//!   are evicted first, and before a stream makes the process touch fresh memory.

use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{self, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{MutexGuard, Notify};
use tokio::time::sleep;

use self::arena::{Arena, BlockWriter};
use self::chunk::Chunk;
use self::gate::Gate;
pub use self::lease::Data;
use self::lease::{Lease, Slice};
pub(crate) use self::pace::NetworkPace;
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
mod slots;
mod states;
#[cfg(test)]
mod tests;

/// The inode number, which stands for one version of an object.
pub(crate) type ObjectId = u64;

/// With the index of the chunk in its object.
type ChunkKey = (ObjectId, u32);

/// Memory that is populated in advance, at most a quarter of the budget: one stream's bytes in
/// flight. Touching fresh memory costs more than receiving the bytes.
const READY_BYTES: u64 = 256 << 20;

/// After this time without received bytes, idle memory above [`READY_BYTES`] is returned.
const IDLE: Duration = Duration::from_secs(10);

/// Chunks that are examined to find a spent one: spent chunks are among the oldest.
const SPENT_SEARCH: usize = 16;

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
}

#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) id: ObjectId,
    pub(crate) meta: Arc<ObjectMeta>,
}

pub(crate) struct ChunkCache {
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    arena: Arc<Arena>,
    /// By recency of use. Locked before the arena's slots: evicting frees a chunk's memory.
    chunks: Mutex<LruCache<ChunkKey, Arc<Chunk>>>,
    /// Notified when a chunk may have become evictable, or a charge has ended.
    freed: Notify,
    /// Held by the one reader that waits for room; the others queue for it.
    turn: tokio::sync::Mutex<()>,
    /// Bytes of the spent chunks of streams, changed under the lock of `chunks`.
    spent_bytes: AtomicU64,
    gate: Arc<Gate>,
    runtime: Handle,
    stats: Arc<Stats>,
}

impl ChunkCache {
    /// Fails when the address space cannot be reserved. Fetches are spawned on `runtime`.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        config: ReadConfig,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> std::io::Result<Arc<Self>> {
        let ReadConfig { layout, memory_budget_bytes, max_connections } = config;
        Ok(Arc::new(Self {
            store,
            layout,
            arena: Arena::reserve(layout, memory_budget_bytes)?,
            chunks: Mutex::new(LruCache::unbounded()),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            spent_bytes: AtomicU64::new(0),
            gate: Gate::new(max_connections),
            runtime,
            stats,
        }))
    }

    /// Populates the memory of the first chunks, and then returns idle memory to the system.
    pub(crate) fn keep_ready(self: &Arc<Self>) {
        let ready_bytes = READY_BYTES.min(self.arena.usage().budget / 4);
        let cache = self.clone();
        self.runtime.spawn_blocking(move || {
            cache.arena.make_ready(ready_bytes);
            cache.freed.notify_waiters();
        });
        self.runtime.spawn(release_idle_memory(Arc::downgrade(self), ready_bytes));
    }

    pub(crate) fn network_pace(&self) -> NetworkPace {
        let Layout { largest_part_bytes, block_bytes, .. } = self.layout;
        self.gate.network_pace(largest_part_bytes, block_bytes)
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.arena.usage().used
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.arena.usage().budget
    }

    /// Evicts every chunk that is not leased.
    pub(crate) fn evict_all(&self) {
        let mut chunks = self.chunks.lock();
        while self.evict_oldest(&mut chunks).is_ok() {}
        drop(chunks);
        self.freed.notify_waiters();
    }

    /// The object's first chunk is in the cache.
    pub(crate) fn holds(&self, id: ObjectId) -> bool {
        self.chunks.lock().contains(&(id, 0))
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
            let Ok(lease) = self.lease(source, span.chunk) else { return reached };
            for blocks in span.parts(piece_bytes) {
                // What has just failed is for a reader to ask for again.
                if lease.failures.lock().find(u64::MAX, &blocks).is_some() {
                    return reached;
                }
                let bytes = self.layout.block_bytes(&blocks, lease.memory.len());
                let Ok(writers) = self.claim_making_room(&lease, blocks) else { return reached };
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
        let mut joined = first.to_vec();
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
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Ok(lease) = self.lease(source, span.chunk) {
                match self.wait_for_blocks(&lease, &blocks, &mut turn).await {
                    Ok(()) => {
                        if kind == ReadKind::Buffered && lease.take(&blocks, &span.bytes) {
                            self.spend(&lease);
                        }
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
                let writers = self.claim_making_room(lease, blocks.clone());
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
    fn lease(self: &Arc<Self>, source: &Source, index: u32) -> Result<Lease, Full> {
        let mut chunks = self.chunks.lock();
        let key = (source.id, index);
        if let Some(found) = chunks.get(&key).cloned() {
            if found.is_spent() {
                // The page cache has lost it, so it is a first copy again.
                self.unspend(&found);
            }
            return Ok(Lease::new(found, source, index, self));
        }
        let len = self.layout.chunk_len(source.meta.version.size_bytes, index);
        let largest_part = self.layout.largest_part_bytes;
        let first_part = largest_part.min(len as u64);
        let usage = self.arena.usage();
        // Only for a stream: a small object would replace the previous small one, which is spent
        // later than any stream, although the budget is not nearly full.
        let recycles = len as u64 > largest_part
            && self.spent_bytes.load(Ordering::Relaxed) > 0
            && usage.idle < first_part;
        // The chunk will be where room is made now: in memory that is populated already. If none
        // can be made, none is needed yet.
        if usage.available() < first_part {
            let _ = self.evict_oldest(&mut chunks);
        } else if recycles {
            let is_spent = |chunk: &Chunk| chunk.is_spent() && self.stream_bytes(chunk) > 0;
            let _ = self.evict_oldest_if(&mut chunks, is_spent);
        }
        let memory = loop {
            match self.arena.memory(len) {
                Ok(memory) => break memory,
                Err(Full) => self.evict_oldest(&mut chunks)?,
            }
        };
        let made = Arc::new(Chunk::new(memory));
        chunks.put(key, made.clone());
        Ok(Lease::new(made, source, index, self))
    }

    /// Claims the empty blocks of a run; evicts the oldest chunks for them if necessary.
    fn claim_making_room(
        &self,
        lease: &Lease,
        blocks: Range<usize>,
    ) -> Result<Vec<BlockWriter>, Full> {
        loop {
            match lease.memory.claim(blocks.clone()) {
                Ok(writers) => return Ok(writers),
                Err(Full) => self.evict_oldest(&mut self.chunks.lock())?,
            }
        }
    }

    fn spawn_fetches(&self, lease: &Lease, writers: Vec<BlockWriter>, purpose: Purpose) {
        for writer in writers {
            self.runtime.spawn(fetch::fetch(lease.clone(), writer, purpose));
        }
    }

    /// Evicts the least recently used chunk that is not leased.
    fn evict_oldest(&self, chunks: &mut LruCache<ChunkKey, Arc<Chunk>>) -> Result<(), Full> {
        self.evict_oldest_if(chunks, |_| true)
    }

    /// The same, but only a chunk that `matches`, if there is one among the oldest.
    fn evict_oldest_if(
        &self,
        chunks: &mut LruCache<ChunkKey, Arc<Chunk>>,
        matches: impl Fn(&Chunk) -> bool,
    ) -> Result<(), Full> {
        // No new lease can be taken while `chunks` is locked, so a count of one stays one.
        let free = |chunk: &Arc<Chunk>| Arc::strong_count(chunk) == 1;
        let mut oldest = chunks.iter().rev().filter(|(_, chunk)| free(chunk)).take(SPENT_SEARCH);
        let oldest = oldest.find(|(_, chunk)| matches(chunk)).map(|(&key, _)| key);
        if let Some(chunk) = chunks.pop(&oldest.ok_or(Full)?) {
            self.stats.bytes_unread.add(chunk.unread_bytes());
            if chunk.is_spent() {
                self.unspend(&chunk);
            }
        }
        self.stats.evictions.add(1);
        Ok(())
    }

    /// The page cache holds all of this chunk: from now on it is the first to be evicted.
    fn spend(&self, lease: &Lease) {
        let mut chunks = self.chunks.lock();
        if lease.spend() {
            self.spent_bytes.fetch_add(self.stream_bytes(lease), Ordering::Relaxed);
            chunks.demote(&(lease.source.id, lease.index));
        }
    }

    /// The share of a chunk in `spent_bytes`. Small objects have none: they stay here for readers
    /// that come after the kernel has dropped them.
    fn stream_bytes(&self, chunk: &Chunk) -> u64 {
        let len = chunk.memory.len() as u64;
        if len > self.layout.largest_part_bytes { len } else { 0 }
    }

    /// Called under the lock of `chunks`, for a chunk that is spent.
    fn unspend(&self, chunk: &Chunk) {
        self.spent_bytes.fetch_sub(self.stream_bytes(chunk), Ordering::Relaxed);
        chunk.unspend();
    }
}

enum Wait {
    /// The budget has no room for the blocks now.
    Full,
    Failed(StoreError),
}

/// Returns idle memory above `ready_bytes` to the system; ends with the cache.
async fn release_idle_memory(cache: Weak<ChunkCache>, ready_bytes: u64) {
    let mut before = 0;
    loop {
        sleep(IDLE).await;
        let Some(cache) = cache.upgrade() else { return };
        let received = cache.arena.received();
        if received == before {
            cache.arena.release_idle(ready_bytes);
        }
        before = received;
    }
}
