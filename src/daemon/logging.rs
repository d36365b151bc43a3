//! Log lines go to standard error, as text or JSON; panics are log lines too.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{LogConfig, LogFormat};

/// Starts logging for the process; what speaks through the `log` crate comes along.
pub(super) fn init(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| error.to_string())?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    // systemd's journal has times of its own.
    let timed = std::env::var_os("JOURNAL_STREAM").is_none();
    let colored = lines.with_ansi(std::io::stderr().is_terminal());
    let layer = match (config.format, timed) {
        (LogFormat::Text, true) => colored.boxed(),
        (LogFormat::Text, false) => colored.without_time().boxed(),
        (LogFormat::Json, true) => colored.json().boxed(),
        (LogFormat::Json, false) => colored.json().without_time().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init()
        .map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%backtrace, "{panic}");
    }));
    Ok(())
}
