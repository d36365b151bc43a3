//! Sockets: listening, pacing, and serving connections until the server is gone.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_timer::Delay;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::content;
use crate::counts::{Counters, LoggedRequest};
use crate::gate::Gate;
use crate::log::{Answers, Log};
use crate::settings::Settings;

/// A paced connection writes at once what it may send in this time, within the limits: half
/// the wake-ups that a millisecond costs, and still even over any ten milliseconds.
const QUANTUM: Duration = Duration::from_millis(2);
const MAX_QUANTUM_BYTES: usize = 256 * 1024;
const MIN_QUANTUM_BYTES: usize = 16 * 1024;
/// A wait shorter than this is not begun but added to the next one.
const SHORTEST_WAIT: Duration = Duration::from_micros(200);
/// A connection that wrote nothing for this long is idle, and idle time earns no bandwidth.
const IDLE: Duration = Duration::from_millis(1);
/// A busy connection that is less than this behind its schedule catches up.
const CATCH_UP: Duration = Duration::from_millis(5);

/// A listening socket whose connections are not slowed by the machine: reno, since other
/// congestion controls pace even on loopback.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.set_tcp_nodelay(true) {
        warn!(%error, "cannot set TCP_NODELAY");
    }
    if let Err(error) = socket.set_tcp_congestion(b"reno") {
        warn!(%error, "cannot set TCP_CONGESTION to reno");
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Serves until it is dropped, and every connection with it.
pub(crate) async fn serve(
    listener: TcpListener,
    gate: Arc<Gate>,
    settings: Arc<Settings>,
    counters: Arc<Counters>,
    tls: Option<TlsAcceptor>,
    log: Option<Arc<Log>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: let connections end first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        counters.connection();
        let _ = stream.set_nodelay(true);
        let answers = log.clone().map(Log::connection);
        let paced = Paced::new(stream, settings.clone(), answers.clone());
        let gate = gate.clone();
        match tls.clone() {
            None => connections.spawn(answer(paced, gate, answers)),
            Some(tls) => connections.spawn(async move {
                // A client that does not believe the certificate hangs up.
                if let Ok(session) = tls.accept(paced).await {
                    answer(session, gate, answers).await;
                }
            }),
        };
    }
}

/// Serves one connection to its end.
async fn answer(
    io: impl AsyncRead + AsyncWrite + Unpin,
    gate: Arc<Gate>,
    answers: Option<Arc<Answers>>,
) {
    let service = service_fn(|request| {
        if let Some(answers) = &answers {
            answers.begin(LoggedRequest::of(&request));
        }
        let gate = gate.clone();
        async move { gate.answer(request).await }
    });
    // A client that hangs up is no error of the server.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// Runs `start` on a runtime of its own with two threads, and leaves that running. On a thread of
/// its own too, because a thread of another runtime must not block on this one.
pub(crate) fn start_on_own_threads<T: Send>(
    start: impl Future<Output = io::Result<T>> + Send,
) -> io::Result<(Runtime, T)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("devserver")
        .enable_all()
        .build()?;
    let started = std::thread::scope(|scope| {
        let starting = scope.spawn(|| runtime.block_on(start));
        starting.join().expect("starting does not panic")
    });
    match started {
        Ok(started) => Ok((runtime, started)),
        Err(error) => {
            runtime.shutdown_background(); // waiting for it may not be allowed here
            Err(error)
        }
    }
}

/// A connection that writes no faster than the bandwidth that is set.
struct Paced {
    stream: TcpStream,
    settings: Arc<Settings>,
    /// When all that was written so far would have left, at the bandwidth.
    schedule: Instant,
    written_at: Instant,
    /// Waited for but not yet written.
    granted: usize,
    /// Until `schedule`, while a grant waits.
    wait: Option<(Delay, usize)>,
    answers: Option<Arc<Answers>>,
}

impl Paced {
    fn new(stream: TcpStream, settings: Arc<Settings>, answers: Option<Arc<Answers>>) -> Self {
        let now = Instant::now();
        let (schedule, written_at) = (now, now);
        Self { stream, settings, schedule, written_at, granted: 0, wait: None, answers }
    }

    /// The number of bytes, at most `wanted`, that may be written now.
    fn poll_grant(
        &mut self,
        context: &mut Context<'_>,
        wanted: usize,
        bandwidth: u64,
    ) -> Poll<usize> {
        if self.granted == 0 && self.wait.is_none() {
            let bytes = wanted.min(quantum_bytes(bandwidth));
            let now = Instant::now();
            let behind = if now - self.written_at > IDLE { Duration::ZERO } else { CATCH_UP };
            let begin = self.schedule.max(now.checked_sub(behind).unwrap_or(now));
            #[allow(clippy::cast_precision_loss)] // a rounding error far below the timer's
            let takes = Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
            self.schedule = begin + takes;
            if self.schedule > now + SHORTEST_WAIT {
                self.wait = Some((Delay::new(self.schedule - now), bytes));
            } else {
                self.granted = bytes;
            }
        }
        if let Some((wait, bytes)) = &mut self.wait {
            ready!(Pin::new(wait).poll(context));
            self.granted = *bytes;
            self.wait = None;
        }
        Poll::Ready(self.granted.min(wanted))
    }
}

fn quantum_bytes(bandwidth: u64) -> usize {
    let bytes = usize::try_from(u128::from(bandwidth) * QUANTUM.as_micros() / 1_000_000);
    bytes.unwrap_or(MAX_QUANTUM_BYTES).clamp(MIN_QUANTUM_BYTES, MAX_QUANTUM_BYTES)
}

/// Sends the first of the slices that has bytes, or its first `most` bytes. Synthetic content
/// goes without a copy from the file that it is in as well.
fn send(stream: &TcpStream, slices: &[IoSlice<'_>], most: usize) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    let Some(first) = slices.iter().position(|slice| !slice.is_empty()) else { return Ok(0) };
    let bytes = &slices[first][..slices[first].len().min(most)];
    if let (Some((file, at)), Some(length)) = (content::in_file(bytes), NonZero::new(bytes.len())) {
        return socket.sendfile(file, at, Some(length));
    }
    // Bytes that follow at once belong in the same packet.
    let more = most > bytes.len() && slices.len() > first + 1;
    socket.send_with_flags(bytes, if more { libc::MSG_MORE } else { 0 })
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        let allowed = match self.settings.bandwidth() {
            Some(bandwidth) => ready!(self.poll_grant(context, wanted, bandwidth)),
            None => wanted,
        };
        let written = loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, || send(&self.stream, slices, allowed)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => break written?,
            }
        };
        self.granted = self.granted.saturating_sub(written);
        self.written_at = Instant::now();
        if let Some(answers) = &self.answers {
            answers.wrote(written);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
