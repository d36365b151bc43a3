//! Buffers for direct I/O: aligned memory of one unit each, recycled, because fresh memory costs
//! more than reading the bytes. Their number bounds what is read and written at once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::format::{PAGE, UNIT};

#[derive(Debug)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    permits: Arc<Semaphore>,
    count: usize,
}

/// Memory of one unit; goes back to its pool when it is dropped.
#[derive(Debug)]
pub(super) struct UnitBuffer {
    memory: Vec<u8>,
    /// Where the aligned part begins.
    start: usize,
    pool: Arc<Buffers>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(super) fn new(count: usize) -> Arc<Self> {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(count));
        Arc::new(Self { free: Mutex::default(), permits, count })
    }

    pub(super) fn try_take(self: &Arc<Self>) -> Option<UnitBuffer> {
        self.permits.clone().try_acquire_owned().ok().map(|permit| self.with(permit))
    }

    pub(super) fn are_half_free(&self) -> bool {
        self.permits.available_permits() >= self.count / 2
    }

    pub(super) async fn take(self: &Arc<Self>) -> UnitBuffer {
        let permit = self.permits.clone().acquire_owned().await;
        self.with(permit.expect("the semaphore is never closed"))
    }

    fn with(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> UnitBuffer {
        let memory = self.free.lock().pop().unwrap_or_else(|| vec![0; UNIT + PAGE]);
        // 0 where an allocation cannot be aligned: then direct I/O fails, and the disk is not used.
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        UnitBuffer { memory, start, pool: self.clone(), _permit: permit }
    }
}

impl UnitBuffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + UNIT]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + UNIT]
    }
}

impl Drop for UnitBuffer {
    fn drop(&mut self) {
        self.pool.free.lock().push(std::mem::take(&mut self.memory));
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
}
