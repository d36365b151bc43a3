use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, ProvideCredentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::form::seconds_ahead;
use super::super::http::{self, Trust};
use super::*;
use crate::store::{ListFrom, ListRequest, Nonsense, ObjectVersion};

fn version(key: &str) -> ObjectVersion {
    ObjectVersion { key: key.to_owned(), etag: "\"e\"".to_owned(), size_bytes: 10 }
}

/// A client as `connect` makes it, but for what is set on the builder.
fn gets(endpoint: &str, payer: bool, set: impl FnOnce(Builder) -> Builder) -> Direct {
    let wire = http::wire(&Trust::Anybody, true, &Arc::default()).unwrap();
    let builder = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http::client(Arc::clone(&wire)))
        .region(Region::new("eu-west-1"))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    let client = Client::from_conf(set(builder).build());
    Direct::new(client, wire, "bucket".to_owned(), payer.then_some(RequestPayer::Requester))
}

fn credentials(token: Option<&str>) -> Credentials {
    Credentials::new("AKID/1", "secret", token.map(str::to_owned), None, "test")
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

/// URL and headers of the SDK's own GET of bytes 2 to 5.
async fn by_sdk(gets: &Direct, key: &str) -> (String, HeaderMap) {
    let noted = Noted::default();
    let get = gets.get_by_sdk(key).range("bytes=2-5").if_match("\"e\"").customize();
    let _stopped = get.interceptor(noted.clone()).send().await;
    let request = noted.0.lock().take();
    request.unwrap()
}

/// The same of ours.
async fn ours(gets: &Direct, key: &str) -> (String, HeaderMap) {
    let headers = [("if-match", "\"e\""), ("range", "bytes=2-5")];
    filled(gets, &Blank { key, query: "", headers: &headers }).await
}

async fn filled(direct: &Direct, blank: &Blank<'_>) -> (String, HeaderMap) {
    let message = direct.form().await.unwrap().fill(blank).await.unwrap();
    let (origin, text) = message.parts();
    let scheme = if origin.is_tls() { "https" } else { "http" };
    let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
    let line = lines.next().unwrap();
    let path = line.strip_prefix("GET ").unwrap().strip_suffix(" HTTP/1.1").unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    }
    let host = headers.remove("host").unwrap();
    assert_eq!(host, origin.authority());
    (format!("{scheme}://{}{path}", origin.authority()), headers)
}

/// Takes the time at which a request was signed. A sample that was taken at the end of a second lets
/// ours be one behind.
fn seconds(headers: &mut HeaderMap) -> i64 {
    let date = headers.remove("x-amz-date").unwrap();
    seconds_ahead(date.to_str().unwrap(), SystemTime::UNIX_EPOCH).unwrap()
}

/// The `Authorization` that aws-sigv4 finds for a request with these headers, at their time.
fn by_the_book(url: &str, headers: &HeaderMap, credentials: Credentials) -> String {
    let text = |name: &str| headers[name].to_str().unwrap();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let date = text("x-amz-date");
    let seconds = seconds_ahead(date, SystemTime::UNIX_EPOCH).unwrap();
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name("s3")
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap()))
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let given = ["range", "if-match", "x-amz-request-payer"];
    let given = given.iter().filter_map(|name| Some((*name, headers.get(*name)?.to_str().ok()?)));
    let request = SignableRequest::new("GET", url, given, SignableBody::empty()).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let authorization = instructions.headers().find(|(name, _)| *name == "authorization");
    authorization.unwrap().1.to_owned()
}

#[tokio::test]
async fn a_get_is_what_the_sdk_would_send() {
    let path = "http://127.0.0.1:9000";
    let by_path = |b: Builder| b.force_path_style(true);
    let by_host = |b: Builder| b;
    for (base, endpoint, set, payer, token) in [
        ("http://127.0.0.1:9000/bucket/", path, by_path as fn(_) -> _, false, None),
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
        let signed = gets(endpoint, payer, |b| set(b).credentials_provider(keys()));
        let anonymous = gets(endpoint, payer, |b| set(b).allow_no_auth());
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
            for (gets, is_signed) in [(&signed, true), (&anonymous, false)] {
                let (theirs, mut want) = by_sdk(gets, key).await;
                let (url, mut headers) = ours(gets, key).await;
                assert_eq!(format!("{url}?x-id=GetObject"), theirs.replace("//h:80/", "//h/"));
                assert!(url.starts_with(base), "{url}");
                // What is over on their side counts attempts and names the program twice.
                want.remove("x-amz-user-agent");
                want.remove("amz-sdk-request");
                want.remove("amz-sdk-invocation-id");
                if is_signed {
                    let book = by_the_book(&url, &headers, keys());
                    assert_eq!(headers.remove("authorization").unwrap(), book, "{url}");
                    let theirs = want.remove("authorization").unwrap();
                    let scopes = [&book, theirs.to_str().unwrap()].map(|text| {
                        text.split_once("/eu-west-1/s3/aws4_request, SignedHeaders=").unwrap().0
                    });
                    assert_eq!(scopes[0][..scopes[0].len() - 8], scopes[1][..scopes[1].len() - 8]);
                    // The second may have passed in between.
                    let [ours, theirs] = [&mut headers, &mut want].map(seconds);
                    assert!(ours + 1 >= theirs, "{url}");
                }
                assert_eq!(headers, want, "{url}");
            }
        }
    }
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
        let set = |b: Builder| b.force_path_style(by_path);
        let signed = gets(endpoint, true, |b| set(b).credentials_provider(keys()));
        let anonymous = gets(endpoint, false, |b| set(b).allow_no_auth());
        for text in ["", "a/b", "a b+c%20%", "ä/日本/🦀", "~*()!$,;:@=_-.'&?#", "\t\r\n\u{1}\u{7f}"]
        {
            for from in [ListFrom::Start, ListFrom::After(text.to_owned()), token()] {
                let (prefix, delimited) = (text.to_owned(), text.len() > 3);
                let request =
                    ListRequest { prefix, delimited, from, max_keys: 1000, any_order: false };
                for (direct, is_signed) in [(&signed, true), (&anonymous, false)] {
                    let noted = Noted::default();
                    let list = direct.list_by_sdk(&request).customize().interceptor(noted.clone());
                    let _stopped = list.send().await;
                    let (theirs, mut want) = noted.0.lock().take().unwrap();
                    let query = super::super::list::asked(&request);
                    let blank = Blank { key: "", query: &query, headers: &[] };
                    let (url, mut headers) = filled(direct, &blank).await;
                    assert_eq!(url, sorted(&theirs), "{request:?}");
                    for over in ["x-amz-user-agent", "amz-sdk-request", "amz-sdk-invocation-id"] {
                        want.remove(over);
                    }
                    // It ends with what of the SDK is used, and no listing has a checksum.
                    let agents = [&mut headers, &mut want].map(|headers| {
                        let agent = headers.remove("user-agent").unwrap();
                        agent.to_str().unwrap().split(" m/").next().unwrap().to_owned()
                    });
                    assert_eq!(agents[0], agents[1]);
                    if is_signed {
                        let book = by_the_book(&url, &headers, keys());
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
async fn an_etag_cannot_smuggle_a_header_in() {
    let gets = gets("http://127.0.0.1:1", false, |b| b.allow_no_auth().force_path_style(true));
    for etag in ["\"e\"\r\nx-evil: 1", "\"e\n\"", "\"\u{e9}\""] {
        let version = ObjectVersion { etag: etag.to_owned(), ..version("k") };
        let got = gets.get(&version, &(2..6), &mut Vec::new()).await;
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
    let set = |builder: Builder| builder.credentials_provider(provider.clone());
    let gets = Arc::new(gets("http://127.0.0.1:1", false, |b| set(b).force_path_style(true)));
    gets.form().await.unwrap();
    assert_eq!(provider.0.load(Ordering::Relaxed), 1);
    for _ in 0..2 {
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let gets = Arc::clone(&gets);
            readers.spawn(async move { ours(&gets, "k").await });
        }
        for (_, headers) in readers.join_all().await {
            assert_eq!(headers["x-amz-security-token"], "token-1");
        }
    }
    // The SDK's own requests take from the same place.
    assert_eq!(by_sdk(&gets, "k").await.1["x-amz-security-token"], "token-1");
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
        let gets = gets("http://127.0.0.1:1", false, |b| b.credentials_provider(Failing(error)));
        let got = gets.get(&version("k"), &(2..6), &mut Vec::new()).await.unwrap_err();
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
    let set = |builder: Builder| builder.credentials_provider(credentials(None));
    let gets = gets(&url, false, |b| set(b).force_path_style(true));
    for _ in 0..2 {
        let got = gets.get(&version("k"), &(2..6), &mut Vec::new()).await;
        let text = "403 RequestTimeTooSkewed: Too far; is this machine's clock right?";
        assert_eq!(got, Err(StoreError::SignatureRefused(text.to_owned())));
    }
    let heads = heads.lock();
    assert!(!heads[0].contains("x-amz-date: 20400101T0000"), "{}", heads[0]);
    assert!(heads[1].contains("x-amz-date: 20400101T0000"), "{}", heads[1]);
    assert!(heads[1].contains("/20400101/eu-west-1/s3/aws4_request"), "{}", heads[1]);
}
