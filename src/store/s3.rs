//! A real bucket, through aws-sdk-s3. The only module that knows the SDK.
//!
//! One call here is one request: whoever wants retries wraps this in
//! [`Retrying`](super::retry::Retrying).

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{EncodingType, Object, ObjectStorageClass, RequestPayer, StorageClass};
use bytes::BufMut;
use percent_encoding::percent_decode;

use super::{
    ListEntry, ListFrom, ListPage, ListRequest, ObjectMeta, ObjectStore, ObjectVersion, StoreError,
};
use crate::config::StoreConfig;

mod checkup;
mod connect;
mod errors;
mod form;
mod get;
mod http;

pub use errors::Failure;
use errors::{About, failure};
use get::Gets;

/// A bucket of an S3 store.
#[derive(Debug)]
pub struct S3Store {
    client: Client,
    gets: Gets,
    bucket: String,
    payer: Option<RequestPayer>,
    region: String,
    endpoint: String,
    facts: connect::Facts,
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
        Self::connect_in(bucket, config, None).await
    }

    /// The same, in a region that the bucket has named ([`StoreError::WrongRegion`]).
    pub async fn connect_in(
        bucket: &str,
        config: &StoreConfig,
        region: Option<&str>,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(bucket, config, connect::connect(config, region, None).await?))
    }

    /// The same with these keys, whatever the environment says.
    pub async fn connect_with(
        bucket: &str,
        config: &StoreConfig,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(bucket, config, connect::connect(config, None, Some(keys)).await?))
    }

    fn new(bucket: &str, config: &StoreConfig, connected: connect::Connected) -> Self {
        let connect::Connected { client, wire, region, endpoint, facts } = connected;
        let payer = config.requester_pays.then_some(RequestPayer::Requester);
        let gets = Gets::new(client.clone(), wire, bucket.to_owned(), payer.clone());
        Self { client, gets, bucket: bucket.to_owned(), payer, region, endpoint, facts }
    }

    /// The region that requests are signed for.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Where requests go, for people.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for one key under a prefix, once; whether there is any. Says more about a failure than
    /// [`ObjectStore::list_page`] can.
    pub async fn probe(&self, prefix: &str) -> Result<bool, Failure> {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            delimited: false,
            from: ListFrom::Start,
            max_keys: 1,
        };
        let page = self.list(&request).await?;
        Ok(!page.entries.is_empty() || page.undecodable > 0)
    }

    /// The bucket's region, as the header of any answer to a `HeadBucket` tells it, refusals
    /// included.
    pub async fn bucket_region(&self) -> Option<String> {
        match self.client.head_bucket().bucket(&self.bucket).send().await {
            Ok(output) => output.bucket_region,
            Err(error) => {
                let headers = error.raw_response()?.headers();
                headers.get("x-amz-bucket-region").map(str::to_owned)
            }
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, Failure> {
        let (after, token) = match &request.from {
            ListFrom::Start => (None, None),
            ListFrom::After(key) => (Some(key.clone()), None),
            ListFrom::Token { token, last: _ } => (None, Some(token.clone())),
        };
        let output = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&request.prefix)
            .set_delimiter(request.delimited.then(|| "/".to_owned()))
            .set_start_after(after)
            .set_continuation_token(token)
            .max_keys(i32::from(request.max_keys))
            // XML cannot carry every character that a key can.
            .encoding_type(EncodingType::Url)
            .set_request_payer(self.payer.clone())
            .send()
            .await
            .map_err(|error| failure(About::Bucket, &error))?;
        Ok(page(output)?)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        Ok(self.list(request).await?)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let output = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(key)
            .set_request_payer(self.payer.clone())
            .send()
            .await
            .map_err(|error| failure(About::Key, &error))?;
        head_meta(key, &output)
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        debug_assert!(range.start < range.end && range.end <= version.size_bytes, "{range:?}");
        self.gets.get(version, &range, into).await
    }
}

/// A listing page as the SDK parsed it; [`super::check_page`] checks its order.
fn page(output: ListObjectsV2Output) -> Result<ListPage, StoreError> {
    // A store that does not know the parameter sends keys as they are and does not echo it.
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let mut undecodable = 0;
    let mut objects = Vec::new();
    for object in output.contents.unwrap_or_default() {
        let key = object.key.clone().ok_or_else(|| protocol("a listed object without a key"))?;
        match decode(key, encoded) {
            Some(key) => objects.push(ListEntry::Object(listed_meta(key, &object)?)),
            None => undecodable += 1,
        }
    }
    let mut prefixes = Vec::new();
    for prefix in output.common_prefixes.unwrap_or_default() {
        let prefix = prefix.prefix.ok_or_else(|| protocol("a common prefix without a name"))?;
        match decode(prefix, encoded) {
            Some(prefix) => prefixes.push(ListEntry::Prefix(prefix)),
            None => undecodable += 1,
        }
    }
    let next = match (output.is_truncated, output.next_continuation_token) {
        (Some(true), Some(token)) if !token.is_empty() => Some(token),
        (Some(true), _) => return Err(protocol("a truncated listing page without a token")),
        (Some(false), _) => None,
        // S3 always says; a document that was cut off may not.
        (None, _) => return Err(protocol("a listing page that does not say whether more follow")),
    };
    // The SDK takes a document that was cut off between two entries for a whole one, and what a
    // proxy sends without a length looks complete when it breaks.
    let listed = objects.len() + prefixes.len() + undecodable;
    let promised = output.key_count.unwrap_or_default();
    if usize::try_from(promised).is_ok_and(|promised| promised > listed) {
        return Err(protocol(format!(
            "a listing page of {listed} entries that promises {promised}"
        )));
    }
    Ok(ListPage { entries: merge(objects, prefixes), next, undecodable })
}

/// Two lists in key order become one. A list out of order stays so, and is found out by
/// [`super::check_page`]; sorting would hide it.
fn merge(objects: Vec<ListEntry>, prefixes: Vec<ListEntry>) -> Vec<ListEntry> {
    let mut merged = Vec::with_capacity(objects.len() + prefixes.len());
    let mut objects = objects.into_iter().peekable();
    for prefix in prefixes {
        while let Some(object) = objects.next_if(|object| object.key() <= prefix.key()) {
            merged.push(object);
        }
        merged.push(prefix);
    }
    merged.extend(objects);
    merged
}

/// `encoding-type=url` writes a space as `+`, as in a form; `None` when the key is not UTF-8.
fn decode(text: String, encoded: bool) -> Option<String> {
    if !encoded || !text.contains(['+', '%']) {
        return Some(text);
    }
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn listed_meta(key: String, object: &Object) -> Result<ObjectMeta, StoreError> {
    let archived = match &object.storage_class {
        Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive) => true,
        // INTELLIGENT_TIERING's archive tiers are told by HEAD only; GLACIER_IR is readable.
        Some(_) | None => false,
    };
    meta(key, object.size, object.e_tag(), object.last_modified.as_ref(), archived)
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
    format!("\"{bare}\"")
}

fn protocol(what: impl Into<String>) -> StoreError {
    StoreError::Protocol(what.into())
}

#[cfg(test)]
mod tests;
