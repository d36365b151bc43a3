//! Credentials that change while mounted: files that are rotated, processes that give others.

use std::path::Path;
use std::process::Command;

use devserver::proxy::{Applied, Fault, Rule};
use rustix::process::Signal;

use crate::common::{Daemon, Mount, Scene, can_mount};

/// What no log may ever show.
const TOKENS: [&str; 2] = ["old-token-of-this-test", "new-token-of-this-test"];

/// The program, told of credentials by a file only.
fn program(scene: &Scene, name: &str, file: &Path) -> Command {
    let mut command = scene.program();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env(name, file);
    // Of every module: whatever is logged at all is looked at.
    command.arg("data").arg(scene.mountpoint()).arg("--log-level=trace,fasts3_mount=trace");
    command
}

fn mounted(scene: Scene, mut command: Command) -> Mount {
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    Mount { daemon, scene }
}

/// From now on the old token is no good.
fn expire(mount: &Mount) -> Applied {
    mount.add(Rule::new(
        |request| {
            request.headers.get("x-amz-security-token").is_some_and(|token| token == TOKENS[0])
        },
        Fault::Status { status: 400, code: "ExpiredToken".to_owned() },
    ))
}

/// Reads many objects at once, all of which must be right.
fn read_all(mount: &Mount, count: usize) {
    std::thread::scope(|threads| {
        for index in 0..count {
            threads.spawn(move || {
                let key = format!("d/{index}");
                assert!(
                    mount.read(&key).unwrap() == mount.bucket().bytes(&key, 0..50_000),
                    "{key}"
                );
            });
        }
    });
}

fn scene_of(count: usize) -> Scene {
    let scene = Scene::with_proxy();
    for index in 0..count {
        scene.bucket().put_synthetic(&format!("d/{index}"), 50_000);
    }
    scene
}

fn no_secrets(mount: Mount) -> String {
    let secret = mount.scene.server.credentials().secret_key;
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0));
    for hidden in TOKENS.iter().copied().chain([secret]) {
        assert!(!log.contains(hidden), "{hidden} is in the log");
    }
    log
}

/// E9
#[test]
fn a_rotated_file_is_read_again_when_its_credentials_have_expired() {
    if !can_mount() {
        return;
    }
    let scene = scene_of(32);
    let file = scene.folder.path().join("credentials");
    let keys = scene.server.credentials();
    let write = |token: &str| {
        let text = format!(
            "[default]\naws_access_key_id={}\naws_secret_access_key={}\naws_session_token={token}\n",
            keys.access_key, keys.secret_key
        );
        std::fs::write(&file, text).unwrap();
    };
    write(TOKENS[0]);
    let command = program(&scene, "AWS_SHARED_CREDENTIALS_FILE", &file);
    let mount = mounted(scene, command);
    let refused = expire(&mount);
    write(TOKENS[1]);
    read_all(&mount, 32);
    assert!(refused.hits() > 0 && refused.hits() <= 64, "{}", refused.hits());
    let hits = refused.hits();
    assert_eq!(mount.names("d").len(), 32);
    assert_eq!(refused.hits(), hits, "the old token is not used again");
    let log = no_secrets(mount);
    assert_eq!(log.matches("credentials were renewed").count(), 1, "{log}");
}

/// E9
#[test]
fn a_credential_process_runs_once_for_all_who_were_refused() {
    if !can_mount() {
        return;
    }
    let scene = scene_of(32);
    let path = |name: &str| scene.folder.path().join(name);
    let (token, runs, config) = (path("token"), path("runs"), path("config"));
    let keys = scene.server.credentials();
    std::fs::write(&token, TOKENS[0]).unwrap();
    std::fs::write(
        path("process"),
        format!(
            "echo run >> {}\ntoken=$(cat {})\necho \"{{\\\"Version\\\":1,\\\"AccessKeyId\\\":\\\"{}\\\",\\\"SecretAccessKey\\\":\
             \\\"{}\\\",\\\"SessionToken\\\":\\\"$token\\\",\\\"Expiration\\\":\\\"2999-01-01T00:00:00Z\\\"}}\"\n",
            runs.display(),
            token.display(),
            keys.access_key,
            keys.secret_key
        ),
    )
    .unwrap();
    let process = path("process").display().to_string();
    std::fs::write(&config, format!("[default]\ncredential_process = sh {process}\n")).unwrap();
    let command = program(&scene, "AWS_CONFIG_FILE", &config);
    let mount = mounted(scene, command);
    let runs = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let before = runs();
    expire(&mount);
    std::fs::write(&token, TOKENS[1]).unwrap();
    read_all(&mount, 32);
    assert_eq!(runs() - before, 1);
    no_secrets(mount);
}
