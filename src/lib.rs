//! fasts3-mount: an S3 bucket as a read-only file system.
//!
//! Arrows point downwards only: a module may use what stands below it, never above; only the plain
//! values of [`config::Config`] are handed down to several.
//!
//! - [`config`]: command-line arguments and environment variables, checked at the door, become one
//!   plain [`config::Config`] with units in the names.
//! - [`commands`]: the words that are not a mount: `status`, `top`, `warm`, `drop`, `unmount`, `doctor`.
//! - [`doctor`]: tries a store and a machine, and says what is wrong or slow.
//! - [`daemon`]: checks the bucket and the mountpoint, assembles the stack, mounts, says ready,
//!   waits for a signal, unmounts. Every way to fail at start-up has a sentence and an exit code.
//! - [`control`]: the socket at which a mount can be asked, and who asks there.
//! - [`metrics`]: the counters as Prometheus text, over HTTP.
//! - [`fuse`]: the adapter: one kernel request, one [`fs::BucketFs`] call, one reply. The only
//!   module that knows fuser.
//! - [`fs`]: the whole file system without FUSE, and the errno of every failure.
//! - [`namespace`]: names to inodes: listings with TTLs, point lookups, negative answers.
//! - [`reader`]: one object's access patterns: what to fetch now and what to fetch ahead.
//! - [`siblings`]: one directory's access pattern: which of a small file's siblings to fetch ahead.
//! - [`cache`]: chunks of object bytes: LRU, the memory budget, single flight, waiting readers.
//! - [`layout`]: pure arithmetic: offsets to chunks, blocks and parts.
//! - [`store`]: the seam to the object store, and everything that implements it.
//! - `mountinfo`: pure: what is mounted where, as the kernel tells it.
//! - [`stats`]: counters; nothing of ours above it.

/// Of the program, with the commit that it was built of where that is known: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = env!("FASTS3_MOUNT_VERSION");

pub mod cache;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod fs;
pub mod fuse;
#[cfg(test)]
mod fuzz;
pub mod layout;
pub mod metrics;
mod mountinfo;
pub mod namespace;
pub mod reader;
pub mod siblings;
pub mod stats;
pub mod store;
