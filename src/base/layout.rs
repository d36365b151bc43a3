//! Pure arithmetic: where the bytes of an object live.
//!
//! An object is cut at chunk boundaries (128 MiB) into *chunks*; the last one is as long as its
//! bytes. A chunk is cut into *blocks* (128 KiB), the unit in which bytes are awaited and become
//! ready. A *part* is what one GET asks for: whole blocks of one chunk.
//!
//! Sizes are values, so that a test can give a 40-byte object three chunks.

use std::ops::Range;

/// The unit in which bytes become ready: the kernel's default readahead, and the smallest request
/// that is worth a round trip (at 90 MB/s a connection needs 1.5 ms for it, against 15 ms to the
/// first byte).
pub const BLOCK_BYTES: u64 = 128 << 10;

/// Up to here an object is fetched whole at its first read: at 90 MB/s a connection 4 MiB take
/// 45 ms behind 15 ms to the first byte, and the reader gets its bytes as they arrive.
pub const WHOLE_OBJECT_BYTES: u64 = 4 << 20;

/// The sizes that everything is cut by. `block` divides `part` and `chunk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of a chunk that is not the last of its object.
    pub chunk_bytes: u64,
    /// Length of a block that is not the last of its object.
    pub block_bytes: u64,
    /// The most that one GET asks for.
    pub part_bytes: u64,
}

/// A piece of a chunk, in bytes from the chunk's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which chunk of the object.
    pub chunk: u32,
    /// Which of its bytes.
    pub bytes: Range<usize>,
}

impl Layout {
    /// Cuts a range of an object at chunk boundaries.
    pub fn spans(&self, object: Range<u64>) -> impl Iterator<Item = Span> + use<> {
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
            Some(Span { chunk: index(chunk), bytes: size(start)..size(end) })
        })
    }

    /// Length of a chunk of an object of `object_bytes`.
    pub fn chunk_len(&self, object_bytes: u64, chunk: u32) -> usize {
        let start = u64::from(chunk) * self.chunk_bytes;
        size(self.chunk_bytes.min(object_bytes.saturating_sub(start)))
    }

    /// The object's bytes that a piece of one of its chunks holds.
    pub fn object_range(&self, span: &Span) -> Range<u64> {
        let start = u64::from(span.chunk) * self.chunk_bytes;
        start + span.bytes.start as u64..start + span.bytes.end as u64
    }

    /// The blocks of a chunk that a piece of it touches.
    pub fn blocks(&self, bytes: &Range<usize>) -> Range<usize> {
        let block = size(self.block_bytes);
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / block..bytes.end.div_ceil(block)
    }

    /// The bytes of a chunk of `chunk_len` that a run of its blocks holds.
    pub fn block_bytes(&self, blocks: &Range<usize>, chunk_len: usize) -> Range<usize> {
        let block = size(self.block_bytes);
        blocks.start * block..(blocks.end * block).min(chunk_len)
    }

    /// Cuts a run of blocks at part boundaries of the object, so that whoever streams over it
    /// asks for the same parts, whole and aligned.
    pub fn parts(&self, blocks: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let per_part = size(self.part_bytes / self.block_bytes);
        let mut at = blocks.start;
        std::iter::from_fn(move || {
            if at >= blocks.end {
                return None;
            }
            let part = at..((at / per_part + 1) * per_part).min(blocks.end);
            at = part.end;
            Some(part)
        })
    }
}

/// A length inside a chunk. Chunks are addressable memory, so this cannot fail.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a chunk fits into memory")
}

/// The number of a chunk. An S3 object is at most 50 TB (the S3 user guide, 2025), which at the
/// smallest chunk of 128 KiB is 4 x 10^8 chunks.
fn index(chunk: u64) -> u32 {
    u32::try_from(chunk).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { chunk_bytes: 16, block_bytes: 4, part_bytes: 8 };

    #[test]
    fn spans_tile_every_range_of_a_small_object() {
        for start in 0..50 {
            for end in start..50 {
                let mut at = start;
                for span in LAYOUT.spans(start..end) {
                    let range = LAYOUT.object_range(&span);
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
        let parts: Vec<_> = LAYOUT.parts(1..7).collect();
        assert_eq!(parts, [1..2, 2..4, 4..6, 6..7]);
        assert_eq!(LAYOUT.parts(2..2).count(), 0);
    }
}
