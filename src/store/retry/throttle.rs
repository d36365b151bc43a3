//! The rate of requests to a store that throttles: one number for the whole mount, cut when the
//! store refuses, and raised while it does not.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Answers are counted for this time before the rate is changed: so a burst in flight counts once,
/// and a mount reacts before its retries return.
const WINDOW: Duration = Duration::from_millis(250);
/// The lowest rate, in requests a second: 128 waiting requests have their turn within a deadline,
/// and no working store allows less.
const FLOOR: f64 = 16.0;
/// The rate rises by this part of the cut rate in each second.
const GROWTH: f64 = 0.2;
/// At this multiple of the cut rate, 35 s later, the limit is lifted.
const LIFTED: f64 = 8.0;

/// Holds back the requests of the whole mount together. The share of refusals says how far the rate
/// is cut, as DCTCP does for a congested network: to a half if all were refused, and hardly at all
/// if one of a hundred was, because then the store throttles one key and not this client.
pub(super) struct Throttle(Mutex<RateLimit>);

struct RateLimit {
    /// Requests a second; `None` until the store has throttled.
    rate: Option<f64>,
    cut: f64,
    /// When the store began to throttle.
    throttled: Instant,
    /// The next turn.
    next: Instant,
    /// The rate has grown until then.
    grown: Instant,
    /// When the first answer of this window came.
    since: Instant,
    answers: u32,
    refusals: u32,
}

impl Throttle {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(RateLimit {
            rate: None,
            cut: FLOOR,
            throttled: now,
            next: now,
            grown: now,
            since: now,
            answers: 0,
            refusals: 0,
        }))
    }

    /// Reserves the next turn: when the request may be sent, `None` for at once.
    pub(super) fn turn(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.look(now);
        let rate = state.rate?;
        let turn = state.next.max(now);
        state.next = turn + Duration::from_secs_f64(1.0 / rate);
        (turn > now).then_some(turn)
    }

    /// A request was answered; `refused` when the store asked to slow down.
    pub(super) fn answered(&self, refused: bool) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.look(now);
        if state.answers == 0 {
            state.since = now;
        }
        state.answers = state.answers.saturating_add(1);
        state.refusals += u32::from(refused);
    }

    #[cfg(test)]
    fn rate(&self) -> Option<f64> {
        self.0.lock().rate
    }
}

impl RateLimit {
    /// Ends a window that is over, and lets the rate grow.
    fn look(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let seconds = (now - self.grown).as_secs_f64();
            let grown = rate + self.cut * GROWTH * seconds;
            self.rate = (grown < self.cut * LIFTED).then_some(grown);
            if self.rate.is_none() {
                let after = now - self.throttled;
                tracing::info!(
                    ?after,
                    "the store keeps up again: no request is held back any more"
                );
            }
        }
        self.grown = now;
        let seconds = (now - self.since).as_secs_f64();
        if self.answers == 0 || seconds < WINDOW.as_secs_f64() {
            return;
        }
        if self.refusals > 0 {
            let answers = f64::from(self.answers);
            // The rate that was really requested; a limit above it has no effect.
            let seen = answers / seconds;
            let rate = self.rate.map_or(seen, |rate| rate.min(seen));
            self.cut = (rate * (1.0 - f64::from(self.refusals) / answers / 2.0)).max(FLOOR);
            if self.rate.is_none() {
                self.throttled = now;
                let rate = self.cut.round();
                tracing::warn!(rate, "the store asks to slow down: requests are held back");
            }
            self.rate = Some(self.cut);
        }
        (self.answers, self.refusals) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
