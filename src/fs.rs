//! The file system without FUSE: attributes and bytes by inode number, and the errno of failures.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use crate::cache::{ChunkCache, Source};
pub use crate::cache::{Data, ReadConfig, ReadKind};
pub use crate::errno::FsError;
use crate::names::{Ino, Inode, KeptNames, Names, NamesConfig, Node};
pub use crate::names::{KernelName, ScanEntry};
use crate::readahead::Readahead;
use crate::stats::Stats;
use crate::store::{LocalCopy, ObjectStore, StoreError};

pub mod prefetch;
pub mod record;
mod xattrs;

/// A bucket as a file system.
pub struct BucketFs {
    pub(crate) names: Arc<Names>,
    pub stats: Arc<Stats>,
    store: Arc<dyn ObjectStore>,
    cache: Arc<ChunkCache>,
    readahead: Readahead,
    ownership: Ownership,
    xattrs: xattrs::AttributeCache,
    record: record::Recorder,
}

#[derive(Clone, Debug)]
pub struct FsConfig {
    pub ownership: Ownership,
    pub names: NamesConfig,
    pub reading: ReadConfig,
}

/// Owner and permission bits, the same for all files and for all directories.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    pub uid: u32,
    pub gid: u32,
    pub file_mode: u16,
    pub dir_mode: u16,
}

/// The attributes of an inode, and the kernel's TTLs of them and of the name that led to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub ino: Ino,
    pub is_directory: bool,
    /// Length of a file; 0 for a directory.
    pub size_bytes: u64,
    /// `LastModified` of an object. A directory's changes with its content.
    pub mtime: SystemTime,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub name_ttl: Duration,
    pub attr_ttl: Duration,
}

impl Attributes {
    /// The attributes of a negative answer to a lookup, which the kernel may believe for `ttl`.
    pub fn none(ttl: Duration) -> Self {
        Self {
            ino: 0,
            is_directory: false,
            size_bytes: 0,
            mtime: UNIX_EPOCH,
            mode: 0,
            uid: 0,
            gid: 0,
            name_ttl: ttl,
            attr_ttl: Duration::ZERO,
        }
    }
}

/// Number and size of the blocks that statvfs(3) shows, all of them free: a PiB, because tools
/// leave out a file system of size zero and raise alarms about a full one; large blocks, because
/// programs count them in 32 bits.
pub const STATFS_BLOCKS: (u64, u32) = (1 << 30, 1 << 20);

impl BucketFs {
    /// Its tasks run on `runtime`. Fails when the address space for the cache cannot be reserved.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        config: FsConfig,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> std::io::Result<Arc<Self>> {
        let FsConfig { ownership, names, reading } = config;
        let cache = ChunkCache::new(store.clone(), reading, runtime.clone(), stats.clone())?;
        cache.release_idle_memory();
        Ok(Arc::new(Self {
            readahead: Readahead::new(cache.clone(), &reading, runtime, stats.clone()),
            cache,
            ownership,
            record: record::Recorder::default(),
            xattrs: xattrs::AttributeCache::new(store.clone(), names.metadata_ttl),
            names: Names::new(store.clone(), names),
            store,
            stats,
        }))
    }

    /// Keeps what the kernel is told from here on, and goes on with what another process has told.
    pub fn keep(&self, kept: KeptNames) {
        self.names.keep(kept);
    }

    /// Object bytes that are held or awaited, and their limit.
    pub fn memory_bytes(&self) -> (u64, u64) {
        (self.cache.used_bytes(), self.cache.budget_bytes())
    }

    /// The attributes behind a name. Counts one lookup, as [`Names::lookup`] does.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        let found = self.names.lookup(parent, name).await;
        self.readahead.on_lookup(&self.names, parent);
        self.record.names(&self.names, parent);
        Ok(self.attributes_of(&found?))
    }

    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        Ok(self.attributes_of(&self.names.attributes(ino)?))
    }

    /// Bytes of a file; fewer than requested only at its end.
    pub async fn read(
        &self,
        ino: Ino,
        offset: u64,
        size: u32,
        kind: ReadKind,
    ) -> Result<Data, FsError> {
        let meta = self.names.object(ino)?;
        if meta.archived {
            let key = &meta.version.key;
            tracing::warn!(key, "refused: it is archived, and not restored");
            return Err(FsError::Denied);
        }
        let want = offset..meta.version.size_bytes.min(offset.saturating_add(size.into()));
        if want.is_empty() {
            return Ok(Data::EMPTY);
        }
        let source = Source { id: ino, meta };
        self.record.bytes(&source, &want);
        self.readahead.on_read(&self.names, &source, &want);
        match self.cache.read(&source, want.clone(), kind).await {
            Ok(data) => {
                self.stats.reads.add(1);
                self.stats.bytes_served.add(data.len() as u64);
                Ok(data)
            }
            Err(error) => {
                tracing::debug!(key = source.meta.version.key, ?want, %error, "read failed");
                Err(self.failed(ino, error))
            }
        }
    }

    /// The bytes of a file as a file of this machine, if there may be one.
    pub(crate) fn local_copy(&self, ino: Ino) -> Option<Arc<dyn LocalCopy>> {
        let meta = self.names.object(ino).ok().filter(|meta| !meta.archived)?;
        self.store.local_copy(&meta.version)
    }

    /// Translates a store's error about the object of an inode.
    fn failed(&self, ino: Ino, error: StoreError) -> FsError {
        let failure = FsError::from(error);
        if failure == FsError::Stale {
            self.names.changed(ino);
        }
        failure
    }

    /// Passes the entries of a directory behind `cookie`, with their attributes, to `add`, until it
    /// returns false. Counts a lookup for each entry that `add` takes.
    pub async fn read_directory_plus(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(&ScanEntry<'_>, &Attributes) -> bool,
    ) -> Result<(), FsError> {
        let scan = self.names.read_directory(ino, cookie).await?;
        self.record.names(&self.names, ino);
        let mut told = 0;
        for entry in scan.iter() {
            let node = self.names.node(&entry);
            if !add(&entry, &self.attributes_of(&node)) {
                break;
            }
            self.names.remember(&entry, &node);
            told += 1;
        }
        self.names.told(&scan, told);
        Ok(())
    }

    /// Drops all names, so that the next use of each asks the store. Returns the directories that
    /// the kernel knows.
    pub fn drop_names(&self) -> Vec<Ino> {
        self.xattrs.cached.lock().clear();
        self.names.drop_names()
    }

    /// Evicts all bytes that no reader holds. The kernel is told to drop its own.
    pub fn drop_bytes(&self) {
        self.readahead.hints.forget_page_cache();
        self.cache.evict_all();
    }

    /// Each inode that the kernel knows, with the directory and the name by which it may know it.
    pub fn known(&self) -> Vec<KernelName> {
        self.names.kernel_names()
    }

    fn attributes_of(&self, node: &Node) -> Attributes {
        let Ownership { uid, gid, file_mode, dir_mode } = self.ownership;
        let (is_directory, size_bytes, mode) = match &node.inode {
            Inode::Directory(_) => (true, 0, dir_mode),
            // An archived object cannot be read.
            Inode::File(object) if object.archived => (false, object.version.size_bytes, 0),
            Inode::File(object) => (false, object.version.size_bytes, file_mode),
            Inode::Untold(_) => (false, 0, file_mode),
        };
        let &Node { ino, mtime, name_ttl, attr_ttl, .. } = node;
        Attributes { ino, is_directory, size_bytes, mtime, mode, uid, gid, name_ttl, attr_ttl }
    }
}

#[cfg(test)]
mod tests;
