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

mod fuzz {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::fuzz;

    /// A clock is off by what it is off by, and a text that is no time says nothing.
    #[test]
    fn any_time_is_compared_as_it_was_written() {
        let garbage = fuzz::text("[0-9]{8}T[0-9]{6}Z|[0-9TZ:+-]{0,20}|\\PC{0,18}");
        let years = 0_u64..8_000 * 31_556_952;
        fuzz::each((years.clone(), years, garbage), |(signed, ours, garbage)| {
            let [at, now] = [signed, ours].map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
            let ahead = signed.cast_signed() - ours.cast_signed();
            prop_assert_eq!(seconds_ahead(&dated(at), now), Some(ahead));
            if let Some(ahead) = seconds_ahead(&garbage, UNIX_EPOCH) {
                prop_assert!(garbage.as_bytes()[..4].iter().all(u8::is_ascii_digit), "{}", ahead);
            }
            Ok(())
        });
    }

    #[test]
    fn any_signature_names_the_region_and_the_service_it_was_made_for() {
        let [region, service, key, text] =
            ["[a-z0-9-]{1,9}", "[a-z0-9-]{1,9}", "[A-Z0-9/]{1,9}", "\\PC{0,40}"].map(fuzz::text);
        fuzz::each((region, service, key, text), |(region, service, key, text)| {
            let signed = format!(
                "{ALGORITHM} Credential={key}/20130524/{region}/{service}/aws4_request, \
                 SignedHeaders=host, Signature=0"
            );
            prop_assert_eq!(scope(&signed), Some((&*region, &*service)));
            let odd = format!("{ALGORITHM} Credential={text}");
            if let Some((region, service)) = scope(&odd) {
                let names = format!("{region}/{service}/aws4_request");
                prop_assert!(text.contains(&names));
            }
            Ok(())
        });
    }
}
