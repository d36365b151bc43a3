//! Single lookups: what they cost, and which inode they find.

use super::*;

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
        assert!(matches!(node.inode, Inode::File(meta) if meta.version.key == *key));
    }
    // The lookup has brought the first page.
    assert_eq!((lists, mount.requests()), (2, (3, heads)));
}

/// A8
#[tokio::test(start_paused = true)]
async fn what_a_listing_does_not_tell_is_asked_for_when_it_is_used() {
    let mount = mount(&["a", "b", "c"]);
    mount.memory.list_untold("b");
    assert_eq!(mount.list(ROOT).await, Ok(["a", "b", "c"].map(str::to_owned).to_vec()));
    let scan = mount.names.read_directory(ROOT, 0).await.expect("listed");
    let untold = || scan.iter().find(|entry| entry.name == b"b").expect("it is shown");
    // The kernel looks it up before each use.
    let node = mount.names.node(&untold());
    assert_eq!((node.attr_ttl, mount.requests()), (Duration::ZERO, (1, 0)));
    mount.names.remember(&untold(), &node);
    let found = mount.look("b").await.expect("exists");
    assert!(matches!(&found.inode, Inode::File(meta) if meta.version.size_bytes > 0));
    assert_eq!(mount.requests(), (2, 1));
    // From then on scans show what it is, and its neighbours were never asked for.
    let again = mount.look("b").await.expect("exists");
    let shown = mount.names.node(&untold());
    assert_eq!((again.ino, shown.ino, shown.attr_ttl), (found.ino, found.ino, FOREVER));
    mount.look("a").await.expect("exists");
    pass(TTL / 2).await;
    assert_eq!(mount.requests(), (2, 1));
    // A version is the same inode, whoever has shown it.
    pass(TTL).await;
    mount.list(ROOT).await.expect("listed");
    assert_eq!(mount.look("b").await.expect("exists").ino, found.ino);
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
        // A directory that only its parent has shown is asked for, too.
        let lookups = 2 * u64::from(round_trips) - 1;
        assert_eq!((lists, heads), (2 * lookups, lookups), "{path}");
    }
}

/// F2
#[tokio::test(start_paused = true)]
async fn a_program_that_begins_in_a_directory_waits_once_for_all_that_is_below() {
    let keys = ["p/__init__.py", "p/m.py", "p/sub/__init__.py", "p/sub/deep/x", "z"];
    let mount = mount(&keys);
    mount.faults.delay(Operation::Head, Duration::from_millis(15));
    mount.faults.delay(Operation::List, Duration::from_millis(40));
    mount.list(ROOT).await.expect("listed");
    let p = mount.ino("p").await;
    let start = Instant::now();
    // Two programs at once: one round trip, and one set of requests for the directory.
    let (a, b) = tokio::join!(mount.names.lookup(p, b"__init__.so"), mount.look("p/m.py"));
    assert!(is_absent(&a) && b.is_ok());
    assert_eq!(start.elapsed(), Duration::from_millis(40));
    for path in ["p/__init__.abi3.so", "p/sub/__init__.so", "p/sub/deep/y"] {
        assert!(is_absent(&mount.look(path).await), "{path}");
    }
    for path in keys {
        mount.look(path).await.expect("exists");
    }
    assert_eq!((start.elapsed(), mount.requests()), (Duration::from_millis(40), (5, 2)));
    // When its time is over, all of it is asked for together again.
    pass(TTL).await;
    let start = Instant::now();
    for path in ["p/no", "p/m.py", "p/sub/no", "p/sub/deep/x"] {
        let _ = mount.look(path).await;
    }
    assert!(start.elapsed() <= Duration::from_millis(80), "{:?}", start.elapsed());
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
    assert!(matches!(node.inode, Inode::Directory(_)));
    assert_eq!(mount.list(ROOT).await, Ok(vec!["a-b".to_owned(), "a".to_owned()]));
    let listed = mount.look("a").await.expect("exists");
    assert!(matches!(listed.inode, Inode::Directory(_)));
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

/// E3, F13
#[tokio::test(start_paused = true)]
async fn a_file_that_is_denied_is_told_from_a_name_that_is_missing() {
    let denied = |listings: bool| {
        let mount = mount(&["f"]);
        mount.faults.hook(move |call| match call.operation {
            Operation::List if !listings => Fault::None,
            _ => Fault::Fail(StoreError::Denied("no right".to_owned())),
        });
        mount
    };
    assert_eq!(denied(false).look("f").await.unwrap_err(), FsError::Denied);
    assert!(is_absent(&denied(false).look("none").await));
    for name in ["f", "none"] {
        assert_eq!(denied(true).look(name).await.unwrap_err(), FsError::Denied);
    }
}

#[tokio::test(start_paused = true)]
async fn the_directory_wins_whichever_answer_comes_first() {
    for (slow, quick) in [(Operation::List, Operation::Head), (Operation::Head, Operation::List)] {
        let mount = mount(&["a", "a/x", "f"]);
        mount.faults.delay(slow, Duration::from_secs(2));
        mount.faults.delay(quick, Duration::from_secs(1));
        let [a, f] = [mount.look("a").await, mount.look("f").await];
        assert!(matches!(a.expect("exists").inode, Inode::Directory(_)));
        assert!(matches!(f.expect("exists").inode, Inode::File(_)));
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
    assert!(node.ino != d && matches!(node.inode, Inode::File(_)));
    assert!(matches!(mount.list(d).await, Err(FsError::NotFound { .. })));
    assert!(is_absent(&mount.names.lookup(d, b"1").await));
}

/// A policy that allows only some listings, and hides which keys do not exist.
fn allow(mount: &Mount, may_list: impl Fn(&str, bool) -> bool + Send + Sync + 'static) {
    let memory = mount.memory.clone();
    let denied = || Fault::Fail(StoreError::Denied("AccessDenied".to_owned()));
    mount.faults.hook(move |call| match call.operation {
        Operation::List if !may_list(call.key, call.flat) => denied(),
        Operation::Head if !memory.keys().iter().any(|key| key == call.key) => denied(),
        _ => Fault::None,
    });
}

/// F13
#[tokio::test(start_paused = true)]
async fn listings_that_need_a_delimiter_are_asked_for_without_one_only_once() {
    let mount = mount(&["a/b/c", "a/d", "e/f", "g"]);
    allow(&mount, |_, flat| !flat);
    assert!(matches!(mount.look("a").await.expect("exists").inode, Inode::Directory(_)));
    let calls = mount.faults.calls();
    for path in ["a/b/c", "a/d", "e/f", "g"] {
        mount.look(path).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
    }
    for path in ["a/b/x", "a/x", "e/x", "x"] {
        assert!(is_absent(&mount.look(path).await), "{path}");
    }
    // What was sent is a HEAD and a listing each; names that are missing cost the parent's listing.
    assert!(mount.faults.calls() - calls <= 12, "{}", mount.faults.calls() - calls);
    assert!(mount.names.state.lock().flat_denied);
    mount.names.drop_names();
    assert!(!mount.names.state.lock().flat_denied, "the policy may be another by now");
}

/// F13
#[tokio::test(start_paused = true)]
async fn a_walk_needs_no_listing_without_a_delimiter() {
    let keys: Vec<_> = (0..40).map(|n| format!("{n:02}/x")).collect();
    let mount = mount(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    allow(&mount, |_, flat| !flat);
    let mut seen = 0;
    for name in mount.list(ROOT).await.expect("listed") {
        let directory = mount.ino(&name).await;
        assert_eq!(mount.list(directory).await, Ok(vec!["x".to_owned()]), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 40);
    // One for each directory and the root, and one or two that were denied.
    assert!((41..=43).contains(&mount.faults.calls()), "{}", mount.faults.calls());
}

/// F13
#[tokio::test(start_paused = true)]
async fn where_only_some_prefixes_may_be_listed_their_listings_answer() {
    let mount = mount(&["home/a/x", "home/b/y", "home/c", "other/z"]);
    allow(&mount, |prefix, flat| !flat && matches!(prefix, "" | "home/" | "home/a/"));
    assert!(matches!(mount.look("home/b").await.expect("exists").inode, Inode::Directory(_)));
    assert!(matches!(mount.look("home/c").await.expect("exists").inode, Inode::File(_)));
    assert!(is_absent(&mount.look("home/none").await));
    assert!(is_absent(&mount.look("none").await));
    assert!(is_absent(&mount.look("home/a/none").await));
    // Where nothing may be listed, nobody knows.
    assert_eq!(mount.look("home/b/none").await.unwrap_err(), FsError::Denied);
    // A key that is there is a file as long as nothing says otherwise.
    assert!(matches!(mount.look("home/b/y").await.expect("exists").inode, Inode::File(_)));
}
