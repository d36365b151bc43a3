//! The owner of retries: backoff, deadlines, resumption, and the number of requests in flight.
//!
//! Every store below this layer tries once. What is transient ([`StoreError::is_transient`]) is
//! asked for again until the deadline; a body that broke half way goes on from where it stopped.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BufMut;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError, check_page,
};

/// When to try again, and when to give up.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The same after the store has asked to slow down.
    pub first_pause_throttled: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
    /// An operation that has not got on for so long fails with its last error.
    pub deadline: Duration,
    /// Requests in flight at once, at least 1.
    pub max_connections: usize,
}

impl Default for RetryPolicy {
    /// A connection that broke is worth trying at once; a store that throttles needs time, and AWS
    /// documents seconds for its partitions to split. 30 s is the design's deadline: less than what
    /// people wait for before they kill a job, more than any failover of a store.
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(50),
            first_pause_throttled: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            max_connections: 128,
        }
    }
}

/// Retries what another store reports as transient.
pub struct Retrying {
    store: Arc<dyn ObjectStore>,
    policy: RetryPolicy,
    /// One permit is one request in flight. None is held while pausing.
    permits: Semaphore,
}

impl Retrying {
    /// Wraps a store that tries once.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, policy: RetryPolicy) -> Self {
        let permits = Semaphore::new(policy.max_connections.clamp(1, Semaphore::MAX_PERMITS));
        Self { store, policy, permits }
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the semaphore is never closed")
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut tries = Tries::new(&self.policy, "list", &request.prefix, 0);
        loop {
            let permit = self.permit().await;
            let page = tries.within(self.store.list_page(request)).await;
            drop(permit);
            let checked = page.and_then(|page| check_page(request, &page).map(|()| page));
            match checked {
                Ok(page) => return Ok(page),
                Err(error) => tries.pause_after(error).await?,
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let mut tries = Tries::new(&self.policy, "head", key, 0);
        loop {
            let permit = self.permit().await;
            let head = tries.within(self.store.head(key)).await;
            drop(permit);
            match head {
                Ok(head) => return Ok(head),
                Err(error) => tries.pause_after(error).await?,
            }
        }
    }

    /// A body that still flows at the deadline is asked for anew from the byte reached: one request
    /// more in 30 s, for a bound on every wait that needs no look into the store below.
    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        let mut tries = Tries::new(&self.policy, "get", &version.key, range.start);
        let mut rest = range;
        loop {
            let room = into.remaining_mut();
            let permit = self.permit().await;
            let attempt = self.store.get_range(version, rest.clone(), &mut *into);
            let got = tries.within(attempt).await;
            drop(permit);
            let Err(error) = got else { return Ok(()) };
            let taken = room.saturating_sub(into.remaining_mut());
            if taken > 0 {
                tries.progressed();
                rest.start += taken as u64;
                if rest.is_empty() {
                    // What was taken is right, and it is all; only the end was not.
                    tracing::debug!(key = version.key, %error, "ignored after the last byte");
                    return Ok(());
                }
            }
            tries.pause_after(error).await?;
        }
    }
}

/// One operation's attempts so far.
struct Tries<'a> {
    policy: &'a RetryPolicy,
    operation: &'static str,
    key: &'a str,
    seed: u64,
    /// Failures since the last progress.
    failures: u32,
    /// All failures, for the log.
    total: u32,
    /// Set with the first permit: waiting for other requests is no failure of the store.
    deadline: Option<Instant>,
}

impl<'a> Tries<'a> {
    fn new(policy: &'a RetryPolicy, operation: &'static str, key: &'a str, offset: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (operation, key, offset).hash(&mut hasher);
        let seed = hasher.finish();
        Self { policy, operation, key, seed, failures: 0, total: 0, deadline: None }
    }

    /// Starts the clock, once.
    fn begin(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| Instant::now() + self.policy.deadline)
    }

    /// One attempt, that ends at the deadline.
    async fn within<T>(
        &mut self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout_at(self.begin(), attempt).await.unwrap_or_else(|_elapsed| {
            Err(StoreError::TimedOut(format!("{} did not end within the deadline", self.operation)))
        })
    }

    /// Bytes came: the deadline and the pauses begin anew.
    fn progressed(&mut self) {
        self.deadline = Some(Instant::now() + self.policy.deadline);
        self.failures = 0;
    }

    /// Waits before the next attempt; or gives the error back when there is to be none.
    async fn pause_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !error.is_transient() {
            return Err(error);
        }
        let pause = self.pause(&error);
        self.failures += 1;
        self.total += 1;
        let deadline = self.begin();
        let Self { operation, key, total, .. } = self;
        if Instant::now() + pause >= deadline {
            tracing::warn!(operation, key, attempts = total, %error, "gave up");
            return Err(error);
        }
        tracing::debug!(operation, key, attempts = total, ?pause, %error, "will retry");
        sleep(pause).await;
        Ok(())
    }

    /// Between a half and the whole of the doubled pause: many readers that failed together do not
    /// come back together, and a test sees the same pauses every time.
    fn pause(&self, error: &StoreError) -> Duration {
        let first = match error {
            StoreError::Throttled => self.policy.first_pause_throttled,
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
