//! Hints: what programs said that they will read, fetched in that order before they do.
//!
//! A hint changes only when bytes are fetched. It is a file, or a range of a large one, and waits
//! in the queue of its *teller*, the thread or process that told it. One task, the feeder, takes
//! pieces of at most a chunk from the tellers in turn, and has the cache fetch them as readahead:
//! as many at once as the network needs, and no more ahead of the readers than a share of the
//! budget, of which each teller has half of what the others leave. Telling costs a microsecond and
//! never waits: what finds the queue full is refused.
//!
//! A ledger checks each teller, by bytes: what left the cache unread reduces what the teller may
//! have ahead, in proportion, down to a seventeenth of the share. Who tells nonsense harms nobody
//! else. What was read before is left to the kernel's page cache ([`page_cache`]).

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::timeout;

use self::queues::{AheadPiece, Hint, HintQueues, LAST_TOLD};
use crate::base::layout::Layout;
use crate::cache::{ChunkCache, Purpose, Source};
use crate::stats::Stats;

mod page_cache;
mod queues;

/// Hints that wait, of all tellers, some 300 bytes each: three minutes of reading small files at
/// the speed of two cores. One teller may have half of what the others leave.
const MOST_WAITING: usize = 65_536;

/// Pieces that are fetched, or wait at the gate, at once: twice what 3,300 small files a second
/// need behind 30 ms. What waits there is in front of what other programs have read ahead.
const MOST_IN_FLIGHT: usize = 256;

/// Bytes of these, where the network needs no more.
const IN_FLIGHT_BYTES: u64 = 32 << 20;

/// A teller may have this part of the share ahead whatever became of its hints.
const GRACE: u64 = 16;

/// The feeder looks again after this time if the cache had no room, and if too much is ahead.
const NO_ROOM: Duration = Duration::from_millis(20);
const TOO_MUCH: Duration = Duration::from_secs(1);

/// A thread or process that tells hints.
pub(crate) type TellerId = u32;

/// An object and the index of a chunk of it.
type PieceKey = (u64, u32);

pub(crate) struct Hints {
    cache: Arc<ChunkCache>,
    runtime: Handle,
    layout: Layout,
    /// The most that may be ahead of its readers.
    share_bytes: u64,
    inside: Mutex<HintQueues>,
    /// Notified when something was read, has arrived, or was told by a teller that had nothing.
    changed: Notify,
    /// Until something was hinted, a read costs a look at this.
    is_used: AtomicBool,
    stats: Arc<Stats>,
}

/// What the feeder does next.
enum Next {
    Fetch(TellerId, Hint),
    Wait,
    End,
}

impl Hints {
    pub(crate) fn new(
        cache: Arc<ChunkCache>,
        runtime: Handle,
        layout: Layout,
        share_bytes: u64,
        stats: Arc<Stats>,
    ) -> Arc<Self> {
        let inside = HintQueues::new();
        let (inside, changed) = (Mutex::new(inside), Notify::new());
        let is_used = AtomicBool::new(false);
        Arc::new(Self { cache, runtime, layout, share_bytes, inside, changed, is_used, stats })
    }

    /// Takes a hint. False if the queue is full.
    pub(crate) fn tell(
        self: &Arc<Self>,
        teller: TellerId,
        source: Source,
        range: Range<u64>,
    ) -> bool {
        let (id, size_bytes) = (source.id, source.meta.version.size_bytes);
        let is_small = self.is_small(size_bytes);
        // R3: the first read of a small object fetches all of it.
        let range = if is_small { 0..size_bytes } else { range.start..range.end.min(size_bytes) };
        let mut inside = self.inside.lock();
        let is_told = inside.small.get(&id).is_some_and(|by| by.contains(&teller));
        let is_there = is_told || is_small && inside.ahead.contains(&(id, 0));
        if is_there || range.is_empty() || source.meta.archived {
            return true;
        }
        let waiting = inside.waiting;
        let queue = inside.teller(teller);
        if queue.iter().rev().take(LAST_TOLD).any(|told| told.has(id, &range)) {
            return true;
        }
        // Half of what the others leave, so there is always a place for one that is new.
        if queue.len() >= (MOST_WAITING + queue.len()).saturating_sub(waiting) / 2 {
            self.stats.hints_refused.add(1);
            return false;
        }
        let was_idle = queue.is_empty();
        let bytes = range.end - range.start;
        queue.push_back(Hint { source, range });
        inside.waiting += 1;
        inside.waiting_bytes += bytes;
        if is_small {
            inside.small.entry(id).or_default().push(teller);
        }
        if was_idle && !inside.turns.contains(&teller) {
            inside.turns.push_back(teller);
        }
        let begins = !std::mem::replace(&mut inside.is_fed, true);
        drop(inside);
        self.is_used.store(true, Relaxed);
        self.stats.hints_queued.add(1);
        if begins {
            self.runtime.spawn(self.clone().feed());
        } else if was_idle {
            self.changed.notify_one();
        }
        true
    }

    /// Hints that wait or are being fetched, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        let inside = self.inside.lock();
        (inside.waiting + inside.in_flight, inside.waiting_bytes + inside.in_flight_bytes)
    }

    /// Notes a read. True if the file was hinted and this is its first read.
    pub(crate) fn was_read(&self, source: &Source, want: &Range<u64>) -> bool {
        let id = source.id;
        if !self.is_used.load(Relaxed) {
            return false;
        }
        let now_bytes = self.stats.bytes_served.get();
        let mut inside = self.inside.lock();
        // Its reader has overtaken the hint.
        let mut hinted = inside.small.remove(&id).is_some();
        if !self.is_small(source.meta.version.size_bytes) {
            inside.pass(id, want, 2 * self.layout.chunk_bytes);
        }
        for span in self.layout.spans(want.clone()) {
            inside.page_cache.was_read((id, span.chunk), span.bytes.len() as u64, now_bytes);
            if let Some(ahead) = inside.take_ahead((id, span.chunk)) {
                inside.settle(ahead, self.share_bytes, |teller| &mut teller.used_bytes);
                self.stats.hints_used.add(1);
                hinted = true;
            }
        }
        drop(inside);
        if hinted {
            self.changed.notify_one();
        }
        hinted
    }

    /// The kernel was told to drop what it has.
    pub(crate) fn forget_page_cache(&self) {
        self.inside.lock().page_cache.clear();
    }

    fn is_small(&self, size_bytes: u64) -> bool {
        size_bytes <= self.layout.small_bytes
    }

    /// Fetches what waits until nothing does.
    async fn feed(self: Arc<Self>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            self.give_up_lost();
            let pause = match self.next() {
                Next::Fetch(teller, piece) => {
                    if self.fetch(teller, piece) {
                        yield_now().await;
                        continue;
                    }
                    NO_ROOM
                }
                Next::Wait => TOO_MUCH,
                Next::End => return,
            };
            let _ = timeout(pause, changed).await;
        }
    }

    /// Chooses a piece, and counts it as ahead.
    fn next(&self) -> Next {
        let window = self.cache.network_pace().in_flight_bytes.max(IN_FLIGHT_BYTES);
        let now_bytes = self.stats.bytes_served.get();
        let inside = &mut *self.inside.lock();
        if inside.in_flight >= MOST_IN_FLIGHT || inside.in_flight_bytes >= window {
            return Next::Wait;
        }
        for _ in 0..inside.turns.len() {
            let Some(id) = inside.turns.pop_front() else { break };
            inside.pass_over_needless(id, self.layout, now_bytes);
            let Some(teller) = inside.tellers.peek_mut(&id) else { continue };
            let others = inside.ahead_bytes.saturating_sub(teller.ahead_bytes);
            let room = self.share_bytes.saturating_sub(others) / 2;
            let allowed = teller.allowed_bytes(room, self.share_bytes / GRACE);
            let Some(hint) = teller.queue.front_mut() else { continue };
            let Some(span) = self.layout.spans(hint.range.clone()).next() else { continue };
            let range = span.object_range();
            let bytes = range.end - range.start;
            let fits = teller.ahead_bytes + bytes <= allowed;
            // A share that is smaller than a piece takes one at a time.
            if !fits && inside.ahead_bytes > 0 {
                inside.turns.push_back(id);
                continue;
            }
            let piece = Hint { source: hint.source.clone(), range };
            teller.ahead_bytes += bytes;
            inside.take(id, bytes);
            if inside.tellers.peek(&id).is_some_and(|teller| !teller.queue.is_empty()) {
                inside.turns.push_back(id);
            }
            inside.ahead_bytes += bytes;
            let key = (piece.source.id, span.chunk);
            inside.ahead.get_or_insert_mut(key, || AheadPiece { teller: id, bytes: 0 }).bytes +=
                bytes;
            return Next::Fetch(id, piece);
        }
        if inside.turns.is_empty() {
            inside.is_fed = false;
            return Next::End;
        }
        Next::Wait
    }

    /// Starts to fetch a piece. False if there was no room for all of it.
    fn fetch(self: &Arc<Self>, teller: TellerId, piece: Hint) -> bool {
        let Hint { source, range } = piece;
        let Some(span) = self.layout.spans(range.clone()).next() else { return true };
        let (key, bytes) = ((source.id, span.chunk), range.end - range.start);
        let held = self.cache.holds(source.id, span.chunk);
        let part_bytes = self.layout.part_bytes;
        let reached = self.cache.fetch(&source, range.clone(), part_bytes, Purpose::Ahead);
        let mut inside = self.inside.lock();
        if held || reached == range.start {
            // Somebody else fetches it, or nobody yet.
            inside.take_ahead(key);
        }
        let left = reached.max(range.start)..range.end;
        let has_room = left.is_empty();
        if !has_room {
            let is_small = self.is_small(source.meta.version.size_bytes);
            inside.put_back(teller, Hint { source: source.clone(), range: left }, is_small);
        }
        if !held && reached > range.start {
            inside.in_flight += 1;
            inside.in_flight_bytes += bytes;
            let hints = self.clone();
            self.runtime.spawn(async move {
                let has_come = hints.cache.settled(&source, &span).await;
                hints.landed(key, bytes, has_come);
            });
        }
        has_room
    }

    /// A piece has arrived, or has failed, of which its reader will hear.
    fn landed(&self, key: PieceKey, bytes: u64, has_come: bool) {
        let mut inside = self.inside.lock();
        inside.in_flight -= 1;
        inside.in_flight_bytes -= bytes;
        if !has_come {
            inside.take_ahead(key);
        }
        drop(inside);
        self.changed.notify_one();
    }

    /// Counts what has left the cache unread, the oldest first.
    fn give_up_lost(&self) {
        loop {
            let oldest = self.inside.lock().ahead.peek_lru().map(|(&key, _)| key);
            let Some((id, chunk)) = oldest else { return };
            if self.cache.holds(id, chunk) {
                return;
            }
            let now_bytes = self.stats.bytes_served.get();
            let mut inside = self.inside.lock();
            if let Some(ahead) = inside.take_ahead((id, chunk))
                && !inside.page_cache.may_have_had((id, chunk), now_bytes)
            {
                inside.settle(ahead, self.share_bytes, |teller| &mut teller.wasted_bytes);
                self.stats.hints_wasted.add(1);
            }
        }
    }
}
