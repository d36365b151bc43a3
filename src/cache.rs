//! The chunk cache: object bytes in recycled memory, least recently used chunks given up first,
//! one budget for all of it, every byte fetched once however many ask for it.
//!
//! Invariants:
//!
//! - Object bytes live only in chunks, and a block is charged on the budget before its bytes are
//!   requested. So one number bounds memory.
//! - A block is fetched by at most one GET at a time: the right to fill it is an
//!   [`arena::BlockWriter`], and whoever else wants it waits on the block.
//! - A chunk that somebody holds a [`Lease`] of is not given up. Nobody waits for room while
//!   holding one: so what they all hold can be given up, and the wait ends.
//! - A fetch, once begun, goes on without its reader; a failed one leaves its blocks empty, tells
//!   those who waited for it why, and the next reader tries again.
//! - A chunk whose every byte the kernel's page cache has taken is *spent*: a second copy. Spent
//!   chunks are given up first, and sooner than that fresh memory is touched for a stream.

use std::ops::{Deref, Range};
use std::pin::pin;
use std::sync::atomic::{self, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BufMut;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{MutexGuard, Notify};
use tokio::time::{Instant, sleep, timeout};

use self::arena::{Arena, BlockWriter};
use self::chunk::Chunk;
use self::gate::{Gate, OVERDUE, Pass};
use self::pace::Timing;
use self::slots::Full;
use crate::base::layout::{Layout, Span};
use crate::stats::Stats;
use crate::store::{ObjectMeta, ObjectStore, StoreError};

mod arena;
mod chunk;
mod gate;
mod pace;
mod slots;
mod states;
#[cfg(test)]
mod tests;

/// Names one version of one object; the inode number serves as such.
pub type ObjectId = u64;

/// So much memory is kept ready, if a quarter of the budget is as much: what one stream has in
/// flight, or it would begin with touching fresh memory, which costs more than to receive the bytes.
const READY_BYTES: u64 = 256 << 20;

/// What more of it was not needed for this long goes back to the system.
const IDLE: Duration = Duration::from_secs(10);

/// Chunks that are looked at to find a spent one, which are all among the oldest.
const LOOKED_AT: usize = 16;

/// Who takes the bytes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// The kernel's page cache, which keeps them.
    PageCache,
    /// A program, past the page cache (`O_DIRECT`).
    Program,
}

/// Why something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A reader waits for it.
    Demand,
    /// A reader will probably want it.
    Ahead,
}

/// The chunk cache. Clones are the same cache.
#[derive(Clone)]
pub struct ChunkCache(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    layout: Layout,
    arena: Arc<Arena>,
    /// Every chunk that holds or awaits bytes, by recency of use.
    chunks: Mutex<LruCache<(ObjectId, u32), Arc<Chunk>>>,
    /// Told when a chunk may have become free to be given up, or a charge has ended.
    freed: Notify,
    /// Held by the one reader whose turn it is to wait for room; the others queue for it.
    turn: tokio::sync::Mutex<()>,
    /// Bytes of the spent chunks of streams, changed under the lock of `chunks`.
    spent_bytes: AtomicU64,
    gate: Arc<Gate>,
    runtime: Handle,
    stats: Arc<Stats>,
}

impl ChunkCache {
    /// Makes a cache that spawns its fetches on `runtime`. Fails when the address space cannot be
    /// reserved.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        layout: Layout,
        budget_bytes: u64,
        max_connections: usize,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            store,
            layout,
            arena: Arena::reserve(layout, budget_bytes)?,
            chunks: Mutex::new(LruCache::unbounded()),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            spent_bytes: AtomicU64::new(0),
            gate: Gate::new(max_connections),
            runtime,
            stats,
        })))
    }

    /// Puts memory behind the first chunks before they are needed, in the background, and from here
    /// on hands back what was not needed for a while.
    pub fn keep_ready(&self) {
        let ready_bytes = READY_BYTES.min(self.0.arena.budget() / 4);
        let inner = self.0.clone();
        self.0.runtime.spawn_blocking(move || {
            inner.arena.make_ready(ready_bytes);
            inner.freed.notify_waiters();
        });
        self.0.runtime.spawn(release_idle_memory(Arc::downgrade(&self.0), ready_bytes));
    }

    /// The size of a GET that reads a stream ahead, and how many bytes of them the network
    /// needs in flight, 0 if unknown, both as it was measured. A part has the layout's size, or half of it.
    pub fn pace(&self) -> (u64, u64) {
        let Layout { part_bytes, block_bytes, .. } = self.0.layout;
        self.0.gate.ahead_bytes(part_bytes, block_bytes)
    }

    /// Bytes that chunks hold or await.
    pub fn used_bytes(&self) -> u64 {
        self.0.arena.used()
    }

    /// The bound on them.
    pub fn budget_bytes(&self) -> u64 {
        self.0.arena.budget()
    }

    /// Gives up every chunk that nobody holds.
    pub fn give_up_all(&self) {
        let mut chunks = self.0.chunks.lock();
        while self.0.evict_oldest(&mut chunks).is_ok() {}
        drop(chunks);
        self.0.freed.notify_waiters();
    }

    /// Whether anything of the first chunk of an object is held or awaited.
    pub fn holds(&self, id: ObjectId) -> bool {
        self.0.chunks.lock().contains(&(id, 0))
    }

    /// Begins to fetch what of `range` nobody has fetched, in GETs of at most `piece_bytes`, as
    /// far as the budget allows. Returns where it has come to: the range's end, or where there was
    /// no room any more.
    pub fn fetch(
        &self,
        id: ObjectId,
        object: &Arc<ObjectMeta>,
        range: Range<u64>,
        piece_bytes: u64,
        purpose: Purpose,
    ) -> u64 {
        // What little room there is belongs to those who wait for it.
        if purpose == Purpose::Ahead && self.0.turn.try_lock().is_err() {
            return range.start;
        }
        let layout = Layout { part_bytes: piece_bytes, ..self.0.layout };
        let mut reached = range.start;
        for span in layout.spans(range.clone()) {
            let Ok(lease) = self.lease(id, object, span.chunk) else { return reached };
            for piece in layout.parts(layout.blocks(&span.bytes)) {
                let bytes = layout.block_bytes(&piece, lease.memory().len());
                let Ok(writers) = self.claim_making_room(&lease, piece) else { return reached };
                self.spawn_fetches(&lease, id, object, span.chunk, writers, purpose);
                reached = layout.object_range(&Span { chunk: span.chunk, bytes }).end;
            }
        }
        reached.min(range.end)
    }

    /// The bytes of `range`, which lies inside the object, as soon as they are there.
    pub async fn read(
        &self,
        id: ObjectId,
        object: &Arc<ObjectMeta>,
        range: Range<u64>,
        taker: Taker,
    ) -> Result<Data, StoreError> {
        let length = range.end - range.start;
        let mut spans = self.0.layout.spans(range);
        let Some(first) = spans.next() else { return Ok(Data::Joined(Vec::new())) };
        let first = self.read_span(id, object, first, taker).await?;
        if first.bytes.len() as u64 == length {
            return Ok(Data::Slice(first));
        }
        // Over a chunk boundary, which the kernel's aligned reads of a default mount never are.
        let mut joined = first.to_vec();
        drop(first);
        for span in spans {
            joined.extend_from_slice(&self.read_span(id, object, span, taker).await?);
        }
        Ok(Data::Joined(joined))
    }

    async fn read_span(
        &self,
        id: ObjectId,
        object: &Arc<ObjectMeta>,
        span: Span,
        taker: Taker,
    ) -> Result<Slice, StoreError> {
        let blocks = self.0.layout.blocks(&span.bytes);
        let mut turn = None;
        loop {
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if let Ok(lease) = self.lease(id, object, span.chunk) {
                match self.wait_for_blocks(&lease, id, object, span.chunk, &blocks, &mut turn).await
                {
                    Ok(()) => {
                        if taker == Taker::PageCache && lease.take(&blocks, &span.bytes) {
                            self.0.spend(&lease, (id, span.chunk));
                        }
                        return Ok(Slice { lease, bytes: span.bytes });
                    }
                    Err(Wait::Failed(error)) => return Err(error),
                    // Whose turn it is must not be woken by the end of its own lease.
                    Err(Wait::Full) if turn.is_some() => lease.end_quietly(),
                    Err(Wait::Full) => {}
                }
            }
            if turn.is_some() {
                freed.await;
            } else {
                turn = Some(self.0.turn.lock().await);
            }
        }
    }

    /// Returns when all the blocks are ready, having fetched what nobody fetches. Ends the caller's
    /// turn to wait for room when there is some for all of them.
    async fn wait_for_blocks(
        &self,
        lease: &Lease,
        id: ObjectId,
        object: &Arc<ObjectMeta>,
        chunk: u32,
        blocks: &Range<usize>,
        turn: &mut Option<MutexGuard<'_, ()>>,
    ) -> Result<(), Wait> {
        let since = lease.failures().lock().count();
        let mut waited = false;
        loop {
            let mut progress = pin!(lease.memory().progress().notified());
            progress.as_mut().enable();
            if lease.memory().is_ready(blocks.clone()) {
                return Ok(());
            }
            if let Some(error) = lease.failures().lock().find(since, blocks) {
                return Err(Wait::Failed(error));
            }
            if lease.memory().has_empty(blocks.clone()) {
                let writers =
                    self.claim_making_room(lease, blocks.clone()).map_err(|Full| Wait::Full)?;
                self.spawn_fetches(lease, id, object, chunk, writers, Purpose::Demand);
            }
            // All of it has room, be it that others have found some.
            *turn = None;
            lease.want(blocks);
            if !std::mem::replace(&mut waited, true) {
                self.0.stats.reads_waited.add(1);
            }
            progress.await;
        }
    }

    /// The chunk, made when it is not there, and now the most recently used one.
    fn lease(&self, id: ObjectId, object: &ObjectMeta, chunk: u32) -> Result<Lease, Full> {
        let mut chunks = self.0.chunks.lock();
        let key = (id, chunk);
        if let Some(found) = chunks.get(&key) {
            let found = found.clone();
            if found.is_spent() {
                // The kernel has forgotten it, so it is a first copy again.
                self.0.unspend(&found);
            }
            return Ok(Lease::new(found, &self.0));
        }
        let len = self.0.layout.chunk_len(object.version.size_bytes, chunk);
        let first_part = self.0.layout.part_bytes.min(len as u64);
        // For a stream only: a small object would take the place of the one before it, which is
        // spent later than any stream and so goes sooner, with the budget not nearly full.
        let recycles = len as u64 > self.0.layout.part_bytes
            && self.0.spent_bytes.load(Ordering::Relaxed) > 0
            && self.0.arena.idle() < first_part;
        // Room that is made now is where the chunk will be: in memory that is there already. If there
        // is none to be made, that is not needed yet.
        if self.0.arena.available() < first_part {
            let _ = self.0.evict_oldest(&mut chunks);
        } else if recycles {
            let is_spent = |chunk: &Chunk| chunk.is_spent() && self.0.stream_bytes(chunk) > 0;
            let _ = self.0.evict_oldest_if(&mut chunks, is_spent);
        }
        let memory = loop {
            match self.0.arena.memory(len) {
                Ok(memory) => break memory,
                Err(Full) => self.0.evict_oldest(&mut chunks)?,
            }
        };
        let made = Arc::new(Chunk::new(memory));
        chunks.put(key, made.clone());
        Ok(Lease::new(made, &self.0))
    }

    /// Claims the empty blocks of a run, giving up the oldest chunks for them where it must.
    fn claim_making_room(
        &self,
        lease: &Lease,
        blocks: Range<usize>,
    ) -> Result<Vec<BlockWriter>, Full> {
        loop {
            match lease.memory().claim(blocks.clone()) {
                Ok(writers) => return Ok(writers),
                Err(Full) => self.0.evict_oldest(&mut self.0.chunks.lock())?,
            }
        }
    }

    fn spawn_fetches(
        &self,
        lease: &Lease,
        id: ObjectId,
        object: &Arc<ObjectMeta>,
        chunk: u32,
        writers: Vec<BlockWriter>,
        purpose: Purpose,
    ) {
        for writer in writers {
            let (lease, object) = (lease.clone(), object.clone());
            self.0.runtime.spawn(fetch(lease, id, object, chunk, writer, purpose));
        }
    }
}

/// Why a wait for blocks has ended without them.
enum Wait {
    /// There is no room for them now.
    Full,
    /// Their fetch has failed.
    Failed(StoreError),
}

/// One GET into one run of blocks. Whatever ends it, the writer's drop leaves them ready or empty.
async fn fetch(
    lease: Lease,
    id: ObjectId,
    object: Arc<ObjectMeta>,
    chunk: u32,
    mut writer: BlockWriter,
    purpose: Purpose,
) {
    let inner = &lease.inner;
    let bytes = writer.bytes().len() as u64;
    let mut pass = match purpose {
        Purpose::Demand => inner.gate.enter(purpose, bytes, id).await,
        Purpose::Ahead => pass_ahead(&lease, id, writer.blocks(), bytes).await,
    };
    let mut verdict = Verdict {
        chunk: &lease,
        blocks: writer.blocks().clone(),
        failure: Some(StoreError::Unavailable("the fetch was abandoned".to_owned())),
    };
    let range = inner.layout.object_range(&Span { chunk, bytes: writer.bytes().clone() });
    inner.stats.gets.add(1);
    // While the store makes up its mind, the memory is made ready.
    let populating = (purpose == Purpose::Ahead && writer.is_fresh()).then(|| {
        let (memory, bytes) = (writer.memory().clone(), writer.bytes().clone());
        inner.runtime.spawn_blocking(move || memory.populate(&bytes))
    });
    let begun = Instant::now();
    let outcome = {
        let mut get = pin!(inner.store.get_range(&object.version, range, &mut writer));
        match timeout(OVERDUE, &mut get).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                pass.step_aside();
                get.await
            }
        }
    };
    drop(pass);
    inner.stats.bytes_fetched.add(writer.written() as u64);
    if purpose == Purpose::Ahead {
        inner.stats.bytes_ahead.add(writer.written() as u64);
    }
    if let Some(first) = writer.first_byte() {
        inner.stats.first_byte.add(first - begun);
    }
    if let (Ok(()), Some(first)) = (&outcome, writer.first_byte()) {
        let timing = Timing { first_byte: first - begun, body: first.elapsed(), bytes };
        inner.gate.learn(timing, inner.arena.received());
    }
    if let Some(populating) = populating {
        // Not later than the charge ends. What a panic there means is that the memory is not ready.
        let _ = populating.await;
    }
    verdict.failure = match outcome {
        Ok(()) if !writer.has_remaining_mut() => None,
        Ok(()) => Some(StoreError::nonsense("the body ended early".to_owned())),
        Err(error) => Some(error),
    };
}

/// Waits until a GET of readahead may go; or until a reader wants its bytes, and then only as a
/// reader does.
async fn pass_ahead(lease: &Lease, id: ObjectId, blocks: &Range<usize>, bytes: u64) -> Pass {
    let gate = &lease.inner.gate;
    {
        let mut pass = pin!(gate.enter(Purpose::Ahead, bytes, id));
        loop {
            let mut wanted = pin!(lease.wanted().notified());
            wanted.as_mut().enable();
            if lease.is_wanted(blocks) {
                break;
            }
            tokio::select! {
                pass = &mut pass => return pass,
                () = wanted => {}
            }
        }
    }
    gate.enter(Purpose::Demand, bytes, id).await
}

/// Hands memory back that nobody has needed for a while, but for so much; ends with the cache.
async fn release_idle_memory(cache: Weak<Inner>, ready_bytes: u64) {
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

/// Tells those who wait for these blocks why they were not fetched, even when the fetch panics or
/// is cancelled; it is dropped before the writer, whose drop wakes them.
struct Verdict<'a> {
    chunk: &'a Chunk,
    blocks: Range<usize>,
    failure: Option<StoreError>,
}

impl Drop for Verdict<'_> {
    fn drop(&mut self) {
        if let Some(error) = self.failure.take() {
            self.chunk.failures().lock().add(self.blocks.clone(), error);
        }
    }
}

impl Inner {
    /// Gives up the least recently used chunk that nobody holds.
    fn evict_oldest(&self, chunks: &mut LruCache<(ObjectId, u32), Arc<Chunk>>) -> Result<(), Full> {
        self.evict_oldest_if(chunks, |_| true)
    }

    /// The same, of those that are such; they are among the oldest if there are any.
    fn evict_oldest_if(
        &self,
        chunks: &mut LruCache<(ObjectId, u32), Arc<Chunk>>,
        is_such: impl Fn(&Chunk) -> bool,
    ) -> Result<(), Full> {
        // No new lease can be taken while `chunks` is locked, so a count of one stays one.
        let idle = |chunk: &Arc<Chunk>| Arc::strong_count(chunk) == 1;
        let mut oldest = chunks.iter().rev().filter(|(_, chunk)| idle(chunk)).take(LOOKED_AT);
        let oldest = oldest.find(|(_, chunk)| is_such(chunk)).map(|(&key, _)| key);
        let chunk = chunks.pop(&oldest.ok_or(Full)?);
        let unread_bytes = chunk.as_ref().map_or(0, |chunk| chunk.unread_bytes());
        self.stats.bytes_unread.add(unread_bytes);
        if let Some(chunk) = chunk.filter(|chunk| chunk.is_spent()) {
            self.unspend(&chunk);
        }
        self.stats.evictions.add(1);
        Ok(())
    }

    /// The page cache holds all of this chunk: it goes first, from here on.
    fn spend(&self, chunk: &Chunk, key: (ObjectId, u32)) {
        let mut chunks = self.chunks.lock();
        if chunk.spend() {
            self.spent_bytes.fetch_add(self.stream_bytes(chunk), Ordering::Relaxed);
            chunks.demote(&key);
        }
    }

    /// What a chunk counts for among the spent ones of streams. Small objects do not: whoever reads
    /// them again has them from here when the kernel has not.
    fn stream_bytes(&self, chunk: &Chunk) -> u64 {
        let len = chunk.memory().len() as u64;
        if len > self.layout.part_bytes { len } else { 0 }
    }

    /// Called under the lock of `chunks`, for a chunk that is spent.
    fn unspend(&self, chunk: &Chunk) {
        self.spent_bytes.fetch_sub(self.stream_bytes(chunk), Ordering::Relaxed);
        chunk.unspend();
    }
}

/// Holds a chunk in the cache; those who wait for room hear of its end.
struct Lease {
    chunk: Option<Arc<Chunk>>,
    inner: Arc<Inner>,
}

impl Lease {
    fn new(chunk: Arc<Chunk>, inner: &Arc<Inner>) -> Self {
        Self { chunk: Some(chunk), inner: inner.clone() }
    }

    /// Ends without a word to those who wait for room.
    fn end_quietly(mut self) {
        self.chunk = None;
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self { chunk: self.chunk.clone(), inner: self.inner.clone() }
    }
}

impl Deref for Lease {
    type Target = Chunk;

    fn deref(&self) -> &Chunk {
        self.chunk.as_ref().expect("taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.chunk.take().is_some() {
            self.inner.freed.notify_waiters();
        }
    }
}

/// Bytes of one chunk, which stay where they are while this lives.
pub struct Slice {
    lease: Lease,
    bytes: Range<usize>,
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let ready = self.lease.memory().bytes(self.bytes.clone());
        ready.expect("was ready when the slice was made, and stays so while it is leased")
    }
}

/// What a read gives.
pub enum Data {
    /// A piece of a chunk, not copied.
    Slice(Slice),
    /// Pieces of several chunks, copied together.
    Joined(Vec<u8>),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Joined(joined) => joined,
        }
    }
}
