//! What is believed of names: pure; time comes in as an argument, and nothing here waits.

pub(super) mod budget;
pub(super) mod directories;
pub(super) mod directory;
pub(super) mod expiry;
pub(super) mod inodes;
pub(super) mod mtime;
pub(super) mod numbers;
pub(super) mod partial;
pub(super) mod progress;
pub(super) mod walk;
