//! The speed of the store, with requests like those of the mount: one after the other, and many at
//! once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Scope;
use super::behaviour::FirstPages;
use crate::app::doctor::diagnosis::{Diagnosis, Severity, because};
use crate::app::doctor::measurements::{Bandwidth, rate};
use crate::app::doctor::requests::{CountedBody, Load, Received, ask, get, together};
use crate::base::text::{bytes, seconds};
use crate::store::{ListEntry, ListFrom, ListRequest, ObjectMeta, ObjectStore, ObjectVersion};

/// Requests for one byte, one after the other; no further one is sent after
/// [`LONGEST_FIRST_BYTES`].
const FIRST_BYTES: u64 = 16;
const LONGEST_FIRST_BYTES: Duration = Duration::from_secs(6);
/// Seconds; above this a mount is slow, although it hides latency by requests in parallel.
const SLOW_FIRST_BYTE: f64 = 0.2;
/// The same of a page of a listing.
const SLOW_PAGE: f64 = 0.5;
/// The largest small file.
const SMALL_BYTES: u64 = 1 << 20;
/// Requests for small files at once: the most that readahead of siblings sends.
const SMALL_AT_ONCE: usize = 96;
/// Pages of listings at once, as many as the mount requests.
const PAGES_AT_ONCE: usize = 16;
/// Twice as many connections must multiply the bandwidth by this; after two steps that did not,
/// measuring ends.
const WORTH: f64 = 1.05;

/// Measures listings.
pub(super) async fn pages(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    listed: &FirstPages,
    report: &mut Diagnosis,
) {
    // Full pages, if the prefix is large enough; from several places, because a cache may remember
    // one.
    let request = |entry: &ListEntry| ListRequest {
        prefix: scope.prefix.clone(),
        delimited: !listed.flat,
        from: ListFrom::After(entry.key().to_owned()),
        max_keys: 1000,
        any_order: false,
    };
    let requests: Arc<Vec<_>> = Arc::new(listed.entries.iter().take(100).map(request).collect());
    let load = |connections| {
        let (store, requests) = (store.clone(), requests.clone());
        let request = move |number: usize, keys: Received| {
            let (store, requests) = (store.clone(), requests.clone());
            async move {
                let page = store.list_page(&requests[number % requests.len()]).await?;
                keys.fetch_add(page.entries.len() as u64, Relaxed);
                Ok(())
            }
        };
        together(connections, scope.limits, request)
    };
    let one = load(1).await;
    let many = load(PAGES_AT_ONCE.min(scope.max_connections)).await;
    let (Some(one_rate), Some(many_rate)) = (one.per_second(), many.per_second()) else {
        return report.wrong("names", nothing(&[one, many], "no page of a listing comes"));
    };
    let keys = many.received_per_second();
    report.measured.page_seconds = Some(1.0 / one_rate);
    report.measured.pages_per_second = Some(many_rate);
    report.measured.keys_per_second = Some(keys);
    let severity = Severity::slow_if(1.0 / one_rate > SLOW_PAGE || many.failed > 0);
    let sentence = format!(
        "a page of a listing takes {}; {} at once make {many_rate:.0} pages and {keys:.0} keys a \
         second{}",
        seconds(1.0 / one_rate),
        many.connections,
        many.failures(),
    );
    report.add("names", severity, sentence);
}

/// Measures the time of a request for one byte, without other requests beside it.
pub(super) async fn first_bytes(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    report: &mut Diagnosis,
) {
    let (mut took, mut failed) = (Vec::new(), 0);
    let all = Instant::now();
    for number in 0..FIRST_BYTES {
        let at = version.size_bytes / FIRST_BYTES * number;
        let begun = Instant::now();
        match ask(|| get(store, version, at..at + 1)).await {
            (Ok(_), 0) => took.push(begun.elapsed().as_secs_f64()),
            _ => failed += 1,
        }
        if all.elapsed() > LONGEST_FIRST_BYTES {
            break;
        }
    }
    took.sort_unstable_by(f64::total_cmp);
    let Some(&median) = took.get(took.len() / 2) else {
        return report.wrong(
            "first byte",
            "every request for a byte failed at first: the store or the network is in trouble",
        );
    };
    let p90 = took[(took.len() - 1) * 9 / 10];
    let asked = took.len() + failed;
    let failures =
        if failed == 0 { String::new() } else { format!("; {failed} of {asked} requests failed") };
    let is_slow = median > SLOW_FIRST_BYTE;
    let slow = if is_slow {
        "; small files and random reads will be slow: is the store far away, or busy?"
    } else {
        ""
    };
    let severity = Severity::slow_if(is_slow || failed > 0);
    let sentence = format!(
        "a first byte takes {}, one in ten more than {}{failures}{slow}",
        seconds(median),
        seconds(p90)
    );
    report.add("first byte", severity, sentence);
    report.measured.first_byte_seconds = Some(median);
    report.measured.first_byte_p90_seconds = Some(p90);
}

/// GETs over `connections`; `target` tells what the request of a number is for.
async fn gets(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    connections: usize,
    target: impl Fn(usize) -> (ObjectVersion, Range<u64>) + Clone + Send + 'static,
    report: &mut Diagnosis,
) -> Load {
    let store = store.clone();
    let request = move |number: usize, received: Received| {
        let (store, (version, range)) = (store.clone(), target(number));
        async move {
            let mut body = CountedBody::new(&received);
            store.get_range(&version, range, &mut body.bytes).await
        }
    };
    let load = together(connections, scope.limits, request).await;
    if load.throttled > 0 {
        report.measured.throttled_at.get_or_insert(connections);
    }
    load
}

/// Measures the bandwidth of 1, 2, 4, … connections, until more of them bring nothing.
pub(super) async fn bandwidth(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    version: &ObjectVersion,
    report: &mut Diagnosis,
) {
    let part_bytes = scope.part_bytes;
    let parts = version.size_bytes.div_ceil(part_bytes);
    let part = {
        let version = version.clone();
        move |number: usize| {
            let start = number as u64 % parts * part_bytes;
            (version.clone(), start..(start + part_bytes).min(version.size_bytes))
        }
    };
    let (mut connections, mut in_vain) = (1, 0);
    let mut with_failures: Option<Load> = None;
    while in_vain < 2 {
        let load = gets(store, scope, connections, part.clone(), report).await;
        let bytes_per_second = load.received_per_second();
        let best = report.measured.best().map_or(0.0, |best| best.bytes_per_second);
        in_vain = if bytes_per_second < best * WORTH { in_vain + 1 } else { 0 };
        let is_empty = load.received == 0;
        if load.failed > 0 {
            with_failures.get_or_insert(load);
        }
        if is_empty {
            break;
        }
        report.measured.bandwidth.push(Bandwidth { connections, bytes_per_second });
        if connections == scope.max_connections {
            break;
        }
        connections = (connections * 2).min(scope.max_connections);
    }
    let Some(best) = report.measured.best() else {
        let what = nothing(with_failures.as_slice(), "no byte of a large object comes");
        return report.wrong("bandwidth", what);
    };
    let one = rate(report.measured.bandwidth[0].bytes_per_second);
    let small = if version.size_bytes < part_bytes {
        let size = bytes(version.size_bytes);
        format!("; the largest object has only {size}, so more may be possible")
    } else {
        String::new()
    };
    let together = match best.connections {
        1 => "more of them no more".to_owned(),
        connections => format!("{connections} together {}", rate(best.bytes_per_second)),
    };
    let severity = Severity::slow_if(with_failures.is_some());
    let failures = with_failures.as_ref().map(Load::failures).unwrap_or_default();
    let sentence = format!("one connection moves {one}, {together}{small}{failures}");
    report.add("bandwidth", severity, sentence);
}

/// Measures how many small files are read in a second over many connections.
pub(super) async fn small_files(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    objects: &[&ObjectMeta],
    report: &mut Diagnosis,
) {
    let small = objects.iter().filter(|meta| meta.version.size_bytes <= SMALL_BYTES).take(1000);
    let small: Arc<Vec<ObjectVersion>> = Arc::new(small.map(|meta| meta.version.clone()).collect());
    if small.is_empty() {
        return;
    }
    let total: u64 = small.iter().map(|version| version.size_bytes).sum();
    let each = bytes(total / small.len() as u64);
    let whole = move |number: usize| {
        let version = small[number % small.len()].clone();
        let range = 0..version.size_bytes;
        (version, range)
    };
    let connections = SMALL_AT_ONCE.min(scope.max_connections);
    let load = gets(store, scope, connections, whole, report).await;
    let Some(files) = load.per_second() else {
        return report.wrong("small files", nothing(&[load], "no small file can be read"));
    };
    report.measured.small_files_per_second = Some(files);
    let sentence = format!(
        "{connections} connections read {files:.0} files of about {each} a second{}",
        load.failures()
    );
    report.add("small files", Severity::slow_if(load.failed > 0), sentence);
}

/// Nothing was received, and why.
fn nothing(loads: &[Load], what: &str) -> String {
    let error = loads.iter().find_map(|load| load.error.as_ref());
    error.map_or_else(|| what.to_owned(), |error| because(what, error))
}
