//! Keys that are computed instead of stored, in key order. Pure.
//!
//! A pattern is a row of columns, and has a key for each combination of their values: the last
//! column counts fastest. Every column's values ascend and none is the beginning of another, so the
//! keys ascend too, and halving finds any of them.

use std::fmt::Write as _;
use std::ops::Bound;

use crate::objects::Family;

/// Any number of keys, each a synthetic object, at the cost of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    columns: Vec<Column>,
    count: u64,
    /// The bytes of each object.
    pub(crate) size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Column {
    Text(String),
    /// Numbers from 0 to `count` − 1 with leading zeros.
    Number {
        count: u64,
        digits: usize,
    },
    /// Numbers of 64 bits in hexadecimal digits, scattered as digests are.
    Hex {
        count: u64,
    },
    /// These, each with the text that follows it.
    Table(Vec<String>),
}

impl From<Family> for Pattern {
    fn from(family: Family) -> Self {
        let Family { prefix, count, size, suffix } = family;
        let columns = vec![Column::Text(prefix), Column::number(count), Column::Text(suffix)];
        Self { columns, count, size }
    }
}

impl Pattern {
    /// Reads `wide/{10000}/{100}.jpg`: text, and in braces a column. `{N}` is a number from 0 to
    /// N − 1 with leading zeros, `{hex:N}` one of N scattered hexadecimal numbers of 16 digits,
    /// `{plain:N}` one of N numbers without leading zeros, `{word:N}` one of N made-up words.
    ///
    /// Fails with what is wrong.
    pub fn parse(text: &str, size: u64) -> Result<Self, String> {
        let mut columns = Vec::new();
        let mut parts = text.split('{');
        columns.push(Column::Text(parts.next().unwrap_or_default().to_owned()));
        for part in parts {
            let (column, behind) = part.split_once('}').ok_or("a brace that is not closed")?;
            let (kind, count) = column.split_once(':').unwrap_or(("", column));
            let count: u64 = count.parse().map_err(|error| format!("{count:?}: {error}"))?;
            let behind = behind.to_owned();
            match kind {
                "" => columns.extend([Column::number(count), Column::Text(behind)]),
                "hex" => columns.extend([Column::Hex { count }, Column::Text(behind)]),
                "plain" => columns.push(Column::table(count, plain, &behind)),
                "word" => columns.push(Column::table(count, word, &behind)),
                _ => return Err(format!("there is no column {kind:?}")),
            }
        }
        let mut counts = columns.iter().map(Column::count);
        let count = counts.try_fold(1_u64, u64::checked_mul);
        match count {
            None => Err("more keys than a number can count".to_owned()),
            Some(0) => Err("no keys".to_owned()),
            Some(count) => Ok(Self { columns, count, size }),
        }
    }

    /// Number of keys.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The key number `index`, in key order. `index` must be below [`Self::count`].
    #[must_use]
    pub fn key(&self, index: u64) -> String {
        debug_assert!(index < self.count, "{index} of {}", self.count);
        let mut key = String::new();
        // The keys that share the value of a column, and which of them it is.
        let (mut share, mut index) = (self.count, index);
        for column in &self.columns {
            share /= column.count();
            column.write(index / share, &mut key);
            index %= share;
        }
        key
    }

    /// The number of the first key inside the bound.
    pub(crate) fn first_at(&self, from: Bound<&[u8]>) -> u64 {
        let before = |index| match from {
            Bound::Included(key) => self.key(index).as_bytes() < key,
            Bound::Excluded(key) => self.key(index).as_bytes() <= key,
            Bound::Unbounded => false,
        };
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub(crate) fn has(&self, key: &[u8]) -> bool {
        let index = self.first_at(Bound::Included(key));
        index < self.count && self.key(index).as_bytes() == key
    }
}

impl Column {
    fn number(count: u64) -> Self {
        let digits = count.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1;
        Self::Number { count, digits }
    }

    /// The first `count` different values of an endless sequence, in order with what follows them:
    /// `1.jpg` stands before `10.jpg`, and `1x` behind `10x`.
    fn table(count: u64, value: fn(u64) -> String, behind: &str) -> Self {
        let mut values = std::collections::BTreeSet::new();
        let mut next = 0;
        while (values.len() as u64) < count {
            values.insert(format!("{}{behind}", value(next)));
            next += 1;
        }
        Self::Table(values.into_iter().collect())
    }

    fn count(&self) -> u64 {
        match self {
            Self::Text(_) => 1,
            Self::Number { count, .. } | Self::Hex { count } => *count,
            Self::Table(values) => values.len() as u64,
        }
    }

    fn write(&self, index: u64, onto: &mut String) {
        let written = match self {
            Self::Text(text) => onto.write_str(text),
            Self::Number { digits, .. } => write!(onto, "{index:0digits$}"),
            Self::Hex { count } => {
                // One in each of as many equal ranges as there are.
                let step = u64::MAX / count;
                write!(onto, "{:016x}", (index * step).saturating_add(scattered(index) % step))
            }
            Self::Table(values) => onto.write_str(&values[usize::try_from(index).expect("small")]),
        };
        written.expect("writing to a string does not fail");
    }
}

/// A number that looks like chance.
fn scattered(index: u64) -> u64 {
    crate::content::seed("", index)
}

/// Numbers of one to five digits, most of them of five.
fn plain(index: u64) -> String {
    (scattered(index) % 50_000).to_string()
}

/// Two to nine letters: vowels and consonants take turns, and common letters come more often.
fn word(index: u64) -> String {
    const LETTERS: [&[u8]; 2] = [b"ttnnsshhrrddllccmmwwffggyyppbbvk", b"eeeaaooiiu"];
    let mut chance = scattered(index);
    let mut take = |below: usize| {
        let below = below as u64;
        let taken = chance % below;
        chance /= below;
        usize::try_from(taken).expect("small")
    };
    let (length, first) = (2 + take(8), take(2));
    let letter = |at: usize| {
        let letters = LETTERS[(first + at) % 2];
        char::from(letters[take(letters.len())])
    };
    (0..length).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ascend_and_each_is_found_by_halving() {
        for text in [
            "a/{7}/{3}.jpg",
            "h/{hex:50}",
            "n{hex:4}_{plain:20}.JPEG",
            "{plain:30}x",
            "w/{word:9}-{word:8}.txt",
            "{1}/{1}",
            "alone",
        ] {
            let pattern = Pattern::parse(text, 1).unwrap();
            let keys: Vec<_> = (0..pattern.count()).map(|index| pattern.key(index)).collect();
            assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
            for (index, key) in keys.iter().enumerate() {
                let index = index as u64;
                assert_eq!(pattern.first_at(Bound::Included(key.as_bytes())), index);
                assert_eq!(pattern.first_at(Bound::Excluded(key.as_bytes())), index + 1);
                assert!(pattern.has(key.as_bytes()) && !pattern.has(format!("{key}~").as_bytes()));
            }
        }
    }

    #[test]
    fn a_pattern_counts_every_combination_and_says_what_is_wrong() {
        let pattern = Pattern::parse("wide/{10000}/{100}.jpg", 1).unwrap();
        assert_eq!(pattern.count(), 1_000_000);
        assert_eq!(pattern.key(123_456), "wide/1234/56.jpg");
        for wrong in ["{", "{x}", "{0}", "{word:x}", "{other:3}", "{1000000000000}{1000000000000}"]
        {
            assert!(Pattern::parse(wrong, 1).is_err(), "{wrong}");
        }
    }
}
