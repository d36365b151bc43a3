//! A mount that outlives its daemon: what is left for the next one, and taking it over.
//!
//! Two descriptors are all: the connection to the kernel, and a file in memory with a
//! [`Description`] and what the kernel was told ([`KeptNames`]). A [`Keeper`] has them while no
//! daemon runs.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handed_over;
use crate::app::config::Config;
use crate::base::mountinfo;
use crate::fuse::{self, Mounted, TakenOver};
use crate::names::KeptNames;

pub(super) mod description;
pub(super) mod holder;
pub(super) mod keeper;

use description::Description;
use keeper::Keeper;

/// What a daemon has left.
pub(super) struct Left {
    pub(super) device: OwnedFd,
    pub(super) table: OwnedFd,
}

/// A mount that this daemon can go on with.
pub(super) struct TakenMount {
    pub(super) mount: TakenOver,
    pub(super) kept: KeptNames,
    pub(super) description: Description,
    pub(super) table: File,
}

/// A file in memory for a new mount.
pub(super) fn table() -> std::io::Result<File> {
    Ok(File::from(memfd_create(c"fasts3-mount", MFdFlags::MFD_CLOEXEC)?))
}

/// Examines what was left. What cannot be gone on with is freed, with a line in the log.
pub(super) fn take(config: &Config, keeper: &Keeper, left: Left) -> Option<TakenMount> {
    let described = Description::read(&left.table);
    // The descriptor may be of another mount, which is not ours to free.
    let number = match &described {
        Ok(described) => Some(described.device_number.clone()),
        Err(_) => handed_over::device_number(&left.device),
    };
    match examine(config, left, described) {
        Ok(taken) => Some(taken),
        Err(reason) => {
            tracing::warn!("the mount that was left is freed, and a new one is made: {reason}");
            if let Some(number) = number {
                free(&number);
            }
            keeper.forget();
            None
        }
    }
}

fn examine(
    config: &Config,
    left: Left,
    described: Result<Description, String>,
) -> Result<TakenMount, String> {
    let Left { device, table } = left;
    if !is_fuse(&device) {
        return Err("the descriptor is not of /dev/fuse".to_owned());
    }
    let description = described?;
    if let Some(difference) = description.difference(config) {
        return Err(difference);
    }
    if !is_connected(&device) {
        return Err("it was unmounted, or aborted".to_owned());
    }
    let Description { mountpoint, device_number, agreement, .. } = description.clone();
    if handed_over::device_number(&device).is_some_and(|number| number != device_number) {
        return Err("the descriptor is of another mount".to_owned());
    }
    let mountpoint = PathBuf::from(mountpoint);
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    if mountinfo::topmost(&mounts, &mountpoint).is_none_or(|mount| mount.device != device_number) {
        return Err("it is not on its mountpoint any more".to_owned());
    }
    let file = |table: &OwnedFd| table.try_clone().map(File::from).map_err(|e| e.to_string());
    let kept = KeptNames::open(file(&table)?)
        .map_err(|damage| format!("its table is damaged: {damage}"))?;
    let mount = TakenOver { device, mountpoint, device_number, agreement };
    Ok(TakenMount { mount, kept, description, table: File::from(table) })
}

/// Leaves a mount to the next daemon from here on, if the kernel and the keeper allow that.
pub(super) fn keep(
    config: &Config,
    keeper: &Keeper,
    mounted: &Mounted,
    table: &File,
    regions: Vec<String>,
) -> bool {
    let Some((device, mountpoint, number, agreement)) = mounted.to_be_taken_over() else {
        return false;
    };
    let Some(mountpoint) = mountpoint.to_str() else { return false };
    let described = Description::new(config, mountpoint, number, agreement, regions);
    let kept = described.write(table).and_then(|()| keeper.keep(device, table.as_fd()));
    kept.inspect_err(|error| tracing::warn!("the mount will end with this daemon: {error}")).is_ok()
}

fn is_fuse(descriptor: &OwnedFd) -> bool {
    handed_over::is_fuse_device(descriptor)
}

/// The kernel has not ended the connection.
pub(super) fn is_connected(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(device, PollFlags::empty())];
    let answered = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    answered.is_ok() && !asked[0].revents().contains(PollFlags::ERR)
}

/// Unmounts every mount of ours with this device number, and ends its connection: programs that
/// have files open get errors.
pub(super) fn free(device_number: &str) {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let ours = mountinfo::mounts(&mounts)
        .filter(|mount| mount.device == *device_number && mount.is_ours());
    for mount in ours {
        if let Err(error) = fuse::free(&mount.path, device_number) {
            let shown = mount.path.display();
            tracing::warn!("the stale mount on {shown} could not be freed: {error}");
        }
    }
}
