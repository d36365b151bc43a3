//! Names to inodes: listings with TTLs, point lookups, negative answers.
//!
//! A complete, fresh listing of the parent answers a lookup without a request. Without one, a HEAD
//! of the key and a LIST below it go out together; the second such lookup in a directory starts its
//! listing in the background. Directories that are listed one after the other are listed ahead. The
//! entries of a listing are shown, and answer lookups, as its pages come.
//!
//! Callers that need the same answer share one request. Its task does not end with a caller that is
//! interrupted. The one lock is never held across an `.await`.
//!
//! [`entries`] are data, [`known`] is belief, pure, and [`asking`] are tasks, which alone see the
//! store. Each uses the ones before it.
//!
//! Invariants: an inode number names one version of one object, only names expire; an answer is
//! believed no longer than its TTL from the moment of the request; a failure goes to the callers
//! that wait for it and is not remembered.

use std::sync::Arc;

use self::asking::shared::now;
pub use self::asking::shared::{Names, NamesConfig};
use self::entries::Listing;
pub use self::entries::{FOREVER, HiddenKeys, Ino, Inode, Node, ROOT};
pub use self::known::{DESCRIPTION_BYTES, Damage, FORMAT, KeptNames, KeptOpen, OldPages};
use self::known::{NameAnswer, Resume, ScanFrom};
use self::rules::Asked;
use self::scan::ScanPosition;
pub use self::scan::{Scan, ScanEntry};
use crate::errno::FsError;
use crate::store::ObjectMeta;

mod asking;
mod entries;
mod known;
mod paths;
pub(crate) mod rules;
mod scan;
#[cfg(test)]
mod tests;

/// A file's place in its directory's listing.
#[derive(Clone, Debug)]
pub(crate) struct SiblingPosition {
    pub(crate) listing: Arc<Listing>,
    pub(crate) index: usize,
}

/// An inode and the name by which the kernel may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelName {
    pub ino: Ino,
    pub parent: Ino,
    pub name: String,
    pub is_directory: bool,
}

impl Names {
    /// Looks a name up and counts one lookup of the kernel, which [`Self::forget`] takes back if
    /// the kernel never gets the answer.
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Node, FsError> {
        let prefix = self.known().directory(parent)?;
        let answer = self.answer(&prefix, name).await?;
        self.known().give(answer, now())
    }

    /// What is believed of a name in a directory, or else the store's answer.
    async fn answer(
        self: &Arc<Self>,
        prefix: &Arc<str>,
        name: &[u8],
    ) -> Result<NameAnswer, FsError> {
        let key = match rules::asked(prefix, name) {
            Asked::Key(key) => key,
            Asked::Nothing => return Err(FsError::NotFound { ttl: FOREVER }),
            Asked::TooLong => return Err(FsError::NameTooLong),
        };
        let mut waited = false;
        let lookup = loop {
            let entering = {
                let (mut state, now) = (self.state.lock(), now());
                if let Some(answer) = state.known.answer(prefix, name, &key, now) {
                    self.refresh(&mut state, prefix, now);
                    return Ok(answer);
                }
                let entering = state.entering(prefix).filter(|_| !waited);
                let Some(entering) = entering else {
                    if !waited {
                        self.enter(&mut state, prefix, now);
                    }
                    break self.point_lookup(&mut state, prefix, key, now);
                };
                entering
            };
            // It probably answers this lookup, too; if it fails, the lookup has its own error.
            let _ = entering.outcome().await;
            waited = true;
        };
        let point = lookup.outcome().await?;
        let ttl = point.expiry.remaining(now()).unwrap_or_default();
        Ok(NameAnswer { found: point.found, ttl })
    }

    /// Keeps what the kernel is told from here on, and goes on with what another process has told.
    pub fn keep(&self, kept: KeptNames) {
        self.known().keep(kept);
    }

    /// Keeps how a large file is open, for the next process; `None` when all have closed it.
    pub fn keep_open(&self, ino: Ino, open: Option<KeptOpen>) {
        self.known().keep_open(ino, open);
    }

    /// The large files that are open, as another process has left them.
    pub fn opens(&self) -> Vec<(Ino, KeptOpen)> {
        self.known().opens()
    }

    /// Takes back lookups that the kernel has counted; true if it knows the inode no more.
    pub fn forget(&self, ino: Ino, lookups: u64) -> bool {
        self.known().forget(ino, lookups)
    }

    /// Attributes of an inode that the kernel knows. Waits for no request.
    pub fn attributes(self: &Arc<Self>, ino: Ino) -> Result<Node, FsError> {
        let (mut state, now) = (self.state.lock(), now());
        let inode = state.known.inodes.get(ino).ok_or(FsError::Stale)?.clone();
        if let Inode::Directory(prefix) = &inode {
            self.refresh_small(&mut state, prefix, now);
        }
        let name_ttl = self.config.metadata_ttl.unwrap_or(FOREVER);
        Ok(state.known.node(ino, inode, name_ttl, now))
    }

    /// Set if the kernel may hold pages of a directory that it must not use any more. It asks for
    /// the directory's attributes before it uses them, and must have dropped them by the answer.
    pub fn old_pages(&self, ino: Ino) -> Option<OldPages> {
        let known = self.known();
        known.directories.old_pages(&known.directory(ino).ok()?, now())
    }

    /// The kernel has dropped the pages of a directory.
    pub fn pages_dropped(&self, ino: Ino, old: OldPages) {
        let mut known = self.known();
        if let Ok(prefix) = known.directory(ino) {
            known.directories.pages_dropped(&prefix, old);
        }
    }

    pub fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        self.known().inodes.get(ino).cloned().ok_or(FsError::Stale)
    }

    pub fn object(&self, ino: Ino) -> Result<Arc<ObjectMeta>, FsError> {
        match self.inode(ino)? {
            Inode::File(meta) => Ok(meta),
            Inode::Directory(_) => Err(FsError::IsADirectory),
            Inode::Untold(_) => Err(FsError::Stale),
        }
    }

    /// A directory's entries behind the cookie of the last entry that the caller has taken; 0 is
    /// the beginning. While the directory is being listed, waits for at least one entry and gives
    /// those that have come.
    ///
    /// A scan that begins lists the directory anew if its listing is no longer believed. One that
    /// continues uses the listing that is there, however old, unless its names were dropped; in
    /// another listing it continues behind its last name. So no scan repeats or skips an entry that
    /// stays as it is.
    pub async fn read_directory(self: &Arc<Self>, ino: Ino, cookie: u64) -> Result<Scan, FsError> {
        let position = ScanPosition::of_cookie(cookie);
        let dots = position.map_or(0, |position| position.dots);
        let generations = |listing: &Listing| {
            position.map(|at| at.generation).into_iter().chain([listing.generation])
        };
        let (prefix, parent, progress, from) = {
            let mut state = self.state.lock();
            let prefix = state.known.directory(ino)?;
            let parent = state.known.parent(ino, &prefix);
            let now = now();
            if position.is_none() {
                let page_keys = self.config.page_keys;
                let together = !state.flat_denied;
                let ahead = state.known.directories.walked_to(&prefix, page_keys, together, now);
                self.list_ahead(&mut state, ahead.unwrap_or_default(), now);
                self.refresh(&mut state, &prefix, now);
            }
            let known = &mut state.known;
            let resume = match (position, known.directories.believed_listing(&prefix, now)) {
                (Some(at), _) => known.resume(ino, &prefix, at.generation, at.entries),
                (None, Some((listing, _))) => Resume::At(listing, 0),
                (None, None) => Resume::Relist(ScanFrom::Index(0)),
            };
            match resume {
                Resume::At(listing, index) => {
                    state.known.directories.read_from(&prefix, generations(&listing));
                    let name_ttl = state.known.listing_ttl(&listing, now);
                    return Ok(Scan { listing, dots, index, ino, parent, name_ttl });
                }
                Resume::In(progress, from) => (prefix, parent, progress, from),
                Resume::Relist(from) => {
                    let progress = self.listing_under_way(&mut state, &prefix, now);
                    (prefix, parent, progress, from)
                }
                Resume::Stale => return Err(FsError::Stale),
            }
        };
        let (listing, index) = scan::read_on(progress, &from).await?;
        let mut known = self.known();
        known.directories.read_from(&prefix, generations(&listing));
        let name_ttl = known.listing_ttl(&listing, now());
        drop(known);
        Ok(Scan { listing, dots, index, ino, parent, name_ttl })
    }

    /// The object of this inode was changed or deleted (412, or 404 on a GET): drops what is
    /// believed of its directory's names, so that the next lookup asks the store.
    pub fn changed(&self, ino: Ino) {
        let mut known = self.known();
        let Some(Inode::File(meta)) = known.inodes.get(ino).cloned() else { return };
        let key = &meta.version.key;
        let Some((parent, name)) = rules::parent_and_name(key) else { return };
        let believed = known.answer(parent, name.as_bytes(), key, now());
        // A program that keeps reading a changed object costs its directory only one listing.
        let is_known =
            believed.is_some_and(|answer| answer.found.is_none_or(|(now, _)| now != ino));
        if !is_known {
            known.directories.drop_names(parent);
        }
    }

    /// The directory and the name by which the kernel may know a file. It must forget the name of a
    /// file that is [`FsError::Stale`], or it would open the stale file by it again.
    pub fn name_of(&self, ino: Ino) -> Option<(Ino, String)> {
        let object = self.object(ino).ok()?;
        let (parent, name) = rules::parent_and_name(&object.version.key)?;
        Some((self.known().inodes.directory(parent)?, name.to_owned()))
    }

    /// The key of a file that the kernel knows, without the root's prefix.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        let object = self.object(ino).ok()?;
        object.version.key.strip_prefix(&self.config.root_prefix).map(str::to_owned)
    }

    /// Every inode that the kernel knows but the root, in no order.
    pub fn kernel_names(&self) -> Vec<KernelName> {
        let known = self.known();
        let names = known.inodes.known().filter_map(|(ino, inode)| {
            let (parent, name) = rules::parent_and_name(inode.key())?;
            let parent = known.inodes.directory(parent)?;
            let is_directory = matches!(inode, Inode::Directory(_));
            Some(KernelName { ino, parent, name: name.to_owned(), is_directory })
        });
        names.collect()
    }

    /// `None` if the listing is not believed. Sends no request.
    pub(crate) fn sibling_position(
        &self,
        ino: Ino,
        object: &ObjectMeta,
    ) -> Option<SiblingPosition> {
        let (parent, name) = rules::parent_and_name(&object.version.key)?;
        let (listing, _) = self.known().directories.believed_listing(parent, now())?;
        let index = listing.find(name.as_bytes())?;
        (listing.ino(index) == ino).then_some(SiblingPosition { listing, index })
    }

    /// The first place of a directory's listing; `None` if that is empty or not believed.
    pub(crate) fn first_position(&self, directory: Ino) -> Option<SiblingPosition> {
        let mut known = self.known();
        let prefix = known.directory(directory).ok()?;
        let (listing, _) = known.directories.believed_listing(&prefix, now())?;
        (listing.len() > 0).then_some(SiblingPosition { listing, index: 0 })
    }

    /// Drops what is believed of all names, negative answers included. Inodes stay: a program that
    /// has one open keeps reading the version that it names. Returns the directories that the
    /// kernel knows.
    pub fn drop_names(&self) -> Vec<Ino> {
        // The policy may be another by now.
        self.state.lock().flat_denied = false;
        let mut known = self.known();
        known.directories.drop_all_names();
        known.inodes.directories().collect()
    }
}
