//! HTTP/1.1 as this program needs it: requests with small bodies, one at a time on a connection,
//! and bodies of responses that are received straight into the caller's memory. Existing clients
//! copy them from buffers of their own, which costs more than half as much as receiving them
//! (docs/performance.md).
//!
//! A server can do no harm: heads are short, a body ends where its head says, and a connection is
//! used again only after a body that was read to its end.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use tokio::time::{Instant, timeout};

mod body;
mod connection;
mod dial;
mod framing;
mod head;
mod hedge;
mod pool;
mod proxy;

use crate::stats::Stats;
pub(super) use body::Body;
use connection::{Connection, HEAD_READ_BYTES};
use dial::Dialer;
use head::Head;
use hedge::Hedger;
pub(super) use hedge::Kind;
pub(super) use pool::Origin;
use pool::Pool;
pub use proxy::Proxies;

#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No connection: no address, refused, no TLS session.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the answer is not HTTP: {0}")]
    NotHttp(String),
    #[error("no response within {} s", .0.as_secs_f32())]
    Silent(Duration),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        // TLS 1.3 lets a server refuse the session after the client holds it for made.
        if matches!(error.get_ref(), Some(inner) if inner.is::<rustls::Error>()) {
            return Self::Unreachable(format!("TLS: {error}"));
        }
        Self::Broken(error.to_string())
    }
}

/// A client. It keeps all connections that were needed at once, which the retrying layer bounds.
pub(super) struct Wire {
    dialer: Dialer,
    pool: Arc<Pool>,
    /// None when no request is sent a second time.
    hedging: Option<Hedger>,
    stats: Arc<Stats>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(
        tls: rustls::ClientConfig,
        proxies: Proxies,
        hedging: bool,
        stats: Arc<Stats>,
    ) -> Self {
        let hedging = hedging.then(Hedger::default);
        Self { dialer: Dialer::new(tls, proxies), pool: Arc::default(), hedging, stats }
    }

    /// The proxy through which requests to this origin go.
    pub(super) fn proxy_to(&self, origin: &Origin) -> Option<Uri> {
        self.dialer.proxies.to(&origin.uri()?)
    }

    /// The response's head must come within `limit`, connecting included.
    pub(super) async fn call(
        &self,
        request: &Request<Bytes>,
        limit: Duration,
    ) -> Result<Response<Body>, CallError> {
        self.send(&Message::of(request)?, limit).await
    }

    pub(super) async fn send(
        &self,
        message: &Message,
        limit: Duration,
    ) -> Result<Response<Body>, CallError> {
        let answer = timeout(limit, self.hedged(message)).await;
        let answer = answer.unwrap_or(Err(CallError::Silent(limit)));
        if answer.is_err() {
            // The host may be gone, and with it every connection to it.
            self.pool.distrust(&message.origin);
        }
        answer
    }

    /// Sends it a second time, on a new connection, when the first byte takes too long: at once, or
    /// when the hedger allows it.
    async fn hedged(&self, message: &Message) -> Result<Response<Body>, CallError> {
        let kind = message.kind.filter(|kind| *kind != Kind::Put);
        let (Some(hedging), Some(kind)) = (&self.hedging, kind) else {
            return self.exchange(message).await;
        };
        let begun = Instant::now();
        let mut first = pin!(self.exchange(message));
        let (sent, patience) = hedging.sends(kind);
        let answer = loop {
            if let Ok(answer) = timeout(patience, &mut first).await {
                break answer;
            }
            let Some(hedge) = hedging.second(sent) else { continue };
            tracing::debug!(?kind, ?patience, "no first byte: asking a second time");
            self.stats.hedges.add(1);
            let mut second = pin!(self.exchange_anew(message));
            tokio::select! {
                // The other one may still be answered.
                answer = &mut first => break if answer.is_ok() { answer } else { second.await },
                answer = &mut second => {
                    if answer.is_ok() {
                        hedge.came_first();
                        break answer;
                    }
                    break first.await;
                }
            }
        };
        if answer.is_ok() {
            hedging.answered(kind, begun.elapsed());
        }
        answer
    }

    async fn exchange(&self, message: &Message) -> Result<Response<Body>, CallError> {
        // The server may be closing an idle connection, so the request must be repeatable.
        if message.repeatable
            && let Some(connection) = self.pool.take(&message.origin).await
        {
            match self.ask(connection, message).await {
                Ok(response) => return Ok(response),
                Err(NoHead { error, unanswered: true }) => {
                    tracing::trace!(%error, "an idle connection was stale");
                }
                Err(NoHead { error, unanswered: false }) => return Err(error),
            }
        }
        self.exchange_anew(message).await
    }

    async fn exchange_anew(&self, message: &Message) -> Result<Response<Body>, CallError> {
        let connection = self.dialer.connect(&message.origin).await?;
        self.ask(connection, message).await.map_err(|failed| failed.error)
    }

    /// One request on this connection, which is dropped on a failure.
    async fn ask(
        &self,
        mut connection: Connection,
        message: &Message,
    ) -> Result<Response<Body>, NoHead> {
        let mut unanswered = true;
        let sent = match &connection.proxy {
            None => connection.send(&message.text, &message.body).await,
            Some(proxy) => {
                let text = proxy.absolute(&message.text, &message.origin);
                connection.send(&text, &message.body).await
            }
        };
        sent.map_err(|error| NoHead { error: error.into(), unanswered })?;
        loop {
            let parsed = head::parse(&mut connection.buffer, message.bodiless)
                .map_err(|cause| NoHead { error: CallError::NotHttp(cause), unanswered: false })?;
            if let Some(Head { response, framing, keep_alive }) = parsed {
                let by_proxy =
                    connection.proxy.as_ref().map(|proxy| proxy.check(response.status()));
                by_proxy.unwrap_or(Ok(())).map_err(|error| NoHead { error, unanswered: false })?;
                // After a fault of the server the next request is better sent to another one.
                let keep = keep_alive && !response.status().is_server_error();
                let home = keep.then(|| (self.pool.clone(), message.origin.clone()));
                return Ok(response.map(|()| Body::new(connection, framing, home)));
            }
            let filled = connection.fill(HEAD_READ_BYTES).await;
            if filled.map_err(|error| NoHead { error: error.into(), unanswered })? == 0 {
                let error = CallError::Broken("closed before an answer".to_owned());
                return Err(NoHead { error, unanswered });
            }
            unanswered = false;
        }
    }
}

pub(super) struct Message {
    origin: Arc<Origin>,
    text: Vec<u8>,
    /// What follows the text, in pieces.
    body: Vec<Bytes>,
    repeatable: bool,
    /// The response has no body, whatever its head says.
    bodiless: bool,
    /// None for requests of credential providers, which repeat them themselves.
    kind: Option<Kind>,
}

impl Message {
    /// `text` is the request's line, its headers and the empty line behind them.
    pub(super) fn new(origin: &Arc<Origin>, text: String, body: &[Bytes], kind: Kind) -> Self {
        let (origin, text, body) = (Arc::clone(origin), text.into_bytes(), body.to_vec());
        let bodiless = kind == Kind::Head;
        Self { origin, text, body, repeatable: true, bodiless, kind: Some(kind) }
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (&Origin, &str) {
        (&self.origin, std::str::from_utf8(&self.text).expect("written from text"))
    }

    fn of(request: &Request<Bytes>) -> Result<Self, CallError> {
        let origin = Origin::of(request.uri()).map_err(CallError::Unreachable)?;
        let text = head::write(request, &origin);
        let bodiless = request.method() == Method::HEAD;
        let repeatable = bodiless || request.method() == Method::GET;
        let (origin, body) = (Arc::new(origin), Vec::new());
        Ok(Self { origin, text, body, repeatable, bodiless, kind: None })
    }
}

/// A request that got no head of a response.
struct NoHead {
    error: CallError,
    /// No byte came back.
    unanswered: bool,
}

#[cfg(test)]
mod tests;
