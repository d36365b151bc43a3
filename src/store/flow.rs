//! Whether the bytes of an answer have begun to come: said where they are received (`wire`), heard
//! where requests in flight are counted (`retry`).
//!
//! Between the two lie the trait and the SDK, which have no word for it, but one task: so it is kept
//! with that. Who is silent later is given up where it is noticed, within seconds.

use std::cell::Cell;

tokio::task_local! {
    static BEGUN: Cell<bool>;
}

/// Runs a request, inside of which [`has_begun`] tells of its answer.
pub(super) async fn watched<T>(request: impl Future<Output = T>) -> T {
    BEGUN.scope(Cell::new(false), request).await
}

/// Bytes of a body came. Nobody need be watching.
pub(super) fn begins() {
    let _ = BEGUN.try_with(|begun| begun.set(true));
}

/// Whether any have come, of the request that is being watched.
pub(super) fn has_begun() -> bool {
    BEGUN.try_with(Cell::get).unwrap_or(false)
}
