//! The disk of `--cache-dir`: who may use it, and what it will do for reads.

use std::path::Path;
use std::time::Duration;

use nix::sys::statfs::{FUSE_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::diagnosis::Diagnosis;
use super::machine;
use crate::app::config::Config;
use crate::app::daemon;
use crate::base::text::bytes;
use crate::disk::inspect;

/// A disk that takes longer for 128 MiB is slower than any store.
const LONGEST: Duration = Duration::from_secs(10);
/// Below this, a store is faster: some 16 connections of 90 MB/s, with room for a busy disk.
const SLOW: f64 = 300e6;

pub(super) async fn measure(config: &Config, report: &mut Diagnosis) {
    let Some(disk) = &config.disk else { return };
    match daemon::open_disk(config).await {
        Ok(started) => {
            let used = started.and_then(|disk| disk.usage());
            let Some((used, size)) = used else {
                return report
                    .slow("disk", "--cache-dir cannot be used now: the log above says why");
            };
            report.ok(
                "disk",
                format!("--cache-dir may hold {}, and holds {}", bytes(size), bytes(used)),
            );
        }
        Err(error) => return report.fail("disk", &error),
    }
    report.ok(
        "disk",
        match no_passthrough(&disk.path) {
            None => "large files that it holds can be read by the kernel alone".to_owned(),
            Some(reason) => {
                format!("all files are read through the daemon, not passed through: {reason}")
            }
        },
    );
    let path = disk.path.clone();
    let measuring = spawn_blocking(move || inspect::measure(&path));
    let speed = match timeout(LONGEST, measuring).await {
        Ok(Ok(Ok(speed))) => speed,
        Ok(Ok(Err(error))) => {
            return report.slow("disk", format!("--cache-dir cannot be measured: {error}"));
        }
        Ok(Err(panicked)) => {
            return report.slow("disk", format!("--cache-dir cannot be measured: {panicked}"));
        }
        Err(_elapsed) => {
            let limit = LONGEST.as_secs();
            return report
                .slow("disk", format!("--cache-dir did not take 128 MiB within {limit} s"));
        }
    };
    let shown = format!("it writes {} and reads {}", rate(speed.write), rate(speed.read));
    if speed.read < SLOW {
        report.slow("disk", format!("{shown}: a store in the same region is as fast without it"));
    } else {
        report.ok("disk", shown);
    }
}

/// Why the kernel will not read files by itself; none as far as that is known without a mount.
fn no_passthrough(path: &Path) -> Option<String> {
    /// `CAP_SYS_ADMIN` in `/proc/self/status`.
    const ADMINISTRATOR: u64 = 1 << 21;
    let kernel = machine::kernel();
    if machine::version(&kernel) < (6, 9) {
        return Some(format!("Linux {kernel} cannot, 6.9 can"));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if rights.is_some_and(|rights| rights & ADMINISTRATOR == 0) {
        return Some("it takes root (CAP_SYS_ADMIN)".to_owned());
    }
    let kind = statfs(path).ok()?.filesystem_type();
    (kind == OVERLAYFS_SUPER_MAGIC || kind == FUSE_SUPER_MAGIC)
        .then(|| "the file system of --cache-dir lies on others".to_owned())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shown with three digits
fn rate(per_second: f64) -> String {
    format!("{}/s", bytes(per_second as u64))
}
