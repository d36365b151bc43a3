//! Requests of the doctor: one with a time limit and retries, or many at once for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::store::{Class, ObjectStore, ObjectVersion, StoreError};

/// One request of a check, its body included. A mount waits longer.
const LONGEST_REQUEST: Duration = Duration::from_secs(6);
/// Attempts of a request whose failure may be transient.
const TRIES: u32 = 3;

/// Sends a request until it succeeds or another attempt makes no sense, and counts the failures. A
/// refused signature is tried once more with renewed credentials, as in the mount.
pub(super) async fn ask<T, F>(mut request: impl FnMut() -> F) -> (Result<T, StoreError>, u32)
where
    F: Future<Output = Result<T, StoreError>>,
{
    let (mut failures, mut signed_anew) = (0, false);
    loop {
        let Ok(outcome) = timeout(LONGEST_REQUEST, request()).await else {
            let limit = LONGEST_REQUEST.as_secs();
            let silent = StoreError::TimedOut(format!("it was not complete within {limit} s"));
            return (Err(silent), failures + 1);
        };
        match outcome {
            Err(StoreError::SignatureRefused(cause)) => {
                if std::mem::replace(&mut signed_anew, true) {
                    return (Err(StoreError::Denied(cause)), failures);
                }
            }
            Err(error) if error.is_transient() && failures + 1 < TRIES => {
                failures += 1;
                sleep(Duration::from_millis(200)).await;
            }
            outcome => return (outcome, failures),
        }
    }
}

/// The end of a sentence about a request that succeeded in the end.
pub(super) fn again(failures: u32) -> String {
    match failures {
        0 => String::new(),
        1 => "; 1 attempt failed before".to_owned(),
        failures => format!("; {failures} attempts failed before"),
    }
}

pub(super) async fn get(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    store.get_range(version, range, &mut bytes).await?;
    Ok(bytes)
}

/// Bytes, or keys, that all requests of a [`Load`] have received.
pub(super) type Received = Arc<AtomicU64>;

/// The bytes of one request, counted when this is dropped: those of a request that is cut off, too.
#[derive(Debug)]
pub(super) struct CountedBody {
    pub(super) bytes: Vec<u8>,
    received: Received,
}

impl CountedBody {
    pub(super) fn new(received: &Received) -> Self {
        Self { bytes: Vec::new(), received: received.clone() }
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        self.received.fetch_add(self.bytes.len() as u64, Relaxed);
    }
}

/// When a [`Load`] ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadLimits {
    /// After this time, if any request has been answered;
    pub(super) time: Duration,
    /// after this time in any case;
    pub(super) longest: Duration,
    /// after this number of requests.
    pub(super) requests: usize,
}

/// The outcome of many requests at once.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    pub(super) throttled: usize,
    /// Requests that were cut off included.
    pub(super) received: u64,
    /// One of the failures.
    pub(super) error: Option<StoreError>,
    pub(super) seconds: f64,
}

impl Load {
    /// Complete requests a second.
    pub(super) fn per_second(&self) -> Option<f64> {
        (self.done > 0).then(|| to_f64(self.done as u64) / self.seconds)
    }

    pub(super) fn received_per_second(&self) -> f64 {
        to_f64(self.received) / self.seconds
    }

    /// The end of a sentence about what worked.
    pub(super) fn failures(&self) -> String {
        let all = self.done + self.failed;
        match &self.error {
            None => String::new(),
            Some(_) if self.throttled > 0 => {
                format!("; the store throttled {} of {all} requests (503)", self.throttled)
            }
            Some(error) => format!("; {} of {all} requests failed: {error}", self.failed),
        }
    }

    fn add(&mut self, outcome: Result<(), StoreError>) {
        let Err(error) = outcome else {
            self.done += 1;
            return;
        };
        self.failed += 1;
        self.throttled += usize::from(error.class() == Class::Throttled);
        self.error.get_or_insert(error);
    }
}

/// Sends requests over a number of connections, on each of them the next one when the last one has
/// ended. Requests that are in flight at the end are cut off.
pub(super) async fn together<F>(
    connections: usize,
    limits: LoadLimits,
    request: impl Fn(usize, Received) -> F + Clone + Send + 'static,
) -> Load
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let begun = Instant::now();
    let (next, received) = (Arc::new(AtomicUsize::new(0)), Received::default());
    let load = Arc::new(Mutex::new(Load { connections, ..Load::default() }));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (next, received, load) = (next.clone(), received.clone(), load.clone());
        let request = request.clone();
        workers.spawn(async move {
            while begun.elapsed() < limits.time {
                let number = next.fetch_add(1, Relaxed);
                if number >= limits.requests {
                    break;
                }
                let outcome = request(number, received.clone()).await;
                let has_failed = outcome.is_err();
                load.lock().add(outcome);
                if has_failed {
                    // A store in trouble is not flooded with requests.
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    tokio::select! {
        () = async { while workers.join_next().await.is_some() {} } => {}
        () = end(begun, limits, &load) => {}
    }
    workers.shutdown().await;
    let mut load = std::mem::take(&mut *load.lock());
    load.received = received.load(Relaxed);
    if load.done + load.failed == 0 && load.received == 0 {
        load.failed = connections;
        let limit = limits.longest.as_secs_f64();
        load.error = Some(StoreError::TimedOut(format!("nothing came within {limit:.1} s")));
    }
    // In a test no time passes.
    load.seconds = begun.elapsed().as_secs_f64().max(1e-3);
    load
}

/// Returns when requests in flight are to be cut off.
async fn end(begun: Instant, limits: LoadLimits, load: &Mutex<Load>) {
    let is_answered = || {
        let load = load.lock();
        load.done + load.failed > 0
    };
    sleep_until(begun + limits.time).await;
    while !is_answered() && begun.elapsed() < limits.longest {
        sleep(Duration::from_millis(10)).await;
    }
}

#[allow(clippy::cast_precision_loss)] // counts, for rates
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LoadLimits =
        LoadLimits { time: Duration::from_secs(1), longest: Duration::from_secs(3), requests: 100 };

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_asked_for_three_times_and_silence_once() {
        let (outcome, failures) =
            ask(|| async { Err::<(), _>(StoreError::Throttled { retry_after: None }) }).await;
        assert_eq!((outcome, failures), (Err(StoreError::Throttled { retry_after: None }), 2));
        let (outcome, failures) = ask(|| async { Err::<(), _>(StoreError::NotFound) }).await;
        assert_eq!((outcome, failures), (Err(StoreError::NotFound), 0));
        let asked = AtomicUsize::new(0);
        let refused = ask(|| async {
            asked.fetch_add(1, Relaxed);
            Err::<(), _>(StoreError::SignatureRefused("403".to_owned()))
        });
        assert_eq!(refused.await, (Err(StoreError::Denied("403".to_owned())), 0));
        assert_eq!(asked.into_inner(), 2);
        let begun = Instant::now();
        let (outcome, _) = ask(std::future::pending::<Result<(), StoreError>>).await;
        assert!(matches!(outcome, Err(StoreError::TimedOut(_))), "{outcome:?}");
        assert_eq!(begun.elapsed(), LONGEST_REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_waits_for_a_first_answer_but_not_for_the_last() {
        let late = |number: usize, _| async move {
            sleep(Duration::from_secs(if number == 0 { 2 } else { 10 })).await;
            Ok(())
        };
        let load = together(4, LIMITS, late).await;
        assert_eq!((load.done, load.failed), (1, 0));
        assert!((load.seconds - 2.0).abs() < 0.1, "{load:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_ends_in_time_and_counts_what_was_under_way() {
        // Each request brings 10 bytes and never its end, but the first.
        let some = |number: usize, received: Received| async move {
            let mut body = CountedBody::new(&received);
            body.bytes.extend([0; 10]);
            if number == 0 { Ok(()) } else { std::future::pending().await }
        };
        let load = together(4, LIMITS, some).await;
        assert_eq!((load.done, load.failed, load.received), (1, 0, 50));
        assert!((load.seconds - 1.0).abs() < 0.01, "{load:?}");
        assert!((load.received_per_second() - 50.0).abs() < 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_in_which_nothing_comes_has_failed() {
        let load = together(4, LIMITS, |_, _| std::future::pending()).await;
        assert_eq!(load.per_second(), None);
        assert!(load.failures().contains("nothing came within 3.0 s"), "{}", load.failures());
        let load =
            together(2, LIMITS, |_, _| async { Err(StoreError::Throttled { retry_after: None }) })
                .await;
        assert_eq!(load.throttled, load.failed);
        assert!(load.failures().starts_with("; the store throttled"), "{}", load.failures());
    }
}
