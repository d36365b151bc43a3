//! What is asked of the store: the only files that see it, and each question a task of its own.

mod ahead;
mod flat;
mod list;
pub(super) mod pages;
pub(super) mod plan;
mod point;
pub(super) mod shared;
