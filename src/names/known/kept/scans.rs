//! A ring of what the kernel was last told of directories: with each answer the names in it, so
//! that the next process knows behind which name a scan goes on.
//!
//! A cookie holds a generation and a position, and any position in an answer may come back: a
//! program's buffer may be smaller than the kernel's. Names are written without what they share
//! with the one before, some 5 bytes for names that are numbered. There is room for the answers
//! that hold the last million or so names; a scan that has rested for longer is ESTALE.
//!
//! The ring has two halves. When one is full, the other is begun anew. What remains of its former
//! content behind the new one is as true as before, if it can still be read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::layout::{RING_AT, RING_BYTES, number, short, sum};
use crate::names::entries::{Ino, Listing};

const HALF_BYTES: u64 = RING_BYTES / 2;
/// Checksum and length; what counts answers; directory, generation, first index, number of names.
const HEAD: usize = 36;

/// An answer of a process before this one.
#[derive(Clone, Copy, Debug)]
struct Told {
    first: usize,
    entries: usize,
    at: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct ToldScans {
    /// Counts the answers.
    last: u64,
    /// Where the next one goes, from the beginning of the ring.
    at: u64,
    told: HashMap<(Ino, u32), Vec<Told>>,
}

impl ToldScans {
    pub(super) fn read(file: &File) -> Self {
        let mut all = Self::default();
        for half in [0, HALF_BYTES] {
            let mut bytes = vec![0; usize::try_from(HALF_BYTES).expect("4 MiB")];
            // If it cannot be read, it is empty.
            let _ = file.read_exact_at(&mut bytes, RING_AT + half);
            let mut rest = bytes.as_slice();
            let mut at = half;
            while let Some(answer) = whole(rest) {
                rest = &rest[answer.len()..];
                let entries = short(&answer[32..]) as usize;
                let first = short(&answer[28..]) as usize;
                let of = (number(&answer[16..]), short(&answer[24..]));
                let told = Told { first, entries, at: RING_AT + at, bytes: answer.len() };
                all.told.entry(of).or_default().push(told);
                at += answer.len() as u64;
                if number(&answer[8..]) > all.last {
                    (all.last, all.at) = (number(&answer[8..]), at);
                }
            }
        }
        all
    }

    pub(super) fn write(
        &mut self,
        file: &File,
        directory: Ino,
        listing: &Listing,
        told: Range<usize>,
    ) -> io::Result<()> {
        let (Ok(first), Ok(entries)) = (u32::try_from(told.start), u32::try_from(told.len()))
        else {
            return Ok(());
        };
        self.last += 1;
        let mut answer = vec![0; HEAD];
        answer[8..16].copy_from_slice(&self.last.to_le_bytes());
        answer[16..24].copy_from_slice(&directory.to_le_bytes());
        answer[24..28].copy_from_slice(&listing.generation.to_le_bytes());
        answer[28..32].copy_from_slice(&first.to_le_bytes());
        answer[32..36].copy_from_slice(&entries.to_le_bytes());
        let mut before: &[u8] = &[];
        for index in told {
            let key = listing.key(index);
            let shared = before.iter().zip(key.name).take_while(|(a, b)| a == b).count();
            // A name has at most 255 bytes.
            let [shared_byte, length] =
                [shared, key.name.len() - shared].map(|n| u8::try_from(n).expect("of a name"));
            answer.extend_from_slice(&[shared_byte, length, key.is_directory.into()]);
            answer.extend_from_slice(&key.name[shared..]);
            before = key.name;
        }
        let length = u32::try_from(answer.len()).expect("an answer has at most 1 MiB");
        answer[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = sum(&answer[4..]);
        answer[..4].copy_from_slice(&sum.to_le_bytes());
        if self.at % HALF_BYTES + u64::from(length) > HALF_BYTES {
            self.at = if self.at < HALF_BYTES { HALF_BYTES } else { 0 };
        }
        self.at %= RING_BYTES;
        file.write_all_at(&answer, RING_AT + self.at)?;
        self.at += u64::from(length);
        Ok(())
    }

    /// The name of the last of the first `entries` entries, and whether it is a directory's.
    pub(super) fn last(
        &self,
        file: &File,
        directory: Ino,
        generation: u32,
        entries: usize,
    ) -> Option<(Vec<u8>, bool)> {
        let told = self.told.get(&(directory, generation))?.iter();
        // The ring may have gone over one of them meanwhile.
        told.rev()
            .filter(|told| (told.first + 1..=told.first + told.entries).contains(&entries))
            .find_map(|told| {
                let mut bytes = vec![0; told.bytes];
                file.read_exact_at(&mut bytes, told.at).ok()?;
                let answer = whole(&bytes)?;
                let of = (number(&answer[16..]), short(&answer[24..]));
                let is_it = of == (directory, generation)
                    && short(&answer[28..]) as usize == told.first
                    && answer.len() == told.bytes;
                is_it.then(|| name(&answer[HEAD..], entries - told.first - 1))?
            })
    }
}

/// The answer with which these bytes begin.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let length = short(bytes.get(4..8)?) as usize;
    let answer = bytes.get(..length).filter(|answer| answer.len() >= HEAD)?;
    (short(answer) == sum(&answer[4..])).then_some(answer)
}

fn name(mut names: &[u8], index: usize) -> Option<(Vec<u8>, bool)> {
    let mut name = Vec::new();
    let mut is_directory = false;
    for _ in 0..=index {
        let (&[shared, length, kind], rest) = names.split_first_chunk()?;
        let (own, rest) = rest.split_at_checked(length.into())?;
        name.truncate(shared.into());
        name.extend_from_slice(own);
        (names, is_directory) = (rest, kind != 0);
    }
    Some((name, is_directory))
}
