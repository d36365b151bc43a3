//! The fetches that a read starts: the bytes that it waits for, those that its stream will read
//! next ([`streams`]), all of a model's checkpoint ([`checkpoints`]), and the siblings of a small
//! file ([`siblings`]); and those that programs have asked for before they read ([`hints`]).
//!
//! Here the limits of all are derived from the memory budget, and their plans are carried out.

use std::ops::Range;
use std::sync::Arc;

use tokio::runtime::Handle;

use self::checkpoints::Content;
use self::hints::Hints;
use self::siblings::{Listed, SiblingLimits, Siblings, SmallRead};
use self::streams::{Judged, StreamLimits, Streams, WholeAhead};
use crate::base::layout::Layout;
use crate::cache::{ChunkCache, Purpose, ReadConfig, Source};
use crate::names::{Ino, Inode, Names, SiblingPosition};
use crate::stats::Stats;
use crate::store::ObjectVersion;

mod bits;
mod checkpoints;
pub(crate) mod hints;
mod siblings;
mod streams;

/// The longest window ahead of a stream, unless the network needs more in flight.
const WINDOW_BYTES: u64 = 128 << 20;

/// Watches reads, and fetches for them and ahead of them.
pub(crate) struct Readahead {
    cache: Arc<ChunkCache>,
    streams: Streams,
    siblings: Siblings,
    pub(crate) hints: Arc<Hints>,
    layout: Layout,
    stats: Arc<Stats>,
}

impl Readahead {
    pub(crate) fn new(
        cache: Arc<ChunkCache>,
        config: &ReadConfig,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> Self {
        let ReadConfig { layout, memory_budget_bytes: budget, unit_bytes, .. } = *config;
        let streams = StreamLimits {
            block_bytes: layout.block_bytes,
            small_bytes: layout.small_bytes,
            unit_bytes,
            window_bytes: WINDOW_BYTES,
            // The other half is for bytes that were read and may be read again.
            ahead_bytes: budget / 2,
            chunk_bytes: layout.chunk_bytes,
        };
        let siblings = SiblingLimits {
            small_bytes: layout.small_bytes,
            ahead_bytes: budget / 4,
            // The cache keeps room for a part; a quarter is for bytes that are never served.
            life_bytes: budget.saturating_sub(layout.part_bytes) / 4 * 3,
        };
        // What is hinted will be read; the other half is for what nobody has hinted.
        let hints = Hints::new(cache.clone(), runtime, layout, budget / 2, stats.clone());
        Self {
            cache,
            hints,
            streams: Streams::new(streams),
            siblings: Siblings::new(siblings, stats.clone()),
            layout,
            stats,
        }
    }

    /// Starts the fetches for a read of `want`, a range inside the object, and ahead of it. Does
    /// not wait for room: `ChunkCache::read` fetches the bytes of `want` that found none.
    pub(crate) fn on_read(&self, names: &Names, source: &Source, want: &Range<u64>) {
        let begins = self.siblings.begins(source.id, source.meta.version.size_bytes);
        let cached = begins && self.cache.holds(source.id, 0);
        if self.fetch_stream(source, want.clone()) {
            self.fetch_checkpoint(names, source);
        }
        // Nobody guesses what a program will read that tells it.
        let hinted = self.hints.was_read(source, want);
        if begins
            && !hinted
            && let Some(position) = names.sibling_position(source.id, &source.meta)
        {
            let read = SmallRead {
                index: position.index,
                from_start: want.start == 0,
                cached,
                served_bytes: self.stats.bytes_served.get(),
            };
            self.fetch_siblings(&position, read);
        }
    }

    /// Fetches what is worth fetching because a program has looked up a name in `directory`: once
    /// for each directory, as soon as that is listed.
    pub(crate) fn on_lookup(&self, names: &Names, directory: Ino) {
        if self.siblings.enters(directory)
            && let Some(position) = names.first_position(directory)
        {
            let served_bytes = self.stats.bytes_served.get();
            let chosen = self.siblings.enter((directory, &position), served_bytes);
            self.fetch_chosen(&position, chosen);
        }
    }

    /// Fetches the bytes that the read waits for, and those that its stream will read next. True if
    /// the object is a checkpoint that is read whole.
    fn fetch_stream(&self, source: &Source, want: Range<u64>) -> bool {
        let ObjectVersion { key, size_bytes, .. } = &source.meta.version;
        // Behind a header that tells where its tensors lie, any of them may be read.
        let may_be_header = want.start == 0 && checkpoints::has_header(key);
        let plan = self.streams.plan(source.id, *size_bytes, want, self.cache.network_pace());
        let withholds = may_be_header && matches!(plan.judged, Judged::NotYet { .. });
        let _ = self.cache.fetch(source, plan.now, plan.now_piece_bytes, Purpose::Demand);
        let ahead = plan.ahead.into_iter().flat_map(|range| plan.pieces.cut(range));
        for (range, piece_bytes) in ahead {
            let until = range.end;
            let reached = if withholds {
                range.start
            } else {
                self.cache.fetch(source, range, piece_bytes, Purpose::Ahead)
            };
            if reached < until {
                self.streams.fell_short(source.id, reached, until);
                break;
            }
        }
        self.is_whole(source, plan.judged)
    }

    /// Whether an object is read whole, as far as that can be told yet.
    fn is_whole(&self, source: &Source, judged: Judged) -> bool {
        match judged {
            Judged::Whole => true,
            Judged::NotYet { places, is_whole } => {
                let places = if is_whole { u64::MAX } else { places };
                self.judge(source, places).unwrap_or(false)
            }
            Judged::InPart => false,
        }
    }

    /// Looks what an object is that is read in so many places: whether it is read whole.
    fn judge(&self, source: &Source, places: u64) -> Option<bool> {
        let meta = &source.meta.version;
        let beginning = |bytes| self.beginning(source, bytes);
        let longest = self.layout.chunk_bytes;
        let content = Content::of(&meta.key, meta.size_bytes, places, longest, beginning)?;
        if let Content::Tensors(tensors) = content {
            return Some(self.streams.has_tensors(source.id, tensors));
        }
        let is_whole = matches!(content, Content::Whole);
        self.streams.read_whole(source.id, is_whole);
        Some(is_whole)
    }

    /// The first bytes of an object, at most its first chunk; fetched if they are not here.
    fn beginning(&self, source: &Source, bytes: usize) -> Option<Vec<u8>> {
        let found = self.cache.beginning(source.id, bytes);
        if found.is_none() {
            let range = 0..bytes as u64;
            self.cache.fetch(source, range, self.layout.part_bytes, Purpose::Ahead);
        }
        found
    }

    /// Fetches what comes next of a checkpoint that is read whole, and then of the next one of its
    /// model.
    fn fetch_checkpoint(&self, names: &Names, source: &Source) {
        if !self.fetch_front(source).is_some_and(|front| front.ends) {
            return;
        }
        if let Some(next) = next_of_model(names, source) {
            let judged = self.streams.read_next(next.id, next.meta.version.size_bytes);
            // Not before it is known in which order.
            if self.is_whole(&next, judged) {
                self.fetch_front(&next);
            }
        }
    }

    fn fetch_front(&self, source: &Source) -> Option<WholeAhead> {
        let (pace, used) = (self.cache.network_pace(), self.cache.used());
        let size_bytes = source.meta.version.size_bytes;
        let front = self.streams.front(source.id, size_bytes, pace, used)?;
        for (place, range) in &front.ahead {
            let reached = self.cache.fetch(source, range.clone(), pace.part_bytes, Purpose::Ahead);
            if reached < range.end {
                self.streams.front_fell_short(source.id, *place);
                break;
            }
        }
        Some(front)
    }

    /// Fetches the siblings of a small file that will probably be read next.
    fn fetch_siblings(&self, position: &SiblingPosition, read: SmallRead) {
        let chosen = self.siblings.read(position, read);
        self.fetch_chosen(position, chosen);
    }

    fn fetch_chosen(&self, position: &SiblingPosition, mut chosen: Vec<usize>) {
        chosen.retain(|&index| !self.fetch_sibling(position, index));
        if !chosen.is_empty() {
            self.siblings.not_fetched(position, &chosen);
        }
    }

    /// Starts to fetch a whole file. False if it is cached, or there is no room.
    fn fetch_sibling(&self, position: &SiblingPosition, index: usize) -> bool {
        let Inode::File(meta) = position.listing.inode(index) else { return false };
        let id = position.listing.ino(index);
        if self.cache.holds(id, 0) {
            return false;
        }
        let size_bytes = meta.version.size_bytes;
        let source = Source { id, meta };
        // In one GET.
        let (range, part_bytes) = (0..size_bytes, self.layout.part_bytes);
        if self.cache.fetch(&source, range, part_bytes, Purpose::Ahead) == 0 {
            return false;
        }
        self.stats.siblings_ahead.add(1);
        self.stats.siblings_ahead_bytes.add(size_bytes);
        true
    }
}

/// The checkpoint of the same model that comes after this one, if its directory is known.
fn next_of_model(names: &Names, source: &Source) -> Option<Source> {
    let SiblingPosition { listing, .. } = names.sibling_position(source.id, &source.meta)?;
    let name = source.meta.version.key.strip_prefix(&*listing.prefix)?;
    match listing.find_inode(checkpoints::next_name(name)?.as_bytes())? {
        (id, Inode::File(meta)) => Some(Source { id, meta }),
        _ => None,
    }
}

impl Listed for SiblingPosition {
    fn path(&self) -> &Arc<str> {
        &self.listing.prefix
    }

    fn generation(&self) -> u32 {
        self.listing.generation
    }

    fn entries(&self) -> usize {
        self.listing.len()
    }

    fn file_bytes(&self, index: usize) -> Option<u64> {
        self.listing.file_bytes(index)
    }
}
