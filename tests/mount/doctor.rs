//! `fasts3-mount doctor`: a healthy store, and each thing that may be wrong with one.

use std::process::Command;
use std::time::Duration;

use devserver::proxy::{Fault, Rule};
use devserver::{Kind, Server};
use serde_json::Value;

use crate::common::{Scene, has_fuse, program};

struct Report {
    code: Option<i32>,
    json: Value,
}

impl Report {
    fn of(command: &mut Command) -> Self {
        let output = command.args(["--json", "--quick"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
        Self { code: output.status.code(), json }
    }

    /// The state and the sentence of a topic.
    fn finding(&self, topic: &str) -> (&str, &str) {
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["topic"] == topic);
        let found = found.unwrap_or_else(|| panic!("nothing of {topic}: {:#}", self.json));
        (found["state"].as_str().unwrap(), found["sentence"].as_str().unwrap())
    }

    fn assert(&self, topic: &str, state: &str, says: &str) {
        let (found, sentence) = self.finding(topic);
        assert_eq!(found, state, "{topic}: {sentence}");
        assert!(sentence.contains(says), "{topic}: {sentence}");
    }
}

fn filled(scene: Scene) -> Scene {
    for number in 0..1200 {
        scene.bucket().put_synthetic(&format!("small/{number:04}"), 10_000);
    }
    // On the first page, before the others.
    scene.bucket().put_synthetic("large", 20 << 20);
    scene
}

fn doctor(scene: &Scene, options: &[&str]) -> Report {
    Report::of(scene.program().args(["doctor", "data"]).args(options))
}

#[test]
fn a_healthy_store_is_told_from_a_sick_one_by_the_exit_code() {
    if !has_fuse() {
        return;
    }
    let scene = filled(Scene::new());
    let report = doctor(&scene, &[]);
    assert_eq!(report.code, Some(0), "{:#}", report.json);
    for (topic, says) in [
        ("kernel", "Linux"),
        ("FUSE", "/dev/fuse opens"),
        ("bucket", "answers for data"),
        ("network", "is connected to within"),
        ("TLS", "not used"),
        ("credentials", "came from EnvironmentVariable"),
        ("region", "us-east-1"),
        ("URLs", "in the path"),
        ("clock", "differ by 0 s"),
        ("encoding", "URL-encoded as asked for"),
        ("listing", "1000 keys"),
        ("paging", "follows"),
        ("start-after", "in parallel"),
        ("directories", "roll"),
        ("versions", "same size and ETag"),
        ("ranges", "exactly what was asked for"),
        ("If-Match", "is honoured"),
    ] {
        report.assert(topic, "ok", says);
    }
    let measured = &report.json["measured"];
    for number in ["first_byte_seconds", "small_files_per_second", "keys_per_second"] {
        assert!(measured[number].as_f64().unwrap() > 0.0, "{number}");
    }
    assert_eq!(measured["bandwidth"][0]["connections"], 1);
    let command = report.json["command"].as_str().unwrap();
    let want =
        format!("fasts3-mount s3://data/ /mnt/data --endpoint-url {}", scene.server.endpoint_url());
    assert!(command.starts_with(&want), "{command}");
    // The same in sentences.
    let said = scene.program().args(["doctor", "data", "--quick"]).output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains("\nExpect ") && text.contains("small files a second"), "{text}");
    assert_eq!(said.stderr, b"");
}

#[test]
fn each_fault_of_a_store_has_its_sentence() {
    let large = |fault: Fault| Rule::on_get("large", fault);
    let second_page = |fault: Fault| {
        Rule::new(
            |request| request.kind() == Kind::List && request.query("continuation-token").is_some(),
            fault,
        )
    };
    let heads = |fault: Fault| {
        Rule::new(|request| request.kind() == Kind::Head && request.key() == "large", fault)
    };
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    for (rule, topic, state, says) in [
        (large(Fault::IgnoreRange), "ranges", "wrong", "got the whole object"),
        (large(Fault::ContentRange("bytes 0-1/2".to_owned())), "ranges", "wrong", "makes no sense"),
        (large(Fault::Corrupt { at: 0 }), "ranges", "wrong", "gave different bytes"),
        (large(Fault::Truncate { after: 10 }), "ranges", "wrong", "cannot be read"),
        (large(denied.clone()), "ranges", "wrong", "may be listed but not read"),
        (large(Fault::slow_down()).times(1), "ranges", "slow", "1 attempts failed before"),
        (
            large(Fault::Delay(Duration::from_millis(250))),
            "first byte",
            "slow",
            "a first byte takes",
        ),
        (second_page(Fault::BackwardsPage), "paging", "wrong", "no listing of more than one page"),
        (second_page(Fault::RepeatToken), "paging", "wrong", "no listing of more than one page"),
        (second_page(Fault::Garbage), "paging", "wrong", "no listing of more than one page"),
        (heads(denied), "versions", "wrong", "HEAD of \"large\" fails: access denied"),
    ] {
        let scene = filled(Scene::with_proxy());
        let name = format!("{rule:?}");
        scene.add(rule);
        let report = doctor(&scene, &["--max-connections=4"]);
        report.assert(topic, state, says);
        if has_fuse() {
            let code = if state == "wrong" { 76 } else { 0 };
            assert_eq!(report.code, Some(code), "{name}: {:#}", report.json);
            assert_eq!(report.json["command"].is_null(), code != 0, "{name}");
        }
    }
}

#[test]
fn a_store_that_throttles_is_given_fewer_connections() {
    let scene = filled(Scene::with_proxy());
    scene.add(Rule::on_get("small/0003", Fault::slow_down()));
    let report = doctor(&scene, &["--max-connections=40"]);
    report.assert("small files", "slow", "the store throttled");
    if has_fuse() {
        let command = report.json["command"].as_str().unwrap();
        assert!(
            command.contains("--max-connections 20"),
            "half of those it was tried with: {command}"
        );
    }
}

#[test]
fn what_would_end_the_mount_ends_the_doctor_with_the_same_code() {
    let scene = filled(Scene::with_proxy());
    let report = Report::of(scene.program().args(["doctor", "no-such-bucket"]));
    assert_eq!(report.code, Some(66), "{:#}", report.json);
    report.assert("bucket", "wrong", "there is no bucket no-such-bucket");

    let report =
        Report::of(scene.program().args(["doctor", "data"]).env("AWS_SECRET_ACCESS_KEY", "wrong"));
    assert_eq!(report.code, Some(77), "{:#}", report.json);
    report.assert("bucket", "wrong", "denied");

    let mut command = program(scene.folder.path());
    let url = "http://no-such-host.invalid";
    let report =
        Report::of(command.args(["doctor", "data", "--endpoint-url", url, "--no-sign-request"]));
    assert_eq!(report.code, Some(68), "{:#}", report.json);
    report.assert("DNS", "wrong", "no-such-host.invalid has no address");
    report.assert("bucket", "wrong", "cannot connect");

    scene.add(Rule::on_list(Fault::slow_down()));
    let report = doctor(&scene, &[]);
    assert_eq!(report.code, Some(75), "{:#}", report.json);
    report.assert("bucket", "wrong", "asks to slow down");
}

#[test]
fn a_certificate_is_checked_or_said_not_to_be() {
    let server = Server::builder().tls(true).start_blocking().unwrap();
    server.bucket("data").put("file", "bytes");
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, server.certificate().unwrap()).unwrap();
    let keys = server.credentials();
    let doctor = |options: &[&str]| {
        let mut command = program(folder.path());
        command.args(["doctor", "data", "--endpoint-url", &server.endpoint_url()]).args(options);
        command.env("AWS_ACCESS_KEY_ID", keys.access_key);
        command.env("AWS_SECRET_ACCESS_KEY", keys.secret_key);
        Report::of(&mut command)
    };
    let report = doctor(&[]);
    assert_eq!(report.code, Some(68), "{:#}", report.json);
    report.assert("bucket", "wrong", "certificate");
    doctor(&["--ca-bundle", bundle.to_str().unwrap()]).assert("TLS", "ok", "is valid");
    doctor(&["--no-verify-tls"]).assert("TLS", "slow", "NOT checked");
}

#[test]
fn the_doctor_takes_the_options_of_a_mount_and_refuses_the_wrong_ones() {
    let scene = Scene::new();
    let said = scene.program().args(["doctor", "data", "--part-size=1GiB"]).output().unwrap();
    assert_eq!(said.status.code(), Some(64));
    let error = String::from_utf8(said.stderr).unwrap();
    assert!(error.contains("--part-size (1GiB) must not be larger"), "{error}");
}
