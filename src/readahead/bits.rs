//! A set of small numbers: one bit each, counted.

/// A set of indices.
#[derive(Clone, Debug)]
pub(super) struct Bits {
    words: Box<[u64]>,
    len: usize,
    count: usize,
}

impl Bits {
    pub(super) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)].into(), len, count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn has(&self, index: usize) -> bool {
        self.words[index / 64] & 1 << (index % 64) != 0
    }

    /// False if it was there.
    pub(super) fn set(&mut self, index: usize) -> bool {
        let new = !self.has(index);
        self.words[index / 64] |= 1 << (index % 64);
        self.count += usize::from(new);
        new
    }

    /// False if it was not there.
    pub(super) fn unset(&mut self, index: usize) -> bool {
        let there = self.has(index);
        self.words[index / 64] &= !(1 << (index % 64));
        self.count -= usize::from(there);
        there
    }

    pub(super) fn clear(&mut self) {
        if self.count > 0 {
            self.words.fill(0);
            self.count = 0;
        }
    }

    /// The first index from `at` on that is in neither set; `end` or more if there is none before.
    pub(super) fn first_without(&self, other: &Self, mut at: usize, end: usize) -> usize {
        while at < end {
            let taken = (self.words[at / 64] | other.words[at / 64]) >> (at % 64);
            let free = taken.trailing_ones() as usize;
            // Shifted-in zeros beyond the word are not free.
            if free < 64 - at % 64 {
                return at + free;
            }
            at += 64 - at % 64;
        }
        at
    }
}
