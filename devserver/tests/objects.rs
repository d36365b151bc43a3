//! GET, HEAD, PUT and DELETE, as a client sees them.

mod common;

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::StorageClass;
use common::{client, client_with, raw, refusal, server};
use devserver::{Family, Kind, Server};

async fn body(stream: ByteStream) -> Vec<u8> {
    stream.collect().await.unwrap().to_vec()
}

#[tokio::test]
async fn get_and_head_tell_the_same_about_an_object() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    let info = bucket.put("dir/hello", "hello, world");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    bucket.set_last_modified("dir/hello", time);

    let get = client.get_object().bucket("data").key("dir/hello").send().await.unwrap();
    let head = client.head_object().bucket("data").key("dir/hello").send().await.unwrap();
    let etag = format!("\"{}\"", info.etag);
    assert_eq!(get.e_tag(), Some(etag.as_str()));
    assert_eq!(head.e_tag(), Some(etag.as_str()));
    assert_eq!(get.content_length(), Some(12));
    assert_eq!(head.content_length(), Some(12));
    assert_eq!(get.last_modified().unwrap().secs(), 1_000_000_000);
    assert_eq!(head.last_modified().unwrap().secs(), 1_000_000_000);
    assert_eq!(get.accept_ranges(), Some("bytes"));
    assert_eq!(get.content_type(), Some("binary/octet-stream"));
    assert_eq!(get.content_range(), None);
    assert_eq!(get.storage_class(), None);
    assert_eq!(body(get.body).await, b"hello, world");
}

#[tokio::test]
async fn every_key_that_s3_allows_can_be_put_and_read() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    let long = "k".repeat(1024);
    let keys = [
        "a",
        "a/b",
        "a//b",
        "/",
        "//",
        "/a",
        "..",
        "../a",
        ".",
        "a/./b",
        "a/",
        "a b",
        "a+b",
        "a%20b",
        "a\u{1}\n\t\r\u{7f}b",
        "ü/日本/🦀",
        "a?b#c&d=e",
        "~*'()!$,;:@[]",
        "\u{0}",
        &long,
    ];
    for key in keys {
        client
            .put_object()
            .bucket("data")
            .key(key)
            .body(ByteStream::from(key.as_bytes().to_vec()))
            .send()
            .await
            .unwrap_or_else(|error| panic!("{key:?}: {error:?}"));
    }
    for key in keys {
        assert_eq!(bucket.bytes(key, 0..key.len() as u64), key.as_bytes());
        let get = client.get_object().bucket("data").key(key).send().await.unwrap();
        assert_eq!(body(get.body).await, key.as_bytes(), "{key:?}");
    }
}

#[tokio::test]
async fn ranges_are_answered_as_s3_does() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.put_synthetic("ten", 10);
    bucket.put("empty", "");
    for (range, first, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=2-5", 2, 6),
        ("bytes=9-9", 9, 10),
        ("bytes=4-", 4, 10),
        ("bytes=4-99", 4, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10),
    ] {
        let get = client.get_object().bucket("data").key("ten").range(range).send().await.unwrap();
        let told = format!("bytes {first}-{}/10", end - 1);
        assert_eq!(get.content_range(), Some(told.as_str()), "{range}");
        assert_eq!(get.content_length(), Some(i64::try_from(end - first).unwrap()));
        assert_eq!(body(get.body).await, bucket.bytes("ten", first..end), "{range}");
        let head =
            client.head_object().bucket("data").key("ten").range(range).send().await.unwrap();
        assert_eq!(head.content_range(), Some(told.as_str()), "{range}");
    }
    for (key, range) in [
        ("ten", "bytes=10-10"),
        ("ten", "bytes=10-"),
        ("ten", "bytes=-0"),
        ("empty", "bytes=0-"),
        ("empty", "bytes=-5"),
    ] {
        let get = client.get_object().bucket("data").key(key).range(range).send().await;
        assert_eq!(refusal(get), (416, "InvalidRange".into()), "{key} {range}");
    }
    bucket.set_public(true);
    let (head, body) = raw(&server.endpoint_url(), "GET", "/data/ten", "Range: bytes=1-2\r\n");
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert_eq!(body.len(), 2);
    let (head, body) = raw(&server.endpoint_url(), "HEAD", "/data/ten", "Range: bytes=1-2\r\n");
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert!(head.contains("content-length: 2"), "{head}");
    assert!(body.is_empty());
}

#[tokio::test]
async fn synthetic_bytes_are_the_same_however_they_are_read() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    let info = bucket.put_synthetic("big", 10 << 30);
    bucket.put_family(Family { prefix: "f/".into(), count: 10, size: 777, suffix: ".x".into() });
    for (first, last) in
        [(0, 300_000), ((1 << 32) - 77, (1 << 32) + 200_001), ((10 << 30) - 5, (10 << 30) - 1)]
    {
        let range = format!("bytes={first}-{last}");
        let get = client.get_object().bucket("data").key("big").range(range).send().await.unwrap();
        let bytes = body(get.body).await;
        assert_eq!(bytes.len() as u64, last + 1 - first);
        assert_eq!(devserver::content::first_difference(info.seed.unwrap(), first, &bytes), None);
    }
    let get = client.get_object().bucket("data").key("f/7.x").send().await.unwrap();
    assert_eq!(body(get.body).await, bucket.bytes("f/7.x", 0..777));
}

#[tokio::test]
async fn if_match_is_refused_once_the_object_was_overwritten() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    let first = bucket.put_synthetic("a", 100);
    let get = |etag: &str| {
        let etag = format!("\"{etag}\"");
        client.get_object().bucket("data").key("a").if_match(etag).range("bytes=0-9").send()
    };
    assert!(get(&first.etag).await.is_ok());
    let second = bucket.put_synthetic("a", 100);
    assert_eq!(refusal(get(&first.etag).await), (412, "PreconditionFailed".into()));
    assert!(get(&second.etag).await.is_ok());
    bucket.delete("a");
    assert_eq!(refusal(get(&second.etag).await), (404, "NoSuchKey".into()));
}

#[tokio::test]
async fn what_is_missing_is_404_with_a_body_only_for_get() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.set_public(true);
    let get = client.get_object().bucket("data").key("none").send().await;
    assert_eq!(refusal(get), (404, "NoSuchKey".into()));
    let get = client.get_object().bucket("other").key("none").send().await;
    assert_eq!(refusal(get), (404, "NoSuchBucket".into()));
    let list = client.list_objects_v2().bucket("other").send().await;
    assert_eq!(refusal(list), (404, "NoSuchBucket".into()));
    let head = client.head_bucket().bucket("other").send().await;
    assert_eq!(refusal(head).0, 404);
    assert!(client.head_bucket().bucket("data").send().await.is_ok());
    let (head, body) = raw(&server.endpoint_url(), "HEAD", "/data/none", "");
    assert!(head.starts_with("http/1.1 404"), "{head}");
    assert!(body.is_empty());
    let (head, body) = raw(&server.endpoint_url(), "GET", "/data/none", "");
    assert!(head.starts_with("http/1.1 404"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("<Code>NoSuchKey</Code>"));
}

#[tokio::test]
async fn archived_objects_have_a_head_but_no_body() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.put("cold", "x");
    for class in ["GLACIER", "DEEP_ARCHIVE"] {
        bucket.set_storage_class("cold", class);
        let get = client.get_object().bucket("data").key("cold").send().await;
        assert_eq!(refusal(get), (403, "InvalidObjectState".into()));
        let head = client.head_object().bucket("data").key("cold").send().await.unwrap();
        assert_eq!(head.storage_class(), Some(&StorageClass::from(class)));
    }
    bucket.set_storage_class("cold", "STANDARD_IA");
    let get = client.get_object().bucket("data").key("cold").send().await.unwrap();
    assert_eq!(get.storage_class(), Some(&StorageClass::StandardIa));
}

#[tokio::test]
async fn wrong_signatures_and_missing_ones_are_403() {
    let (server, _) = server();
    let bucket = server.bucket("data");
    bucket.put("a", "x");
    let url = server.endpoint_url();
    let wrong_secret = client_with(&url, devserver::ACCESS_KEY, "wrong", "us-east-1");
    let get = wrong_secret.get_object().bucket("data").key("a").send().await;
    assert_eq!(refusal(get), (403, "SignatureDoesNotMatch".into()));
    let wrong_key = client_with(&url, "AKIAWRONG", devserver::SECRET_KEY, "us-east-1");
    let list = wrong_key.list_objects_v2().bucket("data").send().await;
    assert_eq!(refusal(list), (403, "InvalidAccessKeyId".into()));

    let (head, body) = raw(&url, "GET", "/data/a", "");
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("<Code>AccessDenied</Code>"));
    bucket.set_public(true);
    assert!(raw(&url, "GET", "/data/a", "").0.starts_with("http/1.1 200"));
    assert!(raw(&url, "GET", "/data?list-type=2", "").0.starts_with("http/1.1 200"));
    assert!(raw(&url, "DELETE", "/data/a", "").0.starts_with("http/1.1 403"));
}

#[tokio::test]
async fn requests_for_another_region_are_sent_away() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.put("a", "x");
    bucket.set_public(true);
    bucket.set_region(Some("eu-north-1"));
    let url = server.endpoint_url();
    let get = client.get_object().bucket("data").key("a").send().await;
    assert_eq!(refusal(get), (400, "AuthorizationHeaderMalformed".into()));
    let right = client_with(&url, devserver::ACCESS_KEY, devserver::SECRET_KEY, "eu-north-1");
    assert!(right.get_object().bucket("data").key("a").send().await.is_ok());
    let place = right.get_bucket_location().bucket("data").send().await.unwrap();
    assert_eq!(place.location_constraint().unwrap().as_str(), "eu-north-1");
    for (method, path) in [("GET", "/data/a"), ("HEAD", "/data/a"), ("HEAD", "/data")] {
        let (head, _) = raw(&url, method, path, "");
        assert!(head.starts_with("http/1.1 301"), "{head}");
        assert!(head.contains("x-amz-bucket-region: eu-north-1"), "{head}");
    }
    bucket.set_region(None);
    assert!(client.get_object().bucket("data").key("a").send().await.is_ok());
}

#[tokio::test]
async fn requests_beyond_the_rate_limit_are_503() {
    let (server, client) = server();
    server.bucket("data").put("a", "x");
    // Too few a second to earn one while the test runs, unless it takes a second.
    server.set_rate_limit(Some(1));
    let get = || client.get_object().bucket("data").key("a").send();
    assert!(get().await.is_ok());
    assert_eq!(refusal(get().await), (503, "SlowDown".into()));
    server.set_rate_limit(None);
    assert!(get().await.is_ok());
}

#[tokio::test]
async fn requests_bytes_and_connections_are_counted_and_logged() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.put_synthetic("a b", 1000);
    let get = client.get_object().bucket("data").key("a b").range("bytes=10-109").send().await;
    body(get.unwrap().body).await;
    let before = server.counts();
    client.head_object().bucket("data").key("a b").send().await.unwrap();
    client.list_objects_v2().bucket("data").prefix("a ").delimiter("/").send().await.unwrap();
    client.delete_object().bucket("data").key("a b").send().await.unwrap();
    let counts = server.counts();
    assert_eq!((counts.get, counts.head, counts.list, counts.other), (1, 1, 1, 1));
    assert_eq!(counts.body_bytes, 100);
    assert!(counts.connections >= 1);
    assert_eq!((counts - before).requests(), 3);
    let log = server.log();
    assert_eq!(log.len(), 4);
    assert_eq!((log[0].kind, log[0].key.as_str()), (Kind::Get, "a b"));
    assert_eq!(log[0].bytes(), Some(10..110));
    assert_eq!(
        (log[2].kind, log[2].key.as_str(), log[2].delimiter.as_str()),
        (Kind::List, "a ", "/")
    );
    server.reset();
    assert_eq!(server.counts(), devserver::Counts::default());
    assert!(server.log().is_empty());
}

#[test]
fn a_blocking_server_serves_a_client_elsewhere_and_ends_when_dropped() {
    let server = Server::builder().start_blocking().unwrap();
    server.bucket("data").put("a", "x");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = server.endpoint_url();
    let get = client(&url).get_object().bucket("data").key("a").send();
    assert!(runtime.block_on(get).is_ok());
    // From inside a runtime, too.
    runtime.block_on(async { drop(Server::builder().start_blocking().unwrap()) });
    let address = server.address();
    drop(server);
    while std::net::TcpStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
}
