//! `fasts3-mount doctor`: a healthy store, and each thing that may be wrong with one.

use std::process::{Command, Stdio};
use std::time::Duration;

use devserver::proxy::{Answer, Fault, RequestHead, Rule};
use devserver::{Kind, Server};
use serde_json::Value;

use crate::common::{Scene, eventually, has_fuse, program};

struct Report {
    code: Option<i32>,
    json: Value,
}

impl Report {
    /// Whatever the store does, it ends within a minute, and without a panic.
    fn of(command: &mut Command) -> Self {
        command.args(["--json", "--quick"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut doctor = command.spawn().unwrap();
        eventually("the end of the doctor", || doctor.try_wait().unwrap().is_some());
        let output = doctor.wait_with_output().unwrap();
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
fn a_shared_cache_is_priced_beside_the_bucket() {
    if !has_fuse() {
        return;
    }
    let scene = filled(Scene::new());
    // So far that no busy machine makes the cache as slow.
    scene.server.set_first_byte_latency(Duration::from_millis(400));
    let cache = Server::builder().start_blocking().unwrap();
    let bucket = cache.bucket("cache");
    let endpoint = format!("--shared-cache-endpoint-url={}", cache.endpoint_url());
    let options = ["--shared-cache=s3://cache/of/nodes", &endpoint];
    let report = doctor(&scene, &options);
    report.assert("shared cache", "ok", "it is worth having for ");
    assert_eq!(bucket.keys(), ["of/nodes/doctor"]);
    let measured = &report.json["measured"]["shared_cache"];
    for number in ["first_byte_seconds", "bytes_per_second", "fill_seconds"] {
        assert!(measured[number].as_f64().unwrap() > 0.0, "{measured}");
    }
    let command = report.json["command"].as_str().unwrap();
    assert!(command.contains(" --shared-cache s3://cache/of/nodes/ "), "{command}");
    assert!(command.contains(&endpoint.replace('=', " ")), "{command}");
    // No trouble of it keeps a mount from working.
    let nowhere = ["--shared-cache=s3://cache", "--shared-cache-endpoint-url=http://127.0.0.1:9"];
    let report = doctor(&scene, &nowhere);
    report.assert("shared cache", "slow", "does not work");
    assert_eq!(report.code, Some(0), "{:#}", report.json);
}

/// What a store, or what stands between it and this machine, may do; where it is seen; what is said
/// of it. A topic that is `WRONG` ends the doctor with 76 unless `code` says otherwise.
struct Case {
    rule: Rule,
    topic: &'static str,
    state: &'static str,
    says: [&'static str; 2],
    code: i32,
}

fn case(
    rule: Rule,
    topic: &'static str,
    state: &'static str,
    says: [&'static str; 2],
    code: i32,
) -> Case {
    Case { rule, topic, state, says, code }
}

/// Every fault of an object's bytes, at the largest object.
fn faults_of_bytes() -> Vec<Case> {
    let large = |fault: Fault| Rule::on_get("large", fault);
    let heads = |fault: Fault| {
        Rule::new(|request| request.kind() == Kind::Head && request.key() == "large", fault)
    };
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    let failing = Fault::Status { status: 500, code: "InternalError".to_owned() };
    let cannot = |fault, why: &'static str, what_to_do: &'static str| {
        case(large(fault), "ranges", "wrong", [why, what_to_do], 76)
    };
    let proxy = "a proxy or cache on the way";
    let log = "look into the store's log";
    vec![
        cannot(Fault::IgnoreRange, "got the whole object", proxy),
        cannot(Fault::ContentRange("bytes 0-1/2".to_owned()), "makes no sense", proxy),
        cannot(Fault::ContentLength(7), "makes no sense", proxy),
        cannot(Fault::BodyLength(7), "makes no sense", proxy),
        cannot(Fault::Html, "makes no sense", proxy),
        cannot(Fault::Garbage, "makes no sense", proxy),
        cannot(Fault::Corrupt { at: 0 }, "gave different bytes", "trust nothing"),
        cannot(Fault::Truncate { after: 10 }, "the store is unavailable", log),
        cannot(Fault::Reset { after: 10 }, "the store is unavailable", log),
        cannot(Fault::Hangup, "the store is unavailable", log),
        cannot(failing.clone(), "500", log),
        cannot(
            denied.clone(),
            "may be listed but not read",
            "must allow s3:ListBucket and s3:GetObject",
        ),
        cannot(
            Fault::Stall { after: 10, pause: None },
            "did not answer in time",
            "the store hangs",
        ),
        cannot(Fault::Delay(Duration::MAX), "did not answer in time", "the store hangs"),
        cannot(Fault::slow_down(), "asks to slow down", "lower --max-connections"),
        cannot(Fault::RetryAfter(3600), "come back after 3600 s", "lower --max-connections"),
        case(
            large(Fault::IgnoreIfMatch),
            "If-Match",
            "slow",
            ["is not honoured", "by the ETag of each answer instead"],
            0,
        ),
        // A transient failure is not a fault, but is reported.
        case(
            large(Fault::slow_down()).times(1),
            "ranges",
            "slow",
            ["1 attempt failed before", ""],
            0,
        ),
        case(
            large(failing).every(5),
            "bandwidth",
            "slow",
            ["requests failed: the store is", "500"],
            0,
        ),
        case(
            large(Fault::Delay(Duration::from_millis(250))),
            "first byte",
            "slow",
            ["a first byte takes", "is the store far away, or busy?"],
            0,
        ),
        case(
            heads(denied),
            "versions",
            "wrong",
            ["HEAD of \"large\" fails: access denied", "must allow"],
            76,
        ),
    ]
}

/// Every fault of a listing: of its second page, for the first is what a mount starts with.
fn faults_of_names() -> Vec<Case> {
    let second_page = |fault: Fault| {
        let matches = |request: &RequestHead| {
            request.kind() == Kind::List && request.query("continuation-token").is_some()
        };
        let says = ["no listing of more than one page", "on the way"];
        case(Rule::new(matches, fault), "paging", "wrong", says, 76)
    };
    let from_the_middle = |fault: Fault| {
        let matches = |request: &RequestHead| {
            request.kind() == Kind::List && request.query("start-after").is_some()
        };
        Rule::new(matches, fault)
    };
    let delimited = |fault: Fault| {
        let matches = |request: &RequestHead| {
            request.kind() == Kind::List && request.query("delimiter").is_some()
        };
        Rule::new(matches, fault)
    };
    let undelimited = |fault: Fault| {
        let matches = |request: &RequestHead| {
            request.kind() == Kind::List && request.query("delimiter").is_none()
        };
        Rule::new(matches, fault)
    };
    let denied = Fault::Status { status: 403, code: "AccessDenied".to_owned() };
    let ignored = ["start-after is not honoured", "one page after the other"];
    vec![
        second_page(Fault::BackwardsPage),
        second_page(Fault::RepeatToken),
        second_page(Fault::Garbage),
        second_page(Fault::Html),
        case(from_the_middle(Fault::IgnoreStartAfter), "start-after", "slow", ignored, 0),
        case(
            from_the_middle(Fault::Delay(Duration::MAX)),
            "start-after",
            "wrong",
            ["a listing from the middle fails", "the store hangs"],
            76,
        ),
        // No directory of a mount could be listed.
        case(delimited(denied.clone()), "bucket", "wrong", ["is denied", "s3:ListBucket"], 77),
        case(
            undelimited(denied),
            "policy",
            "slow",
            ["listings without a delimiter are denied", "without the condition s3:delimiter"],
            0,
        ),
        case(
            Rule::on_list(Fault::IgnoreEncodingType),
            "encoding",
            "slow",
            ["are not URL-encoded", "control characters"],
            0,
        ),
    ]
}

/// Every fault of all that is asked: the mount would not start.
fn faults_of_all() -> Vec<Case> {
    let refused = |status, code: &str| Fault::Status { status, code: code.to_owned() };
    let all = |fault, says, code| case(Rule::on_all(fault), "bucket", "wrong", says, code);
    let late = "did not answer in time";
    let no_s3 = "does not answer like an S3 store";
    vec![
        all(Fault::slow_down(), [late, "asks to slow down"], 75),
        all(Fault::RetryAfter(3600), [late, "come back after 3600 s"], 75),
        all(Fault::Delay(Duration::MAX), [late, "try again later"], 75),
        all(Fault::Stall { after: 10, pause: None }, [late, "try again later"], 75),
        all(Fault::Hangup, ["is failing", "try again later"], 69),
        all(Fault::Reset { after: 10 }, ["is failing", "try again later"], 69),
        all(Fault::Truncate { after: 10 }, ["is failing", "try again later"], 69),
        all(refused(500, "InternalError"), ["is failing", "500"], 69),
        all(Fault::Html, [no_s3, "check --endpoint-url"], 76),
        all(Fault::Garbage, [no_s3, "check --endpoint-url"], 76),
        all(refused(403, "AccessDenied"), ["is denied", "check the credentials"], 77),
        all(refused(403, "InvalidAccessKeyId"), ["is denied", "check the credentials"], 77),
        all(refused(404, "NoSuchBucket"), ["there is no bucket data", "check its name"], 66),
        case(
            Rule::on_all(refused(301, "PermanentRedirect")),
            "region",
            "wrong",
            ["in another region", "--region"],
            65,
        ),
        case(
            Rule::on_all(Fault::Date("Thu, 01 Jan 2015 00:00:00 GMT".to_owned())),
            "clock",
            "wrong",
            ["this machine's clock is", "before the store's, and requests are refused"],
            76,
        ),
    ]
}

fn check(cases: Vec<Case>) {
    for Case { rule, topic, state, says, code } in cases {
        let scene = filled(Scene::with_proxy());
        let name = format!("{rule:?}");
        let met = scene.add(rule);
        let report = doctor(&scene, &["--max-connections=4"]);
        assert!(met.hits() > 0, "{name}");
        for says in says {
            report.assert(topic, state, says);
        }
        if has_fuse() {
            assert_eq!(report.code, Some(code), "{name}: {:#}", report.json);
            assert_eq!(report.json["command"].is_null(), code != 0, "{name}");
        }
    }
}

#[test]
fn each_fault_of_an_objects_bytes_has_its_sentence() {
    check(faults_of_bytes());
}

/// Ways in which stores are not quite S3: a mount works, and the doctor says what it does.
fn differences() -> Vec<Case> {
    let refuses = |header: &'static str, status, code: &str| {
        let fault = Fault::Status { status, code: code.to_owned() };
        Rule::new(move |request: &RequestHead| request.headers.contains_key(header), fault)
    };
    let large = |rewrite: fn(Answer) -> Vec<u8>| {
        Rule::on_get("large", Fault::rewrite(move |_, answer| rewrite(answer)))
    };
    let heads = |rewrite: fn(Answer) -> Vec<u8>| {
        let of_head = |request: &RequestHead| request.kind() == Kind::Head && request.key() != "";
        Rule::new(of_head, Fault::rewrite(move |_, answer| rewrite(answer)))
    };
    let pages = |old: &'static str, new: &'static str| {
        Rule::on_list(Fault::rewrite(move |_, answer| {
            let page = String::from_utf8(answer.body.clone()).unwrap();
            answer.with_body(page.replace(old, new)).to_bytes()
        }))
    };
    let store = |rule, says: [&'static str; 2]| case(rule, "store", "slow", says, 0);
    vec![
        store(
            refuses("x-amz-checksum-mode", 501, "NotImplemented"),
            ["refuses the header x-amz-checksum-mode", "not compared with checksums"],
        ),
        store(
            refuses("x-amz-optional-object-attributes", 400, "InvalidArgument"),
            ["refuses the header x-amz-optional-object-attributes", "a HEAD tells"],
        ),
        store(
            refuses("if-match", 412, "PreconditionFailed"),
            ["its If-Match does not work", "the ETag of each answer is compared"],
        ),
        case(
            refuses("if-match", 412, "PreconditionFailed"),
            "If-Match",
            "slow",
            ["is not honoured", "by the ETag of each answer instead"],
            0,
        ),
        store(
            large(|answer| answer.in_chunks(100_000)),
            ["without their length", "must end where it should"],
        ),
        store(
            heads(|answer| answer.with("last-modified", "?").to_bytes()),
            ["its answer to a HEAD lacks", "a listing of the key tells them"],
        ),
        store(
            pages("<LastModified>", "<LastModified>?"),
            ["lists objects without size, ETag or time", "when the file is first used"],
        ),
        // Each is asked about, so reads are tried all the same.
        case(pages("<ETag>", "<ETag><a/>"), "ranges", "ok", ["exactly what was asked for", ""], 0),
        case(
            pages("</IsTruncated>", "</IsTruncated><Contents><Key>\u{1}</Key></Contents>"),
            "names",
            "slow",
            ["1 keys of the first page are not UTF-8 and stay hidden", ""],
            0,
        ),
    ]
}

#[test]
fn each_difference_from_s3_has_its_sentence() {
    check(differences());
}

#[test]
fn each_fault_of_a_listing_has_its_sentence() {
    check(faults_of_names());
}

#[test]
fn each_fault_of_all_that_is_asked_has_its_sentence() {
    check(faults_of_all());
}

#[test]
fn a_store_that_throttles_is_given_fewer_connections() {
    let scene = filled(Scene::with_proxy());
    let small =
        |request: &RequestHead| request.kind() == Kind::Get && request.key().starts_with("small/");
    scene.add(Rule::new(small, Fault::slow_down()).every(2));
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

    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let report = Report::of(scene.program().args(["doctor", "data", "--endpoint-url", &url]));
    assert_eq!(report.code, Some(68), "{:#}", report.json);
    report.assert("network", "wrong", "takes no connections (Connection refused");
    report.assert("bucket", "wrong", "cannot connect");

    let mut command = scene.program();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let report = Report::of(command.args(["doctor", "data"]));
    assert_eq!(report.code, Some(78), "{:#}", report.json);
    report.assert("credentials", "wrong", "set AWS_ACCESS_KEY_ID");
}

#[test]
fn a_bucket_elsewhere_is_found_and_its_region_named() {
    let scene = filled(Scene::new());
    scene.bucket().set_region(Some("eu-central-1"));
    let report = doctor(&scene, &["--region=us-east-1"]);
    report.assert("region", "ok", "in eu-central-1, not in us-east-1: --region eu-central-1 saves");
    if has_fuse() {
        assert_eq!(report.code, Some(0), "{:#}", report.json);
        let command = report.json["command"].as_str().unwrap();
        assert!(command.contains("--region eu-central-1"), "{command}");
    }
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
    report.assert("TLS", "wrong", "certificate");
    report.assert("TLS", "wrong", "trust it with --ca-bundle");
    doctor(&["--ca-bundle", bundle.to_str().unwrap()]).assert("TLS", "ok", "is valid");
    doctor(&["--no-verify-tls"]).assert("TLS", "slow", "NOT checked");
}

#[test]
fn the_doctor_takes_the_options_of_a_mount_and_refuses_the_wrong_ones() {
    let scene = Scene::new();
    let said = scene
        .program()
        .args(["doctor", "data", "--part-size=1GiB", "--chunk-size=1MiB"])
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(64));
    let error = String::from_utf8(said.stderr).unwrap();
    assert!(error.contains("--part-size (1GiB) must not be larger"), "{error}");
}

/// A mount raises the limit, or has fewer connections.
#[test]
fn few_open_files_mean_fewer_connections_as_they_do_for_a_mount() {
    let scene = filled(Scene::new());
    for (limits, state, says) in [
        ("ulimit -Sn 256", "ok", "448 files may be open"),
        ("ulimit -Sn 256 -Hn 256", "slow", "fewer connections: 64 requests at once instead of 128"),
    ] {
        let ours = scene.program();
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\"")).arg(ours.get_program());
        command.args(["doctor", "data"]).env_clear();
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let report = Report::of(&mut command);
        report.assert("files", state, says);
        if has_fuse() {
            assert_eq!(report.code, Some(0), "{:#}", report.json);
        }
    }
}
