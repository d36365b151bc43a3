//! All that is believed of one directory. Pure; time comes in as an argument.
//!
//! A directory keeps its newest listing and the two before it. Those are not believed, but by them
//! unchanged names keep their inode numbers, and scans that began on them continue. A new listing
//! that is equal to the newest one renews it and becomes no version of its own.
//!
//! A listing under way is shown as far as it has come. Scans continue in it, and in its outcome, by
//! its generation.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::expiry::Expiry;
use super::mtime::Mtime;
use super::pages::{KernelPages, OldPages};
use super::partial::Partial;
use super::progress::{ListingWriter, Progress};
use super::resume::{Resume, ScanFrom};
use super::walk::Walk;
use crate::errno::FsError;
use crate::names::entries::{EntryRun, Ino, Inode, Listing};
use crate::names::rules::{EntryKey, Hidden};
use crate::store::ListPage;

/// The newest listing, and two more for scans and inode numbers.
const VERSIONS: usize = 3;

/// Lookups with requests after which a directory is worth listing.
const MISSES_BEFORE_LISTING: u32 = 2;

#[derive(Debug)]
pub(crate) struct Directory {
    pub(super) prefix: Arc<str>,
    /// The kernel knows the directory by an inode number.
    pub(super) in_kernel: bool,
    /// Newest first, at most [`VERSIONS`].
    pub(super) versions: VecDeque<Arc<Listing>>,
    /// Generations of listings that were equal to a version, and that version's own; at most
    /// [`VERSIONS`].
    aliases: VecDeque<(u32, u32)>,
    pub(crate) partial: Option<Partial>,
    /// Listings under way, and one that has failed, for the scans in the middle of it.
    pub(super) progress: Vec<Progress>,
    /// A listing of this epoch is under way.
    pub(super) being_listed: bool,
    /// Answers to requests of an older epoch are not believed.
    pub(super) epoch: u64,
    /// The newest version's. `None` if the directory's names were dropped: then not even scans
    /// continue in it.
    expiry: Option<Expiry>,
    metadata_ttl: Option<Duration>,
    /// Time from the beginning of the last listing to its end.
    pub(super) listing_took: Duration,
    /// Lookups with requests since the last listing.
    misses: u32,
    pub(super) mtime: Mtime,
    kernel_pages: KernelPages,
    pub(crate) walk: Walk,
    /// It was asked for because it may be used, and was not used yet.
    pub(crate) is_bet: bool,
    /// Reasons for hiding keys that are in the log.
    pub(crate) warned: BTreeSet<Hidden>,
}

/// What is believed of a name: its inode, or `None` if nothing has this name.
#[derive(Clone, Debug)]
pub(crate) struct NameAnswer {
    pub(crate) found: Option<(Ino, Inode)>,
    pub(crate) ttl: Duration,
}

impl Directory {
    pub(super) fn new(
        prefix: Arc<str>,
        in_kernel: bool,
        epoch: u64,
        mtime: Mtime,
        metadata_ttl: Option<Duration>,
    ) -> Self {
        Self {
            prefix,
            in_kernel,
            versions: VecDeque::new(),
            aliases: VecDeque::new(),
            partial: None,
            progress: Vec::new(),
            being_listed: false,
            epoch,
            expiry: None,
            metadata_ttl,
            listing_took: Duration::ZERO,
            misses: 0,
            mtime,
            kernel_pages: KernelPages::default(),
            walk: Walk::default(),
            is_bet: false,
            warned: BTreeSet::new(),
        }
    }

    /// The newest listing, believed or not.
    pub(crate) fn newest(&self) -> Option<&Arc<Listing>> {
        self.versions.front()
    }

    /// A listing of this epoch that is not over: callers that come now may wait for it.
    pub(crate) fn under_way(&self) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.is_under_way(self.epoch))
    }

    pub(super) fn is_believed(&self, now: Instant) -> bool {
        self.expiry.is_some_and(|expiry| expiry.remaining(now).is_some())
    }

    /// Entries that another request has shown are of no use.
    pub(super) fn needs_nothing(&self, now: Instant) -> bool {
        self.is_believed(now) || self.under_way().is_some()
    }

    /// The complete listing that is believed, and the kernel's TTL of its names.
    pub(super) fn believed_listing(&self, now: Instant) -> Option<(Arc<Listing>, Duration)> {
        Some((self.versions.front()?.clone(), self.kernel_ttl(now)?))
    }

    /// Answers from the listing, from the beginning of one under way, or from a first page.
    pub(super) fn answer(&self, name: &[u8], now: Instant) -> Option<NameAnswer> {
        if let Some((listing, ttl)) = self.believed_listing(now) {
            return Some(NameAnswer { found: listing.find_inode(name), ttl });
        }
        let shown = self.under_way().and_then(|progress| {
            partial_answer(&progress.shown().listing, name, progress.expiry.remaining(now)?)
        });
        shown.or_else(|| {
            let partial = self.partial.as_ref()?;
            partial_answer(&partial.listing, name, partial.remaining(now)?)
        })
    }

    /// TTL for the kernel. It ends where the last quarter of the listing's life begins: the kernel
    /// then asks again, which shows that the directory is in use.
    fn kernel_ttl(&self, now: Instant) -> Option<Duration> {
        let left = self.expiry?.remaining(now)?;
        let until_last = self.last_part().map(|last| left.saturating_sub(last));
        Some(until_last.filter(|until| !until.is_zero()).unwrap_or(left))
    }

    /// The last quarter of a listing's life, in which a use renews it; `None` if a listing may take
    /// longer than that.
    fn last_part(&self) -> Option<Duration> {
        self.metadata_ttl.map(|ttl| ttl / 4).filter(|last| self.listing_took < *last)
    }

    /// In the last part of its listing's life: a use renews it.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let left = self.expiry.and_then(|expiry| expiry.remaining(now));
        let due = left.zip(self.last_part()).is_some_and(|(left, last)| left <= last);
        due && !self.versions.is_empty() && self.under_way().is_none()
    }

    /// TTL of the names of this generation's listing; `None` when there is a newer one.
    pub(super) fn ttl(&self, generation: u32, now: Instant) -> Option<Duration> {
        if self.versions.front().is_some_and(|newest| newest.generation == generation) {
            return self.kernel_ttl(now);
        }
        let under_way = self.under_way()?;
        under_way.expiry.remaining(now).filter(|_| under_way.generation == generation)
    }

    /// The number that a listing has given to this inode.
    pub(super) fn number(&self, of: &Inode) -> Option<Ino> {
        let versions = self.versions.iter().find_map(|listing| listing.number(of));
        let progress = || self.progress.iter().find_map(|one| one.shown().listing.number(of));
        versions.or_else(progress).or_else(|| self.partial.as_ref()?.listing.number(of))
    }

    /// How a scan continues that has delivered the entries before `index` of listing `generation`.
    pub(super) fn resume(&self, generation: u32, index: usize) -> Resume {
        let progress = self.progress.iter().find(|progress| progress.generation == generation);
        let from = if let Some(progress) = progress {
            let shown = progress.shown();
            if shown.outcome.is_none() && index > shown.listing.len() {
                return Resume::Stale;
            }
            if shown.outcome.is_some() || progress.epoch == self.epoch {
                return Resume::In(progress.clone(), ScanFrom::Index(index));
            }
            ScanFrom::behind(&shown.listing, index)
        } else {
            let generation = real(&self.aliases, generation);
            let old = self.versions.iter().find(|listing| listing.generation == generation);
            let Some(old) = old.filter(|old| index <= old.len()) else { return Resume::Stale };
            if self.expiry.is_some() && old.generation == self.versions[0].generation {
                return Resume::At(old.clone(), index);
            }
            ScanFrom::behind(old, index)
        };
        self.resume_from(from)
    }

    /// In the newest listing, or in one that begins.
    pub(super) fn resume_from(&self, from: ScanFrom) -> Resume {
        match (self.versions.front(), self.expiry) {
            (Some(newest), Some(_)) => Resume::At(newest.clone(), from.index(newest)),
            _ => Resume::Relist(from),
        }
    }

    /// The TTL of its attributes for the kernel: the listing's, or `unlisted_ttl` without a
    /// listing. None if pages are old, because the kernel is told of that when it asks.
    pub(super) fn attr_ttl(&self, unlisted_ttl: Duration, now: Instant) -> Duration {
        if self.old_pages(now).is_some() {
            return Duration::ZERO;
        }
        let ttl = if self.versions.is_empty() {
            Some(unlisted_ttl).filter(|_| !self.being_listed)
        } else {
            self.kernel_ttl(now)
        };
        ttl.unwrap_or(Duration::ZERO)
    }

    /// The kernel reads entries of this listing.
    pub(super) fn read_from(&mut self, generation: u32) {
        let aliases = &self.aliases;
        self.kernel_pages.read(generation, |generation| real(aliases, generation));
    }

    /// Set if the kernel may hold pages of other entries than are believed.
    pub(super) fn old_pages(&self, now: Instant) -> Option<OldPages> {
        let believed = self.versions.front().filter(|_| self.is_believed(now));
        self.kernel_pages.old(|generation| {
            believed.is_some_and(|one| one.generation == real(&self.aliases, generation))
        })
    }

    pub(super) fn pages_dropped(&mut self, old: OldPages) {
        self.kernel_pages.dropped(old);
    }

    /// The kernel knows it, and pages that another process has told.
    pub(super) fn taken_over(&mut self, mtime: Option<Mtime>) {
        self.in_kernel = true;
        self.kernel_pages = KernelPages::of_another_process();
        self.mtime = mtime.unwrap_or(self.mtime);
    }

    /// The kernel has forgotten the directory, and its pages.
    pub(super) fn forgotten(&mut self) {
        self.in_kernel = false;
        self.kernel_pages = KernelPages::default();
    }

    /// Its listing has expired or will soon, and fits into a page of this many keys.
    pub(crate) fn is_worth_a_page(&self, keys: usize, now: Instant) -> bool {
        let is_small = self.versions.front().is_some_and(|newest| newest.len() < keys);
        let is_over = !self.is_believed(now) && self.last_part().is_some();
        is_small && (self.is_due(now) || is_over && self.under_way().is_none())
    }

    /// No name in it is believed, nor will be soon; and what was believed has expired, and had
    /// fewer entries than a page of this many keys.
    pub(super) fn is_unseen(&self, keys: usize, now: Instant) -> bool {
        !self.needs_nothing(now)
            && self.partial.as_ref().is_none_or(|partial| partial.remaining(now).is_none())
            && self
                .versions
                .front()
                .is_none_or(|newest| newest.len() < keys && self.expiry.is_some())
    }

    /// Counts a lookup with requests. True when the directory is worth listing: after
    /// [`MISSES_BEFORE_LISTING`], if a listing is believed for longer than it takes.
    pub(crate) fn missed(&mut self) -> bool {
        self.misses += 1;
        self.misses >= MISSES_BEFORE_LISTING
            && !self.being_listed
            && self.metadata_ttl.is_none_or(|ttl| ttl > self.listing_took * 2)
    }

    /// Begins the listing `empty`, whose answers are believed until `expiry`.
    pub(super) fn begin(&mut self, empty: Listing, expiry: Expiry) -> ListingWriter {
        self.misses = 0;
        self.being_listed = true;
        self.progress.retain(|progress| !progress.is_over());
        let same_as = self.versions.front().map(|newest| newest.generation);
        let writer = ListingWriter::new(empty, self.epoch, expiry, same_as);
        self.progress.push(writer.progress());
        writer
    }

    /// A listing that has begun is not made after all.
    pub(super) fn withdraw(&mut self, writer: &ListingWriter) {
        self.progress.retain(|progress| progress.generation != writer.generation);
        self.being_listed &= self.epoch != writer.epoch;
    }

    /// Shows the next entries of a listing.
    pub(super) fn show(&mut self, writer: &mut ListingWriter, run: EntryRun) {
        if let Some(same_as) = writer.same_as {
            let same = self.versions.front().filter(|newest| newest.generation == same_as);
            let start = writer.shown().listing.len();
            if !same.is_some_and(|newest| newest.continues_with(start, &run)) {
                writer.same_as = None;
            }
        }
        writer.push(run);
    }

    /// Ends a listing that has failed; `is_gone`: it found no such directory.
    pub(super) fn fail(&mut self, writer: &ListingWriter, error: FsError, is_gone: bool) {
        if self.epoch == writer.epoch {
            self.being_listed = false;
            self.misses = 0;
            if is_gone {
                self.expiry = None;
            }
        }
        writer.end(Err(error));
    }

    /// Ends a complete listing that began at `asked`. It becomes the newest version; or renews the
    /// one before, if nothing has changed; or serves only scans, if names were dropped and the
    /// directory listed since.
    pub(super) fn finish(&mut self, writer: &ListingWriter, asked: Instant, now: Instant) {
        let listing = writer.shown().listing.clone();
        // Its entries become the version's, and are charged there.
        self.progress.retain(|progress| progress.generation != writer.generation);
        let in_epoch = self.epoch == writer.epoch;
        self.being_listed &= !in_epoch;
        let same = self.versions.front().filter(|newest| {
            writer.same_as == Some(newest.generation) && newest.len() == listing.len()
        });
        if let Some(same) = same {
            self.aliases.push_front((writer.generation, same.generation));
            self.aliases.truncate(VERSIONS);
        } else if !in_epoch && self.expiry.is_some() {
            self.versions.insert(1, Arc::new(listing));
        } else {
            self.mtime.listed(&listing);
            self.versions.push_front(Arc::new(listing));
        }
        self.versions.truncate(VERSIONS);
        if in_epoch {
            self.expiry = Some(writer.expiry);
        } else if self.expiry.is_none() {
            self.expiry = Some(Expiry::after(asked, Some(Duration::ZERO)));
        }
        self.listing_took = now - asked;
        self.misses = 0;
        self.partial = None;
        writer.end(Ok(self.versions[0].clone()));
    }

    pub(super) fn take_page(&mut self, now: Instant) -> Option<(ListPage, Instant)> {
        let (epoch, ttl) = (self.epoch, self.metadata_ttl);
        let partial = self.partial.as_mut()?;
        let (page, _) = partial.page.take()?;
        partial.is_young(now, ttl, epoch).then_some((page, partial.asked))
    }

    pub(super) fn has_page(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.page.is_some())
    }

    pub(super) fn drop_names(&mut self, epoch: u64) {
        if let Some(partial) = &mut self.partial {
            partial.expiry = None;
        }
        self.epoch = epoch;
        self.expiry = None;
        self.misses = 0;
        self.being_listed = false;
    }

    /// Gives up all that the store can tell again.
    pub(super) fn evict(&mut self) {
        self.versions.clear();
        self.partial = None;
        self.expiry = None;
    }

    /// Its record may be removed.
    pub(super) fn is_idle(&self) -> bool {
        self.versions.is_empty() && self.partial.is_none() && !self.being_listed
    }

    /// Its memory, with its places in the tables.
    pub(super) fn memory_bytes(&self, of: impl Fn(&Listing) -> usize) -> usize {
        /// Hash tables are at most 7/8 full and at least 7/16; an entry of the order of use has two
        /// pointers, a key and an allocation of its own.
        const TABLES: usize = 128;
        let versions: usize = self.versions.iter().map(|listing| of(listing)).sum();
        let progress: usize = self.progress.iter().map(|one| one.shown().memory_bytes(&of)).sum();
        let partial = self.partial.as_ref().map_or(0, |partial| partial.memory_bytes(&of));
        size_of::<Self>() + self.prefix.len() + TABLES + versions + progress + partial
    }
}

/// The generation of the version that a listing was equal to, or its own.
fn real(aliases: &VecDeque<(u32, u32)>, generation: u32) -> u32 {
    let alias = aliases.iter().find(|(alias, _)| *alias == generation);
    alias.map_or(generation, |(_, generation)| *generation)
}

/// An answer from the beginning of a listing: the name is there, or nothing has it, because entries
/// behind it have come.
fn partial_answer(listing: &Listing, name: &[u8], ttl: Duration) -> Option<NameAnswer> {
    let found = listing.find_inode(name);
    let is_behind = listing.behind(EntryKey { name, is_directory: true }) < listing.len();
    (found.is_some() || is_behind).then_some(NameAnswer { found, ttl })
}
