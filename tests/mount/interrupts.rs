//! Programs that are told to end while they wait for a store that is silent.

use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use devserver::proxy::{Fault, Rule};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Mount, Scene, can_mount, eventually, skipped_but_not_in_ci};
use crate::reads::open_directly;

/// Ends with 42 when Ctrl-C interrupts it, which Python catches.
const READS_DIRECTLY: &str = "
import mmap, os, sys
try:
    os.readv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)])
except KeyboardInterrupt:
    sys.exit(42)
";

/// `stat` is one of the calls that Python does not repeat after EINTR.
const STATS_BETWEEN_ALARMS: &str = "
import os, signal, sys
heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
size = os.stat(sys.argv[1]).st_size
print(size, len(heard) > 0)
";

/// Nothing ends by itself while a test waits for it: that takes a minute at most.
const OPTIONS: [&str; 2] = ["--io-timeout=3m", "--metadata-ttl=indefinite"];

/// A program that Ctrl-C ends, even if these tests were started where it does not (`nohup … &`).
fn program(name: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", name]);
    command
}

fn python(script: &str) -> Command {
    let mut command = program("python3");
    command.args(["-c", script]);
    command
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
        || skipped_but_not_in_ci("there is no python3")
}

fn dd() -> Command {
    let mut command = program("dd");
    command.args(["iflag=direct", "bs=4096", "count=1", "of=/dev/null"]);
    command
}

/// Programs, each with a key of its own that it waits for, and how they end by SIGINT: by it, or
/// with a code.
fn programs() -> Vec<(&'static str, Command, String, Option<i32>)> {
    let mut all = vec![
        ("ls", program("ls"), "{}", None),
        ("stat", program("stat"), "{}/object", None),
        ("cat", program("cat"), "{}", None),
        ("dd", dd(), "if={}", None),
    ];
    if has_python() {
        all.push(("python", python(READS_DIRECTLY), "{}", Some(42)));
    }
    all.into_iter()
        .map(|(name, command, what, code)| (name, command, what.to_owned(), code))
        .collect()
}

fn end(child: &mut Child, signal: Signal) -> ExitStatus {
    kill_process(Pid::from_child(child), signal).unwrap();
    let mut status = None;
    eventually("the end of a program", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.expect("it has just ended")
}

/// How many requests of these kinds the daemon has not answered yet.
fn waiting(mount: &Mount, kinds: &[&str]) -> u64 {
    let mut status = mount.scene.program();
    let said =
        status.arg("status").arg(mount.scene.mountpoint()).arg("--json").output().unwrap().stdout;
    // A daemon on a busy machine may not answer in time.
    let status: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
    kinds.iter().map(|&kind| status["operations"][kind]["in_flight"].as_u64().unwrap_or(0)).sum()
}

/// `ls` and `stat` wait for a directory's names, the others for an object's bytes.
fn mounted() -> Mount {
    let scene = Scene::with_proxy();
    for signal in ["KILL", "INT"] {
        for (name, ..) in programs() {
            let key = format!("{name}-{signal}");
            let below = if matches!(name, "ls" | "stat") { "/object" } else { "" };
            // Too large to be read ahead with another one.
            scene.bucket().put_synthetic(&format!("{key}{below}"), 5 << 20);
        }
    }
    scene.bucket().put_synthetic("other", 10_000);
    let mount = scene.mount(&OPTIONS);
    assert!(mount.names("").len() > 8);
    mount
}

/// E10
#[test]
fn whoever_waits_for_a_silent_store_can_be_ended() {
    if !can_mount() {
        return;
    }
    let mount = mounted();
    std::thread::scope(|threads| {
        for signal in [Signal::KILL, Signal::INT] {
            for (name, mut command, what, code) in programs() {
                let mount = &mount;
                let key = format!("{name}-{}", if signal == Signal::INT { "INT" } else { "KILL" });
                let silent = key.clone();
                let asked = mount.add(Rule::new(
                    move |request| {
                        let prefix = request.query("prefix").unwrap_or_default();
                        request.key().starts_with(&silent) || prefix.starts_with(&silent)
                    },
                    Fault::Delay(Duration::MAX),
                ));
                threads.spawn(move || {
                    let path = mount.path(&key);
                    command.arg(what.replace("{}", path.to_str().unwrap()));
                    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
                    eventually("a request", || asked.hits() > 0);
                    let status = end(&mut child, signal);
                    match code.filter(|_| signal == Signal::INT) {
                        Some(code) => assert_eq!(status.code(), Some(code), "{key}: {status:?}"),
                        None => {
                            assert_eq!(status.signal(), Some(signal.as_raw()), "{key}: {status:?}");
                        }
                    }
                });
            }
        }
    });
    assert!(mount.read("other").unwrap() == mount.bucket().bytes("other", 0..10_000));
}

/// E10: those who share a fetch or a listing with somebody who is killed have it all the same.
#[test]
fn who_is_ended_takes_nothing_from_others_who_wait_for_the_same() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic("object", 10_000);
    scene.bucket().put_synthetic("d/file", 10_000);
    let mount = scene.mount(&OPTIONS);
    assert_eq!(mount.names(""), ["d", "object"]);
    let silent = mount.add(Rule::on_all(Fault::Delay(Duration::MAX)));
    let mut killed = [
        dd().arg(format!("if={}", mount.path("object").display())).spawn().unwrap(),
        Command::new("ls").arg(mount.path("d")).stdout(Stdio::null()).spawn().unwrap(),
    ];
    eventually("two requests", || silent.hits() > 1);
    std::thread::scope(|threads| {
        let mount = &mount;
        let bytes = threads.spawn(|| {
            let mut bytes = vec![0; 10_000];
            let mut filled = 0;
            let file = open_directly(&mount.path("object"));
            while filled < bytes.len() {
                filled += file.read_at(&mut bytes[filled..], filled as u64).unwrap();
            }
            bytes
        });
        let names = threads.spawn(|| mount.names("d"));
        eventually("two readers of each", || {
            waiting(mount, &["read"]) == 2 && waiting(mount, &["readdir", "readdirplus"]) == 2
        });
        for child in &mut killed {
            assert_eq!(end(child, Signal::KILL).signal(), Some(Signal::KILL.as_raw()));
        }
        mount.heal();
        mount.cut();
        assert!(bytes.join().unwrap() == mount.bucket().bytes("object", 0..10_000));
        assert_eq!(names.join().unwrap(), ["file"]);
    });
}

/// E10: a signal that has nothing to do with the wait does not end it.
#[test]
fn a_timer_of_a_program_does_not_break_its_wait() {
    if !can_mount() || !has_python() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic("d/file", 10_000);
    let mount = scene.mount(&OPTIONS);
    assert_eq!(mount.names(""), ["d"]);
    mount.add(Rule::on_all(Fault::Delay(Duration::from_secs(4))));
    let Output { stdout, stderr, .. } =
        python(STATS_BETWEEN_ALARMS).arg(mount.path("d/file")).output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(said.trim(), "10000 True", "{}", String::from_utf8_lossy(&stderr));
}
