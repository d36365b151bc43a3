//! `--metrics-listen`: the counters as Prometheus text, over HTTP.
//!
//! docs/metrics.md says what each metric means. Nothing here is on the path of a read.

use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::Context;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::command_error::CommandError;
use crate::app::config::Config;
use crate::app::config::args::BucketPrefix;
use crate::app::exit::Exit;
use crate::app::task;
use crate::base::proc::resident_bytes;
use crate::disk::Disk;
use crate::fs::BucketFs;
use crate::stats::{Durations, Operation, Outcome, RequestKind, Stats};

/// A connection serves one request and ends within this time, whatever its other end does.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "give another port, or end the program that uses it",
            std::io::ErrorKind::PermissionDenied => "give a port above 1023",
            _ => "give an address of this machine",
        };
        let sentence =
            format!("--metrics-listen: {address} cannot be listened on: {error}; {remedy}");
        CommandError::new(Exit::CantCreat, sentence)
    })
}

#[derive(Clone)]
pub(crate) struct Exporter {
    fs: Arc<BucketFs>,
    disk: Option<Arc<Disk>>,
    info: Arc<[(&'static str, String); 4]>,
    started: SystemTime,
}

impl Exporter {
    pub(crate) fn new(
        fs: Arc<BucketFs>,
        disk: Option<Arc<Disk>>,
        config: &Config,
        mountpoint: &Path,
    ) -> Self {
        let listed = |of: fn(&BucketPrefix) -> &String| {
            config.buckets.iter().map(of).map(String::as_str).collect::<Vec<_>>().join(",")
        };
        let info = [
            ("version", crate::VERSION.to_owned()),
            ("bucket", listed(|bucket| &bucket.name)),
            ("prefix", listed(|bucket| &bucket.prefix)),
            ("mountpoint", mountpoint.display().to_string()),
        ];
        Self { fs, disk, info: Arc::new(info), started: SystemTime::now() }
    }

    /// All metrics, in Prometheus' text format 0.0.4.
    fn text(&self) -> String {
        let stats = &*self.fs.stats;
        let mut out = Text::default();
        let help = "What is mounted where, and by which version; always 1.";
        out.family("fasts3_mount_info", "gauge", help);
        let info: Vec<_> = self.info.iter().map(|(name, value)| (*name, value.as_str())).collect();
        out.sample("fasts3_mount_info", &info, 1);
        out.counters(stats);
        out.store(stats);
        out.buckets(stats);
        out.kernel(stats);
        let (used, budget) = self.fs.memory_bytes();
        out.gauge("fasts3_memory_used_bytes", "Object bytes that are held or awaited.", used);
        out.gauge("fasts3_memory_budget_bytes", "The bound on them.", budget);
        // Without a disk cache that is used, both are 0.
        let (used, size) = self.disk.as_deref().and_then(Disk::usage).unwrap_or_default();
        out.gauge("fasts3_disk_cache_used_bytes", "What all mounts have stored on the disk.", used);
        out.gauge("fasts3_disk_cache_size_bytes", "The bound on it.", size);
        out.process(self.started);
        out.0
    }
}

/// Answers requests until it is dropped.
pub(crate) async fn serve(listener: TcpListener, exporter: Exporter) {
    let accept =
        |context: &mut Context<'_>| listener.poll_accept(context).map_ok(|(stream, _)| stream);
    task::serve("metrics port", accept, |stream| answer(stream, exporter.clone())).await;
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
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", exporter.text())
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

/// In Prometheus' "Exposition formats" a family is its help and its kind, then its samples.
#[derive(Default)]
struct Text(String);

impl Text {
    fn counters(&mut self, stats: &Stats) {
        let totals = stats.snapshot();
        for family in totals.series().chunk_by(|one, next| one.metric == next.metric) {
            self.family(family[0].metric, "counter", family[0].help);
            for series in family {
                self.sample(series.metric, series.label.as_slice(), series.value);
            }
        }
        let name = "fasts3_fetched_bytes_total";
        self.family(name, "counter", "Object bytes that arrived, by why they were asked for.");
        let demand = totals.bytes_fetched.saturating_sub(totals.bytes_ahead);
        self.sample(name, &[("purpose", "demand")], demand);
        self.sample(name, &[("purpose", "ahead")], totals.bytes_ahead);
        let name = "fasts3_fuse_errors_total";
        self.family(name, "counter", "Requests of the kernel that were answered with an error.");
        for (errno, count) in stats.fuse.errors() {
            self.sample(name, &[("errno", errno)], count);
        }
    }

    fn store(&mut self, stats: &Stats) {
        let name = "fasts3_store_request_duration_seconds";
        let help = "Requests to the store, each attempt by itself, from sending one to the end of \
                    its answer.";
        self.family(name, "histogram", help);
        let outcomes = |kind| Outcome::ALL.map(|outcome| (kind, outcome));
        for (kind, outcome) in RequestKind::ALL.into_iter().flat_map(outcomes) {
            let took = stats.requests.took(kind, outcome).counts();
            // Outcomes that never happen would be most of the text; `ok` is always there.
            if outcome == Outcome::Ok || took.count() > 0 {
                self.histogram(name, &[("kind", kind.name()), ("outcome", outcome.name())], &took);
            }
        }
        let name = "fasts3_store_requests_in_flight";
        self.family(name, "gauge", "Requests to the store that are under way.");
        for kind in RequestKind::ALL {
            self.sample(name, &[("kind", kind.name())], stats.requests.in_flight(kind));
        }
        let name = "fasts3_store_first_byte_seconds";
        let help = "From asking for a range of an object to its first byte, retries included.";
        self.family(name, "histogram", help);
        self.histogram(name, &[], &stats.first_byte.counts());
    }

    /// One bucket's requests are all requests.
    fn buckets(&mut self, stats: &Stats) {
        let name = "fasts3_bucket_requests_total";
        self.family(name, "counter", "Requests to each of several buckets, retries not counted.");
        for bucket in stats.buckets.get().into_iter().flatten() {
            let directory = ("directory", bucket.directory.trim_end_matches('/'));
            self.sample(name, &[directory, ("outcome", "answered")], bucket.answered.get());
            self.sample(name, &[directory, ("outcome", "failed")], bucket.failed.get());
        }
    }

    fn kernel(&mut self, stats: &Stats) {
        let name = "fasts3_fuse_operation_duration_seconds";
        let help = "Requests of the kernel, from when they are taken to when they are answered.";
        self.family(name, "histogram", help);
        for kind in Operation::ALL {
            self.histogram(name, &[("operation", kind.name())], &stats.fuse.took(kind).counts());
        }
        let name = "fasts3_fuse_operations_in_flight";
        self.family(name, "gauge", "Requests of the kernel that wait for their answer.");
        for kind in Operation::ALL {
            self.sample(name, &[("operation", kind.name())], stats.fuse.in_flight(kind));
        }
    }

    /// The process, under the names that all exporters use.
    fn process(&mut self, started: SystemTime) {
        let seconds = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.gauge("process_start_time_seconds", "When the mount began.", seconds);
        if let Some(bytes) = resident_bytes() {
            self.gauge("process_resident_memory_bytes", "Resident memory.", bytes);
        }
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let used = usage.user_time() + usage.system_time();
            let microseconds = u64::try_from(used.num_microseconds()).unwrap_or_default();
            let name = "process_cpu_seconds_total";
            self.family(name, "counter", "CPU time, user and system.");
            self.sample(name, &[], Duration::from_micros(microseconds).as_secs_f64());
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], took: &Durations) {
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        for (bound, count) in took.buckets() {
            below += count;
            // As a number with a point, as other exporters write it.
            let bound = match bound {
                _ if bound.is_infinite() => "+Inf".to_owned(),
                _ if bound.fract() > 0.0 => bound.to_string(),
                _ => format!("{bound:.1}"),
            };
            self.sample(&bucket, &[labels, &[("le", &bound)]].concat(), below);
        }
        self.sample(&format!("{name}_sum"), labels, took.seconds);
        self.sample(&format!("{name}_count"), labels, below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_hold_any_text() {
        let mut text = Text::default();
        text.family("m", "gauge", "Help.");
        text.sample("m", &[("a", "q\"b\\n\nä"), ("c", "")], 1);
        text.sample("m", &[], 0.5);
        let want = "# HELP m Help.\n# TYPE m gauge\nm{a=\"q\\\"b\\\\n\\nä\",c=\"\"} 1\nm 0.5\n";
        assert_eq!(text.0, want);
    }

    #[test]
    fn a_bucket_counts_what_is_in_those_before_it() {
        let took = crate::stats::Histogram::default();
        for micros in [5, 15, 15_000_000] {
            took.add(Duration::from_micros(micros));
        }
        let mut text = Text::default();
        text.histogram("m", &[("k", "v")], &took.counts());
        for line in [
            "m_bucket{k=\"v\",le=\"0.00001\"} 1",
            "m_bucket{k=\"v\",le=\"0.00002\"} 2",
            "m_bucket{k=\"v\",le=\"10.0\"} 2",
            "m_bucket{k=\"v\",le=\"30.0\"} 3",
            "m_bucket{k=\"v\",le=\"+Inf\"} 3",
            "m_sum{k=\"v\"} 15.00002",
            "m_count{k=\"v\"} 3",
        ] {
            assert!(text.0.lines().any(|known| known == line), "{line} in {}", text.0);
        }
    }
}
