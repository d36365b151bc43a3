//! Doubles for tests: never part of the product (feature `testing`).

pub mod fault;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;

/// How often this thread has read (`syscr`) or written (`syscw`), as the kernel counts it
/// (`proc_pid_io(5)`), if it does.
#[cfg(test)]
pub(crate) fn calls(kind: &str) -> Option<u64> {
    let told = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    crate::base::proc::field(&told, kind)?.parse().ok()
}

/// A destination that has room for no more than its limit.
impl crate::store::Destination for bytes::buf::Limit<Vec<u8>> {
    fn taken(&self) -> &[u8] {
        self.get_ref()
    }

    fn put_local(&mut self, bytes: &[u8]) {
        bytes::BufMut::put_slice(self, bytes);
    }
}
