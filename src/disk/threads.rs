//! Threads for file I/O, which blocks: the runtime's own are for those who do not wait for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// They end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads(Sender<Job>);

impl Threads {
    pub(super) fn start(count: usize) -> std::io::Result<Self> {
        let (queue, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..count {
            let jobs = jobs.clone();
            std::thread::Builder::new().name("disk-read".to_owned()).spawn(move || {
                loop {
                    let next = jobs.lock().recv();
                    let Ok(job) = next else { return };
                    // The panic is logged where it happens; who waits for the job sees that it
                    // has ended.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(Self(queue))
    }

    /// Runs a job that nobody waits for.
    pub(super) fn begin(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as `self`.
        let _ = self.0.send(Box::new(job));
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
        // The threads live as long as `self`; without them, `told` ends.
        let _ = self.0.send(Box::new(job));
        told
    }
}
