//! Credentials that change while mounted: files that are rotated, processes that give others.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use devserver::proxy::{Applied, Fault, Rule};
use devserver::{Credentials, Kind};
use rustix::process::Signal;

use crate::common::{Daemon, Mount, Scene, can_mount, errno};

/// Secrets, which no log may show.
const TOKENS: [&str; 2] = ["old-token-of-this-test", "new-token-of-this-test"];

/// The program, with credentials from a file only.
fn program(scene: &Scene, name: &str, file: &Path) -> Command {
    let mut command = scene.program();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env(name, file);
    // Every module: all log lines are checked.
    command.arg("data").arg(scene.mountpoint()).arg("--log-level=trace,fasts3_mount=trace");
    command
}

fn mounted(scene: Scene, mut command: Command) -> Mount {
    let daemon = Daemon::start(&mut command, &scene.mountpoint());
    Mount { daemon, scene }
}

/// A credentials file with the server's keys, and what writes it with a token.
fn rotated(scene: &Scene) -> (PathBuf, impl Fn(&str) + use<>) {
    let file = scene.folder.path().join("credentials");
    let (keys, to) = (scene.server.credentials(), file.clone());
    let write = move |token: &str| {
        let text = format!(
            "[default]\naws_access_key_id={}\naws_secret_access_key={}\naws_session_token={token}\n",
            keys.access_key, keys.secret_key
        );
        std::fs::write(&to, text).unwrap();
    };
    (file, write)
}

/// From now on the old token is refused.
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
    let (file, write) = rotated(&scene);
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

/// A security token service: gives the store's keys for a web identity, with a session
/// token that tells which. Ends when dropped.
struct TokenService {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl TokenService {
    fn start(keys: Credentials) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ended) = (Arc::clone(&asked), Arc::clone(&ends));
        let serving = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                serve(connection.unwrap(), &keys, &counted);
            }
        });
        Self { address, asked, ends, serving: Some(serving) }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
        let _ = self.serving.take().map(std::thread::JoinHandle::join);
    }
}

/// One `AssumeRoleWithWebIdentity`.
fn serve(connection: TcpStream, keys: &Credentials, asked: &AtomicUsize) {
    let mut request = BufReader::new(connection);
    let (mut length, mut line) = (0, String::new());
    while request.read_line(&mut line).unwrap() > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut form = vec![0; length];
    request.read_exact(&mut form).unwrap();
    let form = String::from_utf8(form).unwrap();
    assert!(form.contains("Action=AssumeRoleWithWebIdentity"), "{form}");
    assert!(form.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Freader"), "{form}");
    asked.fetch_add(1, Ordering::Relaxed);
    let token = TOKENS[usize::from(form.contains("WebIdentityToken=rotated"))];
    let answer = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>\
         <SecretAccessKey>{}</SecretAccessKey><SessionToken>{token}</SessionToken>\
         <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        keys.access_key, keys.secret_key
    );
    let mut connection = request.into_inner();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{answer}",
        answer.len()
    )
    .unwrap();
}

/// E9: as in a pod of Kubernetes with a role of its own, whose token is written anew from time to
/// time.
#[test]
fn a_rotated_web_identity_token_is_followed() {
    if !can_mount() {
        return;
    }
    let scene = scene_of(32);
    let service = TokenService::start(scene.server.credentials());
    let file = scene.folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let mut command = program(&scene, "AWS_WEB_IDENTITY_TOKEN_FILE", &file);
    command
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
        .env("AWS_ENDPOINT_URL_STS", format!("http://{}", service.address));
    let mount = mounted(scene, command);
    read_all(&mount, 1);
    let before = service.asked();
    let refused = expire(&mount);
    std::fs::write(&file, "rotated").unwrap();
    read_all(&mount, 32);
    assert!(refused.hits() > 0);
    assert_eq!(service.asked() - before, 1, "once for all who were refused");
    no_secrets(mount);
}

fn content_type(mount: &Mount, key: &str) -> std::io::Result<usize> {
    let value = &mut [0; 100][..];
    Ok(rustix::fs::getxattr(mount.path(key), "user.s3.content-type", value)?)
}

/// E9: the answer to a HEAD has no body, so it does not tell an expired token from a lack of
/// rights.
#[test]
fn a_head_that_is_refused_without_a_reason_is_signed_anew_once_in_a_while() {
    if !can_mount() {
        return;
    }
    for status in [400, 403] {
        let scene = scene_of(8);
        let (file, write) = rotated(&scene);
        write(TOKENS[0]);
        let command = program(&scene, "AWS_SHARED_CREDENTIALS_FILE", &file);
        let mount = mounted(scene, command);
        assert_eq!(mount.names("d").len(), 8);
        let expired = Fault::Status { status, code: String::new() };
        let is_old = |request: &devserver::proxy::RequestHead| {
            let token = request.headers.get("x-amz-security-token");
            request.kind() == Kind::Head && token.is_some_and(|token| token == TOKENS[0])
        };
        let refused = mount.add(Rule::new(is_old, expired));
        write(TOKENS[1]);
        for key in 0..4 {
            assert!(content_type(&mount, &format!("d/{key}")).unwrap() > 0);
        }
        assert_eq!(refused.hits(), 1, "the old token is not used again");

        // A plain denial costs no second request: credentials were in doubt just now.
        let denied = mount.add(Rule::new(
            |request| request.kind() == Kind::Head,
            Fault::Status { status: 403, code: String::new() },
        ));
        for key in 4..8 {
            let refused = content_type(&mount, &format!("d/{key}"));
            assert_eq!(errno(refused), Some(libc::EACCES));
        }
        // One more if the machine is so busy that a minute has passed.
        assert!((4..=5).contains(&denied.hits()), "{}", denied.hits());
        no_secrets(mount);
    }
}
