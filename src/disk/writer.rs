//! What was fetched is written in the background, by the one thread that also keeps house. Until
//! then it stays in the memory that it was fetched into, so nobody waits for the disk. When more
//! waits than may, because the disk lags, bytes are not kept.

use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use memmap2::MmapMut;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::buffers::Buffers;
use super::claims::Claim;
use super::files::of_file;
use super::folder::{Folder, FolderError, Segment};
use super::format::{Extent, PAGE, PAGE_BYTES, PASSED_OVER, UNIT, VersionName, cut};
use super::state::DiskState;
use super::whole::OwnSegment;
use super::worth::{Fate, Worth};

/// Between two looks at what other processes and programs have done to the disk.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// About the time that a disk takes for a unit.
const FOR_A_UNIT: Duration = Duration::from_millis(2);
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
    /// Bytes that wait to be written.
    waiting: Arc<AtomicU64>,
    most_waiting: u64,
    /// Dropped bytes of which [`Self::be_patient`] has told.
    told_dropped: AtomicU64,
    /// Until then nothing is dropped because the disk lags.
    patient_until: Arc<Mutex<Option<Instant>>>,
    queue: Sender<Chore>,
}

#[derive(Debug)]
enum Chore {
    Keep(Fetched),
    /// Writes all that waits, and then tells.
    Settle(oneshot::Sender<()>),
}

#[derive(Debug)]
struct Fetched {
    version: VersionName,
    /// Where the bytes begin in the object.
    start: u64,
    bytes: Bytes,
    claim: Option<Claim>,
    _waiting: Waiting,
}

/// Counts as waiting until it is dropped.
#[derive(Debug)]
struct Waiting {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
    }
}

impl Writer {
    /// Starts its thread, which ends when this is dropped, and which gives idle memory of `reading`
    /// back. The first outcome of opening the directory is sent to `opened`.
    pub(super) fn start(
        state: Arc<DiskState>,
        most_waiting: u64,
        reading: Arc<Buffers>,
        opened: oneshot::Sender<Result<(), FolderError>>,
    ) -> std::io::Result<Self> {
        let (queue, tasks) = channel();
        let patient_until = Arc::new(Mutex::new(None));
        let writing = Writing {
            state: state.clone(),
            patient_until: patient_until.clone(),
            open: None,
            own: LruCache::new(OWN_OPEN),
            worth: Worth::new(),
        };
        let house = Housekeeper { writing, batch: Batch::new()?, reading, tasks };
        std::thread::Builder::new().name("disk-write".to_owned()).spawn(move || {
            // Whoever started this may have stopped waiting.
            let _ = opened.send(house.writing.state.open_folder());
            house.run();
        })?;
        let (all, told_dropped) = Default::default();
        Ok(Self { state, waiting: all, most_waiting, told_dropped, patient_until, queue })
    }

    /// Keeps the whole blocks of `bytes`, which begin at `start` of the object, unless too many
    /// bytes wait.
    pub(super) async fn keep(
        &self,
        version: &VersionName,
        start: u64,
        bytes: Bytes,
        claim: Option<Claim>,
    ) {
        let length = bytes.len() as u64;
        let before = self.waiting.fetch_add(length, Relaxed);
        let waiting = Waiting { all: self.waiting.clone(), bytes: length };
        let has_room = before + length <= self.most_waiting || self.is_patient();
        if !has_room {
            self.state.stats.disk_dropped_bytes.add(length);
            return;
        }
        let fetched = Fetched { version: *version, start, bytes, claim, _waiting: waiting };
        // The thread ends with this.
        let _ = self.queue.send(Chore::Keep(fetched));
        while self.waiting.load(Relaxed) > self.most_waiting && self.is_patient() {
            sleep(FOR_A_UNIT).await;
        }
    }

    /// True if bytes were dropped since the last call.
    pub(super) fn be_patient(&self, time: Duration) -> bool {
        *self.patient_until.lock() = Some(Instant::now() + time);
        let dropped = self.state.stats.disk_dropped_bytes.get();
        self.told_dropped.swap(dropped, Relaxed) != dropped
    }

    fn is_patient(&self) -> bool {
        is_before(Instant::now(), &self.patient_until)
    }

    /// Returns when all that came was written, or dropped.
    pub(super) async fn settle(&self) {
        let (tell, told) = oneshot::channel();
        if self.queue.send(Chore::Settle(tell)).is_ok() {
            // It also ends with the thread.
            let _ = told.await;
        }
    }
}

fn is_before(now: Instant, until: &Mutex<Option<Instant>>) -> bool {
    until.lock().is_some_and(|until| now < until)
}

fn bytes_of(extents: &[Part]) -> u64 {
    extents.iter().map(|(extent, _)| u64::from(extent.length)).sum()
}

/// Runs of blocks of at most a unit, with the place of each in memory.
type Part = (Extent, Range<usize>);

fn part((unit, first, place): (u32, u8, Range<usize>), version: &VersionName) -> Part {
    // Where it will be written is known only then.
    let length = u32::try_from(place.len()).expect("at most a unit");
    let (name, segment, page, sums) = (version.name, 0, 0, [0; 8]);
    (Extent { name, unit, first, length, segment, page, sums }, place)
}

struct Housekeeper {
    writing: Writing,
    batch: Batch,
    reading: Arc<Buffers>,
    tasks: Receiver<Chore>,
}

/// Small objects, which are written together.
struct Batch {
    /// Aligned, for direct I/O.
    memory: MmapMut,
    used: usize,
    extents: Vec<Part>,
    /// Others wait for these, until all is written.
    claims: Vec<Claim>,
    /// When it is written, full or not.
    due: Option<Instant>,
}

impl Batch {
    fn new() -> std::io::Result<Self> {
        let (used, extents, claims, due) = Default::default();
        Ok(Self { memory: MmapMut::map_anon(UNIT)?, used, extents, claims, due })
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.used + bytes <= UNIT
    }

    fn put(&mut self, (extent, _): Part, bytes: &[u8]) {
        let place = self.used..self.used + bytes.len();
        self.memory[place.clone()].copy_from_slice(bytes);
        self.used = place.end.next_multiple_of(PAGE);
        self.extents.push((extent, place));
    }
}

impl Housekeeper {
    fn run(mut self) {
        let mut tidied = Instant::now();
        loop {
            let wait = self.batch.due.map_or(TIDY_EVERY, |due| due - Instant::now());
            match self.tasks.recv_timeout(wait) {
                Ok(Chore::Keep(fetched)) => self.keep(fetched),
                Ok(Chore::Settle(tell)) => {
                    self.write_batch();
                    // Nobody waits any more.
                    let _ = tell.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.batch.due.is_some_and(|due| due <= Instant::now()) {
                self.write_batch();
            }
            if tidied.elapsed() >= TIDY_EVERY {
                // What nobody writes to may be given up.
                self.writing.own.clear();
                self.writing.state.tidy();
                self.reading.release_idle();
                tidied = Instant::now();
            }
        }
    }

    fn keep(&mut self, Fetched { version, start, bytes, claim, _waiting }: Fetched) {
        let parts = cut(start, bytes.len(), version.size_bytes).into_iter();
        let mut parts: Vec<_> = parts.map(|found| part(found, &version)).collect();
        if self.writing.state.may_be_whole(version.size_bytes) {
            self.writing.write(Some(&version), &bytes, &mut parts);
            return;
        }
        for (extent, place) in parts {
            if !self.batch.has_room(place.len()) {
                self.write_batch();
            }
            self.batch.put((extent, place.clone()), &bytes[place]);
        }
        self.batch.claims.extend(claim);
        self.batch.due.get_or_insert_with(|| Instant::now() + FILLING);
    }

    fn write_batch(&mut self) {
        let Batch { memory, used, extents, claims, due } = &mut self.batch;
        self.writing.write(None, memory, extents);
        (*used, *due) = (0, None);
        extents.clear();
        claims.clear();
    }
}

struct Writing {
    state: Arc<DiskState>,
    patient_until: Arc<Mutex<Option<Instant>>>,
    open: Option<OpenSegment>,
    /// Those of large objects that were written to in the last seconds.
    own: LruCache<[u8; 16], (OwnSegment, Arc<Folder>)>,
    worth: Worth,
}

struct OpenSegment {
    segment: Segment,
    folder: Arc<Folder>,
    used: u64,
    /// Space taken from the file system.
    taken: u64,
}

impl Writing {
    /// Writes parts of `bytes`, all of a large object or of others.
    fn write(&mut self, large: Option<&VersionName>, bytes: &[u8], parts: &mut Vec<Part>) {
        let stats = self.state.stats.clone();
        let admitted = self.state.may_write().then(|| self.state.folder());
        let Some(folder) = admitted.flatten() else {
            stats.disk_dropped_bytes.add(bytes_of(parts));
            return;
        };
        let outcome = self.pass_over(&folder, large.is_some(), parts).and_then(|as_read| {
            let mut outcome = self.put(&folder, large, bytes, parts);
            if let Err(error) = &outcome {
                // What was written of it is used nevertheless. What this process has open nobody
                // gives up: without that, there may be room.
                let again = error.kind() == ErrorKind::StorageFull && !self.own.is_empty();
                self.open = None;
                self.own.clear();
                if again {
                    outcome = self.put(&folder, large, bytes, parts);
                }
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
            .add(bytes_of(parts));
    }

    fn put(
        &mut self,
        folder: &Arc<Folder>,
        large: Option<&VersionName>,
        bytes: &[u8],
        parts: &mut [Part],
    ) -> std::io::Result<()> {
        match large {
            Some(version) => self.put_in_place(folder, version, bytes, parts),
            None => self.append(folder, bytes, parts),
        }?;
        folder.grow_index()
    }

    /// When the cache is full: takes out what is not worth a write, and has the index remember it.
    /// Returns the bytes that count as read already.
    fn pass_over(
        &mut self,
        folder: &Folder,
        is_large: bool,
        extents: &mut Vec<Part>,
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
        bytes: &[u8],
        extents: &mut [Part],
    ) -> std::io::Result<()> {
        let pages = |at: &Range<usize>| at.start..at.end.next_multiple_of(PAGE);
        let wanted = extents.iter().map(|(_, at)| pages(at).len() as u64).sum::<u64>();
        // Somebody may have removed it.
        let fits = |open: &OpenSegment| {
            Arc::ptr_eq(&open.folder, folder)
                && folder.is_live(open.segment.number)
                && open.used + wanted <= folder.segment_bytes
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
            file.write_all_at(&bytes[start..end], open.used)
                .map_err(|error| of_file(&folder.path_of(*number), &error))?;
            for (extent, at) in run {
                extent.segment = *number;
                extent.page = u32::try_from((open.used + (at.start - start) as u64) / PAGE_BYTES)
                    .expect("a segment has less than 2^32 pages");
                extent.sum_up(&bytes[at.clone()]);
                folder.index.insert(extent, |number| folder.is_live(number))?;
            }
            open.used += (end - start) as u64;
        }
        Ok(())
    }

    fn put_in_place(
        &mut self,
        folder: &Arc<Folder>,
        version: &VersionName,
        bytes: &[u8],
        extents: &mut [Part],
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
        // One write for what lies together.
        for run in extents.chunk_by_mut(|(_, at), (_, next)| at.end == next.start) {
            let [Some((first, at)), Some((_, last))] = [run.first(), run.last()] else { continue };
            let (start, all) = (first.object_range().start, at.start..last.end);
            own.write(folder, start, &bytes[all], gave_up)?;
            for (extent, at) in run {
                own.describe(extent, &bytes[at.clone()])?;
                folder.index.insert(extent, |number| folder.is_live(number))?;
                folder.prove(extent, &extent.object_range());
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskConfig, Reserve};
    use crate::testing::calls;

    /// A part of four units: a write for all, and one for each in the index.
    #[test]
    fn what_lies_together_of_a_large_object_is_one_write() {
        let folder = tempfile::tempdir().unwrap();
        let (path, size_bytes) = (folder.path().to_owned(), Some(1 << 30));
        let (reserve, memory_bytes, waiting_bytes) = (Reserve::Bytes(0), 1 << 20, 1 << 30);
        let config = DiskConfig { path, size_bytes, reserve, memory_bytes, waiting_bytes };
        let state = Arc::new(DiskState::new(config, Arc::default()));
        state.open_folder().unwrap();
        let (patient_until, open, own) = (Arc::default(), None, LruCache::new(OWN_OPEN));
        let mut writing = Writing { state, patient_until, open, own, worth: Worth::new() };
        let (version, bytes) =
            (VersionName { name: [7; 16], size_bytes: 32 << 20 }, vec![1; 4 << 20]);
        let mut write = |start| {
            let parts = cut(start, bytes.len(), version.size_bytes).into_iter();
            let mut parts: Vec<_> = parts.map(|found| part(found, &version)).collect();
            let before = calls("syscw");
            writing.write(Some(&version), &bytes, &mut parts);
            calls("syscw").zip(before).map(|(after, before)| after - before)
        };
        // The first one makes the segment. Room is made once more, which writes the hand.
        write(0);
        assert!(write(4 << 20).is_none_or(|calls| calls <= 6));
        assert_eq!(writing.state.stats.disk_written_bytes.get(), 8 << 20);
    }

    /// The thread that writes stands still: nothing takes what waits.
    #[tokio::test]
    async fn as_much_waits_as_may_and_what_was_written_leaves_room() {
        let (path, size_bytes) = ("/nowhere".into(), Some(1 << 30));
        let (reserve, memory_bytes, waiting_bytes) = (Reserve::Bytes(0), 1 << 20, 10);
        let config = DiskConfig { path, size_bytes, reserve, memory_bytes, waiting_bytes };
        let state = Arc::new(DiskState::new(config, Arc::default()));
        let ((waiting, told_dropped, patient_until), (queue, tasks)) =
            (Default::default(), channel());
        let most_waiting = waiting_bytes;
        let writer = Writer { state, waiting, most_waiting, told_dropped, patient_until, queue };
        let version = VersionName { name: [0; 16], size_bytes: 1 << 20 };
        let keep = async |length| {
            writer.keep(&version, 0, vec![0; length].into(), None).await;
            writer.state.stats.disk_dropped_bytes.get()
        };
        assert_eq!([keep(6).await, keep(4).await, keep(1).await], [0, 0, 1]);
        drop(tasks.recv().unwrap());
        assert_eq!([keep(5).await, keep(1).await, keep(7).await], [1, 1, 8]);
    }
}
