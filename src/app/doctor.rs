//! `fasts3-mount doctor`: tests a store and a machine as the mount would use them, with the
//! daemon's own checks where it has them. It mounts nothing, writes nothing but a file for a moment
//! in `--cache-dir` and an entry in `--shared-cache`, and ends within a minute.
//!
//! [`machine`] tests the kernel, [`connection`] the network and the credentials, [`examine`] the
//! store through the mount's own trait. The findings are a [`Diagnosis`].

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::app::config::Config;
use crate::app::daemon;
use crate::store::ObjectStore;
use crate::store::s3::config::Hedging;

mod connection;
mod diagnosis;
mod disk;
mod examine;
mod machine;
mod measurements;
mod requests;
mod shared;

use diagnosis::Diagnosis;

/// Examines everything. `quick` measures for a shorter time.
pub(crate) async fn run(config: &Config, quick: bool) -> Diagnosis {
    let mut report = Diagnosis { source: config.source(), ..Diagnosis::default() };
    let connections = daemon::connections(config.cache.max_connections);
    machine::look(config, &connections, &mut report);
    disk::measure(config, &mut report).await;
    if let Some(url) = &config.store.endpoint_url {
        connection::way(url, config, &mut report).await;
    }
    let store = match daemon::open_bucket(config, config.first(), &Arc::default()).await {
        Ok(store) => store,
        Err(error) => {
            connection::refused(config, &error, &mut report).await;
            return report;
        }
    };
    if config.store.endpoint_url.is_none() {
        // It is known only now.
        connection::way(&connection::url(&store), config, &mut report).await;
    }
    connection::made(config, &store, &mut report).await;
    let store = Arc::new(store);
    let seam: Arc<dyn ObjectStore> = store.clone();
    let scope = examine::Scope::new(config, connections.allowed, quick);
    let readable = examine::run(&seam, &scope, &mut report).await;
    if let Some(version) = readable {
        connection::condition(&store, &version.key, &mut report).await;
    }
    shared::measure(config, &scope, &mut report).await;
    for quirk in store.quirks() {
        report.slow("store", quirk);
    }
    if report.exit_code == 0 {
        let wanted = report.measured.connections_wanted(connections.allowed);
        // More than the limit on open files allows would change nothing.
        let wanted = wanted.filter(|&n| n < connections.allowed || connections.shortage.is_none());
        let endpoint = Some(store.endpoint()).filter(|named| named.contains("://"));
        // A region that was given may have been corrected.
        let region = config.store.region.as_ref().map(|_| store.region());
        report.command = Some(command(config, &report.source, endpoint.as_deref(), region, wanted));
    }
    report
}

/// The address of the shared cache, where it is not that of the bucket.
fn shared_endpoint(config: &Config) -> Option<String> {
    let shared = config.shared.as_ref()?.store.endpoint_url.clone();
    shared.filter(|url| config.store.endpoint_url.as_ref() != Some(url))
}

/// The command that mounts the bucket, with the options that were found to be needed.
fn command(
    config: &Config,
    source: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    connections: Option<usize>,
) -> String {
    let store = &config.store;
    // The environment gives its own again.
    let variable = std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from);
    let ca_bundle = store.ca_bundle.as_ref().filter(|path| Some(*path) != variable.as_ref());
    let mut command = format!("fasts3-mount {source} /mnt/data");
    for (option, value) in [
        ("--endpoint-url", endpoint.map(str::to_owned)),
        ("--region", region.map(str::to_owned)),
        ("--profile", store.profile.clone()),
        ("--ca-bundle", ca_bundle.map(|path| path.display().to_string())),
        ("--shared-cache", config.shared.as_ref().map(|shared| shared.bucket.url())),
        ("--shared-cache-endpoint-url", shared_endpoint(config)),
        ("--cache-dir", config.disk.as_ref().map(|disk| disk.path.display().to_string())),
        ("--max-connections", connections.map(|number| number.to_string())),
    ] {
        if let Some(value) = value {
            let _ = write!(command, " {option} {value}");
        }
    }
    for (is_set, option) in [
        (store.no_sign_request, " --no-sign-request"),
        (store.requester_pays, " --requester-pays"),
        (store.no_verify_tls, " --no-verify-tls"),
        (store.hedging == Hedging::Never, " --hedging=never"),
    ] {
        if is_set {
            command.push_str(option);
        }
    }
    command
}
