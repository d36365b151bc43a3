//! The time until which an answer is believed.

use std::time::{Duration, Instant};

use crate::names::entries::FOREVER;

/// The end of an answer's life; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry(Option<Instant>);

impl Expiry {
    /// The answer to a request sent at `asked`, from which the `ttl` counts: it may have been true
    /// only then. Without a `ttl` it is believed forever.
    pub(crate) fn after(asked: Instant, ttl: Option<Duration>) -> Self {
        Self(ttl.and_then(|ttl| asked.checked_add(ttl)))
    }

    /// The rest of the answer's life; `None` once it is over.
    pub(crate) fn remaining(self, now: Instant) -> Option<Duration> {
        let Some(until) = self.0 else { return Some(FOREVER) };
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}
