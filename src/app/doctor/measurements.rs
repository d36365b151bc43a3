//! The numbers that were measured, and what to expect of a mount by them.

use serde::Serialize;

use super::shared::SharedMeasured;
use crate::base::text::bytes;

/// More connections than were tried may be worth it if the last step multiplied the bandwidth by
/// this.
const STILL_GROWS: f64 = 1.25;

/// Absent where nothing was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Measurements {
    /// From a request to its first byte: the median, and 90 %.
    pub(super) first_byte_seconds: Option<f64>,
    pub(super) first_byte_p90_seconds: Option<f64>,
    /// Of large objects, by number of connections.
    pub(super) bandwidth: Vec<Bandwidth>,
    /// Small objects, read whole over many connections.
    pub(super) small_files_per_second: Option<f64>,
    /// One page of a listing, requested by itself.
    pub(super) page_seconds: Option<f64>,
    /// Pages of listings, and the keys on them, with many requests at once.
    pub(super) pages_per_second: Option<f64>,
    pub(super) keys_per_second: Option<f64>,
    /// The number of connections at which the store began to throttle.
    pub(super) throttled_at: Option<usize>,
    pub(super) shared_cache: Option<SharedMeasured>,
}

/// All connections together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Bandwidth {
    pub(super) connections: usize,
    pub(super) bytes_per_second: f64,
}

impl Measurements {
    pub(super) fn best(&self) -> Option<Bandwidth> {
        let steps = self.bandwidth.iter().copied();
        steps.max_by(|one, other| one.bytes_per_second.total_cmp(&other.bytes_per_second))
    }

    /// In words; `None` if nothing was measured.
    pub(super) fn expected(&self) -> Option<String> {
        let large =
            self.best().map(|best| format!("{} from large files", rate(best.bytes_per_second)));
        let small =
            self.small_files_per_second.map(|files| format!("{files:.0} small files a second"));
        let names = self.keys_per_second.map(|keys| format!("{keys:.0} names a second"));
        let all: Vec<_> = [large, small, names].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Another number of connections than `most`, if that would be better.
    pub(super) fn connections_wanted(&self, most: usize) -> Option<usize> {
        if let Some(throttled) = self.throttled_at {
            return Some((throttled / 2).max(1));
        }
        let [.., before, last] = &self.bandwidth[..] else { return None };
        let grew = last.bytes_per_second >= before.bytes_per_second * STILL_GROWS;
        (grew && last.connections >= most).then_some(most * 2)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate, never negative
pub(super) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(bandwidth: &[(usize, f64)]) -> Measurements {
        let step = |&(connections, bytes_per_second): &(usize, f64)| Bandwidth {
            connections,
            bytes_per_second,
        };
        Measurements { bandwidth: bandwidth.iter().map(step).collect(), ..Measurements::default() }
    }

    #[test]
    fn more_connections_are_wanted_where_the_last_step_still_brought_much() {
        for (bandwidth, wanted) in [
            (&[][..], None),
            (&[(1, 90e6)], None),
            // 5/4 of the step before, with all that were allowed.
            (&[(1, 90e6), (2, 180e6), (4, 225e6)], Some(8)),
            (&[(1, 90e6), (2, 180e6), (4, 220e6)], None),
            // It ended before the number that was allowed.
            (&[(1, 90e6), (2, 180e6)], None),
        ] {
            assert_eq!(with(bandwidth).connections_wanted(4), wanted, "{bandwidth:?}");
        }
        let throttled = Measurements { throttled_at: Some(1), ..with(&[(1, 90e6), (4, 900e6)]) };
        assert_eq!(throttled.connections_wanted(4), Some(1), "never none");
    }

    #[test]
    fn what_was_not_measured_is_not_expected() {
        assert_eq!(Measurements::default().expected(), None);
        let names = Measurements { keys_per_second: Some(1234.4), ..with(&[(1, 9e6), (2, 1.5e6)]) };
        let want = "9.0 MB/s from large files, 1234 names a second";
        assert_eq!(names.expected().as_deref(), Some(want));
    }
}
