//! A directory's entries: plain data that never locks and never waits.

pub(super) mod assembly;
pub(super) mod listing;
pub(super) mod node;
pub(super) mod run;
