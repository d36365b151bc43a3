//! The program as a benchmark drives it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

/// Ends the server with the test, whatever becomes of that.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

/// The program with these flags, what it prints later, and a client of what it has printed.
fn started(flags: &[&str]) -> (Program, Lines, Client) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devserver"));
    command.args(["--listen", "127.0.0.1:0", "--object", "a=1000"]).args(flags);
    let mut program = Program(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert!(line().starts_with("# bucket data at http://127.0.0.1:"));
    let exports: Vec<String> = (0..4).map(|_| line()).collect();
    let value = |index: usize| exports[index].split_once('=').unwrap().1.to_owned();

    let keys = Credentials::new(value(1), value(2), None, None, "devserver");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(value(0))
        .credentials_provider(keys)
        .region(Region::new(value(3)))
        .force_path_style(true)
        .build();
    (program, lines, Client::from_conf(config))
}

#[tokio::test]
async fn a_signal_prints_what_it_was_asked() {
    let (program, mut lines, client) = started(&["--network", "flash"]);
    let get = client.get_object().bucket("data").key("a").send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().into_bytes().len(), 1000);
    client.head_object().bucket("data").key("a").send().await.unwrap();

    let pid = program.0.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
    let expected = r#"{"list":0,"head":1,"get":1,"other":0,"body_bytes":1000,"connections":1}"#;
    assert_eq!(lines.next().unwrap().unwrap(), expected);
}

#[tokio::test]
async fn the_log_tells_when_an_answer_was_asked_for_and_written() {
    let path = std::env::temp_dir().join(format!("devserver-log-{}", std::process::id()));
    let flags = ["--first-byte-latency", "20ms", "--log", path.to_str().unwrap()];
    let (_program, _, client) = started(&flags);
    let get = client.get_object().bucket("data").key("a").range("bytes=0-899");
    get.send().await.unwrap().body.collect().await.unwrap();
    // The next request on the connection ends the answer.
    client.head_object().bucket("data").key("a").send().await.unwrap();

    let log = std::fs::read_to_string(&path).unwrap();
    let rows: Vec<Vec<&str>> = log.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 2, "{log}");
    let field = |name: &str| rows[1][rows[0].iter().position(|head| *head == name).unwrap()];
    let time = |name: &str| field(name).parse::<f64>().unwrap();
    assert_eq!((field("kind"), field("range"), field("key")), ("get", "bytes=0-899", "a"));
    assert!(time("first") - time("arrived") >= 0.0199, "{log}");
    assert!(time("last") >= time("first"), "{log}");
    assert!(time("sent") > 900.0, "{log}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn over_tls_it_writes_the_certificate_to_believe() {
    let folder = std::env::temp_dir().join(format!("devserver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("ca.pem");
    let mut command = Command::new(env!("CARGO_BIN_EXE_devserver"));
    command.args(["--listen", "127.0.0.1:0", "--tls"]).arg(&path);
    let mut program = Program(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(6).map(Result::unwrap).collect();
    assert!(lines[1].starts_with("export AWS_ENDPOINT_URL=https://127.0.0.1:"), "{lines:?}");
    assert!(lines.contains(&format!("export AWS_CA_BUNDLE={}", path.display())), "{lines:?}");
    let certificate = std::fs::read_to_string(&path).unwrap();
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{certificate}");
    std::fs::remove_dir_all(&folder).unwrap();
}
