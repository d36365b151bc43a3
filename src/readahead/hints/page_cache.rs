//! What the kernel's page cache still has of what was read: hints for it need no fetch.
//!
//! The kernel tells neither what it answers from there nor what it drops. But it drops what was
//! used least recently, so there is a *reach*: what was read less than so many bytes ago is there.
//! Each error corrects it. A read of what was left to the page cache shows that it reaches less
//! far; a hint that was fetched and that nobody asked for shows that it reaches further.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::PieceKey;

/// Pieces that are remembered, some 60 bytes each.
const PIECES: NonZeroUsize = NonZeroUsize::new(1 << 18).expect("not zero");

/// The reach grows by this part of an error, and shrinks by half of it: a fetch in vain costs less
/// than a wait.
const GROWS_BY: u64 = 8;

pub(super) struct PageCache {
    pieces: LruCache<PieceKey, PieceRead>,
    /// In bytes that all programs have read.
    reach_bytes: u64,
}

#[derive(Clone, Copy)]
struct PieceRead {
    /// What all programs had read by then.
    at_bytes: u64,
    /// Bytes of it that were read.
    length: u64,
    /// It was hinted since, and not fetched.
    is_left_to_kernel: bool,
}

impl PageCache {
    pub(super) fn new() -> Self {
        // Until something shows otherwise, it keeps all.
        Self { pieces: LruCache::new(PIECES), reach_bytes: u64::MAX }
    }

    /// `length` bytes of a piece are read, when programs have read `now_bytes`.
    pub(super) fn was_read(&mut self, piece: PieceKey, length: u64, now_bytes: u64) {
        let new = || PieceRead { at_bytes: now_bytes, length: 0, is_left_to_kernel: false };
        let read = self.pieces.get_or_insert_mut(piece, new);
        if read.is_left_to_kernel {
            let dropped_after = now_bytes.saturating_sub(read.at_bytes);
            self.reach_bytes = match self.reach_bytes {
                u64::MAX => dropped_after,
                reach => reach - reach.saturating_sub(dropped_after) / 2,
            };
            *read = new();
        }
        read.at_bytes = now_bytes;
        read.length += length;
    }

    /// A hinted piece of `length` bytes is left to the kernel, which has all of it.
    pub(super) fn has(&mut self, piece: PieceKey, length: u64, now_bytes: u64) -> bool {
        let Some(read) = self.pieces.peek_mut(&piece) else { return false };
        let is_near = now_bytes.saturating_sub(read.at_bytes) < self.reach_bytes;
        let has = is_near && read.length >= length;
        read.is_left_to_kernel |= has;
        has
    }

    /// A piece was fetched for a hint, and not read. True if it was read before: it may have been
    /// read again, from the page cache.
    pub(super) fn may_have_had(&mut self, piece: PieceKey, now_bytes: u64) -> bool {
        let Some(read) = self.pieces.peek(&piece) else { return false };
        let there_after = now_bytes.saturating_sub(read.at_bytes);
        self.reach_bytes += there_after.saturating_sub(self.reach_bytes) / GROWS_BY;
        true
    }

    /// The kernel was told to drop all.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: PieceKey = (7, 0);
    const OTHER: PieceKey = (8, 0);

    #[test]
    fn what_was_read_is_there_until_the_kernel_asks_for_it_again() {
        let mut kernel = PageCache::new();
        assert!(!kernel.has(PIECE, 10, 0), "it was never read");
        kernel.was_read(PIECE, 4, 90);
        assert!(!kernel.has(PIECE, 10, 1000), "it was read in part");
        kernel.was_read(PIECE, 6, 100);
        kernel.was_read(OTHER, 10, 400);
        assert!(kernel.has(PIECE, 10, 1_000_000));
        // Read in several requests: only the first shows something.
        for now in [1100, 1110] {
            kernel.was_read(PIECE, 5, now);
        }
        assert!(kernel.has(OTHER, 10, 1399) && !kernel.has(OTHER, 10, 1400));
        // The next errors halve it.
        kernel.was_read(OTHER, 10, 500);
        assert!(kernel.has(PIECE, 10, 1110 + 549) && !kernel.has(PIECE, 10, 1110 + 550));
        kernel.clear();
        assert!(!kernel.has(PIECE, 10, 1110));
    }

    #[test]
    fn a_fetch_in_vain_shows_that_the_kernel_had_it() {
        let mut kernel = PageCache::new();
        kernel.was_read(PIECE, 10, 0);
        assert!(kernel.has(PIECE, 10, 10));
        kernel.was_read(PIECE, 10, 10);
        assert!(!kernel.has(PIECE, 10, 1000));
        for _ in 0..100 {
            assert!(kernel.may_have_had(PIECE, 1010));
        }
        assert!(kernel.has(PIECE, 10, 1000) && !kernel.has(PIECE, 10, 1010));
        assert!(!kernel.may_have_had(OTHER, 1010), "it was never read");
    }
}
