//! What was learnt of a store that is not quite S3. It holds for as long as the mount does, so each
//! way in which it differs costs its first requests only. Atomics; no I/O but a line of the log.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// A way in which a store differs from S3, and that the mount can do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    RefusesChecksumMode,
    RefusesRestoreStatus,
    ListsTooLittle,
    HeadTellsTooLittle,
    SendsElsewhere,
    RefusesIfMatch,
    TellsNoLength,
}

impl Quirk {
    const ALL: [Self; 7] = [
        Self::RefusesChecksumMode,
        Self::RefusesRestoreStatus,
        Self::ListsTooLittle,
        Self::HeadTellsTooLittle,
        Self::SendsElsewhere,
        Self::RefusesIfMatch,
        Self::TellsNoLength,
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// What it is, and what the mount does about it.
    fn sentence(self) -> &'static str {
        match self {
            Self::RefusesChecksumMode => {
                "it refuses the header x-amz-checksum-mode, which is left out from now on: bytes \
                 are not compared with checksums"
            }
            Self::RefusesRestoreStatus => {
                "it refuses the header x-amz-optional-object-attributes, which is left out from \
                 now on: of each archived file, a HEAD tells whether it was restored"
            }
            Self::ListsTooLittle => {
                "it lists objects without size, ETag or time: a HEAD tells them when the file is \
                 first used"
            }
            Self::HeadTellsTooLittle => {
                "its answer to a HEAD lacks size, ETag or time: a listing of the key tells them"
            }
            Self::SendsElsewhere => {
                "it redirects requests: they are followed, and the credentials go to no other host"
            }
            Self::RefusesIfMatch => {
                "its If-Match does not work, it refuses the ETag that it tells: objects are read \
                 without, and the ETag of each answer is compared before a byte of it is taken"
            }
            Self::TellsNoLength => {
                "it sends objects without their length: each answer must end where it should"
            }
        }
    }
}

/// A request header that a store may refuse to know, and the quirk if it does.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalHeader {
    pub(super) name: &'static str,
    pub(super) value: &'static str,
    pub(super) quirk: Quirk,
}

/// Asks for the checksum of an object.
pub(super) const CHECKSUM_MODE: OptionalHeader = OptionalHeader {
    name: "x-amz-checksum-mode",
    value: "ENABLED",
    quirk: Quirk::RefusesChecksumMode,
};

/// Asks a listing to tell which archived objects were restored.
pub(super) const RESTORE_STATUS: OptionalHeader = OptionalHeader {
    name: "x-amz-optional-object-attributes",
    value: "RestoreStatus",
    quirk: Quirk::RefusesRestoreStatus,
};

#[derive(Debug, Default)]
pub(super) struct LearntQuirks {
    /// By [`Quirk::bit`].
    found: AtomicU8,
    /// Those that the store cannot have, because what they refuse has worked.
    ruled_out: AtomicU8,
    /// Times in a row that `If-Match` was refused with the `ETag` that the object has.
    mismatches: AtomicU32,
}

impl LearntQuirks {
    pub(super) fn has(&self, quirk: Quirk) -> bool {
        self.found.load(Relaxed) & quirk.bit() != 0
    }

    /// Logs it the first time.
    pub(super) fn found(&self, quirk: Quirk) {
        if self.found.fetch_or(quirk.bit(), Relaxed) & quirk.bit() == 0 {
            tracing::warn!("the store is not quite S3: {}", quirk.sentence());
        }
    }

    pub(super) fn rule_out(&self, quirk: Quirk) {
        if self.may_have(quirk) {
            self.ruled_out.fetch_or(quirk.bit(), Relaxed);
        }
    }

    pub(super) fn may_have(&self, quirk: Quirk) -> bool {
        self.ruled_out.load(Relaxed) & quirk.bit() == 0
    }

    /// A GET with the right `If-Match` was refused, or not. Once may be chance.
    pub(super) fn matched(&self, matched: bool) {
        if matched {
            if self.mismatches.load(Relaxed) > 0 {
                self.mismatches.store(0, Relaxed);
            }
        } else if self.mismatches.fetch_add(1, Relaxed) > 0 {
            self.found(Quirk::RefusesIfMatch);
        }
    }

    /// A sentence for each quirk that was found.
    pub(super) fn sentences(&self) -> Vec<&'static str> {
        Quirk::ALL.into_iter().filter(|quirk| self.has(*quirk)).map(Quirk::sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_match_is_given_up_after_the_second_refusal_in_a_row() {
        let learnt = LearntQuirks::default();
        for matched in [false, true, false] {
            learnt.matched(matched);
            assert!(!learnt.has(Quirk::RefusesIfMatch));
        }
        learnt.matched(false);
        assert!(learnt.has(Quirk::RefusesIfMatch));
        assert_eq!(learnt.sentences(), [Quirk::RefusesIfMatch.sentence()]);
    }
}
