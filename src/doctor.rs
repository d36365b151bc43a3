//! `fasts3-mount doctor`: tries a store and a machine as the mount would use them, and says in
//! sentences what is wrong or slow, what to expect, and how to mount.
//!
//! [`machine`] looks at the kernel, [`examine`] at the store, through the same seam as the mount.
//! Nothing is mounted and nothing is written.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use crate::config::{Config, Hedging};
use crate::daemon;
use crate::store::ObjectStore;
use crate::store::s3::S3Store;

pub mod examine;
mod machine;

use examine::Measured;

/// A store whose behaviour is wrong, by the exit code of an endpoint that is no S3 store.
const WRONG: u8 = 76;
/// A name should be found and a connection made within this.
const LONGEST_STEP: Duration = Duration::from_secs(5);
/// AWS refuses requests that are further off than 15 minutes.
const TOLERATED_SKEW_SECONDS: u64 = 300;
const NOTED_SKEW_SECONDS: u64 = 30;

/// How something was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and will be slow, or lacks something.
    Slow,
    /// It does not work.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, in a word.
    pub topic: &'static str,
    /// How it was found to be.
    pub state: State,
    /// The same in a sentence.
    pub sentence: String,
}

/// All that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `s3://bucket/prefix`
    pub source: String,
    /// What was looked at, in order.
    pub findings: Vec<Finding>,
    /// Numbers; those that were not measured are absent.
    pub measured: Measured,
    /// The command that would mount it.
    pub command: Option<String>,
    /// 0 if the mount would work; the code with which it would fail to start; 76 if the store's
    /// behaviour is wrong.
    pub exit_code: u8,
}

impl Report {
    /// The mount would not start, but end with this code.
    fn fail(&mut self, topic: &'static str, code: u8, sentence: impl Into<String>) {
        self.add(topic, State::Wrong, sentence);
        self.exit_code = code;
    }

    fn add(&mut self, topic: &'static str, state: State, sentence: impl Into<String>) {
        self.findings.push(Finding { topic, state, sentence: sentence.into() });
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.source);
        for Finding { topic, state, sentence } in &self.findings {
            let mark = match state {
                State::Ok => "ok   ",
                State::Slow => "SLOW ",
                State::Wrong => "WRONG",
            };
            let _ = writeln!(text, "{mark}  {topic:<12}  {sentence}");
        }
        if let Some(expected) = self.measured.expected() {
            let _ = writeln!(text, "\nExpect {expected}.");
        }
        if let Some(command) = &self.command {
            let _ = writeln!(text, "Mount it with: {command}");
        }
        text
    }
}

/// Looks at everything. `quick` measures for a shorter time.
pub async fn run(config: &Config, quick: bool) -> Report {
    let source = format!("s3://{}/{}", config.bucket, config.prefix);
    let mut report = Report { source, ..Report::default() };
    machine::look(config, &mut report);
    if let Some(url) = &config.store.endpoint_url {
        way(url, &mut report).await;
    }
    let store = match daemon::open_bucket(config).await {
        Ok(store) => store,
        Err(error) => {
            report.fail("bucket", error.code(), error.to_string());
            return report;
        }
    };
    let url = endpoint_url(&store);
    if config.store.endpoint_url.is_none() {
        // Only now it is known.
        way(&url, &mut report).await;
    }
    connection(config, &store, &url, &mut report).await;
    let store_endpoint = store.endpoint().to_owned();
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    let plan = examine::Plan::new(config, quick);
    let examined = examine::run(&store, &plan).await;
    report.findings.extend(examined.findings);
    report.measured = examined.measured;
    let is_wrong = report.findings.iter().any(|finding| finding.state == State::Wrong);
    if is_wrong && report.exit_code == 0 {
        report.exit_code = WRONG;
    }
    if !is_wrong {
        let endpoint = store_endpoint.contains("://").then_some(store_endpoint.as_str());
        report.command = Some(command(config, endpoint, &report));
    }
    report
}

/// Where requests go.
fn endpoint_url(store: &S3Store) -> String {
    let endpoint = store.endpoint();
    if endpoint.contains("://") {
        return endpoint.to_owned();
    }
    format!("https://s3.{}.amazonaws.com", store.region())
}

/// From the endpoint's name to a connection.
async fn way(url: &str, report: &mut Report) {
    let uri: Option<Uri> = url.parse().ok();
    let Some((host, uri)) = uri.as_ref().and_then(|uri| Some((uri.host()?, uri))) else { return };
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let name = host.trim_matches(['[', ']']);
    let begun = Instant::now();
    let found = timeout(LONGEST_STEP, lookup_host((name, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            return report.add("DNS", State::Wrong, format!("{name} has no address: {error}"));
        }
        Err(_elapsed) => {
            return report.add("DNS", State::Wrong, format!("no name server tells of {name}"));
        }
    };
    let took = begun.elapsed();
    if name.parse::<std::net::IpAddr>().is_err() {
        let state = if took > Duration::from_millis(100) { State::Slow } else { State::Ok };
        let count = addresses.len();
        report.add("DNS", state, format!("{name} has {count} addresses, told within {took:.1?}"));
    }
    let mut refused = 0;
    let mut quickest: Option<Duration> = None;
    for address in &addresses {
        let begun = Instant::now();
        match timeout(LONGEST_STEP, TcpStream::connect(address)).await {
            Ok(Ok(_)) => quickest = Some(quickest.unwrap_or(Duration::MAX).min(begun.elapsed())),
            _ => refused += 1,
        }
    }
    match quickest {
        None => report.add("network", State::Wrong, format!("{name}:{port} takes no connections")),
        Some(quickest) if refused > 0 => report.add(
            "network",
            State::Slow,
            format!(
                "{refused} of {} addresses of {name} take no connections; the others are connected \
                 to within {quickest:.1?}",
                addresses.len()
            ),
        ),
        Some(quickest) => report.add(
            "network",
            State::Ok,
            format!("{name}:{port} is connected to within {quickest:.1?}"),
        ),
    }
}

/// What the first answer of the store showed.
async fn connection(config: &Config, store: &S3Store, url: &str, report: &mut Report) {
    let endpoint = store.endpoint();
    report.add("bucket", State::Ok, format!("{endpoint} answers for {}", config.bucket));
    if url.starts_with("http:") {
        report.add("TLS", State::Ok, "not used: data and names can be read on the way");
    } else if config.store.no_verify_tls {
        report.add("TLS", State::Slow, "the store's certificate is NOT checked (--no-verify-tls)");
    } else {
        report.add("TLS", State::Ok, "the store's certificate is valid");
    }
    match store.credentials_from().await {
        None => report.add("credentials", State::Ok, "none: requests are not signed"),
        Some(provider) => {
            let sentence = format!("found, and taken by the store; they came from {provider}");
            report.add("credentials", State::Ok, sentence);
        }
    }
    let asked = config.store.region.as_deref();
    let region = store.region();
    report.add(
        "region",
        State::Ok,
        match asked {
            Some(asked) if asked != region => {
                format!(
                    "the bucket is in {region}, not in {asked}: --region {region} saves a request"
                )
            }
            _ => format!("requests are signed for {region}"),
        },
    );
    let style = if store.is_path_style() {
        "the bucket's name stands in the path of URLs"
    } else {
        "the bucket's name stands in the host name of URLs"
    };
    report.add("URLs", State::Ok, style);
    match timeout(LONGEST_STEP, store.seconds_ahead()).await {
        Ok(Ok(ahead)) => {
            let off = ahead.unsigned_abs();
            let which = if ahead > 0 { "behind" } else { "before" };
            let (state, sentence) = if off > TOLERATED_SKEW_SECONDS {
                (
                    State::Wrong,
                    format!("this machine's clock is {off} s {which} the store's: set it"),
                )
            } else if off > NOTED_SKEW_SECONDS {
                (State::Slow, format!("this machine's clock is {off} s {which} the store's"))
            } else {
                (State::Ok, format!("this machine's and the store's differ by {off} s"))
            };
            report.add("clock", state, sentence);
        }
        Ok(Err(error)) => {
            report.add("clock", State::Slow, format!("the store does not tell its time: {error}"));
        }
        Err(_elapsed) => report.add("clock", State::Slow, "the store does not tell its time"),
    }
    match timeout(LONGEST_STEP, store.encodes_keys(&config.prefix)).await {
        Ok(Ok(true)) => report.add("encoding", State::Ok, "listings are URL-encoded as asked for"),
        Ok(Ok(false)) => report.add(
            "encoding",
            State::Slow,
            "listings are not URL-encoded (encoding-type): keys with control characters cannot be \
             listed",
        ),
        Ok(Err(error)) => {
            report.add("encoding", State::Wrong, format!("a listing of one key fails: {error}"));
        }
        Err(_elapsed) => {
            report.add("encoding", State::Wrong, "a listing of one key is not answered");
        }
    }
}

/// The command that would mount it, with what was found to be needed.
fn command(config: &Config, endpoint: Option<&str>, report: &Report) -> String {
    let mut command = format!("fasts3-mount {} /mnt/data", report.source);
    let store = &config.store;
    let mut option = |name: &str, value: &str| {
        let _ = write!(command, " {name} {value}");
    };
    if let Some(url) = endpoint {
        option("--endpoint-url", url);
    }
    if let Some(region) = &store.region {
        option("--region", region);
    }
    if let Some(profile) = &store.profile {
        option("--profile", profile);
    }
    // What the environment says it will say again.
    let from_environment = std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from);
    if let Some(bundle) =
        store.ca_bundle.as_ref().filter(|path| Some(*path) != from_environment.as_ref())
    {
        option("--ca-bundle", &bundle.display().to_string());
    }
    if let Some(connections) = report.measured.connections_wanted(config.max_connections) {
        option("--max-connections", &connections.to_string());
    }
    for (is_set, name) in [
        (store.no_sign_request, " --no-sign-request"),
        (store.requester_pays, " --requester-pays"),
        (store.no_verify_tls, " --no-verify-tls"),
        (store.hedging == Hedging::Never, " --hedging=never"),
    ] {
        if is_set {
            command.push_str(name);
        }
    }
    command
}
