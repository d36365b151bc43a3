use super::*;

fn version(key: &str) -> ObjectVersion {
    ObjectVersion { key: key.to_owned(), etag: "\"e\"".to_owned(), size_bytes: 10 }
}

fn response(range: Option<&str>, length: u64, etag: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.extend(range.map(|range| (CONTENT_RANGE, range.parse().unwrap())));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ETAG, etag.parse().unwrap());
    headers
}

#[test]
fn a_response_must_be_exactly_what_was_asked_for() {
    let right = response(Some("bytes 2-4/10"), 3, "\"e\"");
    assert_eq!(check_response(&version("k"), &(2..5), &right), Ok(()));
    let whole = response(None, 10, "e");
    assert_eq!(check_response(&version("k"), &(0..10), &whole), Ok(()));

    for (wrong, range) in [
        (response(Some("bytes 3-5/10"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/11"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/*"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/10"), 4, "\"e\""), 2..5),
        (response(None, 3, "\"e\""), 2..5),
        (response(None, 11, "\"e\""), 0..10),
    ] {
        let checked = check_response(&version("k"), &range, &wrong);
        assert!(matches!(checked, Err(StoreError::Protocol(_))), "{wrong:?}: {checked:?}");
    }
    let changed = response(Some("bytes 2-4/10"), 3, "\"f\"");
    assert_eq!(check_response(&version("k"), &(2..5), &changed), Err(StoreError::Changed));
}
