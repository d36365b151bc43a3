//! Against servers that send what a script says, byte for byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::store::{Nonsense, StoreError};

const LIMIT: Duration = Duration::from_secs(10);

/// What a server does once it has read a request.
#[derive(Clone, Copy)]
enum Act<'a> {
    /// Sends this, and awaits the next request.
    Send(&'a str),
    /// Sends this, and closes the connection.
    SendAndClose(&'a str),
    /// Sends this, and then nothing more.
    SendAndHang(&'a str),
}
use Act::{Send, SendAndClose, SendAndHang};

/// A server, and how often it was asked and connected to.
struct Scripted {
    url: String,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Each inner list is for one connection; when there are no more, none is accepted.
    async fn start<const N: usize>(script: [&[Act<'_>]; N]) -> Self {
        // What to send, and whether to close then.
        let script = script.map(|acts| {
            let acts = acts.iter().map(|act| match *act {
                Send(text) | SendAndHang(text) => (text.to_owned(), false),
                SendAndClose(text) => (text.to_owned(), true),
            });
            acts.collect::<Vec<_>>()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/b/k", listener.local_addr().unwrap());
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let server = Self { url, requests, connections };
        let (requests, connections) = (server.requests.clone(), server.connections.clone());
        tokio::spawn(async move {
            let mut kept = Vec::new();
            for acts in script {
                let (mut socket, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                let mut close = false;
                for (text, then_close) in acts {
                    let mut request = BytesMut::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        if socket.read_buf(&mut request).await.unwrap() == 0 {
                            break;
                        }
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                    socket.write_all(text.as_bytes()).await.unwrap();
                    close = then_close;
                }
                if !close {
                    kept.push(socket);
                }
            }
            std::future::pending::<()>().await;
        });
        server
    }

    fn counts(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.connections.load(Ordering::Relaxed))
    }

    fn get(&self) -> Request<Bytes> {
        Request::get(&self.url).body(Bytes::new()).unwrap()
    }
}

fn wire() -> Wire {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Wire::new(tls, Proxies::default(), true, Arc::default())
}

/// The response and its whole body, of whatever length.
async fn streamed(wire: &Wire, request: &Request<Bytes>) -> Result<(u16, Vec<u8>), String> {
    let response = wire.call(request, LIMIT).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let bytes = body.whole(1 << 20).await.map_err(|error| error.to_string())?;
    Ok((head.status.as_u16(), bytes))
}

/// The body, received into a target that already holds something and has more room.
async fn received(
    wire: &Wire,
    request: &Request<Bytes>,
    length: u64,
) -> (Result<(), StoreError>, Vec<u8>) {
    let body = wire.call(request, LIMIT).await.unwrap().into_body();
    let mut target = b">".to_vec();
    let result = body.receive(length, &mut target).await;
    (result, target)
}

const FIVE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12345";

#[tokio::test]
async fn a_body_read_to_its_end_leaves_the_connection_to_the_next_request() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n3\r\n345\r\n0\r\n\r\n";
    let empty = "HTTP/1.1 204 No Content\r\n\r\n";
    let server =
        Scripted::start([&[Send(FIVE), Send(chunked), Send(empty), Send(FIVE), Send(FIVE)]]).await;
    let (wire, get) = (wire(), server.get());
    assert_eq!(streamed(&wire, &get).await, Ok((200, b"12345".to_vec())));
    assert_eq!(streamed(&wire, &get).await, Ok((200, b"12345".to_vec())));
    assert_eq!(streamed(&wire, &get).await, Ok((204, Vec::new())));
    assert_eq!(received(&wire, &get, 5).await, (Ok(()), b">12345".to_vec()));
    assert_eq!(received(&wire, &get, 5).await, (Ok(()), b">12345".to_vec()));
    assert_eq!(server.counts(), (5, 1));
}

#[tokio::test]
async fn the_answer_to_a_head_has_no_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let server = Scripted::start([&[Send(head), Send(FIVE)]]).await;
    let (wire, mut request) = (wire(), server.get());
    *request.method_mut() = Method::HEAD;
    assert_eq!(streamed(&wire, &request).await, Ok((200, Vec::new())));
    assert_eq!(streamed(&wire, &server.get()).await, Ok((200, b"12345".to_vec())));
    assert_eq!(server.counts(), (2, 1));
}

#[tokio::test]
async fn a_connection_that_is_not_to_be_kept_is_not() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n12345",
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n12345",
        // Bytes behind the body; they are no part of it, nor of the next answer.
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12345HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let server = Scripted::start([&[SendAndHang(answer)], &[SendAndHang(answer)]]).await;
        let (wire, get) = (wire(), server.get());
        assert_eq!(streamed(&wire, &get).await, Ok((200, b"12345".to_vec())), "{answer}");
        assert_eq!(received(&wire, &get, 5).await, (Ok(()), b">12345".to_vec()), "{answer}");
        assert_eq!(server.counts(), (2, 2), "{answer}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_received_if_it_ends_where_it_should() {
    let closed = "HTTP/1.1 200 OK\r\n\r\n12345";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                   2\r\n12\r\n3\r\n345\r\n0\r\n\r\n";
    for answer in [closed, chunked] {
        let acts = [SendAndClose(answer)];
        let server = Scripted::start([&acts[..]; 4]).await;
        let (wire, get) = (wire(), server.get());
        assert_eq!(streamed(&wire, &get).await, Ok((200, b"12345".to_vec())));
        assert_eq!(received(&wire, &get, 5).await, (Ok(()), b">12345".to_vec()));
        // The last byte is kept back until the end has come.
        let (result, target) = received(&wire, &get, 4).await;
        assert!(matches!(result, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{result:?}");
        assert!(target.len() <= 4, "{target:?}");
        let (result, target) = received(&wire, &get, 6).await;
        // A connection may have broken; chunks say that they are all.
        let broke = matches!(result, Err(StoreError::Unavailable(_)));
        assert_eq!((broke, result.is_err(), &*target), (answer == closed, true, &b">12345"[..]));
    }
}

#[tokio::test]
async fn never_more_than_the_length_is_received_and_never_less_is_success() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12345";
    let server =
        Scripted::start([&[SendAndClose(short)], &[SendAndClose(short)], &[SendAndClose(FIVE)]])
            .await;
    let (wire, get) = (wire(), server.get());
    let (result, target) = received(&wire, &get, 9).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    assert_eq!(target, b">12345", "a beginning");
    assert!(streamed(&wire, &get).await.is_err());
    // Another length than the head's is not even begun.
    let (result, target) = received(&wire, &get, 4).await;
    assert!(matches!(result, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{result:?}");
    assert_eq!(target, b">");
}

#[tokio::test]
async fn a_stale_connection_costs_no_failure() {
    let server =
        Scripted::start([&[SendAndClose(FIVE)], &[Send(FIVE), SendAndClose("")], &[Send(FIVE)]])
            .await;
    let (wire, get) = (wire(), server.get());
    for _ in 0..3 {
        assert_eq!(streamed(&wire, &get).await, Ok((200, b"12345".to_vec())));
    }
    // The first was seen to be closed before it was used; the second took a request first.
    assert_eq!(server.counts(), (4, 3));
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_a_failure_and_so_is_half_a_head() {
    let half = "HTTP/1.1 200 OK\r\nContent-";
    let server = Scripted::start([&[SendAndClose("")], &[Send(FIVE), SendAndClose(half)]]).await;
    let (wire, get) = (wire(), server.get());
    assert!(matches!(wire.call(&get, LIMIT).await, Err(CallError::Broken(_))));
    assert_eq!(server.counts(), (1, 1), "asked once");
    assert!(streamed(&wire, &get).await.is_ok());
    assert!(matches!(wire.call(&get, LIMIT).await, Err(CallError::Broken(_))));
    assert_eq!(server.counts(), (3, 2), "an answer that began is not asked for again");
}

#[tokio::test]
async fn what_is_not_asked_twice_gets_a_connection_of_its_own() {
    let server = Scripted::start([&[Send(FIVE)], &[Send(FIVE)]]).await;
    let wire = wire();
    assert!(streamed(&wire, &server.get()).await.is_ok());
    let post = Request::post(&server.url).body(Bytes::from_static(b"a=b\r\n\r\n")).unwrap();
    assert_eq!(streamed(&wire, &post).await, Ok((200, b"12345".to_vec())));
    assert_eq!(server.counts(), (2, 2));
}

#[tokio::test]
async fn what_is_not_http_is_told_apart_from_what_is_not_there() {
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(head::LONGEST_HEAD));
    for garbage in ["220 ESMTP postfix\r\n", "\u{15}\u{3}\u{3}\0\u{2}\u{2}F", long.as_str()] {
        let server = Scripted::start([&[SendAndHang(garbage)]]).await;
        let answer = wire().call(&server.get(), LIMIT).await;
        assert!(matches!(answer, Err(CallError::NotHttp(_))), "{garbage:.20}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{nobody}"), "http://no-such-host.invalid".to_owned()] {
        let get = Request::get(&url).body(Bytes::new()).unwrap();
        let answer = wire().call(&get, LIMIT).await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{url}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up() {
    let server = Scripted::start([&[SendAndHang("HTTP/1.1 200")]]).await;
    let answer = wire().call(&server.get(), LIMIT).await;
    assert!(matches!(answer, Err(CallError::Silent(LIMIT))));
}

#[tokio::test]
async fn a_silent_body_is_given_up_and_keeps_what_it_brought() {
    // More than a head's read takes along, and less than a batch: it waits in the socket.
    const LENGTH: usize = 400_000;
    let body = "1".repeat(60_000);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
    let text = format!("{head}{body}");
    let server = Scripted::start([&[SendAndHang(&text)]]).await;
    let body = wire().call(&server.get(), LIMIT).await.unwrap().into_body();
    tokio::time::pause();
    let (start, mut target) = (Instant::now(), vec![0_u8; LENGTH]);
    let mut room = target.as_mut_slice();
    let result = body.receive(LENGTH as u64, &mut room).await;
    assert!(matches!(result, Err(StoreError::TimedOut(_))), "{result:?}");
    assert_eq!(room.len(), LENGTH - 60_000);
    let patience = 2 * body::SILENCE;
    assert!((body::SILENCE..patience).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_in_time() {
    let server = Scripted::start([&[Send(FIVE), Send(FIVE)], &[Send(FIVE)]]).await;
    let (wire, get) = (wire(), server.get());
    assert!(streamed(&wire, &get).await.is_ok());
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert!(streamed(&wire, &get).await.is_ok());
    assert_eq!(server.counts(), (2, 1));
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(wire.pool.len(), 0, "closed although nobody asked");
    assert!(streamed(&wire, &get).await.is_ok());
    assert_eq!(server.counts(), (3, 2));
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection() {
    let server = Scripted::start([&[SendAndHang(FIVE)], &[Send(FIVE)]]).await;
    let (wire, get) = (wire(), server.get());
    drop(wire.call(&get, LIMIT).await.unwrap());
    assert_eq!(wire.pool.len(), 0);
    assert!(streamed(&wire, &get).await.is_ok());
    assert_eq!((server.counts(), wire.pool.len()), ((2, 2), 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_first_byte_is_sent_a_second_time_and_who_answers_first_wins() {
    let server = Scripted::start([&[SendAndHang("HTTP/1.1 200")], &[Send(FIVE)]]).await;
    let (wire, start) = (wire(), Instant::now());
    let url = server.url.parse().unwrap();
    let origin = Arc::new(Origin::of(&url).unwrap());
    let message = Message::new(&origin, "GET /b/k HTTP/1.1\r\n\r\n".to_owned(), &[], Kind::Get);
    let response = wire.send(&message, LIMIT).await.unwrap();
    let mut target = Vec::new();
    response.into_body().receive(5, &mut target).await.unwrap();
    assert_eq!((target.as_slice(), server.counts()), (&b"12345"[..], (2, 2)));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // The silent connection is gone, the other one is kept.
    assert_eq!(wire.pool.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_body_that_falls_silent_is_given_up() {
    let begun = "HTTP/1.1 200 O\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n1";
    let server = Scripted::start([&[SendAndHang(begun)]]).await;
    let start = Instant::now();
    let error = streamed(&wire(), &server.get()).await.unwrap_err();
    assert!(error.contains("no byte of a body"), "{error}");
    assert_eq!(start.elapsed().as_secs(), body::FIRST_SILENCE.as_secs());
}

#[tokio::test]
async fn after_a_fault_of_the_server_the_next_request_has_a_new_connection() {
    let failing = "HTTP/1.1 503 S\r\nContent-Length: 0\r\n\r\n";
    let server = Scripted::start([&[Send(FIVE), Send(failing)], &[Send(FIVE)]]).await;
    let (wire, get) = (wire(), server.get());
    for status in [200, 503, 200] {
        assert_eq!(streamed(&wire, &get).await.unwrap().0, status);
    }
    assert_eq!(server.counts(), (3, 2));
}
