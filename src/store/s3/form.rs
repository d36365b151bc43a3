//! What every GET of a bucket and of what is in it has in common, and what is filled in: key, query,
//! range, `ETag`, signature.
//!
//! The signature is AWS's version 4 of it, over all that means anything. `aws-sigv4` knows it for
//! every request there is, and spends on that twice what all else of a small GET costs; here are the
//! two requests that are sent thousands of times a second, with the key of the day at hand.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::Uri;
use aws_sdk_s3::config::{ConfigBag, Credentials, ResolveCachedIdentity as _, RuntimeComponents};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_runtime_api::client::auth::AuthSchemeId;
use aws_smithy_runtime_api::client::identity::{Identity, SharedIdentityResolver};
use aws_smithy_runtime_api::client::runtime_components::GetIdentityResolver as _;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::errors::unsigned;
use super::protocol;
use crate::store::StoreError;
use crate::store::wire::{Message, Origin};

/// What is written as it is: the unreserved characters of RFC 3986, and slashes. The signature is
/// over the same text, and nothing is normalised.
const KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a query, where slashes are not.
const QUERY: &AsciiSet = &KEY.add(b'/');
/// SHA-256 of a body without a byte.
const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A GET as the SDK was about to send it.
#[derive(Debug)]
pub(super) struct Sample {
    /// The URL up to the key.
    pub(super) base: String,
    pub(super) user_agent: String,
    pub(super) payer: Option<String>,
    /// `Authorization` and `x-amz-date`, when it was signed.
    pub(super) signed: Option<(String, String)>,
    pub(super) components: RuntimeComponents,
    /// Of the configuration what the cache of credentials asks for: how long it may wait.
    pub(super) limits: ConfigBag,
}

/// What to fill in.
pub(super) struct Blank<'a> {
    /// Of an object; empty for the bucket.
    pub(super) key: &'a str,
    /// As [`query`] writes it; empty for none.
    pub(super) query: &'a str,
    /// Names and values, ascending, between `host` and `x-amz-content-sha256`.
    pub(super) headers: &'a [(&'static str, &'a str)],
}

/// A query as it is sent and signed: encoded, its names ascending as they are given.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    debug_assert!(pairs.is_sorted_by(|(a, _), (b, _)| a < b), "{pairs:?}");
    let mut query = String::with_capacity(256);
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        query.extend([*name, "="]);
        query.extend(utf8_percent_encode(value, QUERY));
    }
    query
}

pub(super) struct Form {
    origin: Arc<Origin>,
    /// The path up to the key.
    path: String,
    user_agent: String,
    payer: Option<String>,
    signer: Option<Signer>,
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Form").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Form {
    pub(super) fn new(sample: Sample) -> Result<Self, StoreError> {
        let Sample { base, user_agent, payer, signed, components, limits } = sample;
        let odd = |what: &str| protocol(format!("the SDK makes requests with {what}"));
        let uri: Uri = base.parse().map_err(|_| odd("an unknown URL"))?;
        let origin = Origin::of(&uri).map_err(|cause| odd(&cause))?;
        let path = uri.path().to_owned();
        let signer = match &signed {
            None => None,
            Some((authorization, date)) => {
                let (region, service) =
                    scope(authorization).ok_or_else(|| odd("an unknown signature"))?;
                let ahead = seconds_ahead(date, now(&components));
                Some(Signer {
                    resolver: components
                        .identity_resolver(AuthSchemeId::new("sigv4"))
                        .ok_or_else(|| odd("credentials from nowhere"))?,
                    region: region.to_owned(),
                    service: service.to_owned(),
                    seconds_ahead: ahead.ok_or_else(|| odd("an unknown date"))?,
                    key_of_the_day: Mutex::default(),
                    components,
                    limits,
                })
            }
        };
        Ok(Self { origin: Arc::new(origin), path, user_agent, payer, signer })
    }

    /// The GET of what is asked for.
    pub(super) async fn fill(&self, blank: &Blank<'_>) -> Result<Message, StoreError> {
        let path = format!("{}{}", self.path, utf8_percent_encode(blank.key, KEY));
        let (date, identity);
        // Ascending by name, as they are signed.
        let mut headers = Headers::default();
        headers.add("host", self.origin.authority());
        headers.0.extend(blank.headers);
        let authorization = match &self.signer {
            None => {
                headers.extend("x-amz-request-payer", self.payer.as_deref());
                None
            }
            Some(signer) => {
                identity = signer.identity().await?;
                let credentials = identity.data::<Credentials>();
                let credentials = credentials.ok_or_else(|| protocol("an unknown identity"))?;
                let time = signer.time();
                date = dated(time);
                headers.add("x-amz-content-sha256", NO_BODY);
                headers.add("x-amz-date", &date);
                headers.extend("x-amz-request-payer", self.payer.as_deref());
                headers.extend("x-amz-security-token", credentials.session_token());
                Some(signer.authorization(
                    (&path, blank.query),
                    &headers,
                    (time, &date),
                    credentials,
                ))
            }
        };
        headers.extend("authorization", authorization.as_deref());
        headers.add("user-agent", &self.user_agent);
        // What ends a line would begin a header of its own.
        let visible = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if let Some((name, _)) = headers.0.iter().find(|(_, value)| !visible(value)) {
            return Err(protocol(format!("no request could be made: an odd {name}")));
        }
        let mut text = String::with_capacity(1024);
        let mark = if blank.query.is_empty() { "" } else { "?" };
        text.extend(["GET ", &path, mark, blank.query, " HTTP/1.1\r\n"]);
        headers.write(&mut text, ": ", "\r\n");
        text.push_str("\r\n");
        Ok(Message::get(&self.origin, text))
    }
}

/// Names and values.
#[derive(Default)]
struct Headers<'a>(Vec<(&'static str, &'a str)>);

impl<'a> Headers<'a> {
    fn add(&mut self, name: &'static str, value: &'a str) {
        self.0.push((name, value));
    }

    fn extend(&mut self, name: &'static str, value: Option<&'a str>) {
        self.0.extend(value.map(|value| (name, value)));
    }

    fn write(&self, text: &mut String, between: &str, end: &str) {
        for (name, value) in &self.0 {
            text.extend([name, between, value, end]);
        }
    }
}

/// What is needed to sign, and seldom changes from one request to the next.
struct Signer {
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    limits: ConfigBag,
    region: String,
    service: String,
    /// How far the store's clock is before ours, as far as the SDK knows.
    seconds_ahead: i64,
    key_of_the_day: Mutex<Option<Arc<KeyOfTheDay>>>,
}

/// Four hashes that are the same all day.
struct KeyOfTheDay {
    day: String,
    secret: String,
    key: Vec<u8>,
}

impl Signer {
    /// The credentials of the moment. The cache is the one of the SDK's other requests: it renews
    /// what is about to expire, once for all who ask.
    async fn identity(&self) -> Result<Identity, StoreError> {
        let cache = self.components.identity_cache();
        let cached =
            cache.resolve_cached_identity(self.resolver.clone(), &self.components, &self.limits);
        cached.await.map_err(|error| unsigned(error.as_ref()))
    }

    /// The time at the store.
    fn time(&self) -> SystemTime {
        let distance = Duration::from_secs(self.seconds_ahead.unsigned_abs());
        let now = now(&self.components);
        if self.seconds_ahead < 0 { now - distance } else { now + distance }
    }

    /// Signs a GET of this path and query with these headers, which ascend by name.
    fn authorization(
        &self,
        (path, query): (&str, &str),
        headers: &Headers<'_>,
        (time, date): (SystemTime, &str),
        credentials: &Credentials,
    ) -> String {
        let names: Vec<&str> = headers.0.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut request = String::with_capacity(1024);
        request.extend(["GET\n", path, "\n", query, "\n"]);
        headers.write(&mut request, ":", "\n");
        request.extend(["\n", &names, "\n", NO_BODY]);

        let day = &date[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let hash = hex(&Sha256::digest(request));
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{hash}");
        let key = self.key(day, time, credentials.secret_access_key());
        let signature = calculate_signature(&key.key, to_sign.as_bytes());
        let id = credentials.access_key_id();
        format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
    }

    fn key(&self, day: &str, time: SystemTime, secret: &str) -> Arc<KeyOfTheDay> {
        let mut kept = self.key_of_the_day.lock();
        if let Some(key) = kept.as_ref().filter(|key| key.day == day && key.secret == secret) {
            return Arc::clone(key);
        }
        let key = generate_signing_key(secret, time, &self.region, &self.service);
        let (day, secret, key) = (day.to_owned(), secret.to_owned(), key.as_ref().to_vec());
        Arc::clone(kept.insert(Arc::new(KeyOfTheDay { day, secret, key })))
    }
}

/// As a signature says it: `20130524T000000Z`.
fn dated(time: SystemTime) -> String {
    let date = DateTime::from_secs(DateTime::from(time).secs());
    let text = date.fmt(DateTimeFormat::DateTime).expect("a year of four digits");
    text.replace(['-', ':'], "")
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn now(components: &RuntimeComponents) -> SystemTime {
    components.time_source().unwrap_or_default().now()
}

/// Region and service that a request was signed for.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let signed = authorization.strip_prefix(ALGORITHM)?.strip_prefix(" Credential=")?;
    // access key / day / region / service / aws4_request
    let mut parts = signed.split(',').next()?.rsplit('/');
    let (end, service, region) = (parts.next()?, parts.next()?, parts.next()?);
    (end == "aws4_request").then_some((region, service))
}

/// From our clock to the time that a request was signed with, such as `20130524T000000Z`.
pub(super) fn seconds_ahead(date: &str, now: SystemTime) -> Option<i64> {
    let part = |range: Range<usize>| date.get(range);
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let signed = DateTime::from_str(&text, DateTimeFormat::DateTime).ok()?;
    Some(signed.secs() - DateTime::from(now).secs())
}

#[cfg(test)]
mod tests;
