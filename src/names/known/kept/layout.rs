//! Where the parts of the file are, its numbers and its checksums.

/// Of another version nothing is read.
pub const FORMAT: u32 = 2;
/// At the beginning of the file: for whoever passes it on.
pub const DESCRIPTION_BYTES: u64 = 12 << 10;
pub(super) const PAGE: usize = 4 << 10;
pub(super) const PAGE_BYTES: u64 = PAGE as u64;
pub(super) const COUNTERS_AT: u64 = DESCRIPTION_BYTES;
pub(super) const RING_BYTES: u64 = 8 << 20;
pub(super) const RING_AT: u64 = COUNTERS_AT + PAGE_BYTES;
pub(super) const SLOTS_AT: u64 = RING_AT + RING_BYTES;

/// Why a file cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it cannot be read")]
    Unreadable,
    #[error("it is shorter than it says")]
    Truncated,
    #[error("a checksum is wrong")]
    Checksum,
    #[error("a number is there twice")]
    Twice,
}

impl Damage {
    #[allow(clippy::needless_pass_by_value)] // for `map_err`
    pub(super) fn of(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Unreadable,
        }
    }
}

/// CRC-32C.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("32 bits")
}

/// The first 8 bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The first 4 bytes.
pub(super) fn short(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}
