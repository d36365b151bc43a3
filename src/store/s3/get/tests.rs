use super::*;
use crate::store::Nonsense;

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
        assert!(
            matches!(checked, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
            "{wrong:?}: {checked:?}"
        );
    }
    let changed = response(Some("bytes 2-4/10"), 3, "\"f\"");
    assert_eq!(check_response(&version("k"), &(2..5), &changed), Err(StoreError::Changed));
}

mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::fuzz;

    /// Of all the answers to a range, only those that are exactly it are taken.
    #[test]
    fn no_other_range_is_taken_for_the_one_asked_for() {
        let numbers = (0_u64..14, 0_u64..14, 0_u64..14);
        let text = fuzz::text("[ -~]{0,20}|bytes [0-9+ -]{1,3}-[0-9+ ]{1,3}/[0-9*+]{1,3}");
        let said = prop_oneof![
            1 => text.prop_map(Some),
            3 => numbers.prop_map(|(a, b, total)| Some(format!("bytes {a}-{b}/{total}"))),
            1 => Just(None),
        ];
        let all = (0_u64..12, 1_u64..12, said, 0_u64..14);
        fuzz::each(all, |(start, length, range, body)| {
            let version = version("k");
            let (start, end) = (start.min(9), (start.min(9) + length).min(10));
            let headers = response(range.as_deref(), body, "\"e\"");
            let taken = check_response(&version, &(start..end), &headers).is_ok();
            let exact = match &range {
                Some(range) => *range == format!("bytes {start}-{}/10", end - 1),
                None => (start, end) == (0, 10),
            };
            prop_assert_eq!(taken, exact && body == end - start);
            Ok(())
        });
    }
}
