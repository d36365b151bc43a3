//! The first requests: the bucket must answer, and its region is found.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::app::command_error::CommandError;
use crate::app::config::Config;
use crate::app::config::args::BucketPrefix;
use crate::app::exit::Exit;
use crate::stats::Stats;
use crate::store::s3::S3Store;
use crate::store::s3::config::FirstCredentials;
use crate::store::{Nonsense, StoreError};

/// Each failure is reported within 10 s, if credentials come at once; the rest is for starting and
/// ending the process.
const LIMIT: Duration = Duration::from_secs(9);
/// The bucket has at least this time, however long the credentials took.
const LEAST: Duration = Duration::from_secs(3);
/// A store that is starting, or a lost packet, has this time before it is a failure.
const RETRY_FOR: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Opens the buckets of a mount, all at once. One of several that does not answer is no reason not
/// to mount the others.
pub(super) async fn open_all(
    config: &Config,
    stats: &Arc<Stats>,
) -> Result<Vec<S3Store>, CommandError> {
    let opened = join_all(config.buckets.iter().map(|bucket| open(config, bucket, stats))).await;
    let is_all_lost = opened.iter().all(Result::is_err);
    let mut stores = Vec::new();
    for (bucket, opened) in config.buckets.iter().zip(opened) {
        stores.push(match opened {
            Err(error) if !is_all_lost => {
                // This sends no request.
                let connected = S3Store::counted(&bucket.name, &config.store, stats).await;
                let Ok(store) = connected else { return Err(error) };
                let (directory, sentence) = (&bucket.directory, error.sentence);
                tracing::warn!(
                    "{directory} answers with errors until its bucket is there: {sentence}"
                );
                store
            }
            opened => opened?,
        });
    }
    Ok(stores)
}

/// Connects to the buckets of a mount that is taken over, in the regions that were found out. Asks
/// nothing: programs wait, and what they ask for tells them how the store is.
pub(super) async fn reconnect_all(
    config: &Config,
    regions: &[String],
    stats: &Arc<Stats>,
) -> Result<Vec<S3Store>, CommandError> {
    let mut stores = Vec::new();
    for (at, bucket) in config.buckets.iter().enumerate() {
        let mut store = config.store.clone();
        store.region = regions.get(at).cloned().or(store.region);
        store.first_credentials = FirstCredentials::Later;
        let named = config.store.endpoint_url.as_deref().unwrap_or("AWS");
        let connected = S3Store::counted(&bucket.name, &store, stats).await;
        stores.push(connected.map_err(|error| not_opened(error, &bucket.name, named))?);
    }
    Ok(stores)
}

/// Returns a store that has answered a listing of one key.
pub(crate) async fn open(
    config: &Config,
    bucket: &BucketPrefix,
    stats: &Arc<Stats>,
) -> Result<S3Store, CommandError> {
    let begun = Instant::now();
    let named = config.store.endpoint_url.as_deref().unwrap_or("AWS");
    let store = S3Store::counted(&bucket.name, &config.store, stats)
        .await
        .map_err(|error| not_opened(error, &bucket.name, named))?;
    if let Some(proxy) = store.proxy() {
        tracing::info!("requests go through the proxy {proxy}");
    }
    let limit = LIMIT.saturating_sub(begun.elapsed()).max(LEAST);
    timeout(limit, open_anywhere(bucket, store)).await.unwrap_or_else(|_elapsed| {
        let silence = format!("nothing came within {} s", limit.as_secs());
        Err(not_opened(StoreError::TimedOut(silence), &bucket.name, named))
    })
}

/// Tries the configured region first, and then once the one that the bucket names.
async fn open_anywhere(bucket: &BucketPrefix, store: S3Store) -> Result<S3Store, CommandError> {
    let (store, told) = match open_here(bucket, store).await? {
        Opened::Here(store) => return Ok(store),
        Opened::Elsewhere(store, told) => (store, told),
    };
    let region = match told {
        Some(region) => Some(region),
        None => store.bucket_region().await,
    };
    let (name, endpoint) = (&bucket.name, store.endpoint());
    let elsewhere = |region| not_opened(StoreError::WrongRegion(region), name, &endpoint);
    let Some(region) = region.filter(|region| region != store.region()) else {
        return Err(elsewhere(None));
    };
    tracing::info!("bucket {name} is in {region}, not in {}: asking there", store.region());
    let there = store.in_region(&region).await;
    let there = there.map_err(|error| not_opened(error, name, &endpoint))?;
    match open_here(bucket, there).await? {
        Opened::Here(store) => Ok(store),
        Opened::Elsewhere(_, told) => Err(elsewhere(told.or(Some(region)))),
    }
}

enum Opened {
    Here(S3Store),
    /// Not in the region of this store; the right one, if the store has named it.
    Elsewhere(S3Store, Option<String>),
}

async fn open_here(bucket: &BucketPrefix, store: S3Store) -> Result<Opened, CommandError> {
    let retry_until = Instant::now() + RETRY_FOR;
    let mut signed_anew = false;
    loop {
        let failure = match store.probe(&bucket.prefix).await {
            Ok(found) => {
                if !found {
                    tracing::warn!("{} holds nothing yet", bucket.url());
                }
                return Ok(Opened::Here(store));
            }
            Err(StoreError::WrongRegion(told)) => return Ok(Opened::Elsewhere(store, told)),
            Err(failure) => failure,
        };
        let transient = match &failure {
            // This is most likely not an S3 store, and will not become one.
            StoreError::Nonsense(_) => false,
            StoreError::SignatureRefused(_) => !std::mem::replace(&mut signed_anew, true),
            error => error.is_transient(),
        };
        if !transient || Instant::now() + RETRY_PAUSE >= retry_until {
            return Err(not_opened(failure, &bucket.name, &store.endpoint()));
        }
        tracing::debug!(?failure, "the first listing failed, trying again");
        sleep(RETRY_PAUSE).await;
    }
}

fn not_opened(error: StoreError, bucket: &str, endpoint: &str) -> CommandError {
    let (exit, sentence) = match error {
        StoreError::NoSuchBucket => (
            Exit::NoInput,
            format!("there is no bucket {bucket} at {endpoint}; check its name and --endpoint-url"),
        ),
        StoreError::Denied(cause) | StoreError::SignatureRefused(cause) => {
            let sentence = format!(
                "access to bucket {bucket} is denied: {cause}; check the credentials, and that \
                 they allow s3:ListBucket and s3:GetObject"
            );
            (Exit::NoPerm, sentence)
        }
        StoreError::NoCredentials(cause) => {
            let sentence = format!(
                "no credentials were found ({cause}); set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, choose a --profile, or give --no-sign-request for a public \
                 bucket"
            );
            (Exit::Config, sentence)
        }
        StoreError::WrongRegion(region) => {
            let region = region.as_deref().unwrap_or("the store does not say which");
            let sentence =
                format!("bucket {bucket} is in another region ({region}); give it with --region");
            (Exit::DataErr, sentence)
        }
        StoreError::Throttled { .. } | StoreError::TimedOut(_) => {
            let cause = match error {
                StoreError::TimedOut(cause) => cause,
                StoreError::Throttled { retry_after: None } => "it asks to slow down".to_owned(),
                error => error.to_string(),
            };
            let sentence =
                format!("the store at {endpoint} did not answer in time: {cause}; try again later");
            (Exit::TempFail, sentence)
        }
        StoreError::Unreachable(cause) => {
            let check = what_to_check(&cause);
            (Exit::NoHost, format!("cannot connect to {endpoint}: {cause}; check {check}"))
        }
        StoreError::Unavailable(cause) => {
            let sentence = format!("the store at {endpoint} is failing: {cause}; try again later");
            (Exit::Unavailable, sentence)
        }
        // None but the first of these is an answer to a listing of one key.
        StoreError::Nonsense(_)
        | StoreError::NotFound
        | StoreError::Changed
        | StoreError::Archived => {
            let cause = match error {
                StoreError::Nonsense(Nonsense::Protocol(cause)) => cause,
                error => error.to_string(),
            };
            let sentence = format!(
                "{endpoint} does not answer like an S3 store: {cause}; check --endpoint-url"
            );
            (Exit::Protocol, sentence)
        }
    };
    CommandError::new(exit, sentence)
}

fn what_to_check(cause: &str) -> &'static str {
    // rustls names the certificate in each of its errors about one.
    if cause.starts_with("the proxy ") {
        "HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    } else if cause.contains("certificate") {
        "the certificate, or trust it with --ca-bundle"
    } else if cause.starts_with("TLS: ") {
        "--endpoint-url, and that a server at that port speaks https"
    } else {
        "--endpoint-url and the network"
    }
}
