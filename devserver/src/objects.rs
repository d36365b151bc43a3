//! The objects of a bucket, in key order. Pure: no I/O, no locks, no clock.
//!
//! Objects are in a map; a [`Pattern`] stands for any number of keys without a map entry each. A
//! [`Cursor`] walks both as one sequence and can jump.

use std::collections::btree_map;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::iter::Peekable;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};

use crate::content;
use crate::pattern::Pattern;

/// 2024-01-01T00:00:00Z. The n-th change of a bucket happened n seconds later, so that times are
/// the same in every run and differ between versions.
const FIRST_CHANGE: Duration = Duration::from_hours(473_352);
/// The parts in which synthetic objects seem to have been uploaded.
const PART_BYTES: u64 = 8 << 20;
/// An MD5 sum of more takes a server of a benchmark longer than all else of its answer, and S3 has
/// others too, of objects that it encrypts by keys of its customers.
const MOST_MD5_BYTES: usize = 64 << 10;

/// A range of keys that exist without being stored: `prefix`, a number from 0 to `count` − 1 with
/// leading zeros, `suffix`. Every one is a synthetic object of `size` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Prefix of every key.
    pub prefix: String,
    /// Number of keys. All numbers have as many digits as `count` − 1.
    pub count: u64,
    /// The bytes of each object.
    pub size: u64,
    /// Suffix of every key.
    pub suffix: String,
}

impl Family {
    /// The key number `index`.
    #[must_use]
    pub fn key(&self, index: u64) -> String {
        format!("{}{index:0width$}{}", self.prefix, self.suffix, width = self.digits())
    }

    fn digits(&self) -> usize {
        self.count.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// In the pieces in which it came.
    Stored(Vec<Bytes>),
    /// The first bytes are `head`, which may be empty; the others are computed.
    Synthetic { seed: u64, size: u64, head: Bytes },
}

#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) content: Content,
    /// 32 hex digits, without the quotes. Where they are no MD5 sum of its bytes, `-` and a number
    /// of parts follow.
    pub(crate) etag: String,
    pub(crate) last_modified: SystemTime,
    pub(crate) storage_class: String,
    /// A copy of it can be read, although it is in an archive class.
    pub(crate) restored: bool,
    pub(crate) content_type: String,
    /// Values of the headers `x-amz-meta-…`, by name.
    pub(crate) metadata: HashMap<String, String>,
    /// Number of earlier writes of the key.
    version: u64,
}

impl Object {
    pub(crate) fn size(&self) -> u64 {
        match &self.content {
            Content::Stored(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Content::Synthetic { size, .. } => *size,
        }
    }

    /// It must be restored before it can be read.
    pub(crate) fn is_archived(&self) -> bool {
        matches!(self.storage_class.as_str(), "GLACIER" | "DEEP_ARCHIVE") && !self.restored
    }

    /// CRC-64/NVME in base64, as S3 has it of what was uploaded without another checksum. Synthetic
    /// bytes have none, because they were not uploaded.
    pub(crate) fn checksum(&self) -> Option<String> {
        let Content::Stored(pieces) = &self.content else { return None };
        Some(base64_simd::STANDARD.encode_to_string(sum(pieces).to_be_bytes()))
    }

    fn new(content: Content, etag: String, last_modified: SystemTime, version: u64) -> Self {
        Self {
            content,
            etag,
            last_modified,
            storage_class: "STANDARD".into(),
            restored: false,
            content_type: "binary/octet-stream".into(),
            metadata: HashMap::new(),
            version,
        }
    }

    fn synthetic(key: &str, size: u64, last_modified: SystemTime, version: u64) -> Self {
        let seed = content::seed(key, version);
        let other = content::seed(key, !size ^ version.rotate_left(32));
        let parts = size.div_ceil(PART_BYTES).max(1);
        let etag = format!("{seed:016x}{other:016x}-{parts}");
        Self::new(
            Content::Synthetic { seed, size, head: Bytes::new() },
            etag,
            last_modified,
            version,
        )
    }
}

/// Bytes that are to be an object, and its `ETag`: it takes time, which nobody else is to wait for.
pub(crate) struct Upload {
    pieces: Vec<Bytes>,
    etag: String,
}

impl From<Bytes> for Upload {
    fn from(bytes: Bytes) -> Self {
        vec![bytes].into()
    }
}

impl From<Vec<Bytes>> for Upload {
    fn from(mut pieces: Vec<Bytes>) -> Self {
        let mut etag = String::new();
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        let written = if length > MOST_MD5_BYTES {
            write!(etag, "{:016x}{length:016x}-1", sum(&pieces))
        } else {
            // A small piece may hold a large buffer.
            let bytes = pieces.concat();
            let written =
                Md5::digest(&bytes).iter().try_for_each(|byte| write!(etag, "{byte:02x}"));
            pieces = vec![bytes.into()];
            written
        };
        written.expect("writing to a string does not fail");
        Self { pieces, etag }
    }
}

fn sum(pieces: &[Bytes]) -> u64 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}

/// The beginning of a range of these pieces, as far as one piece goes; empty if they have none.
pub(crate) fn slice(pieces: &[Bytes], range: Range<u64>) -> Bytes {
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.len() as u64;
        if range.start < end {
            let index = |offset: u64| usize::try_from(offset - start).expect("it is in memory");
            return piece.slice(index(range.start)..index(range.end.min(end)));
        }
        start = end;
    }
    Bytes::new()
}

/// The objects of one bucket.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// `None` hides a key of a pattern: it was deleted.
    map: BTreeMap<Vec<u8>, Option<Arc<Object>>>,
    /// With the time at which each was put. The first that has a key supplies it.
    patterns: Vec<(Pattern, SystemTime)>,
    /// Number of changes of the bucket.
    changes: u32,
}

impl Objects {
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        if let Some(slot) = self.map.get(key.as_bytes()) {
            return slot.clone();
        }
        self.member(key)
    }

    pub(crate) fn put(&mut self, key: &str, Upload { pieces, etag }: Upload) -> Arc<Object> {
        let version = self.next_version(key);
        let object = Object::new(Content::Stored(pieces), etag, self.tick(), version);
        self.insert(key, object)
    }

    pub(crate) fn put_synthetic(&mut self, key: &str, size: u64) -> Arc<Object> {
        let version = self.next_version(key);
        let object = Object::synthetic(key, size, self.tick(), version);
        self.insert(key, object)
    }

    pub(crate) fn put_family(&mut self, keys: Pattern) {
        let now = self.tick();
        self.patterns.push((keys, now));
    }

    /// True if there was such an object.
    pub(crate) fn delete(&mut self, key: &str) -> bool {
        let existed = self.get(key).is_some();
        if existed {
            self.tick();
            if self.member(key).is_some() {
                self.map.insert(key.into(), None);
            } else {
                self.map.remove(key.as_bytes());
            }
        }
        existed
    }

    /// Changes an object's attributes but not its bytes. True if there was such an object.
    pub(crate) fn amend(&mut self, key: &str, change: impl FnOnce(&mut Object)) -> bool {
        let Some(mut object) = self.get(key) else { return false };
        change(Arc::make_mut(&mut object));
        self.map.insert(key.into(), Some(object));
        true
    }

    /// The objects from `from` on.
    pub(crate) fn cursor(&self, from: Bound<&[u8]>) -> Cursor<'_> {
        Cursor { objects: self, stored: self.stored(from), members: self.members(from) }
    }

    fn stored(&self, from: Bound<&[u8]>) -> Peekable<Stored<'_>> {
        self.map.range::<[u8], _>((from, Bound::Unbounded)).peekable()
    }

    fn members(&self, from: Bound<&[u8]>) -> Vec<Member<'_>> {
        let members = self.patterns.iter().filter_map(|(pattern, put_at)| {
            let index = pattern.first_at(from);
            let is_there = index < pattern.count();
            is_there.then(|| Member { pattern, put_at: *put_at, index, key: pattern.key(index) })
        });
        members.collect()
    }

    fn insert(&mut self, key: &str, object: Object) -> Arc<Object> {
        assert!((1..=1024).contains(&key.len()), "S3 keys have 1 to 1024 bytes");
        let object = Arc::new(object);
        self.map.insert(key.into(), Some(object.clone()));
        object
    }

    fn member(&self, key: &str) -> Option<Arc<Object>> {
        let (pattern, put_at) =
            self.patterns.iter().find(|(pattern, _)| pattern.has(key.as_bytes()))?;
        Some(Arc::new(Object::synthetic(key, pattern.size, *put_at, 0)))
    }

    fn next_version(&self, key: &str) -> u64 {
        self.get(key).map_or(0, |object| object.version + 1)
    }

    fn tick(&mut self) -> SystemTime {
        let now = SystemTime::UNIX_EPOCH + FIRST_CHANGE + Duration::from_secs(1) * self.changes;
        self.changes += 1;
        now
    }
}

type Stored<'a> = btree_map::Range<'a, Vec<u8>, Option<Arc<Object>>>;

/// A place in the key order of a bucket.
pub(crate) struct Cursor<'a> {
    objects: &'a Objects,
    stored: Peekable<Stored<'a>>,
    /// The next number and key of each pattern that is not yet at its end.
    members: Vec<Member<'a>>,
}

struct Member<'a> {
    pattern: &'a Pattern,
    put_at: SystemTime,
    index: u64,
    key: String,
}

impl Cursor<'_> {
    /// Goes to the first key inside the bound, in time logarithmic in the number of keys.
    pub(crate) fn seek(&mut self, from: Bound<&[u8]>) {
        self.stored = self.objects.stored(from);
        self.members = self.objects.members(from);
    }
}

impl Iterator for Cursor<'_> {
    type Item = (Vec<u8>, Arc<Object>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let stored = self.stored.peek().map(|(key, _)| key.as_slice());
            let member = self.members.iter().map(|member| member.key.as_bytes()).min();
            let key = [stored, member].into_iter().flatten().min()?.to_vec();

            let mut found = None;
            for member in self.members.iter_mut().filter(|m| m.key.as_bytes() == key) {
                found.get_or_insert_with(|| {
                    let Member { pattern, put_at, key, .. } = &*member;
                    Some(Arc::new(Object::synthetic(key, pattern.size, *put_at, 0)))
                });
                member.index += 1;
                if member.index < member.pattern.count() {
                    member.key = member.pattern.key(member.index);
                }
            }
            self.members.retain(|member| member.index < member.pattern.count());
            if let Some((_, slot)) = self.stored.next_if(|(stored, _)| **stored == key) {
                found = Some(slot.clone());
            }
            if let Some(object) = found.flatten() {
                return Some((key, object));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(objects: &Objects, from: Bound<&[u8]>) -> Vec<String> {
        objects.cursor(from).map(|(key, _)| String::from_utf8(key).unwrap()).collect()
    }

    fn family(prefix: &str, count: u64, suffix: &str) -> Pattern {
        Family { prefix: prefix.into(), count, size: 3, suffix: suffix.into() }.into()
    }

    #[test]
    fn a_family_is_walked_in_key_order_with_the_stored_keys() {
        let mut objects = Objects::default();
        objects.put_family(family("f", 11, ""));
        objects.put_family(family("f0", 2, ""));
        objects.put("f", Bytes::new().into());
        objects.put("f05x", Bytes::new().into());
        objects.delete("f03");
        assert_eq!(
            keys(&objects, Bound::Unbounded),
            ["f", "f00", "f01", "f02", "f04", "f05", "f05x", "f06", "f07", "f08", "f09", "f10"]
        );
        assert_eq!(keys(&objects, Bound::Included(b"f08")), ["f08", "f09", "f10"]);
        assert_eq!(keys(&objects, Bound::Excluded(b"f08")), ["f09", "f10"]);
        assert!(objects.get("f03").is_none());
        assert!(objects.get("f11").is_none());
        assert_eq!(objects.get("f10").unwrap().size(), 3);
    }

    #[test]
    fn pieces_are_the_object_that_their_bytes_make() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at / 100).to_le_bytes()[0]).collect();
        let whole = Upload::from(Bytes::from(bytes.clone()));
        let pieces: Vec<Bytes> = bytes.chunks(70_000).map(Bytes::copy_from_slice).collect();
        let cut = Upload::from(pieces.clone());
        assert_eq!(cut.etag, whole.etag);
        for start in [0, 1, 69_999, 70_000, 139_999, 140_000, 199_999] {
            let mut at = start;
            while at < 200_000 {
                let piece = slice(&pieces, at as u64..200_000);
                assert!(!piece.is_empty() && piece == bytes[at..at + piece.len()], "{at}");
                at += piece.len();
            }
        }
        assert!(slice(&pieces, 200_000..200_000).is_empty());
        // A piece that was cut from a large buffer is none that is kept.
        let small = Upload::from(vec![pieces[0].slice(..3), pieces[1].slice(..4)]);
        assert_eq!(small.pieces, [[&bytes[..3], &bytes[70_000..70_004]].concat()]);
    }

    #[test]
    fn overwriting_changes_the_etag_unless_the_bytes_are_the_same() {
        let mut objects = Objects::default();
        let first = objects.put_synthetic("a", 9);
        let second = objects.put_synthetic("a", 9);
        assert_ne!(first.etag, second.etag);
        assert!(first.etag.ends_with("-1"), "{}", first.etag);
        assert!(first.last_modified < second.last_modified);
        let hello = || Bytes::from_static(b"hello").into();
        let stored = objects.put("b", hello());
        assert_eq!(stored.etag, "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(objects.put("b", hello()).etag, stored.etag);
        let large = |byte| Bytes::from(vec![byte; MOST_MD5_BYTES + 1]).into();
        let stored = objects.put("c", large(1));
        assert!(stored.etag.len() == 34 && stored.etag.ends_with("-1"), "{}", stored.etag);
        assert_eq!(objects.put("c", large(1)).etag, stored.etag);
        assert_ne!(objects.put("c", large(2)).etag, stored.etag);
    }

    #[test]
    fn a_key_of_a_family_can_be_overwritten_amended_deleted_and_put_again() {
        let mut objects = Objects::default();
        objects.put_family(family("f", 1_000_000_000_000, ".bin"));
        let key = "f123456789012.bin";
        let member = objects.get(key).unwrap();
        assert!(objects.amend(key, |object| object.storage_class = "GLACIER".into()));
        assert!(objects.get(key).unwrap().is_archived());
        assert_eq!(objects.get(key).unwrap().etag, member.etag);
        assert_ne!(objects.put_synthetic(key, 3).etag, member.etag);
        assert!(objects.delete(key));
        assert!(!objects.delete(key));
        assert!(objects.get(key).is_none());
        objects.put(key, Bytes::new().into());
        assert_eq!(objects.get(key).unwrap().size(), 0);
    }
}
