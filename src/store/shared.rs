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

use super::{ObjectVersion, StoreError};
use crate::stats::Stats;

mod breaker;
mod broken;
mod entry;
mod fills;
mod layer;
mod outlook;
mod reading;
#[cfg(test)]
mod tests;

use breaker::{Admits, Breaker, is_refusal};
use broken::{Broken, MARK};
use entry::{CLAIM, EntryName, Identity, size};
pub use entry::{Sealer, SharedOrigin, read_key};
use fills::{FillRight, Fills, PartialEntry};
pub use layer::SharedCached;
use outlook::{ASKED, Outlook};
use reading::Reading;

/// An eighth of the memory budget, and at most 64 MiB, is for units on their way to the cache.
const BUDGET_SHARE: u64 = 8;
const MOST_MEMORY: u64 = 64 << 20;
const LEAST_MEMORY: u64 = 4 << 20;
/// Ages are told in whole seconds: an older claim is older than any wait for it on a machine that
/// is not busy.
const STALE: Duration = Duration::from_secs(3);
/// Mounts that have all waited in vain store what they fetched within this time.
const SPREAD: Duration = Duration::from_secs(2);
/// As long as a store's own silence, where it is not asked too soon.
const WITHOUT_HEDGING: Duration = Duration::from_secs(2);
/// For one request that stores.
const FILL_LIMIT: Duration = Duration::from_secs(10);

/// The store that holds the entries. It needs no order, no listing and no deletion.
#[async_trait]
pub trait EntryStore: Send + Sync + 'static {
    /// A range of an entry; `None` if there is no entry, or it has no such bytes.
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<FoundEntry>, StoreError>;

    /// Stores an entry, of these pieces; `false` if it must be absent, and is not.
    async fn put(
        &self,
        key: &str,
        entry: &[Bytes],
        only_if_absent: bool,
    ) -> Result<bool, StoreError>;
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
    /// Memory of chunks, as long as it is on its way to the cache.
    pub memory_bytes: u64,
}

/// The cache of all buckets of a mount.
pub struct SharedCache {
    entries: Arc<dyn EntryStore>,
    sealer: Sealer,
    trusts: bool,
    hedges: bool,
    state: Mutex<CacheState>,
    /// Held by each question that waits for its first block.
    questions: Arc<()>,
    fills: Fills,
    stats: Arc<Stats>,
}

#[derive(Debug, Default)]
struct CacheState {
    reading: Breaker,
    filling: Breaker,
    outlook: Outlook,
    broken: Broken,
}

/// How a unit is asked for.
enum Way {
    /// Not of the cache.
    Past,
    /// Not of the cache, because its entry is to be replaced.
    Replace,
    /// Not of the cache, in which nobody has stored what this mount has read lately.
    Alone,
    /// Of the cache, and of the source too after this time.
    Ask { patience: Duration, is_warm: bool },
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
    /// Somebody has found it wrong.
    Mark,
    /// For so long, as far as the store tells.
    Claim(Option<Duration>),
}

/// What was late: for how long it was waited for, and since when.
#[derive(Clone, Copy)]
struct Late {
    duty: Duty,
    given: Duration,
    asked: Instant,
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
        Arc::new(Self {
            entries,
            sealer,
            trusts,
            hedges,
            state: Mutex::default(),
            questions: Arc::default(),
            fills,
            stats,
        })
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
        if self.hedges {
            self.state.lock().outlook.longest_patience(Instant::now())
        } else {
            WITHOUT_HEDGING
        }
    }

    fn way(&self, wanted: &Wanted) -> Way {
        let now = Instant::now();
        let keeps_up = self.fills.keeps_up(now);
        let CacheState { reading, filling, outlook, broken } = &mut *self.state.lock();
        let stores = wanted.is_whole() && keeps_up && !filling.is_open();
        let is_small = wanted.name.is_small_object();
        if broken.contains(&wanted.name, now) {
            return Way::Replace;
        }
        let patience = match reading.admits(now) {
            Admits::None => return Way::Past,
            Admits::Trial => Duration::ZERO,
            Admits::All if outlook.is_alone(now, is_small, stores) => return Way::Alone,
            Admits::All if self.hedges => outlook.patience(now, Arc::strong_count(&self.questions)),
            Admits::All => WITHOUT_HEDGING,
        };
        Way::Ask { patience, is_warm: outlook.is_warm() }
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
        let (_question, begun) = (self.questions.clone(), Instant::now());
        let asked = self.entries.get(&name.key(), self.sealer.place(&name, &blocks)).await?;
        let Some(FoundEntry { length, age, mut body }) = asked else { return Ok(Look::Nothing) };
        if length == CLAIM.len() as u64 {
            // To its end, so that the connection can be used again.
            if blocks.start == 0 {
                body.take(length, &mut Vec::new()).await?;
            }
            return Ok(Look::Claim(age));
        }
        if length == MARK.len() as u64 {
            self.state.lock().broken.note(name, Instant::now());
            return Ok(Look::Mark);
        }
        if length != self.sealer.entry_bytes(&name) {
            self.is_wrong(&name);
            return Err(StoreError::nonsense(format!("an entry of {length} bytes")));
        }
        let Range { start, end } = blocks;
        let (sealed, here) = (Vec::new(), start..start);
        let mut reading = Reading { name, body, sealed, here, end, is_late: false };
        reading.next(self).await?;
        let outlook = &mut self.state.lock().outlook;
        outlook.answered(begun.elapsed());
        outlook.heard(Instant::now());
        Ok(Look::Entry(reading))
    }

    fn worked(&self) {
        let now = Instant::now();
        let is_back = {
            let state = &mut *self.state.lock();
            state.outlook.heard(now);
            state.reading.worked(now)
        };
        if is_back {
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

    /// Whether the source is asked too for what was asked for then, and has been waited for since,
    /// so long.
    fn may_race(&self, asked: Instant, since: Instant, patience: Duration) -> bool {
        patience.is_zero()
            || !self.hedges
            || self.state.lock().outlook.may_hedge(Instant::now(), asked, since)
    }

    /// It has answered after all, without a race; so the source is judged by what it took lately.
    fn came_late(&self, late: Late) {
        let source_took = self.state.lock().outlook.source_takes();
        self.was_late(late, source_took.unwrap_or(late.given));
    }

    /// Where the source is as late, the network or this machine is slow: that is no failure of a
    /// cache that gives other answers, whole ones.
    fn was_late(&self, Late { duty, given, asked }: Late, source_took: Duration) {
        self.stats.shared_late.add(1);
        let now = Instant::now();
        let is_accident = {
            let state = &mut *self.state.lock();
            let of_duty = match duty {
                Duty::Read => &mut state.reading,
                Duty::Store => &mut state.filling,
            };
            let is_known = !of_duty.is_late_anew(asked, now);
            (is_known || source_took >= given) && of_duty.answers(now)
        };
        if is_accident {
            return;
        }
        let error = StoreError::TimedOut("the source was faster".to_owned());
        match duty {
            Duty::Read => self.failed(&error),
            Duty::Store => self.not_stored(&error),
        }
    }

    /// Keeps what was fetched since `begun`, if it finds room. That is waited for where others may
    /// wait for the unit: the readers have their bytes already, but their next ones wait for the
    /// place of this GET.
    async fn keep(
        self: &Arc<Self>,
        (version, identity): (&ObjectVersion, Identity),
        (start, bytes): (u64, Bytes),
        begun: Instant,
        right: Option<FillRight>,
    ) {
        let now = Instant::now();
        let (is_left_alone, patience) = {
            let CacheState { reading, filling, outlook, .. } = &*self.state.lock();
            let patience = (right == Some(FillRight::Owner)).then(|| outlook.for_room(now));
            (filling.is_open() || reading.is_open(), patience)
        };
        // Nor is it known what is there while nothing is read.
        if right.is_none() && is_left_alone {
            return;
        }
        let mut right = right.unwrap_or(FillRight::IfAbsent);
        let (mut at, end) = (start, start + bytes.len() as u64);
        while at < end {
            let name = EntryName::at(identity, version, at);
            let until = name.object_range().end.min(end);
            let piece = bytes.slice(size(at - start)..size(until - start));
            let memory = match patience {
                Some(patience) if until - at == name.unit_bytes => {
                    self.fills.room(name.unit_bytes, now + patience).await
                }
                _ => None,
            };
            let is_broken = self.state.lock().broken.contains(&name, now);
            let of_unit = if is_broken { FillRight::Owner } else { right };
            match self.fills.add(name, (&(at..until), &piece), (of_unit, memory)) {
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

    /// Puts a claim in the place of an entry, or beside one that is as old as this, also when that
    /// is waited for no longer; `false` if there is another.
    async fn claim(
        self: Arc<Self>,
        name: EntryName,
        beside: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let late = || not_taken("a claim");
        let claiming = tokio::spawn(async move {
            // Of those beside another, one in each such time.
            let key = match beside {
                None => name.key(),
                Some(age) => format!("{}-{}", name.key(), age.as_secs() / STALE.as_secs()),
            };
            let claim = [Bytes::from_static(CLAIM)];
            let put = self.entries.put(&key, &claim, true);
            let claimed = timeout(FILL_LIMIT, put).await.map_err(|_elapsed| late())??;
            self.state.lock().filling.worked(Instant::now());
            Ok(claimed)
        });
        // It ends early with the program only.
        claiming.await.unwrap_or_else(|_gone| Err(late()))
    }

    /// Stores an entry, which was begun to be fetched then, in the background.
    async fn store(self: Arc<Self>, whole: PartialEntry, begun: Instant) {
        let PartialEntry { name, right, .. } = whole;
        let key = name.key();
        if right == FillRight::Late {
            // A thousand mounts that have waited for the same are to store it a few times.
            let share =
                u32::try_from(name.scatter() ^ u64::from(std::process::id())).unwrap_or_default();
            sleep(SPREAD * (share % 1024) / 1024).await;
        }
        // Not every store refuses what is there.
        let asks = right == FillRight::IfAbsent && name.scatter().is_multiple_of(ASKED.into());
        if asks || right == FillRight::Late {
            let found = timeout(FILL_LIMIT, self.entries.get(&key, 0..1)).await;
            let whole = self.sealer.entry_bytes(&name);
            if matches!(found, Ok(Ok(Some(found))) if found.length == whole) {
                self.state.lock().outlook.met(Instant::now());
                return;
            }
        }
        let Some(_turn) = self.fills.turn(name.unit_bytes).await else { return };
        let (entry, _memory) = whole.sealed(&self.sealer);
        let put = self.entries.put(&key, &entry, right == FillRight::IfAbsent);
        let stored = timeout(FILL_LIMIT, put).await.unwrap_or_else(|_| Err(not_taken("an entry")));
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
                state.broken.replaced(name);
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

fn not_taken(what: &str) -> StoreError {
    StoreError::TimedOut(format!("{what} was not taken"))
}
