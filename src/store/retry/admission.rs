//! Limits on the attempts that are sent to the store: at once, and in a second. They are below the
//! pauses between attempts, so that no pause holds a connection. Which GET comes first is decided
//! above the retries, in `cache/gate.rs`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep_until, timeout};

use super::throttle::Throttle;
use crate::stats::Stats;
use crate::store::{StoreError, flow};

/// A GET of the cache that takes longer gives up its place at the cache's gate, and a request that
/// has received no byte until then its place here; at most as many may be outside of the count as
/// inside. The largest GET is faster unless its connection gives less than 8 MB/s.
///
/// A request whose body flows keeps its place here, or a slow network would have twice as many in
/// flight. A body that falls silent fails below, after the same time.
pub(crate) const OVERDUE: Duration = Duration::from_secs(2);

pub(super) struct Admission {
    requests: Semaphore,
    /// An eighth of `requests` is left to names, so that `ls` does not wait for GETs.
    gets: Semaphore,
    /// Requests outside of the count.
    overdue: Semaphore,
    throttle: Throttle,
    stats: Arc<Stats>,
}

pub(super) struct Admitted<'a> {
    admission: &'a Admission,
    _permits: [Option<SemaphorePermit<'a>>; 2],
}

impl Admission {
    pub(super) fn new(max_connections: usize, stats: Arc<Stats>) -> Self {
        let most = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let [requests, gets, overdue] = [most, most - most / 8, most].map(Semaphore::new);
        Self { requests, gets, overdue, throttle: Throttle::new(), stats }
    }

    pub(super) async fn admit(&self, is_get: bool) -> Admitted<'_> {
        if let Some(turn) = self.throttle.turn() {
            self.stats.throttled.add(1);
            sleep_until(turn).await;
        }
        let closed = "the semaphore is never closed";
        let get = if is_get { Some(self.gets.acquire().await.expect(closed)) } else { None };
        let any = self.requests.acquire().await.expect(closed);
        Admitted { admission: self, _permits: [get, Some(any)] }
    }
}

impl Admitted<'_> {
    /// Sends the request; gives up the place if it is overdue and may be outside of the count.
    pub(super) async fn hold<T>(
        self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let admission = self.admission;
        let mut request = pin!(request);
        let answer = match timeout(OVERDUE, &mut request).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let may = !flow::has_begun();
                let aside = may.then(|| admission.overdue.try_acquire().ok()).flatten();
                let _held = aside.is_none().then_some(self);
                request.await
            }
        };
        admission.throttle.answered(matches!(answer, Err(StoreError::Throttled { .. })));
        answer
    }
}
