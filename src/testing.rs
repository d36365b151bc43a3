//! Doubles for tests: never part of the product (feature `testing`).

pub mod fault;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod memory;
