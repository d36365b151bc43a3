//! Every fault of the proxy, as the client meets it.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use common::{client, raw, refusal};
use devserver::proxy::{Fault, FaultProxy, Rule};
use devserver::{Bucket, Kind, Server};

const SIZE: u64 = 1_000_000;

struct Setup {
    server: Server,
    bucket: Bucket,
    proxy: FaultProxy,
    client: Client,
}

fn setup() -> Setup {
    let server = Server::builder().start_blocking().unwrap();
    let bucket = server.bucket("data");
    bucket.set_public(true);
    bucket.put_synthetic("a b", SIZE);
    bucket.put("z", "");
    let proxy = FaultProxy::start_blocking(server.address()).unwrap();
    let client = client(&proxy.endpoint_url());
    Setup { server, bucket, proxy, client }
}

/// Bytes of the body that came, whether it was complete, and whether they were right.
async fn get(setup: &Setup, range: Option<&str>) -> (u64, bool, bool) {
    let get =
        setup.client.get_object().bucket("data").key("a b").set_range(range.map(str::to_owned));
    let mut body = get.send().await.unwrap().body;
    let mut bytes = Vec::new();
    let complete = loop {
        match body.next().await {
            None => break true,
            Some(Ok(more)) => bytes.extend_from_slice(&more),
            Some(Err(_)) => break false,
        }
    };
    let seed = setup.bucket.info("a b").unwrap().seed.unwrap();
    let right = devserver::content::first_difference(seed, 0, &bytes).is_none();
    (bytes.len() as u64, complete, right)
}

#[tokio::test]
async fn without_a_rule_everything_passes_signatures_included() {
    let setup = setup();
    assert_eq!(get(&setup, None).await, (SIZE, true, true));
    assert!(setup.client.head_object().bucket("data").key("a b").send().await.is_ok());
    let put = setup.client.put_object().bucket("data").key("new").body(vec![7; 300_000].into());
    put.send().await.unwrap();
    assert_eq!(setup.bucket.info("new").unwrap().size, 300_000);
    let page = setup.client.list_objects_v2().bucket("data").send().await.unwrap();
    assert_eq!(page.key_count(), Some(3));
    assert!(setup.client.get_object().bucket("data").key("no").send().await.is_err());
}

#[tokio::test]
async fn a_body_breaks_off_where_it_is_told_to() {
    let setup = setup();
    for fault in [Fault::Reset { after: 70_000 }, Fault::Truncate { after: 70_000 }] {
        let rule = setup.proxy.add(Rule::on_get("a b", fault.clone()).times(1));
        assert_eq!(get(&setup, None).await, (70_000, false, true), "{fault:?}");
        assert_eq!(get(&setup, None).await, (SIZE, true, true), "after {fault:?}");
        assert_eq!(rule.hits(), 1);
    }
}

#[test]
fn a_reset_is_a_reset_and_a_truncation_is_not() {
    let setup = setup();
    let read = || {
        let address = setup.proxy.endpoint_url().replace("http://", "");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /data/a%20b HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new())
    };
    setup.proxy.add(Rule::on_all(Fault::Reset { after: 10 }).times(1));
    assert_eq!(read().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    setup.proxy.add(Rule::on_all(Fault::Truncate { after: 10 }).times(1));
    assert!(read().is_ok());
    setup.proxy.add(Rule::on_all(Fault::Hangup).times(1));
    assert_eq!(read().unwrap(), 0);
}

#[tokio::test]
async fn a_stall_ends_when_it_is_told_to_or_never() {
    let setup = setup();
    let pause = Duration::from_millis(50);
    setup.proxy.add(Rule::on_all(Fault::Stall { after: 5, pause: Some(pause) }).times(1));
    let start = Instant::now();
    assert_eq!(get(&setup, None).await, (SIZE, true, true));
    assert!(start.elapsed() >= pause);
    setup.proxy.add(Rule::on_all(Fault::Delay(pause)).times(1));
    let start = Instant::now();
    assert_eq!(get(&setup, None).await, (SIZE, true, true));
    assert!(start.elapsed() >= pause);
    setup.proxy.add(Rule::on_all(Fault::Stall { after: 5, pause: None }).times(1));
    let stalled = tokio::time::timeout(Duration::from_millis(100), get(&setup, None)).await;
    assert!(stalled.is_err());
    assert_eq!(get(&setup, None).await, (SIZE, true, true));
}

#[tokio::test]
async fn answers_contradict_themselves() {
    let setup = setup();
    let url = setup.proxy.endpoint_url();
    let raw = || raw(&url, "GET", "/data/a%20b", "Range: bytes=0-99\r\n");
    let expected = setup.bucket.bytes("a b", 0..100);

    setup.proxy.add(Rule::on_all(Fault::ContentRange("bytes 1-100/7".into())).times(1));
    let (head, body) = raw();
    assert!(head.contains("content-range: bytes 1-100/7"), "{head}");
    assert_eq!(body, expected);

    for wrong in [50, 150] {
        setup.proxy.add(Rule::on_all(Fault::ContentLength(wrong)).times(1));
        let (head, body) = raw();
        assert!(head.contains(&format!("content-length: {wrong}")), "{head}");
        assert_eq!(body, expected);

        setup.proxy.add(Rule::on_all(Fault::BodyLength(wrong)).times(1));
        let (head, body) = raw();
        assert!(head.contains(&format!("content-length: {wrong}")), "{head}");
        assert!(head.contains("content-range: bytes 0-99/1000000"), "{head}");
        assert_eq!(body.len() as u64, wrong);
        assert_eq!(body[..50], expected[..50]);
    }

    setup.proxy.add(Rule::on_all(Fault::Corrupt { at: 70 }).times(1));
    let (_, body) = raw();
    assert_eq!(body[..70], expected[..70]);
    assert_eq!(body[70], !expected[70]);
    assert_eq!(body[71..], expected[71..]);
    assert_eq!(raw().1, expected);
}

#[tokio::test]
async fn a_range_is_ignored_though_it_is_signed() {
    let setup = setup();
    setup.proxy.add(Rule::on_all(Fault::IgnoreRange).times(1));
    assert_eq!(get(&setup, Some("bytes=0-9")).await, (SIZE, true, true));
    assert_eq!(get(&setup, Some("bytes=0-9")).await, (10, true, true));
}

#[tokio::test]
async fn a_condition_a_place_and_an_encoding_are_ignored_though_they_are_signed() {
    let setup = setup();
    let get = || setup.client.get_object().bucket("data").key("a b").if_match("\"x\"").send();
    setup.proxy.add(Rule::on_all(Fault::IgnoreIfMatch).times(1));
    assert!(get().await.is_ok());
    assert_eq!(refusal(get().await).0, 412);

    let list = || {
        let list = setup.client.list_objects_v2().bucket("data").start_after("zzz");
        list.encoding_type(aws_sdk_s3::types::EncodingType::Url).send()
    };
    setup.proxy.add(Rule::on_list(Fault::IgnoreStartAfter).times(1));
    assert!(!list().await.unwrap().contents().is_empty());
    assert!(list().await.unwrap().contents().is_empty());
    setup.proxy.add(Rule::on_list(Fault::IgnoreEncodingType).times(1));
    assert_eq!(list().await.unwrap().encoding_type, None);
    assert!(list().await.unwrap().encoding_type.is_some());
}

#[tokio::test]
async fn errors_are_answered_for_the_server() {
    let setup = setup();
    let before = setup.server.counts();
    let get = || setup.client.get_object().bucket("data").key("a b").send();
    setup.proxy.add(Rule::on_all(Fault::slow_down()).times(2));
    assert_eq!(refusal(get().await), (503, "SlowDown".into()));
    assert_eq!(refusal(get().await), (503, "SlowDown".into()));
    setup.proxy.add(Rule::on_all(Fault::Status { status: 500, code: "InternalError".into() }));
    let head = setup.client.head_object().bucket("data").key("a b").send().await;
    assert_eq!(refusal(head).0, 500);
    setup.proxy.clear();
    assert!(get().await.is_ok());
    assert_eq!((setup.server.counts() - before).requests(), 1);
}

#[tokio::test]
async fn listings_are_broken_in_their_own_ways() {
    let setup = setup();
    let list = |token: Option<&str>| {
        let list = setup.client.list_objects_v2().bucket("data").max_keys(1);
        list.set_continuation_token(token.map(str::to_owned)).send()
    };
    let garbage = setup.proxy.add(Rule::on_list(Fault::Garbage).times(1));
    assert!(list(None).await.is_err());
    assert_eq!(garbage.hits(), 1);

    let first = list(None).await.unwrap();
    let token = first.next_continuation_token().unwrap();
    setup.proxy.add(Rule::on_list(Fault::RepeatToken).times(1));
    let second = list(Some(token)).await.unwrap();
    assert_eq!(second.contents()[0].key(), Some("z"));
    assert_eq!(second.next_continuation_token(), Some(token));
    setup.proxy.add(Rule::on_list(Fault::BackwardsPage).times(1));
    assert_eq!(list(Some(token)).await.unwrap().contents()[0].key(), Some("a b"));
    assert_eq!(list(Some(token)).await.unwrap().contents()[0].key(), Some("z"));
}

#[tokio::test]
async fn a_rule_sees_what_is_asked() {
    let setup = setup();
    let rule = setup.proxy.add(Rule::new(
        |request| {
            request.kind() == Kind::Get
                && request.key() == "a b"
                && request.range() == Some("bytes=5-5")
                && request.query("x-id").as_deref() == Some("GetObject")
        },
        Fault::slow_down(),
    ));
    let get = |range: &str| setup.client.get_object().bucket("data").key("a b").range(range).send();
    assert!(get("bytes=0-5").await.is_ok());
    assert!(get("bytes=5-5").await.is_err());
    assert_eq!(rule.hits(), 1);
}
