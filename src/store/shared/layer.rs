//! The layer: how a range of an object gets its bytes, from the shared cache or from the source.

use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::entry::{Identity, SharedOrigin, UNIT_BYTES, size};
use super::fills::FillRight;
use super::{Duty, Late, Look, Reading, STALE, SharedCache, Wanted, Way};
use crate::store::{
    Class, Destination, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
};

/// Object versions of which it is known that the source lets this mount read them: 80 bytes each.
const ALLOWED: usize = 1 << 16;
/// Between two looks for what another mount fetches; each is half as long again as the last.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Units that one GET may be for, and that are claimed one after the other before it.
const CLAIMED_AT_ONCE: usize = 4;

/// What is to be done after the cache was asked for a unit.
enum Step {
    /// All of it was shown, or more.
    Next,
    /// The source must be asked for the rest, up to here, which may then be stored.
    Fetch {
        right: Option<FillRight>,
        until: u64,
        /// What the cache has not done.
        late: Option<Late>,
    },
}

/// The layer.
pub struct SharedCached {
    source: Arc<dyn ObjectStore>,
    origin: SharedOrigin,
    cache: Arc<SharedCache>,
    /// What the source has let this mount read.
    allowed: Mutex<LruCache<Identity, ()>>,
}

/// One question to the cache.
struct Asking<'a> {
    layer: &'a SharedCached,
    object: (&'a ObjectVersion, Identity),
    /// Of the unit in which the rest begins.
    wanted: Wanted,
    /// All that is to come.
    rest: Range<u64>,
    into: &'a mut dyn Destination,
}

impl SharedCached {
    pub fn new(
        source: Arc<dyn ObjectStore>,
        origin: SharedOrigin,
        cache: Arc<SharedCache>,
    ) -> Self {
        let most = ALLOWED.try_into().expect("not zero");
        Self { source, origin, cache, allowed: Mutex::new(LruCache::new(most)) }
    }

    fn is_allowed(&self, identity: Identity) -> bool {
        self.cache.trusts || self.allowed.lock().get(&identity).is_some()
    }

    fn begin_asking(
        &self,
        rights: &mut JoinSet<bool>,
        (version, identity): (&ObjectVersion, Identity),
    ) {
        if self.is_allowed(identity) {
            return;
        }
        let (source, version) = (self.source.clone(), version.clone());
        rights.spawn(async move {
            let head = source.head(&version.key).await;
            head.is_ok_and(|head| head.meta.version == version && !head.meta.archived)
        });
    }

    /// The source has given these bytes, in the time since `begun`.
    async fn fetched(
        &self,
        object: (&ObjectVersion, Identity),
        (start, bytes): (u64, Bytes),
        begun: Instant,
        right: Option<FillRight>,
    ) {
        if !self.cache.trusts {
            self.allowed.lock().put(object.1, ());
        }
        if bytes.len() as u64 <= UNIT_BYTES {
            self.cache.state.lock().outlook.fetched(Instant::now(), begun.elapsed());
        }
        self.cache.stats.shared_missed_bytes.add(bytes.len() as u64);
        self.cache.keep(object, (start, bytes), begun, right).await;
    }

    /// Puts a claim in the place of a unit that nobody has stored, to fetch it for all; and of
    /// those behind it that are wanted too, for one GET. None if another mount was faster.
    async fn claim(&self, object: (&ObjectVersion, Identity), wanted: Range<u64>) -> Option<Step> {
        let cache = &self.cache;
        let (mut until, mut late) = (wanted.start, None);
        for _ in 0..CLAIMED_AT_ONCE {
            if until == wanted.end {
                break;
            }
            let next = Wanted::first_of(object, &(until..wanted.end));
            if cache.right(&next, FillRight::Owner).is_none() {
                break;
            }
            let (given, asked) = (cache.longest_patience(), Instant::now());
            match timeout(given, cache.clone().claim(next.name, None)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) if until > wanted.start => break,
                Ok(Ok(false)) => return None,
                Ok(Err(error)) => {
                    cache.not_stored(&error);
                    break;
                }
                // It is on its way: then it is ours.
                Err(_elapsed) => late = Some(Late { duty: Duty::Store, given, asked }),
            }
            until = next.range.end;
        }
        cache.state.lock().outlook.unshared(Instant::now());
        let is_ours = until > wanted.start;
        let right = is_ours.then_some(FillRight::Owner);
        Some(Step::Fetch { right, until: if is_ours { until } else { wanted.end }, late })
    }
}

impl Asking<'_> {
    /// Asks for the unit, or for the part of it that is wanted.
    async fn step(self) -> Result<Step, StoreError> {
        let cache = &self.layer.cache;
        let (patience, is_warm) = match cache.way(&self.wanted) {
            Way::Past => return Ok(self.fetch(None)),
            Way::Replace => return Ok(self.replace()),
            Way::Alone => return Ok(self.fetch(cache.right(&self.wanted, FillRight::IfAbsent))),
            Way::Ask { patience, is_warm } => (patience, is_warm),
        };
        let mut rights = JoinSet::new();
        if is_warm {
            self.layer.begin_asking(&mut rights, self.object);
        }
        let (asked, mut waited) = (Instant::now(), Duration::ZERO);
        let found = {
            let mut look = pin!(cache.look(self.wanted.clone()));
            loop {
                let since = Instant::now();
                if let Ok(found) = timeout(patience, &mut look).await {
                    break found;
                }
                waited += patience;
                if cache.may_race(asked, since, patience) {
                    return self.race(look, waited).await;
                }
            }
        };
        let is_late = !waited.is_zero();
        if is_late {
            cache.came_late(Late { duty: Duty::Read, given: patience, asked });
        } else if matches!(found, Ok(Look::Nothing | Look::Mark | Look::Claim(_))) {
            // An entry has worked when all of it was shown.
            cache.worked();
        }
        match found {
            Ok(Look::Entry(reading)) => {
                let reading = Reading { is_late, ..reading };
                cache.state.lock().outlook.shared();
                self.show_if_allowed(reading, rights).await
            }
            Ok(Look::Nothing) => {
                drop(rights);
                match self.layer.claim(self.object, self.rest.clone()).await {
                    Some(fetch) => Ok(fetch),
                    None => self.wait(patience).await,
                }
            }
            Ok(Look::Mark) => Ok(self.replace()),
            Ok(Look::Claim(age)) => {
                if self.wanted.is_whole() {
                    return self.wait(patience).await;
                }
                let state = &mut *cache.state.lock();
                if age.is_some_and(|age| age >= state.outlook.longest_wait().max(STALE)) {
                    state.broken.note(self.wanted.name, Instant::now());
                }
                Ok(self.fetch(None))
            }
            Err(error) => {
                cache.failed(&error);
                if error.class() != Class::Nonsense {
                    return Ok(self.fetch(None));
                }
                if !self.wanted.is_whole() {
                    cache.mark(self.wanted.name);
                }
                Ok(self.replace())
            }
        }
    }

    /// Fetches a unit of which the entry is wrong, to store it again; or a part of it, which is put
    /// together with others.
    fn replace(&self) -> Step {
        let right = self.layer.cache.right(&self.wanted, FillRight::Owner);
        Step::Fetch { right, until: self.wanted.range.end, late: None }
    }

    fn fetch(&self, right: Option<FillRight>) -> Step {
        Step::Fetch { right, until: self.rest.end, late: None }
    }

    /// Waits for a mount that fetches the unit. If it takes too long, one of those that wait claims
    /// the unit in its place, and the others wait once more.
    async fn wait(self, patience: Duration) -> Result<Step, StoreError> {
        let cache = &self.layer.cache;
        cache.stats.shared_waits.add(1);
        let (limit, mut pause) = {
            let outlook = &mut cache.state.lock().outlook;
            outlook.waits(Instant::now());
            (outlook.longest_wait(), outlook.first_pause())
        };
        let (mut since, mut waits_again) = (Instant::now(), false);
        loop {
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            let asked = Instant::now();
            let is_over = asked >= since + limit;
            let claim = match timeout(patience, cache.look(self.wanted.clone())).await {
                Ok(Ok(Look::Entry(reading))) => {
                    cache.state.lock().outlook.filled(since.elapsed());
                    return self.show_if_allowed(reading, JoinSet::new()).await;
                }
                Ok(Ok(Look::Claim(age))) => {
                    // There is a second one if this mount has waited already.
                    let is_stale = !waits_again && age.is_some_and(|age| age >= limit.max(STALE));
                    if !is_over && !is_stale {
                        continue;
                    }
                    Some(age.unwrap_or_default())
                }
                // It was deleted.
                Ok(Ok(Look::Nothing)) => None,
                Ok(Ok(Look::Mark)) => return Ok(self.replace()),
                Ok(Err(error)) => {
                    cache.failed(&error);
                    return Ok(self.fetch(None));
                }
                Err(_elapsed) if !is_over => continue,
                Err(_elapsed) => return Ok(self.late(patience, asked)),
            };
            cache.stats.shared_late.add(1);
            let is_ours = match cache.right(&self.wanted, FillRight::Owner) {
                None => return Ok(self.fetch(None)),
                Some(_) => timeout(limit, cache.clone().claim(self.wanted.name, claim)).await,
            };
            if matches!(is_ours, Ok(Ok(true))) {
                let (right, until) = (Some(FillRight::Owner), self.wanted.range.end);
                return Ok(Step::Fetch { right, until, late: None });
            }
            if waits_again || !matches!(is_ours, Ok(Ok(false))) {
                return Ok(self.fetch(cache.right(&self.wanted, FillRight::Late)));
            }
            (since, waits_again) = (Instant::now(), true);
        }
    }

    fn late(&self, given: Duration, asked: Instant) -> Step {
        let late = Some(Late { duty: Duty::Read, given, asked });
        Step::Fetch { right: None, until: self.rest.end, late }
    }

    /// Asks the source too, because the cache is late: the first one that is right counts.
    async fn race(
        self,
        mut look: Pin<&mut (impl Future<Output = Result<Look, StoreError>> + Send)>,
        patience: Duration,
    ) -> Result<Step, StoreError> {
        let (layer, cache) = (self.layer, &*self.layer.cache);
        let before = self.into.taken().len();
        let begun = Instant::now();
        let reading = {
            let (version, rest) = (self.object.0, self.rest.clone());
            let mut source = pin!(layer.source.get_range(version, rest, &mut *self.into));
            let mut looking = true;
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut source => {
                        if looking {
                            let took = begun.elapsed();
                            cache.state.lock().outlook.answered(patience + took);
                            let asked = begun - patience;
                            cache.was_late(Late { duty: Duty::Read, given: patience, asked }, took);
                        }
                        outcome?;
                        break None;
                    }
                    found = &mut look, if looking => {
                        looking = false;
                        if found.is_ok() && !patience.is_zero() {
                            let now = Instant::now();
                            let outlook = &mut cache.state.lock().outlook;
                            outlook.was_first(now, patience + begun.elapsed());
                        }
                        match found {
                            Ok(Look::Entry(reading)) if layer.is_allowed(self.object.1) => {
                                break Some(reading);
                            }
                            Ok(_) => cache.worked(),
                            Err(error) => cache.failed(&error),
                        }
                    }
                }
            }
        };
        let Self { object, rest, into, .. } = &self;
        let at = rest.start + (into.taken().len() - before) as u64;
        if let Some(reading) = reading {
            // Behind what the source has given until now.
            return self.show(at, reading).await;
        }
        layer.fetched(*object, (rest.start, into.share(before)), begun, None).await;
        Ok(Step::Next)
    }

    /// Shows an entry when the source has said, once for each version, that this mount may read it.
    /// If it may not, or the source has another version, the GET of the source says why.
    async fn show_if_allowed(
        self,
        reading: Reading,
        mut rights: JoinSet<bool>,
    ) -> Result<Step, StoreError> {
        let (layer, identity) = (self.layer, self.object.1);
        if !layer.is_allowed(identity) {
            if rights.is_empty() {
                layer.begin_asking(&mut rights, self.object);
            }
            if !matches!(rights.join_next().await, Some(Ok(true))) {
                layer.cache.worked();
                return Ok(self.fetch(None));
            }
            layer.allowed.lock().put(identity, ());
        }
        let start = self.wanted.range.start;
        self.show(start, reading).await
    }

    /// Shows what is wanted of an entry, from `at` of the object on.
    async fn show(self, mut at: u64, mut reading: Reading) -> Result<Step, StoreError> {
        let cache = &self.layer.cache;
        let begun = Instant::now();
        let deadline = begun + cache.state.lock().outlook.longest_body(begun);
        loop {
            for (start, bytes) in reading.blocks(&cache.sealer) {
                let end = (start + bytes.len() as u64).min(self.wanted.range.end);
                if at < end {
                    self.into.put_slice(&bytes[size(at - start)..size(end - start)]);
                    cache.stats.shared_hit_bytes.add(end - at);
                    at = end;
                }
            }
            if at >= self.wanted.range.end {
                if !reading.is_late {
                    cache.worked();
                }
                return Ok(Step::Next);
            }
            let (patience, asked) = (cache.longest_patience(), Instant::now());
            let silent = asked + patience;
            match timeout_at(deadline.min(silent), reading.next(cache)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    cache.failed(&error);
                    if error.class() == Class::Nonsense {
                        cache.mark(self.wanted.name);
                    }
                    return Ok(self.fetch(None));
                }
                Err(_elapsed) => return Ok(self.late(patience, asked)),
            }
        }
    }
}

#[async_trait]
impl ObjectStore for SharedCached {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.source.list_page(request).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let head = self.source.head(key).await?;
        if !self.cache.trusts && !head.meta.archived {
            let identity = self.cache.sealer.identity(&self.origin, &head.meta.version);
            self.allowed.lock().put(identity, ());
        }
        Ok(head)
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        if version.etag.is_empty() {
            // It cannot be told from other versions.
            return self.source.get_range(version, range, into).await;
        }
        let identity = self.cache.sealer.identity(&self.origin, version);
        let object = (version, identity);
        let before = into.taken().len();
        loop {
            let start = range.start + (into.taken().len() - before) as u64;
            if start >= range.end {
                return Ok(());
            }
            let rest = start..range.end;
            let wanted = Wanted::first_of(object, &rest);
            let asking = Asking { layer: self, object, wanted, rest, into: &mut *into };
            let Step::Fetch { right, until, late } = asking.step().await? else { continue };
            let (taken, begun) = (into.taken().len(), Instant::now());
            let start = range.start + (taken - before) as u64;
            self.source.get_range(version, start..until, &mut *into).await?;
            if let Some(late) = late {
                self.cache.was_late(late, begun.elapsed());
            }
            self.fetched(object, (start, into.share(taken)), begun, right).await;
        }
    }
}
