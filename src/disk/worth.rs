//! Which bytes are worth a write when the cache is full. Pure.
//!
//! Data that is read again and again in the same order, and is larger than the cache, would
//! displace each of its bytes just before it is read again: no hit at all. So a part of it is kept,
//! as much as fits, and the rest is passed over. The part is chosen by a hash of the name: every
//! process chooses the same, in every epoch, and a change of the size changes little.
//!
//! How large the part should be is learnt from what was given up or passed over and is missed now:
//! the index remembers it, and how much was read meanwhile. That is the size of what is read again.

use super::format::{UNIT_BYTES, place};

/// Decided alike, so that one request does not fetch pieces of it: a chunk of memory.
const UNITS_TOGETHER: u32 = 4;
/// Of the cache: what does not fit because segments are given up whole, and what else is read.
const SHARE: f64 = 0.8;
/// An old guess counts for a third when this share of the cache was missed again.
const FORGOTTEN_WITHIN: f64 = 1.0 / 32.0;

/// Learns from what this process misses.
#[derive(Debug)]
pub(super) struct Worth {
    /// Of all bytes, those with the smallest hashes.
    part: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    PassOver,
    Keep,
    /// It came back soon enough to be kept until then: as if it had been read from the disk.
    KeepAsRead,
}

impl Worth {
    pub(super) fn new() -> Self {
        Self { part: 1.0 }
    }

    /// `away_bytes`: what was read since these bytes were stored or passed over, if that is known.
    /// `cache_bytes`: what the cache holds, which is full.
    pub(super) fn judge(
        &mut self,
        (name, unit): (&[u8; 16], u32),
        bytes: u64,
        away_bytes: Option<u64>,
        cache_bytes: u64,
    ) -> Fate {
        let cache = as_f64(cache_bytes.max(UNIT_BYTES));
        if let Some(away) = away_bytes {
            let fits = (SHARE * cache / as_f64(away.max(1))).min(1.0);
            let weight = (as_f64(bytes) / (FORGOTTEN_WITHIN * cache)).min(1.0);
            self.part += weight * (fits - self.part);
        }
        if away_bytes.is_some_and(|away| away <= cache_bytes) {
            Fate::KeepAsRead
        } else if hash(name, unit) < self.part {
            Fate::Keep
        } else {
            Fate::PassOver
        }
    }
}

/// Between 0 and 1.
fn hash(name: &[u8; 16], unit: u32) -> f64 {
    let group = u64::from(unit / UNITS_TOGETHER);
    // As splitmix64 ends: each bit of the sum reaches all others.
    let mut mixed = place(name).wrapping_add(group.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    as_f64((mixed ^ (mixed >> 31)) >> 11) / as_f64(1 << 53)
}

/// Exact up to 2^53, far above any size here.
#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use super::*;

    const UNITS: u64 = 4000;

    /// A cache of [`UNITS`] units, which gives up those that were not read again first, oldest
    /// first: as segments of one unit are.
    struct Model {
        worth: Worth,
        stored: BTreeMap<u64, u32>,
        places: HashMap<u32, u64>,
        read: HashSet<u64>,
        remembered: HashMap<u32, u64>,
        hand: u64,
        clock: u64,
        admits_all: bool,
    }

    impl Model {
        fn new(admits_all: bool) -> Self {
            let (stored, places, read, remembered) = Default::default();
            let worth = Worth::new();
            Self { worth, stored, places, read, remembered, hand: 0, clock: 0, admits_all }
        }

        /// Share of hits, and of writes.
        fn epoch(&mut self, units: impl Iterator<Item = u32>) -> (f64, f64) {
            let (mut all, mut hits, mut written) = (0_u32, 0_u32, 0_u32);
            for unit in units {
                (all, self.clock) = (all + 1, self.clock + 1);
                if let Some(&at) = self.places.get(&unit) {
                    hits += 1;
                    self.read.insert(at);
                } else {
                    written += u32::from(self.miss(unit));
                }
            }
            (f64::from(hits) / f64::from(all), f64::from(written) / f64::from(all))
        }

        fn miss(&mut self, unit: u32) -> bool {
            let away = self.remembered.get(&unit).map(|then| (self.clock - then) * UNIT_BYTES);
            let mut fate = Fate::Keep;
            if self.places.len() as u64 >= UNITS {
                let mut name = [0; 16];
                name[..4].copy_from_slice(&unit.to_le_bytes());
                let cache = UNITS * UNIT_BYTES;
                fate = self.worth.judge((&name, 0), UNIT_BYTES, away, cache);
                if self.admits_all {
                    fate = Fate::Keep;
                }
                if fate == Fate::PassOver {
                    self.remembered.insert(unit, self.clock);
                    return false;
                }
                self.give_up();
            }
            self.stored.insert(self.clock, unit);
            self.places.insert(unit, self.clock);
            if fate == Fate::KeepAsRead {
                self.read.insert(self.clock);
            }
            true
        }

        fn give_up(&mut self) {
            loop {
                let next = self.stored.range(self.hand + 1..).next();
                let (&at, &unit) = next.or(self.stored.iter().next()).unwrap();
                self.hand = at;
                if !self.read.remove(&at) {
                    self.stored.remove(&at);
                    self.places.remove(&unit);
                    self.remembered.insert(unit, at);
                    return;
                }
            }
        }
    }

    #[test]
    fn of_a_scan_that_is_larger_than_the_cache_as_much_hits_as_fits() {
        for (quarters, least) in [(5, 0.6), (8, 0.38), (16, 0.19), (40, 0.07)] {
            let scan = || 0..u32::try_from(quarters * UNITS / 4).unwrap();
            let [mut all, mut part] = [Model::new(true), Model::new(false)];
            for epoch in 0..6 {
                assert!(all.epoch(scan()).0 < 0.01, "each is given up just before it is read");
                let (hits, written) = part.epoch(scan());
                assert!(epoch < 2 || hits >= least, "{quarters} epoch {epoch}: {hits}");
                assert!(epoch < 5 || written < 0.05, "{quarters}: {written}");
            }
        }
    }

    #[test]
    fn what_fits_is_kept_whole_soon_after_something_larger() {
        let units = |from: u32, count: u64| from..from + u32::try_from(count).unwrap();
        for before in [UNITS / 5 * 4, 2 * UNITS, 8 * UNITS] {
            for after in [UNITS / 2, UNITS / 5 * 4] {
                let mut model = Model::new(false);
                for _ in 0..4 {
                    model.epoch(units(0, before));
                }
                let hits: Vec<f64> =
                    (0..5).map(|_| model.epoch(units(1_000_000, after)).0).collect();
                assert!(hits[3] > 0.99 && hits[4] > 0.99, "{before} {after}: {hits:?}");
            }
        }
    }

    /// An epoch in another order each time: nothing is lost, and half of the writes are saved.
    #[test]
    fn shuffled_epochs_hit_as_often_with_fewer_writes() {
        let count = 2 * UNITS;
        let shuffled = |epoch: u64| {
            let mut units: Vec<u32> = (0..u32::try_from(count).unwrap()).collect();
            units.sort_by(|one, other| {
                let [one, other] = [one, other].map(|unit| {
                    let mut name = [0; 16];
                    name[..8].copy_from_slice(&(u64::from(*unit) ^ (epoch << 40)).to_le_bytes());
                    hash(&name, 0)
                });
                one.total_cmp(&other)
            });
            units.into_iter()
        };
        let [mut all, mut part] = [Model::new(true), Model::new(false)];
        for epoch in 0..6 {
            let (all, part) = (all.epoch(shuffled(epoch)), part.epoch(shuffled(epoch)));
            assert!(part.0 >= all.0 - 0.02, "{epoch}: {part:?} {all:?}");
            assert!(epoch == 0 || part.1 < 0.6 * all.1, "{epoch}: {part:?} {all:?}");
        }
    }
}
