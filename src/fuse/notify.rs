//! Notifications of the kernel: to look up names again, and to drop pages.
//!
//! fuser has no name for some of the notifications of the protocol (the kernel's
//! `include/uapi/linux/fuse.h`); these are written to the connection as they are.

use std::io::{self, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::mount::Mounted;
use crate::fs::KernelName;
use crate::names::Ino;

/// `FUSE_NOTIFY_INVAL_ENTRY`, since protocol 7.12.
const INVAL_ENTRY: u32 = 3;
/// Its flag `FUSE_EXPIRE_ONLY`, since protocol 7.38: the kernel looks the name up again and does
/// not drop it. Older kernels ignore the flag.
const EXPIRE_ONLY: u32 = 1;
/// `FUSE_NOTIFY_INC_EPOCH`, since protocol 7.44: the kernel looks up all names again.
const INC_EPOCH: u32 = 8;

/// The longest wait of a request for the kernel to forget a name or pages, which mostly takes
/// microseconds.
const LONGEST_FORGETTING: Duration = Duration::from_secs(1);

/// The longest time that the kernel is told of names one by one. One takes 2 µs, unless the kernel
/// waits for a lookup.
const LONGEST_EXPIRING: Duration = Duration::from_secs(5);

/// How the kernel was told to look up names again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// All names with one message.
    AtOnce,
    /// A message for each file, before Linux 6.16.
    OneByOne {
        names: usize,
        /// `false` if the time did not suffice for all of them.
        all: bool,
    },
}

impl Mounted {
    /// Makes the kernel look up every name again, and ask for the attributes of `directories`, upon
    /// which it is told that the directory pages it keeps are old. What is open or read stays.
    /// Before Linux 6.16 it is told of each of the `known` names.
    ///
    /// The kernel may wait for requests in progress, so this must not run on a thread that answers
    /// them.
    pub fn expire_names(
        &self,
        directories: &[Ino],
        known: impl FnOnce() -> Vec<KernelName>,
    ) -> Expired {
        let expired = if (&self.device).write_all(&message(INC_EPOCH, &[])).is_ok() {
            Expired::AtOnce
        } else {
            self.expire_each(&known())
        };
        for ino in directories {
            // A negative offset: attributes only. An inode that is forgotten is an error.
            let _ = self.notifier.inval_inode(INodeNo(*ino), -1, 0);
        }
        expired
    }

    /// Expires the kernel's dentries of these files, one message each. The kernel blocks it during
    /// a lookup in the same directory; it stops after 5 s, and the rest expire by their TTL.
    ///
    /// The names of directories stay: before Linux 6.2 the kernel would cut a directory off from
    /// its path while programs work in it. The names in it are looked up again all the same.
    pub fn expire_each(&self, known: &[KernelName]) -> Expired {
        let begun = Instant::now();
        let mut names = 0;
        for KernelName { parent, name, .. } in known.iter().filter(|known| !known.is_directory) {
            if begun.elapsed() > LONGEST_EXPIRING {
                return Expired::OneByOne { names, all: false };
            }
            // `fuse_notify_inval_entry_out`, then the name and a NUL.
            let mut body = Vec::with_capacity(17 + name.len());
            body.extend_from_slice(&parent.to_ne_bytes());
            body.extend_from_slice(&length(name.len()).to_ne_bytes());
            body.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            // A name that it has forgotten is an error, which is as well.
            let _ = (&self.device).write_all(&message(INVAL_ENTRY, &body));
            names += 1;
        }
        Expired::OneByOne { names, all: true }
    }

    /// Makes the kernel forget these names and the pages of their files. It waits for reads of them
    /// in progress, so this must not run on a thread that answers requests.
    pub fn forget(&self, known: &[KernelName]) {
        for KernelName { ino, parent, name, .. } in known {
            // A name that it has forgotten is an error, which is as well.
            let _ = self.notifier.inval_entry(INodeNo(*parent), name.as_ref());
            // From the first byte to the last: 0 is "to the end".
            let _ = self.notifier.inval_inode(INodeNo(*ino), 0, 0);
        }
    }
}

/// A notification: `fuse_out_header`, in which a request's number of 0 makes the error a code, and
/// the body.
pub(super) fn message(code: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&length(16 + body.len()).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

/// The kernel refuses a message that is longer than it says.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Makes the kernel look up a name again: `open` is never sent, so the name would otherwise lead to
/// the same stale file until its TTL is over.
pub(super) async fn forget_name(name: Option<(Ino, String)>, kernel: Arc<OnceLock<Notifier>>) {
    let Some((parent, name)) = name else { return };
    tell(kernel, move |kernel| kernel.inval_entry(INodeNo(parent), name.as_ref())).await;
}

/// Makes the kernel drop the pages of a directory, so that it reads the directory again; `false` if
/// it may not have.
pub(super) async fn drop_pages(directory: Ino, kernel: Arc<OnceLock<Notifier>>) -> bool {
    // From the first byte to the last: 0 is "to the end".
    tell(kernel, move |kernel| kernel.inval_inode(INodeNo(directory), 0, 0)).await
}

/// Sends a notification while a request waits for it. `true` if the kernel has forgotten, or did
/// not know.
async fn tell(
    kernel: Arc<OnceLock<Notifier>>,
    notification: impl FnOnce(&Notifier) -> io::Result<()> + Send + 'static,
) -> bool {
    // The kernel takes locks for it, for which it may wait: not on this thread.
    let telling = spawn_blocking(move || match kernel.get().map(notification) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "the kernel did not forget what it was told to");
            false
        }
        told => told.is_some(),
    });
    // Bounded: the holder of a lock may be waiting for the very request that this is about.
    matches!(tokio::time::timeout(LONGEST_FORGETTING, telling).await, Ok(Ok(true)))
}
