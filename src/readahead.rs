//! What a read makes worth fetching.

pub mod siblings;
pub mod streams;
