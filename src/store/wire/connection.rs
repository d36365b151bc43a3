//! One connection: a socket, or a TLS session on one, and the bytes received beyond the last head.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use bytes::{BufMut, Bytes, BytesMut};
use nix::sys::socket::SetSockOpt as _;
use nix::{setsockopt_impl, sockopt_impl};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::proxy::Proxy;

/// Read at once where a head is awaited: enough for it and an object of a few KiB, and of a large
/// object few bytes must be copied.
pub(super) const HEAD_READ_BYTES: usize = 8 * 1024;
/// rustls asks for 4 KiB at a time. To read ahead of it saves a tenth of the CPU of a TLS body.
pub(super) const TLS_READ_BYTES: usize = 64 * 1024;
/// TLS takes a whole record (16 KiB and its frame) from the socket before it gives out any of it.
pub(super) const TLS_SLACK: u64 = 32 * 1024;

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// Received bytes, to be taken from the front.
    pub(super) buffer: BytesMut,
    /// The most bytes that have left the socket and were not given out yet.
    slack: u64,
    /// `SO_RCVLOWAT` of the socket: it is readable from this number of bytes.
    low_water: i32,
    /// It ends at this proxy, which reads each request.
    pub(super) proxy: Option<Proxy>,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>, slack: u64) -> Self {
        Self { stream, buffer: BytesMut::new(), slack, low_water: 1, proxy: None }
    }

    pub(super) fn through(self, proxy: Proxy) -> Self {
        Self { proxy: Some(proxy), ..self }
    }

    /// A request's text, and the pieces of its body.
    pub(super) async fn send(&mut self, text: &[u8], body: &[Bytes]) -> io::Result<()> {
        let mut slices = Vec::with_capacity(1 + body.len());
        slices.push(IoSlice::new(text));
        slices.extend(body.iter().map(|piece| IoSlice::new(piece)));
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let sent = self.stream.write_vectored(left).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, sent);
        }
        self.stream.flush().await
    }

    /// Receives up to `at_most` bytes into the buffer; 0 at the end of the connection.
    pub(super) async fn fill(&mut self, at_most: usize) -> io::Result<usize> {
        self.buffer.reserve(at_most);
        self.stream.read_buf(&mut (&mut self.buffer).limit(at_most)).await
    }

    /// Receives up to `at_most` bytes straight into the target; 0 at the end of the connection.
    /// Cancel-safe.
    pub(super) async fn receive(
        &mut self,
        into: &mut (dyn BufMut + Send),
        at_most: usize,
    ) -> io::Result<usize> {
        self.stream.read_buf(&mut into.limit(at_most)).await
    }

    /// Does not wake for less than `batch` bytes of the `left` that are still to come. Only saves
    /// wake-ups; a system that refuses it is not asked again to the same.
    pub(super) fn batch(&mut self, batch: u64, left: u64) {
        let left = left.saturating_sub(self.slack);
        let bytes = i32::try_from(batch.min(left)).unwrap_or(i32::MAX).max(1);
        if bytes != self.low_water && LowWater.set(self.stream.socket(), &bytes).is_ok() {
            self.low_water = bytes;
        }
    }

    /// Makes it ready for the next request after a whole body; false when it is not fit for one.
    pub(super) fn rest(&mut self) -> bool {
        self.batch(1, 1);
        // Bytes behind the body belong to no request.
        self.buffer.is_empty() && self.low_water == 1
    }

    /// The server has neither closed it nor sent unrequested bytes.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut target = ReadBuf::new(&mut byte);
        poll_fn(|context| {
            let read = Pin::new(&mut self.stream).poll_read(context, &mut target);
            Poll::Ready(read.is_pending())
        })
        .await
    }
}

// The `unsafe` of it is nix's, in a macro of its interface: an option whose value is a C int.
sockopt_impl!(
    /// `SO_RCVLOWAT`, which no crate has a setter for.
    LowWater,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32
);

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for Box<dyn Stream> {
    fn socket(&self) -> &TcpStream {
        (**self).socket()
    }
}

impl<S: Stream> Stream for TlsStream<BufReader<S>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.get_ref().socket()
    }
}
