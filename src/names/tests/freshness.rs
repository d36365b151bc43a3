//! How long answers are believed, and the mtimes of directories.

use super::*;

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

/// A7
#[tokio::test(start_paused = true)]
async fn the_time_of_an_object_that_was_put_again_unchanged_follows_and_its_number_stays() {
    for listed in [true, false] {
        let mount = mount(&["d/f", "d/g"]);
        let f = mount.look("d/f").await.expect("exists");
        let d = mount.ino("d").await;
        let now = mount.memory.put_again("d/f");
        assert_eq!(mount.look("d/f").await.expect("believed").mtime, f.mtime);
        pass(TTL).await;
        if listed {
            mount.list(d).await.expect("listed");
            let scan = mount.names.read_directory(d, 0).await.expect("listed");
            let entry = scan.iter().find(|entry| entry.name == b"f").expect("listed");
            assert_eq!(mount.names.node(&entry).mtime, now);
        }
        let again = mount.look("d/f").await.expect("exists");
        assert_eq!((again.ino, again.mtime), (f.ino, now), "listed: {listed}");
        assert_eq!(mount.names.attributes(f.ino).expect("known").mtime, now);
    }
}

/// The newest time in a directory.
fn newest(mount: &Mount, keys: &[&str]) -> SystemTime {
    let times = keys.iter().map(|key| mount.memory.last_modified(key).expect("exists"));
    times.max().expect("not empty")
}

/// A4
#[tokio::test(start_paused = true)]
async fn a_directorys_mtime_moves_when_its_content_has_changed_and_only_then() {
    let (mount, other) = (mount(&["d/1", "d/2", "d/3"]), mount(&["d/1", "d/2", "d/3"]));
    let d = mount.ino("d").await;
    let first = mount.mtime(d);
    assert_eq!(first, mount.mtime(ROOT), "no change is known");
    let again = async || {
        pass(TTL).await;
        assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, Duration::ZERO);
        mount.list(d).await.expect("listed");
        mount.mtime(d)
    };
    assert_eq!(again().await, first);
    mount.memory.put_again("d/3");
    assert_eq!(again().await, first, "names, types and bytes are what they were");
    mount.names.drop_names();
    assert_eq!(again().await, first);

    let mut before = first;
    for (change, left) in [
        (&(|| mount.memory.delete("d/1")) as &dyn Fn(), &["d/2", "d/3"][..]),
        (&|| drop(mount.memory.put("d/2", "other bytes")), &["d/2", "d/3"]),
        (&|| drop(mount.memory.put("d/new/x", "")), &["d/2", "d/3"]),
    ] {
        change();
        let now = again().await;
        let fraction = now.duration_since(newest(&mount, left)).expect("no older than the newest");
        assert!(now != before && fraction < Duration::from_secs(1), "{now:?} {before:?}");
        assert_eq!(again().await, now);
        before = now;
    }

    // Whoever sees the same change sees the same time.
    let d = other.ino("d").await;
    other.list(d).await.expect("listed");
    for key in ["d/1", "d/2", "d/3"] {
        other.memory.delete(key);
    }
    for key in ["d/3", "d/2", "d/new/x"] {
        other.memory.copy_from(&mount.memory, key);
    }
    pass(TTL).await;
    other.list(d).await.expect("listed");
    assert_eq!(other.mtime(d), before);
}

/// A4
#[tokio::test(start_paused = true)]
async fn who_looks_at_nothing_but_the_mtime_sees_a_change_the_second_time() {
    for (page_keys, is_small) in [(3, true), (2, false)] {
        let mount = mount_with(&["d/1", "d/2"], |config| config.page_keys = page_keys);
        let d = mount.ino("d").await;
        mount.list(d).await.expect("listed");
        let first = mount.mtime(d);
        mount.memory.delete("d/1");
        pass(TTL).await;
        let lists = mount.requests().0;
        assert_eq!(mount.mtime(d), first);
        settle().await;
        assert_eq!(mount.mtime(d) != first, is_small);
        settle().await;
        assert_eq!(mount.requests().0 - lists, u64::from(is_small));
    }
}

/// A4, F1
#[tokio::test(start_paused = true)]
async fn the_kernels_pages_are_good_while_they_show_what_is_believed() {
    let mount = mount_with(&["d/1", "d/2"], |config| config.page_keys = 2);
    let d = mount.ino("d").await;
    assert!(!mount.pages_are_old(d), "there are none");
    mount.list(d).await.expect("listed");
    assert!(!mount.pages_are_old(d));
    // It is asked for anew in the last quarter of its life, so the kernel asks until then.
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, TTL / 4 * 3);
    pass(TTL / 2).await;
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, TTL / 4);
    assert!(!mount.pages_are_old(d));

    // Expired: once, without a request.
    pass(TTL / 2).await;
    let requests = mount.requests();
    assert!(mount.pages_are_old(d));
    assert!(!mount.pages_are_old(d), "they were dropped");
    assert_eq!(mount.names.attributes(d).expect("known").attr_ttl, Duration::ZERO);
    assert_eq!(mount.requests(), requests);
    mount.list(d).await.expect("listed");
    assert!(!mount.pages_are_old(d));

    // Listed anew before anybody asked: they are old if there is anything new.
    pass(TTL).await;
    mount.list(d).await.expect("listed");
    assert!(!mount.pages_are_old(d), "nothing new");
    pass(TTL).await;
    mount.memory.put("d/2", "");
    mount.list(d).await.expect("listed");
    assert!(mount.pages_are_old(d));
    mount.list(d).await.expect("listed");
    assert!(!mount.pages_are_old(d));

    mount.names.drop_names();
    assert!(mount.pages_are_old(d));
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
    pass(TTL / 8 * 7).await;
    mount.memory.delete("d/1");
    assert_eq!(mount.list(d).await.expect("believed").len(), 4);
    // The first page has shown that something has changed; the old listing is still in its time.
    pass(Duration::from_millis(1500)).await;
    assert_eq!(mount.list(d).await.expect("believed").len(), 4);
    assert!(!mount.pages_are_old(d));
    pass(Duration::from_secs(3)).await;
    assert!(mount.pages_are_old(d));
    assert_eq!(mount.list(d).await.expect("listed").len(), 3);
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
    mount.memory.delete("050");
    mount.names.drop_names();
    assert!(mount.pages_are_old(ROOT));
    let anew = mount.scan(ROOT, 0).await.expect("listed");
    assert_eq!(anew.len(), 2 + 199);
    for (name, ino, _) in anew {
        let number = shown.get(name.as_bytes()).copied();
        assert!(number.is_none_or(|number| number == ino), "{name} was {number:?}");
    }
}

/// A4
#[tokio::test(start_paused = true)]
async fn a_directory_that_was_forgotten_comes_back_with_its_mtime() {
    let mount = mount_with(&["d/1", "d/2", "e/1"], |config| config.listings_bytes = 1);
    let (d, e) = (mount.ino("d").await, mount.ino("e").await);
    mount.list(d).await.expect("listed");
    mount.memory.delete("d/1");
    pass(TTL).await;
    mount.list(d).await.expect("listed");
    let changed = mount.mtime(d);
    assert_ne!(changed, mount.mtime(e));
    pass(TTL).await;
    mount.list(e).await.expect("listed");
    mount.names.forget(d, 1);
    assert!(mount.names.known().directories.get("d/").is_none());
    assert_eq!(mount.mtime(mount.ino("d").await), changed);
}

/// A4, F8
#[tokio::test(start_paused = true)]
async fn a_scan_of_two_listings_leaves_old_pages_and_one_of_a_listing_under_way_does_not() {
    let mount = slow_mount(&["d/1", "d/2", "d/3", "d/4", "d/5", "d/6"]);
    let d = mount.ino("d").await;
    mount.list(d).await.expect("listed");
    pass(TTL).await;
    let (_, cookie) = mount.piece(d, 0).await.expect("shown");
    let (_, cookie) = mount.piece(d, cookie).await.expect("shown");
    // Nobody has asked since it expired, and all is as it was so far.
    mount.memory.delete("d/5");
    let (names, cookie) = mount.piece(d, cookie).await.expect("shown");
    assert_eq!(names, ["4", "6"]);
    assert_eq!(mount.piece(d, cookie).await.expect("its end").0, [""; 0]);
    assert!(mount.pages_are_old(d));
    assert_eq!(mount.list(d).await.expect("listed").len(), 5);
    pass(TTL).await;
    assert!(mount.pages_are_old(d));
    let (_, cookie) = mount.piece(d, 0).await.expect("shown");
    assert_eq!(mount.scan(d, cookie).await.expect("listed").len(), 4);
    assert!(!mount.pages_are_old(d));
}
