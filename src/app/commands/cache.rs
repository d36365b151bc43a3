//! `fasts3-mount cache`: what lies in a directory of `--cache-dir`, with or without mounts that use
//! it.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use super::Output;
use crate::app::command_error::CommandError;
use crate::app::exit::Exit;
use crate::base::text::bytes;
use crate::disk::inspect::{self, DiskSurvey};

#[derive(Debug, clap::Subcommand)]
pub(super) enum CacheCommand {
    /// Show how much is stored
    Status(DirArg),
    /// Read all that is stored, compare its checksums, and remove what is wrong
    Verify(DirArg),
    /// Remove all that is stored; mounts that use it begin anew
    Clear(DirArg),
}

#[derive(Debug, clap::Args)]
pub(super) struct DirArg {
    /// The directory that mounts have as --cache-dir
    dir: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

impl CacheCommand {
    pub(super) fn json(&self) -> bool {
        let (Self::Status(arg) | Self::Verify(arg) | Self::Clear(arg)) = self;
        arg.json
    }
}

pub(super) fn run(command: &CacheCommand) -> Result<Output, CommandError> {
    match command {
        CacheCommand::Status(DirArg { dir, json }) => {
            let found = inspect::survey(dir, false, |_| ()).map_err(|error| failed(dir, &error))?;
            if *json { Output::json(serde_json::to_string(&found)) } else { Ok(shown(&found)) }
        }
        CacheCommand::Verify(DirArg { dir, json }) => {
            let is_shown = !json && std::io::stderr().is_terminal();
            let mut next = 0;
            let progress = |done: u64| {
                if is_shown && done >= next {
                    next = done + (1 << 30);
                    eprint!("\r\x1b[K{} compared", bytes(done));
                    let _ = std::io::stderr().flush();
                }
            };
            let found = inspect::survey(dir, true, progress);
            if is_shown {
                eprint!("\r\x1b[K");
            }
            let found = found.map_err(|error| failed(dir, &error))?;
            let code = if found.wrong == 0 { 0 } else { Exit::IoErr.code() };
            if *json {
                return Ok(Output { code, ..Output::json(serde_json::to_string(&found))? });
            }
            let text = format!("{}\n{} wrong, and removed", shown(&found).text, found.wrong);
            Ok(Output { code, ..Output::new(text) })
        }
        CacheCommand::Clear(DirArg { dir, json }) => {
            let removed = inspect::clear(dir).map_err(|error| failed(dir, &error))?;
            Ok(Output::new(if *json {
                format!(r#"{{"removed_bytes":{removed}}}"#)
            } else {
                format!("removed {} from {}", bytes(removed), dir.display())
            }))
        }
    }
}

fn shown(found: &DiskSurvey) -> Output {
    Output::new(format!(
        "{} in {} files, of which {} in {} pieces can be found; {} of the disk are free",
        bytes(found.bytes),
        found.segments,
        bytes(found.usable_bytes),
        found.extents,
        bytes(found.free_bytes),
    ))
}

fn failed(dir: &Path, error: &std::io::Error) -> CommandError {
    let exit = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Exit::NoInput,
        _ if error.raw_os_error() == Some(libc::ELOOP) => Exit::NoInput,
        ErrorKind::PermissionDenied => Exit::NoPerm,
        _ => Exit::IoErr,
    };
    CommandError::new(exit, format!("the cache in {} cannot be read: {error}", dir.display()))
}
