//! Bytes that are computed instead of stored.
//!
//! A 10 GiB object costs no memory, any byte can be checked without reading another, and a word in
//! the wrong place is always noticed, for no two 8-byte words of an object are equal: an object is
//! a row of blocks, a word is the same place of a pattern that all blocks share, its top bits are
//! that place, and what it is combined with in its other bits is different in every block.
//!
//! So making a word is one load and one exclusive or, which the processor does for several at once:
//! a server that shares two cores with what is measured must not spend them on its content. A mix
//! of each word's index, which was here before, took as long as sending it.

use std::sync::LazyLock;

/// Bytes per word.
const WORD: u64 = 8;
/// A block has 2^11 words, 16 KiB: half of a core's nearest cache, since every block needs all of
/// the pattern.
const PLACE_BITS: u32 = 11;
const BLOCK_WORDS: usize = 1 << PLACE_BITS;
/// The bits of a word that are not its place in its block.
const KEY_MASK: u64 = u64::MAX >> PLACE_BITS;
/// 2^64 ÷ the golden ratio: odd, so that multiplying by it loses nothing.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// An odd multiplier whose high bits depend on all low ones.
const MIX: u64 = 0xD6E8_FEB8_6659_FD93;

/// What all blocks share: the place in the top bits, and a mix of it in the others.
static PATTERN: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let word = |place: u64| (place << (64 - PLACE_BITS)) | mix(place.wrapping_mul(STEP));
    (0..BLOCK_WORDS as u64).map(word).collect()
});

/// The seed of `version` of the object `key`: 0 when first put, one more with each overwriting.
#[must_use]
pub fn seed(key: &str, version: u64) -> u64 {
    // FNV-1a, which is the same on every machine and in every process.
    let hash =
        key.bytes().chain(version.to_le_bytes()).fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(MIX);
    mixed ^ (mixed >> 32)
}

/// Fills `into` with the bytes from `offset` on of the object that has this seed.
pub fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    let pattern = &**PATTERN;
    let index = offset / WORD;
    let inside = usize::try_from(offset % WORD).expect("less than 8");
    let mut block = index / BLOCK_WORDS as u64;
    let mut place = usize::try_from(index % BLOCK_WORDS as u64).expect("less than a block");
    let mut left = into;
    if inside > 0 && !left.is_empty() {
        let (head, rest) = left.split_at_mut(left.len().min(8 - inside));
        let word = (pattern[place] ^ key(seed, block)).to_le_bytes();
        head.copy_from_slice(&word[inside..inside + head.len()]);
        (left, place) = (rest, place + 1);
    }
    while !left.is_empty() {
        let here_bytes = left.len().min(8 * (BLOCK_WORDS - place));
        let (here, rest) = left.split_at_mut(here_bytes);
        let key = key(seed, block);
        let mut words = here.chunks_exact_mut(8);
        for (into, word) in words.by_ref().zip(&pattern[place..]) {
            into.copy_from_slice(&(word ^ key).to_le_bytes());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            // Only the last block may end inside a word.
            let word = (pattern[place + here_bytes / 8] ^ key).to_le_bytes();
            tail.copy_from_slice(&word[..tail.len()]);
        }
        (left, block, place) = (rest, block + 1, 0);
    }
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

/// What the words of a block are combined with.
fn key(seed: u64, block: u64) -> u64 {
    mix(seed.wrapping_add(block.wrapping_mul(STEP)))
}

/// A bijection of the numbers below 2^53: each step loses nothing.
fn mix(x: u64) -> u64 {
    let x = x & KEY_MASK;
    let x = (x ^ (x >> 27)).wrapping_mul(MIX) & KEY_MASK;
    x ^ (x >> 27)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
    fn slices_across_blocks_are_the_same_bytes_as_the_whole() {
        let (seed, block) = (seed("a", 0), 8 * BLOCK_WORDS);
        let mut whole = vec![0; 3 * block];
        fill(seed, 0, &mut whole);
        for from in (block - 20..block + 20).chain(2 * block - 9..2 * block + 9) {
            for length in [0, 1, 7, 8, 9, 30, block - 3, block] {
                let mut slice = vec![0; length];
                fill(seed, from as u64, &mut slice);
                assert_eq!(slice, whole[from..from + length], "{length} from {from}");
            }
        }
    }

    #[test]
    fn no_two_words_of_an_object_are_equal() {
        let mut bytes = vec![0; 40 * 8 * BLOCK_WORDS];
        fill(seed("a", 0), 0, &mut bytes);
        let words: HashSet<_> = bytes.chunks(8).collect();
        assert_eq!(words.len(), 40 * BLOCK_WORDS);
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
