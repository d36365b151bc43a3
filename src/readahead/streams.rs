//! One object's access patterns: what a read needs now, and what to fetch ahead of it.
//!
//! There are no file handles, so the state of a reader hangs on the object. An object has several
//! *streams*: places where somebody reads on. A read belongs to the stream whose position it is
//! near to, for the kernel sends the requests of one `read(2)` from several threads, a little out
//! of order. A read that belongs to none begins a new stream and ends none but the longest unused
//! one: a jump to the tail (a Parquet footer, a zip directory) costs the others nothing.
//!
//! What a stream is read ahead of depends on how it goes:
//!
//! - *Onwards*, one read behind the other: a window ahead of its position, which grows with what was
//!   read of it. Reads that skip what lies between them (the holes of a page cache) have read
//!   little, and open no large window.
//! - *In strides*, each read as far from the last as that from the one before (the rows of a table,
//!   a column of a Parquet file, a file read backwards): the next reads, and not what lies between.
//! - A first read, or a random one: nothing. It fetches what it asks for, in whole blocks.

use std::ops::Range;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::base::layout::WHOLE_OBJECT_BYTES;
use crate::cache::ObjectId;

/// What a small first read at the beginning of a larger object fetches, in one GET: enough for the
/// kernel's first readaheads to find it under way, little enough to waste on a header.
const FIRST_BYTES: u64 = 1 << 20;

/// What a reader waits for is fetched in GETs of this size at once: a page fault that makes the
/// kernel ask for 1 MiB has it 18 ms later instead of 27, at 15 ms to the first byte and 90 MB/s a
/// connection.
const DEMAND_PIECE_BYTES: u64 = 256 << 10;

/// How far to read ahead of a stream for each byte that was read of it, at the most. Eight get a
/// stream to the whole window of 128 MiB when it has come 16 MiB far.
const MOST_WINDOW_PER_READ: u64 = 8;

/// One more for each so many bytes that were read of a stream which began in the middle of its
/// object. Such streams are short more often than not: a column, a tensor, a record.
const READ_PER_WINDOW: u64 = 1 << 20;

/// The same for a stream that has begun with a large read at the object's beginning. It will
/// probably go on to the end, and is not yet under way: the kernel's first two requests of 1 MiB
/// open a window of 32 MiB, with which 16 connections are busy for 38 ms.
const WINDOW_PER_BULK_READ: u64 = 16;

/// A window is asked for in so many pieces or some fewer, at least of [`LEAST_PIECE_BYTES`] and at
/// most whole parts. 16 connections of 90 MB/s behind 15 ms move 0.6 GB/s in pieces of 1 MiB, 1.2 GB/s in
/// those of 8 MiB; few large pieces would leave a young stream with few connections.
const PIECES: u64 = 16;

/// Half of a connection's time goes into waiting for the first byte of a smaller one.
const LEAST_PIECE_BYTES: u64 = 1 << 20;

/// Whoever begins with a read of so many bytes reads on: the kernel makes its first request so
/// large only for a large read(2).
const BULK_BYTES: u64 = 512 << 10;

/// How far from a stream's position a read may be and still belong to it: what the kernel has in
/// flight for one reader, a few requests of at most 1 MiB.
const TOLERANCE_BYTES: u64 = 4 << 20;

/// After so many equal strides a stream is taken for one that goes on in them. Two come by chance,
/// of requests that overtake each other.
const STRIDES: u32 = 3;

/// Reads that are fetched ahead of a stream in strides: 32 at 16 ms each are 2,000 rows a second.
const STRIDES_AHEAD: u32 = 32;

/// Streams of one object: the columns of a Parquet row group that are read at once, and then some.
const STREAMS: usize = 16;

/// Objects whose streams are remembered, a few hundred bytes each.
const OBJECTS: usize = 16_384;

/// A stream unused for this long no longer counts when the budget is divided.
const ACTIVE: Duration = Duration::from_secs(2);

/// Objects that are looked through for active streams, some 20 ns each. Where more are read at once,
/// a stream's share is small already.
const OBJECTS_COUNTED: usize = 1024;

/// The access patterns of all objects.
pub struct Readers {
    objects: Mutex<LruCache<ObjectId, Vec<Stream>>>,
    limits: Limits,
}

/// What readahead must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// GETs are whole blocks.
    pub block_bytes: u64,
    /// The most that is read ahead of one stream, unless the network needs more in flight.
    pub window_bytes: u64,
    /// What the windows of all streams together may take of the memory budget.
    pub ahead_bytes: u64,
}

/// What the network was measured to want ([`ChunkCache::pace`](crate::cache::ChunkCache::pace)).
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The most that one GET asks for.
    pub part_bytes: u64,
    /// Bytes that the network needs in flight; 0 if that is not known.
    pub in_flight_bytes: u64,
}

/// What to do about one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// To be fetched for the reader who waits; holds what it asked for.
    pub now: Range<u64>,
    /// In GETs of this size.
    pub now_piece_bytes: u64,
    /// To be fetched ahead, the most urgent first.
    pub ahead: Vec<Range<u64>>,
    /// In GETs of this size.
    pub ahead_piece_bytes: u64,
}

/// A place in an object where somebody reads on.
#[derive(Clone, Debug)]
struct Stream {
    /// Where its first read began.
    begun: u64,
    /// Its first read was a large one at the object's beginning.
    is_bulk: bool,
    /// How much was read of it.
    read: u64,
    /// Where its furthest read ended.
    position: u64,
    /// Up to here everything was asked for.
    asked: u64,
    strides: Strides,
    used: Instant,
}

/// How far apart the reads of a stream begin.
#[derive(Clone, Debug)]
struct Strides {
    /// Where the last read began.
    last: u64,
    /// How far behind the one before, or before it.
    stride: i64,
    /// So many times in a row.
    times: u32,
    /// So many reads behind the last one are asked for.
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

    /// Whether it goes on in strides that leave something out, or backwards.
    fn are_regular(&self, length: u64) -> bool {
        self.times >= STRIDES && (self.stride < 0 || self.stride.unsigned_abs() > length)
    }

    /// The reads of `length` bytes that follow and were not asked for, `most` bytes at the most in
    /// all; they are now. Those that touch each other come as one.
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

impl Readers {
    /// No object has been read yet.
    pub fn new(limits: Limits) -> Self {
        let objects = OBJECTS.try_into().expect("not zero");
        Self { objects: Mutex::new(LruCache::new(objects)), limits }
    }

    /// What to fetch for a read of `want`, inside an object of `size` bytes.
    pub fn plan(&self, id: ObjectId, size: u64, want: Range<u64>, pace: Pace) -> Plan {
        let part = pace.part_bytes;
        let no_ahead = Plan {
            now: want.clone(),
            now_piece_bytes: part.min(DEMAND_PIECE_BYTES).max(self.limits.block_bytes),
            ahead: Vec::new(),
            ahead_piece_bytes: part,
        };
        if size <= WHOLE_OBJECT_BYTES.min(part) {
            return Plan { now: 0..size, now_piece_bytes: part, ..no_ahead };
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
            return Plan { now: 0..stream.asked, now_piece_bytes: part, ..no_ahead };
        }
        if !begins {
            stream.strides.add(want.start);
        }
        let length = want.end - want.start;
        let is_regular = stream.strides.are_regular(length);
        if want.end == size && !begins {
            streams.swap_remove(index);
            if streams.is_empty() {
                // Those that come behind it by recency may well be active.
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
            return Plan { ahead, ahead_piece_bytes: part, ..no_ahead };
        }
        let window = stream.window().min(most);
        let piece = (window / PIECES)
            .next_power_of_two()
            .max(LEAST_PIECE_BYTES)
            .min(part)
            .next_multiple_of(self.limits.block_bytes);
        // Whole pieces, so that GETs are; and always all that fit, so that none of the connections
        // that the window has room for is idle.
        let asked = stream.asked.max(stream.position);
        let reach = stream.position + window;
        let until = if reach < size { (reach / piece * piece).max(asked) } else { size };
        stream.asked = until;
        let ahead = Some(asked..until).filter(|ahead| !ahead.is_empty()).into_iter().collect();
        Plan { ahead, ahead_piece_bytes: piece, ..no_ahead }
    }

    /// The most to read ahead of each of so many streams. One has all that the network needs in
    /// flight, less the part in which it reads: so two chunks mostly hold it. Several share twice as
    /// much, which keeps the network as busy and memory free.
    fn window(&self, streams: u64, pace: Pace) -> u64 {
        let one = self.limits.window_bytes.max(pace.in_flight_bytes);
        let one = one.saturating_sub(pace.part_bytes).max(pace.part_bytes);
        let share = (2 * one / streams).max(pace.part_bytes);
        one.min(share).min(self.limits.ahead_bytes / streams)
    }

    /// Of what a plan wanted ahead, up to `until`, there was room up to `reached` only: the rest is
    /// to be asked for again.
    pub fn fell_short(&self, id: ObjectId, reached: u64, until: u64) {
        let mut objects = self.objects.lock();
        for stream in objects.peek_mut(&id).into_iter().flatten() {
            if stream.asked >= until && stream.position <= until {
                stream.asked = reached;
            }
            stream.strides.asked = 0;
        }
    }
}

impl Stream {
    /// How far to read ahead of it, by what was read of it.
    fn window(&self) -> u64 {
        let per_read = if self.is_bulk {
            WINDOW_PER_BULK_READ
        } else {
            (self.read / READ_PER_WINDOW).clamp(1, MOST_WINDOW_PER_READ)
        };
        // Where there are gaps between the reads, reading ahead would fetch them as well.
        let come = self.position - self.begun;
        if come < 2 * self.read { self.read * per_read } else { 0 }
    }
}

/// Begins a stream at a read, in the place of the longest unused one when there are too many.
fn begin(streams: &mut Vec<Stream>, want: &Range<u64>, used: Instant) -> usize {
    if streams.len() == STREAMS {
        let oldest = (0..STREAMS).min_by_key(|&index| streams[index].used);
        streams.swap_remove(oldest.expect("not empty"));
    }
    streams.push(Stream {
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

/// The stream that a read belongs to: the nearest one within the tolerance, be it to where the
/// stream has come or to where its strides lead.
fn find(streams: &[Stream], want: &Range<u64>) -> Option<usize> {
    let distance = |stream: &Stream| {
        let Strides { last, stride, times, .. } = stream.strides;
        let next = last.checked_add_signed(stride).filter(|_| times > 0);
        let strides = next.map_or(u64::MAX, |next| next.abs_diff(want.start));
        let back = stream.begun.abs_diff(want.end).min(last.abs_diff(want.end));
        stream.position.abs_diff(want.start).min(strides).min(back)
    };
    let near = (0..streams.len()).filter(|&index| distance(&streams[index]) <= TOLERANCE_BYTES);
    near.min_by_key(|&index| distance(&streams[index]))
}

/// How many streams with a window were used lately. Objects come by recency, so this looks at
/// active ones only.
fn active(objects: &LruCache<ObjectId, Vec<Stream>>, now: Instant) -> u64 {
    let lately = |stream: &&Stream| now.duration_since(stream.used) <= ACTIVE;
    let with_window =
        |stream: &&Stream| lately(stream) && (stream.is_bulk || stream.strides.times > 0);
    objects
        .iter()
        .take(OBJECTS_COUNTED)
        .take_while(|(_, streams)| streams.iter().any(|stream| lately(&stream)))
        .map(|(_, streams)| streams.iter().filter(with_window).count() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 1 << 30;

    fn readers() -> Readers {
        Readers::new(Limits {
            block_bytes: 131_072,
            window_bytes: 128 * MIB,
            ahead_bytes: 512 * MIB,
        })
    }

    const PACE: Pace = Pace { part_bytes: 8 * MIB, in_flight_bytes: 128 * MIB };

    fn plan(readers: &Readers, id: ObjectId, want: Range<u64>) -> Plan {
        readers.plan(id, SIZE, want, PACE)
    }

    /// Reads on in requests of 1 MiB, and returns the plans.
    fn stream(readers: &Readers, id: ObjectId, from: u64, until: u64) -> Vec<Plan> {
        let reads = (from..until).step_by(usize::try_from(MIB).unwrap());
        reads.map(|start| plan(readers, id, start..start + MIB)).collect()
    }

    fn ahead_bytes(plans: &[Plan]) -> u64 {
        plans.iter().map(bytes_ahead).sum()
    }

    fn bytes_ahead(plan: &Plan) -> u64 {
        plan.ahead.iter().map(|range| range.end - range.start).sum()
    }

    /// R3
    #[tokio::test]
    async fn a_small_object_is_fetched_whole_at_its_first_read() {
        let plan = readers().plan(2, 110_000, 16_384..32_768, PACE);
        assert_eq!((plan.now, plan.ahead), (0..110_000, vec![]));
    }

    #[tokio::test]
    async fn a_random_read_fetches_what_it_asks_for() {
        let readers = readers();
        for start in [500 * MIB, 20 * MIB, 900 * MIB, 300 * MIB, 60 * MIB] {
            let want = start..start + 131_072;
            let plan = plan(&readers, 2, want.clone());
            assert_eq!((plan.now, plan.ahead), (want, vec![]));
        }
    }

    #[tokio::test]
    async fn a_stream_asks_for_everything_once_and_in_order() {
        for from in [0, 300] {
            let mut asked = from * MIB;
            for plan in stream(&readers(), 2, from * MIB, SIZE) {
                let now = plan.now.start.max(asked)..plan.now.end;
                for range in std::iter::once(now).chain(plan.ahead) {
                    if !range.is_empty() {
                        assert_eq!(range.start, asked);
                        asked = range.end;
                    }
                }
            }
            assert_eq!(asked, SIZE);
        }
    }

    /// R5
    #[tokio::test]
    async fn the_window_doubles_up_to_the_limit() {
        let plans = stream(&readers(), 2, 0, 512 * MIB);
        let mut reached = 0;
        let ahead: Vec<_> = plans
            .iter()
            .map(|plan| {
                reached = plan.ahead.last().map_or(0, |range| range.end).max(reached);
                reached - plan.now.end
            })
            .collect();
        assert_eq!(ahead[0], 16 * MIB);
        assert_eq!(ahead[1], 32 * MIB);
        assert_eq!(ahead[3], 64 * MIB);
        assert!(ahead[16..].iter().all(|&bytes| bytes > 112 * MIB && bytes <= 120 * MIB));
        let pieces = plans.iter().map(|plan| plan.ahead_piece_bytes);
        assert!(pieces.clone().is_sorted());
        assert_eq!(pieces.max(), Some(8 * MIB));
    }

    #[tokio::test]
    async fn scattered_small_reads_fetch_little_more_than_they_ask_for() {
        let readers = readers();
        let mut fetched = 0;
        for start in (0..256 * MIB).step_by(3 << 20) {
            let plan = plan(&readers, 2, start..start + 16_384);
            fetched += plan.now.end - plan.now.start + bytes_ahead(&plan);
        }
        assert!(fetched < 16 * MIB, "{fetched}");
    }

    #[tokio::test]
    async fn a_small_read_at_the_beginning_asks_for_little() {
        let plan = plan(&readers(), 2, 0..16_384);
        assert_eq!((plan.now, plan.ahead), (0..MIB, vec![]));
        let small_parts = Pace { part_bytes: 262_144, ..PACE };
        let plan = readers().plan(2, 300_000, 0..16_384, small_parts);
        assert_eq!((plan.now, plan.ahead), (0..300_000, vec![]), "no further than the object");
    }

    #[tokio::test]
    async fn requests_out_of_order_are_one_stream() {
        let readers = readers();
        let mut ahead = 0;
        for pair in (0..64).collect::<Vec<u64>>().chunks(2) {
            for start in [pair[1] * MIB, pair[0] * MIB] {
                ahead += bytes_ahead(&plan(&readers, 2, start..start + MIB));
            }
        }
        assert!(ahead > 64 * MIB);
        assert_eq!(readers.objects.lock().get(&2).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_tail_read_ends_no_stream() {
        let readers = readers();
        stream(&readers, 2, 0, 64 * MIB);
        plan(&readers, 2, SIZE - 65_536..SIZE);
        let with = ahead_bytes(&stream(&readers, 2, 64 * MIB, 256 * MIB));
        let undisturbed = self::readers();
        stream(&undisturbed, 2, 0, 64 * MIB);
        assert_eq!(with, ahead_bytes(&stream(&undisturbed, 2, 64 * MIB, 256 * MIB)));
    }

    #[tokio::test]
    async fn many_streams_share_what_readahead_may_take() {
        let readers = readers();
        for step in 0..40 {
            for id in 2..66 {
                let start = step * MIB;
                let plan = plan(&readers, id, start..start + MIB);
                if let Some(range) = plan.ahead.last().filter(|_| step > 30) {
                    assert!(range.end - plan.now.end <= (512 / 64 + 2) * MIB);
                }
            }
        }
    }

    #[tokio::test]
    async fn an_object_read_to_its_end_leaves_the_others_their_shares() {
        let readers = readers();
        for step in 0..40 {
            for id in 2..66 {
                plan(&readers, id, step * MIB..(step + 1) * MIB);
            }
        }
        for mib in 0..5 {
            readers.plan(66, 5 * MIB, mib * MIB..(mib + 1) * MIB, PACE);
        }
        let plan = plan(&readers, 3, 40 * MIB..41 * MIB);
        assert!(bytes_ahead(&plan) <= (512 / 64 + 2) * MIB, "{plan:?}");
    }

    #[tokio::test]
    async fn random_reads_elsewhere_take_nothing_of_a_streams_share() {
        let readers = readers();
        stream(&readers, 2, 0, 32 * MIB);
        for id in 3..503 {
            plan(&readers, id, 500 * MIB..500 * MIB + 131_072);
        }
        assert_eq!(ahead_bytes(&stream(&readers, 2, 32 * MIB, 48 * MIB)), 16 * MIB);
    }

    #[tokio::test]
    async fn rows_that_are_as_far_apart_are_fetched_ahead_without_what_lies_between() {
        let (readers, row) = (readers(), 65_536);
        let mut asked = std::collections::BTreeSet::new();
        let mut fetched = 0;
        for start in (500 * MIB..900 * MIB).step_by(2 << 20) {
            let plan = plan(&readers, 2, start..start + row);
            // After three equal strides every row was asked for before it is read.
            assert!(start <= 506 * MIB || asked.contains(&start), "{start}");
            for range in &plan.ahead {
                assert!(asked.insert(range.start), "{range:?} twice");
                assert_eq!(range.end - range.start, row);
            }
            fetched += row + bytes_ahead(&plan);
        }
        assert!(fetched < 2 * 200 * row + 64 * row, "{fetched}");
    }

    #[tokio::test]
    async fn a_file_read_backwards_is_fetched_ahead_backwards() {
        let readers = readers();
        let mut lowest = SIZE;
        for start in (0..SIZE / MIB).rev().map(|mib| mib * MIB) {
            let plan = plan(&readers, 2, start..start + MIB);
            assert!(start > SIZE - 6 * MIB || start >= lowest, "{start} was not asked for");
            for range in plan.ahead {
                assert_eq!(range.end, lowest.min(start), "no gap and nothing twice");
                lowest = range.start;
            }
        }
        assert_eq!(lowest, 0);
    }

    #[tokio::test]
    async fn what_found_no_room_is_asked_for_again() {
        let readers = readers();
        let first = plan(&readers, 2, 0..MIB);
        assert_eq!(first.ahead.first(), Some(&(MIB..17 * MIB)));
        readers.fell_short(2, 3 * MIB, 17 * MIB);
        let second = plan(&readers, 2, MIB..2 * MIB);
        assert_eq!(second.ahead.first().map(|range| range.start), Some(3 * MIB));
    }

    #[tokio::test]
    async fn a_network_that_needs_more_in_flight_gets_a_larger_window() {
        let readers = readers();
        let fast = Pace { in_flight_bytes: 200 * MIB, ..PACE };
        let mut reached = 0;
        for start in (0..64 * MIB).step_by(1 << 20) {
            let plan = readers.plan(2, SIZE, start..start + MIB, fast);
            reached = plan.ahead.last().map_or(reached, |range| range.end);
        }
        assert!(reached > (64 + 180) * MIB, "{reached}");
    }

    proptest::proptest! {
        #[test]
        fn any_plan_holds_the_read_and_stays_inside_the_object(
            size in 1..40 * MIB,
            part_blocks in 1..64_u64,
            budget in 0..64 * MIB,
            reads in proptest::collection::vec((0..1000_u64, 1..3 * MIB, 0..4_u8), 1..60),
        ) {
            let block_bytes = 131_072;
            let part_bytes = part_blocks * block_bytes;
            let limits = Limits { block_bytes, window_bytes: part_bytes * 4, ahead_bytes: budget };
            let pace = Pace { part_bytes, in_flight_bytes: part_bytes };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _context = runtime.enter();
            let readers = Readers::new(limits);
            let mut at: u64 = 0;
            for (place, len, how) in reads {
                let start = match how {
                    0 => size * place / 1000,
                    1 => at.saturating_sub(2 * MIB),
                    2 => at + MIB,
                    // Goes on where the last one ended.
                    _ => at,
                };
                let start = start.min(size - 1);
                let want = start..size.min(start + len);
                at = want.end;
                let plan = readers.plan(2, size, want.clone(), pace);
                proptest::prop_assert!(plan.now.start <= want.start && plan.now.end >= want.end);
                proptest::prop_assert!(plan.now.end <= size);
                proptest::prop_assert!(plan.ahead.iter().all(|a| a.start < a.end && a.end <= size));
                for piece in [plan.now_piece_bytes, plan.ahead_piece_bytes] {
                    proptest::prop_assert!(piece > 0 && piece <= part_bytes && piece % block_bytes == 0);
                }
            }
        }
    }
}
