//! How fast the store is, asked as the mount asks: one behind the other, and many at once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Plan;
use crate::app::doctor::measured::{Bandwidth, rate};
use crate::app::doctor::report::{Report, State, because};
use crate::app::doctor::requests::{Bounds, Moved, Step, Taken, ask, get, together};
use crate::base::text::{bytes, seconds};
use crate::store::{ListEntry, ListFrom, ListRequest, ObjectMeta, ObjectStore, ObjectVersion};

/// First bytes that are waited for, one behind the other.
const FIRST_BYTES: u64 = 16;
/// They are given up when they have taken so long together.
const LONGEST_FIRST_BYTES: Duration = Duration::from_secs(6);
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
/// More connections must bring so much more, twice, to go on.
const WORTH: f64 = 1.05;
/// What has not answered by then is too slow to be measured.
const LONGEST_STEP: Duration = Duration::from_secs(3);

fn bounds(plan: &Plan) -> Bounds {
    Bounds { time: plan.step, longest: LONGEST_STEP.max(plan.step), requests: plan.most_requests }
}

/// How fast listings come.
pub(super) async fn pages(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    entries: &[ListEntry],
    report: &mut Report,
) {
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
        let (store, requests) = (store.clone(), requests.clone());
        let request = move |number: usize, keys: Moved| {
            let (store, requests) = (store.clone(), requests.clone());
            async move {
                let page = store.list_page(&requests[number % requests.len()]).await?;
                keys.fetch_add(page.entries.len() as u64, Relaxed);
                Ok(())
            }
        };
        together(connections, bounds(plan), request)
    };
    let one = step(1).await;
    let many = step(PAGES_AT_ONCE.min(plan.max_connections)).await;
    let (Some(one_rate), Some(many_rate)) = (one.per_second(), many.per_second()) else {
        return report.wrong("names", none(&[one, many], "no page of a listing comes"));
    };
    let keys = many.moved_per_second();
    report.measured.page_seconds = Some(1.0 / one_rate);
    report.measured.pages_per_second = Some(many_rate);
    report.measured.keys_per_second = Some(keys);
    let state = if 1.0 / one_rate > SLOW_PAGE { State::Slow } else { State::Ok };
    let sentence = format!(
        "a page of a listing takes {}; {} at once make {many_rate:.0} pages and {keys:.0} keys a \
         second{}",
        seconds(1.0 / one_rate),
        many.connections,
        many.troubles(),
    );
    report.add("names", state.max(many.state()), sentence);
}

/// How long a byte takes that nothing else is asked for beside.
pub(super) async fn first_bytes(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    report: &mut Report,
) {
    let mut took = Vec::new();
    let mut failed = 0;
    let all = Instant::now();
    for number in 0..FIRST_BYTES {
        let at = version.size_bytes / FIRST_BYTES * number;
        let begun = Instant::now();
        match ask(|| get(store, version, at..at + 1)).await {
            (Ok(_), 0) => took.push(begun.elapsed()),
            _ => failed += 1,
        }
        if all.elapsed() > LONGEST_FIRST_BYTES {
            break;
        }
    }
    took.sort_unstable();
    let Some(&median) = took.get(took.len() / 2) else {
        let what = "no request for a byte was answered at once: the store is in trouble, or the network to it";
        return report.wrong("first byte", what);
    };
    let asked = took.len() + failed;
    let p90 = took[(took.len() - 1) * 9 / 10];
    let is_slow = median.as_secs_f64() > SLOW_FIRST_BYTE;
    let state = if is_slow || failed > 0 { State::Slow } else { State::Ok };
    let failed = match failed {
        0 => String::new(),
        failed => format!("; {failed} of {asked} requests failed"),
    };
    let slow = if is_slow {
        "; small files and random reads will be slow: is the store far away, or busy?"
    } else {
        ""
    };
    let sentence = format!(
        "a first byte takes {}, one in ten more than {}{failed}{slow}",
        seconds(median.as_secs_f64()),
        seconds(p90.as_secs_f64())
    );
    report.add("first byte", state, sentence);
    report.measured.first_byte_seconds = Some(median.as_secs_f64());
    report.measured.first_byte_p90_seconds = Some(p90.as_secs_f64());
}

/// What 1, 2, 4, … connections move together, until more bring nothing.
pub(super) async fn bandwidth(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    version: &ObjectVersion,
    report: &mut Report,
) {
    let parts = version.size_bytes.div_ceil(plan.part_bytes);
    let mut connections = 1;
    let mut in_vain = 0;
    let mut with_trouble: Option<Step> = None;
    while connections <= plan.max_connections && in_vain < 2 {
        let part_bytes = plan.part_bytes;
        let request = {
            let (store, version) = (store.clone(), Arc::new(version.clone()));
            move |number: usize, moved: Moved| {
                let (store, version) = (store.clone(), version.clone());
                async move {
                    let start = number as u64 % parts * part_bytes;
                    let range = start..(start + part_bytes).min(version.size_bytes);
                    let mut taken = Taken::of(&moved);
                    store.get_range(&version, range, &mut taken.bytes).await
                }
            }
        };
        let step = together(connections, bounds(plan), request).await;
        if step.throttled > 0 {
            report.measured.throttled_at.get_or_insert(connections);
        }
        let bytes_per_second = step.moved_per_second();
        let best = report.measured.best().map_or(0.0, |best| best.bytes_per_second);
        if bytes_per_second < best * WORTH {
            in_vain += 1;
        } else {
            in_vain = 0;
        }
        let nothing = step.moved == 0;
        if step.failed > 0 {
            with_trouble.get_or_insert(step);
        }
        if nothing {
            break;
        }
        report.measured.bandwidth.push(Bandwidth { connections, bytes_per_second });
        if connections == plan.max_connections {
            break;
        }
        connections = (connections * 2).min(plan.max_connections);
    }
    let Some(best) = report.measured.best() else {
        let worst = with_trouble.as_slice();
        return report.wrong("bandwidth", none(worst, "nothing of a large object comes"));
    };
    let one = rate(report.measured.bandwidth[0].bytes_per_second);
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
        connections => format!("{connections} together {}", rate(best.bytes_per_second)),
    };
    let state = with_trouble.as_ref().map_or(State::Ok, Step::state);
    let troubles = with_trouble.as_ref().map(Step::troubles).unwrap_or_default();
    report.add(
        "bandwidth",
        state,
        format!("one connection moves {one}, {together}{small}{troubles}"),
    );
}

/// How many small files come in a second when many are read at once.
pub(super) async fn small_files(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    objects: &[&ObjectMeta],
    report: &mut Report,
) {
    let small = objects.iter().filter(|meta| meta.version.size_bytes <= SMALL_BYTES).take(1000);
    let small: Arc<Vec<ObjectVersion>> = Arc::new(small.map(|meta| meta.version.clone()).collect());
    if small.is_empty() {
        return;
    }
    let request = {
        let (store, small) = (store.clone(), small.clone());
        move |number: usize, moved: Moved| {
            let (store, small) = (store.clone(), small.clone());
            async move {
                let version = &small[number % small.len()];
                let mut taken = Taken::of(&moved);
                store.get_range(version, 0..version.size_bytes, &mut taken.bytes).await
            }
        }
    };
    let connections = SMALL_AT_ONCE.min(plan.max_connections);
    let step = together(connections, bounds(plan), request).await;
    if step.throttled > 0 {
        report.measured.throttled_at.get_or_insert(connections);
    }
    let Some(files) = step.per_second() else {
        return report.wrong("small files", none(&[step], "no small file can be read"));
    };
    report.measured.small_files_per_second = Some(files);
    let total: u64 = small.iter().map(|version| version.size_bytes).sum();
    let each = bytes(total / small.len() as u64);
    let sentence = format!(
        "{connections} connections read {files:.0} files of about {each} a second{}",
        step.troubles()
    );
    report.add("small files", step.state(), sentence);
}

/// That nothing came, and why.
fn none(steps: &[Step], what: &str) -> String {
    let error = steps.iter().find_map(|step| step.error.as_ref());
    error.map_or_else(|| what.to_owned(), |error| because(what, error))
}
