use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::types::{EncodingType, OptionalObjectAttributes, RequestPayer, SessionMode};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::S3Store;
use super::super::clock::Clock;
use super::super::config::{SessionAccess, StoreConfig};
use super::super::connect::{EndpointRules, Making};
use super::super::credentials::Renewing;
use super::super::learnt::{LearntQuirks, RESTORE_STATUS};
use super::super::session::READ_ONLY;
use super::super::tls::{self, Trust};
use super::*;
use crate::store::wire::Wire;
use crate::store::{Nonsense, ObjectStore as _, ObjectVersion};

fn version(key: &str) -> ObjectVersion {
    ObjectVersion { key: key.to_owned(), etag: "\"e\"".to_owned(), size_bytes: 10 }
}

fn credentials(token: Option<&str>) -> Credentials {
    Credentials::new("AKID/1", "secret", token.map(str::to_owned), None, "test")
}

/// The same bucket by the SDK and by us.
struct Bucket {
    name: &'static str,
    sdk: Client,
    payer: Option<RequestPayer>,
    template: RequestTemplate,
    credentials: Option<Credentials>,
}

impl Bucket {
    async fn new(endpoint: &str, path_style: bool, payer: bool, keys: Option<Credentials>) -> Self {
        let template = template(endpoint, path_style, payer, keys.is_some()).await;
        let sdk = sdk(endpoint, path_style, keys.clone());
        let payer = payer.then_some(RequestPayer::Requester);
        Self { name: "bucket", sdk, payer, template, credentials: keys }
    }

    /// In a session with these credentials, or to ask for one.
    async fn express(endpoint: &str, keys: Credentials, in_session: bool) -> Self {
        let account = renewing(SharedCredentialsProvider::new(keys.clone()));
        let mut making = making(endpoint, false, false, Some(account));
        EXPRESS.clone_into(&mut making.rules.bucket);
        let template = making.filled("eu-west-1", in_session).await.unwrap();
        let sdk = sdk(endpoint, false, Some(keys.clone()));
        Self { name: EXPRESS, sdk, payer: None, template, credentials: Some(keys) }
    }

    /// Method, URL and headers of our request.
    fn ours(&self, fields: &RequestFields<'_>) -> (String, String, HeaderMap) {
        filled(&self.template, fields, self.credentials.as_ref())
    }

    /// URL and headers of the SDK's own request for the same.
    async fn by_sdk(&self, asked: &Asked<'_>) -> (String, HeaderMap) {
        let (noted, payer) = (Noted::default(), self.payer.clone());
        match asked {
            Asked::Get(key) => {
                let get = self.sdk.get_object().bucket(self.name).key(*key);
                let get = get.range("bytes=2-5").if_match("\"e\"").set_request_payer(payer);
                let _stopped = get.customize().interceptor(noted.clone()).send().await;
            }
            Asked::Head(key) => {
                let head = self.sdk.head_object().bucket(self.name).key(*key);
                let head = head.set_request_payer(payer).customize();
                let _stopped = head.interceptor(noted.clone()).send().await;
            }
            Asked::Put(key) => {
                let put = self.sdk.put_object().bucket(self.name).key(*key).if_none_match("*");
                let put = put.body(Bytes::from_static(b"entry").into()).customize();
                // As it is where the body is a stream.
                let put = put.disable_payload_signing();
                let _stopped = put.interceptor(noted.clone()).send().await;
            }
            Asked::Session(mode) => {
                let begin = self.sdk.create_session().bucket(self.name);
                let begin = begin.set_session_mode(mode.clone()).customize();
                let _stopped = begin.interceptor(noted.clone()).send().await;
            }
            Asked::List(request) => {
                let (after, token) = match &request.from {
                    ListFrom::Start => (None, None),
                    ListFrom::After(key) => (Some(key.clone()), None),
                    ListFrom::Token { token, .. } => (None, Some(token.clone())),
                };
                let list = self.sdk.list_objects_v2().bucket(self.name).prefix(&request.prefix);
                let list = list
                    .set_delimiter(request.delimited.then(|| "/".to_owned()))
                    .set_start_after(after)
                    .set_continuation_token(token)
                    .max_keys(i32::from(request.max_keys))
                    .encoding_type(EncodingType::Url)
                    .optional_object_attributes(OptionalObjectAttributes::RestoreStatus)
                    .set_request_payer(payer);
                let _stopped = list.customize().interceptor(noted.clone()).send().await;
            }
        }
        let request = noted.0.lock().take();
        request.unwrap()
    }
}

/// A directory bucket.
const EXPRESS: &str = "bucket--euw1-az1--x-s3";

fn sdk(endpoint: &str, path_style: bool, keys: Option<Credentials>) -> Client {
    let builder = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(tls::client(anybody()))
        .region(Region::new("eu-west-1"))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .force_path_style(path_style);
    let builder = match keys {
        Some(keys) => builder.credentials_provider(keys.clone()).express_credentials_provider(keys),
        None => builder.allow_no_auth(),
    };
    Client::from_conf(builder.build())
}

enum Asked<'a> {
    Session(Option<SessionMode>),
    Get(&'a str),
    Head(&'a str),
    Put(&'a str),
    List(&'a ListRequest),
}

async fn template(endpoint: &str, path_style: bool, payer: bool, signed: bool) -> RequestTemplate {
    let account = signed.then(|| renewing(SharedCredentialsProvider::new(credentials(None))));
    making(endpoint, path_style, payer, account).filled("eu-west-1", false).await.unwrap()
}

fn renewing(provider: SharedCredentialsProvider) -> Renewing {
    let second = Duration::from_secs(1);
    Renewing::new(5 * second, 300 * second, move || {
        let provider = provider.clone();
        Box::pin(async move { Some(provider) })
    })
}

fn making(endpoint: &str, path_style: bool, payer: bool, account: Option<Renewing>) -> Making {
    let (bucket, url) = ("bucket".to_owned(), Some(endpoint.to_owned()));
    let rules = EndpointRules { bucket, url, path_style, fips: None, dual_stack: None };
    let payer = payer.then(|| ("x-amz-request-payer".to_owned(), "requester".to_owned()));
    let (user_agent, headers) = ("fasts3-mount/0".to_owned(), payer.into_iter().collect());
    Making { rules, user_agent, headers, account, access: SessionAccess::Read }
}

fn anybody() -> Arc<Wire> {
    tls::wire(&Trust::Anybody, &StoreConfig::default(), &Arc::default()).unwrap()
}

/// A store with credentials of this provider.
async fn store(endpoint: &str, provider: Option<SharedCredentialsProvider>) -> S3Store {
    let template = template(endpoint, true, false, provider.is_some()).await;
    let credentials = provider.map(renewing);
    S3Store {
        wire: anybody(),
        making: making(endpoint, true, false, credentials.clone()),
        template,
        credentials,
        clock: Clock::default(),
        region: "eu-west-1".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        learnt: LearntQuirks::default(),
    }
}

fn get(key: &str) -> RequestFields<'_> {
    let headers = &[("if-match", "\"e\""), ("range", "bytes=2-5")];
    RequestFields { kind: Kind::Get, key, query: "", headers, optional: None, body: &[] }
}

fn filled(
    template: &RequestTemplate,
    fields: &RequestFields<'_>,
    credentials: Option<&Credentials>,
) -> (String, String, HeaderMap) {
    let message = template.fill(fields, None, SystemTime::now(), credentials).unwrap();
    let (origin, text) = message.parts();
    let scheme = if origin.tls { "https" } else { "http" };
    let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
    let line = lines.next().unwrap();
    let (method, path) = line.strip_suffix(" HTTP/1.1").unwrap().split_once(' ').unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    }
    let host = headers.remove("host").unwrap();
    assert_eq!(host, origin.authority);
    (method.to_owned(), format!("{scheme}://{}{path}", origin.authority), headers)
}

/// Notes the request that the SDK was about to send.
#[derive(Clone, Debug, Default)]
struct Noted(Arc<Mutex<Option<(String, HeaderMap)>>>);

impl Intercept for Noted {
    fn name(&self) -> &'static str {
        "Noted"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers() {
            headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        *self.0.lock() = Some((request.uri().to_owned(), headers));
        Err("noted".into())
    }
}

/// Seconds since 1970 of a date such as `20130524T000000Z`.
fn seconds_of(date: &str) -> i64 {
    let [year, month, day] = [&date[..4], &date[4..6], &date[6..8]];
    let [hour, minute, second] = [&date[9..11], &date[11..13], &date[13..15]];
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    DateTime::from_str(&text, Format::DateTime).unwrap().secs()
}

/// Takes the time at which a request was signed.
fn seconds(headers: &mut HeaderMap) -> i64 {
    seconds_of(headers.remove("x-amz-date").unwrap().to_str().unwrap())
}

/// The `Authorization` that aws-sigv4 finds for a request with these headers, at their time.
fn by_the_book(method: &str, url: &str, headers: &HeaderMap, credentials: Credentials) -> String {
    by_the_book_for("s3", method, url, headers, credentials)
}

fn by_the_book_for(
    service: &str,
    method: &str,
    url: &str,
    headers: &HeaderMap,
    credentials: Credentials,
) -> String {
    let text = |name: &str| headers[name].to_str().unwrap();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.session_token_name_override =
        headers.contains_key("x-amz-s3session-token").then_some("x-amz-s3session-token");
    let date = text("x-amz-date");
    let seconds = seconds_of(date);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name(service)
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap()))
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let given = [
        "range",
        "if-match",
        "if-none-match",
        "x-amz-request-payer",
        "x-amz-optional-object-attributes",
        "x-amz-create-session-mode",
    ];
    let given = given.iter().filter_map(|name| Some((*name, headers.get(*name)?.to_str().ok()?)));
    let is_unsigned = text("x-amz-content-sha256") == UNSIGNED;
    let body = if is_unsigned { SignableBody::UnsignedPayload } else { SignableBody::empty() };
    let request = SignableRequest::new(method, url, given, body).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let authorization = instructions.headers().find(|(name, _)| *name == "authorization");
    authorization.unwrap().1.to_owned()
}

#[tokio::test]
async fn a_get_and_a_head_are_what_the_sdk_would_send() {
    let path = "http://127.0.0.1:9000";
    let (by_path, by_host) = (true, false);
    for (base, endpoint, path_style, payer, token) in [
        ("http://127.0.0.1:9000/bucket/", path, by_path, false, None),
        ("http://127.0.0.1:9000/bucket/", path, by_path, true, None),
        ("http://127.0.0.1:9000/bucket/", path, by_path, true, Some("a+token/=")),
        ("https://[::1]:9000/a/base/bucket/", "https://[::1]:9000/a/base/", by_path, false, None),
        ("http://h/bucket/", "http://h:80/", by_path, false, None),
        ("https://bucket.s3.example.com/", "https://s3.example.com", by_host, false, None),
        ("https://bucket.h:444/base/", "https://h:444/base/", by_host, false, None),
        (
            "https://bucket.s3.eu-west-1.amazonaws.com/",
            "https://s3.eu-west-1.amazonaws.com",
            by_host,
            true,
            Some("t"),
        ),
    ] {
        let keys = || credentials(token);
        let signed = Bucket::new(endpoint, path_style, payer, Some(keys())).await;
        let anonymous = Bucket::new(endpoint, path_style, payer, None).await;
        for key in [
            "k",
            "a b+c%20%",
            "/lead",
            "a//b///",
            ".",
            "..",
            "../a/./..",
            "ä/日本/🦀",
            "?x=1&y#z",
            "'\"<>\\^`{|}[]",
            "~*()!$,;:@=_-.",
            "tab\tline\r\n\u{1}\u{7f}",
        ] {
            for (bucket, is_signed) in [(&signed, true), (&anonymous, false)] {
                let head = RequestFields { kind: Kind::Head, headers: &[], ..get(key) };
                let [sdk_get, sdk_head] = [Asked::Get(key), Asked::Head(key)];
                for (fields, asked, sdk_query, method) in
                    [(get(key), sdk_get, "?x-id=GetObject", "GET"), (head, sdk_head, "", "HEAD")]
                {
                    let (theirs, mut want) = bucket.by_sdk(&asked).await;
                    let (sent, url, mut headers) = bucket.ours(&fields);
                    assert_eq!(format!("{url}{sdk_query}"), theirs.replace("//h:80/", "//h/"));
                    assert!(url.starts_with(base), "{url}");
                    assert_eq!(sent, method);
                    only_ours(&mut headers, &mut want);
                    if is_signed {
                        let book = by_the_book(method, &url, &headers, keys());
                        assert_eq!(headers.remove("authorization").unwrap(), book, "{url}");
                        let theirs = want.remove("authorization").unwrap();
                        let scopes = [&book, theirs.to_str().unwrap()].map(|text| {
                            text.split_once("/eu-west-1/s3/aws4_request, SignedHeaders=").unwrap().0
                        });
                        let days = scopes.map(|scope| &scope[..scope.len() - 8]);
                        assert_eq!(days[0], days[1]);
                        // The second may have passed in between.
                        let [ours, theirs] = [&mut headers, &mut want].map(seconds);
                        assert!(ours + 1 >= theirs, "{url}");
                    }
                    assert_eq!(headers, want, "{url}");
                }
            }
        }
    }
}

/// S3 Express One Zone: a session, and requests in it.
#[tokio::test]
async fn a_directory_bucket_is_asked_as_the_sdk_asks_it() {
    let request = ListRequest {
        prefix: "a b/ä/".to_owned(),
        delimited: true,
        from: ListFrom::Token { token: "1/a+b==&".to_owned(), last: "k".to_owned() },
        max_keys: 1000,
        any_order: true,
    };
    let query = list_query(&request);
    let list = RequestFields { kind: Kind::List, query: &query, headers: &[], ..get("") };
    let list = RequestFields { optional: Some(RESTORE_STATUS), ..list };
    let head = RequestFields { kind: Kind::Head, headers: &[], ..get("a b+ä/k~") };
    let reads = RequestFields { query: "session", headers: &READ_ONLY, ..get("") };
    let writes = RequestFields { query: "session", headers: &[], ..get("") };
    let got = get("a b+ä/k~");
    let entry = [Bytes::from_static(b"en"), Bytes::from_static(b"try")];
    let headers = &[("if-none-match", "*")];
    let put = RequestFields { kind: Kind::Put, headers, body: &entry, ..got };
    for endpoint in ["http://127.0.0.1:9000", "https://s3express-euw1-az1.example.com"] {
        for (fields, asked, in_session) in [
            (&got, Asked::Get("a b+ä/k~"), true),
            (&head, Asked::Head("a b+ä/k~"), true),
            (&put, Asked::Put("a b+ä/k~"), true),
            (&list, Asked::List(&request), true),
            (&reads, Asked::Session(Some(SessionMode::ReadOnly)), false),
            (&writes, Asked::Session(None), false),
        ] {
            for token in [None, Some("a+token/=")].into_iter().skip(usize::from(in_session)) {
                let keys = credentials(token);
                let bucket = Bucket::express(endpoint, keys.clone(), in_session).await;
                let (theirs, mut want) = bucket.by_sdk(&asked).await;
                let (method, url, mut headers) = bucket.ours(fields);
                let sorted = |url: &str| {
                    let (path, query) = url.split_once('?').unwrap_or((url, ""));
                    let mut pairs: Vec<_> = query.split('&').map(str::to_owned).collect();
                    pairs.retain(|pair| !pair.starts_with("x-id="));
                    pairs.sort_unstable();
                    format!("{path}?{}", pairs.join("&"))
                };
                assert_eq!(sorted(&url), sorted(&theirs));
                assert!(url.contains(EXPRESS), "{url}");
                only_ours(&mut headers, &mut want);
                if method == "PUT" {
                    // The SDK names a type, too, which entries need not have.
                    assert_eq!(want.remove("content-type").unwrap(), "application/octet-stream");
                }
                let book = by_the_book_for("s3express", &method, &url, &headers, keys);
                assert_eq!(headers.remove("authorization").unwrap(), book, "{url}");
                let theirs = want.remove("authorization").unwrap();
                for text in [&book, theirs.to_str().unwrap()] {
                    assert!(text.contains("/eu-west-1/s3express/aws4_request, "), "{text}");
                }
                let signed = |text: &str| text.split_once("SignedHeaders=").unwrap().1.to_owned();
                if !matches!(asked, Asked::Session(_)) {
                    assert!(signed(&book).contains("x-amz-s3session-token"), "{book}");
                }
                let [ours, theirs] = [&mut headers, &mut want].map(seconds);
                assert!(ours + 1 >= theirs, "{url}");
                assert_eq!(headers, want, "{url}");
            }
        }
    }
}

/// The SDK's requests count attempts and name the SDK; ours name this program.
fn only_ours(ours: &mut HeaderMap, theirs: &mut HeaderMap) {
    for over in ["x-amz-user-agent", "amz-sdk-request", "amz-sdk-invocation-id", "user-agent"] {
        theirs.remove(over);
    }
    assert_eq!(ours.remove("user-agent").unwrap(), "fasts3-mount/0");
    assert_eq!(ours.remove("accept-encoding").unwrap(), "identity");
}

#[tokio::test]
async fn a_list_is_what_the_sdk_would_send() {
    // In the order of names, which is the order in which they are signed.
    let sorted = |url: &str| {
        let (path, query) = url.split_once('?').unwrap();
        let mut pairs: Vec<_> = query.split('&').map(str::to_owned).collect();
        pairs.sort_unstable();
        format!("{path}?{}", pairs.join("&"))
    };
    let token = || ListFrom::Token { token: "1/a+b==&".to_owned(), last: "k".to_owned() };
    for (endpoint, by_path) in [
        ("http://127.0.0.1:9000", true),
        ("https://h:444/a/base/", true),
        ("https://s3.eu-west-1.amazonaws.com", false),
    ] {
        let keys = || credentials(Some("a+token/="));
        let signed = Bucket::new(endpoint, by_path, true, Some(keys())).await;
        let anonymous = Bucket::new(endpoint, by_path, false, None).await;
        for text in ["", "a/b", "a b+c%20%", "ä/日本/🦀", "~*()!$,;:@=_-.'&?#", "\t\r\n\u{1}\u{7f}"]
        {
            for from in [ListFrom::Start, ListFrom::After(text.to_owned()), token()] {
                let (prefix, delimited) = (text.to_owned(), text.len() > 3);
                let request =
                    ListRequest { prefix, delimited, from, max_keys: 1000, any_order: false };
                for (bucket, is_signed) in [(&signed, true), (&anonymous, false)] {
                    let (theirs, mut want) = bucket.by_sdk(&Asked::List(&request)).await;
                    let query = list_query(&request);
                    let fields = RequestFields {
                        kind: Kind::List,
                        query: &query,
                        headers: &[],
                        optional: Some(RESTORE_STATUS),
                        ..get("")
                    };
                    let (method, url, mut headers) = bucket.ours(&fields);
                    assert_eq!((method.as_str(), &url), ("GET", &sorted(&theirs)), "{request:?}");
                    only_ours(&mut headers, &mut want);
                    if is_signed {
                        let book = by_the_book("GET", &url, &headers, keys());
                        assert_eq!(headers.remove("authorization").unwrap(), book, "{url}");
                        want.remove("authorization");
                        let [ours, theirs] = [&mut headers, &mut want].map(seconds);
                        assert!(ours + 1 >= theirs, "{url}");
                    }
                    assert_eq!(headers, want, "{url}");
                }
            }
        }
    }
}

#[tokio::test]
async fn regions_options_and_kinds_of_buckets_are_told_by_the_endpoint_rules() {
    for (bucket, fips, dual_stack, host, scope) in [
        ("bucket", None, None, "bucket.s3.us-east-2.amazonaws.com", "us-east-2/s3"),
        ("bucket", Some(true), None, "bucket.s3-fips.us-east-2.amazonaws.com", "us-east-2/s3"),
        ("bucket", None, Some(true), "bucket.s3.dualstack.us-east-2.amazonaws.com", "us-east-2/s3"),
        (
            "bucket--use2-az1--x-s3",
            None,
            None,
            "bucket--use2-az1--x-s3.s3express-use2-az1.us-east-2.amazonaws.com",
            "us-east-2/s3express",
        ),
        // Access points, by alias and by ARN, which are where the ARN says.
        (
            "point-eh3r5y8hbm1g7mwarpr3n5mfaa3g1usw2a-s3alias",
            None,
            None,
            "point-eh3r5y8hbm1g7mwarpr3n5mfaa3g1usw2a-s3alias.s3.us-east-2.amazonaws.com",
            "us-east-2/s3",
        ),
        (
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/point",
            None,
            None,
            "point-123456789012.s3-accesspoint.eu-west-1.amazonaws.com",
            "eu-west-1/s3",
        ),
        (
            "arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/point",
            None,
            None,
            "point-123456789012.s3-object-lambda.eu-west-1.amazonaws.com",
            "eu-west-1/s3-object-lambda",
        ),
        (
            "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/p",
            None,
            None,
            "p-123456789012.op-01ac5d28a6a232904.s3-outposts.eu-west-1.amazonaws.com",
            "eu-west-1/s3-outposts",
        ),
    ] {
        let bucket = bucket.to_owned();
        let rules = EndpointRules { bucket, url: None, path_style: false, fips, dual_stack };
        let (user_agent, headers) = (String::new(), Vec::new());
        let account = Some(renewing(SharedCredentialsProvider::new(credentials(None))));
        let making = Making { rules, user_agent, headers, account, access: SessionAccess::Read };
        let template = making.filled("us-east-2", false).await.unwrap();
        let (_, url, headers) = filled(&template, &get("k"), Some(&credentials(None)));
        assert_eq!(url, format!("https://{host}/k"));
        let scope = format!("/{scope}/aws4_request");
        assert!(headers["authorization"].to_str().unwrap().contains(&scope), "{headers:?}");
    }
}

#[tokio::test]
async fn an_etag_cannot_smuggle_a_header_in() {
    let store = store("http://127.0.0.1:1", None).await;
    for etag in ["\"e\"\r\nx-evil: 1", "\"e\n\"", "\"\u{e9}\""] {
        let version = ObjectVersion { etag: etag.to_owned(), ..version("k") };
        let got = store.get_range(&version, 2..6, &mut Vec::new()).await;
        assert!(matches!(got, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{got:?}");
    }
}

/// Gives other credentials each time: the first are about to expire, the others are not.
#[derive(Clone, Debug, Default)]
struct Changing(Arc<AtomicUsize>);

impl ProvideCredentials for Changing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let times = self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let lifetime = Duration::from_secs(if times == 0 { 1 } else { 3600 });
            let expiry = Some(SystemTime::now() + lifetime);
            let token = Some(format!("token-{times}"));
            Ok(Credentials::new("AKID", "secret", token, expiry, "test"))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_expire_are_renewed_once_for_all_readers() {
    let provider = Changing::default();
    let shared = SharedCredentialsProvider::new(provider.clone());
    let store = Arc::new(store("http://127.0.0.1:1", Some(shared)).await);
    let renewing = || store.credentials.clone().unwrap();
    renewing().current().await.unwrap();
    assert_eq!(provider.0.load(Ordering::Relaxed), 1);
    for _ in 0..2 {
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (store, renewing) = (Arc::clone(&store), renewing());
            readers.spawn(async move {
                let current = renewing.current().await.unwrap();
                filled(&store.template, &get("k"), Some(&current))
            });
        }
        for (_, _, headers) in readers.join_all().await {
            assert_eq!(headers["x-amz-security-token"], "token-1");
        }
    }
    assert_eq!(provider.0.load(Ordering::Relaxed), 2);
}

#[derive(Debug)]
struct Failing(fn() -> CredentialsError);

impl ProvideCredentials for Failing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err((self.0)()))
    }
}

#[tokio::test]
async fn missing_credentials_are_told_apart_from_those_that_may_come() {
    for (error, transient) in [
        ((|| CredentialsError::not_loaded("none")) as fn() -> _, false),
        (|| CredentialsError::provider_error("down"), true),
    ] {
        let shared = SharedCredentialsProvider::new(Failing(error));
        let store = store("http://127.0.0.1:1", Some(shared)).await;
        let got = store.get_range(&version("k"), 2..6, &mut Vec::new()).await.unwrap_err();
        assert_eq!(got.is_transient(), transient, "{got:?}");
        assert!(
            matches!(got, StoreError::NoCredentials(_) | StoreError::Unavailable(_)),
            "{got:?}"
        );
    }
}

/// Answers each request with the next of these texts; gives the heads of the requests.
async fn scripted(answers: Vec<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heads);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 8192];
            let length = socket.read(&mut request).await.unwrap();
            noted.lock().push(String::from_utf8_lossy(&request[..length]).into_owned());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, heads)
}

#[tokio::test]
async fn a_store_that_calls_the_clock_wrong_is_asked_at_its_own_time_then() {
    let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>Too far.</Message></Error>";
    // 2040-01-01, which this machine's clock does not show; and not at the edge of a minute, for
    // dates are whole seconds, so the difference of two may be one less.
    let answer = format!(
        "HTTP/1.1 403 F\r\nDate: Sun, 01 Jan 2040 00:00:30 GMT\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (url, heads) = scripted(vec![answer.clone(), answer]).await;
    let shared = SharedCredentialsProvider::new(credentials(None));
    let store = store(&url, Some(shared)).await;
    for _ in 0..2 {
        let got = store.get_range(&version("k"), 2..6, &mut Vec::new()).await;
        let text = "403 RequestTimeTooSkewed: Too far; is this machine's clock right?";
        assert_eq!(got, Err(StoreError::SignatureRefused(text.to_owned())));
    }
    let heads = heads.lock();
    assert!(!heads[0].contains("x-amz-date: 20400101T0000"), "{}", heads[0]);
    assert!(heads[1].contains("x-amz-date: 20400101T0000"), "{}", heads[1]);
    assert!(heads[1].contains("/20400101/eu-west-1/s3/aws4_request"), "{}", heads[1]);
}

/// Ceph's tenants: the colon is encoded, and signed so.
#[tokio::test]
async fn a_bucket_of_a_tenant_is_signed_for_as_it_is_sent() {
    let account = renewing(SharedCredentialsProvider::new(credentials(None)));
    let mut making = making("http://h:1/", true, false, Some(account));
    "tenant:bucket".clone_into(&mut making.rules.bucket);
    let template = making.filled("eu-west-1", false).await.unwrap();
    let keys = credentials(None);
    let (_, url, headers) = filled(&template, &get("k"), Some(&keys));
    assert_eq!(url, "http://h:1/tenant%3Abucket/k");
    assert_eq!(headers["authorization"], by_the_book("GET", &url, &headers, keys));
}

fn refusing(head: &str) -> String {
    format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

const FOUR_BYTES: &str = "206 P\r\nContent-Range: bytes 2-5/10\r\nETag: \"e\"\r\n\
                          Content-Length: 4\r\nConnection: close\r\n\r\nabcd";

#[tokio::test]
async fn a_node_that_the_store_redirects_to_gets_the_range_and_no_credentials() {
    let (node, at_node) = scripted(vec![format!("HTTP/1.1 {FOUR_BYTES}")]).await;
    let to_node = format!("302 F\r\nLocation: {node}/k%20?X-Amz-Signature=1");
    let elsewhere = refusing("307 T\r\nLocation: /other/k?b=2&a");
    let (url, at_store) = scripted(vec![elsewhere, refusing(&to_node)]).await;
    let shared = SharedCredentialsProvider::new(credentials(Some("token")));
    let store = store(&url, Some(shared)).await;
    let mut bytes = Vec::new();
    store.get_range(&version("k"), 2..6, &mut bytes).await.unwrap();
    assert_eq!(bytes, b"abcd");
    let (at_store, at_node) = (at_store.lock(), at_node.lock());
    // Its own origin gets them, for the new path.
    assert!(at_store[1].starts_with("GET /other/k?a=&b=2 HTTP/1.1"), "{}", at_store[1]);
    assert!(at_store.iter().all(|head| head.contains("x-amz-security-token: token")));
    assert!(at_store.iter().all(|head| head.contains("authorization: AWS4-HMAC-SHA256")));
    assert!(at_node[0].starts_with("GET /k%20?X-Amz-Signature=1 HTTP/1.1"), "{}", at_node[0]);
    for header in ["range: bytes=2-5", "if-match: \"e\"", "host: 127.0.0.1:"] {
        assert!(at_node[0].contains(header), "{header}: {}", at_node[0]);
    }
    assert!(!at_node[0].contains("authorization") && !at_node[0].contains("x-amz-"));
}

#[tokio::test]
async fn redirects_without_end_or_sense_are_refused() {
    let again = refusing("302 F\r\nLocation: /again");
    for (answers, says) in [
        (vec![again; 4], "more than 3 redirects"),
        (vec![refusing("302 F\r\nLocation: ftp://h/k")], "neither http nor https"),
        (vec![refusing("302 F")], "another region"),
        (vec![refusing("301 M\r\nx-amz-bucket-region: us-west-2")], "another region"),
    ] {
        let count = answers.len();
        let (url, heads) = scripted(answers).await;
        let store = store(&url, None).await;
        let error = store.get_range(&version("k"), 2..6, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(heads.lock().len(), count);
    }
}
