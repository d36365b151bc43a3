//! Who has the descriptors while no daemon runs: the service manager (its store of descriptors,
//! `sd_pid_notify_with_fds(3)`), or a [`super::holder`], the parent process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::unistd::getppid;
use sd_notify::NotifyState;

use super::Left;
use crate::app::config::{Config, Outlive};
use crate::app::daemon::descriptors;

/// Of the holder for its daemon: its process, and the numbers of a socket and, for a daemon that
/// takes over, of the connection and the table.
pub(super) const HELD: &str = "FASTS3_MOUNT_HELD_BY";
/// The names of the descriptors in the manager's store.
const MOUNT: &str = "mount";
const TABLE: &str = "table";

/// The words between holder and daemon.
pub(super) const KEEP: &[u8] = b"keep";
pub(super) const FORGET: &[u8] = b"forget";
pub(super) const READY: &[u8] = b"ready";

#[derive(Clone)]
pub(in crate::app::daemon) enum Keeper {
    Nobody,
    Manager,
    Holder(Arc<OwnedFd>),
}

/// This process is the daemon of a holder.
pub(in crate::app::daemon) fn is_held() -> bool {
    numbers().is_some()
}

/// Those that the parent process has given. A process that has the variable by accident has another
/// parent.
fn numbers() -> Option<Vec<RawFd>> {
    let told = std::env::var(HELD).ok()?;
    let mut numbers = told.split(':').map(|number| number.parse().ok());
    let parent: RawFd = numbers.next()??;
    if parent != getppid().as_raw() {
        return None;
    }
    numbers.collect()
}

impl Keeper {
    /// The keeper of this process, and what it was given.
    pub(in crate::app::daemon) fn find(config: &Config) -> io::Result<(Self, Option<Left>)> {
        if let Some(numbers) = numbers() {
            let all: Vec<OwnedFd> =
                numbers.into_iter().map(descriptors::taken).collect::<io::Result<_>>()?;
            let mut all = all.into_iter();
            let socket = all.next().ok_or_else(|| io::Error::other("no socket"))?;
            let left = all.next().zip(all.next());
            let left = left.map(|(device, table)| Left { device, table });
            return Ok((Self::Holder(Arc::new(socket)), left));
        }
        // Another process unmounts what it has mounted.
        let is_wanted = config.outlive != Outlive::Never && config.descriptor.is_none();
        if !is_wanted || std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok((Self::Nobody, None));
        }
        let (mut device, mut table) = (None, None);
        for (number, name) in sd_notify::listen_fds_with_names()? {
            let descriptor = descriptors::taken(number)?;
            match name.as_str() {
                MOUNT => device = Some(descriptor),
                TABLE => table = Some(descriptor),
                _ => {}
            }
        }
        let left = device.zip(table).map(|(device, table)| Left { device, table });
        Ok((Self::Manager, left))
    }

    pub(in crate::app::daemon) fn is_there(&self) -> bool {
        !matches!(self, Self::Nobody)
    }

    pub(super) fn keep(&self, device: BorrowedFd<'_>, table: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Nobody => Err(io::Error::other("nobody keeps it")),
            Self::Manager => {
                // What an earlier daemon has left there has the same names.
                self.forget();
                for (name, descriptor) in [(MOUNT, device), (TABLE, table)] {
                    let stored = [NotifyState::FdStore, NotifyState::FdName(name)];
                    sd_notify::notify_with_fds(&stored, &[descriptor])?;
                }
                Ok(())
            }
            Self::Holder(socket) => descriptors::send(socket.as_fd(), KEEP, &[device, table]),
        }
    }

    /// There is nothing to take over any more.
    pub(in crate::app::daemon) fn forget(&self) {
        match self {
            Self::Nobody => {}
            Self::Manager => {
                for name in [MOUNT, TABLE] {
                    let removed = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
                    if let Err(error) = sd_notify::notify(&removed) {
                        tracing::debug!(%error, "the service manager cannot be reached");
                    }
                }
            }
            Self::Holder(_) => self.tell(FORGET),
        }
    }

    /// The mount is usable. The service manager is told by `service`.
    pub(in crate::app::daemon) fn ready(&self) {
        self.tell(READY);
    }

    fn tell(&self, word: &[u8]) {
        let Self::Holder(socket) = self else { return };
        if let Err(error) = descriptors::send(socket.as_fd(), word, &[]) {
            tracing::debug!(%error, "the holder cannot be reached");
        }
    }

    /// Says so when the holder ends, which it does not while its daemon runs.
    pub(in crate::app::daemon) fn watch(&self) {
        let Self::Holder(socket) = self else { return };
        let socket = socket.clone();
        let watching = std::thread::Builder::new().name("holder".to_owned());
        let _ = watching.spawn(move || {
            while let Ok(Some(_)) = descriptors::receive(socket.as_fd()) {}
            tracing::warn!("the holder has ended: the mount will end with this daemon");
        });
    }
}
