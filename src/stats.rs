//! Counters of what the mount did; nothing of ours above it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals since the mount; each only ever grows.
#[derive(Debug, Default)]
pub struct Stats {
    /// FUSE reads answered with bytes.
    pub reads: Counter,
    /// Bytes given to the kernel.
    pub bytes_served: Counter,
    /// Range GETs sent on behalf of the cache.
    pub gets: Counter,
    /// Object bytes that arrived.
    pub bytes_fetched: Counter,
    /// Chunks given up for others.
    pub evictions: Counter,
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
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
