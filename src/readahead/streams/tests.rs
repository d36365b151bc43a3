//! Programs that read objects in every way: what is fetched for them, and ahead of them.

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;

fn readers() -> Streams {
    Streams::new(StreamLimits {
        block_bytes: 131_072,
        window_bytes: 128 * MIB,
        ahead_bytes: 512 * MIB,
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
    let small_parts = NetworkPace { part_bytes: 262_144, ..PACE };
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
    let fast = NetworkPace { in_flight_bytes: 200 * MIB, ..PACE };
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
        let window_bytes = part_bytes * 4;
        let limits = StreamLimits { block_bytes, window_bytes, ahead_bytes: budget };
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
            for piece in [plan.now_piece_bytes, plan.ahead_piece_bytes] {
                proptest::prop_assert!(piece > 0 && piece <= part_bytes);
                proptest::prop_assert!(piece % block_bytes == 0);
            }
        }
    }
}
