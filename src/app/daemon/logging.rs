//! Log lines go to standard error, as text or JSON, or with their fields to systemd's journal; so
//! does a panic, with a backtrace if `RUST_BACKTRACE` asks for one.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;

use parking_lot::Mutex;
use tracing::Subscriber;
use tracing::field::display;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::app::config::{LogConfig, LogFormat};

mod journal;
mod line;
mod repeats;

use journal::Journal;
use repeats::RateLimited;

/// Where systemd's journal takes lines with fields (`systemd.journal-fields(7)`).
const JOURNAL: &str = "/run/systemd/journal/socket";

pub(super) struct Logs {
    filter: Handle<EnvFilter, Registry>,
    given: String,
    /// The index of the [`LOUDER`] filter in force.
    step: Mutex<usize>,
    repeats: RateLimited,
}

/// Added to the filter, one after the other, by SIGUSR1.
const LOUDER: [&str; 3] = ["", ",fasts3_mount=debug", ",fasts3_mount=trace"];

impl Logs {
    pub(super) fn louder(&self) {
        let next = *self.step.lock() + 1;
        self.set(next.min(LOUDER.len() - 1));
    }

    pub(super) fn as_given(&self) {
        self.set(0);
    }

    fn set(&self, step: usize) {
        *self.step.lock() = step;
        let directives = format!("{}{}", self.given, LOUDER[step]);
        let told = EnvFilter::try_new(&directives)
            .map_err(|error| error.to_string())
            .and_then(|filter| self.filter.reload(filter).map_err(|error| error.to_string()));
        match told {
            Ok(()) => tracing::info!("log level: {directives}"),
            Err(error) => tracing::warn!("log level {directives} cannot be set: {error}"),
        }
    }

    /// Logs the counts of repeated lines when they are due; has no end.
    pub(super) async fn sum_up(&self) {
        loop {
            tokio::time::sleep(repeats::WINDOW).await;
            self.repeats.tell(false);
        }
    }

    pub(super) fn flush(&self) {
        self.repeats.tell(true);
    }
}

/// Starts logging for the process, events of the `log` crate included. In the background, standard
/// error is that of the first process, unless it is a file.
pub(super) fn init(config: &LogConfig, in_background: bool) -> Result<Logs, String> {
    let (filter, handle) =
        reload::Layer::new(EnvFilter::try_new(&config.filter).map_err(|error| error.to_string())?);
    let repeats = RateLimited::default();
    tracing_subscriber::registry()
        .with(filter)
        .with(repeats.clone())
        .with(output(config.format, in_background))
        .try_init()
        .map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let cause = panic.payload_as_str().unwrap_or("a value that is not text");
        let backtrace = Some(Backtrace::capture());
        let backtrace =
            backtrace.filter(|it| it.status() == BacktraceStatus::Captured).map(display);
        tracing::error!(at, backtrace, "panic: {cause}");
    }));
    Ok(Logs { filter: handle, given: config.filter.clone(), step: Mutex::new(0), repeats })
}

fn output<S>(format: LogFormat, in_background: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let to_journal = stderr_is_journal();
    let leaving = in_background && !stderr_is_file();
    // JSON is expected on standard error.
    if (to_journal || leaving)
        && format == LogFormat::Text
        && let Ok(journal) = Journal::open(JOURNAL.as_ref())
    {
        return journal.boxed();
    }
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    // The journal has times of its own.
    let layer = match (format, to_journal) {
        (LogFormat::Text, false) => lines.boxed(),
        (LogFormat::Text, true) => lines.without_time().boxed(),
        (LogFormat::Json, false) => lines.json().boxed(),
        (LogFormat::Json, true) => lines.json().without_time().boxed(),
    };
    if leaving {
        // The user of mount(8) is shown problems only.
        return layer.with_filter(tracing::level_filters::LevelFilter::WARN).boxed();
    }
    layer
}

/// systemd sets the device and inode of the stream that it has connected to the journal; standard
/// error may have been redirected since.
fn stderr_is_journal() -> bool {
    let Some(told) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return false };
    told.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// A file can be written after the first process has ended.
pub(super) fn stderr_is_file() -> bool {
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A panic hook belongs to the whole process, so this runs in one of its own.
    #[test]
    #[ignore = "run by a_panic_is_one_log_line_with_a_backtrace_if_asked"]
    fn panics_with_logging() {
        let config = LogConfig { filter: "info".to_owned(), format: LogFormat::Json };
        let _logs = init(&config, false).unwrap();
        panic!("a panic of the test");
    }

    #[test]
    fn a_panic_is_one_log_line_with_a_backtrace_if_asked() {
        for (asked, has_backtrace) in [("0", false), ("1", true)] {
            let name = "app::daemon::logging::tests::panics_with_logging";
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--ignored", "--nocapture"])
                .env("RUST_BACKTRACE", asked)
                .output()
                .unwrap();
            let log = String::from_utf8(output.stderr).unwrap();
            let lines: Vec<serde_json::Value> =
                log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let [line] = &lines[..] else { panic!("not one line: {log}") };
            let fields = &line["fields"];
            assert_eq!(fields["message"], "panic: a panic of the test", "{log}");
            assert!(fields["at"].as_str().unwrap().contains("logging.rs:"), "{log}");
            assert_eq!(fields["backtrace"].is_string(), has_backtrace, "{log}");
        }
    }
}
