//! The options of the cache on a local disk.
#![allow(clippy::doc_markdown)] // the texts of the options are shown as they are

use std::path::{Path, PathBuf};

use clap::Args as Group;

use super::args::size;
use crate::disk::{DiskConfig, Reserve};

/// 16 of the smallest files that it consists of.
const MIN_DISK_BYTES: u64 = 64 << 20;

#[derive(Debug, Group)]
#[command(next_help_heading = "Cache on a local disk")]
pub(in crate::app) struct DiskArgs {
    /// Directory in which object bytes are kept over restarts, for all mounts of this user; what it
    /// holds is not encrypted [default: none]
    #[arg(long = "cache-dir", value_name = "DIR", env = "FASTS3_CACHE_DIR")]
    dir: Option<PathBuf>,

    /// Limit of what it holds [default: 80 % of what is free]
    #[arg(long = "cache-size", value_name = "SIZE", env = "FASTS3_CACHE_SIZE",
          value_parser = size)]
    size_bytes: Option<u64>,

    /// Space of its file system that stays free: a size, or a share like 10%
    #[arg(long = "cache-reserve", value_name = "SIZE", env = "FASTS3_CACHE_RESERVE",
          default_value = "10%", value_parser = reserve)]
    reserve: Reserve,

    /// Let the kernel read large files that are whole in the cache by itself (Linux 6.9, root);
    /// auto ends that in a mount where mostly small files are opened
    #[arg(long, value_name = "WHEN", env = "FASTS3_PASSTHROUGH", default_value = "auto")]
    passthrough: PassthroughWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PassthroughWhen {
    Auto,
    /// The mount fails where it is not possible.
    On,
    Off,
}

/// None without `--cache-dir`; the environment may set the other options for all mounts.
pub(super) fn config(
    args: DiskArgs,
    mountpoint: &Path,
    memory_budget_bytes: u64,
) -> Result<Option<(DiskConfig, PassthroughWhen)>, String> {
    let DiskArgs { dir, size_bytes, reserve, passthrough } = args;
    let Some(path) = dir else {
        let needed = passthrough == PassthroughWhen::On;
        let sentence = "--passthrough=on needs --cache-dir, where the files are";
        return if needed { Err(sentence.to_owned()) } else { Ok(None) };
    };
    let path = std::path::absolute(path)
        .map_err(|error| format!("--cache-dir: the path cannot be found: {error}"))?;
    // Every command has a mountpoint, but the doctor's is the root.
    if mountpoint.parent().is_some() && path.starts_with(mountpoint) {
        return Err("--cache-dir must not be inside of the mountpoint".to_owned());
    }
    if size_bytes.is_some_and(|bytes| bytes < MIN_DISK_BYTES) {
        return Err(format!("--cache-size must be at least {}", super::size(MIN_DISK_BYTES)));
    }
    let memory_bytes = DiskConfig::memory_of(memory_budget_bytes);
    let waiting_bytes = DiskConfig::waiting_of(memory_budget_bytes);
    let disk = DiskConfig { path, size_bytes, reserve, memory_bytes, waiting_bytes };
    Ok(Some((disk, passthrough)))
}

fn reserve(text: &str) -> Result<Reserve, String> {
    let Some(percent) = text.trim().strip_suffix('%') else {
        return size(text).map(Reserve::Bytes);
    };
    let percent = percent.trim().parse().ok().filter(|percent| *percent < 100);
    percent.map(Reserve::Percent).ok_or_else(|| "a share is 0% to 99%".to_owned())
}
