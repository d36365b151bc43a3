//! `--metrics-listen`: the counters as Prometheus text, over HTTP.
//!
//! docs/metrics.md says what each metric means. Everything is read from [`Stats`] and the file
//! system when a scraper asks; nothing here is on the path of a read.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
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
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::config::Config;
use crate::app::task;
use crate::base::proc::resident_bytes;
use crate::fs::BucketFs;
use crate::stats::{Durations, Operation, Outcome, RequestKind, Stats};

/// A connection serves one request and ends within this time, whatever its other end does.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);

/// Opens the port. Fails, for example, when it is in use.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "give another port, or end the program that uses it",
            std::io::ErrorKind::PermissionDenied => "give a port above 1023",
            _ => "give an address of this machine",
        };
        format!("--metrics-listen: {address} cannot be listened on: {error}; {remedy}")
    })
}

/// A mount, as its metrics show it.
#[derive(Clone)]
pub(crate) struct Exporter {
    fs: Arc<BucketFs>,
    /// The labels of `fasts3_mount_info`.
    info: Arc<[(&'static str, String); 4]>,
    started: SystemTime,
}

impl Exporter {
    /// The exporter of a mount that starts now.
    pub(crate) fn new(fs: Arc<BucketFs>, config: &Config, mountpoint: &Path) -> Self {
        let info = [
            ("version", crate::VERSION.to_owned()),
            ("bucket", config.bucket.clone()),
            ("prefix", config.prefix.clone()),
            ("mountpoint", mountpoint.display().to_string()),
        ];
        Self { fs, info: Arc::new(info), started: SystemTime::now() }
    }

    /// All metrics, in Prometheus' text format 0.0.4.
    fn text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a String takes everything");
        text
    }
}

/// Answers requests until it is dropped.
pub(crate) async fn serve(listener: TcpListener, exporter: Exporter) {
    task::serve(
        "metrics port",
        |context| listener.poll_accept(context).map_ok(|(stream, _)| stream),
        |stream| answer(stream, exporter.clone()),
    )
    .await;
}

async fn answer(stream: TcpStream, exporter: Exporter) {
    let service = service_fn(|request| {
        let response = respond(&exporter, &request);
        async { Ok::<_, Infallible>(response) }
    });
    let connection =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(LONGEST_CONNECTION, connection).await {
        tracing::debug!(%error, "a request to the metrics port failed");
    }
}

fn respond(exporter: &Exporter, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, prometheus_text::CONTENT_TYPE, exporter.text())
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

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exporter").field(&self.info).finish()
    }
}

impl Collector for Exporter {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let stats = &**self.fs.stats();
        let mount = self.info.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let help = "What is mounted where, and by which version; always 1.";
        out.gauges("fasts3_mount_info", help, [(mount, 1)])?;
        out.counters(stats)?;
        out.store(stats)?;
        out.kernel(stats)?;
        let (used, budget) = self.fs.memory_bytes();
        out.gauge("fasts3_memory_used_bytes", "Object bytes that are held or awaited.", used)?;
        out.gauge("fasts3_memory_budget_bytes", "The bound on them.", budget)?;
        out.process(self.started)
    }
}

/// Writes metrics.
struct Out<'a>(DescriptorEncoder<'a>);

type Labels = Vec<(&'static str, &'static str)>;

impl Out<'_> {
    fn counters(&mut self, stats: &Stats) -> fmt::Result {
        let totals = stats.snapshot();
        for family in totals.series().chunk_by(|one, next| one.metric == next.metric) {
            let samples = family.iter().map(|series| (series.label, series.value));
            self.counter(family[0].metric, family[0].help, samples)?;
        }
        let demand = totals.bytes_fetched.saturating_sub(totals.bytes_ahead);
        self.counter(
            "fasts3_fetched_bytes",
            "Object bytes that arrived, by why they were asked for.",
            [
                (Some(("purpose", "demand")), demand),
                (Some(("purpose", "ahead")), totals.bytes_ahead),
            ],
        )?;
        self.counter(
            "fasts3_fuse_errors",
            "Requests of the kernel that were answered with an error.",
            stats.fuse.errors().map(|(errno, count)| (Some(("errno", errno)), count)),
        )
    }

    fn store(&mut self, stats: &Stats) -> fmt::Result {
        let requests = &stats.requests;
        let all = RequestKind::ALL
            .into_iter()
            .flat_map(|kind| Outcome::ALL.into_iter().map(move |outcome| (kind, outcome)));
        self.histograms(
            "fasts3_store_request_duration_seconds",
            "Requests to the store, each attempt by itself, from sending one to the end of its \
             answer.",
            all.filter_map(|(kind, outcome)| {
                let took = requests.took(kind, outcome).counts();
                // Outcomes that never happen would be most of the text; `ok` is always there.
                (outcome == Outcome::Ok || took.count() > 0)
                    .then(|| (vec![("kind", kind.name()), ("outcome", outcome.name())], took))
            }),
        )?;
        self.gauges(
            "fasts3_store_requests_in_flight",
            "Requests to the store that are under way.",
            RequestKind::ALL.map(|kind| (vec![("kind", kind.name())], requests.in_flight(kind))),
        )?;
        self.histograms(
            "fasts3_store_first_byte_seconds",
            "From asking for a range of an object to its first byte, retries included.",
            [(vec![], stats.first_byte.counts())],
        )
    }

    fn kernel(&mut self, stats: &Stats) -> fmt::Result {
        let label = |operation: Operation| vec![("operation", operation.name())];
        self.histograms(
            "fasts3_fuse_operation_duration_seconds",
            "Requests of the kernel, from when they are taken to when they are answered.",
            Operation::ALL.map(|kind| (label(kind), stats.fuse.took(kind).counts())),
        )?;
        self.gauges(
            "fasts3_fuse_operations_in_flight",
            "Requests of the kernel that wait for their answer.",
            Operation::ALL.map(|kind| (label(kind), stats.fuse.in_flight(kind))),
        )
    }

    /// The process, under the names that all exporters use.
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
            self.family("process_cpu_seconds", "CPU time, user and system.", MetricType::Counter)?
                .encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
        }
        Ok(())
    }

    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    /// The encoder writes `_total` behind the name.
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Option<(&'static str, &'static str)>, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(label, value)| {
            family
                .encode_family(&label.as_slice())?
                .encode_counter::<NoLabelSet, u64, f64>(&value, None)
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(vec![], value)])
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'l str)>, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Gauge)?;
        samples
            .into_iter()
            .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, Durations)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        samples.into_iter().try_for_each(|(labels, took)| {
            let buckets: Vec<_> = took.buckets().collect();
            let (seconds, count) = (took.seconds, took.count());
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
        })
    }
}
