//! Threads for file I/O, which blocks: the runtime's own are for those who do not wait for a disk.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// They end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads(Arc<Queue>);

/// Not a channel, of which one thread at a time can receive: the others would wait for that one,
/// and each job would wake two.
#[derive(Default)]
struct Queue {
    /// `None` when the threads are to end.
    jobs: Mutex<Option<VecDeque<Job>>>,
    filled: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Threads {
    pub(super) fn start(count: usize) -> std::io::Result<Self> {
        let threads = Self(Arc::default());
        *threads.0.jobs.lock() = Some(VecDeque::new());
        for _ in 0..count {
            let queue = threads.0.clone();
            std::thread::Builder::new().name("disk-read".to_owned()).spawn(move || {
                while let Some(job) = queue.next() {
                    // The panic is logged where it happens; who waits for the job sees that it
                    // has ended.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(threads)
    }

    /// Runs a job that nobody waits for.
    pub(super) fn begin(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = self.0.jobs.lock().as_mut() {
            jobs.push_back(Box::new(job));
        }
        self.0.filled.notify_one();
    }

    /// Runs a job, unless nobody waits for it any more when its turn comes.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (tell, told) = oneshot::channel();
        let job = move || {
            if !tell.is_closed() {
                // Nobody waits any more.
                let _ = tell.send(job());
            }
        };
        self.begin(job);
        told
    }
}

impl Queue {
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.as_mut()?.pop_front() {
                return Some(job);
            }
            self.filled.wait(&mut jobs);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        *self.0.jobs.lock() = None;
        self.0.filled.notify_all();
    }
}
