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
