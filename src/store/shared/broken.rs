//! Entries that are to be replaced: their bytes are wrong, or who had claimed them has died.
//!
//! Who reads all of a unit stores it anew at once. In a part of it, or when what came before has
//! been shown, only a mark can be left in the entry's place: the next reader fetches all of it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use tokio::time::{Instant, timeout};

use super::breaker::Admits;
use super::entry::EntryName;
use super::{FILL_LIMIT, SharedCache, not_taken};

/// In the place of an entry that was found wrong. Told by its length, which no entry and no claim
/// has; one that is cut to it is wrong.
pub(super) const MARK: &[u8] = b"wrong";
/// The most that are remembered until they were replaced: 64 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Somebody may have replaced it then: a mount that may not is to find out.
const MEMORY: Duration = Duration::from_mins(1);

/// Each with the time at which it was found to be so.
#[derive(Debug)]
pub(super) struct Broken(LruCache<EntryName, Instant>);

impl Default for Broken {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Broken {
    pub(super) fn note(&mut self, name: EntryName, now: Instant) {
        self.0.put(name, now);
    }

    pub(super) fn contains(&self, name: &EntryName, now: Instant) -> bool {
        self.0.peek(name).is_some_and(|noted| now < *noted + MEMORY)
    }

    pub(super) fn replaced(&mut self, name: &EntryName) {
        self.0.pop(name);
    }
}

impl SharedCache {
    pub(super) fn is_wrong(&self, name: &EntryName) {
        self.state.lock().broken.note(*name, Instant::now());
        self.stats.shared_wrong.add(1);
        tracing::warn!(
            entry = name.key(),
            "the shared cache held wrong bytes: they are fetched again"
        );
    }

    /// Leaves a mark in the place of an entry, in the background, if this mount may. Whoever finds
    /// it wrong again tries it again.
    pub(super) fn mark(self: &Arc<Self>, name: EntryName) {
        if self.state.lock().filling.admits(Instant::now()) == Admits::None {
            return;
        }
        let cache = self.clone();
        tokio::spawn(async move {
            let mark = [Bytes::from_static(MARK)];
            let put = timeout(FILL_LIMIT, cache.entries.put(&name.key(), &mark, false)).await;
            match put.unwrap_or_else(|_elapsed| Err(not_taken("a mark"))) {
                Ok(_) => drop(cache.state.lock().filling.worked(Instant::now())),
                Err(error) => cache.not_stored(&error),
            }
        });
    }
}
