//! The contract of `ObjectStore`, checked on every implementation of it: whatever stands above the
//! seam may rely on each sentence below, and on nothing else.
//!
//! `FASTS3_CONTRACT_ENDPOINT` names a further S3 server, which others wrote (CI starts moto and
//! Ceph); without it that test has nothing to do.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes};
use fasts3_mount::store::retry::{RetryPolicy, Retrying};
use fasts3_mount::store::s3::{Keys, S3Entries, S3Store, StoreConfig};
use fasts3_mount::store::shared::EntryStore as _;
use fasts3_mount::store::{
    Destination, ListEntry, ListFrom, ListPage, ListRequest, Nonsense, ObjectStore, ObjectVersion,
    StoreError, check_page,
};
use fasts3_mount::testing::memory::MemoryStore;

/// Changes a bucket behind the store's back.
#[async_trait]
trait Writer: Send + Sync {
    async fn put(&self, key: &str, bytes: &[u8]);
    async fn delete(&self, key: &str);
}

/// A bucket under test. Every check keeps to a prefix of its own.
struct Subject {
    store: Arc<dyn ObjectStore>,
    writer: Box<dyn Writer>,
    /// Keys that the server under test cannot hold, by a fault of its own.
    beyond: &'static [&'static str],
}

/// All of it, on the bare store and under the retrying layer.
async fn contract(store: Arc<dyn ObjectStore>, writer: impl Writer + 'static) {
    contract_but(&[], store, writer).await;
}

async fn contract_but(
    beyond: &'static [&'static str],
    store: Arc<dyn ObjectStore>,
    writer: impl Writer + 'static,
) {
    let mut subject = Subject { store, writer: Box::new(writer), beyond };
    listings(&subject).await;
    odd_keys(&subject).await;
    heads(&subject).await;
    ranges(&subject).await;
    versions(&subject).await;
    subject.store = Arc::new(Retrying::new(subject.store, RetryPolicy::default(), Arc::default()));
    listings(&subject).await;
    odd_keys(&subject).await;
    heads(&subject).await;
    ranges(&subject).await;
    versions(&subject).await;
}

impl Subject {
    /// Every page from a place on, each checked.
    async fn pages(
        &self,
        prefix: &str,
        delimited: bool,
        from: ListFrom,
        max: u16,
    ) -> Vec<ListPage> {
        let prefix = prefix.to_owned();
        let mut request = ListRequest { prefix, delimited, from, max_keys: max, any_order: false };
        let mut pages: Vec<ListPage> = Vec::new();
        loop {
            let page = self.store.list_page(&request).await.unwrap();
            check_page(&request, &page).unwrap();
            assert!(page.entries.len() <= usize::from(max), "{page:?}");
            let last = page.entries.last().map(|entry| entry.key().to_owned());
            pages.push(page.clone());
            assert!(pages.len() < 1000, "the listing does not end");
            match (page.next, last) {
                (Some(token), Some(last)) => request.from = ListFrom::Token { token, last },
                (Some(_), None) => panic!("an empty page that leads on: {request:?}"),
                (None, _) => return pages,
            }
        }
    }

    /// Names as a listing shows them, common prefixes by their last slash.
    async fn names(&self, prefix: &str, delimited: bool, from: ListFrom, max: u16) -> Vec<String> {
        let pages = self.pages(prefix, delimited, from, max).await;
        let entries = pages.iter().flat_map(|page| &page.entries);
        entries
            .map(|entry| {
                let name = entry.key().strip_prefix(prefix).unwrap();
                let is_prefix = matches!(entry, ListEntry::Prefix(_));
                assert!(!is_prefix || name.ends_with('/'), "{entry:?}");
                if is_prefix { format!("[{name}]") } else { name.to_owned() }
            })
            .collect()
    }

    async fn version(&self, key: &str) -> ObjectVersion {
        self.store.head(key).await.unwrap().meta.version
    }

    async fn get(&self, version: &ObjectVersion, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut into = Vec::new();
        self.store.get_range(version, range, &mut into).await?;
        Ok(into)
    }
}

async fn listings(subject: &Subject) {
    let p = "listings/";
    for key in ["a", "b-1", "b/1", "b/2", "b/c/3", "b0", "c/", "d/e/f/g", "z"] {
        subject.writer.put(&format!("{p}{key}"), key.as_bytes()).await;
    }
    let flat = ["a", "b-1", "b/1", "b/2", "b/c/3", "b0", "c/", "d/e/f/g", "z"];
    let rolled = ["a", "b-1", "[b/]", "b0", "[c/]", "[d/]", "z"];
    for max in [1, 2, 3, 1000] {
        assert_eq!(subject.names(p, false, ListFrom::Start, max).await, flat, "{max}");
        assert_eq!(subject.names(p, true, ListFrom::Start, max).await, rolled, "{max}");
    }
    // Byte order, not the order of names: `b-1` stands before `b/`, and `b0` behind it.
    let after = |key: &str| ListFrom::After(format!("{p}{key}"));
    assert_eq!(subject.names(p, false, after("b/2"), 2).await, flat[4..]);
    assert_eq!(subject.names(p, false, after("b/20"), 2).await, flat[4..]);
    assert_eq!(subject.names(p, false, after("z"), 2).await, [""; 0]);
    assert_eq!(subject.names(p, true, after("b-1"), 2).await, rolled[2..]);
    assert_eq!(subject.names(p, true, after("b/\u{10ffff}"), 2).await, rolled[3..]);
    // A marker object is listed as an object of its own prefix.
    assert_eq!(subject.names("listings/c/", true, ListFrom::Start, 9).await, [""]);
    assert_eq!(subject.names("listings/none/", true, ListFrom::Start, 9).await, [""; 0]);

    let pages = subject.pages(p, false, ListFrom::Start, 1000).await;
    let ListEntry::Object(listed) = &pages[0].entries[2] else { panic!("{pages:?}") };
    assert_eq!(listed.version.size_bytes, 3);
    // What a listing tells of an object is what a HEAD tells.
    assert_eq!(*listed, subject.store.head("listings/b/1").await.unwrap().meta);
}

async fn odd_keys(subject: &Subject) {
    let p = "odd/";
    let long = "x".repeat(1024 - p.len());
    let mut keys = vec![
        " lead and trail ",
        "a+b",
        "a%20b",
        "a%2Fb",
        "a//b",
        "a?b=c&d#e",
        "a\\b",
        "ä/ö",
        "日本/🦀",
        "quote'\"<>&",
        "semi;colon:at@",
        "tab\tnew\nline",
        "ctrl\u{1}\u{7f}",
        "dots/../.",
        "tilde~(x)*!$",
        long.as_str(),
    ];
    keys.retain(|key| !subject.beyond.contains(key));
    for key in &keys {
        subject.writer.put(&format!("{p}{key}"), key.as_bytes()).await;
    }
    keys.sort_unstable();
    for max in [3, 1000] {
        assert_eq!(subject.names(p, false, ListFrom::Start, max).await, keys, "{max}");
    }
    for key in keys {
        let whole = format!("{p}{key}");
        let version = subject.version(&whole).await;
        assert_eq!((&version.key, version.size_bytes), (&whole, key.len() as u64));
        let got = subject.get(&version, 0..key.len() as u64).await;
        assert_eq!(got, Ok(key.as_bytes().to_owned()), "{key:?}");
    }
    assert_eq!(subject.names("odd/a//", true, ListFrom::Start, 9).await, ["b"]);
    assert_eq!(subject.names("odd/日本/", true, ListFrom::Start, 9).await, ["🦀"]);
    let after = ListFrom::After("odd/a+b".to_owned());
    assert_eq!(subject.names("odd/a+", false, after, 9).await, [""; 0]);
}

async fn heads(subject: &Subject) {
    subject.writer.put("heads/a/b", b"x").await;
    for absent in ["heads/none", "heads/a", "heads/a/", "heads/a/b/"] {
        assert_eq!(subject.store.head(absent).await, Err(StoreError::NotFound), "{absent}");
    }
    subject.writer.put("heads/empty", b"").await;
    let empty = subject.store.head("heads/empty").await.unwrap().meta;
    assert_eq!((empty.version.size_bytes, empty.archived), (0, false));
    assert!(empty.version.etag.starts_with('"') && empty.version.etag.ends_with('"'));
}

async fn ranges(subject: &Subject) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    subject.writer.put("ranges/object", &bytes).await;
    let version = subject.version("ranges/object").await;
    for range in [0..1, 0..100_000, 1..99_999, 50_000..50_001, 99_999..100_000, 65_000..66_000] {
        let at = |offset| usize::try_from(offset).unwrap();
        let want = &bytes[at(range.start)..at(range.end)];
        assert_eq!(subject.get(&version, range.clone()).await.unwrap(), want, "{range:?}");
    }
    // A target with no room to spare gets exactly the range.
    let mut exact = Vec::new().limit(10);
    subject.store.get_range(&version, 5..15, &mut exact).await.unwrap();
    assert_eq!(exact.taken(), &bytes[5..15]);
}

async fn versions(subject: &Subject) {
    let key = "versions/object";
    subject.writer.put(key, b"the first one").await;
    let old = subject.version(key).await;
    subject.writer.put(key, b"another").await;
    assert_eq!(subject.get(&old, 0..5).await, Err(StoreError::Changed));
    let new = subject.version(key).await;
    assert_ne!(old.etag, new.etag);
    assert_eq!(subject.get(&new, 0..7).await, Ok(b"another".to_vec()));
    subject.writer.delete(key).await;
    assert_eq!(subject.get(&new, 0..7).await, Err(StoreError::NotFound));
    assert_eq!(subject.store.head(key).await, Err(StoreError::NotFound));
}

struct Memory(Arc<MemoryStore>);

#[async_trait]
impl Writer for Memory {
    async fn put(&self, key: &str, bytes: &[u8]) {
        self.0.put(key, bytes.to_vec());
    }
    async fn delete(&self, key: &str) {
        self.0.delete(key);
    }
}

/// What a shared cache needs of the store that holds its entries: a PUT that one of several mounts
/// succeeds with, in several pieces; and how old it is.
async fn entries(store: S3Store) {
    let entries = S3Entries::new(store, "of/nodes/".to_owned());
    assert!(entries.get("k", 0..100).await.unwrap().is_none());
    let claim = [Bytes::from_static(b"clai"), Bytes::from_static(b"med")];
    assert!(entries.put("k", &claim, true).await.unwrap());
    assert!(!entries.put("k", &[Bytes::from_static(b"others'")], true).await.unwrap());
    let mut found = entries.get("k", 0..100).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    found.body.take(7, &mut bytes).await.unwrap();
    assert_eq!((found.length, &*bytes), (7, &b"claimed"[..]));
    assert!(found.age.is_some_and(|age| age.as_secs() < 3600), "{:?}", found.age);
    assert!(entries.put("k", &[Bytes::from_static(b"the entry")], false).await.unwrap());
    assert_eq!(entries.get("k", 4..7).await.unwrap().unwrap().length, 9);
}

#[async_trait]
impl Writer for devserver::Bucket {
    async fn put(&self, key: &str, bytes: &[u8]) {
        devserver::Bucket::put(self, key, bytes.to_vec());
    }
    async fn delete(&self, key: &str) {
        devserver::Bucket::delete(self, key);
    }
}

fn config(endpoint: &str) -> StoreConfig {
    StoreConfig {
        endpoint_url: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        ..StoreConfig::default()
    }
}

fn keys(server: &devserver::Server) -> Keys {
    let devserver::Credentials { access_key, secret_key } = server.credentials();
    Keys { access_key_id: access_key.to_owned(), secret_access_key: secret_key.to_owned() }
}

#[tokio::test]
async fn the_store_in_memory_keeps_the_contract() {
    let store = Arc::new(MemoryStore::new());
    contract(Arc::clone(&store) as Arc<dyn ObjectStore>, Memory(store)).await;
}

#[tokio::test]
async fn s3_over_http_keeps_the_contract() {
    let server = devserver::Server::builder().start().await.unwrap();
    let bucket = server.bucket("contract");
    let config = config(&server.endpoint_url());
    let store = S3Store::connect_with("contract", &config, &keys(&server)).await.unwrap();
    contract(Arc::new(store), bucket).await;
    assert!(server.counts().requests() > 100, "the requests went over HTTP");
    entries(S3Store::connect_with("contract", &config, &keys(&server)).await.unwrap()).await;
}

#[tokio::test]
async fn an_unsigned_s3_keeps_the_contract_on_a_public_bucket() {
    let server = devserver::Server::builder().start().await.unwrap();
    let bucket = server.bucket("contract");
    bucket.set_public(true);
    let config = StoreConfig { no_sign_request: true, ..config(&server.endpoint_url()) };
    let store = S3Store::connect("contract", &config).await.unwrap();
    contract(Arc::new(store), bucket).await;
}

#[tokio::test]
async fn s3_reports_each_refusal_as_what_it_is() {
    let server = devserver::Server::builder().start().await.unwrap();
    let bucket = server.bucket("contract");
    let info = bucket.put("cold", "x");
    bucket.set_storage_class("cold", "GLACIER");
    let config = config(&server.endpoint_url());
    let list = ListRequest {
        prefix: String::new(),
        delimited: true,
        from: ListFrom::Start,
        max_keys: 10,
        any_order: false,
    };

    let right = keys(&server);
    let store = S3Store::connect_with("contract", &config, &right).await.unwrap();
    let page = store.list_page(&list).await.unwrap();
    let ListEntry::Object(cold) = &page.entries[0] else { panic!("{page:?}") };
    assert!(cold.archived && store.head("cold").await.unwrap().meta.archived);
    let version =
        ObjectVersion { key: "cold".to_owned(), etag: format!("\"{}\"", info.etag), size_bytes: 1 };
    let got = store.get_range(&version, 0..1, &mut Vec::new()).await;
    assert_eq!(got, Err(StoreError::Archived));

    let none = S3Store::connect_with("no-such", &config, &right).await.unwrap();
    assert_eq!(none.list_page(&list).await, Err(StoreError::NoSuchBucket));

    let wrong = Keys { secret_access_key: "wrong".to_owned(), ..right.clone() };
    let denied = S3Store::connect_with("contract", &config, &wrong).await.unwrap();
    for refused in [
        denied.list_page(&list).await.map(drop),
        denied.head("cold").await.map(drop),
        denied.get_range(&version, 0..1, &mut Vec::new()).await,
    ] {
        // A HEAD has no body to say what was wrong.
        let Err(StoreError::SignatureRefused(why) | StoreError::Denied(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(!why.contains("wrong"), "a secret is never shown: {why}");
    }

    bucket.set_region(Some("eu-west-1"));
    assert_eq!(
        store.list_page(&list).await,
        Err(StoreError::WrongRegion(Some("eu-west-1".to_owned())))
    );
    bucket.set_region(None);

    server.set_rate_limit(Some(0));
    assert_eq!(store.list_page(&list).await, Err(StoreError::Throttled { retry_after: None }));
    assert_eq!(store.head("cold").await, Err(StoreError::Throttled { retry_after: None }));
}

#[tokio::test]
async fn one_call_of_the_store_is_one_request() {
    let server = devserver::Server::builder().start().await.unwrap();
    server.bucket("contract").put("a", "hello");
    let config = config(&server.endpoint_url());
    let store = S3Store::connect_with("contract", &config, &keys(&server)).await.unwrap();
    assert_eq!(server.counts().requests(), 0, "connecting asks nothing");
    let version = store.head("a").await.unwrap().meta.version;
    store.get_range(&version, 1..3, &mut Vec::new()).await.unwrap();
    let counts = server.counts();
    assert_eq!((counts.head, counts.get, counts.list, counts.other), (1, 1, 0, 0));
    // Nor are failures asked again: that is the retrying layer's.
    server.set_rate_limit(Some(0));
    store.head("a").await.unwrap_err();
    assert_eq!(server.counts().head, 2);
    assert_eq!(server.counts().connections, 1, "connections are kept");
}

/// A server that answers every request with these bytes and closes.
async fn answering(answer: String) -> S3Store {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 8192];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    });
    let config = StoreConfig { no_sign_request: true, ..config(&url) };
    S3Store::connect("contract", &config).await.unwrap()
}

/// An answer to `bytes=2-5` of `0123456789`, with this head and body.
async fn got(head: &str, body: &str) -> (Result<(), StoreError>, Vec<u8>) {
    let store = answering(format!("HTTP/1.1 {head}\r\n\r\n{body}")).await;
    let version = ObjectVersion { key: "k".to_owned(), etag: "\"e\"".to_owned(), size_bytes: 10 };
    let mut into = Vec::new();
    (store.get_range(&version, 2..6, &mut into).await, into)
}

#[tokio::test]
async fn a_body_that_is_not_what_was_asked_for_is_never_taken() {
    for (head, body) in [
        // Another range, a clipped one, another length of the object, none told.
        ("206 P\r\nContent-Range: bytes 3-6/10\r\nContent-Length: 4\r\nETag: \"e\"", "3456"),
        ("206 P\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\nETag: \"e\"", "234"),
        ("206 P\r\nContent-Range: bytes 2-5/11\r\nContent-Length: 4\r\nETag: \"e\"", "2345"),
        ("206 P\r\nContent-Range: bytes 2-5/*\r\nContent-Length: 4\r\nETag: \"e\"", "2345"),
        ("206 P\r\nContent-Length: 4\r\nETag: \"e\"", "2345"),
        // Range ignored.
        ("200 OK\r\nContent-Length: 10\r\nETag: \"e\"", "0123456789"),
        // A longer body than the range, also without its length; one without a version.
        ("206 P\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 5\r\nETag: \"e\"", "23456"),
        ("206 P\r\nContent-Range: bytes 2-5/10\r\nETag: \"e\"", "23456"),
        ("206 P\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 4", "2345"),
        ("416 R\r\nContent-Length: 0", ""),
        ("418 T\r\nContent-Length: 0", ""),
    ] {
        let (result, taken) = got(head, body).await;
        assert!(
            matches!(result, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
            "{head}: {result:?}"
        );
        assert_eq!(taken, b"", "{head}");
    }
    let other = "206 P\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 4\r\nETag: \"f\"";
    assert_eq!(got(other, "2345").await, (Err(StoreError::Changed), Vec::new()));
}

#[tokio::test]
async fn a_get_that_is_refused_says_why() {
    let error = |code: &str, more: &str| {
        format!(
            "<?xml?>\n<Error><Code>{code}</Code><Message>Why &amp; how.</Message>{more}</Error>"
        )
    };
    let denied = |text: &str| StoreError::Denied(text.to_owned());
    let unsigned = |text: &str| StoreError::SignatureRefused(text.to_owned());
    let west = || StoreError::WrongRegion(Some("eu-west-1".to_owned()));
    let unavailable = |text: &str| StoreError::Unavailable(text.to_owned());
    for (head, body, want) in [
        ("404 N", error("NoSuchKey", "<Key>k</Key>"), StoreError::NotFound),
        ("404 N", error("NoSuchBucket", ""), StoreError::NoSuchBucket),
        ("404 N", String::new(), StoreError::NotFound),
        ("412 P", error("PreconditionFailed", ""), StoreError::Changed),
        ("412 P", String::new(), StoreError::Changed),
        ("403 F", error("AccessDenied", ""), denied("403 AccessDenied: Why & how")),
        (
            "403 F\r\nx-amz-request-id: 1A",
            error("SignatureDoesNotMatch", ""),
            unsigned("403 SignatureDoesNotMatch: Why & how (request 1A)"),
        ),
        ("403 F", error("InvalidAccessKeyId", ""), unsigned("403 InvalidAccessKeyId: Why & how")),
        (
            "403 F",
            error("RequestTimeTooSkewed", ""),
            unsigned("403 RequestTimeTooSkewed: Why & how; is this machine's clock right?"),
        ),
        ("400 B", error("ExpiredToken", ""), unsigned("400 ExpiredToken: Why & how")),
        ("403 F", error("InvalidObjectState", ""), StoreError::Archived),
        ("403 F", "<html>Forbidden".to_owned(), denied("403")),
        (
            "503 S\r\nRetry-After: 1",
            error("SlowDown", ""),
            StoreError::Throttled { retry_after: Some(std::time::Duration::from_secs(1)) },
        ),
        ("503 S", String::new(), StoreError::Throttled { retry_after: None }),
        ("429 T", String::new(), StoreError::Throttled { retry_after: None }),
        ("500 I", error("InternalError", ""), unavailable("500 InternalError: Why & how")),
        ("502 B", "<html>Bad gateway</html>".to_owned(), unavailable("502")),
        (
            "301 M\r\nx-amz-bucket-region: eu-west-1",
            error("PermanentRedirect", "<Endpoint>b.s3.example</Endpoint>"),
            west(),
        ),
        ("400 B", error("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), west()),
    ] {
        let (result, taken) =
            got(&format!("{head}\r\nContent-Length: {}", body.len()), &body).await;
        assert_eq!((result, taken), (Err(want.clone()), Vec::new()), "{head} {body}");
        // Chunked, and until the connection ends.
        let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let chunks = if body.is_empty() { "0\r\n\r\n" } else { &chunks };
        let (result, _) = got(&format!("{head}\r\nTransfer-Encoding: chunked"), chunks).await;
        assert_eq!(result, Err(want.clone()), "{head} {body} in chunks");
        let (result, _) = got(head, &body).await;
        assert_eq!(result, Err(want), "{head} {body} without a length");
    }
}

#[tokio::test]
async fn a_redirected_get_goes_nowhere() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = elsewhere.local_addr().unwrap();
    for status in [301, 302, 307, 308] {
        let head = format!(
            "{status} R\r\nLocation: http://{address}/contract/k\r\nContent-Length: 0\r\n\
             x-amz-bucket-region: eu-west-1"
        );
        let (result, _) = got(&head, "").await;
        assert_eq!(result, Err(StoreError::WrongRegion(Some("eu-west-1".to_owned()))), "{status}");
    }
    let asked = tokio::time::timeout(std::time::Duration::ZERO, elsewhere.accept()).await;
    assert!(asked.is_err(), "nobody connected");
}

#[tokio::test]
async fn what_a_broken_body_has_brought_is_a_beginning_of_the_range() {
    let head = "206 P\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 4\r\nETag: \"e\"";
    let (result, taken) = got(head, "23").await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    assert_eq!(taken, b"23");
    assert_eq!(got(head, "2345").await, (Ok(()), b"2345".to_vec()));
    let without_length = "206 P\r\nContent-Range: bytes 2-5/10\r\nETag: \"e\"";
    assert_eq!(got(without_length, "2345").await, (Ok(()), b"2345".to_vec()));
}

#[tokio::test]
async fn a_listing_that_makes_no_sense_is_a_contradiction() {
    let head = "<KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>";
    let entry = "<Contents><Key>k</Key><Size>1</Size><ETag>e</ETag>\
                 <LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>";
    let whole = |inner: &str| format!("<ListBucketResult>{inner}</ListBucketResult>");
    for (body, good) in [
        (whole(&format!("{head}{entry}")), true),
        (whole(&head.replace('1', "0")), true),
        ("It works!".to_owned(), false),
        ("<html></html>".to_owned(), false),
        (format!("<ListBucketResult>{head}"), false),
        // What an entry does not tell, a HEAD will.
        (whole(&format!("{head}<Contents><Key>k</Key></Contents>")), true),
        (whole("<IsTruncated>true</IsTruncated>"), false),
        (whole(entry), false),
        (String::new(), false),
    ] {
        // With a length, in chunks, and until the connection ends.
        let length = body.len();
        let chunk =
            if body.is_empty() { body.clone() } else { format!("{length:x}\r\n{body}\r\n") };
        for answer in [
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"),
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
        ] {
            let page = answering(answer.clone()).await.list_page(&everything()).await;
            match page {
                Ok(_) => assert!(good, "{answer}"),
                Err(StoreError::Nonsense(Nonsense::Protocol(_))) => assert!(!good, "{answer}"),
                Err(other) => panic!("{answer}: {other}"),
            }
        }
    }
}

fn everything() -> ListRequest {
    ListRequest {
        prefix: String::new(),
        delimited: true,
        from: ListFrom::Start,
        max_keys: 10,
        any_order: false,
    }
}

#[tokio::test]
async fn a_listing_that_breaks_off_is_asked_for_again() {
    let page = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    for head in ["Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1000\r\n"] {
        let got = answering(format!("HTTP/1.1 200 OK\r\n{head}{page}")).await;
        let got = got.list_page(&everything()).await;
        assert!(got.as_ref().is_err_and(StoreError::is_transient), "{head}: {got:?}");
    }
}

#[tokio::test]
async fn a_listing_that_is_refused_says_why() {
    let error = |code: &str, more: &str| {
        format!("<Error><Code>{code}</Code><Message>Why &amp; how.</Message>{more}</Error>")
    };
    let denied = |text: &str| StoreError::Denied(text.to_owned());
    let unsigned = |text: &str| StoreError::SignatureRefused(text.to_owned());
    let west = || StoreError::WrongRegion(Some("eu-west-1".to_owned()));
    for (head, body, want) in [
        ("404 N", error("NoSuchBucket", ""), StoreError::NoSuchBucket),
        ("403 F", error("AccessDenied", ""), denied("403 AccessDenied: Why & how")),
        ("400 B", error("ExpiredToken", ""), unsigned("400 ExpiredToken: Why & how")),
        ("503 S", error("SlowDown", ""), StoreError::Throttled { retry_after: None }),
        ("429 T", String::new(), StoreError::Throttled { retry_after: None }),
        ("502 B", "<html>".to_owned(), StoreError::Unavailable("502".to_owned())),
        ("307 T\r\nx-amz-bucket-region: eu-west-1", error("TemporaryRedirect", ""), west()),
        ("400 B", error("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), west()),
    ] {
        let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(answering(answer).await.list_page(&everything()).await, Err(want), "{body}");
    }
}

/// A server that sends this much of a body, for which it finds `head` fitting; what of it was
/// taken.
async fn flooding(head: &str, bytes: usize) -> (S3Store, Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (head, taken) = (format!("HTTP/1.1 {head}\r\n\r\n"), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = connection.read(&mut [0; 8192]).await;
            let _ = connection.write_all(head.as_bytes()).await;
            let piece = "<Contents><Key>aaaaaaaaaaaaaaaaaaaaaaa</Key></Contents>".repeat(1024);
            for _ in 0..bytes / piece.len() {
                if connection.write_all(piece.as_bytes()).await.is_err() {
                    break;
                }
                counted.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    });
    let config = StoreConfig { no_sign_request: true, ..config(&url) };
    (S3Store::connect("contract", &config).await.unwrap(), taken)
}

#[tokio::test]
async fn of_an_endless_listing_no_more_is_taken_than_a_page_may_have() {
    const MIB: usize = 1 << 20;
    for (head, most) in [
        // Not a byte of it, but what fits into the sockets.
        ("200 OK\r\nContent-Length: 16777216", 8 * MIB),
        ("200 OK", 16 * MIB),
        ("500 I", 16 * MIB),
    ] {
        let (store, taken) = flooding(head, 64 * MIB).await;
        let got = store.list_page(&everything()).await;
        assert!(got.as_ref().is_err_and(StoreError::is_transient), "{head}: {got:?}");
        let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
        assert!(taken < most, "{head}: {taken} bytes");
    }
}

/// Puts TLS in front of a server, with a certificate that nobody knows; its URL and the
/// certificate.
async fn behind_tls(server: &devserver::Server) -> (String, String) {
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    // As MinIO does: who offers HTTP/2 gets it, and this one could not speak it.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let behind = server.address();
    tokio::spawn(async move {
        loop {
            let (plain, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that refuses the certificate is what some tests are about.
                let Ok(mut front) = acceptor.accept(plain).await else { return };
                let mut back = tokio::net::TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
            });
        }
    });
    (url, made.cert.pem())
}

#[tokio::test]
async fn a_certificate_is_believed_only_when_somebody_says_so() {
    let server = devserver::Server::builder().start().await.unwrap();
    let bucket = server.bucket("contract");
    let (url, certificate) = behind_tls(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, certificate).unwrap();

    let unknown = config(&url);
    let store = S3Store::connect_with("contract", &unknown, &keys(&server)).await.unwrap();
    let Err(StoreError::Unreachable(why)) = store.probe("").await else { panic!("believed") };
    assert!(why.contains("certificate"), "{why}");
    assert_eq!(server.counts().requests(), 0);

    let trusted = StoreConfig { ca_bundle: Some(bundle), ..config(&url) };
    let store = S3Store::connect_with("contract", &trusted, &keys(&server)).await.unwrap();
    contract(Arc::new(store), bucket).await;

    let anybody = StoreConfig { no_verify_tls: true, ..config(&url) };
    let store = S3Store::connect_with("contract", &anybody, &keys(&server)).await.unwrap();
    assert_eq!(store.probe("").await, Ok(true));
}

#[tokio::test]
async fn bodies_of_every_size_arrive_whole_and_leave_their_connection_to_the_next() {
    const KIB: usize = 1 << 10;
    let server = devserver::Server::builder().start().await.unwrap();
    let bytes: Vec<u8> = (0..=250).flat_map(|n| [n; 7]).cycle().take(2048 * KIB).collect();
    server.bucket("contract").put("large", bytes.clone());
    let (over_tls, _) = behind_tls(&server).await;
    for url in [server.endpoint_url(), over_tls] {
        let config = StoreConfig { no_verify_tls: true, ..config(&url) };
        let store = S3Store::connect_with("contract", &config, &keys(&server)).await.unwrap();
        let version = store.head("large").await.unwrap().meta.version;
        // Around the sizes of reads, TLS records, blocks and batches.
        for size in [1, 7, 8, 16, 127, 128, 129, 160, 511, 513, 1025, 2047] {
            for length in [size * KIB - 1, size * KIB, size * KIB + 1] {
                let mut into = Vec::with_capacity(length);
                store.get_range(&version, 3..3 + length as u64, &mut into).await.unwrap();
                assert!(into == bytes[3..3 + length], "{length} bytes from {url}");
            }
        }
    }
    assert_eq!(server.counts().connections, 2);
}

/// Through the SDK itself, since another server has no other door.
struct Sdk {
    client: aws_sdk_s3::Client,
}

#[async_trait]
impl Writer for Sdk {
    async fn put(&self, key: &str, bytes: &[u8]) {
        let body = bytes.to_vec().into();
        self.client.put_object().bucket("contract").key(key).body(body).send().await.unwrap();
    }
    async fn delete(&self, key: &str) {
        self.client.delete_object().bucket("contract").key(key).send().await.unwrap();
    }
}

#[tokio::test]
async fn s3_keeps_the_contract_on_a_server_that_others_wrote() {
    let Ok(endpoint) = std::env::var("FASTS3_CONTRACT_ENDPOINT") else {
        eprintln!("FASTS3_CONTRACT_ENDPOINT is not set: nothing to do");
        return;
    };
    let keys =
        Keys { access_key_id: "testing".to_owned(), secret_access_key: "testing".to_owned() };
    let credentials =
        aws_sdk_s3::config::Credentials::new("testing", "testing", None, None, "test");
    let sdk = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .endpoint_url(&endpoint)
        .force_path_style(true)
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .credentials_provider(credentials)
        .build();
    let client = aws_sdk_s3::Client::from_conf(sdk);
    client.create_bucket().bucket("contract").send().await.unwrap();
    let store = S3Store::connect_with("contract", &config(&endpoint), &keys).await.unwrap();
    entries(S3Store::connect_with("contract", &config(&endpoint), &keys).await.unwrap()).await;
    // moto's web framework routes by a decoded path, and finds no route across a line's end.
    contract_but(&["tab\tnew\nline"], Arc::new(store), Sdk { client }).await;
}
