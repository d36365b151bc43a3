//! Listings and scans: what they show, what they cost, and the budget.

use super::*;

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
        assert_eq!(entry.is_directory, matches!(node.inode, Inode::Directory(_)));
        mount.names.remember(&entry, &node);
    }
    for entry in scan.iter().skip(2) {
        assert!(mount.names.attributes(entry.ino).is_ok());
        mount.names.forget(entry.ino, 1);
        assert_eq!(mount.names.attributes(entry.ino).unwrap_err(), FsError::Stale);
    }
    assert_eq!(mount.requests(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn listings_are_thrown_away_by_last_use_when_there_are_too_many() {
    let keys = ["a/1", "b/1", "c/1"];
    let roomy = mount(&keys);
    let all = three(&roomy).await;
    for directory in all {
        roomy.list(directory).await.expect("listed");
    }
    // Two misses have listed the root, which goes when others are used. Room for two listings of
    // one entry, beside what is known of the directories themselves.
    let [one, root] = [all[0], ROOT].map(|directory| listing_bytes(&roomy, directory));
    let most = roomy.charged_bytes() - root - one;
    assert!(root < 2 * one, "{root} {one}");
    let mount = mount_with(&keys, |config| config.listings_bytes = most);
    let [a, b, c] = three(&mount).await;
    mount.list(a).await.expect("listed");
    let cookie = mount.scan(a, 0).await.expect("listed")[2].2;
    mount.list(b).await.expect("listed");
    let requests = mount.requests();
    mount.list(a).await.expect("listed");
    assert_eq!(mount.requests(), requests, "used before c came");
    mount.list(c).await.expect("listed");
    mount.list(a).await.expect("listed");
    assert_eq!(mount.requests(), (requests.0 + 1, requests.1), "b was thrown away, not a");
    assert!(mount.pages_are_old(b), "or the kernel would keep b's pages for ever");
    assert!(!mount.pages_are_old(a));
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
    let known = mount.names.known();
    let prefix = known.directory(ino).expect("a directory");
    known.directories.get(&prefix).and_then(|one| one.newest()).expect("listed").memory_bytes()
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
    assert!(mount.charged_bytes() <= most);
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    let (names, first) = (mount.names.clone(), mount.names.clone());
    let listing = tokio::spawn(async move { first.read_directory(big, 0).await.map(|_| ()) });
    pass(Duration::from_secs(3)).await;
    listing.await.expect("no panic").expect("a first piece");
    assert!(!mount.pages_are_old(a), "there is room yet");
    // Of 40 pages, 20 have come.
    pass(Duration::from_secs(17)).await;
    assert!(mount.charged_bytes() > most, "what is in use stays");
    assert!(mount.pages_are_old(a), "what is not has gone");
    assert_eq!(mount.list(big).await.expect("listed").len(), 400);
    let requests = mount.requests();
    assert_eq!(mount.list(big).await.expect("listed").len(), 400);
    assert!(names.lookup(big, b"399").await.is_ok());
    assert_eq!(mount.requests(), requests, "it is kept as long as it is in use");
    mount.list(a).await.expect("listed");
    assert!(mount.charged_bytes() <= most, "now another is");
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
        let held = mount.charged_bytes();
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
