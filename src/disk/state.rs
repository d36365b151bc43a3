//! Whether the disk is used: there or not, well or left alone. Its calls block, and run on the
//! disk's own threads.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::buffers::UnitBuffer;
use super::claims::Claim;
use super::files::of_file;
use super::folder::{Folder, FolderError, Meddling};
use super::format::{Extent, PAGE, PAGE_BYTES, Piece, UNIT_BYTES, VersionName, plan};
use super::health::Health;
use super::{DiskConfig, UnitRead};
use crate::stats::Stats;

#[derive(Debug)]
pub(super) struct DiskState {
    config: DiskConfig,
    folder: RwLock<Option<Arc<Folder>>>,
    /// A full disk can still be read.
    reading: Mutex<Health>,
    writing: Mutex<Health>,
    pub(super) stats: Arc<Stats>,
    /// MiB read by programs of which the folder was told.
    told: AtomicU64,
    /// The file system that the directory was on first: what it hides is not for the cache.
    home: OnceLock<u64>,
}

/// What there is of a range.
#[derive(Debug)]
pub(super) struct Stored {
    /// Up to what another process fetches now.
    pub(super) pieces: Vec<Piece>,
    /// The bytes of the first piece, if they are on the disk.
    pub(super) first: Option<UnitRead>,
    /// Of the pieces that are missing, in their order.
    pub(super) claims: VecDeque<Claim>,
}

impl Stored {
    pub(super) fn nothing(range: &Range<u64>) -> Self {
        Self { pieces: plan(range, &[]), first: None, claims: VecDeque::new() }
    }
}

/// The file system of a directory, or of where it would be made.
fn file_system(path: &Path) -> std::io::Result<u64> {
    let outside = || path.parent().ok_or(ErrorKind::NotFound)?.metadata();
    Ok(path.metadata().or_else(|_| outside())?.dev())
}

impl DiskState {
    pub(super) fn new(config: DiskConfig, stats: Arc<Stats>) -> Self {
        let (folder, reading, writing, told, home) = Default::default();
        Self { config, folder, reading, writing, stats, told, home }
    }

    pub(super) fn folder(&self) -> Option<Arc<Folder>> {
        self.folder.read().clone()
    }

    pub(super) fn may_read(&self) -> bool {
        self.folder.read().is_some() && self.reading.lock().admits(Instant::now())
    }

    pub(super) fn may_write(&self) -> bool {
        self.folder.read().is_some() && self.writing.lock().admits(Instant::now())
    }

    pub(super) fn open_folder(&self) -> Result<(), FolderError> {
        let told = |error: &Error| {
            self.stats.disk_wrong.add(1);
            tracing::warn!("the disk cache is made anew: {error}");
        };
        let path = &self.config.path;
        let moved = |home: &u64| file_system(path).is_ok_and(|there| there != *home);
        let opened = if self.home.get().is_some_and(moved) {
            Err(Error::other("the file system that it was on is gone").into())
        } else {
            Folder::open(path, |used| self.config.limits(used), told)
        };
        match opened {
            Ok(folder) => {
                let _ = file_system(path).map(|there| self.home.set(there));
                *self.folder.write() = Some(Arc::new(folder));
                Self::well(&self.reading);
                Self::well(&self.writing);
                Ok(())
            }
            Err(error) => {
                self.ill(&self.writing, Failing::Lasting, Instant::now(), &error);
                Err(error)
            }
        }
    }

    /// Gives segments up if need be, and opens the directory anew if it is gone, or not what it
    /// was.
    pub(super) fn tidy(&self) {
        let Some(folder) = self.folder() else {
            if self.writing.lock().admits(Instant::now()) {
                // It is tried again after a pause.
                let _ = self.open_folder();
            }
            return;
        };
        if self.reopened(&folder) {
            return;
        }
        let gave_up = |bytes| self.stats.disk_evicted_bytes.add(bytes);
        if let Err(error) = folder.tidy(self.passed(), gave_up) {
            self.ill(&self.writing, Failing::of(&error), Instant::now(), &error);
        }
    }

    /// Opens the directory anew if somebody has meddled with it.
    fn reopened(&self, folder: &Folder) -> bool {
        let Some(meddling) = folder.meddling() else { return false };
        *self.folder.write() = None;
        // If not, it is tried again after a pause.
        if self.open_folder().is_ok() && meddling == Meddling::Removed {
            let shown = self.config.path.display();
            tracing::warn!("the disk cache was removed: {shown} is made anew");
        }
        true
    }

    /// MiB that programs have read since the last call.
    pub(super) fn passed(&self) -> u64 {
        let read = self.read_mib();
        read - self.told.swap(read, Ordering::Relaxed)
    }

    /// The next segment's number, with what was read until now.
    pub(super) fn now(&self, folder: &Folder) -> u64 {
        folder.now() + (self.read_mib() - self.told.load(Ordering::Relaxed))
    }

    fn read_mib(&self) -> u64 {
        (self.stats.disk_hit_bytes.get() + self.stats.disk_missed_bytes.get()) >> 20
    }

    /// The outcome of a write; true if it worked.
    pub(super) fn wrote(&self, folder: &Folder, outcome: std::io::Result<()>) -> bool {
        match outcome {
            Ok(()) => {
                Self::well(&self.writing);
                return true;
            }
            Err(_) if self.reopened(folder) => {}
            Err(error) => {
                self.ill(&self.writing, Failing::of(&error), Instant::now(), &error);
            }
        }
        false
    }

    /// The disk has answered in time.
    pub(super) fn answered(&self) {
        Self::well(&self.reading);
    }

    /// The disk, asked then, has not answered in time.
    pub(super) fn late(&self, asked: Instant, limit: Duration) {
        let cause = format!("no answer within {} ms", limit.as_millis());
        self.ill(&self.reading, Failing::Hung, asked, &cause);
    }

    fn well(health: &Mutex<Health>) {
        if health.lock().worked(Instant::now()) {
            tracing::info!("the disk cache is used again");
        }
    }

    fn ill(
        &self,
        health: &Mutex<Health>,
        trouble: Failing,
        asked: Instant,
        cause: &dyn std::fmt::Display,
    ) {
        let now = Instant::now();
        let pause = match trouble {
            Failing::Hung => health.lock().hung(asked, now),
            Failing::Passing => health.lock().failed(asked, now),
            Failing::Lasting => health.lock().failed_for_good(asked, now),
        };
        if let Some(pause) = pause {
            self.stats.disk_pauses.add(1);
            let (seconds, shown) = (pause.as_secs(), self.config.path.display());
            tracing::warn!("the disk cache is left alone for {seconds} s: {cause} ({shown})");
        }
    }

    /// Looks up a range, and reads its first piece into `buffer` if it is there. With `claiming`,
    /// what is missing is claimed.
    pub(super) fn find(
        &self,
        version: &VersionName,
        range: &Range<u64>,
        claiming: bool,
        buffer: UnitBuffer,
    ) -> Option<Stored> {
        let (folder, asked) = (self.folder()?, Instant::now());
        let pieces = pieces(&folder, version, range);
        let mut pieces = pieces.inspect_err(|error| self.failed_to_read(asked, error)).ok()?;
        let (mut first, mut claims) = (None, VecDeque::new());
        if let Some(piece) = pieces.first_mut().filter(|piece| piece.extent.is_some()) {
            first = self.read(piece, buffer);
            if first.is_none() {
                piece.extent = None;
            }
        }
        if claiming {
            let missing = |at: &usize| pieces[*at].extent.is_none();
            for at in (0..pieces.len()).filter(missing).collect::<Vec<_>>() {
                let Ok(claim) = folder.claims.claim(version, &pieces[at].range()) else {
                    pieces.truncate(at);
                    break;
                };
                claims.push_back(claim);
            }
        }
        Some(Stored { pieces, first, claims })
    }

    /// Reads a piece and checks it. `None` if that fails: then the bytes are in the store only.
    pub(super) fn read(&self, piece: &Piece, mut buffer: UnitBuffer) -> Option<UnitRead> {
        let (folder, extent, asked) = (self.folder()?, piece.extent?, Instant::now());
        match read_blocks(&folder, &extent, &piece.range(), &mut buffer) {
            Ok(bytes) => bytes.map(|bytes| {
                folder.prove(&extent, &piece.range());
                UnitRead { buffer, bytes }
            }),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                self.stats.disk_wrong.add(1);
                let segment = format!("{:016x}", extent.segment);
                tracing::warn!(segment, "the disk cache held wrong bytes: they are fetched again");
                folder.proofs.withdraw(&extent.name);
                // Its other blocks have checksums of their own.
                let mut rest = extent.without(&extent.whole_blocks(&piece.range()));
                let forgotten = folder.index.remove(&extent).and_then(|()| {
                    rest.try_for_each(|kept| folder.index.insert(&kept, |of| folder.is_live(of)))
                });
                if let Err(error) = forgotten {
                    self.ill(&self.writing, Failing::of(&error), asked, &error);
                }
                None
            }
            Err(error) => {
                self.failed_to_read(asked, &error);
                None
            }
        }
    }

    /// A read that was begun then has failed.
    pub(super) fn failed_to_read(&self, asked: Instant, error: &Error) {
        self.ill(&self.reading, Failing::of(error), asked, error);
    }

    /// Used bytes, and their limit; none if the directory is not open.
    pub(super) fn usage(&self) -> Option<(u64, u64)> {
        self.folder().map(|folder| (folder.used_bytes(), folder.limits.size_bytes))
    }
}

#[derive(Clone, Copy, Debug)]
enum Failing {
    Hung,
    /// The next call may succeed.
    Passing,
    Lasting,
}

impl Failing {
    fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
            | ErrorKind::NotFound => Self::Lasting,
            _ => Self::Passing,
        }
    }
}

/// What there is of a range.
fn pieces(
    folder: &Folder,
    version: &VersionName,
    range: &Range<u64>,
) -> std::io::Result<Vec<Piece>> {
    let pieces = plan(range, &extents(folder, version, range)?);
    if pieces.iter().any(|piece| piece.extent.is_none()) && folder.index.has_grown() {
        return Ok(plan(range, &extents(folder, version, range)?));
    }
    Ok(pieces)
}

/// The extents that hold bytes of a range, of those segments that are there.
fn extents(
    folder: &Folder,
    version: &VersionName,
    range: &Range<u64>,
) -> std::io::Result<Vec<Extent>> {
    let units = [range.start / UNIT_BYTES, range.end.div_ceil(UNIT_BYTES)];
    let [Ok(first), Ok(end)] = units.map(u32::try_from) else { return Ok(Vec::new()) };
    let mut there = Vec::new();
    for extent in folder.index.find(version, first..end)? {
        if folder.segment(extent.segment)?.is_some() {
            there.push(extent);
        }
    }
    Ok(there)
}

/// Reads the blocks of a range into `buffer`: where its bytes are in there, `None` if the segment
/// was given up, or the error `InvalidData` if they are not right.
pub(super) fn read_blocks(
    folder: &Folder,
    extent: &Extent,
    range: &Range<u64>,
    buffer: &mut UnitBuffer,
) -> std::io::Result<Option<Range<usize>>> {
    let Some(file) = folder.segment(extent.segment)? else { return Ok(None) };
    let wrong = || Error::from(ErrorKind::InvalidData);
    let blocks = extent.whole_blocks(range);
    let skipped = blocks.start - extent.object_range().start;
    let at = u64::from(extent.page) * PAGE_BYTES + skipped;
    let length = usize::try_from(blocks.end - blocks.start).map_err(|_| wrong())?;
    let whole_pages = length.next_multiple_of(PAGE);
    let into = buffer.bytes_mut().get_mut(..whole_pages).ok_or_else(wrong)?;
    let mut read = 0;
    while read < length {
        let some = file.read_at(&mut into[read..], at + read as u64);
        match some.map_err(|error| of_file(&folder.path_of(extent.segment), &error))? {
            0 => return Err(wrong()),
            some => read += some,
        }
    }
    if !extent.is_right(&blocks, &into[..length]) {
        // Another time breaks the seal.
        let _ = file.set_modified(file.metadata()?.modified()? + Duration::from_nanos(1));
        return Err(wrong());
    }
    folder.was_read(extent.segment, &file, length as u64);
    let start = usize::try_from(range.start - blocks.start).map_err(|_| wrong())?;
    let end = usize::try_from(range.end - blocks.start).map_err(|_| wrong())?;
    Ok(Some(start..end))
}
