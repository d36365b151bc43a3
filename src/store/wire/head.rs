//! Heads of messages: a request's is written, a response's is parsed. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::framing::Framing;
use super::pool::Origin;

/// S3's longest heads have 8 KiB of user metadata; other stores allow more.
pub(super) const LONGEST_HEAD: usize = 128 * 1024;
/// Beyond this number of headers there is room for as many as fit into the longest head.
const FEW_HEADERS: usize = 64;
/// Its name, its colon and its line's end.
const SHORTEST_HEADER: usize = 4;

/// A request as text, its body included.
pub(super) fn write(request: &Request<Bytes>, origin: &Origin) -> Vec<u8> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut text = Vec::with_capacity(1024 + request.body().len());
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| text.extend_from_slice(part));
    put(&[request.method().as_str().as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    let headers = request.headers();
    if !headers.contains_key(header::HOST) {
        put(&[b"host: ", origin.authority.as_bytes(), b"\r\n"]);
    }
    // The types keep line ends out of names and values.
    for (name, value) in headers {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    let may_have_none = matches!(*request.method(), Method::GET | Method::HEAD);
    let has_none = may_have_none && request.body().is_empty();
    if !has_none && !headers.contains_key(header::CONTENT_LENGTH) {
        put(&[b"content-length: ", request.body().len().to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n", request.body()]);
    text
}

#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// The connection may be used again after the body.
    pub(super) keep_alive: bool,
}

/// Takes the head of a response from the front of the received bytes, interim ones (1xx) before it
/// included; `None` when it is incomplete. `bodiless`: the request was a HEAD.
pub(super) fn parse(received: &mut BytesMut, bodiless: bool) -> Result<Option<Head>, String> {
    loop {
        let mut few = [httparse::EMPTY_HEADER; FEW_HEADERS];
        let mut many = Vec::new();
        let mut parsed = httparse::Response::new(&mut few);
        let mut status = parsed.parse(received);
        if status == Err(httparse::Error::TooManyHeaders) {
            many.resize(LONGEST_HEAD / SHORTEST_HEADER, httparse::EMPTY_HEADER);
            parsed = httparse::Response::new(&mut many);
            status = parsed.parse(received);
        }
        let length = match status {
            Ok(httparse::Status::Complete(length)) if length <= LONGEST_HEAD => length,
            Ok(httparse::Status::Partial) if received.len() < LONGEST_HEAD => return Ok(None),
            Ok(_) => return Err(format!("a head longer than {LONGEST_HEAD} bytes")),
            Err(error) => return Err(error.to_string()),
        };
        let head = match parsed.code {
            // "Switching Protocols" was not asked for.
            Some(100..=199) if parsed.code != Some(101) => None,
            _ => Some(head(&parsed, bodiless)?),
        };
        received.advance(length);
        if head.is_some() {
            return Ok(head);
        }
    }
}

fn head(parsed: &httparse::Response<'_, '_>, bodiless: bool) -> Result<Head, String> {
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| !status.is_informational()).ok_or("an odd status")?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len().min(FEW_HEADERS));
    for header in &*parsed.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|e| e.to_string())?;
        let value = HeaderValue::from_bytes(header.value).map_err(|e| e.to_string())?;
        headers.try_append(name, value).map_err(|e| e.to_string())?;
    }
    let modern = parsed.version == Some(1);
    let empty = bodiless || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let (framing, unambiguous) =
        if empty { (Framing::Length(0), true) } else { framing(&headers, modern)? };
    let says = |token: &str| {
        let values = headers.get_all(header::CONNECTION).iter();
        let mut tokens = values.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
        tokens.any(|told| told.trim().eq_ignore_ascii_case(token))
    };
    let keep_alive = unambiguous
        && !matches!(framing, Framing::Close)
        && if modern { !says("close") } else { says("keep-alive") };

    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Head { response, framing, keep_alive })
}

/// RFC 9112, section 6.3; `true` if all headers agree.
fn framing(headers: &HeaderMap, modern: bool) -> Result<(Framing, bool), String> {
    let length = content_length(headers)?;
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok((length.map_or(Framing::Close, Framing::Length), true)),
        (Some(one), None) if modern && one.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            // Both headers: a proxy between us and the store may see another end.
            Ok((Framing::chunked(), length.is_none()))
        }
        _ => Err("an unknown transfer coding".to_owned()),
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let mut told = None;
    // A list says it as often as several headers do (RFC 9110, section 8.6).
    let values = headers.get_all(header::CONTENT_LENGTH).iter();
    for value in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let value = String::from_utf8_lossy(value.trim_ascii());
        let digits = Some(&*value).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let length: Option<u64> = digits.and_then(|text| text.parse().ok());
        let length = length.ok_or_else(|| format!("a content length of {value:?}"))?;
        if told.is_some_and(|told| told != length) {
            return Err("two content lengths".to_owned());
        }
        told = Some(length);
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Head>, String> {
        parse(&mut BytesMut::from(text), false)
    }

    fn origin() -> Origin {
        Origin::of(&"http://h:81/".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_request_names_its_host_and_the_length_of_its_body() {
        let get = Request::get("http://h:81/b/k?x=1").header("a", "b").body(Bytes::new()).unwrap();
        let want = "GET /b/k?x=1 HTTP/1.1\r\nhost: h:81\r\na: b\r\n\r\n";
        assert_eq!(String::from_utf8(write(&get, &origin())).unwrap(), want);
        let post = Request::post("http://h").body(Bytes::from_static(b"x=1")).unwrap();
        let want = "POST / HTTP/1.1\r\nhost: h:81\r\ncontent-length: 3\r\n\r\nx=1";
        assert_eq!(String::from_utf8(write(&post, &origin())).unwrap(), want);
    }

    #[test]
    fn a_head_is_taken_once_all_of_it_is_there() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\n";
        for end in 0..text.len() {
            assert!(parsed(&text[..end]).unwrap().is_none(), "{end}");
        }
        let mut received = BytesMut::from(format!("{text}abc").as_str());
        let head = parse(&mut received, false).unwrap().unwrap();
        assert_eq!((head.response.status().as_u16(), &received[..]), (206, &b"abc"[..]));
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(3), true));
    }

    #[test]
    fn the_end_of_a_body_is_where_the_head_says() {
        use Framing::{Close, Length};
        let chunked = Framing::chunked;
        for (head, framing, keep_alive) in [
            ("1.1 200 OK\r\nContent-Length: 5", Length(5), true),
            ("1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Length(5), true),
            ("1.1 200 OK\r\nContent-Length: 5, 5", Length(5), true),
            ("1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close", Length(5), false),
            ("1.0 200 OK\r\nContent-Length: 5", Length(5), false),
            ("1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive", Length(5), true),
            ("1.1 200 OK", Close, false),
            ("1.1 200 OK\r\nTransfer-Encoding: Chunked", chunked(), true),
            ("1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", chunked(), false),
            ("1.1 204 N", Length(0), true),
            ("1.1 304 N\r\nContent-Length: 5", Length(0), true),
        ] {
            let head_ = parsed(&format!("HTTP/{head}\r\n\r\n")).unwrap().unwrap();
            assert_eq!((head_.framing, head_.keep_alive), (framing, keep_alive), "{head}");
        }
        let mut answer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let head = parse(&mut answer, true).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0), "to a HEAD");
        let mut answer = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: one\r\n\r\n");
        let head = parse(&mut answer, true).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0), "to a HEAD, whatever it says");
    }

    /// Bytes bound a head, and not lines.
    #[test]
    fn a_head_may_have_many_lines() {
        for lines in [FEW_HEADERS - 1, FEW_HEADERS, FEW_HEADERS + 1, 1000, 16 * 1024] {
            let text =
                format!("HTTP/1.1 200 OK\r\n{}Content-Length: 5\r\n\r\n", "a:\r\n".repeat(lines));
            let head = parsed(&text).unwrap().unwrap();
            assert_eq!(
                (head.framing, head.response.headers().len()),
                (Framing::Length(5), lines + 1)
            );
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let long = format!("1.1 200 OK\r\nA: {}", "a".repeat(LONGEST_HEAD));
        for head in [
            "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            "1.1 200 OK\r\nContent-Length: +5",
            "1.1 200 OK\r\nContent-Length: 5, 6",
            "1.1 200 OK\r\nContent-Length: 5,",
            "1.1 200 OK\r\nContent-Length: 99999999999999999999",
            "1.1 200 OK\r\nContent-Length:",
            "1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "1.0 200 OK\r\nTransfer-Encoding: chunked",
            "1.1 101 Switching Protocols",
            "1.1 20 OK",
            "2.0 200 OK",
            "1.1 200 OK\r\nno colon",
            long.as_str(),
        ] {
            let refused = parsed(&format!("HTTP/{head}\r\n\r\n"));
            assert!(refused.is_err(), "{head}: {refused:?}");
        }
        assert!(parsed("220 ESMTP").is_err());
        assert!(parsed(&format!("HTTP/{}", &long[..LONGEST_HEAD])).is_err(), "not waited for");
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// Bytes of anybody are a head, not yet one, or refused; and however they are cut on their
        /// way, they are the same head.
        #[test]
        fn any_bytes_are_taken_the_same_however_they_come() {
            let garbage = prop::collection::vec(any::<u8>(), 0..200);
            let line = fuzz::text(
                "HTTP/1.[01] [0-9]{3} ?[a-z]{0,3}\r\n|Content-Length: [0-9]{0,25}\r\n|\
                 Transfer-Encoding: (chunked|gzip)\r\n|Connection: (close|keep-alive)\r\n|\
                 [a-z]{1,3}: [ -~]{0,9}\r\n|\r\n|\r",
            );
            let lines = prop::collection::vec(line, 0..8);
            let lines = lines.prop_map(|all| all.concat().into_bytes()).boxed();
            let begun =
                lines.clone().prop_map(|rest| [b"HTTP/1.1 206 P\r\n", &rest[..], b"\r\n"].concat());
            fuzz::each((prop_oneof![garbage, lines, begun], 0_usize..300), |(bytes, cut)| {
                let taken = |received: &mut BytesMut| {
                    let head = parse(received, false);
                    head.map(|head| {
                        head.map(|Head { response, framing, keep_alive }| {
                            (response.status(), response.headers().clone(), framing, keep_alive)
                        })
                    })
                };
                let mut whole = BytesMut::from(bytes.as_slice());
                let want = taken(&mut whole);
                let cut = cut.min(bytes.len());
                let mut received = BytesMut::from(&bytes[..cut]);
                let mut got = taken(&mut received);
                if matches!(got, Ok(None)) {
                    received.extend_from_slice(&bytes[cut..]);
                    got = taken(&mut received);
                } else {
                    received.extend_from_slice(&bytes[cut..]);
                }
                // What is wrong behind the cut is found later only.
                if want.is_ok() {
                    prop_assert_eq!(&got, &want);
                    // Nothing of the body is taken with it.
                    prop_assert_eq!(received, whole);
                }
                // Whoever stands between must not see another end of the body than we do.
                if let Ok(Some((_, headers, framing, true))) = want {
                    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
                    let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
                    prop_assert!(lengths == 0 || codings == 0, "{:?}", framing);
                }
                Ok(())
            });
        }
    }
}
