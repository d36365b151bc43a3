//! The distances between the beginnings of reads, and where the next ones will begin if these
//! repeat.

use std::collections::VecDeque;
use std::ops::Range;

/// Equal strides in a row after which they are expected to continue. Two happen by chance, when
/// requests overtake each other.
const STRIDES: usize = 3;

/// Reads that are fetched ahead for each one that has come in strides.
const AHEAD_PER_READ: usize = 8;

/// The most reads that are fetched ahead in strides: 64 at 16 ms each are 4,000 rows a second.
const STRIDES_AHEAD: usize = 64;

/// The most beginnings after which a pattern repeats: a program reads as many columns in turns.
const PERIOD: usize = 8;

/// Where the last reads began, and where the next ones will if they repeat the distances.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    pub(super) last: VecDeque<u64>,
    pub(super) repeats: Option<Repeats>,
    /// Number of next reads that are requested already.
    pub(super) asked: usize,
    /// `repeats` and `asked` without the last read.
    before_last: (Option<Repeats>, usize),
}

/// Each read begins at this distance from the one that came `period` reads before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeats {
    pub(super) period: usize,
    pub(super) stride: i64,
}

impl Steps {
    /// The last read began here, as it turns out.
    pub(super) fn correct(&mut self, want: &Range<u64>) {
        (self.repeats, self.asked) = self.before_last;
        self.last.pop_back();
        self.add(want);
    }

    pub(super) fn add(&mut self, want: &Range<u64>) {
        self.before_last = (self.repeats, self.asked);
        self.last.push_back(want.start);
        if self.last.len() > 2 * PERIOD + 1 {
            self.last.pop_front();
        }
        let repeats = self.repeats(want.end - want.start);
        if repeats.is_some() && repeats == self.repeats {
            self.asked = self.asked.saturating_sub(1);
        } else {
            (self.repeats, self.asked) = (repeats, 0);
        }
    }

    fn repeats(&self, length: u64) -> Option<Repeats> {
        (1..=PERIOD).find_map(|period| {
            let stride = self.distance(0, period).filter(|&stride| stride != 0)?;
            let times = STRIDES.max(period + 1);
            let repeats = (1..times).all(|back| {
                self.distance(back, period) == Some(stride)
                    || self.is_cut(back, period, stride, length)
            });
            repeats.then_some(Repeats { period, stride })
        })
    }

    /// The kernel reads around a page of a mapped file, but nothing before the object's beginning:
    /// from a read there to the next is less than a stride.
    fn is_cut(&self, back: usize, period: usize, stride: i64, length: u64) -> bool {
        let begins = self.last.len().checked_sub(1 + back + period).map(|at| self.last[at]);
        let least = stride.saturating_sub_unsigned(length).max(1);
        begins == Some(0)
            && self.distance(back, period).is_some_and(|cut| (least..stride).contains(&cut))
    }

    /// How far the read `back` before the last is from the one `period` before that.
    pub(super) fn distance(&self, back: usize, period: usize) -> Option<i64> {
        let at = self.last.len().checked_sub(1 + back)?;
        let before = at.checked_sub(period)?;
        Some(self.last[at].wrapping_sub(self.last[before]).cast_signed())
    }

    /// It repeats, and the reads leave gaps, or go backwards.
    pub(super) fn is_regular(&self, length: u64) -> bool {
        self.repeats.is_some_and(|Repeats { period, stride }| {
            stride < 0 || stride.unsigned_abs() > length * period as u64
        })
    }

    /// Where the read will begin that comes `number` reads after the last.
    pub(super) fn next(&self, number: usize) -> Option<u64> {
        let Repeats { period, stride } = self.repeats?;
        let before = self.last.len().checked_sub(period)? + (number - 1) % period;
        let times = i64::try_from((number - 1) / period + 1).ok()?;
        self.last[before].checked_add_signed(stride.checked_mul(times)?)
    }

    /// The reads that have come in strides, as far as they are remembered.
    fn times(&self) -> usize {
        let Some(Repeats { period, stride }) = self.repeats else { return 0 };
        let is_stride = |&back: &usize| self.distance(back, period) == Some(stride);
        1 + (0..self.last.len()).take_while(is_stride).count()
    }

    /// The next reads of `length` bytes that were not requested, at most `most` bytes in all. Marks
    /// them as requested. Adjacent ones are joined.
    pub(super) fn ask(&mut self, length: u64, size: u64, most: u64) -> Vec<Range<u64>> {
        let until = usize::try_from(most / length.max(1)).unwrap_or(usize::MAX);
        let until = until.min(self.times() * AHEAD_PER_READ).min(STRIDES_AHEAD);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        // A quarter at once, not one for each read; three quarters are on their way meanwhile.
        if self.asked > until * 3 / 4 {
            return ranges;
        }
        for number in self.asked + 1..=until {
            let Some(start) = self.next(number).filter(|&start| start < size) else { break };
            let end = start.saturating_add(length).min(size);
            match ranges.last_mut() {
                Some(range) if range.end == start => range.end = end,
                Some(range) if range.start == end => range.start = start,
                _ => ranges.push(start..end),
            }
        }
        self.asked = self.asked.max(until);
        ranges
    }
}
