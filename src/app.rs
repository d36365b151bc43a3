//! The operator's surface: everything of the program that is not the file system.
//!
//! - [`config`]: command line and environment, checked once, become one plain [`config::Config`].
//! - [`commands`]: the subcommands: `status`, `top`, `warm`, `drop`, `unmount`, `doctor`.
//! - [`daemon`]: checks, assembles the stack, mounts, waits for a signal, unmounts.
//! - [`control`]: the socket at which a mount is asked, and its clients.
//! - [`doctor`]: examines a store and a machine.
//! - [`exit`]: the exit codes.
//! - [`metrics`]: the counters as Prometheus text, over HTTP.

pub(crate) mod command_error;
pub mod commands;
pub mod config;
pub(crate) mod control;
pub mod daemon;
pub(crate) mod doctor;
pub mod exit;
pub(crate) mod metrics;
pub(crate) mod task;
