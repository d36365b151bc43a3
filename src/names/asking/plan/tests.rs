//! A listing is played page by page: every request takes a round, give or take what its number
//! says, so that answers overtake each other.

use super::range::speakable;
use super::*;
use crate::store::ListEntry;

/// What a listing cost.
#[derive(Debug)]
struct Cost {
    requests: usize,
    /// By a sequential listing.
    sequential: usize,
    /// Latencies until the last page.
    rounds: f64,
}

impl Cost {
    fn factor(&self) -> f64 {
        real(self.requests) / real(self.sequential)
    }
}

/// Lists `keys` with so many workers and checks that all of them are found, in order.
fn play(keys: &[String], page_keys: u16, workers: usize) -> Cost {
    let mut plan = ListingPlan::new("", page_keys, workers, ListingOrder::Unknown);
    let size = usize::from(page_keys);
    let (mut now, mut requests) = (0.0_f64, 0);
    let mut flights: Vec<(f64, Ask)> = Vec::new();
    let mut found: Vec<(RangeId, Vec<&String>)> = Vec::new();
    let mut listed: Vec<&String> = Vec::new();
    loop {
        while let Some(ask) = plan.ask() {
            // Between 0.9 and 1.1 rounds.
            let jitter = f64::from(u32::try_from(requests * 37 % 21).expect("small")) / 100.0;
            requests += 1;
            flights.push((now + 0.9 + jitter, ask));
        }
        let first = (0..flights.len()).min_by(|a, b| flights[*a].0.total_cmp(&flights[*b].0));
        let (lands, ask) = flights.swap_remove(first.expect("something is asked for"));
        now = lands;
        let begin = match &ask.from {
            ListFrom::Start => 0,
            ListFrom::After(key) | ListFrom::Token { last: key, .. } => {
                keys.partition_point(|other| other <= key)
            }
        };
        let end = keys.len().min(begin + size);
        let entries = keys[begin..end].iter().cloned().map(ListEntry::Prefix).collect();
        let next = (end < keys.len()).then(|| end.to_string());
        let page = ListPage { entries, next, ..ListPage::default() };
        for (range, share) in plan.answer(ask.range, &page).expect("a good page") {
            let keys = keys[begin..][share].iter();
            match found.iter_mut().find(|(id, _)| *id == range) {
                Some((_, found)) => found.extend(keys),
                None => found.push((range, keys.collect())),
            }
        }
        while let Some((leftmost, true)) = plan.leftmost() {
            if let Some(at) = found.iter().position(|(id, _)| *id == leftmost) {
                listed.extend(found.swap_remove(at).1);
            }
            plan.take_leftmost();
        }
        if plan.leftmost().is_none() {
            break;
        }
    }
    assert!(listed.iter().copied().eq(keys), "{} of {} keys", listed.len(), keys.len());
    Cost { requests, sequential: keys.len().div_ceil(size).max(1), rounds: now }
}

/// A number that nothing is read from.
fn noise(of: usize) -> u64 {
    let mut hash = of as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..3 {
        hash = (hash ^ hash >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    hash ^ hash >> 29
}

const WORDS: [&str; 24] = [
    "apple", "bank", "cat", "cloud", "dog", "door", "eagle", "field", "fish", "garden", "house",
    "island", "jar", "kite", "lamp", "mountain", "night", "ocean", "paper", "river", "stone",
    "tree", "water", "window",
];

/// Names of a kind, sorted, no two alike.
fn names(count: usize, name: impl Fn(usize) -> String) -> Vec<String> {
    let mut names: Vec<String> = (0..count).map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Clusters of so many names, anywhere.
fn classes(count: usize, names_a_class: usize) -> Vec<String> {
    names(count, |n| {
        let class = 1_440_764 + noise(n / names_a_class) % 12_000_000;
        format!("n{class:08}_{}.JPEG", noise(n) % 20_000)
    })
}

/// Shapes by name; whether they are regular.
fn shapes(count: usize) -> Vec<(&'static str, bool, Vec<String>)> {
    let word = |n: usize, salt: usize| WORDS[(noise(n * 7 + salt) % 24) as usize];
    let stem = "s".repeat(200);
    vec![
        ("padded", true, names(count, |n| format!("{n:08}"))),
        ("padded with suffix", true, names(count, |n| format!("part-{n:06}.parquet"))),
        ("shards", true, names(count, |n| format!("train-{n:06}-of-{count:06}.tar"))),
        ("hex", true, names(count, |n| format!("{:016x}{:016x}", noise(n), noise(n + count)))),
        ("upper hex", true, names(count, |n| format!("{:016X}.bin", noise(n)))),
        (
            "dates",
            true,
            names(count, |n| {
                let (day, second) = (n * 900 / count, n % 86_400);
                let (year, month) = (2020 + day / 360, day / 30 % 12 + 1);
                format!(
                    "{year}-{month:02}-{:02}T{:02}:{:02}:{:02}-{n}",
                    day % 30 + 1,
                    second / 3600,
                    second / 60 % 60,
                    second % 60
                )
            }),
        ),
        ("unpadded", true, names(count, |n| n.to_string())),
        (
            "milliseconds",
            true,
            names(count, |n| (1_700_000_000_000_u64 + noise(n) % 90_000_000_000).to_string()),
        ),
        // 1,300 names a class, where a page has 1,000 names; and 26 pages a class.
        ("imagenet", false, classes(count, 65)),
        ("large classes", false, classes(count, 1300)),
        (
            "words",
            false,
            names(count, |n| format!("{}_{}_{}_{n}.jpg", word(n, 1), word(n, 2), word(n, 3))),
        ),
        (
            "deep stem",
            false,
            names(count, |n| {
                if n % 20 == 0 {
                    format!("{:08x}", noise(n) >> 32)
                } else {
                    format!("{stem}{n:08}")
                }
            }),
        ),
        ("only a deep stem", true, names(count, |n| format!("{stem}{n:08}"))),
        (
            "two clusters",
            false,
            names(count, |n| {
                format!("{}{:07}", if n % 2 == 0 { "aaaaaaaa-" } else { "zz-top-" }, n / 2)
            }),
        ),
        (
            "one hot range",
            false,
            names(count, |n| {
                if n % 50 == 0 {
                    format!("{:012x}", noise(n) >> 16)
                } else {
                    format!("7f3{:09x}", noise(n) >> 40)
                }
            }),
        ),
        (
            "base64",
            false,
            names(count, |n| {
                let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
                (0..11).map(|at| char::from(digits[(noise(n) >> (at * 6) & 63) as usize])).collect()
            }),
        ),
        (
            "chinese",
            false,
            names(count, |n| {
                (0..4)
                    .map(|at| {
                        char::from_u32(0x4e00 + (noise(n) >> (at * 13) & 0x1fff) as u32)
                            .expect("a character")
                    })
                    .collect()
            }),
        ),
    ]
}

/// Four hundred pages, as 400,000 keys are in S3.
#[test]
fn whatever_the_names_are_like_they_are_listed_in_parallel_with_less_than_twice_the_requests() {
    for (name, regular, keys) in shapes(20_000) {
        let cost = play(&keys, 50, 16);
        let most = if regular { (1.3, 75.0) } else { (1.5, 80.0) };
        assert!(cost.factor() < most.0 && cost.rounds < most.1, "{name}: {cost:?}");
    }
}

#[test]
fn a_small_directory_is_not_guessed_about() {
    for pages in [1, 2, 3, 5, 8, 13, 21, 34, 55] {
        for (name, _, keys) in shapes(pages * 20) {
            let cost = play(&keys, 20, 16);
            let most = if pages <= 5 { 1.0 } else { 1.3 };
            assert!(cost.factor() <= most, "{pages} pages of {name}: {cost:?}");
        }
    }
}

#[test]
fn one_worker_asks_for_one_page_after_the_other() {
    for (_, _, keys) in shapes(500) {
        let cost = play(&keys, 10, 1);
        assert_eq!(cost.requests, cost.sequential);
    }
}

#[test]
fn what_is_said_in_a_request_is_text_between_the_bounds() {
    for (guess, behind, before, spoken) in [
        (&b"b"[..], "a", Some("c"), Some("b")),
        (b"a", "a", None, None),
        (b"c", "a", Some("c"), None),
        (b"b\0\x7f", "a", None, Some("b ~")),
        // Behind everything in the common prefix, and not within it.
        (b"b/x", "a", None, Some("b0")),
        (b"b/x", "a", Some("b0"), None),
        (b"\xe4", "a", None, Some("\u{4000}")),
        (b"\xe4\xbd", "a", None, Some("\u{4f40}")),
        (b"\xe4b", "a", None, Some("\u{4000}")),
        (b"\xed\xbf\xbf", "a", None, Some("\u{d7ff}")),
        (b"\xf4\xbf\xbf\xbf", "a", None, Some("\u{10ffff}")),
        (b"\xff", "a", None, Some("~")),
    ] {
        assert_eq!(speakable(guess, behind, before).as_deref(), spoken, "{guess:?}");
    }
}
