//! The daemon, as a child: this program again, so that the demo needs nothing but itself.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use devserver::Server;
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::data::BUCKET;
use crate::reader::ended_within;

/// The daemon's memory budget.
const MEMORY_BUDGET: &str = "1GiB";

/// The name that makes this program the daemon, which starts itself anew under it.
pub(crate) const AS_DAEMON: &str = "fasts3-mount";
/// The daemon reports every failure at its start within 10 s.
const START_LIMIT: Duration = Duration::from_secs(15);
/// It unmounts at once, lazily if it must.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The daemon, with its own arguments.
pub(crate) fn daemon(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Whatever ends the demo, SIGKILL included, unmounts.
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        eprintln!("demo: the daemon may outlive the demo: {error}");
    }
    fasts3_mount::app::daemon::main(arguments)
}

/// A mounted bucket; dropping it unmounts and ends the daemon.
pub(crate) struct Mount {
    daemon: Child,
    place: Place,
}

/// Where to mount. What was mounted there before stays.
struct Place {
    path: PathBuf,
    before: usize,
    /// Removed when dropped, if it was ours.
    _temporary: Option<TempDir>,
}

impl Mount {
    /// Starts the daemon and waits until the kernel has the mount. An error is a sentence; the
    /// daemon has said its own before.
    pub(crate) async fn start(server: &Server, folder: Option<&Path>) -> Result<Self, String> {
        let place = Place::new(folder)?;
        let keys = server.credentials();
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        // The user's own configuration is for their own buckets.
        let of_aws = |name: &OsString| name.as_encoded_bytes().starts_with(b"AWS_");
        for name in std::env::vars_os().map(|(name, _)| name).filter(of_aws) {
            command.env_remove(name);
        }
        let daemon = command
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_ACCESS_KEY_ID", keys.access_key)
            .env("AWS_SECRET_ACCESS_KEY", keys.secret_key)
            .arg0(AS_DAEMON)
            .arg(BUCKET)
            .arg(&place.path)
            .args(["--endpoint-url", &server.endpoint_url()])
            // A guest on a laptop: the server, the reader and the kernel's page cache hold
            // a GiB or two each already.
            .args(["--memory-budget", MEMORY_BUDGET])
            .args(["--region", devserver::ENDPOINT_REGION, "--log-level", "warn"])
            .stdin(Stdio::null())
            // Ctrl-C is for us; we end our children.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("the daemon cannot be started: {error}"))?;
        let mut mount = Self { daemon, place };
        let until = Instant::now() + START_LIMIT;
        while !mount.place.is_mounted() {
            if let Ok(Some(status)) = mount.daemon.try_wait() {
                return Err(format!("nothing was mounted: the daemon ended with {status}"));
            }
            if Instant::now() > until {
                return Err(format!("nothing was mounted within {} s", START_LIMIT.as_secs()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(mount)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place.path
    }

    /// Returns when the daemon has ended, as it does after an unmount from outside.
    pub(crate) async fn ended(&mut self) {
        // An error would mean that there is no such process.
        let _ = self.daemon.wait().await;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if !ended_within(&mut self.daemon, END_LIMIT) {
                eprintln!("demo: the daemon does not end; killing it");
                let _ = self.daemon.start_kill();
                ended_within(&mut self.daemon, END_LIMIT);
            }
        }
        if self.place.is_mounted() {
            let path = &self.place.path;
            eprintln!("demo: the daemon has left {} mounted; unmounting it", path.display());
            if umount2(path, MntFlags::MNT_DETACH).is_err() {
                // The program with which ordinary users unmount.
                let fusermount = std::process::Command::new("fusermount3");
                let _ = { fusermount }.arg("-uz").arg(path).status();
            }
        }
    }
}

impl Place {
    fn new(folder: Option<&Path>) -> Result<Self, String> {
        let (path, temporary) = if let Some(folder) = folder {
            // One that cannot be resolved is for the daemon to refuse.
            (folder.canonicalize().unwrap_or_else(|_| folder.to_owned()), None)
        } else {
            let temporary = tempfile::Builder::new().prefix("fasts3-demo-").tempdir();
            let temporary = temporary.map_err(|e| format!("no temporary folder: {e}"))?;
            (temporary.path().canonicalize().map_err(|e| e.to_string())?, Some(temporary))
        };
        Ok(Self { before: mounts_at(&path), path, _temporary: temporary })
    }

    fn is_mounted(&self) -> bool {
        mounts_at(&self.path) > self.before
    }
}

/// The number of file systems mounted on a path. Asks no file system, so it never hangs.
fn mounts_at(path: &Path) -> usize {
    // proc_pid_mountinfo(5): the fifth field, with these four characters as octal.
    let path = OsStr::to_string_lossy(path.as_os_str()).replace('\\', "\\134");
    let path = path.replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(&path)).count()
}
