//! `--shared-cache`: finds its store before the mount. It may be away, now or later.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::app::config::SharedConfig;
use crate::stats::Stats;
use crate::store::StoreError;
use crate::store::s3::{S3Entries, S3Store, is_directory_bucket};
use crate::store::shared::SharedCache;

/// Its region is not worth a longer start.
const LIMIT: Duration = Duration::from_secs(2);

/// None without `--shared-cache`, and when its store cannot even be asked, because there are no
/// credentials for it: no reason not to mount.
pub(super) async fn open(
    config: Option<&SharedConfig>,
    stats: &Arc<Stats>,
) -> Option<Arc<SharedCache>> {
    let config = config?;
    let shown = config.bucket.url();
    match entries(config, stats).await {
        Ok((entries, at)) => {
            tracing::info!("the shared cache is {shown} at {at}");
            Some(SharedCache::new(Arc::new(entries), config.policy.clone(), stats.clone()))
        }
        Err(error) => {
            tracing::warn!("the shared cache {shown} is not used: {error}");
            None
        }
    }
}

/// What holds the entries, and where that is.
pub(crate) async fn entries(
    config: &SharedConfig,
    stats: &Arc<Stats>,
) -> Result<(S3Entries, String), StoreError> {
    let store = connect(config, stats).await?;
    let at = store.endpoint();
    Ok((S3Entries::new(store, config.bucket.prefix.clone()), at))
}

/// Sends nothing but a question for the region.
async fn connect(config: &SharedConfig, stats: &Arc<Stats>) -> Result<S3Store, StoreError> {
    let store = S3Store::counted(&config.bucket.name, &config.store, stats).await?;
    let is_elsewhere = store.endpoint().contains("://");
    if config.has_region || is_elsewhere || is_directory_bucket(&config.bucket.name) {
        return Ok(store);
    }
    let told = timeout(LIMIT, store.bucket_region()).await.ok().flatten();
    match told.filter(|region| region != store.region()) {
        Some(region) => store.in_region(&region).await,
        None => Ok(store),
    }
}
