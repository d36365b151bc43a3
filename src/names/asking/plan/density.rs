//! How densely keys lie, and what that says of a range: how many pages it holds, and where to cut
//! it. Pure.

use super::model::{KeyModel, common};
use super::range::{Cut, KeyRange, Width, speakable};

/// Pages up to which an estimate by a single page's width is believed.
const FARTHEST_PAGES: f64 = 256.0;

/// Pages in sight of the model that are worth a cut by it, whatever a page's width says.
const MANY_IN_SIGHT: f64 = 8.0;

/// Share of the last leaps that must have found keys for a single page's width to be believed.
const LEAST_LUCK: f64 = 0.5;

/// The share of probes that found keys, the last ones weighing most.
#[derive(Clone, Copy, Default)]
pub(super) struct Luck {
    found: f64,
    of: f64,
}

impl Luck {
    pub(super) fn note(&mut self, found: bool) {
        self.found = self.found * 0.95 + f64::from(u8::from(found));
        self.of = self.of * 0.95 + 1.0;
    }

    /// One half before anything is known.
    pub(super) fn share(self) -> f64 {
        (self.found + 1.0) / (self.of + 2.0)
    }
}

/// Everything that the pages of a listing have shown of its keys.
#[derive(Default)]
pub(super) struct KeyDensity {
    model: KeyModel,
    pub(super) page_keys: f64,
    pub(super) keys: usize,
    /// The room that the pages so far cover.
    room: f64,
    pub(super) probes: Luck,
    pub(super) leaps: Luck,
}

impl KeyDensity {
    pub(super) fn new(page_keys: u16) -> Self {
        Self { page_keys: f64::from(page_keys), ..Self::default() }
    }

    /// Full pages that the keys found so far fill.
    pub(super) fn full_pages(&self) -> f64 {
        real(self.keys) / self.page_keys
    }

    /// Learns from a page of a range, whose own entries are `keys[first..own]`. True if the page
    /// has come to the end of the range.
    pub(super) fn learn(
        &mut self,
        range: &mut KeyRange,
        keys: &[&str],
        (first, own): (usize, usize),
        is_cut_off: bool,
    ) -> bool {
        let start = range.cursor().to_owned();
        let before = if range.pages > 0 { &*start } else { "" };
        self.model.learn(before, &keys[first..]);

        let is_all = own < keys.len() || !is_cut_off;
        let end = if is_all { range.end.as_deref() } else { keys.last().copied() };
        // What lies before the very first key says nothing of how densely keys lie.
        let from = if range.cursor.is_none() { keys.first().copied() } else { Some(&*start) };
        let room = from.map_or(0.0, |from| self.model.ln_span(from, end).exp());
        if let [first, .., last] = keys[first..] {
            let stem = common(first, last);
            let room = self.model.place(last, stem) - self.model.place(first, stem);
            let full = self.page_keys / real(keys.len());
            let ln_room = (room.max(1e-12) * full).ln();
            range.width = Some(Width { last: last.to_owned(), stem, ln_room });
        }
        let found = own - first;
        // Nor does the room behind a stem that holds all keys.
        let behind_stem = matches!(range.cut_from, Some((_, Cut::Stem)));
        let room = if behind_stem && found == 0 { 0.0 } else { room };
        self.room += room;
        if range.first.is_none() {
            range.first = keys.get(first).map(|key| (*key).to_owned());
        }
        range.keys += found;
        range.room += room;
        is_all
    }

    /// The pages that a range seems to hold; true if that is no estimate of the model.
    pub(super) fn estimate(&self, range: &KeyRange) -> (f64, bool) {
        let mut density = real(self.keys) / self.room.max(f64::MIN_POSITIVE);
        if range.keys > 0 {
            density = (density * (real(range.keys) / range.room.max(f64::MIN_POSITIVE))).sqrt();
        }
        let span = self.model.ln_span(range.cursor(), range.end.as_deref()).exp();
        let by_model = span * density / self.page_keys;
        let luck = self.leaps.share();
        if range.width_is_good && luck >= LEAST_LUCK {
            let by_width = self.pages_by_width(range).min(FARTHEST_PAGES);
            if by_width > by_model {
                let is_turn = range.last_cut != Some(Cut::Leap);
                return (by_width, is_turn || by_model < MANY_IN_SIGHT);
            }
        }
        let age = f64::from(range.pages_since_cut) * (luck / LEAST_LUCK).min(1.0);
        if age > by_model { (age, true) } else { (by_model, false) }
    }

    /// The pages of the range if all of it is as dense as its last page.
    fn pages_by_width(&self, range: &KeyRange) -> f64 {
        let Some(width) = &range.width else { return FARTHEST_PAGES };
        let stem = range.end.as_ref().map_or(0, |end| common(range.cursor(), end));
        let end = range.end.as_ref().map_or(1.0, |end| self.model.place(end, stem));
        let room = end - self.model.place(range.cursor(), stem);
        if room <= 0.0 {
            return 0.0;
        }
        (room.ln() - self.ln_width(width, range.cursor(), stem)).exp()
    }

    /// The width as seen from another stem.
    fn ln_width(&self, width: &Width, cursor: &str, stem: usize) -> f64 {
        if stem <= width.stem {
            width.ln_room + self.model.ln_room(&width.last, stem..width.stem)
        } else {
            width.ln_room - self.model.ln_room(cursor, width.stem..stem)
        }
    }

    /// A place that leaves this share of the range's room on its left.
    pub(super) fn middle(&self, range: &KeyRange, left: f64) -> Option<String> {
        let (cursor, end) = (range.cursor(), range.end.as_deref());
        let stem = end.map_or(0, |end| common(cursor, end));
        let from = self.model.place(cursor, stem);
        let room = end.map_or(1.0, |end| self.model.place(end, stem)) - from;
        if room <= 0.0 {
            return None;
        }
        let stem = &cursor.as_bytes()[..stem];
        speakable(&self.model.string_at(stem, from + room * left, room * 0.02), cursor, end)
    }

    /// A place `range.leap` widths of its last page ahead, or behind the last page's stem.
    pub(super) fn leap(&self, range: &KeyRange) -> Option<String> {
        let width = range.width.as_ref()?;
        let pages = self.pages_by_width(range);
        let leap = if pages < range.leap * 3.0 { 1.0 + pages / 2.0 } else { range.leap };
        let shortest = range.end.as_ref().map_or(0, |end| common(range.cursor(), end));
        let longest = width.stem.min(range.cursor().len()).max(shortest);
        (shortest..=longest).rev().find_map(|stem| {
            let ahead = leap * self.ln_width(width, range.cursor(), stem).exp();
            let place = self.model.place(range.cursor(), stem) + ahead;
            if place >= 1.0 {
                return None;
            }
            let end = self.model.string_at(&range.cursor().as_bytes()[..stem], place, ahead * 0.05);
            speakable(&end, range.cursor(), range.end.as_deref())
        })
    }
}

/// Counts here are far below what a float can tell apart.
pub(super) fn real(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}
