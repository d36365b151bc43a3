//! The inode table: what the kernel knows by number. Pure.
//!
//! Invariants: a number names one path of a directory, or one version of one object (key, `ETag`,
//! size, and whether it is archived, which shows in its mode), and nothing else while mounted. Of
//! what it names, only the time may move, and only forwards. It is known until the kernel has
//! forgotten all its lookups; the root always.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::kept::{KeptInode, KeptNames, KeptOpen, Slot};
use super::mtime::Mtime;
use crate::names::entries::{Ino, Inode, ROOT};
use crate::store::{ObjectMeta, ObjectVersion};

#[derive(Debug)]
pub(crate) struct Inodes {
    next: Ino,
    known: HashMap<Ino, KnownInode>,
    directories: HashMap<Arc<str>, Ino>,
    files: HashMap<ByVersion, Ino>,
    /// Where all of it but the root is kept for the next process.
    pub(super) kept: Option<KeptNames>,
}

#[derive(Debug)]
struct KnownInode {
    inode: Inode,
    lookups: u64,
    kept: Option<Slot>,
}

/// Looks files up by version without a second copy of the key.
#[derive(Debug)]
struct ByVersion(Arc<ObjectMeta>);

impl Borrow<ObjectVersion> for ByVersion {
    fn borrow(&self) -> &ObjectVersion {
        &self.0.version
    }
}

impl PartialEq for ByVersion {
    fn eq(&self, other: &Self) -> bool {
        self.0.version == other.0.version
    }
}

impl Eq for ByVersion {}

impl Hash for ByVersion {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.version.hash(state);
    }
}

impl Inodes {
    pub(crate) fn new(root_prefix: &str) -> Self {
        let mut inodes = Self {
            next: ROOT + 1,
            known: HashMap::new(),
            directories: HashMap::new(),
            files: HashMap::new(),
            kept: None,
        };
        inodes.remember(ROOT, &Inode::Directory(root_prefix.into()));
        inodes
    }

    /// Keeps all that the kernel is told from here on, and goes on with what was told before.
    pub(super) fn keep(&mut self, mut kept: KeptNames) -> Vec<(Arc<str>, Option<Mtime>)> {
        let mut directories = Vec::new();
        self.next = kept.first_unused().0;
        for KeptInode { ino, inode, mtime, lookups, slot, .. } in kept.take() {
            if let Inode::Directory(prefix) = &inode {
                directories.push((prefix.clone(), mtime));
            }
            self.find_by(ino, &inode);
            self.known.insert(ino, KnownInode { inode, lookups, kept: Some(slot) });
        }
        self.kept = Some(kept);
        directories
    }

    pub(crate) fn issue(&mut self) -> Ino {
        if let Some(kept) = &mut self.kept {
            kept.will_issue(self.next);
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<&Inode> {
        self.known.get(&ino).map(|known| &known.inode)
    }

    /// Every number but the root's, and what it names.
    pub(crate) fn known(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.known.iter().filter(|&(&ino, _)| ino != ROOT).map(|(&ino, known)| (ino, &known.inode))
    }

    /// The number under which the kernel knows it.
    pub(crate) fn number(&self, of: &Inode) -> Option<Ino> {
        let ino = match of {
            Inode::Directory(prefix) => self.directory(prefix),
            Inode::File(meta) => self.files.get(&meta.version).copied(),
            // The kernel is told to forget it at once.
            Inode::Untold(_) => None,
        }?;
        // An object that was restored from the archive has kept its version.
        self.get(ino).is_some_and(|inode| inode.is_same(of)).then_some(ino)
    }

    pub(crate) fn directory(&self, prefix: &str) -> Option<Ino> {
        self.directories.get(prefix).copied()
    }

    pub(crate) fn directories(&self) -> impl Iterator<Item = Ino> {
        self.directories.values().copied()
    }

    /// `false` only if the kernel knows no entry of `prefix` at or behind `first`. May be `true`
    /// without cause.
    pub(crate) fn may_know_from(&self, prefix: &str, first: &[u8]) -> bool {
        /// More than these are not searched.
        const FEW: usize = 1000;
        let is_behind = |key: &str| {
            let name = key.strip_prefix(prefix);
            name.is_some_and(|name| !name.is_empty() && name.as_bytes() >= first)
        };
        self.files.len().max(self.directories.len()) > FEW
            || self.files.keys().any(|file| is_behind(&file.0.version.key))
            || self.directories.keys().any(|directory| is_behind(directory))
    }

    /// What the kernel is told of a number: what it knows, unless the object was put again since.
    pub(crate) fn latest(&self, ino: Ino, inode: Inode) -> Inode {
        self.get(ino).filter(|known| !inode.is_newer(known)).cloned().unwrap_or(inode)
    }

    /// Counts one lookup of a number that was issued for this inode; true for the first one.
    pub(crate) fn remember(&mut self, ino: Ino, inode: &Inode) -> bool {
        let new = || KnownInode { inode: inode.clone(), lookups: 0, kept: None };
        let known = self.known.entry(ino).or_insert_with(new);
        debug_assert!(known.inode.is_same(inode), "a number names one thing");
        // Too many to be counted stay too many.
        known.lookups = known.lookups.saturating_add(1);
        let is_newer = inode.is_newer(&known.inode);
        if is_newer {
            known.inode = inode.clone();
        }
        let (is_first, lookups) = (known.lookups == 1, known.lookups);
        match (&mut self.kept, known.kept) {
            (Some(kept), None) if ino != ROOT => known.kept = kept.add(ino, inode),
            (Some(kept), Some(slot)) if is_newer => kept.replace(slot, lookups, ino, inode, None),
            (Some(kept), Some(slot)) => kept.count_lookups(slot, ino, lookups),
            _ => {}
        }
        if is_first || is_newer {
            self.find_by(ino, inode);
        }
        is_first
    }

    /// Enters it into the tables by name and by version.
    fn find_by(&mut self, ino: Ino, inode: &Inode) {
        match inode {
            Inode::Directory(prefix) => {
                self.directories.insert(prefix.clone(), ino);
            }
            Inode::File(meta) => {
                // Removed first, so that the key of the map is the one that lives longest.
                self.files.remove(&meta.version);
                self.files.insert(ByVersion(meta.clone()), ino);
            }
            Inode::Untold(_) => {}
        }
    }

    /// Keeps the time of a directory, which was listed.
    pub(super) fn keep_mtime(&mut self, prefix: &str, mtime: Mtime) {
        let known =
            self.directories.get(prefix).and_then(|&ino| Some((ino, self.known.get(&ino)?)));
        if let (Some(kept), Some((ino, known))) = (&mut self.kept, known)
            && let Some(slot) = known.kept
        {
            kept.replace(slot, known.lookups, ino, &known.inode, Some(mtime));
        }
    }

    /// Keeps how often a file is open, and who reads it.
    pub(super) fn keep_open(&mut self, ino: Ino, open: Option<KeptOpen>) {
        if let (Some(kept), Some(known)) = (&mut self.kept, self.known.get(&ino))
            && let Some(slot) = known.kept
        {
            kept.set_open(ino, open);
            kept.replace(slot, known.lookups, ino, &known.inode, None);
        }
    }

    /// Takes lookups back; gives the inode if that was the last of them.
    pub(crate) fn forget(&mut self, ino: Ino, lookups: u64) -> Option<Inode> {
        if ino == ROOT {
            return None;
        }
        let known = self.known.get_mut(&ino)?;
        if known.lookups != u64::MAX {
            known.lookups = known.lookups.saturating_sub(lookups);
        }
        let left = known.lookups;
        if let (Some(kept), Some(slot)) = (&mut self.kept, known.kept) {
            match left {
                0 => kept.remove(slot, ino, &known.inode),
                left => kept.count_lookups(slot, ino, left),
            }
        }
        if left > 0 {
            return None;
        }
        let inode = self.known.remove(&ino)?.inode;
        match &inode {
            Inode::Directory(prefix) => {
                if self.directories.get(prefix) == Some(&ino) {
                    self.directories.remove(prefix);
                }
            }
            Inode::File(meta) => {
                if self.files.get(&meta.version) == Some(&ino) {
                    self.files.remove(&meta.version);
                }
            }
            Inode::Untold(_) => {}
        }
        Some(inode)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn file(key: &str, etag: &str, archived: bool) -> Inode {
        put_at(key, etag, archived, 0)
    }

    fn put_at(key: &str, etag: &str, archived: bool, second: u64) -> Inode {
        let version = ObjectVersion { key: key.to_owned(), etag: etag.to_owned(), size_bytes: 1 };
        let last_modified = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Inode::File(Arc::new(ObjectMeta { version, last_modified, archived }))
    }

    #[test]
    fn a_number_is_known_until_every_lookup_is_forgotten() {
        let mut inodes = Inodes::new("");
        let inode = file("k", "1", false);
        let ino = inodes.issue();
        inodes.remember(ino, &inode);
        inodes.remember(ino, &inode);
        assert!(inodes.forget(ino, 1).is_none());
        assert_eq!(inodes.number(&inode), Some(ino));
        assert!(inodes.forget(ino, 1).is_some());
        assert!(inodes.get(ino).is_none());
        assert_eq!(inodes.number(&inode), None);
        assert_ne!(inodes.issue(), ino);
    }

    #[test]
    fn versions_of_one_key_have_numbers_of_their_own() {
        let mut inodes = Inodes::new("");
        let versions = [file("k", "1", false), file("k", "2", false)];
        let numbers = versions.each_ref().map(|inode| {
            let ino = inodes.issue();
            inodes.remember(ino, inode);
            ino
        });
        assert_ne!(numbers[0], numbers[1]);
        assert_eq!(inodes.number(&versions[0]), Some(numbers[0]));
        assert_eq!(inodes.number(&versions[1]), Some(numbers[1]));
    }

    #[test]
    fn a_restored_object_has_a_new_number_and_the_old_one_stays_valid() {
        let mut inodes = Inodes::new("");
        let (cold, warm) = (file("k", "1", true), file("k", "1", false));
        let old = inodes.issue();
        inodes.remember(old, &cold);
        assert_eq!(inodes.number(&warm), None);
        let new = inodes.issue();
        inodes.remember(new, &warm);
        assert_eq!(inodes.number(&warm), Some(new));
        inodes.forget(old, 1);
        assert_eq!(inodes.number(&warm), Some(new));
    }

    #[test]
    fn only_a_time_that_is_surely_later_replaces_the_one_that_is_known() {
        let mut inodes = Inodes::new("");
        let ino = inodes.issue();
        inodes.remember(ino, &put_at("k", "1", false, 10));
        for (second, is_shown) in [(9, 10), (11, 10), (12, 12), (10, 12), (13, 12)] {
            let told = put_at("k", "1", false, second);
            let shown = inodes.latest(ino, told.clone());
            inodes.remember(ino, &told);
            let Inode::File(meta) = &shown else { panic!("a file") };
            let at = meta.last_modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(at, Duration::from_secs(is_shown));
            assert!(inodes.get(ino).is_some_and(|known| !shown.is_newer(known)));
            assert_eq!(inodes.number(&told), Some(ino));
        }
        assert!(inodes.forget(ino, 6).is_some());
        assert_eq!(inodes.number(&file("k", "1", false)), None);
    }

    #[test]
    fn the_root_cannot_be_forgotten() {
        let mut inodes = Inodes::new("p/");
        assert!(inodes.forget(ROOT, u64::MAX).is_none());
        assert!(matches!(inodes.get(ROOT), Some(Inode::Directory(prefix)) if &**prefix == "p/"));
        assert_eq!(inodes.directory("p/"), Some(ROOT));
    }
}
