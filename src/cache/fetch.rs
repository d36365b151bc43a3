//! One GET: admission, the request into a chunk's memory, measurements, and the report of a failure
//! to the readers that wait.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;

use bytes::BufMut as _;
use tokio::time::{Instant, timeout};

use super::Purpose;
use super::arena::BlockWriter;
use super::chunk::Chunk;
use super::gate::Pass;
use super::lease::Lease;
use super::pace::Timing;
use crate::store::StoreError;
use crate::store::retry::OVERDUE;

/// Sends one GET into one run of blocks, when its place in the gate's queue is reached. However it
/// ends, the drop of the writer leaves each block ready or empty.
pub(super) async fn fetch(
    lease: Lease,
    mut writer: BlockWriter,
    purpose: Purpose,
    place: impl Future<Output = Pass>,
) {
    let (cache, source) = (&lease.cache, &lease.source);
    let bytes = writer.bytes().len() as u64;
    let mut pass = match purpose {
        Purpose::Demand => place.await,
        Purpose::Ahead => pass_ahead(&lease, writer.blocks(), bytes, place).await,
    };
    let mut report = FailureReport {
        chunk: &lease,
        blocks: writer.blocks().clone(),
        failure: Some(StoreError::Unavailable("the fetch was abandoned".to_owned())),
    };
    let range = lease.span(writer.bytes().clone()).object_range();
    cache.stats.gets.add(1);
    let fresh = (purpose == Purpose::Ahead && writer.is_fresh())
        .then(|| (writer.memory().clone(), writer.bytes().clone()));
    let begun = Instant::now();
    let mut populating = None;
    let outcome = {
        let mut get = pin!(cache.store.get_range(&source.meta.version, range, &mut writer));
        match poll_fn(|context| Poll::Ready(get.as_mut().poll(context))).await {
            Poll::Ready(outcome) => outcome,
            // The request is on its way: memory is populated while the store prepares its answer.
            Poll::Pending => {
                populating = fresh.map(|(memory, bytes)| cache.populator.populate(memory, bytes));
                match timeout(OVERDUE, &mut get).await {
                    Ok(outcome) => outcome,
                    Err(_elapsed) => {
                        pass.step_aside();
                        get.await
                    }
                }
            }
        }
    };
    drop(pass);
    cache.stats.bytes_fetched.add(writer.written() as u64);
    if purpose == Purpose::Ahead {
        cache.stats.bytes_ahead.add(writer.written() as u64);
    }
    if let Some(first) = writer.first_byte() {
        cache.stats.first_byte.add(first - begun);
        if outcome.is_ok() {
            let timing = Timing { first_byte: first - begun, body: first.elapsed(), bytes };
            cache.gate.learn(timing, cache.arena.received());
        }
    }
    if let Some(populating) = populating {
        // Must end before the charge does. A panic there leaves the memory unpopulated.
        let _ = populating.await;
    }
    report.failure = match outcome {
        Ok(()) if !writer.has_remaining_mut() => None,
        Ok(()) => Some(StoreError::nonsense("the body ended early".to_owned())),
        Err(error) => Some(error),
    };
}

/// Waits until a GET of readahead is admitted, or until a reader wants its bytes: then it is
/// admitted as demand.
async fn pass_ahead(
    lease: &Lease,
    blocks: &Range<usize>,
    bytes: u64,
    place: impl Future<Output = Pass>,
) -> Pass {
    {
        let mut pass = pin!(place);
        loop {
            let mut wanted = pin!(lease.wanted.notified());
            wanted.as_mut().enable();
            if lease.is_wanted(blocks) {
                break;
            }
            tokio::select! {
                pass = &mut pass => return pass,
                () = wanted => {}
            }
        }
    }
    lease.cache.gate.enter(Purpose::Demand, bytes, lease.source.id).await
}

/// Reports to the readers of these blocks why they were not fetched, even if the fetch panics or is
/// cancelled. It is dropped before the writer, whose drop wakes the readers.
struct FailureReport<'a> {
    chunk: &'a Chunk,
    blocks: Range<usize>,
    failure: Option<StoreError>,
}

impl Drop for FailureReport<'_> {
    fn drop(&mut self) {
        if let Some(error) = self.failure.take() {
            self.chunk.failures.lock().add(self.blocks.clone(), error);
        }
    }
}
