//! What the retry layer and the stores below it tell each other of one attempt beside its result.
//! The trait between them does not carry it, but both run in one task, so it is local to the task.

use std::cell::{Cell, RefCell};
use std::time::Duration;

/// The time for the head of an answer, connecting included, unless it is told. AWS advises to retry
/// after seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

struct Attempt {
    patience: Duration,
    /// Bytes of the body have been received.
    has_begun: Cell<bool>,
    refusal: RefCell<Option<String>>,
}

tokio::task_local! {
    static ATTEMPT: Attempt;
}

/// Runs an attempt, which waits for a head for `patience`; gives what it says of the refusal, if it
/// was refused.
pub(super) async fn attempt<T>(
    patience: Duration,
    request: impl Future<Output = T>,
) -> (T, Option<String>) {
    let attempt = Attempt { patience, has_begun: Cell::new(false), refusal: RefCell::default() };
    let watched = async {
        let result = request.await;
        (result, ATTEMPT.with(|attempt| attempt.refusal.take()))
    };
    ATTEMPT.scope(attempt, watched).await
}

pub(super) fn patience() -> Duration {
    ATTEMPT.try_with(|attempt| attempt.patience).unwrap_or(PATIENCE)
}

/// Bytes of a body were received. Does nothing outside of an attempt, like [`refused`].
pub(super) fn begins() {
    let _ = ATTEMPT.try_with(|attempt| attempt.has_begun.set(true));
}

pub(super) fn has_begun() -> bool {
    ATTEMPT.try_with(|attempt| attempt.has_begun.get()).unwrap_or(false)
}

/// The store refuses the request with this status and code.
pub(super) fn refused(how: String) {
    let _ = ATTEMPT.try_with(|attempt| attempt.refusal.replace(Some(how)));
}
