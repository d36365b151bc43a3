//! Faults below HTTP: a proxy that breaks chosen answers on their way.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use devserver::proxy::{Fault, FaultProxy, Rule};
//! # let server = devserver::Server::builder().start().await?;
//! let proxy = FaultProxy::start(server.address()).await?;
//! let reset = proxy.add(Rule::on_get("a/b", Fault::Reset { after: 100_000 }).times(2));
//! // … point the client at proxy.endpoint_url() and read …
//! assert_eq!(reset.hits(), 2);
//! # Ok(())
//! # }
//! ```

mod connection;
mod script;
mod wire;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::counts::Kind;
use crate::net;
pub use wire::{Answer, RequestHead};

/// A fault of an answer. Lengths count bytes of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed instead of an answer.
    Hangup,
    /// The connection is reset (RST) after this many bytes.
    Reset {
        /// Bytes sent before.
        after: u64,
    },
    /// The connection is closed in good order after this many bytes.
    Truncate {
        /// Bytes sent before.
        after: u64,
    },
    /// Nothing more comes after this many bytes.
    Stall {
        /// Bytes sent before.
        after: u64,
        /// Then the rest follows; `None` for never.
        pause: Option<Duration>,
    },
    /// The answer, its head included, is delayed by this.
    Delay(Duration),
    /// `Content-Range` says this instead.
    ContentRange(String),
    /// `Content-Length` says this instead; the connection is closed after the true body.
    ContentLength(u64),
    /// The body is cut or filled up with zeros to this length, and `Content-Length` admits it.
    BodyLength(u64),
    /// The body's byte at this offset is another.
    Corrupt {
        /// Which byte.
        at: u64,
    },
    /// The answer is 200 with a body that is no XML.
    Garbage,
    /// The answer is 200 with a page for people, as a proxy or a captive portal sends one.
    Html,
    /// The request goes no further, and the answer is 503 with this many seconds in `Retry-After`.
    RetryAfter(u64),
    /// The request goes no further, and the answer is this error.
    Status {
        /// Such as 503.
        status: u16,
        /// Such as `SlowDown`.
        code: String,
    },
    /// The answer's `Date` says this instead, as if the store's clock were wrong.
    Date(String),
    /// A GET of a range is answered with 200 and the whole object. Only in front of a
    /// [`Server`](crate::Server), as those below: removing a header would break the signature.
    IgnoreRange,
    /// A GET is answered whatever its `If-Match` says.
    IgnoreIfMatch,
    /// A listing begins at the beginning, whatever its `start-after` says.
    IgnoreStartAfter,
    /// A listing's keys are written as they are, whatever its `encoding-type` says.
    IgnoreEncodingType,
    /// A page of a listing says that it is its own next page.
    RepeatToken,
    /// A page of a listing is the first one again.
    BackwardsPage,
    /// The answer is written anew.
    Rewrite(Rewrite),
}

/// Makes another answer from the server's; gives all of it, head and body, as it goes over the
/// wire. The connection is closed behind one that says `Connection: close`.
#[derive(Clone)]
pub struct Rewrite(Arc<Rewriter>);

type Rewriter = dyn Fn(&RequestHead, Answer) -> Vec<u8> + Send + Sync;

impl fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rewrite")
    }
}

impl PartialEq for Rewrite {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Rewrite {}

impl Fault {
    /// See [`Rewrite`].
    #[must_use]
    pub fn rewrite(how: impl Fn(&RequestHead, Answer) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Rewrite(Rewrite(Arc::new(how)))
    }

    /// 503 `SlowDown`, as S3 throttles.
    #[must_use]
    pub fn slow_down() -> Self {
        Self::Status { status: 503, code: "SlowDown".into() }
    }
}

type Matcher = Arc<dyn Fn(&RequestHead) -> bool + Send + Sync>;

/// Which requests meet with which fault.
#[derive(Clone)]
pub struct Rule {
    matches: Matcher,
    fault: Fault,
    /// Requests to which it still applies.
    left: u64,
    /// It applies to every nth matching request.
    every: u64,
    /// Matching requests so far.
    seen: u64,
}

impl Rule {
    /// Applies to every request for which `matches` says so.
    #[must_use]
    pub fn new(
        matches: impl Fn(&RequestHead) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) -> Self {
        Self { matches: Arc::new(matches), fault, left: u64::MAX, every: 1, seen: 0 }
    }

    /// Applies to every GET of this object.
    #[must_use]
    pub fn on_get(key: &str, fault: Fault) -> Self {
        let key = key.to_owned();
        Self::new(move |request| request.kind() == Kind::Get && request.key() == key, fault)
    }

    /// Applies to every page of every listing.
    #[must_use]
    pub fn on_list(fault: Fault) -> Self {
        Self::new(|request| request.kind() == Kind::List, fault)
    }

    /// Applies to every request.
    #[must_use]
    pub fn on_all(fault: Fault) -> Self {
        Self::new(|_| true, fault)
    }

    /// Applies only to every `nth` of them.
    #[must_use]
    pub fn every(mut self, nth: u64) -> Self {
        self.every = nth.max(1);
        self
    }

    /// Applies only to the next `times` of them.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.left = times;
        self
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("fault", &self.fault).finish_non_exhaustive()
    }
}

/// A rule that was added.
#[derive(Clone, Debug)]
pub struct Applied(Arc<AtomicU64>);

impl Applied {
    /// Requests that had the fault so far.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Default)]
struct Rules(Mutex<Vec<(Rule, Applied)>>);

impl Rules {
    /// The fault of the first rule that is for this request and not used up.
    fn fault_for(&self, request: &RequestHead) -> Option<Fault> {
        let mut rules = self.0.lock().expect("no panic while it is held");
        let mut met = None;
        for (rule, applied) in rules.iter_mut() {
            if rule.left == 0 || !(rule.matches)(request) {
                continue;
            }
            // Every rule counts the request, also when an earlier one meets it.
            rule.seen += 1;
            if met.is_none() && rule.seen.is_multiple_of(rule.every) {
                met = Some((rule, applied));
            }
        }
        let (rule, applied) = met?;
        rule.left -= 1;
        applied.0.fetch_add(1, Relaxed);
        Some(rule.fault.clone())
    }
}

/// A proxy on a port of 127.0.0.1. Dropping it closes every connection through it.
///
/// Signatures stay right, for the `Host` header passes as the client wrote it.
pub struct FaultProxy {
    address: SocketAddr,
    rules: Arc<Rules>,
    cut: Arc<Notify>,
    accepting: AbortHandle,
    runtime: Option<Runtime>,
}

impl FaultProxy {
    /// Starts a proxy in front of `target` on the runtime that this is called on.
    #[allow(clippy::unused_async)] // a listener can only be made on a runtime
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = listener.local_addr()?;
        let rules = Arc::new(Rules::default());
        let cut = Arc::new(Notify::new());
        let serving = serve(listener, target, rules.clone(), cut.clone());
        let accepting = tokio::spawn(serving).abort_handle();
        Ok(Self { address, rules, cut, accepting, runtime: None })
    }

    /// Starts a proxy on a thread of its own.
    pub fn start_blocking(target: SocketAddr) -> io::Result<Self> {
        let (runtime, mut proxy) = net::start_on_own_threads(Self::start(target))?;
        proxy.runtime = Some(runtime);
        Ok(proxy)
    }

    /// The endpoint for a client.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule behind those added before: a request meets with the first that is for it.
    #[allow(clippy::must_use_candidate)]
    pub fn add(&self, rule: Rule) -> Applied {
        let applied = Applied(Arc::default());
        let mut rules = self.rules.0.lock().expect("no panic while it is held");
        rules.push((rule, applied.clone()));
        applied
    }

    /// Closes every connection, in the middle of whatever comes over it.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Does what a line says: `add`, `hits`, `clear` or `cut`, in the words of
    /// [`Rule::from_str`](std::str::FromStr); gives the answer.
    ///
    /// `add` answers with the number of the rule, which `hits` takes.
    pub fn tell(&self, line: &str) -> Result<String, String> {
        let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match verb {
            "add" => {
                self.add(rest.parse()?);
                Ok((self.rules.0.lock().expect("no panic while it is held").len() - 1).to_string())
            }
            "hits" => {
                let number: usize = rest.parse().map_err(|error| format!("{rest:?}: {error}"))?;
                let rules = self.rules.0.lock().expect("no panic while it is held");
                let rule = rules.get(number).ok_or("there is no such rule")?;
                Ok(rule.1.hits().to_string())
            }
            "clear" => {
                self.clear();
                Ok(String::new())
            }
            "cut" => {
                self.cut();
                Ok(String::new())
            }
            _ => Err(format!("{verb:?} is none of add, hits, clear, cut")),
        }
    }

    /// Removes all rules. Answers already on their way keep their fault.
    pub fn clear(&self) {
        self.rules.0.lock().expect("no panic while it is held").clear();
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, rules: Arc<Rules>, cut: Arc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let _ = client.set_nodelay(true);
                let rules = rules.clone();
                connections.spawn(async move {
                    // Either side may hang up at any time; that is what the proxy is for.
                    let _ = connection::relay(client, target, &rules).await;
                });
            }
            () = cut.notified() => connections.abort_all(),
            Some(_) = connections.join_next() => {}
            else => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
