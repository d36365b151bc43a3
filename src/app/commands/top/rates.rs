//! Pure: the differences of two statuses, as rates.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::app::commands::status::list;
use crate::app::control::status::{Served, Status};
use crate::base::proc;
use crate::base::text::{bytes, seconds};
use crate::stats::Durations;

/// The busiest files and processes that are shown, at most.
const SHOWN: usize = 30;

/// The work of a mount between two moments.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rates {
    pub(super) source: String,
    pub(super) mountpoint: String,
    pub(super) uptime_seconds: f64,
    /// The time between the two moments.
    pub(super) seconds: f64,
    pub(super) fetched_bytes_per_second: f64,
    pub(super) served_bytes_per_second: f64,
    /// The share of reads that did not wait, 0 to 1; absent if nothing was read.
    pub(super) hit_ratio: Option<f64>,
    /// The share of bytes that the shared cache had of those it was asked for, 0 to 1; absent if it
    /// was asked for none.
    pub(super) shared_hit_ratio: Option<f64>,
    /// Bytes fetched for each byte served; absent if nothing was served.
    pub(super) amplification: Option<f64>,
    pub(super) memory_used_bytes: u64,
    pub(super) memory_budget_bytes: u64,
    /// Requests to the store.
    pub(super) requests: Vec<CallRate>,
    /// The kernel's requests.
    pub(super) operations: Vec<CallRate>,
    /// The median from asking for a range to its first byte.
    pub(super) first_byte_seconds: f64,
    /// Requests that did not end well, and errors that programs saw.
    pub(super) trouble: Vec<Trouble>,
    /// The files of which bytes were served, the busiest first.
    pub(super) files: Vec<ByteRate>,
    /// The processes to which bytes were served, the busiest first.
    pub(super) processes: Vec<ByteRate>,
}

/// Requests of one kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CallRate {
    pub(super) name: String,
    /// Those that ended well.
    pub(super) per_second: f64,
    pub(super) in_flight: u64,
    pub(super) median_seconds: f64,
    pub(super) p99_seconds: f64,
}

/// A kind of failure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trouble {
    pub(super) name: String,
    pub(super) count: u64,
}

/// A path below the mountpoint, or a process's number and name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ByteRate {
    pub(super) name: String,
    pub(super) bytes_per_second: f64,
}

impl Rates {
    #[allow(clippy::cast_precision_loss)] // rates, shown with three digits
    pub(super) fn between(before: &Status, now: &Status) -> Self {
        let seconds = (now.uptime_seconds - before.uptime_seconds).max(1e-3);
        let done = now.totals.counters.since(&before.totals.counters);
        let [served, fetched, reads, waited] =
            [done.bytes_served, done.from_store(), done.reads, done.reads_waited]
                .map(|count| count as f64);
        let shared_hit = done.shared_hit_bytes as f64;
        let shared_asked = shared_hit + done.shared_missed_bytes as f64;
        let nothing = Durations::default();
        let call = |name: &String, in_flight, before: Option<&Durations>, now: &Durations| {
            let added = now.since(before.unwrap_or(&nothing));
            CallRate {
                name: name.clone(),
                per_second: added.count() as f64 / seconds,
                in_flight,
                median_seconds: added.quantile(0.5),
                p99_seconds: added.quantile(0.99),
            }
        };
        let requests = now.requests.iter().map(|(name, now)| {
            let before = before.requests.get(name).map(|before| &before.took);
            call(name, now.in_flight, before, &now.took)
        });
        let operations = now.operations.iter().map(|(name, now)| {
            let before = before.operations.get(name).map(|before| &before.took);
            call(name, now.in_flight, before, &now.took)
        });
        Self {
            source: now.settings.source.clone(),
            mountpoint: now.settings.mountpoint.clone(),
            uptime_seconds: now.uptime_seconds,
            seconds,
            fetched_bytes_per_second: fetched / seconds,
            served_bytes_per_second: served / seconds,
            // A read may be counted as waiting before the interval in which it ends.
            hit_ratio: (reads > 0.0).then(|| (1.0 - waited / reads).max(0.0)),
            shared_hit_ratio: (shared_asked > 0.0).then(|| shared_hit / shared_asked),
            amplification: (served > 0.0).then(|| fetched / served),
            memory_used_bytes: now.totals.memory_used_bytes,
            memory_budget_bytes: now.settings.memory_budget_bytes,
            requests: requests.collect(),
            operations: operations.collect(),
            first_byte_seconds: now.first_byte.since(&before.first_byte).quantile(0.5),
            trouble: trouble(before, now),
            files: byte_rates(&before.files, &now.files, seconds, str::to_owned),
            processes: byte_rates(&before.threads, &now.threads, seconds, process),
        }
    }

    /// The requests that wait, and those that they wait for.
    pub(super) fn waiting(&self) -> String {
        let in_flight = |calls: &[CallRate]| {
            let some = calls.iter().filter(|call| call.in_flight > 0);
            let counts: Vec<_> =
                some.map(|call| format!("{} {}", call.in_flight, call.name)).collect();
            counts.join(", ")
        };
        match (in_flight(&self.operations).as_str(), in_flight(&self.requests).as_str()) {
            ("", "") => "nothing".to_owned(),
            ("", requests) => format!("nobody; {requests} under way"),
            (operations, "") => format!("{operations}, for nothing that the store was asked"),
            (operations, requests) => format!("{operations} on {requests}"),
        }
    }

    pub(super) fn hits(&self) -> String {
        let hits = self.hit_ratio.map_or("-".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0));
        match self.shared_hit_ratio {
            None => hits,
            Some(ratio) => format!("{hits} (shared cache {:.0} %)", ratio * 100.0),
        }
    }

    pub(super) fn amplified(&self) -> String {
        self.amplification.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
    }

    pub(super) fn troubles(&self) -> String {
        list(self.trouble.iter().map(|trouble| (trouble.count, &trouble.name)))
    }

    /// One line.
    pub(super) fn text(&self) -> String {
        let requests = self.requests.iter().filter(|request| request.per_second > 0.0);
        let requests: Vec<_> = requests
            .map(|request| {
                let median = seconds(request.median_seconds);
                format!("{:.0} {}/s of {median}", request.per_second, request.name)
            })
            .collect();
        format!(
            "store {}, programs {}, hits {}, amplification {}, {}; waiting: {}; trouble: {}",
            speed(self.fetched_bytes_per_second),
            speed(self.served_bytes_per_second),
            self.hits(),
            self.amplified(),
            if requests.is_empty() { "no requests".to_owned() } else { requests.join(", ") },
            self.waiting(),
            self.troubles(),
        )
    }
}

fn trouble(before: &Status, now: &Status) -> Vec<Trouble> {
    let mut trouble = Vec::new();
    let mut note = |name: String, now: u64, before: u64| {
        if now > before {
            trouble.push(Trouble { name, count: now - before });
        }
    };
    for (kind, requests) in &now.requests {
        for (outcome, &count) in requests.outcomes.iter().filter(|(name, _)| *name != "ok") {
            let before = before.requests.get(kind).and_then(|known| known.outcomes.get(outcome));
            note(format!("{kind} {outcome}"), count, before.copied().unwrap_or(0));
        }
    }
    for (errno, &count) in &now.errors {
        note(errno.clone(), count, before.errors.get(errno).copied().unwrap_or(0));
    }
    let (was, is) = (&before.totals.counters, &now.totals.counters);
    note("retries".to_owned(), is.retries, was.retries);
    note("hedges".to_owned(), is.hedges, was.hedges);
    note("throttled".to_owned(), is.throttled, was.throttled);
    trouble
}

#[allow(clippy::cast_precision_loss)] // rates, shown with three digits
fn byte_rates(
    before: &[Served],
    now: &[Served],
    seconds: f64,
    name: impl Fn(&str) -> String,
) -> Vec<ByteRate> {
    // By the name that is shown, which threads of one process share.
    let mut added: BTreeMap<String, u64> = BTreeMap::new();
    for Served { name: id, bytes } in now {
        // One that lost its place in the table and took it again has fewer: all of them are new.
        let was = before.iter().find(|other| other.name == *id).map_or(0, |other| other.bytes);
        let bytes = bytes.checked_sub(was).unwrap_or(*bytes);
        if bytes > 0 {
            *added.entry(name(id)).or_default() += bytes;
        }
    }
    let mut added: Vec<_> = added.into_iter().collect();
    added.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let rates = added.into_iter().take(SHOWN);
    rates.map(|(name, bytes)| ByteRate { name, bytes_per_second: bytes as f64 / seconds }).collect()
}

/// The number and the name of a thread's process, if it is still there (`proc_pid_status(5)`).
fn process(thread: &str) -> String {
    let name = || {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let process = proc::field(&status, "Tgid")?;
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        Some(format!("{process} {}", name.trim_end()))
    };
    // There are many programs that live for one file; together they may be the busiest.
    name().unwrap_or_else(|| "(ended)".to_owned())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate, never negative
pub(super) fn speed(per_second: f64) -> String {
    format!("{}/s", bytes(per_second as u64))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn busy(name: &str, bytes: u64) -> Served {
        Served { name: name.to_owned(), bytes }
    }

    #[test]
    fn the_busiest_are_those_who_were_busy_between_the_looks() {
        let before = [busy("old", 1000), busy("steady", 500), busy("lost", 900)];
        let now = [busy("old", 1000), busy("steady", 700), busy("lost", 60), busy("new", 300)];
        let names: Vec<_> = byte_rates(&before, &now, 2.0, str::to_owned)
            .into_iter()
            .map(|share| (share.name, share.bytes_per_second))
            .collect();
        let want = [("new", 150.0), ("steady", 100.0), ("lost", 30.0)];
        assert_eq!(names, want.map(|(name, rate)| (name.to_owned(), rate)));
        let together = byte_rates(&before, &now, 2.0, |_| "one process".to_owned());
        assert_eq!((together.len(), together[0].bytes_per_second), (1, 280.0));
    }

    pub(in crate::app::commands::top) fn look() -> Rates {
        let rate = |name: &str, in_flight| CallRate {
            name: name.to_owned(),
            per_second: 120.0,
            in_flight,
            median_seconds: 0.0152,
            p99_seconds: 0.2,
        };
        Rates {
            source: "s3://data/".to_owned(),
            mountpoint: "/mnt/data".to_owned(),
            uptime_seconds: 61.0,
            seconds: 1.0,
            fetched_bytes_per_second: 1.2e9,
            served_bytes_per_second: 0.6e9,
            hit_ratio: Some(0.25),
            shared_hit_ratio: None,
            amplification: Some(2.0),
            memory_used_bytes: 1 << 30,
            memory_budget_bytes: 4 << 30,
            requests: vec![rate("GET", 17)],
            operations: vec![rate("read", 3), rate("readdirplus", 3)],
            first_byte_seconds: 0.015,
            trouble: vec![Trouble { name: "GET throttled".to_owned(), count: 4 }],
            files: vec![ByteRate { name: "train/0\n.tar".to_owned(), bytes_per_second: 5e8 }],
            processes: vec![ByteRate { name: "4711 python3".to_owned(), bytes_per_second: 6e8 }],
        }
    }

    #[test]
    fn a_look_in_a_line_says_the_same() {
        let text = look().text();
        let want = "store 1.2 GB/s, programs 600.0 MB/s, hits 25 %, amplification 2.00, 120 GET/s \
                    of 15.2 ms; waiting: 3 read, 3 readdirplus on 17 GET; trouble: 4 GET throttled";
        assert_eq!(text, want);
        let text = Rates { shared_hit_ratio: Some(0.99), ..look() }.text();
        assert!(text.contains(", hits 25 % (shared cache 99 %), amplification"), "{text}");
    }
}
