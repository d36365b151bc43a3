//! Objects that are read whole, in whatever order: fetched from the beginning to the end.

use std::ops::Range;

use super::Streams;
use super::runs::Runs;
use crate::cache::{NetworkPace, ObjectId, Use};

/// Bytes fetched of the object for each byte that was read of it.
const MOST_PER_READ: u64 = 16;

/// Whether an object is read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// Where programs began to read, the beginning of the object aside.
    pub(super) places: u64,
    /// Bytes that were read of it, or of the one before it.
    pub(super) read: u64,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    Unknown,
    No,
    /// Everything before this offset was requested, or read.
    Yes {
        asked: u64,
    },
}

/// What is known of an object when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Programs began to read it in so many places besides its beginning.
    NotYet {
        places: u64,
    },
    InPart,
    Whole,
}

/// What to fetch of an object that is read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WholeAhead {
    pub(crate) ahead: Vec<Range<u64>>,
    /// All of it was requested, and most of it read.
    pub(crate) ends: bool,
}

impl Whole {
    pub(super) fn judged(&self) -> Judged {
        match self.verdict {
            Verdict::Unknown => Judged::NotYet { places: self.places },
            Verdict::No => Judged::InPart,
            Verdict::Yes { .. } => Judged::Whole,
        }
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.verdict, Verdict::Yes { .. })
    }
}

impl Streams {
    /// Whether an object is read whole, now that it is known.
    pub(crate) fn read_whole(&self, id: ObjectId, is_whole: bool) {
        if let Some(runs) = self.objects.lock().peek_mut(&id) {
            runs.whole.verdict = if is_whole { Verdict::Yes { asked: 0 } } else { Verdict::No };
        }
    }

    /// An object of `size` bytes will be read whole after another one that was.
    pub(crate) fn read_next(&self, id: ObjectId, size: u64) {
        let mut objects = self.objects.lock();
        let runs = objects.get_or_insert_mut(id, || Runs::new(size, self.limits.block_bytes));
        if !runs.whole.is_read() {
            runs.whole.verdict = Verdict::Yes { asked: 0 };
            runs.whole.read = size;
        }
    }

    /// What to fetch now of an object that is read whole, in GETs of a part; marks it as requested.
    pub(crate) fn front(
        &self,
        id: ObjectId,
        size: u64,
        pace: NetworkPace,
        used: Use,
    ) -> Option<WholeAhead> {
        let mut objects = self.objects.lock();
        let Runs { marks, whole, .. } = objects.peek_mut(&id)?;
        let Verdict::Yes { asked } = &mut whole.verdict else { return None };
        let room = pace
            .in_flight_bytes
            .saturating_sub(used.awaited_bytes)
            .min(self.limits.ahead_bytes.saturating_sub(used.unread_bytes))
            .min((whole.read * MOST_PER_READ).saturating_sub(*asked));
        let until = ((*asked + room) / pace.part_bytes * pace.part_bytes).max(*asked);
        let until = if *asked + room >= size { size } else { until };
        let ahead = marks.unread(*asked..until);
        *asked = until;
        Some(WholeAhead { ahead, ends: until == size && whole.read >= size / 2 })
    }

    /// The cache had room up to `reached` only.
    pub(crate) fn front_fell_short(&self, id: ObjectId, reached: u64) {
        if let Some(runs) = self.objects.lock().peek_mut(&id)
            && let Verdict::Yes { asked } = &mut runs.whole.verdict
        {
            *asked = reached;
        }
    }
}
