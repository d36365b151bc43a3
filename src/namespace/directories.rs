//! What is believed of each directory and until when: listings, epochs, mtimes. Pure; time comes
//! in as an argument.
//!
//! A directory keeps its newest listing and the two before it. An old one is not believed, but it
//! lets unchanged names keep their inode numbers, and it translates the cookies of a scan that
//! began on it. A re-listing that finds the same things under the same numbers renews the newest
//! listing and makes no new version.
//!
//! Invariant: the mtime of a directory that the kernel knows never goes back, and moves on before
//! the kernel can see other entries than it saw under the mtime before. The kernel compares mtimes
//! at the beginning of a scan to decide whether the directory pages it keeps are still good
//! (`fuse_readdir_cached` in Linux's fs/fuse/readdir.c).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use tokio::time::Instant;

use super::inodes::{Inode, InodeRef};
use super::listing::Listing;
use super::tree::Hidden;
use super::{FOREVER, Ino};

/// The newest listing, and two more for scans and inode numbers.
const VERSIONS: usize = 3;

/// After so many lookups that cost requests, a directory is worth listing.
const MISSES_BEFORE_LISTING: u32 = 2;

/// What an empty listing weighs, in entries: its directory's state is not free.
const LISTING_WEIGHT: usize = 16;

/// Two mtimes of a directory differ by this at least: the least that Python's float `st_mtime`
/// can tell apart.
const MTIME_STEP: Duration = Duration::from_micros(1);

/// Until when an answer is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry(Option<Instant>);

impl Expiry {
    /// An answer to a request that was sent at `asked`; believed for ever without a `ttl`.
    ///
    /// Counted from the question, for the answer may have been true no longer than that.
    pub(super) fn after(asked: Instant, ttl: Option<Duration>) -> Self {
        Self(ttl.and_then(|ttl| asked.checked_add(ttl)))
    }

    /// How long it is still believed, `None` when it is not.
    pub(super) fn remaining(self, now: Instant) -> Option<Duration> {
        let Some(until) = self.0 else { return Some(FOREVER) };
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

/// Everything that is believed of directories, within a bound on listed entries.
#[derive(Debug)]
pub(super) struct Directories {
    states: HashMap<Arc<str>, Directory>,
    /// The directories that keep a listing, by last use.
    listed: LruCache<Arc<str>, ()>,
    /// Weight of all listings of all directories, and its bound.
    weight: usize,
    max_weight: usize,
    last_epoch: u64,
    last_generation: u32,
    mounted_at: SystemTime,
    started: Instant,
    /// The mtime of a directory that nothing is known of: the time of the mount, or the time at
    /// which such knowledge was last thrown away, so that a directory that comes back never has
    /// an mtime of before.
    first_mtime: SystemTime,
}

#[derive(Debug)]
struct Directory {
    /// Newest first, at most [`VERSIONS`].
    versions: VecDeque<Arc<Listing>>,
    /// Of the newest version; `None` if its names were dropped and not even a scan may go on.
    expiry: Option<Expiry>,
    /// How long the last listing took.
    listing_took: Duration,
    /// Answers to questions of an older epoch are not believed.
    epoch: u64,
    mtime: SystemTime,
    /// The mtime has moved on since the newest version was believed.
    mtime_moved: bool,
    misses: u32,
    being_listed: bool,
    /// Numbers that lookups have given out while the directory was being listed.
    issued: Vec<(Ino, Inode)>,
    /// Reasons for hiding keys that the log has seen.
    warned: Vec<Hidden>,
}

/// How a scan goes on.
#[derive(Clone, Debug)]
pub(super) enum Resume {
    /// From this entry of this listing.
    At(Arc<Listing>, usize),
    /// After a new listing: behind this entry of this old one, or at the beginning.
    Relist(Option<(Arc<Listing>, usize)>),
    /// Nobody knows any more where it was.
    Stale,
}

impl Directories {
    /// Believes nothing yet; `max_weight` bounds the entries of all listings together.
    pub(super) fn new(mounted_at: SystemTime, now: Instant, max_weight: usize) -> Self {
        Self {
            states: HashMap::new(),
            listed: LruCache::unbounded(),
            weight: 0,
            max_weight,
            last_epoch: 0,
            last_generation: 0,
            mounted_at,
            started: now,
            first_mtime: mounted_at,
        }
    }

    /// The kernel knows a directory from here on, until [`Self::release`].
    pub(super) fn known(&mut self, prefix: &Arc<str>) {
        self.state(prefix);
    }

    /// The directory's epoch, which changes when its names are dropped.
    pub(super) fn epoch(&mut self, prefix: &Arc<str>) -> u64 {
        self.state(prefix).epoch
    }

    /// Whether answers to a question of this epoch are still to be believed.
    pub(super) fn is_current(&self, prefix: &str, epoch: u64) -> bool {
        self.states.get(prefix).is_some_and(|directory| directory.epoch == epoch)
    }

    /// The complete listing that is believed, and for how long.
    pub(super) fn fresh(&mut self, prefix: &str, now: Instant) -> Option<(Arc<Listing>, Duration)> {
        let directory = self.states.get(prefix)?;
        let fresh = (directory.versions.front()?.clone(), directory.expiry?.remaining(now)?);
        self.listed.promote(prefix);
        Some(fresh)
    }

    /// The number that a listing of the directory `prefix` has given to this.
    pub(super) fn number(&self, prefix: &str, of: InodeRef<'_>) -> Option<Ino> {
        self.states.get(prefix)?.versions.iter().find_map(|listing| listing.number(of))
    }

    /// Where a scan stands that has delivered the entries before `index` of listing `generation`.
    pub(super) fn resume(&mut self, prefix: &str, generation: u32, index: usize) -> Resume {
        let Some(directory) = self.states.get(prefix) else { return Resume::Stale };
        let mut versions = directory.versions.iter();
        let Some(old) = versions.find(|listing| listing.generation() == generation) else {
            return Resume::Stale;
        };
        if index > old.len() {
            return Resume::Stale;
        }
        self.listed.promote(prefix);
        let newest = &directory.versions[0];
        let delivered = index.checked_sub(1).map(|last| (old.clone(), last));
        if directory.expiry.is_none() {
            return Resume::Relist(delivered);
        }
        if old.generation() == newest.generation() {
            return Resume::At(old.clone(), index);
        }
        let index = delivered.map_or(0, |(old, last)| newest.behind(&old, last));
        Resume::At(newest.clone(), index)
    }

    /// Counts a lookup that costs requests. True when the directory is worth listing: it has come
    /// to [`MISSES_BEFORE_LISTING`], and a listing would be believed for longer than it takes.
    pub(super) fn missed(&mut self, prefix: &Arc<str>, ttl: Option<Duration>) -> bool {
        let directory = self.state(prefix);
        directory.misses += 1;
        directory.misses >= MISSES_BEFORE_LISTING
            && !directory.being_listed
            && ttl.is_none_or(|ttl| ttl > directory.listing_took * 2)
    }

    /// A listing begins.
    pub(super) fn listing_begins(&mut self, prefix: &Arc<str>) {
        let directory = self.state(prefix);
        directory.misses = 0;
        directory.being_listed = true;
        directory.issued.clear();
    }

    /// A lookup has given this number out without asking a listing.
    pub(super) fn issued(&mut self, prefix: &str, ino: Ino, inode: &Inode) {
        if let Some(directory) = self.states.get_mut(prefix).filter(|state| state.being_listed) {
            directory.issued.push((ino, inode.clone()));
        }
    }

    /// A listing that began in `epoch` has failed; `gone`: it found no such directory.
    pub(super) fn listing_failed(&mut self, prefix: &str, epoch: u64, gone: bool) {
        let directory = self.states.get_mut(prefix).filter(|state| state.epoch == epoch);
        if let Some(directory) = directory {
            directory.being_listed = false;
            directory.misses = 0;
            if gone {
                directory.expiry = None;
            }
        }
    }

    /// A listing that began in `epoch`, at `asked`, is complete. Gives what it has become: itself,
    /// or the version before if nothing has changed, or a newer one. Throws old listings of other
    /// directories away to stay within the bound, and forgets those directories that nobody `knows`.
    pub(super) fn install(
        &mut self,
        mut listing: Listing,
        (epoch, asked, ttl): (u64, Instant, Option<Duration>),
        now: Instant,
        knows: impl Fn(&str) -> bool,
    ) -> Arc<Listing> {
        let prefix = listing.prefix().clone();
        let (mounted_at, started) = (self.mounted_at, self.started);
        self.last_generation = (self.last_generation + 1) & (u32::MAX >> 1);
        self.last_generation = self.last_generation.max(1);
        let generation = self.last_generation;
        let directory = self.state(&prefix);

        let in_epoch = directory.epoch == epoch;
        if in_epoch {
            directory.being_listed = false;
            for (ino, inode) in directory.issued.drain(..) {
                listing.adopt(ino, inode.by_ref());
            }
        }
        // Names were dropped while it was made, so nobody is to believe it. Whoever waited for it
        // may scan what has been listed since, or else this.
        let newer = directory.versions.front().filter(|_| !in_epoch && directory.expiry.is_some());
        if let Some(newer) = newer {
            return newer.clone();
        }
        directory.expiry =
            Some(if in_epoch { Expiry::after(asked, ttl) } else { Expiry(Some(asked)) });

        let same = directory.versions.front().filter(|old| old.is_same(&listing)).cloned();
        let differs = same.is_none() && !directory.versions.is_empty();
        if differs && !directory.mtime_moved {
            directory.mtime = moved(directory.mtime, mounted_at + (now - started));
        }
        directory.mtime_moved = false;
        let weight_before = directory.weight();
        let installed = same.unwrap_or_else(|| {
            listing.set_generation(generation);
            let listing = Arc::new(listing);
            directory.versions.push_front(listing.clone());
            directory.versions.truncate(VERSIONS);
            listing
        });
        directory.listing_took = now - asked;
        directory.misses = 0;
        let weight_after = directory.weight();
        self.weight = self.weight - weight_before + weight_after;
        self.listed.put(prefix.clone(), ());
        self.evict(&prefix, now, knows);
        installed
    }

    /// The first time that keys are hidden in a directory for this reason.
    pub(super) fn is_first_warning(&mut self, prefix: &Arc<str>, reason: Hidden) -> bool {
        let warned = &mut self.state(prefix).warned;
        let first = !warned.contains(&reason);
        if first {
            warned.push(reason);
        }
        first
    }

    /// The directory's mtime and how long the kernel may believe it: as long as the listing, and
    /// `unlisted_ttl` if there is none, for then the kernel has no pages to keep.
    pub(super) fn attributes(
        &mut self,
        prefix: &str,
        unlisted_ttl: Duration,
        now: Instant,
    ) -> (SystemTime, Duration) {
        let Some(directory) = self.states.get_mut(prefix) else {
            return (self.first_mtime, unlisted_ttl);
        };
        if directory.versions.is_empty() {
            let ttl = if directory.being_listed { Duration::ZERO } else { unlisted_ttl };
            return (directory.mtime, ttl);
        }
        let fresh = directory.expiry.and_then(|expiry| expiry.remaining(now));
        if fresh.is_none() && !directory.mtime_moved {
            directory.mtime = moved(directory.mtime, self.mounted_at + (now - self.started));
            directory.mtime_moved = true;
        }
        (directory.mtime, fresh.unwrap_or(Duration::ZERO))
    }

    /// Believes nothing of a directory's names any more.
    pub(super) fn drop_names(&mut self, prefix: &str) {
        if let Some(directory) = self.states.get_mut(prefix) {
            self.last_epoch += 1;
            directory.drop_names(self.last_epoch);
        }
    }

    /// Believes no name any more.
    pub(super) fn drop_all_names(&mut self) {
        self.last_epoch += 1;
        for directory in self.states.values_mut() {
            directory.drop_names(self.last_epoch);
        }
    }

    /// The kernel has forgotten a directory.
    pub(super) fn release(&mut self, prefix: &str, now: Instant) {
        let idle = |state: &Directory| state.versions.is_empty() && !state.being_listed;
        if self.states.get(prefix).is_some_and(idle) {
            self.states.remove(prefix);
            self.first_mtime = self.mounted_at + (now - self.started);
        }
    }

    fn state(&mut self, prefix: &Arc<str>) -> &mut Directory {
        let mtime = self.first_mtime;
        let last_epoch = &mut self.last_epoch;
        self.states.entry(prefix.clone()).or_insert_with(|| {
            // No answer that was asked for before may count as one of this state.
            *last_epoch += 1;
            Directory {
                versions: VecDeque::new(),
                expiry: None,
                listing_took: Duration::ZERO,
                epoch: *last_epoch,
                mtime,
                mtime_moved: false,
                misses: 0,
                being_listed: false,
                issued: Vec::new(),
                warned: Vec::new(),
            }
        })
    }

    /// Throws listings away, the least recently used directory first, but neither the newest one of
    /// `keep` nor one that is being made anew and lends its numbers.
    fn evict(&mut self, keep: &Arc<str>, now: Instant, knows: impl Fn(&str) -> bool) {
        while self.weight > self.max_weight {
            let states = &self.states;
            let idle = |prefix: &&Arc<str>| {
                *prefix != keep && states.get(*prefix).is_none_or(|state| !state.being_listed)
            };
            let victim = self.listed.iter().rev().map(|(prefix, ())| prefix).find(idle).cloned();
            let prefix = victim.as_ref().unwrap_or(keep);
            let Some(directory) = self.states.get_mut(prefix) else { break };
            let left = usize::from(victim.is_none());
            let thrown = directory.versions.drain(left.min(directory.versions.len())..);
            self.weight -= thrown.map(|listing| listing.len() + LISTING_WEIGHT).sum::<usize>();
            let Some(prefix) = victim else { break };
            self.listed.pop(&prefix);
            // Nobody will know any more when the kernel's pages expire: they do so now.
            directory.mtime = moved(directory.mtime, self.mounted_at + (now - self.started));
            directory.mtime_moved = false;
            directory.expiry = None;
            if !knows(&prefix) {
                self.release(&prefix, now);
            }
        }
    }
}

impl Directory {
    fn weight(&self) -> usize {
        self.versions.iter().map(|listing| listing.len() + LISTING_WEIGHT).sum()
    }

    fn drop_names(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.expiry = None;
        self.misses = 0;
        // Whoever is at work on a listing works for those who came before.
        self.being_listed = false;
        self.issued.clear();
    }
}

fn moved(mtime: SystemTime, now: SystemTime) -> SystemTime {
    now.max(mtime + MTIME_STEP)
}
