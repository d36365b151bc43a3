//! Work that several callers wait for and one task does.

use tokio::sync::watch;

/// A task's outcome to come. The task runs to its end even when every caller has gone, for what it
/// learns is worth keeping.
#[derive(Clone, Debug)]
pub(crate) struct Flight<T> {
    /// The epoch in which the work began: who comes after names were dropped must not be told what
    /// was true before.
    epoch: u64,
    outcome: watch::Receiver<Option<T>>,
}

/// Where the task delivers its outcome, once.
pub(crate) type Landing<T> = watch::Sender<Option<T>>;

impl<T: Clone> Flight<T> {
    /// Work that begins in `epoch`.
    pub(crate) fn new(epoch: u64) -> (Self, Landing<T>) {
        let (landing, outcome) = watch::channel(None);
        (Self { epoch, outcome }, landing)
    }

    /// The epoch in which it began.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it will come to an outcome: not if its task has died and left the slot as if nobody
    /// were at work.
    pub(crate) fn is_alive(&self) -> bool {
        self.outcome.has_changed().is_ok() || self.outcome.borrow().is_some()
    }

    /// The outcome; `None` if the task died, which it does only when the runtime shuts down.
    pub(crate) async fn land(mut self) -> Option<T> {
        self.outcome.wait_for(Option::is_some).await.ok()?.clone()
    }
}
