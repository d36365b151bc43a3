//! Accounts as people have them: variables with the ends of lines, profiles, slow helpers, policies
//! that allow a part, access points, certificates that nobody else has signed.

use std::io::ErrorKind;
use std::process::Command;

use devserver::proxy::{Fault, RequestHead, Rule};
use devserver::{Kind, Server};
use rustix::process::Signal;

use crate::common::{Daemon, Mount, Scene, can_mount, errno, eventually, names};
use crate::proxies::TestProxy;

/// Mounts the bucket by this command, whose last arguments are the bucket's name and the place.
fn mounted(scene: Scene, mut command: Command) -> Mount {
    command.arg("data").arg(scene.mountpoint());
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    Mount { daemon, scene }
}

fn log_of(mount: Mount) -> String {
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    log
}

/// A profile in the home directory of the scene.
fn write_profile(scene: &Scene, name: &str, lines: &str) {
    let home = scene.folder.path().join("home/.aws");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("config"), format!("[profile {name}]\r\n{lines}\r\n")).unwrap();
}

#[test]
fn the_end_of_a_line_is_no_part_of_a_variable() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("a", "hello");
    let keys = scene.server.credentials();
    let mut command = scene.program();
    command
        .env("AWS_ACCESS_KEY_ID", format!("{}\n", keys.access_key))
        .env("AWS_SECRET_ACCESS_KEY", format!(" {}\r\n", keys.secret_key))
        .env("AWS_SESSION_TOKEN", "\n")
        .env("AWS_REGION", "eu-west-3\r")
        .env("FASTS3_METADATA_TTL", "5m\n")
        .env("FASTS3_ENDPOINT_URL", format!("{}\n", scene.server.endpoint_url()));
    let mount = mounted(scene, command);
    assert_eq!(mount.read("a").unwrap(), b"hello");
    let log = log_of(mount);
    assert!(log.contains("eu-west-3"), "{log}");
}

#[test]
fn a_variable_of_aws_without_a_value_counts_as_not_set() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mut command = scene.program();
    command.env("AWS_REGION", "").env("AWS_DEFAULT_REGION", "eu-west-3");
    command.env("AWS_PROFILE", "").env("AWS_ENDPOINT_URL_S3", "").env("AWS_CA_BUNDLE", "");
    let log = log_of(mounted(scene, command));
    assert!(log.contains("eu-west-3"), "{log}");
}

#[test]
fn a_profile_that_is_named_goes_before_keys_in_the_environment() {
    if !can_mount() {
        return;
    }
    for by_option in [true, false] {
        let scene = Scene::new();
        let keys = scene.server.credentials();
        let (id, secret) = (keys.access_key, keys.secret_key);
        let lines = format!("aws_access_key_id = {id}\r\naws_secret_access_key = {secret}");
        write_profile(&scene, "mine", &lines);
        let mut command = scene.program();
        command.arg("data").arg(scene.mountpoint());
        if by_option {
            command.env("AWS_ACCESS_KEY_ID", "AKIAWRONG").arg("--profile=mine");
        } else {
            // As with the AWS CLI, a profile of the environment is less than keys there.
            command.env("AWS_PROFILE", "mine");
        }
        let daemon = Daemon::start(&mut command, &scene.mountpoint());
        assert_eq!(daemon.end(Signal::TERM).0, Some(0));
    }
}

#[test]
fn a_variant_of_the_endpoint_is_not_asked_of_an_endpoint_of_ones_own() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let mut command = scene.program();
    command.env("AWS_USE_FIPS_ENDPOINT", "true").env("AWS_USE_DUALSTACK_ENDPOINT", "true");
    let log = log_of(mounted(scene, command));
    for variant in ["FIPS endpoints are", "dual-stack endpoints are"] {
        assert!(log.contains(variant), "{log}");
    }
}

/// The provider of a metadata service has failed by then.
#[test]
fn a_credential_process_may_take_its_time() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let keys = scene.server.credentials();
    let process = scene.folder.path().join("process");
    let answer = format!(
        r#"{{"Version":1,"AccessKeyId":"{}","SecretAccessKey":"{}"}}"#,
        keys.access_key, keys.secret_key
    );
    std::fs::write(&process, format!("sleep 10\necho '{answer}'\n")).unwrap();
    let line = format!("credential_process = sh {}", process.display());
    write_profile(&scene, "slow", &line);
    let mut command = scene.program();
    command.arg("--profile=slow");
    log_of(mounted(scene, command));
}

fn denied() -> Fault {
    Fault::Status { status: 403, code: "AccessDenied".to_owned() }
}

/// A bucket behind a policy that allows these listings, by their prefix and whether they have a
/// delimiter, and hides which keys do not exist.
fn policy(may_list: impl Fn(&str, bool) -> bool + Send + Sync + 'static) -> Scene {
    let scene = Scene::with_proxy();
    let keys = ["home/a/one", "home/a/two", "home/b/three", "home/four", "five"];
    for key in keys {
        scene.bucket().put(key, key);
    }
    scene.add(Rule::new(
        move |request: &RequestHead| {
            let prefix = request.query("prefix").unwrap_or_default();
            request.kind() == Kind::List && !may_list(&prefix, request.query("delimiter").is_some())
        },
        denied(),
    ));
    scene.add(Rule::new(
        move |request: &RequestHead| {
            request.kind() == Kind::Head && !keys.contains(&request.key().as_str())
        },
        denied(),
    ));
    scene
}

/// F13
#[test]
fn a_policy_that_wants_a_delimiter_is_enough() {
    if !can_mount() {
        return;
    }
    let mount = policy(|_, delimited| delimited).mount(&[]);
    // Lookups without a listing before them.
    assert_eq!(mount.read("home/a/one").unwrap(), b"home/a/one");
    assert_eq!(mount.read("five").unwrap(), b"five");
    assert_eq!(mount.read("home/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.read("home/a/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.names("home"), ["a", "b", "four"]);
    let found = Command::new("find").arg(mount.path("")).arg("-type").arg("f").output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().count(), 5);
    assert!(found.stderr.is_empty());
    let log = log_of(mount);
    let line = "listings without a delimiter are denied";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert_eq!(log.matches("access is denied").count(), 1 + heads_denied(&log), "{log}");
}

fn heads_denied(log: &str) -> usize {
    log.lines().filter(|line| line.contains("access is denied") && line.contains("head")).count()
}

/// F13: "home" and what is in it may be listed, as in AWS's example of home directories.
#[test]
fn a_policy_for_some_prefixes_is_enough_for_them() {
    if !can_mount() {
        return;
    }
    let may = |prefix: &str, delimited: bool| {
        matches!(prefix, "" | "home/") && delimited || prefix.starts_with("home/a/")
    };
    let mount = policy(may).mount(&[]);
    assert_eq!(mount.read("home/a/two").unwrap(), b"home/a/two");
    assert_eq!(mount.read("home/four").unwrap(), b"home/four");
    assert_eq!(mount.read("home/none").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(mount.names("home/a"), ["one", "two"]);
    assert_eq!(errno(names(&mount.path("home/b"))), Some(libc::EACCES));
    // A key that may be read is read, although nobody may list what is beside it.
    assert_eq!(mount.read("home/b/three").unwrap(), b"home/b/three");

    // The same bucket from the prefix that is allowed, without a right to its neighbours.
    let scene = policy(|prefix, _| prefix.starts_with("home/a/"));
    let mount = scene.mount_as("data/home/a", &[]);
    assert_eq!(mount.names(""), ["one", "two"]);
    assert_eq!(mount.read("one").unwrap(), b"home/a/one");
    assert_eq!(mount.read("none").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_access_point_is_mounted_by_its_arn() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let bucket = scene.server.bucket("point-123456789012");
    bucket.set_region(Some("eu-west-1"));
    bucket.put("a/b", "hello");
    // Its host name is one that no name server here knows.
    let proxy = TestProxy::start(scene.server.address(), None);
    let mut command = scene.program();
    command.env("http_proxy", proxy.url(""));
    command
        .env("FASTS3_ENDPOINT_URL", format!("http://localhost:{}", scene.server.address().port()));
    command.arg("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/point/a");
    command.arg(scene.mountpoint());
    let mount = Mount { daemon: Daemon::start(&mut command, &scene.mountpoint()), scene };
    assert_eq!(mount.read("b").unwrap(), b"hello");
    assert!(proxy.asked().iter().all(|line| line.contains("//point-123456789012.localhost:")));
}

#[test]
fn a_certificate_that_has_signed_itself_is_trusted_beside_a_broken_one() {
    if !can_mount() {
        return;
    }
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "FASTS3_CA_BUNDLE"] {
        let scene = Scene::on(Server::builder().tls(true).start_blocking().unwrap());
        scene.bucket().put("a", "hello");
        let bundle = scene.folder.path().join("bundle.pem");
        let good = scene.server.certificate().unwrap();
        let half = &good[..good.len() / 2];
        std::fs::write(&bundle, format!("{half}\n{good}")).unwrap();
        let mut command = scene.program();
        command.env(variable, &bundle);
        let mount = mounted(scene, command);
        assert_eq!(mount.read("a").unwrap(), b"hello", "{variable}");
        let log = log_of(mount);
        assert!(log.contains("a certificate is left out: "), "{log}");
    }
    // Another server with a certificate of its own.
    let other = Server::builder().tls(true).start_blocking().unwrap();
    let scene = Scene::on(Server::builder().tls(true).start_blocking().unwrap());
    let bundle = scene.folder.path().join("bundle.pem");
    std::fs::write(&bundle, other.certificate().unwrap()).unwrap();
    let mut command = scene.program();
    command.arg("data").arg(scene.mountpoint()).env("AWS_CA_BUNDLE", &bundle);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(68));
    assert!(String::from_utf8_lossy(&output.stderr).contains("certificate"));
}

/// A reader that gives up must not end the work of a helper for the others, and the start waits.
#[test]
fn a_mount_that_is_refused_ends_while_a_helper_sleeps() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    let process = scene.folder.path().join("process");
    std::fs::write(&process, "sleep 1\nexit 1\n").unwrap();
    write_profile(&scene, "bad", &format!("credential_process = sh {}", process.display()));
    let mut command = scene.program();
    command.args(["--profile=bad", "data"]).arg(scene.mountpoint());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut status = None;
    eventually("the end of the program", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(78));
}
