//! How much memory names take, within a bound, and which directory gives its up first. Pure.
//!
//! Everything that is kept of directories is counted, whether it can be given up or not: listings, what
//! has come of those under way, pages that a listing may begin with, and what is known of a directory
//! beside all that. What can be given up goes in the order of last use until the rest fits.

use std::sync::Arc;

use lru::LruCache;

/// Memory of what is known of directories.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: usize,
    most: usize,
    /// The directories that keep something that can be given up, by last use.
    by_use: LruCache<Arc<str>, ()>,
}

impl Held {
    /// Nothing yet, and not to be more than `most`.
    pub(crate) fn within(most: usize) -> Self {
        Self { bytes: 0, most, by_use: LruCache::unbounded() }
    }

    /// The bound.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// All that is held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So much has come to it.
    pub(crate) fn more(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// So much has been given up.
    pub(crate) fn less(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "what is given up was counted");
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether something must be given up.
    pub(crate) fn is_too_much(&self) -> bool {
        self.bytes > self.most
    }

    /// This directory keeps something that can be given up, and was used now.
    pub(crate) fn keeps(&mut self, directory: &Arc<str>) {
        self.by_use.put(directory.clone(), ());
    }

    /// It was used now.
    pub(crate) fn used(&mut self, directory: &str) {
        self.by_use.promote(directory);
    }

    /// It keeps nothing any more that can be given up.
    pub(crate) fn keeps_nothing(&mut self, directory: &str) {
        self.by_use.pop(directory);
    }

    /// Of those that may give something up, the one that was not used for longest.
    pub(crate) fn first_to_go(&self, may: impl Fn(&Arc<str>) -> bool) -> Option<Arc<str>> {
        self.by_use.iter().rev().map(|(directory, ())| directory).find(|key| may(key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_used_for_longest_goes_first_if_it_may() {
        let mut held = Held::within(10);
        let [a, b, c] = ["a/", "b/", "c/"].map(Arc::<str>::from);
        for directory in [&a, &b, &c] {
            held.keeps(directory);
            held.more(5);
        }
        assert!(held.is_too_much());
        held.used("a/");
        held.used("never kept/");
        assert_eq!(held.first_to_go(|_| true), Some(b.clone()));
        assert_eq!(held.first_to_go(|key| *key != b), Some(c.clone()));
        held.keeps_nothing("b/");
        held.less(5);
        assert!(!held.is_too_much());
        assert_eq!(held.first_to_go(|_| true), Some(c));
        assert_eq!(held.first_to_go(|_| false), None);
    }
}
