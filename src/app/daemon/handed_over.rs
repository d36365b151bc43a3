//! A mount that the parent process has made: the mountpoint `/dev/fd/N`, as in libfuse.
//!
//! The parent opens `/dev/fuse`, mounts with its own privileges and options, and unmounts.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{major, minor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::descriptors;
use crate::app::command_error::CommandError;
use crate::app::exit::Exit;
use crate::base::mountinfo;
use crate::fuse::HandedOver;

/// `/dev/fuse` on every Linux: its `Documentation/admin-guide/devices.txt`.
const FUSE_DEVICE: (u64, u64) = (10, 229);

/// Takes the descriptor of a mount that no process serves yet; the number is free afterwards.
pub(super) fn take(number: RawFd) -> Result<HandedOver, CommandError> {
    let wrong = |what: &str| {
        let sentence = format!(
            "mountpoint /dev/fd/{number} {what}; the process that starts this program must open \
             /dev/fuse, mount it with mount(2) and the option fd=, and leave it open"
        );
        CommandError::new(Exit::OsFile, sentence)
    };
    check_kind(number).map_err(|what| wrong(&what))?;
    let internal = |error: std::io::Error| {
        CommandError::failed(format!("descriptor {number} cannot be used: {error}"))
    };
    // A child process must not keep the mount alive when this process has died.
    let device = descriptors::taken(number).map_err(internal)?;
    check_state(&device).map_err(internal)?.map_err(wrong)?;
    // With a non-blocking descriptor, fuser would spin.
    let flags = fcntl(&device, FcntlArg::F_GETFL).map_err(|errno| internal(errno.into()))?;
    let flags = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
    fcntl(&device, FcntlArg::F_SETFL(flags)).map_err(|errno| internal(errno.into()))?;
    let device_number = device_number(&device);
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mountpoint = device_number.as_ref().and_then(|number| {
        mountinfo::mounts(&mounts).find(|mount| mount.device == *number).map(|mount| mount.path)
    });
    Ok(HandedOver { device, device_number, mountpoint })
}

/// Checks that a number is a descriptor of `/dev/fuse`; the error completes a sentence.
fn check_kind(number: RawFd) -> Result<(), String> {
    if number <= 2 {
        return Err("is standard input, output or error".to_owned());
    }
    let link = format!("/proc/self/fd/{number}");
    let metadata = fs::metadata(&link).map_err(|_| "is not open".to_owned())?;
    if is_fuse(&metadata) {
        return Ok(());
    }
    let name = fs::read_link(&link).unwrap_or_default();
    Err(format!("is not open on /dev/fuse, but on {}", name.display()))
}

fn is_fuse(metadata: &fs::Metadata) -> bool {
    let kind = (major(metadata.rdev()), minor(metadata.rdev()));
    metadata.file_type().is_char_device() && kind == FUSE_DEVICE
}

pub(super) fn is_fuse_device(descriptor: &OwnedFd) -> bool {
    let metadata = fs::metadata(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    metadata.is_ok_and(|metadata| is_fuse(&metadata))
}

/// Checks that the first request of a mount is waiting, for which fuser would wait without end.
fn check_state(device: &OwnedFd) -> std::io::Result<Result<(), &'static str>> {
    let mut asked = [PollFd::new(device, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let state = asked[0].revents();
    Ok(if state.contains(PollFlags::ERR) {
        Err("is open on /dev/fuse, but not mounted")
    } else if state.contains(PollFlags::IN) {
        Ok(())
    } else {
        Err("is a mount that has been served already")
    })
}

/// The device number of the mount of a descriptor, which newer kernels tell.
pub(super) fn device_number(device: &OwnedFd) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    of_fdinfo(&info)
}

/// It is in the encoding of the kernel: 20 bits of the minor number, and above them the major one.
fn of_fdinfo(info: &str) -> Option<String> {
    let line = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    let number: u32 = line.trim().parse().ok()?;
    Some(format!("{}:{}", number >> 20, number & ((1 << 20) - 1)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_a_descriptor_of_a_mount_is_taken() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        let said = |number| match take(number) {
            Err(error) if error.exit == Exit::OsFile => error.sentence,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        };
        assert!(
            said(number)
                .contains(&format!("/dev/fd/{number} is not open on /dev/fuse, but on /dev/null"))
        );
        assert!(file.metadata().is_ok(), "what is not taken stays open");
        assert!(said(1 << 20).contains("is not open;"));
        assert!(said(0).contains("standard input"));
    }

    #[test]
    fn the_mount_of_a_descriptor_is_what_the_kernel_tells() {
        let info = "pos:\t0\nflags:\t02100002\nmnt_id:\t24\nino:\t90\n";
        assert_eq!(of_fdinfo(info), None);
        assert_eq!(of_fdinfo(&format!("{info}fuse_connection:\t41\n")).as_deref(), Some("0:41"));
        assert_eq!(of_fdinfo("fuse_connection:\t1049600\n").as_deref(), Some("1:1024"));
        assert_eq!(of_fdinfo("fuse_connection:\tnone\n"), None);
    }
}
