//! More at once than there are connections, and less than the machine usually allows.

use std::io::Read as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use devserver::Family;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::{Daemon, Mount, Scene, can_mount, eventually, skipped};
use crate::reads::most_resident_bytes;

const MIB: u64 = 1 << 20;

/// Raises the limit of open files of this process, which does not disturb other tests.
fn files_at_most() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The program with at most so much address space.
fn within_address_space(scene: &Scene, mib: u64, options: &[&str]) -> Command {
    let program = scene.program();
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", &format!("ulimit -v {} && exec \"$0\" \"$@\"", mib << 10)]);
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg(program.get_program()).arg("data").arg(scene.mountpoint()).args(options);
    command
}

/// R6
#[test]
fn a_limit_of_address_space_is_enough_if_the_budget_fits_into_it_and_is_named_if_not() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let bytes = scene.bucket().put_synthetic("object", 3 * 64 * MIB).size;
    let mut command = within_address_space(&scene, 3 << 10, &["--memory-budget=64MiB"]);
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    let mount = Mount { daemon, scene };
    assert!(mount.read("object").unwrap() == mount.bucket().bytes("object", 0..bytes));
    drop(mount.daemon);

    let mut command = within_address_space(&mount.scene, 3 << 10, &["--memory-budget=8GiB"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    for word in ["`ulimit -v`", "--memory-budget", "it needs "] {
        assert!(said.contains(word), "{said}");
    }
}

/// R1, R6
#[test]
fn ten_thousand_files_are_read_at_once() {
    const FILES: u64 = 10_000;
    const BYTES: u64 = 20_000;

    if !can_mount() {
        return;
    }
    // A third of the limit is left for other tests.
    let readers = FILES.min(files_at_most() / 3 * 2);
    let scene = Scene::new();
    let size = BYTES;
    let family = Family { prefix: String::new(), count: FILES, size, suffix: String::new() };
    scene.bucket().put_family(family);
    // The store answers nothing before all readers wait, however long that takes.
    let mount = scene.mount(&["--memory-budget=32MiB", "--io-timeout=10m", "--metadata-ttl=1h"]);
    let names = mount.names("");
    assert_eq!(names.len() as u64, FILES);
    mount.scene.server.set_first_byte_latency(Duration::from_hours(1));
    let (waiting, right) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = std::thread::scope(|threads| {
        let mut begun = 0;
        for name in &names[..usize::try_from(readers).unwrap()] {
            let (mount, waiting, right) = (&mount, &waiting, &right);
            let reader = std::thread::Builder::new().stack_size(64 << 10);
            let spawned = reader.spawn_scoped(threads, move || {
                let mut file = std::fs::File::open(mount.path(name)).unwrap();
                waiting.fetch_add(1, Relaxed);
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                if bytes == mount.bucket().bytes(name, 0..BYTES) {
                    right.fetch_add(1, Relaxed);
                }
            });
            // As many as the machine has threads for.
            if spawned.is_err() {
                break;
            }
            begun += 1;
        }
        // Ten thousand threads may take a while to begin, but not as long as a read may.
        let start = Instant::now();
        while waiting.load(Relaxed) < begun {
            assert!(start.elapsed() < Duration::from_mins(9), "{waiting:?} of {begun} wait");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(right.load(Relaxed), 0);
        // Meanwhile names are answered.
        assert_eq!(mount.names("").len() as u64, FILES);
        mount.scene.server.set_first_byte_latency(Duration::ZERO);
        begun
    });
    if begun < FILES {
        skipped(&format!("{begun} of 10,000 readers are all that this machine allows"));
    }
    assert!(begun >= 500, "{begun}");
    assert_eq!(right.into_inner(), begun);
    let most = most_resident_bytes(mount.daemon.pid());
    println!("{begun} at once, most resident: {} MiB", most / MIB);
    // Besides the budget: what `memory_stays_within_the_budget` allows, and 4 KiB for each waiting
    // reader.
    assert!(most <= (32 + 64 + 40) * MIB, "{} MiB", most / MIB);
}

/// 128 connections would need 448.
#[test]
fn two_hundred_and_fifty_six_open_files_are_enough() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put_synthetic("large", 64 * MIB);
    let names: Vec<String> = (0..400).map(|index| format!("d/{index:03}")).collect();
    for name in &names {
        scene.bucket().put_synthetic(name, 20_000);
    }
    let program = scene.program();
    let mut command = Command::new("sh");
    command.env_clear();
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", "ulimit -n 256 && exec \"$@\"", "sh"]).arg(program.get_program());
    command.arg("data").arg(scene.mountpoint());
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    let mount = Mount { daemon, scene };
    let log = mount.daemon.log_so_far();
    assert!(
        log.contains("64 requests at once instead of 128: 256 open files are allowed"),
        "{log}"
    );
    let most_open = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for reader in 0..64 {
            let (mount, names, most_open) = (&mount, &names, &most_open);
            threads.spawn(move || {
                let read_right = |key: &str| {
                    let bytes = mount.read(key).unwrap();
                    assert!(bytes == mount.bucket().bytes(key, 0..bytes.len() as u64), "{key}");
                };
                if reader < 4 {
                    read_right("large");
                }
                for name in names.iter().skip(reader).step_by(16) {
                    read_right(name);
                }
                let open = std::fs::read_dir(format!("/proc/{}/fd", mount.daemon.pid()));
                most_open.fetch_max(open.unwrap().count() as u64, Relaxed);
            });
        }
    });
    assert!(most_open.into_inner() <= 256);
    let (code, log, _scene) = mount.end(rustix::process::Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
}

/// A GET that is slow because of the network is not silent.
#[test]
fn on_a_slow_network_no_more_bodies_are_under_way_than_there_are_connections() {
    const FILES: usize = 16;
    const BYTES: u64 = 2 * MIB;

    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for index in 0..FILES {
        scene.bucket().put_synthetic(&format!("{index:02}"), BYTES);
    }
    let mount = scene.mount(&["--max-connections=8"]);
    assert_eq!(mount.names("").len(), FILES);
    // Each takes half a minute.
    mount.scene.server.set_bandwidth_per_connection(Some(64 << 10));
    std::thread::scope(|threads| {
        for index in 0..FILES {
            let mount = &mount;
            threads.spawn(move || {
                let key = format!("{index:02}");
                assert!(mount.read(&key).unwrap() == mount.bucket().bytes(&key, 0..BYTES), "{key}");
            });
        }
        // The eighth connection is for names.
        eventually("as many as there may be", || mount.counts().get == 7);
        // A request that is silent for 2 s would have given up its slot by then.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(mount.counts().get, 7);
        mount.scene.server.set_bandwidth_per_connection(None);
    });
}
