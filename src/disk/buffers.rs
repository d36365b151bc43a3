//! Buffers for direct I/O: aligned memory of one unit each, recycled, because fresh memory costs
//! more than reading the bytes. Their number bounds what is read and written at once.

use std::sync::Arc;

use memmap2::MmapMut;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::format::UNIT;

#[derive(Debug)]
pub(super) struct Buffers {
    free: Mutex<Free>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Free {
    memory: Vec<MmapMut>,
    /// The fewest there were since memory was last given back.
    fewest: usize,
}

/// Memory of one unit; goes back to its pool when it is dropped.
#[derive(Debug)]
pub(super) struct UnitBuffer {
    /// A mapping of its own, so that the system has it back when it is dropped. `None` in the drop.
    memory: Option<MmapMut>,
    pool: Arc<Buffers>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(super) fn new(count: usize) -> Arc<Self> {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(count));
        Arc::new(Self { free: Mutex::default(), permits })
    }

    /// `None` if all are in use, or if the system has no memory.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<UnitBuffer> {
        self.with(self.permits.clone().try_acquire_owned().ok()?)
    }

    /// `None` if the system has no memory.
    pub(super) async fn take(self: &Arc<Self>) -> Option<UnitBuffer> {
        let permit = self.permits.clone().acquire_owned().await;
        self.with(permit.expect("the semaphore is never closed"))
    }

    /// Gives the system memory that was free ever since the last call.
    pub(super) fn release_idle(&self) {
        let mut free = self.free.lock();
        let idle = free.fewest;
        free.memory.drain(..idle);
        free.fewest = free.memory.len();
    }

    fn with(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Option<UnitBuffer> {
        let recycled = {
            let mut free = self.free.lock();
            let memory = free.memory.pop();
            free.fewest = free.fewest.min(free.memory.len());
            memory
        };
        let memory = recycled.or_else(|| MmapMut::map_anon(UNIT).ok())?;
        Some(UnitBuffer { memory: Some(memory), pool: self.clone(), _permit: permit })
    }
}

impl UnitBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for UnitBuffer {
    fn drop(&mut self) {
        self.pool.free.lock().memory.extend(self.memory.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_bounded_and_come_back() {
        let pool = Buffers::new(2);
        let first = pool.try_take().unwrap();
        assert_eq!(first.bytes().as_ptr().align_offset(4096), 0);
        assert_eq!(first.bytes().len(), 1 << 20);
        let second = pool.try_take().unwrap();
        assert!(pool.try_take().is_none());
        let memory = second.bytes().as_ptr();
        drop(second);
        assert_eq!(pool.try_take().unwrap().bytes().as_ptr(), memory);
        drop(first);
    }

    #[test]
    fn memory_that_was_not_used_goes_back_to_the_system() {
        let pool = Buffers::new(8);
        let free = || pool.free.lock().memory.len();
        drop([(); 5].map(|()| pool.try_take().unwrap()));
        pool.release_idle();
        assert_eq!(free(), 5, "they were used just now");
        drop([(); 2].map(|()| pool.try_take().unwrap()));
        pool.release_idle();
        assert_eq!(free(), 2);
        let held = pool.try_take().unwrap();
        pool.release_idle();
        assert_eq!(free(), 0, "the other is in use");
        drop(held);
        pool.release_idle();
        pool.release_idle();
        assert_eq!(free(), 0);
    }
}
