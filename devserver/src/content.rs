//! Bytes that are computed instead of stored.
//!
//! Every 8-byte word of a synthetic object is a mix of its index and a seed, so a 10 GiB object
//! costs no memory, any byte can be checked without reading another, and a word in the wrong place
//! is always noticed: the mix is a bijection, so no two words of an object are equal.

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
