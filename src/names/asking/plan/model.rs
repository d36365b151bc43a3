//! Where keys are likely to be, learned from those that were seen. Pure.
//!
//! A model gives every string a place between 0 and 1, in the order of strings, so that keys lie
//! about evenly: a symbol takes room by how often it was seen at its position. That is counted by
//! the edges of the tree of keys, not by keys, so that a page of `000000` to `000999` says
//! "digits", not "zeros". Places are relative to a stem, a common beginning, because the keys
//! behind a stem of 200 bytes have no room left in a number between 0 and 1.

use std::ops::Range;

use crate::names::rules::MAX_KEY_BYTES;

/// Weight of the prior knowledge of a position, in edges seen.
const PRIOR_EDGES: f64 = 2.0;

/// Room in which a float cannot tell keys apart.
const NARROWEST: f64 = 1e-14;

/// The symbols of names, position by position.
#[derive(Default)]
pub(crate) struct KeyModel {
    positions: Vec<SymbolCounts>,
    /// Any position where nothing was seen.
    unseen: SymbolCounts,
}

struct SymbolCounts {
    edges: Box<[u32; 256]>,
    /// For each byte, the room of all smaller ones; the last is 1.
    below: Box<[f64; 257]>,
    is_stale: bool,
}

impl KeyModel {
    /// Learns from keys that follow each other, the first one behind `before`.
    pub(crate) fn learn<'a>(&mut self, mut before: &'a str, keys: &[&'a str]) {
        for key in keys {
            let length = key.len().min(MAX_KEY_BYTES);
            if self.positions.len() < length {
                self.positions.resize_with(length, SymbolCounts::default);
            }
            for (at, symbol) in key.bytes().enumerate().take(length).skip(common(before, key)) {
                self.positions[at].edges[usize::from(symbol)] += 1;
                self.positions[at].is_stale = true;
            }
            before = key;
        }
        for position in self.positions.iter_mut().filter(|position| position.is_stale) {
            position.refresh();
        }
    }

    fn at(&self, at: usize) -> &SymbolCounts {
        self.positions.get(at).unwrap_or(&self.unseen)
    }

    /// The logarithm of the room of `key[range]` in what comes before it.
    pub(crate) fn ln_room(&self, key: &str, range: Range<usize>) -> f64 {
        let symbols = key.as_bytes().get(range.start..range.end.min(key.len())).unwrap_or_default();
        let rooms = symbols.iter().zip(range.start..);
        rooms.map(|(symbol, at)| self.at(at).room(*symbol).ln()).sum()
    }

    /// The place of `key` among all that begin with `key[..stem]`.
    pub(crate) fn place(&self, key: &str, stem: usize) -> f64 {
        let (mut place, mut room) = (0.0, 1.0);
        for (at, symbol) in key.bytes().enumerate().skip(stem) {
            place += room * self.at(at).below[usize::from(symbol)];
            room *= self.at(at).room(symbol);
            if room < NARROWEST {
                break;
            }
        }
        place
    }

    /// The logarithm of the room between two keys, the second one or the end of all.
    pub(crate) fn ln_span(&self, from: &str, to: Option<&str>) -> f64 {
        let stem = to.map_or(0, |to| common(from, to));
        let room = to.map_or(1.0, |to| self.place(to, stem)) - self.place(from, stem);
        self.ln_room(from, 0..stem) + room.max(1e-18).ln()
    }

    /// A string that begins with `stem` and has this place among those that do, give or take
    /// `tolerance`.
    pub(crate) fn string_at(&self, stem: &[u8], place: f64, tolerance: f64) -> Vec<u8> {
        let mut string = stem.to_vec();
        let (mut left, mut room) = (place, 1.0);
        for at in stem.len()..MAX_KEY_BYTES {
            let below = &self.at(at).below;
            let symbol = below.partition_point(|below| *below * room <= left).clamp(1, 256) - 1;
            left = (left - room * below[symbol]).max(0.0);
            room *= below[symbol + 1] - below[symbol];
            string.push(u8::try_from(symbol).expect("one of 256"));
            if room < tolerance || room < NARROWEST {
                break;
            }
        }
        string
    }
}

impl Default for SymbolCounts {
    fn default() -> Self {
        let edges = Box::new([0; 256]);
        let mut position = Self { edges, below: Box::new([0.0; 257]), is_stale: true };
        position.refresh();
        position
    }
}

impl SymbolCounts {
    fn room(&self, symbol: u8) -> f64 {
        let symbol = usize::from(symbol);
        (self.below[symbol + 1] - self.below[symbol]).max(1e-9)
    }

    fn refresh(&mut self) {
        let mut seen = 0;
        let mut total = 0.0;
        for (symbol, edges) in (0..=255).zip(self.edges.iter()).filter(|(_, edges)| **edges > 0) {
            seen |= 1 << SymbolClass::of(symbol) as u32;
            total += f64::from(*edges);
        }
        let alike = |symbol: u8| match SymbolClass::of(symbol) {
            SymbolClass::Other => self.edges[usize::from(symbol)] > 0,
            class => class.is_alike(seen),
        };
        let alikes: u16 = (0..=255).map(|symbol| u16::from(alike(symbol))).sum();
        let among_alike = if alikes == 0 { 0.0 } else { 0.8 / f64::from(alikes) };
        let general = if alikes == 0 { 1.0 } else { 0.2 };
        let mut sum = 0.0;
        for symbol in 0..=255_u8 {
            let at = usize::from(symbol);
            let prior = general * SymbolClass::general_room(symbol)
                + if alike(symbol) { among_alike } else { 0.0 };
            self.below[at] = sum;
            sum += (f64::from(self.edges[at]) + PRIOR_EDGES * prior) / (total + PRIOR_EDGES);
        }
        self.below[256] = sum;
        for below in self.below.iter_mut() {
            *below /= sum;
        }
        self.is_stale = false;
    }
}

/// Symbols that stand for each other: where one was seen, the others are likely.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SymbolClass {
    Digit,
    LowerHex,
    Lower,
    UpperHex,
    Upper,
    /// The first byte of most characters beyond Latin, Greek and Cyrillic.
    Lead,
    /// Any further byte of a character.
    Continuation,
    Other,
}

impl SymbolClass {
    const fn of(symbol: u8) -> Self {
        match symbol {
            b'0'..=b'9' => Self::Digit,
            b'a'..=b'f' => Self::LowerHex,
            b'g'..=b'z' => Self::Lower,
            b'A'..=b'F' => Self::UpperHex,
            b'G'..=b'Z' => Self::Upper,
            0x80..=0xbf => Self::Continuation,
            0xe0..=0xef => Self::Lead,
            _ => Self::Other,
        }
    }

    /// It is likely where the classes were seen whose bits are set.
    fn is_alike(self, seen: u32) -> bool {
        let has = |class: Self| seen & 1 << class as u32 != 0;
        match self {
            // Where there are digits and no letter behind f, there are hexadecimal numbers.
            Self::Digit => has(self) || has(Self::LowerHex) || has(Self::UpperHex),
            Self::LowerHex => has(self) || has(Self::Lower),
            Self::UpperHex => has(self) || has(Self::Upper),
            Self::Lower => has(self) || (has(Self::LowerHex) && !has(Self::Digit)),
            Self::Upper => has(self) || (has(Self::UpperHex) && !has(Self::Digit)),
            Self::Lead | Self::Continuation | Self::Other => has(self),
        }
    }

    /// The room of a symbol where nothing was seen: names are made of digits and letters.
    fn general_room(symbol: u8) -> f64 {
        match symbol {
            b'0'..=b'9' => 0.40 / 10.0,
            b'a'..=b'z' => 0.35 / 26.0,
            b'A'..=b'Z' => 0.15 / 26.0,
            b'-' | b'.' | b'/' | b'_' => 0.06 / 4.0,
            b' '..=b'~' => 0.03 / 29.0,
            _ => 0.01 / 161.0,
        }
    }
}

/// Length of the common beginning of two strings.
pub(crate) fn common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
