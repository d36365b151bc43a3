//! The control socket: what other programs may ask of a running mount, and its answers.
//!
//! Each mount has a socket of its own in the runtime directory, named after the mountpoint, mode
//! 0600; who connects must be the user of the daemon, or root. One line of JSON goes in, a
//! [`Command`], and one comes back, a [`Reply`]. The other end is
//! `app/commands/client.rs`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::status::{Settings, Status};
use crate::app::{config, task};
use crate::fs::BucketFs;
use crate::fuse::Mounted;

pub(crate) mod status;

/// Who asks is served within this time, and one who says nothing is sent away.
const LONGEST_QUESTION: Duration = Duration::from_secs(5);
/// A longer line is no command.
const LONGEST_LINE: u64 = 4096;
/// Where the sockets of root's mounts are.
const SYSTEM: &str = "/run/fasts3-mount";
/// Below the runtime directory of a user.
const OF_USER: &str = "fasts3-mount";

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Command {
    /// Settings and totals.
    Status,
    /// Forget names and bytes.
    Drop,
    /// End the mount.
    Unmount,
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Settings and totals.
    Status(Box<Status>),
    /// What was forgotten.
    Dropped(Dropped),
    /// The mount ends now.
    Unmounting,
    /// Why it cannot be done.
    Refused(String),
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// Files and directories that the kernel knew by name.
    pub(crate) names: usize,
    /// Object bytes that the daemon held.
    pub(crate) bytes: u64,
}

/// A mount as the control socket sees it.
pub(crate) struct Target {
    /// The file system.
    pub(crate) fs: Arc<BucketFs>,
    /// The mount.
    pub(crate) mounted: Arc<Mounted>,
    /// What does not change while it lives.
    pub(crate) settings: Settings,
    /// Told when the mount is to end.
    pub(crate) unmount: Arc<Notify>,
}

/// The socket of a mount.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// Its file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Which file of this name is ours: a later daemon of the same mountpoint makes another.
    inode: u64,
}

impl Socket {
    /// Makes the socket of a mountpoint. A daemon that died may have left one, which is replaced.
    pub(crate) fn open(mountpoint: &Path) -> Result<Self, String> {
        let folder = own_directory(|name| std::env::var_os(name))?;
        let shown = folder.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| format!("{shown} cannot be made: {error}"))?;
        // Of a mount that is seen elsewhere only, the name is all there is.
        let mountpoint = match config::descriptor(mountpoint) {
            Some(_) => mountpoint.to_owned(),
            None => mountpoint.canonicalize().map_err(|error| error.to_string())?,
        };
        let path = folder.join(socket_name(&mountpoint));
        let shown = path.display();
        let failed = |error: std::io::Error| format!("{shown} cannot be made: {error}");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = std::fs::metadata(&path).map_err(failed)?.ino();
        Ok(Self { listener, file: SocketFile { path, inode } })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The file, and what answers until it is dropped.
    pub(crate) fn serve(
        self,
        target: Target,
    ) -> (SocketFile, impl Future<Output = ()> + Send + use<>) {
        (self.file, serve(self.listener, target))
    }
}

async fn serve(listener: UnixListener, target: Target) {
    let target = Arc::new(target);
    let talk = |stream| {
        let target = target.clone();
        async move {
            if let Err(error) = talk(stream, &target).await {
                tracing::debug!(%error, "a question at the control socket failed");
            }
        }
    };
    task::serve(
        "control socket",
        |context| listener.poll_accept(context).map_ok(|(stream, _)| stream),
        talk,
    )
    .await;
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn talk(connection: UnixStream, target: &Target) -> std::io::Result<()> {
    let peer = connection.peer_cred()?.uid();
    let own = nix::unistd::geteuid().as_raw();
    let (from, mut to) = connection.into_split();
    let mut line = String::new();
    let mut from = BufReader::new(from.take(LONGEST_LINE));
    timeout(LONGEST_QUESTION, from.read_line(&mut line)).await??;
    let command = serde_json::from_str::<Command>(&line);
    let reply = match &command {
        // The file's mode says so too; but not in the moment before it is set.
        _ if peer != own && peer != 0 => {
            Reply::Refused("only root and the user of the daemon may ask".to_owned())
        }
        Err(error) => Reply::Refused(format!("not a command: {error}")),
        Ok(Command::Status) => Reply::Status(Box::new(Status::of(&target.settings, &target.fs))),
        Ok(Command::Drop) => drop_all(target).await,
        Ok(Command::Unmount) if target.mounted.handed_over() => {
            Reply::Refused("whoever has made the mount has to unmount it".to_owned())
        }
        Ok(Command::Unmount) => Reply::Unmounting,
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    to.write_all(text.as_bytes()).await?;
    to.shutdown().await?;
    if matches!(reply, Reply::Unmounting) {
        target.unmount.notify_one();
    }
    Ok(())
}

/// The order matters: what the kernel is told to forget, it asks for again, and is then to find
/// nothing old here.
async fn drop_all(target: &Target) -> Reply {
    let (held, _) = target.fs.memory_bytes();
    let directories = target.fs.drop_names();
    target.fs.drop_bytes();
    let known = target.fs.known();
    let names = known.len();
    let mounted = target.mounted.clone();
    // The kernel waits for reads that are under way, which this thread must not.
    let told = spawn_blocking(move || {
        // Before Linux 6.16 of each name by itself, which is done in any case.
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

/// Where a daemon makes its socket: where its service manager says, or where such things are.
fn own_directory(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    if let Some(folder) = of_service(&variable) {
        return Ok(folder);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(SYSTEM.into());
    }
    of_user(&variable).ok_or_else(|| "XDG_RUNTIME_DIR is not set".to_owned())
}

/// Where the socket of a mount may be, whoever mounted it.
pub(crate) fn directories(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = of_service(&variable).into_iter().collect();
    folders.push(SYSTEM.into());
    folders.extend(of_user(&variable));
    if nix::unistd::geteuid().is_root() {
        let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
        folders.extend(users.map(|user| user.path().join(OF_USER)));
    }
    // A service may have a folder of its own below: RuntimeDirectory=fasts3-mount/%i.
    let below = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path())
    };
    let instances: Vec<_> = folders.iter().flat_map(below).collect();
    folders.extend(instances);
    folders
}

/// systemd's `RuntimeDirectory=`, of which there may be several.
fn of_service(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let all = variable("RUNTIME_DIRECTORY")?;
    let first = all.as_bytes().split(|&byte| byte == b':').next()?;
    (!first.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(first)))
}

fn of_user(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = variable("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder).join(OF_USER))
}

/// The name of the socket of a mountpoint, whose path has no symbolic links: readable, and short
/// whatever the path, for a socket's path may have 107 bytes.
pub(crate) fn socket_name(path: &Path) -> String {
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    let letter = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let mut name: String = last.chars().take(24).map(letter).collect();
    name.push('-');
    for byte in &Sha256::digest(path.as_os_str().as_bytes())[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".sock");
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let owned: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), OsString::from(v))).collect();
        move |name| owned.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_service_manager_says_where_the_socket_is() {
        let own = |pairs: &[(&str, &str)]| own_directory(environment(pairs));
        let service = ("RUNTIME_DIRECTORY", "/run/a:/run/b");
        assert_eq!(own(&[service]), Ok("/run/a".into()));
        let user = ("XDG_RUNTIME_DIR", "/run/user/1000");
        let want = if nix::unistd::geteuid().is_root() {
            SYSTEM.into()
        } else {
            PathBuf::from("/run/user/1000/fasts3-mount")
        };
        assert_eq!(own(&[("RUNTIME_DIRECTORY", ""), user]), Ok(want));
        let all = directories(environment(&[service, user]));
        for folder in ["/run/a", SYSTEM, "/run/user/1000/fasts3-mount"] {
            assert!(all.contains(&folder.into()), "{folder}");
        }
    }

    #[test]
    fn every_mountpoint_has_a_socket_name_of_its_own_that_is_short() {
        let name = |path: &str| socket_name(&Path::new("/mnt").join(path));
        let (one, two) = (name("a/data"), name("b/data"));
        assert_ne!(one, two);
        assert!(one.starts_with("data-") && one.contains(".sock"), "{one}");
        let odd = name(&format!("ä\n {}", "x".repeat(200)));
        assert!(odd.len() < 50 && odd.is_ascii() && !odd.contains('\n'), "{odd}");
    }

    #[test]
    fn commands_are_lines_of_json() {
        for (command, line) in [
            (Command::Status, r#"{"command":"status"}"#),
            (Command::Drop, r#"{"command":"drop"}"#),
            (Command::Unmount, r#"{"command":"unmount"}"#),
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

        /// Any line is one of the three commands, written as one, or refused; and the other end
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
