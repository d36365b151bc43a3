//! Counters of what the mount did; nothing of ours above it.
//!
//! They are added to on the path of every read, so there are no locks here and nothing is
//! allocated: relaxed atomics, histograms of fixed buckets, and for "the busiest" a table of fixed
//! size that forgets. Whoever reads them while they are added to sees each number right and no two
//! of them at exactly the same moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Totals since the mount; each only ever grows.
#[derive(Debug, Default)]
pub struct Stats {
    /// FUSE reads answered with bytes.
    pub reads: Counter,
    /// Those of them that had to wait for bytes: the others were cache hits.
    pub reads_waited: Counter,
    /// Bytes given to the kernel.
    pub bytes_served: Counter,
    /// Range GETs sent on behalf of the cache.
    pub gets: Counter,
    /// Object bytes that arrived.
    pub bytes_fetched: Counter,
    /// Those of them that were readahead when they were asked for.
    pub bytes_ahead: Counter,
    /// Chunks given up for others.
    pub evictions: Counter,
    /// Bytes given up, of blocks that the page cache had not taken to their ends.
    pub bytes_unread: Counter,
    /// Small files fetched ahead because their siblings were read.
    pub siblings_ahead: Counter,
    /// Their bytes.
    pub siblings_ahead_bytes: Counter,
    /// Those of them that were read.
    pub siblings_used: Counter,
    /// Their bytes.
    pub siblings_used_bytes: Counter,
    /// Those of them that were given up before they were read, or passed by.
    pub siblings_wasted: Counter,
    /// Their bytes.
    pub siblings_wasted_bytes: Counter,
    /// From asking for a range to its first byte, pauses and retries included.
    pub first_byte: Histogram,
    /// Requests to the store, each attempt by itself.
    pub requests: Requests,
    /// Entries of listing pages.
    pub listed: Counter,
    /// Requests sent again after a failure.
    pub retries: Counter,
    /// Requests sent a second time because the first was slow.
    pub hedges: Arc<Counter>,
    /// Times that requests were held back because the store asked to slow down.
    pub throttled: Counter,
    /// The kernel's requests.
    pub fuse: Operations,
    /// Inode numbers of the files that most bytes were served of.
    pub files: Busiest,
    /// Numbers of the threads that most bytes were served to, which is what the kernel tells.
    pub threads: Busiest,
}

/// A number that many threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets in nanoseconds, the last of all being infinite: 1, 2 and 5 of
/// each power of ten, from a cached read to the deadline of a request.
const BOUNDS: [u64; 20] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// How long something took, many times.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Histogram {
    /// Adds one duration.
    pub fn add(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&bound| bound < nanoseconds);
        self.buckets[bucket].add(1);
        self.nanoseconds.add(nanoseconds);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// What it holds now.
    pub fn counts(&self) -> Durations {
        let buckets = self.buckets.iter().map(Counter::get).collect();
        Durations { buckets, seconds: Duration::from_nanos(self.nanoseconds.get()).as_secs_f64() }
    }
}

/// What a histogram held at some moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// How many were in each bucket of [`BOUNDS`], and above the last.
    buckets: Vec<u64>,
    /// All of them together.
    pub seconds: f64,
}

impl Durations {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Those that were added after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        let added = |(now, before): (&u64, u64)| now.saturating_sub(before);
        let buckets = self.buckets.iter().zip(before).map(added).collect();
        Self { buckets, seconds: (self.seconds - earlier.seconds).max(0.0) }
    }

    /// The upper bound of each bucket in seconds, and how many are in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = BOUNDS.iter().map(|&bound| Duration::from_nanos(bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.buckets.iter().copied())
    }

    /// What a share of them, 0 to 1, took no longer than, in seconds; 0 if there were none. As near
    /// as the buckets are: what lies in one is taken to lie evenly in it.
    #[allow(clippy::cast_precision_loss)] // counts of things that took a microsecond each
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = self.count() as f64 * share;
        let (mut below, mut from) = (0.0, 0.0);
        for (bound, count) in self.buckets() {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                let inside = ((wanted - below) / count).clamp(0.0, 1.0);
                return if bound.is_finite() { from + (bound - from) * inside } else { from };
            }
            below += count;
            from = if bound.is_finite() { bound } else { from };
        }
        0.0
    }
}

/// Kinds of requests to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A range of an object.
    Get,
    /// An object's metadata.
    Head,
    /// A page of a listing.
    List,
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Get, Self::Head, Self::List];

    /// As S3 names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::List => "LIST",
        }
    }
}

/// How a request to the store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Ok,
    /// No such key.
    NotFound,
    /// The object is another version by now.
    Changed,
    /// Refused, or there are no credentials.
    Denied,
    /// The object is archived.
    Archived,
    /// The store asks to slow down.
    Throttled,
    /// The store failed or could not be reached.
    Unavailable,
    /// Silence.
    TimedOut,
    /// The answer makes no sense.
    Protocol,
    /// The bucket is not there, or elsewhere.
    Bucket,
    /// Nobody waited for its end: the deadline passed, or another answer came first.
    Abandoned,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::NotFound,
        Self::Changed,
        Self::Denied,
        Self::Archived,
        Self::Throttled,
        Self::Unavailable,
        Self::TimedOut,
        Self::Protocol,
        Self::Bucket,
        Self::Abandoned,
    ];

    /// As a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Changed => "changed",
            Self::Denied => "denied",
            Self::Archived => "archived",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Protocol => "protocol",
            Self::Bucket => "bucket",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Requests to the store, by kind and outcome.
#[derive(Debug, Default)]
pub struct Requests {
    took: [[Histogram; Outcome::ALL.len()]; RequestKind::ALL.len()],
    begun: [Counter; RequestKind::ALL.len()],
}

impl Requests {
    /// A request begins; what is returned notes its end.
    pub fn begin(&self, kind: RequestKind) -> Request<'_> {
        self.begun[kind as usize].add(1);
        Request { requests: self, kind, outcome: Outcome::Abandoned, begun: Instant::now() }
    }

    /// How long those of a kind took that ended so.
    pub fn took(&self, kind: RequestKind, outcome: Outcome) -> &Histogram {
        &self.took[kind as usize][outcome as usize]
    }

    /// Those of a kind that have ended.
    pub fn ended(&self, kind: RequestKind) -> u64 {
        self.took[kind as usize].iter().map(Histogram::count).sum()
    }

    /// Those of a kind that are under way.
    pub fn in_flight(&self, kind: RequestKind) -> u64 {
        // The ends first: what begins meanwhile must not make it negative.
        let ended = self.ended(kind);
        self.begun[kind as usize].get().saturating_sub(ended)
    }
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Request<'a> {
    requests: &'a Requests,
    kind: RequestKind,
    outcome: Outcome,
    begun: Instant,
}

impl Request<'_> {
    /// How it has ended.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.requests.took(self.kind, self.outcome).add(self.begun.elapsed());
    }
}

/// The kernel's requests that are answered with more than a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A name's inode.
    Lookup,
    /// An inode's attributes.
    Getattr,
    /// Bytes.
    Read,
    /// Names.
    Readdir,
    /// Names and attributes.
    Readdirplus,
    /// An extended attribute.
    Getxattr,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Lookup, Self::Getattr, Self::Read, Self::Readdir, Self::Readdirplus, Self::Getxattr];

    /// As the protocol names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Getattr => "getattr",
            Self::Read => "read",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Getxattr => "getxattr",
        }
    }
}

/// Errors that programs see, by errno; what is none of these counts as the last.
pub const ERRNOS: [(i32, &str); 11] = [
    (libc::ENOENT, "ENOENT"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::EACCES, "EACCES"),
    (libc::ESTALE, "ESTALE"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::EINTR, "EINTR"),
    (libc::ENODATA, "ENODATA"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EIO, "EIO"),
];

/// The kernel's requests, by kind.
#[derive(Debug, Default)]
pub struct Operations {
    took: [Histogram; Operation::ALL.len()],
    begun: [Counter; Operation::ALL.len()],
    errors: [Counter; ERRNOS.len()],
}

impl Operations {
    /// How long those of a kind took.
    pub fn took(&self, operation: Operation) -> &Histogram {
        &self.took[operation as usize]
    }

    /// Those of a kind that wait for their answer.
    pub fn in_flight(&self, operation: Operation) -> u64 {
        let ended = self.took[operation as usize].count();
        self.begun[operation as usize].get().saturating_sub(ended)
    }

    /// One was answered with an error.
    pub fn failed(&self, errno: i32) {
        let known = ERRNOS.iter().position(|&(number, _)| number == errno);
        self.errors[known.unwrap_or(ERRNOS.len() - 1)].add(1);
    }

    /// How many were answered with each errno.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ERRNOS.iter().zip(&self.errors).map(|(&(_, name), count)| (name, count.get()))
    }
}

impl Stats {
    /// The kernel asks; the answer is given when what is returned is dropped. `stats` is whatever
    /// holds these.
    pub fn answering<S: AsRef<Self>>(stats: S, operation: Operation) -> Answering<S> {
        stats.as_ref().fuse.begun[operation as usize].add(1);
        Answering { stats, operation, begun: Instant::now() }
    }
}

impl AsRef<Self> for Stats {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// A request of the kernel that is being answered.
#[derive(Debug)]
pub struct Answering<S: AsRef<Stats>> {
    stats: S,
    operation: Operation,
    begun: Instant,
}

impl<S: AsRef<Stats>> Drop for Answering<S> {
    fn drop(&mut self) {
        self.stats.as_ref().fuse.took(self.operation).add(self.begun.elapsed());
    }
}

/// Places in a table of the busiest. A `top` shows a dozen.
const PLACES: usize = 256;

/// Who takes most bytes, roughly: a table in which everybody has one possible place, and the place
/// goes to whoever is not outweighed there by others. So what takes a good part of all bytes is
/// there, with all that it took since it came, and what is rare may be missing.
#[derive(Debug)]
pub struct Busiest(Box<[Busy]>);

#[derive(Debug, Default)]
struct Busy {
    /// Who; 0 is nobody.
    id: AtomicU64,
    /// What they took since they have the place.
    bytes: AtomicU64,
    /// The same, less what others took who might have had it.
    weight: AtomicU64,
}

impl Default for Busiest {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Busy::default()).collect())
    }
}

impl Busiest {
    /// Somebody took bytes. Two threads that want one place at the same time may spoil its numbers
    /// a little, which is the price of having no lock.
    pub fn add(&self, id: u64, bytes: u64) {
        // 2^64 ÷ the golden ratio: neighbours get places far apart.
        let hash = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let place = &self.0[usize::try_from(hash).unwrap_or_default() % PLACES];
        let weight = place.weight.load(Relaxed);
        if place.id.load(Relaxed) == id {
            place.bytes.fetch_add(bytes, Relaxed);
            place.weight.store(weight.saturating_add(bytes), Relaxed);
        } else if weight > bytes {
            place.weight.store(weight - bytes, Relaxed);
        } else {
            place.id.store(id, Relaxed);
            place.bytes.store(bytes, Relaxed);
            place.weight.store(bytes, Relaxed);
        }
    }

    /// Who took bytes and how many, the busiest first.
    pub fn sorted(&self) -> Vec<(u64, u64)> {
        let taken = |place: &Busy| (place.id.load(Relaxed), place.bytes.load(Relaxed));
        let mut all: Vec<_> = self.0.iter().map(taken).filter(|&(id, _)| id != 0).collect();
        all.sort_unstable_by_key(|&(id, bytes)| (std::cmp::Reverse(bytes), id));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_duration_is_counted_in_the_bucket_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for &bound in &BOUNDS {
            histogram.add(Duration::from_nanos(bound));
            histogram.add(Duration::from_nanos(bound + 1));
        }
        histogram.add(Duration::ZERO);
        histogram.add(Duration::MAX);
        let counts: Vec<u64> = histogram.counts().buckets().map(|(_, count)| count).collect();
        let mut want = vec![2; BOUNDS.len() + 1];
        want[BOUNDS.len()] = 2;
        assert_eq!(counts, want);
        assert_eq!(histogram.count(), 42);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_what_they_count() {
        let histogram = Histogram::default();
        assert!(histogram.counts().quantile(0.5).abs() < 1e-12);
        for _ in 0..90 {
            histogram.add(15 * MS);
        }
        for _ in 0..10 {
            histogram.add(400 * MS);
        }
        let counts = histogram.counts();
        assert!((counts.seconds - 5.35).abs() < 1e-9);
        histogram.add(MS);
        let added = histogram.counts().since(&counts);
        assert_eq!(added.count(), 1);
        assert!((added.seconds - 0.001).abs() < 1e-9);
        for (share, from, to) in [(0.5, 0.01, 0.02), (0.9, 0.01, 0.02), (0.99, 0.2, 0.5)] {
            let quantile = counts.quantile(share);
            assert!(from < quantile && quantile <= to, "{share}: {quantile}");
        }
        histogram.add(Duration::from_mins(2));
        assert!((histogram.counts().quantile(1.0) - 30.0).abs() < 1e-9, "no more is known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_in_flight_until_it_ends_and_abandoned_if_it_does_not() {
        let requests = Requests::default();
        let (one, two) = (requests.begin(RequestKind::Get), requests.begin(RequestKind::Get));
        assert_eq!(requests.in_flight(RequestKind::Get), 2);
        assert_eq!(requests.in_flight(RequestKind::List), 0);
        tokio::time::advance(20 * MS).await;
        one.end(Outcome::Ok);
        drop(two);
        assert_eq!(requests.in_flight(RequestKind::Get), 0);
        for (outcome, count) in [(Outcome::Ok, 1), (Outcome::Abandoned, 1), (Outcome::Denied, 0)] {
            assert_eq!(requests.took(RequestKind::Get, outcome).count(), count, "{outcome:?}");
        }
        let seconds = requests.took(RequestKind::Get, Outcome::Ok).counts().seconds;
        assert!((seconds - 0.02).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn who_takes_most_is_found_among_ten_thousand() {
        let busiest = Busiest::default();
        for round in 0..100 {
            busiest.add(7, 1 << 20);
            for other in 0..100 {
                busiest.add(1000 + round * 100 + other, 1000);
            }
        }
        let sorted = busiest.sorted();
        assert_eq!(sorted[0], (7, 100 << 20));
        assert!(sorted.len() <= PLACES);
    }

    #[test]
    fn who_was_busy_long_ago_loses_the_place_to_who_is_now() {
        let busiest = Busiest::default();
        busiest.add(1, 1000);
        let place = |id: u64| id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 255;
        let rival = (2..100_000).find(|&id| place(id) == place(1)).unwrap();
        for _ in 0..10 {
            busiest.add(rival, 200);
        }
        assert_eq!(busiest.sorted()[0].0, rival);
    }

    #[test]
    fn an_errno_that_nobody_expected_counts_as_an_error() {
        let operations = Operations::default();
        operations.failed(libc::ESTALE);
        operations.failed(libc::ENOSPC);
        let errors: Vec<_> = operations.errors().filter(|&(_, count)| count > 0).collect();
        assert_eq!(errors, [("ESTALE", 1), ("EIO", 1)]);
    }
}
