//! `--cache-dir`: opens the cache on the local disk before the mount, and says what it is.

use std::path::Path;
use std::sync::Arc;

use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use crate::app::command_error::CommandError;
use crate::app::config::Config;
use crate::app::exit::Exit;
use crate::base::mountinfo;
use crate::base::text::bytes;
use crate::disk::{Disk, DiskRefused};
use crate::stats::Stats;

/// None without `--cache-dir`. A disk that fails is no reason not to mount.
pub(super) async fn open(
    config: &Config,
    stats: &Arc<Stats>,
) -> Result<Option<Arc<Disk>>, CommandError> {
    let Some(disk) = &config.disk else { return Ok(None) };
    let shown = disk.path.display();
    let refused = |sentence| {
        CommandError::new(Exit::CantCreat, format!("--cache-dir cannot be used: {sentence}"))
    };
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    if mountinfo::mounts(&mounts).any(|mount| mount.is_ours() && disk.path.starts_with(mount.path))
    {
        return Err(refused(format!(
            "{shown} is inside of a mount; give a directory on a local disk"
        )));
    }
    let started = Disk::start(disk.clone(), stats.clone()).await.map_err(|error| match error {
        DiskRefused::Unsafe(sentence) => refused(sentence),
        DiskRefused::Threads(error) => CommandError::failed(format!("no threads: {error}")),
    })?;
    // While it is not there, nothing can be said of it.
    if let Some((used, size)) = started.usage() {
        tracing::info!("the disk cache is in {shown}: {} of {} used", bytes(used), bytes(size));
        if let Some(warning) = unusual(&disk.path) {
            tracing::warn!("the disk cache is in {shown}, {warning}");
        }
    }
    Ok(Some(started))
}

/// For who does not mount.
pub(crate) async fn open_alone(config: &Config) -> Result<Option<Arc<Disk>>, CommandError> {
    open(config, &Arc::default()).await
}

fn unusual(path: &Path) -> Option<&'static str> {
    let kind = statfs(path).ok()?.filesystem_type();
    if kind == TMPFS_MAGIC {
        return Some("which is memory: it ends with the machine, and programs have less of it");
    }
    (kind == NFS_SUPER_MAGIC || kind == FUSE_SUPER_MAGIC)
        .then_some("which is no local disk: it may be slower than the store")
}
