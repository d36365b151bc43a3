//! When a shared cache that fails is left alone, and tried again. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Class, StoreError};

/// In this time, so many failures, and one in so many requests, are no accident any more.
const WINDOW: Duration = Duration::from_secs(10);
const FAILURES: u32 = 5;
const ONE_IN: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Rights seldom come back by themselves.
const FIRST_PAUSE_REFUSED: Duration = Duration::from_mins(1);
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_hours(1);
/// A trial that has not told its outcome by then was given up.
const TRIAL: Duration = Duration::from_secs(10);

/// What is known of the cache by its last answers.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    began: Option<Instant>,
    failed: u32,
    answered: u32,
    /// Left alone until then.
    until: Option<Instant>,
    pause: Duration,
    tried: Option<Instant>,
    /// When one was last found to be late.
    late: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    All,
    /// This call, which must tell its outcome, and for which nobody may wait.
    Trial,
    None,
}

impl Breaker {
    pub(super) fn admits(&mut self, now: Instant) -> Admits {
        let Some(until) = self.until else { return Admits::All };
        if now < until || self.tried.is_some_and(|since| now < since + TRIAL) {
            return Admits::None;
        }
        self.tried = Some(now);
        Admits::Trial
    }

    pub(super) fn is_open(&self) -> bool {
        self.until.is_some()
    }

    /// It is not left alone, and has answered lately.
    pub(super) fn answers(&mut self, now: Instant) -> bool {
        self.tick(now);
        self.until.is_none() && self.answered > 0
    }

    /// One that was asked for then is late. Those that were on their way together are late
    /// together: true for the first of them.
    pub(super) fn is_late_anew(&mut self, asked: Instant, now: Instant) -> bool {
        let is_known = self.late.is_some_and(|late| asked < late);
        if !is_known {
            self.late = Some(now);
        }
        !is_known
    }

    /// True if the cache was left alone until now.
    pub(super) fn worked(&mut self, now: Instant) -> bool {
        if self.until.is_some() && self.tried.is_none() {
            // An answer from before the pause.
            return false;
        }
        self.tick(now);
        self.answered += 1;
        self.tried = None;
        if self.until.take().is_some() {
            // The next pause is as long again, unless all goes well for a while.
            (self.failed, self.answered, self.began) = (0, 1, Some(now));
            return true;
        }
        false
    }

    /// The pause that begins now, if one does: each is twice as long as the last.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.tick(now);
        self.failed += 1;
        if self.until.is_some() {
            self.tried?;
        } else if self.failed < FAILURES || self.failed * ONE_IN < self.failed + self.answered {
            return None;
        }
        Some(self.leave_alone(now, FIRST_PAUSE, LONGEST_PAUSE))
    }

    /// The same at once: it does not answer such requests at all.
    pub(super) fn refused(&mut self, now: Instant) -> Option<Duration> {
        if self.until.is_some() && self.tried.is_none() {
            return None;
        }
        Some(self.leave_alone(now, FIRST_PAUSE_REFUSED, LONGEST_PAUSE_REFUSED))
    }

    fn leave_alone(&mut self, now: Instant, first: Duration, longest: Duration) -> Duration {
        (self.failed, self.answered, self.began, self.tried) = (0, 0, None, None);
        self.pause = (2 * self.pause).clamp(first, longest);
        self.until = Some(now + self.pause);
        self.pause
    }

    fn tick(&mut self, now: Instant) {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            if self.began.is_some() && self.failed < FAILURES && self.until.is_none() {
                self.pause = Duration::ZERO;
            }
            (self.began, self.failed, self.answered) = (Some(now), 0, 0);
        }
    }
}

/// It does not serve this mount, whatever it is asked.
pub(super) fn is_refusal(error: &StoreError) -> bool {
    match error.class() {
        Class::Denied | Class::Unsigned | Class::NoSuchBucket | Class::WrongRegion => true,
        Class::NotFound
        | Class::Changed
        | Class::Archived
        | Class::Throttled
        | Class::Unavailable
        | Class::TimedOut
        | Class::Nonsense
        | Class::Unordered => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn five_failures_in_ten_seconds_leave_the_cache_alone_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            // Four in ten seconds are accidents.
            for _ in 0..4 {
                assert_eq!(breaker.failed(now), None);
            }
            now += WINDOW;
        }
        let mut pauses = Vec::new();
        for _ in 0..4 {
            assert_eq!(breaker.failed(now), None);
        }
        for _ in 0..7 {
            let pause = breaker.failed(now).expect("a pause");
            pauses.push(pause.as_secs());
            assert_eq!(breaker.failed(now), None, "late answers of before");
            assert!(!breaker.worked(now), "the same");
            now += pause;
            assert_eq!(breaker.admits(now - Duration::from_millis(1)), Admits::None);
            assert_eq!(breaker.admits(now), Admits::Trial);
            assert_eq!(breaker.admits(now), Admits::None, "one tries it for all");
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        assert!(breaker.worked(now) && breaker.admits(now) == Admits::All);
        // It fails again soon: the pauses go on from where they were.
        let again = (0..5).find_map(|_| breaker.failed(now + SECOND));
        assert_eq!(again, Some(LONGEST_PAUSE));
    }

    #[test]
    fn a_few_failures_among_many_answers_are_borne() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.failed(now), None);
            for _ in 0..4 {
                breaker.worked(now);
            }
        }
        let mut more = 0;
        while breaker.failed(now).is_none() {
            more += 1;
        }
        assert!((20..60).contains(&more), "{more}");
    }

    #[test]
    fn those_that_were_asked_together_are_late_once() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(breaker.is_late_anew(now, now + SECOND));
        assert!(!breaker.is_late_anew(now, now + SECOND));
        assert!(!breaker.is_late_anew(now + SECOND / 2, now + 2 * SECOND));
        assert!(breaker.is_late_anew(now + SECOND, now + 2 * SECOND));
    }

    #[test]
    fn it_answers_until_it_is_left_alone_or_has_been_silent_for_a_while() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.answers(now));
        breaker.worked(now);
        assert!(breaker.answers(now));
        assert!(!breaker.answers(now + WINDOW));
        breaker.worked(now + WINDOW);
        breaker.refused(now + WINDOW);
        assert!(!breaker.answers(now + WINDOW));
    }

    #[test]
    fn a_refusal_counts_at_once_and_is_tried_again_within_the_hour() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = breaker.refused(now).expect("a pause");
            assert_eq!(breaker.refused(now), None);
            pauses.push(pause.as_secs() / 60);
            now += pause;
            assert_eq!(breaker.admits(now), Admits::Trial);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        now += TRIAL;
        assert_eq!(breaker.admits(now), Admits::Trial, "the last one was given up");
    }
}
