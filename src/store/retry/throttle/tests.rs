//! Clients of a store that admits a limited number of requests a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::{sleep, sleep_until};

use super::*;

/// A store that admits so many requests a second, in bursts of no more.
struct Limited {
    per_second: f64,
    tokens: Mutex<(f64, Instant)>,
    admitted: AtomicU32,
    refused: AtomicU32,
}

impl Limited {
    fn new(per_second: f64) -> Arc<Self> {
        let tokens = Mutex::new((per_second, Instant::now()));
        Arc::new(Self { per_second, tokens, admitted: 0.into(), refused: 0.into() })
    }

    fn admits(&self) -> bool {
        let mut tokens = self.tokens.lock();
        let earned = tokens.1.elapsed().as_secs_f64() * self.per_second;
        *tokens = ((tokens.0 + earned).min(self.per_second), Instant::now());
        let admits = tokens.0 >= 1.0;
        tokens.0 -= f64::from(u8::from(admits));
        let counter = if admits { &self.admitted } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        admits
    }

    fn taken(&self) -> (u32, u32) {
        (self.admitted.swap(0, Ordering::Relaxed), self.refused.swap(0, Ordering::Relaxed))
    }
}

/// So many clients, each asking again as soon as it has an answer, which takes 10 ms.
fn clients(count: usize, store: &Arc<Limited>, throttle: &Arc<Throttle>) {
    for _ in 0..count {
        let (store, throttle) = (store.clone(), throttle.clone());
        tokio::spawn(async move {
            loop {
                if let Some(turn) = throttle.turn() {
                    sleep_until(turn).await;
                }
                sleep(Duration::from_millis(10)).await;
                throttle.answered(!store.admits());
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_settles_at_what_the_store_allows() {
    let (store, throttle) = (Limited::new(200.0), Arc::new(Throttle::new()));
    // 3,200 requests a second, if nothing held them back.
    clients(32, &store, &throttle);
    sleep(Duration::from_secs(10)).await;
    store.taken();
    sleep(Duration::from_mins(1)).await;
    let (admitted, refused) = store.taken();
    assert!(admitted > 60 * 170, "{admitted} of 12,000");
    assert!(refused < admitted / 8, "{refused} refused, {admitted} admitted");
}

#[tokio::test(start_paused = true)]
async fn one_key_that_is_throttled_slows_nobody_down() {
    let throttle = Throttle::new();
    for request in 0..100_000_u32 {
        sleep(Duration::from_millis(1)).await;
        throttle.answered(request % 200 == 0);
    }
    let rate = throttle.rate();
    assert!(rate.is_none_or(|rate| rate > 900.0), "{rate:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_recovered_is_asked_without_bound_again() {
    let throttle = Throttle::new();
    for _ in 0..1000 {
        throttle.answered(true);
        sleep(Duration::from_millis(10)).await;
    }
    assert!(throttle.rate().is_some_and(|rate| rate < 20.0), "{:?}", throttle.rate());
    let start = Instant::now();
    while throttle.rate().is_some() {
        if let Some(turn) = throttle.turn() {
            sleep_until(turn).await;
        }
        throttle.answered(false);
    }
    let took = start.elapsed();
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(40), "{took:?}");
    assert_eq!(throttle.rate(), None);
}

/// What is logged, without times.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_is_a_line_when_it_begins_and_a_line_when_it_is_over() {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_target(false);
    // With a single dispatcher, tracing asks the thread that first reaches a log line whether it is
    // wanted: another test's thread, without a subscriber. With two it asks both of them.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _logging =
        tracing::subscriber::set_default(lines.with_writer(move || writer.clone()).finish());
    let throttle = Throttle::new();
    let refused = |count: u32, refused: bool| {
        let throttle = &throttle;
        async move {
            for _ in 0..count {
                let _ = throttle.turn();
                throttle.answered(refused);
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    // An hour and a half of a store that works, throttles, works.
    refused(36_000, false).await;
    refused(36_000, true).await;
    refused(36_000, false).await;
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("WARN the store asks to slow down: requests are held back rate=1"),
        "{text}"
    );
    assert!(lines[1].starts_with("INFO the store keeps up again"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn turns_are_handed_out_one_after_the_other() {
    let throttle = Throttle::new();
    throttle.answered(true);
    sleep(WINDOW).await;
    let turns: Vec<_> = (0..17).filter_map(|_| throttle.turn()).collect();
    let apart = *turns.last().unwrap() - Instant::now();
    assert_eq!(turns.len(), 16);
    assert!(apart >= Duration::from_millis(950) && apart <= Duration::from_secs(1), "{apart:?}");
}
