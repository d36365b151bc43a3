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
    /// When the last of them was counted.
    failed_at: Option<Instant>,
    worked_at: Option<Instant>,
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
    pub(super) fn worked(&mut self, now: Instant) -> bool {
        self.worked_at = Some(now);
        self.failures = 0;
        self.tried = None;
        self.pause = Duration::ZERO;
        self.until.take().is_some()
    }

    /// A call that was begun then has failed. The pause that begins now, if one does: each is twice
    /// as long as the last. Of calls that were on their way at the same time one counts: a disk
    /// that stands still for a moment fails all of them.
    pub(super) fn failed(&mut self, begun: Instant, now: Instant) -> Option<Duration> {
        if self.failed_at.is_some_and(|last| begun < last) {
            return None;
        }
        self.failed_at = Some(now);
        self.failures += 1;
        if self.failures < FORGIVEN {
            return None;
        }
        self.tried = None;
        self.pause = (2 * self.pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Some(now + self.pause);
        Some(self.pause)
    }

    /// As [`Self::failed`], for a call without an answer. It tells nothing of the disk if others
    /// have been answered since: then it waited for them.
    pub(super) fn hung(&mut self, begun: Instant, now: Instant) -> Option<Duration> {
        if self.worked_at.is_some_and(|last| begun < last) {
            return None;
        }
        self.failed(begun, now)
    }

    /// As [`Self::failed`], for what a second try at once cannot cure.
    pub(super) fn failed_for_good(&mut self, begun: Instant, now: Instant) -> Option<Duration> {
        self.failures = self.failures.max(FORGIVEN);
        self.failed(begun, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_is_left_alone_longer_each_time_and_never_for_ever() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(health.failed(now, now + ms(500)), None, "forgiven");
        for at in 0..100 {
            assert_eq!(health.failed(now + ms(at), now + ms(500 + at)), None, "the same trouble");
        }
        now += ms(600);
        assert_eq!(health.failed(now, now), None, "forgiven");
        assert!(health.admits(now));
        let (mut pauses, mut begun) = (Vec::new(), now);
        for _ in 0..10 {
            let pause = health.failed(begun, now).expect("a pause");
            pauses.push(pause.as_secs());
            assert_eq!(health.failed(now - ms(1), now + ms(499)), None, "late answers of before");
            assert!(!health.admits(now + pause - ms(1)));
            now += pause;
            begun = now;
            assert!(health.admits(now));
            assert!(!health.admits(now), "one tries it for all");
            assert!(health.admits(now + FIRST_PAUSE), "and another, if that one was given up");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(health.worked(now));
        assert!(!health.worked(now) && health.admits(now));
        assert_eq!(health.failed(now, now), None, "and all is forgotten");
        assert_eq!(health.failed_for_good(now, now), Some(FIRST_PAUSE));
    }

    #[test]
    fn a_call_that_waits_while_others_are_answered_does_not_tell_of_a_disk_that_hangs() {
        let (mut health, start) = (Health::default(), Instant::now());
        let at = |tenths: u32| start + tenths * Duration::from_millis(100);
        for turn in (0..100).step_by(10) {
            health.worked(at(turn + 3));
            assert_eq!(health.hung(at(turn), at(turn + 5)), None);
        }
        assert_eq!(health.hung(at(200), at(205)), None);
        assert_eq!(health.hung(at(206), at(211)), None);
        assert_eq!(health.hung(at(212), at(217)), Some(FIRST_PAUSE));
    }
}
