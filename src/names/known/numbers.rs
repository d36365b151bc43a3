//! What is known at this moment, behind the namespace's one lock; nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::errno::FsError;
use crate::names::entries::listing::Listing;
use crate::names::entries::node::{FOREVER, Ino, Inode, InodeRef, Node, NodeKind, ROOT};
use crate::names::entries::run::Part;
use crate::names::known::directories::Directories;
use crate::names::known::expiry::Expiry;
use crate::names::known::inodes::Inodes;
use crate::names::known::progress::Growing;
use crate::names::rules;

/// Names in a part that are looked for one by one: some 0.3 µs each, where to look through a
/// thousand answers costs 20.
const FEW_NAMES: usize = 64;

/// Everything that is known.
pub(crate) struct Known {
    pub(crate) inodes: Inodes,
    pub(crate) directories: Directories,
    /// What single lookups have found, by key (a directory's without its `/`).
    pub(crate) points: LruCache<String, Point>,
}

/// The answer of a single lookup.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) found: Option<(Ino, Inode)>,
    pub(crate) expiry: Expiry,
    pub(crate) epoch: u64,
}

impl Known {
    /// The prefix of a directory that the kernel knows.
    pub(crate) fn directory(&self, ino: Ino) -> Result<Arc<str>, FsError> {
        match self.inodes.get(ino) {
            Some(Inode::Directory(prefix)) => Ok(prefix.clone()),
            Some(Inode::File(_)) => Err(FsError::NotADirectory),
            None => Err(FsError::Stale),
        }
    }

    /// The number behind `..`. The kernel knows a directory's parent as long as the directory.
    pub(crate) fn parent(&self, ino: Ino, prefix: &str) -> Ino {
        let above = rules::parent_and_name(prefix).filter(|_| ino != ROOT);
        above.and_then(|(above, _)| self.inodes.number(InodeRef::Directory(above))).unwrap_or(ROOT)
    }

    /// What is believed of a name without asking, and for how long: of what it names, or that
    /// there is no such name.
    pub(crate) fn believed(
        &mut self,
        prefix: &str,
        name: &[u8],
        key: &str,
        now: Instant,
    ) -> Option<(Option<(Ino, Inode)>, Duration)> {
        if let Some((listing, ttl)) = self.directories.fresh(prefix, now) {
            let found = listing.find(name).map(|at| (listing.ino(at), listing.inode(at)));
            return Some((found, ttl));
        }
        if let Some(settled) = self.directories.settled(prefix, name, now) {
            return Some(settled);
        }
        let point = self.points.get(key)?;
        let ttl = point.expiry.remaining(now)?;
        let current = self.directories.is_current(prefix, point.epoch);
        current.then(|| (point.found.clone(), ttl))
    }

    /// Answers a lookup and counts it.
    pub(crate) fn give(
        &mut self,
        found: Option<(Ino, Inode)>,
        ttl: Duration,
        now: Instant,
    ) -> Result<Node, FsError> {
        let (ino, inode) = found.ok_or(FsError::NotFound { ttl })?;
        self.remember(ino, &inode);
        // What the kernel knows by a number does not change, were it only a fraction of a second.
        let inode = self.inodes.get(ino).cloned().unwrap_or(inode);
        Ok(self.node(ino, &inode, ttl, now))
    }

    /// Counts one kernel lookup.
    pub(crate) fn remember(&mut self, ino: Ino, inode: &Inode) {
        self.inodes.remember(ino, inode);
        if let Inode::Directory(prefix) = inode {
            self.directories.known(prefix);
        }
    }

    /// An inode as the kernel is told of it.
    pub(crate) fn node(
        &mut self,
        ino: Ino,
        inode: &Inode,
        name_ttl: Duration,
        now: Instant,
    ) -> Node {
        match inode {
            Inode::File(meta) => {
                let kind = NodeKind::File(meta.clone());
                Node { ino, kind, name_ttl, attr_ttl: FOREVER }
            }
            Inode::Directory(prefix) => {
                let (mtime, attr_ttl) = self.directories.attributes(prefix, name_ttl, now);
                Node { ino, kind: NodeKind::Directory { mtime }, name_ttl, attr_ttl }
            }
        }
    }

    /// A listing that was begun is not made after all, and nobody waits for it.
    pub(crate) fn withdraw(&mut self, prefix: &str, growing: &Growing, now: Instant) {
        self.directories.withdraw(prefix, growing);
        if self.inodes.number(InodeRef::Directory(prefix)).is_none() {
            self.directories.release(prefix, now);
        }
    }

    /// How long the names of a listing are believed: not at all when there is a newer one.
    pub(crate) fn listing_ttl(&self, listing: &Listing, now: Instant) -> Duration {
        let ttl = self.directories.ttl(listing.prefix(), listing.generation(), now);
        ttl.unwrap_or_default()
    }

    /// Numbers the entries of the directory `prefix` that come behind those before; `hint`, 0 at
    /// first, is where they are likely to stand in the newest listing.
    pub(crate) fn number_all(&mut self, prefix: &str, part: &mut Part, hint: &mut usize) {
        let newest = self.directories.newest(prefix).cloned();
        // A few are looked for one by one, which costs less than to look through what is known.
        let any_held =
            newest.is_some() || part.len() <= FEW_NAMES || self.may_hold_numbers_from(prefix, part);
        let before = newest.or_else(|| self.directories.beginning(prefix).cloned());
        for index in 0..part.len() {
            let same = before.as_ref().and_then(|old| old.number_near(*hint, part, index));
            let ino = if let Some(ino) = same {
                *hint += 1;
                ino
            } else {
                let was_there = before.as_ref().is_some_and(|old| {
                    *hint = old.behind(part.place(index));
                    hint.checked_sub(1).is_some_and(|at| old.place(at) == part.place(index))
                });
                if any_held || was_there {
                    self.number(part.inode(index, prefix).by_ref())
                } else {
                    self.inodes.issue()
                }
            };
            part.set_ino(index, ino);
        }
    }

    /// Whether anybody but a listing may hold a number of something in this directory that stands
    /// in this part or behind it. It costs less to ask that once than to look for a million names
    /// that nobody knows; and what the kernel has read of this listing stands before.
    fn may_hold_numbers_from(&self, prefix: &str, part: &Part) -> bool {
        const FEW: usize = 1000;
        if part.is_empty() {
            return false;
        }
        let (first, _) = part.place(0);
        // Answers do not tell directories by their slash.
        let is_behind = |key: &str| {
            key.strip_prefix(prefix)
                .is_some_and(|name| name.bytes().chain([b'/']).ge(first.iter().copied()))
        };
        self.directories.may_have_numbered(prefix)
            || self.inodes.may_know_from(prefix, first)
            || self.points.len() > FEW
            || self.points.iter().any(|(key, _)| is_behind(key))
    }

    /// The number of what a listing or a HEAD has shown: the one that anybody still holds for it,
    /// else a new one.
    pub(crate) fn number(&mut self, of: InodeRef<'_>) -> Ino {
        let key = of.key();
        let held = self.inodes.number(of).or_else(|| {
            let (directory, _) = rules::parent_and_name(key)?;
            self.directories.number(directory, of)
        });
        let held = held.or_else(|| {
            let point = self.points.peek(key.strip_suffix('/').unwrap_or(key))?;
            let (ino, inode) = point.found.as_ref()?;
            inode.by_ref().is_same(of).then_some(*ino)
        });
        held.unwrap_or_else(|| self.inodes.issue())
    }
}
