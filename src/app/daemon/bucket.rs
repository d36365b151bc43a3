//! The first requests: does the bucket answer, and where does it live?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::StartError;
use crate::app::config::Config;
use crate::stats::Stats;
use crate::store::StoreError;
use crate::store::s3::S3Store;

/// Every failure is told within 10 s; the rest is for starting and ending the process.
const LIMIT: Duration = Duration::from_secs(9);
/// A store that is just coming up, or a lost packet, gets this long before it is a failure.
const RETRY_FOR: Duration = Duration::from_secs(3);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// A store that has answered a listing of one key.
pub(crate) async fn open(config: &Config, stats: &Arc<Stats>) -> Result<S3Store, StartError> {
    let named = config.store.endpoint_url.as_deref().unwrap_or("AWS");
    match timeout_at(Instant::now() + LIMIT, open_anywhere(config, stats)).await {
        Ok(opened) => opened,
        Err(_elapsed) => Err(StartError::Slow {
            endpoint: named.to_owned(),
            cause: format!("nothing came within {} s", LIMIT.as_secs()),
        }),
    }
}

/// In the region the configuration tells of, or else once more where the bucket says it is.
async fn open_anywhere(config: &Config, stats: &Arc<Stats>) -> Result<S3Store, StartError> {
    let (store, told) = match open_in(config, None, stats).await? {
        Opened::Here(store) => return Ok(store),
        Opened::Elsewhere(store, told) => (store, told),
    };
    let region = match told {
        Some(region) => Some(region),
        None => store.bucket_region().await,
    };
    let bucket = config.bucket.clone();
    let Some(region) = region.filter(|region| region != store.region()) else {
        return Err(StartError::WrongRegion { bucket, region: None });
    };
    tracing::info!("bucket {bucket} is in {region}, not in {}: asking there", store.region());
    match open_in(config, Some(&region), stats).await? {
        Opened::Here(store) => Ok(store),
        Opened::Elsewhere(_, told) => {
            Err(StartError::WrongRegion { bucket, region: told.or(Some(region)) })
        }
    }
}

enum Opened {
    Here(S3Store),
    /// Not in the region of this store; the right one, when the store has told.
    Elsewhere(S3Store, Option<String>),
}

async fn open_in(
    config: &Config,
    region: Option<&str>,
    stats: &Arc<Stats>,
) -> Result<Opened, StartError> {
    let named = config.store.endpoint_url.as_deref().unwrap_or("AWS");
    let store = S3Store::connect_in(&config.bucket, &config.store, region, stats)
        .await
        .map_err(|error| StartError::of(error, &config.bucket, named))?;
    let retry_until = Instant::now() + RETRY_FOR;
    let mut signed_anew = false;
    loop {
        let failure = match store.probe(&config.prefix).await {
            Ok(found) => {
                if !found {
                    tracing::warn!("s3://{}/{} holds nothing yet", config.bucket, config.prefix);
                }
                return Ok(Opened::Here(store));
            }
            Err(StoreError::WrongRegion(told)) => {
                return Ok(Opened::Elsewhere(store, told));
            }
            Err(failure) => failure,
        };
        let transient = match &failure {
            // What makes no sense is most likely no S3 store, and will not become one.
            StoreError::Nonsense(_) => false,
            StoreError::SignatureRefused(_) => !std::mem::replace(&mut signed_anew, true),
            error => error.is_transient(),
        };
        if !transient || Instant::now() + RETRY_PAUSE >= retry_until {
            return Err(StartError::of(failure, &config.bucket, store.endpoint()));
        }
        tracing::debug!(?failure, "the first listing failed, trying again");
        sleep(RETRY_PAUSE).await;
    }
}
