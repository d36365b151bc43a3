//! Simulated networks: how many connections and which sizes are chosen for them.

use super::*;

const MIB: u64 = 1 << 20;

/// Lets `connections` run side by side for a while, each GET of `part` bytes with this wait, at
/// most at `rate` and all of them together at most at `total` bytes a second, in as many
/// connections as the pace asks for; returns how many that are in the end.
fn settle(part: u64, wait: Duration, rate: f64, total: f64) -> usize {
    let mut now = Instant::now();
    let mut pace = Pace::new(now);
    let mut received = 0;
    // The first GET of a mount is alone.
    let alone = Duration::from_secs_f64(as_f64(part) / rate);
    pace.add(Timing { first_byte: wait, body: alone, bytes: part }, 0, now);
    for _ in 0..100 {
        let connections = pace.connections(part).min(1000);
        #[allow(clippy::cast_precision_loss)]
        let rate = rate.min(total / connections as f64);
        let body = Duration::from_secs_f64(as_f64(part) / rate);
        now += (wait + body).max(SAMPLE);
        let rounds = ((wait + body).as_secs_f64() / SAMPLE.as_secs_f64()).min(1.0).recip();
        for _ in 0..connections {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let times = rounds as u64;
            received += part * times;
            pace.add(Timing { first_byte: wait, body, bytes: part }, received, now);
        }
    }
    pace.connections(part)
}

#[test]
fn connections_grow_to_what_bandwidth_times_latency_needs() {
    let wait = Duration::from_millis(15);
    // 8 MiB at 90 MB/s behind 15 ms: 77.6 MB/s a connection, 39 for 3 GB/s, 26 for 2 GB/s.
    let found = settle(8 * MIB, wait, 90e6, 3e9);
    assert!((38..=62).contains(&found), "{found}");
    let found = settle(8 * MIB, wait, 90e6, 2e9);
    assert!((32..=40).contains(&found), "{found}");
}

#[test]
fn where_one_connection_is_fast_few_are_used() {
    assert_eq!(settle(8 * MIB, Duration::from_micros(500), 2e9, 2e9), LEAST_CONNECTIONS);
}

#[test]
fn small_files_may_use_every_connection_from_the_start() {
    let pace = Pace::new(Instant::now());
    assert!(pace.connections(110_000) > 128);
    assert_eq!(pace.connections(MIB / 2), 48);
    assert_eq!(pace.connections(8 * MIB), LEAST_CONNECTIONS);
}

#[test]
fn bytes_that_were_counted_before_the_sample_began_are_no_rate() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    let timing = Timing { first_byte: Duration::from_millis(15), body: SAMPLE, bytes: 8 * MIB };
    pace.add(timing, 80 * MIB, start + SAMPLE);
    let before = pace.together.most();
    // Counted first, and told last.
    pace.add(timing, 72 * MIB, start + SAMPLE * 2);
    assert_eq!(pace.together.most().to_bits(), before.to_bits());
}

#[test]
fn an_idle_time_counts_as_no_sample() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    let timing = Timing { first_byte: Duration::from_millis(15), body: SAMPLE, bytes: 8 * MIB };
    pace.add(timing, 8 * MIB, start + Duration::from_secs(5));
    assert_eq!(pace.together.most().to_bits(), 0_f64.to_bits());
    pace.add(timing, 108 * MIB, start + Duration::from_secs(5) + SAMPLE);
    assert!(pace.together.most() > 1e9);
}
