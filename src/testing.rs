//! Doubles for tests: never part of the product (feature `testing`).

pub mod fault;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;

/// A destination that has room for no more than its limit.
impl crate::store::Destination for bytes::buf::Limit<Vec<u8>> {
    fn taken(&self) -> &[u8] {
        self.get_ref()
    }

    fn put_local(&mut self, bytes: &[u8]) {
        bytes::BufMut::put_slice(self, bytes);
    }
}
