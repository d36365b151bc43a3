//! `warm --queue` and `warm --profile`: hands lists of files to the mounts, which fetch them so.
//! `record`: makes such a list of what a program uses first.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Question, ask, mount_of, mounts, other_reply};
use super::{Output, warm};
use crate::app::command_error::CommandError;
use crate::app::control::{Command, Reply};
use crate::app::profile::{self, TouchLine};
use crate::fs::prefetch::{Hinted, Touch};

/// For a list, of whose names many may have to be looked up.
const LONGEST_LIST: Duration = Duration::from_mins(10);

/// Queues files and directories.
pub(super) fn queue(paths: Vec<PathBuf>, json: bool) -> Result<Output, CommandError> {
    let mounts = mounts();
    let (found, foreign) = warm::in_mounts(warm::named(paths)?, |path| below(path, &mounts))?;
    let mut lists: BTreeMap<PathBuf, Vec<Touch>> = BTreeMap::new();
    for (mount, below) in found {
        lists.entry(mount).or_default().push(Touch::Whole(below));
    }
    let mut all = Hinted { missing: foreign.len() as u64, ..Hinted::default() };
    for (mount, touches) in lists {
        all += send(&mount, &touches)?;
    }
    // A profile is of another day; who names paths expects them to be there.
    let code = if all.missing == 0 { 0 } else { 74 };
    Ok(Output { code, ..shown(all, json)? })
}

/// Queues what was recorded.
pub(super) fn replay(paths: &[PathBuf], file: &Path, json: bool) -> Result<Output, CommandError> {
    let [mountpoint] = paths else {
        return Err(CommandError::usage("--profile needs one path, that of the mount"));
    };
    let name = file.display();
    let text = std::fs::read(file)
        .map_err(|error| CommandError::usage(format!("{name} cannot be read: {error}")))?;
    let touches = profile::read(&text)
        .map_err(|why| CommandError::usage(format!("{name} is not a profile: {why}")))?;
    shown(send(mountpoint, &touches)?, json)
}

fn send(mountpoint: &Path, touches: &[Touch]) -> Result<Hinted, CommandError> {
    let mut lines = String::new();
    for touch in touches {
        let _ = writeln!(lines, "{}", TouchLine(touch));
    }
    let mut question = Question::begin(mountpoint, Command::Prefetch)?;
    question.say(&lines)?;
    match question.end(Some(LONGEST_LIST))? {
        Reply::Hinted(hinted) => Ok(hinted),
        _ => Err(other_reply()),
    }
}

fn shown(hinted: Hinted, json: bool) -> Result<Output, CommandError> {
    if json {
        return Output::json(serde_json::to_string(&hinted));
    }
    let Hinted { files, directories, missing, refused } = hinted;
    let mut text = format!("queued {files} files and {directories} directories");
    if missing > 0 {
        let _ = write!(text, "; {missing} paths lead to nothing that can be read");
    }
    if refused > 0 {
        let _ = write!(text, "; the queue is full, and {refused} files were left out");
    }
    Ok(Output::new(text))
}

/// The mount that a path is in, and the path below it. Asks the file system only for a path that is
/// not written as the mount's.
fn below(path: &Path, mounts: &[PathBuf]) -> Option<(PathBuf, String)> {
    let split = |path: &Path| {
        let mount = mount_of(path, mounts)?;
        let below = path.strip_prefix(&mount).ok()?.to_str()?.to_owned();
        profile::is_path(&below).then_some((mount, below))
    };
    split(&std::path::absolute(path).ok()?).or_else(|| split(&path.canonicalize().ok()?))
}

/// Records what is used while a program runs, or until Ctrl-C, with nothing cached at first.
pub(super) fn record(
    mountpoint: &Path,
    file: &Path,
    program: &[OsString],
    json: bool,
) -> Result<Output, CommandError> {
    let mut question = Question::begin(mountpoint, Command::Record)?;
    question.reply(Some(LONGEST_LIST))?;
    ask(mountpoint, Command::Drop)?;
    let failed = |error: std::io::Error| CommandError::failed(format!("it cannot wait: {error}"));
    let ended = match program {
        [] => {
            eprintln!("recording; end it with Ctrl-C");
            wait_for_signal().map_err(failed)?;
            None
        }
        [name, arguments @ ..] => {
            let ended = std::process::Command::new(name).args(arguments).status();
            let shown = name.display();
            let ended = ended.map_err(|error| {
                CommandError::usage(format!("{shown} cannot be started: {error}"))
            })?;
            Some(ended)
        }
    };
    let Reply::Recorded(text) = question.end(Some(LONGEST_LIST))? else {
        return Err(other_reply());
    };
    let name = file.display();
    std::fs::write(file, &text)
        .map_err(|error| CommandError::failed(format!("{name} cannot be written: {error}")))?;
    let touches = text.lines().count() - 1;
    let output = if json {
        Output::new(json!({ "touches": touches }).to_string())
    } else {
        Output::new(format!("wrote {touches} lines to {name}"))
    };
    Ok(Output { code: ended.map_or(0, code), ..output })
}

/// As a shell tells it.
fn code(ended: ExitStatus) -> u8 {
    let code = ended.code().or(ended.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn wait_for_signal() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = term.recv() => Ok(()),
        }
    })
}
