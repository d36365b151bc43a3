//! What is worth listing ahead of a program that walks through a directory's directories. Pure.
//!
//! A program that has listed some of them in key order, as `find` and `os.walk` do, will list the
//! next ones. Small ones are listed together, with everything below them, in pages without a
//! delimiter; a few such *runs* are under way at once. Large ones have listings of their own.

use std::sync::Arc;

use crate::names::entries::Listing;

/// Directories listed in order before the next ones are listed ahead: two may be chance.
const STEPS_BEFORE_WALK: u32 = 2;

/// Most directories with listings of their own that are ahead of a walk.
pub(crate) const MOST_AHEAD: usize = 16;

/// Most pages of runs that are ahead of a walk: as many requests as 16 single listings.
const MOST_PAGES: usize = 16;

/// Runs that are under way at once, each of them page by page.
const RUNS: usize = 4;

/// Entries that are searched for the next directory: with more files in between, no walk is fast.
const NEXT_WITHIN: usize = 4096;

/// Memory of a listed key, generously: listings ahead may fill a quarter of the budget.
const KEY_BYTES: usize = 200;

/// Assumed keys of a directory while nothing is known.
const UNKNOWN_KEYS: usize = 100;

/// A walk through one directory's directories.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    /// The parent's listing, and the last directory in it that was listed.
    generation: u32,
    at: usize,
    /// Directories in a row that were the next one.
    steps: u32,
    /// Directories behind it that are listed ahead, and the index where the next ones begin.
    ahead: usize,
    ahead_to: usize,
    /// Keys in and below each of them, as the last run has found.
    keys_each: Option<usize>,
}

#[derive(Debug)]
pub(crate) enum Ahead {
    Single(Arc<str>),
    /// At least two directories of `parent`, in key order, in at most this number of pages without
    /// a delimiter.
    Together {
        parent: Arc<str>,
        directories: Vec<Arc<str>>,
        most_pages: usize,
    },
}

impl Walk {
    /// The directory at index `at` of `listing` is being listed, in pages of `page_keys` keys and
    /// within `listings_bytes`. Directories that `is_known` need no listing; `entries` gives the
    /// number in a directory's last listing.
    pub(crate) fn step(
        &mut self,
        listing: &Listing,
        at: usize,
        (page_keys, listings_bytes): (usize, usize),
        is_known: impl Fn(&str) -> bool,
        entries: impl Fn(&str) -> Option<usize>,
    ) -> Vec<Ahead> {
        let same = self.generation == listing.generation;
        if !same || self.at != at {
            let is_next = same && directories(listing, self.at + 1).next() == Some(at);
            let keys_each = self.keys_each;
            if is_next {
                self.steps = self.steps.saturating_add(1);
                self.ahead = self.ahead.saturating_sub(1);
                self.at = at;
            } else {
                *self = Self { generation: listing.generation, at, keys_each, ..Self::default() };
            }
        }
        if self.steps < STEPS_BEFORE_WALK {
            return Vec::new();
        }
        let doubled = 1_usize.checked_shl(self.steps - 1).unwrap_or(usize::MAX);
        let affordable = listings_bytes / 4 / KEY_BYTES / page_keys;
        let pages = doubled.min(MOST_PAGES).min(affordable);
        let keys_each = self.keys_each.unwrap_or_else(|| guess(listing, at, entries));
        // A page for less than two directories saves nothing.
        if keys_each * 2 > page_keys || pages == 0 {
            let next = directories(listing, at + 1).take(doubled.saturating_mul(2).min(MOST_AHEAD));
            let next = next.map(|index| path(listing, index));
            return next.filter(|next| !is_known(next)).map(Ahead::Single).collect();
        }
        let run_pages = (pages / RUNS).max(1);
        // One directory more, to see where the last one ends.
        let run_keys = run_pages * page_keys - keys_each / 2;
        let most_ahead = pages * page_keys / keys_each;
        let run_directories = run_keys / keys_each;
        let mut chosen = Vec::new();
        if self.ahead == 0 {
            self.ahead_to = at + 1;
        }
        while self.ahead + run_directories <= most_ahead {
            let next = neighbours(listing, self.ahead_to, run_keys, keys_each);
            let Some(last) = next.last() else { break };
            self.ahead += next.len();
            self.ahead_to = last + 1;
            let next = next.into_iter().map(|index| path(listing, index));
            let mut unknown: Vec<_> = next.filter(|next| !is_known(next)).collect();
            chosen.extend(match unknown.len() {
                0 => None,
                1 => unknown.pop().map(Ahead::Single),
                _ => Some(Ahead::Together {
                    parent: listing.prefix.clone(),
                    directories: unknown,
                    most_pages: 2 * run_pages,
                }),
            });
        }
        chosen
    }

    /// A run has seen `keys` keys in and below `directories` directories.
    pub(crate) fn measured(&mut self, keys: usize, directories: usize) {
        if directories > 0 {
            self.keys_each = Some(keys.div_ceil(directories).max(1));
        }
    }
}

/// The indices of directories, from an index on.
fn directories(listing: &Listing, from: usize) -> impl Iterator<Item = usize> {
    let within = from..listing.len().min(from.saturating_add(NEXT_WITHIN));
    within.filter(|index| listing.key(*index).is_directory)
}

/// The next directories that `keys` keys are enough for, with the files between them; at least one.
fn neighbours(listing: &Listing, from: usize, keys: usize, keys_each: usize) -> Vec<usize> {
    let (mut found, mut spent, mut before) = (Vec::new(), 0, from);
    for index in directories(listing, from) {
        // The files in front of the first are not listed.
        let files = if found.is_empty() { 0 } else { index - before };
        spent += files + keys_each;
        if !found.is_empty() && spent > keys {
            break;
        }
        found.push(index);
        before = index + 1;
    }
    found
}

/// Keys in a directory, estimated by the last three.
fn guess(listing: &Listing, at: usize, entries: impl Fn(&str) -> Option<usize>) -> usize {
    let before = (at.saturating_sub(NEXT_WITHIN)..at).rev();
    let before = before.filter(|index| listing.key(*index).is_directory).take(3);
    let known: Vec<_> = before.filter_map(|index| entries(&path(listing, index))).collect();
    if known.is_empty() {
        return UNKNOWN_KEYS;
    }
    known.iter().sum::<usize>().div_ceil(known.len()).max(1)
}

fn path(listing: &Listing, index: usize) -> Arc<str> {
    format!("{}{}/", listing.prefix, String::from_utf8_lossy(listing.key(index).name)).into()
}
