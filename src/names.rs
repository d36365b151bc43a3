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

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::directories::{Directories, Expiry, Resume};
use self::growing::{Grower, Growing, Onward};
pub use self::inodes::Inode;
use self::inodes::{InodeRef, Inodes};
pub use self::listing::HiddenKeys;
use self::listing::{Listing, Part, Rest};
use self::pages::Pages;
use self::scan::Position;
pub use self::scan::{Scan, ScanEntry};
use self::split::StartAfter;
use self::state::State;
use self::tree::Asked;
use crate::errno::FsError;
use crate::store::{ListPage, ObjectMeta, ObjectStore, StoreError};

mod directories;
mod flat;
mod flight;
mod growing;
mod held;
pub mod inodes;
pub mod listing;
mod lookups;
pub mod pages;
mod runs;
mod scan;
pub mod split;
mod state;
#[cfg(test)]
mod tests;
pub mod tree;
mod walk;

/// "Practically for ever", as a TTL for the kernel: ten years.
pub const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// Point answers that are kept, negative ones included: 100,000 of some 300 bytes are 30 MB.
const MAX_POINT_ANSWERS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// Listings that are made anew at once before their time. What finds no place is listed when it is
/// asked for: to walk through ten thousand directories at the end of their lives must not list each
/// of them.
const MOST_REFRESHES: usize = 4;

/// An inode number: names one version of one object, or one directory; never reused while mounted.
pub type Ino = u64;

/// The root directory's inode number, as FUSE wants it.
pub const ROOT: Ino = 1;

/// How names are kept.
#[derive(Clone, Debug)]
pub struct NamesConfig {
    /// Empty, or a key prefix that ends with `/`: the root directory.
    pub root_prefix: String,
    /// How long a listing or a point lookup is believed; `None` is for ever.
    pub metadata_ttl: Option<Duration>,
    /// How long a negative answer is believed in a directory that is not listed.
    pub negative_ttl: Duration,
    /// Wall-clock time of the mount: what tokio's clock counts directory mtimes from.
    pub mounted_at: SystemTime,
    /// Memory that all that is known of directories may take together: listings, complete or under
    /// way, and what goes with them. What is in use may take more.
    pub listings_bytes: usize,
    /// Keys a page may hold, 1 to 1000; less only in tests.
    pub page_keys: u16,
    /// Pages of one listing in flight at once; 1 lists sequentially.
    pub pages_at_once: usize,
}

/// An inode as the kernel is told of it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: NodeKind,
    /// How long the kernel may believe the *name* without asking.
    pub name_ttl: Duration,
    /// How long the kernel may believe the attributes: practically for ever for a file, whose
    /// inode names one version.
    pub attr_ttl: Duration,
}

/// File or directory.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A directory; the mtime changes whenever its listing may have changed.
    Directory {
        /// Modification time.
        mtime: SystemTime,
    },
    /// One version of one object.
    File(Arc<ObjectMeta>),
}

/// Where a file stands in its directory's listing.
#[derive(Clone, Debug)]
pub struct Place {
    /// The whole of it.
    pub listing: Arc<Listing>,
    /// Where in it.
    pub index: usize,
}

impl Place {
    /// The file at an index of the listing and its inode number; `None` for a directory.
    pub fn file(&self, index: usize) -> Option<(Ino, Arc<ObjectMeta>)> {
        match self.listing.inode(index) {
            Inode::File(object) => Some((self.listing.ino(index), object)),
            Inode::Directory(_) => None,
        }
    }
}

/// An inode and the name by which the kernel may know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub ino: Ino,
    /// The directory's number.
    pub parent: Ino,
    /// The name in it.
    pub name: String,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// The names of a bucket, as inodes.
///
/// Its asynchronous methods need a tokio runtime, on which they start tasks.
pub struct Names {
    store: Arc<dyn ObjectStore>,
    config: NamesConfig,
    state: Mutex<State>,
    /// Listings that are made anew before their time.
    refreshes: Arc<Semaphore>,
}

impl Names {
    /// The names of the bucket behind `store`; asks nothing yet.
    pub fn new(store: Arc<dyn ObjectStore>, config: NamesConfig) -> Arc<Self> {
        let (mounted_at, now) = (config.mounted_at, Instant::now());
        let (bytes, ttl) = (config.listings_bytes, config.metadata_ttl);
        let directories = Directories::new(mounted_at, now, bytes, ttl);
        let state = State {
            inodes: Inodes::new(&config.root_prefix),
            directories,
            points: LruCache::new(MAX_POINT_ANSWERS),
            lookups: HashMap::new(),
            start_after: StartAfter::Untried,
        };
        let refreshes = Arc::new(Semaphore::new(MOST_REFRESHES));
        Arc::new(Self { store, config, state: Mutex::new(state), refreshes })
    }

    /// Looks a name up; on success one kernel lookup is counted, which [`Self::forget`] takes back
    /// if the kernel is never told.
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Node, FsError> {
        let flight = {
            let mut state = self.state.lock();
            let prefix = state.directory(parent)?;
            let key = match tree::asked(&prefix, name) {
                Asked::Key(key) => key,
                Asked::Nothing => return Err(FsError::NotFound { ttl: FOREVER }),
                Asked::TooLong => return Err(FsError::NameTooLong),
            };
            let now = Instant::now();
            if let Some((found, ttl)) = state.believed(&prefix, name, &key, now) {
                self.refresh(&mut state, &prefix, now);
                return state.give(found, ttl, now);
            }
            self.point_flight(&mut state, &prefix, key, now)
        };
        let point = flight.land().await.ok_or_else(shut_down)??;
        let now = Instant::now();
        let ttl = point.expiry.remaining(now).unwrap_or_default();
        self.state.lock().give(point.found, ttl, now)
    }

    /// Takes back so many lookups that the kernel has counted.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let mut state = self.state.lock();
        if let Some(Inode::Directory(prefix)) = state.inodes.forget(ino, lookups) {
            state.directories.release(&prefix, Instant::now());
        }
    }

    /// Attributes of an inode that the kernel knows. Sends no request.
    pub fn attributes(&self, ino: Ino) -> Result<Node, FsError> {
        let mut state = self.state.lock();
        let inode = state.inodes.get(ino).ok_or(FsError::Stale)?.clone();
        let name_ttl = self.config.metadata_ttl.unwrap_or(FOREVER);
        Ok(state.node(ino, &inode, name_ttl, Instant::now()))
    }

    /// What an inode's number names.
    pub fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        self.state.lock().inodes.get(ino).cloned().ok_or(FsError::Stale)
    }

    /// The keys that the directory `prefix` hides, one item a reason. Lists it for this, for nobody
    /// keeps them: hardly anybody asks.
    pub async fn hidden_keys(&self, prefix: &Arc<str>) -> Result<Vec<HiddenKeys>, FsError> {
        let (page_keys, workers) = (self.config.page_keys, self.config.pages_at_once);
        let start_after = self.state.lock().start_after;
        let store = self.store.clone();
        let mut pages = Pages::new(store, prefix.clone(), page_keys, workers, start_after);
        loop {
            let parts = pages.next().await;
            self.state.lock().found_out(pages.start_after());
            if parts?.is_none() {
                return Ok(pages.rest().hidden);
            }
        }
    }

    /// The object behind a file's inode.
    pub fn object(&self, ino: Ino) -> Result<Arc<ObjectMeta>, FsError> {
        match self.state.lock().inodes.get(ino) {
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
        let position = Position::of_cookie(cookie);
        let dots = position.map_or(0, |position| position.dots);
        let (numbers, growing, from) = {
            let mut state = self.state.lock();
            let prefix = state.directory(ino)?;
            let numbers = (ino, state.parent(ino, &prefix));
            let now = Instant::now();
            if position.is_none() {
                let (page_keys, ttl) = (self.config.page_keys, self.config.metadata_ttl);
                let ahead = state.directories.walked_to(&prefix, page_keys, ttl, now);
                self.list_ahead(&mut state, ahead, now);
                self.refresh(&mut state, &prefix, now);
            }
            let resume = match (position, state.directories.fresh(&prefix, now)) {
                (Some(at), _) => state.directories.resume(&prefix, at.generation, at.entries),
                (None, Some((listing, _))) => Resume::At(listing, 0),
                (None, None) => Resume::Relist(Onward::At(0)),
            };
            match resume {
                Resume::At(listing, index) => {
                    let ttl = state.listing_ttl(&listing, now);
                    return Ok(Scan::new(listing, (dots, index), numbers, ttl));
                }
                Resume::In(growing, from) => (numbers, growing, from),
                Resume::Relist(from) => {
                    (numbers, self.listing_under_way(&mut state, &prefix, now), from)
                }
                Resume::Stale => return Err(FsError::Stale),
            }
        };
        let (listing, index) = growing.read(&from).await.ok_or_else(shut_down)??;
        let ttl = self.state.lock().listing_ttl(&listing, Instant::now());
        Ok(Scan::new(listing, (dots, index), numbers, ttl))
    }

    /// The object of this inode is not what it was, or is gone (412, or 404 on a GET): what is
    /// believed of its directory's names is dropped, so that the next lookup sees the new truth.
    pub fn changed(&self, ino: Ino) {
        let mut state = self.state.lock();
        let Some(Inode::File(meta)) = state.inodes.get(ino).cloned() else { return };
        let key = &meta.version.key;
        let Some((parent, name)) = tree::parent_and_name(key) else { return };
        let believed = state.believed(parent, name.as_bytes(), key, Instant::now());
        // Then the new truth is known already: a file that is read on and on after its object has
        // changed must not cost its directory a listing each time.
        let is_known = believed.is_some_and(|(found, _)| found.is_none_or(|(now, _)| now != ino));
        if !is_known {
            state.directories.drop_names(parent, Instant::now());
        }
    }

    /// The directory and the name by which the kernel may know this file.
    pub fn name_of(&self, ino: Ino) -> Option<(Ino, String)> {
        let state = self.state.lock();
        let Some(Inode::File(meta)) = state.inodes.get(ino) else { return None };
        let (parent, name) = tree::parent_and_name(&meta.version.key)?;
        Some((state.inodes.number(InodeRef::Directory(parent))?, name.to_owned()))
    }

    /// The key of a file that the kernel knows, without the root's prefix.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        let state = self.state.lock();
        let Some(Inode::File(meta)) = state.inodes.get(ino) else { return None };
        meta.version.key.strip_prefix(&self.config.root_prefix).map(str::to_owned)
    }

    /// All that the kernel knows but the root, in no order.
    pub fn known(&self) -> Vec<Known> {
        let state = self.state.lock();
        let known = state.inodes.known().filter_map(|(ino, inode)| {
            let path = inode.by_ref().key();
            let (parent, name) = tree::parent_and_name(path.strip_suffix('/').unwrap_or(path))?;
            let parent = state.inodes.number(InodeRef::Directory(parent))?;
            let is_directory = matches!(inode, Inode::Directory(_));
            Some(Known { ino, parent, name: name.to_owned(), is_directory })
        });
        known.collect()
    }

    /// Where a file stands among the others of its directory, if that has a listing which is
    /// believed. Sends no request.
    pub fn place(&self, ino: Ino, object: &ObjectMeta) -> Option<Place> {
        let (parent, name) = tree::parent_and_name(&object.version.key)?;
        let (listing, _) = self.state.lock().directories.fresh(parent, Instant::now())?;
        let index = listing.find(name.as_bytes())?;
        (listing.ino(index) == ino).then_some(Place { listing, index })
    }

    /// The directories that the kernel knows.
    pub fn known_directories(&self) -> Vec<Ino> {
        self.state.lock().inodes.directories().collect()
    }

    /// Drops what is believed of all names, negative answers included. Inodes stay: whoever has
    /// one open goes on reading the version it names.
    pub fn drop_names(&self) {
        self.state.lock().directories.drop_all_names(Instant::now());
    }

    /// Lists a directory anew that is used at the end of its listing's life, so that nobody has to
    /// wait when that is over.
    fn refresh(self: &Arc<Self>, state: &mut State, prefix: &Arc<str>, now: Instant) {
        if !state.directories.is_due(prefix, now) {
            return;
        }
        let Ok(permit) = self.refreshes.clone().try_acquire_owned() else { return };
        let expiry = Expiry::after(now, self.config.metadata_ttl);
        let (growing, grower) = state.directories.listing_begins(prefix, expiry);
        let listing = self.clone().list(prefix.clone(), now, growing, grower, None);
        tokio::spawn(async move {
            listing.await;
            drop(permit);
        });
    }

    /// The listing of a directory that is under way, or one that begins now.
    fn listing_under_way(
        self: &Arc<Self>,
        state: &mut State,
        prefix: &Arc<str>,
        now: Instant,
    ) -> Growing {
        if let Some(growing) = state.directories.under_way(prefix) {
            return growing.clone();
        }
        let first = state.directories.take_first_page(prefix, now);
        // A listing is no younger than its oldest page.
        let asked = first.as_ref().map_or(now, |first| first.asked);
        let expiry = Expiry::after(asked, self.config.metadata_ttl);
        let (growing, grower) = state.directories.listing_begins(prefix, expiry);
        let first = first.map(|first| first.page);
        tokio::spawn(self.clone().list(prefix.clone(), now, growing.clone(), grower, first));
        growing
    }

    async fn list(
        self: Arc<Self>,
        prefix: Arc<str>,
        asked: Instant,
        growing: Growing,
        grower: Grower,
        first: Option<ListPage>,
    ) {
        let listed = self.pages(&prefix, &growing, &grower, first).await;
        self.listing_ends(&mut self.state.lock(), &growing, &grower, asked, listed);
    }

    /// All pages of a listing have been shown, or one has failed.
    fn listing_ends(
        &self,
        state: &mut State,
        growing: &Growing,
        grower: &Grower,
        asked: Instant,
        listed: Result<Rest, StoreError>,
    ) {
        let prefix = growing.now().listing.prefix().clone();
        let now = Instant::now();
        let State { inodes, directories, .. } = state;
        let outcome = match listed {
            Ok(rest) if rest.exists || *prefix == *self.config.root_prefix => {
                for keys in &rest.hidden {
                    if directories.is_first_warning(&prefix, keys.reason) {
                        let (count, example) = (keys.count, keys.keys.first());
                        let directory = &*prefix;
                        let reason = keys.reason;
                        tracing::warn!(
                            directory,
                            count,
                            example,
                            "hidden keys: {reason}; `getfattr -n user.s3.hidden-keys` lists them"
                        );
                    }
                }
                let knows = |prefix: &str| inodes.number(InodeRef::Directory(prefix)).is_some();
                Ok(directories.install(growing, asked, now, knows))
            }
            Ok(_) => {
                directories.listing_failed(&prefix, growing, true, now);
                Err(FsError::NotFound { ttl: Duration::ZERO })
            }
            Err(error) => {
                // Those who wait log or answer it; a background listing has nobody.
                tracing::debug!(directory = &*prefix, %error, "listing failed");
                directories.listing_failed(&prefix, growing, false, now);
                Err(error.into())
            }
        };
        let is_known = inodes.number(InodeRef::Directory(&prefix)).is_some();
        if outcome.is_err() && !is_known {
            // It was listed ahead, and nobody has come.
            directories.release(&prefix, now);
        }
        grower.send_modify(|growth| {
            if outcome.is_err() {
                // Nobody reads on in it.
                growth.listing = Listing::new(prefix, growing.generation);
            }
            growth.outcome = Some(outcome);
        });
    }

    async fn pages(
        &self,
        prefix: &Arc<str>,
        growing: &Growing,
        grower: &Grower,
        first: Option<ListPage>,
    ) -> Result<Rest, StoreError> {
        let (page_keys, workers) = (self.config.page_keys, self.config.pages_at_once);
        let start_after = self.state.lock().start_after;
        let store = self.store.clone();
        let pages = Pages::new(store, prefix.clone(), page_keys, workers, start_after);
        let mut pages = pages.begin_with(first);
        let mut hint = 0;
        loop {
            let parts = pages.next().await;
            if pages.start_after() != start_after {
                self.state.lock().found_out(pages.start_after());
            }
            let Some(parts) = parts? else { return Ok(pages.rest()) };
            self.state.lock().directories.waits(prefix, growing, pages.memory_bytes());
            for part in parts {
                // Between two parts, others have their turn.
                show(&mut self.state.lock(), growing, grower, part, &mut hint);
            }
        }
    }
}

/// Gives the next entries of a listing their numbers and shows them.
fn show(state: &mut State, growing: &Growing, grower: &Grower, mut part: Part, hint: &mut usize) {
    let (prefix, start) = {
        let shown = growing.now();
        (shown.listing.prefix().clone(), shown.listing.len())
    };
    state.number_all(&prefix, &mut part, hint);
    let now = Instant::now();
    state.directories.about_to_show(&prefix, growing, start, &part, now);
    grower.send_modify(|growth| growth.listing.push(Arc::new(part)));
    let State { inodes, directories, .. } = state;
    let knows = |prefix: &str| inodes.number(InodeRef::Directory(prefix)).is_some();
    directories.make_room(&prefix, now, knows);
}

/// A task died before it had its answer.
fn shut_down() -> StoreError {
    StoreError::Unavailable("shutting down".to_owned())
}
