//! The chunks by key, and the order in which they are evicted.
//!
//! Chunks with bytes that were fetched and not yet read are the last to go: those that were read
//! come first, the least recently used one before the others. Locked before the arena's slots:
//! evicting frees a chunk's memory.

use std::sync::Arc;

use lru::LruCache;

use super::chunk::Chunk;
use super::{ChunkKey, Purpose};

pub(super) struct Queues {
    /// Every block that holds or awaits bytes was read.
    read: LruCache<ChunkKey, Arc<Chunk>>,
    unread: LruCache<ChunkKey, Arc<Chunk>>,
    /// Lengths of the unread chunks.
    unread_bytes: u64,
}

impl Queues {
    pub(super) fn new() -> Self {
        Self { read: LruCache::unbounded(), unread: LruCache::unbounded(), unread_bytes: 0 }
    }

    pub(super) fn contains(&self, key: ChunkKey) -> bool {
        self.unread.contains(&key) || self.read.contains(&key)
    }

    /// The chunk, which is now the most recently used one.
    pub(super) fn get(&mut self, key: ChunkKey) -> Option<Arc<Chunk>> {
        self.unread.get(&key).or_else(|| self.read.get(&key)).cloned()
    }

    pub(super) fn peek(&self, key: ChunkKey) -> Option<&Arc<Chunk>> {
        self.unread.peek(&key).or_else(|| self.read.peek(&key))
    }

    pub(super) fn insert(&mut self, key: ChunkKey, chunk: Arc<Chunk>) {
        self.read.put(key, chunk);
    }

    /// Moves a chunk to the queue where its blocks belong, if it is still here.
    pub(super) fn settle(&mut self, key: ChunkKey, chunk: &Arc<Chunk>) {
        let is_unread = chunk.has_unread();
        let from = if is_unread { &self.read } else { &self.unread };
        if !is_there(from, key, chunk) {
            return;
        }
        if !is_unread {
            self.pop_unread(key);
            self.read.put(key, chunk.clone());
        } else if self.read.pop(&key).is_some() {
            self.unread_bytes += chunk.memory.len() as u64;
            self.unread.put(key, chunk.clone());
        }
    }

    pub(super) fn remove(&mut self, key: ChunkKey, chunk: &Arc<Chunk>) {
        if is_there(&self.read, key, chunk) {
            self.read.pop(&key);
        } else if is_there(&self.unread, key, chunk) {
            self.pop_unread(key);
        }
    }

    /// Lengths of the chunks with unread bytes.
    pub(super) fn unread_bytes(&self) -> u64 {
        self.unread_bytes
    }

    /// Removes the chunks with unread bytes that nobody holds.
    pub(super) fn take_unread(&mut self) -> Vec<Arc<Chunk>> {
        let free = self.unread.iter().filter(|(_, chunk)| Arc::strong_count(chunk) == 1);
        let keys: Vec<_> = free.map(|(&key, _)| key).collect();
        keys.into_iter().filter_map(|key| self.pop_unread(key)).collect()
    }

    /// Removes the chunk to be evicted next: one that nobody holds. For readahead only one that was
    /// read, or one for which `is_stale` holds.
    pub(super) fn evict(
        &mut self,
        purpose: Purpose,
        is_stale: impl Fn(&Chunk) -> bool,
    ) -> Option<Arc<Chunk>> {
        // No new lease can be taken while this is borrowed, so a count of one stays one.
        let oldest = |queue: &LruCache<ChunkKey, Arc<Chunk>>| {
            let mut oldest = queue.iter().rev().filter(|(_, chunk)| Arc::strong_count(chunk) == 1);
            oldest.next().map(|(&key, chunk)| (key, purpose == Purpose::Demand || is_stale(chunk)))
        };
        if let Some((key, _)) = oldest(&self.read) {
            return self.read.pop(&key);
        }
        let (key, _) = oldest(&self.unread).filter(|&(_, may_go)| may_go)?;
        self.pop_unread(key)
    }

    fn pop_unread(&mut self, key: ChunkKey) -> Option<Arc<Chunk>> {
        let chunk = self.unread.pop(&key)?;
        self.unread_bytes -= chunk.memory.len() as u64;
        Some(chunk)
    }
}

fn is_there(queue: &LruCache<ChunkKey, Arc<Chunk>>, key: ChunkKey, chunk: &Arc<Chunk>) -> bool {
    queue.peek(&key).is_some_and(|found| Arc::ptr_eq(found, chunk))
}
