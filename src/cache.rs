//! cache
mod arena;
mod slots;
