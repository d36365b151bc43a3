//! `--shared-cache`: what it costs and brings, measured beside the source. It stores one entry,
//! which the next examination replaces and the bucket's lifecycle rule deletes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::diagnosis::{Diagnosis, Severity, because};
use super::examine::Scope;
use super::measurements::rate;
use super::requests::{Load, Received, together};
use crate::app::config::Config;
use crate::app::daemon;
use crate::base::text::seconds;
use crate::store::StoreError;
use crate::store::shared::EntryStore;

/// As long as an entry of a large object.
const ENTRY_BYTES: u64 = 2 << 20;
const KEY: &str = "doctor";
const FIRST_BYTES: usize = 16;
/// For all of them, and for storing the entry.
const LONGEST: Duration = Duration::from_secs(5);
/// A mount with a cache sends this many requests to it at once.
const AT_ONCE: usize = 16;
/// A cache is worth its trouble if it has this part of the source's first byte, or this many times
/// its bandwidth.
const WORTH_FIRST_BYTE: f64 = 0.5;
const WORTH_BANDWIDTH: f64 = 1.5;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SharedMeasured {
    /// From a request to its first byte: the median.
    pub(super) first_byte_seconds: f64,
    /// Of 16 connections.
    pub(super) bytes_per_second: f64,
    /// To store an entry of 2 MiB.
    pub(super) fill_seconds: f64,
}

pub(super) async fn measure(config: &Config, scope: &Scope, report: &mut Diagnosis) {
    let Some(shared) = &config.shared else { return };
    let shown = shared.bucket.url();
    let entries = match daemon::open_entries(shared, &Arc::default()).await {
        Ok((entries, _at)) => entries,
        Err(error) => {
            let what = because(&format!("--shared-cache {shown} is not used"), &error);
            return report.slow("shared cache", what);
        }
    };
    let entries: Arc<dyn EntryStore> = Arc::new(entries);
    match timeout(2 * LONGEST, price(&entries, scope)).await {
        Ok(Ok(measured)) => {
            report.measured.shared_cache = Some(measured);
            let (severity, sentence) = verdict(&measured, report);
            report.add("shared cache", severity, sentence);
        }
        Ok(Err(error)) => {
            let what = because(&format!("--shared-cache {shown} does not work"), &error);
            report.slow("shared cache", what);
        }
        Err(_elapsed) => {
            report.slow("shared cache", format!("--shared-cache {shown} did not answer in time"));
        }
    }
}

async fn price(entries: &Arc<dyn EntryStore>, scope: &Scope) -> Result<SharedMeasured, StoreError> {
    let late = |_elapsed| StoreError::TimedOut("an entry was not taken".to_owned());
    let entry = vec![Bytes::from(vec![7; usize::try_from(ENTRY_BYTES).unwrap_or_default()])];
    let begun = Instant::now();
    timeout(LONGEST, entries.put(KEY, &entry, false)).await.map_err(late)??;
    let fill_seconds = begun.elapsed().as_secs_f64();
    let (mut took, all) = (Vec::new(), Instant::now());
    while took.len() < FIRST_BYTES && all.elapsed() < LONGEST {
        let begun = Instant::now();
        read(entries, 0..1).await?;
        took.push(begun.elapsed().as_secs_f64());
    }
    took.sort_unstable_by(f64::total_cmp);
    let reading = entries.clone();
    let request = move |_number: usize, received: Received| {
        let entries = reading.clone();
        async move {
            received.fetch_add(read(&entries, 0..ENTRY_BYTES).await?, Relaxed);
            Ok(())
        }
    };
    let Load { error, done, received, seconds, .. } =
        together(AT_ONCE.min(scope.max_connections), scope.limits, request).await;
    if done == 0 {
        let none = || StoreError::TimedOut("no entry came".to_owned());
        return Err(error.unwrap_or_else(none));
    }
    #[allow(clippy::cast_precision_loss)] // shown with three digits
    let bytes_per_second = received as f64 / seconds;
    Ok(SharedMeasured { first_byte_seconds: took[took.len() / 2], bytes_per_second, fill_seconds })
}

async fn read(
    entries: &Arc<dyn EntryStore>,
    range: std::ops::Range<u64>,
) -> Result<u64, StoreError> {
    let length = range.end - range.start;
    let found = entries.get(KEY, range).await?;
    let mut found = found.ok_or_else(|| StoreError::nonsense("what was stored is not there"))?;
    let mut bytes = Vec::new();
    found.body.take(length, &mut bytes).await?;
    Ok(bytes.len() as u64)
}

/// Whether it is worth having, by what the source was measured to do.
fn verdict(measured: &SharedMeasured, report: &Diagnosis) -> (Severity, String) {
    let SharedMeasured { first_byte_seconds, bytes_per_second, fill_seconds } = *measured;
    let shown = format!(
        "a first byte takes {}, {AT_ONCE} connections move {}, storing 2 MiB takes {}",
        seconds(first_byte_seconds),
        rate(bytes_per_second),
        seconds(fill_seconds),
    );
    let source = report.measured.first_byte_seconds.zip(report.measured.best());
    let Some((source_first, source_best)) = source else {
        return (Severity::Ok, format!("{shown}; the bucket was not measured"));
    };
    let source = format!("{} and {}", seconds(source_first), rate(source_best.bytes_per_second));
    let is_nearer = first_byte_seconds <= source_first * WORTH_FIRST_BYTE;
    let is_faster = bytes_per_second >= source_best.bytes_per_second * WORTH_BANDWIDTH;
    let (severity, worth) = match (is_nearer, is_faster) {
        (true, true) => (Severity::Ok, "it is worth having for all files"),
        (true, false) => (Severity::Ok, "it is worth having for small files and random reads"),
        (false, true) => (Severity::Ok, "it is worth having for large files"),
        (false, false) => (
            Severity::Slow,
            "it saves requests to the bucket, and no time: put it nearer, or do without",
        ),
    };
    (severity, format!("{shown}, the bucket {source}: {worth}"))
}

#[cfg(test)]
mod tests {
    use super::super::measurements::{Bandwidth, Measurements};
    use super::*;

    #[test]
    fn a_cache_is_worth_having_where_it_is_nearer_or_faster_than_the_source() {
        let bandwidth = vec![Bandwidth { connections: 16, bytes_per_second: 1e9 }];
        let first_byte_seconds = Some(0.015);
        let measured = Measurements { first_byte_seconds, bandwidth, ..Measurements::default() };
        let report = Diagnosis { measured, ..Diagnosis::default() };
        for (first_byte_seconds, bytes_per_second, is, says) in [
            (0.001, 2e9, Severity::Ok, "for all files"),
            (0.001, 1e9, Severity::Ok, "for small files"),
            (0.012, 1.6e9, Severity::Ok, "for large files"),
            (0.012, 1.2e9, Severity::Slow, "no time"),
        ] {
            let fill_seconds = 0.01;
            let measured = SharedMeasured { first_byte_seconds, bytes_per_second, fill_seconds };
            let (severity, sentence) = verdict(&measured, &report);
            assert_eq!(severity, is, "{sentence}");
            assert!(sentence.contains(says), "{sentence}");
        }
        let measured =
            SharedMeasured { first_byte_seconds: 1.0, bytes_per_second: 1.0, fill_seconds: 1.0 };
        let (_, sentence) = verdict(&measured, &Diagnosis::default());
        assert!(sentence.contains("not measured"), "{sentence}");
    }
}
