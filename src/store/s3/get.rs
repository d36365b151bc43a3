//! GETs past the SDK's orchestrator, which costs ten times what the rest of a small one does.
//!
//! The SDK says once what a GET of this bucket looks like ([`Form`]): it makes one, signs it, and
//! is stopped before it sends it. What it resolved on the way (endpoint, style of address, region,
//! name of the service, where credentials come from) is then filled with key, range and `ETag`, and
//! signed anew, with credentials from the SDK's own cache. A refusal is handed back to the SDK as
//! the answer to the same request, so that there is one reader of refusals.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, RANGE,
    USER_AGENT,
};
use ::http::{Request, Response};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, Layer, ResolveCachedIdentity as _, RuntimeComponents,
};
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::RequestPayer;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::auth::AuthSchemeId;
use aws_smithy_runtime_api::client::identity::{Identity, SharedIdentityResolver};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::GetIdentityResolver as _;
use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::errors::{About, call_failure, failure, unsigned};
use super::http::{Answered, HEAD_TIMEOUT};
use super::{protocol, quoted};
use crate::store::wire::{Body, Wire};
use crate::store::{ObjectVersion, StoreError};

/// What is written as it is: the unreserved characters of RFC 3986, and slashes. The signature is
/// over the same text, and nothing is normalised.
const KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The key of the request that the SDK makes and does not send.
const SAMPLE: &str = "k";
/// What of the SDK's headers is sent as it is; the others count attempts, or say what we say.
const KEPT: [HeaderName; 2] = [USER_AGENT, HeaderName::from_static("x-amz-request-payer")];
/// SHA-256 of a body without a byte.
const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The GETs of a bucket.
#[derive(Debug)]
pub(super) struct Gets {
    client: Client,
    wire: Arc<Wire>,
    bucket: String,
    payer: Option<RequestPayer>,
    form: Mutex<Option<Arc<Form>>>,
}

impl Gets {
    pub(super) fn new(
        client: Client,
        wire: Arc<Wire>,
        bucket: String,
        payer: Option<RequestPayer>,
    ) -> Self {
        Self { client, wire, bucket, payer, form: Mutex::default() }
    }

    /// One request, and its body into the target.
    pub(super) async fn get(
        &self,
        version: &ObjectVersion,
        range: &Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        let request = self.form().await?.request(version, range).await?;
        let response = self.wire.call(&request, HEAD_TIMEOUT).await;
        let response = response.map_err(|error| call_failure(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(&version.key, response).await);
        }
        let (head, body) = response.into_parts();
        check_response(version, range, &head.headers)?;
        body.receive(range.end - range.start, into).await
    }

    /// What GETs look like; the SDK is asked when nobody has asked it yet.
    async fn form(&self) -> Result<Arc<Form>, StoreError> {
        let known = self.form.lock().clone();
        if let Some(form) = known {
            return Ok(form);
        }
        let sampler = Sampler::default();
        let sent = self.by_sdk(SAMPLE).customize().interceptor(sampler.clone()).send().await;
        // Taken out, for what was sampled knows the sampler.
        let sample = sampler.0.lock().take();
        let form = match (sample, sent) {
            (Some(sample), _) => Arc::new(Form::new(sample)?),
            (None, Err(error)) => return Err(failure(About::Key, &error).into()),
            (None, Ok(_)) => return Err(protocol("a request went past its interceptor")),
        };
        *self.form.lock() = Some(Arc::clone(&form));
        Ok(form)
    }

    /// What the SDK makes of a response that is no success.
    async fn refusal(&self, key: &str, response: Response<Body>) -> StoreError {
        let answer = Answered::new(response);
        let sent = self
            .by_sdk(key)
            .customize()
            .mutate_request(move |request| request.add_extension(answer.clone()))
            .send()
            .await;
        let error = match sent {
            Err(error) => failure(About::Key, &error).into(),
            Ok(_) => protocol("a refusal that the SDK takes for a success"),
        };
        if matches!(error, StoreError::Denied(_)) {
            // The reason may be a clock, and the SDK has just seen the store's.
            *self.form.lock() = None;
        }
        error
    }

    fn by_sdk(&self, key: &str) -> GetObjectFluentBuilder {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        get.set_request_payer(self.payer.clone())
    }
}

/// Takes what the SDK was about to send, and keeps it from sending it.
#[derive(Clone, Debug, Default)]
struct Sampler(Arc<Mutex<Option<Sample>>>);

#[derive(Debug)]
struct Sample {
    uri: String,
    kept: Vec<(HeaderName, HeaderValue)>,
    /// `Authorization` and `x-amz-date`, when it was signed.
    signed: Option<(String, String)>,
    components: RuntimeComponents,
    limits: ConfigBag,
}

impl Intercept for Sampler {
    fn name(&self) -> &'static str {
        "Sampler"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.0.lock() = Some(Sample::of(context.request(), components, config)?);
        Err("only a sample".into())
    }
}

impl Sample {
    fn of(
        request: &HttpRequest,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<Self, BoxError> {
        let header = |name: &str| request.headers().get(name);
        let mut kept = Vec::new();
        for name in KEPT {
            if let Some(value) = header(name.as_str()) {
                kept.push((name, HeaderValue::from_str(value)?));
            }
        }
        let owned = |(one, other): (&str, &str)| (one.to_owned(), other.to_owned());
        // All that the cache of credentials asks of the configuration: how long it may wait.
        let mut limits = Layer::new("limits");
        if let Some(retry) = config.load::<RetryConfig>() {
            limits.store_put(retry.clone());
        }
        if let Some(timeout) = config.load::<TimeoutConfig>() {
            limits.store_put(timeout.clone());
        }
        Ok(Self {
            uri: request.uri().to_owned(),
            kept,
            signed: header("authorization").zip(header("x-amz-date")).map(owned),
            components: components.clone(),
            limits: ConfigBag::of_layers([limits]),
        })
    }
}

/// What every GET of a bucket has in common.
struct Form {
    /// The URL up to the key.
    base: String,
    kept: Vec<(HeaderName, HeaderValue)>,
    signer: Option<Signer>,
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Form").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Form {
    fn new(sample: Sample) -> Result<Self, StoreError> {
        let Sample { uri, kept, signed, components, limits } = sample;
        let odd = |what: &str| protocol(format!("the SDK makes requests with {what}"));
        let path = uri.split('?').next().unwrap_or_default();
        let base = path.strip_suffix(SAMPLE).ok_or_else(|| odd("another key"))?.to_owned();
        let signer = match &signed {
            None => None,
            Some((authorization, date)) => {
                let scope = scope(authorization);
                let (region, service) = scope.ok_or_else(|| odd("an unknown signature"))?;
                Some(Signer {
                    resolver: components
                        .identity_resolver(AuthSchemeId::new("sigv4"))
                        .ok_or_else(|| odd("credentials from nowhere"))?,
                    region: region.to_owned(),
                    service: service.to_owned(),
                    settings: settings(),
                    seconds_ahead: seconds_ahead(date, now(&components))
                        .ok_or_else(|| odd("an unknown date"))?,
                    components,
                    limits,
                })
            }
        };
        Ok(Self { base, kept, signer })
    }

    async fn request(
        &self,
        version: &ObjectVersion,
        range: &Range<u64>,
    ) -> Result<Request<Bytes>, StoreError> {
        let unmade =
            |what: &dyn fmt::Display| protocol(format!("no request could be made: {what}"));
        let url = format!("{}{}", self.base, utf8_percent_encode(&version.key, KEY));
        let range = format!("bytes={}-{}", range.start, range.end - 1);
        let mut headers = HeaderMap::with_capacity(16);
        if let Some(signer) = &self.signer {
            let identity = signer.identity().await?;
            let kept = self
                .kept
                .iter()
                .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
            let ours = [("range", range.as_str()), ("if-match", version.etag.as_str())];
            let signature = signer.sign(&url, kept.chain(ours), &identity);
            for (name, value) in signature.map_err(|error| unmade(&error))? {
                headers.insert(name, value);
            }
        }
        headers.extend(self.kept.iter().cloned());
        headers.insert(RANGE, HeaderValue::try_from(range).map_err(|error| unmade(&error))?);
        let etag = HeaderValue::from_str(&version.etag).map_err(|error| unmade(&error))?;
        headers.insert(IF_MATCH, etag);
        let mut request = Request::get(url).body(Bytes::new()).map_err(|error| unmade(&error))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// What is needed to sign, and does not change from one request to the next.
struct Signer {
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    limits: ConfigBag,
    region: String,
    service: String,
    settings: SigningSettings,
    /// How far the store's clock is before ours, as far as the SDK knows.
    seconds_ahead: i64,
}

impl Signer {
    /// The credentials of the moment. The cache is the one of the SDK's other requests: it refreshes
    /// what is about to expire, once for all who ask.
    async fn identity(&self) -> Result<Identity, StoreError> {
        let cache = self.components.identity_cache();
        let cached =
            cache.resolve_cached_identity(self.resolver.clone(), &self.components, &self.limits);
        cached.await.map_err(|error| unsigned(error.as_ref()))
    }

    /// The headers that sign a GET of this URL with these headers.
    fn sign<'a>(
        &self,
        url: &'a str,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
        identity: &Identity,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, BoxError> {
        let now = now(&self.components);
        let distance = Duration::from_secs(self.seconds_ahead.unsigned_abs());
        let time = if self.seconds_ahead < 0 { now - distance } else { now + distance };
        let params = v4::SigningParams::builder()
            .identity(identity)
            .region(&self.region)
            .name(&self.service)
            .time(time)
            .settings(self.settings.clone())
            .build()?
            .into();
        let body = SignableBody::Precomputed(NO_BODY.to_owned());
        let signed = sign(SignableRequest::new("GET", url, headers, body)?, &params)?;
        let (headers, _in_the_query) = signed.into_parts().0.into_parts();
        let mut named = Vec::with_capacity(headers.len());
        for header in headers {
            let mut value = HeaderValue::from_str(header.value())?;
            value.set_sensitive(header.sensitive());
            named.push((HeaderName::from_static(header.name()), value));
        }
        Ok(named)
    }
}

/// As S3 wants it: the path as it is sent, and the hash of the body in a header.
fn settings() -> SigningSettings {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings
}

fn now(components: &RuntimeComponents) -> SystemTime {
    components.time_source().unwrap_or_default().now()
}

/// Region and service that a request was signed for.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let credential =
        authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?.split(',').next()?;
    // access key / day / region / service / aws4_request
    let mut parts = credential.rsplit('/');
    let (end, service, region) = (parts.next()?, parts.next()?, parts.next()?);
    (end == "aws4_request").then_some((region, service))
}

/// From our clock to the time that a request was signed with, such as `20130524T000000Z`.
fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    let part = |range: Range<usize>| date.get(range);
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let signed = DateTime::from_str(&text, DateTimeFormat::DateTime).ok()?;
    Some(signed.secs() - DateTime::from(now).secs())
}

/// Checks, before a byte of it is taken, that a response carries these bytes of this version.
fn check_response(
    version: &ObjectVersion,
    range: &Range<u64>,
    headers: &HeaderMap,
) -> Result<(), StoreError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let length = range.end - range.start;
    match text(CONTENT_RANGE) {
        Some(text) => {
            let want = format!("bytes {}-{}/{}", range.start, range.end - 1, version.size_bytes);
            if text != want {
                return Err(protocol(format!("asked for {want:?}, got {text:?}")));
            }
        }
        // 200: the whole object, which is right only when all of it was asked for.
        None if length == version.size_bytes => {}
        None => return Err(protocol(format!("asked for bytes {range:?}, got the whole object"))),
    }
    let got = text(CONTENT_LENGTH);
    if got.and_then(|length| length.parse().ok()) != Some(length) {
        return Err(protocol(format!("asked for {length} bytes, got a body of {got:?}")));
    }
    match text(ETAG) {
        Some(etag) if quoted(etag) == quoted(&version.etag) => Ok(()),
        // `If-Match` should have made this a 412; whoever ignores it sends another version.
        Some(_) => Err(StoreError::Changed),
        None => Err(protocol("a body without an ETag")),
    }
}

#[cfg(test)]
mod tests;
