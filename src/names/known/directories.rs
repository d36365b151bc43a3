//! What is believed of each directory and until when: listings, epochs, mtimes. Pure; time comes
//! in as an argument.
//!
//! A directory keeps its newest listing and the two before it. An old one is not believed, but it
//! lets unchanged names keep their inode numbers, and it translates the cookies of a scan that
//! began on it. A re-listing that finds the same things under the same numbers renews the newest
//! listing and makes no new version.
//!
//! A listing under way is shown as far as it has come. It has a generation of its own, by which
//! scans go on in it, and in what becomes of it.
//!
//! Invariant: the mtime of a directory that the kernel knows never goes back, and moves on before
//! the kernel can see other entries than it saw under the mtime before. The kernel compares mtimes
//! at the beginning of a scan to decide whether the directory pages it keeps are still good
//! (`fuse_readdir_cached` in Linux's fs/fuse/readdir.c).

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use tokio::time::Instant;

use super::expiry::Expiry;
use crate::names::entries::listing::{Listing, PART_BYTES};
use crate::names::entries::node::{Ino, Inode, InodeRef};
use crate::names::entries::run::Part;
use crate::names::known::budget::Held;
use crate::names::known::progress::{Grower, Growing, Onward};
use crate::names::known::walk::{Ahead, Bounds, MOST_AHEAD, Surroundings, Walk};
use crate::names::rules;
use crate::names::rules::Hidden;
use crate::store::{ListEntry, ListPage};

/// The newest listing, and two more for scans and inode numbers.
const VERSIONS: usize = 3;

/// After so many lookups that cost requests, a directory is worth listing.
const MISSES_BEFORE_LISTING: u32 = 2;

/// Newer generations under which a version is known, because it was found again: as many as there
/// are versions.
const ALIASES: usize = VERSIONS;

/// First pages that are kept for a listing to go on from. `ls` lists right after its lookup, so the
/// last few are enough; 1,000 keys are some 300 KB.
const MAX_FIRST_PAGES: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// A listing goes on from no older page, for a store may forget what its token meant; nor from one
/// that has spent a quarter of its life, for the listing would be believed no longer than it.
const FIRST_PAGE_LASTS: Duration = Duration::from_secs(10);

/// Two mtimes of a directory differ by this at least: the least that Python's float `st_mtime`
/// can tell apart.
const MTIME_STEP: Duration = Duration::from_micros(1);

/// Everything that is believed of directories, within a bound on its memory.
#[derive(Debug)]
pub(crate) struct Directories {
    states: HashMap<Arc<str>, Directory>,
    /// Memory of all that is here, and its bound.
    held: Held,
    /// What lookups have seen of directories that have more, as it came.
    first_pages: LruCache<Arc<str>, FirstPage>,
    /// Counts the times that names were dropped.
    last_epoch: u64,
    /// The epoch of a directory that nothing is known of.
    first_epoch: u64,
    last_generation: u32,
    /// How long a listing is believed.
    metadata_ttl: Option<Duration>,
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
    /// Generations of listings that were found to be a version, and that version's own.
    aliases: VecDeque<(u32, u32)>,
    /// Listings under way, and one that has failed, for those who are in the middle of it.
    growing: Vec<Under>,
    /// Of the newest version; `None` if its names were dropped and not even a scan may go on.
    expiry: Option<Expiry>,
    /// What a lookup has seen of it, where that was not all.
    beginning: Option<Beginning>,
    /// How far its directories have been listed one after the other.
    walk: Walk,
    /// How long the last listing took.
    listing_took: Duration,
    /// Answers to questions that were asked in an older epoch are not believed.
    epoch: u64,
    mtime: SystemTime,
    /// The mtime has moved on since the newest version was believed.
    mtime_moved: bool,
    misses: u32,
    being_listed: bool,
    /// Reasons for hiding keys that the log has seen.
    warned: Vec<Hidden>,
}

/// The first page of a directory that has more. It answers lookups; nobody scans it.
#[derive(Debug)]
struct Beginning {
    listing: Arc<Listing>,
    /// `None` if its names were dropped; it goes on lending its numbers.
    expiry: Option<Expiry>,
    only_files: bool,
}

impl Beginning {
    fn remaining(&self, now: Instant) -> Option<Duration> {
        self.expiry?.remaining(now)
    }
}

/// The first page of a directory, with which its listing may begin.
#[derive(Debug)]
pub(crate) struct FirstPage {
    pub(crate) page: ListPage,
    pub(crate) asked: Instant,
    pub(crate) epoch: u64,
}

/// A listing under way.
#[derive(Debug)]
struct Under {
    growing: Growing,
    /// Memory of what it has shown, and of what waits for what comes before it.
    shown_bytes: usize,
    waiting_bytes: usize,
    /// The version that it has been the same as so far.
    same_as: Option<u32>,
}

/// How a scan goes on.
#[derive(Clone, Debug)]
pub(crate) enum Resume {
    /// From this entry of this listing.
    At(Arc<Listing>, usize),
    /// In a listing under way.
    In(Growing, Onward),
    /// After a new listing.
    Relist(Onward),
    /// Nobody knows any more where it was.
    Stale,
}

impl Directories {
    /// Believes nothing yet; `most_bytes` bounds all that is known together.
    pub(crate) fn new(
        mounted_at: SystemTime,
        now: Instant,
        most_bytes: usize,
        metadata_ttl: Option<Duration>,
    ) -> Self {
        Self {
            states: HashMap::new(),
            held: Held::within(most_bytes),
            first_pages: LruCache::new(MAX_FIRST_PAGES),
            last_epoch: 0,
            first_epoch: 0,
            last_generation: 0,
            metadata_ttl,
            mounted_at,
            started: now,
            first_mtime: mounted_at,
        }
    }

    /// The kernel knows a directory from here on, until [`Self::release`].
    pub(crate) fn known(&mut self, prefix: &Arc<str>) {
        self.state(prefix);
    }

    /// The epoch in which a question is asked that begins now.
    pub(crate) fn epoch(&self) -> u64 {
        self.last_epoch
    }

    /// Whether what was asked in this epoch is still to be believed: not if the directory's names
    /// have been dropped since.
    pub(crate) fn is_current(&self, prefix: &str, epoch: u64) -> bool {
        let directory = self.states.get(prefix);
        epoch >= directory.map_or(self.first_epoch, |directory| directory.epoch)
    }

    /// The complete listing that is believed, and for how long without asking.
    pub(crate) fn fresh(&mut self, prefix: &str, now: Instant) -> Option<(Arc<Listing>, Duration)> {
        let directory = self.states.get(prefix)?;
        let fresh = (directory.versions.front()?.clone(), self.told(directory, now)?);
        self.held.used(prefix);
        Some(fresh)
    }

    /// Whether a directory is worth listing again, because it is used at the end of its life.
    pub(crate) fn is_due(&self, prefix: &str, now: Instant) -> bool {
        let Some(directory) = self.states.get(prefix) else { return false };
        let left = directory.expiry.and_then(|expiry| expiry.remaining(now));
        let due = left.zip(self.last_part(directory)).is_some_and(|(left, last)| left <= last);
        due && !directory.versions.is_empty() && self.under_way(prefix).is_none()
    }

    /// The part of a listing's life at whose end it is made anew when it is used: the last quarter.
    /// None, if that may be too short.
    fn last_part(&self, directory: &Directory) -> Option<Duration> {
        let last = self.metadata_ttl? / 4;
        (directory.listing_took < last).then_some(last)
    }

    /// How long the kernel may believe a listing: until the last part of its life, for what it does
    /// not ask for is not used, as far as anybody can see.
    fn told(&self, directory: &Directory, now: Instant) -> Option<Duration> {
        let left = directory.expiry?.remaining(now)?;
        let until_last = self.last_part(directory).map(|last| left.saturating_sub(last));
        Some(until_last.filter(|until| !until.is_zero()).unwrap_or(left))
    }

    /// What the beginning of a listing says of a name: that it is there, or that nothing has this
    /// name, because entries behind it have come; and how long that is believed.
    pub(crate) fn settled(
        &mut self,
        prefix: &str,
        name: &[u8],
        now: Instant,
    ) -> Option<(Option<(Ino, Inode)>, Duration)> {
        let says = |listing: &Listing, ttl: Duration| {
            let found = listing.find(name).map(|at| (listing.ino(at), listing.inode(at)));
            let is_behind = listing.behind((name, true)) < listing.len();
            (found.is_some() || is_behind).then_some((found, ttl))
        };
        let shown = self
            .under_way(prefix)
            .and_then(|growing| says(&growing.now().listing, growing.expiry.remaining(now)?));
        shown.or_else(|| {
            let beginning = self.states.get(prefix)?.beginning.as_ref()?;
            let said = says(&beginning.listing, beginning.remaining(now)?)?;
            self.held.used(prefix);
            Some(said)
        })
    }

    /// Whether the beginning of a directory is known, and holds no directory.
    pub(crate) fn begins_with_files(&self, prefix: &str, now: Instant) -> bool {
        let beginning = self.states.get(prefix).and_then(|state| state.beginning.as_ref());
        beginning.is_some_and(|known| known.only_files && known.remaining(now).is_some())
    }

    /// Whether nothing is gained by what somebody else has seen of a directory.
    pub(crate) fn needs_nothing(&self, prefix: &str, now: Instant) -> bool {
        self.is_fresh(prefix, now) || self.under_way(prefix).is_some()
    }

    /// How long the names of this generation's listing are believed: not at all when there is a
    /// newer one.
    pub(crate) fn ttl(&self, prefix: &str, generation: u32, now: Instant) -> Option<Duration> {
        let directory = self.states.get(prefix)?;
        let newest = directory.versions.front().filter(|newest| newest.generation() == generation);
        if newest.is_some() {
            return self.told(directory, now);
        }
        let under_way = self.under_way(prefix)?;
        under_way.expiry.remaining(now).filter(|_| under_way.generation == generation)
    }

    /// The listing under way that whoever comes now may wait for.
    pub(crate) fn under_way(&self, prefix: &str) -> Option<&Growing> {
        let directory = self.states.get(prefix)?;
        let mut growing = directory.growing.iter().map(|under| &under.growing);
        growing.find(|growing| growing.takes_on(directory.epoch) && !growing.is_over())
    }

    /// The number that a listing of the directory `prefix` has given to this.
    pub(crate) fn number(&self, prefix: &str, of: InodeRef<'_>) -> Option<Ino> {
        let directory = self.states.get(prefix)?;
        let versions = directory.versions.iter().find_map(|listing| listing.number(of));
        let mut growing = directory.growing.iter();
        let shown =
            versions.or_else(|| growing.find_map(|under| under.growing.now().listing.number(of)));
        shown.or_else(|| directory.beginning.as_ref()?.listing.number(of))
    }

    /// Whether a listing beside the one under way may have given numbers in this directory: one that
    /// began before its names were dropped.
    pub(crate) fn may_have_numbered(&self, prefix: &str) -> bool {
        self.states.get(prefix).is_some_and(|directory| directory.growing.len() > 1)
    }

    /// What a lookup has seen of a directory, believed or not.
    pub(crate) fn beginning(&self, prefix: &str) -> Option<&Arc<Listing>> {
        Some(&self.states.get(prefix)?.beginning.as_ref()?.listing)
    }

    /// The newest listing, believed or not.
    pub(crate) fn newest(&self, prefix: &str) -> Option<&Arc<Listing>> {
        self.states.get(prefix)?.versions.front()
    }

    /// Where a scan stands that has delivered the entries before `index` of listing `generation`.
    pub(crate) fn resume(&mut self, prefix: &str, generation: u32, index: usize) -> Resume {
        let Some(directory) = self.states.get(prefix) else { return Resume::Stale };
        let onward = |listing: &Listing| {
            index.checked_sub(1).map_or(Onward::At(0), |last| {
                let (name, directory) = listing.place(last);
                Onward::Behind(name.to_vec(), directory)
            })
        };
        let under = directory.growing.iter().find(|under| under.growing.generation == generation);
        let onward = if let Some(Under { growing, .. }) = under {
            let growth = growing.now();
            if growth.outcome.is_none() && index > growth.listing.len() {
                return Resume::Stale;
            }
            if growth.outcome.is_some() || growing.epoch == directory.epoch {
                return Resume::In(growing.clone(), Onward::At(index));
            }
            onward(&growth.listing)
        } else {
            let alias = directory.aliases.iter().find(|(alias, _)| *alias == generation);
            let generation = alias.map_or(generation, |(_, generation)| *generation);
            let mut versions = directory.versions.iter();
            let Some(old) = versions.find(|listing| listing.generation() == generation) else {
                return Resume::Stale;
            };
            if index > old.len() {
                return Resume::Stale;
            }
            self.held.used(prefix);
            let newest = &directory.versions[0];
            if directory.expiry.is_some() && old.generation() == newest.generation() {
                return Resume::At(old.clone(), index);
            }
            onward(old)
        };
        match (directory.versions.front(), directory.expiry, onward) {
            (Some(newest), Some(_), Onward::Behind(name, directory)) => {
                Resume::At(newest.clone(), newest.behind((&name, directory)))
            }
            (Some(newest), Some(_), Onward::At(index)) => Resume::At(newest.clone(), index),
            (_, _, onward) => Resume::Relist(onward),
        }
    }

    /// A scan of the directory `prefix` begins: gives what is worth listing ahead, because whoever
    /// does this goes through all that is in its parent.
    pub(crate) fn walked_to(
        &mut self,
        prefix: &str,
        page_keys: u16,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Vec<Ahead> {
        let Some((parent, name)) = rules::parent_and_name(prefix) else { return Vec::new() };
        if !self.is_fresh(parent, now) {
            return Vec::new();
        }
        let Some(listing) = self.newest(parent).cloned() else { return Vec::new() };
        let Some(at) = listing.find(name.as_bytes()) else { return Vec::new() };
        let Some(directory) = self.states.get(parent) else { return Vec::new() };
        let (mut walk, took) = (directory.walk, directory.listing_took * 2);
        // What is listed ahead must still be believed when the walk comes to it.
        let most = u32::try_from(MOST_AHEAD).expect("small");
        let is_worth_it = ttl.is_none_or(|ttl| ttl > took * most);
        let bounds = Bounds { page_keys, listings_bytes: self.held.most() };
        let mut ahead = walk.step(&listing, at, bounds, &Around { directories: self, now });
        if !is_worth_it {
            ahead.clear();
        }
        if let Some(directory) = self.states.get_mut(parent) {
            directory.walk = walk;
        }
        ahead
    }

    /// Directories in this one were found to hold so many keys.
    pub(crate) fn walk_measured(&mut self, parent: &str, keys: usize, directories: usize) {
        if let Some(directory) = self.states.get_mut(parent) {
            directory.walk.measured(keys, directories);
        }
    }

    /// A listing that was begun is not made after all.
    pub(crate) fn withdraw(&mut self, prefix: &str, growing: &Growing) {
        let Some(directory) = self.states.get_mut(prefix) else { return };
        self.held.less(directory.end(|under| under.growing.generation == growing.generation));
        if directory.epoch == growing.epoch {
            directory.being_listed = false;
        }
    }

    fn is_fresh(&self, prefix: &str, now: Instant) -> bool {
        let expiry = self.states.get(prefix).and_then(|directory| directory.expiry);
        expiry.is_some_and(|expiry| expiry.remaining(now).is_some())
    }

    /// Counts a lookup that costs requests. True when the directory is worth listing: it has come
    /// to [`MISSES_BEFORE_LISTING`], and a listing would be believed for longer than it takes.
    pub(crate) fn missed(&mut self, prefix: &Arc<str>, ttl: Option<Duration>) -> bool {
        let directory = self.state(prefix);
        directory.misses += 1;
        directory.misses >= MISSES_BEFORE_LISTING
            && !directory.being_listed
            && ttl.is_none_or(|ttl| ttl > directory.listing_took * 2)
    }

    /// A listing begins, whose answers are believed until `expiry`.
    pub(crate) fn listing_begins(
        &mut self,
        prefix: &Arc<str>,
        expiry: Expiry,
    ) -> (Growing, Grower) {
        let listing = self.next_listing(prefix);
        let directory = self.state(prefix);
        directory.misses = 0;
        directory.being_listed = true;
        let ended = directory.end(|under| under.growing.is_over());
        let (growing, grower) = Growing::new(listing, directory.epoch, expiry);
        let same_as = directory.versions.front().map(|newest| newest.generation());
        let growing_too = growing.clone();
        let (shown_bytes, waiting_bytes) = (0, 0);
        directory.growing.push(Under { growing: growing_too, shown_bytes, waiting_bytes, same_as });
        self.held.less(ended);
        (growing, grower)
    }

    /// With nothing in it, and a generation that no other has.
    fn next_listing(&mut self, prefix: &Arc<str>) -> Listing {
        // 31 bits, and never 0.
        self.last_generation = ((self.last_generation + 1) & (u32::MAX >> 1)).max(1);
        Listing::new(prefix.clone(), self.last_generation)
    }

    /// A directory begins with this page, which shows these entries, and has more.
    pub(crate) fn begins_with(
        &mut self,
        prefix: &Arc<str>,
        first: FirstPage,
        part: Part,
        now: Instant,
        knows: impl Fn(&str) -> bool,
    ) {
        let only_files = (0..part.len()).all(|index| !part.place(index).1);
        let mut listing = self.next_listing(prefix);
        listing.push(Arc::new(part));
        let expiry = Expiry::after(first.asked, self.metadata_ttl);
        self.held.more(first.memory_bytes());
        if let Some((_, old)) = self.first_pages.push(prefix.clone(), first) {
            self.held.less(old.memory_bytes());
        }
        let directory = self.state(prefix);
        let bytes_before = directory.listed_bytes();
        directory.beginning =
            Some(Beginning { listing: Arc::new(listing), expiry: Some(expiry), only_files });
        self.listed_again(prefix, bytes_before, now, knows);
    }

    /// Gives away the page that a listing of this directory may begin with instead of asking for it.
    pub(crate) fn take_first_page(&mut self, prefix: &str, now: Instant) -> Option<FirstPage> {
        let first = self.pop_first_page(prefix)?;
        let age = now - first.asked;
        let is_young = self.metadata_ttl.is_none_or(|ttl| age < ttl / 4);
        (is_young && age < FIRST_PAGE_LASTS && self.is_current(prefix, first.epoch))
            .then_some(first)
    }

    fn pop_first_page(&mut self, prefix: &str) -> Option<FirstPage> {
        let first = self.first_pages.pop(prefix)?;
        self.held.less(first.memory_bytes());
        Some(first)
    }

    /// What is kept of a directory was so much memory before.
    fn listed_again(
        &mut self,
        prefix: &Arc<str>,
        bytes_before: usize,
        now: Instant,
        knows: impl Fn(&str) -> bool,
    ) {
        self.held.less(bytes_before);
        self.held.more(self.states[prefix].listed_bytes());
        self.held.keeps(prefix);
        self.make_room(prefix, now, knows);
    }

    /// So much of a listing under way has come and is not shown, for what comes before it is missing.
    pub(crate) fn waits(&mut self, prefix: &str, growing: &Growing, bytes: usize) {
        let Some(under) = self.states.get_mut(prefix).and_then(|state| state.under(growing)) else {
            return;
        };
        self.held.more(bytes);
        self.held.less(std::mem::replace(&mut under.waiting_bytes, bytes));
    }

    /// These entries are about to be shown as those from `start` on of the listing `growing`. If
    /// others have been shown in their place the mtime moves.
    pub(crate) fn about_to_show(
        &mut self,
        prefix: &str,
        growing: &Growing,
        start: usize,
        part: &Part,
        now: Instant,
    ) {
        let now = self.mounted_at + (now - self.started);
        let Some(directory) = self.states.get_mut(prefix) else { return };
        let newest = directory.versions.front().cloned();
        let Some(under) = directory.under(growing) else { return };
        let bytes = part.memory_bytes() + PART_BYTES;
        under.shown_bytes += bytes;
        self.held.more(bytes);
        let Some(same_as) = under.same_as else { return };
        let same = newest.filter(|newest| newest.generation() == same_as);
        if same.is_some_and(|newest| newest.continues_with(start, part)) {
            return;
        }
        under.same_as = None;
        if !directory.mtime_moved {
            directory.mtime = moved(directory.mtime, now);
            directory.mtime_moved = true;
        }
    }

    /// A listing has failed; `gone`: it found no such directory.
    pub(crate) fn listing_failed(
        &mut self,
        prefix: &str,
        growing: &Growing,
        gone: bool,
        now: Instant,
    ) {
        let now = self.mounted_at + (now - self.started);
        let Some(directory) = self.states.get_mut(prefix) else { return };
        if !growing.now().listing.is_empty() {
            // What was shown of it will not be shown again.
            directory.mtime = moved(directory.mtime, now);
            directory.mtime_moved = true;
        }
        if let Some(under) = directory.under(growing) {
            // Nobody reads on in it, so it is emptied.
            self.held.less(under.held_bytes());
            (under.shown_bytes, under.waiting_bytes) = (0, 0);
        }
        if directory.epoch == growing.epoch {
            directory.being_listed = false;
            directory.misses = 0;
            if gone {
                directory.expiry = None;
            }
        }
    }

    /// A listing that began at `asked` is complete. Gives what it has become: itself, or the
    /// version before if nothing has changed, or a newer one. Throws old listings of other
    /// directories away to stay within the bound, and forgets those directories that nobody `knows`.
    pub(crate) fn install(
        &mut self,
        growing: &Growing,
        asked: Instant,
        now: Instant,
        knows: impl Fn(&str) -> bool,
    ) -> Arc<Listing> {
        let listing = growing.now().listing.clone();
        let prefix = listing.prefix().clone();
        let (mounted_at, started) = (self.mounted_at, self.started);
        let directory = self.state(&prefix);
        let bytes_before = directory.listed_bytes();
        let same_as = directory.under(growing).and_then(|under| under.same_as);
        // Its parts become the listing's, and are counted there.
        let ended = directory.end(|under| under.growing.generation == growing.generation);

        let in_epoch = directory.epoch == growing.epoch;
        if in_epoch {
            directory.being_listed = false;
        }
        // The kernel may have read the version before under the mtime of this one.
        let was_believed = directory.expiry.is_some_and(|expiry| expiry.remaining(asked).is_some());
        let same = directory
            .versions
            .front()
            .filter(|newest| same_as == Some(newest.generation()) && newest.len() == listing.len());
        let installed = if let Some(same) = same.cloned() {
            directory.aliases.push_front((growing.generation, same.generation()));
            directory.aliases.truncate(ALIASES);
            same
        } else if !in_epoch && directory.expiry.is_some() {
            // Names were dropped while it was made, so nobody is to believe it. Whoever waited for
            // it may scan what has been listed since, and who is in the middle of it finds its place.
            directory.versions.insert(1, Arc::new(listing));
            directory.versions[0].clone()
        } else {
            if !directory.versions.is_empty() && (was_believed || !directory.mtime_moved) {
                directory.mtime = moved(directory.mtime, mounted_at + (now - started));
            }
            directory.versions.push_front(Arc::new(listing));
            directory.versions[0].clone()
        };
        directory.versions.truncate(VERSIONS);
        if in_epoch {
            directory.expiry = Some(growing.expiry);
            directory.mtime_moved = false;
        } else if directory.expiry.is_none() {
            directory.expiry = Some(Expiry(Some(asked)));
            directory.mtime_moved = false;
        }
        directory.listing_took = now - asked;
        directory.misses = 0;
        directory.beginning = None;
        // It would lead back to what was true before this.
        self.held.less(ended);
        self.pop_first_page(&prefix);
        self.listed_again(&prefix, bytes_before, now, knows);
        installed
    }

    /// The first time that keys are hidden in a directory for this reason.
    pub(crate) fn is_first_warning(&mut self, prefix: &Arc<str>, reason: Hidden) -> bool {
        let warned = &mut self.state(prefix).warned;
        let first = !warned.contains(&reason);
        if first {
            warned.push(reason);
        }
        first
    }

    /// The directory's mtime and how long the kernel may believe it: as long as the listing, and
    /// `unlisted_ttl` if there is none, for then the kernel has no pages to keep.
    pub(crate) fn attributes(
        &mut self,
        prefix: &str,
        unlisted_ttl: Duration,
        now: Instant,
    ) -> (SystemTime, Duration) {
        let told = self.states.get(prefix).and_then(|directory| self.told(directory, now));
        let Some(directory) = self.states.get_mut(prefix) else {
            return (self.first_mtime, unlisted_ttl);
        };
        if directory.versions.is_empty() {
            let ttl = if directory.being_listed { Duration::ZERO } else { unlisted_ttl };
            return (directory.mtime, ttl);
        }
        if told.is_none() && !directory.mtime_moved {
            directory.mtime = moved(directory.mtime, self.mounted_at + (now - self.started));
            directory.mtime_moved = true;
        }
        (directory.mtime, told.unwrap_or(Duration::ZERO))
    }

    /// Believes nothing of a directory's names any more.
    pub(crate) fn drop_names(&mut self, prefix: &str, now: Instant) {
        let now = self.mounted_at + (now - self.started);
        self.last_epoch += 1;
        match self.states.get_mut(prefix) {
            Some(directory) => directory.drop_names(self.last_epoch, now),
            None => self.first_epoch = self.last_epoch,
        }
    }

    /// Believes no name any more.
    pub(crate) fn drop_all_names(&mut self, now: Instant) {
        let now = self.mounted_at + (now - self.started);
        self.last_epoch += 1;
        self.first_epoch = self.last_epoch;
        for directory in self.states.values_mut() {
            directory.drop_names(self.last_epoch, now);
        }
    }

    /// The kernel has forgotten a directory.
    pub(crate) fn release(&mut self, prefix: &str, now: Instant) {
        let idle = |state: &Directory| {
            state.versions.is_empty() && state.beginning.is_none() && !state.being_listed
        };
        if self.states.get(prefix).is_some_and(idle) {
            let state = self.states.remove(prefix);
            let epoch = state.as_ref().map_or(0, |directory| directory.epoch);
            // One that has failed is kept for those who were in the middle of it.
            let growing = state.map_or(0, |mut directory| directory.end(|_| true));
            self.held.less(state_bytes(prefix) + growing);
            // No answer that was asked for before its names were dropped may come back with it.
            self.first_epoch = self.first_epoch.max(epoch);
            self.first_mtime = self.mounted_at + (now - self.started);
        }
    }

    /// Memory that was counted, and that is there.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> (usize, usize) {
        let first_pages = self.first_pages.iter().map(|(_, first)| first.memory_bytes());
        let states = self.states.iter().map(|(prefix, directory)| {
            let under_way: usize = directory.growing.iter().map(Under::held_bytes).sum();
            state_bytes(prefix) + directory.listed_bytes() + under_way
        });
        (self.held.bytes(), first_pages.chain(states).sum())
    }

    fn state(&mut self, prefix: &Arc<str>) -> &mut Directory {
        let (mtime, epoch) = (self.first_mtime, self.first_epoch);
        if !self.states.contains_key(prefix) {
            self.held.more(state_bytes(prefix));
        }
        self.states.entry(prefix.clone()).or_insert_with(|| Directory {
            versions: VecDeque::new(),
            aliases: VecDeque::new(),
            growing: Vec::new(),
            walk: Walk::default(),
            expiry: None,
            beginning: None,
            listing_took: Duration::ZERO,
            epoch,
            mtime,
            mtime_moved: false,
            misses: 0,
            being_listed: false,
            warned: Vec::new(),
        })
    }

    /// Gives up what there is too much of: pages that a listing might begin with, then listings, the
    /// least recently used directory first, but neither the newest one of `keep` nor one that is being
    /// made anew and lends its numbers.
    pub(crate) fn make_room(
        &mut self,
        keep: &Arc<str>,
        now: Instant,
        knows: impl Fn(&str) -> bool,
    ) {
        while self.held.is_too_much() {
            if let Some((_, first)) = self.first_pages.pop_lru() {
                self.held.less(first.memory_bytes());
                continue;
            }
            let states = &self.states;
            let idle = |prefix: &Arc<str>| {
                prefix != keep && states.get(prefix).is_none_or(|state| !state.being_listed)
            };
            let Some(prefix) = self.held.first_to_go(idle) else {
                // What is in use stays, but for what it was before.
                let used = self.states.get_mut(keep).filter(|used| used.versions.len() > 1);
                if let Some(directory) = used {
                    let bytes_before = directory.listed_bytes();
                    directory.versions.truncate(1);
                    self.held.less(bytes_before - directory.listed_bytes());
                }
                break;
            };
            self.held.keeps_nothing(&prefix);
            let Some(directory) = self.states.get_mut(&prefix) else { continue };
            self.held.less(directory.listed_bytes());
            directory.versions.clear();
            directory.beginning = None;
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

/// What a walk may know.
struct Around<'a> {
    directories: &'a Directories,
    now: Instant,
}

impl Surroundings for Around<'_> {
    fn is_known(&self, directory: &str) -> bool {
        self.directories.needs_nothing(directory, self.now)
    }

    fn entries(&self, directory: &str) -> Option<usize> {
        self.directories.newest(directory).map(|listing| listing.len())
    }
}

impl Directory {
    fn listed_bytes(&self) -> usize {
        let beginning = self.beginning.as_ref().map_or(0, |known| known.listing.memory_bytes());
        beginning + self.versions.iter().map(|listing| listing.memory_bytes()).sum::<usize>()
    }

    /// This listing under way.
    fn under(&mut self, growing: &Growing) -> Option<&mut Under> {
        self.growing.iter_mut().find(|under| under.growing.generation == growing.generation)
    }

    /// Lets go of listings that are under way no more; gives the memory that they took.
    fn end(&mut self, is_over: impl Fn(&Under) -> bool) -> usize {
        let ended = self.growing.extract_if(.., |under| is_over(under));
        ended.map(|under| under.held_bytes()).sum()
    }

    fn drop_names(&mut self, epoch: u64, now: SystemTime) {
        let shown = |under: &Under| !under.growing.now().listing.is_empty();
        if self.versions.is_empty() && self.growing.iter().any(shown) {
            // What comes next may be other than what has been shown of the first listing.
            self.mtime = moved(self.mtime, now);
        }
        if let Some(beginning) = &mut self.beginning {
            beginning.expiry = None;
        }
        self.epoch = epoch;
        self.expiry = None;
        self.misses = 0;
        // Whoever is at work on a listing works for those who came before.
        self.being_listed = false;
    }
}

impl Under {
    fn held_bytes(&self) -> usize {
        self.shown_bytes + self.waiting_bytes
    }
}

impl FirstPage {
    fn memory_bytes(&self) -> usize {
        let entry = |entry: &ListEntry| {
            let texts = match entry {
                ListEntry::Object(meta) => meta.version.key.len() + meta.version.etag.len(),
                ListEntry::Prefix(prefix) => prefix.len(),
            };
            size_of::<ListEntry>() + texts
        };
        size_of::<Self>() + self.page.entries.iter().map(entry).sum::<usize>()
    }
}

/// What is known of a directory beside its listings: its state, its name, and its places in the tables.
fn state_bytes(prefix: &str) -> usize {
    /// Hash tables are at most 7/8 full and at least 7/16; an entry of the order of use has two
    /// pointers, a key and an allocation of its own.
    const TABLES: usize = 128;
    size_of::<Directory>() + prefix.len() + TABLES
}

fn moved(mtime: SystemTime, now: SystemTime) -> SystemTime {
    now.max(mtime + MTIME_STEP)
}
