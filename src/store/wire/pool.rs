//! Idle connections, by origin.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;

/// S3 closes connections that were idle for 5 to 20 s; a request sent into a close costs another.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Origin {
    pub(in crate::store) tls: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of the `Host` header, which is signed: without a default port.
    pub(in crate::store) authority: String,
}

impl Origin {
    pub(in crate::store) fn of(uri: &Uri) -> Result<Self, String> {
        let (tls, usual) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(format!("{uri} is neither http nor https")),
        };
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("{uri} has no host"))?;
        let port = uri.port_u16().unwrap_or(usual);
        let authority = if port == usual { host.to_owned() } else { format!("{host}:{port}") };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port, authority })
    }

    pub(super) fn uri(&self) -> Option<Uri> {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority).parse().ok()
    }
}

#[derive(Default)]
pub(super) struct Pool(Mutex<Idle>);

#[derive(Default)]
struct Idle {
    /// The first has been idle for the longest time.
    connections: Vec<(Instant, Arc<Origin>, Connection)>,
    /// [`Pool::sweep`] runs.
    swept: bool,
}

impl Pool {
    /// The connection that was used last, if it is still good: those that are not needed grow old.
    pub(super) async fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let (since, _, mut connection) = {
                let mut idle = self.0.lock();
                let last = idle.connections.iter().rposition(|(_, at, _)| **at == *origin)?;
                idle.connections.remove(last)
            };
            if since.elapsed() < IDLE_TIMEOUT && connection.is_quiet().await {
                return Some(connection);
            }
        }
    }

    /// Closes the idle connections to this origin: a request has failed, so each of them may.
    pub(super) fn distrust(&self, origin: &Origin) {
        self.0.lock().connections.retain(|(_, at, _)| **at != *origin);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().connections.len()
    }

    /// Takes a connection back after a body, if it is fit for another request.
    pub(super) fn give(self: &Arc<Self>, origin: Arc<Origin>, mut connection: Connection) {
        if !connection.rest() {
            return;
        }
        let mut idle = self.0.lock();
        idle.connections.push((Instant::now(), origin, connection));
        if !std::mem::replace(&mut idle.swept, true) {
            tokio::spawn(self.clone().sweep());
        }
    }

    /// Closes connections that were idle for too long; ends with the last one.
    async fn sweep(self: Arc<Self>) {
        loop {
            let next = {
                let mut idle = self.0.lock();
                let old = |(since, _, _): &(Instant, _, _)| since.elapsed() >= IDLE_TIMEOUT;
                let count = idle.connections.iter().take_while(|one| old(one)).count();
                idle.connections.drain(..count);
                let Some((since, _, _)) = idle.connections.first() else {
                    idle.swept = false;
                    return;
                };
                *since + IDLE_TIMEOUT
            };
            sleep_until(next).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text: &str| Origin::of(&text.parse().unwrap());
        for (uri, tls, host, port, authority) in [
            ("http://h/b", false, "h", 80, "h"),
            ("https://h:443", true, "h", 443, "h"),
            ("https://h:80", true, "h", 80, "h:80"),
            ("http://[::1]:9000/b", false, "::1", 9000, "[::1]:9000"),
        ] {
            let origin = of(uri).unwrap();
            assert_eq!((origin.tls, origin.host.as_str()), (tls, host), "{uri}");
            assert_eq!((origin.port, origin.authority.as_str()), (port, authority), "{uri}");
        }
        for uri in ["ftp://h", "/path", "h:80"] {
            assert!(of(uri).is_err(), "{uri}");
        }
    }
}
