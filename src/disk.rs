//! A cache on the local disk: object bytes that outlive the process, shared by all mounts of the
//! user. A layer of the store: what is there is read, the rest is fetched, shown and then kept.
//!
//! - It is never wrong: bytes are found by the object version that they are of, and shown after
//!   their checksum was compared. What fails it is fetched, as if it had never been there.
//! - It is never in the way: file I/O has threads of its own, bytes that the disk does not take are
//!   dropped, and a disk that fails or does not answer is left alone for a while.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::stats::Stats;
use crate::store::{
    Destination, ListPage, ListRequest, LocalCopy, ObjectHead, ObjectStore, ObjectVersion,
    StoreError,
};

mod buffers;
mod claims;
mod files;
mod folder;
mod format;
mod health;
mod index;
pub mod inspect;
mod state;
#[cfg(test)]
mod tests;
mod threads;
mod whole;
mod worth;
mod writer;

use buffers::{Buffers, UnitBuffer};
use claims::Claim;
use folder::{FolderError, Limits};
pub use format::Origin;
use format::{Piece, VersionName};
use state::{DiskState, Stored};
use threads::Threads;
use writer::Writer;

/// The directory of a disk that hangs is waited for at the start.
const LONGEST_OPENING: Duration = Duration::from_secs(1);
/// A local disk answers in a tenth of half a second, a busy one still within it; the store takes as
/// long. What another process fetches is waited for as long as a request is that is late.
const PATIENCE: Patience =
    Patience { answer: Duration::from_millis(500), elsewhere: Duration::from_secs(2) };
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);
/// Reads in flight, of which disks need several to be fast.
const READERS: usize = 16;
/// Units that one GET reads ahead of what it has passed on.
const AHEAD: usize = 4;
/// An eighth of the memory budget, and at most 64 MiB, is for units that are read.
const BUDGET_SHARE: u64 = 8;
const MOST_BUFFERS: u64 = 64;
/// A quarter of the budget: more than parts bring that end together, and streams go on in the rest.
const WAITING_SHARE: u64 = 4;

#[derive(Clone, Debug)]
pub struct DiskConfig {
    pub path: PathBuf,
    /// [default: 80 % of what is free]
    pub size_bytes: Option<u64>,
    pub reserve: Reserve,
    /// Memory for bytes on their way from the disk.
    pub memory_bytes: u64,
    /// Of what was fetched, so much may stay where it is until it is written.
    pub waiting_bytes: u64,
}

/// Space that is left to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    Bytes(u64),
    /// Of the file system.
    Percent(u8),
}

impl DiskConfig {
    /// The share of a memory budget that is not left for the cache in memory.
    pub fn memory_of(budget_bytes: u64) -> u64 {
        ((budget_bytes / BUDGET_SHARE) >> 20).clamp(2, MOST_BUFFERS) << 20
    }

    /// The share of a memory budget that may wait for the disk.
    pub fn waiting_of(budget_bytes: u64) -> u64 {
        budget_bytes / WAITING_SHARE
    }

    fn limits(&self, used: u64) -> std::io::Result<Limits> {
        let reserve_bytes = match self.reserve {
            Reserve::Bytes(bytes) => bytes,
            Reserve::Percent(percent) => files::disk_bytes(&self.path)? / 100 * u64::from(percent),
        };
        let size_bytes = match self.size_bytes {
            Some(bytes) => bytes,
            None => (files::free_bytes(&self.path)? + used) / 10 * 8,
        };
        Ok(Limits { size_bytes, reserve_bytes })
    }
}

/// The cache of a directory.
#[derive(Debug)]
pub struct Disk {
    state: Arc<DiskState>,
    threads: Threads,
    buffers: Arc<Buffers>,
    writer: Writer,
    patience: Patience,
}

/// How long a reader waits before it asks the store.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For an answer of the disk.
    answer: Duration,
    /// For what another process fetches, in pauses between looks.
    elsewhere: Duration,
}

/// Why a mount must not start.
#[derive(Debug, thiserror::Error)]
pub enum DiskRefused {
    #[error("{0}")]
    Unsafe(String),
    #[error("no threads: {0}")]
    Threads(std::io::Error),
}

/// Bytes of a piece that were read and are right.
#[derive(Debug)]
struct UnitRead {
    buffer: UnitBuffer,
    bytes: Range<usize>,
}

impl Deref for UnitRead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer.bytes()[self.bytes.clone()]
    }
}

impl Disk {
    /// Opens the directory, and makes it if it is missing. A directory that fails is tried again
    /// later; one that others could write to is refused.
    pub async fn start(config: DiskConfig, stats: Arc<Stats>) -> Result<Arc<Self>, DiskRefused> {
        let buffers = usize::try_from(config.memory_bytes >> 20).unwrap_or(usize::MAX).max(2);
        let most_waiting = config.waiting_bytes;
        let threads = Threads::start(READERS).map_err(DiskRefused::Threads)?;
        let shared = Arc::new(DiskState::new(config, stats));
        let (tell, opened) = oneshot::channel();
        let (buffers, asked) = (Buffers::new(buffers), Instant::now());
        let writer = Writer::start(shared.clone(), most_waiting, buffers.clone(), tell)
            .map_err(DiskRefused::Threads)?;
        match timeout(LONGEST_OPENING, opened).await {
            Ok(Ok(Err(FolderError::Unsafe(sentence)))) => {
                return Err(DiskRefused::Unsafe(sentence));
            }
            // What failed was logged, and is tried again.
            Ok(_) => {}
            Err(_elapsed) => shared.late(asked, LONGEST_OPENING),
        }
        Ok(Arc::new(Self { state: shared, threads, buffers, writer, patience: PATIENCE }))
    }

    /// Bytes that all mounts have stored, and their limit; none while the disk is not there.
    pub fn usage(&self) -> Option<(u64, u64)> {
        self.state.usage()
    }

    /// Returns when what was fetched until now was written, at most after `limit`.
    pub async fn settle(&self, limit: Duration) {
        // What is not written by then is lost.
        let _ = timeout(limit, self.writer.settle()).await;
    }

    /// A file in the directory, to try out what may be done with others there.
    pub fn sample(&self) -> Option<File> {
        self.state.folder()?.sample().ok()
    }

    /// For this time readers wait until the disk takes what was fetched: nothing is dropped because
    /// it lags. True if some was dropped since the last call.
    pub fn be_patient(&self, time: Duration) -> bool {
        self.writer.be_patient(time)
    }

    async fn find(&self, version: VersionName, range: &Range<u64>, claiming: bool) -> Stored {
        if !self.state.may_read() {
            return Stored::nothing(range);
        }
        let Some(buffer) = self.buffer().await else { return Stored::nothing(range) };
        let (state, wanted) = (self.state.clone(), range.clone());
        let find = move || state.find(&version, &wanted, claiming, buffer);
        let found = self.in_time(self.threads.run(find)).await;
        found.unwrap_or_else(|| Stored::nothing(range))
    }

    async fn buffer(&self) -> Option<UnitBuffer> {
        match self.buffers.try_take() {
            // It says nothing about the disk.
            Some(buffer) => Some(buffer),
            None => self.in_time(async { Ok::<_, Infallible>(self.buffers.take().await) }).await,
        }
    }

    /// Begins to read a piece; it ends with `None` if that fails.
    fn read(&self, piece: Piece, buffer: UnitBuffer) -> oneshot::Receiver<Option<UnitRead>> {
        let state = self.state.clone();
        self.threads.run(move || state.read(&piece, buffer))
    }

    /// What the disk tells, or gives free, if it does so in time. A job without an outcome has
    /// panicked.
    async fn in_time<T, E>(&self, answer: impl Future<Output = Result<Option<T>, E>>) -> Option<T> {
        let (asked, limit) = (Instant::now(), self.patience.answer);
        match timeout(limit, answer).await {
            Ok(answer) => answer.ok().flatten().inspect(|_| self.state.answered()),
            Err(_elapsed) => {
                self.state.late(asked, limit);
                None
            }
        }
    }
}

/// The layer.
pub struct DiskCached {
    store: Arc<dyn ObjectStore>,
    origin: Origin,
    disk: Arc<Disk>,
}

impl DiskCached {
    pub fn new(store: Arc<dyn ObjectStore>, origin: Origin, disk: Arc<Disk>) -> Self {
        Self { store, origin, disk }
    }

    /// Reads and fetches pieces.
    async fn pass_on(
        &self,
        (version, name): (&ObjectVersion, &VersionName),
        found: Stored,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let disk = &self.disk;
        let Stored { pieces, mut first, mut claims } = found;
        let mut reading = VecDeque::new();
        for (at, piece) in pieces.iter().enumerate() {
            if piece.extent.is_none() {
                let claim = claims.pop_front();
                self.fetch((version, name), piece.range(), claim, into).await?;
                continue;
            }
            let (first, begun) = (first.take(), reading.pop_front());
            // Those behind it are read meanwhile, as far as there are buffers.
            while reading.len() < AHEAD
                && let Some(next) = pieces.get(at + 1 + reading.len())
                && next.extent.is_some()
                && let Some(buffer) = disk.buffers.try_take()
            {
                reading.push_back(disk.read(*next, buffer));
            }
            let read = match (first, begun) {
                (Some(first), _) => Some(first),
                (None, Some(begun)) => disk.in_time(begun).await,
                (None, None) => match disk.buffer().await {
                    Some(buffer) => disk.in_time(disk.read(*piece, buffer)).await,
                    None => None,
                },
            };
            match read {
                Some(bytes) => {
                    into.put_local(&bytes);
                    disk.state.stats.disk_hit_bytes.add(bytes.len() as u64);
                }
                None => self.fetch((version, name), piece.range(), None, into).await?,
            }
        }
        Ok(())
    }

    /// Fetches a range, and keeps it; the claim on it ends when it was written.
    async fn fetch(
        &self,
        (version, name): (&ObjectVersion, &VersionName),
        range: Range<u64>,
        claim: Option<Claim>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let (start, before) = (range.start, into.taken().len());
        self.disk.state.stats.disk_missed_bytes.add(range.end - range.start);
        self.store.get_range(version, range, into).await?;
        self.disk.writer.keep(name, start, into.share(before), claim).await;
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for DiskCached {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.store.list_page(request).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.store.head(key).await
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let Some(name) = self.origin.name(version) else {
            return self.store.get_range(version, range, into).await;
        };
        let (mut start, mut waited) = (range.start, Duration::ZERO);
        while start < range.end {
            let claiming = waited < self.disk.patience.elsewhere;
            let found = self.disk.find(name, &(start..range.end), claiming).await;
            start = found.pieces.last().map_or(start, |piece| piece.end);
            self.pass_on((version, &name), found, into).await?;
            if start < range.end {
                // Another process fetches it.
                let pause = (waited / 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
                sleep(pause).await;
                waited += pause;
            }
        }
        Ok(())
    }

    fn local_copy(&self, version: &ObjectVersion) -> Option<Arc<dyn LocalCopy>> {
        // Not by the size of the cache, which is unknown while the disk is away: the answer must
        // stay the same while a file is open.
        if version.size_bytes < whole::LEAST_BYTES {
            return None;
        }
        let version = self.origin.name(version)?;
        Some(Arc::new(WholeCopy { disk: self.disk.clone(), version }))
    }
}

/// A large object, in a file of its own if it is there.
struct WholeCopy {
    disk: Arc<Disk>,
    version: VersionName,
}

#[async_trait]
impl LocalCopy for WholeCopy {
    async fn file(&self) -> Option<File> {
        let state = self.disk.state.clone();
        if !state.may_read() || !state.may_be_whole(self.version.size_bytes) {
            return None;
        }
        let version = self.version;
        let opening = self.disk.threads.run(move || state.whole_file(&version));
        self.disk.in_time(opening).await
    }

    fn released(&self) {
        let Disk { state, threads, buffers, .. } = &*self.disk;
        if state.was_used(&self.version) {
            let (state, buffers) = (state.clone(), buffers.clone());
            threads.begin(move || state.prove(&buffers));
        }
    }
}
