//! `--metrics-listen`: the counters as Prometheus text, over HTTP.
//!
//! docs/metrics.md says what each metric means. Everything is read from [`Stats`] and the file
//! system when somebody asks; nothing here is on the path of a read.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::app::config::Config;
use crate::base::proc::resident_bytes;
use crate::fs::BucketFs;
use crate::stats::{Durations, Histogram, Operation, Outcome, RequestKind, Stats};

/// Scrapes at once; a Prometheus makes one.
const MOST_CONNECTIONS: usize = 16;

/// A connection serves one request and ends within this time, whoever is at its other end.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);

/// Opens the port. Fails, for example, when it is in use.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "give another port, or end what listens there",
            std::io::ErrorKind::PermissionDenied => "give a port above 1023",
            _ => "give an address of this machine",
        };
        format!("--metrics-listen: {address} cannot be listened on: {error}; {remedy}")
    })
}

/// What the metrics are of.
#[derive(Clone)]
pub(crate) struct Source {
    fs: Arc<BucketFs>,
    labels: Arc<[(&'static str, String); 3]>,
    started: SystemTime,
}

impl Source {
    /// Of a mount that starts now.
    pub(crate) fn new(fs: Arc<BucketFs>, config: &Config) -> Self {
        let labels = [
            ("bucket", config.bucket.clone()),
            ("prefix", config.prefix.clone()),
            ("mountpoint", config.mountpoint.display().to_string()),
        ];
        Self { fs, labels: Arc::new(labels), started: SystemTime::now() }
    }

    /// All metrics, in Prometheus' text format 0.0.4.
    pub(crate) fn text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a String takes everything");
        text
    }
}

/// Answers requests until it is dropped.
pub(crate) async fn serve(listener: TcpListener, source: Source) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                // Mostly too many open files, which is not cured by asking again at once.
                tracing::debug!(%error, "a connection to the metrics port failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let source = source.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = respond(&source, &request);
                async { Ok::<_, Infallible>(response) }
            });
            let serving = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(connection), answer);
            if let Ok(Err(error)) = timeout(LONGEST_CONNECTION, serving).await {
                tracing::debug!(%error, "a request to the metrics port failed");
            }
            drop(place);
        });
    }
}

fn respond(source: &Source, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, prometheus_text::CONTENT_TYPE, source.text())
        }
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header(ALLOW, "GET, HEAD")
        .body(Full::from(text))
        .expect("the headers are constants")
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.labels).finish()
    }
}

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let stats = &**self.fs.stats();
        out.gauges(
            "fasts3_mount_info",
            "What is mounted where, and by which version; always 1.",
            [(
                [
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    self.labels[0].clone(),
                    self.labels[1].clone(),
                    self.labels[2].clone(),
                ],
                1,
            )],
        )?;
        out.store(stats)?;
        out.bytes(stats)?;
        let (used, budget) = self.fs.memory_bytes();
        out.gauge("fasts3_memory_used_bytes", "Object bytes that are held or awaited.", used)?;
        out.gauge("fasts3_memory_budget_bytes", "The bound on them.", budget)?;
        out.fuse(stats)?;
        out.process(self.started)
    }
}

/// How the metrics are written.
struct Out<'a>(DescriptorEncoder<'a>);

type Label = (&'static str, String);

fn label(name: &'static str, value: &str) -> Label {
    (name, value.to_owned())
}

impl Out<'_> {
    fn store(&mut self, stats: &Stats) -> fmt::Result {
        let requests = &stats.requests;
        let all = RequestKind::ALL
            .into_iter()
            .flat_map(|kind| Outcome::ALL.into_iter().map(move |outcome| (kind, outcome)));
        self.histograms(
            "fasts3_store_request_duration_seconds",
            "Requests to the store, each attempt by itself, from sending one to the end of its answer.",
            all.filter_map(|(kind, outcome)| {
                let took = requests.took(kind, outcome).counts();
                // What never happens would be most of the text; what went well is always there.
                (outcome == Outcome::Ok || took.count() > 0)
                    .then(|| ([label("kind", kind.name()), label("outcome", outcome.name())], took))
            }),
        )?;
        self.gauges(
            "fasts3_store_requests_in_flight",
            "Requests to the store that are under way.",
            RequestKind::ALL.map(|kind| ([label("kind", kind.name())], requests.in_flight(kind))),
        )?;
        self.histograms(
            "fasts3_store_first_byte_seconds",
            "From asking for a range of an object to its first byte, retries included.",
            [([], stats.first_byte.counts())],
        )?;
        self.counter(
            "fasts3_store_retries",
            "Requests that were sent again after a failure.",
            stats.retries.get(),
        )?;
        self.counter(
            "fasts3_store_hedges",
            "Requests that were sent a second time because the first was slow.",
            stats.hedges.get(),
        )?;
        self.counter(
            "fasts3_store_throttled",
            "Times that requests were held back because the store asked to slow down.",
            stats.throttled.get(),
        )?;
        self.counter(
            "fasts3_listed_entries",
            "Keys and common prefixes on pages of listings.",
            stats.listed.get(),
        )
    }

    fn bytes(&mut self, stats: &Stats) -> fmt::Result {
        let ahead = stats.bytes_ahead.get();
        let demand = stats.bytes_fetched.get().saturating_sub(ahead);
        self.counters(
            "fasts3_fetched_bytes",
            "Object bytes that arrived, by why they were asked for.",
            [([label("purpose", "demand")], demand), ([label("purpose", "ahead")], ahead)],
        )?;
        self.counter(
            "fasts3_served_bytes",
            "Object bytes given to the kernel.",
            stats.bytes_served.get(),
        )?;
        self.counter("fasts3_reads", "Reads that were answered with bytes.", stats.reads.get())?;
        self.counter(
            "fasts3_reads_waited",
            "Reads that had to wait for bytes; the others were cache hits.",
            stats.reads_waited.get(),
        )?;
        self.counter(
            "fasts3_evicted_chunks",
            "Chunks that were given up for others.",
            stats.evictions.get(),
        )?;
        self.counter(
            "fasts3_evicted_unread_bytes",
            "Bytes that were given up in blocks which the page cache had not taken to their ends.",
            stats.bytes_unread.get(),
        )?;
        self.counters(
            "fasts3_sibling_files",
            "Small files that were read ahead because their siblings were read.",
            [
                ([label("state", "ahead")], stats.siblings_ahead.get()),
                ([label("state", "used")], stats.siblings_used.get()),
                ([label("state", "wasted")], stats.siblings_wasted.get()),
            ],
        )?;
        self.counters(
            "fasts3_sibling_bytes",
            "The bytes of these files.",
            [
                ([label("state", "ahead")], stats.siblings_ahead_bytes.get()),
                ([label("state", "used")], stats.siblings_used_bytes.get()),
                ([label("state", "wasted")], stats.siblings_wasted_bytes.get()),
            ],
        )
    }

    fn fuse(&mut self, stats: &Stats) -> fmt::Result {
        let took = |operation| Histogram::counts(stats.fuse.took(operation));
        self.histograms(
            "fasts3_fuse_operation_duration_seconds",
            "Requests of the kernel, from when they are taken to when they are answered.",
            Operation::ALL
                .map(|operation| ([label("operation", operation.name())], took(operation))),
        )?;
        self.gauges(
            "fasts3_fuse_operations_in_flight",
            "Requests of the kernel that wait for their answer.",
            Operation::ALL.map(|operation| {
                ([label("operation", operation.name())], stats.fuse.in_flight(operation))
            }),
        )?;
        self.counters(
            "fasts3_fuse_errors",
            "Requests of the kernel that were answered with an error.",
            stats.fuse.errors().map(|(errno, count)| ([label("errno", errno)], count)),
        )
    }

    /// What every exporter tells of its process, under the names that all of them use.
    fn process(&mut self, started: SystemTime) -> fmt::Result {
        let seconds = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.gauge("process_start_time_seconds", "When the mount began.", seconds)?;
        if let Some(bytes) = resident_bytes() {
            self.gauge("process_resident_memory_bytes", "Resident memory.", bytes)?;
        }
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let used = usage.user_time() + usage.system_time();
            let microseconds = u64::try_from(used.num_microseconds()).unwrap_or_default();
            let seconds = Duration::from_micros(microseconds).as_secs_f64();
            self.0
                .encode_descriptor(
                    "process_cpu_seconds",
                    "CPU time, user and system.",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
        }
        Ok(())
    }

    /// The encoder writes `_total` behind a counter's name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, f64>(&value, None)
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Label; N], u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Label; N], u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values
            .into_iter()
            .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Label; N], Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        values.into_iter().try_for_each(|(labels, took)| {
            let buckets: Vec<_> = took.buckets().collect();
            let (seconds, count) = (took.seconds, took.count());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
        })
    }
}
