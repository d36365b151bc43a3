//! How the store is asked: one request with patience, or many at once for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::report::State;
use crate::store::{ObjectStore, ObjectVersion, StoreError};

/// One request of a check, its body included. A mount waits longer; who looks does not want to.
const LONGEST_REQUEST: Duration = Duration::from_secs(6);
/// What fails in a way that may pass is asked for so often.
const TRIES: u32 = 3;

/// Asks until it works or makes no sense to go on; and how often it failed. Silence is an answer: who
/// was silent once is not asked again. A refused signature is tried once more, with what the store has
/// by then, as the mount does: a HEAD does not tell it from a lack of rights.
pub(super) async fn ask<T, F>(mut request: impl FnMut() -> F) -> (Result<T, StoreError>, u32)
where
    F: Future<Output = Result<T, StoreError>>,
{
    let (mut failures, mut signed_anew) = (0, false);
    loop {
        let Ok(outcome) = timeout(LONGEST_REQUEST, request()).await else {
            let limit = LONGEST_REQUEST.as_secs();
            let silent = StoreError::TimedOut(format!("it was not whole within {limit} s"));
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

/// How often it failed, behind a sentence that says what worked in the end.
pub(super) fn again(failures: u32) -> String {
    match failures {
        0 => String::new(),
        1 => "; 1 attempt failed before".to_owned(),
        failures => format!("; {failures} attempts failed before"),
    }
}

/// Of what worked in the end.
pub(super) fn state(failures: u32) -> State {
    if failures == 0 { State::Ok } else { State::Slow }
}

/// The bytes of a range.
pub(super) async fn get(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    store.get_range(version, range, &mut bytes).await?;
    Ok(bytes)
}

/// Counts what has come, also of a request that is cut off.
#[derive(Debug)]
pub(super) struct Taken {
    /// Where the bytes go.
    pub(super) bytes: Vec<u8>,
    moved: Moved,
}

/// What the requests of a step have brought together: bytes, or keys.
pub(super) type Moved = Arc<AtomicU64>;

impl Taken {
    /// Nothing yet.
    pub(super) fn of(moved: &Moved) -> Self {
        Self { bytes: Vec::new(), moved: moved.clone() }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.moved.fetch_add(self.bytes.len() as u64, Relaxed);
    }
}

/// What many did together for a while.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) connections: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    pub(super) throttled: usize,
    /// What was brought, whole requests and parts of them.
    pub(super) moved: u64,
    /// One of the failures.
    pub(super) error: Option<StoreError>,
    pub(super) seconds: f64,
}

/// When a step ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// After so long, if any request has been answered;
    pub(super) time: Duration,
    /// after so long in any case;
    pub(super) longest: Duration,
    /// after so many requests.
    pub(super) requests: usize,
}

impl Step {
    /// Whole requests a second.
    pub(super) fn per_second(&self) -> Option<f64> {
        (self.done > 0).then(|| to_f64(self.done as u64) / self.seconds)
    }

    /// What was brought a second.
    pub(super) fn moved_per_second(&self) -> f64 {
        to_f64(self.moved) / self.seconds
    }

    /// What went wrong, behind a sentence that says what worked.
    pub(super) fn troubles(&self) -> String {
        let all = self.done + self.failed;
        match &self.error {
            None => String::new(),
            Some(_) if self.throttled > 0 => {
                format!("; the store throttled {} of {all} requests (503)", self.throttled)
            }
            Some(error) => format!("; {} of {all} requests failed: {error}", self.failed),
        }
    }

    pub(super) fn state(&self) -> State {
        if self.failed == 0 { State::Ok } else { State::Slow }
    }
}

/// Has so many make requests for so long, each its next when it has its last. What is under way at the
/// end is cut off.
pub(super) async fn together<F>(
    connections: usize,
    bounds: Bounds,
    request: impl Fn(usize, Moved) -> F + Clone + Send + 'static,
) -> Step
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let begun = Instant::now();
    let (next, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let moved = Moved::default();
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (next, moved, request) = (next.clone(), moved.clone(), request.clone());
            let answered = answered.clone();
            tokio::spawn(async move {
                let (mut done, mut failed, mut throttled, mut last) = (0, 0, 0, None);
                while begun.elapsed() < bounds.time {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= bounds.requests {
                        break;
                    }
                    let outcome = tokio::select! {
                        outcome = request(number, moved.clone()) => outcome,
                        () = end(begun, bounds, &answered) => break,
                    };
                    answered.store(true, Relaxed);
                    match outcome {
                        Ok(()) => done += 1,
                        Err(error) => {
                            failed += 1;
                            throttled += usize::from(matches!(error, StoreError::Throttled { .. }));
                            last = Some(error);
                            // Not to hammer a store in trouble.
                            sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                (done, failed, throttled, last)
            })
        })
        .collect();
    let mut step =
        Step { connections, done: 0, failed: 0, throttled: 0, moved: 0, error: None, seconds: 0.0 };
    for worker in workers {
        // A panic there has counted nothing.
        if let Ok((done, failed, throttled, error)) = worker.await {
            step.done += done;
            step.failed += failed;
            step.throttled += throttled;
            step.error = step.error.or(error);
        }
    }
    step.moved = moved.load(Relaxed);
    if step.done + step.failed == 0 && step.moved == 0 {
        step.failed = connections;
        let limit = bounds.longest.as_secs_f64();
        step.error = Some(StoreError::TimedOut(format!("nothing came within {limit:.1} s")));
    }
    // In a test no time passes.
    step.seconds = begun.elapsed().as_secs_f64().max(1e-3);
    step
}

/// The end of a step for requests that are under way.
async fn end(begun: Instant, bounds: Bounds, answered: &AtomicBool) {
    sleep_until(begun + bounds.time).await;
    while !answered.load(Relaxed) && begun.elapsed() < bounds.longest {
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

    const BOUNDS: Bounds =
        Bounds { time: Duration::from_secs(1), longest: Duration::from_secs(3), requests: 100 };

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
    async fn a_step_waits_for_a_first_answer_but_not_for_the_last() {
        let late = |number: usize, _| async move {
            sleep(Duration::from_secs(if number == 0 { 2 } else { 10 })).await;
            Ok(())
        };
        let step = together(4, BOUNDS, late).await;
        assert_eq!((step.done, step.failed), (1, 0));
        assert!((step.seconds - 2.0).abs() < 0.1, "{step:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_ends_in_time_and_counts_what_was_under_way() {
        // Each request brings 10 bytes and never its end, but the first.
        let some = |number: usize, moved: Moved| async move {
            let mut taken = Taken::of(&moved);
            taken.bytes.extend([0; 10]);
            if number == 0 { Ok(()) } else { std::future::pending().await }
        };
        let step = together(4, BOUNDS, some).await;
        assert_eq!((step.done, step.failed, step.moved), (1, 0, 50));
        assert!((step.seconds - 1.0).abs() < 0.01, "{step:?}");
        assert!((step.moved_per_second() - 50.0).abs() < 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_in_which_nothing_comes_has_failed() {
        let step = together(4, BOUNDS, |_, _| std::future::pending()).await;
        assert_eq!(step.per_second(), None);
        assert!(step.troubles().contains("nothing came within 3.0 s"), "{}", step.troubles());
        let step =
            together(2, BOUNDS, |_, _| async { Err(StoreError::Throttled { retry_after: None }) })
                .await;
        assert_eq!(step.throttled, step.failed);
        assert!(step.troubles().starts_with("; the store throttled"), "{}", step.troubles());
    }
}
