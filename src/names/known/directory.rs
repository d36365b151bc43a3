//! Everything that is believed of one directory. Pure; time comes in as an argument.
//!
//! A directory keeps its newest listing and the two before it. An old one is not believed, but it
//! lets unchanged names keep their inode numbers, and it translates the cookies of a scan that
//! began on it. A new listing that finds the same things under the same numbers renews the newest
//! one and becomes no version of its own.
//!
//! A listing under way is shown as far as it has come. It has a generation of its own, by which
//! scans go on in it, and in what becomes of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::expiry::Expiry;
use super::mtime::Mtime;
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

/// Lookups that cost requests after which a directory is worth listing.
const MISSES_BEFORE_LISTING: u32 = 2;

/// Later generations under which a version is known because it was found again: as many as there
/// are versions.
const ALIASES: usize = VERSIONS;

#[derive(Debug)]
pub(crate) struct Directory {
    pub(super) prefix: Arc<str>,
    /// The kernel knows the directory by an inode number.
    pub(super) in_kernel: bool,
    /// Newest first, at most [`VERSIONS`].
    versions: VecDeque<Arc<Listing>>,
    /// Generations of listings that were found to be equal to a version, and that version's own.
    aliases: VecDeque<(u32, u32)>,
    pub(super) partial: Option<Partial>,
    /// Listings under way, and one that has failed, for the scans in the middle of it.
    progress: Vec<Progress>,
    /// A listing of this epoch is under way.
    pub(super) being_listed: bool,
    /// Answers to requests of an older epoch are not believed.
    pub(super) epoch: u64,
    /// End of the newest version's life. `None` if the directory's names were dropped: not even a
    /// scan may continue in it.
    expiry: Option<Expiry>,
    /// Life of a listing; `None` is forever.
    metadata_ttl: Option<Duration>,
    /// Time from the beginning of the last listing to its end.
    pub(super) listing_took: Duration,
    /// Lookups that have cost requests since the last listing.
    misses: u32,
    mtime: Mtime,
    /// The walk through its directories.
    pub(super) walk: Walk,
    /// Reasons for hiding keys that are in the log.
    warned: Vec<Hidden>,
}

/// An answer about a name: the inode that it leads to, or that nothing has this name.
#[derive(Clone, Debug)]
pub(crate) struct NameAnswer {
    pub(crate) found: Option<(Ino, Inode)>,
    /// The rest of its life.
    pub(crate) ttl: Duration,
}

impl Directory {
    pub(super) fn new(
        prefix: Arc<str>,
        in_kernel: bool,
        epoch: u64,
        mtime: Instant,
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
            mtime: Mtime::new(mtime),
            walk: Walk::default(),
            warned: Vec::new(),
        }
    }

    /// The newest listing, believed or not.
    pub(super) fn newest(&self) -> Option<&Arc<Listing>> {
        self.versions.front()
    }

    /// A listing of this epoch that is not over: callers that come now may wait for it.
    pub(super) fn under_way(&self) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.is_under_way(self.epoch))
    }

    /// A listing beside the one under way may have given numbers: one that began before the names
    /// were dropped.
    pub(super) fn has_other_progress(&self) -> bool {
        self.progress.len() > 1
    }

    pub(super) fn is_believed(&self, now: Instant) -> bool {
        self.expiry.is_some_and(|expiry| expiry.remaining(now).is_some())
    }

    /// Nothing is gained by what another request has shown of it.
    pub(super) fn needs_nothing(&self, now: Instant) -> bool {
        self.is_believed(now) || self.under_way().is_some()
    }

    /// The complete listing that is believed, and the kernel's TTL of its names.
    pub(super) fn believed_listing(&self, now: Instant) -> Option<(Arc<Listing>, Duration)> {
        Some((self.versions.front()?.clone(), self.kernel_ttl(now)?))
    }

    /// The answer about a name: by the believed listing, by the beginning of one under way, or by a
    /// first page.
    pub(super) fn answer(&self, name: &[u8], now: Instant) -> Option<NameAnswer> {
        let full = self.believed_listing(now);
        if let Some((listing, ttl)) = full {
            return Some(NameAnswer { found: listing.find_inode(name), ttl });
        }
        let shown = self.under_way().and_then(|progress| {
            partial_answer(&progress.shown().listing, name, progress.expiry.remaining(now)?)
        });
        shown.or_else(|| {
            let partial = self.partial.as_ref()?;
            partial_answer(partial.listing(), name, partial.remaining(now)?)
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

    /// It is worth listing again, because it is used at the end of its listing's life.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let left = self.expiry.and_then(|expiry| expiry.remaining(now));
        let due = left.zip(self.last_part()).is_some_and(|(left, last)| left <= last);
        due && !self.versions.is_empty() && self.under_way().is_none()
    }

    /// TTL of the names of this generation's listing; `None` when there is a newer one.
    pub(super) fn ttl(&self, generation: u32, now: Instant) -> Option<Duration> {
        if self.versions.front().is_some_and(|newest| newest.generation() == generation) {
            return self.kernel_ttl(now);
        }
        let under_way = self.under_way()?;
        under_way.expiry.remaining(now).filter(|_| under_way.generation == generation)
    }

    /// The number that a listing has given to this inode.
    pub(super) fn number(&self, of: &Inode) -> Option<Ino> {
        let versions = self.versions.iter().find_map(|listing| listing.number(of));
        let mut progress = self.progress.iter();
        let shown =
            versions.or_else(|| progress.find_map(|progress| progress.shown().listing.number(of)));
        shown.or_else(|| self.partial.as_ref()?.listing().number(of))
    }

    /// Continues a scan that has delivered the entries before `index` of listing `generation`.
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
            let alias = self.aliases.iter().find(|(alias, _)| *alias == generation);
            let generation = alias.map_or(generation, |(_, generation)| *generation);
            let mut versions = self.versions.iter();
            let Some(old) = versions.find(|listing| listing.generation() == generation) else {
                return Resume::Stale;
            };
            if index > old.len() {
                return Resume::Stale;
            }
            if self.expiry.is_some() && old.generation() == self.versions[0].generation() {
                return Resume::At(old.clone(), index);
            }
            ScanFrom::behind(old, index)
        };
        match (self.versions.front(), self.expiry) {
            (Some(newest), Some(_)) => Resume::At(newest.clone(), from.index(newest)),
            _ => Resume::Relist(from),
        }
    }

    /// The mtime, and how long the kernel may believe it: as long as the listing, and
    /// `unlisted_ttl` if there is none, because then the kernel has no pages to keep.
    pub(super) fn attributes(
        &mut self,
        unlisted_ttl: Duration,
        now: Instant,
    ) -> (Instant, Duration) {
        if self.versions.is_empty() {
            let ttl = if self.being_listed { Duration::ZERO } else { unlisted_ttl };
            return (self.mtime.at(), ttl);
        }
        let ttl = self.kernel_ttl(now);
        if ttl.is_none() {
            self.mtime.advance_once(now);
        }
        (self.mtime.at(), ttl.unwrap_or(Duration::ZERO))
    }

    /// Counts a lookup that costs requests. True when the directory is worth listing: it has come
    /// to [`MISSES_BEFORE_LISTING`], and a listing would be believed for longer than it takes.
    pub(super) fn missed(&mut self) -> bool {
        self.misses += 1;
        self.misses >= MISSES_BEFORE_LISTING
            && !self.being_listed
            && self.metadata_ttl.is_none_or(|ttl| ttl > self.listing_took * 2)
    }

    /// True the first time that keys are hidden for this reason.
    pub(super) fn is_first_warning(&mut self, reason: Hidden) -> bool {
        let first = !self.warned.contains(&reason);
        if first {
            self.warned.push(reason);
        }
        first
    }

    /// Begins the listing `empty`, whose answers are believed until `expiry`.
    pub(super) fn begin(&mut self, empty: Listing, expiry: Expiry) -> ListingWriter {
        self.misses = 0;
        self.being_listed = true;
        self.progress.retain(|progress| !progress.is_over());
        let same_as = self.versions.front().map(|newest| newest.generation());
        let writer = ListingWriter::new(empty, self.epoch, expiry, same_as);
        self.progress.push(writer.progress());
        writer
    }

    /// A listing that has begun is not made after all.
    pub(super) fn withdraw(&mut self, writer: &ListingWriter) {
        self.progress.retain(|progress| progress.generation != writer.generation);
        self.being_listed &= self.epoch != writer.epoch;
    }

    /// Shows the next entries of a listing. If others have been shown in their place, the mtime
    /// moves before.
    pub(super) fn show(&mut self, writer: &mut ListingWriter, run: EntryRun, now: Instant) {
        let is_ours = self.progress.iter().any(|one| one.generation == writer.generation);
        if let Some(same_as) = writer.same_as.filter(|_| is_ours) {
            let same = self.versions.front().filter(|newest| newest.generation() == same_as);
            let start = writer.shown().listing.len();
            if !same.is_some_and(|newest| newest.continues_with(start, &run)) {
                writer.same_as = None;
                self.mtime.advance_once(now);
            }
        }
        writer.push(run);
    }

    /// Ends a listing that has failed; `is_gone`: it found no such directory.
    pub(super) fn fail(
        &mut self,
        writer: &ListingWriter,
        error: FsError,
        is_gone: bool,
        now: Instant,
    ) {
        if !writer.shown().listing.is_empty() {
            // What was shown of it will not be shown again.
            self.mtime.advance_ahead(now);
        }
        if self.epoch == writer.epoch {
            self.being_listed = false;
            self.misses = 0;
            if is_gone {
                self.expiry = None;
            }
        }
        writer.end(Err(error));
    }

    /// Ends a complete listing that began at `asked`. It becomes the newest version; or it renews
    /// the version before, if nothing has changed; or it is of no use but to scans, if names were
    /// dropped and the directory listed since.
    pub(super) fn finish(&mut self, writer: &ListingWriter, asked: Instant, now: Instant) {
        let listing = writer.shown().listing.clone();
        // Its entries become the version's, and are charged there.
        self.progress.retain(|progress| progress.generation != writer.generation);
        let in_epoch = self.epoch == writer.epoch;
        self.being_listed &= !in_epoch;
        // The kernel may have read the version before under the mtime of this one.
        let was_believed = self.expiry.is_some_and(|expiry| expiry.remaining(asked).is_some());
        let same = self.versions.front().filter(|newest| {
            writer.same_as == Some(newest.generation()) && newest.len() == listing.len()
        });
        if let Some(same) = same {
            self.aliases.push_front((writer.generation, same.generation()));
            self.aliases.truncate(ALIASES);
        } else if !in_epoch && self.expiry.is_some() {
            self.versions.insert(1, Arc::new(listing));
        } else {
            if !self.versions.is_empty() && (was_believed || !self.mtime.is_ahead()) {
                self.mtime.advance(now);
            }
            self.versions.push_front(Arc::new(listing));
        }
        self.versions.truncate(VERSIONS);
        if in_epoch {
            self.expiry = Some(writer.expiry);
            self.mtime.vouch();
        } else if self.expiry.is_none() {
            self.expiry = Some(Expiry::after(asked, Some(Duration::ZERO)));
            self.mtime.vouch();
        }
        self.listing_took = now - asked;
        self.misses = 0;
        // It would lead back to what was true before this.
        self.partial = None;
        writer.end(Ok(self.versions[0].clone()));
    }

    /// Gives away the first page that a listing may begin with, and when it was asked for.
    pub(super) fn take_page(&mut self, now: Instant) -> Option<(ListPage, Instant)> {
        let (epoch, ttl) = (self.epoch, self.metadata_ttl);
        let partial = self.partial.as_mut()?;
        let page = partial.take_page()?;
        partial.is_young(now, ttl, epoch).then_some((page, partial.asked()))
    }

    pub(super) fn drop_page(&mut self) {
        self.partial.as_mut().and_then(Partial::take_page);
    }

    pub(super) fn has_page(&self) -> bool {
        self.partial.as_ref().is_some_and(Partial::has_page)
    }

    /// Nothing of it is believed any more.
    pub(super) fn drop_names(&mut self, epoch: u64, now: Instant) {
        let shown = |progress: &Progress| !progress.shown().listing.is_empty();
        if self.versions.is_empty() && self.progress.iter().any(shown) {
            // What comes next may be other than what has been shown of the first listing.
            self.mtime.advance(now);
        }
        if let Some(partial) = &mut self.partial {
            partial.drop_names();
        }
        self.epoch = epoch;
        self.expiry = None;
        self.misses = 0;
        // Tasks at work on a listing work for those who came before.
        self.being_listed = false;
    }

    /// Gives up everything that can be known again by asking.
    pub(super) fn evict(&mut self, now: Instant) {
        self.versions.clear();
        self.partial = None;
        // Nothing will tell any more when the kernel's pages expire: they do so now.
        self.mtime.advance(now);
        self.mtime.vouch();
        self.expiry = None;
    }

    /// Gives up all listings but the newest.
    pub(super) fn evict_old(&mut self) {
        self.versions.truncate(1);
    }

    /// Nothing is lost with it.
    pub(super) fn is_idle(&self) -> bool {
        self.versions.is_empty() && self.partial.is_none() && !self.being_listed
    }

    /// Memory that it takes, with its places in the tables.
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

/// The answer of the beginning of a listing: the name is there, or nothing has this name,
/// because entries behind it have come.
fn partial_answer(listing: &Listing, name: &[u8], ttl: Duration) -> Option<NameAnswer> {
    let found = listing.find_inode(name);
    let is_behind = listing.behind(EntryKey { name, is_directory: true }) < listing.len();
    (found.is_some() || is_behind).then_some(NameAnswer { found, ttl })
}
