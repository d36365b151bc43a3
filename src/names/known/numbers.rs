//! All that is known, and the choice of inode numbers: the one that the kernel or any listing still
//! has for the same entry, else a new one. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::directories::Directories;
use super::directory::{Directory, NameAnswer};
use super::expiry::Expiry;
use super::inodes::Inodes;
use super::kept::{KeptNames, KeptOpen};
use super::progress::ListingWriter;
use super::resume::{Resume, ScanFrom};
use crate::errno::FsError;
use crate::names::entries::{EntryRun, FOREVER, Ino, Inode, Listing, Node, ROOT};
use crate::names::rules;

/// Names in a run that are looked up one by one, at some 0.3 µs each; a search through a thousand
/// answers costs 20 µs.
const FEW_NAMES: usize = 64;

pub(crate) struct Known {
    pub(crate) inodes: Inodes,
    pub(crate) directories: Directories,
    /// Answers of single lookups, by key (a directory's without its `/`).
    pub(crate) points: LruCache<String, PointAnswer>,
}

/// The answer of a single lookup.
#[derive(Clone)]
pub(crate) struct PointAnswer {
    pub(crate) found: Option<(Ino, Inode)>,
    pub(crate) expiry: Expiry,
    pub(crate) epoch: u64,
}

impl PointAnswer {
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.found, Some((_, Inode::File(_) | Inode::Untold(_))))
    }
}

impl Known {
    /// The prefix of a directory that the kernel knows.
    pub(crate) fn directory(&self, ino: Ino) -> Result<Arc<str>, FsError> {
        match self.inodes.get(ino) {
            Some(Inode::Directory(prefix)) => Ok(prefix.clone()),
            Some(Inode::File(_) | Inode::Untold(_)) => Err(FsError::NotADirectory),
            None => Err(FsError::Stale),
        }
    }

    /// The number behind `..`. The kernel knows a directory's parent as long as the directory.
    pub(crate) fn parent(&self, ino: Ino, prefix: &str) -> Ino {
        let above = rules::parent_and_name(prefix).filter(|_| ino != ROOT);
        above.and_then(|(above, _)| self.inodes.directory(above)).unwrap_or(ROOT)
    }

    pub(crate) fn answer(
        &mut self,
        prefix: &str,
        name: &[u8],
        key: &str,
        now: Instant,
    ) -> Option<NameAnswer> {
        let listed = self.directories.answer(prefix, name, now);
        match listed.filter(|answer| !matches!(answer.found, Some((_, Inode::Untold(_))))) {
            Some(answer) => Some(answer),
            None => self.point(prefix, key, now),
        }
    }

    /// The answer of a single lookup that is still believed.
    fn point(&mut self, prefix: &str, key: &str, now: Instant) -> Option<NameAnswer> {
        let point = self.points.get(key)?;
        let ttl = point.expiry.remaining(now)?;
        let current = self.directories.is_current(prefix, point.epoch);
        current.then(|| NameAnswer { found: point.found.clone(), ttl })
    }

    /// An entry of a listing; one that is untold, as it was looked up since.
    pub(crate) fn told(
        &mut self,
        prefix: &str,
        (ino, inode): (Ino, Inode),
        now: Instant,
    ) -> (Ino, Inode) {
        let Inode::Untold(key) = &inode else { return (ino, inode) };
        let point = self.point(prefix, key, now).and_then(|answer| answer.found);
        point.filter(|(_, found)| matches!(found, Inode::File(_))).unwrap_or((ino, inode))
    }

    /// Answers a lookup of the kernel and counts it.
    pub(crate) fn give(&mut self, answer: NameAnswer, now: Instant) -> Result<Node, FsError> {
        let NameAnswer { found, ttl } = answer;
        let (ino, inode) = found.ok_or(FsError::NotFound { ttl })?;
        self.remember(ino, &inode);
        self.flush();
        let inode = self.inodes.latest(ino, inode);
        Ok(self.node(ino, inode, ttl, now))
    }

    /// Counts one lookup of the kernel.
    pub(crate) fn remember(&mut self, ino: Ino, inode: &Inode) {
        let is_first = self.inodes.remember(ino, inode);
        if let Inode::Directory(prefix) = inode {
            self.directories.in_kernel(prefix);
            if is_first {
                self.keep_mtime(prefix);
            }
        }
    }

    /// Keeps what the kernel is told from here on, and goes on with what was told before.
    pub(crate) fn keep(&mut self, kept: KeptNames) {
        self.directories.go_on_after(kept.first_unused().1);
        for (prefix, mtime) in self.inodes.keep(kept) {
            self.directories.taken_over(&prefix, mtime);
        }
        // The kernel never forgets the root.
        let root = self.inodes.get(ROOT).map(|root| Arc::from(root.key()));
        self.directories.taken_over(&root.unwrap_or_default(), None);
    }

    /// Before the kernel is told that a file is open, and after it has told that it is closed.
    pub(crate) fn keep_open(&mut self, ino: Ino, open: Option<KeptOpen>) {
        self.inodes.keep_open(ino, open);
    }

    pub(crate) fn opens(&self) -> Vec<(Ino, KeptOpen)> {
        self.inodes.kept.as_ref().map(KeptNames::opens).unwrap_or_default()
    }

    /// Before the kernel is told of what was remembered.
    pub(crate) fn flush(&mut self) {
        if let Some(kept) = &mut self.inodes.kept {
            kept.flush();
        }
    }

    fn keep_mtime(&mut self, prefix: &str) {
        if let Some(mtime) = self.directories.mtime(prefix) {
            self.inodes.keep_mtime(prefix, mtime);
        }
    }

    /// The kernel is being told the `told` entries of a directory from index `first` on.
    pub(crate) fn scanned(&mut self, directory: Ino, listing: &Listing, first: usize, told: usize) {
        if let Some(kept) = &mut self.inodes.kept {
            kept.scanned(directory, listing, first, told);
        }
    }

    /// Continues a scan that has delivered the entries before `index` of listing `generation`.
    pub(crate) fn resume(
        &mut self,
        directory: Ino,
        prefix: &str,
        generation: u32,
        index: usize,
    ) -> Resume {
        match self.directories.resume(prefix, generation, index) {
            Resume::Stale => {}
            resume => return resume,
        }
        let kept = self.inodes.kept.as_ref();
        let from = match index {
            0 => kept.filter(|kept| kept.is_older(generation)).map(|_| ScanFrom::Index(0)),
            _ => kept
                .and_then(|kept| kept.last_told(directory, generation, index))
                .map(|(name, is_directory)| ScanFrom::Behind { name, is_directory }),
        };
        from.map_or(Resume::Stale, |from| self.directories.resume_from(prefix, from))
    }

    /// Ends a complete listing that began at `asked`.
    pub(crate) fn finish(&mut self, writer: &ListingWriter, asked: Instant, now: Instant) {
        self.directories.finish(writer, asked, now);
        self.keep_mtime(&writer.prefix);
    }

    /// True if the kernel knows the inode no more.
    pub(crate) fn forget(&mut self, ino: Ino, lookups: u64) -> bool {
        let forgotten = self.inodes.forget(ino, lookups);
        if let Some(Inode::Directory(prefix)) = &forgotten
            && self.inodes.directory(prefix).is_none()
        {
            self.directories.forgotten(prefix);
        }
        forgotten.is_some()
    }

    /// An inode as the kernel is told of it.
    pub(crate) fn node(&self, ino: Ino, inode: Inode, name_ttl: Duration, now: Instant) -> Node {
        let (mtime, attr_ttl) = match &inode {
            Inode::File(meta) => (meta.last_modified, FOREVER),
            Inode::Directory(prefix) => self.directories.attributes(prefix, name_ttl, now),
            // Each use looks the name up.
            Inode::Untold(_) => (SystemTime::UNIX_EPOCH, Duration::ZERO),
        };
        Node { ino, inode, mtime, name_ttl, attr_ttl }
    }

    /// TTL of a listing's names: zero when there is a newer one.
    pub(crate) fn listing_ttl(&self, listing: &Listing, now: Instant) -> Duration {
        let directory = self.directories.get(&listing.prefix);
        directory.and_then(|one| one.ttl(listing.generation, now)).unwrap_or_default()
    }

    /// Numbers the next entries of a listing and shows them. `hint`, 0 at first, is their likely
    /// index in the newest listing.
    pub(crate) fn show(&mut self, writer: &mut ListingWriter, mut run: EntryRun, hint: &mut usize) {
        self.number_all(&writer.prefix, &mut run, hint);
        self.directories.show(writer, run);
    }

    /// Numbers the entries of the directory `prefix` that come behind those before.
    pub(crate) fn number_all(&mut self, prefix: &str, run: &mut EntryRun, hint: &mut usize) {
        let directory = self.directories.get(prefix);
        let newest = directory.and_then(Directory::newest);
        let any_held =
            newest.is_some() || run.len() <= FEW_NAMES || self.may_hold_numbers_from(prefix, run);
        let partial = || directory.and_then(|one| Some(&one.partial.as_ref()?.listing));
        let before = newest.or_else(partial).cloned();
        for index in 0..run.len() {
            let same = before.as_ref().and_then(|old| old.number_near(*hint, run, index));
            let ino = if let Some(ino) = same {
                *hint += 1;
                ino
            } else {
                let was_there = before.as_ref().is_some_and(|old| {
                    *hint = old.behind(run.key(index));
                    hint.checked_sub(1).is_some_and(|at| old.key(at) == run.key(index))
                });
                if any_held || was_there {
                    self.number(&run.inode(index, prefix))
                } else {
                    self.inodes.issue()
                }
            };
            run.set_ino(index, ino);
        }
    }

    /// `false` only if nothing but a listing holds a number of this directory's entries from the
    /// first of `run` on. One such search costs less than a million lookups of unknown names.
    fn may_hold_numbers_from(&self, prefix: &str, run: &EntryRun) -> bool {
        const FEW: usize = 1000;
        if run.is_empty() {
            return false;
        }
        let first = run.key(0).name;
        // Keys of answers do not tell directories by their slash.
        let is_behind = |key: &str| {
            key.strip_prefix(prefix)
                .is_some_and(|name| name.bytes().chain([b'/']).ge(first.iter().copied()))
        };
        // Beside the listing under way, one that began before the names were dropped.
        self.directories.get(prefix).is_some_and(|directory| directory.progress.len() > 1)
            || self.inodes.may_know_from(prefix, first)
            || self.points.len() > FEW
            || self.points.iter().any(|(key, _)| is_behind(key))
    }

    /// The number that is still held for this inode, else a new one.
    pub(crate) fn number(&mut self, of: &Inode) -> Ino {
        let key = of.key();
        let held = self.inodes.number(of).or_else(|| {
            let (directory, _) = rules::parent_and_name(key)?;
            self.directories.get(directory)?.number(of)
        });
        let held = held.or_else(|| {
            let point = self.points.peek(key.strip_suffix('/').unwrap_or(key))?;
            let (ino, inode) = point.found.as_ref()?;
            inode.is_same(of).then_some(*ino)
        });
        held.unwrap_or_else(|| self.inodes.issue())
    }
}
