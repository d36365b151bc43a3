//! All directories, within one budget. This is the only place that counts their memory.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::budget::NamesBudget;
use super::directory::{Directory, NameAnswer};
use super::expiry::Expiry;
use super::mtime::Mtime;
use super::pages::OldPages;
use super::partial::Partial;
use super::progress::ListingWriter;
use super::resume::{Resume, ScanFrom};
use super::walk::{Ahead, MOST_AHEAD};
use crate::base::credit::Credit;
use crate::errno::FsError;
use crate::names::entries::{EntryRun, Listing};
use crate::names::rules;
use crate::store::ListPage;

/// First pages kept for a listing to continue. `ls` lists right after its lookup, so a few are
/// enough; 1,000 keys are some 300 KB.
const MAX_FIRST_PAGES: usize = 8;

/// Mtimes kept of directories that neither the kernel nor a listing holds: some 10 MB.
const MAX_MTIMES: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// Directories of which more is asked for when a name is looked up in one, before any of them was
/// used again: three requests each. With success, more may be asked for in vain.
const ENTERED: usize = 32;
const MOST_ENTERED: usize = 64;

/// The use of a directory that was entered saves twice the requests.
const GAIN: usize = 2;

/// Without success, one directory in so many.
const ENTERED_AGAIN: usize = 32;

#[derive(Debug)]
pub(crate) struct Directories {
    by_prefix: HashMap<Arc<str>, Directory>,
    budget: NamesBudget,
    /// Directories that keep a first page, the oldest page first.
    with_pages: VecDeque<Arc<str>>,
    root_prefix: Arc<str>,
    /// Counts the times that names were dropped.
    last_epoch: u64,
    /// The epoch of a directory that nothing is known of.
    first_epoch: u64,
    last_generation: u32,
    metadata_ttl: Option<Duration>,
    /// What may be asked for of directories in which a name is looked up.
    entering: Credit,
    /// Directories that might have been entered.
    entries: usize,
    /// Of listed directories whose records were removed, so that they have them again.
    mtimes: LruCache<Arc<str>, Mtime>,
}

impl Directories {
    /// Believes nothing yet.
    pub(crate) fn new(
        root_prefix: Arc<str>,
        budget_bytes: usize,
        metadata_ttl: Option<Duration>,
    ) -> Self {
        Self {
            by_prefix: HashMap::new(),
            budget: NamesBudget::new(budget_bytes),
            with_pages: VecDeque::new(),
            root_prefix,
            last_epoch: 0,
            first_epoch: 0,
            last_generation: 0,
            metadata_ttl,
            entering: Credit::new(ENTERED, MOST_ENTERED),
            entries: 0,
            mtimes: LruCache::new(MAX_MTIMES),
        }
    }

    pub(crate) fn get(&self, prefix: &str) -> Option<&Directory> {
        self.by_prefix.get(prefix)
    }

    /// Runs a change, and charges or refunds what it did to the directory's size. A directory that
    /// nothing is known of begins as an empty record.
    pub(crate) fn with<T>(
        &mut self,
        prefix: &Arc<str>,
        change: impl FnOnce(&mut Directory) -> T,
    ) -> T {
        let directory = self.by_prefix.entry(prefix.clone()).or_insert_with(|| {
            let in_kernel = *prefix == self.root_prefix;
            let (epoch, mtime) = (self.first_epoch, self.mtimes.pop(prefix).unwrap_or_default());
            let new = Directory::new(prefix.clone(), in_kernel, epoch, mtime, self.metadata_ttl);
            self.budget.charge(new.memory_bytes(Listing::memory_bytes));
            new
        });
        Self::charged(directory, &mut self.budget, &mut self.with_pages, change)
    }

    /// The same for a directory of which something is known; else changes nothing.
    pub(crate) fn with_known<T>(
        &mut self,
        prefix: &str,
        change: impl FnOnce(&mut Directory) -> T,
    ) -> Option<T> {
        let directory = self.by_prefix.get_mut(prefix)?;
        Some(Self::charged(directory, &mut self.budget, &mut self.with_pages, change))
    }

    fn charged<T>(
        directory: &mut Directory,
        budget: &mut NamesBudget,
        with_pages: &mut VecDeque<Arc<str>>,
        change: impl FnOnce(&mut Directory) -> T,
    ) -> T {
        let had_page = directory.has_page();
        let bytes = directory.memory_bytes(Listing::memory_bytes);
        let result = change(directory);
        budget.charge(directory.memory_bytes(Listing::memory_bytes));
        budget.refund(bytes);
        if had_page && !directory.has_page() {
            with_pages.retain(|prefix| prefix != &directory.prefix);
        }
        result
    }

    /// The kernel knows a directory from here on, until [`Self::forgotten`].
    pub(crate) fn in_kernel(&mut self, prefix: &Arc<str>) {
        if !self.get(prefix).is_some_and(|directory| directory.in_kernel) {
            self.with(prefix, |directory| directory.in_kernel = true);
        }
    }

    /// The kernel knows a directory from a process before this one, and may have its pages.
    pub(super) fn taken_over(&mut self, prefix: &Arc<str>, mtime: Option<Mtime>) {
        self.with(prefix, |directory| directory.taken_over(mtime));
    }

    /// Generations before this one are those of other processes.
    pub(super) fn go_on_after(&mut self, generation: u32) {
        self.last_generation = generation;
    }

    /// Of a directory that was listed.
    pub(super) fn mtime(&self, prefix: &str) -> Option<Mtime> {
        self.get(prefix).map(|directory| directory.mtime).filter(Mtime::is_known)
    }

    /// The kernel has forgotten a directory.
    pub(crate) fn forgotten(&mut self, prefix: &str) {
        self.with_known(prefix, Directory::forgotten);
        self.remove_if_idle(prefix);
    }

    /// Removes the record of a directory that neither the kernel nor anything else needs.
    fn remove_if_idle(&mut self, prefix: &str) {
        if self.by_prefix.get(prefix).is_none_or(|one| one.in_kernel || !one.is_idle()) {
            return;
        }
        let Some(directory) = self.by_prefix.remove(prefix) else { return };
        self.budget.refund(directory.memory_bytes(Listing::memory_bytes));
        // No answer that was asked for before its names were dropped may come back with it.
        self.first_epoch = self.first_epoch.max(directory.epoch);
        if directory.mtime.is_known() {
            self.mtimes.put(directory.prefix, directory.mtime);
        }
    }

    /// The epoch of requests that begin now.
    pub(crate) fn epoch(&self) -> u64 {
        self.last_epoch
    }

    /// The directory's names have not been dropped since requests of this epoch.
    pub(crate) fn is_current(&self, prefix: &str, epoch: u64) -> bool {
        epoch >= self.get(prefix).map_or(self.first_epoch, |directory| directory.epoch)
    }

    /// The complete listing that is believed, and the kernel's TTL of its names.
    pub(crate) fn believed_listing(
        &mut self,
        prefix: &str,
        now: Instant,
    ) -> Option<(Arc<Listing>, Duration)> {
        let believed = self.get(prefix)?.believed_listing(now)?;
        self.used(prefix);
        Some(believed)
    }

    pub(crate) fn answer(&mut self, prefix: &str, name: &[u8], now: Instant) -> Option<NameAnswer> {
        let answer = self.get(prefix)?.answer(name, now)?;
        self.used(prefix);
        Some(answer)
    }

    fn used(&mut self, prefix: &str) {
        self.budget.touch(prefix);
        if let Some(directory) = self.by_prefix.get_mut(prefix).filter(|one| one.is_bet) {
            directory.is_bet = false;
            self.entering.win(GAIN);
        }
    }

    /// A name is looked up in a directory of which nothing is known that could answer: true if the
    /// directory is worth asking for.
    pub(crate) fn may_enter(&mut self, prefix: &str, keys: usize, now: Instant) -> bool {
        if !self.get(prefix).is_none_or(|directory| directory.is_unseen(keys, now)) {
            return false;
        }
        self.entries += 1;
        if self.entries.is_multiple_of(ENTERED_AGAIN) {
            self.entering.recover();
        }
        self.entering.pay(1)
    }

    /// Continues a scan that has delivered the entries before `index` of listing `generation`.
    pub(crate) fn resume(&mut self, prefix: &str, generation: u32, index: usize) -> Resume {
        let Some(directory) = self.by_prefix.get(prefix) else { return Resume::Stale };
        self.budget.touch(prefix);
        directory.resume(generation, index)
    }

    /// Continues a scan whose listing this process has not made.
    pub(super) fn resume_from(&mut self, prefix: &str, from: ScanFrom) -> Resume {
        match self.by_prefix.get(prefix) {
            Some(directory) => directory.resume_from(from),
            None => Resume::Relist(from),
        }
    }

    pub(crate) fn needs_nothing(&self, prefix: &str, now: Instant) -> bool {
        self.get(prefix).is_some_and(|directory| directory.needs_nothing(now))
    }

    /// The first page of a directory is believed, and shows no directory.
    pub(crate) fn begins_with_files(&self, prefix: &str, now: Instant) -> bool {
        let partial = self.get(prefix).and_then(|directory| directory.partial.as_ref());
        partial.is_some_and(|partial| partial.shows_only_files(now))
    }

    /// The directory's mtime, and the TTL of its attributes for the kernel: see
    /// [`Directory::attr_ttl`].
    pub(crate) fn attributes(
        &self,
        prefix: &str,
        unlisted_ttl: Duration,
        now: Instant,
    ) -> (SystemTime, Duration) {
        match self.get(prefix) {
            Some(directory) => (directory.mtime.at(), directory.attr_ttl(unlisted_ttl, now)),
            None => (self.mtimes.peek(prefix).copied().unwrap_or_default().at(), unlisted_ttl),
        }
    }

    /// The kernel reads entries of these listings of a directory.
    pub(crate) fn read_from(&mut self, prefix: &Arc<str>, generations: impl Iterator<Item = u32>) {
        self.with(prefix, |directory| generations.for_each(|one| directory.read_from(one)));
    }

    pub(crate) fn old_pages(&self, prefix: &str, now: Instant) -> Option<OldPages> {
        self.get(prefix)?.old_pages(now)
    }

    pub(crate) fn pages_dropped(&mut self, prefix: &str, old: OldPages) {
        self.with_known(prefix, |directory| directory.pages_dropped(old));
    }

    /// A scan of the directory `prefix` begins: gives what is worth listing ahead, if this is a
    /// walk through its parent. `together`: a listing may show several directories.
    pub(crate) fn walked_to(
        &mut self,
        prefix: &str,
        page_keys: u16,
        together: bool,
        now: Instant,
    ) -> Option<Vec<Ahead>> {
        let (parent, name) = rules::parent_and_name(prefix)?;
        let directory = self.get(parent).filter(|parent| parent.is_believed(now))?;
        let listing = directory.newest()?.clone();
        let at = listing.find(name.as_bytes())?;
        let (mut walk, took) = (directory.walk, directory.listing_took * 2);
        // A page for one directory is a listing of its own.
        let page_keys = if together { usize::from(page_keys) } else { 1 };
        let limits = (page_keys, self.budget.limit);
        let is_known = |one: &str| self.needs_nothing(one, now);
        let entries = |one: &str| Some(self.get(one)?.newest()?.len());
        let mut ahead = walk.step(&listing, at, limits, is_known, entries);
        // What is listed ahead must still be believed when the walk comes to it.
        let most = u32::try_from(MOST_AHEAD).expect("small");
        if self.metadata_ttl.is_some_and(|ttl| ttl <= took * most) {
            ahead.clear();
        }
        self.by_prefix.get_mut(parent)?.walk = walk;
        Some(ahead)
    }

    /// A listing begins, with the answers to requests that were sent at `asked` or later.
    pub(crate) fn begin(&mut self, prefix: &Arc<str>, asked: Instant) -> ListingWriter {
        let empty = self.next_listing(prefix);
        let expiry = Expiry::after(asked, self.metadata_ttl);
        self.with(prefix, |directory| directory.begin(empty, expiry))
    }

    /// An empty listing with a generation that no other has.
    fn next_listing(&mut self, prefix: &Arc<str>) -> Listing {
        // 31 bits, and never 0.
        self.last_generation = ((self.last_generation + 1) & (u32::MAX >> 1)).max(1);
        Listing::new(prefix.clone(), self.last_generation)
    }

    /// A listing that has begun is not made after all, and no reader waits for it.
    pub(crate) fn withdraw(&mut self, writer: &ListingWriter) {
        self.with_known(&writer.prefix, |directory| directory.withdraw(writer));
        self.remove_if_idle(&writer.prefix);
    }

    /// Shows the next entries of a listing.
    pub(crate) fn show(&mut self, writer: &mut ListingWriter, run: EntryRun) {
        let prefix = writer.prefix.clone();
        self.with(&prefix, |directory| directory.show(writer, run));
        self.make_room(&prefix);
    }

    /// A name in a directory was used that the kernel may not know: its record may be evicted.
    pub(crate) fn used_ahead(&mut self, prefix: &Arc<str>) {
        if self.get(prefix).is_some_and(|directory| !directory.in_kernel) {
            self.budget.insert(prefix);
            self.make_room(prefix);
        }
    }

    /// Ends a listing that has failed; `is_gone`: it found no such directory.
    pub(crate) fn fail(&mut self, writer: &ListingWriter, error: FsError, is_gone: bool) {
        let known = self.with_known(&writer.prefix, |directory| {
            directory.fail(writer, error.clone(), is_gone);
        });
        if known.is_none() {
            writer.end(Err(error));
        }
        // If it was listed ahead, the kernel may not know it.
        self.remove_if_idle(&writer.prefix);
    }

    /// Ends a complete listing that began at `asked`.
    pub(crate) fn finish(&mut self, writer: &ListingWriter, asked: Instant, now: Instant) {
        self.with(&writer.prefix, |directory| directory.finish(writer, asked, now));
        self.budget.insert(&writer.prefix);
        self.make_room(&writer.prefix);
    }

    /// A directory begins with this page, asked for at `asked` in `epoch`. It shows the entries of
    /// `run` for certain, and there are more.
    pub(crate) fn begins_with(
        &mut self,
        prefix: &Arc<str>,
        (page, asked, epoch): (ListPage, Instant, u64),
        run: EntryRun,
    ) {
        let mut listing = self.next_listing(prefix);
        listing.push(Arc::new(run));
        let expiry = Expiry::after(asked, self.metadata_ttl);
        let partial = Partial::new(listing, page, asked, epoch, expiry);
        self.with(prefix, |directory| directory.partial = Some(partial));
        self.with_pages.retain(|other| other != prefix);
        self.with_pages.push_back(prefix.clone());
        if self.with_pages.len() > MAX_FIRST_PAGES {
            self.drop_oldest_page();
        }
        self.budget.insert(prefix);
        self.make_room(prefix);
    }

    /// Takes the first page with which a listing may begin, and the time at which it was asked for.
    pub(crate) fn take_page(&mut self, prefix: &str, now: Instant) -> Option<(ListPage, Instant)> {
        self.with_known(prefix, |directory| directory.take_page(now))?
    }

    fn drop_oldest_page(&mut self) -> bool {
        let Some(prefix) = self.with_pages.pop_front() else { return false };
        self.with_known(&prefix, |one| one.partial.as_mut().map(|partial| partial.page.take()));
        true
    }

    pub(crate) fn drop_names(&mut self, prefix: &str) {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        if self.with_known(prefix, |directory| directory.drop_names(epoch)).is_none() {
            self.first_epoch = epoch;
        }
    }

    pub(crate) fn drop_all_names(&mut self) {
        self.last_epoch += 1;
        self.first_epoch = self.last_epoch;
        for directory in self.by_prefix.values_mut() {
            directory.drop_names(self.last_epoch);
        }
    }

    /// Evicts until the rest fits: first pages, then the listings of the least recently used
    /// directory, but neither those of a directory being listed nor the newest one of `keep`.
    fn make_room(&mut self, keep: &Arc<str>) {
        while self.budget.is_exceeded() {
            if self.drop_oldest_page() {
                continue;
            }
            let may = |prefix: &Arc<str>| {
                prefix != keep && self.get(prefix).is_none_or(|one| !one.being_listed)
            };
            let Some(prefix) = self.budget.evict_candidate(may) else {
                self.with_known(keep, |directory| directory.versions.truncate(1));
                break;
            };
            self.budget.remove(&prefix);
            self.with_known(&prefix, Directory::evict);
            self.remove_if_idle(&prefix);
        }
    }

    /// Memory that was charged, and that is there.
    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> (usize, usize) {
        let there = self.by_prefix.values().map(|one| one.memory_bytes(Listing::recounted_bytes));
        (self.budget.bytes, there.sum())
    }
}
