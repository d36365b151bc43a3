//! Objects that are read whole, in whatever order: fetched from the beginning to the end, tensors
//! in the order of their names, or in that of the file for programs that read one behind the other.

use std::ops::Range;

use super::Streams;
use super::runs::{ReadStream, Runs};
use crate::cache::{NetworkPace, ObjectId, Use};
use crate::readahead::checkpoints::Tensors;

/// Bytes fetched of the object for each byte that was read of it.
const MOST_PER_READ: u64 = 16;

/// The most that is fetched ahead of a program that reads in the order in which the object is
/// fetched, as a multiple of what the network needs in flight. More would only take memory.
const MOST_AHEAD_IN_ORDER: u64 = 4;

/// A program that goes on to the next tensor so many times reads in the order of the file.
const IN_FILE_ORDER: u32 = 2;

/// The kernel reads so far beyond what a program reads of a file in order: two windows of its
/// readahead.
const KERNEL_AHEAD_BYTES: u64 = 2 << 20;

/// The kernel reads so much before the first page of a tensor: half of its readahead.
const KERNEL_BEFORE_BYTES: u64 = 512 << 10;

/// And so much behind the last one: as much, and its next readahead.
const KERNEL_BEHIND_BYTES: u64 = 1536 << 10;

/// Whether an object is read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// Where programs began to read, the beginning of the object aside.
    pub(super) places: u64,
    /// Bytes that were read of it.
    pub(super) read: u64,
    /// Bytes of the one before it, if it comes after one that is read whole.
    before: u64,
    verdict: Verdict,
    /// A program has read what was not requested yet: it reads in another order.
    pub(super) strays: bool,
    /// The last tensor that was read, and how many that lie before it were read one behind the
    /// other.
    last: Option<usize>,
    steps: u32,
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
    /// Each with its place in the order.
    pub(crate) ahead: Vec<(u64, Range<u64>)>,
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

    /// The tensor in which a stream begins. In its page one may end and another begin: if only the
    /// one that ends was requested, it is that, because programs mostly keep to the order.
    pub(super) fn begins_in(&self, stream: &ReadStream) -> Option<usize> {
        let tensors = self.tensors.as_ref()?;
        let (one, next) = (tensors.index(stream.page() & !0xfff), tensors.index(stream.page()));
        let Verdict::Yes { asked } = self.verdict else { return Some(next) };
        let was_asked = |index| Some(tensors.come(tensors.range((index, index))?.start) < asked);
        Some(if was_asked(one)? && !was_asked(next)? { one } else { next })
    }

    /// The tensor that a program reads: in which the stream has begun, unless it has read on from
    /// there. A stream that was left, and read on after others, may be in the next tensor.
    pub(super) fn tensor(&self, stream: &ReadStream) -> Option<Range<u64>> {
        let tensors = self.tensors.as_ref()?;
        let found = match (self.verdict, stream.resumed, stream.tensor) {
            (Verdict::OneTensor(Some(one)), ..) => one,
            (_, None, begun) => (begun?, begun?),
            (_, Some(at), begun) => {
                let come = |at: u64| tensors.index(at.saturating_sub(KERNEL_AHEAD_BYTES));
                let (from, now) = (come(at).max(begun?), come(stream.position).max(begun?));
                (now <= from + 1).then_some((now, now))?
            }
        };
        tensors.range(found).filter(|tensor| stream.position <= tensor.end + KERNEL_AHEAD_BYTES)
    }

    /// The only tensor that programs have touched.
    pub(super) fn one_tensor(&self) -> Option<Range<u64>> {
        let Verdict::OneTensor(Some((from, to))) = self.verdict else { return None };
        let tensors = self.tensors.as_ref()?;
        let Range { start, end } = tensors.range((from, to)).filter(|_| from == to)?;
        Some(start.max(tensors.begin)..end)
    }

    /// Notes where a stream reads.
    pub(super) fn touch(&mut self, stream: &ReadStream) {
        match self.verdict {
            Verdict::Unknown | Verdict::No => {}
            Verdict::OneTensor(one) => self.touch_one(stream, one),
            Verdict::Yes { asked } => self.follow(stream, asked),
        }
    }

    /// Notes in which tensor a stream reads, as long as there may be only one.
    fn touch_one(&mut self, stream: &ReadStream, mut one: Option<(usize, usize)>) {
        let Some(tensors) = &self.tensors else { return };
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
        let is_one = from <= to;
        self.verdict = Verdict::OneTensor(one);
        if !is_one || self.tensor(stream).is_none() {
            self.verdict = Verdict::Yes { asked: 0 };
        }
    }

    /// Notes whether a program reads in the order in which the object is fetched; if it reads one
    /// tensor behind the other instead, that is the order from now on.
    fn follow(&mut self, stream: &ReadStream, asked: u64) {
        let come = stream.position.saturating_sub(KERNEL_AHEAD_BYTES);
        let start = self.tensor(stream).map_or(come, |tensor| tensor.start);
        let Some(tensors) = &mut self.tensors else {
            self.strays |= asked > 0 && stream.position > asked;
            return;
        };
        let (last, now) = (self.last, tensors.index(start));
        if last != Some(now) {
            let is_next = last.is_some_and(|last| last + 1 == now);
            (self.last, self.steps) = (Some(now), if is_next { self.steps + 1 } else { 0 });
        }
        if asked == 0 || tensors.come(start) <= asked {
            return;
        }
        self.strays = true;
        if self.steps >= IN_FILE_ORDER && tensors.order_by_place() {
            (self.strays, self.verdict) = (false, Verdict::Yes { asked: 0 });
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
        for stream in &mut *streams {
            stream.tensor = whole.begins_in(stream);
        }
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
            runs.whole.before = size;
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
        let read = whole.read + whole.before;
        let NetworkPace { part_bytes, in_flight_bytes } = pace;
        let in_order = whole.read + MOST_AHEAD_IN_ORDER * in_flight_bytes;
        let mut room = in_flight_bytes
            .saturating_sub(used.awaited_bytes)
            .min(self.limits.ahead_bytes.saturating_sub(used.unread_bytes))
            .min((read * MOST_PER_READ).saturating_sub(*asked))
            .min(if whole.strays { u64::MAX } else { in_order.saturating_sub(*asked) });
        let mut ahead = Vec::new();
        while *asked < size {
            let tensors = whole.tensors.as_ref();
            let next = tensors.map_or(*asked..size, |tensors| tensors.next(*asked, size));
            let start = marks.read_until(next.start).min(next.end);
            let ends = next.end - start <= room;
            let part_end = (start + room) / part_bytes * part_bytes;
            let until = if ends { next.end } else { part_end.max(start) };
            if until == start && !ends {
                break;
            }
            if start < until {
                // The kernel asks for what lies around the first page and the last one.
                let begins = start == next.start && tensors.is_some_and(|all| all.begins(*asked));
                let before = if begins { KERNEL_BEFORE_BYTES } else { 0 };
                let behind = if ends && tensors.is_some() { KERNEL_BEHIND_BYTES } else { 0 };
                let around = start.saturating_sub(before)..size.min(until + behind);
                let parts = marks.unread(around);
                room = room.saturating_sub(parts.iter().map(|part| part.end - part.start).sum());
                ahead.extend(parts.into_iter().map(|part| (*asked, part)));
            }
            *asked += until - next.start;
        }
        Some(WholeAhead { ahead, ends: *asked == size && read >= size / 2 })
    }

    /// The cache had no room for what has this place in the order.
    pub(crate) fn front_fell_short(&self, id: ObjectId, place: u64) {
        if let Some(Runs { whole, .. }) = self.objects.lock().peek_mut(&id)
            && let Verdict::Yes { asked } = &mut whole.verdict
        {
            *asked = place.min(*asked);
        }
    }
}
