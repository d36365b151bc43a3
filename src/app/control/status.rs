//! What a mount tells of itself: its settings and its totals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::app::config::{self, Config};
use crate::base::layout::Layout;
use crate::base::proc::resident_bytes;
use crate::base::text::{bytes, percent, seconds};
use crate::fs::BucketFs;
use crate::fuse::Access;
use crate::stats::{Busiest, Durations, Operation, Outcome, RequestKind};

/// Of the busiest, so many are told: whoever compares two moments finds those who were busy between.
const BUSIEST: usize = 100;

/// A mount at some moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// What was set.
    pub(crate) settings: Settings,
    /// For how long it has been mounted.
    pub(crate) uptime_seconds: f64,
    /// What was done since then.
    pub(crate) totals: Totals,
    /// Requests to the store, by kind.
    pub(crate) requests: BTreeMap<String, Requests>,
    /// From asking for a range to its first byte.
    pub(crate) first_byte: Durations,
    /// The kernel's requests, by kind.
    pub(crate) operations: BTreeMap<String, Operations>,
    /// How many of them were answered with which error.
    pub(crate) errors: BTreeMap<String, u64>,
    /// The files that most bytes were served of, by path below the mountpoint.
    pub(crate) files: Vec<Busy>,
    /// The threads that most bytes were served to, by number.
    pub(crate) threads: Vec<Busy>,
}

/// What does not change while a mount lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Of the program.
    pub(crate) version: String,
    /// The daemon's process.
    pub(crate) pid: u32,
    /// `s3://bucket/prefix`
    pub(crate) source: String,
    /// Where it is mounted.
    pub(crate) mountpoint: String,
    /// The store.
    pub(crate) endpoint: String,
    /// The region that requests are signed for.
    pub(crate) region: String,
    /// The bound on object bytes.
    pub(crate) memory_budget_bytes: u64,
    /// Unit of the cache.
    pub(crate) chunk_bytes: u64,
    /// The most that one request asks for.
    pub(crate) part_bytes: u64,
    /// Requests in flight at once.
    pub(crate) max_connections: usize,
    /// How far the kernel was asked to read ahead; 0 left it to itself.
    pub(crate) kernel_readahead_bytes: u64,
    /// How long names are believed; absent: for ever.
    pub(crate) metadata_ttl_seconds: Option<f64>,
    /// How long the absence of a name is believed.
    pub(crate) negative_ttl_seconds: f64,
    /// Memory for listings.
    pub(crate) names_budget_bytes: u64,
    /// Owner of all files.
    pub(crate) uid: u32,
    /// Group of all files.
    pub(crate) gid: u32,
    /// Who may use it: `owner`, `owner and root` or `everyone`.
    pub(crate) access: String,
    /// Where metrics are served, if they are.
    pub(crate) metrics: Option<String>,
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

impl Settings {
    /// Of a mount that begins now.
    pub(crate) fn new(config: &Config, layout: &Layout, endpoint: &str, region: &str) -> Self {
        let access = match config.access {
            Access::Owner => "owner",
            Access::OwnerAndRoot => "owner and root",
            Access::Everyone => "everyone",
        };
        Self {
            version: crate::VERSION.to_owned(),
            pid: std::process::id(),
            source: format!("s3://{}/{}", config.bucket, config.prefix),
            mountpoint: config.mountpoint.display().to_string(),
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            memory_budget_bytes: config.memory_budget_bytes,
            chunk_bytes: layout.chunk_bytes,
            part_bytes: layout.largest_part_bytes,
            max_connections: config.max_connections,
            kernel_readahead_bytes: config.kernel_readahead_bytes,
            metadata_ttl_seconds: config.metadata_ttl.map(|ttl| ttl.as_secs_f64()),
            negative_ttl_seconds: config.negative_ttl.as_secs_f64(),
            names_budget_bytes: config.names_budget_bytes,
            uid: config.uid,
            gid: config.gid,
            access: access.to_owned(),
            metrics: None,
            since: Instant::now(),
        }
    }
}

/// Numbers since the mount, and of now where they are called used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)] // as in `Stats`
pub(crate) struct Totals {
    pub(crate) reads: u64,
    pub(crate) reads_waited: u64,
    pub(crate) bytes_served: u64,
    pub(crate) bytes_fetched: u64,
    pub(crate) bytes_ahead: u64,
    pub(crate) bytes_unread: u64,
    pub(crate) evictions: u64,
    pub(crate) siblings_ahead: u64,
    pub(crate) siblings_used: u64,
    pub(crate) siblings_wasted: u64,
    pub(crate) listed: u64,
    pub(crate) retries: u64,
    pub(crate) hedges: u64,
    pub(crate) throttled: u64,
    pub(crate) memory_used_bytes: u64,
    pub(crate) resident_bytes: u64,
}

/// Requests of one kind to the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Under way now.
    pub(crate) in_flight: u64,
    /// How many ended in which way.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// How long those took that ended well.
    pub(crate) took: Durations,
}

/// The kernel's requests of one kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Operations {
    /// Waiting for their answer now.
    pub(crate) in_flight: u64,
    /// How long they took.
    pub(crate) took: Durations,
}

/// Who took bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Busy {
    /// A path, or a thread's number.
    pub(crate) name: String,
    /// How many.
    pub(crate) bytes: u64,
}

impl Status {
    /// Of this moment.
    pub(crate) fn of(settings: &Settings, fs: &Arc<BucketFs>) -> Self {
        let stats = fs.stats();
        let totals = Totals {
            reads: stats.reads.get(),
            reads_waited: stats.reads_waited.get(),
            bytes_served: stats.bytes_served.get(),
            bytes_fetched: stats.bytes_fetched.get(),
            bytes_ahead: stats.bytes_ahead.get(),
            bytes_unread: stats.bytes_unread.get(),
            evictions: stats.evictions.get(),
            siblings_ahead: stats.siblings_ahead.get(),
            siblings_used: stats.siblings_used.get(),
            siblings_wasted: stats.siblings_wasted.get(),
            listed: stats.listed.get(),
            retries: stats.retries.get(),
            hedges: stats.hedges.get(),
            throttled: stats.throttled.get(),
            memory_used_bytes: fs.memory_bytes().0,
            resident_bytes: resident_bytes().unwrap_or_default(),
        };
        let requests = RequestKind::ALL.map(|kind| {
            let count = |outcome| stats.requests.took(kind, outcome).count();
            let ended = Outcome::ALL.map(|outcome| (outcome.name().to_owned(), count(outcome)));
            let requests = Requests {
                in_flight: stats.requests.in_flight(kind),
                outcomes: ended.into_iter().filter(|&(_, count)| count > 0).collect(),
                took: stats.requests.took(kind, Outcome::Ok).counts(),
            };
            (kind.name().to_owned(), requests)
        });
        let operations = Operation::ALL.map(|operation| {
            let in_flight = stats.fuse.in_flight(operation);
            let took = stats.fuse.took(operation).counts();
            (operation.name().to_owned(), Operations { in_flight, took })
        });
        let errors = stats.fuse.errors().filter(|&(_, count)| count > 0);
        Self {
            settings: settings.clone(),
            uptime_seconds: settings.since.elapsed().as_secs_f64(),
            totals,
            requests: requests.into_iter().collect(),
            first_byte: stats.first_byte.counts(),
            operations: operations.into_iter().collect(),
            errors: errors.map(|(errno, count)| (errno.to_owned(), count)).collect(),
            files: busiest(&stats.files, |ino| fs.path_of(ino)),
            threads: busiest(&stats.threads, |thread| Some(thread.to_string())),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { settings, totals, .. } = self;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<18}{value}");
        };
        let uptime = humantime::format_duration(Duration::from_secs(whole(self.uptime_seconds)));
        line("mount", format!("{} on {}", settings.source, settings.mountpoint));
        line("store", format!("{}, region {}", settings.endpoint, settings.region));
        line("daemon", format!("{}, process {}, for {uptime}", settings.version, settings.pid));
        let ttl =
            settings.metadata_ttl_seconds.map_or("for ever".to_owned(), |ttl| format!("{ttl} s"));
        line("names believed", format!("{ttl}, absence {} s", settings.negative_ttl_seconds));
        line(
            "requests of",
            format!(
                "up to {}, {} at once, chunks of {}",
                config::size(settings.part_bytes),
                settings.max_connections,
                config::size(settings.chunk_bytes),
            ),
        );
        line("metrics", settings.metrics.clone().unwrap_or_else(|| "not served".to_owned()));
        line(
            "memory",
            format!(
                "{} of {} used, {} resident",
                bytes(totals.memory_used_bytes),
                config::size(settings.memory_budget_bytes),
                bytes(totals.resident_bytes),
            ),
        );
        line(
            "read",
            format!(
                "{} in {} reads, {} of them without waiting",
                bytes(totals.bytes_served),
                totals.reads,
                percent(totals.reads.saturating_sub(totals.reads_waited), totals.reads),
            ),
        );
        line(
            "fetched",
            format!(
                "{}, {} of it ahead; {} given up unread",
                bytes(totals.bytes_fetched),
                percent(totals.bytes_ahead, totals.bytes_fetched),
                bytes(totals.bytes_unread),
            ),
        );
        line(
            "siblings ahead",
            format!(
                "{} files, {} used, {} wasted",
                totals.siblings_ahead, totals.siblings_used, totals.siblings_wasted
            ),
        );
        for (kind, requests) in &self.requests {
            let outcomes: Vec<_> =
                requests.outcomes.iter().map(|(name, count)| format!("{count} {name}")).collect();
            let outcomes =
                if outcomes.is_empty() { "none".to_owned() } else { outcomes.join(", ") };
            let took = latency(&requests.took);
            line(kind, format!("{outcomes}; {} in flight{took}", requests.in_flight));
        }
        line("first byte", latency(&self.first_byte).trim_start_matches("; ").to_owned());
        line(
            "trouble",
            format!(
                "{} retries, {} hedges, {} times throttled",
                totals.retries, totals.hedges, totals.throttled
            ),
        );
        for (name, operation) in &self.operations {
            let (count, took) = (operation.took.count(), latency(&operation.took));
            line(name, format!("{count}; {} waiting{took}", operation.in_flight));
        }
        let errors: Vec<_> =
            self.errors.iter().map(|(errno, count)| format!("{count} {errno}")).collect();
        line("errors", if errors.is_empty() { "none".to_owned() } else { errors.join(", ") });
        text
    }
}

fn busiest(table: &Busiest, name: impl Fn(u64) -> Option<String>) -> Vec<Busy> {
    let named =
        table.sorted().into_iter().filter_map(|(id, bytes)| Some(Busy { name: name(id)?, bytes }));
    named.take(BUSIEST).collect()
}

fn latency(took: &Durations) -> String {
    if took.count() == 0 {
        return String::new();
    }
    format!(
        "; half within {}, 99 % within {}",
        seconds(took.quantile(0.5)),
        seconds(took.quantile(0.99))
    )
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a time that was counted
fn whole(seconds: f64) -> u64 {
    seconds.max(0.0) as u64
}
