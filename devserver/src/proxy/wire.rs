//! Just enough HTTP/1.1 to know where messages begin and end.

use std::io;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::counts::Kind;
use crate::gate;
use crate::target::Target;

/// No head that a client of S3 sends is longer.
const MAX_HEAD_BYTES: usize = 256 * 1024;
const MAX_HEADERS: usize = 300;
const READ_BYTES: usize = 64 * 1024;

/// The head of a request on its way through the proxy.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// GET, HEAD, …
    pub method: Method,
    /// Path and query, percent-encoded as they came.
    pub uri: Uri,
    /// All headers.
    pub headers: HeaderMap,
}

impl RequestHead {
    /// The kind of the request.
    #[must_use]
    pub fn kind(&self) -> Kind {
        gate::kind(&self.method, &self.uri, &self.target())
    }

    /// The object's key, decoded; empty if the request is about none.
    #[must_use]
    pub fn key(&self) -> String {
        self.target().key
    }

    /// The parameter of the query, decoded; empty if it has no value.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        gate::query(&self.uri, name)
    }

    /// The `Range` header.
    #[must_use]
    pub fn range(&self) -> Option<&str> {
        self.headers.get(http::header::RANGE)?.to_str().ok()
    }

    fn target(&self) -> Target {
        Target::of(&self.uri, &self.headers)
    }

    pub(super) fn parse(head: &[u8]) -> io::Result<Self> {
        let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut slots);
        request.parse(head).map_err(invalid)?;
        let method = request.method.unwrap_or_default().parse().map_err(invalid)?;
        let uri = request.path.unwrap_or_default().parse().map_err(invalid)?;
        Ok(Self { method, uri, headers: headers(request.headers)? })
    }
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
}

impl ResponseHead {
    pub(super) fn parse(head: &[u8]) -> io::Result<Self> {
        let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut slots);
        response.parse(head).map_err(invalid)?;
        let headers = headers(response.headers)?;
        Ok(Self { status: response.code.unwrap_or(0), headers })
    }

    pub(super) fn set(&mut self, name: HeaderName, value: &str) -> io::Result<()> {
        self.headers.insert(name, HeaderValue::try_from(value).map_err(invalid)?);
        Ok(())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {} \r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// Empty after a HEAD.
    pub body: Vec<u8>,
}

impl Answer {
    /// An empty one.
    #[must_use]
    pub fn new(status: u16) -> Self {
        let headers = [(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"))];
        Self { status, headers: headers.into_iter().collect(), body: Vec::new() }
    }

    /// The same with this header, in place of others of its name.
    ///
    /// Panics if it cannot be one.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a value");
        self.headers.insert(name, value);
        self
    }

    /// The same with this body, and its length.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.headers.insert(http::header::CONTENT_LENGTH, self.body.len().into());
        self
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = ResponseHead { status: self.status, headers: self.headers.clone() };
        [head.to_bytes(), self.body.clone()].concat()
    }

    /// The same in chunks of this many bytes, without its length.
    #[must_use]
    pub fn in_chunks(mut self, of: usize) -> Vec<u8> {
        self.headers.remove(http::header::CONTENT_LENGTH);
        let mut bytes = self.with("transfer-encoding", "chunked");
        let body = std::mem::take(&mut bytes.body);
        let mut bytes = bytes.to_bytes();
        for chunk in body.chunks(of) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }
}

/// The framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    /// The transfer is chunked, which the proxy does not take apart.
    Chunked,
}

impl Framing {
    pub(super) fn of(headers: &HeaderMap) -> io::Result<Self> {
        if headers.contains_key(http::header::TRANSFER_ENCODING) {
            return Ok(Self::Chunked);
        }
        let Some(length) = headers.get(http::header::CONTENT_LENGTH) else {
            return Ok(Self::Length(0));
        };
        let length = length.to_str().map_err(invalid)?.parse().map_err(invalid)?;
        Ok(Self::Length(length))
    }
}

/// A connection that is read message by message.
pub(super) struct Reader {
    pub(super) stream: TcpStream,
    /// Read but not yet taken.
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next head with its empty line; `None` if the connection ends before one begins.
    pub(super) async fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(invalid("the head is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let unfinished = io::ErrorKind::UnexpectedEof.into();
                return if self.buffer.is_empty() { Ok(None) } else { Err(unfinished) };
            }
        }
    }

    /// Some more of a body of which `left` bytes are to come; never nothing.
    pub(super) async fn some(&mut self, left: u64) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let left = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        let rest = self.buffer.split_off(left);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Hands `length` bytes of body on.
    pub(super) async fn copy(&mut self, to: &mut TcpStream, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let bytes = self.some(left).await?;
            to.write_all(&bytes).await?;
            left -= bytes.len() as u64;
        }
        Ok(())
    }

    /// Takes what was read beyond the last message.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }
}

fn headers(parsed: &[httparse::Header<'_>]) -> io::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for header in parsed {
        let name: HeaderName = header.name.parse().map_err(invalid)?;
        headers.append(name, HeaderValue::from_bytes(header.value).map_err(invalid)?);
    }
    Ok(headers)
}

pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
