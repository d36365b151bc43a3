//! What the shared cache and the source are expected to do next, by what they did: how long each
//! takes, and whether other mounts are about. Pure.

use std::time::Duration;

/// A cache that takes longer to its first byte, or its next block, is slower than the source,
/// unless that takes longer for a unit.
pub(super) const LONGEST_PATIENCE: Duration = Duration::from_millis(200);
/// A busy machine, or one packet that is lost in a fast network.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
/// The percentile is computed anew after this number of answers, from as many twice.
const EVERY: usize = 32;
const RECENT: usize = 64;
/// The mount is alone after so many units in a row that nobody had stored or claimed.
const ALONE: u32 = 32;
/// Of those then, one in so many is asked for nevertheless.
const ASKED: u32 = 16;
/// Weight of a new value in a mean.
const WEIGHT: f64 = 0.1;
/// What another mount fetches is waited for no longer than this, and at least as long: its machine
/// may be busy. A mount that has died keeps others waiting for [`super::STALE`] in all.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const LEAST_WAIT: Duration = Duration::from_millis(500);
/// To the last byte of a unit, where nothing is known of the source.
const LONGEST_UNIT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// To the first byte of an entry, in no order.
    first_bytes: Vec<Duration>,
    answers: usize,
    patience: Option<Duration>,
    /// Mean time of a unit from the source, in seconds.
    source: Option<f64>,
    /// Units in a row that this mount was the first to ask for.
    unshared: u32,
    last_was_there: bool,
}

impl Outlook {
    pub(super) fn answered(&mut self, took: Duration) {
        if self.first_bytes.len() < RECENT {
            self.first_bytes.push(took);
        } else {
            self.first_bytes[self.answers % RECENT] = took;
        }
        self.answers += 1;
        if self.answers.is_multiple_of(EVERY) {
            let mut sorted = self.first_bytes.clone();
            let at = sorted.len() - 1 - sorted.len() / 20;
            let (_, percentile, _) = sorted.select_nth_unstable(at);
            let patience = (2 * *percentile).clamp(LEAST_PATIENCE, self.longest_patience());
            self.patience = Some(patience);
        }
    }

    /// The wait for a first byte before the source is asked too: twice the 95th percentile.
    pub(super) fn patience(&self) -> Duration {
        self.patience.unwrap_or(LONGEST_PATIENCE)
    }

    /// Where the source is slow, too, a cache that is as slow is not late.
    pub(super) fn longest_patience(&self) -> Duration {
        self.a_unit().map_or(LONGEST_PATIENCE, |unit| unit.max(LONGEST_PATIENCE))
    }

    /// The source took this long for a unit.
    pub(super) fn fetched(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.source = Some(self.source.map_or(took, |mean| mean + WEIGHT * (took - mean)));
    }

    /// From the first byte of an entry to its last: with more, the source had been faster.
    pub(super) fn longest_body(&self) -> Duration {
        self.a_unit().map_or(LONGEST_UNIT, |unit| (2 * unit).max(LONGEST_PATIENCE))
    }

    /// The wait for what another mount fetches: it is stored some time after it was fetched.
    pub(super) fn longest_wait(&self) -> Duration {
        self.a_unit().map_or(LONGEST_WAIT, |unit| (4 * unit).clamp(LEAST_WAIT, LONGEST_WAIT))
    }

    fn a_unit(&self) -> Option<Duration> {
        self.source.map(Duration::from_secs_f64)
    }

    /// An entry or a claim of another mount was there.
    pub(super) fn shared(&mut self) {
        (self.unshared, self.last_was_there) = (0, true);
    }

    /// This mount was the first to ask for a unit.
    pub(super) fn unshared(&mut self) {
        self.unshared = self.unshared.saturating_add(1);
        self.last_was_there = false;
    }

    /// Nobody else has been about: to ask would cost time, and find nothing.
    pub(super) fn is_alone(&mut self) -> bool {
        if self.unshared < ALONE {
            return false;
        }
        self.unshared += 1;
        !self.unshared.is_multiple_of(ASKED)
    }

    /// An entry may be expected.
    pub(super) fn is_warm(&self) -> bool {
        self.last_was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn patience_follows_the_cache_between_50_and_200_ms() {
        let mut outlook = Outlook::default();
        assert_eq!(outlook.patience(), ms(200));
        for (took, patience) in [(1, 50), (40, 80), (500, 200)] {
            for _ in 0..RECENT {
                outlook.answered(ms(took));
            }
            assert_eq!(outlook.patience(), ms(patience));
        }
        // One in fifty is late: not waited for.
        for answer in 0..2 * RECENT as u64 {
            outlook.answered(ms(if answer % 50 == 0 { 150 } else { 30 }));
        }
        assert_eq!(outlook.patience(), ms(60));
    }

    #[test]
    fn a_cache_that_is_no_slower_than_a_slow_source_is_not_late() {
        let mut outlook = Outlook::default();
        outlook.fetched(ms(700));
        for (took, patience) in [(300, 600), (500, 700)] {
            for _ in 0..RECENT {
                outlook.answered(ms(took));
            }
            assert_eq!(outlook.patience(), ms(patience));
        }
    }

    #[test]
    fn the_source_bounds_what_the_cache_may_take() {
        let mut outlook = Outlook::default();
        assert_eq!((outlook.longest_body(), outlook.longest_wait()), (ms(1000), ms(1000)));
        outlook.fetched(ms(40));
        assert_eq!((outlook.longest_body(), outlook.longest_wait()), (ms(200), ms(500)));
        for _ in 0..200 {
            outlook.fetched(ms(2000));
        }
        assert!(outlook.longest_body() > ms(3900) && outlook.longest_wait() == LONGEST_WAIT);
    }

    #[test]
    fn a_mount_that_finds_nobody_asks_seldom_until_it_finds_somebody() {
        let mut outlook = Outlook::default();
        for _ in 0..ALONE {
            assert!(!outlook.is_alone());
            outlook.unshared();
        }
        let asked = (0..160).filter(|_| !outlook.is_alone()).count();
        assert_eq!(asked, 10);
        outlook.shared();
        assert!(!outlook.is_alone() && outlook.is_warm());
    }
}
