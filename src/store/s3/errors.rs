//! What the SDK reports becomes a [`StoreError`], in one place.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat as Format};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::http::{causes, innermost};
use crate::store::StoreError;
use crate::store::wire::CallError;

/// What was asked: a 404 without an S3 error code means "no such key" only for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Bucket,
    Key,
}

/// What a failed request means.
pub(super) fn failure<E>(about: About, error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(credentials) = find::<CredentialsError>(error) {
        return credentials_failure(credentials);
    }
    if let Some(call) = find::<CallError>(error) {
        return call_failure(call);
    }
    if let Some(response) = error.raw_response() {
        let answer = Answer {
            status: response.status().as_u16(),
            code: error.code().unwrap_or_default(),
            message: error.message().unwrap_or_default(),
            request_id: error.request_id(),
            region: response
                .headers()
                .get("x-amz-bucket-region")
                .map(str::to_owned)
                .or_else(|| region_of(response.body().bytes()?)),
            retry_after: response
                .headers()
                .get("retry-after")
                .and_then(|header| come_back(header, response.headers().get("date"))),
        };
        // A good status whose body did not come, or could not be understood.
        if response.status().is_success() {
            if let Some(broken) = find::<io::Error>(error) {
                match broken.kind() {
                    io::ErrorKind::InvalidData => {}
                    io::ErrorKind::TimedOut => {
                        return StoreError::TimedOut(broken.to_string());
                    }
                    _ => {
                        let cause = format!("a body broke: {broken}");
                        return StoreError::Unavailable(cause);
                    }
                }
            }
            return StoreError::nonsense(innermost(error));
        }
        return answer.meaning(about);
    }
    match error {
        SdkError::TimeoutError(_) => StoreError::TimedOut(innermost(error)),
        SdkError::DispatchFailure(dispatch) if dispatch.is_timeout() => {
            StoreError::TimedOut(innermost(error))
        }
        // Without a response and without a failed call: the request could not be built or signed.
        _ => unsigned(error),
    }
}

/// An answer that refuses a request and does not say why, for a HEAD has no body: an expired token
/// (400) and access denied (403) look alike then, and like anything else. What it said, if it is one;
/// not if it names a region other than this one, which is reason enough.
pub(super) fn without_reason<E>(error: &SdkError<E, HttpResponse>, region: &str) -> Option<String>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let response = error.raw_response()?;
    let status = response.status().as_u16();
    let named = response.headers().get("x-amz-bucket-region");
    let is_mute = error.code().is_none() && named.is_none_or(|named| named == region);
    (is_mute && matches!(status, 400 | 401 | 403)).then(|| format!("{status}, without a reason"))
}

/// What it means that there is no response.
pub(super) fn call_failure(call: &CallError) -> StoreError {
    match call {
        CallError::Unreachable(cause) => StoreError::Unreachable(cause.clone()),
        CallError::Broken(_) => StoreError::Unavailable(call.to_string()),
        CallError::NotHttp(_) => StoreError::nonsense(call.to_string()),
        CallError::Silent(_) => StoreError::TimedOut(call.to_string()),
    }
}

/// What it means that a request was not even made.
pub(super) fn unsigned(error: &(dyn Error + 'static)) -> StoreError {
    match find::<CredentialsError>(error) {
        Some(credentials) => credentials_failure(credentials),
        None => StoreError::nonsense(format!("no request could be made: {}", innermost(error))),
    }
}

/// What it means that a chain of providers gave no credentials.
pub(super) fn credentials_failure(error: &CredentialsError) -> StoreError {
    let cause = innermost(error);
    let cause = cause.trim_end_matches('.');
    match error {
        // A provider that exists and fails, such as an STS endpoint, may work a moment later.
        CredentialsError::ProviderTimedOut(_) => {
            StoreError::TimedOut(format!("credentials: {cause}"))
        }
        CredentialsError::ProviderError(_) => {
            StoreError::Unavailable(format!("credentials: {cause}"))
        }
        CredentialsError::CredentialsNotLoaded(_) => StoreError::NoCredentials(tried(cause)),
        // The enum is open: what it may grow is no reason to ask again.
        _ => StoreError::NoCredentials(cause.to_owned()),
    }
}

/// The chain reports each of its providers in a line of its own; those that nobody has set up are
/// what everybody sees, and say nothing.
fn tried(report: &str) -> String {
    let failed: Vec<&str> = report
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.contains("was not enabled"))
        .collect();
    if failed.is_empty() {
        "neither in the environment nor in a profile, and no web identity, container or instance \
         role gave any"
            .to_owned()
    } else {
        failed.join(", ")
    }
}

/// The response of a failed request.
struct Answer<'a> {
    status: u16,
    /// Empty when the body holds none, as after a HEAD.
    code: &'a str,
    message: &'a str,
    request_id: Option<&'a str>,
    /// Where the bucket lives, when the answer tells.
    region: Option<String>,
    /// When to come back, when the answer tells.
    retry_after: Option<Duration>,
}

impl Answer<'_> {
    /// Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>. The code says
    /// more than the status; stores that send a bare status are understood by that.
    fn meaning(mut self, about: About) -> StoreError {
        let retry_after = self.retry_after.take();
        match (self.meaning_now(about), retry_after) {
            (error, retry_after @ Some(_)) if error.is_transient() => {
                StoreError::Throttled { retry_after }
            }
            (error, _) => error,
        }
    }

    fn meaning_now(self, about: About) -> StoreError {
        match self.code {
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
            | "SignatureDoesNotMatch" => {
                return StoreError::SignatureRefused(self.to_string());
            }
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

impl std::fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message.trim_end_matches('.'))?;
        }
        match self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

/// `Retry-After`: in seconds, as stores write it, or a date, as proxies may (RFC 9110, 10.2.3). That
/// one is by the clock that has written the answer's own date, or by ours if there is none.
fn come_back(header: &str, date: Option<&str>) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time =
        |text: &str| SystemTime::try_from(DateTime::from_str(text, Format::HttpDate).ok()?).ok();
    let now = date.and_then(time).unwrap_or_else(SystemTime::now);
    // What is past by now was only in the way.
    Some(time(header)?.duration_since(now).unwrap_or_default())
}

/// `<Region>` of an error document: the SDK keeps code and message of it only.
fn region_of(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Region>")?;
    let (region, _) = rest.split_once("</Region>")?;
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!region.is_empty() && region.chars().all(letters)).then(|| region.to_owned())
}

/// The first error of a type in the chain of causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    causes(error).find_map(|error| error.downcast_ref::<E>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(status: u16, code: &str, region: Option<&str>, about: About) -> StoreError {
        let region = region.map(str::to_owned);
        let (message, request_id, retry_after) = ("Why.", Some("1A"), None);
        Answer { status, code, message, request_id, region, retry_after }.meaning(about)
    }

    #[test]
    fn every_answer_has_its_meaning() {
        use About::{Bucket, Key};
        let denied = |text: &str| StoreError::Denied(text.to_owned());
        let refused = |text: &str| StoreError::SignatureRefused(text.to_owned());
        let west = || StoreError::WrongRegion(Some("eu-west-1".to_owned()));
        for (status, code, region, about, want) in [
            (404, "NoSuchKey", None, Key, StoreError::NotFound),
            (404, "", None, Key, StoreError::NotFound),
            (404, "NoSuchBucket", None, Key, StoreError::NoSuchBucket),
            (404, "NoSuchBucket", None, Bucket, StoreError::NoSuchBucket),
            (403, "AccessDenied", None, Key, denied("403 AccessDenied: Why (request 1A)")),
            (403, "", None, Key, denied("403: Why (request 1A)")),
            (400, "ExpiredToken", None, Key, refused("400 ExpiredToken: Why (request 1A)")),
            (
                403,
                "RequestTimeTooSkewed",
                None,
                Key,
                refused(
                    "403 RequestTimeTooSkewed: Why (request 1A); is this machine's clock right?",
                ),
            ),
            (403, "InvalidObjectState", None, Key, StoreError::Archived),
            (412, "PreconditionFailed", None, Key, StoreError::Changed),
            (429, "", None, Key, StoreError::Throttled { retry_after: None }),
            (503, "", None, Key, StoreError::Throttled { retry_after: None }),
            (503, "SlowDown", None, Key, StoreError::Throttled { retry_after: None }),
            (301, "PermanentRedirect", Some("eu-west-1"), Bucket, west()),
            (307, "", Some("eu-west-1"), Bucket, west()),
            (400, "AuthorizationHeaderMalformed", Some("eu-west-1"), Bucket, west()),
            (400, "", Some("eu-west-1"), Key, west()),
            (
                400,
                "IllegalLocationConstraintException",
                None,
                Bucket,
                StoreError::WrongRegion(None),
            ),
        ] {
            assert_eq!(meaning(status, code, region, about), want, "{status} {code}");
        }
    }

    #[test]
    fn what_may_heal_is_transient() {
        for (status, code, about) in [
            (500, "InternalError", About::Key),
            (502, "", About::Key),
            (503, "SlowDown", About::Bucket),
            (504, "", About::Bucket),
            (400, "RequestTimeout", About::Key),
            // A web server that knows nothing of buckets.
            (404, "", About::Bucket),
            (405, "", About::Bucket),
            (416, "InvalidRange", About::Key),
        ] {
            assert!(meaning(status, code, None, about).is_transient(), "{status} {code}");
        }
    }

    #[test]
    fn who_says_when_to_come_back_is_believed() {
        let date = "Thu, 26 Nov 2026 23:59:50 GMT";
        let answer = |status, code, header: &str| {
            let (message, request_id, region) = ("", None, None);
            let retry_after = come_back(header, Some(date));
            Answer { status, code, message, request_id, region, retry_after }.meaning(About::Key)
        };
        let busy =
            |seconds| StoreError::Throttled { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(answer(503, "SlowDown", "2"), busy(2));
        assert_eq!(answer(500, "InternalError", " 7 "), busy(7));
        assert_eq!(answer(503, "SlowDown", "soon"), StoreError::Throttled { retry_after: None });
        // A date, by the clock of whoever names it; one that is past is no reason to wait.
        assert_eq!(answer(503, "", "Fri, 27 Nov 2026 00:00:02 GMT"), busy(12));
        assert_eq!(answer(503, "", "Thu, 26 Nov 2026 00:00:00 GMT"), busy(0));
        assert_eq!(
            answer(503, "", "Thu, 32 Nov 2026 00:00:00 GMT"),
            StoreError::Throttled { retry_after: None }
        );
        assert_eq!(come_back("Thu, 26 Nov 1970 00:00:00 GMT", None), Some(Duration::ZERO));
        assert_eq!(answer(412, "PreconditionFailed", "2"), StoreError::Changed);
    }

    #[test]
    fn the_region_is_found_in_the_body() {
        let body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>";
        assert_eq!(region_of(body).as_deref(), Some("eu-west-1"));
        assert_eq!(region_of(b"<Error/>"), None);
        assert_eq!(region_of(b"<Region>a b</Region>"), None);
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// Whatever a store answers has a meaning; and none that says "there is nothing" but a 404, none
        /// that is asked again without end but what may heal.
        #[test]
        fn any_refusal_has_a_meaning() {
            let code = "[A-Za-z]{0,20}|SlowDown|NoSuchKey|AccessDenied|ExpiredToken|\\PC{0,5}";
            let code = fuzz::text(code);
            fuzz::each((300_u16..600, code, any::<bool>()), |(status, code, key)| {
                let about = if key { About::Key } else { About::Bucket };
                let meant = meaning(status, &code, None, about);
                if meant == StoreError::NotFound {
                    prop_assert!(matches!(status, 404 | 410) && key);
                }
                if meant == StoreError::Changed {
                    prop_assert_eq!(status, 412);
                }
                Ok(())
            });
        }

        /// By whichever clock the answer was written.
        #[test]
        fn any_time_to_come_back_is_as_far_off_as_it_was_written() {
            let years = 0_i64..8_000 * 31_556_952;
            fuzz::each((years.clone(), years), |(then, now)| {
                let [then_, now_] = [then, now]
                    .map(|seconds| DateTime::from_secs(seconds).fmt(Format::HttpDate).unwrap());
                let wait = u64::try_from(then - now).unwrap_or(0);
                prop_assert_eq!(come_back(&then_, Some(&now_)), Some(Duration::from_secs(wait)));
                Ok(())
            });
        }

        /// The text of a header or a body becomes a time or a region that can be one, or nothing.
        #[test]
        fn any_text_is_a_time_or_a_region_or_neither() {
            let text = "[ 0-9.+-]{0,25}|\\PC{0,12}|(<Region>|[a-z0-9-]{0,9}|</Region>){0,5}";
            let text = fuzz::text(text);
            fuzz::each(text, |text| {
                let seconds = text.trim().parse().ok().map(Duration::from_secs);
                prop_assert_eq!(come_back(&text, None), seconds);
                if let Some(region) = region_of(text.as_bytes()) {
                    let element = format!("<Region>{region}</Region>");
                    prop_assert!(text.contains(&element));
                    prop_assert!(!region.is_empty() && !region.contains('<'));
                }
                Ok(())
            });
        }
    }
}
