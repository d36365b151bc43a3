//! Which pages of one prefix to ask for at the same time. Pure.
//!
//! The keys still to come are cut into ranges, and each range is listed page by page. Whenever one
//! more request may be in flight, the range that seems to hold the most pages is cut in two and the
//! right half is tried (a *probe*). The place of the cut is guessed:
//!
//! - from a model of the names seen so far ([`model`]), and how densely its places were filled, in
//!   the whole listing and in this range;
//! - where a range outlives its estimate, the model is wrong. Then the range's age is the best
//!   guess of what is left (Lindy), and the cut is made some page widths ahead: a few at first,
//!   four times more when that was not too far. Such leaps find the end of a stem of 200 bytes or
//!   of a gap. Where keys stand in dense clusters, as in `ImageNet`, a page's width does not
//!   predict the keys behind the cluster: so leaps take turns with the model's cuts where the model
//!   sees many pages, and are believed as far as they have found keys lately.
//!
//! Invariant: a probe is made only as long as all requests, it included, stay under a share above
//! the full pages that the keys found so far would fill ([`LEAST_WASTE`]). So a small directory is
//! listed page by page, and a larger one with more requests at once.
//!
//! A store that ignores `start-after` would answer a probe with the beginning of the prefix. Until
//! one probe has been answered well, there is only one, and its range is taken back if its left
//! neighbour comes to it first.

use self::density::{KeyDensity, real};
pub(crate) use self::range::RangeId;
use self::range::{Cut, FIRST_LEAP, KeyRange, behind_stem};
use crate::names::rules::MAX_KEY_BYTES;
use crate::store::{ListFrom, ListPage, StoreError};

mod density;
mod model;
mod range;

/// Requests beyond the pages, for each full page of keys found: a probe for every five pages keeps
/// regular names, whose probes mostly succeed, below 1.3 requests a page.
const LEAST_WASTE: f64 = 0.2;
/// Beyond [`MANY_PAGES`], where irregular names are worth more of it: in all less than 2.
const MORE_WASTE: f64 = 0.7;
const MANY_PAGES: f64 = 200.0;

/// Pages behind the page in flight that a range must seem to hold to be cut.
const LEAST_CUT: f64 = 0.7;

/// Pages that come while the first probe has no answer, after which it will get none.
const PATIENCE_PAGES: u32 = 8;

/// Empty pages in a row, each with a token, after which a listing is an error. S3 sends some when
/// it skips deleted versions; a broken store might send them forever.
pub(crate) const MAX_EMPTY_PAGES: u32 = 100;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListingOrder {
    /// Not tried yet.
    #[default]
    Unknown,
    /// In key order, and a listing begins where the request says.
    Seekable,
    /// In key order, but `start-after` is ignored or fails: listings are not split.
    Sequential,
    /// In no order: listings are fetched whole and sorted, and a page proves only what it shows.
    Unordered,
}

pub(crate) struct Ask {
    pub(crate) range: RangeId,
    pub(crate) from: ListFrom,
}

/// Entries of a page that belong to a range, behind those it has.
pub(crate) type RangeShare = (RangeId, std::ops::Range<usize>);

/// The keys of a prefix that are still to be listed, and how.
#[derive(Default)]
pub(crate) struct ListingPlan {
    prefix: String,
    workers: usize,
    pub(super) order: ListingOrder,
    density: KeyDensity,
    /// In key order, side by side.
    ranges: Vec<KeyRange>,
    last_id: u32,
    in_flight: usize,
    requests: usize,
    /// Pages since the only probe was sent, while there is but one.
    pages_since_probe: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Found,
    /// There was nothing.
    TooFar,
    /// The page on its left reached beyond its range.
    TooNear,
}

impl ListingPlan {
    pub(crate) fn new(prefix: &str, page_keys: u16, workers: usize, order: ListingOrder) -> Self {
        Self {
            prefix: prefix.to_owned(),
            workers,
            order,
            density: KeyDensity::new(page_keys),
            ranges: vec![KeyRange::new(RangeId(0), None, ListFrom::Start)],
            ..Self::default()
        }
    }

    /// The leftmost range, and whether it has all its entries.
    pub(crate) fn leftmost(&self) -> Option<(RangeId, bool)> {
        self.ranges.first().map(|range| (range.id, range.done))
    }

    /// Forgets the leftmost range, which has all its entries.
    pub(crate) fn take_leftmost(&mut self) {
        debug_assert!(self.ranges[0].done, "it has all its entries");
        self.ranges.remove(0);
    }

    /// The next page to ask for now.
    pub(crate) fn ask(&mut self) -> Option<Ask> {
        if self.in_flight >= self.workers {
            return None;
        }
        let waiting = self.ranges.iter().position(|range| !range.done && !range.in_flight);
        let at = waiting.or_else(|| self.cut())?;
        let range = &mut self.ranges[at];
        range.in_flight = true;
        self.in_flight += 1;
        self.requests += 1;
        Some(Ask { range: range.id, from: range.from.clone() })
    }

    /// Gives out the entries of a page that [`check_page`](crate::store::check_page) has found
    /// good, but not those that another page has brought.
    pub(crate) fn answer(
        &mut self,
        id: RangeId,
        page: &ListPage,
    ) -> Result<Vec<RangeShare>, StoreError> {
        self.in_flight -= 1;
        let Some(at) = self.ranges.iter().position(|range| range.id == id && !range.done) else {
            // Another page has brought all that it could have found.
            let probe = self.ranges.iter().find(|range| range.id == id && range.is_probe());
            if let Some((parent, cut)) = probe.and_then(|probe| probe.cut_from) {
                self.note(parent, cut, Probe::TooNear);
            }
            return Ok(Vec::new());
        };
        self.ranges[at].in_flight = false;
        let is_probe = self.ranges[at].is_probe();
        if is_probe {
            self.order = ListingOrder::Seekable;
        } else if self.order == ListingOrder::Unknown {
            self.take_back(at, page);
        }

        let keys = self.below(page);
        let range = &self.ranges[at];
        // A common prefix in which the range begins comes again.
        let first = range.behind_cursor(&keys);
        let own = range.up_to_end(&keys).max(first);
        self.learn(at, &keys, (first, own), page.next.is_some());

        let range = &mut self.ranges[at];
        range.pages += 1;
        range.pages_since_cut += 1;
        range.empty_pages = if keys.len() > first { 0 } else { range.empty_pages + 1 };
        if range.empty_pages >= MAX_EMPTY_PAGES {
            return Err(StoreError::nonsense(format!(
                "{MAX_EMPTY_PAGES} empty pages in a row in the listing of {:?}",
                self.prefix
            )));
        }
        let mut shares = vec![(id, first..own)];
        range.go_on(page, &keys[first..own], own == keys.len(), &self.prefix);
        if own < keys.len() || page.next.is_none() {
            self.share(at + 1, page, &keys, &mut shares);
        }
        self.density.keys += shares.iter().map(|(_, entries)| entries.len()).sum::<usize>();
        Ok(shares)
    }

    /// A request has failed. True if it is not needed: other pages have brought its entries, or it
    /// was the first probe, so that its range is taken back and no other is cut.
    pub(crate) fn failed(&mut self, id: RangeId) -> bool {
        self.in_flight -= 1;
        let Some(at) = self.ranges.iter().position(|range| range.id == id && !range.done) else {
            return true;
        };
        // Any error may be the answer to `start-after`; the left range gets the others too.
        let is_first = self.order == ListingOrder::Unknown && self.ranges[at].is_probe();
        if is_first {
            self.join(at - 1);
            self.order = ListingOrder::Sequential;
        }
        is_first
    }

    /// Entries behind the end of a range belong to those on its right: all of such a range, or the
    /// beginning of one that has no request in flight.
    fn share(&mut self, from: usize, page: &ListPage, keys: &[&str], shares: &mut Vec<RangeShare>) {
        for range in &mut self.ranges[from..] {
            let (first, own) = (range.behind_cursor(keys), range.up_to_end(keys));
            if page.next.is_some() && first == keys.len() {
                break;
            }
            let is_whole = page.next.is_none() || own < keys.len();
            if range.done || (range.in_flight && !is_whole) {
                continue;
            }
            shares.push((range.id, first..own));
            range.go_on(page, &keys[first..own], own == keys.len(), &self.prefix);
        }
    }

    /// A page's keys without the prefix.
    fn below<'a>(&self, page: &'a ListPage) -> Vec<&'a str> {
        page.entries.iter().map(|entry| &entry.key()[self.prefix.len()..]).collect()
    }

    /// Takes the range of the first probe back when this page comes to it, or when the probe has
    /// been silent for too long.
    fn take_back(&mut self, at: usize, page: &ListPage) {
        let Some(end) = self.ranges[at].end.clone() else { return };
        self.pages_since_probe += 1;
        let reached = self.below(page).last().is_some_and(|last| *last >= end.as_str());
        let patience_ends = self.pages_since_probe >= PATIENCE_PAGES;
        if patience_ends {
            self.order = ListingOrder::Sequential;
        }
        if reached || patience_ends {
            self.join(at);
        }
    }

    /// Joins a range and its right neighbour, which has had no page.
    fn join(&mut self, at: usize) {
        let right = self.ranges.remove(at + 1);
        self.ranges[at].end = right.end;
    }

    fn learn(&mut self, at: usize, keys: &[&str], own: (usize, usize), is_cut_off: bool) {
        let range = &mut self.ranges[at];
        let is_all = self.density.learn(range, keys, own, is_cut_off);
        let Some((parent, cut)) = range.cut_from.filter(|_| range.pages == 0) else { return };
        // Its parent learns whether it was cut too far.
        let found = own.1 > own.0;
        range.width_is_good = cut == Cut::Leap && found && !is_all;
        self.note(parent, cut, if found { Probe::Found } else { Probe::TooFar });
    }

    /// Notes the outcome of a probe with the range that it was cut from.
    fn note(&mut self, parent: RangeId, cut: Cut, probe: Probe) {
        let (by_leap, found) = (cut == Cut::Leap, probe == Probe::Found);
        self.density.probes.note(found);
        if by_leap {
            self.density.leaps.note(found);
        }
        let Some(parent) = self.ranges.iter_mut().find(|range| range.id == parent) else { return };
        if found && by_leap {
            parent.width_is_good = true;
            parent.leap *= 2.0;
        } else if !found && cut != Cut::Stem {
            parent.width_is_good = false;
            if probe == Probe::TooFar {
                parent.leap = FIRST_LEAP;
            }
        }
    }

    /// Cuts the range that seems to hold most, and gives the place of its right half.
    fn cut(&mut self) -> Option<usize> {
        let untried = self.order == ListingOrder::Unknown;
        if self.order == ListingOrder::Sequential || (untried && self.ranges.len() > 1) {
            return None;
        }
        let probing = self.ranges.iter().filter(|range| range.is_probe() && !range.done).count();
        let answered = real(self.requests - self.in_flight);
        let full = self.density.full_pages();
        let waste = full * LEAST_WASTE + (full - MANY_PAGES).max(0.0) * MORE_WASTE;
        if answered + real(probing) + 1.0 > full + waste {
            return None;
        }

        let luck = self.density.probes.share().max(0.05);
        let mut candidates: Vec<(f64, bool, usize)> = Vec::new();
        for (at, range) in self.ranges.iter().enumerate().filter(|(_, range)| !range.done) {
            let (pages, by_leap) = self.density.estimate(range);
            let pages = (pages - 1.0) * if range.pages == 0 { luck } else { 1.0 };
            if pages > LEAST_CUT {
                candidates.push((pages.min(4096.0), by_leap, at));
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (at, end, cut) = candidates.into_iter().find_map(|(pages, by_leap, at)| {
            let range = &self.ranges[at];
            // The left half has a page in flight, so it keeps one more than a half.
            let left = ((1.0 + pages / 2.0) / (1.0 + pages)).clamp(0.05, 0.97);
            let middle = || self.density.middle(range, left);
            let leap = || self.density.leap(range);
            if let Some(end) = behind_stem(range) {
                Some((at, end, Cut::Stem))
            } else if by_leap {
                Some((at, leap().or_else(middle)?, Cut::Leap))
            } else {
                Some((at, middle().or_else(leap)?, Cut::Model))
            }
        })?;
        (self.prefix.len() + end.len() <= MAX_KEY_BYTES).then(|| self.cut_at(at, end, cut))
    }

    fn cut_at(&mut self, at: usize, end: String, cut: Cut) -> usize {
        self.last_id += 1;
        self.pages_since_probe = 0;
        let left = &mut self.ranges[at];
        let from = ListFrom::After(format!("{}{end}", self.prefix));
        let right = KeyRange {
            width: left.width.clone(),
            leap: if cut == Cut::Leap { left.leap * 4.0 } else { left.leap },
            cut_from: Some((left.id, cut)),
            last_cut: Some(cut),
            cursor: Some(end.clone()),
            ..KeyRange::new(RangeId(self.last_id), left.end.take(), from)
        };
        left.end = Some(end);
        left.last_cut = Some(cut);
        left.pages_since_cut = 0;
        // Within a stem the model may know nothing of densities.
        left.width_is_good |= cut == Cut::Stem;
        self.ranges.insert(at + 1, right);
        at + 1
    }
}

#[cfg(test)]
mod tests;
