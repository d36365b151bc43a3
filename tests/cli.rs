//! The command line, by running the real program: what it says and what it exits with.

use std::io::Read as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use common::{Daemon, Scene, can_mount, has_fuse, is_mounted, program};

mod common;

struct Said {
    code: i32,
    /// The one line of the program's own on standard error, without its name.
    sentence: String,
    stdout: String,
    log: String,
}

fn said(output: &Output) -> Said {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let own: Vec<&str> =
        stderr.lines().filter_map(|line| line.strip_prefix("fasts3-mount: ")).collect();
    assert!(own.len() <= 1, "more than one sentence: {stderr}");
    Said {
        code: output.status.code().unwrap_or_else(|| panic!("killed: {stderr}")),
        sentence: own.first().copied().unwrap_or_default().to_owned(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        log: stderr,
    }
}

fn run(arguments: &[&str]) -> Said {
    let home = tempfile::tempdir().unwrap();
    said(&program(home.path()).args(arguments).output().unwrap())
}

fn run_with(variables: &[(&str, &str)]) -> Said {
    let home = tempfile::tempdir().unwrap();
    let mut command = program(home.path());
    command.args(["bucket", "/nowhere/at/all"]).envs(variables.iter().copied());
    said(&command.output().unwrap())
}

/// Every option, and a value that it must refuse; none for those that take any text.
const OPTIONS: [(&str, Option<&str>); 39] = [
    ("metrics-listen", Some("nowhere")),
    ("endpoint-url", Some("localhost:9000")),
    ("region", None),
    ("profile", None),
    ("no-sign-request", Some("maybe")),
    ("requester-pays", Some("maybe")),
    ("path-style", Some("sometimes")),
    ("ca-bundle", Some("/no/such/file.pem")),
    ("no-verify-tls", Some("maybe")),
    ("hedging", Some("maybe")),
    ("memory-budget", Some("1MiB")),
    ("chunk-size", Some("3 chunks")),
    ("part-size", Some("100KiB")),
    ("kernel-readahead", Some("1GiB")),
    ("io-timeout", Some("1ms")),
    ("max-connections", Some("0")),
    ("cache-dir", None),
    ("cache-size", Some("much")),
    ("cache-reserve", Some("100%")),
    ("passthrough", Some("maybe")),
    ("shared-cache", Some("a//b")),
    ("shared-cache-endpoint-url", Some("localhost:9000")),
    ("shared-cache-region", None),
    ("shared-cache-profile", None),
    ("shared-cache-key", None),
    ("shared-cache-trust", Some("maybe")),
    ("metadata-ttl", Some("60")),
    ("negative-ttl", Some("-1s")),
    ("names-budget", Some("much")),
    ("uid", Some("root")),
    ("gid", Some("-1")),
    ("file-mode", Some("1644")),
    ("dir-mode", Some("0888")),
    ("allow-other", Some("maybe")),
    ("allow-root", Some("maybe")),
    ("no-exec", Some("maybe")),
    ("log-level", Some("loud")),
    ("daemon", Some("maybe")),
    ("outlive", Some("maybe")),
];

fn variable(option: &str) -> String {
    format!("FASTS3_{}", option.to_uppercase().replace('-', "_"))
}

fn is_flag(option: &str) -> bool {
    [
        "no-sign-request",
        "requester-pays",
        "no-verify-tls",
        "allow-other",
        "allow-root",
        "no-exec",
        "daemon",
        "shared-cache-trust",
    ]
    .contains(&option)
}

#[test]
fn a_bad_value_gets_one_sentence_that_names_its_option() {
    for (option, bad) in OPTIONS {
        let Some(bad) = bad.filter(|_| !is_flag(option)) else { continue };
        let said = run(&[&format!("--{option}={bad}"), "bucket", "/nowhere/at/all"]);
        assert_eq!(said.code, 64, "{option}: {}", said.log);
        assert!(said.sentence.contains(&format!("--{option}")), "{option}: {}", said.log);
        assert_eq!(said.log.lines().count(), 1, "{option}: {}", said.log);
        assert_eq!(said.stdout, "");
    }
}

#[test]
fn wrong_arguments_get_one_sentence_too() {
    for (arguments, says) in [
        (&[][..], "<BUCKET>"),
        (&["bucket"], "<MOUNTPOINT>"),
        (&["bucket", "/mnt", "more"], "more"),
        (&["bucket", "/mnt", "--frobnicate"], "--frobnicate"),
        (&["bucket", "/mnt", "--part-size"], "--part-size"),
        (&["bucket", "/mnt", "--log-format=xml"], "--log-format"),
        (&["a//b", "/mnt"], "BUCKET"),
        (&["bucket/a//b", "/mnt"], "BUCKET"),
        (&["bucket", "/mnt", "--allow-other", "--allow-root"], "--allow-root"),
        (&["bucket", "/mnt", "--cache-dir=/mnt/cache"], "--cache-dir"),
        (&["bucket", "/mnt", "--cache-dir=/c", "--cache-size=1MiB"], "--cache-size"),
        (&["bucket", "/mnt", "--passthrough=on"], "--cache-dir"),
        (&["bucket", "/mnt", "--cache-size=1GiB"], "--cache-size needs --cache-dir"),
        (&["bucket", "/mnt", "--cache-reserve=1GiB"], "--cache-reserve needs --cache-dir"),
        (&["bucket", "/mnt", "--shared-cache-trust"], "--shared-cache-trust needs --shared-cache"),
        (&["doctor", "bucket", "--shared-cache-region=x"], "--shared-cache-region needs"),
        (&["bucket", "/mnt", "--chunk-size=1MiB", "--part-size=8MiB"], "--part-size (8MiB)"),
        (&["bucket", "/mnt", "--part-size=64MiB", "--memory-budget=128MiB"], "--memory-budget"),
    ] {
        let said = run(arguments);
        assert_eq!(said.code, 64, "{arguments:?}: {}", said.log);
        assert!(said.sentence.contains(says), "{arguments:?}: {}", said.log);
        assert_eq!(said.log.lines().count(), 1, "{arguments:?}: {}", said.log);
    }
}

#[test]
fn a_directory_without_a_cache_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let there = |name: &str| folder.path().join(name).display().to_string();
    std::os::unix::fs::symlink("loop", there("loop")).unwrap();
    std::fs::create_dir(there("empty")).unwrap();
    std::fs::write(there("empty/file"), "not ours").unwrap();
    for word in ["status", "verify", "clear"] {
        for (name, says) in [
            ("empty", "there is no cache"),
            ("none", "No such file or directory"),
            ("loop", "Too many levels of symbolic links"),
        ] {
            let said = run(&["cache", word, &there(name)]);
            assert_eq!((said.code, &*said.stdout), (66, ""), "{word} {name}: {}", said.log);
            assert!(said.sentence.contains(says), "{word} {name}: {}", said.log);
        }
    }
    assert_eq!(std::fs::read_dir(there("empty")).unwrap().count(), 1);
}

/// Only a variable without a value counts as not set:
/// `a_variable_without_a_value_counts_as_not_set`.
#[test]
fn an_option_without_a_value_is_refused() {
    for (option, _) in OPTIONS.iter().chain(&[("log-format", None)]) {
        let said = run(&[&format!("--{option}="), "bucket", "/nowhere/at/all"]);
        assert_eq!(said.code, 64, "{option}: {}", said.log);
        assert!(said.sentence.contains(&format!("--{option}")), "{option}: {}", said.log);
    }
}

#[test]
fn every_option_has_a_variable() {
    for (option, bad) in OPTIONS {
        let Some(bad) = bad else { continue };
        let said = run_with(&[(&variable(option), bad)]);
        assert_eq!(said.code, 64, "{option}: {}", said.log);
        assert!(said.sentence.contains(&format!("--{option}")), "{option}: {}", said.log);
    }
    let help = run(&["--help"]).stdout;
    for (option, _) in OPTIONS.iter().chain(&[("log-format", None)]) {
        assert!(help.contains(&format!("--{option}")), "{option}");
        assert!(help.contains(&format!("[env: {}=", variable(option))), "{option}");
    }
    // And no option is missing from the list above.
    let listed = help.lines().filter(|line| line.trim_start().starts_with("--")).count();
    assert_eq!(listed, OPTIONS.len() + 1, "{help}");
}

/// The environment of a machine may say how its mounts use a cache, if they do.
#[test]
fn a_variable_about_a_cache_that_is_not_used_is_named_and_no_error() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let (size, trust) = (("FASTS3_CACHE_SIZE", "1GiB"), ("FASTS3_SHARED_CACHE_TRUST", "true"));
    let dir = ("FASTS3_CACHE_DIR", dir.to_str().unwrap());
    for (set, unused) in [
        (&[size, trust][..], &["--cache-size", "--shared-cache-trust"][..]),
        (&[size, trust, dir], &["--shared-cache-trust"]),
        (&[size, dir], &[]),
    ] {
        let said = run_with(set);
        // The next thing that is wrong is the mountpoint.
        assert_eq!(said.code, if has_fuse() { 72 } else { 71 }, "{}", said.log);
        let lines = said.log.lines().filter_map(|line| line.split("not used: ").nth(1));
        let named: Vec<_> = lines.filter_map(|line| line.split(" needs --").next()).collect();
        assert_eq!(named, unused, "{}", said.log);
    }
}

#[test]
fn flags_by_variable_are_true_or_false() {
    let both = |other: &str, root: &str| {
        run_with(&[("FASTS3_ALLOW_OTHER", other), ("FASTS3_ALLOW_ROOT", root)])
    };
    for no in ["0", "false"] {
        // The next thing that is wrong is the mountpoint.
        let said = run_with(&[("FASTS3_NO_VERIFY_TLS", no), ("FASTS3_REQUESTER_PAYS", "1")]);
        assert_eq!(said.code, if has_fuse() { 72 } else { 71 }, "{}", said.log);
    }
    assert_eq!(both("maybe", "0").code, 64);
}

#[test]
fn help_groups_the_options_and_shows_each_default() {
    let said = run(&["--help"]);
    assert_eq!(said.code, 0);
    assert_eq!(said.log, "");
    let groups = [
        "Store:",
        "Cache and reading:",
        "Names:",
        "Permissions:",
        "Monitoring:",
        "Logging:",
        "Process:",
    ];
    let places: Vec<usize> =
        groups.iter().map(|group| said.stdout.find(&format!("\n{group}\n")).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    // Every option's paragraph ends where the next option begins, and holds a default.
    let options = said.stdout[places[0]..].split("\n      --").skip(1);
    for option in options {
        assert!(option.contains("[default: "), "--{option}");
    }
    for default in ["128", "60s", "5s", "0444", "0555", "auto", "info", "text"] {
        assert!(said.stdout.contains(&format!("[default: {default}]")), "{default}");
    }
}

#[test]
fn the_version_is_told_with_the_commit_if_that_is_known() {
    let said = run(&["--version"]);
    assert_eq!((said.code, said.log.as_str()), (0, ""));
    assert_eq!(said.stdout, format!("fasts3-mount {}\n", fasts3_mount::VERSION));
    let commit = fasts3_mount::VERSION.strip_prefix(env!("CARGO_PKG_VERSION")).unwrap();
    assert!(commit.is_empty() || commit.starts_with(" (") && commit.ends_with(')'), "{commit}");
}

impl Scene {
    /// Runs what must fail at the start, within the time that users are promised, with nothing
    /// mounted.
    fn fails(&self, command: &mut Command) -> Said {
        let start = Instant::now();
        let said = said(&command.output().unwrap());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}: {}", start.elapsed(), said.log);
        assert!(!is_mounted(&self.mountpoint()));
        assert!(!said.sentence.is_empty(), "{}", said.log);
        said
    }
}

/// Checks one way to fail; there is none to see without a FUSE device, which is looked for first.
fn failure(code: i32, says: &[&str], change: impl FnOnce(&Scene, &mut Command)) {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mut command = scene.program();
    change(&scene, &mut command);
    let said = scene.fails(&mut command);
    assert_eq!(said.code, code, "{}", said.log);
    for text in says {
        assert!(said.sentence.contains(text), "{text}: {}", said.log);
    }
    let secret = scene.server.credentials().secret_key;
    assert!(!said.log.contains(secret), "a secret is never shown: {}", said.log);
}

#[test]
fn no_such_bucket_is_66() {
    failure(66, &["no bucket missing"], |scene, command| {
        command.arg("missing").arg(scene.mountpoint());
    });
}

#[test]
fn a_wrong_secret_is_77() {
    failure(77, &["denied", "SignatureDoesNotMatch"], |scene, command| {
        command.arg("data").arg(scene.mountpoint()).env("AWS_SECRET_ACCESS_KEY", "wrong");
    });
}

#[test]
fn an_unsigned_request_to_a_private_bucket_is_77() {
    failure(77, &["denied", "data"], |scene, command| {
        command.args(["data", "--no-sign-request"]).arg(scene.mountpoint());
    });
}

#[test]
fn no_credentials_is_78() {
    failure(78, &["no credentials", "--no-sign-request"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    });
}

#[test]
fn a_profile_that_does_not_exist_is_78() {
    failure(78, &["no credentials", "no-such-profile"], |scene, command| {
        command.args(["data", "--profile=no-such-profile"]).arg(scene.mountpoint());
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    });
}

/// `AWS_PROFILE` is a choice, too.
#[test]
fn a_profile_of_the_environment_that_does_not_exist_is_78() {
    failure(78, &["no credentials", "no-such-profile"], |scene, command| {
        command.arg("data").arg(scene.mountpoint()).env("AWS_PROFILE", "no-such-profile");
    });
}

#[test]
fn what_cannot_be_sent_is_refused_by_the_name_of_its_variable_and_not_shown() {
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "hush hush"),
        ("AWS_SECRET_ACCESS_KEY", "hush\nhush"),
        ("AWS_SESSION_TOKEN", "hush\u{e9}"),
        ("AWS_REGION", "hush/hush"),
        ("AWS_DEFAULT_REGION", "hush hush"),
    ] {
        let said = run_with(&[(name, value)]);
        assert_eq!(said.code, 64, "{name}: {}", said.log);
        assert!(said.sentence.contains(name) && !said.log.contains("hush"), "{}", said.log);
    }
    let said = run(&["--region=eu west", "bucket", "/nowhere/at/all"]);
    assert!(said.code == 64 && said.sentence.contains("--region"), "{}", said.log);
    let said = run_with(&[("HTTPS_PROXY", "socks5://me:hush@localhost")]);
    assert_eq!(said.code, 64, "{}", said.log);
    assert!(said.sentence.contains("HTTPS_PROXY") && !said.log.contains("hush"), "{}", said.log);
}

#[test]
fn an_endpoint_where_nobody_listens_is_68() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    failure(68, &["cannot connect", "refused", "--endpoint-url"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env("FASTS3_ENDPOINT_URL", format!("http://{address}"));
    });
}

#[test]
fn a_name_that_no_host_has_is_68() {
    failure(68, &["cannot connect", "--endpoint-url"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env("FASTS3_ENDPOINT_URL", "http://no-such-host.invalid");
    });
}

#[test]
fn https_to_a_server_without_it_is_68() {
    failure(68, &["cannot connect", "https"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        let address = scene.server.address();
        command.env("FASTS3_ENDPOINT_URL", format!("https://{address}"));
    });
}

/// A server that answers every connection with these bytes, and then closes it or says no more.
fn answering(answer: &'static str, hang: bool) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 4096];
            let _ = connection.read(&mut request);
            let _ = std::io::Write::write_all(&mut connection, answer.as_bytes());
            if hang {
                kept.push(connection);
            }
        }
    });
    url
}

#[test]
fn what_is_no_s3_store_is_76() {
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\nConnection: close\r\n\r\n<html>It works!<";
    let absent = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (answer, says) in [(page, ""), (absent, "404"), ("220 ESMTP postfix\r\n", "not HTTP")] {
        failure(76, &["does not answer like an S3 store", says], |scene, command| {
            command.arg("data").arg(scene.mountpoint());
            command.env("FASTS3_ENDPOINT_URL", answering(answer, false));
        });
    }
}

#[test]
fn a_store_that_fails_is_69() {
    let answer = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    failure(69, &["failing", "500"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env("FASTS3_ENDPOINT_URL", answering(answer, false));
    });
}

#[test]
fn a_silent_store_is_75() {
    failure(75, &["did not answer in time"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env("FASTS3_ENDPOINT_URL", answering("", true));
    });
}

#[test]
fn a_store_that_throttles_is_75() {
    failure(75, &["slow down"], |scene, command| {
        scene.server.set_rate_limit(Some(0));
        command.arg("data").arg(scene.mountpoint());
    });
}

#[test]
fn credentials_that_do_not_come_are_78() {
    // A container role whose endpoint says nothing.
    failure(78, &["no credentials"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", answering("", true));
    });
}

#[test]
fn a_region_that_is_not_told_is_65() {
    let answer = "HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    failure(65, &["another region", "--region"], |scene, command| {
        command.arg("data").arg(scene.mountpoint());
        command.env("FASTS3_ENDPOINT_URL", answering(answer, false));
    });
}

#[test]
fn a_mountpoint_that_is_missing_or_a_file_is_72() {
    failure(72, &["does not exist", "mkdir -p"], |scene, command| {
        command.arg("data").arg(scene.mountpoint().join("none"));
    });
    failure(72, &["not a directory"], |scene, command| {
        let file = scene.folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        command.arg("data").arg(file);
    });
}

#[test]
fn a_mountpoint_in_use_is_73() {
    failure(73, &["in use", "proc"], |_, command| {
        command.args(["data", "/proc"]);
    });
}

#[test]
fn a_missing_device_is_71() {
    if has_fuse() {
        eprintln!("/dev/fuse is here: nothing to see");
        return;
    }
    let scene = Scene::new();
    let said = scene.fails(scene.program().arg("data").arg(scene.mountpoint()));
    assert_eq!(said.code, 71, "{}", said.log);
    assert!(said.sentence.contains("/dev/fuse"), "{}", said.log);
}

/// Starts the program and waits until it says that it has mounted.
fn started(scene: &Scene, command: &mut Command) -> Daemon {
    Daemon::start(command, &scene.mountpoint())
}

#[test]
fn a_signal_ends_the_mount_with_0() {
    if !can_mount() {
        return;
    }
    for (name, signal) in [("TERM", Signal::TERM), ("INT", Signal::INT)] {
        let scene = Scene::new();
        let daemon = started(&scene, scene.program().arg("s3://data/").arg(scene.mountpoint()));
        let (code, log) = daemon.end(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("SIG{name}: unmounting")), "{log}");
        assert!(!is_mounted(&scene.mountpoint()));
    }
}

#[test]
fn start_up_costs_one_listing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let daemon = started(&scene, scene.program().arg("data").arg(scene.mountpoint()));
    let counts = scene.server.counts();
    assert_eq!((counts.list, counts.requests()), (1, 1));
    assert_eq!(daemon.end(Signal::TERM).0, Some(0));
}

#[test]
fn a_wrong_region_is_corrected_by_the_buckets_answer() {
    if !can_mount() {
        return;
    }
    for unsigned in [false, true] {
        let scene = Scene::new();
        let bucket = scene.server.bucket("data");
        bucket.set_region(Some("eu-central-1"));
        bucket.set_public(true);
        let mut command = scene.program();
        command.arg("data").arg(scene.mountpoint());
        if unsigned {
            // Nothing is signed, so the region is only told: asking again elsewhere cannot help on
            // a server that has one address.
            command.arg("--no-sign-request");
            let said = scene.fails(&mut command);
            assert_eq!(said.code, 65, "{}", said.log);
            assert!(said.sentence.contains("eu-central-1"), "{}", said.log);
        } else {
            let (code, log) = started(&scene, &mut command).end(Signal::TERM);
            assert_eq!(code, Some(0), "{log}");
            assert!(log.contains("eu-central-1"), "{log}");
        }
    }
}

#[test]
fn the_endpoint_may_come_from_the_aws_configuration() {
    if !can_mount() {
        return;
    }
    for place in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "profile"] {
        let scene = Scene::new();
        let url = scene.server.endpoint_url();
        let mut command = scene.program();
        command.arg("data").arg(scene.mountpoint()).env_remove("FASTS3_ENDPOINT_URL");
        if place == "profile" {
            let home = scene.folder.path().join("home/.aws");
            std::fs::create_dir(&home).unwrap();
            let keys = scene.server.credentials();
            let text = format!(
                "[profile mine]\nendpoint_url = {url}\nregion = eu-west-3\naws_access_key_id = {}\n\
                 aws_secret_access_key = {}\n",
                keys.access_key, keys.secret_key
            );
            std::fs::write(home.join("config"), text).unwrap();
            command.args(["--profile", "mine"]);
            command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
            command.env_remove("AWS_REGION");
        } else {
            command.env(place, url);
        }
        let (code, log) = started(&scene, &mut command).end(Signal::TERM);
        assert_eq!(code, Some(0), "{place}: {log}");
        assert_eq!(log.contains("eu-west-3"), place == "profile", "{log}");
    }
}

#[test]
fn log_lines_are_json_on_request() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mut command = scene.program();
    command.args(["data", "--log-format=json"]).arg(scene.mountpoint());
    let (code, log) = started(&scene, &mut command).end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

#[test]
fn an_unverified_store_is_warned_of_loudly() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mut command = scene.program();
    command.args(["data", "--no-verify-tls"]).arg(scene.mountpoint());
    let (code, log) = started(&scene, &mut command).end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("WARN") && log.contains("NOT checked"), "{log}");
}
