use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::*;
use crate::store::Nonsense;

fn meaning(status: u16, code: &str, region: Option<&str>, about: About) -> StoreError {
    let region = region.map(str::to_owned);
    let (code, message, request_id) = (code.to_owned(), "Why.".to_owned(), Some("1A".to_owned()));
    let (retry_after, location, date) = (None, None, None);
    Refusal { status, code, message, request_id, region, retry_after, location, date }
        .meaning(about)
}

#[test]
fn every_answer_has_its_meaning() {
    use About::{Bucket, Key};
    let denied = |text: &str| StoreError::Denied(text.to_owned());
    let refused = |text: &str| StoreError::SignatureRefused(text.to_owned());
    let west = || StoreError::WrongRegion(Some("eu-west-1".to_owned()));
    for (status, code, region, about, want) in [
        (404, "NoSuchKey", None, Key, StoreError::NotFound),
        (404, "", None, Key, StoreError::NotFound),
        (404, "NoSuchBucket", None, Key, StoreError::NoSuchBucket),
        (404, "NoSuchBucket", None, Bucket, StoreError::NoSuchBucket),
        (403, "AccessDenied", None, Key, denied("403 AccessDenied: Why (request 1A)")),
        (403, "", None, Key, denied("403: Why (request 1A)")),
        (400, "ExpiredToken", None, Key, refused("400 ExpiredToken: Why (request 1A)")),
        (
            403,
            "RequestTimeTooSkewed",
            None,
            Key,
            refused("403 RequestTimeTooSkewed: Why (request 1A); is this machine's clock right?"),
        ),
        (403, "InvalidObjectState", None, Key, StoreError::Archived),
        (412, "PreconditionFailed", None, Key, StoreError::Changed),
        (429, "", None, Key, StoreError::Throttled { retry_after: None }),
        (503, "", None, Key, StoreError::Throttled { retry_after: None }),
        (503, "SlowDown", None, Key, StoreError::Throttled { retry_after: None }),
        (301, "PermanentRedirect", Some("eu-west-1"), Bucket, west()),
        (307, "", Some("eu-west-1"), Bucket, west()),
        (400, "AuthorizationHeaderMalformed", Some("eu-west-1"), Bucket, west()),
        (400, "", Some("eu-west-1"), Key, west()),
        (400, "IllegalLocationConstraintException", None, Bucket, StoreError::WrongRegion(None)),
    ] {
        assert_eq!(meaning(status, code, region, about), want, "{status} {code}");
    }
}

#[test]
fn what_may_heal_is_transient() {
    for (status, code, about) in [
        (500, "InternalError", About::Key),
        (502, "", About::Key),
        (503, "SlowDown", About::Bucket),
        (504, "", About::Bucket),
        (400, "RequestTimeout", About::Key),
        // A web server that knows nothing of buckets.
        (404, "", About::Bucket),
        (405, "", About::Bucket),
        (416, "InvalidRange", About::Key),
    ] {
        assert!(meaning(status, code, None, about).is_transient(), "{status} {code}");
    }
}

#[test]
fn who_says_when_to_come_back_is_believed() {
    let date = "Thu, 26 Nov 2026 23:59:50 GMT";
    let answer = |status, code, header: &str| {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, header.parse().unwrap());
        headers.insert(DATE, date.parse().unwrap());
        Refusal::new(status, &headers, body.as_bytes()).meaning(About::Key)
    };
    let busy = |seconds| StoreError::Throttled { retry_after: Some(Duration::from_secs(seconds)) };
    assert_eq!(answer(503, "SlowDown", "2"), busy(2));
    assert_eq!(answer(500, "InternalError", " 7 "), busy(7));
    assert_eq!(answer(503, "SlowDown", "soon"), StoreError::Throttled { retry_after: None });
    // A date, by the clock of whoever names it; one that is past is no reason to wait.
    assert_eq!(answer(503, "", "Fri, 27 Nov 2026 00:00:02 GMT"), busy(12));
    assert_eq!(answer(503, "", "Thu, 26 Nov 2026 00:00:00 GMT"), busy(0));
    assert_eq!(
        answer(503, "", "Thu, 32 Nov 2026 00:00:00 GMT"),
        StoreError::Throttled { retry_after: None }
    );
    assert_eq!(come_back("Thu, 26 Nov 1970 00:00:00 GMT", None), Some(Duration::ZERO));
    assert_eq!(answer(412, "PreconditionFailed", "2"), StoreError::Changed);
}

#[test]
fn the_region_is_found_in_the_body() {
    let body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>";
    assert_eq!(region_of(body).as_deref(), Some("eu-west-1"));
    assert_eq!(region_of(b"<Error/>"), None);
    assert_eq!(region_of(b"<Region>a b</Region>"), None);
}

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
    assert_eq!(check_range(&version("k"), &(2..5), &right), Ok(()));
    let whole = response(None, 10, "e");
    assert_eq!(check_range(&version("k"), &(0..10), &whole), Ok(()));

    for (wrong, range) in [
        (response(Some("bytes 3-5/10"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/11"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/*"), 3, "\"e\""), 2..5),
        (response(Some("bytes 2-4/10"), 4, "\"e\""), 2..5),
        (response(None, 3, "\"e\""), 2..5),
        (response(None, 11, "\"e\""), 0..10),
        (with_length(response(Some("bytes 2-4/10"), 3, "e"), "many"), 2..5),
        (with_length(response(Some("bytes 2-5/10"), 3, "e"), ""), 2..5),
    ] {
        let checked = check_range(&version("k"), &range, &wrong);
        assert!(
            matches!(checked, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
            "{wrong:?}: {checked:?}"
        );
    }
    // The end of the body will tell its length.
    let mut endless = response(Some("bytes 2-4/10"), 3, "\"e\"");
    endless.remove(CONTENT_LENGTH);
    assert_eq!(check_range(&version("k"), &(2..5), &endless), Ok(()));
    let mut both = response(Some("bytes 2-4/10"), 3, "\"e\"");
    both.append(ETAG, "\"f\"".parse().unwrap());
    assert!(check_range(&version("k"), &(2..5), &both).is_err_and(|error| error.is_transient()));
    let changed = response(Some("bytes 2-4/10"), 3, "\"f\"");
    assert_eq!(check_range(&version("k"), &(2..5), &changed), Err(StoreError::Changed));
}

fn with_length(mut headers: HeaderMap, length: &str) -> HeaderMap {
    headers.insert(CONTENT_LENGTH, length.parse().unwrap());
    headers
}

/// The headers of a HEAD's response, with these in addition.
fn described(told: &[(&'static str, &str)]) -> HeaderMap {
    let usual = [
        ("content-length", "1"),
        ("etag", "e"),
        ("last-modified", "Thu, 01 Jan 1970 00:00:01 GMT"),
    ];
    let all = usual.into_iter().chain(told.iter().copied());
    all.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[test]
fn archived_objects_are_told_by_their_class_and_restore() {
    let archived = |class: &str, restore: Option<&str>, status: Option<&str>| {
        let optional = [("x-amz-restore", restore), ("x-amz-archive-status", status)];
        let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let told: Vec<_> = optional.chain([("x-amz-storage-class", class)]).collect();
        head(&described(&told)).0.archived
    };
    let restored = r#"ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT""#;
    assert!(archived("GLACIER", None, None));
    assert!(archived("DEEP_ARCHIVE", Some(r#"ongoing-request="true""#), None));
    assert!(!archived("GLACIER", Some(restored), None));
    assert!(!archived("GLACIER_IR", None, None));
    assert!(archived("INTELLIGENT_TIERING", None, Some("ARCHIVE_ACCESS")));
    assert!(!archived("STANDARD", None, None));
}

#[test]
fn details_are_what_the_headers_say_and_a_class_that_is_not_told_is_standard() {
    let details = |told: &[_]| head(&described(told)).1;
    let none = details(&[]);
    let usual = ObjectDetails { storage_class: "STANDARD".to_owned(), ..Default::default() };
    assert_eq!(none, usual);
    let told = [
        ("x-amz-storage-class", "A_CLASS_OF_TOMORROW"),
        ("x-amz-version-id", "null"),
        ("content-type", "image/jpeg"),
        ("x-amz-meta-label", "cat"),
    ];
    let some = |text: &str| Some(text.to_owned());
    let expected = ObjectDetails {
        storage_class: "A_CLASS_OF_TOMORROW".to_owned(),
        version_id: some("null"),
        content_type: some("image/jpeg"),
        metadata: [("label".to_owned(), "cat".to_owned())].into(),
    };
    assert_eq!(details(&told), expected);
}

#[test]
fn what_cannot_be_read_of_a_head_costs_nothing_else_of_it() {
    let mut headers = described(&[("x-amz-meta-twice", "1"), ("x-amz-meta-plain", "100 %")]);
    headers.append("x-amz-meta-twice", "2".parse().unwrap());
    headers.append("etag", "\"e\"".parse().unwrap());
    let latin = HeaderValue::from_bytes(b"caf\xe9 \xc3\xa9").unwrap();
    headers.insert("x-amz-meta-latin", latin.clone());
    headers.insert(CONTENT_TYPE, latin);
    headers.insert(CONTENT_LENGTH, "one".parse().unwrap());
    headers.insert(LAST_MODIFIED, "Thu, 1 Jan 1970 00:00:01 +0000".parse().unwrap());
    let (facts, details) = head(&headers);
    assert_eq!((facts.size_bytes, facts.etag.as_deref()), (None, Some("\"e\"")));
    // What is said in two ways is not said.
    headers.append("etag", "f".parse().unwrap());
    assert_eq!(head(&headers).0.etag, None);
    assert_eq!(facts.last_modified, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
    let metadata: Vec<_> = details.metadata.values().map(String::as_str).collect();
    assert_eq!(metadata, ["caf%E9 é", "100 %", "1,2"]);
    assert_eq!(details.content_type.as_deref(), Some("caf%E9 é"));
}

#[test]
fn a_body_may_be_stored_encoded_but_not_be_encoded_on_its_way() {
    let with = |length: Option<u64>, encoding: &str| {
        let mut headers = response(Some("bytes 2-4/10"), 3, "e");
        headers.remove(CONTENT_LENGTH);
        headers.extend(length.map(|length| (CONTENT_LENGTH, length.into())));
        headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        check_range(&version("k"), &(2..5), &headers)
    };
    assert_eq!(with(Some(3), "gzip"), Ok(()));
    assert_eq!(with(None, "identity"), Ok(()));
    for length in [None, Some(2)] {
        let refused = with(length, "gzip").unwrap_err().to_string();
        assert!(refused.ends_with("encoded (gzip)"), "{refused}");
    }
}

#[test]
fn a_redirect_leads_somewhere_or_to_another_region() {
    let leads = |status, code: &str, headers: &[(&'static str, &str)]| {
        let all =
            headers.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let body = format!("<Error><Code>{code}</Code></Error>");
        let refusal = Refusal::new(status, &all.collect(), body.as_bytes());
        (refusal.leads_to("here").map(str::to_owned), refusal.meaning(About::Bucket))
    };
    let place = ("location", "http://node/k");
    for status in [301, 302, 303, 307, 308] {
        assert_eq!(leads(status, "", &[place]).0.as_deref(), Some("http://node/k"));
        assert_eq!(leads(status, "", &[place, (REGION, "here")]).0.as_deref(), Some(place.1));
        assert_eq!(leads(status, "", &[]), (None, StoreError::WrongRegion(None)));
    }
    let there = StoreError::WrongRegion(Some("there".to_owned()));
    for (status, code) in [(301, "PermanentRedirect"), (307, "TemporaryRedirect"), (307, "")] {
        assert_eq!(leads(status, code, &[place, (REGION, "there")]), (None, there.clone()));
    }
    assert_eq!(leads(200, "", &[place]).0, None);
    let aws = ("location", "https://data.s3-gztb4pa9sq.amazonaws.com/k");
    assert_eq!(leads(307, "TemporaryRedirect", &[aws]), (None, StoreError::WrongRegion(None)));
    assert_eq!(leads(307, "", &[aws]), (None, StoreError::WrongRegion(None)));
}

#[test]
fn what_is_encrypted_with_a_key_that_we_do_not_have_is_denied() {
    for (code, message) in [
        (
            "InvalidRequest",
            "The object was stored using a form of Server Side Encryption. The \
                            correct parameters must be provided to retrieve the object.",
        ),
        ("KMS.DisabledException", "The key is disabled."),
    ] {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        let refusal = Refusal::new(400, &HeaderMap::new(), body.as_bytes());
        assert!(matches!(refusal.meaning(About::Key), StoreError::Denied(_)), "{code}");
    }
}

mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::fuzz;

    /// Whatever a store answers has a meaning; and none that says "there is nothing" but a 404,
    /// none that is asked again without end but what may heal.
    #[test]
    fn any_refusal_has_a_meaning() {
        let code = "[A-Za-z]{0,20}|SlowDown|NoSuchKey|AccessDenied|ExpiredToken|\\PC{0,5}";
        let code = fuzz::text(code);
        fuzz::each((300_u16..600, code, any::<bool>()), |(status, code, key)| {
            let about = if key { About::Key } else { About::Bucket };
            let meant = meaning(status, &code, None, about);
            if meant == StoreError::NotFound {
                prop_assert!(matches!(status, 404 | 410) && key);
            }
            if meant == StoreError::Changed {
                prop_assert_eq!(status, 412);
            }
            Ok(())
        });
    }

    /// By whichever clock the answer was written.
    #[test]
    fn any_time_to_come_back_is_as_far_off_as_it_was_written() {
        let years = 0_i64..8_000 * 31_556_952;
        fuzz::each((years.clone(), years), |(then, now)| {
            let [then_, now_] = [then, now]
                .map(|seconds| DateTime::from_secs(seconds).fmt(Format::HttpDate).unwrap());
            let wait = u64::try_from(then - now).unwrap_or(0);
            prop_assert_eq!(come_back(&then_, Some(&now_)), Some(Duration::from_secs(wait)));
            Ok(())
        });
    }

    /// The text of a header or a body becomes a time or a region that can be one, or nothing.
    #[test]
    fn any_text_is_a_time_or_a_region_or_neither() {
        let text = "[ 0-9.+-]{0,25}|\\PC{0,12}|(<Region>|[a-z0-9-]{0,9}|</Region>){0,5}";
        let text = fuzz::text(text);
        fuzz::each(text, |text| {
            let seconds = text.trim().parse().ok().map(Duration::from_secs);
            prop_assert_eq!(come_back(&text, None), seconds);
            if let Some(region) = region_of(text.as_bytes()) {
                let element = format!("<Region>{region}</Region>");
                prop_assert!(text.contains(&element));
                prop_assert!(!region.is_empty() && !region.contains('<'));
            }
            Ok(())
        });
    }

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
            let taken = check_range(&version, &(start..end), &headers).is_ok();
            let exact = match &range {
                Some(range) => *range == format!("bytes {start}-{}/10", end - 1),
                None => (start, end) == (0, 10),
            };
            prop_assert_eq!(taken, exact && body == end - start);
            Ok(())
        });
    }
}
