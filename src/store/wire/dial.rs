//! From a host to a connection: addresses, sockets, tunnels through proxies, TLS sessions.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::BufReader;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CallError;
use super::connection::{Connection, Stream, TLS_READ_BYTES, TLS_SLACK};
use super::pool::Origin;
use super::proxy::{Proxies, Proxy};

/// A lost SYN costs 1 s, and a second one 2 s more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this time without an answer the next address is tried as well (RFC 8305, section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Dialer {
    tls: TlsConnector,
    pub(super) proxies: Proxies,
    /// The number of connections made. Each begins at another of a host's addresses.
    turn: AtomicUsize,
}

impl Dialer {
    pub(super) fn new(mut tls: rustls::ClientConfig, proxies: Proxies) -> Self {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tls: Arc::new(tls).into(), proxies, turn: AtomicUsize::new(0) }
    }

    pub(super) async fn connect(&self, origin: &Origin) -> Result<Connection, CallError> {
        if let Some(proxy) = self.proxies.on_the_way_to(origin) {
            return self.connect_through(proxy, origin).await;
        }
        let socket = self.socket(origin).await;
        let socket = socket.map_err(|error| CallError::Unreachable(error.to_string()))?;
        if !origin.tls {
            return Ok(Connection::new(Box::new(socket), 0));
        }
        Ok(Connection::new(Box::new(self.session(socket, origin).await?), TLS_SLACK))
    }

    async fn connect_through(
        &self,
        proxy: Proxy,
        origin: &Origin,
    ) -> Result<Connection, CallError> {
        let socket = self.socket(&proxy.origin).await;
        let socket = socket.map_err(|error| proxy.refuses(&error.to_string()))?;
        let (stream, slack): (Box<dyn Stream>, u64) = if proxy.origin.tls {
            (Box::new(self.session(socket, &proxy.origin).await?), TLS_SLACK)
        } else {
            (Box::new(socket), 0)
        };
        if !origin.tls {
            return Ok(Connection::new(stream, slack).through(proxy));
        }
        let stream = proxy.tunnel(stream, origin).await?;
        Ok(Connection::new(Box::new(self.session(stream, origin).await?), slack + TLS_SLACK))
    }

    async fn socket(&self, origin: &Origin) -> io::Result<TcpStream> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let socket = timeout(CONNECT_TIMEOUT, async {
            let addresses = lookup_host((origin.host.as_str(), origin.port)).await?.collect();
            first(order(addresses, turn)).await
        })
        .await
        .unwrap_or_else(|_elapsed| {
            let limit = CONNECT_TIMEOUT.as_secs();
            Err(io::Error::other(format!("no connection within {limit} s")))
        })?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    async fn session<S: Stream>(
        &self,
        stream: S,
        origin: &Origin,
    ) -> Result<TlsStream<BufReader<S>>, CallError> {
        let name = ServerName::try_from(origin.host.clone())
            .map_err(|error| CallError::Unreachable(format!("TLS: {error}")))?;
        let stream = BufReader::with_capacity(TLS_READ_BYTES, stream);
        let session = self.tls.connect(name, stream).await;
        session.map_err(|error| CallError::Unreachable(format!("TLS: {error}")))
    }
}

/// The addresses by turns, so that connections spread over the store's front ends; the kinds (IPv6,
/// IPv4) alternate, since one of them may lead nowhere. The resolver's first choice of kind stays.
fn order(addresses: Vec<SocketAddr>, turn: usize) -> Vec<SocketAddr> {
    let six = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut preferred, mut others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == six);
    for kind in [&mut preferred, &mut others] {
        let start = turn.checked_rem(kind.len()).unwrap_or(0);
        kind.rotate_left(start);
    }
    let longest = preferred.len().max(others.len());
    let pairs = (0..longest).flat_map(|at| [preferred.get(at), others.get(at)]);
    pairs.flatten().copied().collect()
}

async fn first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::other("the host has no address");
    loop {
        let begun = addresses.next().map(|address| attempts.spawn(TcpStream::connect(address)));
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(socket))) => return Ok(socket),
                Some(Ok(Err(error))) => last = error,
                Some(Err(panicked)) => last = io::Error::other(panicked),
                None => return Err(last),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if begun.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_begins_at_another_address_of_the_preferred_kind() {
        let addresses = |text: &str| -> Vec<SocketAddr> {
            text.split(' ').map(|address| address.parse().unwrap()).collect()
        };
        let found = addresses("[::1]:1 [::2]:1 1.0.0.1:1 1.0.0.2:1 1.0.0.3:1");
        for (turn, want) in [
            (0, "[::1]:1 1.0.0.1:1 [::2]:1 1.0.0.2:1 1.0.0.3:1"),
            (1, "[::2]:1 1.0.0.2:1 [::1]:1 1.0.0.3:1 1.0.0.1:1"),
            (2, "[::1]:1 1.0.0.3:1 [::2]:1 1.0.0.1:1 1.0.0.2:1"),
        ] {
            assert_eq!(order(found.clone(), turn), addresses(want), "{turn}");
        }
        assert_eq!(order(Vec::new(), 7), []);
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(first(vec![free, open]).await.unwrap().peer_addr().unwrap(), open);
        let refused = first(vec![free, free]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(first(Vec::new()).await.is_err());
    }
}
