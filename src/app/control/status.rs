//! The answer to the command `status`: a mount's settings and totals.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::app::config::Config;
use crate::base::layout::Layout;
use crate::base::proc::resident_bytes;
use crate::disk::Disk;
use crate::fs::BucketFs;
use crate::fuse::{Access, MountOptions};
use crate::stats::{BucketCounts, Busiest, Durations, Operation, Outcome, RequestKind, Snapshot};

/// More than `top` shows, because it shows those that were busy between two answers.
const BUSIEST: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) settings: Settings,
    pub(crate) uptime_seconds: f64,
    pub(crate) totals: Totals,
    pub(crate) requests: BTreeMap<String, RequestTotals>,
    /// Of several buckets, by directory.
    pub(crate) buckets: BTreeMap<String, BucketTotals>,
    /// From asking for a range to its first byte.
    pub(crate) first_byte: Durations,
    pub(crate) operations: BTreeMap<String, OperationTotals>,
    /// The kernel's requests that failed, by errno.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Bytes served of the busiest files, by path below the mountpoint.
    pub(crate) files: Vec<Served>,
    /// Bytes served to the busiest threads, by number.
    pub(crate) threads: Vec<Served>,
}

/// Constant while a mount lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) source: String,
    pub(crate) mountpoint: String,
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) memory_budget_bytes: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) part_bytes: u64,
    pub(crate) max_connections: usize,
    pub(crate) kernel_readahead_bytes: u64,
    /// Absent if names are believed without end.
    pub(crate) metadata_ttl_seconds: Option<f64>,
    pub(crate) negative_ttl_seconds: f64,
    pub(crate) names_budget_bytes: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) access: String,
    pub(crate) metrics: Option<String>,
    /// `--cache-dir`
    pub(crate) cache_dir: Option<String>,
    /// `--shared-cache`
    pub(crate) shared_cache: Option<String>,
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

impl Settings {
    pub(crate) fn new(
        config: &Config,
        options: &MountOptions,
        layout: &Layout,
        endpoint: &str,
        region: &str,
    ) -> Self {
        let access = match config.access {
            Access::Owner => "owner",
            Access::OwnerAndRoot => "owner and root",
            Access::Everyone => "everyone",
        };
        Self {
            version: crate::VERSION.to_owned(),
            pid: std::process::id(),
            source: options.source.clone(),
            mountpoint: options.mountpoint.display().to_string(),
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            memory_budget_bytes: config.memory_budget_bytes,
            chunk_bytes: layout.chunk_bytes,
            part_bytes: layout.part_bytes,
            max_connections: config.cache.max_connections,
            kernel_readahead_bytes: config.cache.kernel_readahead_bytes,
            metadata_ttl_seconds: config.names.metadata_ttl.map(|ttl| ttl.as_secs_f64()),
            negative_ttl_seconds: config.names.negative_ttl.as_secs_f64(),
            names_budget_bytes: config.names.budget_bytes,
            uid: config.permissions.uid,
            gid: config.permissions.gid,
            access: access.to_owned(),
            metrics: None,
            cache_dir: config.disk.as_ref().map(|disk| disk.path.display().to_string()),
            shared_cache: config.shared.as_ref().map(|shared| shared.bucket.url()),
            since: Instant::now(),
        }
    }
}

/// The counters since the mount, and memory now.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    #[serde(flatten)]
    pub(crate) counters: Snapshot,
    pub(crate) memory_used_bytes: u64,
    pub(crate) resident_bytes: u64,
    /// What all mounts have stored on the disk, and the limit; absent while it is not used.
    pub(crate) disk_used_bytes: Option<u64>,
    pub(crate) disk_size_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RequestTotals {
    pub(crate) in_flight: u64,
    /// Those that have ended, by outcome.
    pub(crate) outcomes: BTreeMap<String, u64>,
    pub(crate) took: Durations,
}

/// What became of the requests to a bucket, retries not counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BucketTotals {
    pub(crate) source: String,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
}

impl BucketTotals {
    fn of(counts: &Arc<BucketCounts>) -> (String, Self) {
        let (answered, failed) = (counts.answered.get(), counts.failed.get());
        let directory = counts.directory.trim_end_matches('/').to_owned();
        (directory, Self { source: counts.source.clone(), answered, failed })
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct OperationTotals {
    pub(crate) in_flight: u64,
    pub(crate) took: Durations,
}

/// A file or a thread, and the bytes served of it or to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl Status {
    pub(crate) fn of(settings: &Settings, fs: &Arc<BucketFs>, disk: Option<&Disk>) -> Self {
        let (stats, disk) = (&fs.stats, disk.and_then(Disk::usage));
        let requests = RequestKind::ALL.map(|kind| {
            let count = |outcome| stats.requests.took(kind, outcome).count();
            let ended = Outcome::ALL.map(|outcome| (outcome.name().to_owned(), count(outcome)));
            let in_flight = stats.requests.in_flight(kind);
            let outcomes = ended.into_iter().filter(|&(_, count)| count > 0).collect();
            let took = stats.requests.took(kind, Outcome::Ok).counts();
            (kind.name().to_owned(), RequestTotals { in_flight, outcomes, took })
        });
        let operations = Operation::ALL.map(|operation| {
            let in_flight = stats.fuse.in_flight(operation);
            let took = stats.fuse.took(operation).counts();
            (operation.name().to_owned(), OperationTotals { in_flight, took })
        });
        let errors = stats.fuse.errors().filter(|&(_, count)| count > 0);
        Self {
            settings: settings.clone(),
            uptime_seconds: settings.since.elapsed().as_secs_f64(),
            totals: Totals {
                counters: stats.snapshot(),
                memory_used_bytes: fs.memory_bytes().0,
                resident_bytes: resident_bytes().unwrap_or_default(),
                disk_used_bytes: disk.map(|(used, _)| used),
                disk_size_bytes: disk.map(|(_, size)| size),
            },
            requests: requests.into_iter().collect(),
            buckets: stats.buckets.get().into_iter().flatten().map(BucketTotals::of).collect(),
            first_byte: stats.first_byte.counts(),
            operations: operations.into_iter().collect(),
            errors: errors.map(|(errno, count)| (errno.to_owned(), count)).collect(),
            files: busiest(&stats.files, |ino| fs.names.path_of(ino)),
            threads: busiest(&stats.threads, |thread| Some(thread.to_string())),
        }
    }
}

fn busiest(table: &Busiest, name: impl Fn(u64) -> Option<String>) -> Vec<Served> {
    let sorted = table.sorted().into_iter();
    let named = sorted.filter_map(|(id, bytes)| Some(Served { name: name(id)?, bytes }));
    named.take(BUSIEST).collect()
}
