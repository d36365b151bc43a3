//! Background tasks, and servers of connections.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::AbortHandle;

/// A background task; dropping this ends it.
pub(crate) struct Task(AbortHandle);

impl Task {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connections served at the same time; further ones wait. One that says nothing holds its place
/// for some seconds.
const MOST_CONNECTIONS: usize = 256;

/// Talks on each connection in a task of its own, until this is dropped.
pub(crate) async fn serve<C, Talk, Talking>(
    name: &'static str,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<C>>,
    talk: Talk,
) where
    Talk: Fn(C) -> Talking,
    Talking: Future<Output = ()> + Send + 'static,
{
    let mut talks = tokio::task::JoinSet::new();
    loop {
        while talks.len() >= MOST_CONNECTIONS {
            let _ = talks.join_next().await;
        }
        match std::future::poll_fn(&mut accept).await {
            Ok(connection) => _ = talks.spawn(talk(connection)),
            Err(error) => {
                // Mostly too many open files, which is not cured by asking again at once.
                tracing::debug!(%error, "a connection to the {name} failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
