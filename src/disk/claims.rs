//! Which process fetches what: a lock on a range of a file for each range that is being fetched,
//! until it was written. The kernel ends the locks of a process that dies. So two mounts that read
//! the same at the same time fetch it once.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::files;
use super::format::{VersionName, place};
use crate::base::layout::BLOCK_BYTES;

/// Bits of a lock's place for the block in its object: 2 TiB. The same place for two ranges costs a
/// wait, and nothing else.
const BLOCK_BITS: u32 = 24;
/// With them a place is a positive number of 63 bits.
const VERSION_BITS: u32 = 38;

#[derive(Debug)]
pub(super) struct Claims {
    file: Arc<File>,
}

/// The right to fetch a range; ends when it is dropped. Within a process ranges are fetched once
/// already, so claims of one process do not exclude each other.
#[derive(Debug)]
pub(super) struct Claim {
    file: Arc<File>,
    start: i64,
    blocks: i64,
}

/// Another process fetches some of it.
#[derive(Debug)]
pub(super) struct Elsewhere;

impl Claims {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Arc::new(files::open_or_make(path)?) })
    }

    pub(super) fn are_at(&self, path: &Path) -> bool {
        files::is_at(&self.file, path)
    }

    pub(super) fn claim(
        &self,
        version: &VersionName,
        range: &Range<u64>,
    ) -> Result<Claim, Elsewhere> {
        let (first, end) = (range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
        let version = (place(&version.name) % (1 << VERSION_BITS)) << BLOCK_BITS;
        let place = version | (first % (1 << BLOCK_BITS));
        let number = |number: u64| i64::try_from(number).unwrap_or(1);
        let (start, blocks) = (number(place), number(end - first));
        match lock(&self.file, libc::F_WRLCK, start, blocks) {
            Err(Errno::EAGAIN | Errno::EACCES) => Err(Elsewhere),
            // A file system without locks has no claims.
            _ => Ok(Claim { file: self.file.clone(), start, blocks }),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // There is nothing to do about it: the lock ends with the process.
        let _ = lock(&self.file, libc::F_UNLCK, self.start, self.blocks);
    }
}

/// A lock of the open file, not of the process: so it works between two caches of one process too.
fn lock(file: &File, kind: libc::c_int, l_start: i64, l_len: i64) -> nix::Result<()> {
    let [l_type, l_whence] =
        [kind, libc::SEEK_SET].map(|value| libc::c_short::try_from(value).unwrap_or_default());
    let lock = libc::flock { l_type, l_whence, l_start, l_len, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_claimed_once_until_its_claim_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims");
        let [one, other] = [(); 2].map(|()| Claims::open(&path).unwrap());
        let version = |place: u64| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&place.to_le_bytes());
            VersionName { name, size_bytes: 1 << 40 }
        };
        let claim = one.claim(&version(u64::MAX), &(0..4 << 20)).unwrap();
        assert!(other.claim(&version(u64::MAX), &(1 << 20..8 << 20)).is_err());
        assert!(other.claim(&version(u64::MAX), &(4 << 20..8 << 20)).is_ok());
        assert!(other.claim(&version(7), &(0..4 << 20)).is_ok());
        drop(claim);
        assert!(other.claim(&version(u64::MAX), &(0..8 << 20)).is_ok());
        let _held = one.claim(&version(1), &(0..1)).unwrap();
        drop(one);
        assert!(other.claim(&version(1), &(0..1)).is_err(), "held as long as the claim");
    }
}
