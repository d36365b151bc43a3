//! A bucket of an S3 store: requests filled in, signed and sent over our own wire, and their
//! responses checked. The AWS SDK gives the endpoint rules and the credential providers only.
//! One call is one request, unless the store is not quite S3: [`Retrying`](super::retry::Retrying)
//! sends more.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::HeaderMap;
use ::http::response::Parts;
use ::http::{Response, Uri};
use async_trait::async_trait;
use tokio::time::{Instant, timeout};

use super::wire::{Body, Kind, Wire};
use super::{
    Class, Destination, ListEntry, ListFrom, ListPage, ListRequest, ObjectHead, ObjectStore,
    ObjectVersion, StoreError, flow,
};
use crate::stats::Stats;

mod account;
mod checksum;
mod checkup;
mod clock;
pub mod config;
mod connect;
mod credentials;
mod entries;
mod facts;
mod learnt;
mod page;
mod redirect;
mod request;
mod response;
mod session;
mod sign;
mod times;
mod tls;
mod xml;

use checksum::Checksum;
use clock::Clock;
pub use config::{Keys, StoreConfig};
use connect::Making;
use credentials::Renewing;
pub use entries::S3Entries;
use learnt::{CHECKSUM_MODE, LearntQuirks, OptionalHeader, Quirk, RESTORE_STATUS};
use redirect::RedirectTarget;
use request::{RequestFields, RequestTemplate, list_query};
use response::{About, Refusal};
pub use session::is_directory_bucket;
pub use tls::check_bundle;

/// To the head of an answer that is no store's.
const HEAD_TIMEOUT: Duration = flow::PATIENCE;
/// From the head of a refusal to the end of its body.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);
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
    making: Making,
    /// None when requests are not signed.
    credentials: Option<Renewing>,
    clock: Clock,
    region: String,
    /// None for AWS.
    endpoint: Option<String>,
    path_style: bool,
    learnt: LearntQuirks,
}

impl S3Store {
    /// Finds endpoint, region and credentials by the rules of the AWS configuration: within
    /// seconds, or in a minute where credentials come from a program. Sends nothing to the store.
    pub async fn connect(bucket: &str, config: &StoreConfig) -> Result<Self, StoreError> {
        Self::counted(bucket, config, &Arc::default()).await
    }

    /// As [`Self::connect`]; second requests are counted in `stats`.
    pub async fn counted(
        bucket: &str,
        config: &StoreConfig,
        stats: &Arc<Stats>,
    ) -> Result<Self, StoreError> {
        connect::connect(bucket, config, None, stats).await
    }

    /// As [`Self::connect`], with these keys in place of those of the environment.
    pub async fn connect_with(
        bucket: &str,
        config: &StoreConfig,
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        connect::connect(bucket, config, Some(keys), &Arc::default()).await
    }

    /// The same bucket in a region that it has named ([`StoreError::WrongRegion`]).
    pub async fn in_region(self, region: &str) -> Result<Self, StoreError> {
        let (template, credentials) = self.making.template(region, &self.wire).await?;
        Ok(Self { template, credentials, region: region.to_owned(), ..self })
    }

    pub fn region(&self) -> &str {
        &self.region
    }

    /// A URL, or `AWS, REGION`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("AWS, {}", self.region))
    }

    /// The proxy through which requests go.
    pub fn proxy(&self) -> Option<Uri> {
        self.wire.proxy_to(self.template.origin())
    }

    /// Asks for one key or directory under a prefix, once; `true` if there is any.
    pub async fn probe(&self, prefix: &str) -> Result<bool, StoreError> {
        let page = self.page(&one_key(prefix)).await?;
        let page = page::read(&page, prefix)?;
        Ok(!page.entries.is_empty() || page.undecodable > 0)
    }

    /// The bucket's region, by any response to a `HeadBucket`, refusals included.
    pub async fn bucket_region(&self) -> Option<String> {
        let response = self.send(&HEAD_BUCKET, None).await.ok()?;
        Some(response.headers().get(response::REGION)?.to_str().ok()?.to_owned())
    }

    /// A sentence for each way in which the store was found to differ from S3.
    pub fn quirks(&self) -> Vec<&'static str> {
        self.learnt.sentences()
    }

    /// One request, and its response, whatever its status.
    async fn send(
        &self,
        fields: &RequestFields<'_>,
        place: Option<&RedirectTarget>,
    ) -> Result<Response<Body>, StoreError> {
        let credentials = match &self.credentials {
            None => None,
            Some(renewing) => {
                let current = renewing.current().await;
                Some(current.map_err(|error| credentials::failure(&error))?)
            }
        };
        let message = self.template.fill(fields, place, self.clock.now(), credentials.as_ref())?;
        let response = self.wire.send(&message, flow::patience()).await;
        response.map_err(|call| response::no_response(&call))
    }

    /// As [`Self::send`]; a response that is no success is an error. If it may be one for the
    /// optional header, another request is sent without, and the store is remembered for it.
    async fn ask(
        &self,
        about: About,
        fields: &RequestFields<'_>,
    ) -> Result<(HeaderMap, Body), StoreError> {
        let optional = fields.optional.filter(|header| !self.learnt.has(header.quirk));
        let answer = self.follow(about, &RequestFields { optional, ..*fields }).await;
        let Some(OptionalHeader { quirk, .. }) = optional else {
            return answer.map_err(|refused| refused.error);
        };
        match answer {
            Ok(answer) => {
                self.learnt.rule_out(quirk);
                Ok(answer)
            }
            Err(refused) if refused.may_be_for_a_header() && self.learnt.may_have(quirk) => {
                let without = RequestFields { optional: None, ..*fields };
                let answer = self.follow(about, &without).await.map_err(|refused| refused.error)?;
                self.learnt.found(quirk);
                Ok(answer)
            }
            Err(refused) => Err(refused.error),
        }
    }

    /// The same wherever the store redirects it.
    async fn follow(
        &self,
        about: About,
        fields: &RequestFields<'_>,
    ) -> Result<(HeaderMap, Body), Refused> {
        let begun = Instant::now();
        let mut place: Option<RedirectTarget> = None;
        for _ in 0..=redirect::MOST {
            let (head, body) = self.send(fields, place.as_ref()).await?.into_parts();
            if head.status.is_success() {
                return Ok((head.headers, body));
            }
            let refusal = self.refusal(&head, body).await?;
            let Some(location) = refusal.leads_to(&self.region) else {
                return Err(self.refused(about, fields, refusal, begun).await);
            };
            let home = self.template.origin();
            let from = place.as_ref().map_or(home, |place| &place.origin);
            place = Some(RedirectTarget::of(location, from, home).map_err(StoreError::nonsense)?);
            self.learnt.found(Quirk::SendsElsewhere);
        }
        let many = format!("more than {} redirects of one request", redirect::MOST);
        Err(StoreError::nonsense(many).into())
    }

    async fn refusal(&self, head: &Parts, body: Body) -> Result<Refusal, StoreError> {
        let late = |_elapsed| StoreError::TimedOut("no end of a refusal".to_owned());
        let body = timeout(REFUSAL_TIMEOUT, body.whole(LONGEST_REFUSAL)).await.map_err(late)?;
        Ok(Refusal::new(head.status.as_u16(), &head.headers, &body.unwrap_or_default()))
    }

    /// The meaning of a refusal. If it is one of the signature, the next request has other
    /// credentials, if there are any, and the store's time.
    async fn refused(
        &self,
        about: About,
        fields: &RequestFields<'_>,
        mut refusal: Refusal,
        begun: Instant,
    ) -> Refused {
        let is_head = fields.kind == Kind::Head;
        if is_head && refusal.status == 400 && refusal.without_reason(&self.region).is_some() {
            refusal = self.reason(fields.key).await.unwrap_or(refusal);
        }
        let status = refusal.status;
        flow::refused(refusal.to_string());
        let date = refusal.date.clone();
        let doubt = is_head.then(|| refusal.without_reason(&self.region)).flatten();
        let error = match (doubt, &self.credentials) {
            (Some(cause), Some(credentials)) if credentials.doubted(begun) => {
                StoreError::SignatureRefused(cause)
            }
            _ => refusal.meaning(about),
        };
        if let (StoreError::SignatureRefused(_), Some(credentials)) = (&error, &self.credentials) {
            credentials.refused(begun);
            if let Some(date) = date {
                self.clock.correct(&date);
            }
        }
        Refused { status: Some(status), error }
    }

    /// Why a HEAD was refused: its answer has no body, and that to a GET of a byte has.
    async fn reason(&self, key: &str) -> Option<Refusal> {
        let headers = &[("range", "bytes=0-0")];
        let fields = RequestFields { kind: Kind::Get, key, headers, ..HEAD_BUCKET };
        let (head, body) = self.send(&fields, None).await.ok()?.into_parts();
        if head.status.is_success() {
            return None;
        }
        self.refusal(&head, body).await.ok()
    }

    async fn page(&self, request: &ListRequest) -> Result<Vec<u8>, StoreError> {
        let query = list_query(request);
        let optional = Some(RESTORE_STATUS);
        let fields = RequestFields { kind: Kind::List, query: &query, optional, ..HEAD_BUCKET };
        let limit = flow::patience() * 2;
        let page = timeout(limit, async {
            let (headers, body) = self.ask(About::Bucket, &fields).await?;
            if let Some(encoding) = response::encoding(&headers) {
                return Err(StoreError::nonsense(format!(
                    "a listing that is encoded ({encoding})"
                )));
            }
            body.whole(LONGEST_PAGE).await
        });
        page.await.unwrap_or_else(|_elapsed| {
            let limit = limit.as_secs();
            Err(StoreError::TimedOut(format!("no page of a listing within {limit} s")))
        })
    }

    /// 412: the object has changed, unless a HEAD still shows the version that was asked for.
    async fn mismatch(&self, version: &ObjectVersion) -> StoreError {
        match self.head(&version.key).await {
            Ok(head) if head.meta.version == *version => {
                self.learnt.matched(false);
                StoreError::nonsense("412, although a HEAD shows the ETag that was sent")
            }
            _ => StoreError::Changed,
        }
    }
}

const HEAD_BUCKET: RequestFields<'_> =
    RequestFields { kind: Kind::Head, key: "", query: "", headers: &[], optional: None, body: &[] };

fn one_key(prefix: &str) -> ListRequest {
    ListRequest {
        prefix: prefix.to_owned(),
        // Policies may allow no other listing.
        delimited: true,
        from: ListFrom::Start,
        max_keys: 1,
        any_order: false,
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut page = page::read(&self.page(request).await?, &request.prefix)?;
        if self.learnt.has(Quirk::RefusesRestoreStatus) {
            for entry in &mut page.entries {
                if let ListEntry::Object(meta) = entry
                    && meta.archived
                {
                    *entry = ListEntry::Untold(std::mem::take(&mut meta.version.key));
                }
            }
        } else if page.entries.iter().any(|entry| matches!(entry, ListEntry::Untold(_))) {
            self.learnt.found(Quirk::ListsTooLittle);
        }
        Ok(page)
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let (headers, _) = self.ask(About::Key, &RequestFields { key, ..HEAD_BUCKET }).await?;
        let (mut facts, details) = response::head(&headers);
        if !facts.are_whole() {
            self.learnt.found(Quirk::HeadTellsTooLittle);
            match self.page(&one_key(key)).await {
                Ok(page) => facts = facts.or(page::facts(&page, key)?.unwrap_or_default()),
                // It can be done without.
                Err(_) if facts.etag.is_some() && facts.size_bytes.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ObjectHead { meta: facts.meta(key.to_owned())?, details })
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        debug_assert!(range.start < range.end && range.end <= version.size_bytes, "{range:?}");
        let length = range.end - range.start;
        let is_small = length <= CHECKED_BYTES;
        // With a range, S3 sends no checksum of the whole object.
        let is_checked = is_small && length == version.size_bytes;
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let is_conditional = !self.learnt.has(Quirk::RefusesIfMatch);
        let headers: Vec<(&str, &str)> = [
            is_conditional.then_some(("if-match", version.etag.as_str())),
            (!is_checked).then_some(("range", bytes.as_str())),
        ]
        .into_iter()
        .flatten()
        .collect();
        let fields = RequestFields {
            kind: Kind::Get,
            key: &version.key,
            query: "",
            headers: &headers,
            optional: is_checked.then_some(CHECKSUM_MODE),
            body: &[],
        };
        let (headers, body) = match self.ask(About::Key, &fields).await {
            Err(StoreError::Changed) if is_conditional => return Err(self.mismatch(version).await),
            answer => answer?,
        };
        self.learnt.matched(true);
        response::check_range(version, &range, &headers)?;
        let checksum = Checksum::told(&headers).filter(|_| is_checked);
        let tells_no_length = body.length().is_none();
        if tells_no_length {
            self.learnt.found(Quirk::TellsNoLength);
        }
        if checksum.is_some() || (tells_no_length && is_small) {
            receive_checked(body, length, checksum, into).await
        } else {
            body.receive(length, into).await
        }
    }
}

/// Nothing of a body is taken that does not end where it should, or has another checksum.
async fn receive_checked(
    body: Body,
    length: u64,
    checksum: Option<Checksum>,
    into: &mut dyn Destination,
) -> Result<(), StoreError> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    let received = body.receive(length, &mut bytes).await;
    match (&received, checksum) {
        (Ok(()), Some(checksum)) => checksum.check(&bytes)?,
        (Err(StoreError::Nonsense(_)), _) => return received,
        _ => {}
    }
    // The bytes of a broken body count as progress; the next attempt asks for the rest.
    into.put_slice(&bytes);
    received
}

/// A request that got no success.
struct Refused {
    /// None without an answer.
    status: Option<u16>,
    error: StoreError,
}

impl Refused {
    /// Some look-alikes refuse what they do not know.
    fn may_be_for_a_header(&self) -> bool {
        matches!(self.status, Some(400 | 501)) && self.error.class() == Class::Nonsense
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self { status: None, error }
    }
}
