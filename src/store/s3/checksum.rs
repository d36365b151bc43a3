//! Checksums of whole objects, as a store has them, and their check. Pure.

use ::http::header::HeaderMap;
use aws_smithy_types::base64;
use crc_fast::CrcAlgorithm;

use crate::store::StoreError;

/// The uploading client chooses one for an object; the last is the default. SHA-1 and SHA-256 take
/// more than ten times the CPU time (0.6 to 1 s/GB) and are ignored.
const KNOWN: [(&str, CrcAlgorithm, usize); 3] = [
    ("x-amz-checksum-crc32", CrcAlgorithm::Crc32IsoHdlc, 4),
    ("x-amz-checksum-crc32c", CrcAlgorithm::Crc32Iscsi, 4),
    ("x-amz-checksum-crc64nvme", CrcAlgorithm::Crc64Nvme, 8),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Checksum {
    algorithm: CrcAlgorithm,
    sum: u64,
}

impl Checksum {
    /// The object's checksum in the headers of a response. For an object that was uploaded in parts
    /// it may be a checksum of checksums, which cannot be compared with the bytes.
    pub(super) fn told(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if text("x-amz-checksum-type").is_some_and(|kind| kind != "FULL_OBJECT") {
            return None;
        }
        KNOWN.into_iter().find_map(|(name, algorithm, length)| {
            let bytes = base64::decode(text(name)?).ok().filter(|bytes| bytes.len() == length)?;
            let sum = bytes.into_iter().fold(0, |sum, byte| sum << 8 | u64::from(byte));
            Some(Self { algorithm, sum })
        })
    }

    pub(super) fn check(self, bytes: &[u8]) -> Result<(), StoreError> {
        let Self { algorithm, sum } = self;
        let found = crc_fast::checksum(algorithm, bytes);
        if found == sum {
            return Ok(());
        }
        let what = format!("bytes whose {algorithm} is {found:x} and not {sum:x}, as it is told");
        Err(StoreError::nonsense(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Nonsense;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// The sums of "123456789" that every list of CRCs has, in base64.
    #[test]
    fn the_bytes_are_checked_against_what_the_store_tells() {
        for told in [
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ] {
            for kind in [None, Some(("x-amz-checksum-type", "FULL_OBJECT"))] {
                let said: Vec<_> = kind.into_iter().chain([told]).collect();
                let checksum = Checksum::told(&headers(&said)).unwrap();
                assert_eq!(checksum.check(b"123456789"), Ok(()), "{told:?}");
                for wrong in [&b"123456780"[..], b"12345678", b"1234567890", b""] {
                    let failure = checksum.check(wrong);
                    assert!(
                        matches!(failure, Err(StoreError::Nonsense(Nonsense::Protocol(_)))),
                        "{told:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_says_nothing_about_the_bytes_is_not_asked() {
        let of_parts = ("x-amz-checksum-type", "COMPOSITE");
        for said in [
            &[][..],
            &[of_parts, ("x-amz-checksum-crc32", "y/Q5Jg==")],
            &[("x-amz-checksum-crc32", "y/Q5Jg==-2")],
            &[("x-amz-checksum-crc32", "rosUhgp5mIg=")],
            &[("x-amz-checksum-crc64nvme", "y/Q5Jg==")],
            &[("x-amz-checksum-crc64nvme", "?")],
            &[("x-amz-checksum-sha256", "FeKw05KdPhkD+8t0Ef0LKnzk4fr+V+JEtB1C4/6Ov0U=")],
        ] {
            assert_eq!(Checksum::told(&headers(said)), None, "{said:?}");
        }
    }
}
