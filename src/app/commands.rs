//! The words that are not a mount: `fasts3-mount status MOUNTPOINT` and the like.
//!
//! A word counts only as the first argument, so `fasts3-mount BUCKET MOUNTPOINT` means what it
//! always meant, but for buckets that are called like a word: these are written `s3://status`, or
//! `status/`.
#![allow(clippy::doc_markdown)] // the texts of the options are shown as they are

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;

use super::{daemon, doctor};
use crate::app::command_error::CommandError;
use crate::app::config::{self, NoConfig, args};
use crate::app::control::{Command, Reply};

mod client;
mod status;
mod top;
mod warm;

/// Options are wrong: `EX_USAGE` of sysexits(3).
const USAGE: u8 = 64;
/// A fault of the machine: `EX_SOFTWARE`.
const FAULT: u8 = 70;

/// Looks at, and steers, mounts that are running.
#[derive(Debug, Parser)]
#[command(name = "fasts3-mount", version = crate::VERSION)]
struct Args {
    #[command(subcommand)]
    word: Word,
}

#[derive(Debug, Subcommand)]
enum Word {
    /// Shows a mount's settings and what it has done
    Status {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Shows what a mount is doing, again and again; q ends it
    Top {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// As one JSON object a line
        #[arg(long)]
        json: bool,
        /// Between two looks
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
        interval: Duration,
        /// End after so many looks
        #[arg(long, value_name = "NUMBER")]
        count: Option<u64>,
    },
    /// Reads files and directories ahead, so that they are in memory when programs want them
    Warm {
        /// Files and directories of mounts; without any, or for `-`, they are read from standard
        /// input, one a line, or each ended by a NUL
        paths: Vec<PathBuf>,
        /// Files read at the same time
        #[arg(long, value_name = "NUMBER", default_value = "32",
              value_parser = clap::value_parser!(u16).range(1..=512))]
        jobs: u16,
        /// What was done as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Has a mount and the kernel forget all names and bytes, so that the next use asks the store
    Drop {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ends a mount and waits until it is gone
    Unmount {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Tries a store and this machine, and says what is wrong or slow, and what to expect
    Doctor(Box<Doctor>),
}

/// The bucket, and every option that a mount of it would have.
#[derive(Debug, clap::Args)]
struct Doctor {
    /// What would be mounted: bucket, bucket/prefix or s3://bucket/prefix/
    #[arg(value_name = "BUCKET")]
    bucket: args::Bucket,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Measure for a shorter time
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    store: args::StoreArgs,
    #[command(flatten)]
    cache: args::CacheArgs,
    #[command(flatten)]
    names: args::NameArgs,
    #[command(flatten)]
    permissions: args::PermissionArgs,
    #[command(flatten)]
    looking: args::LookingArgs,
    #[command(flatten)]
    log: args::LogArgs,
    #[command(flatten)]
    process: args::ProcessArgs,
}

/// What `--json` shows of a failure.
#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
}

/// The whole command line as clap knows it, the words as its subcommands: from this man pages and
/// completions are made. It is not what [`main`] parses, for a word counts only as the first argument.
pub fn command() -> clap::Command {
    let words = <Args as clap::CommandFactory>::command();
    config::command()
        // In the words' place: `after_help` is for those who read no manual.
        .after_help(None)
        .subcommands(words.get_subcommands().cloned())
        .subcommand_help_heading("COMMANDS")
        .disable_help_subcommand(true)
        .subcommand_negates_reqs(true)
}

/// The whole program: from its arguments (its own name first) to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // As mount(8)'s helper, `mount.fasts3`, the first argument is what to mount.
    let name = arguments.first().map(|path| Path::new(path).file_name().unwrap_or_default());
    let is_helper = name.is_some_and(|name| name.as_bytes().starts_with(b"mount."));
    let is_word = !is_helper
        && arguments.get(1).is_some_and(|first| {
            let is_first = |word: &clap::Command| first == word.get_name();
            <Args as clap::CommandFactory>::command().get_subcommands().any(is_first)
        });
    if !is_word {
        return daemon::main(arguments);
    }
    match config::parse_as::<Args>(arguments) {
        Ok(args) => run(args.word),
        Err(NoConfig::Shown(text)) => shown(&text),
        Err(NoConfig::Wrong(sentence)) => failed(&sentence, USAGE, false),
    }
}

fn run(word: Word) -> ExitCode {
    match word {
        Word::Status { mountpoint, json } => {
            let reply = client::ask(&mountpoint, Command::Status);
            answer(reply, json, |reply| match reply {
                Reply::Status(status) if json => serde_json::to_string_pretty(status).ok(),
                Reply::Status(status) => Some(status::text(status)),
                _ => None,
            })
        }
        Word::Top { mountpoint, json, interval, count } => {
            match top::run(&mountpoint, json, interval, count) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error.sentence, error.code, json),
            }
        }
        Word::Warm { paths, jobs, json } => match warm::run(paths, jobs.into(), json) {
            Ok(report) => {
                let text = if json { serde_json::to_string(&report).ok() } else { None };
                shown(&text.unwrap_or_else(|| report.text()));
                ExitCode::from(report.code())
            }
            Err(error) => failed(&error.sentence, error.code, json),
        },
        Word::Drop { mountpoint, json } => {
            answer(client::ask(&mountpoint, Command::Drop), json, |reply| match reply {
                Reply::Dropped(dropped) if json => serde_json::to_string(dropped).ok(),
                Reply::Dropped(dropped) => Some(format!(
                    "forgot {} names and {} bytes of {}",
                    dropped.names,
                    dropped.bytes,
                    mountpoint.display()
                )),
                _ => None,
            })
        }
        Word::Doctor(doctor) => examine(*doctor),
        Word::Unmount { mountpoint, json } => match client::unmount(&mountpoint) {
            Ok(()) if json => shown(r#"{"unmounted":true}"#),
            Ok(()) => shown(&format!("{} is unmounted", mountpoint.display())),
            Err(error) => failed(&error.sentence, error.code, json),
        },
    }
}

fn examine(doctor: Doctor) -> ExitCode {
    let Doctor { bucket, json, quick, store, cache, names, permissions, looking, log, process } =
        doctor;
    // Nothing is mounted, so any directory will do.
    let mountpoint = "/".into();
    let args =
        args::Args { bucket, mountpoint, store, cache, names, permissions, looking, log, process };
    let config = match config::validate(args) {
        Ok(config) => config,
        Err(sentence) => return failed(&sentence, USAGE, json),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no threads: {error}"), FAULT, json),
    };
    let report = runtime.block_on(doctor::run(&config, quick));
    // A look-up of a host name may hang in a thread that nothing can end.
    runtime.shutdown_background();
    let text = if json { serde_json::to_string_pretty(&report).ok() } else { None };
    shown(&text.unwrap_or_else(|| report.text()));
    ExitCode::from(report.exit_code)
}

fn answer(
    reply: Result<Reply, CommandError>,
    json: bool,
    text: impl Fn(&Reply) -> Option<String>,
) -> ExitCode {
    let told = reply.and_then(|reply| {
        let odd = || CommandError::failed("the daemon answers another question");
        text(&reply).ok_or_else(odd)
    });
    match told {
        Ok(text) => shown(&text),
        Err(error) => failed(&error.sentence, error.code, json),
    }
}

fn shown(text: &str) -> ExitCode {
    // Whoever closed the pipe has read enough.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    ExitCode::SUCCESS
}

fn failed(sentence: &str, code: u8, json: bool) -> ExitCode {
    if json && let Ok(text) = serde_json::to_string(&Failed { error: sentence }) {
        shown(&text);
    }
    eprintln!("fasts3-mount: {sentence}");
    ExitCode::from(code)
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = config::args::duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_command_line_is_that_of_a_mount_and_the_words() {
        let mut whole = command();
        // Checks itself too, in debug builds.
        whole.build();
        let names: Vec<_> = whole.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, ["status", "top", "warm", "drop", "unmount", "doctor"]);
        let options = |command: &clap::Command| command.get_arguments().count();
        assert_eq!(options(&whole), options(&config::command()) + 2, "and --help and --version");
    }
}
