//! `fasts3-mount doctor`: tries a store and a machine as the mount would use them, and says in
//! sentences what is wrong or slow, what to expect, and how to mount.
//!
//! [`machine`] looks at the kernel, [`connection`] at the way to the store and who is let in,
//! [`examine`] at the store, through the same seam as the mount. What they find is a [`Report`].
//! Nothing is mounted and nothing is written, and it ends within a minute.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::app::config::{Config, Hedging};
use crate::app::daemon;
use crate::store::ObjectStore;

mod connection;
pub mod examine;
mod machine;
mod measured;
mod report;
mod requests;

pub use self::measured::{Bandwidth, Measured};
pub use self::report::{Finding, Report, State};

/// Looks at everything. `quick` measures for a shorter time.
pub async fn run(config: &Config, quick: bool) -> Report {
    let source = format!("s3://{}/{}", config.bucket, config.prefix);
    let mut report = Report { source, ..Report::default() };
    machine::look(config, &mut report);
    if let Some(url) = &config.store.endpoint_url {
        connection::way(url, &mut report).await;
    }
    let store = match daemon::open_bucket(config).await {
        Ok(store) => store,
        Err(error) => {
            connection::refused(config, &error, &mut report).await;
            return report;
        }
    };
    if config.store.endpoint_url.is_none() {
        // Only now it is known.
        connection::way(&connection::url(&store), &mut report).await;
    }
    connection::made(config, &store, &mut report).await;
    let endpoint = Some(store.endpoint().to_owned()).filter(|named| named.contains("://"));
    let store = Arc::new(store);
    let seam: Arc<dyn ObjectStore> = store.clone();
    let readable = examine::run(&seam, &examine::Plan::new(config, quick), &mut report).await;
    if let Some(version) = readable {
        connection::condition(&store, &version.key, &mut report).await;
    }
    if report.is_usable() {
        // One that was given, corrected.
        let region = config.store.region.as_ref().map(|_| store.region());
        report.command = Some(command(config, endpoint.as_deref(), region, &report));
    }
    report
}

/// The command that would mount it, with what was found to be needed.
fn command(
    config: &Config,
    endpoint: Option<&str>,
    region: Option<&str>,
    report: &Report,
) -> String {
    let mut command = format!("fasts3-mount {} /mnt/data", report.source);
    let store = &config.store;
    let mut option = |name: &str, value: &str| {
        let _ = write!(command, " {name} {value}");
    };
    if let Some(url) = endpoint {
        option("--endpoint-url", url);
    }
    if let Some(region) = region {
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
