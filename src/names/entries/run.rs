//! A run of a directory's entries, compact: 32 bytes an entry, its name, and its `ETag`, 16 bytes
//! where that is an MD5 in hexadecimal digits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::node::{Ino, Inode};
use crate::names::rules::EntryKey;
use crate::store::{ObjectMeta, ObjectVersion, StoreError};

/// Entries in key order (N10).
#[derive(Clone, Debug, Default)]
pub(crate) struct EntryRun {
    /// Each entry's name, then its `ETag`, in the order of the entries: one allocation for all.
    bytes: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    ino: Ino,
    size_bytes: u64,
    /// Seconds since 1970.
    last_modified: i64,
    bytes_at: u32,
    etag: Etag,
    /// At most 255 (N7).
    name_bytes: u8,
    kind: RecordKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordKind {
    Directory,
    File,
    ArchivedFile,
    UntoldFile,
}

/// The number of bytes behind the name, and whether they are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Etag(u16);

impl Etag {
    /// Marks a text `"…"` whose first 32 characters are hexadecimal digits: they are kept as 16
    /// bytes, the rest as it is, and the quotes not at all.
    const PACKED: u16 = 1 << 15;
    const DIGITS: usize = 32;

    fn push(text: &str, onto: &mut Vec<u8>) -> Result<Self, StoreError> {
        let before = onto.len();
        let (mark, rest) = match Self::pack(text) {
            Some((digits, rest)) => {
                onto.extend_from_slice(&digits.to_be_bytes());
                (Self::PACKED, rest)
            }
            None => (0, text),
        };
        onto.extend_from_slice(rest.as_bytes());
        let bytes = u16::try_from(onto.len() - before).ok().filter(|bytes| *bytes < Self::PACKED);
        let bytes = bytes.ok_or_else(|| StoreError::nonsense("an endless ETag".to_owned()))?;
        Ok(Self(bytes | mark))
    }

    fn pack(text: &str) -> Option<(u128, &str)> {
        let inner = text.strip_prefix('"')?.strip_suffix('"')?;
        let (digits, rest) = inner.split_at_checked(Self::DIGITS)?;
        // Lower-case digits only: they are what [`Self::text`] gives back.
        let is_digit = |digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        let digits = digits.bytes().all(is_digit).then_some(digits)?;
        Some((u128::from_str_radix(digits, 16).ok()?, rest))
    }

    fn bytes(self) -> usize {
        usize::from(self.0 & !Self::PACKED)
    }

    fn text(self, bytes: &[u8]) -> String {
        match bytes.split_first_chunk() {
            Some((digits, rest)) if self.0 & Self::PACKED != 0 => {
                let rest = String::from_utf8_lossy(rest);
                format!("\"{:032x}{rest}\"", u128::from_be_bytes(*digits))
            }
            _ => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    fn is(self, bytes: &[u8], text: &str) -> bool {
        let mut packed = Vec::with_capacity(text.len());
        Self::push(text, &mut packed).is_ok_and(|etag| etag == self && packed == bytes)
    }
}

impl EntryRun {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>() + self.bytes.capacity()
    }

    pub(crate) fn key(&self, index: usize) -> EntryKey<'_> {
        self.record_key(&self.records[index])
    }

    /// A file's size; `None` for a directory, and for an archived or untold file.
    pub(crate) fn file_bytes(&self, index: usize) -> Option<u64> {
        let record = &self.records[index];
        (record.kind == RecordKind::File).then_some(record.size_bytes)
    }

    /// An entry's inode number; 0 until it has one.
    pub(crate) fn ino(&self, index: usize) -> Ino {
        self.records[index].ino
    }

    pub(crate) fn set_ino(&mut self, index: usize, ino: Ino) {
        self.records[index].ino = ino;
    }

    pub(crate) fn inode(&self, index: usize, prefix: &str) -> Inode {
        let record = &self.records[index];
        let (name, etag) = self.texts(record);
        let name = String::from_utf8_lossy(name);
        match record.kind {
            RecordKind::Directory => return Inode::Directory(format!("{prefix}{name}/").into()),
            RecordKind::UntoldFile => return Inode::Untold(format!("{prefix}{name}").into()),
            RecordKind::File | RecordKind::ArchivedFile => {}
        }
        Inode::File(Arc::new(ObjectMeta {
            version: ObjectVersion {
                key: format!("{prefix}{name}"),
                etag: record.etag.text(etag),
                size_bytes: record.size_bytes,
            },
            last_modified: time(record.last_modified),
            archived: record.kind == RecordKind::ArchivedFile,
        }))
    }

    /// The entry is the same as `of`, which has its name.
    pub(crate) fn is(&self, index: usize, of: &Inode) -> bool {
        let record = &self.records[index];
        match (of, record.kind) {
            (Inode::Directory(_), RecordKind::Directory)
            | (Inode::Untold(_), RecordKind::UntoldFile) => true,
            (Inode::File(meta), RecordKind::File | RecordKind::ArchivedFile) => {
                meta.version.size_bytes == record.size_bytes
                    && meta.archived == (record.kind == RecordKind::ArchivedFile)
                    && record.etag.is(self.texts(record).1, &meta.version.etag)
            }
            _ => false,
        }
    }

    /// The entry is the same as one of another run, name included.
    pub(crate) fn is_same(&self, index: usize, other: &Self, other_index: usize) -> bool {
        let (a, b) = (&self.records[index], &other.records[other_index]);
        a.kind == b.kind
            && a.size_bytes == b.size_bytes
            && a.etag == b.etag
            && self.texts(a) == other.texts(b)
    }

    /// Goes on with a digest (FNV-1a) of the entries before: of names, types, sizes and `ETag`s,
    /// which are the same in every mount.
    pub(super) fn digest(&self, before: u64) -> u64 {
        const PRIME: u64 = 0x0100_0000_01b3;
        let mut digest = before;
        let mut take = |bytes: &[u8]| {
            for byte in bytes {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(PRIME);
            }
        };
        for record in &self.records {
            let (name, etag) = self.texts(record);
            // With the lengths, so no two entries read like two others.
            take(&[record.kind as u8, record.name_bytes]);
            take(&record.etag.0.to_le_bytes());
            take(&record.size_bytes.to_le_bytes());
            take(name);
            take(etag);
        }
        digest
    }

    /// The newest time of a file, if there is one.
    pub(super) fn newest(&self) -> Option<SystemTime> {
        let files = self.records.iter().filter(|record| record.kind != RecordKind::Directory);
        files.map(|record| record.last_modified).max().map(time)
    }

    /// The entry and one of another run have the same name, type, number and time.
    pub(crate) fn shows_same(&self, index: usize, other: &Self, other_index: usize) -> bool {
        let (a, b) = (&self.records[index], &other.records[other_index]);
        let is_same = a.ino == b.ino && a.kind == b.kind && a.last_modified == b.last_modified;
        is_same && self.texts(a).0 == other.texts(b).0
    }

    pub(crate) fn push_directory(&mut self, name: &str) -> Result<(), StoreError> {
        self.push(name, RecordKind::Directory, None)
    }

    pub(crate) fn push_untold(&mut self, name: &str) -> Result<(), StoreError> {
        self.push(name, RecordKind::UntoldFile, None)
    }

    pub(crate) fn push_file(&mut self, name: &str, of: &ObjectMeta) -> Result<(), StoreError> {
        let kind = if of.archived { RecordKind::ArchivedFile } else { RecordKind::File };
        self.push(name, kind, Some(of))
    }

    /// Appends an entry without a number.
    fn push(
        &mut self,
        name: &str,
        kind: RecordKind,
        of: Option<&ObjectMeta>,
    ) -> Result<(), StoreError> {
        let bytes_at = self.end()?;
        self.bytes.extend_from_slice(name.as_bytes());
        let etag = Etag::push(of.map_or("", |meta| &meta.version.etag), &mut self.bytes)?;
        self.records.push(Record {
            ino: 0,
            size_bytes: of.map_or(0, |meta| meta.version.size_bytes),
            last_modified: of.map_or(0, |meta| seconds(meta.last_modified)),
            bytes_at,
            etag,
            name_bytes: u8::try_from(name.len()).expect("longer names are hidden"),
            kind,
        });
        Ok(())
    }

    /// Appends a copy of an entry.
    pub(crate) fn push_copy(&mut self, of: &Self, index: usize) -> Result<(), StoreError> {
        let bytes_at = self.end()?;
        let record = of.records[index];
        let (name, etag) = of.texts(&record);
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(etag);
        self.records.push(Record { bytes_at, ..record });
        Ok(())
    }

    /// Appends another run, which comes behind.
    pub(crate) fn append(&mut self, mut behind: Self) -> Result<(), StoreError> {
        if self.is_empty() {
            *self = behind;
            return Ok(());
        }
        let shift = self.end()?;
        u32::try_from(self.bytes.len() + behind.bytes.len()).map_err(|_| too_many())?;
        self.bytes.append(&mut behind.bytes);
        let moved = |record: Record| Record { bytes_at: record.bytes_at + shift, ..record };
        self.records.extend(behind.records.into_iter().map(moved));
        Ok(())
    }

    /// Takes the entries from `at` on off the end.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        let mut records = self.records.split_off(at);
        let Some(shift) = records.first().map(|first| first.bytes_at) else {
            return Self::default();
        };
        for record in &mut records {
            record.bytes_at -= shift;
        }
        Self { bytes: self.bytes.split_off(shift as usize), records }
    }

    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.records.shrink_to_fit();
    }

    fn end(&self) -> Result<u32, StoreError> {
        u32::try_from(self.bytes.len()).map_err(|_| too_many())
    }

    fn texts(&self, record: &Record) -> (&[u8], &[u8]) {
        let at = record.bytes_at as usize;
        let etag_at = at + usize::from(record.name_bytes);
        (&self.bytes[at..etag_at], &self.bytes[etag_at..etag_at + record.etag.bytes()])
    }

    fn record_key(&self, record: &Record) -> EntryKey<'_> {
        let is_directory = record.kind == RecordKind::Directory;
        EntryKey { name: self.texts(record).0, is_directory }
    }

    /// The index of the first entry that is not before this key.
    pub(super) fn lower_bound(&self, key: EntryKey<'_>) -> usize {
        self.records.partition_point(|record| self.record_key(record) < key)
    }
}

/// The limit is 4 GiB: only a file whose name begins 50 million others' can hold them back.
fn too_many() -> StoreError {
    StoreError::nonsense("too many names that begin with another".to_owned())
}

fn seconds(time: SystemTime) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

fn time(seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(span) } else { epoch.checked_add(span) };
    time.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Nonsense;

    fn meta(etag: &str, last_modified: SystemTime) -> ObjectMeta {
        let version =
            ObjectVersion { key: "d/name".to_owned(), etag: etag.to_owned(), size_bytes: 7 };
        ObjectMeta { version, last_modified, archived: false }
    }

    #[test]
    fn an_entry_takes_48_bytes_beside_its_name() {
        let mut run = EntryRun::default();
        let etag = "\"0123456789abcdef0123456789abcdef\"";
        for n in 0..1000 {
            let name = format!("{n:020}");
            run.push_file(&name, &meta(etag, SystemTime::UNIX_EPOCH)).expect("small");
        }
        run.shrink();
        assert_eq!(run.memory_bytes(), 1000 * (20 + 48));
    }

    #[test]
    fn parts_that_are_cut_and_joined_hold_what_they_held() {
        let mut whole = EntryRun::default();
        for n in 0..6 {
            let (name, file) = ("n".repeat(n + 1), meta(&"e".repeat(n), time(7)));
            match n % 3 {
                0 => whole.push_directory(&name),
                1 => whole.push_file(&name, &file),
                _ => whole.push_untold(&name),
            }
            .expect("small");
            whole.set_ino(n, n as Ino);
        }
        for at in 0..=6 {
            let mut run = whole.clone();
            let rest = run.split_off(at);
            assert_eq!((run.len(), rest.len()), (at, 6 - at));
            run.append(rest).expect("small");
            assert_eq!((&run.bytes, &run.records), (&whole.bytes, &whole.records));
        }
    }

    #[test]
    fn whatever_an_etag_and_a_time_are_they_are_given_back() {
        let digits = "0123456789abcdef0123456789abcdef";
        let etags = [
            String::new(),
            "\"\"".to_owned(),
            digits.to_owned(),
            format!("\"{digits}\""),
            format!("\"{digits}-12\""),
            format!("\"{}\"", digits.to_uppercase()),
            format!("\"{}\"", &digits[1..]),
            format!("\"{digits}é\""),
            "W/\"x\"".to_owned(),
            "é".repeat(40),
        ];
        let times = [0, 1, -1, 1_700_000_000, 253_402_300_799];
        let mut run = EntryRun::default();
        let metas: Vec<_> = etags
            .iter()
            .zip(times.iter().cycle())
            .map(|(etag, at)| meta(etag, time(*at)))
            .collect();
        for meta in &metas {
            run.push_file("name", meta).expect("small");
        }
        for (index, meta) in metas.iter().enumerate() {
            let Inode::File(back) = run.inode(index, "d/") else { panic!("a file") };
            assert_eq!(*back, *meta);
            for (other, meta) in metas.iter().enumerate() {
                assert_eq!(run.is(other, &Inode::File(back.clone())), back.version == meta.version);
            }
        }
        let endless = meta(&"x".repeat(40_000), SystemTime::UNIX_EPOCH);
        assert!(matches!(
            run.push_file("name", &endless),
            Err(StoreError::Nonsense(Nonsense::Protocol(_)))
        ));
    }
}
