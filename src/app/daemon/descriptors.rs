//! Descriptors that come by their number, or through a socket.

use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

/// The most that one message has.
const MOST: usize = 2;
const LONGEST: usize = 64;

/// Another descriptor of the same open file, owned by this process and closed on exec.
///
/// It is sent through a socket, because turning a number into a descriptor takes `unsafe`.
pub(super) fn owned(number: RawFd) -> Result<OwnedFd> {
    let (to, from) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let rights = [ControlMessage::ScmRights(&[number])];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b".")], &rights, MsgFlags::empty(), None)?;
    let received =
        receive(from.as_fd())?.and_then(|(_, descriptors)| descriptors.into_iter().next());
    received.ok_or_else(|| Error::other("it cannot be sent through a socket"))
}

/// The same, in place of the number that this process was given: a child process must not keep what
/// it stands for.
pub(super) fn taken(number: RawFd) -> Result<OwnedFd> {
    let own = owned(number)?;
    nix::unistd::close(number)?;
    Ok(own)
}

/// Closes what this process was given beside the standard streams and one more: who waits for the
/// end of a pipe, or for a lock (flock(1)), must not wait for a daemon.
pub(super) fn close_given(kept: Option<RawFd>) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fdinfo") else { return };
    let numbers: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in numbers {
        if number > 2 && Some(number) != kept && is_given(number).unwrap_or(false) {
            let _ = nix::unistd::close(number);
        }
    }
}

/// What a process opens by itself is closed on exec.
fn is_given(number: RawFd) -> Option<bool> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
    Some(flags & OFlag::O_CLOEXEC.bits() == 0)
}

pub(super) fn send(
    to: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::other("too many descriptors"));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(message)], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for a message; `None` at the end.
pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; LONGEST];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let length = recvmsg(from, &mut into, &mut rights, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut descriptors = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    bytes.truncate(length);
    Ok((length > 0).then_some((bytes, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn a_descriptor_that_is_sent_to_oneself_is_of_the_same_open_file() {
        let mut file = tempfile::tempfile().unwrap();
        let mut other = File::from(owned(file.as_raw_fd()).unwrap());
        std::io::Write::write_all(&mut file, b"bytes").unwrap();
        file.rewind().unwrap();
        let mut two = [0; 2];
        file.read_exact(&mut two).unwrap();
        other.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"te", "they share their place");
        assert!(owned(1 << 20).is_err());
    }
}
