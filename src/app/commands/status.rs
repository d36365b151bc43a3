//! `fasts3-mount status`: a mount's settings and totals, as text for people.

use std::fmt::Write as _;

use crate::app::config;
use crate::app::control::status::{Status, Totals};
use crate::base::text::{bytes, percent, seconds, uptime};
use crate::stats::Durations;

/// A line for each fact.
pub(super) fn text(status: &Status) -> String {
    let Status { settings, totals, .. } = status;
    let Totals { counters, memory_used_bytes, resident_bytes, .. } = totals;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    let uptime = uptime(status.uptime_seconds);
    line("mount", format!("{} on {}", settings.source, settings.mountpoint));
    line("store", format!("{}, region {}", settings.endpoint, settings.region));
    line("daemon", format!("{}, process {}, for {uptime}", settings.version, settings.pid));
    let ttl = settings.metadata_ttl_seconds.map_or("for ever".to_owned(), |ttl| format!("{ttl} s"));
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
            bytes(*memory_used_bytes),
            config::size(settings.memory_budget_bytes),
            bytes(*resident_bytes),
        ),
    );
    if let Some(dir) = &settings.cache_dir {
        line("disk cache", disk(dir, totals));
    }
    if let Some(bucket) = &settings.shared_cache {
        line("shared cache", shared(bucket, totals));
    }
    line(
        "read",
        format!(
            "{} in {} reads, {} of them without waiting",
            bytes(counters.bytes_served),
            counters.reads,
            percent(counters.reads.saturating_sub(counters.reads_waited), counters.reads),
        ),
    );
    line(
        "fetched",
        format!(
            "{}, {} of it ahead; {} given up unread",
            bytes(counters.bytes_fetched),
            percent(counters.bytes_ahead, counters.bytes_fetched),
            bytes(counters.bytes_unread),
        ),
    );
    line(
        "siblings ahead",
        format!(
            "{} files, {} used, {} wasted",
            counters.siblings_ahead, counters.siblings_used, counters.siblings_wasted
        ),
    );
    line(
        "hints",
        format!(
            "{} files; {} pieces used, {} wasted; {} files refused, {} missing",
            counters.hints_queued,
            counters.hints_used,
            counters.hints_wasted,
            counters.hints_refused,
            counters.hints_missing
        ),
    );
    for (kind, requests) in &status.requests {
        let outcomes = list(requests.outcomes.iter().map(|(name, count)| (*count, name)));
        let latency = latency(&requests.took);
        line(kind, format!("{outcomes}; {} in flight{latency}", requests.in_flight));
    }
    for (directory, bucket) in &status.buckets {
        let (answered, failed) = (bucket.answered, bucket.failed);
        line("bucket", format!("{directory}: {answered} requests answered, {failed} failed"));
    }
    let first_byte = latency(&status.first_byte);
    line("first byte", first_byte.strip_prefix("; ").unwrap_or("none yet").to_owned());
    line(
        "trouble",
        format!(
            "{} retries, {} hedges, {} times throttled",
            counters.retries, counters.hedges, counters.throttled
        ),
    );
    for (name, operation) in &status.operations {
        let (count, latency) = (operation.took.count(), latency(&operation.took));
        line(name, format!("{count}; {} waiting{latency}", operation.in_flight));
    }
    line("errors", list(status.errors.iter().map(|(name, count)| (*count, name))));
    text
}

fn disk(dir: &str, totals: &Totals) -> String {
    let counters = &totals.counters;
    let used = match (totals.disk_used_bytes, totals.disk_size_bytes) {
        (Some(used), Some(size)) => format!("{} of {} used", bytes(used), bytes(size)),
        _ => "not used now".to_owned(),
    };
    format!(
        "{dir}, {used}; {} read, {} of what was asked for; {} written, {} dropped, {} passed over, \
         {} evicted; {} times wrong, {} times left alone; {} opens passed through, {} not",
        bytes(counters.disk_hit_bytes),
        percent(counters.disk_hit_bytes, counters.disk_hit_bytes + counters.disk_missed_bytes),
        bytes(counters.disk_written_bytes),
        bytes(counters.disk_dropped_bytes),
        bytes(counters.disk_passed_over_bytes),
        bytes(counters.disk_evicted_bytes),
        counters.disk_wrong,
        counters.disk_pauses,
        counters.opened_through,
        counters.opened_by_daemon,
    )
}

fn shared(bucket: &str, totals: &Totals) -> String {
    let counters = &totals.counters;
    let hits = counters.shared_hit_bytes;
    format!(
        "{bucket}; {} read, {} of what was asked for; {} stored, {} dropped; {} waits for others, \
         {} times late, {} wrong, {} left alone",
        bytes(hits),
        percent(hits, hits + counters.shared_missed_bytes),
        bytes(counters.shared_filled_bytes),
        bytes(counters.shared_dropped_bytes),
        counters.shared_waits,
        counters.shared_late,
        counters.shared_wrong,
        counters.shared_pauses,
    )
}

/// "3 this, 4 that", or "none".
pub(super) fn list<'a>(counts: impl Iterator<Item = (u64, &'a String)>) -> String {
    let counts: Vec<_> = counts.map(|(count, name)| format!("{count} {name}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

fn latency(took: &Durations) -> String {
    if took.count() == 0 {
        return String::new();
    }
    let [median, p99] = [0.5, 0.99].map(|share| seconds(took.quantile(share)));
    format!("; half within {median}, 99 % within {p99}")
}
