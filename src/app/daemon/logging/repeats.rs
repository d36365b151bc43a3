//! Lines that repeat: the first few are logged, and then one every few seconds with a count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::Line;

/// Time between two sums of repeated lines.
pub(super) const WINDOW: Duration = Duration::from_secs(5);
/// Lines of a call site that are logged, before they are only counted.
const SHOWN: u32 = 10;
const SUMS: &str = "fasts3_mount::repeated";

/// Lets an event of this program pass, or counts it, by its call site.
#[derive(Clone, Default)]
pub(super) struct RateLimited(Arc<Mutex<HashMap<Identifier, CallSite>>>);

struct CallSite {
    ends: Instant,
    /// Lines that may still be logged before `ends`.
    left: u32,
    held: u32,
    /// The newest of the lines that were held back.
    example: String,
    level: Level,
}

impl RateLimited {
    /// Logs the counts of lines that were held back: those that are due, or `all`.
    pub(super) fn tell(&self, all: bool) {
        for (level, sum) in self.due(Instant::now(), all) {
            match level {
                Level::ERROR => tracing::error!(target: SUMS, "{sum}"),
                Level::WARN => tracing::warn!(target: SUMS, "{sum}"),
                _ => tracing::info!(target: SUMS, "{sum}"),
            }
        }
    }

    fn due(&self, now: Instant, all: bool) -> Vec<(Level, String)> {
        let mut sums = Vec::new();
        self.0.lock().retain(|_, kind| {
            if now < kind.ends && !all {
                return true;
            }
            if kind.held == 0 {
                return false;
            }
            sums.push((kind.level, format!("{} more like: {}", kind.held, kind.example)));
            // Only sums, until a window has passed without such a line.
            (kind.ends, kind.left, kind.held) = (now + WINDOW, 0, 0);
            true
        });
        sums
    }

    fn lets_pass(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        let level = *metadata.level();
        let target = metadata.target();
        // Debug lines are never held back.
        if level > Level::INFO || target == SUMS || !target.starts_with("fasts3_mount") {
            return true;
        }
        let mut kinds = self.0.lock();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| CallSite {
            ends: now + WINDOW,
            left: SHOWN,
            held: 0,
            example: String::new(),
            level,
        });
        if kind.left > 0 {
            kind.left -= 1;
            return true;
        }
        kind.held += 1;
        kind.example = Line::of(event).text();
        false
    }
}

impl<S: Subscriber> Layer<S> for RateLimited {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.lets_pass(event, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(Line::of(event).text());
        }
    }

    #[test]
    fn a_thousand_lines_of_a_kind_are_ten_and_a_sum() {
        let (repeats, seen) = (RateLimited::default(), Seen::default());
        let subscriber = tracing_subscriber::registry().with(repeats.clone()).with(seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            for key in 0..1000 {
                tracing::warn!(key, "gave up");
            }
            tracing::warn!("another kind");
            assert_eq!(seen.0.lock().len(), 11);

            let start = Instant::now();
            assert_eq!(repeats.due(start, false), [], "not yet");
            let later = start + WINDOW;
            let sums = repeats.due(later, false);
            assert_eq!(sums, [(Level::WARN, "990 more like: gave up key=999".to_owned())]);

            // The next lines are only counted, and the last count is logged at the end.
            tracing::warn!(key = 1, "another place");
            repeats.tell(true);
            assert_eq!(seen.0.lock().len(), 12);
        });
    }

    #[test]
    fn after_a_quiet_window_lines_are_shown_again() {
        let (repeats, seen) = (RateLimited::default(), Seen::default());
        let subscriber = tracing_subscriber::registry().with(repeats.clone()).with(seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            let say = || tracing::warn!("again");
            (0..15).for_each(|_| say());
            assert_eq!(seen.0.lock().len(), 10);
            let later = Instant::now() + WINDOW;
            assert_eq!(repeats.due(later, false).len(), 1);
            say();
            assert_eq!(seen.0.lock().len(), 10);
            assert_eq!(repeats.due(later + WINDOW, false).len(), 1);
            assert_eq!(repeats.due(later + 2 * WINDOW, false).len(), 0);
            say();
            assert_eq!(seen.0.lock().len(), 11);
        });
    }
}
