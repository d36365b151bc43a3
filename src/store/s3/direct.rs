//! Requests past the SDK's orchestrator, which costs ten times what the rest of a small one does.
//!
//! The SDK says once what a request for this bucket looks like ([`Form`]): it makes a GET, signs it,
//! and is stopped before it sends it. What it resolved on the way (endpoint, style of address,
//! region, name of the service, where credentials come from) is then filled with what is asked for,
//! and signed anew, with credentials from the SDK's own cache. A refusal is handed back to the SDK as
//! the answer to the same request, so that there is one reader of refusals.

use std::sync::Arc;

use ::http::Response;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, Layer, RuntimeComponents};
use aws_sdk_s3::types::RequestPayer;
use aws_smithy_runtime_api::box_error::BoxError;
use parking_lot::Mutex;

use super::errors::{About, call_failure, failure};
use super::form::{Blank, Form, Sample};
use super::http::HEAD_TIMEOUT;
use super::protocol;
use crate::store::StoreError;
use crate::store::wire::{Body, Wire};

/// The key of the request that the SDK makes and does not send.
const SAMPLE: &str = "k";

/// A bucket, and how to ask for what is in it.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) client: Client,
    pub(super) wire: Arc<Wire>,
    pub(super) bucket: String,
    pub(super) payer: Option<RequestPayer>,
    form: Mutex<Option<Arc<Form>>>,
}

impl Direct {
    pub(super) fn new(
        client: Client,
        wire: Arc<Wire>,
        bucket: String,
        payer: Option<RequestPayer>,
    ) -> Self {
        Self { client, wire, bucket, payer, form: Mutex::default() }
    }

    /// One request; the head of its response, whatever that says.
    pub(super) async fn send(&self, blank: &Blank<'_>) -> Result<Response<Body>, StoreError> {
        let request = self.form().await?.fill(blank).await?;
        let response = self.wire.send(&request, HEAD_TIMEOUT).await;
        response.map_err(|error| call_failure(&error))
    }

    /// What requests look like; the SDK is asked when nobody has asked it yet.
    pub(super) async fn form(&self) -> Result<Arc<Form>, StoreError> {
        let known = self.form.lock().clone();
        if let Some(form) = known {
            return Ok(form);
        }
        let sampler = Sampler::default();
        let sent = self.get_by_sdk(SAMPLE).customize().interceptor(sampler.clone()).send().await;
        // Taken out, for what was sampled knows the sampler.
        let sample = sampler.0.lock().take();
        let form = match (sample, sent) {
            (Some(sample), _) => Arc::new(Form::new(sample)?),
            (None, Err(error)) => return Err(failure(About::Key, &error)),
            (None, Ok(_)) => return Err(protocol("a request went past its interceptor")),
        };
        *self.form.lock() = Some(Arc::clone(&form));
        Ok(form)
    }

    /// Notes what the SDK has made of a refusal.
    pub(super) fn refused(&self, failure: &StoreError) {
        if matches!(failure, StoreError::SignatureRefused(_)) {
            // The reason may be a clock, and the SDK has just seen the store's.
            *self.form.lock() = None;
        }
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

#[cfg(test)]
pub(super) mod tests;
