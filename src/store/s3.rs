//! A bucket of an S3 store: requests filled in, signed and sent over our own wire, and their
//! responses checked. The AWS SDK gives the endpoint rules and the credential providers only.
//! One call is one request: [`Retrying`](super::retry::Retrying) sends more.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ::http::Response;
use ::http::header::{DATE, HeaderMap};
use async_trait::async_trait;
use tokio::time::{Instant, timeout};

use super::wire::{Body, Kind, Wire};
use super::{
    Destination, ListFrom, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion,
    StoreError,
};
use crate::stats::Stats;

mod checksum;
mod checkup;
mod clock;
pub mod config;
mod connect;
mod credentials;
mod page;
mod request;
mod response;
mod sign;
mod tls;
mod xml;

use checksum::Checksum;
use clock::Clock;
pub use config::{Keys, StoreConfig};
use credentials::Renewing;
use request::{RequestFields, RequestTemplate, list_query};
use response::{About, Refusal};

/// To the head of a response, connecting included. AWS advises to retry after seconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A listing or a refusal, its body included: no page takes longer that is still coming.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// A thousand keys of 1,024 bytes, three characters a byte, with half a KiB each: 3.5 MiB.
const LONGEST_PAGE: u64 = 8 << 20;
const LONGEST_REFUSAL: u64 = 1 << 20;
/// Whole objects up to this size are given out after their checksum is checked, if the store has
/// one. Until then they are outside of the memory budget: 128 GETs in flight take 32 MiB.
const CHECKED_BYTES: u64 = 256 << 10;

#[derive(Debug)]
pub struct S3Store {
    wire: Arc<Wire>,
    template: RequestTemplate,
    /// None when requests are not signed.
    credentials: Option<Renewing>,
    clock: Clock,
    region: String,
    endpoint: String,
    path_style: bool,
}

impl S3Store {
    /// Finds endpoint, region and credentials by the rules of the AWS configuration, within
    /// seconds. Sends nothing to the store.
    pub async fn connect(bucket: &str, config: &StoreConfig) -> Result<Self, StoreError> {
        Self::connect_in(bucket, config, None, &Arc::default()).await
    }

    /// As [`Self::connect`], in a region that the bucket has named ([`StoreError::WrongRegion`]);
    /// second requests are counted in `stats`.
    pub async fn connect_in(
        bucket: &str,
        config: &StoreConfig,
        region: Option<&str>,
        stats: &Arc<Stats>,
    ) -> Result<Self, StoreError> {
        connect::connect(bucket, config, region, None, stats).await
    }

    /// As [`Self::connect`], with these keys in place of those of the environment.
    pub async fn connect_with(
        bucket: &str,
        config: &StoreConfig,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        connect::connect(bucket, config, None, Some(keys), &Arc::default()).await
    }

    pub fn region(&self) -> &str {
        &self.region
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for one key under a prefix, once; `true` if there is any.
    pub async fn probe(&self, prefix: &str) -> Result<bool, StoreError> {
        let page = self.page(&one_key(prefix)).await?;
        let page = page::read(&page)?;
        Ok(!page.entries.is_empty() || page.undecodable > 0)
    }

    /// The bucket's region, by any response to a `HeadBucket`, refusals included.
    pub async fn bucket_region(&self) -> Option<String> {
        let response = self.send(&HEAD_BUCKET).await.ok()?;
        Some(response.headers().get(response::REGION)?.to_str().ok()?.to_owned())
    }

    /// One request, and its response, whatever its status.
    async fn send(&self, fields: &RequestFields<'_>) -> Result<Response<Body>, StoreError> {
        let credentials = match &self.credentials {
            None => None,
            Some(renewing) => {
                let current = renewing.current().await;
                Some(current.map_err(|error| credentials::failure(&error))?)
            }
        };
        let message = self.template.fill(fields, self.clock.now(), credentials.as_ref())?;
        let response = self.wire.send(&message, HEAD_TIMEOUT).await;
        response.map_err(|call| response::no_response(&call))
    }

    /// As [`Self::send`]; a response that is no success is an error. After a refused signature, the
    /// next request has other credentials, if there are any, and the store's time.
    async fn ask(
        &self,
        about: About,
        fields: &RequestFields<'_>,
    ) -> Result<(HeaderMap, Body), StoreError> {
        let begun = Instant::now();
        let (head, body) = self.send(fields).await?.into_parts();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let date = head.headers.get(DATE).and_then(|date| date.to_str().ok());
        let late = |_elapsed| StoreError::TimedOut("no end of a refusal".to_owned());
        let body = timeout(ATTEMPT_TIMEOUT, body.whole(LONGEST_REFUSAL)).await.map_err(late)?;
        let refusal = Refusal::new(head.status.as_u16(), &head.headers, &body.unwrap_or_default());
        let doubt = (fields.kind == Kind::Head).then(|| refusal.without_reason(&self.region));
        let error = match (doubt.flatten(), &self.credentials) {
            (Some(cause), Some(credentials)) if credentials.doubted(begun) => {
                StoreError::SignatureRefused(cause)
            }
            _ => refusal.meaning(about),
        };
        if let (StoreError::SignatureRefused(_), Some(credentials)) = (&error, &self.credentials) {
            credentials.refused(begun);
            if let Some(date) = date {
                self.clock.correct(date);
            }
        }
        Err(error)
    }

    async fn page(&self, request: &ListRequest) -> Result<Vec<u8>, StoreError> {
        let query = list_query(request);
        let fields = RequestFields { kind: Kind::List, key: "", query: &query, headers: &[] };
        let page = timeout(ATTEMPT_TIMEOUT, async {
            let (_, body) = self.ask(About::Bucket, &fields).await?;
            body.whole(LONGEST_PAGE).await
        });
        page.await.unwrap_or_else(|_elapsed| {
            let limit = ATTEMPT_TIMEOUT.as_secs();
            Err(StoreError::TimedOut(format!("no page of a listing within {limit} s")))
        })
    }
}

const HEAD_BUCKET: RequestFields<'_> =
    RequestFields { kind: Kind::Head, key: "", query: "", headers: &[] };

fn one_key(prefix: &str) -> ListRequest {
    ListRequest {
        prefix: prefix.to_owned(),
        delimited: false,
        from: ListFrom::Start,
        max_keys: 1,
        any_order: false,
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        page::read(&self.page(request).await?)
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let fields = RequestFields { kind: Kind::Head, key, query: "", headers: &[] };
        let (headers, _) = self.ask(About::Key, &fields).await?;
        response::head(key, &headers)
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        debug_assert!(range.start < range.end && range.end <= version.size_bytes, "{range:?}");
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let is_checked = range == (0..version.size_bytes) && version.size_bytes <= CHECKED_BYTES;
        // With a range, S3 sends no checksum of the whole object.
        let last = if is_checked { checksum::ASK } else { ("range", bytes.as_str()) };
        let headers = [("if-match", version.etag.as_str()), last];
        let (key, headers) = (version.key.as_str(), &headers);
        let fields = RequestFields { kind: Kind::Get, key, query: "", headers };
        let (headers, body) = self.ask(About::Key, &fields).await?;
        response::check_range(version, &range, &headers)?;
        let length = range.end - range.start;
        match Checksum::told(&headers).filter(|_| is_checked) {
            Some(checksum) => receive_checked(body, length, checksum, into).await,
            None => body.receive(length, into).await,
        }
    }
}

async fn receive_checked(
    body: Body,
    length: u64,
    checksum: Checksum,
    into: &mut dyn Destination,
) -> Result<(), StoreError> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    let received = body.receive(length, &mut bytes).await;
    if received.is_ok() {
        checksum.check(&bytes)?;
    }
    // The bytes of a broken body count as progress; the next attempt asks for the rest.
    into.put_slice(&bytes);
    received
}
