//! What was fetched is copied into a batch of up to one unit, and written in the background by the
//! one thread that also keeps house. There are as many batches as buffers: when the disk lags, and
//! no buffer is free, bytes are not kept.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use lru::LruCache;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::buffers::{Buffers, UnitBuffer};
use super::claims::Claim;
use super::folder::{Folder, FolderError, Segment};
use super::format::{Extent, PAGE, PAGE_BYTES, PASSED_OVER, UNIT_BYTES, VersionName, cut};
use super::state::DiskState;
use super::whole::OwnSegment;
use super::worth::{Fate, Worth};

/// Between two looks at what other processes and programs have done to the disk.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Parts that end together wait for buffers this long, what 100 MB take a disk of 1 GB/s. Their
/// readers do not: they have the bytes already. A disk that lags for longer drops at once, until it
/// has caught up.
const BURST: Duration = Duration::from_millis(100);
/// About the time that a disk takes for a unit.
const FOR_A_BUFFER: Duration = Duration::from_millis(2);
/// A batch that has begun to fill is written after this time, with what has come until then: one
/// write for many small files.
const FILLING: Duration = Duration::from_millis(5);
/// Space is taken from the file system in steps: so it is contiguous, and a daemon that is killed
/// leaves little of it unused.
const STEP_BYTES: u64 = 16 << 20;
/// Large objects that are written at the same time without opening their files again and again.
const OWN_OPEN: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

#[derive(Debug)]
pub(super) struct Writer {
    state: Arc<DiskState>,
    buffers: Arc<Buffers>,
    /// Since when there are too few buffers.
    lags_since: Mutex<Option<Instant>>,
    /// Until then nothing is dropped because the disk lags.
    patient_until: Arc<Mutex<Option<Instant>>>,
    filling: Arc<Mutex<Option<Batch>>>,
    /// Calls of [`Self::keep`] that have not returned.
    keeping: AtomicUsize,
    queue: Sender<Chore>,
}

#[derive(Debug)]
enum Chore {
    Write(Batch),
    /// A batch begins to fill.
    Filling,
    /// Writes all that waits, and then tells.
    Settle(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Batch {
    buffer: UnitBuffer,
    used: usize,
    /// With the place of each in the buffer.
    extents: Vec<(Extent, Range<usize>)>,
    /// Others wait for these, until all is written.
    claims: Vec<Arc<Claim>>,
    /// All of it is of this object, and goes to the object's own segment.
    large: Option<VersionName>,
}

impl Writer {
    /// Starts its thread, which ends when this is dropped. The second buffers are for what is
    /// written; idle memory of both is given back. The first outcome of opening the directory is
    /// sent to `opened`.
    pub(super) fn start(
        state: Arc<DiskState>,
        [reading, buffers]: [Arc<Buffers>; 2],
        opened: oneshot::Sender<Result<(), FolderError>>,
    ) -> std::io::Result<Self> {
        let (queue, tasks) = channel();
        let filling = Arc::new(Mutex::new(None));
        let patient_until = Arc::new(Mutex::new(None));
        let lags_since = Mutex::default();
        let house = Housekeeper {
            state: state.clone(),
            buffers: [reading, buffers.clone()],
            filling: filling.clone(),
            patient_until: patient_until.clone(),
            open: None,
            own: LruCache::new(OWN_OPEN),
            worth: Worth::new(),
            tasks,
        };
        std::thread::Builder::new().name("disk-write".to_owned()).spawn(move || {
            // Whoever started this may have stopped waiting.
            let _ = opened.send(house.state.open_folder());
            house.run();
        })?;
        let keeping = AtomicUsize::new(0);
        Ok(Self { state, buffers, lags_since, patient_until, filling, keeping, queue })
    }

    /// Keeps the whole blocks of `bytes`, which begin at `start` of the object, if there is room
    /// for them.
    pub(super) async fn keep(
        &self,
        version: &VersionName,
        start: u64,
        bytes: &[u8],
        claim: Option<Claim>,
    ) {
        let claim = claim.map(Arc::new);
        self.keeping.fetch_add(1, Relaxed);
        let _keeping = Keeping(&self.keeping);
        for (unit, first, range) in cut(start, bytes.len(), version.size_bytes) {
            let bytes = &bytes[range];
            let mut is_kept = false;
            while !is_kept && self.state.may_write() {
                is_kept = self.put(version, (unit, first), bytes, claim.as_ref());
                if !is_kept {
                    if !self.is_patient() {
                        break;
                    }
                    sleep(FOR_A_BUFFER).await;
                }
            }
            if !is_kept {
                self.state.stats.disk_dropped_bytes.add(bytes.len() as u64);
            }
        }
    }

    pub(super) fn be_patient(&self, time: Duration) {
        *self.patient_until.lock() = Some(Instant::now() + time);
    }

    /// No buffer is free: one is worth waiting for.
    fn is_patient(&self) -> bool {
        let now = Instant::now();
        let since = *self.lags_since.lock().get_or_insert(now);
        now < since + BURST || is_before(now, &self.patient_until)
    }

    fn put(
        &self,
        version: &VersionName,
        (unit, first): (u32, u8),
        bytes: &[u8],
        claim: Option<&Arc<Claim>>,
    ) -> bool {
        let is_large = self.state.may_be_whole(version.size_bytes);
        if is_large || bytes.len() as u64 == UNIT_BYTES {
            // Fills a batch by itself, or goes elsewhere.
            let Some(mut batch) = self.batch() else { return false };
            batch.large = is_large.then_some(*version);
            batch.put(version, unit, first, bytes);
            batch.claims.extend(claim.cloned());
            return self.queue.send(Chore::Write(batch)).is_ok();
        }
        let mut filling = self.filling.lock();
        if let Some(full) = filling.take_if(|batch| !batch.has_room(bytes.len()))
            && self.queue.send(Chore::Write(full)).is_err()
        {
            return false;
        }
        if filling.is_none() {
            *filling = self.batch();
            if self.queue.send(Chore::Filling).is_err() {
                return false;
            }
        }
        let Some(batch) = filling.as_mut() else { return false };
        batch.put(version, unit, first, bytes);
        batch.claims.extend(claim.cloned());
        true
    }

    fn batch(&self) -> Option<Batch> {
        let buffer = self.buffers.try_take()?;
        if self.buffers.are_half_free() {
            *self.lags_since.lock() = None;
        }
        let (extents, claims, large) = Default::default();
        Some(Batch { buffer, used: 0, extents, claims, large })
    }

    /// Returns when all that came is on its way to the disk, or was dropped.
    pub(super) async fn settle(&self) {
        while self.keeping.load(Relaxed) > 0 {
            sleep(FOR_A_BUFFER).await;
        }
        let (tell, told) = oneshot::channel();
        if self.queue.send(Chore::Settle(tell)).is_ok() {
            // It also ends with the thread.
            let _ = told.await;
        }
    }
}

/// A call of [`Writer::keep`], also one that is given up.
struct Keeping<'a>(&'a AtomicUsize);

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Batch {
    fn has_room(&self, bytes: usize) -> bool {
        self.used + bytes <= self.buffer.bytes().len()
    }

    fn put(&mut self, version: &VersionName, unit: u32, first: u8, bytes: &[u8]) {
        let place = self.used..self.used + bytes.len();
        self.buffer.bytes_mut()[place.clone()].copy_from_slice(bytes);
        // Where it will be written is known only then.
        let (name, length) = (version.name, u32::try_from(bytes.len()).expect("at most a unit"));
        let extent = Extent { name, unit, first, length, segment: 0, page: 0, sums: [0; 8] };
        self.extents.push((extent, place.clone()));
        self.used = place.end.next_multiple_of(PAGE);
    }
}

fn is_before(now: Instant, until: &Mutex<Option<Instant>>) -> bool {
    until.lock().is_some_and(|until| now < until)
}

fn bytes_of(extents: &[(Extent, Range<usize>)]) -> u64 {
    extents.iter().map(|(extent, _)| u64::from(extent.length)).sum()
}

struct Housekeeper {
    state: Arc<DiskState>,
    buffers: [Arc<Buffers>; 2],
    filling: Arc<Mutex<Option<Batch>>>,
    patient_until: Arc<Mutex<Option<Instant>>>,
    open: Option<OpenSegment>,
    /// Those of large objects that were written to in the last seconds.
    own: LruCache<[u8; 16], (OwnSegment, Arc<Folder>)>,
    worth: Worth,
    tasks: Receiver<Chore>,
}

struct OpenSegment {
    segment: Segment,
    folder: Arc<Folder>,
    used: u64,
    /// Space taken from the file system.
    taken: u64,
}

impl Housekeeper {
    fn run(mut self) {
        let (mut tidied, mut filled) = (Instant::now(), None);
        loop {
            let wait = filled.map_or(TIDY_EVERY, |at: Instant| at - Instant::now());
            match self.tasks.recv_timeout(wait) {
                Ok(Chore::Write(batch)) => self.write(batch),
                Ok(Chore::Filling) => filled = Some(Instant::now() + FILLING),
                Ok(Chore::Settle(tell)) => {
                    self.write_filling();
                    // Nobody waits any more.
                    let _ = tell.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if filled.take_if(|at| *at <= Instant::now()).is_some() {
                self.write_filling();
            }
            if tidied.elapsed() >= TIDY_EVERY {
                // What nobody writes to may be given up.
                self.own.clear();
                self.state.tidy();
                self.buffers.iter().for_each(|buffers| buffers.release_idle());
                tidied = Instant::now();
            }
        }
    }

    fn write_filling(&mut self) {
        let filling = self.filling.lock().take();
        if let Some(batch) = filling {
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Batch) {
        let Batch { buffer, mut extents, claims: _held, large, .. } = batch;
        let stats = self.state.stats.clone();
        let Some(folder) = self.state.folder() else {
            stats.disk_dropped_bytes.add(bytes_of(&extents));
            return;
        };
        let outcome = self.pass_over(&folder, large.is_some(), &mut extents).and_then(|as_read| {
            let outcome = match large {
                Some(version) => self.put_in_place(&folder, &version, &buffer, &mut extents),
                None => self.append(&folder, &buffer, &mut extents),
            };
            if outcome.is_err() {
                // What was written of it is used nevertheless.
                self.open = None;
                self.own.clear();
            }
            if let Some(OpenSegment { segment: Segment { number, file }, .. }) = &self.open
                && large.is_none()
            {
                folder.was_read(*number, file, as_read);
            }
            outcome
        });
        let written = self.state.wrote(&folder, outcome);
        if written { &stats.disk_written_bytes } else { &stats.disk_dropped_bytes }
            .add(bytes_of(&extents));
    }

    /// When the cache is full: takes out what is not worth a write, and has the index remember it.
    /// Returns the bytes that count as read already.
    fn pass_over(
        &mut self,
        folder: &Folder,
        is_large: bool,
        extents: &mut Vec<(Extent, Range<usize>)>,
    ) -> std::io::Result<u64> {
        if !folder.is_crowded() || is_before(Instant::now(), &self.patient_until) {
            return Ok(0);
        }
        let (now, cache_bytes) = (self.state.now(folder), folder.used_bytes());
        let (mut as_read, mut passed) = (0, Vec::new());
        for (extent, _) in &*extents {
            let last = folder.index.last_number(extent)?;
            let away = last.map(|then| now.saturating_sub(then) << 20);
            // A large object is kept whole, or not at all.
            let unit = if is_large { 0 } else { extent.unit };
            let (of, bytes) = ((&extent.name, unit), u64::from(extent.length));
            match self.worth.judge(of, bytes, away, cache_bytes) {
                Fate::Keep => {}
                Fate::KeepAsRead => as_read += bytes,
                Fate::PassOver => passed.push(Extent { segment: PASSED_OVER | now, ..*extent }),
            }
        }
        for extent in passed {
            extents.retain(|(kept, _)| (kept.name, kept.unit) != (extent.name, extent.unit));
            folder.index.insert(&extent, |number| folder.is_live(number))?;
            self.state.stats.disk_passed_over_bytes.add(u64::from(extent.length));
        }
        Ok(as_read)
    }

    fn append(
        &mut self,
        folder: &Arc<Folder>,
        buffer: &UnitBuffer,
        extents: &mut [(Extent, Range<usize>)],
    ) -> std::io::Result<()> {
        let pages = |at: &Range<usize>| at.start..at.end.next_multiple_of(PAGE);
        let wanted = extents.iter().map(|(_, at)| pages(at).len() as u64).sum::<u64>();
        let fits = |open: &OpenSegment| {
            Arc::ptr_eq(&open.folder, folder) && open.used + wanted <= folder.segment_bytes
        };
        if wanted == 0 {
            return Ok(());
        }
        if !self.open.as_ref().is_some_and(fits) {
            // The lock on it ends, so it may be given up.
            self.open = None;
            let gave_up = |bytes| self.state.stats.disk_evicted_bytes.add(bytes);
            let segment = folder.begin(self.state.passed(), gave_up)?;
            self.open = Some(OpenSegment { segment, folder: folder.clone(), used: 0, taken: 0 });
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.used + wanted > open.taken {
            let step = STEP_BYTES.min(folder.segment_bytes - open.taken);
            open.take(step)?;
        }
        let Segment { number, file } = &open.segment;
        // One write for what lies together.
        for run in extents.chunk_by_mut(|(_, at), (_, next)| pages(at).end == next.start) {
            let [Some((_, first)), Some((_, last))] = [run.first(), run.last()] else { continue };
            let (start, end) = (first.start, pages(last).end);
            file.write_all_at(&buffer.bytes()[start..end], open.used)?;
            for (extent, at) in run {
                extent.segment = *number;
                extent.page = u32::try_from((open.used + (at.start - start) as u64) / PAGE_BYTES)
                    .expect("a segment has less than 2^32 pages");
                extent.sum_up(&buffer.bytes()[at.clone()]);
                folder.index.insert(extent, |number| folder.is_live(number))?;
            }
            open.used += (end - start) as u64;
        }
        Ok(())
    }
}

impl Housekeeper {
    fn put_in_place(
        &mut self,
        folder: &Arc<Folder>,
        version: &VersionName,
        buffer: &UnitBuffer,
        extents: &mut [(Extent, Range<usize>)],
    ) -> std::io::Result<()> {
        if extents.is_empty() {
            return Ok(());
        }
        let gave_up = |bytes| self.state.stats.disk_evicted_bytes.add(bytes);
        let is_open = self.own.get(&version.name).is_some_and(|(_, of)| Arc::ptr_eq(of, folder));
        if !is_open {
            let own = folder.open_own(version, gave_up)?;
            folder.proofs.begin(version, own.number);
            self.own.put(version.name, (own, folder.clone()));
        }
        let Some((own, _)) = self.own.get_mut(&version.name) else { return Ok(()) };
        for (extent, at) in extents {
            own.write(folder, extent, &buffer.bytes()[at.clone()], gave_up)?;
            folder.index.insert(extent, |number| folder.is_live(number))?;
            folder.proofs.add(extent, &extent.object_range());
        }
        Ok(())
    }
}

impl OpenSegment {
    fn take(&mut self, bytes: u64) -> std::io::Result<()> {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (from, length) = (signed(self.taken), signed(bytes));
        match fallocate(&self.segment.file, FallocateFlags::empty(), from, length) {
            // A file system that cannot do it takes space as it is written.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {
                self.taken += bytes;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for OpenSegment {
    fn drop(&mut self) {
        // Gives back the space that was not used; without this it is given up with the segment.
        let _ = self.segment.file.set_len(self.used);
    }
}
