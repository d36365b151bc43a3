//! The file system without FUSE: names, attributes and bytes by inode number, and the errno of
//! every failure.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use crate::app::config::Config;
use crate::base::layout::{BLOCK_BYTES, Layout, WHOLE_OBJECT_BYTES};
pub use crate::cache::Taker;
use crate::cache::{ChunkCache, Data, Purpose};
pub use crate::errno::FsError;
pub use crate::names::KernelName;
use crate::names::{Ino, Names, NamesConfig, Node, NodeKind, ScanEntry, SiblingPosition};
use crate::readahead::siblings::{self, Access, Directory, Siblings};
use crate::readahead::streams::{Limits, Pace, Readers};
use crate::stats::Stats;
use crate::store::{ObjectMeta, ObjectStore, StoreError};

mod xattrs;

/// A bucket as a file system.
pub struct BucketFs {
    namespace: Arc<Names>,
    cache: ChunkCache,
    readers: Readers,
    siblings: Siblings,
    /// Small files are fetched in GETs of this size, which is one.
    whole_bytes: u64,
    look: Look,
    /// Of extended attributes.
    answers: xattrs::Answers,
    stats: Arc<Stats>,
}

/// What every file and directory looks like.
#[derive(Clone, Copy, Debug)]
struct Look {
    uid: u32,
    gid: u32,
    file_mode: u16,
    dir_mode: u16,
}

/// The sizes that reads and the memory for them are cut by.
#[derive(Clone, Copy, Debug)]
pub struct ReadConfig {
    /// Chunks, blocks and parts.
    pub layout: Layout,
    /// The bound on cached and in-flight object bytes.
    pub memory_budget_bytes: u64,
    /// Requests in flight at once.
    pub max_connections: usize,
}

impl ReadConfig {
    /// Takes the sizes from the configuration. A chunk larger than a quarter of the budget is
    /// made smaller: chunks are what is given up for room, and there must be several.
    pub fn new(config: &Config) -> Self {
        let quarter = (config.memory_budget_bytes / 4).max(BLOCK_BYTES);
        let fitting = 1 << quarter.ilog2();
        let chunk_bytes = config.chunk_bytes.min(fitting);
        let layout = Layout {
            chunk_bytes,
            block_bytes: BLOCK_BYTES,
            // The most, for a store that is far away.
            part_bytes: (2 * config.part_bytes).min(chunk_bytes),
        };
        Self {
            layout,
            memory_budget_bytes: config.memory_budget_bytes,
            max_connections: config.max_connections,
        }
    }
}

/// File or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// What stat(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode's number.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// Length of a file; 0 for a directory.
    pub size_bytes: u64,
    /// `LastModified` of the object; for a directory, since when its listing is known as it is.
    pub mtime: SystemTime,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Attributes {
    /// Of nothing: what a negative answer carries.
    pub const NONE: Self = Self {
        ino: 0,
        kind: Kind::File,
        size_bytes: 0,
        mtime: UNIX_EPOCH,
        mode: 0,
        uid: 0,
        gid: 0,
    };
}

/// Attributes, and how long they and the name that led to them may be believed without asking.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The attributes.
    pub attributes: Attributes,
    /// Life of the name.
    pub name_ttl: Duration,
    /// Life of the attributes.
    pub attributes_ttl: Duration,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The number of its inode.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// Where to go on reading behind this entry.
    pub cookie: u64,
}

/// What statvfs(3) tells: of room, what harms nobody.
///
/// A bucket knows no bound and nobody can write here anyway. With no room at all, tools that list
/// file systems leave it out, and with none that is free, alarms go off; so there is a PiB, and all
/// of it is free, as with other mounts of buckets. Of inodes there are 0, as in file systems that
/// have no bound on them.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Room, all of it free.
    pub blocks: u64,
    /// Of so many bytes: large, for a program that counts blocks with 32 bits.
    pub block_bytes: u32,
    /// The longest name.
    pub name_bytes: u32,
}

impl Space {
    /// The same everywhere.
    pub const OF_A_BUCKET: Self = Self { blocks: 1 << 30, block_bytes: 1 << 20, name_bytes: 255 };
}

impl BucketFs {
    /// A file system over a store, which counts what it does. Fails when the address space for the cache cannot be reserved.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        config: &Config,
        names: NamesConfig,
        reading: ReadConfig,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> std::io::Result<Arc<Self>> {
        let budget = reading.memory_budget_bytes;
        let connections = reading.max_connections;
        let limits = Limits {
            block_bytes: reading.layout.block_bytes,
            window_bytes: reading.layout.chunk_bytes,
            // The other half is for what was read and may be read again.
            ahead_bytes: budget / 2,
        };
        let beside = siblings::Limits {
            small_bytes: WHOLE_OBJECT_BYTES.min(reading.layout.part_bytes),
            ahead_bytes: budget / 4,
            // The cache keeps room for a part; a quarter is for what is fetched and not served.
            life_bytes: budget.saturating_sub(reading.layout.part_bytes) / 4 * 3,
        };
        let cache = ChunkCache::new(
            store.clone(),
            reading.layout,
            budget,
            connections,
            runtime,
            stats.clone(),
        )?;
        cache.keep_ready();
        let answers = xattrs::Answers::new(store.clone(), names.metadata_ttl);
        Ok(Arc::new(Self {
            namespace: Names::new(store, names),
            cache,
            readers: Readers::new(limits),
            siblings: Siblings::new(beside, stats.clone()),
            whole_bytes: reading.layout.part_bytes,
            look: Look {
                uid: config.uid,
                gid: config.gid,
                file_mode: config.file_mode,
                dir_mode: config.dir_mode,
            },
            answers,
            stats,
        }))
    }

    /// What was done so far.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Object bytes that are held or awaited, and the bound on them.
    pub fn memory_bytes(&self) -> (u64, u64) {
        (self.cache.used_bytes(), self.cache.budget_bytes())
    }

    /// The key of a file that the kernel knows, without the prefix under which the bucket is mounted.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        self.namespace.path_of(ino)
    }

    /// The entry of a name; counts one lookup, which the caller gives back with `forget`.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Entry, FsError> {
        Ok(self.entry(&self.namespace.lookup(parent, name).await?))
    }

    /// Gives lookups back.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.namespace.forget(ino, lookups);
    }

    /// The attributes of an inode.
    pub fn attributes(&self, ino: Ino) -> Result<Entry, FsError> {
        Ok(self.entry(&self.namespace.attributes(ino)?))
    }

    /// The directory and the name by which the kernel may know a file: what it must be told to
    /// forget when the file is [`FsError::Stale`], or it would open it by that name again.
    pub fn name_of(&self, ino: Ino) -> Option<(Ino, String)> {
        self.namespace.name_of(ino)
    }

    /// Bytes of a file: all that were asked for, less only at the end of the file.
    pub async fn read(
        &self,
        ino: Ino,
        offset: u64,
        size: u32,
        taker: Taker,
    ) -> Result<Data, FsError> {
        let object = self.namespace.object(ino)?;
        if object.archived {
            return Err(FsError::Denied);
        }
        let length = object.version.size_bytes;
        let want: Range<u64> = offset..length.min(offset.saturating_add(size.into()));
        if want.is_empty() {
            return Ok(Data::Joined(Vec::new()));
        }
        let begins = self.siblings.begins(ino, length);
        let cached = begins && self.cache.holds(ino);
        let (part_bytes, in_flight_bytes) = self.cache.pace();
        let pace = Pace { part_bytes, in_flight_bytes };
        let plan = self.readers.plan(ino, length, want.clone(), pace);
        // What finds no room now, the read below waits for.
        let _ = self.cache.fetch(ino, &object, plan.now, plan.now_piece_bytes, Purpose::Demand);
        for ahead in plan.ahead {
            let (until, piece) = (ahead.end, plan.ahead_piece_bytes);
            let reached = self.cache.fetch(ino, &object, ahead, piece, Purpose::Ahead);
            if reached < until {
                self.readers.fell_short(ino, reached, until);
                break;
            }
        }
        if begins {
            self.read_siblings_ahead(ino, &object, offset == 0, cached);
        }
        match self.cache.read(ino, &object, want.clone(), taker).await {
            Ok(data) => {
                self.stats.reads.add(1);
                self.stats.bytes_served.add(data.len() as u64);
                Ok(data)
            }
            Err(error) => {
                tracing::debug!(key = object.version.key, ?want, %error, "read failed");
                Err(self.failed(ino, &error))
            }
        }
    }

    /// What a store's error about an object is to whoever has its inode.
    fn failed(&self, ino: Ino, error: &StoreError) -> FsError {
        let failure = FsError::from(error);
        if failure == FsError::Stale {
            self.namespace.changed(ino);
        }
        failure
    }

    /// A small file is read: fetches those of its siblings that will probably be read next.
    fn read_siblings_ahead(&self, ino: Ino, object: &ObjectMeta, from_start: bool, cached: bool) {
        let Some(place) = self.namespace.sibling_position(ino, object) else { return };
        let served_bytes = self.stats.bytes_served.get();
        let access = Access { index: place.index, from_start, cached, served_bytes };
        let mut chosen = self.siblings.read(&place, access);
        chosen.retain(|&index| !self.fetch_sibling(&place, index));
        if !chosen.is_empty() {
            self.siblings.not_fetched(&place, &chosen);
        }
    }

    /// Begins to fetch a file whole. False if it is there already, or there is no room.
    fn fetch_sibling(&self, place: &SiblingPosition, index: usize) -> bool {
        let Some((ino, object)) = place.file(index) else { return false };
        if self.cache.holds(ino) {
            return false;
        }
        let size_bytes = object.version.size_bytes;
        let reached =
            self.cache.fetch(ino, &object, 0..size_bytes, self.whole_bytes, Purpose::Ahead);
        let fetched = reached > 0;
        if fetched {
            self.stats.siblings_ahead.add(1);
            self.stats.siblings_ahead_bytes.add(size_bytes);
        }
        fetched
    }

    /// Hands out the entries of a directory behind `cookie`, until `add` takes no more.
    pub async fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(&DirectoryEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let scan = self.namespace.read_directory(ino, cookie).await?;
        for item in scan.iter() {
            if !add(&directory_entry(&item)) {
                break;
            }
        }
        Ok(())
    }

    /// The same with everything that a lookup of each name would give; counts a lookup for each
    /// that `add` takes.
    pub async fn read_directory_plus(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(&DirectoryEntry<'_>, &Entry) -> bool,
    ) -> Result<(), FsError> {
        let scan = self.namespace.read_directory(ino, cookie).await?;
        for item in scan.iter() {
            if !add(&directory_entry(&item), &self.entry(&self.namespace.node(&item))) {
                break;
            }
            self.namespace.remember(&item);
        }
        Ok(())
    }

    /// Forgets what is believed of all names, so that the next use asks the store. Gives the
    /// directories that the kernel knows.
    pub fn drop_names(&self) -> Vec<Ino> {
        self.namespace.drop_names();
        self.answers.drop_all();
        self.namespace.known_directories()
    }

    /// Forgets all bytes that nobody is reading just now.
    pub fn drop_bytes(&self) {
        self.cache.give_up_all();
    }

    /// What the kernel knows: each inode with the directory and the name by which it may know it.
    pub fn known(&self) -> Vec<KernelName> {
        self.namespace.kernel_names()
    }

    fn entry(&self, node: &Node) -> Entry {
        let Look { uid, gid, file_mode, dir_mode } = self.look;
        let (kind, size_bytes, mtime, mode) = match &node.kind {
            NodeKind::Directory { mtime } => (Kind::Directory, 0, *mtime, dir_mode),
            NodeKind::File(object) => {
                // Nobody can read it, and stat says so.
                let mode = if object.archived { 0 } else { file_mode };
                (Kind::File, object.version.size_bytes, object.last_modified, mode)
            }
        };
        Entry {
            attributes: Attributes { ino: node.ino, kind, size_bytes, mtime, mode, uid, gid },
            name_ttl: node.name_ttl,
            attributes_ttl: node.attr_ttl,
        }
    }
}

fn directory_entry<'a>(item: &ScanEntry<'a>) -> DirectoryEntry<'a> {
    let kind = if item.is_directory { Kind::Directory } else { Kind::File };
    DirectoryEntry { name: item.name, ino: item.ino, kind, cookie: item.cookie }
}

impl Directory for SiblingPosition {
    fn path(&self) -> &Arc<str> {
        self.listing.prefix()
    }

    fn generation(&self) -> u32 {
        self.listing.generation()
    }

    fn entries(&self) -> usize {
        self.listing.len()
    }

    fn file_bytes(&self, index: usize) -> Option<u64> {
        self.listing.file_bytes(index)
    }
}

#[cfg(test)]
mod tests;
