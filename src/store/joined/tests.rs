//! Two buckets and an empty one, against one bucket with the same keys.

use super::*;
use crate::store::check_page;
use crate::testing::fault::{FaultyStore, Operation};
use crate::testing::memory::MemoryStore;

struct Two {
    a: Arc<MemoryStore>,
    faults: Arc<FaultyStore>,
    joined: Joined,
}

fn branch(directory: &str, prefix: &str, store: Arc<dyn ObjectStore>) -> Branch {
    let (directory, prefix) = (directory.to_owned(), prefix.to_owned());
    Branch { directory, prefix, store, counts: Arc::default() }
}

/// `a/` is what is below `p/` of one bucket, `a-/` all of another, and `c/` an empty one.
fn two() -> Two {
    let (a, b) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
    for key in ["o", "p/", "p/1", "p/d/2", "p/d/3", "p/e/4", "q"] {
        a.put(key, key.to_owned());
    }
    for key in ["5", "d/6"] {
        b.put(key, key.to_owned());
    }
    let faults = Arc::new(FaultyStore::new(b));
    let joined = Joined::new(vec![
        branch("c/", "", Arc::new(MemoryStore::new())),
        branch("a/", "p/", a.clone()),
        branch("a-/", "", faults.clone()),
    ]);
    Two { a, faults, joined }
}

/// All pages, each checked, from a place on.
async fn listed(joined: &Joined, prefix: &str, delimited: bool, keys: u16) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), ListFrom::Start);
    loop {
        let prefix = prefix.to_owned();
        let any_order = false;
        let request = ListRequest { prefix, delimited, from, max_keys: keys, any_order };
        let page = joined.list_page(&request).await.unwrap();
        check_page(&request, &page).unwrap();
        assert!(page.entries.len() <= keys.into());
        found.extend(page.entries.iter().map(|entry| entry.key().to_owned()));
        let Some(token) = page.next else { return found };
        from = ListFrom::Token { token, last: found.last().cloned().unwrap_or_default() };
    }
}

#[tokio::test(start_paused = true)]
async fn every_listing_is_that_of_one_bucket_with_these_keys() {
    let two = two();
    let whole = MemoryStore::new();
    for key in ["a-/", "a-/5", "a-/d/6", "a/", "a/1", "a/d/2", "a/d/3", "a/e/4", "c/"] {
        whole.put(key, "");
    }
    let whole = Joined::new(vec![branch("all/", "", Arc::new(whole))]);
    for keys in [1, 2, 3, 1000] {
        for prefix in ["", "a/", "a-/", "c/", "a/d/", "a/none/", "none/"] {
            for delimited in [true, false] {
                let want = listed(&whole, &format!("all/{prefix}"), delimited, keys).await;
                let want = want.iter().map(|key| &key["all/".len()..]);
                let want: Vec<_> = want.filter(|key| !key.is_empty()).collect();
                let found = listed(&two.joined, prefix, delimited, keys).await;
                assert_eq!(found, want, "{prefix:?} {delimited} {keys}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_may_begin_behind_any_key() {
    let two = two();
    let all = listed(&two.joined, "", false, 1000).await;
    for after in ["", "a", "a-/", "a-/4", "a-/5", "a-0", "a/", "a/d/2", "a/z", "b", "c/", "d"] {
        let from = ListFrom::After(after.to_owned());
        let (prefix, any_order) = (String::new(), false);
        let mut request = ListRequest { prefix, delimited: false, from, max_keys: 1000, any_order };
        let mut found = Vec::new();
        loop {
            let page = two.joined.list_page(&request).await.unwrap();
            check_page(&request, &page).unwrap();
            found.extend(page.entries.iter().map(|entry| entry.key().to_owned()));
            let Some(token) = page.next else { break };
            let last = found.last().cloned().unwrap_or_else(|| after.to_owned());
            request.from = ListFrom::Token { token, last };
        }
        let want: Vec<_> = all.iter().filter(|key| key.as_str() > after).cloned().collect();
        assert_eq!(found, want, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn objects_are_those_of_their_stores() {
    let two = two();
    let head = two.joined.head("a/d/2").await.unwrap();
    assert_eq!(head.meta.version.key, "a/d/2");
    let mut bytes = Vec::new();
    two.joined.get_range(&head.meta.version, 0..5, &mut bytes).await.unwrap();
    assert_eq!(bytes, b"p/d/2");
    for key in ["o", "a/o", "p/1", "a", "c/x", "d/x", &format!("a/{}", "k".repeat(1023))] {
        assert_eq!(two.joined.head(key).await.err(), Some(StoreError::NotFound), "{key}");
    }
    assert_eq!(two.a.counts().heads, 2, "only what is in its directory, and may be a key");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_takes_its_directory_with_it_and_is_counted() {
    let two = two();
    two.faults.close_gate();
    let delimited = true;
    assert_eq!(listed(&two.joined, "", delimited, 1000).await, ["a-/", "a/", "c/"]);
    assert_eq!(listed(&two.joined, "a/", delimited, 1000).await.len(), 4);
    two.faults.open_gate();
    two.faults.fail_next(Operation::Head, StoreError::Unavailable("down".to_owned()));
    assert!(two.joined.head("a-/5").await.is_err());
    assert!(two.joined.head("a-/5").await.is_ok() && two.joined.head("a/1").await.is_ok());
    let counts = |at: usize| {
        let counts = &two.joined.branches[at].counts;
        (counts.answered.get(), counts.failed.get())
    };
    assert_eq!((counts(0), counts(1)), ((1, 1), (2, 0)));
}
