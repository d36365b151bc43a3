//! Starting and stopping the server.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use crate::bucket::{Bucket, Buckets};
use crate::counts::{Counters, Counts, LoggedRequest};
use crate::gate::Gate;
use crate::log::Log;
use crate::net;
use crate::service::Service;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::tls;
use crate::{ACCESS_KEY, SECRET_KEY};

/// A running server. Dropping it closes its socket and every connection.
pub struct Server {
    address: SocketAddr,
    buckets: Arc<Buckets>,
    counters: Arc<Counters>,
    sessions: Arc<Sessions>,
    settings: Arc<Settings>,
    region: Option<String>,
    /// In PEM, if it speaks TLS.
    certificate: Option<String>,
    accepting: AbortHandle,
    /// Set if the server was started from code that is not async.
    runtime: Option<Runtime>,
}

/// The keys that requests must be signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key: &'static str,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: &'static str,
}

/// Options of a server. All but the address can be changed while it runs.
#[derive(Clone, Debug)]
pub struct Builder {
    address: SocketAddr,
    region: Option<String>,
    first_byte_latency: Duration,
    list_latency: Duration,
    bandwidth: Option<u64>,
    rate_limit: Option<u32>,
    tls: bool,
    log: Option<PathBuf>,
}

impl Builder {
    /// Where to listen; a free port of 127.0.0.1 unless set.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// The region of buckets made later, which requests must then be signed for. Unless set, any
    /// region will do. See [`Bucket::set_region`].
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// See [`Server::set_first_byte_latency`].
    #[must_use]
    pub fn first_byte_latency(mut self, latency: Duration) -> Self {
        self.first_byte_latency = latency;
        self
    }

    /// See [`Server::set_list_latency`].
    #[must_use]
    pub fn list_latency(mut self, latency: Duration) -> Self {
        self.list_latency = latency;
        self
    }

    /// See [`Server::set_bandwidth_per_connection`].
    #[must_use]
    pub fn bandwidth_per_connection(mut self, bytes_per_second: Option<u64>) -> Self {
        self.bandwidth = bytes_per_second;
        self
    }

    /// See [`Server::set_rate_limit`].
    #[must_use]
    pub fn rate_limit(mut self, requests_per_second: Option<u32>) -> Self {
        self.rate_limit = requests_per_second;
        self
    }

    /// Speaks TLS, with a certificate of its own for 127.0.0.1 and localhost. See
    /// [`Server::certificate`].
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Writes a line for each answer to this file: when the request came, when the first and the
    /// last bytes were written, and how many.
    #[must_use]
    pub fn log(mut self, path: Option<PathBuf>) -> Self {
        self.log = path;
        self
    }

    /// Starts the server on the runtime that this is called on. Fails if the address cannot be
    /// listened on, or the log not written.
    #[allow(clippy::unused_async)] // a listener can only be made on a runtime
    pub async fn start(self) -> io::Result<Server> {
        let listener = net::listen(self.address)?;
        let address = listener.local_addr()?;
        let buckets = Arc::new(Buckets::default());
        let counters = Arc::new(Counters::default());
        let settings = Arc::new(Settings::default());
        let sessions = Arc::new(Sessions::default());
        let service = Service {
            buckets: buckets.clone(),
            counters: counters.clone(),
            sessions: sessions.clone(),
        };
        let gate = Arc::new(Gate::new(service, settings.clone()));
        let made = self.tls.then(tls::make).transpose()?;
        let (acceptor, certificate) = made.unzip();
        let log = self.log.map(|path| Log::create(&path)).transpose()?.map(Arc::new);
        let serving = net::serve(listener, gate, settings.clone(), counters.clone(), acceptor, log);
        let accepting = tokio::spawn(serving).abort_handle();
        let region = self.region;
        let server = Server {
            address,
            buckets,
            counters,
            sessions,
            settings,
            region,
            certificate,
            accepting,
            runtime: None,
        };
        server.set_first_byte_latency(self.first_byte_latency);
        server.set_list_latency(self.list_latency);
        server.set_bandwidth_per_connection(self.bandwidth);
        server.set_rate_limit(self.rate_limit);
        Ok(server)
    }

    /// Starts the server on two threads of its own, so that neither a blocking test nor a paused
    /// clock holds it up. Fails as [`start`](Self::start) does.
    pub fn start_blocking(self) -> io::Result<Server> {
        let (runtime, mut server) = net::start_on_own_threads(self.start())?;
        server.runtime = Some(runtime);
        Ok(server)
    }
}

impl Server {
    /// Options to start a server with.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            region: None,
            first_byte_latency: Duration::ZERO,
            list_latency: Duration::ZERO,
            bandwidth: None,
            rate_limit: None,
            tls: false,
            log: None,
        }
    }

    /// The socket address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint for a client: `http://127.0.0.1:…`, or `https`.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate to believe, in PEM, if the server speaks TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The keys that requests must be signed with.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials { access_key: ACCESS_KEY, secret_key: SECRET_KEY }
    }

    /// The bucket of this name, made now if there is none.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Bucket {
        self.buckets.get_or_create(name, self.region.as_deref())
    }

    /// Totals so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.snapshot()
    }

    /// The requests since the start or the last reset, oldest first, up to the last 100,000.
    #[must_use]
    pub fn log(&self) -> Vec<LoggedRequest> {
        self.counters.log()
    }

    /// Resets counts and log.
    pub fn reset(&self) {
        self.counters.reset();
    }

    /// Time to the first byte of the answer to a GET or HEAD.
    pub fn set_first_byte_latency(&self, latency: Duration) {
        self.settings.set_first_byte_latency(latency);
    }

    /// Time that a page of a listing takes.
    pub fn set_list_latency(&self, latency: Duration) {
        self.settings.set_list_latency(latency);
    }

    /// The bytes per second that a connection sends at most; `None` for as many as it can.
    pub fn set_bandwidth_per_connection(&self, bytes_per_second: Option<u64>) {
        self.settings.set_bandwidth(bytes_per_second);
    }

    /// The requests per second, of all clients together, beyond which the answer is 503 `SlowDown`.
    /// As many as a second allows may come at once. `None` for no limit.
    pub fn set_rate_limit(&self, requests_per_second: Option<u32>) {
        self.settings.set_rate_limit(requests_per_second);
    }

    /// The sessions of directory buckets that were given so far.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.count()
    }

    /// How long the next of them live; five minutes unless set.
    pub fn set_session_life(&self, life: Duration) {
        self.sessions.set_life(life);
    }

    /// Denies sessions that may write, as the condition `s3express:SessionMode` does.
    pub fn set_sessions_read_only(&self, read_only: bool) {
        self.sessions.set_reads_only(read_only);
    }

    /// Ends all sessions before their time.
    pub fn end_sessions(&self) {
        self.sessions.end();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
