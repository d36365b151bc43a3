//! One object's access patterns: the ranges that a read needs now, and those to fetch ahead of it.
//!
//! There are no file handles, so the state of a reader belongs to the object. An object has several
//! *streams*: places where a program reads on. A read belongs to the stream whose position it is
//! near to, because the kernel sends the requests of one `read(2)` from several threads, a little
//! out of order. A read that belongs to none begins a new stream and replaces the least recently
//! used one if there are too many: a jump to the tail (a Parquet footer, a zip directory) costs the
//! others nothing.
//!
//! The ranges fetched ahead depend on how a stream proceeds:
//!
//! - *Sequentially*, one read behind the other: a window ahead of its position, which grows with
//!   the bytes read. Reads that skip what lies between them (the holes of a page cache) have read
//!   little, and open no large window.
//! - *In strides*, each read as far from the last as that from the one before (the rows of a table,
//!   a column of a Parquet file, a file read backwards): the next reads, and not what lies between.
//! - A first read, or a random one: nothing. It fetches the bytes that were requested, in whole
//!   blocks.

use std::ops::Range;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::base::layout::WHOLE_OBJECT_BYTES;
use crate::cache::{NetworkPace, ObjectId};

/// A small first read at the beginning of a larger object fetches this much, in one GET: enough to
/// cover the kernel's first readaheads, little enough to waste on a header.
const FIRST_BYTES: u64 = 1 << 20;

/// Bytes that a reader waits for are fetched in parallel GETs of this size: a page fault that makes
/// the kernel ask for 1 MiB has it after 18 ms instead of 27, at 15 ms to the first byte and 90
/// MB/s a connection.
const DEMAND_PIECE_BYTES: u64 = 256 << 10;

/// The longest window for each byte that was read of a stream. Eight bring a stream to the whole
/// window of 128 MiB after 16 MiB.
const MOST_WINDOW_PER_READ: u64 = 8;

/// A stream that began in the middle of its object gains one window byte per byte read for each
/// MiB read. Such streams are short more often than not: a column, a tensor, a record.
const READ_PER_WINDOW: u64 = 1 << 20;

/// Window bytes per byte read for a stream that began with a large read at the object's beginning.
/// It will probably continue to the end, and nothing is in flight yet: the kernel's first two
/// requests of 1 MiB open a window of 32 MiB, which keeps 16 connections busy for 38 ms.
const WINDOW_PER_BULK_READ: u64 = 16;

/// A window is requested in this many pieces or fewer, each at least [`LEAST_PIECE_BYTES`] and at
/// most a part. 16 connections of 90 MB/s behind 15 ms move 0.6 GB/s in pieces of 1 MiB, 1.2 GB/s
/// in pieces of 8 MiB; few large pieces would leave a young stream with few connections.
const PIECES: u64 = 16;

/// With smaller ones a connection would wait for first bytes more than half of its time.
const LEAST_PIECE_BYTES: u64 = 1 << 20;

/// A stream that begins with a read of this size is sequential: the kernel makes its first request
/// this large only for a large read(2).
const BULK_BYTES: u64 = 512 << 10;

/// The largest distance of a read from the position of its stream: the kernel has a few requests of
/// at most 1 MiB in flight for one reader.
const TOLERANCE_BYTES: u64 = 4 << 20;

/// Equal strides in a row after which they are expected to continue. Two happen by chance, when
/// requests overtake each other.
const STRIDES: u32 = 3;

/// Reads that are fetched ahead of a stream in strides: 32 at 16 ms each are 2,000 rows a second.
const STRIDES_AHEAD: u32 = 32;

/// Streams of one object: more than the columns of a Parquet row group that are read at once.
const STREAMS: usize = 16;

/// Objects whose streams are remembered, a few hundred bytes each.
const OBJECTS: usize = 16_384;

/// A stream unused for this long no longer counts when the budget is divided.
const ACTIVE: Duration = Duration::from_secs(2);

/// Objects that are searched for active streams, some 20 ns each. If more are read at once, a
/// stream's share is small already.
const OBJECTS_COUNTED: usize = 1024;

/// The access patterns of all objects.
pub(crate) struct Streams {
    objects: Mutex<LruCache<ObjectId, Vec<ReadStream>>>,
    limits: StreamLimits,
}

/// The bounds on reading streams ahead.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names)] // the unit of each
pub(crate) struct StreamLimits {
    /// GETs are whole blocks.
    pub(crate) block_bytes: u64,
    /// The longest window of one stream, unless the network needs more in flight.
    pub(crate) window_bytes: u64,
    /// The most that the windows of all streams may take together.
    pub(crate) ahead_bytes: u64,
}

/// The ranges to fetch because of one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadPlan {
    /// For the reader that waits; contains the range of the read.
    pub(crate) now: Range<u64>,
    /// The size of its GETs.
    pub(crate) now_piece_bytes: u64,
    /// Ahead of the reader, the most urgent first.
    pub(crate) ahead: Vec<Range<u64>>,
    /// The size of their GETs.
    pub(crate) ahead_piece_bytes: u64,
}

/// A place in an object where a program reads on.
#[derive(Clone, Debug)]
struct ReadStream {
    /// Where its first read began.
    begun: u64,
    /// Its first read was a large one at the object's beginning.
    is_bulk: bool,
    read: u64,
    position: u64,
    /// Everything before this offset was requested.
    asked: u64,
    strides: Strides,
    used: Instant,
}

/// The distances between the beginnings of a stream's reads.
#[derive(Clone, Debug)]
struct Strides {
    /// Where the last read began.
    last: u64,
    /// Its distance from the one before, negative if it lies before that.
    stride: i64,
    /// Equal strides in a row.
    times: u32,
    /// Number of reads after the last one that are requested already.
    asked: u32,
}

impl Strides {
    fn add(&mut self, start: u64) {
        let stride = start.wrapping_sub(self.last).cast_signed();
        if stride == self.stride {
            self.times = self.times.saturating_add(1);
            self.asked = self.asked.saturating_sub(1);
        } else {
            (self.stride, self.times, self.asked) = (stride, 1, 0);
        }
        self.last = start;
    }

    /// The strides are equal and leave gaps, or go backwards.
    fn are_regular(&self, length: u64) -> bool {
        self.times >= STRIDES && (self.stride < 0 || self.stride.unsigned_abs() > length)
    }

    /// The next reads of `length` bytes that were not requested, at most `most` bytes in all. Marks
    /// them as requested. Adjacent ones are joined.
    fn ask(&mut self, length: u64, size: u64, most: u64) -> Vec<Range<u64>> {
        let until = u32::try_from(most / length.max(1)).unwrap_or(u32::MAX).min(STRIDES_AHEAD);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        // By halves: whole batches of GETs, not one for each read.
        if self.asked > until / 2 {
            return ranges;
        }
        for number in self.asked + 1..=until {
            let way = self.stride.saturating_mul(number.into());
            let Some(start) = self.last.checked_add_signed(way).filter(|&start| start < size)
            else {
                break;
            };
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

impl Streams {
    pub(crate) fn new(limits: StreamLimits) -> Self {
        let objects = OBJECTS.try_into().expect("not zero");
        Self { objects: Mutex::new(LruCache::new(objects)), limits }
    }

    /// The ranges to fetch because of a read of `want`, inside an object of `size` bytes.
    pub(crate) fn plan(
        &self,
        id: ObjectId,
        size: u64,
        want: Range<u64>,
        pace: NetworkPace,
    ) -> ReadPlan {
        let part = pace.part_bytes;
        let no_ahead = ReadPlan {
            now: want.clone(),
            now_piece_bytes: part.min(DEMAND_PIECE_BYTES).max(self.limits.block_bytes),
            ahead: Vec::new(),
            ahead_piece_bytes: part,
        };
        if size <= WHOLE_OBJECT_BYTES.min(part) {
            return ReadPlan { now: 0..size, now_piece_bytes: part, ..no_ahead };
        }
        let now = Instant::now();
        let mut objects = self.objects.lock();
        let streams = objects.get_or_insert_mut(id, Vec::new);
        let known = find(streams, &want);
        let begins = known.is_none();
        let index = known.unwrap_or_else(|| begin(streams, &want, now));
        let stream = &mut streams[index];
        stream.used = now;
        let advances = want.end > stream.position;
        stream.position = stream.position.max(want.end);
        stream.read += want.end - want.start;
        if begins && !stream.is_bulk {
            if want.start > 0 {
                return no_ahead;
            }
            stream.asked = want.end.max(FIRST_BYTES.min(size));
            return ReadPlan { now: 0..stream.asked, now_piece_bytes: part, ..no_ahead };
        }
        if !begins {
            stream.strides.add(want.start);
        }
        let length = want.end - want.start;
        let is_regular = stream.strides.are_regular(length);
        if want.end == size && !begins {
            streams.swap_remove(index);
            if streams.is_empty() {
                // An empty entry would hide active streams of less recently used objects.
                objects.pop(&id);
            }
            return no_ahead;
        }
        if !advances && !begins && !is_regular {
            return no_ahead;
        }
        let most = self.window(active(&objects, now).max(1), pace);
        let stream = objects.get_mut(&id).and_then(|streams| streams.get_mut(index));
        let stream = stream.expect("found above, under the same lock");
        if is_regular {
            let most = most.min(stream.read * MOST_WINDOW_PER_READ);
            let ahead = stream.strides.ask(length, size, most);
            return ReadPlan { ahead, ahead_piece_bytes: part, ..no_ahead };
        }
        let window = stream.window().min(most);
        let piece = (window / PIECES)
            .next_power_of_two()
            .max(LEAST_PIECE_BYTES)
            .min(part)
            .next_multiple_of(self.limits.block_bytes);
        // Whole pieces, for whole GETs; and always all that fit, so that no connection for which
        // the window has room is idle.
        let asked = stream.asked.max(stream.position);
        let reach = stream.position + window;
        let until = if reach < size { (reach / piece * piece).max(asked) } else { size };
        stream.asked = until;
        let ahead = Some(asked..until).filter(|ahead| !ahead.is_empty()).into_iter().collect();
        ReadPlan { ahead, ahead_piece_bytes: piece, ..no_ahead }
    }

    /// The longest window of each of `streams` streams. A single one has all that the network needs
    /// in flight, less the part in which it reads: so it mostly fits into two chunks. Several share
    /// twice as much, which keeps the network as busy and memory free.
    fn window(&self, streams: u64, pace: NetworkPace) -> u64 {
        let one = self.limits.window_bytes.max(pace.in_flight_bytes);
        let one = one.saturating_sub(pace.part_bytes).max(pace.part_bytes);
        let share = (2 * one / streams).max(pace.part_bytes);
        one.min(share).min(self.limits.ahead_bytes / streams)
    }

    /// The cache had room for a range ahead up to `reached`, not `until`: plans the rest again.
    pub(crate) fn fell_short(&self, id: ObjectId, reached: u64, until: u64) {
        let mut objects = self.objects.lock();
        for stream in objects.peek_mut(&id).into_iter().flatten() {
            if stream.asked >= until && stream.position <= until {
                stream.asked = reached;
            }
            stream.strides.asked = 0;
        }
    }
}

impl ReadStream {
    /// The window that the bytes read so far justify.
    fn window(&self) -> u64 {
        let per_read = if self.is_bulk {
            WINDOW_PER_BULK_READ
        } else {
            (self.read / READ_PER_WINDOW).clamp(1, MOST_WINDOW_PER_READ)
        };
        // Gaps between the reads would be fetched as well.
        let come = self.position - self.begun;
        if come < 2 * self.read { self.read * per_read } else { 0 }
    }
}

/// Begins a stream at a read; replaces the least recently used one if there are too many.
fn begin(streams: &mut Vec<ReadStream>, want: &Range<u64>, used: Instant) -> usize {
    if streams.len() == STREAMS {
        let oldest = (0..STREAMS).min_by_key(|&index| streams[index].used);
        streams.swap_remove(oldest.expect("not empty"));
    }
    streams.push(ReadStream {
        begun: want.start,
        is_bulk: want.start == 0 && want.end >= BULK_BYTES,
        read: 0,
        position: want.end,
        asked: want.end,
        strides: Strides { last: want.start, stride: 0, times: 0, asked: 0 },
        used,
    });
    streams.len() - 1
}

/// The stream that a read belongs to: the nearest one within the tolerance, measured from its
/// position or from where its strides lead.
fn find(streams: &[ReadStream], want: &Range<u64>) -> Option<usize> {
    let distance = |stream: &ReadStream| {
        let Strides { last, stride, times, .. } = stream.strides;
        let next = last.checked_add_signed(stride).filter(|_| times > 0);
        let strides = next.map_or(u64::MAX, |next| next.abs_diff(want.start));
        let back = stream.begun.abs_diff(want.end).min(last.abs_diff(want.end));
        stream.position.abs_diff(want.start).min(strides).min(back)
    };
    let near = (0..streams.len()).filter(|&index| distance(&streams[index]) <= TOLERANCE_BYTES);
    near.min_by_key(|&index| distance(&streams[index]))
}

/// The number of streams with a window that were used lately. Objects come by recency, so this
/// examines active ones only.
fn active(objects: &LruCache<ObjectId, Vec<ReadStream>>, now: Instant) -> u64 {
    let lately = |stream: &&ReadStream| now.duration_since(stream.used) <= ACTIVE;
    let with_window =
        |stream: &&ReadStream| lately(stream) && (stream.is_bulk || stream.strides.times > 0);
    objects
        .iter()
        .take(OBJECTS_COUNTED)
        .take_while(|(_, streams)| streams.iter().any(|stream| lately(&stream)))
        .map(|(_, streams)| streams.iter().filter(with_window).count() as u64)
        .sum()
}

#[cfg(test)]
mod tests;
