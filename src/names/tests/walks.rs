//! Walks through directories, and stores that list in no order.

use super::*;

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
            match node.inode {
                Inode::Directory(_) => open.push(node.ino),
                Inode::File(_) | Inode::Untold(_) => files += 1,
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
    assert_eq!(mount.names.state.lock().order, ListingOrder::Unordered);
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
    assert_eq!(mount.names.state.lock().order, ListingOrder::Unordered);
    assert_eq!(mount.requests(), (3, 2));
    // And so does the next, for nothing of before is believed; from then on it is one of each.
    mount.ino("d").await;
    settle().await;
    let (lists, heads) = mount.requests();
    mount.ino("d/07d").await;
    assert_eq!(mount.requests(), (lists + 1, heads + 1));
    assert!(is_absent(&mount.look("d/no").await));
    settle().await;
    let known = mount.names.known();
    assert!(known.directories.get("d/").is_none_or(|one| one.partial.is_none()));
    assert!(known.points.peek("d/07d/0").is_none() && known.points.peek("d/08d").is_none());
}
