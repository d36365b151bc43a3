//! GETs past the SDK's orchestrator, which costs ten times what the rest of a small one does.
//!
//! The SDK says once what a GET of this bucket looks like ([`Form`]): it makes one, signs it, and
//! is stopped before it sends it. What it resolved on the way (endpoint, style of address, region,
//! name of the service, where credentials come from) is then filled with key, range and `ETag`, and
//! signed anew, with credentials from the SDK's own cache. A refusal is handed back to the SDK as
//! the answer to the same request, so that there is one reader of refusals.

use std::ops::Range;
use std::sync::Arc;

use ::http::Response;
use ::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, Layer, RuntimeComponents};
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::types::RequestPayer;
use aws_smithy_runtime_api::box_error::BoxError;
use bytes::BufMut;
use parking_lot::Mutex;

use super::errors::{About, call_failure, failure};
use super::form::{Form, Sample};
use super::http::{Answered, HEAD_TIMEOUT};
use super::{protocol, quoted};
use crate::store::wire::{Body, Wire};
use crate::store::{ObjectVersion, StoreError};

/// The key of the request that the SDK makes and does not send.
const SAMPLE: &str = "k";

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
        let request = self.form().await?.fill(version, range).await?;
        let response = self.wire.send(&request, HEAD_TIMEOUT).await;
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
        if matches!(error, StoreError::SignatureRefused(_)) {
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
        let owned = |(one, other): (&str, &str)| (one.to_owned(), other.to_owned());
        let path = request.uri().split('?').next().and_then(|path| path.strip_suffix(SAMPLE));
        let mut limits = Layer::new("limits");
        if let Some(retry) = config.load::<RetryConfig>() {
            limits.store_put(retry.clone());
        }
        if let Some(timeout) = config.load::<TimeoutConfig>() {
            limits.store_put(timeout.clone());
        }
        Ok(Self {
            base: path.ok_or("a URL of another key")?.to_owned(),
            user_agent: header("user-agent").unwrap_or("fasts3-mount").to_owned(),
            payer: header("x-amz-request-payer").map(str::to_owned),
            signed: header("authorization").zip(header("x-amz-date")).map(owned),
            components: components.clone(),
            limits: ConfigBag::of_layers([limits]),
        })
    }
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
