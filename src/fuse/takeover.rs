//! Taking over a connection that another process has served.
//!
//! The kernel has agreed with that process on what both can do, and will not do so again. fuser
//! begins with that agreement, so it is played to it: on a socket, in place of the connection, it
//! is offered what was agreed on, and must agree to all of it. Then the connection takes the
//! socket's place, before a thread of fuser uses it.
//!
//! Requests that the other process has read and not answered are sent again
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9), with another bit in their numbers, which fuser gives back as
//! they are.
#![allow(unsafe_code)] // two calls, see `adopt` and `replace`

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};
use serde::{Deserialize, Serialize};

use super::adapter::Adapter;
use super::notify::message;

/// `FUSE_NOTIFY_RESEND`, since protocol 7.40.
const RESEND: u32 = 7;
/// `FUSE_INIT`, and its flags `FUSE_INIT_EXT` and `FUSE_HAS_RESEND`.
const INIT: u32 = 26;
const INIT_EXT: u64 = 1 << 30;
const HAS_RESEND: u64 = 1 << 39;
/// `FUSE_UNIQUE_RESEND`, in the number of a request that is sent again.
const SENT_AGAIN: u64 = 1 << 63;
/// `fuse_in_header` and `fuse_init_in`; `fuse_out_header` and `fuse_init_out`.
const REQUEST_BYTES: usize = 40 + 64;
const ANSWER_BYTES: usize = 16 + 64;

/// What the kernel and the process that has mounted can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// The kernel's version of the protocol 7.
    pub minor: u32,
    /// What it has offered.
    pub offered: u64,
    /// What both use: `FUSE_…` flags of the protocol.
    pub agreed: u64,
}

/// A mount of ours that is live and that nobody serves.
#[derive(Debug)]
pub struct TakenOver {
    pub device: OwnedFd,
    /// Without symbolic links.
    pub mountpoint: PathBuf,
    /// `major:minor`.
    pub device_number: String,
    pub agreement: Agreement,
}

impl Agreement {
    /// By what the kernel has offered: the agreement that this build makes is always the same.
    pub(super) fn of(offered: u64, minor: u32, adapter: Adapter) -> io::Result<Self> {
        let (_, agreed) = play(adapter, offered, minor, &fuser::Config::default())?;
        Ok(Self { minor, offered, agreed })
    }

    /// The kernel asks at each `open`, unless it was told not to.
    pub(super) fn asks_to_open(&self) -> bool {
        self.agreed & fuser::InitFlags::FUSE_PASSTHROUGH.bits() != 0
    }

    /// The kernel can send requests again that a process has read and not answered.
    pub fn can_resend(&self) -> bool {
        self.offered & HAS_RESEND != 0
    }
}

/// Another process has read this request, and may have done what it asks for.
pub(super) fn is_sent_again(request: &fuser::Request) -> bool {
    request.unique().0 & SENT_AGAIN != 0
}

/// A file that was registered with the kernel under this number, by this process or the one before
/// it, and that nobody else closes. It is closed when the result is dropped.
pub(super) fn adopt(reply: &fuser::ReplyOpen, number: u32) -> fuser::BackingId {
    // SAFETY: the number is of this connection, which outlives the process that has registered it,
    // and `Opens` has it once.
    unsafe { reply.wrap_backing(number) }
}

/// A session on the connection, with the requests that wait for an answer sent again.
pub(super) fn take(
    adapter: Adapter,
    device: &OwnedFd,
    agreement: &Agreement,
    config: &fuser::Config,
) -> io::Result<fuser::Session<Adapter>> {
    let (session, agreed) = play(adapter, agreement.agreed, agreement.minor, config)?;
    if agreed != agreement.agreed {
        return Err(io::Error::other("the kernel has agreed to something else"));
    }
    replace(&session, device)?;
    File::from(device.try_clone()?).write_all(&message(RESEND, &[]))?;
    Ok(session)
}

/// A session that has agreed with a kernel of this version on as much as it can of what is offered;
/// it is on a socket.
fn play(
    adapter: Adapter,
    offered: u64,
    minor: u32,
    config: &fuser::Config,
) -> io::Result<(fuser::Session<Adapter>, u64)> {
    // One message is one request, as with the kernel.
    let kind = SocketType::SEQPACKET;
    let (kernel, daemon) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let [low, high] = halves(offered | INIT_EXT);
    let length = u32::try_from(REQUEST_BYTES).expect("104");
    // `fuse_in_header`: length, operation, number; inode, user, group, process. `fuse_init_in`:
    // version, readahead, flags.
    let words = [length, INIT, 2, 0, 0, 0, 0, 0, 0, 0, 7, minor, 128 << 10, low, high];
    let mut request: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    request.resize(REQUEST_BYTES, 0);
    send(&kernel, &request, SendFlags::NOSIGNAL)?;
    let session = fuser::Session::from_fd(adapter, daemon, config.acl, config.clone())?;
    let mut answer = [0; ANSWER_BYTES];
    let (_, length) = recv(&kernel, &mut answer[..], RecvFlags::DONTWAIT)?;
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| answer[at + byte]));
    // Behind the header: version, readahead, flags, two counts and more, and the other half of the
    // flags.
    if length < ANSWER_BYTES || word(4) != 0 {
        return Err(io::Error::other("fuser does not agree"));
    }
    let agreed = u64::from(word(28)) | u64::from(word(48)) << 32;
    Ok((session, agreed & !INIT_EXT))
}

fn halves(flags: u64) -> [u32; 2] {
    [flags & u64::from(u32::MAX), flags >> 32].map(|half| u32::try_from(half).expect("32 bits"))
}

/// Makes the connection what the session reads from and writes to.
fn replace(session: &fuser::Session<Adapter>, device: &OwnedFd) -> io::Result<()> {
    let theirs = session.as_fd().as_raw_fd();
    // SAFETY: fuser owns `theirs`, keeps it open as long as the session, and nothing reads from it
    // yet. dup3(2) closes what it was open on and opens it on the connection, in one step. What it
    // gives back is `theirs` once more, which must not be closed.
    let replaced = unsafe { nix::unistd::dup3_raw(device, theirs, OFlag::O_CLOEXEC) }?;
    std::mem::forget(replaced);
    Ok(())
}
