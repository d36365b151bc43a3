//! What must hold for any input: tried on the same few hundred with every test, and on others for
//! as long as `FASTS3_FUZZ_SECONDS` says (`make fuzz`). For tests only.

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::string::{RegexGeneratorStrategy, string_regex};
use proptest::test_runner::{Config, RngSeed, TestCaseResult, TestRunner};

/// A text that a regular expression describes. A `&str` would do, but is parsed anew for each
/// input.
pub(crate) fn text(expression: &str) -> RegexGeneratorStrategy<String> {
    string_regex(expression).expect("a regular expression")
}

/// Tries it on values of the strategy; a failure is told with the smallest input that was found.
pub(crate) fn each<S: Strategy>(strategy: S, holds: impl Fn(S::Value) -> TestCaseResult) {
    let told = std::env::var("FASTS3_FUZZ_SECONDS").ok();
    let seconds = told.map(|text| text.parse().expect("a number of seconds"));
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if seconds.is_none() {
        config.rng_seed = RngSeed::Fixed(7);
    }
    let cases = u64::from(config.cases);
    let (start, mut tried) = (Instant::now(), 0);
    loop {
        // A new one each time: a runner that has run its cases runs no more.
        if let Err(failure) = TestRunner::new(config.clone()).run(&strategy, &holds) {
            panic!("after {tried} inputs: {failure}");
        }
        tried += cases;
        if start.elapsed() >= Duration::from_secs(seconds.unwrap_or(0)) {
            println!("{tried} inputs");
            return;
        }
    }
}
