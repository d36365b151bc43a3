//! What the shared cache and the source are expected to do next, by what they did: how long each
//! takes, and whether other mounts are about. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// A cache that takes longer to its first byte, or its next block, is slower than the source,
/// unless that takes longer for a unit at present: with this machine's load, for both have it.
pub(super) const LONGEST_PATIENCE: Duration = Duration::from_millis(200);
/// The same for mounts that ask for the same at the same time, and so make the cache late together:
/// if each asks the source too then, that is as if there were no cache.
const LONGEST_TOGETHER: Duration = Duration::from_millis(500);
/// A busy machine, or one packet that is lost in a fast network.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
/// What a unit takes from the source, until it has given one.
const A_UNIT: Duration = Duration::from_millis(500);
/// What a mount has asked for at once comes one after the other: a cache that gives as much as so
/// many connections of the source is not late.
const CONNECTIONS: u32 = 2;
/// A cache that is late, but answers other questions of this mount, is busy: the source is not
/// asked too until one has waited this long, or so many times as long as it may take.
const BUSY: Duration = super::WITHOUT_HEDGING;
const TIMES_BUSY: u32 = 4;
/// What the source has taken counts for this long.
const MEMORY: Duration = Duration::from_secs(10);
/// The mount is alone after so many units in a row that nobody had stored or claimed, in so long a
/// time: those who begin at the same time are behind by a window of a stream, or some files.
const ALONE: u32 = 32;
const ALONE_AFTER: Duration = Duration::from_secs(2);
/// The same for a small object, whose reader waits for the cache and then for the source. There is
/// room to store it, so others find it, or are met.
const ALONE_AFTER_SMALL: Duration = Duration::from_millis(250);
/// Not for this long after it has met another, which may be behind again.
const COMPANY: Duration = Duration::from_mins(1);
/// Of those then, one in so many is asked for nevertheless: before it is stored, for which nobody
/// waits, or if it is not stored, before it is fetched.
pub(super) const ASKED: u32 = 16;
/// What another mount fetches is waited for at least this long: its machine may be busy. Then one
/// of those that wait claims it in its place.
const LEAST_WAIT: Duration = Duration::from_secs(2);
/// Longer, where it takes longer to fetch and to store, but no longer than a request that stores.
const LONGEST_WAIT: Duration = super::FILL_LIMIT;
/// For room: as many times as long as the source takes for a unit, which is long where all takes
/// long.
const UNITS_FOR_ROOM: u32 = 16;
/// At least, when it was claimed before it is known whether anybody waits for it; if somebody may,
/// as long as others wait.
const FOR_ROOM: Duration = Duration::from_millis(500);
/// Between two looks for what another mount fetches, at first.
const SHORTEST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_FIRST_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// To the first byte of an entry.
    first_bytes: LastTimes<64>,
    patience: Option<Duration>,
    /// A unit from the source, and when it was measured.
    source: LastTimes<9>,
    measured: Option<Instant>,
    /// A unit that was claimed, until this mount had stored it, or no longer waited for another.
    filling: LastTimes<9>,
    /// When the cache last began to answer.
    heard: Option<Instant>,
    /// When the source was last asked because one of several answers was late.
    hedged: Option<Instant>,
    /// Units in a row that this mount was the first to ask for, and since when.
    unshared: u32,
    unshared_since: Option<Instant>,
    /// When another mount was met.
    met: Option<Instant>,
    /// When it waited for one that fetched the same at the same time.
    waited: Option<Instant>,
    last_was_there: bool,
}

/// The last times of one kind, in no order.
#[derive(Debug, Default)]
struct LastTimes<const MOST: usize> {
    took: Vec<Duration>,
    count: usize,
}

impl<const MOST: usize> LastTimes<MOST> {
    fn add(&mut self, took: Duration) {
        if self.took.len() < MOST {
            self.took.push(took);
        } else {
            self.took[self.count % MOST] = took;
        }
        self.count += 1;
    }

    /// What they may take: all but one, of the last nine.
    fn slow(&self) -> Option<Duration> {
        self.exceeded_by_one_in(MOST)
    }

    /// The time that one in so many exceeds, of two the median.
    fn exceeded_by_one_in(&self, number: usize) -> Option<Duration> {
        let mut sorted = self.took.clone();
        let at = sorted.len().checked_sub(1 + sorted.len() / number)?;
        Some(*sorted.select_nth_unstable(at).1)
    }
}

impl Outlook {
    /// The first byte of an entry took this long, or it was not waited for any longer.
    pub(super) fn answered(&mut self, took: Duration) {
        self.first_bytes.add(took);
        // As often as half of them are others.
        if self.first_bytes.count.is_multiple_of(32) {
            self.patience = self.first_bytes.exceeded_by_one_in(20).map(|late| 2 * late);
        }
    }

    /// The wait for a first byte before the source is asked too: twice the 95th percentile, and no
    /// less than the source may take. It may be fast again, which nobody sees who does not
    /// ask it: so once in a while it is measured. With so many questions of this mount it has to
    /// answer others first.
    pub(super) fn patience(&mut self, now: Instant, questions: usize) -> Duration {
        if self.measured.is_some_and(|at| now >= at + MEMORY) {
            self.source.took.clear();
            self.measured = Some(now);
            return self
                .patience
                .unwrap_or(LONGEST_PATIENCE)
                .clamp(LEAST_PATIENCE, LONGEST_PATIENCE);
        }
        let (longest, unit) = (self.longest_patience(now), self.source.slow());
        let least = unit.unwrap_or_default().max(LEAST_PATIENCE);
        let times = 1 + u32::from(self.is_together(now));
        let patience =
            self.patience.map_or(longest, |patience| (times * patience).clamp(least, longest));
        let questions = u32::try_from(questions).unwrap_or(u32::MAX);
        patience.max((unit.unwrap_or_default() * questions / CONNECTIONS).min(BUSY))
    }

    /// The cache answers, whatever it says.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Whether the source is asked too for what the cache was asked for then. If it is silent since
    /// the other time, yes; if it answers others, mounts that are busy together would all fetch,
    /// and be busier: then only to know what the source takes.
    pub(super) fn may_hedge(&mut self, now: Instant, asked: Instant, since: Instant) -> bool {
        let is_silent = self.heard.is_none_or(|at| at < since);
        let longest = BUSY.max(TIMES_BUSY * self.longest_patience(now));
        let is_measured = self.hedged.is_some_and(|at| now < at + MEMORY);
        if !is_measured {
            self.hedged = Some(now);
        }
        is_silent || now >= asked + longest || !is_measured
    }

    /// A unit, at present, if that is known.
    pub(super) fn source_takes(&self) -> Option<Duration> {
        self.source.slow()
    }

    /// Where the source is slow, too, a cache that is about as slow is not late.
    pub(super) fn longest_patience(&self, now: Instant) -> Duration {
        let least = if self.is_together(now) { LONGEST_TOGETHER } else { LONGEST_PATIENCE };
        (self.a_unit() * 3 / 2).max(least)
    }

    /// The source took this long for a unit, or a part of one.
    pub(super) fn fetched(&mut self, now: Instant, took: Duration) {
        self.source.add(took);
        self.measured = Some(now);
    }

    /// The cache was late, and answered after this time, before the source which was asked then: so
    /// that is no faster.
    pub(super) fn was_first(&mut self, now: Instant, took: Duration) {
        self.fetched(now, took);
    }

    /// A unit was stored this long after this mount had asked for it, by it or by another.
    pub(super) fn filled(&mut self, took: Duration) {
        self.filling.add(took);
    }

    /// From the first byte of an entry to its last: with more, the source had been faster.
    pub(super) fn longest_body(&self, now: Instant) -> Duration {
        (2 * self.a_unit()).max(self.longest_patience(now))
    }

    /// The wait for what another mount fetches, by what this one takes at present to fetch, and
    /// what both take to store.
    pub(super) fn longest_wait(&self) -> Duration {
        let filling = self.filling.slow().unwrap_or_default();
        (4 * self.a_unit().max(filling)).clamp(LEAST_WAIT, LONGEST_WAIT)
    }

    /// The wait for room for what this mount has claimed.
    pub(super) fn for_room(&self, now: Instant) -> Duration {
        let (least, most) = if self.has_company(now) {
            (self.longest_wait(), LONGEST_WAIT)
        } else {
            (FOR_ROOM, LEAST_WAIT)
        };
        (UNITS_FOR_ROOM * self.a_unit()).clamp(least, most)
    }

    /// Before the first look for it: each look is a request.
    pub(super) fn first_pause(&self) -> Duration {
        let filling = self.filling.exceeded_by_one_in(2).unwrap_or_default();
        (filling / 2).clamp(SHORTEST_PAUSE, LONGEST_FIRST_PAUSE)
    }

    /// What a unit may take from the source.
    fn a_unit(&self) -> Duration {
        self.source.slow().unwrap_or(A_UNIT)
    }

    /// Another mount wants, or has fetched, what this one has.
    pub(super) fn met(&mut self, now: Instant) {
        self.met = Some(now);
        self.shared();
    }

    /// Another mount fetches at this moment what this one wants.
    pub(super) fn waits(&mut self, now: Instant) {
        self.waited = Some(now);
        self.met(now);
    }

    /// An entry was there.
    pub(super) fn shared(&mut self) {
        (self.unshared, self.unshared_since, self.last_was_there) = (0, None, true);
    }

    /// This mount was the first to ask for a unit.
    pub(super) fn unshared(&mut self, now: Instant) {
        self.unshared_since.get_or_insert(now);
        self.unshared = self.unshared.saturating_add(1);
        self.last_was_there = false;
    }

    /// Nobody else has been about: to ask would cost time, and find nothing.
    pub(super) fn is_alone(&mut self, now: Instant, is_small: bool, stores: bool) -> bool {
        let after = if is_small { ALONE_AFTER_SMALL } else { ALONE_AFTER };
        let is_new = self.unshared_since.is_none_or(|since| now < since + after);
        if self.unshared < ALONE || is_new || self.has_company(now) {
            return false;
        }
        self.unshared += u32::from(!stores);
        stores || !self.unshared.is_multiple_of(ASKED)
    }

    /// Others may wait for what this mount fetches.
    fn has_company(&self, now: Instant) -> bool {
        self.met.is_some_and(|at| now < at + COMPANY)
    }

    fn is_together(&self, now: Instant) -> bool {
        self.waited.is_some_and(|at| now < at + COMPANY)
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
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        assert_eq!(outlook.patience(now, 1), ms(750), "nothing is known");
        outlook.fetched(now, ms(15));
        assert_eq!(outlook.patience(now, 1), ms(200));
        for (took, patience) in [(1, 50), (40, 80), (500, 200)] {
            for _ in 0..64 {
                outlook.answered(ms(took));
            }
            assert_eq!(outlook.patience(now, 1), ms(patience));
        }
        // One in fifty is late: not waited for.
        for answer in 0..128 {
            outlook.answered(ms(if answer % 50 == 0 { 150 } else { 30 }));
        }
        assert_eq!(outlook.patience(now, 1), ms(60));
    }

    #[test]
    fn a_cache_that_is_no_slower_than_a_slow_source_is_not_late() {
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        for (source, took, patience) in
            [(700, 500, 1000), (700, 1, 700), (120, 1, 120), (120, 80, 160), (15, 1, 50)]
        {
            // All but one of the last nine tell what the source takes at present.
            for at in 0..9 {
                outlook.fetched(now, ms(if at == 4 { 5000 } else { source }));
            }
            for _ in 0..64 {
                outlook.answered(ms(took));
            }
            assert_eq!(outlook.patience(now, 1), ms(patience), "{source} {took}");
        }
        // Nor is one that others ask for the same.
        outlook.waits(now);
        for (took, patience) in [(1, 50), (80, 320), (400, 500)] {
            for _ in 0..64 {
                outlook.answered(ms(took));
            }
            assert_eq!(outlook.patience(now, 1), ms(patience), "{took}");
        }
    }

    #[test]
    fn what_the_source_takes_is_forgotten_and_measured_anew() {
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        for _ in 0..64 {
            outlook.answered(ms(300));
            outlook.fetched(now, ms(400));
        }
        assert_eq!(outlook.patience(now, 1), ms(600));
        let later = now + MEMORY;
        let patience = [(); 3].map(|()| outlook.patience(later, 1).as_millis());
        assert_eq!(patience, [200, 600, 600], "one is to measure it");
        outlook.fetched(later, ms(15));
        assert_eq!(outlook.patience(later, 1), ms(200));
    }

    #[test]
    fn the_source_bounds_what_the_cache_may_take() {
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        assert_eq!((outlook.longest_body(now), outlook.longest_wait()), (ms(1000), ms(2000)));
        outlook.fetched(now, ms(40));
        assert_eq!((outlook.longest_body(now), outlook.longest_wait()), (ms(200), ms(2000)));
        for _ in 0..2 {
            outlook.fetched(now, ms(2000));
        }
        assert_eq!((outlook.longest_body(now), outlook.longest_wait()), (ms(4000), ms(8000)));
        assert_eq!(outlook.patience(now, 1), ms(3000));
    }

    #[test]
    fn others_are_waited_for_as_long_as_this_mount_takes_itself() {
        let mut outlook = Outlook::default();
        outlook.fetched(Instant::now(), ms(40));
        assert_eq!(outlook.first_pause(), SHORTEST_PAUSE);
        for (filling, pause, wait) in [(60, 30, 2000), (800, 200, 3200), (9000, 200, 10_000)] {
            for _ in 0..9 {
                outlook.filled(ms(filling));
            }
            assert_eq!((outlook.first_pause(), outlook.longest_wait()), (ms(pause), ms(wait)));
        }
    }

    #[test]
    fn a_mount_that_finds_nobody_asks_seldom_until_it_finds_somebody() {
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        for _ in 0..ALONE {
            assert!(!outlook.is_alone(now, false, false) && !outlook.has_company(now));
            outlook.unshared(now);
        }
        // Those that begin at the same time may be behind.
        assert!(!outlook.is_alone(now, false, false) && !outlook.is_alone(now, true, false));
        let now = now + ALONE_AFTER_SMALL;
        assert!(!outlook.is_alone(now, false, false) && outlook.is_alone(now, true, false));
        let now = now + ALONE_AFTER;
        let asked = (0..160).filter(|_| !outlook.is_alone(now, false, false)).count();
        assert!(asked == 10 && !outlook.has_company(now));
        assert!((0..160).all(|_| outlook.is_alone(now, false, true)));
        outlook.shared();
        assert!(!outlook.is_alone(now, false, false) && outlook.is_warm());
        assert_eq!(outlook.for_room(now), LEAST_WAIT);
        outlook.fetched(now, ms(15));
        assert_eq!(outlook.for_room(now), FOR_ROOM);
        // One that was met may be a little behind.
        outlook.met(now);
        outlook.fetched(now, ms(15));
        assert_eq!(outlook.for_room(now), LEAST_WAIT);
        outlook.fetched(now, ms(200));
        assert_eq!(outlook.for_room(now), ms(3200));
        for _ in 0..2 * ALONE {
            outlook.unshared(now);
        }
        assert!(
            !outlook.is_alone(now, false, false) && outlook.is_alone(now + COMPANY, false, false)
        );
    }

    #[test]
    fn questions_that_are_asked_at_once_are_answered_one_after_the_other() {
        let (mut outlook, now) = (Outlook::default(), Instant::now());
        for _ in 0..9 {
            outlook.fetched(now, ms(40));
        }
        let patience = [1, 20, 40, 1000].map(|questions| outlook.patience(now, questions));
        assert_eq!(patience, [200, 400, 800, 2000].map(ms));
    }

    #[test]
    fn the_source_is_asked_too_where_the_cache_answers_nothing_else() {
        let (mut outlook, begun) = (Outlook::default(), Instant::now());
        let asked = begun + ms(100);
        let now = asked + ms(200);
        assert!(outlook.may_hedge(now, asked, asked), "it has never answered");
        outlook.heard(begun);
        assert!(outlook.may_hedge(now, asked, asked), "not since");
        outlook.heard(asked + ms(100));
        assert!(!outlook.may_hedge(now, asked, asked));
        assert!(outlook.may_hedge(now + ms(200), asked, now), "nor since");
        outlook.heard(asked + BUSY);
        outlook.fetched(now, ms(15));
        assert!(!outlook.may_hedge(asked + BUSY - ms(1), asked, now));
        assert!(outlook.may_hedge(asked + BUSY, asked, now), "for too long");
        let (now, known) = (now + MEMORY, now + MEMORY - ms(1));
        outlook.heard(now);
        let hedged = [known, now, now].map(|now| outlook.may_hedge(now, now, known));
        assert_eq!(hedged, [false, true, false], "once in a while, to know what it takes");
    }
}
