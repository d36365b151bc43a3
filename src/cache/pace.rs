//! How many GETs of readahead are worth having in flight, as measured. Pure; time comes in as an
//! argument.
//!
//! Measured are the least time to a first byte, the highest rate of one connection, and the highest
//! rate of all together: extremes, as BBR takes them, because a busy moment says nothing about the
//! capacity of the network.

use std::time::Duration;

use tokio::time::Instant;

/// A quarter more connections than the highest rate seen needs: so their number grows as long as
/// more of them are faster together.
const PROBE: f64 = 1.25;

/// GETs of readahead that are always admitted, also before anything is measured. 32 connections of
/// 90 MB/s behind 15 ms move 1.7 GB/s in parts of 2 MiB.
pub(super) const LEAST_CONNECTIONS: usize = 32;

/// Bytes that are always admitted, however small their GETs: files of 100 KB need every connection,
/// and touches of a mapped file (512 KiB or less a GET) more than a stream.
const LEAST_BYTES: u64 = 24 << 20;

/// The shortest sample of the goodput.
const SAMPLE: Duration = Duration::from_millis(100);

/// A longer sample contains time without requests.
const LONGEST_SAMPLE: Duration = Duration::from_millis(500);

/// Shorter bodies say more about the machine than about the connection.
const TELLING_BODY_BYTES: u64 = 1 << 20;

/// A measurement counts for this long, and at most for twice as long.
const MEMORY: Duration = Duration::from_secs(10);

pub(super) struct Pace {
    first_byte: Best,
    connection: Best,
    together: Best,
    /// When the current goodput sample began, and the bytes received until then.
    sample: (Instant, u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// From the request to the first byte.
    pub(super) first_byte: Duration,
    /// From the first byte to the last.
    pub(super) body: Duration,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkPace {
    /// Length of a GET that reads a stream ahead.
    pub(crate) part_bytes: u64,
    /// Bytes that the network needs in flight.
    pub(crate) in_flight_bytes: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        let new = || Best { now: 0.0, before: 0.0, since: now };
        Self { first_byte: new(), connection: new(), together: new(), sample: (now, 0) }
    }

    /// A GET has ended; all together have received `received` bytes. GETs that end at the same time
    /// may report in another order than they counted.
    pub(super) fn add(&mut self, timing: Timing, received: u64, now: Instant) {
        // The least time is the greatest inverse.
        self.first_byte.add(1.0 / timing.first_byte.as_secs_f64().max(1e-6), now);
        if timing.bytes >= TELLING_BODY_BYTES {
            self.connection.add(per_second(timing.bytes, timing.body), now);
        }
        let (begun, before) = self.sample;
        let taken = now - begun;
        if taken >= SAMPLE {
            if taken <= LONGEST_SAMPLE {
                self.together.add(per_second(received.saturating_sub(before), taken), now);
            }
            self.sample = (now, received);
        }
    }

    /// The number of GETs of `bytes` bytes that may be in flight.
    pub(super) fn connections(&self, bytes: u64) -> usize {
        let small = usize::try_from(LEAST_BYTES / bytes.max(1)).unwrap_or(usize::MAX);
        self.needed(bytes).max(LEAST_CONNECTIONS).max(small)
    }

    /// The number of GETs that [`PROBE`] asks for; 0 if unknown.
    // The conversion saturates, and the callers bound its result.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn needed(&self, bytes: u64) -> usize {
        let Some((wait, rate)) = self.of_a_connection() else { return 0 };
        let one = as_f64(bytes) / (wait + as_f64(bytes) / rate);
        (PROBE * self.together.most() / one).ceil() as usize
    }

    /// Seconds to the first byte, and bytes a second, when both are known.
    fn of_a_connection(&self) -> Option<(f64, f64)> {
        let (first_byte, rate) = (self.first_byte.most(), self.connection.most());
        (first_byte > 0.0 && rate > 0.0).then(|| (1.0 / first_byte, rate))
    }
}

/// The highest value of this period and the one before.
struct Best {
    now: f64,
    before: f64,
    since: Instant,
}

impl Best {
    fn add(&mut self, seen: f64, now: Instant) {
        if now - self.since > MEMORY {
            (self.before, self.now, self.since) = (self.now, 0.0, now);
        }
        self.now = self.now.max(seen);
    }

    fn most(&self) -> f64 {
        self.now.max(self.before)
    }
}

fn per_second(bytes: u64, time: Duration) -> f64 {
    as_f64(bytes) / time.as_secs_f64().max(1e-6)
}

/// Exact up to 2^53, far above any rate here.
#[allow(clippy::cast_precision_loss)]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests;
