//! The mount of an ordinary user, which fusermount3 makes and ends.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::common::{
    Daemon, Scene, can_mount, eventually, is_mounted, is_root, skipped_but_not_in_ci,
};
use crate::outlive::{can_outlive, daemon_of};

/// `nobody`: fusermount3 wants to know its caller's name.
const USER: u32 = 65_534;

fn can_be_ordinary() -> bool {
    let helper = std::fs::metadata("/usr/bin/fusermount3");
    let ready = helper.is_ok_and(|file| file.permissions().mode() & 0o4000 != 0);
    let device = std::fs::metadata("/dev/fuse");
    let open = device.is_ok_and(|device| device.permissions().mode() & 0o6 == 0o6);
    can_mount()
        && is_root()
        && (open || skipped_but_not_in_ci("/dev/fuse is closed to ordinary users (mode 0666)"))
        && (ready || skipped_but_not_in_ci("there is no fusermount3 with set-user-ID, of fuse3"))
}

/// A bucket, and a user with the program, a home and a place to mount.
struct User {
    scene: Scene,
    program: PathBuf,
}

impl User {
    fn new() -> Self {
        let scene = Scene::new();
        scene.bucket().put("file", "bytes");
        let folder = scene.folder.path();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        for owned in ["home", "mnt"] {
            chown(folder.join(owned), Some(USER), Some(USER)).unwrap();
        }
        // Other users may have no access to the folder of the build.
        let program = folder.join("fasts3-mount");
        std::fs::copy(env!("CARGO_BIN_EXE_fasts3-mount"), &program).unwrap();
        Self { scene, program }
    }

    /// Whatever this user starts.
    fn command(&self, program: &Path) -> Command {
        let ours = self.scene.program();
        let mut command = Command::new(program);
        command.env_clear().envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.uid(USER).gid(USER).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(Path::new(program));
        command.args(arguments).arg(self.scene.mountpoint().join("file")).output().unwrap()
    }

    fn mount(&self) -> Daemon {
        let mountpoint = self.scene.mountpoint();
        let daemon =
            Daemon::start(self.command(&self.program).arg("data").arg(&mountpoint), &mountpoint);
        assert_eq!(self.run("cat", &[]).stdout, b"bytes");
        daemon
    }
}

#[test]
fn an_ordinary_user_ends_a_mount_by_a_signal_or_the_word() {
    if !can_be_ordinary() {
        return;
    }
    let user = User::new();
    let mountpoint = user.scene.mountpoint();
    for signal in [Some(Signal::TERM), Some(Signal::INT), None] {
        let mut daemon = user.mount();
        if let Some(signal) = signal {
            daemon.signal(signal);
        } else {
            let mut word = user.command(&user.program);
            let said = word.arg("unmount").arg(&mountpoint).output().unwrap();
            assert!(said.status.success(), "{said:?}");
            assert!(!is_mounted(&mountpoint), "it returns when the mount is gone");
        }
        let (code, log) = daemon.ended();
        assert_eq!(code, Some(0), "{signal:?}: {log}");
        assert!(!is_mounted(&mountpoint), "{signal:?}: {log}");
        assert!(log.contains("unmounted ") && !log.contains("WARN"), "{signal:?}: {log}");
    }
}

#[test]
fn an_ordinary_users_mount_that_is_in_use_is_detached() {
    if !can_be_ordinary() {
        return;
    }
    let user = User::new();
    let daemon = user.mount();
    let mut holds = user.command(Path::new("tail"));
    holds.arg("-f").arg(user.scene.mountpoint().join("file")).stdout(Stdio::piped());
    let mut reader = holds.spawn().unwrap();
    let mut first = [0; 5];
    std::io::Read::read_exact(reader.stdout.as_mut().unwrap(), &mut first).unwrap();
    let (code, log) = daemon.end(Signal::TERM);
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_mounted(&user.scene.mountpoint()), "{log}");
}

#[test]
fn what_an_ordinary_users_daemon_left_is_freed_by_the_next() {
    if !can_be_ordinary() {
        return;
    }
    let user = User::new();
    let mountpoint = user.scene.mountpoint();
    let mut daemon = user.mount();
    daemon.signal(Signal::KILL);
    // The kernel caches all other answers, even the file's bytes.
    eventually("a dead mount", || {
        String::from_utf8_lossy(&user.run("stat", &["-f"]).stderr).contains("not connected")
    });
    let (code, _) = daemon.ended();
    assert_eq!(code, None);
    assert!(is_mounted(&mountpoint));
    let again = user.mount();
    let (code, log) = again.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("was a stale mount of a daemon that died: it is freed"), "{log}");
    assert!(!is_mounted(&mountpoint));
}

/// The kernel may look at the root for the first time after the takeover.
#[test]
fn an_ordinary_users_mount_that_nobody_has_used_outlives_its_daemon() {
    if !can_be_ordinary() || !can_outlive() {
        return;
    }
    let user = User::new();
    let mountpoint = user.scene.mountpoint();
    let mut command = user.command(&user.program);
    command.arg("data").arg(&mountpoint).arg("--outlive=always");
    let holder = Daemon::start(&mut command, &mountpoint);
    let first = daemon_of(holder.pid()).unwrap();
    let pid = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    eventually("the next one", || holder.log_so_far().matches("mounted s3://data/").count() == 2);
    let read = user.run("cat", &[]);
    assert_eq!(read.stdout, b"bytes", "{read:?}");
}
