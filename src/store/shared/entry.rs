//! What an entry of the shared cache is called and holds. Pure.
//!
//! An object is cut into *units* of 2 MiB, each with an *entry* of its own: the unit's blocks of
//! 128 KiB, each with a *tag* behind it that proves which bytes of which object version they are.
//! So any run of blocks is read, and proved block by block, in one GET of a range.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::base::layout::BLOCK_BYTES;
use crate::store::ObjectVersion;

/// The part that a stream asks S3 for at 15 ms and 90 MB/s: one GET is one entry. Larger ones would
/// be complete later, and be asked for in pieces; each smaller one costs requests.
pub(super) const UNIT_BYTES: u64 = 2 << 20;
/// Of an object, which takes little room on its way to the cache, and is read with one GET.
pub(super) const SMALL_BYTES: u64 = 512 << 10;
/// Stands in place of an entry while one mount fetches it. Told by its length: an entry has at
/// least one byte and its tag, 9 bytes. One that is cut to this length is waited for and replaced
/// as well.
pub(super) const CLAIM: &[u8] = b"claimed";
/// Changes with what is hashed, or how an entry is laid out.
const FORMAT: &str = "fasts3-1";
const SUM_BYTES: usize = 8;
const MAC_BYTES: usize = 32;

/// Makes and compares tags: sums, which find accidents, or codes of a key, which nobody can make
/// who has not the key.
#[derive(Clone)]
pub struct Sealer(Option<Hmac<Sha256>>);

/// A store's bucket: object versions of the same name in different buckets are different.
#[derive(Clone, Debug)]
pub struct SharedOrigin {
    endpoint: String,
    bucket: String,
}

/// Names one version of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity([u8; 32]);

/// One entry: a unit of an object version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EntryName {
    pub(super) identity: Identity,
    pub(super) unit: u64,
    /// Of the unit: less than a whole one at the object's end.
    pub(super) unit_bytes: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sealer").field(&self.0.is_some()).finish()
    }
}

impl Sealer {
    pub fn without_key() -> Self {
        Self(None)
    }

    /// Any number of bytes, of which nobody else can know.
    pub fn with_key(key: &[u8]) -> Self {
        Self(Some(Hmac::new_from_slice(key).expect("a key of any length")))
    }

    pub(super) fn tag_bytes(&self) -> usize {
        if self.0.is_some() { MAC_BYTES } else { SUM_BYTES }
    }

    pub(super) fn identity(&self, origin: &SharedOrigin, version: &ObjectVersion) -> Identity {
        let mut text = Vec::with_capacity(256);
        for part in [FORMAT, &origin.endpoint, &origin.bucket, &version.key, &version.etag] {
            // With the length before each, so that no two lists of texts give the same bytes.
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        text.extend_from_slice(&version.size_bytes.to_le_bytes());
        Identity(match &self.0 {
            None => Sha256::digest(&text).into(),
            // Who may list the bucket, but not read it, cannot compute the names of its entries.
            Some(mac) => mac.clone().chain_update(&text).finalize().into_bytes().into(),
        })
    }

    /// What follows a block of the unit in its entry.
    pub(super) fn tag(&self, name: &EntryName, in_unit: u64, bytes: &[u8]) -> Bytes {
        let block = name.block(in_unit);
        match &self.0 {
            None => Bytes::copy_from_slice(&sum(name, block, bytes)),
            Some(mac) => {
                Bytes::copy_from_slice(&code(mac, name, block, bytes).finalize().into_bytes())
            }
        }
    }

    /// The bytes of a block without its tag, if that proves them.
    pub(super) fn open<'a>(
        &self,
        name: &EntryName,
        block: u64,
        sealed: &'a [u8],
    ) -> Option<&'a [u8]> {
        let (bytes, tag) = sealed.split_at_checked(sealed.len().checked_sub(self.tag_bytes())?)?;
        let is_right = match &self.0 {
            None => sum(name, block, bytes) == tag,
            Some(mac) => code(mac, name, block, bytes).verify_slice(tag).is_ok(),
        };
        is_right.then_some(bytes)
    }

    /// Of a whole block and its tag.
    pub(super) fn sealed_block_bytes(&self) -> u64 {
        BLOCK_BYTES + self.tag_bytes() as u64
    }

    pub(super) fn entry_bytes(&self, name: &EntryName) -> u64 {
        name.unit_bytes + name.blocks() * self.tag_bytes() as u64
    }

    /// Where blocks lie in the entry, their tags included; they are counted from its beginning.
    pub(super) fn place(&self, name: &EntryName, blocks: &Range<u64>) -> Range<u64> {
        let sealed = self.sealed_block_bytes();
        blocks.start * sealed..(blocks.end * sealed).min(self.entry_bytes(name))
    }
}

impl SharedOrigin {
    pub fn new(endpoint: &str, bucket: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), bucket: bucket.to_owned() }
    }
}

impl EntryName {
    /// The entry that holds the byte at `offset`.
    pub(super) fn at(identity: Identity, version: &ObjectVersion, offset: u64) -> Self {
        let unit = offset / UNIT_BYTES;
        let unit_bytes = UNIT_BYTES.min(version.size_bytes - unit * UNIT_BYTES);
        Self { identity, unit, unit_bytes }
    }

    /// Where its bytes are in the object.
    pub(super) fn object_range(&self) -> Range<u64> {
        let start = self.unit * UNIT_BYTES;
        start..start + self.unit_bytes
    }

    pub(super) fn is_small_object(&self) -> bool {
        self.unit == 0 && self.unit_bytes <= SMALL_BYTES
    }

    fn first_block(&self) -> u64 {
        self.unit * (UNIT_BYTES / BLOCK_BYTES)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.unit_bytes.div_ceil(BLOCK_BYTES)
    }

    /// Its blocks that hold a range of the object, counted from its beginning.
    pub(super) fn blocks_of(&self, object: &Range<u64>) -> Range<u64> {
        let start = self.object_range().start;
        (object.start - start) / BLOCK_BYTES..(object.end - start).div_ceil(BLOCK_BYTES)
    }

    /// The number of a block in the object.
    pub(super) fn block(&self, in_unit: u64) -> u64 {
        self.first_block() + in_unit
    }

    /// The key below the cache's prefix. Stores split their keys by the beginning: 4,096 of them.
    pub(super) fn key(&self) -> String {
        use std::fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.identity.0 {
            let _ = write!(hex, "{byte:02x}");
        }
        format!("{FORMAT}/{}/{}/{:08}", &hex[..3], &hex[3..], self.unit)
    }

    /// The same number at every run, for each entry another one.
    pub(super) fn scatter(&self) -> u64 {
        let bytes = self.identity.0.first_chunk().expect("8 of 32 bytes");
        u64::from_le_bytes(*bytes).wrapping_add(self.unit.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

fn sum(name: &EntryName, block: u64, bytes: &[u8]) -> [u8; SUM_BYTES] {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&name.identity.0);
    digest.update(&block.to_le_bytes());
    digest.update(bytes);
    digest.finalize().to_le_bytes()
}

fn code(mac: &Hmac<Sha256>, name: &EntryName, block: u64, bytes: &[u8]) -> Hmac<Sha256> {
    mac.clone().chain_update(name.identity.0).chain_update(block.to_le_bytes()).chain_update(bytes)
}

pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a unit fits into memory")
}

/// The key in a file that nobody else can read, without the white space at its end.
pub fn read_key(path: &Path) -> Result<Sealer, String> {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;
    let shown = path.display();
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(format!("{shown} may be read by others: chmod 600 {shown}"));
    }
    let mut key = Vec::new();
    file.by_ref().take(LONGEST_KEY).read_to_end(&mut key).map_err(failed)?;
    let key = key.trim_ascii_end();
    if key.len() < SHORTEST_KEY {
        return Err(format!("{shown} holds a key of less than {SHORTEST_KEY} bytes"));
    }
    Ok(Sealer::with_key(key))
}

const SHORTEST_KEY: usize = 16;
const LONGEST_KEY: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(unit: u64, unit_bytes: u64) -> EntryName {
        let version =
            ObjectVersion { key: "k".into(), etag: "\"e\"".into(), size_bytes: 3 * UNIT_BYTES };
        let origin = SharedOrigin::new("AWS", "b");
        let identity = Sealer::without_key().identity(&origin, &version);
        EntryName { identity, unit, unit_bytes }
    }

    fn entry(sealer: &Sealer, name: &EntryName, unit: &[u8]) -> Vec<u8> {
        let mut entry = Vec::new();
        for (block, bytes) in (0..).zip(unit.chunks(size(BLOCK_BYTES))) {
            entry.extend_from_slice(bytes);
            entry.extend_from_slice(&sealer.tag(name, block, bytes));
        }
        entry
    }

    #[test]
    fn each_block_is_proved_by_itself_and_only_in_its_place() {
        let unit: Vec<u8> = (0..300_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let name = name(1, unit.len() as u64);
        for sealer in [Sealer::without_key(), Sealer::with_key(b"a key of 16 byte")] {
            let entry = entry(&sealer, &name, &unit);
            let mut whole: Vec<u8> = Vec::new();
            for block in 0..3 {
                let place = sealer.place(&name, &(block..block + 1));
                let sealed = &entry[size(place.start)..size(place.end)];
                whole.extend(sealer.open(&name, name.block(block), sealed).unwrap());
                assert!(sealer.open(&name, name.block(block) + 1, sealed).is_none());
                for at in [0, sealed.len() / 2, sealed.len() - 1] {
                    let mut flipped = sealed.to_vec();
                    flipped[at] ^= 1;
                    assert!(sealer.open(&name, name.block(block), &flipped).is_none());
                }
                assert!(sealer.open(&name, name.block(block), &sealed[1..]).is_none());
            }
            assert_eq!(whole, unit);
        }
        let (one, other) = (Sealer::with_key(b"one"), Sealer::with_key(b"other"));
        let name = EntryName { unit_bytes: 10, ..name };
        let entry = entry(&one, &name, &unit[..10]);
        assert!(other.open(&name, name.block(0), &entry).is_none());
        assert!(one.open(&name, name.block(0), &[]).is_none());
    }

    #[test]
    fn units_tile_an_object_and_their_blocks_a_unit() {
        let (origin, sealer) = (SharedOrigin::new("AWS", "b"), Sealer::without_key());
        let version = ObjectVersion {
            key: "k".into(),
            etag: "\"e\"".into(),
            size_bytes: 2 * UNIT_BYTES + 200_000,
        };
        let identity = sealer.identity(&origin, &version);
        let mut at = 0;
        while at < version.size_bytes {
            let name = EntryName::at(identity, &version, at);
            assert_eq!(name.object_range().start, at);
            at = name.object_range().end;
            let blocks = name.blocks_of(&name.object_range());
            assert_eq!(sealer.place(&name, &blocks), 0..sealer.entry_bytes(&name));
        }
        assert_eq!(at, version.size_bytes);
        let last = EntryName::at(identity, &version, at - 1);
        assert_eq!((last.unit, last.unit_bytes, last.blocks()), (2, 200_000, 2));
        assert_eq!(last.blocks_of(&(at - 1..at)), 1..2);
    }

    #[test]
    fn whatever_differs_has_another_name_and_no_entry_is_as_short_as_a_claim() {
        let version = |key: &str, etag: &str, size_bytes| ObjectVersion {
            key: key.to_owned(),
            etag: etag.to_owned(),
            size_bytes,
        };
        let plain = Sealer::without_key();
        let name = |sealer: &Sealer, endpoint: &str, bucket: &str, version: &ObjectVersion| {
            let identity = sealer.identity(&SharedOrigin::new(endpoint, bucket), version);
            EntryName::at(identity, version, 0).key()
        };
        let keyed = Sealer::with_key(b"key");
        let names = [
            name(&plain, "AWS", "b", &version("k", "e", 1)),
            name(&plain, "AWS", "b", &version("k", "e", 2)),
            name(&plain, "AWS", "b", &version("k", "f", 1)),
            name(&plain, "AWS", "b", &version("ke", "", 1)),
            name(&plain, "AWS", "bk", &version("", "e", 1)),
            name(&plain, "GCP", "b", &version("k", "e", 1)),
            name(&keyed, "AWS", "b", &version("k", "e", 1)),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:#?}");
        let short = super::tests::name(0, 1);
        assert!(plain.entry_bytes(&short) > CLAIM.len() as u64);
    }
}
