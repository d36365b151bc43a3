//! A mount that outlives its daemon: with the holder of this program, and with a service manager,
//! whose end of the protocol the test plays.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use devserver::proxy::{Fault, Rule};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use crate::common::{
    Daemon, Mount, Scene, can_mount, errno, eventually, is_mounted, is_root, skipped_but_not_in_ci,
    unmount,
};

/// Requests that were in flight are sent again since Linux 6.9.
pub(super) fn can_outlive() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().unwrap().unwrap();
    can_mount()
        && is_root()
        && ((next(), next()) >= (6, 9) || skipped_but_not_in_ci("the kernel is older than 6.9"))
}

/// The daemon that a holder has started.
pub(super) fn daemon_of(holder: u32) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_alive = !status.contains("\nState:\tZ");
        is_alive && status.contains(&format!("\nPPid:\t{holder}\n"))
    })
}

fn held(scene: Scene) -> Mount {
    scene.mount(&["--outlive=always", "--hedging=never"])
}

impl Mount {
    fn daemon_pid(&self) -> i32 {
        let mut found = None;
        eventually("a daemon", || {
            found = daemon_of(self.daemon.pid());
            found.is_some()
        });
        found.unwrap()
    }

    pub(super) fn signal_daemon(&self, signal: Signal) -> i32 {
        let pid = self.daemon_pid();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        pid
    }

    /// Kills the daemon, and waits until the next one serves.
    pub(super) fn replace(&self) {
        let before = self.taken_over();
        let pid = self.signal_daemon(Signal::KILL);
        eventually("another daemon", || self.taken_over() > before && self.daemon_pid() != pid);
    }

    pub(super) fn taken_over(&self) -> usize {
        self.daemon.log_so_far().matches("taking over the mount").count()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A large object and some hundred files, each of which holds its name.
fn filled() -> (Scene, String) {
    let scene = Scene::new();
    scene.bucket().put_synthetic("large", 24 << 20);
    for number in 0..400 {
        let name = format!("{number:04}");
        scene.bucket().put(&format!("small/{name}"), name.clone());
    }
    let bytes = scene.bucket().bytes("large", 0..24 << 20);
    let digest = hex(&bytes);
    (scene, digest)
}

#[test]
fn a_reader_that_waits_gets_its_bytes_from_the_next_daemon() {
    if !can_outlive() {
        return;
    }
    let (scene, _) = filled();
    let want = scene.bucket().bytes("large", 0..24 << 20);
    let mount = held(scene);
    assert_eq!(mount.names("").len(), 2);
    mount.scene.server.set_first_byte_latency(Duration::from_mins(10));
    let path = mount.path("large");
    let reader = std::thread::spawn(move || std::fs::read(path));
    let other = mount.path("small/0007");
    let looker = std::thread::spawn(move || std::fs::metadata(other).map(|file| file.len()));
    eventually("the requests", || mount.counts().get > 0);
    mount.signal_daemon(Signal::KILL);
    mount.scene.server.set_first_byte_latency(Duration::ZERO);
    assert!(reader.join().unwrap().unwrap() == want[..], "the right bytes");
    assert_eq!(looker.join().unwrap().unwrap(), 4);
    let log = mount.daemon.log_so_far();
    assert!(log.contains("the daemon has died (SIGKILL): starting it again"), "{log}");
    // As ever, SIGTERM unmounts.
    let (code, log, scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_mounted(&scene.mountpoint()));
}

/// L1
#[test]
fn readers_of_every_kind_notice_a_pause_and_nothing_else() {
    if !can_outlive() {
        return;
    }
    let (scene, digest) = filled();
    let mount = held(scene);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/held.py");
    let mut readers = Command::new("python3")
        .arg("-B")
        .arg(script)
        .arg(mount.scene.mountpoint())
        .arg(digest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = readers.stdout.take().unwrap();
    let mut word = [0; 8];
    stdout.read_exact(&mut word).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        mount.replace();
    }
    // An upgrade: the daemon ends by itself, in the middle of everything.
    std::thread::sleep(Duration::from_millis(700));
    mount.daemon.signal(Signal::QUIT);
    eventually("another daemon", || mount.taken_over() == 4);
    std::thread::sleep(Duration::from_millis(700));
    drop(readers.stdin.take());
    stdout.read_to_string(&mut said).unwrap();
    assert!(readers.wait().unwrap().success(), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["wrong"], serde_json::json!([]), "{told}");
    for kind in ["read", "mmap", "O_DIRECT", "scan", "stat", "small"] {
        assert!(told["done"][kind].as_u64() > Some(0), "{kind}: {told}");
    }
    let log = mount.daemon.log_so_far();
    assert_eq!(log.matches("the daemon has died").count(), 3, "{log}");
    assert!(log.contains("SIGQUIT: the mount stays for the next daemon"), "{log}");
}

/// F6, through the kernel.
#[test]
fn a_scan_goes_on_behind_the_last_name_that_the_program_has() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    for number in 0..5000 {
        scene.bucket().put(&format!("d/{number:05}"), "x");
    }
    let mount = held(scene);
    let mut entries = std::fs::read_dir(mount.path("d")).unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut take = |count: usize| {
        let more = entries.by_ref().take(count);
        names.extend(more.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        names.len()
    };
    assert_eq!(take(1500), 1500);
    mount.replace();
    // Every position moves.
    mount.bucket().put("d/000000", "new");
    mount.bucket().delete("d/00003");
    mount.bucket().delete("d/00004");
    take(1500);
    mount.replace();
    take(usize::MAX);
    let mut unchanged = names.clone();
    unchanged.retain(|name| name != "00003" && name != "00004" && name != "000000");
    let want: Vec<_> =
        (0..5000).filter(|n| ![3, 4].contains(n)).map(|n| format!("{n:05}")).collect();
    assert!(unchanged == want, "{} names", unchanged.len());
}

/// R2, F5
#[test]
fn an_open_file_stays_the_version_that_it_was() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 3 << 20);
    let mount = held(scene);
    let open = File::open(mount.path("object")).unwrap();
    let mut first = [0; 100];
    open.read_exact_at(&mut first, 0).unwrap();
    mount.bucket().put("object", vec![7; 3 << 20]);
    mount.replace();
    let errno = errno(open.read_exact_at(&mut [0; 100], 2 << 20));
    assert_eq!(errno, Some(libc::ESTALE), "never bytes of both");
    assert_eq!(mount.read("object").unwrap(), vec![7; 3 << 20]);
    mount.replace();
    assert_eq!(mount.read("object").unwrap(), vec![7; 3 << 20]);
}

/// L3
#[test]
fn daemons_that_die_again_and_again_are_given_up_and_readers_get_an_error() {
    if !can_outlive() {
        return;
    }
    let (scene, _) = filled();
    let mut mount = held(scene);
    assert_eq!(mount.names("").len(), 2);
    mount.scene.server.set_first_byte_latency(Duration::from_mins(10));
    let path = mount.path("large");
    let reader = std::thread::spawn(move || errno(std::fs::read(path)));
    eventually("the request", || mount.counts().get > 0);
    for _ in 0..4 {
        mount.signal_daemon(Signal::KILL);
    }
    eventually("the last death", || {
        daemon_of(mount.daemon.pid())
            .map(|pid| kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL));
        mount.daemon.log_so_far().contains("the mount is given up")
    });
    let read = reader.join().unwrap();
    assert!(matches!(read, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)), "{read:?}");
    let (code, log) = mount.daemon.ended();
    assert_eq!(code, Some(70), "{log}");
    assert!(
        log.contains("the daemon has died 5 times within 30 s: the mount is given up"),
        "{log}"
    );
    // An empty directory would be taken for the data.
    assert!(is_mounted(&mount.scene.mountpoint()));
    assert_eq!(errno(std::fs::metadata(mount.path("none"))), Some(libc::ENOTCONN));
}

#[test]
fn a_daemon_may_be_killed_while_it_takes_over() {
    if !can_outlive() {
        return;
    }
    let (scene, digest) = filled();
    let mount = held(scene);
    let path = mount.path("large");
    let reader = std::thread::spawn(move || {
        let bytes = std::fs::read(path).unwrap();
        hex(&bytes)
    });
    // At once, and at some moments of the start of the next one.
    let mut dead = mount.signal_daemon(Signal::KILL);
    for pause in [0, 10, 30] {
        eventually("the next one", || daemon_of(mount.daemon.pid()).is_some_and(|pid| pid != dead));
        std::thread::sleep(Duration::from_millis(pause));
        dead = mount.signal_daemon(Signal::KILL);
    }
    assert_eq!(reader.join().unwrap(), digest);
    assert_eq!(mount.names("small").len(), 400);
}

#[test]
fn a_mount_goes_on_without_a_disk_cache_that_is_not_safe_any_more() {
    if !can_outlive() {
        return;
    }
    let (scene, _) = filled();
    let want = scene.bucket().bytes("large", 0..24 << 20);
    let cache = scene.folder.path().join("cache");
    let dir = format!("--cache-dir={}", cache.display());
    let mount = scene.mount(&["--outlive=always", "--hedging=never", &dir, "--cache-reserve=0"]);
    assert!(mount.read("large").unwrap() == want[..]);
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o777)).unwrap();
    mount.signal_daemon(Signal::KILL);
    assert!(mount.read("large").unwrap() == want[..]);
    eventually("the next one", || mount.daemon.log_so_far().matches("mounted s3://").count() == 2);
    let log = mount.daemon.log_so_far();
    assert!(log.contains("the mount goes on without what it had: --cache-dir"), "{log}");
}

#[test]
fn a_daemon_that_waits_for_the_kernel_when_it_is_killed_is_followed_by_another() {
    if !can_outlive() {
        return;
    }
    let (scene, _) = filled();
    let want = scene.bucket().bytes("large", 0..24 << 20);
    let mount = held(scene);
    assert_eq!(mount.names("").len(), 2);
    mount.scene.server.set_first_byte_latency(Duration::from_mins(10));
    let path = mount.path("large");
    let reader = std::thread::spawn(move || std::fs::read(path));
    eventually("the request", || mount.counts().get > 0);
    // Before it drops pages, the kernel waits for the read of them, and the daemon for the kernel.
    let mut command = mount.scene.program();
    let command = command.arg("drop").arg(mount.scene.mountpoint());
    let mut drop = command.stderr(Stdio::null()).spawn().unwrap();
    let threads = format!("/proc/{}/task", mount.daemon_pid());
    eventually("a thread that waits", || {
        std::fs::read_dir(&threads).unwrap().flatten().any(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status"));
            status.is_ok_and(|status| status.contains("\nState:\tD"))
        })
    });
    mount.signal_daemon(Signal::KILL);
    mount.scene.server.set_first_byte_latency(Duration::ZERO);
    eventually("an answer", || reader.is_finished());
    assert!(reader.join().unwrap().unwrap() == want[..], "the right bytes");
    drop.wait().unwrap();
}

#[test]
fn without_its_holder_a_daemon_serves_on_and_ends_with_its_mount() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mount = held(scene);
    let pid = mount.daemon_pid();
    mount.daemon.signal(Signal::KILL);
    let log = || mount.daemon.log_so_far();
    eventually("a line", || log().contains("the holder has ended"));
    assert_eq!(mount.read("file").unwrap(), b"bytes");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    eventually("the unmount", || !is_mounted(&mount.scene.mountpoint()));
}

#[test]
fn a_store_that_is_away_lets_readers_wait_and_known_names_answer() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put("known", "bytes");
    scene.bucket().put_synthetic("object", 1 << 20);
    let mount = held(scene);
    let want = mount.bucket().bytes("object", 0..1 << 20);
    assert_eq!(mount.names("").len(), 2);
    assert_eq!(std::fs::metadata(mount.path("known")).unwrap().len(), 5);
    assert_eq!(std::fs::metadata(mount.path("object")).unwrap().len(), 1 << 20);
    mount.add(Rule::on_all(Fault::Hangup));
    mount.cut();
    mount.replace();
    assert_eq!(std::fs::metadata(mount.path("known")).unwrap().len(), 5);
    let path = mount.path("object");
    let reader = std::thread::spawn(move || std::fs::read(path));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!reader.is_finished());
    mount.heal();
    assert!(reader.join().unwrap().unwrap() == want[..]);
}

#[test]
fn credentials_that_are_gone_are_an_error_of_reads_and_no_end_of_the_mount() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let keys = scene.server.credentials();
    let file = scene.folder.path().join("home/credentials");
    let good = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_key
    );
    std::fs::write(&file, &good).unwrap();
    let mut command = scene.program();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.env("AWS_SHARED_CREDENTIALS_FILE", &file).args(["data", "--outlive=always"]);
    let daemon = Daemon::start(command.arg(scene.mountpoint()), &scene.mountpoint());
    let mount = Mount { daemon, scene };
    assert_eq!(std::fs::metadata(mount.path("file")).unwrap().len(), 5);
    std::fs::write(&file, "[default]\n").unwrap();
    mount.replace();
    assert_eq!(std::fs::metadata(mount.path("file")).unwrap().len(), 5);
    assert!(mount.read("file").is_err());
    std::fs::write(&file, &good).unwrap();
    let start = Instant::now();
    eventually("credentials", || {
        assert!(start.elapsed() < Duration::from_secs(50));
        mount.read("file").is_ok_and(|bytes| bytes == b"bytes")
    });
}

#[test]
fn in_the_background_the_mount_outlives_its_daemon_by_default() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let log = scene.folder.path().join("log");
    let mut command = scene.program();
    command.args(["data", "--daemon"]).arg(scene.mountpoint()).stderr(File::create(&log).unwrap());
    assert!(command.status().unwrap().success());
    let log = || std::fs::read_to_string(&log).unwrap();
    let pid = |scene: &Scene| {
        let output =
            scene.program().arg("status").arg(scene.mountpoint()).arg("--json").output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        i32::try_from(status["settings"]["pid"].as_i64().unwrap()).unwrap()
    };
    let first = pid(&scene);
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    assert_eq!(std::fs::read(scene.mountpoint().join("file")).unwrap(), b"bytes");
    eventually("the next one", || log().matches("mounted s3://data/").count() == 2);
    let second = pid(&scene);
    assert!(second != first);
    let status = std::fs::read_to_string(format!("/proc/{second}/status")).unwrap();
    let holder = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    let holder = PathBuf::from(format!("/proc/{holder}"));
    unmount(&scene.mountpoint());
    eventually("the end of both", || !holder.exists());
}

/// A volume that containers share with this machine: what is mounted below is seen on both sides.
struct Volume(PathBuf);

impl Volume {
    fn new(path: &Path) -> Self {
        mount_bind(path, path).unwrap();
        mount_change(path, MountPropagationFlags::SHARED).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn the_first_process_of_a_container_is_a_holder() {
    if !can_outlive() {
        return;
    }
    let (scene, _) = filled();
    let want = scene.bucket().bytes("large", 0..24 << 20);
    let _volume = Volume::new(scene.folder.path());
    let ours = scene.program();
    let mut command = Command::new("unshare");
    command.env_clear().stdin(Stdio::null());
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Numbers, mounts and /proc of its own, as with `docker run`, and no other process.
    let own = ["--pid", "--fork", "--kill-child", "--mount", "--propagation", "unchanged"];
    let script = "mount --make-private /proc && mount -t proc proc /proc && exec \"$@\"";
    command.args(own).args(["sh", "-c", script, "sh"]).arg(ours.get_program());
    command.arg("data").arg("--hedging=never");
    let daemon = Daemon::start(command.arg(scene.mountpoint()), &scene.mountpoint());
    let holder = daemon_of(daemon.pid()).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")));
    // A reader outside waits while the daemon is killed.
    assert_eq!(std::fs::read_dir(scene.mountpoint()).unwrap().count(), 2);
    scene.server.set_first_byte_latency(Duration::from_mins(10));
    let path = scene.mountpoint().join("large");
    let reader = std::thread::spawn(move || std::fs::read(path));
    eventually("the request", || scene.server.counts().get > 0);
    let first = daemon_of(holder.unsigned_abs()).unwrap();
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    scene.server.set_first_byte_latency(Duration::ZERO);
    assert!(reader.join().unwrap().unwrap() == want[..], "the right bytes");
    // `docker stop`.
    kill_process(Pid::from_raw(holder).unwrap(), Signal::TERM).unwrap();
    let (mut daemon, mountpoint) = (daemon, scene.mountpoint());
    let (code, log) = daemon.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_daemon_may_be_killed_before_its_mount_is_usable() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mountpoint = scene.mountpoint();
    // When it asks the store, when the kernel has the mount, and a little later.
    for moment in 0..5 {
        scene.server.reset();
        let mut command = scene.program();
        command.args(["data", "--outlive=always"]).arg(&mountpoint).stderr(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut pid = None;
        eventually("a daemon", || {
            pid = daemon_of(holder.id());
            pid.is_some()
        });
        if moment == 0 {
            eventually("a request", || scene.server.counts().list > 0);
        } else {
            while !is_mounted(&mountpoint) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(moment - 1));
        }
        kill_process(Pid::from_raw(pid.unwrap()).unwrap(), Signal::KILL).unwrap();
        // Either the start has failed and says so, or there was something to go on with.
        let mut ended = None;
        eventually("an end, or another daemon", || {
            ended = holder.try_wait().unwrap();
            ended.is_some() || daemon_of(holder.id()).is_some_and(|other| Some(other) != pid)
        });
        if ended.is_none() {
            assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
            unmount(&mountpoint);
            // It may have come before the daemon was ready, which is then a start that has failed.
            holder.wait().unwrap();
            continue;
        }
        let output = holder.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(70), "{log}");
        assert!(log.contains("the daemon ended before the mount was usable: SIGKILL"), "{log}");
        // What is left there is dead, and in nobody's way.
        let mut command = scene.program();
        command.args(["data", "--outlive=always"]).arg(&mountpoint);
        let daemon = Daemon::start(&mut command, &mountpoint);
        assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
        assert_eq!(daemon.end(Signal::TERM).0, Some(0));
    }
}

type Spoil<'a> = &'a dyn Fn(&mut Manager);

/// A service manager with a store of descriptors.
pub(super) struct Manager {
    // Closed first: whoever waits for the mount then gets an error.
    stored: Vec<(String, OwnedFd)>,
    pub(super) scene: Scene,
    socket: UnixDatagram,
}

impl Manager {
    pub(super) fn new(scene: Scene) -> Self {
        let socket = UnixDatagram::bind(scene.folder.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { scene, socket, stored: Vec::new() }
    }

    fn command(&self) -> Command {
        let mut command = self.scene.program();
        if let [(_, mount), (_, table)] = &self.stored[..] {
            let numbers = [mount, table].map(|descriptor| {
                fcntl_setfd(descriptor, FdFlags::empty()).unwrap();
                descriptor.as_raw_fd().to_string()
            });
            let ours = command;
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/as_manager.py");
            command = Command::new("python3");
            command.env_clear().stdin(Stdio::null());
            command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command.arg("-B").arg(script).args(numbers).arg(ours.get_program());
        }
        command.env("NOTIFY_SOCKET", self.scene.folder.path().join("notify"));
        command.arg("data").arg(self.scene.mountpoint());
        command
    }

    pub(super) fn start(&mut self, options: &[&str]) -> Daemon {
        let daemon = Daemon::start(self.command().args(options), &self.scene.mountpoint());
        self.hear();
        daemon
    }

    /// Takes what has been said so far.
    fn hear(&mut self) {
        loop {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut into = [std::io::IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let Ok(told) = recvmsg(&self.socket, &mut into, &mut rights, flags) else { return };
            let text = String::from_utf8_lossy(&bytes[..told.bytes]).into_owned();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            if text.contains("FDSTOREREMOVE=1") {
                self.stored.retain(|(stored, _)| Some(stored.as_str()) != name);
            }
            for message in rights.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    let name = name.unwrap().to_owned();
                    self.stored.extend(descriptors.map(|one| (name.clone(), one)));
                }
            }
        }
    }

    fn table(&self) -> File {
        File::from(self.stored[1].1.try_clone().unwrap())
    }
}

#[test]
fn a_service_manager_has_what_the_next_daemon_needs() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 1 << 20);
    let want = scene.bucket().bytes("object", 0..1 << 20);
    let mut manager = Manager::new(scene);
    let daemon = manager.start(&[]);
    let names: Vec<_> = manager.stored.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["mount", "table"]);
    // Not a file of this process: to start the next daemon it would have to close a copy of it.
    let mut reader = Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; echo; read line; cat <&3"])
        .arg(manager.scene.mountpoint().join("object"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = reader.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    // `systemctl restart`: with other options, as far as the kernel knows nothing of them.
    let (code, log) = daemon.end_and_leave(Signal::QUIT);
    assert_eq!(code, Some(0), "{log}");
    assert!(is_mounted(&manager.scene.mountpoint()));
    let daemon = manager.start(&["--metadata-ttl=5m", "--memory-budget=64MiB"]);
    reader.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert!(reader.wait().unwrap().success() && bytes == want[..]);
    let log = daemon.log_so_far();
    assert!(log.contains("taking over the mount on"), "{log}");
    // `systemctl stop`.
    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_mounted(&manager.scene.mountpoint()));
    manager.hear();
    assert!(manager.stored.is_empty(), "{:?}", manager.stored);
}

/// L2. What is left and cannot be gone on with: the old mount is freed, a new one made, and the log
/// says why.
#[test]
fn what_cannot_be_gone_on_with_is_freed_and_mounted_anew() {
    if !can_outlive() {
        return;
    }
    let flip = |manager: &Manager, at: u64| {
        let (table, mut byte) = (manager.table(), [0]);
        table.read_exact_at(&mut byte, at).unwrap();
        table.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let cases: [(&str, Spoil<'_>); 8] = [
        ("its table is damaged: a checksum is wrong", &|m| flip(m, (12 << 10) + 3)),
        ("its table is damaged: a checksum is wrong", &|m| flip(m, (16 << 10) + (8 << 20) + 40)),
        ("its table is damaged: the description is wrong", &|m| flip(m, 50)),
        ("its table has the format 3, and not 2", &|m| flip(m, 16)),
        ("its table is damaged: it is shorter than it says", &|m| {
            m.table().set_len((16 << 10) + (8 << 20)).unwrap();
        }),
        ("its table cannot be read", &|m| m.table().set_len(0).unwrap()),
        ("it was unmounted, or aborted", &|m| {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(m.scene.mountpoint(), flags).unwrap();
        }),
        ("the descriptor is not of /dev/fuse", &|m| {
            m.stored[0].1 = OwnedFd::from(File::open("/dev/null").unwrap());
        }),
    ];
    for (says, spoil) in cases {
        let scene = Scene::new();
        scene.bucket().put("file", "bytes");
        let mut manager = Manager::new(scene);
        let daemon = manager.start(&[]);
        let file = manager.scene.mountpoint().join("file");
        assert_eq!(std::fs::read(&file).unwrap(), b"bytes");
        daemon.end_and_leave(Signal::KILL);
        spoil(&mut manager);
        let daemon = manager.start(&[]);
        let log = daemon.log_so_far();
        let line = format!("the mount that was left is freed, and a new one is made: {says}");
        assert!(log.contains(&line), "{says}: {log}");
        assert_eq!(std::fs::read(&file).unwrap(), b"bytes", "{says}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let there = mounts.matches(manager.scene.mountpoint().to_str().unwrap()).count();
        assert_eq!(there, 1, "{says}");
        assert_eq!(manager.stored.len(), 2, "{says}: the new one is stored");
    }
}

#[test]
fn who_waits_for_a_mount_that_is_freed_gets_an_error_whoever_has_its_descriptor() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 1 << 20);
    let mut manager = Manager::new(scene);
    let daemon = manager.start(&[]);
    let mountpoint = manager.scene.mountpoint();
    assert_eq!(std::fs::read_dir(&mountpoint).unwrap().count(), 1);
    let server = &manager.scene.server;
    server.set_first_byte_latency(Duration::from_mins(10));
    let mut reader = Command::new("cat");
    let mut reader = reader.arg(mountpoint.join("object")).stderr(Stdio::null()).spawn().unwrap();
    eventually("the request", || server.counts().get > 0);
    daemon.end_and_leave(Signal::KILL);
    server.set_first_byte_latency(Duration::ZERO);
    manager.table().set_len(0).unwrap();
    let descriptor = manager.stored[0].1.try_clone().unwrap();
    let daemon = manager.start(&[]);
    let mut ended = None;
    eventually("the reader's end", || {
        ended = reader.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(1));
    drop((daemon, descriptor));
}

#[test]
fn options_that_the_kernel_was_told_of_are_a_new_mount() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mut manager = Manager::new(scene);
    let file = manager.scene.mountpoint().join("file");
    for (options, says) in [
        (&["--file-mode=0400"][..], "--file-mode was 444, and is 400"),
        (&["--uid=7"], "--uid was 0, and is 7"),
        (&["--allow-other"], "the access of other users was Owner, and is Everyone"),
    ] {
        let daemon = if manager.stored.is_empty() { Some(manager.start(&[])) } else { None };
        if let Some(daemon) = daemon {
            std::fs::read(&file).unwrap();
            daemon.end_and_leave(Signal::KILL);
        }
        let daemon = manager.start(options);
        let log = daemon.log_so_far();
        assert!(log.contains(&format!("a new one is made: {says}")), "{log}");
        assert_eq!(std::fs::read(&file).unwrap(), b"bytes");
        daemon.end_and_leave(Signal::KILL);
    }
    // The last one is nobody's any more.
    manager.stored.clear();
    let _ = rustix::mount::unmount(manager.scene.mountpoint(), rustix::mount::UnmountFlags::DETACH);
}

/// A descriptor of another mount, with the table of this one: both are left alone or freed by whose
/// they are.
#[test]
fn the_descriptor_of_another_mount_is_not_served() {
    if !can_outlive() {
        return;
    }
    let (one, other) = (Scene::new(), Scene::new());
    one.bucket().put("file", "one");
    other.bucket().put("file", "other");
    let mut first = Manager::new(one);
    let mut second = Manager::new(other);
    let served = second.start(&[]);
    let daemon = first.start(&[]);
    daemon.end_and_leave(Signal::KILL);
    first.stored[0].1 = second.stored[0].1.try_clone().unwrap();
    let daemon = first.start(&[]);
    let log = daemon.log_so_far();
    assert!(log.contains("a new one is made: the descriptor is of another mount"), "{log}");
    assert_eq!(std::fs::read(first.scene.mountpoint().join("file")).unwrap(), b"one");
    assert_eq!(std::fs::read(second.scene.mountpoint().join("file")).unwrap(), b"other");
    drop((daemon, served));
}

#[test]
fn two_daemons_of_one_mount_are_one_too_many() {
    if !can_outlive() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mount = held(scene);
    let second = |options: &[&str]| {
        let mut command = mount.scene.program();
        command.arg("data").arg(mount.scene.mountpoint()).args(options).output().unwrap()
    };
    for options in [&[][..], &["--outlive=always"], &["--daemon"]] {
        let output = second(options);
        assert_eq!(output.status.code(), Some(73), "{output:?}");
    }
    // Also one that comes while nobody serves it.
    mount.signal_daemon(Signal::KILL);
    assert_eq!(second(&[]).status.code(), Some(73));
    assert_eq!(mount.read("file").unwrap(), b"bytes");
}
