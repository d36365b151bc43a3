//! Entries that are to be replaced: their bytes are wrong, or who had claimed them has died.
//!
//! Who reads all of a unit stores it anew at once. In a part of it, or when what came before has
//! been shown, only a mark can be left in the entry's place: the next reader fetches all of it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use tokio::time::timeout;

use super::entry::EntryName;
use super::{FILL_LIMIT, SharedCache};

/// In the place of an entry that was found wrong. Told by its length, which no entry and no claim
/// has; one that is cut to it is wrong.
pub(super) const MARK: &[u8] = b"wrong";
/// The most that are remembered until they were replaced: 64 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

#[derive(Debug)]
pub(super) struct Broken(LruCache<EntryName, ()>);

impl Default for Broken {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Broken {
    pub(super) fn note(&mut self, name: EntryName) {
        self.0.put(name, ());
    }

    pub(super) fn contains(&self, name: &EntryName) -> bool {
        self.0.contains(name)
    }

    pub(super) fn replaced(&mut self, name: &EntryName) {
        self.0.pop(name);
    }
}

impl SharedCache {
    pub(super) fn is_wrong(&self, name: &EntryName) {
        self.state.lock().broken.note(*name);
        self.stats.shared_wrong.add(1);
        tracing::warn!(
            entry = name.key(),
            "the shared cache held wrong bytes: they are fetched again"
        );
    }

    /// Leaves a mark in the place of an entry, in the background.
    pub(super) fn mark(self: &Arc<Self>, name: EntryName) {
        let cache = self.clone();
        tokio::spawn(async move {
            let mark = [Bytes::from_static(MARK)];
            // Whoever finds it wrong again tries it again.
            let _ = timeout(FILL_LIMIT, cache.entries.put(&name.key(), &mark, false)).await;
        });
    }
}
