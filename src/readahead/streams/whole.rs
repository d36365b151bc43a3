//! Objects that are read whole, in whatever order: fetched from the beginning to the end, tensors
//! in the order of their names.

use std::ops::Range;

use super::Streams;
use super::runs::{ReadStream, Runs};
use crate::cache::{NetworkPace, ObjectId, Use};
use crate::readahead::checkpoints::Tensors;

/// Bytes fetched of the object for each byte that was read of it.
const MOST_PER_READ: u64 = 16;

/// The kernel reads so far beyond what a program reads of a file in order: two windows of its
/// readahead.
const KERNEL_AHEAD_BYTES: u64 = 2 << 20;

/// Whether an object is read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// Where programs began to read, the beginning of the object aside.
    pub(super) places: u64,
    /// Bytes that were read of it, or of the one before it.
    pub(super) read: u64,
    verdict: Verdict,
    /// The verdict stands on what the object is.
    is_known: bool,
    /// Of a checkpoint, if it tells where they lie.
    tensors: Option<Tensors>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    Unknown,
    No,
    /// It will be when a program touches a tensor besides the one that it has touched, which is
    /// between these two.
    OneTensor(Option<(usize, usize)>),
    /// So many bytes were requested, or read, in the order in which it is fetched.
    Yes {
        asked: u64,
    },
}

/// What is known of an object when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Nobody has looked what it is. Programs began to read it in so many places besides its
    /// beginning, or it comes after one that `is_whole`.
    NotYet {
        places: u64,
        is_whole: bool,
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
            _ if !self.is_known => Judged::NotYet { places: self.places, is_whole: self.is_read() },
            Verdict::Unknown | Verdict::No | Verdict::OneTensor(_) => Judged::InPart,
            Verdict::Yes { .. } => Judged::Whole,
        }
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.verdict, Verdict::Yes { .. })
    }

    /// The tensor in which a stream has begun, unless the program has read on from there.
    pub(super) fn tensor(&self, stream: &ReadStream) -> Option<Range<u64>> {
        let tensors = self.tensors.as_ref()?;
        let found = match self.verdict {
            Verdict::OneTensor(Some(one)) => one,
            _ => (tensors.index(stream.page()), tensors.index(stream.page())),
        };
        tensors.range(found).filter(|tensor| stream.position <= tensor.end + KERNEL_AHEAD_BYTES)
    }

    /// Notes in which tensor a stream reads.
    pub(super) fn touch(&mut self, stream: &ReadStream) {
        let (Some(tensors), Verdict::OneTensor(one)) = (&self.tensors, &mut self.verdict) else {
            return;
        };
        let is_first = stream.begun == 0;
        // The header is not one.
        if is_first && stream.position <= tensors.begin + KERNEL_AHEAD_BYTES {
            return;
        }
        let ReadStream { first, .. } = stream;
        // The program's page may be anywhere in the first read.
        let touched =
            (tensors.index(first.start), tensors.index(if is_first { 0 } else { first.end - 1 }));
        let (from, to) = one.get_or_insert(touched);
        (*from, *to) = ((*from).max(touched.0), (*to).min(touched.1));
        if *from > *to || self.tensor(stream).is_none() {
            self.verdict = Verdict::Yes { asked: 0 };
        }
    }
}

impl Streams {
    /// Whether an object is read whole, now that it is known.
    pub(crate) fn read_whole(&self, id: ObjectId, is_whole: bool) {
        if let Some(Runs { whole, .. }) = self.objects.lock().peek_mut(&id) {
            whole.is_known = true;
            match is_whole {
                true if !whole.is_read() => whole.verdict = Verdict::Yes { asked: 0 },
                true => {}
                false => whole.verdict = Verdict::No,
            }
        }
    }

    /// Where the tensors of an object lie. True if it is known already that it is read whole.
    pub(crate) fn has_tensors(&self, id: ObjectId, tensors: Tensors) -> bool {
        let mut objects = self.objects.lock();
        let Some(Runs { streams, whole, .. }) = objects.peek_mut(&id) else { return false };
        whole.tensors = Some(tensors);
        whole.is_known = true;
        if whole.verdict == Verdict::Unknown {
            whole.verdict = Verdict::OneTensor(None);
            for stream in &*streams {
                whole.touch(stream);
            }
        }
        whole.is_read()
    }

    /// An object of `size` bytes will be read whole after another one that was, unless it is known
    /// to be something else.
    pub(crate) fn read_next(&self, id: ObjectId, size: u64) -> Judged {
        let mut objects = self.objects.lock();
        let runs = objects.get_or_insert_mut(id, || Runs::new(size, self.limits.block_bytes));
        if matches!(runs.whole.verdict, Verdict::Unknown | Verdict::OneTensor(_)) {
            runs.whole.verdict = Verdict::Yes { asked: 0 };
            runs.whole.read = size;
        }
        runs.whole.judged()
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
        let mut room = pace
            .in_flight_bytes
            .saturating_sub(used.awaited_bytes)
            .min(self.limits.ahead_bytes.saturating_sub(used.unread_bytes))
            .min((whole.read * MOST_PER_READ).saturating_sub(*asked));
        let mut ahead = Vec::new();
        loop {
            let next = whole.tensors.as_ref().map_or(*asked..size, |all| all.next(*asked, size));
            let start = marks.read_until(next.start).min(next.end);
            let until = (start + room) / pace.part_bytes * pace.part_bytes;
            let until = if start + room >= next.end { next.end } else { until.max(start) };
            let parts = marks.unread(start..until);
            room -= parts.iter().map(|part| part.end - part.start).sum::<u64>().min(room);
            ahead.extend(parts);
            *asked += until - next.start;
            let has_room = until > start || until == next.end;
            if !has_room || *asked == size {
                break;
            }
        }
        Some(WholeAhead { ahead, ends: *asked == size && whole.read >= size / 2 })
    }

    /// The cache had room up to `reached` only.
    pub(crate) fn front_fell_short(&self, id: ObjectId, reached: u64) {
        if let Some(Runs { whole, .. }) = self.objects.lock().peek_mut(&id)
            && let Verdict::Yes { asked } = &mut whole.verdict
        {
            *asked = whole.tensors.as_ref().map_or(reached, |tensors| tensors.come(reached));
        }
    }
}
