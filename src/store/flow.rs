//! A flag for each request: bytes of its body have been received. Set in `wire`, read in
//! `retry/admission.rs`; the trait between them does not carry it, but both run in one task, so the
//! flag is local to the task.

use std::cell::Cell;

tokio::task_local! {
    static BEGUN: Cell<bool>;
}

/// Runs a request with a flag of its own.
pub(super) async fn watched<T>(request: impl Future<Output = T>) -> T {
    BEGUN.scope(Cell::new(false), request).await
}

/// Bytes of a body were received. Does nothing if the request is not watched.
pub(super) fn begins() {
    let _ = BEGUN.try_with(|begun| begun.set(true));
}

pub(super) fn has_begun() -> bool {
    BEGUN.try_with(Cell::get).unwrap_or(false)
}
