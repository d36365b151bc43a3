//! Responses: checked before their body is received, or turned into a [`StoreError`].

use std::ops::Range;
use std::time::{Duration, SystemTime};

use ::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED, LOCATION, RETRY_AFTER,
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::clock::{http_date, system_now};
use super::facts::{self, Facts};
use super::redirect::is_endpoint_of_aws;
use super::{times, xml};
use crate::store::wire::CallError;
use crate::store::{ObjectDetails, ObjectVersion, StoreError};

/// The header that names a bucket's region, in refusals too.
pub(super) const REGION: &str = "x-amz-bucket-region";
const METADATA: &str = "x-amz-meta-";

/// The subject of a request: a 404 without an S3 error code means "no such key" only for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Bucket,
    Key,
}

/// Checks, before a byte of it is taken, that a response carries these bytes of this version.
pub(super) fn check_range(
    version: &ObjectVersion,
    range: &Range<u64>,
    headers: &HeaderMap,
) -> Result<(), StoreError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let wrong = |what: String| Err(StoreError::nonsense(what));
    let etags = headers.get_all(ETAG).iter();
    match agreed(etags.map(|etag| etag.to_str().ok().and_then(facts::etag))) {
        Some(etag) if facts::etag(&version.etag).as_ref() == Some(&etag) => {}
        // `If-Match` should have made this a 412; a store that ignores it sends another version.
        Some(_) => return Err(StoreError::Changed),
        None => return wrong("a body without an ETag".to_owned()),
    }
    let length = range.end - range.start;
    match text(CONTENT_RANGE) {
        Some(text) => {
            let want = format!("bytes {}-{}/{}", range.start, range.end - 1, version.size_bytes);
            if text != want {
                return wrong(format!("asked for {want:?}, got {text:?}"));
            }
        }
        // 200: the whole object.
        None if length == version.size_bytes => {}
        None => return wrong(format!("asked for bytes {range:?}, got the whole object")),
    }
    // Objects may be stored encoded, and are then sent as they are; but not with another length.
    let encoded = encoding(headers).map(|name| format!(", encoded ({name})")).unwrap_or_default();
    match text(CONTENT_LENGTH) {
        Some(got) if got.parse() == Ok(length) => {}
        // The end of the body will tell it.
        None if encoded.is_empty() => {}
        got => {
            let got = got.map_or("an unknown number".to_owned(), |got| format!("{got:?}"));
            return wrong(format!("asked for {length} bytes, got a body of {got}{encoded}"));
        }
    }
    Ok(())
}

/// The encoding of a body that is not as it is stored, or was stored so.
pub(super) fn encoding(headers: &HeaderMap) -> Option<&str> {
    let name = headers.get(CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    (!name.is_empty() && !name.eq_ignore_ascii_case("identity")).then_some(name)
}

/// What a HEAD tells. A header that cannot be read is as good as none.
pub(super) fn head(headers: &HeaderMap) -> (Facts, ObjectDetails) {
    let texts = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let text = |name: &str| texts(name).next();
    let own = |name: &str| headers.get(name).map(readable);
    let class = text("x-amz-storage-class").unwrap_or("STANDARD");
    let is_cold =
        matches!(class, "GLACIER" | "DEEP_ARCHIVE") || text("x-amz-archive-status").is_some();
    // `ongoing-request="false", expiry-date="…"` once a copy can be read.
    let is_restored =
        text("x-amz-restore").is_some_and(|text| text.contains(r#"ongoing-request="false""#));
    let facts = Facts {
        size_bytes: agreed(texts(CONTENT_LENGTH.as_str()).map(facts::size_bytes)),
        etag: agreed(texts(ETAG.as_str()).map(facts::etag)),
        last_modified: texts(LAST_MODIFIED.as_str()).find_map(times::read),
        archived: is_cold && !is_restored,
    };
    let metadata = |name: &HeaderName| {
        let values: Vec<_> = headers.get_all(name).iter().map(readable).collect();
        Some((name.as_str().strip_prefix(METADATA)?.to_owned(), values.join(",")))
    };
    let details = ObjectDetails {
        storage_class: class.to_owned(),
        version_id: own("x-amz-version-id"),
        content_type: own(CONTENT_TYPE.as_str()),
        metadata: headers.keys().filter_map(metadata).collect(),
    };
    (facts, details)
}

/// What a header says, if it says the same each time.
fn agreed<T: PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()?;
    if values.all(|other| other == first) { first } else { None }
}

/// A value with the bytes that are not UTF-8 percent-encoded.
fn readable(value: &HeaderValue) -> String {
    let mut text = String::new();
    for chunk in value.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(percent_encode(chunk.invalid(), NON_ALPHANUMERIC));
    }
    text
}

pub(super) fn no_response(call: &CallError) -> StoreError {
    match call {
        CallError::Unreachable(cause) => StoreError::Unreachable(cause.clone()),
        CallError::Broken(_) => StoreError::Unavailable(call.to_string()),
        CallError::NotHttp(_) => StoreError::nonsense(call.to_string()),
        CallError::Silent(_) => StoreError::TimedOut(call.to_string()),
    }
}

pub(super) struct Refusal {
    pub(super) status: u16,
    /// Empty without a body, as after a HEAD.
    code: String,
    message: String,
    request_id: Option<String>,
    /// The bucket's, if it is named.
    region: Option<String>,
    retry_after: Option<Duration>,
    /// Where it should be asked instead.
    location: Option<String>,
    /// The store's time.
    pub(super) date: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let (code, message) = xml::error(body).unwrap_or_default();
        let request_id = text("x-amzn-requestid").or_else(|| text("x-amz-request-id"));
        let region = text(REGION).map(str::to_owned).or_else(|| region_of(body));
        let retry_after =
            text(RETRY_AFTER.as_str()).and_then(|header| come_back(header, text(DATE.as_str())));
        let own = |name: &str| text(name).map(str::to_owned);
        let request_id = request_id.map(str::to_owned);
        let (location, date) = (own(LOCATION.as_str()), own(DATE.as_str()));
        Self { status, code, message, request_id, region, retry_after, location, date }
    }

    /// The place to which it redirects, unless that is another region's endpoint, where requests
    /// must be signed for that region.
    pub(super) fn leads_to(&self, region: &str) -> Option<&str> {
        let is_here = self.region.as_ref().is_none_or(|told| told == region);
        let is_redirect = matches!(self.status, 301 | 302 | 303 | 307 | 308)
            && self.code != "PermanentRedirect"
            && is_here
            && !self.leads_to_aws();
        self.location.as_deref().filter(|location| is_redirect && !location.is_empty())
    }

    /// AWS redirects to the endpoint of the bucket's region, and has not always named that.
    fn leads_to_aws(&self) -> bool {
        self.location.as_deref().is_some_and(is_endpoint_of_aws)
    }

    /// A refusal of a HEAD does not say why: an expired token (400) and access denied (403) look
    /// alike then. Not when it names a region other than this one, which is reason enough.
    pub(super) fn without_reason(&self, region: &str) -> Option<String> {
        let is_mute =
            self.code.is_empty() && self.region.as_ref().is_none_or(|told| told == region);
        let may_be_signature = matches!(self.status, 400 | 401 | 403);
        (is_mute && may_be_signature).then(|| format!("{}, without a reason", self.status))
    }

    /// Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>. The code says
    /// more than the status; stores that send a bare status are understood by that.
    pub(super) fn meaning(self, about: About) -> StoreError {
        let retry_after = self.retry_after;
        let error = self.meaning_now(about);
        if retry_after.is_some() && error.is_transient() {
            return StoreError::Throttled { retry_after };
        }
        error
    }

    fn meaning_now(self, about: About) -> StoreError {
        match self.code.as_str() {
            "AuthorizationHeaderMalformed" if self.region.is_none() => {
                return StoreError::Denied(self.to_string());
            }
            "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "Redirect" => return StoreError::WrongRegion(self.region),
            "NoSuchBucket" => return StoreError::NoSuchBucket,
            "InvalidObjectState" => return StoreError::Archived,
            "SlowDown"
            | "ServiceUnavailable"
            | "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "TooManyRequestsException"
            | "BandwidthLimitExceeded" => return StoreError::Throttled { retry_after: None },
            "RequestTimeout" => return StoreError::TimedOut(self.to_string()),
            "RequestTimeTooSkewed" => {
                let cause = format!("{self}; is this machine's clock right?");
                return StoreError::SignatureRefused(cause);
            }
            "ExpiredToken"
            | "ExpiredTokenException"
            | "RequestExpired"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch" => return StoreError::SignatureRefused(self.to_string()),
            "AccessDenied" => return StoreError::Denied(self.to_string()),
            // Keys in KMS that are disabled or deleted, among others.
            code if code.starts_with("KMS.") => return StoreError::Denied(self.to_string()),
            _ if self.status == 400 && self.wants_a_key() => {
                return StoreError::Denied(self.to_string());
            }
            _ => {}
        }
        match self.status {
            // Those that name a place to go to are followed.
            301 | 302 | 303 | 307 | 308 => StoreError::WrongRegion(self.region),
            // A HEAD has no body, so a wrong region and a stale token look alike.
            400 if self.code.is_empty() && self.region.is_some() => {
                StoreError::WrongRegion(self.region)
            }
            401 | 403 => StoreError::Denied(self.to_string()),
            404 | 410 if about == About::Key => StoreError::NotFound,
            408 => StoreError::TimedOut(self.to_string()),
            412 => StoreError::Changed,
            429 | 503 => StoreError::Throttled { retry_after: None },
            500 | 502 | 504 => StoreError::Unavailable(self.to_string()),
            // Among them 416: `If-Match` held, and yet the object is shorter than that version.
            _ => StoreError::nonsense(self.to_string()),
        }
    }
}

impl Refusal {
    /// The object is encrypted with a key that the client must send (SSE-C). The code is that of
    /// any invalid request.
    fn wants_a_key(&self) -> bool {
        let message = self.message.to_ascii_lowercase().replace('-', " ");
        message.contains("server side encryption")
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message.trim_end_matches('.'))?;
        }
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

/// `Retry-After`: seconds, as stores write it, or a date, as proxies may (RFC 9110, 10.2.3). A date
/// is compared with the response's own, or with our clock if there is none.
fn come_back(header: &str, date: Option<&str>) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text: &str| SystemTime::try_from(http_date(text)?).ok();
    let now = date.and_then(time).unwrap_or_else(system_now);
    Some(time(header)?.duration_since(now).unwrap_or_default())
}

/// `<Region>` of an error document, also of one that is not whole.
fn region_of(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Region>")?;
    let (region, _) = rest.split_once("</Region>")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!region.is_empty() && region.chars().all(letters)).then(|| region.to_owned())
}

#[cfg(test)]
mod tests;
