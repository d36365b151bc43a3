//! Backoff, deadlines and resumption. The stores below try once, except that a silent request is
//! sent a second time (`store/wire/hedge.rs`).
//!
//! A transient failure ([`StoreError::is_transient`]) is retried until the deadline, an answer that
//! makes no sense only a few times, and a refused signature once; a body that broke half way is
//! resumed where it stopped.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Class, Destination, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
    check_page, flow,
};
use crate::stats::Stats;

mod admission;
mod throttle;

use admission::Admission;
pub(crate) use admission::OVERDUE;

#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The same after the store has asked to slow down.
    pub first_pause_throttled: Duration,
    /// The same after an answer that made no sense.
    pub first_pause_nonsense: Duration,
    /// The operation fails after this number of such answers in a row.
    pub nonsense: u32,
    /// The longest pause, unless the store asks for a longer one.
    pub longest_pause: Duration,
    /// An operation without progress for this long fails with its last error.
    pub deadline: Duration,
    /// Requests in flight at once, at least 1.
    pub max_connections: usize,
}

impl Default for RetryPolicy {
    /// A store that throttles needs more time than a broken connection: AWS documents seconds for
    /// its partitions to split. The deadline is longer than any failover of a store, and shorter
    /// than people wait before they kill a job.
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(50),
            first_pause_throttled: Duration::from_millis(200),
            // Five answers within 3 s: time for a proxy on the way to recover.
            first_pause_nonsense: Duration::from_millis(200),
            nonsense: 5,
            longest_pause: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            max_connections: 128,
        }
    }
}

pub struct Retrying {
    store: Arc<dyn ObjectStore>,
    policy: RetryPolicy,
    admission: Admission,
    stats: Arc<Stats>,
}

impl Retrying {
    pub fn new(store: Arc<dyn ObjectStore>, policy: RetryPolicy, stats: Arc<Stats>) -> Self {
        let admission = Admission::new(policy.max_connections, stats.clone());
        Self { store, policy, admission, stats }
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut tries = Tries::new(self, "list", &request.prefix, 0);
        loop {
            let admitted = self.admission.admit(false).await;
            let page = tries.within(admitted.hold(self.store.list_page(request))).await;
            match page.and_then(|page| check_page(request, &page).map(|()| page)) {
                Ok(page) => return Ok(page),
                Err(error) => tries.pause_after(error).await?,
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let mut tries = Tries::new(self, "head", key, 0);
        loop {
            let admitted = self.admission.admit(false).await;
            match tries.within(admitted.hold(self.store.head(key))).await {
                Ok(head) => return Ok(head),
                Err(error) => tries.pause_after(error).await?,
            }
        }
    }

    /// A body that still flows at the deadline is requested again from the byte reached: this
    /// bounds every wait, whatever the store below does.
    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let mut tries = Tries::new(self, "get", &version.key, range.start);
        let mut rest = range;
        loop {
            let room = into.remaining_mut();
            let admitted = self.admission.admit(true).await;
            let attempt = self.store.get_range(version, rest.clone(), &mut *into);
            let got = tries.within(admitted.hold(attempt)).await;
            let Err(error) = got else { return Ok(()) };
            let taken = room.saturating_sub(into.remaining_mut());
            if taken > 0 {
                tries.progressed();
                rest.start += taken as u64;
                if rest.is_empty() {
                    // All bytes were received; only the end of the body failed.
                    tracing::debug!(key = version.key, %error, "ignored after the last byte");
                    return Ok(());
                }
            }
            tries.pause_after(error).await?;
        }
    }
}

struct Tries<'a> {
    policy: &'a RetryPolicy,
    stats: &'a Stats,
    operation: &'static str,
    key: &'a str,
    seed: u64,
    /// Failures since the last progress.
    failures: u32,
    total: u32,
    /// Answers without sense since the last progress.
    nonsense: u32,
    /// Attempts without an answer since the last progress.
    silences: u32,
    /// Since the last progress.
    signed_anew: bool,
    /// What the store has said to the last attempt that it has refused.
    refusal: Option<String>,
    /// Set when the first attempt is admitted: waiting for our own requests does not count.
    deadline: Option<Instant>,
}

impl<'a> Tries<'a> {
    fn new(layer: &'a Retrying, operation: &'static str, key: &'a str, offset: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (operation, key, offset).hash(&mut hasher);
        Self {
            policy: &layer.policy,
            stats: &layer.stats,
            operation,
            key,
            seed: hasher.finish(),
            failures: 0,
            total: 0,
            nonsense: 0,
            silences: 0,
            signed_anew: false,
            refusal: None,
            deadline: None,
        }
    }

    fn begin(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| Instant::now() + self.policy.deadline)
    }

    /// One attempt, which ends at the deadline. After one that was not answered, the next one waits
    /// twice as long for a head: a store that is slow now and then would never answer if all
    /// attempts were given up too early.
    async fn within<T>(
        &mut self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let deadline = self.begin();
        let doubled = 1_u32.checked_shl(self.silences).unwrap_or(u32::MAX);
        let patience = flow::PATIENCE.saturating_mul(doubled).min(deadline - Instant::now());
        let attempt = flow::attempt(patience, timeout_at(deadline, attempt));
        let (result, refusal) = attempt.await;
        self.refusal = refusal.or(self.refusal.take());
        result.unwrap_or_else(|_elapsed| {
            Err(StoreError::TimedOut(format!("{} did not end within the deadline", self.operation)))
        })
    }

    /// Bytes were received: the deadline and the pauses start again.
    fn progressed(&mut self) {
        self.deadline = Some(Instant::now() + self.policy.deadline);
        (self.failures, self.nonsense, self.silences, self.signed_anew) = (0, 0, 0, false);
    }

    /// Waits before the next attempt and counts it; returns the error if there is none.
    async fn pause_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if let StoreError::SignatureRefused(cause) = error {
            // The store below has renewed its credentials or corrected its clock since.
            if std::mem::replace(&mut self.signed_anew, true) {
                return Err(self.lost(StoreError::Denied(cause)));
            }
            tracing::debug!(self.operation, self.key, cause, "will sign anew");
            self.stats.retries.add(1);
            return Ok(());
        }
        if !error.is_transient() {
            return Err(self.lost(error));
        }
        let deadline = self.begin();
        let mut pause = self.pause(&error);
        if let StoreError::Throttled { retry_after: Some(named) } = error {
            // Not beyond the deadline: one more attempt must be possible before it.
            let last = (deadline - Instant::now()).saturating_sub(self.policy.first_pause);
            pause = pause.max(named.min(last));
        }
        self.failures += 1;
        self.total += 1;
        self.nonsense += u32::from(error.class() == Class::Nonsense);
        self.silences += u32::from(error.class() == Class::TimedOut);
        let Self { operation, key, total, refusal, .. } = self;
        if self.nonsense >= self.policy.nonsense || Instant::now() + pause >= deadline {
            tracing::warn!(operation, key, attempts = total, %error, refusal, "gave up");
            return Err(error);
        }
        tracing::debug!(operation, key, attempts = total, ?pause, %error, "will retry");
        sleep(pause).await;
        self.stats.retries.add(1);
        Ok(())
    }

    /// Logs an error that lasts. That there is no such key is an answer, except to a GET.
    fn lost(&self, error: StoreError) -> StoreError {
        let Self { operation, key, refusal, .. } = self;
        match &error {
            StoreError::Denied(_) => {
                tracing::warn!(operation, key, %error, "access is denied");
            }
            StoreError::NotFound if *operation != "get" => {}
            error => tracing::warn!(operation, key, %error, refusal, "refused"),
        }
        error
    }

    /// Between a half and the whole of the doubled pause, by a hash: readers that failed together
    /// do not retry together, and tests repeat exactly.
    fn pause(&self, error: &StoreError) -> Duration {
        let first = match error.class() {
            Class::Throttled => self.policy.first_pause_throttled,
            Class::Nonsense => self.policy.first_pause_nonsense,
            _ => self.policy.first_pause,
        };
        let doubled = first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let mut hasher = DefaultHasher::new();
        (self.seed, self.total).hash(&mut hasher);
        let share = 128 + u32::from(hasher.finish().to_le_bytes()[0] >> 1);
        doubled.min(self.policy.longest_pause) * share / 256
    }
}

#[cfg(test)]
mod tests;
