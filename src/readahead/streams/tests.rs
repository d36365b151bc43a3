//! Programs that read objects in every way: what is fetched for them, and ahead of them.

#![allow(clippy::single_range_in_vec_init)] // a plan of one range is one

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::cache::Use;
use crate::readahead::checkpoints::Tensors;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;

fn readers() -> Streams {
    Streams::new(StreamLimits {
        block_bytes: 131_072,
        small_bytes: 4 * MIB,
        unit_bytes: 0,
        window_bytes: 128 * MIB,
        ahead_bytes: 512 * MIB,
        chunk_bytes: 2 * MIB,
    })
}

const PACE: NetworkPace = NetworkPace { part_bytes: 8 * MIB, in_flight_bytes: 128 * MIB };

fn plan(readers: &Streams, id: ObjectId, want: Range<u64>) -> ReadPlan {
    readers.plan(id, SIZE, want, PACE)
}

/// Reads on in requests of 1 MiB, and returns the plans.
fn stream(readers: &Streams, id: ObjectId, from: u64, until: u64) -> Vec<ReadPlan> {
    let reads = (from..until).step_by(usize::try_from(MIB).unwrap());
    reads.map(|start| plan(readers, id, start..start + MIB)).collect()
}

fn ahead_bytes(plans: &[ReadPlan]) -> u64 {
    plans.iter().map(bytes_ahead).sum()
}

fn bytes_ahead(plan: &ReadPlan) -> u64 {
    plan.ahead.iter().map(|range| range.end - range.start).sum()
}

#[tokio::test]
async fn a_stream_from_the_beginning_is_fetched_in_the_units_that_a_shared_cache_keeps() {
    const UNIT: u64 = 2 * MIB;
    let pace = NetworkPace { part_bytes: UNIT, in_flight_bytes: 32 * UNIT };
    for step in [131_072, MIB] {
        let readers = Streams::new(StreamLimits { unit_bytes: UNIT, ..readers().limits });
        let mut fetched = 0;
        for start in (0..64 * MIB).step_by(usize::try_from(step).unwrap()) {
            let plan = readers.plan(2, SIZE, start..start + step, pace);
            let ahead = plan.ahead.into_iter().flat_map(|range| plan.pieces.cut(range));
            for (range, piece) in std::iter::once((plan.now, plan.now_piece_bytes)).chain(ahead) {
                if range.end > fetched {
                    assert_eq!(
                        (range.start, range.end % UNIT, piece),
                        (fetched, 0, UNIT),
                        "{step}"
                    );
                    fetched = range.end;
                }
            }
        }
        assert!(fetched > 64 * MIB, "{fetched}");
    }
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
    assert_eq!(ahead[0], 4 * MIB, "it may be a header");
    assert_eq!(ahead[1], 62 * MIB, "twice 32, in whole GETs of 8");
    assert!(ahead[16..].iter().all(|&bytes| bytes > 112 * MIB && bytes <= 120 * MIB));
}

/// R5
#[tokio::test]
async fn gets_grow_with_the_distance_from_where_a_stream_began() {
    for from in [0, 300 * MIB] {
        let mut lengths = Vec::new();
        for plan in stream(&readers(), 2, from, from + 64 * MIB) {
            for (range, piece) in plan.ahead.into_iter().flat_map(|range| plan.pieces.cut(range)) {
                let before = range.start - from / (8 * MIB) * (8 * MIB);
                assert!(piece <= (before / 8).max(MIB), "{piece} behind {before}");
                lengths.push((before, piece));
            }
        }
        assert_eq!(lengths.iter().map(|(_, piece)| piece).max(), Some(&(8 * MIB)));
        let first: Vec<_> = lengths.iter().filter(|(before, _)| *before < 16 * MIB).collect();
        let (least, sizes) = if from == 0 { (MIB / 2, 2) } else { (MIB, 1) };
        let pieces: BTreeSet<_> = first.iter().map(|(_, piece)| piece).collect();
        assert_eq!((pieces.len(), **pieces.first().unwrap()), (sizes, least), "{lengths:?}");
    }
}

#[tokio::test]
async fn a_stream_among_many_has_gets_of_a_part_before_its_reader_comes() {
    let (readers, pace) =
        (readers(), NetworkPace { part_bytes: 2 * MIB, in_flight_bytes: 64 * MIB });
    let mut asked = BTreeSet::new();
    let mut gets = 0;
    for step in 0..64 {
        for id in 2..66 {
            let want = step * MIB..(step + 1) * MIB;
            let plan = readers.plan(id, SIZE, want.clone(), pace);
            for (range, piece) in plan.ahead.into_iter().flat_map(|range| plan.pieces.cut(range)) {
                gets += range.end.div_ceil(piece) - range.start / piece;
                assert!(step < 8 || piece == 2 * MIB, "{piece}");
                assert!(step < 8 || range.end <= want.end + 3 * MIB, "{range:?}");
                asked.extend((range.start / MIB..range.end / MIB).map(|mib| (id, mib)));
            }
            assert!(
                step < 8 || asked.contains(&(id, step + 1)),
                "{id} has nothing ahead of {step}"
            );
        }
    }
    // Of 2 MiB, but for the beginnings.
    assert!(gets <= 64 * (32 + 6), "{gets}");
}

/// With 64 streams in 256 MiB each has 4 MiB: a chunk of 2, a read and what is ahead of it.
#[tokio::test]
async fn streams_leave_room_for_what_they_have_read_of_their_chunks() {
    let small = Streams::new(StreamLimits { ahead_bytes: 128 * MIB, ..readers().limits });
    let pace = NetworkPace { part_bytes: 2 * MIB, in_flight_bytes: 64 * MIB };
    let windows = [1, 4, 64, 256].map(|streams| small.window(streams, pace));
    assert_eq!(windows, [94 * MIB, 31 * MIB, MIB, MIB / 4]);
    let windows = [1, 4, 16, 64].map(|streams| readers().window(streams, pace));
    assert_eq!(windows, [94 * MIB, 32 * MIB, 8 * MIB, 3 * MIB], "128 MiB, or a part each");
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
    let limits = StreamLimits { small_bytes: 262_144, ..readers().limits };
    let plan = Streams::new(limits).plan(2, 300_000, 0..16_384, PACE);
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
    assert_eq!(readers.objects.lock().get(&2).unwrap().streams.len(), 1);
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
    let mut asked = BTreeSet::new();
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
    assert_eq!(first.ahead.first(), Some(&(MIB..5 * MIB)));
    readers.fell_short(2, 3 * MIB, 5 * MIB);
    let second = plan(&readers, 2, MIB..2 * MIB);
    assert_eq!(second.ahead.first().map(|range| range.start), Some(3 * MIB));
}

#[tokio::test]
async fn a_network_that_needs_more_in_flight_gets_a_larger_window() {
    let readers = readers();
    let fast = NetworkPace { in_flight_bytes: 200 * MIB, ..PACE };
    let mut reached = 0;
    for start in (0..64 * MIB).step_by(1 << 20) {
        let plan = readers.plan(2, SIZE, start..start + MIB, fast);
        reached = plan.ahead.last().map_or(reached, |range| range.end);
    }
    assert!(reached > (64 + 180) * MIB, "{reached}");
}

/// A cache that forgets a chunk when all of it was read, and counts what was fetched for whom.
#[derive(Default)]
struct Fetched {
    blocks: BTreeSet<u64>,
    /// The blocks whose beginning was read, or end, by chunk.
    read: BTreeMap<u64, BTreeSet<(u64, bool)>>,
    bytes: u64,
    waits: u64,
    /// The object says that it is a checkpoint.
    is_checkpoint: bool,
    /// And where its tensors lie.
    tensors: Option<Tensors>,
    /// Of the network, if it is not [`PACE`].
    pace: Option<NetworkPace>,
}

impl Fetched {
    /// Bytes that are here and were not read.
    fn unread_bytes(&self) -> u64 {
        let was_read = |block: u64| {
            let read = self.read.get(&(block / 16));
            read.is_some_and(|read| read.contains(&(block, false)) && read.contains(&(block, true)))
        };
        131_072 * self.blocks.iter().filter(|&&block| !was_read(block)).count() as u64
    }

    /// Carries a plan out, and counts a wait for a read whose bytes nobody had asked for.
    fn read(&mut self, readers: &Streams, size: u64, want: Range<u64>) {
        let blocks = |range: &Range<u64>| range.start / 131_072..range.end.div_ceil(131_072);
        self.waits += u64::from(!blocks(&want).all(|block| self.blocks.contains(&block)));
        let pace = self.pace.unwrap_or(PACE);
        let plan = readers.plan(2, size, want.clone(), pace);
        if matches!(plan.judged, Judged::NotYet { places: 3.., .. }) {
            readers.read_whole(2, self.is_checkpoint);
        }
        if let (Judged::NotYet { .. }, Some(tensors)) = (plan.judged, self.tensors.take()) {
            readers.has_tensors(2, tensors);
        }
        let front = readers.front(2, size, pace, Use::default());
        let front = front.into_iter().flat_map(|front| front.ahead).map(|(_, range)| range);
        for range in std::iter::once(plan.now).chain(plan.ahead).chain(front) {
            let new = blocks(&range).filter(|&block| self.blocks.insert(block)).count();
            self.bytes += 131_072 * new as u64;
        }
        for block in blocks(&want) {
            let ends = [block * 131_072, (block + 1) * 131_072];
            let (begins, ends) = (want.start <= ends[0], ends[1] <= want.end);
            let read = self.read.entry(block / 16).or_default();
            let new = [begins.then_some((block, false)), ends.then_some((block, true))];
            let new = new.into_iter().flatten().filter(|&end| read.insert(end)).count();
            if new > 0 && read.len() == 32 {
                self.blocks.retain(|&other| other / 16 != block / 16);
            }
        }
    }
}

/// Each of `threads` reads every so many-th slice, 128 KiB in its turn.
fn in_turns(threads: u64, slice: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
    let rounds = size.div_ceil(threads * slice);
    let steps = slice.div_ceil(131_072);
    (0..rounds).flat_map(move |round| {
        (0..steps).flat_map(move |step| {
            (0..threads).filter_map(move |thread| {
                let end = (round * threads + thread + 1) * slice;
                let start = end - slice + step * 131_072;
                (start < size).then_some(start..(start + 131_072).min(end).min(size))
            })
        })
    })
}

#[tokio::test(start_paused = true)]
async fn threads_that_read_slices_in_turns_are_fetched_ahead_and_once() {
    let size = 512 * MIB;
    for threads in [2, 3, 8, 64] {
        for slice in [MIB / 16, MIB / 4, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB] {
            let (readers, mut fetched, mut reads) = (readers(), Fetched::default(), 0);
            for want in in_turns(threads, slice, size) {
                fetched.read(&readers, size, want);
                reads += 1;
            }
            let Fetched { bytes, waits, .. } = fetched;
            assert!(50 * bytes <= 51 * size, "{threads} threads, slices of {slice}: {bytes}");
            assert!(waits <= 20 * threads, "{threads} threads, {slice}: {waits} of {reads}");
        }
    }
}

/// The same, with the threads in any order, and some that come far less often than others.
fn in_any_order(threads: u64, slice: u64, size: u64) -> Vec<Range<u64>> {
    let mut left: Vec<VecDeque<Range<u64>>> = (0..threads)
        .map(|thread| {
            let slices = (thread..size.div_ceil(slice)).step_by(usize::try_from(threads).unwrap());
            let reads = slices.flat_map(|number| {
                let (start, end) = (number * slice, ((number + 1) * slice).min(size));
                (start..end).step_by(131_072).map(move |at| at..(at + 131_072).min(end))
            });
            reads.collect()
        })
        .collect();
    let (mut reads, mut state) = (Vec::new(), 1_u64);
    while !left.is_empty() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let number = usize::try_from((state >> 33) % left.len() as u64).unwrap();
        match left[number].pop_front() {
            Some(read) => reads.push(read),
            None => drop(left.swap_remove(number)),
        }
    }
    reads
}

#[tokio::test(start_paused = true)]
async fn the_order_in_which_threads_come_costs_little() {
    let size = 512 * MIB;
    for threads in [2, 8, 64] {
        for slice in [MIB / 4, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB] {
            let (readers, mut fetched) = (readers(), Fetched::default());
            let reads = in_any_order(threads, slice, size);
            let count = reads.len() as u64;
            for want in reads {
                fetched.read(&readers, size, want);
            }
            let Fetched { bytes, waits, .. } = fetched;
            assert!(10 * waits <= count, "{threads} threads, {slice}: {waits} of {count}");
            assert!(50 * bytes <= 51 * size, "{threads} threads, {slice}: {bytes}");
        }
    }
}

/// Tensors of 8 MiB in an order that has nothing to do with the file's, each read from its
/// beginning to its end: the kernel asks for 1 MiB at a time, which begins where the last one
/// ended.
fn tensors(order: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    order.into_iter().flat_map(|tensor| {
        let start = 6002 + tensor * 8 * MIB;
        (0..8).map(move |part| start + part * MIB..start + (part + 1) * MIB)
    })
}

/// Every one of 64 tensors once.
fn layers() -> impl Iterator<Item = u64> {
    (0..64).map(|layer| layer * 37 % 64)
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_fetched_whole_and_once_when_it_is_read_in_three_places() {
    let size = 6002 + 64 * 8 * MIB;
    let mut waits = Vec::new();
    for is_checkpoint in [true, false] {
        let (readers, mut fetched) = (readers(), Fetched { is_checkpoint, ..Fetched::default() });
        fetched.read(&readers, size, 0..16_384);
        for want in tensors(layers()) {
            fetched.read(&readers, size, want);
        }
        assert!(50 * fetched.bytes <= 51 * size, "{is_checkpoint}: {}", fetched.bytes);
        waits.push(fetched.waits);
    }
    assert!(waits[0] <= 12 && waits[1] >= 32, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn its_header_and_one_or_two_tensors_cost_what_they_would_of_another_file() {
    let size = 6002 + 64 * 8 * MIB;
    for order in [vec![], vec![40], vec![40, 3]] {
        let bytes = [true, false].map(|is_checkpoint| {
            let (readers, mut fetched) =
                (readers(), Fetched { is_checkpoint, ..Fetched::default() });
            fetched.read(&readers, size, 0..16_384);
            for want in tensors(order.iter().copied()) {
                fetched.read(&readers, size, want);
            }
            fetched.bytes
        });
        assert_eq!(bytes[0], bytes[1], "{order:?}");
    }
}

/// A checkpoint of 64 tensors of 8 MiB that tells where they are, and its size.
fn with_tensors() -> (Fetched, u64) {
    with_named_tensors(0..64)
}

/// The same, with names in the order of the file.
fn with_named_tensors(names: impl IntoIterator<Item = u64>) -> (Fetched, u64) {
    let offsets = |number: u64| (number * 8 * MIB, (number + 1) * 8 * MIB);
    let entries: Vec<_> = (0..64)
        .zip(names)
        .map(|(number, name)| format!(r#""h.{name}":{{"data_offsets":{:?}}}"#, offsets(number)))
        .collect();
    let json = format!("{{{}}}", entries.join(",")).replace('(', "[").replace(')', "]");
    let header = [&5994_u64.to_le_bytes(), format!("{json:5994}").as_bytes()].concat();
    let size = header.len() as u64 + 64 * 8 * MIB;
    let tensors = Some(Tensors::of_header(&header, size).unwrap());
    (Fetched { tensors, ..Fetched::default() }, size)
}

#[tokio::test(start_paused = true)]
async fn one_tensor_costs_its_own_bytes_and_the_second_one_all() {
    for one in [0, 40, 63] {
        let (mut fetched, size) = with_tensors();
        let readers = readers();
        // The kernel's readahead of a mapped header.
        fetched.read(&readers, size, 0..MIB);
        let header = fetched.bytes;
        assert!(header <= 5 * MIB, "{header}");
        // Two threads, and what the kernel reads around the first page and beyond the last one. The
        // tensor before ends in that page.
        let start = (6002 + one * 8 * MIB) / 4096 * 4096;
        for place in [start, start + 4 * MIB] {
            fetched.read(&readers, size, place.saturating_sub(MIB / 2)..place + MIB / 2);
            for at in (place + MIB / 2..place + 4 * MIB).step_by(1 << 19) {
                fetched.read(&readers, size, at..at + MIB / 2);
            }
        }
        let beyond = start + 8 * MIB..(start + 10 * MIB).min(size);
        if !beyond.is_empty() {
            fetched.read(&readers, size, beyond);
        }
        let cost = fetched.bytes - header;
        // And parts of blocks at its ends, more than once.
        assert!(cost <= 23 * MIB / 2, "tensor {one}: {cost}");
        // The kernel reads around a fault in the last page; a copy may go backwards.
        let last = (start + 8 * MIB).min(size);
        fetched.read(&readers, size, last - MIB / 2..(last + MIB / 2).min(size));
        let again = cost + MIB + 131_072;
        assert!(fetched.bytes - header <= again, "tensor {one}: {}", fetched.bytes - header);
        let other = 6002 + 20 * 8 * MIB;
        fetched.read(&readers, size, other..other + MIB);
        assert!(fetched.bytes - header >= cost + 24 * MIB, "{}", fetched.bytes - header - cost);
    }
}

/// As large copies do it: the kernel reads around the last page first, and then what is before.
#[tokio::test(start_paused = true)]
async fn one_tensor_that_is_read_backwards_costs_its_own_bytes() {
    for one in [20, 40, 63] {
        let (mut fetched, size) = with_tensors();
        let readers = readers();
        fetched.read(&readers, size, 0..MIB);
        let header = fetched.bytes;
        let (start, end) = (6002 + one * 8 * MIB, 6002 + (one + 1) * 8 * MIB);
        fetched.read(&readers, size, end - MIB / 2..(end + MIB / 2).min(size));
        for part in (0..15).rev() {
            fetched.read(&readers, size, start + part * MIB / 2..start + (part + 1) * MIB / 2);
        }
        // The kernel has read beyond it, and two reads are no pattern yet.
        let cost = fetched.bytes - header;
        assert!(cost <= 11 * MIB, "tensor {one}: {cost}");
        assert!(fetched.waits <= 8, "{}", fetched.waits);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tensor_is_fetched_whole_at_its_first_read_if_the_checkpoint_is() {
    let (mut fetched, size) = with_tensors();
    let readers = readers();
    fetched.read(&readers, size, 0..16_384);
    // The last one, which the front reaches last.
    for want in tensors([40, 63]) {
        fetched.read(&readers, size, want);
    }
    assert!(fetched.waits <= 11, "the header, 8 of the first tensor, 2: {}", fetched.waits);
    for want in tensors(layers().filter(|layer| ![40, 63].contains(layer))) {
        fetched.read(&readers, size, want);
    }
    assert!(50 * fetched.bytes <= 51 * size, "{}", fetched.bytes);
}

/// What the kernel asks for when a program copies tensors of 8 MiB of a mapped file: around the
/// first page and the last one, what lies between them, and on beyond the end; nothing twice.
fn copied(order: impl IntoIterator<Item = u64>, size: u64) -> Vec<Range<u64>> {
    const PAGE: u64 = 4096;
    let (mut here, mut asked) = (BTreeSet::new(), Vec::new());
    let mut ask = |range: Range<u64>| {
        let pages = range.start / PAGE..range.end.min(size).div_ceil(PAGE);
        let missing = pages.skip_while(|page| here.contains(page));
        let missing: Vec<_> = missing.take_while(|page| !here.contains(page)).collect();
        here.extend(missing.iter().copied());
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            asked.push(first * PAGE..((last + 1) * PAGE).min(size));
        }
    };
    for tensor in order {
        let start = 6002 + tensor * 8 * MIB;
        let end = start + 8 * MIB;
        for page in [start, end - 1] {
            ask(page.saturating_sub(MIB / 2)..page + MIB / 2);
        }
        for at in (start..end).step_by(1 << 20) {
            ask(at..at + MIB);
        }
        ask(end + MIB / 2..end + 3 * MIB / 2);
    }
    asked
}

/// With the names of [`layers`].
fn with_layers() -> (Fetched, u64) {
    let mut names = [0; 64];
    for (name, at) in (0..).zip(layers()) {
        names[usize::try_from(at).unwrap()] = name;
    }
    with_named_tensors(names)
}

const SLOW: NetworkPace = NetworkPace { part_bytes: 2 * MIB, in_flight_bytes: 16 * MIB };

impl Fetched {
    /// A program copies the tensors in the order of the layers, over a slow network. Returns the
    /// most bytes that were ahead of it.
    fn copy_layers(&mut self, size: u64) -> u64 {
        let (readers, mut most) = (readers(), 0);
        self.pace = Some(SLOW);
        self.read(&readers, size, 0..16_384);
        for want in copied(layers(), size) {
            self.read(&readers, size, want);
            most = most.max(self.unread_bytes());
        }
        most
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_asks_for_around_tensors_is_there_and_little_else() {
    let (mut fetched, size) = with_layers();
    let most = fetched.copy_layers(size);
    assert!(fetched.waits <= 8, "the header and two tensors: {}", fetched.waits);
    assert!(50 * fetched.bytes <= 51 * size, "{}", fetched.bytes);
    // And what lies around each tensor.
    assert!(most <= 7 * SLOW.in_flight_bytes, "{most}");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_read_in_another_order_is_fetched_as_far_ahead_as_may_be() {
    let (mut fetched, size) = with_tensors();
    let most = fetched.copy_layers(size);
    assert!(50 * fetched.bytes <= 51 * size, "{}", fetched.bytes);
    assert!(most >= 12 * SLOW.in_flight_bytes, "{most}");
}

#[tokio::test(start_paused = true)]
async fn a_tensor_is_fetched_whole_when_its_both_ends_were_read() {
    let (mut fetched, size) = with_tensors();
    let readers = readers();
    fetched.read(&readers, size, 0..16_384);
    let reads = copied([40], size);
    for want in &reads[..2] {
        fetched.read(&readers, size, want.clone());
    }
    let (cost, waits) = (fetched.bytes, fetched.waits);
    assert!((9 * MIB..12 * MIB).contains(&cost), "{cost}");
    let (last, inside) = reads[2..].split_last().unwrap();
    for want in inside {
        fetched.read(&readers, size, want.clone());
    }
    assert_eq!((fetched.bytes, fetched.waits), (cost, waits));
    fetched.read(&readers, size, last.clone());
    assert!(fetched.bytes <= cost + MIB + 131_072, "what the kernel reads: {}", fetched.bytes);
}

#[tokio::test(start_paused = true)]
async fn tensors_are_fetched_in_the_order_of_their_names() {
    // Twice as fast as the program.
    let pace = NetworkPace { part_bytes: MIB, in_flight_bytes: 2 * MIB };
    let waits = [with_layers(), with_tensors()].map(|(mut fetched, size)| {
        let readers = readers();
        fetched.pace = Some(pace);
        fetched.read(&readers, size, 0..16_384);
        for want in tensors(layers()) {
            fetched.read(&readers, size, want);
        }
        assert!(50 * fetched.bytes <= 51 * size, "{}", fetched.bytes);
        fetched.waits
    });
    assert!(waits[0] <= 12 && waits[1] >= 3 * waits[0], "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_reads_on_through_tensors_is_a_stream() {
    let (mut fetched, size) = with_tensors();
    let readers = readers();
    for start in (0..size).step_by(1 << 19) {
        fetched.read(&readers, size, start..(start + MIB / 2).min(size));
    }
    assert!(fetched.waits <= 8, "{}", fetched.waits);
    assert_eq!(fetched.bytes, size.next_multiple_of(131_072));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_reads_on_through_tensors_has_them_fetched_in_the_order_of_the_file() {
    let (mut fetched, size) = with_layers();
    fetched.pace = Some(SLOW);
    let readers = readers();
    for start in (0..size).step_by(1 << 19) {
        fetched.read(&readers, size, start..(start + MIB / 2).min(size));
        let front = readers.front(2, size, SLOW, Use::default());
        for (_, range) in front.into_iter().flat_map(|front| front.ahead) {
            let is_near = range.start < start + 128 * MIB;
            assert!(start < 48 * MIB || is_near, "{range:?} at {start}");
        }
    }
    assert!(fetched.waits <= 8, "{}", fetched.waits);
    assert_eq!(fetched.bytes, size.next_multiple_of(131_072));
}

#[tokio::test(start_paused = true)]
async fn the_next_checkpoint_is_fetched_when_half_of_this_one_was_read() {
    let (readers, size) = (readers(), 6002 + 64 * 8 * MIB);
    let (mut read, mut ended_at) = (0, None);
    for want in tensors(layers()) {
        read += want.end - want.start;
        if let Judged::NotYet { places: 3.., .. } = readers.plan(2, size, want, PACE).judged {
            readers.read_whole(2, true);
        }
        if readers.front(2, size, PACE, Use::default()).is_some_and(|front| front.ends) {
            ended_at.get_or_insert(read);
        }
    }
    let ended_at = ended_at.expect("all of it was read");
    assert!((size / 2..size / 2 + 2 * MIB).contains(&ended_at), "{ended_at}");
    readers.read_next(3, size);
    let used = Use { awaited_bytes: 100 * MIB, unread_bytes: 0 };
    let front = readers.front(3, size, PACE, used).unwrap();
    assert_eq!(
        front,
        WholeAhead { ahead: vec![(0, 0..24 * MIB)], ends: false },
        "what may be in flight"
    );
    readers.front_fell_short(3, 8 * MIB);
    let used = Use { awaited_bytes: 0, unread_bytes: 500 * MIB };
    let front = readers.front(3, size, PACE, used).unwrap();
    assert_eq!(front.ahead, vec![(8 * MIB, 8 * MIB..16 * MIB)], "what may be unread");
    assert_eq!(readers.front(4, size, PACE, Use::default()), None);
}

/// The kernel reads 1 MiB around the first fault of each tensor.
fn touches(step: u64) -> impl Iterator<Item = Range<u64>> {
    (0..64).map(move |number| {
        let fault: u64 = number * step;
        let start = fault.saturating_sub(MIB / 2);
        start..start + MIB
    })
}

#[tokio::test(start_paused = true)]
async fn touches_in_equal_steps_wait_a_few_times() {
    for step in [1, 2, 3, 4, 5, 8, 16, 64] {
        let (readers, mut fetched) = (readers(), Fetched::default());
        for want in touches(step * MIB) {
            fetched.read(&readers, 64 * 64 * MIB, want);
        }
        // Those that are near to each other are a stream until their steps are known.
        let most = if step < 8 { 6 } else { 4 };
        assert!(fetched.waits <= most, "{step} MiB: {} waits", fetched.waits);
        assert!(fetched.bytes <= 200 * MIB, "{step} MiB: {}", fetched.bytes);
    }
}

/// The kernel reads around a page, but not before the beginning: so the first distance is shorter
/// by half of what it reads, or by nothing if the program has read by itself.
#[tokio::test(start_paused = true)]
async fn a_first_touch_that_was_cut_is_as_far_as_the_others() {
    let half = MIB / 2;
    for (first, expected) in
        [(15 * half, true), (16 * half, true), (13 * half, false), (17 * half, false)]
    {
        let readers = readers();
        let starts = [0, first, first + 8 * MIB, first + 16 * MIB];
        let plans = starts.map(|start| plan(&readers, 2, start..start + MIB));
        assert!(plans[1..3].iter().all(|plan| plan.ahead.is_empty()), "{first}");
        let next = first + 24 * MIB..first + 25 * MIB;
        assert_eq!(plans[3].ahead.first() == Some(&next), expected, "{first}");
    }
}

/// What is asked for comes a first byte later, in which a program touches some 30 pages.
#[tokio::test(start_paused = true)]
async fn touches_are_asked_for_long_before_they_come_and_the_further_the_longer_they_go_on() {
    let size = 4 * SIZE;
    for step in [8, 64] {
        let (readers, mut asked) = (readers(), 0);
        for (number, want) in (0..).zip(touches(step * MIB)) {
            let ahead = readers.plan(2, size, want, PACE).ahead;
            asked = ahead.last().map_or(asked, |last| last.end.div_ceil(step * MIB) - 1).max(asked);
            let expected = match number {
                0..3 => 0..1,
                3..8 => 24..49,
                _ => 36..49,
            };
            let come = asked.saturating_sub(number);
            let is_all = asked == size / (step * MIB) - 1;
            assert!(expected.contains(&come) || is_all, "{step} MiB, {number}: {come}");
        }
    }
}

/// With `POSIX_FADV_SEQUENTIAL` the kernel reads 2 MiB, in two requests that overtake each other.
#[tokio::test(start_paused = true)]
async fn touches_in_two_requests_wait_a_few_times_in_whatever_order_they_come() {
    let (readers, mut fetched) = (readers(), Fetched::default());
    for number in 0..64_u64 {
        let start = (number * 8 * MIB).saturating_sub(MIB);
        let mut requests = [start..start + MIB, start + MIB..start + 2 * MIB];
        if number % 3 == 1 {
            requests.reverse();
        }
        for want in requests {
            fetched.read(&readers, 512 * MIB, want);
        }
    }
    assert!(fetched.waits <= 16, "{} waits", fetched.waits);
    assert!(fetched.bytes <= 272 * MIB, "{}", fetched.bytes / MIB);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_touched_is_a_stream_as_soon_as_it_is_read_through() {
    for step in [4, 8] {
        let (readers, mut fetched) = (readers(), Fetched::default());
        let size = 64 * step * MIB;
        for want in touches(step * MIB) {
            fetched.read(&readers, size, want);
        }
        let waited = fetched.waits;
        let cached: Vec<_> = touches(step * MIB).collect();
        for start in (0..size).step_by(1 << 17) {
            // The page cache holds what was touched.
            if !cached.iter().any(|range| range.contains(&start)) {
                fetched.read(&readers, size, start..start + 131_072);
            }
        }
        assert!(fetched.waits - waited <= 4, "{step} MiB: {} waits", fetched.waits - waited);
        assert_eq!(fetched.bytes, size);
    }
}

#[tokio::test(start_paused = true)]
async fn columns_that_are_read_in_turns_are_fetched_ahead_without_what_lies_between() {
    let (readers, mut fetched, group) = (readers(), Fetched::default(), 24 * MIB);
    for row in 0..40 {
        for column in [1, 7, 10] {
            let start = row * group + column * 2 * MIB;
            fetched.read(&readers, SIZE, start..start + 131_072);
        }
    }
    assert!(fetched.waits <= 12, "{}", fetched.waits);
    assert!(fetched.bytes <= 200 * 131_072, "{}", fetched.bytes);
}

#[tokio::test(start_paused = true)]
async fn runs_as_long_as_those_before_are_fetched_whole_at_their_first_read() {
    let (readers, mut fetched) = (readers(), Fetched::default());
    let tensor = 6 * MIB;
    for number in 0..60_u64 {
        let begins = number * 37 % 60 * 2 * tensor + 100 * MIB;
        for start in (begins..begins + tensor).step_by(131_072) {
            fetched.read(&readers, SIZE, start..start + 131_072);
        }
    }
    assert!(fetched.waits < 120, "{}", fetched.waits);
    assert!(fetched.bytes < 60 * tensor * 16 / 10, "{}", fetched.bytes / MIB);
}

/// Eight threads with slices of 4 MiB, mapped: the kernel reads half a MiB before the first page of
/// a slice, too. What the streams of earlier rounds leave behind takes no part of the window.
#[tokio::test(start_paused = true)]
async fn streams_that_have_come_to_where_others_read_take_no_share() {
    let (readers, size, half) = (readers(), 512 * MIB, MIB / 2);
    let pace = NetworkPace { part_bytes: 2 * MIB, in_flight_bytes: 64 * MIB };
    let blocks = |range: &Range<u64>| range.start / 131_072..range.end.div_ceil(131_072);
    let (mut asked, mut waits) = (BTreeSet::new(), 0);
    for (round, step) in (0..16).flat_map(|round| (0..4).map(move |step| (round, step))) {
        for thread in 0..8 {
            let middle = (4 * (8 * round + thread) + step) * MIB;
            let want = middle.saturating_sub(half)..middle + half;
            waits += u64::from(!blocks(&want).all(|block| asked.contains(&block)));
            let plan = readers.plan(2, size, want, pace);
            for range in std::iter::once(plan.now).chain(plan.ahead) {
                asked.extend(blocks(&range));
            }
        }
    }
    assert!(waits <= 8, "{waits}");
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
        let window_bytes = part_bytes * 4;
        let unit_bytes = part_blocks % 2 * 2 * MIB;
        let small_bytes = part_bytes.min(4 * MIB);
        let (chunk_bytes, ahead_bytes) = (part_bytes, budget);
        let limits = StreamLimits {
            block_bytes,
            small_bytes,
            unit_bytes,
            window_bytes,
            ahead_bytes,
            chunk_bytes,
        };
        let pace = NetworkPace { part_bytes, in_flight_bytes: part_bytes };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _context = runtime.enter();
        let readers = Streams::new(limits);
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
            let mut pieces = vec![plan.now_piece_bytes];
            for range in plan.ahead {
                let mut cut = range.start;
                for (part, piece) in plan.pieces.cut(range.clone()) {
                    proptest::prop_assert!(part.start == cut && part.end > cut);
                    cut = part.end;
                    pieces.push(piece);
                }
                proptest::prop_assert_eq!(cut, range.end);
            }
            for piece in pieces {
                proptest::prop_assert!(piece > 0 && piece <= part_bytes);
                proptest::prop_assert!(piece % block_bytes == 0);
            }
        }
    }
}
