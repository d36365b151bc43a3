//! Looking into a mount and steering it: metrics, the control socket and the words for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Daemon, Mount, Scene, can_mount, eventually, is_mounted, skipped};

/// Exit code, standard output and standard error of a command.
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

fn word(scene: &Scene, word: &str, arguments: &[&str]) -> Said {
    said(scene.program().arg(word).arg(scene.mountpoint()).args(arguments))
}

fn json(scene: &Scene, name: &str) -> Value {
    let said = word(scene, name, &["--json"]);
    assert_eq!(said.code, Some(0), "{}", said.error);
    serde_json::from_str(&said.out).unwrap()
}

fn sockets(scene: &Scene) -> Vec<PathBuf> {
    let folder = scene.folder.path().join("home/run");
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

fn filled() -> Scene {
    let scene = Scene::new();
    for number in 0..50 {
        scene.bucket().put_synthetic(&format!("small/{number:02}"), 100_000);
    }
    scene.bucket().put_synthetic("big", 20 << 20);
    scene
}

fn http(address: &str, path: &str) -> (String, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Checks a text against Prometheus' exposition format, version 0.0.4: every sample is of a family
/// that was described before and in one place, no series comes twice, histograms add up.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap());
            let rest = words.next().unwrap();
            match what {
                "HELP" => {
                    assert!(!families.contains_key(name), "{name} is described twice");
                    assert!(rest.ends_with('.'), "{line}");
                }
                "TYPE" => {
                    assert!(["counter", "gauge", "histogram"].contains(&rest), "{line}");
                    assert_eq!(rest == "counter", name.ends_with("_total"), "{line}");
                    families.insert(name, rest);
                    family = name;
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"];
        let base = of_histogram.iter().find_map(|suffix| name.strip_suffix(suffix));
        let known = if families[family] == "histogram" { base.unwrap() } else { name };
        assert_eq!(known, family, "{line}");
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(name.chars().all(letter) && !name.starts_with(|c: char| c.is_numeric()), "{line}");
        let value: f64 = value.parse().unwrap();
        assert!(value >= 0.0, "{line}");
        assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
    }
    assert!(text.ends_with('\n'));
    check_histograms(&samples);
    samples
}

fn check_histograms(samples: &BTreeMap<String, f64>) {
    // In the order of the text buckets ascend; here they are grouped by what stands before `le`.
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, &value) in samples {
        if let Some((before, rest)) = series.split_once("le=\"") {
            let bound = rest.split('"').next().unwrap().replace("+Inf", "inf").parse().unwrap();
            buckets.entry(before.to_owned()).or_default().push((bound, value));
        }
    }
    assert!(!buckets.is_empty());
    for (before, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{before}");
        let (last, all) = buckets[buckets.len() - 1];
        assert!(last.is_infinite(), "{before}");
        let count = before.replace("_bucket{", "_count{");
        let count = count.trim_end_matches(',').trim_end_matches('{').to_owned();
        let closed = if count.contains('{') { format!("{count}}}") } else { count };
        assert!((samples[&closed] - all).abs() < 0.5, "{closed}");
    }
}

#[test]
fn metrics_are_what_prometheus_reads_and_what_the_server_counted() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&["--metrics-listen=0"]);
    for number in 0..50 {
        assert_eq!(mount.read(&format!("small/{number:02}")).unwrap().len(), 100_000);
    }
    assert_eq!(mount.read("big").unwrap().len(), 20 << 20);
    std::fs::metadata(mount.path("none")).unwrap_err();
    let status = json(&mount.scene, "status");
    let address = status["settings"]["metrics"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "a port alone is one of the loopback: {address}");
    let (head, text) = http(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let samples = samples(&text);
    let bytes = f64::from(50 * 100_000 + (20 << 20));
    let counts = mount.counts();
    let requests = |kind: &str, is_counted: fn(&str) -> bool| {
        let ended = format!("fasts3_store_request_duration_seconds_count{{kind=\"{kind}\"");
        let in_flight = format!("fasts3_store_requests_in_flight{{kind=\"{kind}\"");
        let is_such = |series: &str| series.starts_with(&ended) || series.starts_with(&in_flight);
        let of_kind = samples.iter().filter(|(series, _)| is_such(series) && is_counted(series));
        of_kind.map(|(_, count)| count).sum::<f64>()
    };
    for (kind, count) in [("GET", counts.get), ("HEAD", counts.head), ("LIST", counts.list)] {
        // Whose answer is not needed any more may have been given up before it was sent.
        let answered = requests(kind, |series| series.contains("outcome=\"ok\""));
        let all = requests(kind, |_| true);
        let count = f64::from(u32::try_from(count).unwrap());
        assert!(answered <= count && count <= all, "{kind}: {answered} to {all}, {count} counted");
    }
    let value = |series: &str| samples.get(series).copied().unwrap_or_else(|| panic!("{series}"));
    assert!((value("fasts3_served_bytes_total") - bytes).abs() < 0.5);
    let fetched: f64 = ["demand", "ahead"]
        .map(|purpose| value(&format!("fasts3_fetched_bytes_total{{purpose=\"{purpose}\"}}")))
        .iter()
        .sum();
    assert!((fetched - bytes).abs() < 0.5, "{fetched} of {bytes}");
    assert!(value("fasts3_fuse_operation_duration_seconds_count{operation=\"read\"}") >= 51.0);
    assert!(value("fasts3_fuse_operations_in_flight{operation=\"read\"}") < 0.5);
    assert!(value("fasts3_memory_used_bytes") <= value("fasts3_memory_budget_bytes"));
    assert!(value("process_resident_memory_bytes") > 1e6);
    let version = status["settings"]["version"].as_str().unwrap();
    let info = format!("fasts3_mount_info{{version=\"{version}\",");
    assert!(text.contains(&info), "with the commit, as everywhere: {info} in {text}");
    let (head, _) = http(address, "/");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[test]
fn every_metric_is_in_the_documents_and_every_documented_one_exists() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&["--metrics-listen=0"]);
    let status = json(&mount.scene, "status");
    let (_, text) = http(status["settings"]["metrics"].as_str().unwrap(), "/metrics");
    let names: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let document = std::fs::read_to_string(docs.join("metrics.md")).unwrap();
    let documented: BTreeSet<_> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| line.split('`').next().unwrap().to_owned())
        .filter(|name| name.contains('_'))
        .collect();
    assert_eq!(names, documented);
    // The metrics in the dashboard and the alerts must exist, too.
    for file in ["grafana-dashboard.json", "alerts.yml"] {
        let text = std::fs::read_to_string(docs.join(file)).unwrap();
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut asked = 0;
        for name in text.split(|c| !letter(c)).filter(|word| word.starts_with("fasts3_")) {
            let of_histogram = ["_bucket", "_sum", "_count"];
            let base = of_histogram.iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(names.contains(base.unwrap_or(name)), "{file}: {name}");
            asked += 1;
        }
        assert!(asked > 5, "{file}");
    }
    let dashboard = std::fs::read_to_string(docs.join("grafana-dashboard.json")).unwrap();
    serde_json::from_str::<Value>(&dashboard).unwrap();
}

/// Prometheus' own judge, from Debian's package `prometheus`, on standard input.
fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{input}", said.concat());
}

/// The queries of the panels of the dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn promtool_finds_no_fault_with_metrics_alerts_and_dashboard() {
    let is_there = Command::new("promtool").arg("--version").output().is_ok();
    if !can_mount() || !(is_there || skipped("there is no promtool")) {
        return;
    }
    let scene = filled();
    scene.bucket().put("quote\"\\\n", "bytes");
    let mount = scene.mount(&["--metrics-listen=0"]);
    mount.read("small/00").unwrap();
    std::fs::metadata(mount.path("none")).unwrap_err();
    let status = json(&mount.scene, "status");
    let (_, text) = http(status["settings"]["metrics"].as_str().unwrap(), "/metrics");
    promtool(&["check", "metrics"], &text);

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    promtool(&["check", "rules", docs.join("alerts.yml").to_str().unwrap()], "");
    let dashboard = std::fs::read_to_string(docs.join("grafana-dashboard.json")).unwrap();
    let mut asked = Vec::new();
    expressions(&serde_json::from_str(&dashboard).unwrap(), &mut asked);
    assert!(asked.len() > 5, "{asked:?}");
    // As rules, for promtool reads no bare expressions; Grafana's variables filled in.
    let rules: Vec<Value> = asked
        .iter()
        .enumerate()
        .map(|(number, asked)| {
            let filled = asked.replace("$__rate_interval", "5m");
            serde_json::json!({ "record": format!("panel:{number}"), "expr": filled })
        })
        .collect();
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let file = mount.scene.folder.path().join("rules.yml");
    // JSON is YAML.
    std::fs::write(&file, rules.to_string()).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
}

#[test]
fn a_metrics_port_in_use_is_73_and_leaves_nothing_mounted() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let scene = Scene::new();
    let mut command = scene.program();
    command.arg("data").arg(scene.mountpoint()).args(["--metrics-listen", &address]);
    let said = said(&mut command);
    assert_eq!(said.code, Some(73), "{}", said.error);
    assert!(
        said.error.contains("--metrics-listen") && said.error.contains(&address),
        "{}",
        said.error
    );
    assert!(!is_mounted(&scene.mountpoint()));
    assert_eq!(sockets(&scene), Vec::<PathBuf>::new());
}

#[test]
fn status_tells_settings_and_totals() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&["--memory-budget=64MiB", "--max-connections=7"]);
    let first_byte = || {
        let text = word(&mount.scene, "status", &[]).out;
        assert!(text.lines().all(|line| line.len() > 18 && line.trim_end() == line), "{text}");
        text.lines().find_map(|line| line.strip_prefix("first byte        ")).map(str::to_owned)
    };
    assert_eq!(first_byte().as_deref(), Some("none yet"));
    assert_eq!(mount.read("small/00").unwrap().len(), 100_000);
    assert!(first_byte().unwrap().starts_with("half within "));
    std::fs::read_dir(mount.path("small")).unwrap().for_each(drop);
    let status = json(&mount.scene, "status");
    let settings = &status["settings"];
    assert_eq!(settings["source"], "s3://data/");
    assert_eq!(settings["mountpoint"], mount.scene.mountpoint().to_str().unwrap());
    assert_eq!(settings["pid"], mount.daemon.pid());
    assert_eq!(settings["memory_budget_bytes"], 64 << 20);
    assert_eq!(settings["max_connections"], 7);
    assert_eq!(settings["metadata_ttl_seconds"], 60.0);
    assert_eq!(settings["metrics"], Value::Null);
    assert_eq!(status["totals"]["bytes_served"], 100_000);
    let busiest = &status["files"][0];
    assert_eq!((&busiest["name"], &busiest["bytes"]), (&"small/00".into(), &100_000.into()));
    let thread = rustix::thread::gettid().as_raw_pid().to_string();
    assert_eq!(status["threads"][0]["name"], thread);
    let text = word(&mount.scene, "status", &[]).out;
    for says in ["s3://data/ on /", "7 at once", "64MiB", "1 reads", "GET"] {
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn the_control_socket_is_its_users_alone_and_goes_with_the_mount() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let sockets_before = sockets(&mount.scene);
    assert_eq!(sockets_before.len(), 1);
    let mode = std::fs::metadata(&sockets_before[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let folder = sockets_before[0].parent().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(folder & 0o777, 0o700);
    let (code, log, scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(sockets(&scene), Vec::<PathBuf>::new());
    let said = word(&scene, "status", &[]);
    assert_eq!(said.code, Some(66));
    assert!(said.error.contains("no fasts3-mount is mounted on"), "{}", said.error);
}

#[test]
fn nonsense_at_the_control_socket_is_refused_and_does_no_harm() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let socket = sockets(&mount.scene).remove(0);
    for line in ["", "{}", "{\"command\":\"format\"}", "\u{0}\u{1}", &"x".repeat(100_000)] {
        let mut connection = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        // A line that is too long is not read to its end.
        let _ = connection.write_all(format!("{line}\n").as_bytes());
        let mut answer = String::new();
        if connection.read_to_string(&mut answer).is_ok() {
            assert!(answer.starts_with("{\"refused\":"), "{answer}");
        }
    }
    assert_eq!(json(&mount.scene, "status")["totals"]["reads"], 0);
}

#[test]
fn drop_makes_names_and_bytes_come_from_the_store_again() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&["--metadata-ttl=indefinite"]);
    std::fs::read_dir(mount.path("small")).unwrap().for_each(drop);
    for number in 0..50 {
        mount.read(&format!("small/{number:02}")).unwrap();
    }
    mount.bucket().put("small/00", "another version");
    mount.forget_counts();
    assert_eq!(mount.read("small/00").unwrap().len(), 100_000, "believed for ever");
    assert_eq!(mount.counts().requests(), 0);
    let dropped = json(&mount.scene, "drop");
    // Whole pages of memory.
    assert_eq!(dropped, serde_json::json!({ "names": 51, "bytes": 50 * 102_400 }));
    assert_eq!(json(&mount.scene, "status")["totals"]["memory_used_bytes"], 0);
    assert_eq!(mount.read("small/00").unwrap(), b"another version");
    assert_eq!(mount.read("small/01").unwrap().len(), 100_000);
    assert!(mount.counts().get >= 2, "the kernel has forgotten the bytes, too");
}

#[test]
fn drop_while_somebody_reads_takes_nothing_from_the_reader() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let (path, version) = (mount.path("big"), mount.bucket().bytes("big", 0..20 << 20));
    let reader = std::thread::spawn(move || {
        for _ in 0..5 {
            assert_eq!(std::fs::read(&path).unwrap(), version);
        }
    });
    for _ in 0..5 {
        assert_eq!(word(&mount.scene, "drop", &[]).code, Some(0));
    }
    reader.join().unwrap();
}

#[test]
fn unmount_waits_until_the_mount_is_gone() {
    if !can_mount() {
        return;
    }
    let mut mount = filled().mount(&[]);
    let said = word(&mount.scene, "unmount", &[]);
    assert_eq!(said.code, Some(0), "{}", said.error);
    assert!(!is_mounted(&mount.scene.mountpoint()));
    let (code, log) = mount.daemon.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the control socket: unmounting"), "{log}");
    assert_eq!(sockets(&mount.scene), Vec::<PathBuf>::new());
}

#[test]
fn a_daemon_that_is_gone_is_said_to_be_and_the_next_one_takes_its_socket() {
    if !can_mount() {
        return;
    }
    let mut mount = filled().mount(&[]);
    mount.daemon.signal(Signal::KILL);
    mount.daemon.ended();
    for name in ["status", "drop", "unmount", "top"] {
        let said = word(&mount.scene, name, &[]);
        assert_eq!(said.code, Some(69), "{name}: {}", said.error);
        assert!(
            said.error.contains("is gone") && said.error.contains("umount -l"),
            "{}",
            said.error
        );
    }
    let Mount { daemon, scene } = mount;
    drop(daemon);
    assert_eq!(sockets(&scene).len(), 1, "left behind");
    let mount = scene.mount(&[]);
    assert_eq!(json(&mount.scene, "status")["settings"]["pid"], mount.daemon.pid());
}

#[test]
fn the_socket_of_a_daemon_that_died_goes_when_another_one_starts() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let scene = &mount.scene;
    let start = |name: &str| {
        let place = scene.folder.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        Daemon::start(scene.program().arg("data").arg(&place), &place)
    };
    let run = sockets(scene)[0].parent().unwrap().to_owned();
    let others = ["other.sock", "none-0123456789abcdef.sock"].map(|name| run.join(name));
    drop(std::os::unix::net::UnixListener::bind(&others[0]).unwrap());
    std::fs::write(&others[1], "no socket").unwrap();
    let mut dead = start("dead");
    dead.signal(Signal::KILL);
    dead.ended();
    let second = start("second");
    assert_eq!(sockets(scene).len(), 3 + 2, "its mount is there");
    drop(dead);
    let third = start("third");
    assert_eq!(sockets(scene).len(), 3 + 2, "those of three mounts");
    assert!(others.iter().all(|other| other.exists()), "and what is not ours");
    for (daemon, at) in [(&mount.daemon, "mnt"), (&second, "second"), (&third, "third")] {
        let place = scene.folder.path().join(at);
        let said = said(scene.program().arg("status").arg(&place).arg("--json"));
        let status: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(status["settings"]["pid"], daemon.pid(), "{at}");
    }
}

#[test]
fn a_daemon_that_hangs_is_not_waited_for_and_its_mount_is_not_asked() {
    if !can_mount() {
        return;
    }
    // The kernel believes nothing, so a program that asks the mount itself waits for the daemon.
    let mount = filled().mount(&["--metadata-ttl=0s"]);
    mount.daemon.signal(Signal::STOP);
    let link = mount.scene.folder.path().join("link");
    std::os::unix::fs::symlink(mount.scene.mountpoint(), &link).unwrap();
    for name in ["status", "top", "unmount"] {
        let said = word(&mount.scene, name, &[]);
        assert_eq!(said.code, Some(69), "{name}: {}", said.error);
        assert!(said.error.contains("did not answer within 5 s"), "{name}: {}", said.error);
        assert_eq!(said.error.lines().count(), 1, "{name}: {}", said.error);
    }
    // A link to it leads into it, which cannot be found out.
    let linked = said(mount.scene.program().arg("status").arg(&link));
    assert_eq!(linked.code, Some(69), "{}", linked.error);
    assert!(linked.error.contains("within 5 s"), "{}", linked.error);
    mount.daemon.signal(Signal::CONT);
    assert_eq!(word(&mount.scene, "status", &[]).code, Some(0));
    let linked = said(mount.scene.program().arg("status").arg(&link));
    assert_eq!(linked.code, Some(0), "{}", linked.error);
}

#[test]
fn what_is_no_mount_of_ours_is_66_with_one_sentence() {
    let scene = filled();
    let file = scene.folder.path().join("file");
    std::fs::write(&file, "bytes").unwrap();
    let missing = scene.folder.path().join("missing");
    let turning = scene.folder.path().join("loop");
    std::os::unix::fs::symlink("loop", &turning).unwrap();
    for name in ["status", "top", "drop", "unmount"] {
        // A plain directory, a file, nothing, a loop of links, and a mount of other software.
        for (path, says) in [
            (scene.mountpoint(), "no fasts3-mount is mounted on"),
            (file.clone(), "no fasts3-mount is mounted on"),
            (missing.clone(), "cannot be used: No such file"),
            (turning.clone(), "cannot be used: Too many levels of symbolic links"),
            ("/proc".into(), "no fasts3-mount is mounted on"),
        ] {
            let said = said(scene.program().arg(name).arg(&path));
            assert_eq!(said.code, Some(66), "{name} {path:?}: {}", said.error);
            assert!(said.error.contains(says), "{name} {path:?}: {}", said.error);
            assert_eq!(said.error.lines().count(), 1, "{name} {path:?}: {}", said.error);
            assert_eq!(said.out, "", "{name} {path:?}");
            // As JSON, too, where that is wanted.
            let json = self::said(scene.program().arg(name).arg(&path).arg("--json"));
            let json: Value = serde_json::from_str(&json.out).unwrap();
            assert!(json["error"].as_str().unwrap().contains(says), "{name} {path:?}: {json}");
        }
    }
    assert!(is_mounted(Path::new("/proc")));
    assert_eq!(sockets(&scene), Vec::<PathBuf>::new());
}

#[test]
fn two_mounts_do_not_answer_for_each_other() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let other = mount.scene.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let _second = Daemon::start(mount.scene.program().arg("data/small").arg(&other), &other);
    let status = said(mount.scene.program().arg("status").arg(&other).arg("--json"));
    let status: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["settings"]["source"], "s3://data/small/");
    assert_eq!(json(&mount.scene, "status")["settings"]["source"], "s3://data/");
    let inside = said(mount.scene.program().arg("status").arg(mount.path("small")));
    assert_eq!(inside.code, Some(66));
    assert!(inside.error.contains("is inside a mount"), "{}", inside.error);
}

#[test]
fn top_prints_looks_where_there_is_no_terminal() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let mut top = {
        let mut command = mount.scene.program();
        command.arg("top").arg(mount.scene.mountpoint()).args(["--interval=100ms", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut look = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let served = |look: &Value| {
        look["served_bytes_per_second"].as_f64().unwrap() * look["seconds"].as_f64().unwrap()
    };
    // Bytes read after the first update are in one of those that follow.
    assert!(served(&look()) < 1.0, "nothing was read yet");
    assert_eq!(mount.read("big").unwrap().len(), 20 << 20);
    let (mut total, mut busiest) = (0.0, Vec::new());
    eventually("all that was read", || {
        let look = look();
        total += served(&look);
        busiest.push(look["files"][0]["name"].clone());
        total > f64::from(20 << 20) - 10.0
    });
    assert!((total - f64::from(20 << 20)).abs() < 10.0, "{total}");
    assert!(busiest.contains(&"big".into()), "{busiest:?}");
    // It continues until the mount ends.
    assert_eq!(word(&mount.scene, "unmount", &[]).code, Some(0));
    let output = top.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the mount on") && error.contains("has ended"), "{error}");
}

#[test]
fn what_is_warm_costs_no_request() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let said = said(mount.scene.program().args(["warm", "--json"]).arg(mount.scene.mountpoint()));
    assert_eq!(said.code, Some(0), "{}", said.error);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["files"], 51);
    assert_eq!(report["bytes"], 50 * 100_000 + (20 << 20));
    assert_eq!(report["errors"], 0);
    mount.forget_counts();
    for key in ["small/00", "small/49", "big"] {
        mount.read(key).unwrap();
    }
    assert_eq!(mount.counts().get, 0);
}

#[test]
fn warm_takes_a_list_and_says_what_it_could_not_read() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    mount.bucket().put("new\nline", "bytes");
    let of = |keys: &[&str], end: char| -> String {
        let path = |key: &&str| mount.path(key).display().to_string();
        keys.iter().flat_map(|key| [path(key), end.to_string()]).collect()
    };
    for (list, files) in [
        (of(&["small/07", "small/none", "small/08"], '\n'), 2),
        (of(&["small/07", "small/none", "new\nline", "small/08"], '\0'), 3),
    ] {
        let error = warm_list(&mount, &list, files, 1);
        assert!(error.contains("small/none: No such file"), "{error}");
    }
    let turning = mount.scene.folder.path().join("loop");
    std::os::unix::fs::symlink("loop", &turning).unwrap();
    let list = format!("/etc\n{}{}\n", of(&["small/07"], '\n'), turning.display());
    let error = warm_list(&mount, &list, 1, 2);
    assert!(error.contains("/etc: not inside a fasts3-mount"), "{error}");
    assert!(error.contains("loop: Too many levels of symbolic links"), "{error}");
}

/// Warms the files of a list, in which so many paths lead to none; what it says about these.
fn warm_list(mount: &Mount, list: &str, files: u64, errors: u64) -> String {
    let mut command = mount.scene.program();
    command.args(["warm", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut warm = command.stderr(Stdio::piped()).spawn().unwrap();
    warm.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let output = warm.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["files"], &report["errors"]), (&files.into(), &errors.into()));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains('\r') && !error.contains('\x1b'), "no terminal: {error:?}");
    error
}

#[test]
fn warm_outside_of_a_mount_is_66_and_reads_nothing() {
    let scene = Scene::new();
    std::fs::write(scene.mountpoint().join("file"), "bytes").unwrap();
    let said = said(scene.program().arg("warm").arg(scene.mountpoint()));
    assert_eq!(said.code, Some(66));
    assert!(said.error.contains(": not inside a fasts3-mount"), "{}", said.error);
    assert_eq!(said.out, "");
}

#[test]
fn a_bucket_that_is_called_like_a_word_is_mounted_by_its_url() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.server.bucket("status").put("file", "bytes");
    let confused = word(&scene, "status", &[]);
    assert_eq!(confused.code, Some(66), "the word wins: {}", confused.error);
    let mount = scene.mount_as("s3://status", &[]);
    assert_eq!(mount.names(""), ["file"]);
    assert_eq!(json(&mount.scene, "status")["settings"]["source"], "s3://status/");
}

#[test]
fn wrong_words_are_64_with_one_sentence() {
    let scene = Scene::new();
    for arguments in [
        &["status"][..],
        &["status", "/", "/"],
        &["status", "/", "--frobnicate"],
        &["top", "/", "--interval=1ms"],
        &["top", "/", "--interval=soon"],
        &["top", "/", "--count=-1"],
        &["warm", "--jobs=0", "/"],
        &["warm", "--jobs=many", "/"],
        &["doctor"],
        &["doctor", "data", "/mnt"],
        &["doctor", "a//b"],
        &["doctor", "data", "--allow-other", "--allow-root"],
        &["drop", "--json"],
        &["unmount", "--force", "/"],
    ] {
        let said = said(scene.program().args(arguments));
        assert_eq!(said.code, Some(64), "{arguments:?}: {}", said.error);
        assert_eq!(said.error.lines().count(), 1, "{arguments:?}: {}", said.error);
        assert_eq!(said.out, "", "{arguments:?}");
    }
    eventually("nothing", || sockets(&scene).is_empty());
}
