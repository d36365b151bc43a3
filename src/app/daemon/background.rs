//! `--daemon`, and the helper of mount(8): the mount continues in a background process, and the
//! first process ends when the mount is usable, or fails if it cannot be.
//!
//! The background process is the program executed again, because a process that may have threads
//! cannot safely fork. On its standard output, a pipe, it writes [`READY`]; if it ends without
//! that, its error is already on standard error, which both share.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, chdir, dup2_stderr, dup2_stdout, getuid, setsid};

use super::Ended;
use super::descriptors::close_given;
use super::logging::stderr_is_file;
use crate::app::command_error::CommandError;
use crate::app::config::descriptor;

const CHILD: &str = "FASTS3_MOUNT_TELLS_STDOUT";
const READY: &[u8] = b"ready\n";

pub(super) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A process that this one starts is none.
pub(super) fn forget(command: &mut Command) {
    command.env_remove(CHILD);
}

/// Returns when the mount is usable. `arguments` are the program's own, its name first.
pub(super) fn start(arguments: &[OsString], mountpoint: &Path) -> Result<(), Ended> {
    close_given(descriptor(mountpoint));
    let internal = |what: &str, error: std::io::Error| {
        CommandError::failed(format!("the daemon cannot be {what}: {error}"))
    };
    let program = std::env::current_exe().map_err(|error| internal("found", error))?;
    let mut command = Command::new(program);
    command.arg0("fasts3-mount").args(arguments.iter().skip(1)).env(CHILD, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // Credentials are looked for in HOME, which systemd does not set for mount units.
    if std::env::var_os("HOME").is_none()
        && let Ok(Some(user)) = User::from_uid(getuid())
    {
        command.env("HOME", user.dir);
    }
    let mut child = command.spawn().map_err(|error| internal("started", error))?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).map_err(|error| internal("read from", error))?;
    }
    if said == READY {
        return Ok(());
    }
    let status = child.wait().map_err(|error| internal("waited for", error))?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if code != 0 => Err(Ended::Reported(code)),
        _ => {
            let cause = format!("the daemon ended before the mount was usable: {status}");
            Err(CommandError::failed(cause).into())
        }
    }
}

/// Leaves the session of the first process, and tells it that the mount is usable.
pub(super) fn leave() -> Result<(), CommandError> {
    let nowhere = detach()?;
    let mut stdout = std::io::stdout();
    // Fails if the first process has ended: then the mount is not wanted any more.
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(|error| internal(&error))?;
    dup2_stdout(&nowhere).map_err(|errno| internal(&errno.into()))
}

/// Leaves the session of the first process. Gives `/dev/null`.
///
/// Not before the mount is usable: under systemd's automount the kernel lets only processes of its
/// process group pass to a mountpoint that is being mounted, and a session of our own is another
/// group.
pub(super) fn detach() -> Result<File, CommandError> {
    // Fails only for the leader of a group, which is in a session of its own already.
    let _ = setsid();
    chdir("/").map_err(|errno| internal(&errno.into()))?;
    let nowhere =
        File::options().write(true).open("/dev/null").map_err(|error| internal(&error))?;
    // A reader of standard error would wait for its end, as in `$(mount …)`.
    if !stderr_is_file() {
        dup2_stderr(&nowhere).map_err(|errno| internal(&errno.into()))?;
    }
    Ok(nowhere)
}

fn internal(error: &std::io::Error) -> CommandError {
    CommandError::failed(format!("the mount cannot continue in the background: {error}"))
}
