//! When a disk that fails is left alone, and tried again. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A bad sector, or one late answer, is no failing disk.
const FORGIVEN: u32 = 3;

/// What is known of the disk by its last answers.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    /// Left alone until then.
    until: Option<Instant>,
    pause: Duration,
    /// One call tries it since then; the others wait for its outcome.
    tried: Option<Instant>,
}

impl Health {
    /// The disk may be asked. After a pause, one call may, and must tell its outcome.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let Some(until) = self.until else { return true };
        // A call that was given up has no outcome.
        let is_tried = self.tried.is_some_and(|since| now < since + FIRST_PAUSE);
        if now < until || is_tried {
            return false;
        }
        self.tried = Some(now);
        true
    }

    /// True if the disk was left alone until now.
    pub(super) fn worked(&mut self) -> bool {
        self.failures = 0;
        self.tried = None;
        self.pause = Duration::ZERO;
        self.until.take().is_some()
    }

    /// The pause that begins now, if one does: each is twice as long as the last.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures += 1;
        // Late answers of calls before the pause say nothing new.
        let is_late = self.until.is_some() && self.tried.is_none();
        if is_late || self.failures < FORGIVEN {
            return None;
        }
        self.tried = None;
        self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Some(now + self.pause);
        Some(self.pause)
    }

    /// As [`Self::failed`], for what a second try at once cannot cure.
    pub(super) fn failed_for_good(&mut self, now: Instant) -> Option<Duration> {
        self.failures = self.failures.max(FORGIVEN);
        self.failed(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_is_left_alone_longer_each_time_and_never_for_ever() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        assert_eq!((health.failed(now), health.failed(now)), (None, None), "forgiven");
        assert!(health.admits(now));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = health.failed(now).expect("a pause");
            pauses.push(pause.as_secs());
            assert_eq!(health.failed(now), None, "late answers of before");
            assert!(!health.admits(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(health.admits(now));
            assert!(!health.admits(now), "one tries it for all");
            assert!(health.admits(now + FIRST_PAUSE), "and another, if that one was given up");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(health.worked());
        assert!(!health.worked() && health.admits(now));
        assert_eq!(health.failed(now), None, "and all is forgotten");
        assert_eq!(health.failed_for_good(now), Some(FIRST_PAUSE));
    }
}
