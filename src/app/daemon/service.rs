//! Messages to the service manager: READY, STATUS, WATCHDOG, STOPPING (`sd_notify(3)`).
//!
//! Without `NOTIFY_SOCKET` in the environment there is no manager, and nothing here has an effect.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use sd_notify::NotifyState;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::app::exit::Exit;
use crate::app::task::Task;
use crate::base::mountinfo;
use crate::fs::BucketFs;
use crate::stats::Snapshot;

/// Of [`answers`] for the process that it starts, whose argument is the path.
const LOOKS: &str = "FASTS3_MOUNT_LOOKS";
/// During the start, which `bucket::open` bounds, the manager is told at this interval that it may
/// take [`STARTING_FOR`] more.
const STARTING_PAUSE: Duration = Duration::from_secs(2);
const STARTING_FOR: Duration = Duration::from_secs(10);
/// The unit allows 15 starts a minute, with a pause of a second before each.
const LEAST_START: Duration = Duration::from_secs(5);
/// Between two STATUS lines; their rates are over this time.
const STATUS_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the manager from giving up on a start that waits for the store.
pub(super) fn starting(asked: String) -> Task {
    Task::spawn(async move {
        let longer = u32::try_from(STARTING_FOR.as_micros()).unwrap_or(u32::MAX);
        loop {
            tell(&[NotifyState::ExtendTimeoutUsec(longer), NotifyState::Status(&asked)]);
            sleep(STARTING_PAUSE).await;
        }
    })
}

pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("unmounting")]);
}

/// A start that may succeed another time takes [`LEAST_START`] under a manager, which starts again
/// at once and counts starts to tell a daemon that crashes.
pub(super) fn failed(sentence: &str, exit: Exit, begun: std::time::Instant) {
    tell(&[NotifyState::Status(sentence)]);
    if std::env::var_os("NOTIFY_SOCKET").is_some() && !exit.is_final() {
        std::thread::sleep(LEAST_START.saturating_sub(begun.elapsed()));
    }
}

/// Sends STATUS lines, while they change.
pub(super) fn telling(fs: Arc<BucketFs>) -> Option<Task> {
    std::env::var_os("NOTIFY_SOCKET")?;
    Some(Task::spawn(async move {
        let (mut last, mut since) = (fs.stats.snapshot(), Instant::now());
        let mut said = String::new();
        loop {
            sleep(STATUS_PAUSE).await;
            let (now, at) = (fs.stats.snapshot(), Instant::now());
            let status = status(&now, &last, at - since);
            if status != said {
                tell(&[NotifyState::Status(&status)]);
                said = status;
            }
            (last, since) = (now, at);
        }
    }))
}

/// Feeds the manager's watchdog, if there is one, as long as the mount answers `statfs`, whose
/// answer the kernel does not cache. While there is none, this task waits, and the manager acts.
/// Without a mountpoint here, the only proof is that this task runs.
pub(super) fn watched(mountpoint: Option<PathBuf>) -> Option<Task> {
    let patience = sd_notify::watchdog_enabled()?;
    Some(Task::spawn(async move {
        loop {
            let answer = match &mountpoint {
                Some(mountpoint) => answers(mountpoint).await,
                None => Ok(()),
            };
            match answer {
                Ok(()) => tell(&[NotifyState::Watchdog]),
                Err(error) => tracing::warn!(%error, "the mount does not answer"),
            }
            // Two of them may be late.
            sleep(patience / 3).await;
        }
    }))
}

/// Returns when the mount has answered the kernel, which may be never.
///
/// Another process asks. Who waits for a mount whose daemon dies cannot be killed: a thread of its
/// own would keep the daemon from ending, and its keeper from starting the next one, for which the
/// thread waits.
pub(super) async fn answers(mountpoint: &Path) -> io::Result<()> {
    let mut looking = Command::new("/proc/self/exe");
    looking.arg0("fasts3-mount").arg(mountpoint).env_clear().env(LOOKS, "1").kill_on_drop(true);
    looking.stdin(Stdio::null()).stdout(Stdio::null());
    match looking.status().await?.code() {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process that asks was killed")),
    }
}

/// The whole program, where [`answers`] has started it.
pub(super) fn look(arguments: &[OsString]) -> Option<ExitCode> {
    std::env::var_os(LOOKS)?;
    let mountpoint = Path::new(arguments.get(1)?);
    let errno = statvfs(mountpoint).err().map_or(0, |errno| errno as i32);
    // The kernel asks for the mode of the root now. Of a mount that was taken over it takes only
    // the second answer, and would refuse an ordinary user's first access.
    let _ = std::fs::metadata(mountpoint);
    Some(ExitCode::from(u8::try_from(errno).unwrap_or(u8::MAX)))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be reached");
    }
}

/// The STATUS line: rates over `elapsed`, or the totals if nothing was read in it.
fn status(now: &Snapshot, before: &Snapshot, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let done = now.since(before);
    let [served, fetched, gets] = [done.bytes_served, done.from_store(), done.gets]
        .map(|count| count.saturating_mul(1000) / millis);
    if (served, fetched, gets) == (0, 0, 0) {
        return format!(
            "idle; {} MB read and {} MB fetched with {} GETs since the mount",
            now.bytes_served / 1_000_000,
            now.from_store() / 1_000_000,
            now.gets,
        );
    }
    format!(
        "reading: {} MB/s to programs, {} MB/s from the store, {gets} GETs/s",
        tenths(served),
        tenths(fetched),
    )
}

fn tenths(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10)
}

/// Process 1 sees the mount with this device number (`major:minor`); none if that cannot be known.
/// The path does not tell, because namespaces may have a mount at different paths.
pub(super) fn host_sees(device: &str) -> Option<bool> {
    std::fs::read("/proc/1/mountinfo").ok().map(|mounts| mountinfo::lists(&mounts, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Stats;

    #[test]
    fn rates_are_of_the_time_between_and_silence_is_told_as_totals() {
        let stats = Stats::default();
        let before = stats.snapshot();
        stats.bytes_served.add(9_000_000);
        stats.bytes_fetched.add(1_250_000);
        stats.gets.add(10);
        let after = stats.snapshot();
        assert_eq!(
            status(&after, &before, Duration::from_secs(5)),
            "reading: 1.8 MB/s to programs, 0.2 MB/s from the store, 2 GETs/s"
        );
        assert_eq!(
            status(&after, &after, Duration::from_secs(5)),
            "idle; 9 MB read and 1 MB fetched with 10 GETs since the mount"
        );
    }
}
