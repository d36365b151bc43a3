//! Numbers that only grow, each declared once: one list makes the atomics that the layers add to,
//! the totals of status, the series of metrics, and the fields of the last line of the log.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A counter as metrics export it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Series of one metric follow each other.
    pub metric: &'static str,
    /// The label that tells the series of one metric apart.
    pub label: Option<(&'static str, &'static str)>,
    /// A sentence; that of a metric's first series is the metric's.
    pub help: &'static str,
    pub value: u64,
}

/// A line is the name; in brackets the metric, if it is exported as it is, and a label; a sentence.
macro_rules! counters {
    ($($name:ident [$($metric:literal $($label:ident = $value:literal)?)?] $help:literal;)*) => {
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $name: Counter,)*
        }

        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl Counters {
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }

        impl Snapshot {
            /// The difference to an earlier moment.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }

            /// Object bytes that arrived, without those of the caches below memory.
            pub fn from_store(&self) -> u64 {
                self.bytes_fetched.saturating_sub(self.disk_hit_bytes + self.shared_hit_bytes)
            }

            /// The exported counters, in the order of their declaration.
            pub fn series(&self) -> Vec<Series> {
                vec![$($(Series {
                    metric: $metric,
                    label: [$((stringify!($label), $value))?].first().copied(),
                    help: $help,
                    value: self.$name,
                },)?)*]
            }

            /// The last line of a mount's log.
            pub fn log_unmounted(&self, mountpoint: &Path) {
                tracing::info!($($name = self.$name,)* "unmounted {}", mountpoint.display());
            }
        }
    };
}

counters! {
    reads ["fasts3_reads_total"] "Reads that were answered with bytes.";
    reads_waited ["fasts3_reads_waited_total"]
        "Reads that had to wait for bytes; the others were cache hits.";
    bytes_served ["fasts3_served_bytes_total"] "Object bytes given to the kernel.";
    gets [] "Range GETs sent on behalf of the cache, retries not counted.";
    bytes_fetched [] "Object bytes that arrived.";
    bytes_ahead [] "Object bytes that arrived and were readahead when they were asked for.";
    evictions ["fasts3_evicted_chunks_total"] "Chunks that were given up for others.";
    bytes_unread ["fasts3_evicted_unread_bytes_total"]
        "Bytes that were given up in blocks which the page cache had not taken to their ends.";
    siblings_ahead ["fasts3_sibling_files_total" state = "ahead"]
        "Small files that were read ahead because their siblings were read.";
    siblings_used ["fasts3_sibling_files_total" state = "used"] "Those of them that were read.";
    siblings_wasted ["fasts3_sibling_files_total" state = "wasted"]
        "Those of them that were given up before they were read, or passed by.";
    siblings_ahead_bytes ["fasts3_sibling_bytes_total" state = "ahead"] "The bytes of these files.";
    siblings_used_bytes ["fasts3_sibling_bytes_total" state = "used"]
        "The bytes of those that were read.";
    siblings_wasted_bytes ["fasts3_sibling_bytes_total" state = "wasted"]
        "The bytes of those that were not.";
    hints_queued ["fasts3_hints_total" state = "queued"]
        "Files, or ranges of files, that programs said they will read.";
    hints_used ["fasts3_hints_total" state = "used"]
        "Pieces of them, of at most a chunk, that were fetched ahead and read.";
    hints_wasted ["fasts3_hints_total" state = "wasted"]
        "Pieces that were fetched ahead and left the cache unread.";
    hints_refused ["fasts3_hints_total" state = "refused"] "Hints that found the queue full.";
    hints_missing ["fasts3_hints_total" state = "missing"]
        "Hinted paths that lead to nothing that can be read.";
    disk_hit_bytes ["fasts3_disk_cache_bytes_total" event = "hit"]
        "Object bytes that were read from the disk cache, missed, and what became of the rest.";
    disk_missed_bytes ["fasts3_disk_cache_bytes_total" event = "missed"]
        "Bytes that were fetched because they were not on the disk.";
    disk_written_bytes ["fasts3_disk_cache_bytes_total" event = "written"]
        "Bytes that were written to the disk.";
    disk_dropped_bytes ["fasts3_disk_cache_bytes_total" event = "dropped"]
        "Bytes that were not written, because the disk lagged or failed.";
    disk_passed_over_bytes ["fasts3_disk_cache_bytes_total" event = "passed_over"]
        "Bytes that were not worth a write, because the disk is full of what is read again.";
    disk_evicted_bytes ["fasts3_disk_cache_bytes_total" event = "evicted"]
        "Bytes of the segments that were given up.";
    disk_wrong ["fasts3_disk_cache_wrong_total"]
        "Times that bytes on the disk were not right, and were thrown away.";
    disk_pauses ["fasts3_disk_cache_pauses_total"]
        "Times that the disk failed, and was left alone for a while.";
    opened_through ["fasts3_opens_total" how = "passthrough"]
        "Opens of which the kernel told, by who reads the file since: the kernel by itself, or this.";
    opened_by_daemon ["fasts3_opens_total" how = "daemon"] "Those of the other files.";
    shared_hit_bytes ["fasts3_shared_cache_bytes_total" event = "hit"]
        "Object bytes that were read from the shared cache, missed, and what became of the rest.";
    shared_missed_bytes ["fasts3_shared_cache_bytes_total" event = "missed"]
        "Bytes that were fetched from the source.";
    shared_filled_bytes ["fasts3_shared_cache_bytes_total" event = "filled"]
        "Bytes that were stored in the shared cache.";
    shared_dropped_bytes ["fasts3_shared_cache_bytes_total" event = "dropped"]
        "Bytes that were not stored, because it lagged or failed.";
    shared_wrong ["fasts3_shared_cache_wrong_total"]
        "Times that an entry of the shared cache was not right, and was not used.";
    shared_late ["fasts3_shared_cache_late_total"]
        "Times that the shared cache, or the mount that was to fill it, took longer than the source.";
    shared_waits ["fasts3_shared_cache_waits_total"]
        "Times that this mount waited for another one to store what both wanted.";
    shared_pauses ["fasts3_shared_cache_pauses_total"]
        "Times that the shared cache failed or refused, and was left alone for a while.";
    listed ["fasts3_listed_entries_total"] "Keys and common prefixes on pages of listings.";
    retries ["fasts3_store_retries_total"] "Requests that were sent again after a failure.";
    hedges ["fasts3_store_hedges_total"]
        "Requests that were sent a second time because the first was slow.";
    throttled ["fasts3_store_throttled_total"]
        "Times that requests were held back because the store asked to slow down.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_in_the_snapshot_and_among_the_series_that_it_declares() {
        let counters = Counters::default();
        counters.gets.add(3);
        let before = counters.snapshot();
        counters.gets.add(4);
        counters.siblings_used.add(5);
        let now = counters.snapshot();
        assert_eq!((now.gets, now.since(&before).gets), (7, 4));
        assert_eq!(before.since(&now), Snapshot::default(), "never less than nothing");
        let added: Vec<_> = now.series().into_iter().filter(|series| series.value > 0).collect();
        let used = ("fasts3_sibling_files_total", Some(("state", "used")), 5);
        assert_eq!(added.len(), 1, "GETs are exported as durations: {added:?}");
        assert_eq!((added[0].metric, added[0].label, added[0].value), used);
    }
}
