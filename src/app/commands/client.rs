//! The other end of the control socket: finds the mount and asks its daemon.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::app::command_error::CommandError;
use crate::app::config;
use crate::app::control::paths::{directories, own_directory, socket_name};
use crate::app::control::status::Status;
use crate::app::control::{Command, Reply};
use crate::app::exit::Exit;
use crate::base::mountinfo::{self, Mount};

/// A daemon that is alive answers at once.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);
/// A drop waits for reads that wait for the store.
const LONGEST_DROP: Duration = Duration::from_secs(45);
/// Resolving a path asks other file systems, which may hang.
const LONGEST_PATH: Duration = Duration::from_secs(5);
/// A busy mount is detached, so an unmount takes as long as the daemon's last requests.
const LONGEST_UNMOUNT: Duration = Duration::from_secs(30);

/// The mounts of this program, as the kernel lists them.
pub(super) fn mounts() -> Vec<PathBuf> {
    of_mountinfo(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

fn of_mountinfo(mountinfo: &[u8]) -> Vec<PathBuf> {
    mountinfo::mounts(mountinfo).filter(Mount::is_ours).map(|mount| mount.path).collect()
}

/// The mount that a path is in, of those listed.
pub(super) fn mount_of(path: &Path, mounts: &[PathBuf]) -> Option<PathBuf> {
    let inside = mounts.iter().filter(|mount| path.starts_with(mount));
    inside.max_by_key(|mount| mount.components().count()).cloned()
}

/// Checks that this program is mounted there; gives its path without symbolic links.
///
/// A mount whose daemon hangs answers no system call, so none is made where the path says enough.
pub(super) fn check_mount(mountpoint: &Path) -> Result<PathBuf, CommandError> {
    // This process need not see the mount; its socket will tell.
    if config::descriptor(mountpoint).is_some() {
        return Ok(mountpoint.to_owned());
    }
    let shown = mountpoint.display();
    let mounts = mounts();
    let absolute = std::path::absolute(mountpoint)
        .map_err(|error| CommandError::no_mount(format!("{shown} cannot be used: {error}")))?;
    let real = match mount_of(&absolute, &mounts) {
        Some(_) => absolute,
        None => resolved(absolute, mountpoint)?,
    };
    match mount_of(&real, &mounts) {
        // Its socket is found by its path, in which a slash at the end counts.
        Some(mount) if mount == real => Ok(mount),
        Some(mount) => {
            let mount = mount.display();
            Err(CommandError::no_mount(format!("{shown} is inside a mount, which is on {mount}")))
        }
        None => Err(CommandError::no_mount(format!("no fasts3-mount is mounted on {shown}"))),
    }
}

/// Resolves a path, in a thread that may hang.
fn resolved(path: PathBuf, mountpoint: &Path) -> Result<PathBuf, CommandError> {
    let shown = mountpoint.display();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // All but the last name: that may be a mountpoint, which must not be asked.
        let parent = path.parent().map(Path::canonicalize);
        let real = match (parent, path.file_name()) {
            (Some(Ok(parent)), Some(name)) if mounts().contains(&parent.join(name)) => {
                Ok(parent.join(name))
            }
            _ => path.canonicalize(),
        };
        // The receiver may have given up.
        let _ = tell.send(real);
    });
    match told.recv_timeout(LONGEST_PATH) {
        Ok(Ok(real)) => Ok(real),
        Ok(Err(error)) => Err(CommandError::no_mount(format!("{shown} cannot be used: {error}"))),
        Err(_elapsed) => {
            let limit = LONGEST_PATH.as_secs();
            Err(CommandError::no_daemon(format!(
                "{shown} cannot be looked at within {limit} s: a file system on its path hangs"
            )))
        }
    }
}

/// Asks the daemon of a mountpoint.
pub(super) fn ask(mountpoint: &Path, command: Command) -> Result<Reply, CommandError> {
    ask_at(&check_mount(mountpoint)?, command)
}

pub(super) fn status(mountpoint: &Path) -> Result<Status, CommandError> {
    match ask(mountpoint, Command::Status)? {
        Reply::Status(status) => Ok(*status),
        _ => Err(other_reply()),
    }
}

pub(super) fn other_reply() -> CommandError {
    CommandError::failed("the reply of the daemon is for another command")
}

fn ask_at(mountpoint: &Path, command: Command) -> Result<Reply, CommandError> {
    let limit = if command == Command::Drop { LONGEST_DROP } else { LONGEST_ANSWER };
    Question::begin_at(mountpoint, command)?.end(Some(limit))
}

/// A question that is not over: some commands are followed by lines, or by nothing for a while.
pub(super) struct Question {
    mountpoint: PathBuf,
    connection: BufReader<UnixStream>,
}

impl Question {
    pub(super) fn begin(mountpoint: &Path, command: Command) -> Result<Self, CommandError> {
        Self::begin_at(&check_mount(mountpoint)?, command)
    }

    fn begin_at(mountpoint: &Path, command: Command) -> Result<Self, CommandError> {
        let connection = BufReader::new(connect(mountpoint)?);
        let mut question = Self { mountpoint: mountpoint.to_owned(), connection };
        let mut line = serde_json::to_string(&command).expect("commands are plain");
        line.push('\n');
        question.say(&line)?;
        Ok(question)
    }

    pub(super) fn say(&mut self, lines: &str) -> Result<(), CommandError> {
        match self.connection.get_mut().write_all(lines.as_bytes()) {
            // The daemon has read enough to refuse, and says so.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            said => said.map_err(|error| self.failed(&error, None)),
        }
    }

    /// Ends it; the reply, for which a daemon may take as long as `limit`.
    pub(super) fn end(mut self, limit: Option<Duration>) -> Result<Reply, CommandError> {
        // It fails if the daemon is gone, of which reading tells.
        let _ = self.connection.get_mut().shutdown(Shutdown::Write);
        self.reply(limit)
    }

    pub(super) fn reply(&mut self, limit: Option<Duration>) -> Result<Reply, CommandError> {
        let mut answer = String::new();
        let read = self.connection.get_mut().set_read_timeout(limit);
        let read = read.and_then(|()| self.connection.read_line(&mut answer));
        read.map_err(|error| self.failed(&error, limit))?;
        let shown = self.mountpoint.display();
        let reply = serde_json::from_str(&answer).map_err(|error| {
            CommandError::failed(format!(
                "the daemon of {shown} answers in a way that is not understood ({error}); is it of \
                 another version?"
            ))
        })?;
        match reply {
            Reply::Refused(why) => {
                Err(CommandError::failed(format!("the daemon of {shown} refuses: {why}")))
            }
            reply => Ok(reply),
        }
    }

    fn failed(&self, error: &std::io::Error, limit: Option<Duration>) -> CommandError {
        let shown = self.mountpoint.display();
        CommandError::no_daemon(match (error.kind(), limit) {
            (ErrorKind::WouldBlock | ErrorKind::TimedOut, Some(limit)) => format!(
                "the daemon of {shown} did not answer within {} s: it hangs; see its log, or end it \
                 with SIGKILL, and if no other takes its place, free its mount with `umount -l \
                 {shown}`",
                limit.as_secs()
            ),
            _ => format!("the daemon of {shown} did not answer: {error}"),
        })
    }
}

fn connect(mountpoint: &Path) -> Result<UnixStream, CommandError> {
    let shown = mountpoint.display();
    let name = socket_name(mountpoint);
    let folders = directories(|name| std::env::var_os(name));
    let listed: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let mut none = CommandError::no_daemon(format!(
        "the daemon of {shown} has no control socket in any of {}; was it started with another \
         RUNTIME_DIRECTORY or XDG_RUNTIME_DIR?",
        listed.join(", "),
    ));
    for folder in folders {
        let path = folder.join(&name);
        match UnixStream::connect(&path).map_err(|error| error.kind()) {
            Ok(connection) => return Ok(connection),
            Err(ErrorKind::PermissionDenied) => {
                let or = match own_directory(|name| std::env::var_os(name)) {
                    Ok(_) => String::new(),
                    Err(why) => format!(", or yours, whose socket is not found because {why}"),
                };
                let sentence = format!(
                    "the mount on {shown} is another user's{or}; ask as that user or as root"
                );
                none = CommandError::new(Exit::NoPerm, sentence);
            }
            Err(ErrorKind::ConnectionRefused) => {
                none = CommandError::no_daemon(format!(
                    "nothing answers at {}: the daemon of {shown} is gone; free its mount with \
                     `fusermount3 -u {shown}`, or as root `umount -l {shown}`",
                    path.display()
                ));
            }
            Err(_) => {}
        }
    }
    Err(none)
}

/// Ends a mount and waits until it is gone.
pub(super) fn unmount(mountpoint: &Path) -> Result<(), CommandError> {
    let real = check_mount(mountpoint)?;
    ask_at(&real, Command::Unmount)?;
    let begun = Instant::now();
    while mounts().contains(&real) {
        if begun.elapsed() > LONGEST_UNMOUNT {
            let shown = mountpoint.display();
            let sentence = format!("{shown} is still mounted; see the daemon's log");
            return Err(CommandError::failed(sentence));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_told_from_others() {
        let info = b"36 35 98:0 /root /mnt/a\\040b rw shared:7 - fuse.fasts3 s3://x/ ro\n\
                     37 35 98:0 / /mnt/c rw - tmpfs tmpfs rw\n\
                     38 35 98:0 / /mnt/a\\040b/in\\012ner ro - fuse s3://y/ ro\n\
                     39 35 98:0 / /mnt/d ro - fuse other ro\n";
        let mounts = of_mountinfo(info);
        assert_eq!(mounts, [Path::new("/mnt/a b"), Path::new("/mnt/a b/in\nner")]);
        let of = |path: &str| mount_of(Path::new(path), &mounts);
        assert_eq!(of("/mnt/a b/x"), Some(mounts[0].clone()));
        assert_eq!(of("/mnt/a b/in\nner/x"), Some(mounts[1].clone()));
        assert_eq!(of("/mnt/a bc"), None);
        assert_eq!(of_mountinfo(b"garbage\n\n"), Vec::<PathBuf>::new());
    }
}
