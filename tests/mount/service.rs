//! Messages to a service manager: this test plays its end of the notify socket.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devserver::proxy::{Fault, Rule};
use rustix::process::Signal;

use crate::common::{Daemon, Scene, can_mount, errno, eventually, is_mounted};

/// Everything that was said, one line each, in order.
#[derive(Clone)]
struct Manager {
    heard: Arc<Mutex<Vec<String>>>,
    socket: PathBuf,
}

impl Manager {
    /// Listens until the test's process ends.
    fn new(folder: &Path) -> Self {
        let socket = folder.join("notify");
        let listening = UnixDatagram::bind(&socket).unwrap();
        let manager = Self { heard: Arc::default(), socket };
        let heard = manager.heard.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = listening.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                heard.lock().unwrap().extend(text.lines().map(str::to_owned));
            }
        });
        manager
    }

    fn said(&self, start: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|line| line.starts_with(start)).count()
    }

    fn place(&self, start: &str) -> Option<usize> {
        self.heard.lock().unwrap().iter().position(|line| line.starts_with(start))
    }
}

#[test]
fn a_manager_hears_ready_then_status_and_watchdog_and_stopping_at_the_end() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("object", 10 << 20);
    let manager = Manager::new(scene.folder.path());
    let mountpoint = scene.mountpoint();
    let mut command = scene.program();
    command.arg("data").arg(&mountpoint).env("NOTIFY_SOCKET", &manager.socket);
    // Three times a second instead of once a minute.
    command.env("WATCHDOG_USEC", "1000000");
    let daemon = Daemon::start(&mut command, &mountpoint);
    eventually("READY", || manager.said("READY=1") == 1);
    assert!(is_mounted(&mountpoint));
    let ready = manager.place("READY=1").unwrap();
    assert!(manager.place("EXTEND_TIMEOUT_USEC=").unwrap() < ready, "the start asks for time");
    assert!(manager.place("STATUS=asking for s3://data/").unwrap() < ready);
    assert_eq!(manager.said("STATUS=mounted s3://data/ on"), 1);

    assert_eq!(std::fs::read(mountpoint.join("object")).unwrap().len(), 10 << 20);
    eventually("what is read", || {
        manager.said("STATUS=reading: ") > 0 || manager.said("STATUS=idle; 10 MB read") > 0
    });
    eventually("the watchdog is fed again and again", || manager.said("WATCHDOG=1") > 2);

    let (code, log) = daemon.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    eventually("STOPPING", || manager.said("STOPPING=1") == 1);
    assert_eq!(manager.said("READY=1"), 1);
}

#[test]
fn a_start_that_fails_says_why_and_is_never_ready() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let manager = Manager::new(scene.folder.path());
    let mut command = scene.program();
    command.arg("missing").arg(scene.mountpoint()).env("NOTIFY_SOCKET", &manager.socket);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(66), "{output:?}");
    eventually("the reason", || manager.said("STATUS=there is no bucket missing") == 1);
    assert_eq!(manager.said("READY=1"), 0);
}

#[test]
fn a_manager_that_has_gone_disturbs_nothing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let mountpoint = scene.mountpoint();
    let mut command = scene.program();
    command.arg("data").arg(&mountpoint).env("NOTIFY_SOCKET", "/nowhere/at/all");
    let daemon = Daemon::start(&mut command, &mountpoint);
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    assert_eq!(daemon.end(Signal::TERM).0, Some(0));
}

#[test]
fn the_log_gets_louder_by_a_signal_and_quiet_again() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mount = scene.mount(&[]);
    let told = |level: &str| mount.daemon.log_so_far().matches(level).count();
    mount.daemon.signal(Signal::USR1);
    eventually("debug lines", || told("log level: ") == 1 && told("fasts3_mount=debug") == 1);
    mount.daemon.signal(Signal::USR1);
    eventually("trace lines", || told("log level: ") == 2 && told("fasts3_mount=trace") == 1);
    mount.daemon.signal(Signal::USR2);
    eventually("as it was", || told("log level: ") == 3 && told("fasts3_mount=info\n") == 1);
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
}

/// As in a systemd `EnvironmentFile` with every line present.
#[test]
fn a_variable_without_a_value_counts_as_not_set() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("file", "bytes");
    let help = scene.program().arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let names: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('=')?.0))
        .filter(|name| *name != "FASTS3_ENDPOINT_URL")
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let mountpoint = scene.mountpoint();
    let mut command = scene.program();
    command.arg("data").arg(&mountpoint).envs(names.into_iter().map(|name| (name, "")));
    let daemon = Daemon::start(&mut command, &mountpoint);
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"bytes");
    assert_eq!(daemon.end(Signal::TERM).0, Some(0));
}

/// That it is over is a line too: `throttling_is_a_line_when_it_begins_and_a_line_when_it_is_over`.
#[test]
fn a_store_that_denies_or_throttles_is_a_line_in_the_log() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic("denied", 1000);
    scene.bucket().put_synthetic("throttled", 1000);
    let mount = scene.mount(&[]);
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    mount.add(Rule::on_get("denied", denied));
    assert_eq!(errno(mount.read("denied")), Some(libc::EACCES));
    mount.add(Rule::on_get("throttled", Fault::slow_down()).times(3));
    assert_eq!(mount.read("throttled").unwrap().len(), 1000);
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    let denied = log.lines().find(|line| line.contains("access is denied")).unwrap();
    assert!(denied.contains("operation=\"get\" key=\"denied\""), "{denied}");
    assert!(denied.contains("AccessDenied"), "{denied}");
    assert_eq!(log.matches("the store asks to slow down").count(), 1, "{log}");
}
