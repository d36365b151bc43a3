//! The file system as the kernel sees it. The only `use fuser`.
//!
//! - [`mount`](mount()): makes the mount, or takes one that was handed over; unmounts.
//! - `adapter`: one kernel request, one call of the file system or of its names, one reply.
//! - `notify`: notifications of the kernel, about names and pages.
//! - `opens`: which large files are open, and whether the kernel reads them by itself.
//! - `takeover`: a connection that another process has served.
//! - `waiter`: the thread that waits for a reply, and whether a signal ends its wait.

mod adapter;
mod mount;
mod notify;
mod opens;
mod takeover;
mod waiter;

pub use mount::{Access, Existing, HandedOver, MountOptions, Mounted, mount};
pub(crate) use mount::{free, unmount_by_helper};
pub use notify::Expired;
pub use opens::Passthrough;
pub use takeover::{Agreement, TakenOver};
