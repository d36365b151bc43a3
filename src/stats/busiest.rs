//! A table of fixed size of the numbers, of files or threads, that take most bytes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Places in a table. `top` shows 30 at most.
const PLACES: usize = 256;

/// Each number has one possible place, and loses it when others that have the same place outweigh
/// it. So a number with a good part of all bytes is in the table, with all bytes since it took its
/// place, and a rare one may be missing.
#[derive(Debug)]
pub struct Busiest(Box<[Weighed]>);

#[derive(Debug, Default)]
struct Weighed {
    /// 0 is an empty place.
    id: AtomicU64,
    /// Bytes since `id` has the place.
    bytes: AtomicU64,
    /// The same, less the bytes of others that have the same place.
    weight: AtomicU64,
}

impl Default for Busiest {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Weighed::default()).collect())
    }
}

impl Busiest {
    /// Without a lock, two threads that change one place at the same time may spoil it a little.
    pub fn add(&self, id: u64, bytes: u64) {
        // 2^64 ÷ the golden ratio: neighbours get places far apart.
        let hash = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let place = &self.0[usize::try_from(hash).unwrap_or_default() % PLACES];
        let weight = place.weight.load(Relaxed);
        if place.id.load(Relaxed) == id {
            place.bytes.fetch_add(bytes, Relaxed);
            place.weight.store(weight.saturating_add(bytes), Relaxed);
        } else if weight > bytes {
            place.weight.store(weight - bytes, Relaxed);
        } else {
            place.id.store(id, Relaxed);
            place.bytes.store(bytes, Relaxed);
            place.weight.store(bytes, Relaxed);
        }
    }

    /// The numbers in the table and their bytes, the most first.
    pub fn sorted(&self) -> Vec<(u64, u64)> {
        let taken = |place: &Weighed| (place.id.load(Relaxed), place.bytes.load(Relaxed));
        let mut all: Vec<_> = self.0.iter().map(taken).filter(|&(id, _)| id != 0).collect();
        all.sort_unstable_by_key(|&(id, bytes)| (std::cmp::Reverse(bytes), id));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_most_is_found_among_ten_thousand() {
        let busiest = Busiest::default();
        for round in 0..100 {
            busiest.add(7, 1 << 20);
            for other in 0..100 {
                busiest.add(1000 + round * 100 + other, 1000);
            }
        }
        let sorted = busiest.sorted();
        assert_eq!(sorted[0], (7, 100 << 20));
        assert!(sorted.len() <= PLACES);
    }

    #[test]
    fn who_was_busy_long_ago_loses_the_place_to_who_is_now() {
        let busiest = Busiest::default();
        busiest.add(1, 1000);
        let place = |id: u64| id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 255;
        let rival = (2..100_000).find(|&id| place(id) == place(1)).unwrap();
        for _ in 0..10 {
            busiest.add(rival, 200);
        }
        assert_eq!(busiest.sorted()[0].0, rival);
    }
}
