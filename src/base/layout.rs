//! Pure arithmetic: where the bytes of an object live.
//!
//! An object is cut into *chunks* of 2 MiB, the unit of memory, and these into *blocks* of 128 KiB,
//! the unit in which bytes are awaited and become ready; the last chunk and its last block are
//! shorter. A *part* is the range of one GET: whole blocks of one chunk.

use std::ops::Range;

/// The kernel's default readahead, and the smallest request that is worth a round trip: at 90 MB/s
/// a connection needs 1.5 ms for it, against 15 ms to the first byte.
pub const BLOCK_BYTES: u64 = 128 << 10;

/// The most that an object is fetched whole at its first read: at 90 MB/s a connection 4 MiB take
/// 45 ms behind 15 ms to the first byte.
const WHOLE_OBJECT_BYTES: u64 = 4 << 20;

/// The memory of a stream is reused in chunks: small ones keep little that was read, large ones cut
/// few of the kernel's requests in two. One is a huge page, and a part: at 90 MB/s a connection
/// needs 23 ms for it, against 15 ms to the first byte, and each GET costs CPU time.
const CHUNK_BYTES: u64 = 2 << 20;

/// Chunks that fit into the memory budget, at least, until they become smaller than
/// [`LEAST_CHUNK_BYTES`]: two for each of 64 streams.
const CHUNKS: u64 = 128;

/// The largest request of the kernel.
const LEAST_CHUNK_BYTES: u64 = 1 << 20;

/// The sizes that objects are cut by. `block_bytes` divides the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub chunk_bytes: u64,
    pub block_bytes: u64,
    /// The length of a GET that reads a stream ahead, and the most of any.
    pub part_bytes: u64,
    /// Up to this size an object is fetched whole at its first read, and kept while there is room.
    pub small_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    layout: Layout,
    pub chunk: u32,
    /// Counted from the chunk's beginning.
    pub bytes: Range<usize>,
}

impl Layout {
    /// Sizes for a cache of `budget_bytes`, unless others are given. Chunks are evicted whole, so
    /// each is at most a quarter of the budget.
    pub fn within(budget_bytes: u64, chunk_bytes: Option<u64>, part_bytes: Option<u64>) -> Self {
        let fitting = (budget_bytes / CHUNKS).max(LEAST_CHUNK_BYTES);
        let chunk_bytes = chunk_bytes
            .unwrap_or(CHUNK_BYTES.min(1 << fitting.ilog2()).max(part_bytes.unwrap_or(0)))
            .min(1 << (budget_bytes / 4).max(BLOCK_BYTES).ilog2());
        Self {
            chunk_bytes,
            block_bytes: BLOCK_BYTES,
            part_bytes: part_bytes.unwrap_or(CHUNK_BYTES).min(chunk_bytes),
            small_bytes: WHOLE_OBJECT_BYTES
                .min(budget_bytes / 16)
                .min(part_bytes.map_or(u64::MAX, |part| 2 * part.min(chunk_bytes))),
        }
    }

    /// Cuts a range of an object at chunk boundaries.
    pub fn spans(self, object: Range<u64>) -> impl Iterator<Item = Span> {
        let chunk_bytes = self.chunk_bytes;
        let mut at = object.start;
        std::iter::from_fn(move || {
            if at >= object.end {
                return None;
            }
            let chunk = at / chunk_bytes;
            let start = at % chunk_bytes;
            let end = chunk_bytes.min(object.end - chunk * chunk_bytes);
            at = chunk * chunk_bytes + end;
            Some(self.span(index(chunk), size(start)..size(end)))
        })
    }

    pub(crate) fn span(self, chunk: u32, bytes: Range<usize>) -> Span {
        Span { layout: self, chunk, bytes }
    }

    /// Length of a chunk of an object of `object_bytes`.
    pub(crate) fn chunk_len(&self, object_bytes: u64, chunk: u32) -> usize {
        let start = u64::from(chunk) * self.chunk_bytes;
        size(self.chunk_bytes.min(object_bytes.saturating_sub(start)))
    }

    /// The blocks of a chunk that a range of its bytes touches.
    pub(crate) fn blocks(&self, bytes: &Range<usize>) -> Range<usize> {
        let block = size(self.block_bytes);
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / block..bytes.end.div_ceil(block)
    }

    /// The bytes that a run of blocks holds, in a chunk of `chunk_len` bytes.
    pub(crate) fn block_bytes(&self, blocks: &Range<usize>, chunk_len: usize) -> Range<usize> {
        let block = size(self.block_bytes);
        blocks.start * block..(blocks.end * block).min(chunk_len)
    }

    /// Cuts a run of blocks at multiples of `part_bytes`: all readers of a stream ask for the same
    /// parts.
    pub(crate) fn parts(
        &self,
        blocks: Range<usize>,
        part_bytes: u64,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let per_part = size(part_bytes / self.block_bytes);
        let end = blocks.end;
        let part =
            move |at: usize| (at < end).then(|| at..((at / per_part + 1) * per_part).min(end));
        std::iter::successors(part(blocks.start), move |last: &Range<usize>| part(last.end))
    }
}

impl Span {
    pub(crate) fn blocks(&self) -> Range<usize> {
        self.layout.blocks(&self.bytes)
    }

    /// Its blocks, cut at multiples of `part_bytes`.
    pub(crate) fn parts(&self, part_bytes: u64) -> impl Iterator<Item = Range<usize>> + use<> {
        self.layout.parts(self.blocks(), part_bytes)
    }

    /// Where its bytes are in the object.
    pub fn object_range(&self) -> Range<u64> {
        let start = u64::from(self.chunk) * self.layout.chunk_bytes;
        start + self.bytes.start as u64..start + self.bytes.end as u64
    }
}

/// A length inside a chunk. Chunks are addressable memory, so this cannot fail.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a chunk fits into memory")
}

/// An S3 object is at most 50 TB (its user guide, 2025): 4 x 10^8 of the smallest chunks, 128 KiB.
fn index(chunk: u64) -> u32 {
    u32::try_from(chunk).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { chunk_bytes: 16, block_bytes: 4, part_bytes: 8, small_bytes: 8 };

    #[test]
    fn spans_tile_every_range_of_a_small_object() {
        for start in 0..50 {
            for end in start..50 {
                let mut at = start;
                for span in LAYOUT.spans(start..end) {
                    let range = span.object_range();
                    assert_eq!(range.start, at);
                    assert!(range.end > at && span.bytes.end <= 16);
                    at = range.end;
                }
                assert_eq!(at, end);
            }
        }
    }

    #[test]
    fn chunks_of_an_object_add_up_to_its_size() {
        for bytes in 0..70_u64 {
            let total: usize = (0..6).map(|chunk| LAYOUT.chunk_len(bytes, chunk)).sum();
            assert_eq!(total as u64, bytes);
        }
    }

    #[test]
    fn blocks_cover_the_bytes_and_no_block_in_vain() {
        for start in 0..16 {
            for end in start + 1..=16 {
                let blocks = LAYOUT.blocks(&(start..end));
                let covered = LAYOUT.block_bytes(&blocks, 16);
                assert!(covered.start <= start && covered.end >= end);
                assert!(start - covered.start < 4 && covered.end - end < 4);
            }
        }
        assert_eq!(LAYOUT.blocks(&(3..3)), 0..0);
        assert_eq!(LAYOUT.block_bytes(&(1..2), 6), 4..6, "the last block is short");
    }

    #[test]
    fn parts_tile_a_run_and_never_cross_an_alignment() {
        let parts: Vec<_> = LAYOUT.parts(1..7, 8).collect();
        assert_eq!(parts, [1..2, 2..4, 4..6, 6..7]);
        assert_eq!(LAYOUT.parts(2..2, 8).count(), 0);
    }
}
