//! Behaviour, in requests counted and answers given.

use super::*;
use crate::testing::fault::{BadPage, Fault, FaultyStore, Operation};
use crate::testing::memory::{Counts, MemoryStore};

const TTL: Duration = Duration::from_mins(1);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

struct Mount {
    memory: Arc<MemoryStore>,
    faults: Arc<FaultyStore>,
    names: Arc<Names>,
}

fn mount_with(keys: &[&str], adjust: impl FnOnce(&mut NamesConfig)) -> Mount {
    let memory = Arc::new(MemoryStore::new());
    for key in keys {
        memory.put(key, "x");
    }
    let faults = Arc::new(FaultyStore::new(memory.clone()));
    let mut config = NamesConfig {
        root_prefix: String::new(),
        metadata_ttl: Some(TTL),
        negative_ttl: NEGATIVE_TTL,
        mounted_at: SystemTime::UNIX_EPOCH + Duration::from_hours(1),
        listings_bytes: usize::MAX,
        page_keys: 1000,
        pages_at_once: 4,
    };
    adjust(&mut config);
    let names = Names::new(faults.clone(), config);
    Mount { memory, faults, names }
}

fn mount(keys: &[&str]) -> Mount {
    mount_with(keys, |_| ())
}

fn mount_with_ttl(keys: &[&str], ttl: Option<Duration>) -> Mount {
    mount_with(keys, |config| {
        config.metadata_ttl = ttl;
    })
}

/// Whatever a test has done, what is held is what was counted.
impl Drop for Mount {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (counted, there) = self.names.state.lock().directories.held_bytes();
            assert_eq!(counted, there, "bytes of names");
        }
    }
}

impl Mount {
    fn held_bytes(&self) -> usize {
        self.names.state.lock().directories.held_bytes().0
    }

    async fn look(&self, path: &str) -> Result<Node, FsError> {
        let (mut ino, mut node) = (ROOT, Err(FsError::Stale));
        for name in path.split('/') {
            node = self.names.lookup(ino, name.as_bytes()).await;
            ino = node.as_ref().map_err(Clone::clone)?.ino;
        }
        node
    }

    async fn ino(&self, path: &str) -> Ino {
        self.look(path).await.expect("the path exists").ino
    }

    async fn scan(&self, ino: Ino, cookie: u64) -> Result<Vec<(String, Ino, u64)>, FsError> {
        let entry = |entry: ScanEntry<'_>| {
            (String::from_utf8_lossy(entry.name).into_owned(), entry.ino, entry.cookie)
        };
        let mut entries: Vec<(String, Ino, u64)> = Vec::new();
        loop {
            let cookie = entries.last().map_or(cookie, |last| last.2);
            let scan = self.names.read_directory(ino, cookie).await?;
            let before = entries.len();
            entries.extend(scan.iter().map(entry));
            if entries.len() == before {
                return Ok(entries);
            }
        }
    }

    async fn list(&self, ino: Ino) -> Result<Vec<String>, FsError> {
        Ok(self.scan(ino, 0).await?.into_iter().skip(2).map(|(name, ..)| name).collect())
    }

    fn mtime(&self, ino: Ino) -> SystemTime {
        match self.names.attributes(ino).expect("known").kind {
            NodeKind::Directory { mtime } => mtime,
            NodeKind::File(_) => panic!("a file"),
        }
    }

    fn requests(&self) -> (u64, u64) {
        let Counts { lists, heads, .. } = self.memory.counts();
        (lists, heads)
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Lets background work that needs no time come to its end.
async fn settle() {
    pass(Duration::from_millis(1)).await;
}

fn is_absent(answer: &Result<Node, FsError>) -> bool {
    matches!(answer, Err(FsError::NotFound { .. }))
}

/// F1, A1
#[tokio::test(start_paused = true)]
async fn a_listed_directory_answers_lookups_without_a_request() {
    let mount = mount(&["a", "d/b"]);
    assert_eq!(mount.list(ROOT).await, Ok(vec!["a".to_owned(), "d".to_owned()]));
    assert!(mount.look("a").await.is_ok());
    assert!(mount.look("d").await.is_ok());
    let ttl = TTL / 4 * 3;
    assert_eq!(mount.look("no").await.unwrap_err(), FsError::NotFound { ttl });
    assert_eq!(mount.requests(), (1, 0));
}

/// A1
#[tokio::test(start_paused = true)]
async fn two_thousand_files_cost_two_lists_and_no_head() {
    let keys: Vec<_> = (0..2000).map(|n| format!("d/{n:04}")).collect();
    let mount = mount(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let directory = mount.ino("d").await;
    let (lists, heads) = mount.requests();
    assert_eq!(mount.list(directory).await.expect("listed").len(), 2000);
    for key in &keys {
        let node = mount.names.lookup(directory, &key.as_bytes()[2..]).await.expect("exists");
        assert!(matches!(node.kind, NodeKind::File(meta) if meta.version.key == *key));
    }
    // The lookup has brought the first page.
    assert_eq!((lists, mount.requests()), (2, (3, heads)));
}

/// A directory `d` of 30 files, three pages of 40 ms.
fn three_pages(ttl: Option<Duration>) -> Mount {
    let keys: Vec<_> = (0..30).map(|n| format!("d/{n:02}")).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.metadata_ttl = ttl;
        config.page_keys = 10;
        config.pages_at_once = 1;
    });
    mount.faults.delay(Operation::List, Duration::from_millis(40));
    mount
}

/// F1, F2
#[tokio::test(start_paused = true)]
async fn a_listing_goes_on_from_the_page_that_the_lookup_has_seen_and_is_as_old() {
    let mount = three_pages(Some(TTL));
    let start = Instant::now();
    let d = mount.ino("d").await;
    assert_eq!((start.elapsed(), mount.requests().0), (Duration::from_millis(40), 2));
    pass(Duration::from_secs(9)).await;
    let listing = Instant::now();
    let (first, _) = mount.piece(d, 0).await.expect("shown");
    assert_eq!((first.len(), listing.elapsed()), (9, Duration::ZERO));
    assert_eq!(mount.list(d).await.expect("listed").len(), 30);
    assert_eq!((listing.elapsed(), mount.requests().0), (Duration::from_millis(80), 4));
    // It is no younger than its oldest page.
    tokio::time::sleep_until(start + TTL - Duration::from_millis(1)).await;
    let ttl = mount.names.lookup(d, b"17").await.expect("believed").name_ttl;
    assert_eq!(ttl, Duration::from_millis(1));
}

/// F1, F2
#[tokio::test(start_paused = true)]
async fn a_page_that_is_old_or_was_dropped_begins_no_listing_and_none_begins_two() {
    let minutes = Some(Duration::from_mins(10));
    for (ttl, wait) in [(None, 10), (minutes, 10), (Some(Duration::from_secs(20)), 5)] {
        let mount = three_pages(ttl);
        let d = mount.ino("d").await;
        pass(Duration::from_secs(wait)).await;
        mount.memory.delete("d/05");
        assert_eq!(mount.list(d).await.expect("listed").len(), 29);
        assert_eq!(mount.requests().0, 2 + 3, "after {wait} s of {ttl:?}");
    }
    let mount = three_pages(Some(TTL));
    let d = mount.ino("d").await;
    mount.memory.delete("d/05");
    mount.names.drop_names();
    assert_eq!(mount.list(d).await.expect("listed").len(), 29);
    assert_eq!(mount.requests().0, 2 + 3);

    let mount = three_pages(Some(TTL));
    let d = mount.ino("d").await;
    mount.faults.fail_next(Operation::List, StoreError::Throttled { retry_after: None });
    assert_eq!(mount.list(d).await, Err(FsError::Io));
    assert_eq!(mount.list(d).await.expect("listed anew").len(), 30);
    assert_eq!(mount.faults.calls(), 3 + 1 + 3);
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_lookup_costs_one_round_trip() {
    let mount = mount(&["a"]);
    mount.faults.delay(Operation::Head, Duration::from_millis(20));
    mount.faults.delay(Operation::List, Duration::from_millis(20));
    let start = Instant::now();
    mount.look("a").await.expect("exists");
    assert_eq!(start.elapsed(), Duration::from_millis(20));
    assert_eq!(mount.requests(), (2, 1));
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_path_in_a_small_tree_costs_one_round_trip() {
    let mount = mount(&["a/b/c/d/0", "a/b/c/d/1", "a/b/c2/x", "a/e", "z"]);
    mount.faults.delay(Operation::Head, Duration::from_millis(15));
    mount.faults.delay(Operation::List, Duration::from_millis(40));
    let start = Instant::now();
    mount.look("a/b/c/d/0").await.expect("exists");
    assert_eq!((start.elapsed(), mount.requests()), (Duration::from_millis(40), (2, 1)));
    // Whatever else is asked in it is known, too, and so are its listings.
    for path in ["a/b/c/d/1", "a/b/c2/x", "a/e"] {
        mount.look(path).await.expect("exists");
    }
    for path in ["a/b/c/d/2", "a/b/c2/y", "a/x"] {
        assert!(is_absent(&mount.look(path).await));
    }
    assert_eq!(mount.list(mount.ino("a/b").await).await, Ok(vec!["c".to_owned(), "c2".to_owned()]));
    assert_eq!(mount.requests(), (2, 1));
}

/// Directories `a` to `c` in directories `a` to `c` and so on, five levels deep, with pages of four
/// keys.
fn large_tree() -> Mount {
    let digits = |n: usize| (0..5).map(move |level| ["a", "b", "c"][n / 3_usize.pow(level) % 3]);
    let keys: Vec<_> = (0..243).map(|n| digits(n).collect::<Vec<_>>().join("/")).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = 4;
    });
    mount.faults.delay(Operation::Head, Duration::from_millis(15));
    mount.faults.delay(Operation::List, Duration::from_millis(40));
    mount
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_path_in_a_large_tree_costs_a_round_trip_for_two_components() {
    for (path, round_trips) in [("b/c/b/b/c", 3), ("c/c/c/c/c", 3), ("a/a/a/a/a", 1), ("b", 1)] {
        let mount = large_tree();
        let start = Instant::now();
        mount.look(path).await.expect("exists");
        assert_eq!(start.elapsed(), Duration::from_millis(40) * round_trips, "{path}");
        let (lists, heads) = mount.requests();
        assert_eq!((lists, heads), (2 * u64::from(round_trips), u64::from(round_trips)), "{path}");
    }
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_directorys_own_page_is_not_waited_for_when_it_is_late() {
    let mount = large_tree();
    mount.faults.next(Operation::List, Fault::None);
    mount.faults.next(Operation::List, Fault::Hang);
    let start = Instant::now();
    mount.look("b").await.expect("exists");
    assert!(start.elapsed() <= Duration::from_millis(85), "{:?}", start.elapsed());
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_file_in_a_huge_directory_does_not_have_it_listed() {
    let keys: Vec<_> = (0..1000).map(|n| format!("d/{n:03}")).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = 10;
    });
    // The last name of its first page may be hidden by what comes next.
    mount.ino("d/008").await;
    assert!(is_absent(&mount.look("d/0055").await));
    assert_eq!(mount.requests(), (2, 1));
    // One more file, where there are but files: as little as can be asked.
    mount.ino("d/700").await;
    settle().await;
    assert_eq!(mount.requests(), (3, 2));
}

/// F5
#[tokio::test(start_paused = true)]
async fn what_a_lookup_has_seen_has_the_numbers_that_the_listing_gives() {
    let keys: Vec<_> = (0..100).map(|n| format!("d/{n:03}")).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = 10;
    });
    let d = mount.ino("d").await;
    let seen = [mount.ino("d/001").await, mount.ino("d/007").await];
    for key in ["d/0005", "d/005"] {
        mount.memory.put(key, "new");
    }
    for ino in seen {
        mount.names.forget(ino, 1);
    }
    // All pages are asked for.
    pass(TTL / 4).await;
    let listed = mount.scan(d, 0).await.expect("listed");
    let number = |name: &str| listed.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
    assert_eq!([number("001"), number("007")], seen.map(Some));
}

#[tokio::test(start_paused = true)]
async fn n3_the_directory_wins() {
    let mount = mount(&["a", "a-b", "a/x"]);
    let node = mount.look("a").await.expect("exists");
    assert!(matches!(node.kind, NodeKind::Directory { .. }));
    assert_eq!(mount.list(ROOT).await, Ok(vec!["a-b".to_owned(), "a".to_owned()]));
    let listed = mount.look("a").await.expect("exists");
    assert!(matches!(listed.kind, NodeKind::Directory { .. }));
    assert_eq!(listed.ino, node.ino);
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_one_whatever_the_head_says_and_a_file_only_by_both_answers() {
    let mount = mount(&["d/x", "f"]);
    let down = || StoreError::Unavailable("down".to_owned());
    mount.faults.fail_next(Operation::Head, down());
    assert!(mount.look("d").await.is_ok());

    mount.faults.fail_next(Operation::List, down());
    assert_eq!(mount.look("f").await.unwrap_err(), FsError::Io);

    let denied = StoreError::Denied("no ListBucket".to_owned());
    mount.faults.fail_next(Operation::Head, denied);
    assert_eq!(mount.look("f").await.unwrap_err(), FsError::Denied);

    mount.faults.next(Operation::Head, Fault::Hang);
    assert!(mount.look("d").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_directory_wins_whichever_answer_comes_first() {
    for (slow, quick) in [(Operation::List, Operation::Head), (Operation::Head, Operation::List)] {
        let mount = mount(&["a", "a/x", "f"]);
        mount.faults.delay(slow, Duration::from_secs(2));
        mount.faults.delay(quick, Duration::from_secs(1));
        let [a, f] = [mount.look("a").await, mount.look("f").await];
        assert!(matches!(a.expect("exists").kind, NodeKind::Directory { .. }));
        assert!(matches!(f.expect("exists").kind, NodeKind::File(_)));
        mount.names.drop_names();
        mount.faults.fail_next(Operation::List, StoreError::Throttled { retry_after: None });
        assert_eq!(mount.look("f").await.unwrap_err(), FsError::Io);
    }
}

/// F1
#[tokio::test(start_paused = true)]
async fn point_answers_are_believed_for_their_ttl() {
    let mount = mount(&["f"]);
    let first = mount.look("f").await.expect("exists");
    assert_eq!((first.name_ttl, first.attr_ttl), (TTL, FOREVER));
    pass(TTL / 2).await;
    assert_eq!(mount.look("f").await.expect("exists").name_ttl, TTL / 2);
    assert_eq!(mount.requests(), (2, 1));
    pass(TTL / 2).await;
    assert_eq!(mount.ino("f").await, first.ino);
    // The second miss lists the directory, too.
    settle().await;
    assert_eq!(mount.requests(), (5, 2));
}

/// F3
#[tokio::test(start_paused = true)]
async fn negative_answers_expire() {
    let mount = mount(&[]);
    assert_eq!(mount.look("f").await.unwrap_err(), FsError::NotFound { ttl: NEGATIVE_TTL });
    mount.memory.put("f", "");
    pass(Duration::from_secs(4)).await;
    let ttl = Duration::from_secs(1);
    assert_eq!(mount.look("f").await.unwrap_err(), FsError::NotFound { ttl });
    assert_eq!(mount.requests(), (2, 1));
    pass(Duration::from_secs(1)).await;
    assert!(mount.look("f").await.is_ok());
}

/// F2
#[tokio::test(start_paused = true)]
async fn the_second_miss_lists_the_directory_in_the_background() {
    let mount = mount(&["1", "2", "3"]);
    mount.ino("1").await;
    settle().await;
    assert_eq!(mount.requests(), (2, 1));
    mount.ino("2").await;
    settle().await;
    assert_eq!(mount.requests(), (5, 2));
    mount.ino("3").await;
    assert!(is_absent(&mount.look("4").await));
    assert_eq!(mount.requests(), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_would_not_be_believed_is_not_made_in_the_background() {
    let mount = mount_with_ttl(&["1", "2", "3"], Some(Duration::ZERO));
    for _ in 0..3 {
        mount.ino("1").await;
    }
    settle().await;
    assert_eq!(mount.requests(), (3, 3));
}

/// F5
#[tokio::test(start_paused = true)]
async fn an_overwritten_object_is_a_new_inode() {
    let mount = mount(&["f", "g"]);
    mount.list(ROOT).await.expect("listed");
    let (f, g) = (mount.ino("f").await, mount.ino("g").await);
    let new = mount.memory.put("f", "new");
    pass(TTL).await;
    mount.list(ROOT).await.expect("listed");
    assert_eq!(mount.ino("g").await, g);
    let renewed = mount.ino("f").await;
    assert_ne!(renewed, f);
    assert_eq!(*mount.names.object(renewed).expect("known"), new);
    assert_ne!(*mount.names.object(f).expect("still known"), new);
}

/// F5
#[tokio::test(start_paused = true)]
async fn an_unchanged_object_keeps_its_number_however_it_is_found() {
    let mount = mount(&["f", "d/x"]);
    let (f, d) = (mount.ino("f").await, mount.ino("d").await);
    settle().await;
    for _ in 0..3 {
        pass(TTL).await;
        assert_eq!((mount.ino("f").await, mount.ino("d").await), (f, d));
        mount.names.drop_names();
        let listed = mount.scan(ROOT, 0).await.expect("listed");
        assert_eq!(listed[2..].iter().map(|entry| entry.1).collect::<Vec<_>>(), [d, f]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_point_answer_keeps_its_number_for_a_kernel_that_forgets() {
    let mount = mount(&["f"]);
    let f = mount.ino("f").await;
    for pause in [Duration::ZERO, TTL] {
        mount.names.forget(f, 1);
        pass(pause).await;
        assert_eq!(mount.ino("f").await, f);
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_given_out_while_a_listing_is_made_is_the_listings_too() {
    let mount = mount_with(&["d/1", "f", "g", "z"], |config| {
        config.page_keys = 1;
    });
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    let names = mount.names.clone();
    let listing = tokio::spawn(async move { names.read_directory(ROOT, 0).await.map(|_| ()) });
    // Three pages have come when the lookups end.
    pass(Duration::from_millis(2500)).await;
    let (d, f) = tokio::join!(mount.ino("d"), mount.ino("f"));
    listing.await.expect("no panic").expect("listed");
    let listed = mount.scan(ROOT, 0).await.expect("listed");
    assert_eq!((listed[2].1, listed[3].1), (d, f));
    assert_eq!((mount.ino("d").await, mount.ino("f").await), (d, f));
}

/// F5
#[tokio::test(start_paused = true)]
async fn a_number_is_never_used_for_anything_else() {
    let mount = mount(&["f", "d/x"]);
    let old = [mount.ino("f").await, mount.ino("d").await];
    for ino in old {
        mount.names.forget(ino, 1);
        assert_eq!(mount.names.attributes(ino).unwrap_err(), FsError::Stale);
        assert_eq!(mount.names.object(ino).unwrap_err(), FsError::Stale);
    }
    mount.memory.put("f", "other");
    mount.names.drop_names();
    assert!(!old.contains(&mount.ino("f").await));
}

/// F7
#[tokio::test(start_paused = true)]
async fn ten_concurrent_lookups_cost_one_head_and_two_lists() {
    let mount = mount(&["f"]);
    mount.faults.close_gate();
    let lookups: Vec<_> = (0..10)
        .map(|_| {
            let names = mount.names.clone();
            tokio::spawn(async move { names.lookup(ROOT, b"f").await.map(|node| node.ino) })
        })
        .collect();
    settle().await;
    // The one who started it is interrupted; nobody else notices.
    lookups[0].abort();
    mount.faults.open_gate();
    let mut found = Vec::new();
    for lookup in lookups.into_iter().skip(1) {
        found.push(lookup.await.expect("no panic").expect("exists"));
    }
    found.dedup();
    assert_eq!((found.len(), mount.requests()), (1, (2, 1)));
    mount.names.forget(found[0], 9);
    assert_eq!(mount.names.attributes(found[0]).unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn concurrent_listings_are_one_and_its_failure_is_everybodys_but_not_remembered() {
    let mount = mount(&["f"]);
    mount.faults.close_gate();
    mount.faults.fail_next(Operation::List, StoreError::Throttled { retry_after: None });
    let scans: Vec<_> = (0..10)
        .map(|_| {
            let names = mount.names.clone();
            tokio::spawn(async move { names.read_directory(ROOT, 0).await.map(|_| ()) })
        })
        .collect();
    settle().await;
    mount.faults.open_gate();
    for scan in scans {
        let answer = scan.await.expect("no panic");
        assert_eq!(answer, Err(FsError::Io));
    }
    assert_eq!(mount.faults.calls(), 1);
    assert_eq!(mount.list(ROOT).await, Ok(vec!["f".to_owned()]));
    assert_eq!(mount.faults.calls(), 2);
}

/// E7
#[tokio::test(start_paused = true)]
async fn a_failed_page_is_an_error_never_a_shorter_directory() {
    let mount = mount_with(&["1", "2", "3"], |config| {
        config.page_keys = 1;
    });
    for fault in
        [Fault::Fail(StoreError::TimedOut("30 s".to_owned())), Fault::Page(BadPage::RepeatsToken)]
    {
        mount.faults.next(Operation::List, Fault::None);
        mount.faults.next(Operation::List, fault);
        assert!(matches!(mount.list(ROOT).await, Err(FsError::TimedOut | FsError::Io)));
    }
    assert_eq!(mount.list(ROOT).await.expect("listed").len(), 3);
    // An old listing is no answer when the new one fails.
    pass(TTL).await;
    mount.faults.fail_next(Operation::List, StoreError::Throttled { retry_after: None });
    assert_eq!(mount.list(ROOT).await, Err(FsError::Io));
}

/// F4
#[tokio::test(start_paused = true)]
async fn names_believed_for_ever_are_asked_once() {
    let mount = mount_with_ttl(&["d/1", "f"], None);
    let directory = mount.look("d").await.expect("exists");
    assert_eq!(directory.name_ttl, FOREVER);
    mount.list(directory.ino).await.expect("listed");
    mount.list(ROOT).await.expect("listed");
    let requests = mount.requests();
    pass(FOREVER).await;
    mount.ino("d/1").await;
    mount.list(directory.ino).await.expect("listed");
    assert!(is_absent(&mount.look("no").await));
    assert_eq!(mount.names.attributes(directory.ino).expect("known").attr_ttl, FOREVER);
    assert_eq!(mount.requests(), requests);
}

#[tokio::test(start_paused = true)]
async fn without_a_ttl_every_answer_is_new() {
    let mount = mount_with_ttl(&["a", "b", "c"], Some(Duration::ZERO));
    let scan = mount.scan(ROOT, 0).await.expect("listed");
    mount.memory.put("bb", "");
    // The scan goes on with what it began, and costs nothing more.
    let rest = mount.scan(ROOT, scan[2].2).await.expect("goes on");
    assert_eq!(rest.iter().map(|entry| entry.0.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(mount.requests(), (1, 0));
    assert_eq!(mount.list(ROOT).await.expect("listed").len(), 4);
    assert_eq!(mount.look("bb").await.expect("exists").name_ttl, Duration::ZERO);
    assert_eq!(mount.requests(), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_gone_is_not_an_empty_one() {
    let mount = mount(&["d/x"]);
    let directory = mount.ino("d").await;
    mount.list(directory).await.expect("listed");
    mount.memory.delete("d/x");
    pass(TTL).await;
    assert!(matches!(mount.list(directory).await, Err(FsError::NotFound { .. })));
    mount.memory.put("d/", "");
    assert_eq!(mount.list(directory).await, Ok(vec![]));
    assert!(is_absent(&mount.look("no").await));
}

#[tokio::test(start_paused = true)]
async fn n12_the_root_exists_without_a_key() {
    let mount = mount(&[]);
    assert_eq!(mount.list(ROOT).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_mount_of_a_prefix_sees_nothing_else() {
    let mount = mount_with(&["p/a/b", "p/", "q", "p"], |config| {
        config.root_prefix = "p/".to_owned();
    });
    assert_eq!(mount.list(ROOT).await, Ok(vec!["a".to_owned()]));
    let scan = mount.scan(mount.ino("a").await, 0).await.expect("listed");
    let dots: Vec<_> = scan[..2].iter().map(|entry| (entry.0.as_str(), entry.1)).collect();
    assert_eq!(dots, [(".", mount.ino("a").await), ("..", ROOT)]);
    assert_eq!(scan[2].0, "b");
}

#[tokio::test(start_paused = true)]
async fn n7_n8_n11_impossible_names_cost_no_request() {
    let mount = mount(&[]);
    for name in [&b"\xff"[..], b"a\0", b"..", b"."] {
        let answer = mount.names.lookup(ROOT, name).await;
        assert_eq!(answer.unwrap_err(), FsError::NotFound { ttl: FOREVER });
    }
    assert_eq!(mount.names.lookup(ROOT, &[b'x'; 256]).await.unwrap_err(), FsError::NameTooLong);
    assert_eq!(mount.requests(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn n11_a_key_of_1024_bytes_can_be_a_file_only() {
    let root = format!("{}/", vec!["x".repeat(255); 3].join("/")) + "y/";
    let name = "z".repeat(1024 - root.len());
    let mount = mount_with(&[&format!("{root}{name}")], |config| {
        config.root_prefix = root;
    });
    assert!(mount.look(&name).await.is_ok());
    assert_eq!(mount.requests(), (0, 1));
    let longer = mount.look(&(name + "z")).await;
    assert_eq!(longer.unwrap_err(), FsError::NotFound { ttl: FOREVER });
    assert_eq!(mount.requests(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_changed_object_drops_its_directorys_names_only() {
    let mount = mount(&["d/f", "d/g", "e/h"]);
    let (d, f) = (mount.ino("d").await, mount.ino("d/f").await);
    mount.list(d).await.expect("listed");
    mount.ino("e/h").await;
    settle().await;
    let new = mount.memory.put("d/f", "new");
    let requests = mount.requests();
    mount.names.changed(f);
    assert_eq!(*mount.names.object(mount.ino("d/f").await).expect("known"), new);
    assert_eq!(mount.requests(), (requests.0 + 2, requests.1 + 1));
    mount.ino("e/h").await;
    assert_eq!(mount.requests(), (requests.0 + 2, requests.1 + 1));
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_names_were_dropped_is_not_told_of_before() {
    let mount = mount(&["f", "g"]);
    mount.faults.close_gate();
    let names = mount.names.clone();
    let before = tokio::spawn(async move {
        let scan = names.read_directory(ROOT, 0).await.expect("listed");
        (scan.iter().count(), scan.iter().next().expect("`.`").cookie)
    });
    let names = mount.names.clone();
    let lookup = tokio::spawn(async move { names.lookup(ROOT, b"no").await.map(|_| ()) });
    settle().await;
    mount.names.drop_names();
    let names = mount.names.clone();
    let after = tokio::spawn(async move { names.lookup(ROOT, b"no").await.map(|_| ()) });
    settle().await;
    assert_eq!(mount.faults.calls(), 7, "the second lookup asks for itself");
    mount.faults.open_gate();
    let (entries, cookie) = before.await.expect("no panic");
    assert_eq!(entries, 4);
    assert!(lookup.await.expect("no panic").is_err() && after.await.expect("no panic").is_err());
    // What was listed for those before is good for their scan and for nothing else.
    let calls = mount.faults.calls();
    assert_eq!(mount.scan(ROOT, cookie).await.expect("goes on").len(), 3);
    assert_eq!(mount.faults.calls(), calls);
    mount.ino("f").await;
    assert_eq!(mount.faults.calls(), calls + 3);
}

/// A4
#[tokio::test(start_paused = true)]
async fn the_mtime_changes_when_the_listing_may_have_changed_and_only_then() {
    let mount = mount(&["d/1"]);
    let d = mount.ino("d").await;
    let first = mount.mtime(d);
    assert_eq!(first, SystemTime::UNIX_EPOCH + Duration::from_hours(1), "mounted then");
    mount.list(d).await.expect("listed");
    assert_eq!(mount.mtime(d), first);
    // It is asked for anew in the last quarter of its life, so the kernel asks until then.
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, TTL / 4 * 3);
    pass(TTL / 2).await;
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, TTL / 4);

    // Expired: the kernel may keep its pages no longer. Once, without a request.
    pass(TTL / 2).await;
    let requests = mount.requests();
    let second = mount.mtime(d);
    assert!(second > first);
    pass(TTL).await;
    assert_eq!(mount.mtime(d), second);
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, Duration::ZERO);
    assert_eq!(mount.requests(), requests);
    mount.memory.put("d/2", "");
    mount.list(d).await.expect("listed");
    assert_eq!(mount.mtime(d), second, "it has moved already");

    // Listed anew before anybody asked: it moves if there is anything new.
    pass(TTL).await;
    mount.list(d).await.expect("listed");
    assert_eq!(mount.mtime(d), second, "nothing new");
    pass(TTL).await;
    mount.memory.put("d/2", "");
    mount.list(d).await.expect("listed");
    let third = mount.mtime(d);
    assert!(third > second);

    mount.names.drop_names();
    assert!(mount.mtime(d) > third);
}

/// F11
#[tokio::test(start_paused = true)]
async fn a_directory_in_use_is_listed_anew_before_its_time_is_over_and_nobody_waits() {
    let mount = mount(&["d/1", "d/2"]);
    let d = mount.ino("d").await;
    mount.list(d).await.expect("listed");
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    let ino = mount.ino("d/1").await;
    let (lists, heads) = mount.requests();
    pass(TTL / 3 * 2).await;
    mount.list(d).await.expect("believed");
    assert_eq!(mount.requests(), (lists, heads), "not yet");
    pass(TTL / 12).await;
    for round in 1..=10 {
        mount.memory.put(&format!("d/new{round}"), "");
        pass(TTL / 8).await;
        let start = Instant::now();
        assert_eq!(mount.names.lookup(d, b"1").await.expect("exists").ino, ino);
        pass(TTL / 8).await;
        mount.list(d).await.expect("listed");
        assert_eq!(start.elapsed(), TTL / 8, "nobody has waited");
        pass(TTL / 4 * 2).await;
        assert!(mount.names.lookup(d, format!("new{round}").as_bytes()).await.is_ok());
    }
    let (listed, looked_up) = mount.requests();
    assert!(listed - lists <= 12, "{} LISTs", listed - lists);
    assert_eq!(looked_up, heads);
    // It is not used any more.
    pass(TTL * 10).await;
    assert_eq!(mount.requests().0, listed);
}

/// F11, A4
#[tokio::test(start_paused = true)]
async fn what_was_read_of_a_listing_is_old_when_it_is_replaced_before_its_time() {
    let mount = slow_mount(&["d/1", "d/2", "d/3", "d/4"]);
    let d = mount.ino("d").await;
    mount.list(d).await.expect("listed");
    let (first, at_end) = (mount.mtime(d), TTL / 8 * 7);
    pass(at_end).await;
    mount.memory.delete("d/1");
    assert_eq!(mount.list(d).await.expect("believed").len(), 4);
    // The first page has shown that something has changed; the old listing is still in its time.
    pass(Duration::from_millis(1500)).await;
    let second = mount.mtime(d);
    assert!(second >= first);
    assert_eq!(mount.list(d).await.expect("believed").len(), 4);
    pass(Duration::from_secs(3)).await;
    assert_eq!(mount.list(d).await.expect("listed").len(), 3);
    assert!(mount.mtime(d) > second);
}

/// F11
#[tokio::test(start_paused = true)]
async fn few_directories_are_listed_anew_at_once() {
    let (mount, d) = forest(40, 2, 1000).await;
    mount.walk(d, 0..40, 2).await;
    let (lists, _) = mount.requests();
    pass(TTL / 8 * 7).await;
    mount.walk(d, 0..40, 2).await;
    pass(Duration::from_secs(1)).await;
    let (renewed, _) = mount.requests();
    assert!(renewed - lists <= 4, "{} LISTs", renewed - lists);
}

/// F4
#[tokio::test(start_paused = true)]
async fn names_believed_for_ever_are_never_listed_anew() {
    let mount = mount_with_ttl(&["d/1"], None);
    let d = mount.ino("d").await;
    mount.list(d).await.expect("listed");
    let requests = mount.requests();
    for _ in 0..10 {
        pass(Duration::from_hours(1000)).await;
        mount.list(d).await.expect("believed");
        assert!(is_absent(&mount.look("d/2").await));
        mount.ino("d/1").await;
    }
    assert_eq!(mount.requests(), requests);
}

/// A4, F5, F8
#[tokio::test(start_paused = true)]
async fn what_was_shown_of_a_first_listing_is_old_when_names_are_dropped_and_keeps_its_numbers() {
    let keys: Vec<_> = (0..200).map(|n| format!("{n:03}")).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = 100;
        config.pages_at_once = 1;
    });
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    let shown = mount.names.read_directory(ROOT, 0).await.expect("the first page");
    let shown: HashMap<_, _> = shown.iter().map(|entry| (entry.name.to_vec(), entry.ino)).collect();
    assert!(shown.len() > 90);
    let before = mount.mtime(ROOT);
    mount.memory.delete("050");
    mount.names.drop_names();
    assert!(mount.mtime(ROOT) > before);
    let anew = mount.scan(ROOT, 0).await.expect("listed");
    assert_eq!(anew.len(), 2 + 199);
    for (name, ino, _) in anew {
        let number = shown.get(name.as_bytes()).copied();
        assert!(number.is_none_or(|number| number == ino), "{name} was {number:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_mtime_never_comes_back_with_its_directory() {
    // Nothing is learnt of it beside that it exists.
    let mount = mount_with_ttl(&["d/1"], Some(Duration::ZERO));
    let d = mount.ino("d").await;
    mount.ino("d/1").await;
    pass(TTL).await;
    let before = mount.mtime(d);
    mount.names.forget(d, 2);
    assert_eq!(mount.names.attributes(d).unwrap_err(), FsError::Stale);
    pass(TTL).await;
    assert!(mount.mtime(mount.ino("d").await) > before);
}

#[tokio::test(start_paused = true)]
async fn a_directory_keeps_its_mtime_whatever_becomes_of_others() {
    let mount = mount_with_ttl(&["d/1", "e/1"], Some(Duration::ZERO));
    let (d, e) = (mount.ino("d").await, mount.ino("e").await);
    let before = mount.mtime(d);
    pass(TTL).await;
    mount.names.forget(e, 1);
    assert_eq!(mount.mtime(d), before);
}

/// F6
#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_across_new_listings_behind_the_name_it_came_to() {
    let mount = mount(&["a", "c", "e/1", "g"]);
    let scan = mount.scan(ROOT, 0).await.expect("listed");
    let behind_c = scan[3].2;
    mount.memory.delete("c");
    mount.memory.put("b", "");
    mount.memory.put("d", "");
    let rest = |scan: Vec<(String, Ino, u64)>| {
        scan.into_iter().map(|entry| entry.0).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(rest(mount.scan(ROOT, behind_c).await.expect("goes on")), "e g");
    pass(TTL).await;
    assert_eq!(rest(mount.scan(ROOT, behind_c).await.expect("goes on, though old")), "e g");
    mount.list(ROOT).await.expect("listed");
    assert_eq!(rest(mount.scan(ROOT, behind_c).await.expect("translated")), "d e g");
    mount.memory.delete("d");
    mount.names.drop_names();
    assert_eq!(rest(mount.scan(ROOT, behind_c).await.expect("listed and translated")), "e g");
    // Dots have positions, too.
    assert_eq!(rest(mount.scan(ROOT, scan[0].2).await.expect("translated")), ".. a b e g");

    for key in ["1", "2"] {
        mount.memory.put(key, "");
        mount.names.drop_names();
        mount.list(ROOT).await.expect("listed");
    }
    let stale = mount.scan(ROOT, behind_c).await;
    assert_eq!(stale.unwrap_err(), FsError::Stale, "three listings ago");
    assert_eq!(mount.scan(ROOT, 77).await.unwrap_err(), FsError::Stale);
    assert_eq!(mount.scan(ROOT, u64::MAX).await.unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_finds_nothing_new_keeps_all_cookies() {
    let mount = mount(&["a", "b"]);
    let scan = mount.scan(ROOT, 0).await.expect("listed");
    for _ in 0..10 {
        pass(TTL).await;
        assert_eq!(mount.scan(ROOT, 0).await.expect("listed"), scan);
    }
    assert_eq!(mount.requests(), (11, 0));
}

#[tokio::test(start_paused = true)]
async fn readdirplus_counts_a_lookup_for_each_entry_but_the_dots() {
    let mount = mount(&["d/1", "f"]);
    let scan = mount.names.read_directory(ROOT, 0).await.expect("listed");
    for entry in scan.iter() {
        let node = mount.names.node(&entry);
        let is_dot = entry.name.starts_with(b".");
        let name_ttl = if is_dot { TTL } else { TTL / 4 * 3 };
        assert_eq!((node.ino, node.name_ttl), (entry.ino, name_ttl));
        assert_eq!(entry.is_directory, matches!(node.kind, NodeKind::Directory { .. }));
        mount.names.remember(&entry);
    }
    for entry in scan.iter().skip(2) {
        assert!(mount.names.attributes(entry.ino).is_ok());
        mount.names.forget(entry.ino, 1);
        assert_eq!(mount.names.attributes(entry.ino).unwrap_err(), FsError::Stale);
    }
    assert_eq!(mount.requests(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_file_is_no_directory_and_a_directory_no_file() {
    let mount = mount(&["d/1", "f"]);
    let (d, f) = (mount.ino("d").await, mount.ino("f").await);
    assert_eq!(mount.names.object(d).unwrap_err(), FsError::IsADirectory);
    assert_eq!(mount.list(f).await.unwrap_err(), FsError::NotADirectory);
    assert_eq!(mount.names.lookup(f, b"x").await.unwrap_err(), FsError::NotADirectory);
    assert_eq!(mount.names.lookup(12345, b"x").await.unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_becomes_a_file_is_a_new_inode() {
    let mount = mount(&["d/1"]);
    let d = mount.ino("d").await;
    mount.memory.delete("d/1");
    mount.memory.put("d", "");
    mount.names.drop_names();
    let node = mount.look("d").await.expect("exists");
    assert!(node.ino != d && matches!(node.kind, NodeKind::File(_)));
    assert!(matches!(mount.list(d).await, Err(FsError::NotFound { .. })));
    assert!(is_absent(&mount.names.lookup(d, b"1").await));
}

#[tokio::test(start_paused = true)]
async fn listings_are_thrown_away_by_last_use_when_there_are_too_many() {
    let keys = ["a/1", "b/1", "c/1"];
    let roomy = mount(&keys);
    let all = three(&roomy).await;
    for directory in all {
        roomy.list(directory).await.expect("listed");
    }
    // Two misses have listed the root, which goes when others are used. Room for two listings of one
    // entry, beside what is known of the directories themselves.
    let [one, root] = [all[0], ROOT].map(|directory| listing_bytes(&roomy, directory));
    let most = roomy.held_bytes() - root - one;
    assert!(root < 2 * one, "{root} {one}");
    let mount = mount_with(&keys, |config| config.listings_bytes = most);
    let [a, b, c] = three(&mount).await;
    let mtimes = [mount.mtime(a), mount.mtime(b)];
    mount.list(a).await.expect("listed");
    let cookie = mount.scan(a, 0).await.expect("listed")[2].2;
    mount.list(b).await.expect("listed");
    let requests = mount.requests();
    mount.list(a).await.expect("listed");
    assert_eq!(mount.requests(), requests, "used before c came");
    mount.list(c).await.expect("listed");
    mount.list(a).await.expect("listed");
    assert_eq!(mount.requests(), (requests.0 + 1, requests.1), "b was thrown away, not a");
    assert!(mount.mtime(b) > mtimes[1], "or the kernel would keep b's pages for ever");
    assert_eq!(mount.mtime(a), mtimes[0]);
    assert!(mount.scan(a, cookie).await.is_ok());
    mount.list(b).await.expect("listed");
    assert_eq!(mount.requests(), (requests.0 + 2, requests.1));
}

/// The numbers of `a`, `b` and `c`, when all that this has begun has come to its end.
async fn three(mount: &Mount) -> [Ino; 3] {
    let directories = [mount.ino("a").await, mount.ino("b").await, mount.ino("c").await];
    settle().await;
    directories
}

fn listing_bytes(mount: &Mount, ino: Ino) -> usize {
    let state = mount.names.state.lock();
    let prefix = state.directory(ino).expect("a directory");
    state.directories.newest(&prefix).expect("listed").memory_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_listing_under_way_makes_others_go_and_works_though_it_is_larger_than_the_budget() {
    let keys: Vec<String> = (0..400).map(|number| format!("big/{number:03}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).chain(["a/1"]).collect();
    // 400 names take some 24 kB.
    let most = 8 << 10;
    let mount = mount_with(&keys, |config| {
        config.listings_bytes = most;
        config.page_keys = 10;
        config.pages_at_once = 1;
    });
    let [a, big] = [mount.ino("a").await, mount.ino("big").await];
    mount.list(a).await.expect("listed");
    settle().await;
    assert!(mount.held_bytes() <= most);
    let mtime = mount.mtime(a);
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    let (names, first) = (mount.names.clone(), mount.names.clone());
    let listing = tokio::spawn(async move { first.read_directory(big, 0).await.map(|_| ()) });
    pass(Duration::from_secs(3)).await;
    listing.await.expect("no panic").expect("a first piece");
    assert_eq!(mount.mtime(a), mtime, "there is room yet");
    // Of 40 pages, 20 have come.
    pass(Duration::from_secs(17)).await;
    assert!(mount.held_bytes() > most, "what is in use stays");
    assert!(mount.mtime(a) > mtime, "what is not has gone");
    assert_eq!(mount.list(big).await.expect("listed").len(), 400);
    let requests = mount.requests();
    assert_eq!(mount.list(big).await.expect("listed").len(), 400);
    assert!(names.lookup(big, b"399").await.is_ok());
    assert_eq!(mount.requests(), requests, "it is kept as long as it is in use");
    mount.list(a).await.expect("listed");
    assert!(mount.held_bytes() <= most, "now another is");
}

#[tokio::test(start_paused = true)]
async fn first_pages_are_counted_and_go_first() {
    let keys: Vec<String> = ["d", "e"]
        .iter()
        .flat_map(|directory| (0..1200).map(move |number| format!("{directory}/{number:04}")))
        .collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    // A page of 1,000 keys takes some 200 kB as it came, and 50 as the beginning of a listing.
    let held = async |most: usize| {
        let mount = mount_with(&keys, |config| config.listings_bytes = most);
        let [_, _] = [mount.ino("d").await, mount.ino("e").await];
        settle().await;
        let held = mount.held_bytes();
        let before = mount.requests().0;
        let d = mount.ino("d").await;
        assert_eq!(mount.list(d).await.expect("listed").len(), 1200);
        (held, mount.requests().0 - before)
    };
    let (both, pages) = held(usize::MAX).await;
    assert!(both > 300_000, "two pages as they came: {both}");
    let (one, more_pages) = held(both - 1).await;
    assert!(one < both - 100_000, "one of them was given up: {one} of {both}");
    assert_eq!(more_pages, pages + 1, "and is asked for again");
}

/// Pages of two names, one after the other, a second each.
fn slow_mount(keys: &[&str]) -> Mount {
    let mount = mount_with(keys, |config| {
        config.page_keys = 2;
        config.pages_at_once = 1;
    });
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    mount
}

impl Mount {
    /// One piece of a scan: names, and the cookie behind them.
    async fn piece(&self, ino: Ino, cookie: u64) -> Result<(Vec<String>, u64), FsError> {
        let scan = self.names.read_directory(ino, cookie).await?;
        let name = |entry: ScanEntry<'_>| String::from_utf8_lossy(entry.name).into_owned();
        let behind = scan.iter().last().map_or(cookie, |last| last.cookie);
        let names = scan.iter().map(name).filter(|name| !name.starts_with('.'));
        Ok((names.collect(), behind))
    }
}

/// F8
#[tokio::test(start_paused = true)]
async fn entries_are_shown_as_their_pages_come() {
    let mount = slow_mount(&["1", "2", "3", "4", "5"]);
    let start = Instant::now();
    let (mut cookie, mut shown) = (0, Vec::new());
    loop {
        let (names, behind) = mount.piece(ROOT, cookie).await.expect("shown");
        if names.is_empty() {
            break;
        }
        cookie = behind;
        shown.push((names.join(" "), start.elapsed().as_secs()));
    }
    // A page's last name waits for what comes behind it: a directory of this name would hide it.
    let expected = [("1", 1), ("2 3", 2), ("4 5", 3)].map(|(names, at)| (names.to_owned(), at));
    assert_eq!((shown.as_slice(), mount.requests()), (&expected[..], (3, 0)));
}

/// F8
#[tokio::test(start_paused = true)]
async fn n3_a_name_is_not_shown_before_a_directory_of_the_same_name_could_have_come() {
    let mount = slow_mount(&["a", "a-1", "a-2", "a-3", "a/x", "b"]);
    let start = Instant::now();
    let (names, _) = mount.piece(ROOT, 0).await.expect("shown");
    assert_eq!((names.join(" ").as_str(), start.elapsed().as_secs()), ("a-1 a-2 a-3 a b", 3));
}

/// F8
#[tokio::test(start_paused = true)]
async fn what_has_come_of_a_listing_answers_lookups_and_what_has_not_is_asked_for() {
    let mount = slow_mount(&["1", "3", "5", "7", "9"]);
    let scan = mount.scan(ROOT, mount.piece(ROOT, 0).await.expect("shown").1);
    tokio::pin!(scan);
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut scan).await.is_err());
    let one = mount.look("1").await.expect("has come");
    assert_eq!(one.name_ttl, Duration::from_millis(58_500));
    assert!(is_absent(&mount.look("0").await));
    assert_eq!(mount.requests(), (1, 0));
    let nine = mount.ino("9").await;
    assert_eq!(mount.requests(), (4, 1), "one LIST more for the listing");
    let listed = scan.await.expect("listed");
    assert_eq!(listed.last().map(|entry| (entry.0.as_str(), entry.1)), Some(("9", nine)));
}

/// F8, E6
#[tokio::test(start_paused = true)]
async fn a_listing_that_fails_half_way_is_an_error_for_all_who_are_in_it_and_then_made_anew() {
    let mount = slow_mount(&["1", "2", "3", "4", "5"]);
    let (_, quick) = mount.piece(ROOT, 0).await.expect("shown");
    let slow = mount
        .names
        .read_directory(ROOT, 0)
        .await
        .expect("shown")
        .iter()
        .next()
        .expect("`.`")
        .cookie;
    mount.faults.fail_next(Operation::List, StoreError::Throttled { retry_after: None });
    for cookie in [quick, slow, quick] {
        let answer = mount.piece(ROOT, cookie).await;
        assert_eq!(answer, Err(FsError::Io));
    }
    assert_eq!(mount.list(ROOT).await.expect("listed").len(), 5);
    assert_eq!(mount.piece(ROOT, quick).await, Err(FsError::Stale));
}

/// F6, F8
#[tokio::test(start_paused = true)]
async fn a_scan_of_a_listing_under_way_goes_on_when_names_are_dropped() {
    let mount = slow_mount(&["1", "2", "3", "4", "5"]);
    let (names, cookie) = mount.piece(ROOT, 0).await.expect("shown");
    assert_eq!(names, ["1"]);
    mount.memory.put("0", "");
    mount.memory.delete("4");
    mount.names.drop_names();
    let rest: Vec<_> =
        mount.scan(ROOT, cookie).await.expect("goes on").into_iter().map(|entry| entry.0).collect();
    assert_eq!(rest, ["2", "3", "5"]);
}

/// A4, F8
#[tokio::test(start_paused = true)]
async fn the_mtime_moves_before_other_entries_are_shown_than_before() {
    let mount = slow_mount(&["d/1", "d/2", "d/3", "d/4", "d/5", "d/6"]);
    let d = mount.ino("d").await;
    mount.list(d).await.expect("listed");
    let first = mount.mtime(d);
    pass(TTL).await;
    let (_, cookie) = mount.piece(d, 0).await.expect("shown");
    let (_, cookie) = mount.piece(d, cookie).await.expect("shown");
    // Nobody has asked since it expired, and all is as it was so far.
    mount.memory.delete("d/5");
    let (names, _) = mount.piece(d, cookie).await.expect("shown");
    assert_eq!(names, ["4", "6"]);
    assert!(mount.mtime(d) > first);
}

/// F5, F8
#[tokio::test(start_paused = true)]
async fn cookies_of_a_listing_that_found_nothing_new_are_as_good_as_the_first_ones() {
    let mount = slow_mount(&["1", "2", "3", "4", "5"]);
    let first = mount.scan(ROOT, 0).await.expect("listed");
    pass(TTL).await;
    let (_, cookie) = mount.piece(ROOT, 0).await.expect("shown");
    assert!(!first.iter().any(|entry| entry.2 == cookie), "a listing of its own");
    pass(Duration::from_secs(5)).await;
    let rest = |scan: Vec<(String, Ino, u64)>| {
        scan.into_iter().map(|entry| (entry.0, entry.1)).collect::<Vec<_>>()
    };
    let expected: Vec<_> = rest(first.clone()).split_off(3);
    for cookie in [cookie, first[2].2] {
        assert_eq!(rest(mount.scan(ROOT, cookie).await.expect("goes on")), expected);
    }
}

/// Directories `d/000` and so on, each of so many files; 50 ms a page of so many keys.
async fn forest(directories: usize, files: usize, page_keys: u16) -> (Mount, Ino) {
    let keys: Vec<_> =
        (0..directories * files).map(|n| format!("d/{:03}/{}", n / files, n % files)).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = page_keys;
    });
    let d = mount.ino("d").await;
    // What the lookup has learnt of all of them.
    mount.names.drop_names();
    mount.list(d).await.expect("listed");
    mount.faults.delay(Operation::List, Duration::from_millis(50));
    (mount, d)
}

impl Mount {
    async fn list_below(&self, parent: Ino, name: &str, files: usize) {
        let ino = self.names.lookup(parent, name.as_bytes()).await.expect("exists").ino;
        assert_eq!(self.list(ino).await.expect("listed").len(), files, "{name}");
    }

    /// Lists the directories in a directory one after the other.
    async fn walk(&self, parent: Ino, names: std::ops::Range<usize>, files: usize) {
        for name in names {
            self.list_below(parent, &format!("{name:03}"), files).await;
        }
    }
}

/// F9
#[tokio::test(start_paused = true)]
async fn a_walk_of_small_directories_costs_their_pages_and_few_latencies() {
    // 4,000 keys are 20 pages.
    let (mount, d) = forest(200, 20, 200).await;
    let (lists, heads) = mount.requests();
    let start = Instant::now();
    mount.walk(d, 0..200, 20).await;
    let (walked, _) = mount.requests();
    assert!(walked - lists <= 3 + 20 + 8, "{} LISTs", walked - lists);
    assert_eq!(mount.requests().1, heads);
    assert!(start.elapsed() <= Duration::from_millis(50) * 14, "{:?}", start.elapsed());
}

/// F9
#[tokio::test(start_paused = true)]
async fn a_walk_of_directories_that_fill_pages_has_each_listed_alone() {
    let (mount, d) = forest(40, 2, 3).await;
    let (lists, heads) = mount.requests();
    let start = Instant::now();
    mount.walk(d, 0..40, 2).await;
    assert_eq!(mount.requests(), (lists + 40, heads));
    // Three at a walking pace, then 4, 8, 16 at a time.
    assert!(start.elapsed() <= Duration::from_millis(50) * 8, "{:?}", start.elapsed());
}

/// F9
#[tokio::test(start_paused = true)]
async fn who_does_not_walk_has_nothing_listed_ahead_and_who_stops_pays_for_16_pages_at_most() {
    for (directories, files, page_keys, most) in [(40, 2, 3, 16), (400, 20, 200, 16 + 4)] {
        let (mount, d) = forest(directories, files, page_keys).await;
        let (lists, _) = mount.requests();
        for name in ["003", "004", "020", "007", "008", "008", "001"] {
            mount.list_below(d, name, files).await;
        }
        pass(Duration::from_secs(1)).await;
        assert_eq!(mount.requests().0, lists + 6);
        mount.walk(d, 9..22, files).await;
        let (walked, _) = mount.requests();
        pass(Duration::from_secs(10)).await;
        let in_vain = mount.requests().0 - walked;
        assert!(in_vain <= most, "{in_vain} of {page_keys} keys");
    }
}

/// F7, F9
#[tokio::test(start_paused = true)]
async fn who_comes_to_a_directory_that_is_being_listed_ahead_waits_for_that() {
    let (mount, d) = forest(10, 2, 1000).await;
    let (lists, _) = mount.requests();
    mount.walk(d, 0..2, 2).await;
    let start = Instant::now();
    let last = mount.names.lookup(d, b"009").await.expect("exists").ino;
    // The third directory and the run behind it, at the same time.
    let ((), listed) = tokio::join!(mount.walk(d, 2..3, 2), async {
        pass(Duration::from_millis(1)).await;
        mount.list(last).await
    });
    assert_eq!(listed.expect("listed").len(), 2);
    assert_eq!((mount.requests().0, start.elapsed()), (lists + 4, Duration::from_millis(50)));
}

/// F9
#[tokio::test(start_paused = true)]
async fn a_walk_meets_a_directory_that_is_gone_or_fails_as_if_nothing_had_been_listed_ahead() {
    for page_keys in [3, 20] {
        let (mount, d) = forest(40, 2, page_keys).await;
        mount.memory.delete("d/005/0");
        mount.memory.delete("d/005/1");
        mount.walk(d, 0..5, 2).await;
        let gone = mount.names.lookup(d, b"005").await.expect("listed before").ino;
        assert!(matches!(mount.list(gone).await, Err(FsError::NotFound { .. })));
        mount.walk(d, 6..10, 2).await;
        // All that is listed ahead fails, and so does a directory that is asked for.
        mount.faults.hook(|call| match call.key {
            "d/" | "d/030/" => Fault::Fail(StoreError::Throttled { retry_after: None }),
            _ => Fault::None,
        });
        mount.walk(d, 10..30, 2).await;
        let failing = mount.names.lookup(d, b"030").await.expect("listed before").ino;
        pass(Duration::from_secs(1)).await;
        mount.names.drop_names();
        assert_eq!(mount.list(failing).await, Err(FsError::Io));
        mount.faults.hook(|_| Fault::None);
        mount.list_below(d, "030", 2).await;
    }
}

/// F9
#[tokio::test(start_paused = true)]
async fn a_huge_directory_on_the_way_of_a_walk_is_left_to_a_listing_of_its_own() {
    let (mount, d) = forest(60, 2, 20).await;
    for n in 0..2000 {
        mount.memory.put(&format!("d/030/{n:04}"), "");
    }
    let (lists, _) = mount.requests();
    mount.walk(d, 0..30, 2).await;
    mount.walk(d, 31..60, 2).await;
    pass(Duration::from_secs(10)).await;
    // 120 keys are 6 pages.
    let walked = mount.requests().0 - lists;
    assert!(walked <= 3 + 2 * 6 + 8, "{walked} LISTs");
    mount.list_below(d, "030", 2002).await;
}

/// F9
#[tokio::test(start_paused = true)]
async fn a_walk_of_trees_has_what_is_below_them_listed_too() {
    let keys: Vec<_> =
        (0..1200).map(|n| format!("d/{:02}/{}/{}", n / 20, n / 2 % 10, n % 2)).collect();
    let mount = mount_with(&keys.iter().map(String::as_str).collect::<Vec<_>>(), |config| {
        config.page_keys = 100;
    });
    let d = mount.ino("d").await;
    mount.names.drop_names();
    let (lists, _) = mount.requests();
    let mut open = vec![d];
    let mut files = 0;
    while let Some(directory) = open.pop() {
        let entries = mount.scan(directory, 0).await.expect("listed").split_off(2);
        for (name, ..) in entries.iter().rev() {
            let node = mount.names.lookup(directory, name.as_bytes()).await.expect("exists");
            match node.kind {
                NodeKind::Directory { .. } => open.push(node.ino),
                NodeKind::File(_) => files += 1,
            }
        }
    }
    // 661 directories; 1,200 keys are 12 pages.
    let walked = mount.requests().0 - lists;
    assert_eq!(files, 1200);
    assert!(walked <= 40, "{walked} LISTs");
}

/// Directories and files, more of both than fit on a page of ten.
fn large_directory() -> Vec<String> {
    let files = (0..40).map(|n| format!("d/{n:02}"));
    let directories = (0..40).map(|n| format!("d/{n:02}d/{}", n % 3));
    files.chain(directories).chain(["top".to_owned()]).collect()
}

/// F12
#[tokio::test(start_paused = true)]
async fn a_store_that_lists_in_no_order_shows_the_same_as_one_that_does() {
    let keys = large_directory();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let ten = |config: &mut NamesConfig| config.page_keys = 10;
    let (ordered, mount) = (mount_with(&keys, ten), mount_with(&keys, ten));
    mount.memory.list_in_no_order();
    let directory = mount.ino("d").await;
    assert_eq!(mount.names.state.lock().start_after, StartAfter::Unordered);
    // The lookup has found it out, so every page of 80 names comes once.
    let before = mount.requests();
    let listed = mount.list(directory).await.expect("listed");
    assert_eq!(listed, ordered.list(ordered.ino("d").await).await.expect("listed"));
    assert_eq!((listed.len(), mount.requests()), (80, (before.0 + 8, before.1)));
    // Listed, it answers by itself.
    let before = mount.requests();
    for name in &listed {
        mount.names.lookup(directory, name.as_bytes()).await.expect("exists");
    }
    assert!(is_absent(&mount.names.lookup(directory, b"no").await));
    assert_eq!(mount.requests(), before);
    // A walk finds each directory, and each has a listing of its own.
    for name in listed.iter().filter(|name| name.ends_with('d')) {
        let below = mount.names.lookup(directory, name.as_bytes()).await.expect("exists").ino;
        assert_eq!(mount.list(below).await.expect("listed").len(), 1, "{name}");
    }
    assert_eq!(mount.requests(), (before.0 + 40, before.1));
}

/// F12: what has been shown cannot be taken back.
#[tokio::test(start_paused = true)]
async fn a_store_that_loses_its_order_half_way_is_an_error_once() {
    let keys: Vec<_> = (0..30).map(|n| format!("{n:02}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let mount = mount_with(&keys, |config| config.page_keys = 10);
    mount.faults.next(Operation::List, Fault::None);
    mount.faults.next(Operation::List, Fault::Page(BadPage::GoesBackwards));
    let listed = mount.list(ROOT).await;
    assert!(matches!(listed, Err(FsError::Io)), "{listed:?}");
    let before = mount.requests().0;
    assert_eq!(mount.list(ROOT).await.expect("listed"), keys);
    assert_eq!(mount.requests().0 - before, 3);
}

/// F12
#[tokio::test(start_paused = true)]
async fn a_page_in_no_order_proves_a_directory_and_nothing_else() {
    let keys = large_directory();
    let mount = mount(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    mount.memory.list_in_no_order();
    // The lookup that finds it out asks anew.
    mount.ino("d").await;
    assert_eq!(mount.names.state.lock().start_after, StartAfter::Unordered);
    assert_eq!(mount.requests(), (3, 2));
    // And so does the next, for nothing of before is believed; from then on it is one of each.
    mount.ino("d").await;
    settle().await;
    let (lists, heads) = mount.requests();
    mount.ino("d/07d").await;
    assert_eq!(mount.requests(), (lists + 1, heads + 1));
    assert!(is_absent(&mount.look("d/no").await));
    settle().await;
    let state = mount.names.state.lock();
    assert!(state.directories.beginning("d/").is_none());
    assert!(state.points.peek("d/07d/0").is_none() && state.points.peek("d/08d").is_none());
}
