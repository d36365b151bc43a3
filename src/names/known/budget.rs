//! The memory of names, its limit, and the order of eviction. Pure.
//!
//! All that is known of directories is charged, whether it can be evicted or not: listings,
//! finished and under way, first pages, and the directories' records. Eviction is by last use.

use std::sync::Arc;

use lru::LruCache;

#[derive(Debug)]
pub(crate) struct NamesBudget {
    pub(super) bytes: usize,
    pub(super) limit: usize,
    /// Directories with something to evict, by last use.
    by_use: LruCache<Arc<str>, ()>,
}

impl NamesBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: 0, limit, by_use: LruCache::unbounded() }
    }

    pub(crate) fn charge(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(crate) fn refund(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "what is refunded was charged");
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.bytes > self.limit
    }

    /// This directory has something to evict, and was used now.
    pub(crate) fn insert(&mut self, directory: &Arc<str>) {
        self.by_use.put(directory.clone(), ());
    }

    pub(crate) fn touch(&mut self, directory: &str) {
        self.by_use.promote(directory);
    }

    pub(crate) fn remove(&mut self, directory: &str) {
        self.by_use.pop(directory);
    }

    /// The least recently used directory that `may` be evicted.
    pub(crate) fn evict_candidate(&self, may: impl Fn(&Arc<str>) -> bool) -> Option<Arc<str>> {
        self.by_use.iter().rev().map(|(directory, ())| directory).find(|key| may(key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_used_for_longest_goes_first_if_it_may() {
        let mut budget = NamesBudget::new(10);
        let [a, b, c] = ["a/", "b/", "c/"].map(Arc::<str>::from);
        for directory in [&a, &b, &c] {
            budget.insert(directory);
            budget.charge(5);
        }
        assert!(budget.is_exceeded());
        budget.touch("a/");
        budget.touch("never kept/");
        assert_eq!(budget.evict_candidate(|_| true), Some(b.clone()));
        assert_eq!(budget.evict_candidate(|key| *key != b), Some(c.clone()));
        budget.remove("b/");
        budget.refund(5);
        assert!(!budget.is_exceeded());
        assert_eq!(budget.evict_candidate(|_| true), Some(c));
        assert_eq!(budget.evict_candidate(|_| false), None);
    }
}
