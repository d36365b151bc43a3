//! Responses: checked before their body is received, or turned into a [`StoreError`].

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
    RETRY_AFTER,
};
use aws_smithy_types::DateTime;

use super::clock::{http_date, system_now};
use super::xml;
use crate::store::wire::CallError;
use crate::store::{ObjectDetails, ObjectHead, ObjectMeta, ObjectVersion, StoreError};

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
    let got = text(CONTENT_LENGTH);
    if got.and_then(|length| length.parse().ok()) != Some(length) {
        return wrong(format!("asked for {length} bytes, got a body of {got:?}"));
    }
    match text(ETAG) {
        Some(etag) if quoted(etag) == quoted(&version.etag) => Ok(()),
        // `If-Match` should have made this a 412; a store that ignores it sends another version.
        Some(_) => Err(StoreError::Changed),
        None => Err(StoreError::nonsense("a body without an ETag")),
    }
}

pub(super) fn head(key: &str, headers: &HeaderMap) -> Result<ObjectHead, StoreError> {
    for (name, value) in headers {
        if std::str::from_utf8(value.as_bytes()).is_err() {
            return Err(StoreError::nonsense(format!("a header {name} that is not UTF-8")));
        }
    }
    let text =
        |name: &str| Some(std::str::from_utf8(headers.get(name)?.as_bytes()).expect("checked"));
    let owned = |name: &str| text(name).map(str::to_owned);
    let class = text("x-amz-storage-class").unwrap_or("STANDARD");
    let is_cold =
        matches!(class, "GLACIER" | "DEEP_ARCHIVE") || text("x-amz-archive-status").is_some();
    // `ongoing-request="false", expiry-date="…"` once a copy can be read.
    let is_restored =
        text("x-amz-restore").is_some_and(|text| text.contains(r#"ongoing-request="false""#));
    let meta = meta(
        key.to_owned(),
        text(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok()),
        text(ETAG.as_str()),
        text(LAST_MODIFIED.as_str()).and_then(http_date).as_ref(),
        is_cold && !is_restored,
    )?;
    let own = |name: &HeaderName| {
        Some((name.as_str().strip_prefix(METADATA)?.to_owned(), owned(name.as_str())?))
    };
    let details = ObjectDetails {
        storage_class: class.to_owned(),
        version_id: owned("x-amz-version-id"),
        content_type: owned(CONTENT_TYPE.as_str()),
        metadata: headers.keys().filter_map(own).collect(),
    };
    Ok(ObjectHead { meta, details })
}

pub(super) fn meta(
    key: String,
    size: Option<i64>,
    etag: Option<&str>,
    modified: Option<&DateTime>,
    archived: bool,
) -> Result<ObjectMeta, StoreError> {
    let missing = |what: &str| StoreError::nonsense(format!("{key:?} without {what}"));
    let size = size.and_then(|size| u64::try_from(size).ok());
    let size_bytes = size.ok_or_else(|| missing("a size"))?;
    let etag = etag.filter(|etag| !etag.is_empty()).map(quoted);
    let etag = etag.ok_or_else(|| missing("an ETag"))?;
    let modified = modified.and_then(whole_seconds);
    let last_modified = modified.ok_or_else(|| missing("a modification time"))?;
    let version = ObjectVersion { key, etag, size_bytes };
    Ok(ObjectMeta { version, last_modified, archived })
}

/// Listings have milliseconds and HEAD has not: to be one version, both count in seconds.
pub(super) fn whole_seconds(time: &DateTime) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(time.secs()).ok()?))
}

/// An `ETag` as a strong one in quotes. Some stores list it without them, and proxies that compress
/// mark it weak (`W/`), which no `If-Match` would match.
pub(super) fn quoted(etag: &str) -> String {
    let bare = etag.trim();
    let bare = bare.strip_prefix("W/").unwrap_or(bare).trim_matches('"');
    ["\"", bare, "\""].concat()
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
    status: u16,
    /// Empty without a body, as after a HEAD.
    code: String,
    message: String,
    request_id: Option<String>,
    /// The bucket's, if it is named.
    region: Option<String>,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let (code, message) = xml::error(body).unwrap_or_default();
        let request_id = text("x-amzn-requestid").or_else(|| text("x-amz-request-id"));
        let region = text(REGION).map(str::to_owned).or_else(|| region_of(body));
        let retry_after =
            text(RETRY_AFTER.as_str()).and_then(|header| come_back(header, text(DATE.as_str())));
        let request_id = request_id.map(str::to_owned);
        Self { status, code, message, request_id, region, retry_after }
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
            _ => {}
        }
        match self.status {
            301 | 302 | 307 | 308 => StoreError::WrongRegion(self.region),
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
