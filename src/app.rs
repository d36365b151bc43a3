//! The operator's surface: everything of the program that is not the file system.
//!
//! - [`config`]: command line and environment, checked once, become one plain [`config::Config`].
//! - [`commands`]: the subcommands: `status`, `top`, `warm`, `drop`, `unmount`, `doctor`.
//! - [`daemon`]: checks, assembles the stack, mounts, waits for a signal, unmounts.
//! - [`doctor`]: examines a store and a machine, by the daemon's own checks where it has them.
//! - [`control`]: the socket at which a running mount takes commands.
//! - [`environment`]: the variables, made tidy before anything reads them.
//! - [`metrics`]: the counters as Prometheus text, over HTTP.
//! - [`task`], [`command_error`], [`exit`]: background tasks, errors, exit codes.

pub(crate) mod command_error;
pub mod commands;
pub mod config;
pub(crate) mod control;
pub mod daemon;
pub(crate) mod doctor;
pub(crate) mod environment;
pub mod exit;
pub(crate) mod metrics;
pub(crate) mod profile;
pub(crate) mod task;
