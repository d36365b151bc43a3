//! The store's clock, by which requests are signed.
//!
//! A store refuses signatures more than 15 minutes from its own time; the refusal's `Date` tells
//! it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// A smaller difference is not why a signature is refused: AWS allows three times as much.
const TOLERANCE_SECONDS: u64 = 5 * 60;

/// This machine's clock, corrected by what the store has told.
#[derive(Debug, Default)]
pub(super) struct Clock {
    seconds_ahead: AtomicI64,
}

impl Clock {
    pub(super) fn now(&self) -> SystemTime {
        let ahead = self.seconds_ahead.load(Ordering::Relaxed);
        let distance = Duration::from_secs(ahead.unsigned_abs());
        let now = system_now();
        if ahead < 0 { now - distance } else { now + distance }
    }

    /// A signature was refused just now by a response with this `Date`.
    pub(super) fn correct(&self, date: &str) {
        let Some(ahead) = seconds_ahead(date, system_now()) else { return };
        let known = self.seconds_ahead.load(Ordering::Relaxed);
        if ahead.abs_diff(known) > TOLERANCE_SECONDS {
            self.seconds_ahead.store(ahead, Ordering::Relaxed);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "signatures and expiry are in wall time")]
pub(super) fn system_now() -> SystemTime {
    SystemTime::now()
}

pub(super) fn http_date(text: &str) -> Option<DateTime> {
    DateTime::from_str(text, Format::HttpDate).ok()
}

/// From our clock to a `Date` header: positive when the store is ahead.
pub(super) fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    Some(http_date(date)?.secs() - DateTime::from(now).secs())
}

/// From one time in a header to another, both by the clock of one store.
pub(super) fn seconds_between(earlier: &str, later: &str) -> Option<i64> {
    Some(http_date(later)?.secs() - http_date(earlier)?.secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_clock_of_a_store_is_compared_with_ours() {
        let now = 1_369_353_600;
        assert_eq!(seconds_ahead("Fri, 24 May 2013 00:00:01 GMT", at(now)), Some(1));
        assert_eq!(seconds_ahead("Fri, 24 May 2013 00:00:00 GMT", at(now + 3600)), Some(-3600));
        for odd in ["", "2013", "2013-05-24T00:00", "Fri, 24 Foo 2013 00:00:00 GMT", "ä"] {
            assert_eq!(seconds_ahead(odd, at(0)), None, "{odd}");
        }
    }

    #[test]
    fn only_a_difference_that_matters_corrects_the_clock_and_the_next_one_corrects_it_back() {
        let clock = Clock::default();
        let tell = |ahead: u64| {
            let date = DateTime::from(system_now() + Duration::from_secs(ahead));
            clock.correct(&date.fmt(Format::HttpDate).unwrap());
            clock.now().duration_since(system_now()).unwrap_or_default().as_secs()
        };
        assert_eq!(tell(60), 0);
        assert!((7190..=7200).contains(&tell(7200)));
        assert!((7190..=7200).contains(&tell(7230)));
        assert_eq!(tell(0), 0);
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// A clock is off by what it is off by, and a text that is no time says nothing.
        #[test]
        fn any_time_is_compared_as_it_was_written() {
            let garbage = fuzz::text("[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4}|\\PC{0,18}");
            let years = 0_u64..8_000 * 31_556_952;
            fuzz::each((years.clone(), years, garbage), |(told, ours, garbage)| {
                let date = DateTime::from(at(told)).fmt(Format::HttpDate).unwrap();
                let ahead = told.cast_signed() - ours.cast_signed();
                prop_assert_eq!(seconds_ahead(&date, at(ours)), Some(ahead));
                prop_assert_eq!(seconds_ahead(&garbage, at(0)), None, "{}", garbage);
                Ok(())
            });
        }
    }
}
