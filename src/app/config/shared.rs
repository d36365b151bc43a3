//! The options of the cache that nodes share.
#![allow(clippy::doc_markdown)] // the texts of the options are shown as they are

use std::path::PathBuf;

use clap::Args as Group;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};

use super::args::BucketPrefix;
use super::endpoint_url;
use crate::store::s3::StoreConfig;
use crate::store::s3::config::{Hedging, SessionAccess};
use crate::store::shared::{Sealer, SharedCache, SharedPolicy, read_key};

#[derive(Debug, Group)]
#[command(next_help_heading = "Cache that nodes share")]
pub(in crate::app) struct SharedArgs {
    /// Bucket near the nodes, or a prefix of one, in which all of them keep what they fetched:
    /// s3://bucket/prefix. Who can read it can read the data [default: none]
    #[arg(long = "shared-cache", value_name = "BUCKET", env = "FASTS3_SHARED_CACHE")]
    cache_bucket: Option<BucketPrefix>,

    /// Address of its store [default: that of the mounted bucket]
    #[arg(long = "shared-cache-endpoint-url", value_name = "URL",
          env = "FASTS3_SHARED_CACHE_ENDPOINT_URL", value_parser = endpoint_url)]
    cache_endpoint_url: Option<String>,

    /// Its region [default: that of the mounted bucket, corrected by its answer]
    #[arg(long = "shared-cache-region", value_name = "REGION", env = "FASTS3_SHARED_CACHE_REGION",
          value_parser = NonEmptyStringValueParser::new())]
    cache_region: Option<String>,

    /// Profile of the AWS configuration files for it [default: that of the mounted bucket]
    #[arg(long = "shared-cache-profile", value_name = "NAME", env = "FASTS3_SHARED_CACHE_PROFILE",
          value_parser = NonEmptyStringValueParser::new())]
    cache_profile: Option<String>,

    /// File with a secret of 16 bytes or more, the same for all nodes: nobody without it can make
    /// them believe wrong bytes [default: checksums only]
    #[arg(long = "shared-cache-key", value_name = "FILE", env = "FASTS3_SHARED_CACHE_KEY")]
    key: Option<PathBuf>,

    /// Do not ask the mounted bucket, once for each object, whether this mount may read it: all
    /// who may read the cache may [default: false]
    #[arg(long = "shared-cache-trust", env = "FASTS3_SHARED_CACHE_TRUST",
          value_parser = BoolishValueParser::new())]
    trusts: bool,
}

/// The cache that nodes share.
#[derive(Debug)]
pub(crate) struct SharedConfig {
    pub(crate) bucket: BucketPrefix,
    pub(crate) store: StoreConfig,
    /// Its region was named.
    pub(crate) has_region: bool,
    pub(crate) policy: SharedPolicy,
}

/// None without `--shared-cache`; the environment may set the other options for all mounts.
pub(super) fn config(
    args: SharedArgs,
    (mounted, store): (&[BucketPrefix], &StoreConfig),
    memory_budget_bytes: u64,
) -> Result<Option<SharedConfig>, String> {
    let SharedArgs { cache_bucket, cache_endpoint_url, cache_region, cache_profile, key, trusts } =
        args;
    let Some(bucket) = cache_bucket else { return Ok(None) };
    let sealer = match &key {
        None => Sealer::without_key(),
        Some(path) => read_key(path).map_err(|cause| format!("--shared-cache-key: {cause}"))?,
    };
    let is_named = cache_profile.is_some() || cache_endpoint_url.is_some();
    let endpoint_url = cache_endpoint_url.or_else(|| store.endpoint_url.clone());
    let has_cache =
        |data: &&BucketPrefix| data.name == bucket.name && bucket.prefix.starts_with(&data.prefix);
    if endpoint_url == store.endpoint_url
        && let Some(data) = mounted.iter().find(has_cache)
    {
        return Err(format!(
            "--shared-cache: {} lies in {}, which is mounted: its entries would be data; give \
             another bucket, or a prefix beside it",
            bucket.url(),
            data.url(),
        ));
    }
    let hedges = store.hedging == Hedging::Auto;
    let store = StoreConfig {
        endpoint_url,
        region: cache_region.clone().or_else(|| store.region.clone()),
        profile: cache_profile.or_else(|| store.profile.clone()),
        // A public bucket says nothing of the cache.
        no_sign_request: store.no_sign_request && !is_named,
        requester_pays: false,
        // The source is the second request.
        hedging: Hedging::Never,
        sessions: SessionAccess::ReadWrite,
        ..store.clone()
    };
    let memory_bytes = SharedCache::memory_of(memory_budget_bytes);
    let has_region = cache_region.is_some();
    let policy = SharedPolicy { sealer, trusts, hedges, memory_bytes };
    Ok(Some(SharedConfig { bucket, store, has_region, policy }))
}
