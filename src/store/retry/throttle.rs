//! How many requests a second a store that throttles is asked: one number for the whole mount, cut
//! when the store refuses, raised a little as long as it does not.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Answers are counted for so long before the rate is changed: long enough that a burst that was
/// under way counts once, short enough that a mount reacts before its retries come back.
const WINDOW: Duration = Duration::from_millis(250);
/// Requests a second, below which the rate does not fall: 128 that wait for their turn have it
/// within a deadline, and no store that works allows less.
const FLOOR: f64 = 16.0;
/// The rate rises by this part of what it was cut to in each second.
const GROWTH: f64 = 0.2;
/// At so many times what it was cut to, 35 s later, the rate is no bound any more.
const LIFTED: f64 = 8.0;

/// Requests of the whole mount, held back together. The share of refusals says how far the rate is
/// cut, as DCTCP does for a congested network: to a half when all were refused, and hardly at all
/// when one was of a hundred, for then the store throttles one key and not this client.
#[derive(Debug)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests a second; `None` until the store has throttled.
    rate: Option<f64>,
    /// What the rate was cut to.
    cut: f64,
    /// Since when there has been a rate.
    throttled: Instant,
    /// When the next request may go.
    next: Instant,
    /// Since when the rate has grown.
    grown: Instant,
    /// When the first answer of this window came.
    since: Instant,
    answers: u32,
    refusals: u32,
}

impl Throttle {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
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

    /// Takes a place in the row: when the request may go, `None` for at once.
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
        if state.rate.is_none() && !refused && state.refusals == 0 {
            // Nothing to learn: the common case counts no more than what a window may hold.
            if state.answers == 0 || now - state.since >= WINDOW {
                (state.since, state.answers) = (now, 0);
            }
            state.answers = state.answers.saturating_add(1);
            return;
        }
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

impl State {
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
            // What came is what was really asked; a rate above it bounds nothing.
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
