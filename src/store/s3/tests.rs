use super::*;

fn keys(page: &ListPage) -> Vec<&str> {
    page.entries.iter().map(ListEntry::key).collect()
}

fn object(key: &str) -> Object {
    Object::builder()
        .key(key)
        .size(3)
        .e_tag("\"e\"")
        .last_modified(DateTime::from_secs_and_nanos(7, 5_000_000))
        .build()
}

fn listing(keys: &[&str], prefixes: &[&str]) -> ListObjectsV2Output {
    ListObjectsV2Output::builder()
        .set_contents(Some(keys.iter().map(|key| object(key)).collect()))
        .set_common_prefixes(Some(
            prefixes
                .iter()
                .map(|prefix| aws_sdk_s3::types::CommonPrefix::builder().prefix(*prefix).build())
                .collect(),
        ))
        .encoding_type(EncodingType::Url)
        .is_truncated(false)
        .build()
}

#[test]
fn keys_and_prefixes_become_one_ascending_list() {
    let merged = page(listing(&["a", "b", "d"], &["a/", "c/", "e/"])).unwrap();
    assert_eq!(keys(&merged), ["a", "a/", "b", "c/", "d", "e/"]);
    let disordered = page(listing(&["d", "b"], &["c/"])).unwrap();
    let request =
        ListRequest { prefix: String::new(), delimited: true, from: ListFrom::Start, max_keys: 9 };
    assert!(crate::store::check_page(&request, &disordered).is_err(), "{disordered:?}");
}

#[test]
fn keys_are_decoded_only_when_the_store_says_it_encoded() {
    let encoded = page(listing(&["a+b%2Bc%25%01"], &["%C3%A4%2F"])).unwrap();
    assert_eq!(keys(&encoded), ["a b+c%\u{1}", "ä/"]);
    let mut plain = listing(&["a+b%2Bc"], &[]);
    plain.encoding_type = None;
    assert_eq!(keys(&page(plain).unwrap()), ["a+b%2Bc"]);
}

#[test]
fn keys_that_are_not_utf8_are_counted() {
    let page = page(listing(&["%FF", "a"], &["%FE/"])).unwrap();
    assert_eq!((keys(&page), page.undecodable), (vec!["a"], 2));
}

#[test]
fn a_page_that_lacks_something_is_a_contradiction() {
    for object in [
        Object::builder().key("a").size(1).e_tag("e").build(),
        Object::builder().key("a").size(1).last_modified(DateTime::from_secs(1)).build(),
        Object::builder().key("a").e_tag("e").last_modified(DateTime::from_secs(1)).build(),
        Object::builder().size(1).e_tag("e").last_modified(DateTime::from_secs(1)).build(),
    ] {
        let output = ListObjectsV2Output::builder().is_truncated(false).contents(object).build();
        assert!(matches!(page(output), Err(StoreError::Protocol(_))));
    }
    let mut whole = listing(&["a"], &["b/"]);
    whole.key_count = Some(2);
    assert!(page(whole.clone()).is_ok());
    let mut no_token = whole.clone();
    no_token.is_truncated = Some(true);
    let mut untold = whole.clone();
    untold.is_truncated = None;
    let mut cut_off = whole;
    cut_off.key_count = Some(3);
    for wrong in [no_token, untold, cut_off] {
        assert!(matches!(page(wrong), Err(StoreError::Protocol(_))));
    }
}

#[test]
fn archived_objects_are_told_by_their_class_and_restore() {
    let archived = |class: &str, restore: Option<&str>, status: Option<&str>| {
        let output = HeadObjectOutput::builder()
            .content_length(1)
            .e_tag("e")
            .last_modified(DateTime::from_secs(1))
            .storage_class(class.into())
            .set_restore(restore.map(str::to_owned))
            .set_archive_status(status.map(Into::into))
            .build();
        head_meta("a", &output).unwrap().archived
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
    let none = details(HeadObjectOutput::builder().build());
    let usual = ObjectDetails { storage_class: "STANDARD".to_owned(), ..Default::default() };
    assert_eq!(none, usual);
    let told = HeadObjectOutput::builder()
        .storage_class("A_CLASS_OF_TOMORROW".into())
        .version_id("null")
        .content_type("image/jpeg")
        .metadata("label", "cat")
        .build();
    let some = |text: &str| Some(text.to_owned());
    let expected = ObjectDetails {
        storage_class: "A_CLASS_OF_TOMORROW".to_owned(),
        version_id: some("null"),
        content_type: some("image/jpeg"),
        metadata: [("label".to_owned(), "cat".to_owned())].into(),
    };
    assert_eq!(details(told), expected);
}

#[test]
fn etags_differ_only_by_what_is_between_the_quotes() {
    for etag in ["\"x-1\"", "x-1", "W/\"x-1\"", " \"x-1\" "] {
        assert_eq!(quoted(etag), "\"x-1\"");
    }
}
