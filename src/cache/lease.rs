//! The hold on a chunk, and the bytes that a reader gets under it.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::chunk::Chunk;
use super::{ChunkCache, ChunkKey, Source};
use crate::base::layout::Span;

/// Keeps a chunk in the cache. Its end is notified to the readers that wait for room.
#[derive(Clone)]
pub(super) struct Lease {
    /// `None` only in `drop`.
    chunk: Option<Arc<Chunk>>,
    pub(super) source: Source,
    pub(super) index: u32,
    pub(super) cache: Arc<ChunkCache>,
}

impl Lease {
    pub(super) fn new(
        chunk: Arc<Chunk>,
        source: &Source,
        index: u32,
        cache: &Arc<ChunkCache>,
    ) -> Self {
        Self { chunk: Some(chunk), source: source.clone(), index, cache: cache.clone() }
    }

    pub(super) fn span(&self, bytes: Range<usize>) -> Span {
        self.cache.layout.span(self.index, bytes)
    }

    pub(super) fn key(&self) -> ChunkKey {
        (self.source.id, self.index)
    }

    pub(super) fn chunk(&self) -> &Arc<Chunk> {
        self.chunk.as_ref().expect("taken only by drop")
    }

    /// Ends without notifying the readers that wait for room.
    pub(super) fn end_quietly(mut self) {
        self.chunk = None;
    }
}

impl Deref for Lease {
    type Target = Chunk;

    fn deref(&self) -> &Chunk {
        self.chunk()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.chunk.take().is_some() {
            self.cache.arena.freed.notify_waiters();
        }
    }
}

/// Bytes of one chunk, which stay in place as long as this lives.
pub struct Slice {
    pub(super) lease: Lease,
    /// All of their blocks are ready.
    pub(super) bytes: Range<usize>,
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let ready = self.lease.memory.bytes(self.bytes.clone());
        ready.expect("was ready when the slice was made, and stays so while it is leased")
    }
}

/// The bytes that a read returns.
pub enum Data {
    Slice(Slice),
    /// Copied from several chunks.
    Joined(Vec<u8>),
}

impl Data {
    pub(crate) const EMPTY: Self = Self::Joined(Vec::new());
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
