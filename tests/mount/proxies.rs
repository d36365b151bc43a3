//! Proxies between this machine and the store, as `HTTP_PROXY` and the like name them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use devserver::Server;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Daemon, Mount, Scene, can_mount};

/// A proxy for plain requests and for tunnels, each of which leads to the same server, whatever
/// host it names.
pub(crate) struct TestProxy {
    address: SocketAddr,
    /// The first line of each request.
    asked: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
}

impl TestProxy {
    /// `wants`: what `Proxy-Authorization` must be.
    pub(crate) fn start(target: SocketAddr, wants: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ends) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (noted, ended) = (Arc::clone(&asked), Arc::clone(&ends));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (client, noted) = (client.unwrap(), Arc::clone(&noted));
                std::thread::spawn(move || {
                    // Either side may hang up at any time.
                    let _ = relay(client, target, wants, &noted);
                });
            }
        });
        Self { address, asked, ends }
    }

    /// `user` is empty, or ends with `@`.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("http://{user}{}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
    }
}

fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    wants: Option<&str>,
    noted: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut server: Option<TcpStream> = None;
    loop {
        let head = head(&mut client)?;
        let (line, headers) = head.split_once("\r\n").unwrap();
        noted.lock().unwrap().push(line.to_owned());
        let told = headers.lines().find_map(|line| line.strip_prefix("proxy-authorization: "));
        if told != wants {
            let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
            client.write_all(answer.as_bytes())?;
            continue;
        }
        let is_tunnel = line.starts_with("CONNECT ");
        if server.is_none() {
            let opened = TcpStream::connect(target)?;
            if is_tunnel {
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            }
            let (mut from, mut to) = (opened.try_clone()?, client.try_clone()?);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            server = Some(opened);
        }
        let server = server.as_mut().expect("opened above");
        if is_tunnel {
            std::io::copy(&mut client, server)?;
            return server.shutdown(Shutdown::Both);
        }
        // From `GET http://host/path` to `GET /path`.
        let (method, url) = line.split_once(" http://").expect("the whole URL");
        let (_, path) = url.split_once('/').expect("a path");
        let headers = headers.lines().filter(|line| !line.starts_with("proxy-"));
        let headers: Vec<&str> = headers.collect();
        write!(server, "{method} /{path}\r\n{}\r\n", headers.join("\r\n"))?;
    }
}

/// A head with the empty line behind it.
fn head(from: &mut TcpStream) -> std::io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        from.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// Reads a file through a proxy; what the proxy was asked, and the log.
fn read_through(scene: Scene, proxy: &TestProxy, variable: &str, user: &str) -> String {
    let bytes = scene.bucket().put_synthetic("a", 3 << 20).size;
    let mut command = scene.program();
    command.env(variable, proxy.url(user)).arg("data").arg(scene.mountpoint());
    if let Some(certificate) = scene.server.certificate() {
        let bundle = scene.folder.path().join("bundle.pem");
        std::fs::write(&bundle, certificate).unwrap();
        command.env("AWS_CA_BUNDLE", bundle);
    }
    let mount = Mount { daemon: Daemon::start(&mut command, &scene.mountpoint()), scene };
    assert!(mount.read("a").unwrap() == mount.bucket().bytes("a", 0..bytes));
    assert_eq!(mount.names(""), ["a"]);
    let (code, log, _scene) = mount.end(Signal::TERM);
    assert_eq!(code, Some(0));
    log
}

#[test]
fn plain_requests_have_the_whole_url_and_others_a_tunnel() {
    if !can_mount() {
        return;
    }
    let secret = Some("Basic bWU6aHU6c2g=");
    for (variable, user, wants) in
        [("HTTP_PROXY", "", None), ("http_proxy", "me:hu%3Ash@", secret), ("ALL_PROXY", "", None)]
    {
        let scene = Scene::new();
        let proxy = TestProxy::start(scene.server.address(), wants);
        let log = read_through(scene, &proxy, variable, user);
        let asked = proxy.asked();
        assert!(asked.len() > 2, "{asked:?}");
        assert!(asked.iter().all(|line| line.contains(" http://127.0.0.1:")), "{asked:?}");
        assert!(log.contains("requests go through the proxy http://127.0.0.1:"), "{log}");
        assert!(!log.contains("hu%3Ash") && !log.contains("aHU6"), "{log}");
    }
    for (variable, user, wants) in
        [("HTTPS_PROXY", "", None), ("https_proxy", "me:hu%3Ash@", secret)]
    {
        let scene = Scene::on(Server::builder().tls(true).start_blocking().unwrap());
        let proxy = TestProxy::start(scene.server.address(), wants);
        read_through(scene, &proxy, variable, user);
        let asked = proxy.asked();
        assert!(!asked.is_empty());
        assert!(asked.iter().all(|line| line.starts_with("CONNECT 127.0.0.1:")), "{asked:?}");
    }
}

#[test]
fn hosts_of_no_proxy_are_asked_directly() {
    if !can_mount() {
        return;
    }
    for (name, hosts) in [("NO_PROXY", "example.com,127.0.0.0/8"), ("no_proxy", "*")] {
        let scene = Scene::new();
        let proxy = TestProxy::start(scene.server.address(), None);
        let mut command = scene.program();
        command.env("http_proxy", proxy.url("")).env(name, hosts);
        command.arg("data").arg(scene.mountpoint());
        let daemon = Daemon::start(&mut command, &scene.mountpoint());
        assert_eq!(daemon.end(Signal::TERM).0, Some(0));
        assert_eq!(proxy.asked(), Vec::<String>::new());
    }
}

#[test]
fn a_proxy_that_refuses_is_named_and_not_taken_for_the_store() {
    if !can_mount() {
        return;
    }
    for tls in [false, true] {
        let scene = Scene::on(Server::builder().tls(tls).start_blocking().unwrap());
        let proxy = TestProxy::start(scene.server.address(), Some("Basic bWU6b3RoZXI="));
        let mut command = scene.program();
        command.env("all_proxy", proxy.url("me:hush@")).arg("data").arg(scene.mountpoint());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(68), "{said}");
        assert!(said.contains("the proxy 127.0.0.1:") && said.contains("407"), "{said}");
        assert!(said.contains("HTTP_PROXY") && !said.contains("hush"), "{said}");
        assert_eq!(scene.server.counts().requests(), 0);
    }
}

#[test]
fn the_doctor_names_the_proxy_and_goes_its_way() {
    let scene = Scene::new();
    scene.bucket().put("a", "hello");
    let proxy = TestProxy::start(scene.server.address(), None);
    let mut command = scene.program();
    // The name of the store leads nowhere here.
    command.env("FASTS3_ENDPOINT_URL", "http://store.invalid:9000");
    command.env("HTTP_PROXY", proxy.url("")).args(["doctor", "data", "--json", "--quick"]);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let says = |topic: &str| {
        let found = findings.iter().find(|finding| finding["topic"] == topic);
        found.map(|finding| format!("{} {}", finding["state"], finding["sentence"]))
    };
    let said = says("proxy").unwrap();
    assert!(said.starts_with("\"ok\"") && said.contains(&proxy.url("")), "{said}");
    assert!(says("network").unwrap().starts_with("\"ok\""), "{report:#}");
    assert!(says("bucket").unwrap().starts_with("\"ok\""), "{report:#}");
}
