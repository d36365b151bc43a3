//! The numbers, and what a mount is to be expected to give by them.

use serde::Serialize;

use crate::base::text::bytes;

/// And so much with the last step, for more connections than these to be worth a try.
const STILL_GROWS: f64 = 1.25;

/// Numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// From a request to its first byte: the half of them.
    pub first_byte_seconds: Option<f64>,
    /// Nine of ten.
    pub first_byte_p90_seconds: Option<f64>,
    /// Of large objects, by number of connections.
    pub bandwidth: Vec<Bandwidth>,
    /// Small objects read whole, with many connections.
    pub small_files_per_second: Option<f64>,
    /// A page of a listing, one behind the other.
    pub page_seconds: Option<f64>,
    /// Pages, many at once.
    pub pages_per_second: Option<f64>,
    /// Keys on them.
    pub keys_per_second: Option<f64>,
    /// So many connections at once were throttled.
    pub throttled_at: Option<usize>,
}

/// What so many connections moved together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bandwidth {
    /// How many.
    pub connections: usize,
    /// Together.
    pub bytes_per_second: f64,
}

impl Measured {
    pub(super) fn best(&self) -> Option<Bandwidth> {
        self.bandwidth
            .iter()
            .copied()
            .max_by(|one, other| one.bytes_per_second.total_cmp(&other.bytes_per_second))
    }

    /// What a mount will give, in words; `None` if nothing was measured.
    pub fn expected(&self) -> Option<String> {
        let large =
            self.best().map(|best| format!("{} from large files", rate(best.bytes_per_second)));
        let small =
            self.small_files_per_second.map(|files| format!("{files:.0} small files a second"));
        let names = self.keys_per_second.map(|keys| format!("{keys:.0} names a second"));
        let all: Vec<_> = [large, small, names].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Another number of connections than `most`, if one would be better.
    pub fn connections_wanted(&self, most: usize) -> Option<usize> {
        if let Some(throttled) = self.throttled_at {
            return Some((throttled / 2).max(1));
        }
        let [.., before, last] = &self.bandwidth[..] else { return None };
        // It still grew well with the last step, so more may be better.
        let grew = last.bytes_per_second >= before.bytes_per_second * STILL_GROWS;
        (grew && last.connections >= most).then_some(most * 2)
    }
}

/// Bytes a second as people write them.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate, never negative
pub(super) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(bandwidth: &[(usize, f64)]) -> Measured {
        let step = |&(connections, bytes_per_second): &(usize, f64)| Bandwidth {
            connections,
            bytes_per_second,
        };
        Measured { bandwidth: bandwidth.iter().map(step).collect(), ..Measured::default() }
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
        let throttled = Measured { throttled_at: Some(1), ..with(&[(1, 90e6), (4, 900e6)]) };
        assert_eq!(throttled.connections_wanted(4), Some(1), "never none");
    }

    #[test]
    fn what_was_not_measured_is_not_expected() {
        assert_eq!(Measured::default().expected(), None);
        let names = Measured { keys_per_second: Some(1234.4), ..with(&[(1, 9e6), (2, 1.5e6)]) };
        let want = "9.0 MB/s from large files, 1234 names a second";
        assert_eq!(names.expected().as_deref(), Some(want));
    }
}
