//! A real bucket, through aws-sdk-s3. The only module that knows the SDK.
//!
//! One call here is one request: whoever wants retries wraps this in
//! [`Retrying`](super::retry::Retrying).

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{RequestPayer, StorageClass};
use bytes::BufMut;
use tokio::time::Instant;

use super::{
    ListFrom, ListPage, ListRequest, ObjectDetails, ObjectHead, ObjectMeta, ObjectStore,
    ObjectVersion, StoreError,
};
use crate::app::config::StoreConfig;
use crate::stats::Stats;

mod checksum;
mod checkup;
mod connect;
mod direct;
mod errors;
mod form;
mod get;
mod http;
mod list;
mod renewal;

use direct::Direct;
use errors::{About, failure};
use renewal::Renewing;

/// A bucket of an S3 store.
#[derive(Debug)]
pub struct S3Store {
    direct: Direct,
    credentials: Option<Renewing>,
    region: String,
    endpoint: String,
    path_style: bool,
}

/// Keys to sign with, for whoever has them at hand: tests, mostly.
#[derive(Clone)]
pub struct Keys {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`; never shown.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keys").field(&self.access_key_id).finish()
    }
}

impl S3Store {
    /// Finds endpoint, region and credentials by the AWS configuration's rules. Nothing is sent to
    /// the store yet.
    ///
    /// Fails with [`StoreError::NoCredentials`], within some seconds.
    pub async fn connect(bucket: &str, config: &StoreConfig) -> Result<Self, StoreError> {
        Self::connect_in(bucket, config, None, &Arc::default()).await
    }

    /// The same, in a region that the bucket has named ([`StoreError::WrongRegion`]); second
    /// requests are counted in `stats`.
    pub async fn connect_in(
        bucket: &str,
        config: &StoreConfig,
        region: Option<&str>,
        stats: &Arc<Stats>,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(bucket, config, connect::connect(config, region, None, stats).await?))
    }

    /// The same with these keys, whatever the environment says.
    pub async fn connect_with(
        bucket: &str,
        config: &StoreConfig,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(
            bucket,
            config,
            connect::connect(config, None, Some(keys), &Arc::default()).await?,
        ))
    }

    fn new(bucket: &str, config: &StoreConfig, connected: connect::Connected) -> Self {
        let connect::Connected { client, wire, credentials, region, endpoint, path_style } =
            connected;
        let payer = config.requester_pays.then_some(RequestPayer::Requester);
        let direct = Direct::new(client, wire, bucket.to_owned(), payer);
        Self { direct, credentials, region, endpoint, path_style }
    }

    /// The region that requests are signed for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Where requests go, for people.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for one key under a prefix, once; whether there is any. Says more about a failure than
    /// [`ObjectStore::list_page`] can.
    pub async fn probe(&self, prefix: &str) -> Result<bool, StoreError> {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: false,
            from: ListFrom::Start,
            max_keys: 1,
            any_order: false,
        };
        let page = self.direct.list(&request).await?;
        Ok(!page.entries.is_empty() || page.undecodable > 0)
    }

    /// The bucket's region, as the header of any answer to a `HeadBucket` tells it, refusals
    /// included.
    pub async fn bucket_region(&self) -> Option<String> {
        match self.direct.client.head_bucket().bucket(&self.direct.bucket).send().await {
            Ok(output) => output.bucket_region,
            Err(error) => {
                let headers = error.raw_response()?.headers();
                headers.get("x-amz-bucket-region").map(str::to_owned)
            }
        }
    }

    /// Sends a request; if its signature is refused, the next one has other credentials, when there
    /// are any.
    async fn signed<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = request.await;
        if let (Err(StoreError::SignatureRefused(_)), Some(credentials)) =
            (&answer, &self.credentials)
        {
            credentials.refused(begun);
        }
        answer
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.signed(self.direct.list(request)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let begun = Instant::now();
        self.signed(async {
            let output = self
                .direct
                .client
                .head_object()
                .bucket(&self.direct.bucket)
                .key(key)
                .set_request_payer(self.direct.payer.clone())
                .send()
                .await
                .map_err(|error| {
                    match (errors::without_reason(&error, &self.region), &self.credentials) {
                        (Some(cause), Some(credentials)) if credentials.doubted(begun) => {
                            StoreError::SignatureRefused(cause)
                        }
                        _ => failure(About::Key, &error),
                    }
                })?;
            Ok(ObjectHead { meta: head_meta(key, &output)?, details: details(output) })
        })
        .await
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        debug_assert!(range.start < range.end && range.end <= version.size_bytes, "{range:?}");
        self.signed(self.direct.get(version, &range, into)).await
    }
}

fn head_meta(key: &str, output: &HeadObjectOutput) -> Result<ObjectMeta, StoreError> {
    let cold = match &output.storage_class {
        Some(StorageClass::Glacier | StorageClass::DeepArchive) => true,
        Some(_) | None => output.archive_status.is_some(),
    };
    // `ongoing-request="false", expiry-date="…"` once a copy can be read.
    let restored = output.restore().is_some_and(|text| text.contains(r#"ongoing-request="false""#));
    meta(
        key.to_owned(),
        output.content_length,
        output.e_tag(),
        output.last_modified.as_ref(),
        cold && !restored,
    )
}

fn details(output: HeadObjectOutput) -> ObjectDetails {
    let class = output.storage_class.unwrap_or(StorageClass::Standard);
    ObjectDetails {
        storage_class: class.as_str().to_owned(),
        version_id: output.version_id,
        content_type: output.content_type,
        metadata: output.metadata.unwrap_or_default().into_iter().collect(),
    }
}

fn meta(
    key: String,
    size: Option<i64>,
    etag: Option<&str>,
    modified: Option<&DateTime>,
    archived: bool,
) -> Result<ObjectMeta, StoreError> {
    let missing = |what: &str| protocol(format!("{key:?} without {what}"));
    let size = size.and_then(|size| u64::try_from(size).ok()).ok_or_else(|| missing("a size"))?;
    let etag = etag.filter(|etag| !etag.is_empty()).ok_or_else(|| missing("an ETag"))?;
    let modified =
        modified.and_then(whole_seconds).ok_or_else(|| missing("a modification time"))?;
    let etag = quoted(etag);
    Ok(ObjectMeta {
        version: ObjectVersion { key, etag, size_bytes: size },
        last_modified: modified,
        archived,
    })
}

/// Listings tell milliseconds and HEAD does not: to be one version, both count in seconds.
fn whole_seconds(time: &DateTime) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(time.secs()).ok()?))
}

/// An `ETag` as a strong one in quotes. Some stores leave the quotes out in listings, and proxies
/// that compress mark it weak (`W/`), which no `If-Match` would ever match.
fn quoted(etag: &str) -> String {
    let bare = etag.trim();
    let bare = bare.strip_prefix("W/").unwrap_or(bare).trim_matches('"');
    ["\"", bare, "\""].concat()
}

fn protocol(what: impl Into<String>) -> StoreError {
    StoreError::nonsense(what.into())
}

#[cfg(test)]
mod tests;
