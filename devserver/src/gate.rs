//! Before s3s: counting, delays, throttling, the wrong-region answers; behind it:
//! answers in which S3 differs from s3s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_timer::Delay;
use http::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse, s3_error};

use crate::ENDPOINT_REGION;
use crate::bucket::Buckets;
use crate::counts::{Counters, Kind, LoggedRequest};
use crate::service::Service;
use crate::sessions::{SESSION_HEADER, Sessions, is_directory_bucket};
use crate::settings::Settings;
use crate::target::{LocalhostDomains, Target};

const BUCKET_REGION: &str = "x-amz-bucket-region";
const REQUEST_ID: &str = "x-amz-request-id";

pub(crate) struct Gate {
    s3: S3Service,
    buckets: Arc<Buckets>,
    counters: Arc<Counters>,
    sessions: Arc<Sessions>,
    settings: Arc<Settings>,
    requests: AtomicU64,
}

impl Gate {
    pub(crate) fn new(service: Service, settings: Arc<Settings>) -> Self {
        let Service { buckets, counters, sessions } = service.clone();
        let mut s3 = S3ServiceBuilder::new(service.clone());
        s3.set_auth(service.clone());
        s3.set_access(service);
        s3.set_host(LocalhostDomains);
        let requests = AtomicU64::new(1);
        Self { s3: s3.build(), buckets, counters, sessions, settings, requests }
    }

    pub(crate) async fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<HttpResponse, HttpError> {
        let id = format!("{:016X}", self.requests.fetch_add(1, Relaxed));
        let logged = LoggedRequest::of(&request);
        let (kind, bucket) = (logged.kind, logged.bucket.clone());
        let is_head = request.method() == Method::HEAD;
        self.counters.request(logged);

        let latency = match kind {
            Kind::List => self.settings.list_latency(),
            Kind::Head | Kind::Get => self.settings.first_byte_latency(),
            Kind::Other if request.method() == Method::PUT => self.settings.first_byte_latency(),
            Kind::Other => std::time::Duration::ZERO,
        };
        if !latency.is_zero() {
            // Tokio's timer counts in milliseconds and rounds up, which is a tenth of a latency.
            Delay::new(latency).await;
        }

        request.headers_mut().remove(SESSION_HEADER);
        let is_in_session =
            if is_directory_bucket(&bucket) { self.sessions.look_at(&mut request) } else { Ok(()) };
        let admitted = if self.settings.admits_request() {
            is_in_session
        } else {
            Err(s3_error!(SlowDown, "Please reduce your request rate."))
        };
        let mut response = if let Err(refusal) = admitted {
            refusal.to_http_response().map_err(|error| HttpError::new(Box::new(error)))?
        } else if let Some(refusal) = self.wrong_region(&request, &bucket) {
            refusal
        } else {
            self.s3.call(request.map(Body::from)).await?
        };

        if is_head && response.headers().contains_key(CONTENT_RANGE) {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let silent = is_head && response.status().as_u16() >= 300;
        if silent || response.status() == StatusCode::NOT_MODIFIED {
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(CONTENT_TYPE);
        }
        let id = HeaderValue::try_from(id).expect("hexadecimal digits");
        response.headers_mut().insert(REQUEST_ID, id);
        Ok(response)
    }

    /// The refusal, if the bucket is in another region than the request is for.
    fn wrong_region<B>(&self, request: &Request<B>, bucket: &str) -> Option<HttpResponse> {
        let region = self.buckets.get(bucket)?.read().region.clone()?;
        let asked = signed_region(request);
        if asked.as_deref().unwrap_or(ENDPOINT_REGION) == region {
            return None;
        }
        let (status, body) = match asked {
            Some(asked) if request.method() != Method::HEAD => (
                StatusCode::BAD_REQUEST,
                format!(
                    "<Code>AuthorizationHeaderMalformed</Code><Message>The authorization header \
                     is malformed; the region '{asked}' is wrong; expecting '{region}'</Message>\
                     <Region>{region}</Region>"
                ),
            ),
            _ => (
                StatusCode::MOVED_PERMANENTLY,
                format!(
                    "<Code>PermanentRedirect</Code><Message>The bucket you are attempting to \
                     access must be addressed using the specified endpoint. Please send all \
                     future requests to this endpoint.</Message><Bucket>{bucket}</Bucket>\
                     <Endpoint>s3.{region}.amazonaws.com</Endpoint>"
                ),
            ),
        };
        let declared = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
        let body = format!("{declared}\n<Error>{body}</Error>");
        let response = Response::builder()
            .status(status)
            .header(CONTENT_TYPE, "application/xml")
            .header(BUCKET_REGION, &region)
            .body(Body::from(body));
        Some(response.expect("regions are set by the test and fit a header"))
    }
}

pub(crate) fn kind(method: &Method, uri: &Uri, target: &Target) -> Kind {
    let has = |name: &str| query(uri, name).is_some();
    match *method {
        Method::GET if target.is_object() => Kind::Get,
        Method::HEAD if target.is_object() => Kind::Head,
        Method::GET if !target.bucket.is_empty() && !has("location") && !has("session") => {
            Kind::List
        }
        _ => Kind::Other,
    }
}

impl LoggedRequest {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let target = Target::of(request.uri(), request.headers());
        let kind = kind(request.method(), request.uri(), &target);
        let header = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let of_list = |name| query(request.uri(), name).filter(|_| kind == Kind::List);
        Self {
            kind,
            key: of_list("prefix").unwrap_or(target.key),
            bucket: target.bucket,
            delimiter: of_list("delimiter").unwrap_or_default(),
            range: header.map(str::to_owned),
        }
    }
}

/// The region that the signature in the header or in the query is for.
fn signed_region<B>(request: &Request<B>) -> Option<String> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let scope = match header {
        Some(header) => header.split_once("Credential=")?.1.split([',', ' ']).next()?.to_owned(),
        None => query(request.uri(), "X-Amz-Credential")?,
    };
    // access key / day / region / service / aws4_request
    scope.rsplit('/').nth(2).map(str::to_owned)
}

/// A decoded parameter; empty if it has no value.
pub(crate) fn query(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let spaced = value.replace('+', " ");
        (key == name).then(|| percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
    })
}
