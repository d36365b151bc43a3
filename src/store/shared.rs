//! A cache between nodes: object bytes in a store that is near them, which mounts on other machines
//! fill and read too. A layer of the store: what is there is read, the rest is fetched from the
//! source, shown, and then stored for the others.
//!
//! - It is never wrong: an entry is named by the object version that it is of, and each block is
//!   proved before it is shown. What fails is fetched, as if it had never been there.
//! - It is never in the way: a first byte that is late is asked of the source too, a cache that
//!   fails is left alone for a while, and what cannot be stored at once is dropped.
//! - Mounts that miss together fetch once: the first puts a claim in the entry's place, and the
//!   others look again until the entry is there, or the claim is late.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{Class, ObjectVersion, StoreError};
use crate::base::layout::BLOCK_BYTES;
use crate::stats::Stats;

mod breaker;
mod entry;
mod fills;
mod layer;
mod outlook;
#[cfg(test)]
mod tests;

use breaker::{Admits, Breaker};
use entry::{CLAIM, EntryName, Identity, size};
pub use entry::{Sealer, SharedOrigin, read_key};
use fills::{FillRight, Fills, PartialEntry};
pub use layer::SharedCached;
use outlook::Outlook;

/// An eighth of the memory budget, and at most 64 MiB, is for units on their way to the cache.
const BUDGET_SHARE: u64 = 8;
const MOST_MEMORY: u64 = 64 << 20;
const LEAST_MEMORY: u64 = 4 << 20;
/// A claim is older only if its mount has died, or stores nothing: most units take a tenth.
const STALE: Duration = Duration::from_secs(3);
/// Mounts that have all waited in vain store what they fetched within this time.
const SPREAD: Duration = Duration::from_secs(2);
/// For memory, when a unit has come: the cache takes what was there before.
const FOR_ROOM: Duration = Duration::from_millis(100);
/// The same where other mounts wait for the unit: as long as they do at least.
const FOR_OTHERS: Duration = Duration::from_millis(500);
/// As long as a store's own silence, where it is not asked too soon.
const WITHOUT_HEDGING: Duration = Duration::from_secs(2);
/// For one request that stores.
const FILL_LIMIT: Duration = Duration::from_secs(10);

/// The store that holds the entries. It needs no order, no listing and no deletion.
#[async_trait]
pub trait EntryStore: Send + Sync + 'static {
    /// A range of an entry; `None` if there is no entry, or it has no such bytes.
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<FoundEntry>, StoreError>;

    /// Stores an entry; `false` if it must be absent, and is not.
    async fn put(&self, key: &str, entry: Bytes, only_if_absent: bool) -> Result<bool, StoreError>;
}

/// The range of an entry that was asked for, or what there is of it.
pub struct FoundEntry {
    /// Of the whole entry.
    pub length: u64,
    /// Since it was stored, by the clock of its store.
    pub age: Option<Duration>,
    pub body: Box<dyn EntryBody>,
}

#[async_trait]
pub trait EntryBody: Send {
    /// Receives the next bytes.
    async fn take(&mut self, length: u64, into: &mut Vec<u8>) -> Result<(), StoreError>;
}

/// How the cache is used.
#[derive(Clone, Debug)]
pub struct SharedPolicy {
    pub sealer: Sealer,
    /// Whoever may use the cache may read what is in it: the source is not asked.
    pub trusts: bool,
    /// The source is asked too as soon as the cache is later than usual.
    pub hedges: bool,
    /// Memory for what is on its way to the cache.
    pub memory_bytes: u64,
}

/// The cache of all buckets of a mount.
pub struct SharedCache {
    entries: Arc<dyn EntryStore>,
    sealer: Sealer,
    trusts: bool,
    hedges: bool,
    state: Mutex<CacheState>,
    fills: Fills,
    stats: Arc<Stats>,
}

#[derive(Debug, Default)]
struct CacheState {
    reading: Breaker,
    filling: Breaker,
    outlook: Outlook,
}

/// How a unit is asked for.
enum Way {
    /// Not of the cache.
    Past,
    /// Of the cache, and of the source too after this time.
    Ask(Duration),
}

/// What a cache is for.
#[derive(Clone, Copy)]
enum Duty {
    Read,
    Store,
}

/// What is in the place of an entry.
enum Look {
    Entry(Reading),
    Nothing,
    Claim { is_stale: bool },
}

/// An entry whose first block has come, and is right.
struct Reading {
    name: EntryName,
    body: Box<dyn EntryBody>,
    /// A block and its tag.
    sealed: Vec<u8>,
    /// Those that are still to come, counted from the unit's beginning.
    blocks: Range<u64>,
}

/// A part of a unit, or all of it.
#[derive(Clone)]
struct Wanted {
    name: EntryName,
    /// Of the object.
    range: Range<u64>,
}

impl Wanted {
    /// What is wanted of the unit in which a range of an object begins.
    fn first_of((version, identity): (&ObjectVersion, Identity), range: &Range<u64>) -> Self {
        let name = EntryName::at(identity, version, range.start);
        Self { name, range: range.start..range.end.min(name.object_range().end) }
    }

    fn is_whole(&self) -> bool {
        self.range == self.name.object_range()
    }
}

impl SharedCache {
    /// What is claimed and stored as one, if one GET asks for all of it.
    pub const UNIT_BYTES: u64 = entry::UNIT_BYTES;

    pub fn new(entries: Arc<dyn EntryStore>, policy: SharedPolicy, stats: Arc<Stats>) -> Arc<Self> {
        let SharedPolicy { sealer, trusts, hedges, memory_bytes } = policy;
        let fills = Fills::new(memory_bytes);
        Arc::new(Self { entries, sealer, trusts, hedges, state: Mutex::default(), fills, stats })
    }

    /// The share of a memory budget that is not left for the cache in memory.
    pub fn memory_of(budget_bytes: u64) -> u64 {
        (budget_bytes / BUDGET_SHARE).clamp(LEAST_MEMORY, MOST_MEMORY)
    }

    /// Returns when what was fetched until now was stored, at most after `limit`.
    pub async fn settle(&self, limit: Duration) {
        self.fills.settle(limit).await;
    }

    /// For a first byte, a block, or a claim.
    fn longest_patience(&self) -> Duration {
        if self.hedges { self.state.lock().outlook.longest_patience() } else { WITHOUT_HEDGING }
    }

    fn way(&self) -> Way {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.reading.admits(now) {
            Admits::None => Way::Past,
            Admits::Trial => Way::Ask(Duration::ZERO),
            Admits::All if self.hedges => Way::Ask(state.outlook.patience(now)),
            Admits::All => Way::Ask(WITHOUT_HEDGING),
        }
    }

    /// The right to store a unit, if all of it will be fetched, and the cache keeps up with what is
    /// stored. It takes no memory until the unit has come: a window of a stream is claimed whole,
    /// and stored as it arrives.
    fn right(&self, wanted: &Wanted, right: FillRight) -> Option<FillRight> {
        let may = wanted.is_whole()
            && self.fills.keeps_up(Instant::now())
            && self.state.lock().filling.admits(Instant::now()) != Admits::None;
        may.then_some(right)
    }

    async fn look(&self, wanted: Wanted) -> Result<Look, StoreError> {
        let Wanted { name, range } = wanted;
        let blocks = name.blocks_of(&range);
        let begun = Instant::now();
        let asked = self.entries.get(&name.key(), self.sealer.place(&name, &blocks)).await?;
        let Some(FoundEntry { length, age, mut body }) = asked else { return Ok(Look::Nothing) };
        if length == CLAIM.len() as u64 {
            // To its end, so that the connection can be used again.
            if blocks.start == 0 {
                body.take(length, &mut Vec::new()).await?;
            }
            return Ok(Look::Claim { is_stale: age.is_some_and(|age| age >= STALE) });
        }
        if length != self.sealer.entry_bytes(&name) {
            self.is_wrong(&name);
            return Err(StoreError::nonsense(format!("an entry of {length} bytes")));
        }
        let mut reading = Reading { name, body, sealed: Vec::new(), blocks };
        reading.next(self).await?;
        self.state.lock().outlook.answered(begun.elapsed());
        Ok(Look::Entry(reading))
    }

    fn is_wrong(&self, name: &EntryName) {
        self.stats.shared_wrong.add(1);
        tracing::warn!(
            entry = name.key(),
            "the shared cache held wrong bytes: they are fetched again"
        );
    }

    fn worked(&self) {
        if self.state.lock().reading.worked(Instant::now()) {
            tracing::info!("the shared cache is used again");
        }
    }

    fn failed(&self, error: &StoreError) {
        let now = Instant::now();
        let pause = {
            let reading = &mut self.state.lock().reading;
            if is_refusal(error) { reading.refused(now) } else { reading.failed(now) }
        };
        tracing::debug!(%error, "the shared cache failed");
        if let Some(pause) = pause {
            self.stats.shared_pauses.add(1);
            tracing::warn!("the shared cache is left alone for {} s: {error}", pause.as_secs());
        }
    }

    /// Where the source is as late, the network or this machine is slow: that is no failure of a
    /// cache that gives other answers, whole ones.
    fn was_late(&self, duty: Duty, as_the_source: bool) {
        self.stats.shared_late.add(1);
        let answers = {
            let state = &mut *self.state.lock();
            let of_duty = match duty {
                Duty::Read => &mut state.reading,
                Duty::Store => &mut state.filling,
            };
            of_duty.answers(Instant::now())
        };
        if as_the_source && answers {
            return;
        }
        let error = StoreError::TimedOut("the source was faster".to_owned());
        match duty {
            Duty::Read => self.failed(&error),
            Duty::Store => self.not_stored(&error),
        }
    }

    /// Keeps what was fetched since `begun`, if there is memory for it. It is waited for while the
    /// cache keeps up; readers have their bytes already.
    async fn keep(
        self: &Arc<Self>,
        (version, identity): (&ObjectVersion, Identity),
        (start, bytes): (u64, &[u8]),
        begun: Instant,
        right: Option<FillRight>,
    ) {
        let now = Instant::now();
        let (is_left_alone, has_company) = {
            let state = self.state.lock();
            let is_left_alone = state.filling.is_open() || state.reading.is_open();
            (is_left_alone, state.outlook.has_company(now))
        };
        // Nor is it known what is there while nothing is read.
        if right.is_none() && is_left_alone {
            return;
        }
        let others_wait = has_company && right == Some(FillRight::Owner);
        let deadline = now + if others_wait { FOR_OTHERS } else { FOR_ROOM };
        let (mut right, may_wait) = (right.unwrap_or(FillRight::IfAbsent), right.is_some());
        let (mut at, end) = (start, start + bytes.len() as u64);
        while at < end {
            let name = EntryName::at(identity, version, at);
            let until = name.object_range().end.min(end);
            let piece = &bytes[size(at - start)..size(until - start)];
            let entry_bytes = self.sealer.entry_bytes(&name);
            let is_whole = until - at == name.unit_bytes;
            let memory = if may_wait && is_whole {
                self.fills.room(entry_bytes, deadline).await
            } else {
                None
            };
            match self.fills.add(&self.sealer, name, (&(at..until), piece), (right, memory)) {
                Ok(Some(whole)) => drop(tokio::spawn(self.clone().store(whole, begun))),
                Ok(None) => {}
                Err(length) => self.stats.shared_dropped_bytes.add(length),
            }
            if right == FillRight::Late {
                // Nothing is known of the next unit.
                right = FillRight::IfAbsent;
            }
            at = until;
        }
    }

    /// Puts a claim in the place of an entry, also when that is waited for no longer; `false` if
    /// there is one, or an entry.
    async fn claim(self: Arc<Self>, name: EntryName) -> Result<bool, StoreError> {
        let late = || StoreError::TimedOut("a claim was not taken".to_owned());
        let claiming = tokio::spawn(async move {
            let key = name.key();
            let put = self.entries.put(&key, Bytes::from_static(CLAIM), true);
            let claimed = timeout(FILL_LIMIT, put).await.map_err(|_elapsed| late())??;
            self.state.lock().filling.worked(Instant::now());
            Ok(claimed)
        });
        // It ends early with the program only.
        claiming.await.unwrap_or_else(|_gone| Err(late()))
    }

    /// Stores an entry, which was begun to be fetched then, in the background.
    async fn store(self: Arc<Self>, whole: PartialEntry, begun: Instant) {
        let PartialEntry { name, right, entry, .. } = whole;
        let key = name.key();
        if right == FillRight::Late {
            // A thousand mounts that have waited for the same are to store it a few times.
            let share =
                u32::try_from(name.scatter() ^ u64::from(std::process::id())).unwrap_or_default();
            sleep(SPREAD * (share % 1024) / 1024).await;
            let found = timeout(FILL_LIMIT, self.entries.get(&key, 0..1)).await;
            if matches!(found, Ok(Ok(Some(found))) if found.length == entry.len() as u64) {
                return;
            }
        }
        let Ok(_place) = self.fills.at_once.acquire().await else { return };
        let only_if_absent = right == FillRight::IfAbsent;
        let put = self.entries.put(&key, Bytes::from(entry), only_if_absent);
        let late = |_elapsed| Err(StoreError::TimedOut("an entry was not taken".to_owned()));
        let stored = timeout(FILL_LIMIT, put).await.unwrap_or_else(late);
        if right == FillRight::Owner {
            self.state.lock().outlook.filled(begun.elapsed());
        }
        self.stored(&name, &stored);
    }

    fn stored(&self, name: &EntryName, stored: &Result<bool, StoreError>) {
        let now = Instant::now();
        match stored {
            Ok(is_new) => {
                let mut state = self.state.lock();
                state.filling.worked(now);
                if *is_new {
                    self.stats.shared_filled_bytes.add(name.unit_bytes);
                } else {
                    // Another mount is about.
                    state.outlook.met(now);
                }
            }
            Err(error) => {
                self.stats.shared_dropped_bytes.add(name.unit_bytes);
                self.not_stored(error);
            }
        }
    }

    fn not_stored(&self, error: &StoreError) {
        let now = Instant::now();
        let pause = {
            let filling = &mut self.state.lock().filling;
            if is_refusal(error) { filling.refused(now) } else { filling.failed(now) }
        };
        if let Some(pause) = pause {
            self.stats.shared_pauses.add(1);
            let seconds = pause.as_secs();
            tracing::warn!("nothing is stored in the shared cache for {seconds} s: {error}");
        }
    }
}

impl Reading {
    /// Receives a block, and proves it.
    async fn next(&mut self, cache: &SharedCache) -> Result<(), StoreError> {
        let block = self.blocks.start;
        let place = cache.sealer.place(&self.name, &(block..block + 1));
        self.sealed.clear();
        self.body.take(place.end - place.start, &mut self.sealed).await?;
        self.blocks.start += 1;
        if cache.sealer.open(&self.name, self.name.block(block), &self.sealed).is_none() {
            cache.is_wrong(&self.name);
            return Err(StoreError::nonsense("an entry with a block that is not right"));
        }
        Ok(())
    }

    /// The block that was received last, and where it begins in the object.
    fn bytes(&self, cache: &SharedCache) -> (u64, &[u8]) {
        let start = self.name.object_range().start + (self.blocks.start - 1) * BLOCK_BYTES;
        (start, &self.sealed[..self.sealed.len() - cache.sealer.tag_bytes()])
    }
}

/// It does not serve this mount, whatever it is asked.
fn is_refusal(error: &StoreError) -> bool {
    match error.class() {
        Class::Denied | Class::Unsigned | Class::NoSuchBucket | Class::WrongRegion => true,
        Class::NotFound
        | Class::Changed
        | Class::Archived
        | Class::Throttled
        | Class::Unavailable
        | Class::TimedOut
        | Class::Nonsense
        | Class::Unordered => false,
    }
}
