//! Slots over a few granules, against a model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn charge(slots: &mut Slots, bytes: Range<u64>) -> Result<Charged, Full> {
    slots.charge(&[bytes])
}

fn charged(fresh: bool) -> Charged {
    Charged { fresh, release: vec![] }
}

fn slots() -> Slots {
    Slots::new(16, 4, 4, 8, 64, 64 * SPREAD)
}

#[test]
fn a_slot_given_back_is_the_next_one_taken() {
    let mut slots = slots();
    let (first, second) = (slots.take(16).unwrap(), slots.take(13).unwrap());
    assert!(first.offset.abs_diff(second.offset) >= 16);
    slots.give(&first);
    assert_eq!(slots.take(9).unwrap(), first);
}

#[test]
fn slots_of_all_classes_are_disjoint_and_end() {
    let mut slots = slots();
    let mut taken = BTreeSet::new();
    for (len, size) in [(1, 4), (5, 8), (16, 16)] {
        while let Ok(slot) = slots.take(len) {
            assert!(slot.offset + size <= slots.address_bytes());
            assert!((slot.offset..slot.offset + size).all(|byte| taken.insert(byte)));
        }
    }
    let between = slots.address_bytes() - taken.len() as u64;
    assert!(between < 8, "only to begin at a multiple of 8: {between}");
}

#[test]
fn warm_memory_costs_nothing_and_cold_memory_is_paid_by_idle_memory() {
    let mut slots = slots();
    let (a, b) = (slots.take(16).unwrap(), slots.take(16).unwrap());
    assert_eq!(charge(&mut slots, a.offset..a.offset + 16), Ok(charged(true)));
    slots.discharge(&(a.offset..a.offset + 16));
    assert_eq!(charge(&mut slots, a.offset..a.offset + 8), Ok(charged(false)));
    assert_eq!((slots.usage().used, slots.usage().available(), slots.usage().idle), (8, 56, 8));
    // 8 used and 8 idle of 64: 48 more fit beside the idle ones.
    for at in [b.offset, b.offset + 16, b.offset + 32] {
        assert_eq!(charge(&mut slots, at..at + 16), Ok(charged(true)));
    }
    let found = charge(&mut slots, b.offset + 48..b.offset + 52).unwrap();
    let huge = a.offset + 8..a.offset + 16;
    assert_eq!(found.release.first(), Some(&huge), "huge pages of 8 go whole");
    assert_eq!(charge(&mut slots, b.offset + 64..b.offset + 80), Err(Full));
}

#[test]
fn chunks_that_fill_half_of_their_slots_fill_the_budget() {
    let mut slots = Slots::new(16, 16, 1, 16, 90, 90 * SPREAD);
    for _ in 0..10 {
        let slot = slots.take(9).unwrap();
        charge(&mut slots, slot.offset..slot.offset + 9).unwrap();
    }
    assert_eq!(slots.usage().available(), 0);
}

#[test]
fn memory_is_surplus_once_it_was_idle_all_the_time() {
    let mut slots = slots();
    let (a, b) = (slots.take(16).unwrap(), slots.take(4).unwrap());
    for slot in [&a, &b] {
        charge(&mut slots, slot.offset..slot.offset + 4).unwrap();
    }
    slots.discharge(&(a.offset..a.offset + 4));
    assert_eq!(slots.take_surplus(), [], "it was in use");
    charge(&mut slots, a.offset..a.offset + 4).unwrap();
    slots.discharge(&(a.offset..a.offset + 4));
    assert_eq!(slots.take_surplus(), [], "it was needed again");
    assert_eq!(slots.take_surplus().first(), Some(&(a.offset..a.offset + 4)));
    assert_eq!((slots.usage().used, slots.usage().idle), (4, 0));
    assert!(charge(&mut slots, a.offset..a.offset + 4).unwrap().fresh);
}

proptest! {
    /// Against a set of granules: what is used and idle is exact, and within the budget.
    #[test]
    fn resident_memory_never_exceeds_the_budget(
        steps in prop::collection::vec((0_u64..24, 1_u64..6), 1..60)
    ) {
        let mut slots = Slots::new(64, 4, 4, 4, 48, 48 * SPREAD);
        let (mut used, mut resident) = (BTreeSet::new(), BTreeSet::new());
        for (start, len) in steps {
            let granules = start..start + len;
            let bytes = start * 4..(start + len) * 4;
            if granules.clone().all(|granule| used.contains(&granule)) {
                slots.discharge(&bytes);
                for granule in granules {
                    used.remove(&granule);
                }
            } else if !granules.clone().any(|granule| used.contains(&granule)) {
                let fits = (used.len() as u64 + len) * 4 <= 48;
                let charged = charge(&mut slots, bytes.clone());
                prop_assert_eq!(charged.is_ok(), fits);
                let Ok(charged) = charged else { continue };
                let warm = granules.clone().all(|granule| resident.contains(&granule));
                prop_assert_eq!(charged.fresh, !warm);
                for range in charged.release {
                    for granule in range.start / 4..range.end / 4 {
                        prop_assert!(!used.contains(&granule) && resident.remove(&granule));
                    }
                }
                used.extend(granules.clone());
                resident.extend(granules);
            }
            prop_assert!(resident.len() * 4 <= 48);
            prop_assert_eq!(slots.usage().used, used.len() as u64 * 4);
            prop_assert_eq!(slots.idle.bytes, (resident.len() - used.len()) as u64 * 4);
        }
    }
}

#[test]
fn the_least_address_space_holds_every_size_and_is_some_budgets() {
    const BUDGET: u64 = 4 << 30;
    for chunk in [4 << 20, 128 << 20] {
        let new = |class_bytes| Slots::new(chunk, 128 << 10, 4096, 2 << 20, BUDGET, class_bytes);
        assert!(new(BUDGET * SPREAD).address_bytes() > 30 * BUDGET);
        let mut least = new(BUDGET / LEAST_SPREAD);
        assert!(least.address_bytes() < 3 * BUDGET, "{}", least.address_bytes());
        for size in [1, 100_000, chunk] {
            for _ in 0..4 {
                least.take(size).unwrap();
            }
        }
    }
}
