//! The thread that has the system provide memory for parts, one after another, while the store
//! prepares its answers.
//!
//! One thread: several would take the cores from those that send requests and answer readers, and
//! the kernel lets only one change the process's mappings at a time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

use super::arena::Memory;

pub(super) struct Populator {
    jobs: Sender<Job>,
}

struct Job {
    memory: Arc<Memory>,
    bytes: Range<usize>,
    done: oneshot::Sender<()>,
}

impl Populator {
    /// The thread ends with the populator.
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, received) = channel::<Job>();
        std::thread::Builder::new().name("populate".to_owned()).spawn(move || {
            for Job { memory, bytes, done } in received {
                memory.populate(&bytes);
                drop(memory);
                let _ = done.send(());
            }
        })?;
        Ok(Self { jobs })
    }

    /// The receiver is ready when the thread no longer touches these bytes, which must be charged
    /// until then.
    pub(super) fn populate(
        &self,
        memory: Arc<Memory>,
        bytes: Range<usize>,
    ) -> oneshot::Receiver<()> {
        let (done, populated) = oneshot::channel();
        // Without the thread the memory is populated by the writes to it.
        let _ = self.jobs.send(Job { memory, bytes, done });
        populated
    }
}
