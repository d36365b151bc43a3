//! Delays and bandwidth. Only that they are no less than set: how much more depends on the machine.

mod common;

use std::time::{Duration, Instant};

use common::server;

#[tokio::test]
async fn first_bytes_and_pages_take_their_time() {
    let (server, client) = server();
    server.bucket("data").put("a", "x");
    let (first_byte, page) = (Duration::from_millis(20), Duration::from_millis(30));
    server.set_first_byte_latency(first_byte);
    server.set_list_latency(page);
    let start = Instant::now();
    client.get_object().bucket("data").key("a").send().await.unwrap();
    assert!(start.elapsed() >= first_byte);
    let start = Instant::now();
    client.head_object().bucket("data").key("a").send().await.unwrap();
    assert!(start.elapsed() >= first_byte);
    let start = Instant::now();
    client.list_objects_v2().bucket("data").send().await.unwrap();
    assert!(start.elapsed() >= page);
}

#[tokio::test]
async fn a_connection_sends_no_faster_than_its_bandwidth() {
    let (server, client) = server();
    server.bucket("data").put_synthetic("a", 1_000_000);
    server.set_bandwidth_per_connection(Some(10_000_000));
    for _ in 0..2 {
        let start = Instant::now();
        let get = client.get_object().bucket("data").key("a").send().await.unwrap();
        assert_eq!(get.body.collect().await.unwrap().into_bytes().len(), 1_000_000);
        // A tenth of a second, less what the connection may catch up.
        assert!(start.elapsed() >= Duration::from_millis(95), "{:?}", start.elapsed());
    }
}
