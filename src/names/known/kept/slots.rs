//! Slots: one for each inode that the kernel knows, on pages of 4 KiB.
//!
//! A slot is a multiple of 32 bytes and lies on one page, because the copy of a process that is
//! killed ends between pages: what is there of a page is whole. A slot that the kernel has
//! forgotten is used again for an inode of the same length. New slots are written together, and the
//! count of pages last, so what is behind it was not told to the kernel.
//!
//! A slot has, in little-endian numbers: a checksum (CRC-32C) of all but itself and the next two;
//! lookups, and a checksum of them and the number; its length in units, and what it is; bytes in
//! use; the number, the size, the time; the lengths of key and `ETag`; opens, and the kernel's
//! number of the file that it reads by itself; key and `ETag`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::layout::{Damage, PAGE, PAGE_BYTES, SLOTS_AT, number, short, sum};
use crate::names::entries::{Ino, Inode};
use crate::names::known::mtime::Mtime;
use crate::store::{ObjectMeta, ObjectVersion};

/// The place of an inode in the file.
pub(crate) type Slot = u64;

const UNIT: usize = 32;
/// Before key and `ETag`.
const FIXED: usize = 56;
/// Pages that are read at once.
const READ_PAGES: u64 = 256;

/// What a slot holds.
const NOTHING: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const ARCHIVED: u8 = 3;
const UNTOLD: u8 = 4;
/// A directory that was listed; and one whose content has changed since it was first listed.
const LISTED: u8 = 5;
const CHANGED: u8 = 6;

/// A large file that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOpen {
    /// At least as many as the kernel has not told the end of.
    pub opens: u32,
    /// The kernel's number of the file that it reads by itself; 0 where the daemon reads.
    pub backing: u32,
}

#[derive(Debug)]
pub(crate) struct KeptInode {
    pub(crate) ino: Ino,
    pub(crate) inode: Inode,
    /// Of a directory that was listed.
    pub(crate) mtime: Option<Mtime>,
    /// At least as many as the kernel has counted; all that there are, if they were too many to
    /// count.
    pub(crate) lookups: u64,
    /// Of a file that is open.
    pub(crate) open: Option<KeptOpen>,
    pub(crate) slot: Slot,
}

#[derive(Debug)]
pub(super) struct InodeSlots {
    /// The place behind the last slot.
    end: Slot,
    /// The last bytes before it, which are not written yet.
    pending: Vec<u8>,
    /// In the file, whole.
    pages: u64,
    /// By their length in units.
    free: Vec<Vec<Slot>>,
}

impl Default for InodeSlots {
    fn default() -> Self {
        let free = vec![Vec::new(); PAGE / UNIT + 1];
        Self { end: SLOTS_AT, pending: Vec::new(), pages: 0, free }
    }
}

impl InodeSlots {
    pub(super) fn read(file: &File, pages: u64) -> Result<(Self, Vec<KeptInode>), Damage> {
        let (mut slots, mut inodes) = (Self::default(), Vec::new());
        let mut seen = HashSet::new();
        let mut page = 0;
        while page < pages {
            let several = READ_PAGES.min(pages - page);
            let mut bytes = vec![0; usize::try_from(several).expect("few") * PAGE];
            let at = SLOTS_AT + page * PAGE_BYTES;
            file.read_exact_at(&mut bytes, at).map_err(Damage::of)?;
            for (index, bytes) in bytes.chunks_exact(PAGE).enumerate() {
                let start = at + (index * PAGE) as u64;
                let is_last = start + PAGE_BYTES == SLOTS_AT + pages * PAGE_BYTES;
                slots.read_page(start, bytes, is_last, &mut inodes)?;
            }
            page += several;
        }
        if !inodes.iter().all(|one| seen.insert(one.ino)) {
            return Err(Damage::Twice);
        }
        // What is behind was never counted, and would be in the way.
        slots.resize(file, pages).map_err(Damage::of)?;
        Ok((slots, inodes))
    }

    fn read_page(
        &mut self,
        start: Slot,
        page: &[u8],
        is_last: bool,
        inodes: &mut Vec<KeptInode>,
    ) -> Result<(), Damage> {
        let mut at = 0;
        while at < PAGE {
            let units = usize::from(page[at + 12]);
            if units == 0 {
                // Nobody has written behind the last slot of the last page.
                let is_end = is_last && page[at..].iter().all(|byte| *byte == 0);
                return is_end.then_some(()).ok_or(Damage::Checksum);
            }
            let bytes = page.get(at..at + units * UNIT).ok_or(Damage::Checksum)?;
            let slot = start + at as u64;
            at += bytes.len();
            self.end = start + at as u64;
            match decode(bytes)? {
                Some(kept) => inodes.push(KeptInode { slot, ..kept }),
                None => self.free[units].push(slot),
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, file: &File, ino: Ino, inode: &Inode) -> io::Result<Slot> {
        let bytes = encode(ino, inode, None, 1, None)?;
        if let Some(slot) = self.free[bytes.len() / UNIT].pop() {
            self.write(file, slot, &bytes)?;
            return Ok(slot);
        }
        let left = PAGE - usize::try_from(self.end % PAGE_BYTES).expect("of a page");
        if bytes.len() > left {
            self.free[left / UNIT].push(self.end);
            self.push(&seal(vec![0; left], NOTHING, FIXED.min(left), 0, 0));
        }
        let slot = self.end;
        self.push(&bytes);
        Ok(slot)
    }

    pub(super) fn count(
        &mut self,
        file: &File,
        slot: Slot,
        ino: Ino,
        lookups: u64,
    ) -> io::Result<()> {
        self.write(file, slot + 4, &counted(ino, lookups))
    }

    pub(super) fn remove(
        &mut self,
        file: &File,
        slot: Slot,
        ino: Ino,
        inode: &Inode,
    ) -> io::Result<()> {
        self.free[encode(ino, inode, None, 0, None)?.len() / UNIT].push(slot);
        self.count(file, slot, ino, 0)
    }

    /// Gives the number of pages, if it has changed.
    pub(super) fn flush(&mut self, file: &File) -> io::Result<Option<u64>> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        let pages = (self.end - SLOTS_AT).div_ceil(PAGE_BYTES);
        let is_changed = pages != self.pages;
        if is_changed {
            self.resize(file, pages)?;
        }
        file.write_all_at(&self.pending, self.end - self.pending.len() as u64)?;
        self.pending.clear();
        Ok(is_changed.then_some(pages))
    }

    fn resize(&mut self, file: &File, pages: u64) -> io::Result<()> {
        self.pages = pages;
        file.set_len(SLOTS_AT + pages * PAGE_BYTES)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        self.end += bytes.len() as u64;
    }

    pub(super) fn write(&mut self, file: &File, at: Slot, bytes: &[u8]) -> io::Result<()> {
        let written = self.end - self.pending.len() as u64;
        let Some(offset) = at.checked_sub(written) else { return file.write_all_at(bytes, at) };
        let offset = usize::try_from(offset).expect("in memory");
        self.pending[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Lookups and their checksum. More than 32 bits hold are never forgotten.
fn counted(ino: Ino, lookups: u64) -> [u8; 8] {
    let lookups = u32::try_from(lookups).unwrap_or(u32::MAX);
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&lookups.to_le_bytes());
    bytes[4..].copy_from_slice(&ino.to_le_bytes());
    let sum = sum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes[..8].try_into().expect("8 bytes")
}

pub(super) fn encode(
    ino: Ino,
    inode: &Inode,
    mtime: Option<Mtime>,
    lookups: u64,
    open: Option<KeptOpen>,
) -> io::Result<Vec<u8>> {
    let (size, time) = match (inode, mtime) {
        (Inode::File(meta), _) => (meta.version.size_bytes, Some(meta.last_modified)),
        (_, Some(mtime)) => (mtime.content.unwrap_or_default(), mtime.changed),
        _ => (0, None),
    };
    let kind = match inode {
        Inode::File(meta) if meta.archived => ARCHIVED,
        Inode::File(_) => FILE,
        Inode::Untold(_) => UNTOLD,
        Inode::Directory(_) if time.is_some() => CHANGED,
        Inode::Directory(_) if mtime.is_some_and(|mtime| mtime.is_known()) => LISTED,
        Inode::Directory(_) => DIRECTORY,
    };
    let etag = if let Inode::File(meta) = inode { meta.version.etag.as_str() } else { "" };
    let (key, time) = (inode.key(), time.unwrap_or(UNIX_EPOCH));
    // Before 1970 is 1970, as elsewhere.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let used = FIXED + key.len() + etag.len();
    let length = used.next_multiple_of(UNIT);
    if length > PAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let short_length = |text: &str| u16::try_from(text.len()).expect("on a page").to_le_bytes();
    let mut bytes = vec![0; length];
    bytes[24..32].copy_from_slice(&size.to_le_bytes());
    bytes[32..40].copy_from_slice(&since.as_secs().to_le_bytes());
    bytes[40..44].copy_from_slice(&since.subsec_nanos().to_le_bytes());
    bytes[44..46].copy_from_slice(&short_length(key));
    bytes[46..48].copy_from_slice(&short_length(etag));
    let (opens, backing) = open.map_or((0, 0), |open| (open.opens, open.backing));
    bytes[48..52].copy_from_slice(&opens.to_le_bytes());
    bytes[52..56].copy_from_slice(&backing.to_le_bytes());
    bytes[FIXED..FIXED + key.len()].copy_from_slice(key.as_bytes());
    bytes[FIXED + key.len()..used].copy_from_slice(etag.as_bytes());
    Ok(seal(bytes, kind, used, ino, lookups))
}

/// Adds what every slot has.
fn seal(mut bytes: Vec<u8>, kind: u8, used: usize, ino: Ino, lookups: u64) -> Vec<u8> {
    bytes[12] = u8::try_from(bytes.len() / UNIT).expect("on a page");
    bytes[13] = kind;
    bytes[14..16].copy_from_slice(&u16::try_from(used).expect("on a page").to_le_bytes());
    bytes[16..24].copy_from_slice(&ino.to_le_bytes());
    bytes[4..12].copy_from_slice(&counted(ino, lookups));
    let sum = sum(&bytes[12..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// `None` if nothing is there.
fn decode(bytes: &[u8]) -> Result<Option<KeptInode>, Damage> {
    let (ino, lookups) = (number(&bytes[16..]), short(&bytes[4..]));
    let is_right =
        short(bytes) == sum(&bytes[12..]) && bytes[4..12] == counted(ino, lookups.into());
    if !is_right {
        return Err(Damage::Checksum);
    }
    if lookups == 0 || bytes[13] == NOTHING {
        return Ok(None);
    }
    inode(bytes, ino, lookups).map(Some).ok_or(Damage::Checksum)
}

fn inode(bytes: &[u8], ino: Ino, lookups: u32) -> Option<KeptInode> {
    let length = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let text = |start: usize, length: usize| {
        std::str::from_utf8(bytes.get(start..start + length)?).ok().map(str::to_owned)
    };
    let key = text(FIXED, length(44))?;
    let etag = text(FIXED + key.len(), length(46))?;
    let time = UNIX_EPOCH.checked_add(Duration::new(number(&bytes[32..]), short(&bytes[40..])))?;
    let size_bytes = number(&bytes[24..]);
    let (inode, mtime) = match bytes[13] {
        DIRECTORY => (Inode::Directory(key.into()), None),
        LISTED => (Inode::Directory(key.into()), Some(listed(size_bytes, None))),
        CHANGED => (Inode::Directory(key.into()), Some(listed(size_bytes, Some(time)))),
        UNTOLD => (Inode::Untold(key.into()), None),
        kind @ (FILE | ARCHIVED) => {
            let version = ObjectVersion { key, etag, size_bytes };
            let archived = kind == ARCHIVED;
            (Inode::File(Arc::new(ObjectMeta { version, last_modified: time, archived })), None)
        }
        _ => return None,
    };
    let lookups = if lookups == u32::MAX { u64::MAX } else { lookups.into() };
    let open = KeptOpen { opens: short(&bytes[48..]), backing: short(&bytes[52..]) };
    let open = Some(open).filter(|open| open.opens > 0);
    Some(KeptInode { ino, inode, mtime, lookups, open, slot: 0 })
}

fn listed(content: u64, changed: Option<SystemTime>) -> Mtime {
    Mtime { content: Some(content), changed }
}
