use super::*;

#[test]
fn a_signature_names_region_and_service() {
    let scoped = |text: &str| {
        scope(&format!("AWS4-HMAC-SHA256 Credential={text}, SignedHeaders=host"))
            .map(|(region, service)| format!("{region} {service}"))
    };
    assert_eq!(scoped("a/b/20240101/us-east-1/s3/aws4_request").as_deref(), Some("us-east-1 s3"));
    assert_eq!(scoped("a/20240101/us-east-1/s3/other"), None);
    assert_eq!(scope("AWS4-ECDSA-P256-SHA256 Credential=a/20240101/s3/aws4_request,"), None);
}

#[test]
fn the_clock_of_a_request_is_compared_with_ours() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(seconds_ahead("20130524T000001Z", at(1_369_353_600)), Some(1));
    assert_eq!(seconds_ahead("20130524T000000Z", at(1_369_353_600 + 3600)), Some(-3600));
    for odd in ["", "2013", "2013-05-24T00:00", "20131324T000000Z", "ä0130524T000000Z"] {
        assert_eq!(seconds_ahead(odd, at(0)), None, "{odd}");
    }
}
