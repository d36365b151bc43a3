//! What lies on the disk, as pure data: names, extents with their checksums, and which of them
//! answer a range.
//!
//! An object is cut into *units* of 1 MiB, each of up to eight blocks. An *extent* is a run of
//! blocks of one unit that lies in one place. It is found by what it holds: store, bucket, key,
//! `ETag`, size and unit. So nothing here is ever stale.

use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};
use sha2::{Digest as _, Sha256};

use crate::base::layout::BLOCK_BYTES;
use crate::store::ObjectVersion;

/// The unit of direct I/O: what lies on the disk begins at multiples of it.
pub(super) const PAGE: usize = 4096;
pub(super) const PAGE_BYTES: u64 = PAGE as u64;
pub(super) const UNIT: usize = 1 << 20;
pub(super) const UNIT_BYTES: u64 = UNIT as u64;
const UNIT_BLOCKS: usize = 8;
const _: () = assert!(UNIT_BYTES == UNIT_BLOCKS as u64 * BLOCK_BYTES);
/// An extent in the index.
pub(super) const EXTENT_BYTES: usize = 80;
/// Under this unit, which no object has, the index names an object's own segment.
pub(super) const OWN_UNIT: u32 = u32::MAX - 1;
/// In place of the checksums of [`OWN_UNIT`]: the segment was not seen whole.
pub(super) const NO_SEAL: [u32; UNIT_BLOCKS] = [0; UNIT_BLOCKS];
/// The number of a segment that is none: of bytes that were not worth a write. The rest of it is
/// the next number at that time.
pub(super) const PASSED_OVER: u64 = 1 << 63;
/// An extent of zeros would be valid without it.
const MAGIC: u8 = 0xd1;

/// A store's bucket: object versions of the same name in different buckets are different.
#[derive(Clone, Debug)]
pub struct Origin(Sha256);

/// The name of one object version: 128 bits of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VersionName {
    pub(super) name: [u8; 16],
    pub(super) size_bytes: u64,
}

impl Origin {
    pub fn new(endpoint: &str, bucket: &str) -> Self {
        Self(delimited(Sha256::new(), &[endpoint, bucket]))
    }

    /// `None` if the version has no `ETag`: then it cannot be told from others.
    pub(super) fn name(&self, version: &ObjectVersion) -> Option<VersionName> {
        if version.etag.is_empty() {
            return None;
        }
        let hash = delimited(self.0.clone(), &[&version.key, &version.etag])
            .chain_update(version.size_bytes.to_le_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let name = hash.first_chunk().expect("16 of 32 bytes");
        Some(VersionName { name: *name, size_bytes: version.size_bytes })
    }
}

/// A number by which versions are scattered.
pub(super) fn place(name: &[u8; 16]) -> u64 {
    u64::from_le_bytes(*name.first_chunk().expect("8 of 16 bytes"))
}

/// With the length before each text, so that no two lists of texts give the same bytes.
fn delimited(mut hash: Sha256, texts: &[&str]) -> Sha256 {
    for text in texts {
        hash = hash.chain_update((text.len() as u64).to_le_bytes()).chain_update(text);
    }
    hash
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) name: [u8; 16],
    /// Index of the unit in the object.
    pub(super) unit: u32,
    /// Index of its first block in the unit.
    pub(super) first: u8,
    pub(super) length: u32,
    pub(super) segment: u64,
    /// Where it begins in the segment.
    pub(super) page: u32,
    /// Of each block: CRC-32C of its identity and its bytes.
    pub(super) sums: [u32; UNIT_BLOCKS],
}

impl Extent {
    /// Where its bytes are in the object.
    pub(super) fn object_range(&self) -> Range<u64> {
        let start = u64::from(self.unit) * UNIT_BYTES + u64::from(self.first) * BLOCK_BYTES;
        start..start + u64::from(self.length)
    }

    /// Its blocks that hold `bytes` of the object: where they are in the object.
    pub(super) fn whole_blocks(&self, bytes: &Range<u64>) -> Range<u64> {
        let start = bytes.start / BLOCK_BYTES * BLOCK_BYTES;
        start..bytes.end.next_multiple_of(BLOCK_BYTES).min(self.object_range().end)
    }

    /// What it holds besides these of its whole blocks.
    pub(super) fn without(&self, range: &Range<u64>) -> impl Iterator<Item = Self> + use<> {
        let extent = *self;
        let Range { start, end } = self.object_range();
        let parts = [start..range.start, range.end..end].into_iter();
        parts.filter(|part| !part.is_empty()).filter_map(move |part| {
            let skipped = (part.start - start) / BLOCK_BYTES;
            let pages = u32::try_from(skipped * (BLOCK_BYTES / PAGE_BYTES)).ok()?;
            let length = u32::try_from(part.end - part.start).ok()?;
            let (first, page) = (extent.first + u8::try_from(skipped).ok()?, extent.page + pages);
            let mut sums = [0; 8];
            let kept = extent.sums.iter().skip(usize::try_from(skipped).ok()?);
            sums.iter_mut().zip(kept).for_each(|(into, sum)| *into = *sum);
            Some(Self { first, length, page, sums, ..extent })
        })
    }

    /// It lies at its place in the object.
    pub(super) fn is_in_place(&self) -> bool {
        u64::from(self.page) * PAGE_BYTES == self.object_range().start
    }

    /// Both as one, if what they hold of the unit touches or overlaps, in one place on the disk: so
    /// a unit that was written in pieces is one extent in the end.
    pub(super) fn joined(&self, other: &Self) -> Option<Self> {
        let of = |extent: &Self| {
            let at = u64::from(extent.page) * PAGE_BYTES;
            let place = at.wrapping_sub(extent.object_range().start);
            (extent.name, extent.unit, extent.segment, place)
        };
        let [ours, theirs] = [self, other].map(Self::object_range);
        if of(self) != of(other) || ours.start > theirs.end || theirs.start > ours.end {
            return None;
        }
        let left = if self.first <= other.first { self } else { other };
        let length = ours.end.max(theirs.end) - left.object_range().start;
        let mut joined = Self { length: u32::try_from(length).ok()?, ..*left };
        for part in [other, self] {
            let at = usize::from(part.first - left.first);
            let sums = part.sums.iter().take((part.length as usize).div_ceil(block_len()));
            joined.sums[at..].iter_mut().zip(sums).for_each(|(into, sum)| *into = *sum);
        }
        Some(joined)
    }

    /// Takes the checksums of its bytes.
    pub(super) fn sum_up(&mut self, bytes: &[u8]) {
        let first = self.first;
        for (block, bytes) in (first..).zip(bytes.chunks(block_len())) {
            self.sums[usize::from(block - first)] = self.sum(block, bytes);
        }
    }

    /// `bytes` are these of the object, and whole blocks.
    pub(super) fn is_right(&self, range: &Range<u64>, bytes: &[u8]) -> bool {
        let skipped = (range.start - self.object_range().start) / BLOCK_BYTES;
        let blocks = (0_u8..8).skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        let right = |(block, bytes): (u8, &[u8])| {
            self.sums[usize::from(block)] == self.sum(self.first + block, bytes)
        };
        blocks.zip(bytes.chunks(block_len())).all(right)
    }

    fn sum(&self, block: u8, bytes: &[u8]) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.name);
        digest.update(&self.unit.to_le_bytes());
        digest.update(&[block]);
        digest.update(bytes);
        low(digest.finalize())
    }

    pub(super) fn encode(&self) -> [u8; EXTENT_BYTES] {
        let mut bytes = [0; EXTENT_BYTES];
        bytes[..16].copy_from_slice(&self.name);
        bytes[16..20].copy_from_slice(&self.unit.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.page.to_le_bytes());
        bytes[36] = self.first;
        bytes[37] = MAGIC;
        for (sum, into) in self.sums.iter().zip(bytes[40..72].chunks_mut(4)) {
            into.copy_from_slice(&sum.to_le_bytes());
        }
        let sum = low(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..72]));
        bytes[72..76].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` for anything but what [`Self::encode`] gives.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; EXTENT_BYTES] = bytes.try_into().ok()?;
        let number =
            |at: usize| bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four));
        if bytes[37] != MAGIC {
            return None;
        }
        if number(72) != low(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..72])) {
            return None;
        }
        let extent = Self {
            name: *bytes.first_chunk()?,
            unit: number(16),
            first: bytes[36],
            length: number(20),
            segment: u64::from_le_bytes(*bytes[24..].first_chunk()?),
            page: number(32),
            sums: std::array::from_fn(|at| number(40 + 4 * at)),
        };
        let end = u64::from(extent.first) * BLOCK_BYTES + u64::from(extent.length);
        (extent.length > 0 && end <= UNIT_BYTES).then_some(extent)
    }
}

fn low(sum: u64) -> u32 {
    u32::try_from(sum).expect("a CRC of 32 bits")
}

fn block_len() -> usize {
    usize::try_from(BLOCK_BYTES).expect("a block fits into memory")
}

/// The extents that `bytes` from `start` of an object fill: for each its unit, its first block, and
/// its place in `bytes`. Only whole blocks are kept, and the object's last one.
pub(super) fn cut(start: u64, len: usize, size_bytes: u64) -> Vec<(u32, u8, Range<usize>)> {
    let end = start + len as u64;
    let mut at = start.next_multiple_of(BLOCK_BYTES);
    let whole = if end == size_bytes { end } else { end / BLOCK_BYTES * BLOCK_BYTES };
    let mut extents = Vec::new();
    while at < whole {
        let until = (at / UNIT_BYTES + 1).saturating_mul(UNIT_BYTES).min(whole);
        let places = usize::try_from(at - start).ok().zip(usize::try_from(until - start).ok());
        if let (Ok(unit), Some((from, to))) = (u32::try_from(at / UNIT_BYTES), places) {
            extents.push((unit, (at % UNIT_BYTES / BLOCK_BYTES).to_le_bytes()[0], from..to));
        }
        at = until;
    }
    extents
}

/// A part of a range: to be read from an extent, or from the store if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) extent: Option<Extent>,
}

impl Piece {
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// Cuts a range of an object into pieces by the extents that there are of it. Bytes on the disk
/// between two missing ones are fetched with them, if there are so few that another request costs
/// more.
pub(super) fn plan(range: &Range<u64>, extents: &[Extent]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let covers = |extent: &&Extent| extent.object_range().contains(&at);
        let longest = extents.iter().filter(covers).max_by_key(|extent| extent.object_range().end);
        if let Some(extent) = longest {
            let end = extent.object_range().end.min(range.end);
            pieces.push(Piece { start: at, end, extent: Some(*extent) });
            at = end;
            continue;
        }
        let next = extents.iter().map(|extent| extent.object_range().start);
        let end =
            next.filter(|&start| start > at).min().map_or(range.end, |start| start.min(range.end));
        match pieces.iter().rposition(|piece| piece.extent.is_none()) {
            Some(last) if at - pieces[last].end < UNIT_BYTES => {
                pieces[last].end = end;
                pieces.truncate(last + 1);
            }
            _ => pieces.push(Piece { start: at, end, extent: None }),
        }
        at = end;
    }
    pieces
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::disk) fn extent(unit: u32, first: u8, blocks: u32) -> Extent {
        let length = blocks * u32::try_from(BLOCK_BYTES).unwrap();
        let (name, sums) = ([7; 16], [0; 8]);
        Extent { name, unit, first, length, segment: 9, page: 3, sums }
    }

    #[test]
    fn names_differ_by_everything_that_makes_a_version() {
        let origin = Origin::new("http://a", "bucket");
        let named = |origin: &Origin, key: &str, etag: &str, size_bytes| {
            let (key, etag) = (key.to_owned(), etag.to_owned());
            origin.name(&ObjectVersion { key, etag, size_bytes }).map(|name| name.name)
        };
        let first = named(&origin, "key", "e", 1);
        assert_eq!(first, named(&Origin::new("http://a", "bucket"), "key", "e", 1));
        for other in [
            named(&Origin::new("http://b", "bucket"), "key", "e", 1),
            named(&Origin::new("http://a", "bucke"), "tkey", "e", 1),
            named(&Origin::new("http://a", "other"), "key", "e", 1),
            named(&origin, "keye", "", 1),
            named(&origin, "ke", "ye", 1),
            named(&origin, "key", "f", 1),
            named(&origin, "key", "e", 2),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(named(&origin, "key", "", 1), None);
    }

    #[test]
    fn an_extent_is_read_as_it_was_written_and_no_flipped_bit_passes() {
        let mut extent = extent(5, 2, 3);
        extent.sum_up(&vec![1; 3 * block_len()]);
        let bytes = extent.encode();
        assert_eq!(Extent::decode(&bytes), Some(extent));
        assert_eq!(Extent::decode(&[0; EXTENT_BYTES]), None);
        for bit in 0..8 * 76 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Extent::decode(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_block_is_right_only_where_it_belongs() {
        let mut extent = extent(5, 2, 3);
        let mut bytes: Vec<u8> =
            (0..3 * block_len()).map(|at| (at % 251).to_le_bytes()[0]).collect();
        extent.sum_up(&bytes);
        let whole = extent.object_range();
        assert!(extent.is_right(&whole, &bytes));
        let second = whole.start + BLOCK_BYTES..whole.start + 2 * BLOCK_BYTES;
        assert_eq!(extent.whole_blocks(&(second.start + 5..second.start + 6)), second);
        assert!(extent.is_right(&second, &bytes[block_len()..2 * block_len()]));
        assert!(!extent.is_right(&second, &bytes[..block_len()]), "another block");
        let other = Extent { unit: 6, ..extent };
        assert!(!other.is_right(&other.object_range(), &bytes), "another unit");
        assert!(!Extent { name: [8; 16], ..extent }.is_right(&whole, &bytes), "another object");
        bytes[2 * block_len() + 17] ^= 4;
        assert!(!extent.is_right(&whole, &bytes));
    }

    #[test]
    fn blocks_that_leave_an_extent_leave_their_neighbours_right() {
        let mut extent = extent(5, 2, 4);
        let bytes: Vec<u8> = (0..4 * block_len()).map(|at| (at % 251).to_le_bytes()[0]).collect();
        extent.sum_up(&bytes);
        let Range { start, end } = extent.object_range();
        let second = start + BLOCK_BYTES..start + 2 * BLOCK_BYTES;
        let rest: Vec<_> = extent.without(&second).collect();
        let ranges = [start..second.start, second.end..end];
        assert_eq!(rest.iter().map(Extent::object_range).collect::<Vec<_>>(), ranges);
        for (part, range) in rest.iter().zip(ranges) {
            let [from, to] = [range.start, range.end].map(|at| at - start);
            let held = &bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            assert!(part.is_right(&range, held));
            let page = u64::from(part.page - extent.page);
            assert_eq!(page * PAGE_BYTES, from);
        }
        assert_eq!(extent.without(&(start..end)).count(), 0);
    }

    #[test]
    fn only_whole_blocks_are_kept_and_the_last_one() {
        let kib = |kib: u64| kib << 10;
        let cut = |start, len: u64, size| -> Vec<(u32, u8, u64)> {
            let cut = cut(start, usize::try_from(len).unwrap(), size).into_iter();
            cut.map(|(unit, first, range)| (unit, first, range.len() as u64)).collect()
        };
        assert_eq!(cut(0, kib(5), kib(5)), [(0, 0, kib(5))]);
        assert_eq!(cut(0, kib(5), kib(6)), []);
        assert_eq!(cut(1, kib(300), kib(5000)), [(0, 1, kib(128))]);
        assert_eq!(cut(kib(896), kib(256), kib(5000)), [(0, 7, kib(128)), (1, 0, kib(128))]);
        assert_eq!(cut(kib(2048), kib(1100), kib(3148)), [(2, 0, kib(1024)), (3, 0, kib(76))]);
    }

    #[test]
    fn a_plan_tiles_its_range_and_uses_every_long_extent() {
        let extents = [extent(0, 0, 8), extent(1, 2, 2), extent(2, 0, 8), extent(2, 0, 1)];
        for start in (0..40).map(|tenth| tenth * 100_000) {
            for end in (1..40).map(|tenth| tenth * 100_000).filter(|&end| end > start) {
                let pieces = plan(&(start..end), &extents);
                let mut at = start;
                for piece in &pieces {
                    assert_eq!(piece.start, at);
                    if let Some(extent) = piece.extent {
                        let inside = extent.object_range();
                        assert!(inside.start <= piece.start && piece.end <= inside.end);
                    }
                    at = piece.end;
                }
                assert_eq!(at, end);
                let missing = pieces.iter().filter(|piece| piece.extent.is_none()).count();
                assert!(missing <= 2, "{pieces:?}");
            }
        }
        let mib = 1 << 20;
        let missing = |range, extents: &[Extent]| -> Vec<Range<u64>> {
            let pieces = plan(&range, extents).into_iter();
            pieces.filter(|piece| piece.extent.is_none()).map(|piece| piece.range()).collect()
        };
        assert_eq!(missing(0..4 * mib, &extents), [mib..2 * mib, 3 * mib..4 * mib]);
        assert_eq!(missing(0..mib, &extents), []);
        assert_eq!(missing(0..mib, &[]), vec![0..mib]);
    }
}
