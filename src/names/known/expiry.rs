//! Until when an answer is believed.

use std::time::Duration;

use tokio::time::Instant;

use crate::names::entries::node::FOREVER;

/// Until when an answer is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry(pub(crate) Option<Instant>);

impl Expiry {
    /// An answer to a request that was sent at `asked`; believed for ever without a `ttl`.
    ///
    /// Counted from the question, for the answer may have been true no longer than that.
    pub(crate) fn after(asked: Instant, ttl: Option<Duration>) -> Self {
        Self(ttl.and_then(|ttl| asked.checked_add(ttl)))
    }

    /// How long it is still believed, `None` when it is not.
    pub(crate) fn remaining(self, now: Instant) -> Option<Duration> {
        let Some(until) = self.0 else { return Some(FOREVER) };
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}
