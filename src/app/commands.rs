//! The subcommands: `fasts3-mount status MOUNTPOINT` and the like.
//!
//! A subcommand counts only as the first argument, so `fasts3-mount BUCKET MOUNTPOINT` means what
//! it always meant, except for buckets with the name of a subcommand: these are written
//! `s3://status`, or `status/`.
#![allow(clippy::doc_markdown)] // the texts of the options are shown as they are

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::{daemon, doctor, environment};
use crate::app::command_error::CommandError;
use crate::app::config::{self, NotParsed, args};
use crate::app::control::{Command, Reply};

mod cache;
mod client;
mod hints;
mod status;
mod top;
mod warm;

/// Shows and controls running mounts.
#[derive(Debug, Parser)]
#[command(name = "fasts3-mount", version = crate::VERSION)]
struct CommandLine {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Show the settings of a mount and what it has done
    Status(MountArg),
    /// Show what a mount is doing, updated continuously; q ends it
    Top {
        #[command(flatten)]
        mount: MountArg,
        /// Time between updates
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
        interval: Duration,
        /// Stop after this many updates
        #[arg(long, value_name = "NUMBER")]
        count: Option<u64>,
    },
    /// Read files and directories in advance, so that they are in memory when programs need them
    Warm {
        /// Files and directories in mounts; without any, or with `-`, they are read from standard
        /// input, one a line, or each ended by a NUL
        paths: Vec<PathBuf>,
        /// Files read at the same time
        #[arg(long, value_name = "NUMBER", default_value = "32",
              value_parser = clap::value_parser!(u16).range(1..=512))]
        jobs: u16,
        /// Put them on the disk of --cache-dir, past the page cache, and wait for it
        #[arg(long, conflicts_with_all = ["queue", "profile"])]
        to_disk: bool,
        /// Have the mounts fetch them in this order, of a directory the files in it and not those
        /// further below, and return when they are queued
        #[arg(long)]
        queue: bool,
        /// Have the mount on PATH do the same with what `record` has written to a file
        #[arg(long, value_name = "FILE", conflicts_with = "queue")]
        profile: Option<PathBuf>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Write to a file which names and bytes a program uses first, for `warm --profile`
    Record {
        #[command(flatten)]
        mount: MountArg,
        /// File to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Program to run meanwhile; without one, until Ctrl-C
        #[arg(trailing_var_arg = true, value_name = "COMMAND")]
        program: Vec<OsString>,
    },
    /// Make a mount and the kernel forget all names and bytes, so that the next use asks the store
    Drop(MountArg),
    /// End a mount, and wait until it is gone
    Unmount(MountArg),
    /// Show, verify or clear what mounts have stored in a directory (--cache-dir)
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Test a store and this machine: what is wrong or slow, and what to expect
    Doctor(Box<DoctorArgs>),
}

#[derive(Debug, clap::Args)]
struct MountArg {
    /// Directory on which it is mounted
    mountpoint: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// The bucket, and every option that a mount of it would have.
#[derive(Debug, clap::Args)]
struct DoctorArgs {
    /// Bucket to test: bucket, bucket/prefix or s3://bucket/prefix/
    #[arg(value_name = "BUCKET")]
    bucket: args::BucketPrefix,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Measure for a shorter time
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    options: args::MountArgs,
}

/// The text of a subcommand that has not failed, and its exit code.
struct Output {
    text: String,
    code: u8,
}

impl Output {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 0 }
    }

    fn json(text: serde_json::Result<String>) -> Result<Self, CommandError> {
        text.map(Self::new).map_err(|error| CommandError::failed(format!("no JSON: {error}")))
    }
}

/// The whole command line as clap knows it, with the subcommands: man pages and completions are
/// generated from it. It is not what [`main`] parses, because a subcommand counts only as the first
/// argument.
pub fn command() -> clap::Command {
    let subcommands = <CommandLine as clap::CommandFactory>::command();
    config::command()
        // It would list the subcommands once more.
        .after_help(None)
        .subcommands(subcommands.get_subcommands().cloned())
        .subcommand_help_heading("COMMANDS")
        .disable_help_subcommand(true)
        .subcommand_negates_reqs(true)
}

/// The whole program: from its arguments (its own name first) to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Err(error) = environment::tidy(&arguments) {
        return failed(&error, false);
    }
    // As the helper of mount(8), `mount.fasts3`, the first argument is what to mount.
    let name = arguments.first().map(|path| Path::new(path).file_name().unwrap_or_default());
    let is_helper = name.is_some_and(|name| name.as_bytes().starts_with(b"mount."));
    let is_subcommand = !is_helper
        && arguments.get(1).is_some_and(|first| {
            let is_first = |subcommand: &clap::Command| first == subcommand.get_name();
            <CommandLine as clap::CommandFactory>::command().get_subcommands().any(is_first)
        });
    if !is_subcommand {
        return daemon::main(arguments);
    }
    match config::parse_as::<CommandLine>(arguments) {
        Ok((line, _)) => run(line.subcommand),
        Err(NotParsed::Help(text)) => print(&Output::new(text)),
        Err(NotParsed::Wrong(sentence)) => failed(&CommandError::usage(sentence), false),
    }
}

fn run(subcommand: Subcommand) -> ExitCode {
    let (outcome, json) = match subcommand {
        Subcommand::Status(MountArg { mountpoint, json }) => (status(&mountpoint, json), json),
        Subcommand::Top { mount: MountArg { mountpoint, json }, interval, count } => {
            let outcome = top::run(&mountpoint, json, interval, count);
            (outcome.map(|()| Output::new("")), json)
        }
        Subcommand::Warm { paths, queue: true, json, .. } => (hints::queue(paths, json), json),
        Subcommand::Warm { paths, profile: Some(profile), json, .. } => {
            (hints::replay(&paths, &profile, json), json)
        }
        Subcommand::Warm { paths, jobs, to_disk, json, .. } => {
            (warm(paths, jobs.into(), to_disk, json), json)
        }
        Subcommand::Record { mount: MountArg { mountpoint, json }, output, program } => {
            (hints::record(&mountpoint, &output, &program, json), json)
        }
        Subcommand::Drop(MountArg { mountpoint, json }) => (forget(&mountpoint, json), json),
        Subcommand::Unmount(MountArg { mountpoint, json }) => {
            let text = if json {
                r#"{"unmounted":true}"#.to_owned()
            } else {
                format!("{} is unmounted", mountpoint.display())
            };
            (client::unmount(&mountpoint).map(|()| Output::new(text)), json)
        }
        Subcommand::Cache(command) => (cache::run(&command), command.json()),
        Subcommand::Doctor(doctor) => {
            let json = doctor.json;
            (examine(*doctor), json)
        }
    };
    match outcome {
        Ok(output) => print(&output),
        Err(error) => failed(&error, json),
    }
}

fn status(mountpoint: &Path, json: bool) -> Result<Output, CommandError> {
    let status = client::status(mountpoint)?;
    if json {
        return Output::json(serde_json::to_string_pretty(&status));
    }
    Ok(Output::new(status::text(&status)))
}

fn forget(mountpoint: &Path, json: bool) -> Result<Output, CommandError> {
    match client::ask(mountpoint, Command::Drop)? {
        Reply::Dropped(dropped) if json => Output::json(serde_json::to_string(&dropped)),
        Reply::Dropped(dropped) => Ok(Output::new(format!(
            "forgot {} names and {} bytes of {}",
            dropped.names,
            dropped.bytes,
            mountpoint.display()
        ))),
        _ => Err(client::other_reply()),
    }
}

fn warm(
    paths: Vec<PathBuf>,
    jobs: usize,
    to_disk: bool,
    json: bool,
) -> Result<Output, CommandError> {
    let report = warm::run(paths, jobs, to_disk, json)?;
    let output = if json {
        Output::json(serde_json::to_string(&report))?
    } else {
        Output::new(report.text())
    };
    Ok(Output { code: report.code(), ..output })
}

fn examine(doctor: DoctorArgs) -> Result<Output, CommandError> {
    let DoctorArgs { bucket, json, quick, options } = doctor;
    // Nothing is mounted, so any directory will do.
    let config =
        config::validate(vec![bucket], Path::new("/"), options).map_err(CommandError::usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed(format!("no threads: {error}")))?;
    let diagnosis = runtime.block_on(doctor::run(&config, quick));
    // A thread that waits for the address of a host cannot be ended.
    runtime.shutdown_background();
    let output = if json {
        Output::json(serde_json::to_string_pretty(&diagnosis))?
    } else {
        Output::new(diagnosis.text())
    };
    Ok(Output { code: diagnosis.exit_code, ..output })
}

fn print(output: &Output) -> ExitCode {
    let text = output.text.trim_end();
    if !text.is_empty() {
        // It fails when the reader of a pipe has ended, and then has read enough.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    ExitCode::from(output.code)
}

fn failed(error: &CommandError, json: bool) -> ExitCode {
    if json {
        let object = serde_json::json!({ "error": error.sentence });
        print(&Output::new(object.to_string()));
    }
    eprintln!("fasts3-mount: {}", error.sentence);
    ExitCode::from(error.exit.code())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = args::duration(text)?;
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
        assert_eq!(
            names,
            ["status", "top", "warm", "record", "drop", "unmount", "cache", "doctor"]
        );
        let options = |command: &clap::Command| command.get_arguments().count();
        assert_eq!(options(&whole), options(&config::command()) + 2, "and --help and --version");
    }
}
