use super::*;

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
