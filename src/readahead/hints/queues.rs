//! What waits and what is ahead, by teller, and the tellers' ledgers.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;

use super::page_cache::PageCache;
use super::{PieceKey, TellerId};
use crate::base::layout::Layout;
use crate::cache::Source;

/// A hint is left out if it lies in one of so many that its teller told last, and that wait: each
/// of the samples of a shard leads to that shard.
pub(super) const LAST_TOLD: usize = 64;

/// Tellers that are remembered; the one that has said nothing for the longest time makes way.
const TELLERS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

pub(super) struct HintQueues {
    pub(super) tellers: LruCache<TellerId, Teller>,
    /// Those with waiting hints, in the order of their turns.
    pub(super) turns: VecDeque<TellerId>,
    pub(super) waiting: usize,
    pub(super) waiting_bytes: u64,
    /// The small files of them that were not read meanwhile, and by whom they were told.
    pub(super) small: HashMap<u64, Vec<TellerId>>,
    /// Pieces that were fetched and not read, the oldest last.
    pub(super) ahead: LruCache<PieceKey, AheadPiece>,
    pub(super) ahead_bytes: u64,
    pub(super) in_flight: usize,
    pub(super) in_flight_bytes: u64,
    pub(super) page_cache: PageCache,
    /// The feeder is running.
    pub(super) is_fed: bool,
}

#[derive(Default)]
pub(super) struct Teller {
    pub(super) queue: VecDeque<Hint>,
    pub(super) ahead_bytes: u64,
    /// The ledger; older outcomes count less.
    pub(super) used_bytes: u64,
    pub(super) wasted_bytes: u64,
}

pub(super) struct Hint {
    pub(super) source: Source,
    /// What of it has not been fetched.
    pub(super) range: Range<u64>,
}

#[derive(Clone, Copy)]
pub(super) struct AheadPiece {
    pub(super) teller: TellerId,
    pub(super) bytes: u64,
}

impl HintQueues {
    pub(super) fn new() -> Self {
        Self {
            tellers: LruCache::new(TELLERS),
            turns: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            small: HashMap::new(),
            ahead: LruCache::unbounded(),
            ahead_bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            page_cache: PageCache::new(),
            is_fed: false,
        }
    }

    /// The queue of a teller, which is now the one that was heard last.
    pub(super) fn teller(&mut self, id: TellerId) -> &mut VecDeque<Hint> {
        if !self.tellers.contains(&id)
            && let Some((gone_id, gone)) = self.tellers.push(id, Teller::default())
        {
            self.waiting -= gone.queue.len();
            for Hint { source, range } in gone.queue {
                self.waiting_bytes -= range.end - range.start;
                forget(&mut self.small, source.id, gone_id);
            }
        }
        &mut self.tellers.get_mut(&id).expect("was just put there").queue
    }

    /// Takes the first bytes of a teller's first hint.
    pub(super) fn take(&mut self, id: TellerId, bytes: u64) {
        let Some(teller) = self.tellers.peek_mut(&id) else { return };
        let Some(hint) = teller.queue.front_mut() else { return };
        hint.range.start += bytes;
        self.waiting_bytes -= bytes;
        if hint.range.is_empty() {
            forget(&mut self.small, hint.source.id, id);
            self.waiting -= 1;
            teller.queue.pop_front();
        }
    }

    /// Takes what need not be fetched for a teller's next hints: small files that were read
    /// meanwhile, and what the kernel's page cache has.
    pub(super) fn pass_over_needless(&mut self, id: TellerId, layout: Layout, now_bytes: u64) {
        while let Some(hint) = self.tellers.peek(&id).and_then(|teller| teller.queue.front()) {
            let Some(span) = layout.spans(hint.range.clone()).next() else { return };
            let (object, size_bytes) = (hint.source.id, hint.source.meta.version.size_bytes);
            let is_small = size_bytes <= layout.small_bytes;
            let whole = layout.chunk_len(size_bytes, span.chunk) as u64;
            let is_told = |small: &HashMap<u64, Vec<TellerId>>| {
                small.get(&object).is_some_and(|by| by.contains(&id))
            };
            let is_overtaken = is_small && !is_told(&self.small);
            if !is_overtaken && !self.page_cache.has((object, span.chunk), whole, now_bytes) {
                return;
            }
            self.take(id, span.bytes.len() as u64);
        }
    }

    pub(super) fn put_back(&mut self, id: TellerId, hint: Hint, is_small: bool) {
        let Some(teller) = self.tellers.peek_mut(&id) else { return };
        let bytes = hint.range.end - hint.range.start;
        if is_small {
            self.small.entry(hint.source.id).or_default().push(id);
        }
        let is_rest = |next: &&mut Hint| {
            next.source.id == hint.source.id && next.range.start == hint.range.end
        };
        if let Some(rest) = teller.queue.front_mut().filter(is_rest) {
            rest.range.start = hint.range.start;
        } else {
            if !self.turns.contains(&id) {
                self.turns.push_front(id);
            }
            teller.queue.push_front(hint);
            self.waiting += 1;
        }
        self.waiting_bytes += bytes;
    }

    /// A reader of a large file that has come to where a hint waits takes it along: what it has
    /// passed may have left the cache. The kernel's requests come in no exact order.
    pub(super) fn pass(&mut self, id: u64, want: &Range<u64>, tolerance: u64) {
        for teller in &self.turns {
            if let Some(teller) = self.tellers.peek_mut(teller)
                && let Some(hint) = teller.queue.front_mut()
                && hint.source.id == id
                && hint.range.start < want.end
                && want.start <= hint.range.start + tolerance
            {
                let passed = want.end.min(hint.range.end) - hint.range.start;
                hint.range.start += passed;
                self.waiting_bytes -= passed;
                if hint.range.is_empty() {
                    self.waiting -= 1;
                    teller.queue.pop_front();
                }
            }
        }
    }

    /// Takes a piece from those that are ahead.
    pub(super) fn take_ahead(&mut self, key: PieceKey) -> Option<AheadPiece> {
        let ahead = self.ahead.pop(&key)?;
        self.ahead_bytes -= ahead.bytes;
        if let Some(teller) = self.tellers.peek_mut(&ahead.teller) {
            teller.ahead_bytes = teller.ahead_bytes.saturating_sub(ahead.bytes);
        }
        Some(ahead)
    }

    /// Enters an outcome into the ledger of a teller.
    pub(super) fn settle(
        &mut self,
        ahead: AheadPiece,
        share_bytes: u64,
        column: impl Fn(&mut Teller) -> &mut u64,
    ) {
        let Some(teller) = self.tellers.peek_mut(&ahead.teller) else { return };
        *column(teller) += ahead.bytes;
        if teller.used_bytes + teller.wasted_bytes > share_bytes {
            teller.used_bytes /= 2;
            teller.wasted_bytes /= 2;
        }
    }
}

/// A hint of a small file does not wait any more.
fn forget(small: &mut HashMap<u64, Vec<TellerId>>, id: u64, teller: TellerId) {
    if let Some(by) = small.get_mut(&id) {
        by.retain(|&other| other != teller);
        if by.is_empty() {
            small.remove(&id);
        }
    }
}

impl Hint {
    pub(super) fn has(&self, id: u64, range: &Range<u64>) -> bool {
        self.source.id == id && self.range.start <= range.start && range.end <= self.range.end
    }
}

impl Teller {
    /// What it may have ahead, if there is room for `room` bytes.
    pub(super) fn allowed_bytes(&self, room: u64, grace: u64) -> u64 {
        let good = u128::from(self.used_bytes + grace);
        let all = good + u128::from(self.wasted_bytes);
        let allowed = u128::from(room) * good / all.max(1);
        u64::try_from(allowed).expect("at most the room")
    }
}
