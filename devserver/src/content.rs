//! Bytes that are computed instead of stored.
//!
//! A 10 GiB object costs no memory and any byte can be checked without reading another. An object
//! is a row of blocks. The first bytes of a block are words that are no other's: each is a mix of
//! its index and the object's seed, a bijection, so that no two of an object are equal. The others
//! are a window into a pattern that all objects share, and each of 2,048 blocks in a row has
//! another window. So a word in the wrong place is noticed, unless it is wrong by a multiple of 512
//! MiB and no block's beginning is among the bytes that are checked.
//!
//! The pattern is also in a file, from which the kernel sends without copying: see `net`. A server
//! that shares two cores with what is measured must not spend them on its content, and a mix of
//! every word's index, all of it copied into the socket, took as long as what was measured.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::LazyLock;

use bytes::Bytes;

/// The size of a connection's writes, so that few writes are short.
const BLOCK_BYTES: u64 = 256 * 1024;
/// Bytes at a block's beginning that no other block shares.
const HEAD_BYTES: u64 = 4096;
/// Windows begin on pages, since that is what the kernel sends from.
const PAGE_BYTES: u64 = 4096;
/// 8 MiB of pattern: it stays in the cache that the cores share.
const WINDOWS: u64 = 2048;
/// Between the windows of neighbouring blocks: odd, so that all come up before one comes again.
const WINDOW_STEP: u64 = 1021;
/// Bytes per word.
const WORD: u64 = 8;
/// 2^64 ÷ the golden ratio: odd, so that multiplying by it loses nothing.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// An odd multiplier whose high bits depend on all low ones.
const MIX: u64 = 0xD6E8_FEB8_6659_FD93;

/// The seed of `version` of the object `key`: 0 when first put, one more with each overwriting.
#[must_use]
pub fn seed(key: &str, version: u64) -> u64 {
    // FNV-1a, which is the same on every machine and in every process.
    let hash =
        key.bytes().chain(version.to_le_bytes()).fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
    finish(hash)
}

/// Fills `into` with the bytes from `offset` on of the object that has this seed.
pub fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    let (mut offset, mut left) = (offset, into);
    while !left.is_empty() {
        let (part, length) = part(seed, offset, left.len() as u64);
        let (here, rest) = left.split_at_mut(length);
        match part {
            Part::Own => fill_words(seed, offset, here),
            Part::Shared(at) => here.copy_from_slice(&PATTERN.bytes[at..at + length]),
        }
        offset += length as u64;
        left = rest;
    }
}

/// The bytes from `offset` on that are one piece, at most `most`.
pub(crate) fn piece(seed: u64, offset: u64, most: u64) -> Bytes {
    match part(seed, offset, most) {
        (Part::Shared(at), length) => PATTERN.bytes.slice(at..at + length),
        (Part::Own, length) => {
            let mut bytes = vec![0; length];
            fill_words(seed, offset, &mut bytes);
            bytes.into()
        }
    }
}

/// Where in the file of the pattern these bytes are, if they are a part of it, not only equal.
pub(crate) fn in_file(bytes: &[u8]) -> Option<(&'static File, usize)> {
    let pattern = &*PATTERN;
    let at = bytes.as_ptr().addr().checked_sub(pattern.bytes.as_ptr().addr())?;
    (at + bytes.len() <= pattern.bytes.len()).then_some((pattern.file.as_ref()?, at))
}

enum Part {
    /// The first bytes of a block.
    Own,
    /// From here on in the pattern.
    Shared(usize),
}

/// The source of the bytes at `offset`, and its length, at most `most`.
fn part(seed: u64, offset: u64, most: u64) -> (Part, usize) {
    let (block, inside) = (offset / BLOCK_BYTES, offset % BLOCK_BYTES);
    let index = |number: u64| usize::try_from(number).expect("within a block or the pattern");
    if inside < HEAD_BYTES {
        return (Part::Own, index(most.min(HEAD_BYTES - inside)));
    }
    let window = seed.wrapping_add(block.wrapping_mul(WINDOW_STEP)) % WINDOWS;
    (Part::Shared(index(window * PAGE_BYTES + inside)), index(most.min(BLOCK_BYTES - inside)))
}

struct Pattern {
    bytes: Bytes,
    /// The same bytes; none where the system has no such files.
    file: Option<File>,
}

static PATTERN: LazyLock<Pattern> = LazyLock::new(|| {
    // The last window must have its end too.
    let length = WINDOWS * PAGE_BYTES + BLOCK_BYTES;
    let mut bytes = vec![0; usize::try_from(length).expect("8 MiB and a block")];
    fill_words(seed("the pattern", 0), 0, &mut bytes);
    let written = |bytes: &[u8]| -> io::Result<File> {
        // Without a name. Not of memory, if the system's folder is on a disk: of a disk's file the
        // kernel finds many pages at once, and needs half the time.
        let folder = std::env::temp_dir();
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(folder)?;
        file.write_all(bytes)?;
        Ok(file)
    };
    Pattern { file: written(&bytes).ok(), bytes: bytes.into() }
});

/// The words that begin at `offset`, each a mix of its index.
fn fill_words(seed: u64, offset: u64, into: &mut [u8]) {
    let mut index = offset / WORD;
    let inside = usize::try_from(offset % WORD).expect("less than 8");
    let head = if inside == 0 { 0 } else { (8 - inside).min(into.len()) };
    let (first, rest) = into.split_at_mut(head);
    if head > 0 {
        first.copy_from_slice(&word(seed, index)[inside..inside + head]);
        index += 1;
    }
    // One addition and one multiplication a word: the sum is carried instead of computed anew.
    let mut sum = start(seed, index);
    let mut words = rest.chunks_exact_mut(8);
    for chunk in &mut words {
        chunk.copy_from_slice(&finish(sum).to_le_bytes());
        sum = sum.wrapping_add(STEP);
    }
    let tail = words.into_remainder();
    let length = tail.len();
    tail.copy_from_slice(&finish(sum).to_le_bytes()[..length]);
}

/// Where `bytes`, read at `offset`, first differs from the object that has this seed, as an offset
/// into the object; `None` when every byte is right.
#[must_use]
pub fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = [0; 4096];
    let mut at = offset;
    for part in bytes.chunks(expected.len()) {
        let expected = &mut expected[..part.len()];
        fill(seed, at, expected);
        if part != expected {
            let same = part.iter().zip(expected.iter()).take_while(|(a, b)| a == b).count();
            return Some(at + same as u64);
        }
        at += part.len() as u64;
    }
    None
}

fn word(seed: u64, index: u64) -> [u8; 8] {
    finish(start(seed, index)).to_le_bytes()
}

fn start(seed: u64, index: u64) -> u64 {
    seed.wrapping_add(index.wrapping_mul(STEP))
}

fn finish(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(MIX);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn any_slice_is_the_same_bytes_as_the_whole() {
        let seed = seed("a/b", 0);
        let mut whole = [0; 40];
        fill(seed, 0, &mut whole);
        for from in 0..whole.len() {
            for to in from..whole.len() {
                let mut slice = vec![0; to - from];
                fill(seed, from as u64, &mut slice);
                assert_eq!(slice, whole[from..to], "{from}..{to}");
                assert_eq!(first_difference(seed, from as u64, &slice), None);
            }
        }
    }

    #[test]
    fn slices_across_heads_and_blocks_are_the_same_bytes_as_the_whole() {
        let (seed, block) = (seed("a", 0), usize::try_from(BLOCK_BYTES).unwrap());
        let mut whole = vec![0; 3 * block];
        fill(seed, 0, &mut whole);
        for from in [4090, 4096, block - 9, block, block + 4095, 2 * block - 1] {
            for length in [0, 1, 7, 8, 9, 30, 4096, 5000, block] {
                let mut slice = vec![0; length];
                fill(seed, from as u64, &mut slice);
                assert_eq!(slice, whole[from..from + length], "{length} from {from}");
                let piece = piece(seed, from as u64, length as u64);
                assert_eq!(piece, whole[from..from + piece.len()], "{length} from {from}");
            }
        }
    }

    #[test]
    fn blocks_of_an_object_begin_and_go_on_differently() {
        let seed = seed("a", 0);
        let mut starts = HashSet::new();
        for block in 0..WINDOWS {
            let mut words = [0; 16];
            fill(seed, block * BLOCK_BYTES, &mut words[..8]);
            fill(seed, block * BLOCK_BYTES + HEAD_BYTES, &mut words[8..]);
            assert!(starts.insert(words[..8].to_vec()) && starts.insert(words[8..].to_vec()));
        }
    }

    #[test]
    fn a_piece_of_the_pattern_is_found_in_its_file() {
        let piece = piece(5, 10_000, 1_000_000);
        let (file, at) = in_file(&piece[100..]).unwrap();
        let mut found = vec![0; piece.len() - 100];
        file.read_exact_at(&mut found, at as u64).unwrap();
        assert_eq!(found, piece[100..]);
        assert!(in_file(&found).is_none());
    }

    #[test]
    fn a_misplaced_or_changed_byte_is_found_where_it_is() {
        let seed = seed("a", 0);
        let mut bytes = vec![0; 10_000];
        fill(seed, 77, &mut bytes);
        assert_eq!(first_difference(seed, 77, &bytes), None);
        for shift in 1..2000 {
            assert!(first_difference(seed, 77 + shift, &bytes).is_some(), "shifted by {shift}");
        }
        bytes[6000] ^= 1;
        assert_eq!(first_difference(seed, 77, &bytes), Some(6077));
    }

    #[test]
    fn keys_and_versions_have_different_bytes() {
        let seeds = [seed("a", 0), seed("a", 1), seed("b", 0), seed("", 0)];
        for (i, a) in seeds.iter().enumerate() {
            assert!(!seeds[i + 1..].contains(a));
        }
    }
}
