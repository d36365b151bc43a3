//! A flag for each request: bytes of its body have been received. Set where they are received
//! (`wire`), read where requests in flight are counted (`retry/admission.rs`).
//!
//! Between the two is the trait, which has no word for it, but they run in one task: so the flag is
//! local to the task. A body that falls silent later fails where that is noticed, within seconds.

use std::cell::Cell;

tokio::task_local! {
    static BEGUN: Cell<bool>;
}

/// Runs a request. Inside of it, [`has_begun`] tells about its body.
pub(super) async fn watched<T>(request: impl Future<Output = T>) -> T {
    BEGUN.scope(Cell::new(false), request).await
}

/// Bytes of a body were received. Does nothing if the request is not watched.
pub(super) fn begins() {
    let _ = BEGUN.try_with(|begun| begun.set(true));
}

/// Bytes of the watched request's body have been received.
pub(super) fn has_begun() -> bool {
    BEGUN.try_with(Cell::get).unwrap_or(false)
}
