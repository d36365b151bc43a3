//! Listings with several pages at a time, against sequential ones.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::names::entries::{HiddenKeys, Listing};
use crate::names::rules::EntryKey;
use crate::store::{ListFrom, ObjectHead, ObjectVersion};
use crate::testing::fault::{Fault, FaultyStore, Operation};
use crate::testing::memory::MemoryStore;

mod entries;

type Listed = (Vec<(String, bool)>, Vec<HiddenKeys>, bool);

async fn list(
    store: Arc<dyn ObjectStore>,
    prefix: &str,
    page_keys: u16,
    workers: usize,
) -> Result<Listed, StoreError> {
    list_as(store, prefix, page_keys, workers, ListingOrder::Unknown).await.0
}

/// The listing, and what is known of the store then.
async fn list_as(
    store: Arc<dyn ObjectStore>,
    prefix: &str,
    page_keys: u16,
    workers: usize,
    order: ListingOrder,
) -> (Result<Listed, StoreError>, ListingOrder) {
    let mut pages = Pages::new(store, prefix.into(), page_keys, workers, order);
    let mut listing = Listing::new(prefix.into(), 1);
    loop {
        match pages.next().await {
            Ok(Some(runs)) => {
                for run in runs {
                    listing.push(Arc::new(run));
                }
            }
            Ok(None) => break,
            Err(error) => return (Err(error), pages.order()),
        }
    }
    let order = pages.order();
    let rest = pages.rest();
    let entry = |index| {
        let EntryKey { name, is_directory } = listing.key(index);
        (String::from_utf8_lossy(name).into_owned(), is_directory)
    };
    let entries: Vec<_> = (0..listing.len()).map(entry).collect();
    for (index, (name, _)) in entries.iter().enumerate() {
        assert_eq!(listing.find(name.as_bytes()), Some(index));
    }
    (Ok((entries, rest.hidden, rest.exists)), order)
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
                let order = ListingOrder::Unordered;
                let known = list_as(unordered.clone(), prefix, page_keys, workers, order);
                assert_eq!(known.await.0, expected);
                let untried = list_as(unordered, prefix, page_keys, 1, ListingOrder::Unknown);
                let (listed, order) = untried.await;
                match listed {
                    Err(StoreError::Nonsense(Nonsense::Unordered(_) | Nonsense::Backwards(_))) => {
                        assert_eq!(order, ListingOrder::Unordered);
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
                number if number == failing => {
                    Fault::Fail(StoreError::Throttled { retry_after: None })
                }
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
        into: &mut dyn crate::store::Destination,
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
        let mut pages = Pages::new(store, "".into(), 10, 16, ListingOrder::Unknown);
        let started = tokio::time::Instant::now();
        let mut entries = 0;
        while let Some(runs) = pages.next().await.expect("a good page") {
            entries += runs.iter().map(EntryRun::len).sum::<usize>();
        }
        assert_eq!(entries, 1000);
        assert_eq!(pages.order(), ListingOrder::Sequential);
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
        Ok(ListPage { entries, next: Some(next), ..ListPage::default() })
    }

    async fn head(&self, _: &str) -> Result<ObjectHead, StoreError> {
        Err(StoreError::NotFound)
    }

    async fn get_range(
        &self,
        _: &ObjectVersion,
        _: std::ops::Range<u64>,
        _: &mut dyn crate::store::Destination,
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
        assert!(matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{listed:?}");
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
