//! Which pages of one prefix to ask for at the same time. Pure.
//!
//! The keys still to come are cut into ranges, and each range is listed page by page. Whenever a
//! request more may be in flight, the range that seems to hold the most pages is cut in two and the
//! right half is tried (a *probe*). Nobody says how names look, so the cut is guessed:
//!
//! - from a model of the names seen so far ([`model`]), weighed with how densely its places were
//!   filled, in the whole listing and in this range;
//! - where a range outlives its estimate the model is wrong about it, and then its age is the best
//!   guess of what is left (as long again as it has lasted, after Lindy), and the cut is made so
//!   many pages ahead as the last page was wide: a few at first, four times more when that was
//!   not too far, so that a stem of 200 bytes or a gap is found by leaps. Where keys stand in dense
//!   clusters, as those of `ImageNet` do, a page's width says nothing of what is behind the cluster: leaps
//!   take turns with the model's cuts where that still sees many pages, and are believed as far as
//!   they have had luck lately.
//!
//! A page knows everything between the key it began behind and its last one: what that says of
//! other ranges is taken too.
//!
//! Guesses cost requests. Invariant: a probe is made only as long as all requests, it included, stay
//! under a share above the full pages that the keys found so far would fill ([`LEAST_WASTE`]). So a
//! small directory is listed page by page, and a larger one the more parallel the larger it turns
//! out to be.
//!
//! A store that does not know `start-after` would answer a probe with the beginning of the prefix.
//! Until one probe has been answered well, there is only one, and its range is taken back if its
//! left neighbour comes to it first.

use self::model::{Model, common};
use crate::names::rules::MAX_KEY_BYTES;
use crate::store::{ListFrom, ListPage, StoreError};

mod model;

/// So many requests more than pages there may be, for each full page of keys found: a probe for
/// every five pages, so that regular names, whose probes mostly succeed, stay below 1.3 requests a
/// page and a directory of up to five pages is not guessed about.
const LEAST_WASTE: f64 = 0.2;
/// Beyond [`MANY_PAGES`], where irregular names are worth more of it: in all less than 2.
const MORE_WASTE: f64 = 0.7;
const MANY_PAGES: f64 = 200.0;

/// Bytes that a range's keys begin with, so many that it is worth a request to see whether there are
/// any that do not.
const LONG_STEM: usize = 8;

/// Not worth a cut: what a range seems to hold, in pages, behind the page in flight.
const LEAST_CUT: f64 = 0.7;

/// The first leap, in widths of the last page, and how it grows.
const FIRST_LEAP: f64 = 4.0;

/// An estimate by a single page's width is not believed any further than this.
const FARTHEST_PAGES: f64 = 256.0;

/// So many pages in sight of the model are worth a cut by it, whatever a page's width says.
const MANY_IN_SIGHT: f64 = 8.0;

/// Of leaps lately so many must have found something for a single page's width to be believed.
const LEAST_LUCK: f64 = 0.5;

/// So many pages come while the first probe is not answered: the store does not answer those.
const PATIENCE_PAGES: u32 = 8;

/// So many empty pages in a row, each with a token that leads on, are not a listing any more. S3
/// sends some when it skips deleted versions; a broken store might send them for ever.
pub(crate) const MAX_EMPTY_PAGES: u32 = 100;

/// How a store lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListingOrder {
    /// Not tried yet.
    #[default]
    Unknown,
    /// In key order, and a listing begins where the request says.
    Seekable,
    /// In key order, but `start-after` is ignored or fails: listings are not split.
    Sequential,
    /// In no order, so that no key says where anything begins: listings are fetched whole and
    /// sorted, and a page proves nothing but what it shows.
    Unordered,
}

/// One of the ranges of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RangeId(u32);

/// A page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// On behalf of this range.
    pub(crate) range: RangeId,
    /// Where the page begins.
    pub(crate) from: ListFrom,
}

/// Entries of a page that belong to a range, behind those it has.
pub(crate) type Share = (RangeId, std::ops::Range<usize>);

/// What is still to be listed of a prefix, and how.
#[derive(Debug)]
pub(crate) struct ListingPlan {
    prefix: String,
    page_keys: f64,
    workers: usize,
    order: ListingOrder,
    model: Model,
    /// In key order, side by side.
    ranges: Vec<Range>,
    last_id: u32,
    in_flight: usize,
    requests: usize,
    keys: usize,
    /// The room that the pages so far cover, and with it how densely keys lie.
    room: f64,
    probes: Luck,
    leaps: Luck,
    /// Pages since the only probe was sent, while there is but one.
    pages_since_probe: u32,
}

/// The keys behind `cursor`, or from the first one, up to `end` or to the last one there is. Both
/// are written without the prefix.
#[derive(Clone, Debug)]
struct Range {
    id: RangeId,
    cursor: Option<String>,
    end: Option<String>,
    /// What the next request asks for.
    from: ListFrom,
    in_flight: bool,
    done: bool,
    /// Pages that it has had, and since it was last cut.
    pages: u32,
    pages_since_cut: u32,
    empty_pages: u32,
    keys: usize,
    room: f64,
    first: Option<String>,
    /// The last page, of this range or of the one it was cut from.
    width: Option<Width>,
    leap: f64,
    cut_from: Option<(RangeId, Cut)>,
    /// Its width has led to keys, so it may be believed further than the model.
    width_is_good: bool,
    /// How it was last cut, on either side.
    last_cut: Option<Cut>,
}

/// Of some probes lately: how many found anything, of how many.
#[derive(Clone, Copy, Debug, Default)]
struct Luck {
    found: f64,
    of: f64,
}

impl Luck {
    fn note(&mut self, found: bool) {
        self.found = self.found * 0.95 + f64::from(u8::from(found));
        self.of = self.of * 0.95 + 1.0;
    }

    /// One half before anything is known.
    fn share(self) -> f64 {
        (self.found + 1.0) / (self.of + 2.0)
    }
}

/// How a range was cut from its left neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Model,
    Leap,
    Stem,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Found,
    /// There was nothing.
    TooFar,
    /// The page on its left reached beyond its range.
    TooNear,
}

/// How wide a full page was: the logarithm of its room among the keys with the same stem.
#[derive(Clone, Debug)]
struct Width {
    last: String,
    stem: usize,
    ln_room: f64,
}

impl ListingPlan {
    /// Of everything behind `prefix`, `page_keys` entries a page and `workers` pages at a time.
    pub(crate) fn new(prefix: &str, page_keys: u16, workers: usize, order: ListingOrder) -> Self {
        let whole = Range::new(RangeId(0), None, None, ListFrom::Start);
        Self {
            prefix: prefix.to_owned(),
            page_keys: f64::from(page_keys),
            workers,
            order,
            model: Model::new(),
            ranges: vec![whole],
            last_id: 0,
            in_flight: 0,
            requests: 0,
            keys: 0,
            room: 0.0,
            probes: Luck::default(),
            leaps: Luck::default(),
            pages_since_probe: 0,
        }
    }

    /// What is known by now of the store.
    pub(crate) fn order(&self) -> ListingOrder {
        self.order
    }

    /// The store has turned out to list in no order: there is nothing to plan.
    pub(crate) fn is_unordered(&mut self) {
        self.order = ListingOrder::Unordered;
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

    /// The next page to ask for, if there is one to ask for at this moment.
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

    /// A page has come that [`check_page`](crate::store::check_page) has found good. Gives out its
    /// entries; those that another page has brought are nobody's.
    pub(crate) fn answer(
        &mut self,
        id: RangeId,
        page: &ListPage,
    ) -> Result<Vec<Share>, StoreError> {
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
        self.learn(at, &keys, first, own, page.next.is_some());

        let range = &mut self.ranges[at];
        range.pages += 1;
        range.pages_since_cut += 1;
        range.empty_pages = if keys.len() > first { 0 } else { range.empty_pages + 1 };
        if range.empty_pages >= MAX_EMPTY_PAGES {
            let prefix = &self.prefix;
            return Err(StoreError::nonsense(format!(
                "{MAX_EMPTY_PAGES} empty pages in a row in the listing of {prefix:?}"
            )));
        }
        let mut shares = vec![(id, first..own)];
        range.take(&keys[first..own]);
        range.go_on(page, own == keys.len(), &self.prefix);
        if own < keys.len() || page.next.is_none() {
            self.share(at + 1, page, &keys, &mut shares);
        }
        self.keys += shares.iter().map(|(_, entries)| entries.len()).sum::<usize>();
        Ok(shares)
    }

    /// A request has failed. True if that is no harm: other pages have brought what it asked for, or
    /// it was the first probe and the store did not understand it, so that its range is taken back
    /// and no other will be cut.
    pub(crate) fn failed(&mut self, id: RangeId) -> bool {
        self.in_flight -= 1;
        let Some(at) = self.ranges.iter().position(|range| range.id == id && !range.done) else {
            return true;
        };
        // Who knows what a store says to a `start-after` that it does not know. If it would say the
        // same to anybody, the range on the left will hear it too.
        let is_first = self.order == ListingOrder::Unknown && self.ranges[at].is_probe();
        if is_first {
            self.join(at - 1);
            self.order = ListingOrder::Sequential;
        }
        is_first
    }

    /// Entries behind the end of a range belong to those on its right: all of such a range, or the
    /// beginning of one that has no request in flight.
    fn share(&mut self, from: usize, page: &ListPage, keys: &[&str], shares: &mut Vec<Share>) {
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
            range.take(&keys[first..own]);
            range.go_on(page, own == keys.len(), &self.prefix);
        }
    }

    /// A page's keys without the prefix.
    fn below<'a>(&self, page: &'a ListPage) -> Vec<&'a str> {
        page.entries.iter().map(|entry| &entry.key()[self.prefix.len()..]).collect()
    }

    /// While nobody knows whether the store understands a probe: the range of the only one is taken
    /// back when this page comes to it, or when it has been silent for too long.
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

    fn learn(&mut self, at: usize, keys: &[&str], first: usize, own: usize, is_cut_off: bool) {
        let range = &self.ranges[at];
        let start = range.cursor().to_owned();
        let before = if range.pages > 0 { &*start } else { "" };
        self.model.learn(before, &keys[first..]);

        let is_all = own < keys.len() || !is_cut_off;
        let end = if is_all { range.end.as_deref() } else { keys.last().copied() };
        // What lies before the very first key says nothing of how densely keys lie.
        let from = if range.cursor.is_none() { keys.first().copied() } else { Some(&*start) };
        let room = from.map_or(0.0, |from| self.model.ln_span(from, end).exp());
        let width = match keys[first..] {
            [first, .., last] => {
                let stem = common(first, last);
                let room = self.model.place(last, stem) - self.model.place(first, stem);
                let full = self.page_keys / real(keys.len());
                Some(Width { last: last.to_owned(), stem, ln_room: (room.max(1e-12) * full).ln() })
            }
            _ => None,
        };
        let found = own - first;
        // Nor does what lies behind a stem that holds all keys.
        let behind_stem = matches!(range.cut_from, Some((_, Cut::Stem)));
        let room = if behind_stem && found == 0 { 0.0 } else { room };
        self.room += room;

        let range = &mut self.ranges[at];
        if range.first.is_none() {
            range.first = keys.get(first).map(|key| (*key).to_owned());
        }
        range.keys += found;
        range.room += room;
        range.width = width.or(range.width.take());
        let Some((parent, cut)) = range.cut_from.filter(|_| range.pages == 0) else { return };
        // Its parent learns whether it was cut too far.
        range.width_is_good = cut == Cut::Leap && found > 0 && !is_all;
        self.note(parent, cut, if found > 0 { Probe::Found } else { Probe::TooFar });
    }

    /// What a probe tells of the range that it was cut from.
    fn note(&mut self, parent: RangeId, cut: Cut, probe: Probe) {
        let (by_leap, found) = (cut == Cut::Leap, probe == Probe::Found);
        self.probes.note(found);
        if by_leap {
            self.leaps.note(found);
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
        let full = real(self.keys) / self.page_keys;
        let waste = full * LEAST_WASTE + (full - MANY_PAGES).max(0.0) * MORE_WASTE;
        if answered + real(probing) + 1.0 > full + waste {
            return None;
        }

        let luck = self.probes.share().max(0.05);
        let mut candidates: Vec<(f64, bool, usize)> = Vec::new();
        for (at, range) in self.ranges.iter().enumerate().filter(|(_, range)| !range.done) {
            let (pages, by_leap) = self.estimate(range);
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
            let middle = || self.middle(range, left);
            let leap = || self.leap(range);
            if let Some(end) = behind_stem(range) {
                return Some((at, end, Cut::Stem));
            }
            let (end, cut) = if by_leap {
                (leap().or_else(middle)?, Cut::Leap)
            } else {
                (middle().or_else(leap)?, Cut::Model)
            };
            Some((at, end, cut))
        })?;
        // Nobody may ask for a longer key.
        (self.prefix.len() + end.len() <= MAX_KEY_BYTES).then(|| self.cut_at(at, end, cut))
    }

    fn cut_at(&mut self, at: usize, end: String, cut: Cut) -> usize {
        self.last_id += 1;
        self.pages_since_probe = 0;
        let left = &mut self.ranges[at];
        let from = ListFrom::After(format!("{}{end}", self.prefix));
        let right = Range {
            width: left.width.clone(),
            leap: if cut == Cut::Leap { left.leap * 4.0 } else { left.leap },
            cut_from: Some((left.id, cut)),
            last_cut: Some(cut),
            ..Range::new(RangeId(self.last_id), Some(end.clone()), left.end.take(), from)
        };
        left.end = Some(end);
        left.last_cut = Some(cut);
        left.pages_since_cut = 0;
        // Within a stem the model may know nothing of densities.
        left.width_is_good |= cut == Cut::Stem;
        self.ranges.insert(at + 1, right);
        at + 1
    }

    /// How many pages a range seems to hold, and whether the model has no part in that.
    fn estimate(&self, range: &Range) -> (f64, bool) {
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

    /// What the range holds if all of it is as dense as the last page.
    fn pages_by_width(&self, range: &Range) -> f64 {
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
    fn middle(&self, range: &Range, left: f64) -> Option<String> {
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

    /// A place so many pages ahead as the range leaps, by the width of its last page; behind the
    /// last page's stem where that ends before.
    fn leap(&self, range: &Range) -> Option<String> {
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

impl Range {
    /// A range that nothing is known of.
    fn new(id: RangeId, cursor: Option<String>, end: Option<String>, from: ListFrom) -> Self {
        Self {
            id,
            cursor,
            end,
            from,
            in_flight: false,
            done: false,
            pages: 0,
            pages_since_cut: 0,
            empty_pages: 0,
            keys: 0,
            room: 0.0,
            first: None,
            width: None,
            leap: FIRST_LEAP,
            cut_from: None,
            width_is_good: false,
            last_cut: None,
        }
    }

    /// Waits for its first answer.
    fn is_probe(&self) -> bool {
        self.pages == 0 && matches!(self.from, ListFrom::After(_))
    }

    fn cursor(&self) -> &str {
        self.cursor.as_deref().unwrap_or_default()
    }

    /// Where the keys begin that stand behind the cursor.
    fn behind_cursor(&self, keys: &[&str]) -> usize {
        keys.partition_point(|key| Some(*key) <= self.cursor.as_deref())
    }

    /// Where the keys begin that stand behind the end.
    fn up_to_end(&self, keys: &[&str]) -> usize {
        let end = self.end.as_deref();
        end.map_or(keys.len(), |end| keys.partition_point(|key| *key <= end))
    }

    fn take(&mut self, keys: &[&str]) {
        if let Some(last) = keys.last() {
            self.cursor = Some((*last).to_owned());
        }
    }

    /// Where the range goes on behind a page that it has taken up to its cursor; `to_the_last`: up
    /// to the page's last entry.
    fn go_on(&mut self, page: &ListPage, to_the_last: bool, prefix: &str) {
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

/// A place behind everything that begins as the range's keys have so far. For a range without
/// an end it is what tells most: numbers are padded and names have a constant beginning, so
/// there is likely nothing, and then the model has much less to guess.
fn behind_stem(range: &Range) -> Option<String> {
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

/// Counts here are far below what a float can tell apart.
fn real(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

/// What can be said of a guess in a request, if that lies between the two: UTF-8, no control
/// character, and not inside a common prefix, which would be listed on both sides.
fn speakable(guess: &[u8], behind: &str, before: Option<&str>) -> Option<String> {
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

#[cfg(test)]
mod tests;
