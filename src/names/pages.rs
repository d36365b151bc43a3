//! Fetches a directory's listing, several pages at a time.
//!
//! A store that lists in no order is recognised by a page that is in none, or that still begins
//! before its place when it has been asked for again. Then everything is fetched page by page from
//! the beginning, and sorted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::listing::{Assembly, Part, Rest};
use super::split::{MAX_EMPTY_PAGES, Plan, RangeId, StartAfter};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, Nonsense, ObjectStore, StoreError, check_page,
};

/// Entries of a part where it is not a page that makes it one.
const PART_ENTRIES: usize = 1000;

/// The pages of one directory, under way. Dropping it cancels what is in flight.
pub struct Pages {
    store: Arc<dyn ObjectStore>,
    prefix: Arc<str>,
    page_keys: u16,
    plan: Plan,
    /// A first page that need not be asked for.
    first: Option<ListPage>,
    /// Tasks of their own, for to parse a page is work for a core.
    flights: JoinSet<(RangeId, Result<ListPage, StoreError>)>,
    /// Entries that have come before those on their left.
    early: HashMap<RangeId, Vec<Part>>,
    assembly: Assembly,
    /// Some entries have been given out, which cannot be taken back.
    shown: bool,
    /// All of them have.
    over: bool,
}

impl Pages {
    /// Lists what stands one step below `prefix`, `page_keys` entries a page, at most `workers`
    /// pages at a time; one is the plain sequential listing.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Arc<str>,
        page_keys: u16,
        workers: usize,
        start_after: StartAfter,
    ) -> Self {
        Self {
            store,
            page_keys,
            plan: Plan::new(&prefix, page_keys, workers, start_after),
            first: None,
            flights: JoinSet::new(),
            early: HashMap::new(),
            assembly: Assembly::new(prefix.clone()),
            shown: false,
            over: false,
            prefix,
        }
    }

    /// Begins with a first page that somebody has fetched and found good, of the same prefix and the
    /// same size.
    pub fn begin_with(self, first: Option<ListPage>) -> Self {
        Self { first, ..self }
    }

    /// What is known of the store by now.
    pub fn start_after(&self) -> StartAfter {
        self.plan.start_after()
    }

    /// Memory of what has come and cannot be shown yet.
    pub fn memory_bytes(&self) -> usize {
        let early = self.early.values().flatten();
        early.map(Part::memory_bytes).sum::<usize>() + self.assembly.memory_bytes()
    }

    /// Waits for a page and gives what can be shown now behind what could be before, in pieces of
    /// about a page, without numbers; `None` behind the last page.
    ///
    /// Ends for every store that has an end: each page must lead on, or [`Nonsense::Protocol`]. A
    /// store that turns out to list in no order when something has been given out is an error, once:
    /// [`Self::start_after`] knows it from then on.
    pub async fn next(&mut self) -> Result<Option<Vec<Part>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        let mut settled = if self.start_after() == StartAfter::Unordered {
            self.all_sorted().await?
        } else {
            match self.next_in_order().await {
                Err(
                    error @ StoreError::Nonsense(Nonsense::Unordered(_) | Nonsense::Backwards(_)),
                ) => {
                    self.plan.is_unordered();
                    if self.shown {
                        return Err(error);
                    }
                    self.flights = JoinSet::new();
                    self.early.clear();
                    self.assembly = Assembly::new(self.prefix.clone());
                    self.all_sorted().await?
                }
                settled => settled?,
            }
        };
        settled.retain(|part| !part.is_empty());
        self.shown |= !settled.is_empty();
        Ok(Some(settled))
    }

    async fn next_in_order(&mut self) -> Result<Vec<Part>, StoreError> {
        let landed = match self.first.take() {
            Some(first) => self.plan.ask().map(|ask| (ask.range, first)),
            None => self.land().await?,
        };
        let Some((range, page)) = landed else { return Ok(Vec::new()) };
        self.assembly.count(&page);
        for (range, share) in self.plan.answer(range, &page)? {
            self.early.entry(range).or_default().push(self.assembly.part(&page, share)?);
        }
        let mut settled = Vec::new();
        while let Some((range, done)) = self.plan.leftmost() {
            for part in self.early.remove(&range).unwrap_or_default() {
                self.assembly.append(part)?;
                settled.push(self.assembly.settled()?);
            }
            if !done {
                break;
            }
            self.plan.take_leftmost();
        }
        if self.plan.leftmost().is_none() {
            settled.push(self.assembly.last()?);
            self.over = true;
        }
        Ok(settled)
    }

    /// Everything there is, whatever order it comes in.
    async fn all_sorted(&mut self) -> Result<Vec<Part>, StoreError> {
        let wrong = |what: &str| {
            Err(StoreError::nonsense(format!("{what} in the listing of {:?}", self.prefix)))
        };
        let mut entries: BTreeMap<String, ListEntry> = BTreeMap::new();
        let (mut undecodable, mut in_vain) = (0, 0);
        let (mut tokens, mut from) = (HashSet::new(), ListFrom::Start);
        loop {
            let prefix = self.prefix.to_string();
            let max_keys = self.page_keys;
            let request = ListRequest { prefix, delimited: true, from, max_keys, any_order: true };
            let page = self.store.list_page(&request).await?;
            check_page(&request, &page)?;
            undecodable += page.undecodable;
            let last = page.entries.last().map_or_else(String::new, |entry| entry.key().to_owned());
            let before = entries.len();
            // What it rolls up may come on each page, and the newest answer is the truest.
            entries.extend(page.entries.into_iter().map(|entry| (entry.key().to_owned(), entry)));
            in_vain = if entries.len() > before { 0 } else { in_vain + 1 };
            let Some(token) = page.next else { break };
            if in_vain >= MAX_EMPTY_PAGES {
                return wrong("nothing new on 100 pages in a row");
            }
            if !tokens.insert(token.clone()) {
                return wrong("a continuation token of before");
            }
            from = ListFrom::Token { token, last };
        }
        let entries = entries.into_values().collect();
        let page = ListPage { entries, next: None, undecodable };
        self.assembly.count(&page);
        let mut settled = Vec::new();
        for start in (0..page.entries.len()).step_by(PART_ENTRIES) {
            let end = page.entries.len().min(start + PART_ENTRIES);
            let part = self.assembly.part(&page, start..end)?;
            self.assembly.append(part)?;
            settled.push(self.assembly.settled()?);
        }
        settled.push(self.assembly.last()?);
        self.over = true;
        Ok(settled)
    }

    /// Sends what is to be asked for and waits for a page; `None` if it failed and that is no harm.
    async fn land(&mut self) -> Result<Option<(RangeId, ListPage)>, StoreError> {
        while let Some(ask) = self.plan.ask() {
            let request = ListRequest {
                prefix: self.prefix.to_string(),
                delimited: true,
                from: ask.from,
                max_keys: self.page_keys,
                any_order: false,
            };
            let (store, range) = (self.store.clone(), ask.range);
            self.flights.spawn(async move {
                let page = store.list_page(&request).await;
                (range, page.and_then(|page| check_page(&request, &page).map(|()| page)))
            });
        }
        let landed = self.flights.join_next().await.expect("an open range has a page in flight");
        match landed.map_err(|died| StoreError::Unavailable(died.to_string()))? {
            (range, Ok(page)) => Ok(Some((range, page))),
            (range, Err(_)) if self.plan.failed(range) => Ok(None),
            (_, Err(error)) => Err(error),
        }
    }

    /// What is not shown.
    pub fn rest(self) -> Rest {
        self.assembly.rest()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::super::listing::{HiddenKeys, Listing};
    use super::*;
    use crate::store::{ListFrom, ObjectHead, ObjectVersion};
    use crate::testing::fault::{Fault, FaultyStore, Operation};
    use crate::testing::memory::MemoryStore;

    type Listed = (Vec<(String, bool)>, Vec<HiddenKeys>, bool);

    async fn list(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        page_keys: u16,
        workers: usize,
    ) -> Result<Listed, StoreError> {
        list_as(store, prefix, page_keys, workers, StartAfter::Untried).await.0
    }

    /// The listing, and what is known of the store then.
    async fn list_as(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        page_keys: u16,
        workers: usize,
        start_after: StartAfter,
    ) -> (Result<Listed, StoreError>, StartAfter) {
        let mut pages = Pages::new(store, prefix.into(), page_keys, workers, start_after);
        let mut listing = Listing::new(prefix.into(), 1);
        loop {
            match pages.next().await {
                Ok(Some(parts)) => {
                    for part in parts {
                        listing.push(Arc::new(part));
                    }
                }
                Ok(None) => break,
                Err(error) => return (Err(error), pages.start_after()),
            }
        }
        let start_after = pages.start_after();
        let rest = pages.rest();
        let entry = |index| {
            let (name, directory) = listing.place(index);
            (String::from_utf8_lossy(name).into_owned(), directory)
        };
        let entries: Vec<_> = (0..listing.len()).map(entry).collect();
        for (index, (name, _)) in entries.iter().enumerate() {
            assert_eq!(listing.find(name.as_bytes()), Some(index));
        }
        (Ok((entries, rest.hidden, rest.exists)), start_after)
    }

    fn store(keys: &BTreeSet<String>) -> (Arc<MemoryStore>, Arc<FaultyStore>) {
        let memory = Arc::new(MemoryStore::new());
        for key in keys {
            memory.put(key, "");
        }
        (memory.clone(), Arc::new(FaultyStore::new(memory)))
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(test)
    }

    /// Keys that nest, hide each other, and cannot be shown, under a stem now and then.
    fn keys() -> impl Strategy<Value = BTreeSet<String>> {
        let key = prop_oneof![
            3 => "[ab/.-]{1,5}",
            3 => "[0-9]{1,3}",
            1 => "[0-9a-f]{4}(/[ab])?",
            1 => "a(-[0-9]{1,2})?/?",
            1 => "[\u{1}é一\u{10ffff}~]{1,3}",
            1 => "s{40}[0-9]{2}",
        ];
        (prop_oneof![Just(""), Just("d/")], proptest::collection::btree_set(key, 0..120))
            .prop_map(|(below, keys)| keys.iter().map(|key| format!("{below}{key}")).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 512,
            rng_seed: RngSeed::Fixed(4),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// However many pages are fetched at a time, in whatever order they come.
        #[test]
        fn a_parallel_listing_is_the_sequential_one(
            keys in keys(),
            page_keys in 1..8_u16,
            workers in 2..20_usize,
            delays in proptest::collection::vec(0..50_u64, 1..20),
        ) {
            run(async move {
                for prefix in ["", "d/"] {
                    let (_, plain) = store(&keys);
                    let expected = list(plain, prefix, page_keys, 1).await.expect("complete");
                    let (_, slow) = store(&keys);
                    let delays = delays.clone();
                    slow.hook(move |call| {
                        let of = usize::try_from(call.number).expect("few") % delays.len();
                        Fault::Delay(Duration::from_millis(delays[of]))
                    });
                    let listed = list(slow, prefix, page_keys, workers).await.expect("complete");
                    assert_eq!(listed, expected);
                }
            });
        }

        /// F12: a store that lists in no order has the same listing, known for it or not. What it has
        /// shown by then it has shown in order, or it is an error and known from then on.
        #[test]
        fn a_listing_in_no_order_is_the_one_in_order(
            keys in keys(),
            page_keys in 1..8_u16,
            workers in 1..20_usize,
        ) {
            run(async move {
                for prefix in ["", "d/"] {
                    let (_, plain) = store(&keys);
                    let expected = list(plain, prefix, page_keys, 1).await;
                    let (memory, unordered) = store(&keys);
                    memory.list_in_no_order();
                    let known = list_as(unordered.clone(), prefix, page_keys, workers, StartAfter::Unordered);
                    assert_eq!(known.await.0, expected);
                    let untried = list_as(unordered, prefix, page_keys, 1, StartAfter::Untried);
                    let (listed, start_after) = untried.await;
                    match listed {
                        Err(StoreError::Nonsense(Nonsense::Unordered(_) | Nonsense::Backwards(_))) => {
                            assert_eq!(start_after, StartAfter::Unordered);
                        }
                        listed => assert_eq!(listed, expected),
                    }
                }
            });
        }

        /// A page that fails makes an error, never another listing.
        #[test]
        fn a_parallel_listing_with_a_failing_page_is_the_sequential_one_or_an_error(
            keys in keys(),
            page_keys in 1..8_u16,
            workers in 2..20_usize,
            failing in 0..40_u64,
        ) {
            run(async move {
                let (_, plain) = store(&keys);
                let expected = list(plain, "", page_keys, 1).await.expect("complete");
                let (_, faulty) = store(&keys);
                faulty.hook(move |call| match call.number {
                    number if number == failing => Fault::Fail(StoreError::Throttled { retry_after: None }),
                    _ => Fault::None,
                });
                match list(faulty.clone(), "", page_keys, workers).await {
                    Ok(listed) => assert_eq!(listed, expected),
                    Err(error) => {
                        assert_eq!(error, StoreError::Throttled { retry_after: None });
                        assert!(faulty.calls() > failing);
                    }
                }
            });
        }
    }

    /// A store that begins every listing at the beginning, whatever it is told.
    struct IgnoresStartAfter {
        below: Arc<MemoryStore>,
        /// Asks for ever, as a layer that retries what makes no sense does for a while.
        never_answers: bool,
    }

    #[async_trait::async_trait]
    impl ObjectStore for IgnoresStartAfter {
        async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut request = request.clone();
            if matches!(request.from, ListFrom::After(_)) {
                if self.never_answers {
                    std::future::pending::<()>().await;
                }
                request.from = ListFrom::Start;
            }
            self.below.list_page(&request).await
        }

        async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
            self.below.head(key).await
        }

        async fn get_range(
            &self,
            version: &ObjectVersion,
            range: std::ops::Range<u64>,
            into: &mut (dyn bytes::BufMut + Send),
        ) -> Result<(), StoreError> {
            self.below.get_range(version, range, into).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_ignores_start_after_is_listed_sequentially_with_one_request_more() {
        let keys: BTreeSet<_> = (0..1000).map(|n| format!("{n:03}")).collect();
        for never_answers in [false, true] {
            let (below, _) = store(&keys);
            let store = Arc::new(IgnoresStartAfter { below: below.clone(), never_answers });
            let mut pages = Pages::new(store, "".into(), 10, 16, StartAfter::Untried);
            let started = tokio::time::Instant::now();
            let mut entries = 0;
            while let Some(parts) = pages.next().await.expect("a good page") {
                entries += parts.iter().map(Part::len).sum::<usize>();
            }
            assert_eq!(entries, 1000);
            assert_eq!(pages.start_after(), StartAfter::Fails);
            assert_eq!(below.counts().lists, 100 + u64::from(!never_answers));
            assert_eq!(started.elapsed(), Duration::from_secs(1));
        }
    }

    /// Answers every question with the next of these pages, for ever.
    struct Scripted {
        pages: Vec<(&'static [&'static str], &'static str)>,
        asked: std::sync::atomic::AtomicUsize,
    }

    #[async_trait::async_trait]
    impl ObjectStore for Scripted {
        async fn list_page(&self, _: &ListRequest) -> Result<ListPage, StoreError> {
            let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (keys, token) = self.pages[asked % self.pages.len()];
            let entries = keys.iter().map(|key| ListEntry::Prefix((*key).to_owned())).collect();
            // Each token is a new one, unless it has a name.
            let next = if token.is_empty() { asked.to_string() } else { token.to_owned() };
            Ok(ListPage { entries, next: Some(next), undecodable: 0 })
        }

        async fn head(&self, _: &str) -> Result<ObjectHead, StoreError> {
            Err(StoreError::NotFound)
        }

        async fn get_range(
            &self,
            _: &ObjectVersion,
            _: std::ops::Range<u64>,
            _: &mut (dyn bytes::BufMut + Send),
        ) -> Result<(), StoreError> {
            Err(StoreError::NotFound)
        }
    }

    /// F12
    #[tokio::test(start_paused = true)]
    async fn a_listing_in_no_order_that_leads_nowhere_ends() {
        for (pages, requests) in [
            // The page that gives it away, and the same tokens in a circle of three.
            (vec![(&["b/", "a/"][..], "1"), (&["d/", "c/"], "2"), (&["f/", "e/"], "3")], 1 + 4),
            // The one that gives it away, one with something new, and a hundred without.
            (vec![(&["b/", "a/"][..], "")], 1 + 1 + 100),
            // A key twice on a page is no order of its own.
            (vec![(&["b/", "a/", "b/"][..], "")], 1 + 1),
        ] {
            let store = Arc::new(Scripted { pages, asked: std::sync::atomic::AtomicUsize::new(0) });
            let listed = list(store.clone(), "", 1000, 4).await;
            assert!(
                matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
                "{listed:?}"
            );
            assert_eq!(store.asked.load(std::sync::atomic::Ordering::Relaxed), requests);
        }
    }

    /// What 20,000 keys cost at 40 ms a page of 100: requests, and latencies one after the other.
    async fn cost(keys: impl Iterator<Item = String>) -> (f64, u128) {
        let keys: BTreeSet<_> = keys.collect();
        let (memory, slow) = store(&keys);
        slow.delay(Operation::List, Duration::from_millis(40));
        let started = tokio::time::Instant::now();
        let (entries, ..) = list(slow, "", 100, 16).await.expect("complete");
        assert_eq!(entries.len(), keys.len());
        assert_eq!(keys.len().div_ceil(100), 200, "pages");
        let factor = f64::from(u32::try_from(memory.counts().lists).expect("few")) / 200.0;
        (factor, started.elapsed().as_millis() / 40)
    }

    #[tokio::test(start_paused = true)]
    async fn two_hundred_pages_come_in_forty_latencies_instead_of_two_hundred() {
        let (factor, latencies) = cost((0..20_000).map(|n| format!("{n:08}"))).await;
        assert!(factor < 1.3 && latencies <= 40, "{factor} {latencies}");
        let hash = |n: u32| n.wrapping_mul(0x9e37_79b1) ^ n.wrapping_mul(0x85eb_ca6b) >> 15;
        let (factor, latencies) = cost((0..20_000).map(|n| format!("{:08x}", hash(n)))).await;
        assert!(factor < 1.3 && latencies <= 40, "{factor} {latencies}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_directory_costs_its_pages_and_nothing_more() {
        for (keys, requests) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2000, 2), (3000, 3)] {
            let (memory, _) = store(&(0..keys).map(|n| format!("{n:05}")).collect());
            let listed = list(memory.clone(), "", 1000, 16).await.expect("complete");
            assert_eq!((listed.0.len(), memory.counts().lists), (keys, requests));
        }
    }
}
