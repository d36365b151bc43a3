//! Names to inodes: listings with TTLs, point lookups, negative answers.
//!
//! A complete, fresh listing of the parent answers a lookup without a request. Without one, a HEAD
//! of the key and a LIST below it go out together, and after the second such lookup in one
//! directory its listing is fetched in the background.
//!
//! Whoever lists directories one after the other finds the next ones listed already. A listing is
//! shown as its pages come ([`growing`]), several of them at a time ([`pages`]); what
//! has come answers lookups, too.
//!
//! Callers that need the same answer share one flight, run by a task of its own: an interrupted
//! caller does not take the answer from the others. The one lock is never held across an `.await`.
//!
//! Invariants: an inode number names one version of one object, only names expire; and an answer
//! is believed no longer than its TTL from the moment it was *asked* for. A failure is handed to
//! those who waited for it and is not remembered.

use std::sync::Arc;

use self::asking::shared::now;
pub use self::asking::shared::{Names, NamesConfig};
use self::entries::Listing;
pub use self::entries::{FOREVER, HiddenKeys, Ino, Inode, Node, ROOT};
use self::known::{NameAnswer, Resume, ScanFrom};
use self::rules::Asked;
use self::scan::ScanPosition;
pub use self::scan::{Scan, ScanEntry};
use crate::errno::FsError;
use crate::store::ObjectMeta;

mod asking;
mod entries;
mod known;
pub(crate) mod rules;
mod scan;
#[cfg(test)]
mod tests;

/// Where a file stands in its directory's listing.
#[derive(Clone, Debug)]
pub(crate) struct SiblingPosition {
    /// The whole of it.
    pub(crate) listing: Arc<Listing>,
    /// Where in it.
    pub(crate) index: usize,
}

impl SiblingPosition {
    /// The file at an index of the listing and its inode number; `None` for a directory.
    pub(crate) fn file(&self, index: usize) -> Option<(Ino, Arc<ObjectMeta>)> {
        match self.listing.inode(index) {
            Inode::File(object) => Some((self.listing.ino(index), object)),
            Inode::Directory(_) => None,
        }
    }
}

/// An inode and the name by which the kernel may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelName {
    /// Its number.
    pub ino: Ino,
    /// The directory's number.
    pub parent: Ino,
    /// The name in it.
    pub name: String,
    /// Whether it is a directory.
    pub is_directory: bool,
}

impl Names {
    /// Looks a name up; on success one kernel lookup is counted, which [`Self::forget`] takes back
    /// if the kernel is never told.
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Node, FsError> {
        let lookup = {
            let mut state = self.state.lock();
            let prefix = state.known.directory(parent)?;
            let key = match rules::asked(&prefix, name) {
                Asked::Key(key) => key,
                Asked::Nothing => return Err(FsError::NotFound { ttl: FOREVER }),
                Asked::TooLong => return Err(FsError::NameTooLong),
            };
            let now = now();
            if let Some(answer) = state.known.answer(&prefix, name, &key, now) {
                self.refresh(&mut state, &prefix, now);
                return state.known.give(answer, now);
            }
            self.point_lookup(&mut state, &prefix, key, now)
        };
        let point = lookup.outcome().await?;
        let now = now();
        let ttl = point.expiry.remaining(now).unwrap_or_default();
        self.known().give(NameAnswer { found: point.found, ttl }, now)
    }

    /// Takes back so many lookups that the kernel has counted.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.known().forget(ino, lookups, now());
    }

    /// Attributes of an inode that the kernel knows. Sends no request.
    pub fn attributes(&self, ino: Ino) -> Result<Node, FsError> {
        let mut known = self.known();
        let inode = known.inodes.get(ino).ok_or(FsError::Stale)?.clone();
        let name_ttl = self.config.metadata_ttl.unwrap_or(FOREVER);
        Ok(known.node(ino, inode, name_ttl, now()))
    }

    /// What an inode's number names.
    pub fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        self.known().inodes.get(ino).cloned().ok_or(FsError::Stale)
    }

    /// The object behind a file's inode.
    pub fn object(&self, ino: Ino) -> Result<Arc<ObjectMeta>, FsError> {
        match self.known().inodes.get(ino) {
            Some(Inode::File(meta)) => Ok(meta.clone()),
            Some(Inode::Directory(_)) => Err(FsError::IsADirectory),
            None => Err(FsError::Stale),
        }
    }

    /// A directory's entries from a position on: 0 is the beginning, any other position is the
    /// cookie of the last entry that the caller has taken.
    ///
    /// A beginning lists anew what is not believed any more. A continuation goes on with what is
    /// there, however old, unless its names were dropped; if there is another listing by now, it
    /// goes on behind the name it came to. So no scan repeats or skips what stays as it is.
    ///
    /// Of a directory that is being listed it gives what has come, as soon as that is anything; it
    /// gives nothing only at the end.
    pub async fn read_directory(self: &Arc<Self>, ino: Ino, cookie: u64) -> Result<Scan, FsError> {
        let position = ScanPosition::of_cookie(cookie);
        let dots = position.map_or(0, |position| position.dots);
        let (numbers, progress, from) = {
            let mut state = self.state.lock();
            let prefix = state.known.directory(ino)?;
            let numbers = (ino, state.known.parent(ino, &prefix));
            let now = now();
            if position.is_none() {
                let page_keys = self.config.page_keys;
                let ahead = state.known.directories.walked_to(&prefix, page_keys, now);
                self.list_ahead(&mut state, ahead, now);
                self.refresh(&mut state, &prefix, now);
            }
            let directories = &mut state.known.directories;
            let resume = match (position, directories.believed_listing(&prefix, now)) {
                (Some(at), _) => directories.resume(&prefix, at.generation, at.entries),
                (None, Some((listing, _))) => Resume::At(listing, 0),
                (None, None) => Resume::Relist(ScanFrom::Index(0)),
            };
            match resume {
                Resume::At(listing, index) => {
                    let ttl = state.known.listing_ttl(&listing, now);
                    return Ok(Scan::new(listing, (dots, index), numbers, ttl));
                }
                Resume::In(progress, from) => (numbers, progress, from),
                Resume::Relist(from) => {
                    (numbers, self.listing_under_way(&mut state, &prefix, now), from)
                }
                Resume::Stale => return Err(FsError::Stale),
            }
        };
        let (listing, index) = scan::read_on(progress, &from).await?;
        let ttl = self.known().listing_ttl(&listing, now());
        Ok(Scan::new(listing, (dots, index), numbers, ttl))
    }

    /// The object of this inode is not what it was, or is gone (412, or 404 on a GET): what is
    /// believed of its directory's names is dropped, so that the next lookup sees the new truth.
    pub fn changed(&self, ino: Ino) {
        let mut known = self.known();
        let Some(Inode::File(meta)) = known.inodes.get(ino).cloned() else { return };
        let key = &meta.version.key;
        let Some((parent, name)) = rules::parent_and_name(key) else { return };
        let believed = known.answer(parent, name.as_bytes(), key, now());
        // Then the new truth is known already: a file that is read on and on after its object has
        // changed must not cost its directory a listing each time.
        let is_known =
            believed.is_some_and(|answer| answer.found.is_none_or(|(now, _)| now != ino));
        if !is_known {
            known.directories.drop_names(parent, now());
        }
    }

    /// The directory and the name by which the kernel may know this file.
    pub fn name_of(&self, ino: Ino) -> Option<(Ino, String)> {
        let known = self.known();
        let Some(Inode::File(meta)) = known.inodes.get(ino) else { return None };
        let (parent, name) = rules::parent_and_name(&meta.version.key)?;
        Some((known.inodes.directory(parent)?, name.to_owned()))
    }

    /// The key of a file that the kernel knows, without the root's prefix.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        let known = self.known();
        let Some(Inode::File(meta)) = known.inodes.get(ino) else { return None };
        meta.version.key.strip_prefix(&self.config.root_prefix).map(str::to_owned)
    }

    /// All that the kernel knows but the root, in no order.
    pub fn kernel_names(&self) -> Vec<KernelName> {
        let known = self.known();
        let names = known.inodes.known().filter_map(|(ino, inode)| {
            let path = inode.key();
            let (parent, name) = rules::parent_and_name(path.strip_suffix('/').unwrap_or(path))?;
            let parent = known.inodes.directory(parent)?;
            let is_directory = matches!(inode, Inode::Directory(_));
            Some(KernelName { ino, parent, name: name.to_owned(), is_directory })
        });
        names.collect()
    }

    /// Where a file stands among the others of its directory, if that has a listing which is
    /// believed. Sends no request.
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

    /// The directories that the kernel knows.
    pub fn known_directories(&self) -> Vec<Ino> {
        self.known().inodes.directories().collect()
    }

    /// Drops what is believed of all names, negative answers included. Inodes stay: whoever has
    /// one open goes on reading the version it names.
    pub fn drop_names(&self) {
        self.known().directories.drop_all_names(now());
    }
}
