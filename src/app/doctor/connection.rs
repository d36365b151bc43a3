//! The way to the store: its name, its addresses, who answers there, and whom it lets in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::report::{Report, State, because};
use super::requests::ask;
use crate::app::config::Config;
use crate::app::daemon::StartError;
use crate::store::StoreError;
use crate::store::s3::S3Store;

/// A name should be found and a connection made within this, and a small question answered.
const LONGEST_STEP: Duration = Duration::from_secs(4);
/// Names that take longer will be felt: each connection begins with one.
const SLOW_NAME: Duration = Duration::from_millis(100);
/// AWS refuses requests that are further off than 15 minutes.
const TOLERATED_SKEW_SECONDS: u64 = 300;
const NOTED_SKEW_SECONDS: u64 = 30;

/// Where requests go.
pub(super) fn url(store: &S3Store) -> String {
    let endpoint = store.endpoint();
    if endpoint.contains("://") {
        return endpoint.to_owned();
    }
    format!("https://s3.{}.amazonaws.com", store.region())
}

/// From the endpoint's name to a connection.
pub(super) async fn way(url: &str, report: &mut Report) {
    let uri: Option<Uri> = url.parse().ok();
    let Some((host, uri)) = uri.as_ref().and_then(|uri| Some((uri.host()?, uri))) else { return };
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let name = host.trim_matches(['[', ']']);
    let begun = Instant::now();
    let remedy = "check the name in --endpoint-url, and this machine's /etc/resolv.conf";
    let addresses: Vec<_> = match timeout(LONGEST_STEP, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            return report.wrong("DNS", format!("{name} has no address: {error}; {remedy}"));
        }
        Err(_elapsed) => {
            return report.wrong("DNS", format!("no name server tells of {name}; {remedy}"));
        }
    };
    let took = begun.elapsed();
    if name.parse::<IpAddr>().is_err() {
        let state = if took > SLOW_NAME { State::Slow } else { State::Ok };
        let count = addresses.len();
        report.add("DNS", state, format!("{name} has {count} addresses, told within {took:.1?}"));
    }
    connections(&format!("{name}:{port}"), &addresses, report).await;
}

/// Whether the addresses take connections; all are tried at once.
async fn connections(name: &str, addresses: &[SocketAddr], report: &mut Report) {
    let mut attempts = JoinSet::new();
    for &address in addresses {
        attempts.spawn(async move {
            let begun = Instant::now();
            match timeout(LONGEST_STEP, TcpStream::connect(address)).await {
                Ok(Ok(_connection)) => Ok(begun.elapsed()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => Err(format!(
                    "no answer within {} s: is there a firewall?",
                    LONGEST_STEP.as_secs()
                )),
            }
        });
    }
    let (mut quickest, mut refused, mut why) = (None::<Duration>, 0, None);
    while let Some(outcome) = attempts.join_next().await {
        match outcome {
            Ok(Ok(took)) => quickest = Some(quickest.unwrap_or(Duration::MAX).min(took)),
            Ok(Err(error)) => (refused, why) = (refused + 1, Some(error)),
            // A panic there has found out nothing.
            Err(_panicked) => refused += 1,
        }
    }
    let why = why.unwrap_or_default();
    match quickest {
        None => report.wrong(
            "network",
            format!("{name} takes no connections ({why}); check the port, and that the store runs"),
        ),
        Some(quickest) if refused > 0 => report.slow(
            "network",
            format!(
                "{refused} of {} addresses of {name} take no connections ({why}); the others are \
                 connected to within {quickest:.1?}",
                addresses.len()
            ),
        ),
        Some(quickest) => {
            report.ok("network", format!("{name} is connected to within {quickest:.1?}"));
        }
    }
}

/// The bucket was not opened: why, and what else can be found out that may be the cause of it.
pub(super) async fn refused(config: &Config, error: &StartError, report: &mut Report) {
    let topic = match error {
        StartError::Unreachable { cause, .. } if cause.starts_with("TLS: ") => "TLS",
        StartError::NoCredentials { .. } => "credentials",
        StartError::WrongRegion { .. } => "region",
        _ => "bucket",
    };
    report.fail(topic, error.code(), error.to_string());
    // These have no connection, or nothing to sign with.
    if matches!(error, StartError::Unreachable { .. } | StartError::NoCredentials { .. }) {
        return;
    }
    // To connect sends no request.
    let connected = S3Store::connect_in(&config.bucket, &config.store, None);
    let Ok(Ok(store)) = timeout(LONGEST_STEP, connected).await else { return };
    credentials(&store, report).await;
    clock(&store, report).await;
}

/// What the first answer of the store showed.
pub(super) async fn made(config: &Config, store: &S3Store, report: &mut Report) {
    let endpoint = store.endpoint();
    report.ok("bucket", format!("{endpoint} answers for {}", config.bucket));
    if url(store).starts_with("http:") {
        report.ok("TLS", "not used: data and names can be read on the way");
    } else if config.store.no_verify_tls {
        let what =
            "the store's certificate is NOT checked (--no-verify-tls); trust it with --ca-bundle";
        report.slow("TLS", what);
    } else {
        report.ok("TLS", "the store's certificate is valid");
    }
    credentials(store, report).await;
    let asked = config.store.region.as_deref();
    let region = store.region();
    report.ok(
        "region",
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
    report.ok("URLs", style);
    clock(store, report).await;
    encoding(config, store, report).await;
}

async fn credentials(store: &S3Store, report: &mut Report) {
    let given = timeout(LONGEST_STEP, store.credentials_from()).await;
    let sentence = match given {
        Ok(None) => "none: requests are not signed".to_owned(),
        Ok(Some(provider)) => format!("found; they came from {provider}"),
        Err(_elapsed) => {
            return report.slow("credentials", "whoever gives them does not answer at once");
        }
    };
    report.ok("credentials", sentence);
}

async fn clock(store: &S3Store, report: &mut Report) {
    match timeout(LONGEST_STEP, store.seconds_ahead()).await {
        Ok(Ok(ahead)) => {
            let off = ahead.unsigned_abs();
            let which = if ahead > 0 { "behind" } else { "before" };
            let (state, remedy) = if off > TOLERATED_SKEW_SECONDS {
                (State::Wrong, ", and requests are refused for that: `timedatectl set-ntp true`")
            } else if off > NOTED_SKEW_SECONDS {
                (State::Slow, "; `timedatectl set-ntp true` sets it")
            } else {
                return report
                    .ok("clock", format!("this machine's and the store's differ by {off} s"));
            };
            let sentence = format!("this machine's clock is {off} s {which} the store's{remedy}");
            report.add("clock", state, sentence);
        }
        Ok(Err(error)) => {
            report.slow("clock", format!("the store does not tell its time: {error}"));
        }
        Err(_elapsed) => report.slow("clock", "the store does not tell its time"),
    }
}

/// Whether the store looks at `If-Match`, which the seam hides: there the `ETag` of an answer is looked
/// at, too.
pub(super) async fn condition(store: &S3Store, key: &str, report: &mut Report) {
    match ask(|| store.honours_if_match(key)).await.0 {
        Ok(true) => report.ok("If-Match", "is honoured: GETs of another version are refused"),
        Ok(false) => report.slow(
            "If-Match",
            "is not honoured: that an object was overwritten is seen by the ETag of each answer instead",
        ),
        Err(StoreError::TimedOut(_)) => {
            report.slow("If-Match", "a GET of another version is not answered");
        }
        Err(error) => report.wrong("If-Match", because("a GET with If-Match fails", &error)),
    }
}

async fn encoding(config: &Config, store: &S3Store, report: &mut Report) {
    match ask(|| store.encodes_keys(&config.prefix)).await.0 {
        Ok(true) => report.ok("encoding", "listings are URL-encoded as asked for"),
        Ok(false) => report.slow(
            "encoding",
            "listings are not URL-encoded (encoding-type): keys with control characters cannot be \
             listed",
        ),
        Err(error) => report.wrong("encoding", because("keys cannot be listed", &error)),
    }
}
