//! One object's access patterns: what a read needs now, and what to fetch ahead of it.
//!
//! There are no file handles, so the state of a reader hangs on the object. An object has several
//! *streams*: places where somebody reads on. A read belongs to the stream whose position it is
//! near to, for the kernel sends the requests of one `read(2)` from several threads, a little out
//! of order. A read that belongs to none begins a new stream and ends none but the longest unused
//! one: a jump to the tail (a Parquet footer, a zip directory) costs the others nothing.
//!
//! A stream reads ahead once a second read has followed the first: eight times what was read of it,
//! up to the layout's chunk (128 MiB). Reads that are near to each other but skip what lies between
//! (the holes of a page cache) have read little, and so open no large window. A random read fetches
//! what it asks for, in whole blocks, and nothing else.

use std::ops::Range;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::ObjectId;

/// Up to here an object is fetched whole at its first read: at 90 MB/s a connection 4 MiB take
/// 45 ms behind 15 ms to the first byte, and the reader gets its bytes as they arrive.
pub const WHOLE_OBJECT_BYTES: u64 = 4 << 20;

/// What a small first read at the beginning of a larger object fetches, in one GET: enough for the
/// kernel's first readaheads to find it under way, little enough to waste on a header.
const FIRST_BYTES: u64 = 1 << 20;

/// What a reader waits for is fetched in GETs of this size at once: a page fault that makes the
/// kernel ask for 1 MiB has it 18 ms later instead of 27, at 15 ms to the first byte and 90 MB/s a
/// connection.
const DEMAND_PIECE_BYTES: u64 = 256 << 10;

/// How far to read ahead of a stream, for each byte that was read of it. Eight gets a stream to the
/// whole window of 128 MiB when it has come 16 MiB far, and wastes no more than that eightfold on
/// one that ends early.
const WINDOW_PER_READ: u64 = 8;

/// A window is asked for in so many pieces, at least of [`LEAST_PIECE_BYTES`] and at most whole
/// parts. 16 connections of 90 MB/s behind 15 ms move 0.6 GB/s in pieces of 1 MiB, 1.2 GB/s in
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

/// Streams of one object: the columns of a Parquet row group that are read at once, and then some.
const STREAMS: usize = 16;

/// Objects whose streams are remembered, a few hundred bytes each.
const OBJECTS: usize = 16_384;

/// A stream unused for this long no longer counts when the budget is divided.
const ACTIVE: Duration = Duration::from_secs(2);

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
    /// The most that is read ahead of one stream.
    pub window_bytes: u64,
    /// The most that one GET asks for.
    pub part_bytes: u64,
    /// What the windows of all streams together may take of the memory budget.
    pub ahead_bytes: u64,
}

/// What to do about one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// To be fetched for the reader who waits; holds what it asked for.
    pub now: Range<u64>,
    /// In GETs of this size.
    pub now_piece_bytes: u64,
    /// To be fetched ahead; may be empty.
    pub ahead: Range<u64>,
    /// In GETs of this size.
    pub ahead_piece_bytes: u64,
}

/// A place in an object where somebody reads on.
#[derive(Clone, Debug)]
struct Stream {
    /// Where its first read began.
    begun: u64,
    /// How much was read of it.
    read: u64,
    /// Where its furthest read ended.
    position: u64,
    /// Up to here everything was asked for.
    asked: u64,
    used: Instant,
}

impl Readers {
    /// No object has been read yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let objects = OBJECTS.try_into().expect("not zero");
        Self { objects: Mutex::new(LruCache::new(objects)), limits }
    }

    /// What to fetch for a read of `want`, inside an object of `size` bytes.
    pub fn plan(&self, id: ObjectId, size: u64, want: Range<u64>) -> Plan {
        let part = self.limits.part_bytes;
        let no_ahead = Plan {
            now: want.clone(),
            now_piece_bytes: part.min(DEMAND_PIECE_BYTES).max(self.limits.block_bytes),
            ahead: 0..0,
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
        let Stream { begun, read, position, asked, .. } = *stream;
        if position == size {
            streams.swap_remove(index);
            return no_ahead;
        }
        let at_once = want.start == 0 && want.end >= BULK_BYTES;
        if begins && !at_once {
            if want.start > 0 {
                return no_ahead;
            }
            stream.asked = want.end.max(FIRST_BYTES.min(size));
            return Plan { now: 0..stream.asked, now_piece_bytes: part, ..no_ahead };
        }
        if !advances && !begins {
            return no_ahead;
        }
        let share = self.limits.ahead_bytes / active(&objects, now).max(1);
        // Where there are gaps between the reads, reading ahead fetches them as well.
        let come = position - begun;
        let window = (read * WINDOW_PER_READ).min(self.limits.window_bytes).min(share);
        let window = window / (come / read.min(come)).max(1);
        let piece = (window / PIECES)
            .max(LEAST_PIECE_BYTES)
            .min(self.limits.part_bytes)
            .next_multiple_of(self.limits.block_bytes);
        // Whole pieces, so that GETs are; and always all that fit, so that none of the connections
        // that the window has room for is idle.
        let asked = asked.max(position);
        let reach = position + window;
        let until = if reach < size { (reach / piece * piece).max(asked) } else { size };
        let stream = objects.get_mut(&id).and_then(|streams| streams.get_mut(index));
        stream.expect("found above, under the same lock").asked = until;
        Plan { ahead: asked..until, ahead_piece_bytes: piece, ..no_ahead }
    }
}

/// Begins a stream at a read, in the place of the longest unused one when there are too many.
fn begin(streams: &mut Vec<Stream>, want: &Range<u64>, used: Instant) -> usize {
    if streams.len() == STREAMS {
        let oldest = (0..STREAMS).min_by_key(|&index| streams[index].used);
        streams.swap_remove(oldest.expect("not empty"));
    }
    streams.push(Stream { begun: want.start, read: 0, position: want.end, asked: want.end, used });
    streams.len() - 1
}

/// The stream that a read belongs to: the nearest one within the tolerance.
fn find(streams: &[Stream], want: &Range<u64>) -> Option<usize> {
    let distance = |stream: &Stream| stream.position.abs_diff(want.start);
    let near = (0..streams.len()).filter(|&index| distance(&streams[index]) <= TOLERANCE_BYTES);
    near.min_by_key(|&index| distance(&streams[index]))
}

/// How many streams with a window were used lately. Objects come by recency, so this looks at
/// active ones only.
fn active(objects: &LruCache<ObjectId, Vec<Stream>>, now: Instant) -> u64 {
    let lately = |stream: &&Stream| now.duration_since(stream.used) <= ACTIVE;
    let of_object = |streams: &Vec<Stream>| streams.iter().filter(lately).count() as u64;
    objects.iter().map(|(_, streams)| of_object(streams)).take_while(|&streams| streams > 0).sum()
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
            part_bytes: 8 * MIB,
            ahead_bytes: 512 * MIB,
        })
    }

    /// Reads on in requests of 1 MiB, and returns the plans.
    fn stream(readers: &Readers, id: ObjectId, from: u64, until: u64) -> Vec<Plan> {
        let reads = (from..until).step_by(usize::try_from(MIB).unwrap());
        reads.map(|start| readers.plan(id, SIZE, start..start + MIB)).collect()
    }

    fn ahead_bytes(plans: &[Plan]) -> u64 {
        plans.iter().map(|plan| plan.ahead.end - plan.ahead.start).sum()
    }

    /// R3
    #[tokio::test]
    async fn a_small_object_is_fetched_whole_at_its_first_read() {
        let plan = readers().plan(2, 110_000, 16_384..32_768);
        assert_eq!((plan.now, plan.ahead), (0..110_000, 0..0));
    }

    #[tokio::test]
    async fn a_random_read_fetches_what_it_asks_for() {
        let readers = readers();
        for start in [500 * MIB, 20 * MIB, 900 * MIB, 300 * MIB, 60 * MIB] {
            let want = start..start + 131_072;
            let plan = readers.plan(2, SIZE, want.clone());
            assert_eq!((plan.now, plan.ahead), (want, 0..0));
        }
    }

    #[tokio::test]
    async fn a_stream_asks_for_everything_once_and_in_order() {
        for from in [0, 300] {
            let mut asked = from * MIB;
            for plan in stream(&readers(), 2, from * MIB, SIZE) {
                for range in [plan.now.start.max(asked)..plan.now.end, plan.ahead] {
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
                reached = plan.ahead.end.max(reached);
                reached - plan.now.end
            })
            .collect();
        assert_eq!(ahead[0], 8 * MIB);
        assert_eq!(ahead[7], 64 * MIB);
        assert!(ahead[16..].iter().all(|&bytes| bytes > 120 * MIB && bytes <= 128 * MIB));
        let pieces = plans.iter().map(|plan| plan.ahead_piece_bytes);
        assert!(pieces.clone().is_sorted());
        assert_eq!(pieces.max(), Some(8 * MIB));
    }

    #[tokio::test]
    async fn scattered_small_reads_fetch_little_more_than_they_ask_for() {
        let readers = readers();
        let mut fetched = 0;
        for start in (0..256 * MIB).step_by(3 << 20) {
            let plan = readers.plan(2, SIZE, start..start + 16_384);
            fetched += plan.now.end - plan.now.start + plan.ahead.end - plan.ahead.start;
        }
        assert!(fetched < 16 * MIB, "{fetched}");
    }

    #[tokio::test]
    async fn a_small_read_at_the_beginning_asks_for_little() {
        let plan = readers().plan(2, SIZE, 0..16_384);
        assert_eq!((plan.now, plan.ahead), (0..MIB, 0..0));
        let small_parts = Limits { part_bytes: 262_144, ..readers().limits };
        let plan = Readers::new(small_parts).plan(2, 300_000, 0..16_384);
        assert_eq!((plan.now, plan.ahead), (0..300_000, 0..0), "no further than the object");
    }

    #[tokio::test]
    async fn requests_out_of_order_are_one_stream() {
        let readers = readers();
        let mut ahead = 0;
        for pair in (0..64).collect::<Vec<u64>>().chunks(2) {
            for start in [pair[1] * MIB, pair[0] * MIB] {
                let plan = readers.plan(2, SIZE, start..start + MIB);
                ahead += plan.ahead.end - plan.ahead.start;
            }
        }
        assert!(ahead > 64 * MIB);
        assert_eq!(readers.objects.lock().get(&2).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_tail_read_ends_no_stream() {
        let readers = readers();
        stream(&readers, 2, 0, 64 * MIB);
        readers.plan(2, SIZE, SIZE - 65_536..SIZE);
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
                let plan = readers.plan(id, SIZE, start..start + MIB);
                if step > 30 {
                    assert!(plan.ahead.end.saturating_sub(plan.now.end) <= (512 / 64 + 2) * MIB);
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_plan_holds_the_read_and_stays_inside_the_object(
            size in 1..40 * MIB,
            part_blocks in 1..64_u64,
            budget in 0..64 * MIB,
            reads in proptest::collection::vec((0..1000_u64, 1..3 * MIB, proptest::bool::ANY), 1..60),
        ) {
            let block_bytes = 131_072;
            let part_bytes = part_blocks * block_bytes;
            let limits = Limits { block_bytes, part_bytes, window_bytes: part_bytes * 4, ahead_bytes: budget };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _context = runtime.enter();
            let readers = Readers::new(limits);
            let mut at = 0;
            for (place, len, jump) in reads {
                // Half of the reads go on where the last one ended.
                let start = if jump { size * place / 1000 } else { at }.min(size - 1);
                let want = start..size.min(start + len);
                at = want.end;
                let plan = readers.plan(2, size, want.clone());
                proptest::prop_assert!(plan.now.start <= want.start && plan.now.end >= want.end);
                proptest::prop_assert!(plan.now.end <= size && plan.ahead.end <= size);
                for piece in [plan.now_piece_bytes, plan.ahead_piece_bytes] {
                    proptest::prop_assert!(piece > 0 && piece <= part_bytes && piece % block_bytes == 0);
                }
            }
        }
    }
}
