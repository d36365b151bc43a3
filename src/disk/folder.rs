//! The directory: who may use it, the segments in it, and which of them is given up for room.
//!
//! Bytes lie in *segments*: files that are written once, from their beginning to their end, each by
//! one process, which holds its lock meanwhile, and given up whole. Their numbers ascend over all
//! processes and are not used again. So what an extent points to is right, or gone.
//!
//! Nothing is synced. What a crash loses, or leaves half written, fails its checksums.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;

use super::claims::Claims;
use super::files::{
    check_owner, discard, free_bytes, is_at, make_folder, open, open_directly, open_or_make,
};
use super::format::PASSED_OVER;
use super::index::Index;
use super::whole::Proofs;

/// Another format has another name.
pub(super) const NAME: &str = "fasts3-cache-1";
const SEGMENTS: &str = "segments";
const INDEX: &str = "index";
const CLAIMS: &str = "claims";
const LOCK: &str = "lock";
/// The places of the numbers in it.
const NEXT: u64 = 0;
const HAND: u64 = 1;
/// Segments that are kept open.
const OPEN: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");
/// Another process gives segments up; it takes milliseconds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Not read since the hand came by, or read.
pub(super) const FRESH: u32 = 0o600;
pub(super) const READ_AGAIN: u32 = 0o400;

/// How much may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) size_bytes: u64,
    /// Space of the file system that stays free.
    pub(super) reserve_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// Others could write there: a sentence that says what to do.
    #[error("{0}")]
    Unsafe(String),
    #[error(transparent)]
    Io(#[from] Error),
}

/// No segment has a number as high as this: they begin with the nanoseconds since 1970.
const BEYOND: u64 = PASSED_OVER / 2;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    pub(super) index: Index,
    pub(super) claims: Claims,
    /// Locked while numbers are given out and segments given up. Holds two numbers: the next one,
    /// and the hand. What is read advances the next one too, by one for each MiB: so the difference
    /// of two numbers tells how much was read between them.
    lock: File,
    /// The next number, as it was last seen.
    now: AtomicU64,
    /// There was no room for the last segment without giving another one up.
    crowded: AtomicBool,
    /// An open file and its name have the same inode number. Not every file system tells it so.
    tells_inodes: bool,
    pub(super) limits: Limits,
    pub(super) segment_bytes: u64,
    open: Mutex<LruCache<u64, Arc<File>>>,
    /// The segments, and their lengths, as they were last seen.
    live: Mutex<BTreeMap<u64, u64>>,
    /// Bytes that this process has read of each segment since it last marked it.
    read: Mutex<HashMap<u64, u64>>,
    pub(super) proofs: Proofs,
}

/// What somebody else has done to the files of a folder that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meddling {
    Removed,
    /// There is another index, or it has another length.
    Changed,
}

/// A segment that this process writes; the lock on it ends with it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: File,
}

impl Folder {
    /// Opens the cache below `path`, or makes one. An index that is not right is thrown away with
    /// all that lies there, and `told` of it.
    pub(super) fn open(
        path: &Path,
        limits: impl FnOnce(u64) -> std::io::Result<Limits>,
        told: impl FnOnce(&Error),
    ) -> Result<Self, FolderError> {
        let unsafe_ = FolderError::Unsafe;
        make_folder(path)?;
        check_owner(path, &std::fs::metadata(path)?, false).map_err(unsafe_)?;
        let path = path.join(NAME);
        make_folder(&path)?;
        let there = path.symlink_metadata()?;
        if !there.is_dir() {
            let shown = path.display();
            return Err(unsafe_(format!("{shown} is not a directory; give another one")));
        }
        check_owner(&path, &there, true).map_err(unsafe_)?;
        let inside = path.join(SEGMENTS);
        if inside.symlink_metadata().is_ok_and(|there| !there.is_dir()) {
            discard(&inside)?;
        }
        make_folder(&inside)?;
        check_owner(&inside, &inside.symlink_metadata()?, true).map_err(unsafe_)?;
        let lock = open_or_make(&path.join(LOCK))?;
        check_owner(&path.join(LOCK), &lock.metadata()?, true).map_err(unsafe_)?;
        locked(&lock)?;
        let live = segments(&path)?;
        let limits = limits(live.values().sum())?;
        let index_path = path.join(INDEX);
        let index = match Index::open(&index_path, limits.size_bytes) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                told(&error);
                for &number in live.keys() {
                    discard(&segment(&path, number))?;
                }
                discard(&index_path)?;
                Index::open(&index_path, limits.size_bytes)
            }
            index => index,
        };
        lock.unlock()?;
        let tells_inodes = is_at(&lock, &path.join(LOCK));
        let target = (limits.size_bytes / 512).max(1).next_power_of_two();
        Ok(Self {
            index: index?,
            claims: Claims::open(&path.join(CLAIMS))?,
            now: AtomicU64::new(number(&lock, NEXT)?),
            crowded: AtomicBool::new(false),
            tells_inodes,
            path,
            lock,
            limits,
            segment_bytes: target.clamp(4 << 20, 256 << 20),
            open: Mutex::new(LruCache::new(OPEN)),
            live: Mutex::new(live),
            read: Mutex::default(),
            proofs: Proofs::new(),
        })
    }

    /// Whether its files are still those that were opened.
    pub(super) fn meddling(&self) -> Option<Meddling> {
        let [index, claims, lock] = [INDEX, CLAIMS, LOCK].map(|name| self.path.join(name));
        if !self.path.join(SEGMENTS).is_dir() || !index.exists() {
            return Some(Meddling::Removed);
        }
        let same =
            || self.index.is_at(&index) && self.claims.are_at(&claims) && is_at(&self.lock, &lock);
        let same = self.index.is_whole() && (!self.tells_inodes || same());
        (!same).then_some(Meddling::Changed)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.live.lock().values().sum()
    }

    pub(super) fn is_live(&self, number: u64) -> bool {
        self.live.lock().contains_key(&number)
    }

    /// The number that the next segment would have.
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// What is stored now displaces something.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// A segment to read from; `None` if it was given up.
    pub(super) fn segment(&self, number: u64) -> std::io::Result<Option<Arc<File>>> {
        if number >= PASSED_OVER {
            return Ok(None);
        }
        if let Some(file) = self.open.lock().get(&number) {
            return Ok(Some(file.clone()));
        }
        let mut options = OpenOptions::new();
        options.read(true);
        match open_directly(&options, &segment(&self.path, number)) {
            Ok(file) => {
                let file = Arc::new(file);
                self.open.lock().put(number, file.clone());
                Ok(Some(file))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
                discard(&segment(&self.path, number))?;
                self.live.lock().remove(&number);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A quarter of a segment that was read makes it worth keeping.
    pub(super) fn was_read(&self, number: u64, file: &File, bytes: u64) {
        let mut read = self.read.lock();
        let sum = read.entry(number).or_default();
        *sum += bytes;
        if *sum >= self.segment_bytes / 4 {
            read.remove(&number);
            drop(read);
            // Of a segment that was given up meanwhile, or that its process still writes.
            let _ = file.set_permissions(Permissions::from_mode(READ_AGAIN));
        }
    }

    /// Makes room for a segment, and begins it. `passed`: MiB that were read by this process since
    /// it last told.
    pub(super) fn begin(&self, passed: u64, gave_up: impl FnMut(u64)) -> std::io::Result<Segment> {
        self.alone(|| {
            self.advance(passed)?;
            self.begin_locked(gave_up)
        })
    }

    /// Works while no other process begins segments or gives some up.
    pub(super) fn alone<T>(&self, work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        locked(&self.lock)?;
        let outcome = work();
        self.lock.unlock()?;
        outcome
    }

    /// A file of the directory that has no bytes of objects.
    pub(super) fn sample(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    pub(super) fn path_of(&self, number: u64) -> PathBuf {
        segment(&self.path, number)
    }

    pub(super) fn begin_locked(&self, gave_up: impl FnMut(u64)) -> std::io::Result<Segment> {
        self.make_room(self.segment_bytes, gave_up)?;
        let newest = self.live.lock().last_key_value().map_or(0, |(&number, _)| number);
        let number = self.advance(0)?.max(newest + 1);
        self.set_number(NEXT, number + 1)?;
        let mut options = lockable();
        options.create_new(true).mode(FRESH);
        let file = open_directly(&options, &segment(&self.path, number))?;
        file.lock()?;
        self.live.lock().insert(number, 0);
        Ok(Segment { number, file })
    }

    /// Gives segments up if there are too many, or if the disk is too full; looks at what other
    /// processes have done.
    pub(super) fn tidy(&self, passed: u64, gave_up: impl FnMut(u64)) -> std::io::Result<()> {
        let tidied = self.alone(|| {
            self.advance(passed)?;
            self.make_room(0, gave_up)
        });
        // A file that is open takes space even after it was removed.
        let live = self.live.lock();
        let mut open = self.open.lock();
        let gone: Vec<u64> = open
            .iter()
            .map(|(&number, _)| number)
            .filter(|number| !live.contains_key(number))
            .collect();
        for number in gone {
            open.pop(&number);
        }
        tidied
    }

    /// Makes the index larger if that is needed.
    pub(super) fn grow_index(&self) -> std::io::Result<()> {
        if self.index.is_crowded() { self.alone(|| self.index.grow()) } else { Ok(()) }
    }

    pub(super) fn make_room(
        &self,
        wanted: u64,
        mut gave_up: impl FnMut(u64),
    ) -> std::io::Result<()> {
        if wanted > 0 {
            self.crowded.store(false, Ordering::Relaxed);
        }
        let mut live = segments(&self.path)?;
        let mut used: u64 = live.values().sum();
        let mut free = free_bytes(&self.path)?;
        let mut hand = number(&self.lock, HAND)?;
        let mut numbers: Vec<u64> = live.keys().copied().collect();
        // In two rounds the hand has seen each of them without its mark.
        let mut looks = 2 * numbers.len();
        while used + wanted > self.limits.size_bytes || free < self.limits.reserve_bytes + wanted {
            let Some(number) = next(hand, &numbers).filter(|_| looks > 0) else { break };
            (looks, hand) = (looks - 1, number);
            if !self.gives_up(number)? {
                continue;
            }
            numbers.retain(|&other| other != number);
            let length = live.remove(&number).unwrap_or_default();
            (used, free) = (used - length, free + length);
            gave_up(length);
            self.crowded.store(true, Ordering::Relaxed);
        }
        self.set_number(HAND, hand)?;
        *self.live.lock() = live;
        let is_full =
            used + wanted > self.limits.size_bytes || free < self.limits.reserve_bytes + wanted;
        if wanted > 0 && is_full {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        Ok(())
    }

    /// Removes a segment, unless it was read again or is being written.
    fn gives_up(&self, number: u64) -> std::io::Result<bool> {
        let path = segment(&self.path, number);
        let there = match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            there => there?,
        };
        if there.is_file() {
            if there.mode() & 0o777 == READ_AGAIN {
                std::fs::set_permissions(&path, Permissions::from_mode(FRESH))?;
                return Ok(false);
            }
            match open(&lockable(), &path) {
                Ok(file) if file.try_lock().is_err() => return Ok(false),
                // It was just read again.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(false),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
                file => drop(file?),
            }
        }
        discard(&path)?;
        self.open.lock().pop(&number);
        self.read.lock().remove(&number);
        Ok(true)
    }

    /// Counts what was read, and returns the next number.
    fn advance(&self, passed: u64) -> std::io::Result<u64> {
        // In a directory that was made anew, or where the number is damaged, numbers are others
        // than those before: processes may still know these.
        let next = match number(&self.lock, NEXT)? {
            next @ 1..BEYOND => next,
            _ => self.made_at()?,
        };
        let next = next.saturating_add(passed).min(BEYOND - 1);
        self.set_number(NEXT, next)?;
        Ok(next)
    }

    /// Nanoseconds since 1970.
    fn made_at(&self) -> std::io::Result<u64> {
        let metadata = self.lock.metadata()?;
        let nanoseconds = metadata.ctime().wrapping_mul(1_000_000_000) + metadata.ctime_nsec();
        Ok(u64::try_from(nanoseconds).unwrap_or_default().max(1))
    }

    fn set_number(&self, at: u64, number: u64) -> std::io::Result<()> {
        if at == NEXT {
            self.now.store(number, Ordering::Relaxed);
        }
        self.lock.write_all_at(&number.to_le_bytes(), 8 * at)
    }
}

/// NFS locks alone only what is open to be written, and with others only what is open to be read.
pub(super) fn lockable() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

/// One of the numbers in the file `lock`.
fn number(lock: &File, at: u64) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    match lock.read_exact_at(&mut bytes, 8 * at) {
        Ok(()) => Ok(u64::from_le_bytes(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

/// The next segment for SIEVE's hand (Zhang and others, NSDI 2024), which goes from the oldest to
/// the newest and then begins again: one that was read again since the hand came by stays, and
/// loses that mark. So a scan, which is read once, displaces nothing that is read again.
fn next(hand: u64, numbers: &[u64]) -> Option<u64> {
    let behind = numbers.partition_point(|&number| number <= hand);
    numbers.get(behind).or(numbers.first()).copied()
}

fn segment(path: &Path, number: u64) -> PathBuf {
    path.join(SEGMENTS).join(format!("{number:016x}"))
}

/// The segments below `path`, and their lengths. What has another name is not ours.
pub(super) fn segments(path: &Path) -> std::io::Result<BTreeMap<u64, u64>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(path.join(SEGMENTS))? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().filter(|name| name.len() == 16);
        if let Some(number) = number.and_then(|name| u64::from_str_radix(name, 16).ok())
            && number < BEYOND
            // It may just be given up by another process.
            && let Ok(metadata) = entry.metadata()
        {
            // Of an object's own segment, not all may be there.
            found.insert(number, metadata.len().min(metadata.blocks() * 512));
        }
    }
    Ok(found)
}

fn locked(lock: &File) -> std::io::Result<()> {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(5);
    while let Err(error) = lock.try_lock() {
        if let std::fs::TryLockError::Error(error) = error {
            return Err(error);
        }
        if waited >= LONGEST_WAIT {
            return Err(Error::new(ErrorKind::TimedOut, "another process holds the lock"));
        }
        // On a thread of the disk's own.
        std::thread::park_timeout(step);
        waited += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_inode_numbers_only_what_is_gone_or_cut_counts_as_meddled_with() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { size_bytes: 64 << 20, reserve_bytes: 0 };
        let mut folder = Folder::open(directory.path(), |_| Ok(limits), |_| ()).unwrap();
        assert!(folder.tells_inodes && folder.meddling().is_none());
        let [index, lock] = [INDEX, LOCK].map(|name| folder.path.join(name));
        std::fs::remove_file(&lock).unwrap();
        std::fs::write(&lock, "").unwrap();
        assert_eq!(folder.meddling(), Some(Meddling::Changed));
        folder.tells_inodes = false;
        assert_eq!(folder.meddling(), None);
        OpenOptions::new().write(true).open(&index).unwrap().set_len(100).unwrap();
        assert_eq!(folder.meddling(), Some(Meddling::Changed));
        std::fs::remove_file(&index).unwrap();
        assert_eq!(folder.meddling(), Some(Meddling::Removed));
    }

    #[test]
    fn whatever_bit_of_its_numbers_is_flipped_segments_are_begun() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { size_bytes: 64 << 20, reserve_bytes: 0 };
        let folder = Folder::open(directory.path(), |_| Ok(limits), |_| ()).unwrap();
        for (at, bit) in [NEXT, HAND].into_iter().flat_map(|at| (0..64).map(move |bit| (at, bit))) {
            let right = number(&folder.lock, at).unwrap();
            folder.set_number(at, right ^ 1 << bit).unwrap();
            for _ in 0..2 {
                let begun = folder.begin(0, |_| ()).unwrap().number;
                assert!(segments(&folder.path).unwrap().contains_key(&begun), "{at} {bit}");
                discard(&folder.path_of(begun)).unwrap();
            }
            folder.set_number(at, right.max(1)).unwrap();
        }
    }
}
