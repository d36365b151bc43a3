//! One object's access patterns: the ranges that a read needs now, and those to fetch ahead of it.
//!
//! There are no file handles, so the state of a reader belongs to the object. An object has several
//! *streams*: runs of bytes that programs read on from. A read belongs to the stream whose position
//! it is near to, because the kernel sends the requests of one `read(2)` from several threads, a
//! little out of order. A read that belongs to none begins a new stream and replaces the oldest if
//! there are too many: a jump to the tail (a Parquet footer, a zip directory) costs the others
//! nothing.
//!
//! Threads that read an object in turns, a slice each, are as good as one reader: a stream that
//! begins in what another has asked for is as far as that one, and goes on from there; and a stream
//! that reaches the beginning of another, or comes near to it while both are read on, becomes one
//! with it.
//!
//! The ranges fetched ahead depend on how a stream proceeds:
//!
//! - *Sequentially*, one read behind the other: a window ahead of its position, which grows with
//!   the bytes read, without the parts of the object that were read already. Reads that skip what
//!   lies between them (the holes of a page cache) have read little, and open no large window.
//! - *In strides*, each read as far from the last as that from the one before (the rows of a table,
//!   a file read backwards): the next reads, and not what lies between. The beginnings of streams
//!   are followed in the same way (a first touch of each tensor, the columns of a Parquet file).
//! - A first read, or a random one: nothing, unless the runs before it were longer. It fetches the
//!   bytes that were requested, in whole blocks.
//! - An object that is probably read whole, in whatever order ([`Streams::read_whole`]): all of it,
//!   from its beginning, or in the order of its tensors' names or places, beside what its streams
//!   are fetched ahead.

use std::ops::Range;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::runs::{ReadStream, Runs};
pub(crate) use self::whole::{Judged, WholeAhead};
use crate::cache::{NetworkPace, ObjectId};

mod marks;
mod runs;
mod steps;
mod whole;

/// A small first read at the beginning of a larger object fetches this much, in one GET: enough to
/// cover the kernel's first readaheads, little enough to waste on a header.
const FIRST_BYTES: u64 = 1 << 20;

/// Bytes that a reader waits for are fetched in parallel GETs of this size: a page fault that makes
/// the kernel ask for 1 MiB has it after 18 ms instead of 27, at 15 ms to the first byte and 90
/// MB/s a connection.
const DEMAND_PIECE_BYTES: u64 = 256 << 10;

/// A GET of a stream has this share of the bytes that come before it. It begins together with those
/// for these, and a reader is about as many times as fast as a connection: 0.7 to 1 GB/s, 90 MB/s.
/// So its bytes are there when the reader comes.
const BEFORE_PER_PIECE: u64 = 8;

/// The first GETs of a stream: with smaller ones a connection would wait for first bytes for more
/// than two thirds of its time.
const FIRST_PIECE_BYTES: u64 = 512 << 10;

/// The least GET of a stream that is read on.
const LEAST_PIECE_BYTES: u64 = 1 << 20;

/// A window larger than this is that of one stream among few. Among eight or more none is read
/// faster than a connection brings it: GETs need not grow, and are as large as the window allows,
/// unless the stream began in the middle and is probably short.
const LARGE_WINDOW_BYTES: u64 = 16 << 20;

/// Objects whose streams are remembered: mostly some 400 bytes each; 64 KiB at most, and 8 to
/// 24 bytes for each tensor of a checkpoint.
const OBJECTS: usize = 1024;

/// The access patterns of all objects.
pub(crate) struct Streams {
    objects: Mutex<LruCache<ObjectId, Runs>>,
    limits: StreamLimits,
}

/// The bounds on reading streams ahead.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names)] // the unit of each
pub(crate) struct StreamLimits {
    /// GETs are whole blocks.
    pub(crate) block_bytes: u64,
    /// Objects up to this size are fetched whole.
    pub(crate) small_bytes: u64,
    /// From an object's beginning on, streams are fetched in GETs of whole multiples of this.
    pub(crate) unit_bytes: u64,
    /// The longest window of one stream, unless the network needs more in flight.
    pub(crate) window_bytes: u64,
    /// The most that the windows of all streams may take together.
    pub(crate) ahead_bytes: u64,
    /// A stream holds one of these, half of it read on average, beside its window.
    pub(crate) chunk_bytes: u64,
}

/// The sizes of the GETs that read a stream ahead: they grow with the distance from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    begun: u64,
    least_bytes: u64,
    most_bytes: u64,
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
    pub(crate) pieces: Pieces,
    /// Whether the object is read whole.
    pub(crate) judged: Judged,
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
            pieces: Pieces::equal(part),
            judged: Judged::InPart,
        };
        if size <= self.limits.small_bytes {
            return ReadPlan { now: 0..size, now_piece_bytes: part, ..no_ahead };
        }
        let now = Instant::now();
        let mut objects = self.objects.lock();
        let runs = objects.get_or_insert_mut(id, || Runs::new(size, self.limits.block_bytes));
        runs.marks.note(&want);
        runs.whole.read += want.end - want.start;
        let known = runs.find(&want);
        let is_new = known.is_none();
        let index = known.unwrap_or_else(|| runs.begin(&want, now));
        let begins = is_new || runs.began_before(index, &want);
        let length = want.end - want.start;
        let advances = want.end > runs.streams[index].position;
        runs.pass(index, &want, now);
        let stream = &mut runs.streams[index];
        runs.whole.touch(stream);
        let no_ahead = ReadPlan { judged: runs.whole.judged(), ..no_ahead };
        let unit = self.limits.unit_bytes;
        let no_ahead = if is_new && want.start == 0 && (!stream.is_bulk || unit > FIRST_BYTES) {
            stream.asked = want.end.max(FIRST_BYTES.max(unit).min(size));
            ReadPlan { now: 0..stream.asked, now_piece_bytes: part, ..no_ahead }
        } else {
            no_ahead
        };
        if is_new && want.start == 0 && !stream.is_bulk {
            return no_ahead;
        }
        let pattern = if begins { &runs.beginnings } else { &stream.reads_at };
        let is_regular = pattern.is_regular(length);
        let joined = runs.join(index, now);
        let index = joined.as_ref().map_or(index, |joined| joined.index);
        let gap = joined.as_ref().and_then(|joined| joined.gap.clone());
        let stream = &runs.streams[index];
        if want.end == size && !begins && stream.read >= stream.come() {
            runs.streams.remove(index);
            if runs.streams.is_empty() && !runs.whole.is_read() {
                // Nothing is left to remember.
                objects.pop(&id);
            }
            return no_ahead;
        }
        if !advances && !begins && !is_regular && joined.is_none() {
            return no_ahead;
        }
        let most = self.window(active(&objects, now).max(1), pace);
        let runs = objects.get_mut(&id).expect("found above, under the same lock");
        if is_new && let Some(ahead) = runs.one_tensor(pace.in_flight_bytes) {
            let pieces = Pieces::equal(LEAST_PIECE_BYTES.max(unit).min(part));
            return ReadPlan { ahead, pieces, ..no_ahead };
        }
        let tensor = runs.whole.tensor(&runs.streams[index]);
        if is_regular && joined.is_none() {
            let mut ahead = runs.ask_in_strides(index, begins, length, size, most);
            if let Some(tensor) = tensor.filter(|_| !runs.whole.strays) {
                for range in &mut ahead {
                    *range = range.start.max(tensor.start)..range.end.min(tensor.end);
                }
                ahead.retain(|range| !range.is_empty());
            }
            return ReadPlan { ahead: runs.marks.unread_of(ahead), ..no_ahead };
        }
        let stream = &mut runs.streams[index];
        // Of a checkpoint that is read whole, all of the tensor.
        let window = match &tensor {
            Some(tensor) if runs.whole.is_read() => tensor.end.saturating_sub(stream.position),
            _ => stream.window(tensor.is_some() && stream.position > stream.first.end),
        };
        let window = window.min(most);
        let size = tensor.map_or(size, |tensor| tensor.end);
        let is_among_many = window == most && window <= LARGE_WINDOW_BYTES;
        let least_bytes = if stream.is_bulk && is_among_many {
            floor_power_of_two(window / 3 * 2).max(LEAST_PIECE_BYTES)
        } else if begins || stream.is_bulk && window > LARGE_WINDOW_BYTES {
            FIRST_PIECE_BYTES
        } else {
            LEAST_PIECE_BYTES
        };
        let least_bytes = least_bytes.max(unit).min(part);
        let pieces = Pieces {
            begun: stream.begun.saturating_sub(stream.credit) / part * part,
            least_bytes,
            most_bytes: floor_power_of_two(window / 2).clamp(least_bytes, part),
        };
        // Whole pieces, for whole GETs; and always all that fit, so that no connection for which
        // the window has room is idle.
        let asked = stream.asked.max(stream.position);
        let reach = stream.position + window;
        let piece = pieces.at(reach);
        let until = if reach < size { reach / piece * piece } else { size }.max(asked);
        stream.asked = until;
        let mut ahead = Vec::from_iter(gap);
        ahead.push(asked..until);
        let mut ahead = runs.marks.unread_of(ahead);
        ahead.sort_by_key(|range| range.start);
        ReadPlan { ahead, pieces, ..no_ahead }
    }

    /// The longest window of each of `streams` streams. A single one has what the network needs in
    /// flight and half of that for a reader that stops and starts, less the part in which it reads.
    /// Several share twice what the network needs; each has a part ahead of the half of one in
    /// which it reads.
    fn window(&self, streams: u64, pace: NetworkPace) -> u64 {
        let NetworkPace { part_bytes, in_flight_bytes } = pace;
        let StreamLimits { window_bytes, ahead_bytes, chunk_bytes, .. } = self.limits;
        let one = (in_flight_bytes / 2 * 3).min(window_bytes).max(in_flight_bytes);
        let one = one.saturating_sub(part_bytes).max(part_bytes);
        let share = (2 * in_flight_bytes / streams).max(part_bytes / 2 * 3);
        let room = ahead_bytes / streams;
        one.min(share).min(room.saturating_sub(chunk_bytes / 2).max(room / 2))
    }

    /// The cache had room for a range ahead up to `reached`, not `until`: plans the rest again.
    pub(crate) fn fell_short(&self, id: ObjectId, reached: u64, until: u64) {
        let mut objects = self.objects.lock();
        let Some(runs) = objects.peek_mut(&id) else { return };
        for stream in &mut runs.streams {
            if stream.asked >= until && stream.position <= until {
                stream.asked = reached;
            }
            stream.reads_at.asked = 0;
        }
        runs.beginnings.asked = 0;
    }
}

impl Pieces {
    fn equal(bytes: u64) -> Self {
        Self { begun: 0, least_bytes: bytes, most_bytes: bytes }
    }

    /// The size of a GET at this offset.
    fn at(&self, offset: u64) -> u64 {
        let before = offset.saturating_sub(self.begun);
        let grown = floor_power_of_two(before / BEFORE_PER_PIECE);
        grown.clamp(self.least_bytes, self.most_bytes)
    }

    /// Cuts a range where the size changes.
    pub(crate) fn cut(self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let piece = self.at(at);
            let larger = self.begun + 2 * BEFORE_PER_PIECE * floor_power_of_two(piece);
            let end = if piece < self.most_bytes { larger.min(range.end) } else { range.end };
            let cut = at..end;
            at = end;
            (!cut.is_empty()).then_some((cut, piece))
        })
    }
}

fn floor_power_of_two(bytes: u64) -> u64 {
    bytes.checked_ilog2().map_or(0, |log| 1 << log)
}

/// The number of streams with a window that were used lately, and have not come to where others
/// have read. Objects come by recency, so this examines active ones only, some 40 ns each.
fn active(objects: &LruCache<ObjectId, Runs>, now: Instant) -> u64 {
    let with_window = |runs: &Runs, stream: &ReadStream| {
        let reads_on = !runs.marks.was_read_at(stream.position);
        stream.is_active(now) && (stream.is_bulk || stream.reads > 1) && reads_on
    };
    objects
        .iter()
        .take_while(|(_, Runs { streams, .. })| {
            streams.is_empty() || streams.iter().any(|stream| stream.is_active(now))
        })
        .map(|(_, runs)| runs.streams.iter().filter(|stream| with_window(runs, stream)).count())
        .map(|streams| streams as u64)
        .sum()
}

#[cfg(test)]
mod tests;
