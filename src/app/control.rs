//! The control socket: what other programs may ask of a running mount, and its answers.
//!
//! Each mount has its own socket ([`paths`]) for root and the daemon's user. One line of JSON goes
//! in, a [`Command`], and one comes back, a [`Reply`]; the client is `app/commands/client.rs`. The
//! client also sends the lines behind [`Command::Prefetch`], and ends the question when
//! [`Command::Record`] is to end.

use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind::ConnectionRefused;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Take};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::status::{Settings, Status};
use crate::app::{config, profile, task};
use crate::base::mountinfo::{self, Mount};
use crate::disk::Disk;
use crate::fs::BucketFs;
use crate::fs::prefetch::{Hinted, Touch};
use crate::fuse::Mounted;

pub(crate) mod paths;
pub(crate) mod status;

/// A peer that has not sent its line within this time is sent away.
const LONGEST_QUESTION: Duration = Duration::from_secs(5);
const LONGEST_LINE: u64 = profile::LONGEST_LINE as u64;
/// `warm --to-disk` asks again before it is over.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Command {
    Status,
    /// Forget names and bytes.
    Drop,
    Unmount,
    /// Let readers wait for the disk cache for [`PATIENCE`]; answered when what came is there.
    ToDisk,
    /// Take the hints of the lines that follow, as in a profile without its first line.
    Prefetch,
    /// Record what is touched until the client has ended its question. Has two replies.
    Record,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Status(Box<Status>),
    Dropped(Dropped),
    Unmounting,
    Patient,
    Hinted(Hinted),
    Recording,
    /// A profile.
    Recorded(String),
    /// The reason, in a sentence.
    Refused(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// Files and directories that the kernel knew by name.
    pub(crate) names: usize,
    /// Object bytes that the daemon held.
    pub(crate) bytes: u64,
}

pub(crate) struct Target {
    pub(crate) fs: Arc<BucketFs>,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) mounted: Arc<Mounted>,
    pub(crate) settings: Settings,
    pub(crate) unmount: Arc<Notify>,
}

pub(crate) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file; dropping this removes it.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Tells it from the file of the same name that a later daemon of the mountpoint makes.
    inode: u64,
}

impl Socket {
    /// Makes the socket of a mountpoint. One that a dead daemon has left is replaced.
    pub(crate) fn open(mountpoint: &Path) -> Result<Self, String> {
        let folder = paths::own_directory(|name| std::env::var_os(name))?;
        let shown = folder.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| format!("{shown} cannot be made: {error}"))?;
        // A mount that this process does not see is known by the name that was given.
        let mountpoint = match config::descriptor(mountpoint) {
            Some(_) => mountpoint.to_owned(),
            None => mountpoint.canonicalize().map_err(|error| error.to_string())?,
        };
        // Those that stay do no harm.
        let _locked = remove_left(&folder);
        let path = folder.join(paths::socket_name(&mountpoint));
        let shown = path.display();
        let failed = |error: std::io::Error| format!("{shown} cannot be made: {error}");
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(failed(error));
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = std::fs::metadata(&path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path, inode } })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The file, and a future that answers until it is dropped.
    pub(crate) fn serve(
        self,
        target: Target,
    ) -> (SocketFile, impl Future<Output = ()> + Send + use<>) {
        let (listener, target) = (self.listener, Arc::new(target));
        let serving = async move {
            let accept = |context: &mut Context<'_>| {
                listener.poll_accept(context).map_ok(|(stream, _)| stream)
            };
            task::serve("control socket", accept, |stream| talk(stream, target.clone())).await;
        };
        (self.file, serving)
    }
}

/// Removes the sockets of daemons that died, but not where their mounts are still there, of which
/// `status` then says so. No other daemon of the folder makes or removes one before the file is
/// closed.
fn remove_left(folder: &Path) -> std::io::Result<File> {
    let locked = File::open(folder)?;
    locked.lock()?;
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let ours = mountinfo::mounts(&mounts).filter(Mount::is_ours);
    let kept: Vec<_> = ours.map(|mount| paths::socket_name(&mount.path)).collect();
    // Of another kind than the sockets: it is refused where nobody is, and disturbs nobody.
    let probe = UnixDatagram::unbound()?;
    for entry in std::fs::read_dir(folder)?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let is_ours = paths::is_socket_name(&name) && entry.file_type()?.is_socket();
        let is_left = || probe.connect(&path).is_err_and(|e| e.kind() == ConnectionRefused);
        if is_ours && !kept.contains(&name) && is_left() {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(locked)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn talk(connection: UnixStream, target: Arc<Target>) {
    if let Err(error) = answer(connection, &target).await {
        tracing::debug!(%error, "a question at the control socket failed");
    }
}

async fn answer(connection: UnixStream, target: &Target) -> std::io::Result<()> {
    let credentials = connection.peer_cred()?;
    let (peer, process) = (credentials.uid(), credentials.pid().unwrap_or_default());
    let own = nix::unistd::geteuid().as_raw();
    let (from, mut to) = connection.into_split();
    let mut line = String::new();
    let mut from = BufReader::new(from.take(LONGEST_LINE));
    timeout(LONGEST_QUESTION, from.read_line(&mut line)).await??;
    let command = serde_json::from_str::<Command>(&line);
    let reply = match &command {
        // The file's mode says so too, except in the moment before it is set.
        _ if peer != own && peer != 0 => {
            Reply::Refused("only root and the user of the daemon may ask".to_owned())
        }
        Err(error) => Reply::Refused(format!("not a command: {error}")),
        Ok(Command::Status) => {
            let disk = target.disk.as_deref();
            Reply::Status(Box::new(Status::of(&target.settings, &target.fs, disk)))
        }
        Ok(Command::Drop) => drop_all(target).await,
        Ok(Command::Unmount) if target.mounted.handed_over() => {
            Reply::Refused("whoever has made the mount has to unmount it".to_owned())
        }
        Ok(Command::Unmount) => Reply::Unmounting,
        Ok(Command::ToDisk) => match &target.disk {
            Some(disk) if disk.usage().is_some() => {
                if disk.be_patient(PATIENCE) {
                    // What the disk did not take would be read from memory, and not kept.
                    target.fs.drop_bytes();
                }
                disk.settle(PATIENCE / 4).await;
                Reply::Patient
            }
            Some(_) => Reply::Refused("the disk of --cache-dir is not used now".to_owned()),
            None => Reply::Refused("the mount has no --cache-dir".to_owned()),
        },
        Ok(Command::Prefetch) => prefetch(from, &target.fs, process.unsigned_abs()).await,
        Ok(Command::Record) => match target.fs.record() {
            Some(recording) => {
                send(&mut to, &Reply::Recording).await?;
                // Whatever it says further on, only the end counts.
                let _ = tokio::io::copy(from.into_inner().get_mut(), &mut tokio::io::sink()).await;
                Reply::Recorded(profile::write(&recording.touches()))
            }
            None => Reply::Refused("it is being recorded already".to_owned()),
        },
    };
    send(&mut to, &reply).await?;
    to.shutdown().await?;
    if matches!(reply, Reply::Unmounting) {
        target.unmount.notify_one();
    }
    Ok(())
}

async fn send(to: &mut OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    let mut text = serde_json::to_string(reply)?;
    text.push('\n');
    to.write_all(text.as_bytes()).await
}

type Incoming = BufReader<Take<OwnedReadHalf>>;

/// Tells the file system of the touches that follow. Those before a line that is wrong are told.
async fn prefetch(from: Incoming, fs: &BucketFs, process: u32) -> Reply {
    let wrong = Arc::new(OnceLock::new());
    let touches =
        stream::unfold((1_u64, from, wrong.clone()), |(number, mut from, wrong)| async move {
            match next_touch(&mut from).await {
                Ok(touch) => Some((touch?, (number + 1, from, wrong))),
                Err(why) => {
                    let _ = wrong.set(format!("line {number} of the list: {why}"));
                    None
                }
            }
        });
    let hinted = fs.prefetch_all(touches, process).await;
    wrong.get().cloned().map_or(Reply::Hinted(hinted), Reply::Refused)
}

async fn next_touch(from: &mut Incoming) -> Result<Option<Touch>, String> {
    from.get_mut().set_limit(LONGEST_LINE);
    let mut line = String::new();
    match timeout(LONGEST_QUESTION, from.read_line(&mut line)).await {
        Ok(Ok(0)) => Ok(None),
        Ok(Ok(_)) => Ok(Some(profile::parse(line.trim_end_matches('\n'))?)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("it did not come in time".to_owned()),
    }
}

/// First here, then in the kernel, which at once asks again for what it is told to forget.
async fn drop_all(target: &Target) -> Reply {
    let (held, _) = target.fs.memory_bytes();
    let directories = target.fs.drop_names();
    target.fs.drop_bytes();
    let (known, mounted) = (target.fs.known(), target.mounted.clone());
    let names = known.len();
    // The kernel waits for reads in progress, which this thread must not.
    let told = spawn_blocking(move || {
        // No names: before Linux 6.16 it is told of each by itself, which `forget` does anyway.
        let _ = mounted.expire_names(&directories, Vec::new);
        mounted.forget(&known);
    });
    if let Err(panicked) = told.await {
        return Reply::Refused(format!("the kernel could not be told: {panicked}"));
    }
    let (left, _) = target.fs.memory_bytes();
    let bytes = held.saturating_sub(left);
    tracing::info!(names, bytes, "forgot all names and bytes, as the control socket asked");
    Reply::Dropped(Dropped { names, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_lines_of_json() {
        for (command, line) in [
            (Command::Status, r#"{"command":"status"}"#),
            (Command::Drop, r#"{"command":"drop"}"#),
            (Command::Unmount, r#"{"command":"unmount"}"#),
            (Command::ToDisk, r#"{"command":"to_disk"}"#),
            (Command::Prefetch, r#"{"command":"prefetch"}"#),
            (Command::Record, r#"{"command":"record"}"#),
        ] {
            assert_eq!(serde_json::to_string(&command).unwrap(), line);
            assert_eq!(serde_json::from_str::<Command>(line).unwrap(), command);
        }
        assert!(serde_json::from_str::<Command>(r#"{"command":"format"}"#).is_err());
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// Any line is one of the commands, written as one, or refused; and the other end
        /// understands any line in place of an answer, or says that it does not.
        #[test]
        fn any_line_is_a_command_or_refused() {
            let json = fuzz::text(
                "\\{?\"(command|status|refused|dropped)\": ?(\"(status|drop|unmount|stop)\"|\
                 [0-9]{1,30}|null|\\{\\})(, ?\"[a-z]{0,8}\": ?[0-9])?\\}?|\\PC{0,30}|\\[{0,4000}|\
                 (\\{\"a\":){0,600}",
            );
            fuzz::each(json, |line| {
                if let Ok(command) = serde_json::from_str::<Command>(&line) {
                    let again = serde_json::to_string(&command).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Command>(&again).unwrap(), command);
                    let name = again.trim_start_matches("{\"command\":").trim_end_matches('}');
                    prop_assert!(line.contains(name), "{} is no {}", line, name);
                }
                if let Ok(reply) = serde_json::from_str::<Reply>(&line) {
                    let again = serde_json::to_string(&reply).unwrap();
                    prop_assert!(
                        serde_json::from_str::<Reply>(&again).is_ok() && !again.contains('\n')
                    );
                }
                Ok(())
            });
        }

        /// An answer is one line, whatever it quotes, and comes back as it was.
        #[test]
        fn any_refusal_is_one_line_that_says_the_same() {
            fuzz::each(fuzz::text("(\\PC|\n|\r|\"|\u{0}){0,40}"), |why| {
                let line = serde_json::to_string(&Reply::Refused(why.clone())).unwrap();
                prop_assert!(!line.contains(['\n', '\r']));
                let Ok(Reply::Refused(said)) = serde_json::from_str(&line) else {
                    return Err(TestCaseError::fail(line));
                };
                prop_assert_eq!(said, why);
                Ok(())
            });
        }
    }
}
