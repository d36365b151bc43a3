//! How a store behaves and how fast it is, seen through the seam that the mount uses: whatever is
//! wrong here would be wrong there.

use std::cell::Cell;
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::{Finding, State};
use crate::config::Config;
use crate::control::status::{bytes, seconds};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, ObjectMeta, ObjectStore, ObjectVersion, StoreError,
    check_page,
};

/// One request of a check, its body included.
const LONGEST_REQUEST: Duration = Duration::from_secs(20);
/// What fails in a way that may pass is asked for so often.
const TRIES: u32 = 3;
/// What a range is checked with: two blocks of the cache.
const RANGE_BYTES: u64 = 256 << 10;
/// First bytes that are waited for, one behind the other.
const FIRST_BYTES: u64 = 16;
/// More is slow whatever a mount does: it hides latency by asking for more at once.
const SLOW_FIRST_BYTE: f64 = 0.2;
/// The same of a page of a listing.
const SLOW_PAGE: f64 = 0.5;
/// A small file has no more.
const SMALL_BYTES: u64 = 1 << 20;
/// Small files are read by so many at once: the most that readahead of siblings opens.
const SMALL_AT_ONCE: usize = 96;
/// Pages of listings that are asked for at once, as many as the mount asks for.
const PAGES_AT_ONCE: usize = 16;
/// However fast the store is, a step ends after so many requests.
const MOST_REQUESTS: usize = 20_000;
/// More connections must bring so much more, twice, to go on.
const WORTH: f64 = 1.05;
/// And so much with the last step, for more than these to be worth a try.
const STILL_GROWS: f64 = 1.25;

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the keys.
    pub prefix: String,
    /// The most that one request asks for.
    pub part_bytes: u64,
    /// Requests at once, at the most.
    pub max_connections: usize,
    /// For each step.
    pub step: Duration,
    /// A step ends after so many.
    pub most_requests: usize,
}

impl Plan {
    /// As the mount would do it.
    #[must_use]
    pub fn new(config: &Config, quick: bool) -> Self {
        Self {
            prefix: config.prefix.clone(),
            part_bytes: config.part_bytes,
            max_connections: config.max_connections,
            step: Duration::from_millis(if quick { 200 } else { 1000 }),
            most_requests: MOST_REQUESTS,
        }
    }
}

/// Numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// From a request to its first byte: the half of them.
    pub first_byte_seconds: Option<f64>,
    /// Nine of ten.
    pub first_byte_p90_seconds: Option<f64>,
    /// Of large objects, by number of connections.
    pub bandwidth: Vec<Bandwidth>,
    /// Small objects read whole, with many connections.
    pub small_files_per_second: Option<f64>,
    /// A page of a listing, one behind the other.
    pub page_seconds: Option<f64>,
    /// Pages, many at once.
    pub pages_per_second: Option<f64>,
    /// Keys on them.
    pub keys_per_second: Option<f64>,
    /// So many connections at once were throttled.
    pub throttled_at: Option<usize>,
}

/// What so many connections moved together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bandwidth {
    /// How many.
    pub connections: usize,
    /// Together.
    pub bytes_per_second: f64,
}

impl Measured {
    fn best(&self) -> Option<Bandwidth> {
        self.bandwidth
            .iter()
            .copied()
            .max_by(|one, other| one.bytes_per_second.total_cmp(&other.bytes_per_second))
    }

    /// What a mount will give, in words; `None` if nothing was measured.
    #[must_use]
    pub fn expected(&self) -> Option<String> {
        let large =
            self.best().map(|best| format!("{}/s from large files", rate(best.bytes_per_second)));
        let small =
            self.small_files_per_second.map(|files| format!("{files:.0} small files a second"));
        let names = self.keys_per_second.map(|keys| format!("{keys:.0} names a second"));
        let all: Vec<_> = [large, small, names].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Another number of connections than `most`, if one would be better.
    #[must_use]
    pub fn connections_wanted(&self, most: usize) -> Option<usize> {
        if let Some(throttled) = self.throttled_at {
            return Some((throttled / 2).max(1));
        }
        let [.., before, last] = &self.bandwidth[..] else { return None };
        // It still grew well with the last step, so more may be better.
        let grew = last.bytes_per_second >= before.bytes_per_second * STILL_GROWS;
        (grew && last.connections >= most).then_some(most * 2)
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
    /// Numbers.
    pub measured: Measured,
}

impl Examined {
    fn add(&mut self, topic: &'static str, state: State, sentence: impl Into<String>) {
        self.findings.push(Finding { topic, state, sentence: sentence.into() });
    }
}

/// Examines a store that tries once.
pub async fn run(store: &Arc<dyn ObjectStore>, plan: &Plan) -> Examined {
    let mut examined = Examined::default();
    let Some(entries) = listings(store, plan, &mut examined).await else { return examined };
    pages(store, plan, &entries, &mut examined).await;
    let mut objects: Vec<&ObjectMeta> = entries
        .iter()
        .filter_map(|entry| match entry {
            ListEntry::Object(meta) if !meta.archived && meta.version.size_bytes > 0 => Some(meta),
            _ => None,
        })
        .collect();
    objects.sort_by_key(|meta| Reverse(meta.version.size_bytes));
    let Some(largest) = objects.first() else {
        let what = "there is no object that can be read, so nothing of reading was tried";
        examined.add("objects", State::Slow, what);
        return examined;
    };
    if metadata(store, largest, &mut examined).await
        && ranges(store, &largest.version, &mut examined).await
    {
        first_bytes(store, &largest.version, &mut examined).await;
        bandwidth(store, plan, &largest.version, &mut examined).await;
        small_files(store, plan, &objects, &mut examined).await;
    }
    examined
}

/// Asks until it works or makes no sense to go on; and how often it failed.
async fn ask<T, F>(mut request: impl FnMut() -> F) -> (Result<T, StoreError>, u32)
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut failures = 0;
    loop {
        let outcome = timeout(LONGEST_REQUEST, request()).await.unwrap_or_else(|_elapsed| {
            let limit = LONGEST_REQUEST.as_secs();
            Err(StoreError::TimedOut(format!("nothing within {limit} s")))
        });
        match outcome {
            Err(error) if error.is_transient() && failures + 1 < TRIES => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => return (outcome, failures),
        }
    }
}

fn again(failures: u32) -> String {
    match failures {
        0 => String::new(),
        failures => format!("; {failures} attempts failed before"),
    }
}

fn state(failures: u32) -> State {
    if failures == 0 { State::Ok } else { State::Slow }
}

async fn checked_page(
    store: &Arc<dyn ObjectStore>,
    request: ListRequest,
) -> Result<ListPage, StoreError> {
    let page = store.list_page(&request).await?;
    check_page(&request, &page)?;
    Ok(page)
}

/// Whether listings can be believed; the entries of the first pages.
async fn listings(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    examined: &mut Examined,
) -> Option<Vec<ListEntry>> {
    let is_unordered = Cell::new(false);
    let list = |from, delimited| {
        let request = ListRequest {
            prefix: plan.prefix.clone(),
            delimited,
            from,
            max_keys: 1000,
            any_order: is_unordered.get(),
        };
        checked_page(store, request)
    };
    let (mut page, mut failures) = ask(|| list(ListFrom::Start, false)).await;
    if matches!(page, Err(StoreError::Unordered(_))) {
        is_unordered.set(true);
        (page, failures) = ask(|| list(ListFrom::Start, false)).await;
    }
    let first = match page {
        Ok(page) => page,
        Err(error) => {
            examined.add("listing", State::Wrong, format!("names cannot be listed: {error}"));
            return None;
        }
    };
    let mut entries = first.entries;
    let count = entries.len();
    let Some(end) = entries.last() else {
        examined.add("listing", State::Slow, "it works, but there is nothing to list");
        return None;
    };
    let (how, order) = if is_unordered.get() {
        let slow =
            "in no order, so a directory is listed one page after the other and shown as a whole";
        (State::Slow, slow)
    } else {
        (state(failures), "in order")
    };
    examined.add(
        "listing",
        how,
        format!("ListObjectsV2 lists {count} keys on its first page, {order}{}", again(failures)),
    );
    if first.undecodable > 0 {
        let what =
            format!("{} keys of the first page are not UTF-8 and stay hidden", first.undecodable);
        examined.add("names", State::Slow, what);
    }
    if let Some(token) = first.next {
        let end = end.key().to_owned();
        let next = || ListFrom::Token { token: token.clone(), last: end.clone() };
        match ask(|| list(next(), false)).await.0 {
            Ok(page) => {
                entries.extend(page.entries);
                examined.add("paging", State::Ok, "the second page follows the first");
            }
            Err(error) => {
                let what = format!("no listing of more than one page can be believed: {error}");
                examined.add("paging", State::Wrong, what);
                return None;
            }
        }
    }
    if count >= 3 && !is_unordered.get() {
        let middle = count / 2;
        let after = || ListFrom::After(entries[middle].key().to_owned());
        match ask(|| list(after(), false)).await.0 {
            Ok(page) if page.entries.first() == entries.get(middle + 1) => {
                let what = "start-after is honoured, so large directories are listed in parallel";
                examined.add("start-after", State::Ok, what);
            }
            Ok(_) | Err(StoreError::Backwards(_) | StoreError::Unordered(_)) => examined.add(
                "start-after",
                State::Slow,
                "start-after is not honoured, so a directory is listed one page after the other",
            ),
            Err(error) => {
                let what = format!("a listing from the middle fails: {error}");
                examined.add("start-after", State::Wrong, what);
            }
        }
    }
    match ask(|| list(ListFrom::Start, true)).await.0 {
        Ok(page) => {
            let first = page.entries.first().map(ListEntry::key);
            // In no order, it begins anywhere.
            if first.is_some_and(|name| is_unordered.get() || entries[0].key().starts_with(name)) {
                examined.add("directories", State::Ok, "delimiter listings roll directories up");
            } else {
                let what =
                    format!("a delimiter listing begins with {first:?} and not with what is there");
                examined.add("directories", State::Wrong, what);
            }
        }
        Err(error) => {
            let what = format!("directories cannot be listed: {error}");
            examined.add("directories", State::Wrong, what);
        }
    }
    Some(entries)
}

/// How fast listings come.
async fn pages(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    entries: &[ListEntry],
    examined: &mut Examined,
) {
    let keys = Arc::new(AtomicU64::new(0));
    // Full pages, were the prefix so large; from a few places, lest one is remembered.
    let requests: Arc<Vec<ListRequest>> = Arc::new(
        entries
            .iter()
            .take(100)
            .map(|entry| ListRequest {
                prefix: plan.prefix.clone(),
                delimited: false,
                from: ListFrom::After(entry.key().to_owned()),
                max_keys: 1000,
                any_order: false,
            })
            .collect(),
    );
    let step = |connections| {
        let (store, requests, keys) = (store.clone(), requests.clone(), keys.clone());
        let request = move |number: usize| {
            let (store, requests, keys) = (store.clone(), requests.clone(), keys.clone());
            async move {
                let page = store.list_page(&requests[number % requests.len()]).await?;
                keys.fetch_add(page.entries.len() as u64, Relaxed);
                Ok(())
            }
        };
        together(connections, plan, request)
    };
    let one = step(1).await;
    keys.store(0, Relaxed);
    let many = step(PAGES_AT_ONCE.min(plan.max_connections)).await;
    let (Some(one_rate), Some(many_rate)) = (one.per_second(), many.per_second()) else {
        let error = one.error.or(many.error).map_or(String::new(), |error| format!(": {error}"));
        return examined.add("names", State::Wrong, format!("no page of a listing comes{error}"));
    };
    let keys = to_f64(keys.load(Relaxed)) / many.seconds;
    examined.measured.page_seconds = Some(1.0 / one_rate);
    examined.measured.pages_per_second = Some(many_rate);
    examined.measured.keys_per_second = Some(keys);
    let state = if 1.0 / one_rate > SLOW_PAGE { State::Slow } else { State::Ok };
    let sentence = format!(
        "a page of a listing takes {}; {} at once make {many_rate:.0} pages and {keys:.0} keys a \
         second{}",
        seconds(1.0 / one_rate),
        many.connections,
        many.troubles(),
    );
    examined.add("names", state.max_of(many.state()), sentence);
}

/// Whether listing and HEAD tell the same.
async fn metadata(
    store: &Arc<dyn ObjectStore>,
    listed: &ObjectMeta,
    examined: &mut Examined,
) -> bool {
    let key = &listed.version.key;
    let (told, failures) = ask(|| store.head(key)).await;
    match told {
        Ok(told) if told.meta.version == listed.version => {
            let what = format!("listing and HEAD tell the same size and ETag{}", again(failures));
            examined.add("versions", state(failures), what);
            true
        }
        Ok(told) => {
            let (one, other) = (&listed.version, &told.meta.version);
            let what = format!(
                "listing and HEAD do not agree about {key:?}: {} and {} bytes, ETags {} and {}; is it \
                 being written?",
                one.size_bytes, other.size_bytes, one.etag, other.etag
            );
            examined.add("versions", State::Wrong, what);
            false
        }
        Err(error) => {
            examined.add("versions", State::Wrong, format!("HEAD of {key:?} fails: {error}"));
            false
        }
    }
}

async fn get(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    range: Range<u64>,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    store.get_range(version, range, &mut bytes).await?;
    Ok(bytes)
}

/// Whether ranges are what was asked for, of the version that was asked for.
async fn ranges(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    examined: &mut Examined,
) -> bool {
    let key = &version.key;
    let end = version.size_bytes.min(RANGE_BYTES);
    let middle = end / 2;
    let (whole, failures) = ask(|| get(store, version, 0..end)).await;
    let (half, more) = ask(|| get(store, version, middle..end)).await;
    let failures = failures + more;
    let (whole, half) = match (whole, half) {
        (Ok(whole), Ok(half)) => (whole, half),
        (Err(error), _) | (_, Err(error)) => {
            let what = match &error {
                StoreError::Denied(_) => format!("objects may be listed but not read: {error}"),
                _ => format!("a range of {key:?} cannot be read: {error}"),
            };
            examined.add("ranges", State::Wrong, what);
            return false;
        }
    };
    // A store below the seam gives exactly what was asked for, or it is no store of this program's.
    let same = usize::try_from(middle).is_ok_and(|middle| whole.get(middle..) == Some(&half[..]));
    if !same {
        let what = format!("two GETs of the same bytes of {key:?} gave different bytes");
        examined.add("ranges", State::Wrong, what);
        return false;
    }
    let what = format!("ranges are exactly what was asked for{}", again(failures));
    examined.add("ranges", state(failures), what);
    let other = ObjectVersion { etag: "\"doctor\"".to_owned(), ..version.clone() };
    match ask(|| get(store, &other, 0..1)).await.0 {
        Err(StoreError::Changed) => {
            let what =
                "If-Match is honoured: an object that is overwritten while it is read is noticed";
            examined.add("If-Match", State::Ok, what);
        }
        Ok(_) => {
            let what = "If-Match is not honoured: an object that is overwritten while it is read would \
                        give a mixture";
            examined.add("If-Match", State::Wrong, what);
        }
        Err(error) => {
            examined.add("If-Match", State::Wrong, format!("a GET with If-Match fails: {error}"));
        }
    }
    true
}

async fn first_bytes(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    examined: &mut Examined,
) {
    let mut took = Vec::new();
    let mut failed = 0;
    for number in 0..FIRST_BYTES {
        let at = version.size_bytes / FIRST_BYTES * number;
        let begun = Instant::now();
        match ask(|| get(store, version, at..at + 1)).await {
            (Ok(_), 0) => took.push(begun.elapsed().as_secs_f64()),
            _ => failed += 1,
        }
    }
    took.sort_by(f64::total_cmp);
    let Some(&median) = took.get(took.len() / 2) else {
        return examined.add("first byte", State::Wrong, "no request was answered at once");
    };
    let p90 = took[(took.len() - 1) * 9 / 10];
    examined.measured.first_byte_seconds = Some(median);
    examined.measured.first_byte_p90_seconds = Some(p90);
    let state = if median > SLOW_FIRST_BYTE { State::Slow } else { state(failed) };
    let failed = match failed {
        0 => String::new(),
        failed => format!("; {failed} of {FIRST_BYTES} requests failed"),
    };
    let sentence = format!(
        "a first byte takes {}, one in ten more than {}{failed}",
        seconds(median),
        seconds(p90)
    );
    examined.add("first byte", state, sentence);
}

async fn bandwidth(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    version: &ObjectVersion,
    examined: &mut Examined,
) {
    let parts = version.size_bytes.div_ceil(plan.part_bytes);
    let mut connections = 1;
    let mut in_vain = 0;
    let mut last = None;
    while connections <= plan.max_connections && in_vain < 2 {
        let moved = Arc::new(AtomicU64::new(0));
        let part_bytes = plan.part_bytes;
        let request = {
            let (store, version, moved) = (store.clone(), Arc::new(version.clone()), moved.clone());
            move |number: usize| {
                let (store, version, moved) = (store.clone(), version.clone(), moved.clone());
                async move {
                    let start = number as u64 % parts * part_bytes;
                    let range = start..(start + part_bytes).min(version.size_bytes);
                    let taken = range.end - range.start;
                    get(&store, &version, range).await?;
                    moved.fetch_add(taken, Relaxed);
                    Ok(())
                }
            }
        };
        let step = together(connections, plan, request).await;
        if step.throttled > 0 {
            examined.measured.throttled_at.get_or_insert(connections);
        }
        let bytes_per_second = to_f64(moved.load(Relaxed)) / step.seconds;
        let best = examined.measured.best().map_or(0.0, |best| best.bytes_per_second);
        if bytes_per_second < best * WORTH {
            in_vain += 1;
        } else {
            in_vain = 0;
        }
        examined.measured.bandwidth.push(Bandwidth { connections, bytes_per_second });
        last = Some(step);
        if connections == plan.max_connections {
            break;
        }
        connections = (connections * 2).min(plan.max_connections);
    }
    let (Some(best), Some(last)) = (examined.measured.best(), last) else { return };
    let one = examined.measured.bandwidth[0].bytes_per_second;
    let small = if version.size_bytes < plan.part_bytes {
        format!(
            "; the largest object has only {}, so more may be possible",
            bytes(version.size_bytes)
        )
    } else {
        String::new()
    };
    let together = match best.connections {
        1 => "more together no more".to_owned(),
        connections => format!("{connections} together {}/s", rate(best.bytes_per_second)),
    };
    let one = rate(one);
    let sentence = format!("one connection moves {one}/s, {together}{small}{}", last.troubles());
    examined.add("bandwidth", last.state(), sentence);
}

async fn small_files(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    objects: &[&ObjectMeta],
    examined: &mut Examined,
) {
    let small = objects.iter().filter(|meta| meta.version.size_bytes <= SMALL_BYTES).take(1000);
    let small: Arc<Vec<ObjectVersion>> = Arc::new(small.map(|meta| meta.version.clone()).collect());
    if small.is_empty() {
        return;
    }
    let request = {
        let (store, small) = (store.clone(), small.clone());
        move |number: usize| {
            let (store, small) = (store.clone(), small.clone());
            async move {
                let version = &small[number % small.len()];
                get(&store, version, 0..version.size_bytes).await.map(drop)
            }
        }
    };
    let connections = SMALL_AT_ONCE.min(plan.max_connections);
    let step = together(connections, plan, request).await;
    if step.throttled > 0 {
        examined.measured.throttled_at.get_or_insert(connections);
    }
    let Some(files) = step.per_second() else {
        let error = step.error.map_or(String::new(), |error| format!(": {error}"));
        return examined.add("small files", State::Wrong, format!("none can be read{error}"));
    };
    examined.measured.small_files_per_second = Some(files);
    let total: u64 = small.iter().map(|version| version.size_bytes).sum();
    let each = bytes(total / small.len() as u64);
    let sentence = format!(
        "{connections} connections read {files:.0} files of about {each} a second{}",
        step.troubles()
    );
    examined.add("small files", step.state(), sentence);
}

/// What many did together for a while.
#[derive(Debug)]
struct Step {
    connections: usize,
    done: usize,
    failed: usize,
    throttled: usize,
    /// One of the failures.
    error: Option<StoreError>,
    seconds: f64,
}

impl Step {
    fn per_second(&self) -> Option<f64> {
        (self.done > 0).then(|| to_f64(self.done as u64) / self.seconds)
    }

    fn troubles(&self) -> String {
        let all = self.done + self.failed;
        match &self.error {
            None => String::new(),
            Some(_) if self.throttled > 0 => {
                format!("; the store throttled {} of {all} requests (503)", self.throttled)
            }
            Some(error) => format!("; {} of {all} requests failed: {error}", self.failed),
        }
    }

    fn state(&self) -> State {
        if self.failed == 0 { State::Ok } else { State::Slow }
    }
}

impl State {
    fn max_of(self, other: Self) -> Self {
        if self == Self::Ok { other } else { self }
    }
}

/// Has so many make requests for so long, each its next when it has its last.
async fn together<F>(
    connections: usize,
    plan: &Plan,
    request: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Step
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let begun = Instant::now();
    let (time, most_requests) = (plan.step, plan.most_requests);
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (next, request) = (next.clone(), request.clone());
            tokio::spawn(async move {
                let (mut done, mut failed, mut throttled, mut last) = (0, 0, 0, None);
                while begun.elapsed() < time {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= most_requests {
                        break;
                    }
                    let outcome = timeout(LONGEST_REQUEST, request(number)).await;
                    let outcome = outcome.unwrap_or_else(|_elapsed| {
                        Err(StoreError::TimedOut("no end of the answer".to_owned()))
                    });
                    match outcome {
                        Ok(()) => done += 1,
                        Err(error) => {
                            failed += 1;
                            throttled += usize::from(matches!(
                                error,
                                StoreError::Throttled | StoreError::Busy(_)
                            ));
                            last = Some(error);
                            // Not to hammer a store in trouble.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                (done, failed, throttled, last)
            })
        })
        .collect();
    let mut step =
        Step { connections, done: 0, failed: 0, throttled: 0, error: None, seconds: 0.0 };
    for worker in workers {
        // A panic there has counted nothing.
        if let Ok((done, failed, throttled, error)) = worker.await {
            step.done += done;
            step.failed += failed;
            step.throttled += throttled;
            step.error = step.error.or(error);
        }
    }
    // In a test no time passes.
    step.seconds = begun.elapsed().as_secs_f64().max(1e-3);
    step
}

#[allow(clippy::cast_precision_loss)] // counts, for rates
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate, never negative
fn rate(bytes_per_second: f64) -> String {
    bytes(bytes_per_second as u64)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::BufMut;

    use super::*;
    use crate::store::ObjectHead;
    use crate::store::memory::MemoryStore;

    fn plan() -> Plan {
        Plan {
            prefix: String::new(),
            part_bytes: 1 << 20,
            max_connections: 8,
            step: Duration::from_millis(50),
            most_requests: 20,
        }
    }

    fn filled() -> Arc<MemoryStore> {
        let store = MemoryStore::new();
        for number in 0..1500 {
            store.put(&format!("a/{number:04}"), vec![7; 1000]);
        }
        store.put("big", (0..3 << 20).map(|byte: u32| (byte % 251) as u8).collect::<Vec<_>>());
        Arc::new(store)
    }

    fn states(examined: &Examined, state: State) -> Vec<&'static str> {
        let such = examined.findings.iter().filter(|finding| finding.state == state);
        such.map(|finding| finding.topic).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_store_is_found_to_be_good() {
        let examined = run(&(filled() as Arc<dyn ObjectStore>), &plan()).await;
        assert_eq!(states(&examined, State::Wrong), Vec::<&str>::new(), "{examined:?}");
        assert_eq!(states(&examined, State::Slow), Vec::<&str>::new(), "{examined:?}");
        let topics = states(&examined, State::Ok);
        for topic in [
            "listing",
            "paging",
            "start-after",
            "directories",
            "versions",
            "ranges",
            "If-Match",
            "first byte",
            "bandwidth",
            "small files",
            "names",
        ] {
            assert!(topics.contains(&topic), "{topic}");
        }
        assert!(examined.measured.expected().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_bucket_is_no_fault() {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let examined = run(&store, &plan()).await;
        assert_eq!(states(&examined, State::Slow), ["listing"]);
        assert!(examined.measured.expected().is_none());
    }

    /// What a store may do wrong.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Wrong {
        IgnoresIfMatch,
        IgnoresStartAfter,
        RepeatsPages,
        ListsInNoOrder,
        OtherEtagInHead,
        OtherBytes,
        Denies,
        Throttles,
        Late,
    }

    struct Bad(Arc<MemoryStore>, Wrong);

    #[async_trait]
    impl ObjectStore for Bad {
        async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
            let mut request = request.clone();
            if self.1 == Wrong::ListsInNoOrder {
                self.0.list_in_no_order();
            }
            match &request.from {
                ListFrom::After(_) if self.1 == Wrong::IgnoresStartAfter => {
                    request.from = ListFrom::Start;
                }
                ListFrom::Token { .. } if self.1 == Wrong::RepeatsPages => {
                    request.from = ListFrom::Start;
                }
                _ => {}
            }
            self.0.list_page(&request).await
        }

        async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
            let mut head = self.0.head(key).await?;
            if self.1 == Wrong::OtherEtagInHead {
                head.meta.version.etag = "\"x\"".to_owned();
            }
            Ok(head)
        }

        async fn get_range(
            &self,
            version: &ObjectVersion,
            range: Range<u64>,
            into: &mut (dyn BufMut + Send),
        ) -> Result<(), StoreError> {
            match self.1 {
                Wrong::Denies => return Err(StoreError::Denied("403".to_owned())),
                Wrong::Throttles if range.end - range.start >= 1 << 20 => {
                    return Err(StoreError::Throttled);
                }
                Wrong::Late => tokio::time::sleep(Duration::from_millis(300)).await,
                Wrong::OtherBytes => {
                    into.put_bytes(
                        u8::try_from(range.start / 1024 % 251).unwrap(),
                        usize::try_from(range.end - range.start).unwrap(),
                    );
                    return Ok(());
                }
                _ => {}
            }
            let meta = self.0.head(&version.key).await?.meta;
            let version = if self.1 == Wrong::IgnoresIfMatch { &meta.version } else { version };
            self.0.get_range(version, range, into).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_store_does_wrong_is_said_in_a_sentence() {
        for (wrong, topic, state, says) in [
            (Wrong::IgnoresIfMatch, "If-Match", State::Wrong, "would give a mixture"),
            (Wrong::IgnoresStartAfter, "start-after", State::Slow, "one page after the other"),
            (Wrong::ListsInNoOrder, "listing", State::Slow, "in no order"),
            (Wrong::ListsInNoOrder, "paging", State::Ok, "follows"),
            (Wrong::ListsInNoOrder, "directories", State::Ok, "roll directories up"),
            (Wrong::RepeatsPages, "paging", State::Wrong, "no listing of more than one page"),
            (Wrong::OtherEtagInHead, "versions", State::Wrong, "do not agree about \"big\""),
            (Wrong::OtherBytes, "ranges", State::Wrong, "gave different bytes"),
            (Wrong::Denies, "ranges", State::Wrong, "may be listed but not read"),
            (Wrong::Throttles, "bandwidth", State::Slow, "the store throttled"),
            (Wrong::Late, "first byte", State::Slow, "a first byte takes 300"),
        ] {
            let store: Arc<dyn ObjectStore> = Arc::new(Bad(filled(), wrong));
            let examined = run(&store, &plan()).await;
            let found = examined.findings.iter().find(|finding| finding.topic == topic);
            let found = found.unwrap_or_else(|| panic!("{wrong:?}: nothing of {topic}"));
            assert_eq!(found.state, state, "{wrong:?}: {found:?}");
            assert!(found.sentence.contains(says), "{wrong:?}: {}", found.sentence);
            let fewer = examined.measured.connections_wanted(8);
            assert_eq!(
                fewer.is_some_and(|n| n < 8),
                wrong == Wrong::Throttles,
                "{wrong:?}: {fewer:?}"
            );
        }
    }
}
