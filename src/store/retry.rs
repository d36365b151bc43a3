//! The owner of retries: backoff, deadlines, resumption, and how many requests are sent, at once and
//! in a second.
//!
//! Every store below this layer tries once. What is transient ([`StoreError::is_transient`]) is
//! asked for again until the deadline, an answer that makes no sense only a few times, and one that
//! was refused for its signature once; a body that broke half way goes on from where it stopped.
//! What is silent is asked for a second time below, where silence is noticed (`store/wire/hedge.rs`).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BufMut;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{
    Class, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError, check_page,
    flow,
};
use crate::stats::Stats;

mod throttle;

use throttle::Throttle;

/// A request that has brought no byte for so long holds no place that others need. It counts
/// elsewhere, up to as many as may be in flight at all. One whose body flows keeps its place, however
/// long it takes, or a slow network would have twice as many in flight; and a body that falls silent
/// is given up below, after as long.
const OVERDUE: Duration = Duration::from_secs(2);

/// When to try again, and when to give up.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The same after the store has asked to slow down.
    pub first_pause_throttled: Duration,
    /// The same after an answer that made no sense.
    pub first_pause_nonsense: Duration,
    /// So many such answers in a row are the store's last word: what it says wrongly five times it
    /// will say again, and a listing that leads nowhere must not be asked for until the deadline.
    pub nonsense: u32,
    /// No pause of ours is longer; the store may ask for a longer one.
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
            // Five answers within 3 s: time for a proxy on the way to come to its senses.
            first_pause_nonsense: Duration::from_millis(200),
            nonsense: 5,
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
    /// For bytes, of these: the others are left to names, so that an `ls` need not wait for GETs.
    gets: Semaphore,
    /// Requests that are [`OVERDUE`].
    overdue: Semaphore,
    throttle: Throttle,
    stats: Arc<Stats>,
}

/// Room for one request.
struct Slot<'a> {
    store: &'a Retrying,
    /// Gone when the request stepped aside.
    _permits: [Option<SemaphorePermit<'a>>; 2],
}

impl Retrying {
    /// Wraps a store that tries once.
    pub fn new(store: Arc<dyn ObjectStore>, policy: RetryPolicy, stats: Arc<Stats>) -> Self {
        let most = policy.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let [permits, gets, overdue] = [most, most - most / 8, most].map(Semaphore::new);
        Self { store, policy, permits, gets, overdue, throttle: Throttle::new(), stats }
    }

    /// Waits before the next attempt, which is counted; or gives the error back.
    async fn pause(&self, tries: &mut Tries<'_>, error: StoreError) -> Result<(), StoreError> {
        tries.pause_after(error).await?;
        self.stats.retries.add(1);
        Ok(())
    }

    /// Waits until a request may be sent.
    async fn slot(&self, is_get: bool) -> Slot<'_> {
        if let Some(turn) = self.throttle.turn() {
            self.stats.throttled.add(1);
            sleep_until(turn).await;
        }
        let closed = "the semaphore is never closed";
        let get = if is_get { Some(self.gets.acquire().await.expect(closed)) } else { None };
        let any = self.permits.acquire().await.expect(closed);
        Slot { store: self, _permits: [get, Some(any)] }
    }
}

impl Slot<'_> {
    /// Sends the request. When it is silent it makes room for others, as far as there is some.
    async fn hold<T>(
        self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let store = self.store;
        let answer = flow::watched(async {
            let mut request = pin!(request);
            if let Ok(answer) = timeout(OVERDUE, &mut request).await {
                return answer;
            }
            let aside = (!flow::has_begun()).then(|| store.overdue.try_acquire().ok()).flatten();
            let _held = aside.is_none().then_some(self);
            request.await
        });
        let answer = answer.await;
        store.throttle.answered(matches!(answer, Err(StoreError::Throttled { .. })));
        answer
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut tries = Tries::new(&self.policy, "list", &request.prefix, 0);
        loop {
            let slot = self.slot(false).await;
            let page = tries.within(slot.hold(self.store.list_page(request))).await;
            let checked = page.and_then(|page| check_page(request, &page).map(|()| page));
            match checked {
                Ok(page) => return Ok(page),
                Err(error) => self.pause(&mut tries, error).await?,
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let mut tries = Tries::new(&self.policy, "head", key, 0);
        loop {
            let slot = self.slot(false).await;
            match tries.within(slot.hold(self.store.head(key))).await {
                Ok(head) => return Ok(head),
                Err(error) => self.pause(&mut tries, error).await?,
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
            let slot = self.slot(true).await;
            let attempt = self.store.get_range(version, rest.clone(), &mut *into);
            let got = tries.within(slot.hold(attempt)).await;
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
            self.pause(&mut tries, error).await?;
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
    /// Answers without sense since the last progress.
    nonsense: u32,
    /// Whether it was signed anew since the last progress.
    signed_anew: bool,
    /// Set with the first permit: waiting for other requests is no failure of the store.
    deadline: Option<Instant>,
}

impl<'a> Tries<'a> {
    fn new(policy: &'a RetryPolicy, operation: &'static str, key: &'a str, offset: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (operation, key, offset).hash(&mut hasher);
        let seed = hasher.finish();
        Self {
            policy,
            operation,
            key,
            seed,
            failures: 0,
            total: 0,
            nonsense: 0,
            signed_anew: false,
            deadline: None,
        }
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
        (self.failures, self.nonsense, self.signed_anew) = (0, 0, false);
    }

    /// Waits before the next attempt; or gives the error back when there is to be none.
    async fn pause_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if let StoreError::SignatureRefused(cause) = error {
            // By now the store below has other credentials, or another idea of the time.
            if std::mem::replace(&mut self.signed_anew, true) {
                return Err(self.lost(StoreError::Denied(cause)));
            }
            tracing::debug!(self.operation, self.key, cause, "will sign anew");
            return Ok(());
        }
        if !error.is_transient() {
            return Err(self.lost(error));
        }
        let deadline = self.begin();
        let mut pause = self.pause(&error);
        if let StoreError::Throttled { retry_after: Some(named) } = error {
            // Not beyond the deadline: the last moment before it is for one more attempt.
            let last = (deadline - Instant::now()).saturating_sub(self.policy.first_pause);
            pause = pause.max(named.min(last));
        }
        self.failures += 1;
        self.total += 1;
        self.nonsense += u32::from(error.class() == Class::Nonsense);
        let Self { operation, key, total, .. } = self;
        if self.nonsense >= self.policy.nonsense || Instant::now() + pause >= deadline {
            tracing::warn!(operation, key, attempts = total, %error, "gave up");
            return Err(error);
        }
        tracing::debug!(operation, key, attempts = total, ?pause, %error, "will retry");
        sleep(pause).await;
        Ok(())
    }

    /// What no further attempt cures. Of these only a denial is worth a line: the others are about one
    /// object, and whoever reads it hears of it.
    fn lost(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Denied(_)) {
            let Self { operation, key, .. } = self;
            tracing::warn!(operation, key, %error, "access is denied");
        }
        error
    }

    /// Between a half and the whole of the doubled pause: many readers that failed together do not
    /// come back together, and a test sees the same pauses every time.
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
