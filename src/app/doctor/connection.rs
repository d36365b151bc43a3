//! The network to the store: its name, its addresses, what answers there, and the credentials.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::diagnosis::{Diagnosis, Severity, because};
use super::requests::ask;
use crate::app::command_error::CommandError;
use crate::app::config::Config;
use crate::app::exit::Exit;
use crate::store::StoreError;
use crate::store::s3::S3Store;

/// The limit for a name, for a connection, and for the answer to a small request.
const LONGEST_STEP: Duration = Duration::from_secs(4);
/// Each connection begins with a name, so above this it is felt.
const SLOW_NAME: Duration = Duration::from_millis(100);
/// AWS refuses requests whose time is off by more than 15 minutes.
const TOLERATED_SKEW_SECONDS: u64 = 300;
const NOTED_SKEW_SECONDS: u64 = 30;

/// Where requests go.
pub(super) fn url(store: &S3Store) -> String {
    let endpoint = store.endpoint();
    if endpoint.contains("://") {
        return endpoint;
    }
    format!("https://s3.{}.amazonaws.com", store.region())
}

/// From the endpoint's name, or that of the proxy before it, to a connection.
pub(super) async fn way(url: &str, config: &Config, report: &mut Diagnosis) {
    let mut uri: Option<Uri> = url.parse().ok();
    if let Some(proxy) = uri.as_ref().and_then(|uri| config.store.proxies.to(uri)) {
        report.ok("proxy", format!("requests go through {proxy} (HTTP_PROXY, HTTPS_PROXY)"));
        uri = Some(proxy);
    }
    let Some((host, uri)) = uri.as_ref().and_then(|uri| Some((uri.host()?, uri))) else { return };
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let name = host.trim_matches(['[', ']']);
    let begun = Instant::now();
    let found = match timeout(LONGEST_STEP, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<_>>()),
        Ok(Err(error)) => Err(format!("{name} has no address: {error}")),
        Err(_elapsed) => Err(format!("no name server answers for {name}")),
    };
    let took = begun.elapsed();
    let addresses = match found {
        Ok(addresses) => addresses,
        Err(cause) => {
            let remedy = "check the name in --endpoint-url or of the proxy, and this machine's \
                          /etc/resolv.conf";
            return report.wrong("DNS", format!("{cause}; {remedy}"));
        }
    };
    if name.parse::<IpAddr>().is_err() {
        let severity = Severity::slow_if(took > SLOW_NAME);
        let count = addresses.len();
        report.add("DNS", severity, format!("{name} has {count} addresses, found in {took:.1?}"));
    }
    connections(&format!("{name}:{port}"), &addresses, report).await;
}

/// Connects to all addresses at once.
async fn connections(name: &str, addresses: &[SocketAddr], report: &mut Diagnosis) {
    let mut attempts = JoinSet::new();
    for &address in addresses {
        attempts.spawn(async move {
            let begun = Instant::now();
            match timeout(LONGEST_STEP, TcpStream::connect(address)).await {
                Ok(Ok(_connection)) => Ok(begun.elapsed()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => {
                    let limit = LONGEST_STEP.as_secs();
                    Err(format!("no answer within {limit} s: is there a firewall?"))
                }
            }
        });
    }
    let (connected, refused): (Vec<_>, Vec<_>) =
        attempts.join_all().await.into_iter().partition(Result::is_ok);
    let quickest = connected.into_iter().flatten().min();
    let count = refused.len();
    let why = refused.into_iter().find_map(Result::err).unwrap_or_default();
    match quickest {
        None => report.wrong(
            "network",
            format!("{name} takes no connections ({why}); check the port, and that the store runs"),
        ),
        Some(quickest) if count > 0 => report.slow(
            "network",
            format!(
                "{count} of {} addresses of {name} take no connections ({why}); the others are \
                 connected to within {quickest:.1?}",
                addresses.len()
            ),
        ),
        Some(quickest) => {
            report.ok("network", format!("{name} is connected to within {quickest:.1?}"));
        }
    }
}

/// The bucket was not opened: why, and what else may be the cause of it.
pub(super) async fn refused(config: &Config, error: &CommandError, report: &mut Diagnosis) {
    let topic = match error.exit {
        Exit::NoHost if error.sentence.contains(": TLS: ") => "TLS",
        Exit::Config => "credentials",
        Exit::DataErr => "region",
        _ => "bucket",
    };
    report.fail(topic, error);
    // Without a connection, or without keys to sign with, there is nothing more to ask.
    if matches!(error.exit, Exit::NoHost | Exit::Config) {
        return;
    }
    // This sends no request.
    let connected = S3Store::connect(&config.first().name, &config.store);
    let Ok(Ok(store)) = timeout(LONGEST_STEP, connected).await else { return };
    credentials(&store, report).await;
    clock(&store, report).await;
}

/// Findings from the first answer of the store.
pub(super) async fn made(config: &Config, store: &S3Store, report: &mut Diagnosis) {
    let endpoint = store.endpoint();
    report.ok("bucket", format!("{endpoint} answers for {}", config.first().name));
    if url(store).starts_with("http:") {
        report.ok("TLS", "not used: data and names can be read on the way");
    } else if config.store.no_verify_tls {
        report.slow(
            "TLS",
            "the store's certificate is NOT checked (--no-verify-tls); trust it with --ca-bundle",
        );
    } else {
        report.ok("TLS", "the store's certificate is valid");
    }
    credentials(store, report).await;
    let region = store.region();
    let sentence = match config.store.region.as_deref() {
        Some(given) if given != region => {
            format!("the bucket is in {region}, not in {given}: --region {region} saves a request")
        }
        _ => format!("requests are signed for {region}"),
    };
    report.ok("region", sentence);
    let place = if store.is_path_style() { "path" } else { "host name" };
    report.ok("URLs", format!("the bucket's name stands in the {place} of URLs"));
    clock(store, report).await;
    encoding(config, store, report).await;
}

async fn credentials(store: &S3Store, report: &mut Diagnosis) {
    match timeout(LONGEST_STEP, store.credentials_from()).await {
        Ok(None) => report.ok("credentials", "none: requests are not signed"),
        Ok(Some(by)) => report.ok("credentials", format!("found; they came from {by}")),
        Err(_elapsed) => {
            let limit = LONGEST_STEP.as_secs();
            report.slow("credentials", format!("their provider does not answer within {limit} s"));
        }
    }
}

async fn clock(store: &S3Store, report: &mut Diagnosis) {
    let ahead = match timeout(LONGEST_STEP, store.seconds_ahead()).await {
        Ok(Ok(ahead)) => ahead,
        Ok(Err(error)) => {
            return report.slow("clock", format!("the store does not tell its time: {error}"));
        }
        Err(_elapsed) => return report.slow("clock", "the store does not tell its time"),
    };
    let off = ahead.unsigned_abs();
    if off <= NOTED_SKEW_SECONDS {
        return report.ok("clock", format!("this machine's and the store's differ by {off} s"));
    }
    let (severity, remedy) = if off > TOLERATED_SKEW_SECONDS {
        (Severity::Wrong, ", and requests are refused for that: `timedatectl set-ntp true`")
    } else {
        (Severity::Slow, "; `timedatectl set-ntp true` sets it")
    };
    let which = if ahead > 0 { "behind" } else { "before" };
    let sentence = format!("this machine's clock is {off} s {which} the store's{remedy}");
    report.add("clock", severity, sentence);
}

/// Does the store compare `If-Match`? `ObjectStore` hides it by looking at the `ETag` as well.
pub(super) async fn condition(store: &S3Store, key: &str, report: &mut Diagnosis) {
    match ask(|| store.honours_if_match(key)).await.0 {
        Ok(true) => report.ok("If-Match", "is honoured: GETs of another version are refused"),
        Ok(false) => report.slow(
            "If-Match",
            "is not honoured: an object that was overwritten is noticed by the ETag of each answer \
             instead",
        ),
        Err(StoreError::TimedOut(_)) => {
            report.slow("If-Match", "a GET of another version is not answered");
        }
        Err(error) => report.wrong("If-Match", because("a GET with If-Match fails", &error)),
    }
}

async fn encoding(config: &Config, store: &S3Store, report: &mut Diagnosis) {
    match ask(|| store.encodes_keys(&config.first().prefix)).await.0 {
        Ok(true) => report.ok("encoding", "listings are URL-encoded as asked for"),
        Ok(false) => report.slow(
            "encoding",
            "listings are not URL-encoded (encoding-type): keys with control characters cannot be \
             listed",
        ),
        Err(error) => report.wrong("encoding", because("keys cannot be listed", &error)),
    }
}
