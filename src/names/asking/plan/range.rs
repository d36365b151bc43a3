//! One range of a listing's keys, listed page by page. Pure.

use super::model::common;
use crate::store::{ListFrom, ListPage};

/// The first leap, in widths of the last page.
pub(super) const FIRST_LEAP: f64 = 4.0;

/// Length of a common beginning of a range's keys that is worth a request for keys without it.
const LONG_STEM: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RangeId(pub(super) u32);

/// The keys behind `cursor`, or from the first one, up to `end` or to the last one there is. Both
/// are written without the prefix.
#[derive(Default)]
pub(super) struct KeyRange {
    pub(super) id: RangeId,
    pub(super) cursor: Option<String>,
    pub(super) end: Option<String>,
    pub(super) from: ListFrom,
    pub(super) in_flight: bool,
    pub(super) done: bool,
    /// Pages that it has had, and since it was last cut.
    pub(super) pages: u32,
    pub(super) pages_since_cut: u32,
    pub(super) empty_pages: u32,
    pub(super) keys: usize,
    pub(super) room: f64,
    pub(super) first: Option<String>,
    /// The last page, of this range or of the one it was cut from.
    pub(super) width: Option<Width>,
    pub(super) leap: f64,
    pub(super) cut_from: Option<(RangeId, Cut)>,
    /// Its width has led to keys, so it may be believed further than the model.
    pub(super) width_is_good: bool,
    /// The last cut on either side.
    pub(super) last_cut: Option<Cut>,
}

/// The way in which a range was cut from its left neighbour.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Model,
    Leap,
    Stem,
}

/// Width of a full page: the logarithm of its room among the keys with the same stem.
#[derive(Clone)]
pub(super) struct Width {
    pub(super) last: String,
    pub(super) stem: usize,
    pub(super) ln_room: f64,
}

impl KeyRange {
    pub(super) fn new(id: RangeId, end: Option<String>, from: ListFrom) -> Self {
        Self { id, end, from, leap: FIRST_LEAP, ..Self::default() }
    }

    /// Waits for its first answer.
    pub(super) fn is_probe(&self) -> bool {
        self.pages == 0 && matches!(self.from, ListFrom::After(_))
    }

    pub(super) fn cursor(&self) -> &str {
        self.cursor.as_deref().unwrap_or_default()
    }

    pub(super) fn behind_cursor(&self, keys: &[&str]) -> usize {
        keys.partition_point(|key| Some(*key) <= self.cursor.as_deref())
    }

    pub(super) fn up_to_end(&self, keys: &[&str]) -> usize {
        let end = self.end.as_deref();
        end.map_or(keys.len(), |end| keys.partition_point(|key| *key <= end))
    }

    /// Takes the range's own keys of a page, and sets where it continues; `to_the_last`: up to the
    /// page's last entry.
    pub(super) fn go_on(&mut self, page: &ListPage, own: &[&str], to_the_last: bool, prefix: &str) {
        if let Some(last) = own.last() {
            self.cursor = Some((*last).to_owned());
        }
        let at_end = self.end.is_some() && self.cursor >= self.end;
        let Some(token) = page.next.clone().filter(|_| to_the_last && !at_end) else {
            self.done = true;
            return;
        };
        let cursor = self.cursor.as_ref();
        let last = cursor.map_or_else(String::new, |cursor| format!("{prefix}{cursor}"));
        self.from = ListFrom::Token { token, last };
    }
}

/// A place behind all keys with the common beginning of the range's keys so far. In a range without
/// an end there is likely nothing behind, because numbers are padded and names have a constant
/// beginning; then the model has much less to guess.
pub(super) fn behind_stem(range: &KeyRange) -> Option<String> {
    let cursor = range.cursor();
    let stem = common(range.first.as_deref()?, cursor);
    let bounds = range.end.as_ref().map_or(0, |end| common(cursor, end));
    if range.pages < 2 || stem <= bounds {
        return None;
    }
    let rest = &cursor.as_bytes()[bounds..stem];
    let stem = if range.end.is_some() {
        (rest.len() >= LONG_STEM).then_some(stem)?
    } else if let Some(word) = rest.iter().rposition(|symbol| !symbol.is_ascii_digit()) {
        bounds + word + 1
    } else {
        // Somewhere in the number the digits begin to count.
        (rest.len() >= 2).then_some(bounds + rest.len() / 2)?
    };
    let mut behind = cursor.as_bytes()[..stem].to_vec();
    behind.push(b'~');
    speakable(&behind, cursor, range.end.as_deref())
}

/// The guess as a `start-after` between the two keys: UTF-8, no control character, and not inside a
/// common prefix, which would be listed on both sides.
pub(super) fn speakable(guess: &[u8], behind: &str, before: Option<&str>) -> Option<String> {
    let mut guess = guess.iter().copied().peekable();
    let mut spoken = Vec::new();
    while let Some(byte) = guess.next() {
        let (more, least, most) = match byte {
            // Behind everything in the common prefix.
            b'/' => {
                spoken.push(b'/' + 1);
                break;
            }
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => {
                spoken.push(byte.clamp(b' ', b'~'));
                continue;
            }
        };
        spoken.push(byte);
        let mut bounds = (least, most);
        for _ in 0..more {
            spoken.push(guess.next().unwrap_or(bounds.0).clamp(bounds.0, bounds.1));
            bounds = (0x80, 0xbf);
        }
    }
    let spoken = String::from_utf8(spoken).expect("built by the table of UTF-8");
    (spoken.as_str() > behind && before.is_none_or(|end| spoken.as_str() < end)).then_some(spoken)
}
