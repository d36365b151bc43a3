//! Helpers of the tests of the real program: a bucket on a server, the program started against it
//! in an environment of its own, and a mount that is gone when its test ends, however it ends.
#![allow(dead_code)] // each test binary uses its part

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use devserver::proxy::{Applied, FaultProxy, Rule};
use devserver::{Bucket, Counts, Server};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Limit of waits that take a fraction of a second, for a very busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// The program in an environment of its own, so that nothing of the developer's AWS configuration
/// or machine role is ever asked.
pub(crate) fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasts3-mount"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    // The control sockets belong to this test only.
    command.env("RUNTIME_DIRECTORY", home.join("run"));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn has_fuse() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

/// True if a test that mounts can run. In CI, which must be able to, the test fails instead.
pub(crate) fn can_mount() -> bool {
    has_fuse() || skipped_but_not_in_ci("there is no /dev/fuse to open")
}

/// Says that the calling test is skipped, past the test harness's capture of output. Always false.
pub(crate) fn skipped(reason: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
    false
}

/// The same for a requirement of CI: there the test fails.
pub(crate) fn skipped_but_not_in_ci(reason: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "CI must run every test, but {reason}");
    skipped(reason)
}

/// True if a test that needs root, or to become another user, can run.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root() || skipped("only root can do this")
}

/// Waits until the condition holds.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited for too long: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// Unmounts as umount(8) does. Until it executes its program, a process that another test has just
/// started has the files that are open here, too: so long the mount is busy.
pub(crate) fn unmount(path: &Path) {
    eventually("the unmount", || match rustix::mount::unmount(path, UnmountFlags::empty()) {
        Err(Errno::BUSY) => false,
        outcome => outcome.is_ok() || panic!("{}: {outcome:?}", path.display()),
    });
}

/// Unmounts whatever is there, as the kernel or fusermount3 allows.
fn unmount_lazily(path: &Path) {
    if rustix::mount::unmount(path, UnmountFlags::DETACH).is_err() {
        let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(path).status();
    }
}

/// The bucket `data` on a server, and an empty place to mount it.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) folder: TempDir,
    proxy: Option<FaultProxy>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::on(Server::builder().start_blocking().unwrap())
    }

    pub(crate) fn on(server: Server) -> Self {
        let _ = server.bucket("data");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        std::fs::create_dir(folder.path().join("home")).unwrap();
        Self { server, folder, proxy: None }
    }

    /// With a proxy between program and server, without faults at first.
    pub(crate) fn with_proxy() -> Self {
        let scene = Self::new();
        let proxy = FaultProxy::start_blocking(scene.server.address()).unwrap();
        Self { proxy: Some(proxy), ..scene }
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(crate) fn bucket(&self) -> Bucket {
        self.server.bucket("data")
    }

    /// The program with the right endpoint and keys.
    pub(crate) fn program(&self) -> Command {
        let mut command = program(&self.folder.path().join("home"));
        let keys = self.server.credentials();
        let endpoint = match &self.proxy {
            Some(proxy) => proxy.endpoint_url(),
            None => self.server.endpoint_url(),
        };
        command
            .env("FASTS3_ENDPOINT_URL", endpoint)
            .env("AWS_ACCESS_KEY_ID", keys.access_key)
            .env("AWS_SECRET_ACCESS_KEY", keys.secret_key)
            .env("AWS_REGION", "us-east-1");
        if self.proxy.is_none() {
            // Requests are counted exactly, however late a busy machine lets the server answer.
            command.env("FASTS3_HEDGING", "never");
        }
        command
    }

    /// Breaks answers from now on.
    pub(crate) fn add(&self, rule: Rule) -> Applied {
        self.proxy.as_ref().expect("made with a proxy").add(rule)
    }

    /// Mounts the whole bucket, and forgets the requests so far.
    pub(crate) fn mount(self, options: &[&str]) -> Mount {
        self.mount_as("data", options)
    }

    /// The same with another way to name the bucket, or a prefix in it.
    pub(crate) fn mount_as(self, bucket: &str, options: &[&str]) -> Mount {
        let mut command = self.program();
        command.arg(bucket).arg(self.mountpoint()).args(options);
        let daemon = Daemon::start(&mut command, &self.mountpoint());
        self.server.reset();
        Mount { daemon, scene: self }
    }
}

/// A daemon that has mounted. Ended when dropped, and its mount with it.
pub(crate) struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    /// A file, in which each line is as soon as it is written.
    log: File,
    /// Ends when the daemon, and whoever it has started, has closed its output.
    closed: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    /// Starts the program and waits until it says that it has mounted.
    pub(crate) fn start(command: &mut Command, mountpoint: &Path) -> Self {
        let log = tempfile::tempfile().unwrap();
        command.stdout(Stdio::piped()).stderr(log.try_clone().unwrap());
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().expect("was piped");
        let closed = std::thread::spawn(move || drop(output.read_to_end(&mut Vec::new())));
        let mountpoint = mountpoint.to_owned();
        let mut daemon = Self { child, mountpoint, log, closed: Some(closed) };
        let start = Instant::now();
        while !daemon.has_mounted() {
            if start.elapsed() > PATIENCE || daemon.child.try_wait().unwrap().is_some() {
                let _ = daemon.child.kill();
                panic!("not mounted: {}", daemon.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn has_mounted(&self) -> bool {
        let log = self.log_so_far();
        log.lines().any(|line| line.contains("mounted ") && line.contains("s3://"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for an end that has another cause: exit code and log.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let status = self.wait().expect("the daemon ends");
        (status.code(), self.log())
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        self.ended()
    }

    /// The same, and the mount stays.
    pub(crate) fn end_and_leave(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let ended = self.ended();
        self.mountpoint = PathBuf::new();
        ended
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if start.elapsed() > PATIENCE => return None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub(crate) fn log_so_far(&self) -> String {
        let length = self.log.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.log.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The whole log, once.
    fn log(&mut self) -> String {
        let ended = self.closed.take().map(|closed| closed.join().unwrap());
        ended.map(|()| self.log_so_far()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            if self.wait().is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if is_mounted(&self.mountpoint) {
            unmount_lazily(&self.mountpoint);
        }
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{log}");
        }
    }
}

/// A mounted bucket.
pub(crate) struct Mount {
    // Dropped before the server, which it needs while it ends.
    pub(crate) daemon: Daemon,
    pub(crate) scene: Scene,
}

impl Mount {
    /// Where a key is found.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.scene.mountpoint().join(key)
    }

    pub(crate) fn bucket(&self) -> Bucket {
        self.scene.bucket()
    }

    /// The server's counts since the mount, or the last call of [`Self::forget_counts`].
    pub(crate) fn counts(&self) -> Counts {
        self.scene.server.counts()
    }

    /// Counts from here on. A lookup sends more requests than it needs to answer, so some of them
    /// may still be in flight.
    pub(crate) fn forget_counts(&self) {
        let mut seen = None;
        eventually("a quiet server", || {
            let before = seen.replace(self.counts());
            std::thread::sleep(Duration::from_millis(100));
            before == Some(self.counts())
        });
        self.scene.server.reset();
    }

    /// Breaks answers from now on.
    pub(crate) fn add(&self, rule: Rule) -> Applied {
        self.scene.add(rule)
    }

    /// Cuts every connection to the server.
    pub(crate) fn cut(&self) {
        self.scene.proxy.as_ref().expect("made with a proxy").cut();
    }

    /// Breaks no more answers.
    pub(crate) fn heal(&self) {
        self.scene.proxy.as_ref().expect("made with a proxy").clear();
    }

    pub(crate) fn read(&self, key: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.path(key))
    }

    /// The names in a directory, in the order in which the file system gives them.
    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        names(&self.path(directory)).unwrap()
    }

    /// Sends a signal and waits for the end: exit code and log. The scene stays.
    pub(crate) fn end(self, signal: Signal) -> (Option<i32>, String, Scene) {
        let Self { daemon, scene } = self;
        let (code, log) = daemon.end(signal);
        (code, log, scene)
    }
}

/// The names in a directory, in the order in which the file system gives them.
pub(crate) fn names(directory: &Path) -> std::io::Result<Vec<String>> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry?.file_name().into_string().expect("keys are UTF-8"))
    };
    std::fs::read_dir(directory)?.map(name).collect()
}

/// The errno of a failure.
pub(crate) fn errno<T>(outcome: std::io::Result<T>) -> Option<i32> {
    outcome.err().and_then(|error| error.raw_os_error())
}
