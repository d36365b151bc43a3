//! What was fetched is copied into a batch of up to one unit, and written in the background by the
//! one thread that also keeps house. There are as many batches as buffers: when the disk lags, and
//! no buffer is free, bytes are not kept.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
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
use super::format::{Extent, PAGE, PAGE_BYTES, UNIT_BYTES, VersionName, cut};
use super::state::DiskState;
use super::whole::OwnSegment;

/// Between two looks at what other processes and programs have done to the disk.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Parts that end together wait for buffers this long, what 100 MB take a disk of 1 GB/s. Their
/// readers do not: they have the bytes already. A disk that lags for longer drops at once, until it
/// has caught up.
const BURST: Duration = Duration::from_millis(100);
/// About the time that a disk takes for a unit.
const FOR_A_BUFFER: Duration = Duration::from_millis(2);
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
    patient_until: Mutex<Option<Instant>>,
    filling: Arc<Mutex<Option<Batch>>>,
    queue: Sender<Chore>,
}

#[derive(Debug)]
enum Chore {
    Write(Batch),
    /// There is a batch that is being filled: it is written however full it is then.
    WriteFilling,
    /// Writes all that waits, and then tells.
    Settle(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Batch {
    buffer: UnitBuffer,
    used: usize,
    /// With the place of each in the index, and in the buffer.
    extents: Vec<(u64, Extent, Range<usize>)>,
    /// Others wait for these, until all is written.
    claims: Vec<Arc<Claim>>,
    /// All of it is of this object, and goes to the object's own segment.
    large: Option<VersionName>,
}

impl Writer {
    /// Starts its thread, which ends when this is dropped.
    /// The first outcome of opening the directory is sent to `opened`.
    pub(super) fn start(
        state: Arc<DiskState>,
        buffers: usize,
        opened: oneshot::Sender<Result<(), FolderError>>,
    ) -> std::io::Result<Self> {
        let (queue, tasks) = channel();
        let filling = Arc::new(Mutex::new(None));
        let (own, filled) = (LruCache::new(OWN_OPEN), filling.clone());
        let house = Housekeeper { state: state.clone(), filling: filled, open: None, own, tasks };
        std::thread::Builder::new().name("disk-write".to_owned()).spawn(move || {
            // Whoever started this may have stopped waiting.
            let _ = opened.send(house.state.open_folder());
            house.run();
        })?;
        let (lags_since, patient_until) = Default::default();
        let buffers = Buffers::new(buffers);
        Ok(Self { state, buffers, lags_since, patient_until, filling, queue })
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
        now < since + BURST || self.patient_until.lock().is_some_and(|until| now < until)
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
            // When the disk is busy, others follow before it is taken.
            if self.queue.send(Chore::WriteFilling).is_err() {
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

    /// Returns when all that was kept is on its way to the disk.
    pub(super) async fn settle(&self) {
        let (tell, told) = oneshot::channel();
        if self.queue.send(Chore::Settle(tell)).is_ok() {
            // It also ends with the thread.
            let _ = told.await;
        }
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
        self.extents.push((version.place, extent, place.clone()));
        self.used = place.end.next_multiple_of(PAGE);
    }

    fn bytes(&self) -> u64 {
        self.extents.iter().map(|(_, extent, _)| u64::from(extent.length)).sum()
    }
}

struct Housekeeper {
    state: Arc<DiskState>,
    filling: Arc<Mutex<Option<Batch>>>,
    open: Option<OpenSegment>,
    /// Those of large objects that were written to in the last seconds.
    own: LruCache<[u8; 16], (OwnSegment, Arc<Folder>)>,
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
        let mut tidied = Instant::now();
        loop {
            match self.tasks.recv_timeout(TIDY_EVERY) {
                Ok(Chore::Write(batch)) => self.write(batch),
                Ok(Chore::WriteFilling) => self.write_filling(),
                Ok(Chore::Settle(tell)) => {
                    self.write_filling();
                    // Nobody waits any more.
                    let _ = tell.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if tidied.elapsed() >= TIDY_EVERY {
                // What nobody writes to may be given up.
                self.own.clear();
                self.state.tidy();
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

    fn write(&mut self, mut batch: Batch) {
        let bytes = batch.bytes();
        let written = self.state.folder().is_some_and(|folder| {
            let outcome = match batch.large {
                Some(version) => self.put_in_place(&folder, &version, &mut batch),
                None => self.append(&folder, &mut batch),
            };
            if outcome.is_err() {
                // What was written of it is used nevertheless.
                self.open = None;
                self.own.clear();
            }
            self.state.wrote(&folder, outcome)
        });
        let stats = &self.state.stats;
        if written { &stats.disk_written_bytes } else { &stats.disk_dropped_bytes }.add(bytes);
    }

    fn append(&mut self, folder: &Arc<Folder>, batch: &mut Batch) -> std::io::Result<()> {
        let used = batch.used as u64;
        let fits = |open: &OpenSegment| {
            Arc::ptr_eq(&open.folder, folder) && open.used + used <= folder.segment_bytes
        };
        if !self.open.as_ref().is_some_and(fits) {
            // The lock on it ends, so it may be given up.
            self.open = None;
            let segment = folder.begin(|bytes| self.state.stats.disk_evicted_bytes.add(bytes))?;
            self.open = Some(OpenSegment { segment, folder: folder.clone(), used: 0, taken: 0 });
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.used + used > open.taken {
            let step = STEP_BYTES.min(folder.segment_bytes - open.taken);
            open.take(step)?;
        }
        let Segment { number, file } = &open.segment;
        file.write_all_at(&batch.buffer.bytes()[..batch.used], open.used)?;
        for (place, extent, at) in &mut batch.extents {
            extent.segment = *number;
            extent.page = u32::try_from((open.used + at.start as u64) / PAGE_BYTES)
                .expect("a segment has less than 2^32 pages");
            extent.sum_up(&batch.buffer.bytes()[at.clone()]);
            folder.index.insert(*place, extent, |number| folder.is_live(number))?;
        }
        open.used += used;
        Ok(())
    }
}

impl Housekeeper {
    fn put_in_place(
        &mut self,
        folder: &Arc<Folder>,
        version: &VersionName,
        batch: &mut Batch,
    ) -> std::io::Result<()> {
        let gave_up = |bytes| self.state.stats.disk_evicted_bytes.add(bytes);
        let is_open = self.own.get(&version.name).is_some_and(|(_, of)| Arc::ptr_eq(of, folder));
        if !is_open {
            let own = folder.open_own(version, gave_up)?;
            folder.proofs.begin(version, own.number);
            self.own.put(version.name, (own, folder.clone()));
        }
        let Some((own, _)) = self.own.get_mut(&version.name) else { return Ok(()) };
        for (place, extent, at) in &mut batch.extents {
            own.write(folder, extent, &batch.buffer.bytes()[at.clone()], gave_up)?;
            folder.index.insert(*place, extent, |number| folder.is_live(number))?;
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
