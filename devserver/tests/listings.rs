//! Listings, paged through in every way, against a listing written down without any cleverness.

mod common;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use common::{raw, refusal, server};
use devserver::Family;
use proptest::prelude::*;

/// The expected sum of all pages: filter, then roll up.
fn naive(keys: &[String], prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
    let mut keys = keys.to_vec();
    keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    let kept = keys.iter().filter(|key| key.starts_with(prefix) && key.as_str() > after);
    let mut items: Vec<String> = kept
        .map(|key| match key[prefix.len()..].find(delimiter) {
            Some(at) if !delimiter.is_empty() => {
                format!("{}…", &key[..prefix.len() + at + delimiter.len()])
            }
            _ => key.clone(),
        })
        .collect();
    items.dedup();
    items
}

/// The items of a page in byte order, common prefixes with an ellipsis.
fn items(page: &ListObjectsV2Output) -> Vec<String> {
    let keys: Vec<_> = page.contents().iter().map(|o| o.key().unwrap().to_owned()).collect();
    let prefixes: Vec<_> =
        page.common_prefixes().iter().map(|p| p.prefix().unwrap().to_owned()).collect();
    assert!(keys.is_sorted_by(|a, b| a < b) && prefixes.is_sorted_by(|a, b| a < b));
    assert_eq!(page.key_count(), i32::try_from(keys.len() + prefixes.len()).ok());
    let mut both: Vec<_> = keys.into_iter().map(|key| (key, "")).collect();
    both.extend(prefixes.into_iter().map(|prefix| (prefix, "…")));
    both.sort();
    both.into_iter().map(|(text, mark)| text + mark).collect()
}

async fn all_pages(
    client: &Client,
    prefix: &str,
    delimiter: &str,
    after: &str,
    max_keys: i32,
) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut token = None;
    loop {
        let list = client.list_objects_v2().bucket("data").prefix(prefix).max_keys(max_keys);
        let list = list.set_delimiter(Some(delimiter.to_owned()).filter(|d| !d.is_empty()));
        let list = list.set_start_after(Some(after.to_owned()).filter(|a| !a.is_empty()));
        let page = list.set_continuation_token(token).send().await.unwrap();
        let items = items(&page);
        assert!(items.len() <= usize::try_from(max_keys).unwrap());
        all.extend(items);
        token = page.next_continuation_token().map(str::to_owned);
        assert_eq!(page.is_truncated(), Some(token.is_some()));
        if token.is_none() {
            return all;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_pages_together_are_the_listing(
        keys in proptest::collection::vec("[a./0-]{1,5}|[aé\u{10ffff}/]{1,4}", 0..25),
        deleted in proptest::collection::vec(0..12_u64, 0..3),
        (prefix, delimiter, after) in ("[a./0]{0,2}", "|/|a|//|\\.", "|[a./0-]{1,3}"),
        max_keys in 1..5_i32,
    ) {
        let (server, client) = server();
        let bucket = server.bucket("data");
        let families = [
            Family { prefix: "a/0".into(), count: 12, size: 1, suffix: String::new() },
            Family { prefix: "a/".into(), count: 3, size: 1, suffix: "/.".into() },
        ];
        let mut all: Vec<String> = keys;
        for family in families {
            all.extend((0..family.count).map(|index| family.key(index)));
            for index in deleted.iter().filter(|index| **index < family.count) {
                all.retain(|key| *key != family.key(*index));
            }
            bucket.put_family(family.clone());
            for index in deleted.iter().filter(|index| **index < family.count) {
                bucket.delete(&family.key(*index));
            }
        }
        for key in &all {
            if bucket.info(key).is_none() {
                bucket.put(key, "");
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listed = runtime.block_on(all_pages(&client, &prefix, &delimiter, &after, max_keys));
        let mut expected = naive(&all, &prefix, &delimiter, &after);
        expected.dedup();
        prop_assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn ten_million_keys_are_paged_from_anywhere() {
    let (server, client) = server();
    let family =
        Family { prefix: "k/".into(), count: 10_000_000, size: 5, suffix: "/x.jpg".into() };
    server.bucket("data").put_family(family.clone());
    let list = || client.list_objects_v2().bucket("data");
    let page = list().start_after(family.key(4_999_999)).send().await.unwrap();
    assert_eq!(page.contents().len(), 1000);
    assert_eq!(page.contents()[0].key(), Some("k/5000000/x.jpg"));
    assert_eq!(page.contents()[0].size(), Some(5));
    let token = page.next_continuation_token().unwrap();
    let page = list().continuation_token(token).max_keys(1).send().await.unwrap();
    assert_eq!(page.contents()[0].key(), Some("k/5001000/x.jpg"));
    let page = list().delimiter("/").send().await.unwrap();
    assert_eq!(items(&page), ["k/…"]);
    assert_eq!(page.is_truncated(), Some(false));
}

#[tokio::test]
async fn a_page_holds_no_more_than_a_thousand_and_may_hold_nothing() {
    let (server, client) = server();
    let family = Family { prefix: "k".into(), count: 1500, size: 0, suffix: String::new() };
    server.bucket("data").put_family(family);
    let list = |max_keys| client.list_objects_v2().bucket("data").max_keys(max_keys).send();
    let page = list(5000).await.unwrap();
    assert_eq!((page.contents().len(), page.max_keys()), (1000, Some(1000)));
    let page = list(0).await.unwrap();
    assert_eq!((page.key_count(), page.is_truncated()), (Some(0), Some(false)));
    assert_eq!(refusal(list(-1).await).0, 400);
    let list = client.list_objects_v2().bucket("data").continuation_token("nonsense").send().await;
    assert_eq!(refusal(list), (400, "InvalidArgument".into()));
}

#[tokio::test]
async fn a_listing_says_what_a_head_would() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    let info = bucket.put("a", "hello");
    bucket.set_storage_class("a", "GLACIER");
    let page = client.list_objects_v2().bucket("data").send().await.unwrap();
    let object = &page.contents()[0];
    assert_eq!(object.e_tag(), Some(format!("\"{}\"", info.etag).as_str()));
    assert_eq!(object.size(), Some(5));
    assert_eq!(object.storage_class().unwrap().as_str(), "GLACIER");
    let seconds = info.last_modified.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(object.last_modified().unwrap().secs().unsigned_abs(), seconds.as_secs());
    assert_eq!(page.name(), Some("data"));
    assert_eq!(page.prefix(), Some(""));
    assert_eq!(page.encoding_type(), None);
}

#[tokio::test]
async fn url_encoding_escapes_what_xml_cannot_carry() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    bucket.put("p q/\u{1}\n+~*-._é", "");
    bucket.put("p q/%/x", "");
    let page = client
        .list_objects_v2()
        .bucket("data")
        .prefix("p q/")
        .delimiter("/")
        .start_after("p ")
        .encoding_type(EncodingType::Url)
        .send()
        .await
        .unwrap();
    assert_eq!(page.contents()[0].key(), Some("p+q/%01%0A%2B%7E*-._%C3%A9"));
    assert_eq!(page.common_prefixes()[0].prefix(), Some("p+q/%25/"));
    assert_eq!(page.prefix(), Some("p+q/"));
    assert_eq!(page.delimiter(), Some("/"));
    assert_eq!(page.start_after(), Some("p+"));
    assert_eq!(page.encoding_type(), Some(&EncodingType::Url));
    let list = client.list_objects_v2().bucket("data").encoding_type("hex".into()).send().await;
    assert_eq!(refusal(list), (400, "InvalidArgument".into()));
}

#[tokio::test]
async fn the_first_version_of_listing_pages_by_marker() {
    let (server, client) = server();
    let bucket = server.bucket("data");
    for key in ["a", "b/1", "b/2", "c"] {
        bucket.put(key, "");
    }
    let mut seen = Vec::new();
    let mut marker = None;
    loop {
        let list = client.list_objects().bucket("data").delimiter("/").max_keys(1);
        let page = list.set_marker(marker).send().await.unwrap();
        seen.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
        seen.extend(page.common_prefixes().iter().map(|p| p.prefix().unwrap().to_owned()));
        marker = page.next_marker().map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b/", "c"]);
}

#[test]
fn a_bucket_may_be_named_by_the_host() {
    let (server, _) = server();
    let bucket = server.bucket("data");
    bucket.put("a", "x");
    bucket.set_public(true);
    let url = server.endpoint_url();
    let stream = std::net::TcpStream::connect(server.address()).unwrap();
    let request = "GET /a HTTP/1.1\r\nHost: data.localhost\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut &stream, request.as_bytes()).unwrap();
    let answer = std::io::read_to_string(stream).unwrap();
    assert!(answer.ends_with("\r\n\r\nx"), "{answer}");
    assert!(raw(&url, "GET", "/data/a", "").0.starts_with("http/1.1 200"));
}
