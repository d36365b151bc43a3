//! What is shown and what is hidden, by listings of whole directories.

use super::*;
use crate::names::entries::Inode;
use crate::names::rules::Hidden;
use crate::testing::fault::BadPage;

struct Complete {
    listing: Listing,
    hidden: Vec<HiddenKeys>,
    exists: bool,
}

async fn list(
    store: Arc<dyn ObjectStore>,
    prefix: &str,
    page_keys: u16,
) -> Result<Complete, StoreError> {
    let mut pages = Pages::new(store, prefix.into(), page_keys, 1, ListingOrder::Unknown);
    let mut listing = Listing::new(prefix.into(), 1);
    let mut ino = 1;
    while let Some(runs) = pages.next().await? {
        for mut run in runs {
            for index in 0..run.len() {
                ino += 1;
                run.set_ino(index, ino);
            }
            listing.push(Arc::new(run));
        }
    }
    let Rest { hidden, exists } = pages.rest();
    Ok(Complete { listing, hidden, exists })
}

fn names(listing: &Listing) -> Vec<String> {
    (0..listing.len())
        .map(|index| {
            let EntryKey { name, is_directory } = listing.key(index);
            let slash = if is_directory { "/" } else { "" };
            format!("{}{slash}", String::from_utf8_lossy(name))
        })
        .collect()
}

fn store(keys: &[&str]) -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    for key in keys {
        store.put(key, "x");
    }
    Arc::new(store)
}

#[tokio::test]
async fn n3_the_directory_wins_whatever_stands_between() {
    let store = store(&["a", "a-", "a-/1", "a-b", "a/1", "b"]);
    for page_keys in 1..=7 {
        let complete = list(store.clone(), "", page_keys).await.expect("complete");
        // N10: key order.
        assert_eq!(names(&complete.listing), ["a-/", "a-b", "a/", "b"]);
        let hidden = &complete.hidden[0];
        assert_eq!((hidden.reason, hidden.count), (Hidden::ShadowedByDirectory, 2));
        assert_eq!(hidden.keys.iter().collect::<Vec<_>>(), ["a", "a-"]);
        for (index, name) in ["a-", "a-b", "a", "b"].iter().enumerate() {
            assert_eq!(complete.listing.find(name.as_bytes()), Some(index));
        }
        assert_eq!(complete.listing.find(b"a-c"), None);
    }
}

#[tokio::test]
async fn entries_give_back_what_was_listed() {
    let store = store(&["d/x/1"]);
    let meta = store.put("d/f", "four");
    let cold = store.put_archived("d/cold", "");
    let listing = list(store.clone(), "d/", 1000).await.expect("complete").listing;
    assert!(matches!(listing.inode(0), Inode::File(file) if *file == cold));
    assert!(matches!(listing.inode(1), Inode::File(file) if *file == meta));
    assert!(matches!(listing.inode(2), Inode::Directory(prefix) if &*prefix == "d/x/"));
    assert_eq!(listing.number(&Inode::File(meta.clone().into())), Some(listing.ino(1)));
    assert_eq!(listing.number(&Inode::Directory("d/x/".into())), Some(listing.ino(2)));
    let other = store.put("d/f", "four");
    assert_eq!(listing.number(&Inode::File(other.clone().into())), None);
    assert_eq!(listing.number(&Inode::Directory("d/f/".into())), None);
}

#[tokio::test]
async fn n12_a_directory_exists_by_an_entry_a_marker_or_a_hidden_key() {
    for (keys, exists) in
        [(&["d/f"][..], true), (&["d/"], true), (&["d//f"], true), (&["d", "d-", "e/"], false)]
    {
        let store = store(keys);
        let complete = list(store.clone(), "d/", 1).await.expect("complete");
        assert_eq!(complete.exists, exists, "{keys:?}");
    }
}

#[tokio::test]
async fn n8_keys_that_nobody_can_decode_are_counted_and_make_a_directory_exist() {
    let store = Arc::new(FaultyStore::new(store(&[])));
    let undecodable = Fault::Page(BadPage::Undecodable(2));
    store.next(Operation::List, undecodable);
    let complete = list(store.clone(), "d/", 10).await.expect("complete");
    let (reason, keys) = (Hidden::NotUtf8, BTreeSet::new());
    assert_eq!(complete.hidden, [HiddenKeys { reason, count: 2, keys }]);
    assert!(complete.exists);
}

#[tokio::test]
async fn a_page_that_repeats_its_token_is_an_error_never_a_loop() {
    for bad in [BadPage::RepeatsToken, BadPage::OutsidePrefix] {
        let store = Arc::new(FaultyStore::new(store(&["d/1", "d/2", "d/3"])));
        store.hook(move |_| Fault::Page(bad));
        let listed = list(store.clone(), "d/", 1).await.map(|complete| complete.listing.len());
        assert!(
            matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
            "{bad:?}: {listed:?}"
        );
    }
}

#[tokio::test]
async fn some_empty_pages_are_followed_and_endless_ones_are_an_error() {
    let store = Arc::new(FaultyStore::new(store(&["1", "2"])));
    store.hook(|call| match call.number {
        0 | 2 | 3 => Fault::Page(BadPage::Empty),
        _ => Fault::None,
    });
    let complete = list(store.clone(), "", 1).await.expect("complete");
    assert_eq!((names(&complete.listing), store.calls()), (vec!["1".into(), "2".into()], 5));

    store.hook(|_| Fault::Page(BadPage::Empty));
    let listed = list(store.clone(), "", 1).await.map(|complete| complete.listing.len());
    assert!(matches!(listed, Err(StoreError::Nonsense(Nonsense::Protocol(_)))), "{listed:?}");
    assert_eq!(store.calls(), 5 + 100);
}

#[tokio::test]
async fn a_failed_page_is_an_error_never_a_shorter_directory() {
    for failing in 0..3 {
        let store = Arc::new(FaultyStore::new(store(&["1", "2", "3"])));
        store.hook(move |call| {
            if call.number == failing {
                Fault::Fail(StoreError::Throttled { retry_after: None })
            } else {
                Fault::None
            }
        });
        let listed = list(store.clone(), "", 1).await.map(|complete| complete.listing.len());
        assert_eq!(listed, Err(StoreError::Throttled { retry_after: None }));
    }
}
