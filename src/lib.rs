//! fasts3-mount: an S3 bucket as a read-only file system.
//!
//! Arrows point downwards only: a module may use what stands below it in this list, never above.
//!
//! - [`app`]: the operator's surface: config, daemon, control socket, metrics, subcommands.
//! - [`fuse`]: the adapter: one kernel request, one call, one reply; mounting; notifications.
//! - [`fs`]: the whole file system without FUSE.
//! - `readahead`: what a read makes worth fetching: streams and siblings.
//! - [`names`]: names to inodes: listings with TTLs, point lookups, negative answers.
//! - `cache`: chunks of object bytes: LRU, the memory budget, single flight, waiting readers.
//! - [`errno`]: every way in which a call can fail, and its errno.
//! - [`disk`]: object bytes on the local disk, a layer of the store.
//! - [`store`]: the seam to the object store, and everything that implements it.
//! - [`stats`]: counters, histograms, and the busiest files and threads.
//! - `base`: pure leaves.
//! - `testing`: doubles for tests, never part of the product.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

/// The version of the program, with its commit if that is known: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = env!("FASTS3_MOUNT_VERSION");

// Commands and the daemon run on wall time.
#[allow(clippy::disallowed_methods)]
pub mod app;
pub mod base;
mod cache;
pub mod disk;
pub mod errno;
pub mod fs;
pub mod fuse;
pub mod names;
mod readahead;
pub mod stats;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
