//! The streams of one object: which of them a read belongs to, when two become one, and how far
//! ahead each is worth reading.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::marks::Marks;
use super::steps::Steps;
use super::whole::Whole;

/// The longest window for each byte that was read of a stream. Eight bring a stream to the whole
/// window of 128 MiB after 16 MiB.
const MOST_WINDOW_PER_READ: u64 = 8;

/// A stream that began in the middle of its object gains one window byte per byte read for each
/// MiB read. Such streams are short more often than not: a column, a tensor, a record.
const READ_PER_WINDOW: u64 = 1 << 20;

/// Window bytes per byte read for a stream that began with a large read at the object's beginning.
/// It will probably continue to the end, and nothing is in flight yet: the kernel's first two
/// requests of 1 MiB open a window of 64 MiB, which keeps 32 connections busy for 38 ms.
const WINDOW_PER_BULK_READ: u64 = 32;

/// The same before its second read. For a mapped file the kernel asks 1 MiB at the first fault, and
/// a program that wants only a header will not read on.
const WINDOW_PER_FIRST_READ: u64 = 4;

/// A stream that begins with a read of this size is sequential: the kernel makes its first request
/// this large only for a large read(2).
const BULK_BYTES: u64 = 512 << 10;

/// How far behind the position of its stream a read may lie: the kernel has a few requests of at
/// most 1 MiB in flight for one reader.
const BEHIND_BYTES: u64 = 4 << 20;

/// How far ahead it may lie, if the bytes between were requested.
const AHEAD_BYTES: u64 = 4 << 20;

/// How far it may lie from where the distances of the last reads lead.
const ASIDE_BYTES: u64 = 1 << 20;

/// What lies between two streams is read by other threads, or by these soon.
const GAP_BYTES: u64 = 4 << 20;

/// A stream is read on after this many reads.
const READ_ON: u64 = 3;

/// Streams of one object: more than 64 threads, or the tensors of a shard, that are read in turns.
const STREAMS: usize = 128;

/// The most beginnings that are fetched ahead. The kernel's request around a page takes 0.6 ms when
/// its bytes are here, so a program touches some 30 pages while a first byte is awaited.
const BEGINNINGS_AHEAD: u64 = 48;

/// The first read of a run is taken for as long a run as the shortest of this many before it.
const RUNS: usize = 3;

/// A stream unused for this long no longer counts when the budget is divided, and the bytes that it
/// has read may have left the page cache.
const ACTIVE: Duration = Duration::from_secs(2);

/// The streams of one object.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    /// In the order in which they began.
    pub(super) streams: Vec<ReadStream>,
    pub(super) beginnings: Steps,
    pub(super) marks: Marks,
    pub(super) whole: Whole,
    /// Reads of the object.
    reads: u64,
}

/// A stream that was made of two.
pub(super) struct Merged {
    pub(super) index: usize,
    /// The bytes between them that nobody has asked for.
    pub(super) gap: Option<Range<u64>>,
}

/// A place in an object where a program reads on.
#[derive(Clone, Debug)]
pub(super) struct ReadStream {
    /// Where it begins.
    pub(super) begun: u64,
    /// Its first read. The program's page lies in it: the kernel reads around that.
    pub(super) first: Range<u64>,
    /// Its first read was a large one at the object's beginning.
    pub(super) is_bulk: bool,
    /// The length that those before it make likely.
    pub(super) expected: u64,
    pub(super) reads: u64,
    pub(super) read: u64,
    /// Bytes read of the stream that had asked for its first ones.
    pub(super) credit: u64,
    /// The furthest end of a read.
    pub(super) position: u64,
    /// Everything before this offset was requested.
    pub(super) asked: u64,
    pub(super) reads_at: Steps,
    pub(super) used: Instant,
    /// The tensor in which it begins, if the object is a checkpoint that tells where they lie.
    pub(super) tensor: Option<usize>,
    /// Where it was read on when others of the object had been read since.
    pub(super) resumed: Option<u64>,
    /// Its last read was this one of the object.
    last: u64,
}

impl Runs {
    pub(super) fn new(size: u64, block_bytes: u64) -> Self {
        Self {
            streams: Vec::new(),
            beginnings: Steps::default(),
            marks: Marks::new(size, block_bytes),
            whole: Whole::default(),
            reads: 0,
        }
    }

    /// Begins a stream at a read; replaces the oldest one if there are too many.
    pub(super) fn begin(&mut self, want: &Range<u64>, used: Instant) -> usize {
        if self.streams.len() == STREAMS {
            let oldest = (0..STREAMS).min_by_key(|&index| self.streams[index].used);
            self.streams.remove(oldest.expect("not empty"));
        }
        let last = &self.streams[self.streams.len().saturating_sub(RUNS)..];
        let expected = last.iter().map(ReadStream::length).min().filter(|_| last.len() == RUNS);
        let asked_by = self.streams.iter_mut().find(|stream| {
            stream.position < want.start && want.start < stream.asked && stream.is_active(used)
        });
        let (asked, credit) = asked_by.map_or((want.end, 0), |stream| {
            let asked = std::mem::replace(&mut stream.asked, want.start);
            (asked.max(want.end), stream.read + stream.credit)
        });
        self.beginnings.add(want);
        self.whole.places += u64::from(want.start > 0);
        let mut stream = ReadStream {
            begun: want.start,
            first: want.clone(),
            is_bulk: want.start == 0 && want.end >= BULK_BYTES,
            expected: expected.unwrap_or(0),
            reads: 0,
            read: 0,
            credit,
            position: want.end,
            asked,
            reads_at: Steps::default(),
            used,
            tensor: None,
            resumed: None,
            last: self.reads,
        };
        stream.tensor = self.whole.begins_in(&stream);
        self.streams.push(stream);
        self.streams.len() - 1
    }

    /// The stream has begun with this read, if its first two came in the wrong order.
    pub(super) fn began_before(&mut self, index: usize, want: &Range<u64>) -> bool {
        let stream = &mut self.streams[index];
        let is_first = stream.reads == 1 && want.end == stream.begun;
        let corrects = is_first && self.beginnings.last.back() == Some(&stream.begun);
        if corrects {
            stream.begun = want.start;
            self.beginnings.correct(want);
        }
        corrects
    }

    /// A stream is read.
    pub(super) fn pass(&mut self, index: usize, want: &Range<u64>, now: Instant) {
        let stream = &mut self.streams[index];
        if stream.last < self.reads {
            stream.resumed = Some(want.start);
        }
        self.reads += 1;
        stream.last = self.reads;
        stream.used = now;
        stream.pass(want);
    }

    /// The stream that a read belongs to, the nearest one if there are several.
    pub(super) fn find(&self, want: &Range<u64>) -> Option<usize> {
        let near = self.streams.iter().enumerate();
        let near = near.filter_map(|(index, stream)| Some((stream.distance(want)?, index)));
        near.min().map(|(_, index)| index)
    }

    /// What was not read of the only tensor that programs have touched, if they have read its
    /// beginning and its end, and so will read all of it. None of more than `most` bytes.
    pub(super) fn one_tensor(&self, most: u64) -> Option<Vec<Range<u64>>> {
        let tensor = self.whole.one_tensor().filter(|tensor| tensor.end - tensor.start <= most)?;
        let ends = [tensor.start, tensor.end.saturating_sub(1)];
        ends.iter().all(|&end| self.marks.was_read_at(end)).then(|| self.marks.unread(tensor))
    }

    /// Makes a stream one with its neighbour, if it has reached that or is near to it.
    pub(super) fn join(&mut self, index: usize, now: Instant) -> Option<Merged> {
        let pairs = (0..self.streams.len()).filter(|&other| other != index);
        let mut pairs = pairs.flat_map(|other| [(index, other), (other, index)]);
        let (left, right) = pairs
            .find(|&(left, right)| self.streams[left].continues_with(&self.streams[right], now))?;
        let next = self.streams.remove(right);
        let index = if right < left { left - 1 } else { left };
        let stream = &mut self.streams[index];
        let gap = stream.asked.max(stream.position)..next.begun;
        stream.read += next.read + next.begun.saturating_sub(stream.position);
        stream.reads += next.reads;
        stream.position = next.position;
        stream.asked = stream.asked.max(next.asked);
        stream.used = now;
        // Nobody has read on from there yet.
        stream.resumed = Some(stream.position);
        stream.last = self.reads;
        Some(Merged { index, gap: Some(gap).filter(|gap| !gap.is_empty()) })
    }

    /// The next reads of `length` bytes of a stream, or the next streams if it `begins`.
    pub(super) fn ask_in_strides(
        &mut self,
        index: usize,
        begins: bool,
        length: u64,
        size: u64,
        most: u64,
    ) -> Vec<Range<u64>> {
        let stream = &mut self.streams[index];
        if !begins {
            return stream.reads_at.ask(length, size, most);
        }
        let stride = self.beginnings.repeats.map_or(0, |repeats| repeats.stride.unsigned_abs());
        let length = length.max(stream.expected.min(stride));
        let most = most.min(length * BEGINNINGS_AHEAD);
        self.beginnings.ask(length, size, most)
    }
}

impl ReadStream {
    pub(super) fn is_active(&self, now: Instant) -> bool {
        now.duration_since(self.used) <= ACTIVE
    }

    /// The end of the program's page in the first read: the kernel reads around it.
    pub(super) fn page(&self) -> u64 {
        if self.begun == 0 { 0 } else { self.first.start.midpoint(self.first.end) | 0xfff }
    }

    pub(super) fn length(&self) -> u64 {
        self.read.min(self.come())
    }

    /// The bytes from its beginning to its position.
    pub(super) fn come(&self) -> u64 {
        self.position - self.begun
    }

    /// The next stream has begun where this one is, or a little further on and both are read on.
    pub(super) fn continues_with(&self, next: &Self, now: Instant) -> bool {
        let follows = self.begun < next.begun && self.position < next.position;
        let are_read_on = self.reads >= READ_ON && next.reads >= READ_ON;
        let near = if are_read_on && self.is_active(now) && next.is_active(now) {
            self.position.saturating_add(GAP_BYTES)
        } else {
            self.position
        };
        follows && next.begun <= near
    }

    fn pass(&mut self, want: &Range<u64>) {
        self.reads_at.add(want);
        self.reads += 1;
        self.read += want.end - want.start;
        self.position = self.position.max(want.end);
        self.asked = self.asked.max(want.end);
    }

    /// The window that the bytes read so far justify; more if it is known where the stream ends.
    pub(super) fn window(&self, has_end: bool) -> u64 {
        let come = self.come();
        if come < self.expected {
            return self.expected - come;
        }
        let is_first = self.credit == 0 && self.reads == 1 && !self.is_bulk;
        // Gaps between the reads would be fetched as well.
        let has_gaps = come >= 3 * self.read;
        if is_first || has_gaps {
            return 0;
        }
        // Those before it ended here.
        let read = (self.read + self.credit).saturating_sub(self.expected);
        let per_read = match (self.is_bulk, self.reads) {
            (true, 1) => WINDOW_PER_FIRST_READ,
            (true, _) => WINDOW_PER_BULK_READ,
            (false, _) if has_end => MOST_WINDOW_PER_READ,
            (false, _) => (read / READ_PER_WINDOW).clamp(1, MOST_WINDOW_PER_READ),
        };
        read * per_read
    }

    /// How far a read is from the stream, if it belongs to it: measured from its position, or from
    /// where its strides lead.
    pub(super) fn distance(&self, want: &Range<u64>) -> Option<u64> {
        let position = self.position.abs_diff(want.start);
        let strides = self.reads_at.next(1).map_or(u64::MAX, |next| next.abs_diff(want.start));
        let last = self.reads_at.last.back().map_or(u64::MAX, |last| last.abs_diff(want.end));
        let back = self.begun.abs_diff(want.end).min(last);
        let from = self.position.saturating_sub(BEHIND_BYTES).max(self.begun);
        let until = (self.position + AHEAD_BYTES).min(self.asked).max(self.position);
        if (from..=until).contains(&want.start) {
            Some(position.min(strides))
        } else {
            Some(strides.min(back)).filter(|&distance| distance <= ASIDE_BYTES)
        }
    }
}
