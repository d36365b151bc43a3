//! How long things took: histograms of fixed buckets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Counter;

/// Upper bounds of a histogram's buckets in nanoseconds: 1, 2 and 5 of each power of ten, from a
/// cached read to the deadline of a request. Above the last is one more bucket.
#[rustfmt::skip]
const BOUNDS: [u64; 20] = [
    10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000,
    100_000_000, 200_000_000, 500_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000,
    10_000_000_000, 30_000_000_000,
];

#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Histogram {
    pub fn add(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&bound| bound < nanoseconds);
        self.buckets[bucket].add(1);
        self.nanoseconds.add(nanoseconds);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    pub fn counts(&self) -> Durations {
        let buckets = self.buckets.iter().map(Counter::get).collect();
        Durations { buckets, seconds: Duration::from_nanos(self.nanoseconds.get()).as_secs_f64() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// The count of each bucket of [`BOUNDS`], and above the last.
    buckets: Vec<u64>,
    pub seconds: f64,
}

impl Durations {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Those that were added after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        let added = |(now, before): (&u64, u64)| now.saturating_sub(before);
        let buckets = self.buckets.iter().zip(before).map(added).collect();
        Self { buckets, seconds: (self.seconds - earlier.seconds).max(0.0) }
    }

    /// The upper bound of each bucket in seconds, and the count of that bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = BOUNDS.iter().map(|&bound| Duration::from_nanos(bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.buckets.iter().copied())
    }

    /// The quantile of a share, 0 to 1, in seconds; 0 if there were none. As exact as the buckets:
    /// durations are taken to lie evenly in theirs.
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
}
