//! One object's access patterns: what a read needs now, and what to fetch ahead of it.
//!
//! There are no file handles, so the state of a reader hangs on the object. An object has several
//! *streams*: places where somebody reads on. A read belongs to the stream whose position it is
//! near to, for the kernel sends the requests of one `read(2)` from several threads, a little out
//! of order. A read that belongs to none begins a new stream and ends none but the longest unused
//! one: a jump to the tail (a Parquet footer, a zip directory) costs the others nothing.
//!
//! A stream reads ahead once a second read has followed the first, in a window that doubles with
//! each half that is read, up to the layout's chunk (128 MiB). A random read fetches what it asks
//! for, in whole blocks, and nothing else.

use std::ops::Range;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::ObjectId;

/// Up to here an object is fetched whole at its first read: at 90 MB/s a connection 4 MiB take
/// 45 ms behind 15 ms to the first byte, and the reader gets its bytes as they arrive.
const WHOLE_OBJECT_BYTES: u64 = 4 << 20;

/// What the first read at the beginning of a larger object fetches, in one GET: enough for the
/// kernel's first readaheads to find it under way, little enough to waste on a header.
const FIRST_BYTES: u64 = 1 << 20;

/// The first window. In four pieces, which get 8 MiB to the reader in half the time of one.
const FIRST_WINDOW_BYTES: u64 = 8 << 20;

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
    /// To be fetched ahead; may be empty.
    pub ahead: Range<u64>,
    /// In GETs of this size.
    pub ahead_piece_bytes: u64,
}

/// A place in an object where somebody reads on.
#[derive(Clone, Debug)]
struct Stream {
    /// Where the furthest read of it ended.
    position: u64,
    /// Up to here everything was asked for.
    asked: u64,
    /// How far ahead of the position to ask; 0 as long as there was one read only.
    window: u64,
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
        let no_ahead = Plan { now: want.clone(), ahead: 0..0, ahead_piece_bytes: 0 };
        if size <= WHOLE_OBJECT_BYTES.min(self.limits.part_bytes) {
            return Plan { now: 0..size, ..no_ahead };
        }
        let now = Instant::now();
        let mut objects = self.objects.lock();
        let streams = objects.get_or_insert_mut(id, Vec::new);
        let Some(index) = find(streams, &want) else {
            let begun =
                if want.start == 0 { want.end.max(FIRST_BYTES.min(size)) } else { want.end };
            if streams.len() == STREAMS {
                let oldest = (0..STREAMS).min_by_key(|&index| streams[index].used);
                streams.swap_remove(oldest.expect("not empty"));
            }
            streams.push(Stream { position: want.end, asked: begun, window: 0, used: now });
            return Plan { now: want.start..begun, ..no_ahead };
        };
        let stream = &mut streams[index];
        stream.used = now;
        if want.end <= stream.position {
            return no_ahead;
        }
        stream.position = want.end;
        if stream.position == size {
            streams.swap_remove(index);
            return no_ahead;
        }
        let asked = stream.asked.max(stream.position);
        // Ask again only when half of the window is used up, so that GETs are whole parts.
        if stream.window > 0 && asked - stream.position > stream.window / 2 {
            return no_ahead;
        }
        let wished = if stream.window == 0 { FIRST_WINDOW_BYTES } else { stream.window * 2 };
        let active = active(&objects, now).max(1);
        let share = (self.limits.ahead_bytes / active).max(self.limits.part_bytes / 4);
        let window = wished.min(self.limits.window_bytes).min(share);
        let piece = (window / 4)
            .clamp(self.limits.part_bytes / 4, self.limits.part_bytes)
            .next_multiple_of(self.limits.block_bytes);
        let until = size.min((want.end + window).next_multiple_of(piece));
        let streams = objects.get_mut(&id).expect("found above, under the same lock");
        let stream = &mut streams[index];
        stream.window = window;
        stream.asked = until.max(asked);
        Plan { ahead: asked..until.max(asked), ahead_piece_bytes: piece, ..no_ahead }
    }
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
        let plans = stream(&readers(), 2, 0, SIZE);
        let mut asked = MIB;
        for plan in &plans[1..] {
            if !plan.ahead.is_empty() {
                assert_eq!(plan.ahead.start, asked.max(plan.now.end));
                asked = plan.ahead.end;
            }
            assert!(plan.now.end <= asked);
        }
        assert_eq!(asked, SIZE);
    }

    /// R5
    #[tokio::test]
    async fn the_window_doubles_up_to_the_limit() {
        let plans = stream(&readers(), 2, 0, 512 * MIB);
        let mut furthest = 0;
        for plan in plans.iter().filter(|plan| !plan.ahead.is_empty()) {
            let window = plan.ahead.end - plan.now.end;
            assert!(window <= (128 + 8) * MIB);
            furthest = furthest.max(window);
        }
        assert!(furthest >= 128 * MIB);
        let windows: Vec<_> = plans.iter().filter(|plan| !plan.ahead.is_empty()).collect();
        assert_eq!(windows[0].ahead_piece_bytes, 2 * MIB);
        assert!(windows.len() < 32, "whole parts, not one request for each read");
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
}
