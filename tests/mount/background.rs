//! `--daemon`, and the helper that mount(8) calls: who asks for a mount has it when the call
//! returns, or hears why not.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::mount::UnmountFlags;

use crate::common::{Scene, can_mount, eventually, is_mounted, is_root, unmount};

/// Unmounts when dropped, and so ends the daemon too.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        if is_mounted(self.0) {
            let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
        }
    }
}

/// The environment of `scene.program()` for the program under another name.
fn helper(scene: &Scene) -> Command {
    let name = scene.folder.path().join("mount.fasts3");
    if !name.exists() {
        symlink(env!("CARGO_BIN_EXE_fasts3-mount"), &name).unwrap();
    }
    let ours = scene.program();
    let mut command = Command::new(name);
    command.env_clear().stdin(Stdio::null());
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The type that the kernel shows for a mount.
fn kind(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == path.to_str()).unwrap();
    line.split(' ').nth(2).unwrap().to_owned()
}

/// A bucket, and where it will be mounted.
fn with_a_file() -> (Scene, PathBuf) {
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mountpoint = scene.mountpoint();
    (scene, mountpoint)
}

/// As the ranks of a job do that each mount what is not mounted.
#[test]
fn of_daemons_that_start_at_once_on_one_directory_one_mounts() {
    if !can_mount() || !is_root() {
        return;
    }
    let (scene, mountpoint) = with_a_file();
    let _unmounted = Unmounted(&mountpoint);
    let start = |_| {
        let mut command = scene.program();
        command.arg("data").arg(&mountpoint).arg("--daemon").stdout(Stdio::null());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let started: Vec<_> = (0..4).map(start).collect();
    let ended = started.into_iter().map(|child| child.wait_with_output().unwrap());
    let (mounted, refused): (Vec<_>, Vec<_>) = ended.partition(|output| output.status.success());
    assert_eq!((mounted.len(), refused.len()), (1, 3), "{refused:?}");
    for output in refused {
        assert_eq!(output.status.code(), Some(73), "{output:?}");
        assert!(stderr(&output).contains("in use"), "{output:?}");
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let ours = mounts.lines().filter(|line| line.split(' ').nth(1) == mountpoint.to_str());
    assert_eq!(ours.count(), 1);
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
}

#[test]
fn a_daemon_returns_when_the_mount_is_usable() {
    if !can_mount() || !is_root() {
        return;
    }
    let (scene, mountpoint) = with_a_file();
    let _unmounted = Unmounted(&mountpoint);
    let mut command = scene.program();
    // Relative paths are relative to the caller, although the daemon changes to the root directory.
    command.args(["data", "mnt", "--daemon"]).current_dir(scene.folder.path());
    // Its output is read until the end, so no other process may hold the pipe.
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "", "what goes well is not worth a word");
    assert_eq!(output.stdout, b"");
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    assert_eq!(kind(&mountpoint), "fuse.fasts3");
    unmount(&mountpoint);
}

/// As flock(1) gives one to the program that it starts.
#[test]
fn a_daemon_keeps_no_descriptor_that_it_was_given() {
    if !can_mount() || !is_root() {
        return;
    }
    let (scene, mountpoint) = with_a_file();
    let _unmounted = Unmounted(&mountpoint);
    let lock = scene.folder.path().join("lock");
    let program = scene.program();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 7>\"$0\"; exec \"$@\""]).arg(&lock).arg(program.get_program());
    command.arg("data").arg(&mountpoint).arg("--daemon").args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let holders = std::fs::read_dir("/proc").unwrap().filter_map(|process| {
        let files = std::fs::read_dir(process.ok()?.path().join("fd")).ok()?;
        let mut targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.any(|target| target == lock).then_some(())
    });
    assert_eq!(holders.count(), 0);
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    unmount(&mountpoint);
}

#[test]
fn a_daemon_that_cannot_mount_says_why_with_its_exit_code() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for (bucket, option, code, says) in [
        ("missing", "--daemon", 66, "no bucket missing"),
        ("data", "--daemon=maybe", 64, "--daemon"),
    ] {
        let output =
            scene.program().args([bucket, option]).arg(scene.mountpoint()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = stderr(&output);
        assert!(said.starts_with("fasts3-mount: ") && said.contains(says), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!is_mounted(&scene.mountpoint()));
    }
}

#[test]
fn a_log_file_goes_on_with_the_daemon() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    let mountpoint = scene.mountpoint();
    let _unmounted = Unmounted(&mountpoint);
    let path = scene.folder.path().join("log");
    let mut command = scene.program();
    command.args(["data", "--daemon"]).arg(&mountpoint).stderr(File::create(&path).unwrap());
    assert!(command.status().unwrap().success());
    unmount(&mountpoint);
    let log = || std::fs::read_to_string(&path).unwrap();
    eventually("the last line", || log().contains("unmounted from outside"));
    assert!(log().contains("mounted s3://data/"), "{}", log());
}

#[test]
fn the_helper_mounts_a_line_of_fstab() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("train/file", "bytes");
    let mountpoint = scene.mountpoint();
    let _unmounted = Unmounted(&mountpoint);
    let mut command = helper(&scene);
    command.env_remove("FASTS3_ENDPOINT_URL").arg("s3://data/train").arg(&mountpoint);
    let endpoint = format!("endpoint_url={}", scene.server.endpoint_url());
    let options = ["rw,_netdev,nofail,x-systemd.automount,noexec,metadata-ttl=5m", &endpoint];
    let output = command.args(["-n", "-v", "-s", "-o"]).arg(options.join(",")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mountpoint.to_str().unwrap())).unwrap();
    assert!(line.starts_with("s3://data/train/ ") && line.contains("noexec"), "{line}");

    // mount(8) does not call twice; a call by hand is told that it is mounted.
    let again = helper(&scene).arg("s3://data/train").arg(&mountpoint).output().unwrap();
    assert_eq!(again.status.code(), Some(32), "{again:?}");
    assert!(stderr(&again).contains("in use: a fuse.fasts3 file system"), "{again:?}");
    unmount(&mountpoint);
}

#[test]
fn the_helper_understands_a_line_of_another_file_system() {
    if !can_mount() || !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("train/file", "bytes");
    let mountpoint = scene.mountpoint();
    let _unmounted = Unmounted(&mountpoint);
    let mut command = helper(&scene);
    command.env_remove("FASTS3_ENDPOINT_URL").arg("s3://data").arg(&mountpoint);
    let url = format!("url={}", scene.server.endpoint_url());
    let options = ["_netdev,allow_other,use_path_request_style,umask=022,prefix=train/", &url];
    let output = command.arg("-o").arg(options.join(",")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(mountpoint.clone()), mode(mountpoint.join("file"))), (0o755, 0o644));
    unmount(&mountpoint);
}

#[test]
fn the_helper_fails_with_32_and_the_reason() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mountpoint = scene.mountpoint();
    let place = mountpoint.to_str().unwrap();
    for (arguments, says) in [
        (&["missing", place][..], "no bucket missing"),
        (&["data", "/nowhere/at/all"], "does not exist"),
        (&["data", place, "-o", "frobnicate"], "no mount option frobnicate"),
        (&["data", place, "-o", "part_size=3"], "--part-size must be a multiple"),
        (&["data", place, "-o", "allow_other=maybe"], "--allow-other"),
        (&["data", place, "-f", "-o", "part_size=3"], "--part-size must be a multiple"),
        (&["data"], "a bucket and a directory"),
    ] {
        let output = helper(&scene).args(arguments).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(32), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!is_mounted(&mountpoint));
    }
    // With -f nothing is mounted, and nothing is requested from the store.
    let output = helper(&scene).args(["missing", place, "-f"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!is_mounted(&mountpoint));
}
