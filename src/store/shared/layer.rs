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

use super::entry::{CLAIM, Identity, SharedOrigin, size};
use super::fills::FillRight;
use super::{Look, Reading, SharedCache, Wanted, Way};
use crate::store::{
    Class, Destination, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
};

/// Object versions of which it is known that the source lets this mount read them: 80 bytes each.
const ALLOWED: usize = 1 << 16;
/// The first pause between two looks for what another mount fetches; each is half as long again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Units that one GET may be for, and that are claimed one after the other before it.
const CLAIMED_AT_ONCE: usize = 4;

/// What is to be done after the cache was asked for a unit.
enum Step {
    /// All of it was shown, or more.
    Next,
    /// The source must be asked for the rest, up to here, which may then be stored.
    Fetch { right: Option<FillRight>, until: u64 },
}

/// The layer.
pub struct SharedCached {
    source: Arc<dyn ObjectStore>,
    origin: SharedOrigin,
    cache: Arc<SharedCache>,
    /// What the source has let this mount read.
    allowed: Mutex<LruCache<Identity, ()>>,
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

    /// Asks the cache for a unit, or for a part of it.
    async fn ask(
        &self,
        object: (&ObjectVersion, Identity),
        wanted: &Wanted,
        rest: &Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<Step, StoreError> {
        let cache = &*self.cache;
        let fetch = |right| Ok(Step::Fetch { right, until: rest.end });
        let Way::Ask(patience) = cache.way() else { return fetch(None) };
        let (is_alone, is_warm) = {
            let outlook = &mut cache.state.lock().outlook;
            (outlook.is_alone(), outlook.is_warm())
        };
        if is_alone {
            return fetch(cache.right(wanted, FillRight::IfAbsent));
        }
        let mut rights = JoinSet::new();
        if is_warm {
            self.begin_asking(&mut rights, object);
        }
        let found = {
            let mut look = pin!(cache.look(wanted));
            match timeout(patience, &mut look).await {
                Ok(found) => found,
                Err(_elapsed) => {
                    return self.race(object, (look, patience), (wanted, rest), into).await;
                }
            }
        };
        if found.is_ok() {
            cache.worked();
        }
        match found {
            Ok(Look::Entry(reading)) => {
                cache.state.lock().outlook.shared();
                self.show_if_allowed(object, (wanted, rest), reading, rights, into).await
            }
            Ok(Look::Nothing) => {
                drop(rights);
                self.claim(object, (wanted, rest), patience, into).await
            }
            Ok(Look::Claim { is_stale: false }) if wanted.is_whole() => {
                self.wait(object, (wanted, rest), patience, into).await
            }
            Ok(Look::Claim { .. }) => fetch(cache.right(wanted, FillRight::Late)),
            Err(error) => {
                cache.failed(&error);
                // What is wrong is replaced.
                let is_wrong = error.class() == Class::Nonsense;
                fetch(is_wrong.then(|| cache.right(wanted, FillRight::Owner)).flatten())
            }
        }
    }

    /// Puts a claim in the place of a unit that nobody has stored, to fetch it for all; and of
    /// those behind it that are wanted too, for one GET.
    async fn claim(
        &self,
        object: (&ObjectVersion, Identity),
        (wanted, rest): (&Wanted, &Range<u64>),
        patience: Duration,
        into: &mut dyn Destination,
    ) -> Result<Step, StoreError> {
        let cache = &*self.cache;
        let mut until = wanted.range.start;
        for _ in 0..CLAIMED_AT_ONCE {
            if until == rest.end {
                break;
            }
            let next = Wanted::first_of(object, &(until..rest.end));
            if cache.right(&next, FillRight::Owner).is_none() {
                break;
            }
            let key = next.name.key();
            let put = cache.entries.put(&key, Bytes::from_static(CLAIM), true);
            match timeout(cache.longest_patience(), put).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) if until > wanted.range.start => break,
                Ok(Ok(false)) => return self.wait(object, (wanted, rest), patience, into).await,
                Ok(Err(error)) => {
                    cache.not_stored(&error);
                    break;
                }
                // It may be there, or come: then it is ours.
                Err(_elapsed) => {
                    cache.not_stored(&StoreError::TimedOut("a claim was not taken".to_owned()));
                }
            }
            until = next.range.end;
        }
        cache.state.lock().outlook.unshared();
        let is_ours = until > wanted.range.start;
        let right = is_ours.then_some(FillRight::Owner);
        Ok(Step::Fetch { right, until: if is_ours { until } else { rest.end } })
    }

    /// Waits for a mount that fetches the unit.
    async fn wait(
        &self,
        object: (&ObjectVersion, Identity),
        (wanted, rest): (&Wanted, &Range<u64>),
        patience: Duration,
        into: &mut dyn Destination,
    ) -> Result<Step, StoreError> {
        let cache = &*self.cache;
        let fetch = |right| Ok(Step::Fetch { right, until: rest.end });
        cache.stats.shared_waits.add(1);
        let until = {
            let outlook = &mut cache.state.lock().outlook;
            outlook.shared();
            Instant::now() + outlook.longest_wait()
        };
        let mut pause = SHORTEST_PAUSE;
        loop {
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            match timeout(patience, cache.look(wanted)).await {
                Ok(Ok(Look::Entry(reading))) => {
                    let rights = JoinSet::new();
                    return self
                        .show_if_allowed(object, (wanted, rest), reading, rights, into)
                        .await;
                }
                Ok(Ok(Look::Claim { is_stale: false })) if Instant::now() < until => {}
                Ok(Ok(Look::Claim { .. } | Look::Nothing)) => {
                    cache.stats.shared_late.add(1);
                    return fetch(cache.right(wanted, FillRight::Late));
                }
                Ok(Err(error)) => {
                    cache.failed(&error);
                    return fetch(None);
                }
                Err(_elapsed) if Instant::now() < until => {}
                Err(_elapsed) => {
                    cache.was_late(false);
                    return fetch(None);
                }
            }
        }
    }

    /// Asks the source too, because the cache is late: the first one that is right counts.
    async fn race(
        &self,
        object: (&ObjectVersion, Identity),
        (mut look, patience): (
            Pin<&mut (impl Future<Output = Result<Look, StoreError>> + Send)>,
            Duration,
        ),
        (wanted, rest): (&Wanted, &Range<u64>),
        into: &mut dyn Destination,
    ) -> Result<Step, StoreError> {
        let cache = &*self.cache;
        let before = into.taken().len();
        let begun = Instant::now();
        let reading = {
            let mut source = pin!(self.source.get_range(object.0, rest.clone(), &mut *into));
            let mut looking = true;
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut source => {
                        if looking {
                            cache.was_late(begun.elapsed() >= patience);
                        }
                        outcome?;
                        break None;
                    }
                    found = &mut look, if looking => {
                        looking = false;
                        match found {
                            Ok(found) => {
                                cache.worked();
                                if let Look::Entry(reading) = found && self.is_allowed(object.1) {
                                    break Some(reading);
                                }
                            }
                            Err(error) => cache.failed(&error),
                        }
                    }
                }
            }
        };
        if let Some(reading) = reading {
            // Behind what the source has given until now.
            let at = rest.start + (into.taken().len() - before) as u64;
            return Ok(self.show((wanted, rest), at, reading, into).await);
        }
        self.fetched(object, rest, begun, &into.taken()[before..], None).await;
        Ok(Step::Next)
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

    /// Shows an entry when the source has said, once for each version, that this mount may read it.
    /// If it may not, or the source has another version, the GET of the source says why.
    async fn show_if_allowed(
        &self,
        object: (&ObjectVersion, Identity),
        (wanted, rest): (&Wanted, &Range<u64>),
        reading: Reading,
        mut rights: JoinSet<bool>,
        into: &mut dyn Destination,
    ) -> Result<Step, StoreError> {
        if !self.is_allowed(object.1) {
            if rights.is_empty() {
                self.begin_asking(&mut rights, object);
            }
            if !matches!(rights.join_next().await, Some(Ok(true))) {
                return Ok(Step::Fetch { right: None, until: rest.end });
            }
            self.allowed.lock().put(object.1, ());
        }
        Ok(self.show((wanted, rest), wanted.range.start, reading, into).await)
    }

    /// Shows what is wanted of an entry, from `at` of the object on.
    async fn show(
        &self,
        (wanted, rest): (&Wanted, &Range<u64>),
        mut at: u64,
        mut reading: Reading,
        into: &mut dyn Destination,
    ) -> Step {
        let cache = &*self.cache;
        let deadline = Instant::now() + cache.state.lock().outlook.longest_body();
        loop {
            let (start, bytes) = reading.bytes(cache);
            let end = (start + bytes.len() as u64).min(wanted.range.end);
            if at < end {
                into.put_slice(&bytes[size(at - start)..size(end - start)]);
                cache.stats.shared_hit_bytes.add(end - at);
                at = end;
            }
            if at >= wanted.range.end {
                return Step::Next;
            }
            let silent = Instant::now() + cache.longest_patience();
            match timeout_at(deadline.min(silent), reading.next(cache)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    cache.failed(&error);
                    return Step::Fetch { right: None, until: rest.end };
                }
                Err(_elapsed) => {
                    cache.was_late(false);
                    return Step::Fetch { right: None, until: rest.end };
                }
            }
        }
    }

    /// The source has given these bytes.
    async fn fetched(
        &self,
        (version, identity): (&ObjectVersion, Identity),
        range: &Range<u64>,
        begun: Instant,
        bytes: &[u8],
        right: Option<FillRight>,
    ) {
        if !self.cache.trusts {
            self.allowed.lock().put(identity, ());
        }
        if right.is_some() {
            self.cache.state.lock().outlook.fetched(begun.elapsed());
        }
        self.cache.stats.shared_missed_bytes.add(range.end - range.start);
        self.cache.keep((identity, version), range.start, bytes, right).await;
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
            match self.ask(object, &wanted, &rest, &mut *into).await? {
                Step::Next => {}
                Step::Fetch { right, until } => {
                    let (taken, begun) = (into.taken().len(), Instant::now());
                    let rest = range.start + (taken - before) as u64..until;
                    self.source.get_range(version, rest.clone(), &mut *into).await?;
                    self.fetched(object, &rest, begun, &into.taken()[taken..], right).await;
                }
            }
        }
    }
}
