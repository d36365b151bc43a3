//! Settings that can be changed while the server runs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// The server's behaviour. Everything is off at the start.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    first_byte_nanos: AtomicU64,
    list_nanos: AtomicU64,
    /// Bytes per second; 0 is unlimited.
    bandwidth: AtomicU64,
    rate: Mutex<Option<Rate>>,
}

/// A bucket of tokens that holds as many as a second brings.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    tokens: f64,
    counted_at: Instant,
}

impl Settings {
    pub(crate) fn first_byte_latency(&self) -> Duration {
        Duration::from_nanos(self.first_byte_nanos.load(Relaxed))
    }

    pub(crate) fn set_first_byte_latency(&self, latency: Duration) {
        self.first_byte_nanos.store(nanos(latency), Relaxed);
    }

    pub(crate) fn list_latency(&self) -> Duration {
        Duration::from_nanos(self.list_nanos.load(Relaxed))
    }

    pub(crate) fn set_list_latency(&self, latency: Duration) {
        self.list_nanos.store(nanos(latency), Relaxed);
    }

    /// Bytes per second and connection; `None` is unlimited.
    pub(crate) fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Relaxed)).filter(|bandwidth| *bandwidth > 0)
    }

    pub(crate) fn set_bandwidth(&self, bandwidth: Option<u64>) {
        self.bandwidth.store(bandwidth.unwrap_or(0), Relaxed);
    }

    pub(crate) fn set_rate_limit(&self, per_second: Option<u32>) {
        let rate = per_second.map(|per_second| Rate {
            per_second: per_second.into(),
            tokens: per_second.into(),
            counted_at: Instant::now(),
        });
        *self.rate.lock().expect("no panic while it is held") = rate;
    }

    /// True, and counted, if one more request is within the rate limit.
    pub(crate) fn admits_request(&self) -> bool {
        let mut rate = self.rate.lock().expect("no panic while it is held");
        let Some(rate) = &mut *rate else { return true };
        let now = Instant::now();
        let earned = (now - rate.counted_at).as_secs_f64() * rate.per_second;
        rate.tokens = (rate.tokens + earned).min(rate.per_second);
        rate.counted_at = now;
        let admitted = rate.tokens >= 1.0;
        if admitted {
            rate.tokens -= 1.0;
        }
        admitted
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
