//! What was read of an object: the kernel's page cache has it, so it is not fetched ahead again.

use std::ops::Range;

use crate::readahead::bits::Bits;

/// More places cost memory: 8 KiB for an object.
const MOST_PLACES: u64 = 65_536;

/// A shorter stretch is fetched with what lies around it: requests have their price too.
const LEAST_HOLE_BYTES: u64 = 512 << 10;

/// The places of an object that were read. One counts when both its ends were: what lies between
/// them has mostly been read as well, and a chunk of the cache leaves by the same rule.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    size: u64,
    place_bytes: u64,
    begun: Bits,
    ended: Bits,
}

impl Marks {
    pub(super) fn new(size: u64, block_bytes: u64) -> Self {
        let place_bytes = size.div_ceil(MOST_PLACES).next_multiple_of(block_bytes).max(1);
        let places = usize::try_from(size.div_ceil(place_bytes)).unwrap_or(0);
        Self { size, place_bytes, begun: Bits::new(places), ended: Bits::new(places) }
    }

    pub(super) fn note(&mut self, want: &Range<u64>) {
        let places = self.places(want);
        let is_whole = |&place: &usize| {
            let range = self.range(place);
            want.start <= range.start && range.end <= want.end
        };
        // The kernel asks again for what its page cache has dropped, and may have dropped more.
        if places.clone().filter(is_whole).any(|place| self.was_read(place)) {
            self.begun.clear();
            self.ended.clear();
        }
        for place in places {
            let range = self.range(place);
            if want.start <= range.start {
                self.begun.set(place);
            }
            if range.end <= want.end {
                self.ended.set(place);
            }
        }
    }

    /// The parts of a range that were not read.
    pub(super) fn unread(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        // Where the part begins, and where the places end that were not read.
        let (mut begin, mut end) = (range.start, range.start);
        for place in self.places(&range).filter(|&place| !self.was_read(place)) {
            let unread = self.range(place);
            let start = unread.start.max(range.start);
            if start - end >= LEAST_HOLE_BYTES {
                parts.push(begin..end);
                begin = start;
            }
            end = unread.end.min(range.end);
        }
        parts.push(begin..end);
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// The byte at this offset was read, or there is none.
    pub(super) fn was_read_at(&self, at: u64) -> bool {
        at >= self.size || self.places(&(at..at + 1)).all(|place| self.was_read(place))
    }

    /// Where the bytes end that were read from `at` on.
    pub(super) fn read_until(&self, at: u64) -> u64 {
        let places = self.places(&(at..self.size));
        places
            .take_while(|&place| self.was_read(place))
            .map(|place| self.range(place).end)
            .last()
            .unwrap_or(at)
    }

    pub(super) fn unread_of(&self, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        ranges.into_iter().flat_map(|range| self.unread(range)).collect()
    }

    /// The places that a range touches.
    fn places(&self, range: &Range<u64>) -> Range<usize> {
        let index = |place: u64| usize::try_from(place).unwrap_or(0).min(self.begun.len());
        index(range.start / self.place_bytes)..index(range.end.div_ceil(self.place_bytes))
    }

    fn range(&self, place: usize) -> Range<u64> {
        let start = place as u64 * self.place_bytes;
        start..(start + self.place_bytes).min(self.size)
    }

    fn was_read(&self, place: usize) -> bool {
        self.begun.has(place) && self.ended.has(place)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is not a mistake here
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn marks(size: u64, reads: &[Range<u64>]) -> Marks {
        let mut marks = Marks::new(size, 128 * KIB);
        for read in reads {
            marks.note(read);
        }
        marks
    }

    #[test]
    fn what_was_read_is_left_out_if_it_is_long_enough() {
        let size = 8 * MIB + 5;
        for (reads, unread) in [
            (vec![], vec![0..size]),
            (vec![0..MIB], vec![MIB..size]),
            (vec![MIB..2 * MIB], vec![0..MIB, 2 * MIB..size]),
            (vec![7 * MIB..size], vec![0..7 * MIB]),
            (vec![MIB..MIB + 384 * KIB], vec![0..size]),
            // In pieces that end inside of a place, in any order.
            (vec![MIB + 700 * KIB..2 * MIB, MIB..MIB + 700 * KIB], vec![0..MIB, 2 * MIB..size]),
            // The ends of a stretch that are not read whole are fetched.
            (vec![MIB + 1..3 * MIB - 1], vec![0..MIB + 128 * KIB, 3 * MIB - 128 * KIB..size]),
            // Read again: the page cache has dropped it.
            (vec![MIB..3 * MIB, 2 * MIB..3 * MIB], vec![0..2 * MIB, 3 * MIB..size]),
        ] {
            assert_eq!(marks(size, &reads).unread(0..size), unread, "{reads:?}");
        }
        let marks = marks(size, &[0..4 * MIB]);
        assert_eq!(marks.unread(MIB..2 * MIB), []);
        assert_eq!(marks.unread(3 * MIB..5 * MIB + 1), vec![4 * MIB..5 * MIB + 1]);
        assert_eq!(marks.unread(5 * MIB..5 * MIB), []);
        assert_eq!((marks.read_until(1), marks.read_until(5 * MIB)), (4 * MIB, 5 * MIB));
        assert_eq!(marks.read_until(size), size);
    }

    #[test]
    fn the_largest_object_has_as_many_places_as_any() {
        let size = 5 << 40;
        let marks = marks(size, &[0..size / 2]);
        assert!(marks.begun.len() <= 65_536);
        assert_eq!(marks.unread(0..size), vec![size / 2..size]);
    }
}
