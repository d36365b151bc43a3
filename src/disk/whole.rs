//! Large objects lie in segments of their own, each byte at its place in the object. When all of
//! them are there, the segment is a file of exactly the object's bytes, which the kernel can read
//! by itself (FUSE passthrough).
//!
//! - The index names that segment: an extent without bytes, [`OWN_UNIT`] of the object. Any process
//!   may write to it at any time, because at one place there is one right content.
//! - Where the kernel reads, nobody compares checksums. So the file is given out only when this
//!   process has compared, or written, each of its blocks, or another one has since the machine was
//!   started: that one has left a seal in the index, which any write to the file breaks. Whoever
//!   writes or reads it has a shared lock on it, so that nobody gives it up meanwhile.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use lru::LruCache;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::buffers::Buffers;
use super::files::{of_file, open, open_directly};
use super::folder::{FRESH, Folder, READ_AGAIN, Segment, lockable};
use super::format::{Extent, NO_SEAL, OWN_UNIT, PAGE, PAGE_BYTES, Piece, UNIT_BYTES, VersionName};
use super::state::DiskState;
use crate::base::layout::BLOCK_BYTES;

/// Smaller objects gain less than their opening costs (docs/performance.md).
pub(super) const LEAST_BYTES: u64 = 16 << 20;
/// All segments are looked at every few seconds: these many take 50 ms.
const MOST_FILES: u64 = 1 << 15;
/// What is given up as a whole should not be the cache.
const LARGEST_SHARE: u64 = 4;
const PROOFS: NonZeroUsize = NonZeroUsize::new(1 << 15).expect("not zero");
/// A program that has read a part of a file does so again, or all of it, from the second time on.
const USES: u32 = 2;
/// 1,000 MB/s of units in disorder instead of 480 (ext4).
const STEP_BYTES: u64 = 16 << 20;
const FOR_A_BUFFER: Duration = Duration::from_millis(2);

/// An object of this size has a segment of its own, in a cache of `cache_bytes`.
pub(super) fn is_large(size_bytes: u64, cache_bytes: u64) -> bool {
    let least = LEAST_BYTES.max(cache_bytes / MOST_FILES);
    (least..=cache_bytes / LARGEST_SHARE).contains(&size_bytes)
}

/// An object's own segment that this process writes.
#[derive(Debug)]
pub(super) struct OwnSegment {
    pub(super) number: u64,
    /// Locked, not alone.
    file: File,
    /// Bytes for which room was made.
    room: u64,
    /// Parts of [`STEP_BYTES`] for which space was taken from the file system.
    taken: HashSet<u64>,
}

impl Folder {
    /// What names the object's own segment, if that is there.
    fn own(&self, version: &VersionName) -> std::io::Result<Option<Extent>> {
        // Not what was there before, when a page was another one's.
        self.index.has_grown();
        let mut named = self.index.find(version, OWN_UNIT..OWN_UNIT + 1)?;
        named.sort_unstable_by_key(|extent| extent.segment);
        while let Some(newest) = named.pop() {
            if self.segment(newest.segment)?.is_some() {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }

    /// These blocks of an extent are right. When all of an own segment are, it is sealed.
    pub(super) fn prove(&self, extent: &Extent, range: &Range<u64>) {
        if self.proofs.add(extent, range) {
            // The next process compares all that was not sealed.
            let _ = self.seal(&extent.name, extent.segment);
        }
    }

    fn seal(&self, name: &[u8; 16], number: u64) -> std::io::Result<()> {
        let Some(sums) = seal(&self.path_of(number).metadata()?) else { return Ok(()) };
        self.index.insert(&own_extent(name, number, sums), |number| self.is_live(number))
    }

    /// The object's own segment, to write to; makes it if it is missing.
    pub(super) fn open_own(
        &self,
        version: &VersionName,
        mut gave_up: impl FnMut(u64),
    ) -> std::io::Result<OwnSegment> {
        self.alone(|| {
            if let Some(Extent { segment: number, .. }) = self.own(version)? {
                let (path, options) = (self.path_of(number), lockable());
                let opened = open_directly(&options, &path).or_else(|error| {
                    if error.kind() != ErrorKind::PermissionDenied {
                        return Err(error);
                    }
                    // It has the mark of a file that was read again.
                    std::fs::set_permissions(&path, Permissions::from_mode(FRESH))?;
                    open_directly(&options, &path)
                });
                match opened {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    file => {
                        let file = file?;
                        file.lock_shared()?;
                        return Ok(OwnSegment { number, file, room: 0, taken: HashSet::new() });
                    }
                }
            }
            let Segment { number, file } = self.begin_locked(&mut gave_up)?;
            // Nobody looks for it before it is in the index.
            file.lock_shared()?;
            file.set_len(version.size_bytes)?;
            let named = own_extent(&version.name, number, NO_SEAL);
            self.index.insert(&named, |number| self.is_live(number))?;
            Ok(OwnSegment { number, file, room: self.segment_bytes, taken: HashSet::new() })
        })
    }

    /// An object's own segment, to be read by others while it is open; `None` if it is not there
    /// as it should be.
    fn hold(
        &self,
        number: u64,
        is_right: impl FnOnce(&Metadata) -> bool,
    ) -> std::io::Result<Option<File>> {
        let file = match open(OpenOptions::new().read(true), &self.path_of(number)) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
                return Ok(None);
            }
            file => file?,
        };
        // It fails while it is being given up.
        let is_held = file.try_lock_shared().is_ok();
        let metadata = file.metadata()?;
        if !is_held || metadata.nlink() == 0 || !is_right(&metadata) {
            return Ok(None);
        }
        file.set_permissions(Permissions::from_mode(READ_AGAIN))?;
        Ok(Some(file))
    }
}

/// An extent that names an object's own segment.
fn own_extent(name: &[u8; 16], segment: u64, sums: [u32; 8]) -> Extent {
    Extent { name: *name, unit: OWN_UNIT, first: 0, length: 1, segment, page: 0, sums }
}

/// Tells whether a file is the one that was right, and was not written to since: by its inode, its
/// last change, and the run of the kernel, without whose end nothing that was written is lost.
/// `None` if the kernel does not tell its run.
fn seal(file: &Metadata) -> Option<[u32; 8]> {
    static RUN: LazyLock<Option<String>> =
        LazyLock::new(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok());
    let mut hash = Sha256::new().chain_update((*RUN).as_ref()?);
    for number in [file.dev(), file.ino(), file.len()] {
        hash = hash.chain_update(number.to_le_bytes());
    }
    for number in [file.mtime(), file.mtime_nsec()] {
        hash = hash.chain_update(number.to_le_bytes());
    }
    let hash: [u8; 32] = hash.finalize().into();
    let (numbers, _) = hash.as_chunks();
    Some(std::array::from_fn(|at| u32::from_le_bytes(numbers[at])))
}

impl OwnSegment {
    /// Writes bytes of the object, from `at` on, to their place.
    pub(super) fn write(
        &mut self,
        folder: &Folder,
        at: u64,
        bytes: &[u8],
        gave_up: impl FnMut(u64),
    ) -> std::io::Result<()> {
        let length = bytes.len() as u64;
        if self.room < length {
            let room = folder.segment_bytes.max(length);
            folder.alone(|| folder.make_room(room, gave_up))?;
            self.room = room;
        }
        self.room -= length;
        // A stream writes all of such a part, its units in any order: without this, they would lie
        // on the disk in that order. Space is taken even if this fails.
        let steps = at / STEP_BYTES..(at + length).div_ceil(STEP_BYTES);
        for step in steps.filter(|_| length >= UNIT_BYTES) {
            if self.taken.insert(step) {
                let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let [from, step] = [step * STEP_BYTES, STEP_BYTES].map(u64::cast_signed);
                let _ = fallocate(&self.file, flags, from, step);
            }
        }
        // Direct I/O is for pages: with a part of one, the file would be longer than the object.
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(PAGE);
        let whole = if is_aligned { bytes.len() / PAGE * PAGE } else { 0 };
        let (pages, rest) = bytes.split_at(whole);
        let path = folder.path_of(self.number);
        let mut written = self.file.write_all_at(pages, at);
        if written.is_ok() && !rest.is_empty() {
            let file = open(OpenOptions::new().write(true), &path)?;
            written = file.write_all_at(rest, at + pages.len() as u64);
        }
        written.map_err(|error| of_file(&path, &error))
    }

    /// Describes an extent of which the bytes were written.
    pub(super) fn describe(&self, extent: &mut Extent, bytes: &[u8]) -> std::io::Result<()> {
        let page = extent.object_range().start / PAGE_BYTES;
        extent.segment = self.number;
        extent.page = u32::try_from(page).map_err(|_| ErrorKind::FileTooLarge)?;
        extent.sum_up(bytes);
        Ok(())
    }
}

/// Which blocks of own segments this process knows to be right.
#[derive(Debug)]
pub(super) struct Proofs {
    of: Mutex<LruCache<[u8; 16], Proof>>,
    /// Objects to be proved; `None` while nobody does so.
    queue: Mutex<Option<VecDeque<VersionName>>>,
}

#[derive(Debug)]
struct Proof {
    segment: u64,
    /// A bit for each block of a unit; empty when none is left.
    blocks: Vec<u8>,
    left: u64,
    uses: u32,
}

impl Proofs {
    pub(super) fn new() -> Self {
        Self { of: Mutex::new(LruCache::new(PROOFS)), queue: Mutex::new(None) }
    }

    /// Begins to prove a segment, unless that has begun.
    pub(super) fn begin(&self, version: &VersionName, segment: u64) {
        let mut of = self.of.lock();
        if of.get(&version.name).is_none_or(|proof| proof.segment != segment) {
            let units = usize::try_from(version.size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(0);
            let left = version.size_bytes.div_ceil(BLOCK_BYTES);
            of.put(version.name, Proof { segment, blocks: vec![0; units], left, uses: 0 });
        }
    }

    /// The whole blocks in `range` of an extent are right. True if that makes the segment whole.
    fn add(&self, extent: &Extent, range: &Range<u64>) -> bool {
        if !extent.is_in_place() {
            return false;
        }
        let mut of = self.of.lock();
        let Some(proof) = of.get_mut(&extent.name) else { return false };
        if proof.segment != extent.segment {
            return false;
        }
        if let Some(bits) = proof.blocks.get_mut(extent.unit as usize) {
            let new = bits_of(extent.unit, &extent.whole_blocks(range)) & !*bits;
            *bits |= new;
            proof.left -= u64::from(new.count_ones());
            if proof.left == 0 {
                proof.blocks = Vec::new();
                return true;
            }
        }
        false
    }

    /// All of a segment is right.
    fn trust(&self, version: &VersionName) {
        if let Some(proof) = self.of.lock().get_mut(&version.name) {
            (proof.blocks, proof.left) = (Vec::new(), 0);
        }
    }

    /// Some of it is wrong.
    pub(super) fn withdraw(&self, name: &[u8; 16]) {
        self.of.lock().pop(name);
    }

    /// All of this segment is right.
    fn is_whole(&self, version: &VersionName, segment: u64) -> bool {
        let proof = self.of.lock().get(&version.name).map(|proof| (proof.segment, proof.left));
        proof == Some((segment, 0))
    }

    /// Programs have used the object; true if it is worth reading what they have not.
    fn was_used(&self, version: &VersionName) -> bool {
        let mut of = self.of.lock();
        let Some(proof) = of.get_mut(&version.name) else { return false };
        proof.uses += 1;
        proof.left > 0 && proof.uses >= USES
    }

    /// The number of the segment and the blocks of it that are to be proved.
    fn left(&self, version: &VersionName) -> Option<(u64, Vec<u8>)> {
        let mut of = self.of.lock();
        let proof = of.get(&version.name).filter(|proof| proof.left > 0)?;
        Some((proof.segment, proof.blocks.clone()))
    }

    /// True if nobody works on the queue: then the caller must.
    pub(super) fn enqueue(&self, version: VersionName) -> bool {
        let mut queue = self.queue.lock();
        let begins = queue.is_none();
        let queue = queue.get_or_insert_default();
        if !queue.contains(&version) {
            queue.push_back(version);
        }
        begins
    }

    fn next(&self) -> Option<VersionName> {
        let mut queue = self.queue.lock();
        let next = queue.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            *queue = None;
        }
        next
    }
}

/// The blocks of a range in their unit.
fn bits_of(unit: u32, range: &Range<u64>) -> u8 {
    let start = u64::from(unit) * UNIT_BYTES;
    let (first, end) =
        ((range.start - start) / BLOCK_BYTES, (range.end - start).div_ceil(BLOCK_BYTES));
    (first..end).fold(0, |bits, block| bits | 1 << block)
}

impl DiskState {
    /// An object of this size may have a segment of its own.
    pub(super) fn may_be_whole(&self, size_bytes: u64) -> bool {
        self.folder().is_some_and(|folder| is_large(size_bytes, folder.limits.size_bytes))
    }

    /// The file of a whole object that was proved.
    pub(super) fn whole_file(&self, version: &VersionName) -> Option<File> {
        let (folder, asked) = (self.folder()?, Instant::now());
        let file = folder.own(version).and_then(|named| {
            let Some(Extent { segment: number, sums, .. }) = named else { return Ok(None) };
            folder.proofs.begin(version, number);
            let is_whole = folder.proofs.is_whole(version, number);
            if !is_whole && sums == NO_SEAL {
                return Ok(None);
            }
            let file = folder.hold(number, |there| {
                there.len() == version.size_bytes && (is_whole || seal(there) == Some(sums))
            })?;
            if file.is_some() {
                folder.proofs.trust(version);
            }
            Ok(file)
        });
        file.inspect_err(|error| self.failed_to_read(asked, error)).ok().flatten()
    }

    /// True if the caller must prove what waits for it.
    pub(super) fn was_used(&self, version: &VersionName) -> bool {
        self.folder().is_some_and(|folder| {
            folder.proofs.was_used(version) && folder.proofs.enqueue(*version)
        })
    }

    /// Proves what waits for it, one object after the other.
    pub(super) fn prove(&self, buffers: &Arc<Buffers>) {
        let Some(folder) = self.folder() else { return };
        while let Some(version) = folder.proofs.next() {
            let asked = Instant::now();
            if let Err(error) = self.prove_one(&folder, &version, buffers) {
                self.failed_to_read(asked, &error);
            }
        }
    }

    /// Reads what is not proved, unless some of it is missing.
    fn prove_one(
        &self,
        folder: &Folder,
        version: &VersionName,
        buffers: &Arc<Buffers>,
    ) -> std::io::Result<()> {
        let Some((segment, mut right)) = folder.proofs.left(version) else { return Ok(()) };
        let units = u32::try_from(right.len()).map_err(|_| Error::from(ErrorKind::FileTooLarge))?;
        folder.index.has_grown();
        let mut extents = folder.index.find(version, 0..units)?;
        extents.retain(|extent| extent.segment == segment && extent.is_in_place());
        let mut unread = Vec::new();
        for extent in extents {
            let bits = bits_of(extent.unit, &extent.object_range());
            let known = &mut right[extent.unit as usize];
            if bits & !*known != 0 {
                *known |= bits;
                unread.push(extent);
            }
        }
        let blocks: u64 = right.iter().map(|bits| u64::from(bits.count_ones())).sum();
        if blocks < version.size_bytes.div_ceil(BLOCK_BYTES) {
            return Ok(());
        }
        for extent in unread {
            let Range { start, end } = extent.object_range();
            let piece = Piece { start, end, extent: Some(extent) };
            let buffer = loop {
                match buffers.try_take() {
                    Some(buffer) => break buffer,
                    None => std::thread::park_timeout(FOR_A_BUFFER),
                }
            };
            if self.read(&piece, buffer).is_none() {
                return Ok(());
            }
        }
        Ok(())
    }
}
