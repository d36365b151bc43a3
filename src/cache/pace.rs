//! What the network was seen to give, and what follows from it: how many GETs of readahead are
//! worth having in flight, and how large they should be. Pure; time comes in as an argument.
//!
//! Three measurements: the time to a first byte (the least seen lately), what one connection moves
//! (the most), and what all of them move together (the most). The least and the most, as BBR
//! measures a path: a busy moment says nothing about what the network can do.

use std::time::Duration;

use tokio::time::Instant;

/// A connection is worth having as long as they are fewer than what was seen to be moved needs, and
/// a quarter more: so the number grows as long as more of them move more, and stops there.
const PROBE: f64 = 1.25;

/// As many GETs of readahead as this are always let go: before anything is known, and after a slow
/// program has asked for so little that nothing can be known from it. 32 connections of 90 MB/s behind
/// 15 ms move 2.2 GB/s in the parts of 4 MiB that four streams ask for.
const LEAST_CONNECTIONS: usize = 32;

/// As many bytes as this are always let go, however small their GETs: files of 100 KB want every
/// connection there is.
const LEAST_BYTES: u64 = 16 << 20;

/// A part takes so many times longer than its first byte, or so much of a connection's time is lost
/// (a fifth).
const PART_PER_WAIT: f64 = 4.0;

/// Goodput is measured over this long at least.
const SAMPLE: Duration = Duration::from_millis(100);

/// A longer one holds a time in which nobody asked for anything.
const LONGEST_SAMPLE: Duration = Duration::from_millis(500);

/// Shorter bodies say more about the machine than about the connection.
const TELLING_BODY_BYTES: u64 = 1 << 20;

/// What was measured counts for this long, and half as long again at most.
const MEMORY: Duration = Duration::from_secs(10);

/// What was measured lately.
#[derive(Debug)]
pub(super) struct Pace {
    first_byte: Best,
    connection: Best,
    together: Best,
    /// When the goodput sample under way began, and how many bytes had come by then.
    sample: (Instant, u64),
}

/// One GET that has ended well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// From the request to the first byte.
    pub(super) first_byte: Duration,
    /// From the first byte to the last.
    pub(super) body: Duration,
    /// How many bytes.
    pub(super) bytes: u64,
}

/// The sizes that suit the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkPace {
    /// Length of a GET that reads a stream ahead: the largest part, or half of it.
    pub(crate) part_bytes: u64,
    /// Bytes that the network needs in flight; 0 if unknown.
    pub(crate) in_flight_bytes: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        let new = || Best { now: 0.0, before: 0.0, since: now };
        Self { first_byte: new(), connection: new(), together: new(), sample: (now, 0) }
    }

    /// A GET has ended; `received` bytes have come in all, by whatever GET. GETs that end together
    /// may say so in another order than they counted.
    pub(super) fn add(&mut self, timing: Timing, received: u64, now: Instant) {
        // The least time is the most of its inverse.
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

    /// How many GETs of so many bytes each may be in flight.
    pub(super) fn connections(&self, bytes: u64) -> usize {
        let small = usize::try_from(LEAST_BYTES / bytes.max(1)).unwrap_or(usize::MAX);
        self.needed(bytes).max(LEAST_CONNECTIONS).max(small)
    }

    /// How many of them are needed to move as much as was moved, and some more; 0 if unknown.
    // The conversion saturates, and what it gives is held to a small number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(super) fn needed(&self, bytes: u64) -> usize {
        let Some((wait, rate)) = self.of_a_connection() else { return 0 };
        let one = as_f64(bytes) / (wait + as_f64(bytes) / rate);
        (PROBE * self.together.most() / one).ceil() as usize
    }

    /// The size of a GET, a power of two from the half of `most` to `most`, that loses little of a
    /// connection's time to waiting.
    pub(super) fn part_bytes(&self, most: u64) -> u64 {
        let Some((wait, rate)) = self.of_a_connection() else { return most / 2 };
        if PART_PER_WAIT * wait * rate > as_f64(most / 2) { most } else { most / 2 }
    }

    /// Seconds to the first byte, and bytes a second, when both are known.
    fn of_a_connection(&self) -> Option<(f64, f64)> {
        let (first_byte, rate) = (self.first_byte.most(), self.connection.most());
        (first_byte > 0.0 && rate > 0.0).then(|| (1.0 / first_byte, rate))
    }
}

/// The most of what was seen lately: in this period or the one before.
#[derive(Debug)]
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

/// Exact up to 2^53, which no rate here comes near.
#[allow(clippy::cast_precision_loss)]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests;
