use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;
use crate::store::flow;
use crate::store::{ListEntry, ListFrom, Nonsense, ObjectDetails, ObjectMeta};

/// The object of these tests.
const BODY: &[u8] = b"0123456789";

/// Stands for "and never ends" between [`Scripted::step`] and its caller; no store reports it.
const TRICKLE: StoreError = StoreError::TimedOut(String::new());

/// What the next call does.
enum Step {
    /// Answers as it should.
    Well,
    /// Gives so many bytes (of a body), then fails.
    Fail(usize, StoreError),
    /// Never answers.
    Hang,
    /// Takes this long to the head of its answer, if that is waited for.
    Late(Duration),
    /// Gives so many bytes of a body, and never ends.
    Trickle(usize),
    /// Answers when told to.
    Wait(oneshot::Receiver<()>),
    /// Answers a listing with this page.
    Page(ListPage),
}

/// Follows a script, then does well; and remembers when it was called and for what.
#[derive(Default)]
struct Scripted {
    steps: Mutex<VecDeque<Step>>,
    calls: Mutex<Vec<(Instant, Range<u64>)>>,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Arc<Self> {
        Arc::new(Self { steps: Mutex::new(steps.into_iter().collect()), ..Self::default() })
    }

    fn under(self: &Arc<Self>, policy: RetryPolicy) -> Retrying {
        Retrying::new(Arc::clone(self) as Arc<dyn ObjectStore>, policy, Arc::default())
    }

    fn calls(&self) -> usize {
        self.calls.lock().len()
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.calls.lock().iter().map(|(_, range)| range.clone()).collect()
    }

    fn pauses(&self) -> Vec<Duration> {
        self.calls.lock().windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }

    async fn step(&self, range: Range<u64>) -> Result<Option<ListPage>, (usize, StoreError)> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        self.calls.lock().push((Instant::now(), range));
        let step = self.steps.lock().pop_front().unwrap_or(Step::Well);
        let outcome = match step {
            Step::Well => Ok(None),
            Step::Fail(bytes, error) => Err((bytes, error)),
            Step::Hang => std::future::pending().await,
            Step::Late(first_byte) => {
                tokio::time::sleep(first_byte.min(flow::patience())).await;
                let silent = StoreError::TimedOut("no head".to_owned());
                if first_byte > flow::patience() { Err((0, silent)) } else { Ok(None) }
            }
            Step::Trickle(bytes) => Err((bytes, TRICKLE)),
            Step::Wait(until) => {
                until.await.expect("the test tells when");
                Ok(None)
            }
            Step::Page(page) => Ok(Some(page)),
        };
        self.running.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

#[async_trait]
impl ObjectStore for Scripted {
    async fn list_page(&self, _request: &ListRequest) -> Result<ListPage, StoreError> {
        let page = self.step(0..0).await.map_err(|(_, error)| error)?;
        Ok(page.unwrap_or_default())
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.step(0..0).await.map_err(|(_, error)| error)?;
        let version = ObjectVersion { key: key.to_owned(), ..version() };
        let last_modified = SystemTime::UNIX_EPOCH;
        let meta = ObjectMeta { version, last_modified, archived: false };
        Ok(ObjectHead { meta, details: ObjectDetails::default() })
    }

    async fn get_range(
        &self,
        _version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let body =
            &BODY[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        match self.step(range).await {
            Ok(_) => {
                into.put_slice(body);
                Ok(())
            }
            Err((bytes, error)) => {
                into.put_slice(&body[..bytes]);
                if bytes > 0 {
                    flow::begins();
                }
                if error == TRICKLE {
                    std::future::pending::<()>().await;
                }
                Err(error)
            }
        }
    }
}

fn version() -> ObjectVersion {
    ObjectVersion { key: "k".to_owned(), etag: "\"e\"".to_owned(), size_bytes: 10 }
}

fn request() -> ListRequest {
    ListRequest {
        prefix: "p/".to_owned(),
        delimited: true,
        from: ListFrom::Start,
        max_keys: 10,
        any_order: false,
    }
}

fn broken() -> StoreError {
    StoreError::Unavailable("broken".to_owned())
}

fn failures(count: usize, error: &StoreError) -> Vec<Step> {
    (0..count).map(|_| Step::Fail(0, error.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried_with_growing_pauses() {
    let store = Scripted::new(failures(9, &broken()));
    store.under(RetryPolicy::default()).head("k").await.unwrap();
    let pauses = store.pauses();
    for (failure, pause) in pauses.iter().enumerate() {
        let whole = Duration::from_millis((50 << failure).min(5000));
        assert!(*pause >= whole / 2 && *pause <= whole + Duration::from_millis(1), "{pauses:?}");
    }
    assert_eq!(pauses.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn throttling_waits_longer_from_the_start() {
    let store = Scripted::new(failures(1, &StoreError::Throttled { retry_after: None }));
    store.under(RetryPolicy::default()).head("k").await.unwrap();
    assert!(store.pauses()[0] >= Duration::from_millis(100), "{:?}", store.pauses());
}

#[tokio::test(start_paused = true)]
async fn pauses_repeat_exactly_and_differ_by_key() {
    let mut seen = Vec::new();
    for key in ["a", "a", "b"] {
        let store = Scripted::new(failures(5, &broken()));
        store.under(RetryPolicy::default()).head(key).await.unwrap();
        seen.push(store.pauses());
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0], seen[2]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_transient_is_reported_at_once() {
    for error in [
        StoreError::NotFound,
        StoreError::Changed,
        StoreError::Denied(String::new()),
        StoreError::Archived,
        StoreError::NoSuchBucket,
    ] {
        let store = Scripted::new([Step::Fail(0, error.clone())]);
        assert_eq!(store.under(RetryPolicy::default()).head("k").await, Err(error));
        assert_eq!(store.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_error_comes_back_at_the_deadline() {
    let store = Scripted::new(failures(1000, &StoreError::Throttled { retry_after: None }));
    let start = Instant::now();
    let got = store.under(RetryPolicy::default()).list_page(&request()).await;
    assert_eq!(got, Err(StoreError::Throttled { retry_after: None }));
    let took = start.elapsed();
    assert!((Duration::from_secs(24)..=Duration::from_secs(30)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up_at_the_deadline() {
    let store = Scripted::new([Step::Hang]);
    let start = Instant::now();
    let got = store.under(RetryPolicy::default()).head("k").await;
    assert!(matches!(got, Err(StoreError::TimedOut(_))), "{got:?}");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_given_up_at_the_deadline() {
    let store = Scripted::new([Step::Fail(3, broken()), Step::Hang]);
    let start = Instant::now();
    let mut into = Vec::new();
    let policy = RetryPolicy::default();
    let got = store.under(policy).get_range(&version(), 0..10, &mut into).await;
    assert!(matches!(got, Err(StoreError::TimedOut(_))), "{got:?}");
    assert_eq!((into.as_slice(), start.elapsed().as_secs()), (&BODY[..3], 30));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_flows_beyond_the_deadline_is_completed() {
    let store = Scripted::new([Step::Trickle(4), Step::Trickle(4)]);
    let mut into = Vec::new();
    store.under(RetryPolicy::default()).get_range(&version(), 0..10, &mut into).await.unwrap();
    assert_eq!(into, BODY);
    assert_eq!(store.ranges(), [0..10, 4..10, 8..10]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_goes_on_from_where_it_stopped() {
    let store =
        Scripted::new([Step::Fail(3, broken()), Step::Fail(0, broken()), Step::Fail(4, broken())]);
    let mut into = Vec::new();
    store.under(RetryPolicy::default()).get_range(&version(), 1..10, &mut into).await.unwrap();
    assert_eq!(into, &BODY[1..]);
    assert_eq!(store.ranges(), [1..10, 4..10, 4..10, 8..10]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_last_byte_is_no_failure() {
    let store = Scripted::new([Step::Fail(10, broken())]);
    let mut into = Vec::new();
    store.under(RetryPolicy::default()).get_range(&version(), 0..10, &mut into).await.unwrap();
    assert_eq!((into.as_slice(), store.calls()), (BODY, 1));
}

#[tokio::test(start_paused = true)]
async fn progress_renews_the_deadline() {
    // A byte, and then failures for most of the deadline, ten times over.
    let mut steps = Vec::new();
    for _ in 0..9 {
        steps.push(Step::Fail(1, broken()));
        steps.extend(failures(8, &broken()));
    }
    let store = Scripted::new(steps);
    let start = Instant::now();
    let mut into = Vec::new();
    store.under(RetryPolicy::default()).get_range(&version(), 0..10, &mut into).await.unwrap();
    assert_eq!(into, BODY);
    assert!(start.elapsed() > Duration::from_secs(30), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_listing_page_that_leads_nowhere_is_asked_for_again() {
    let outside =
        ListPage { entries: vec![ListEntry::Prefix("q/".to_owned())], ..ListPage::default() };
    let store = Scripted::new([Step::Page(outside.clone())]);
    let page = store.under(RetryPolicy::default()).list_page(&request()).await;
    assert_eq!((page, store.calls()), (Ok(ListPage::default()), 2));

    let store = Scripted::new((0..1000).map(|_| Step::Page(outside.clone())));
    let page = store.under(RetryPolicy::default()).list_page(&request()).await;
    assert!(matches!(page, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{page:?}");
}

/// E7, F12
#[tokio::test(start_paused = true)]
async fn a_page_in_no_order_is_believed_and_one_that_goes_backwards_is_asked_for_five_times() {
    let page = |names: &[&str]| {
        let entries = names.iter().map(|name| ListEntry::Prefix(format!("p/{name}/"))).collect();
        ListPage { entries, ..ListPage::default() }
    };
    let from = ListFrom::Token { token: "t".to_owned(), last: "p/b/".to_owned() };
    let behind = ListRequest { from, ..request() };
    let in_any_order = ListRequest { any_order: true, ..behind.clone() };
    for (names, request, calls) in [
        (&["d", "c"][..], &behind, 1),
        (&["a", "c"], &behind, 5),
        (&["d", "c"], &in_any_order, 1),
        (&["a", "c"], &in_any_order, 1),
    ] {
        let store = Scripted::new((0..1000).map(|_| Step::Page(page(names))));
        let listed = store.under(RetryPolicy::default()).list_page(request).await;
        match listed {
            Ok(listed) => assert_eq!((listed, request.any_order), (page(names), true)),
            Err(StoreError::Nonsense(Nonsense::Unordered(_))) => {
                assert_eq!((names[0], request.any_order), ("d", false));
            }
            Err(StoreError::Nonsense(Nonsense::Backwards(_))) => {
                assert_eq!((names[0], request.any_order), ("a", false));
            }
            Err(error) => panic!("{names:?}: {error}"),
        }
        assert_eq!(store.calls(), calls, "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_run_at_once_than_there_are_connections() {
    let (go, waits): (Vec<_>, Vec<_>) = (0..6).map(|_| oneshot::channel()).unzip();
    let store = Scripted::new(waits.into_iter().map(Step::Wait));
    let policy = RetryPolicy { max_connections: 2, ..RetryPolicy::default() };
    let retrying = Arc::new(store.under(policy));
    let heads: Vec<_> = (0..6)
        .map(|_| {
            let retrying = Arc::clone(&retrying);
            tokio::spawn(async move { retrying.head("k").await.map(drop) })
        })
        .collect();
    for go in go {
        tokio::time::sleep(Duration::from_millis(1)).await;
        go.send(()).unwrap();
    }
    for head in heads {
        head.await.unwrap().unwrap();
    }
    assert_eq!(store.most_running.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_no_connection() {
    let store = Scripted::new([Step::Fail(0, StoreError::Throttled { retry_after: None })]);
    let policy = RetryPolicy { max_connections: 1, ..RetryPolicy::default() };
    let retrying = store.under(policy);
    let start = Instant::now();
    let (first, second) = tokio::join!(retrying.head("a"), async {
        tokio::task::yield_now().await;
        let head = retrying.head("b").await;
        (head, start.elapsed())
    });
    first.unwrap();
    second.0.unwrap();
    assert!(second.1 < Duration::from_millis(100), "{:?}", second.1);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_is_not_the_stores_fault() {
    // Three requests of 1.9 s each, one after the other: the last waits for longer than a deadline.
    let (go, waits): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
    let store = Scripted::new(waits.into_iter().map(Step::Wait));
    let deadline = Duration::from_secs(3);
    let policy = RetryPolicy { max_connections: 1, deadline, ..RetryPolicy::default() };
    let retrying = store.under(policy);
    let (first, second, third, ()) =
        tokio::join!(retrying.head("a"), retrying.head("b"), retrying.head("c"), async {
            for go in go {
                tokio::time::sleep(Duration::from_millis(1900)).await;
                go.send(()).unwrap();
            }
        });
    assert!(first.is_ok() && second.is_ok() && third.is_ok(), "{first:?} {second:?} {third:?}");
    assert_eq!(store.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_asked_for_five_times_and_no_longer() {
    let nonsense = || StoreError::nonsense("what".to_owned());
    let store = Scripted::new(failures(1000, &nonsense()));
    let start = Instant::now();
    assert_eq!(store.under(RetryPolicy::default()).head("k").await, Err(nonsense()));
    assert_eq!(store.calls(), 5);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

    // Each byte gives the store its chances back.
    let store = Scripted::new((0..9).map(|_| Step::Fail(1, nonsense())));
    let mut into = Vec::new();
    store.under(RetryPolicy::default()).get_range(&version(), 0..10, &mut into).await.unwrap();
    assert_eq!(into, BODY);
}

#[tokio::test(start_paused = true)]
async fn a_refused_signature_is_made_once_more() {
    let refused = || StoreError::SignatureRefused("expired".to_owned());
    let store = Scripted::new(failures(1, &refused()));
    let start = Instant::now();
    store.under(RetryPolicy::default()).head("k").await.unwrap();
    assert_eq!((store.calls(), start.elapsed()), (2, Duration::ZERO));

    let store = Scripted::new(failures(1000, &refused()));
    let denied = StoreError::Denied("expired".to_owned());
    assert_eq!(store.under(RetryPolicy::default()).head("k").await, Err(denied));
    assert_eq!(store.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_store_names_the_pause_but_not_beyond_the_deadline() {
    let busy = |seconds| StoreError::Throttled { retry_after: Some(Duration::from_secs(seconds)) };
    let store = Scripted::new([Step::Fail(0, busy(7))]);
    store.under(RetryPolicy::default()).head("k").await.unwrap();
    assert_eq!(store.pauses()[0].as_secs(), 7);

    let store = Scripted::new(failures(1000, &busy(3600)));
    let start = Instant::now();
    assert_eq!(store.under(RetryPolicy::default()).head("k").await, Err(busy(3600)));
    assert_eq!((store.calls(), start.elapsed().as_secs()), (2, 29));
}

#[tokio::test(start_paused = true)]
async fn bytes_leave_connections_to_names() {
    let (go, waits): (Vec<_>, Vec<_>) = (0..8).map(|_| oneshot::channel::<()>()).unzip();
    let store = Scripted::new(waits.into_iter().map(Step::Wait));
    let policy = RetryPolicy { max_connections: 8, ..RetryPolicy::default() };
    let retrying = Arc::new(store.under(policy));
    for _ in 0..16 {
        let retrying = Arc::clone(&retrying);
        tokio::spawn(async move { retrying.get_range(&version(), 0..10, &mut Vec::new()).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(store.calls(), 7);
    // The eighth script step is for this one.
    let head = tokio::spawn(async move { retrying.head("k").await.map(drop) });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(store.calls(), 8);
    go.into_iter().next_back().unwrap().send(()).unwrap();
    head.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn silent_requests_hold_no_place_that_others_need() {
    let store = Scripted::new([Step::Hang, Step::Hang]);
    let retrying = store.under(RetryPolicy { max_connections: 2, ..RetryPolicy::default() });
    let start = Instant::now();
    let (silent, also, well) =
        tokio::join!(retrying.head("a"), retrying.head("b"), retrying.head("c"));
    assert!(silent.is_err() && also.is_err());
    well.unwrap();
    assert_eq!(start.elapsed().as_secs(), 30, "the silent ones have their time");
    let calls: Vec<_> = store.calls.lock().iter().map(|(at, _)| (*at - start).as_secs()).collect();
    assert_eq!(calls, [0, 0, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_flows_keeps_its_place() {
    // Seven places are for bytes. One body flows, the others are silent and step aside.
    let flows = std::iter::once(Step::Trickle(4));
    let store = Scripted::new(flows.chain((0..6).map(|_| Step::Trickle(0))));
    let policy = RetryPolicy { max_connections: 8, ..RetryPolicy::default() };
    let retrying = Arc::new(store.under(policy));
    let (go, waits): (Vec<_>, Vec<_>) = (0..9).map(|_| oneshot::channel::<()>()).unzip();
    store.steps.lock().extend(waits.into_iter().map(Step::Wait));
    for _ in 0..16 {
        let retrying = Arc::clone(&retrying);
        tokio::spawn(async move { retrying.get_range(&version(), 0..10, &mut Vec::new()).await });
    }
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(store.calls(), 7);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.calls(), 7 + 6);
    drop(go);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_mount_slows_all_requests_down_together() {
    let store = Scripted::new(failures(2000, &StoreError::Throttled { retry_after: None }));
    let retrying = Arc::new(store.under(RetryPolicy::default()));
    for key in 0..400 {
        let retrying = Arc::clone(&retrying);
        tokio::spawn(async move { retrying.head(&key.to_string()).await.map(drop) });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Somebody who was never refused waits for a turn all the same.
    let before = store.calls();
    let start = Instant::now();
    let new =
        tokio::spawn(async move { retrying.get_range(&version(), 3..4, &mut Vec::new()).await });
    while !store.ranges()[before..].contains(&(3..4)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    new.abort();
}

/// E6
#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_now_and_then_is_waited_for_longer_each_time() {
    let late = |seconds| Step::Late(Duration::from_secs(seconds));
    for (first_bytes, deadline, want) in [
        (vec![12, 12], 30, Ok(22)),
        (vec![35, 35, 35], 120, Ok(65)),
        // The next object has the same patience as the first.
        (vec![12, 12, 12, 12], 30, Ok(22)),
        // What is left, and no more than that.
        (vec![25, 25], 30, Err(30)),
    ] {
        let store = Scripted::new(first_bytes.into_iter().map(late));
        let deadline = Duration::from_secs(deadline);
        let retrying = store.under(RetryPolicy { deadline, ..RetryPolicy::default() });
        let start = Instant::now();
        let answer = retrying.head("k").await;
        let took = start.elapsed().as_secs();
        assert_eq!(answer.map(|_| took).map_err(|_| took), want, "{deadline:?}");
    }
}

/// E6: an error that comes at once says nothing about patience.
#[tokio::test(start_paused = true)]
async fn errors_do_not_make_a_silent_store_be_waited_for_longer() {
    let failing = StoreError::Unavailable("500".to_owned());
    let late = [Step::Late(Duration::from_mins(1))];
    let store = Scripted::new(failures(5, &failing).into_iter().chain(late));
    let retrying = store.under(RetryPolicy::default());
    let start = Instant::now();
    retrying.head("k").await.unwrap();
    let took = start.elapsed();
    assert!((10..15).contains(&took.as_secs()), "{took:?}");
}
