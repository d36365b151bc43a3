//! Why the daemon did not start or did not end well: one sentence each, and an exit code.

use std::process::ExitCode;

use crate::store::{Nonsense, StoreError};

/// Every way in which `fasts3-mount` fails. The text says what is wrong and what to do.
///
/// Exit codes are those of sysexits(3), each used for one kind of failure only, so that a unit file
/// or a script can tell them apart (`RestartPreventExitStatus=` in `systemd/`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// An option is wrong: 64.
    #[error("{0}")]
    Usage(String),
    /// The bucket is in another region, and asking there did not help: 65.
    #[error("bucket {bucket} is in another region ({}); give it with --region", .region.as_deref().unwrap_or("the store does not say which"))]
    WrongRegion {
        /// The bucket.
        bucket: String,
        /// Where it is, if the store has told.
        region: Option<String>,
    },
    /// 66.
    #[error("there is no bucket {bucket} at {endpoint}; check its name and --endpoint-url")]
    NoSuchBucket {
        /// The bucket.
        bucket: String,
        /// Where it was asked for.
        endpoint: String,
    },
    /// No connection to the endpoint: 68.
    #[error("cannot connect to {endpoint}: {cause}; check {}", what_to_check(.cause))]
    Unreachable {
        /// The address.
        endpoint: String,
        /// Why not.
        cause: String,
    },
    /// The store answers, with errors of its own: 69.
    #[error("the store at {endpoint} is failing: {cause}; try again later")]
    Failing {
        /// The address.
        endpoint: String,
        /// What it answers.
        cause: String,
    },
    /// A fault of this program or of the machine it runs on: 70.
    #[error("{0}")]
    Internal(String),
    /// `/dev/fuse` is missing or the kernel refuses the mount: 71.
    #[error("{0}")]
    NoFuse(String),
    /// The mountpoint is missing or no directory: 72.
    #[error("{0}")]
    NoMountpoint(String),
    /// Something is mounted there, or something listens where metrics were to be served: 73.
    #[error("{0}")]
    Busy(String),
    /// A daemon has died there and left its mount behind: 74.
    #[error(
        "{mountpoint} is what a file system daemon that died has left; free it with `fusermount3 -u \
         {mountpoint}`, or as root `umount -l {mountpoint}`"
    )]
    Stale {
        /// The mountpoint.
        mountpoint: String,
    },
    /// The store throttles or is silent: 75.
    #[error("the store at {endpoint} did not answer in time: {cause}; try again later")]
    Slow {
        /// The address.
        endpoint: String,
        /// What was seen of it.
        cause: String,
    },
    /// What answers is no S3 store: 76.
    #[error("{endpoint} does not answer like an S3 store: {cause}; check --endpoint-url")]
    NotS3 {
        /// The address.
        endpoint: String,
        /// What it answered.
        cause: String,
    },
    /// 77.
    #[error(
        "access to bucket {bucket} is denied: {cause}; check the credentials, and that they allow \
         s3:ListBucket and s3:GetObject"
    )]
    Denied {
        /// The bucket.
        bucket: String,
        /// What the store said.
        cause: String,
    },
    /// 78.
    #[error(
        "no credentials were found ({cause}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
         choose a --profile, or give --no-sign-request for a public bucket"
    )]
    NoCredentials {
        /// What the last provider said.
        cause: String,
    },
}

fn what_to_check(cause: &str) -> &'static str {
    // rustls names the certificate in each of its errors about one.
    if cause.contains("certificate") {
        "the certificate, or trust it with --ca-bundle"
    } else if cause.starts_with("TLS: ") {
        "--endpoint-url, and that a server at that port speaks https"
    } else {
        "--endpoint-url and the network"
    }
}

/// A sentence on one line, whatever the names in it hold.
pub(super) fn one_line(sentence: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    sentence.chars().map(shown).collect()
}

impl StartError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,             // EX_USAGE
            Self::WrongRegion { .. } => 65,   // EX_DATAERR
            Self::NoSuchBucket { .. } => 66,  // EX_NOINPUT
            Self::Unreachable { .. } => 68,   // EX_NOHOST
            Self::Failing { .. } => 69,       // EX_UNAVAILABLE
            Self::Internal(_) => 70,          // EX_SOFTWARE
            Self::NoFuse(_) => 71,            // EX_OSERR
            Self::NoMountpoint(_) => 72,      // EX_OSFILE
            Self::Busy(_) => 73,              // EX_CANTCREAT
            Self::Stale { .. } => 74,         // EX_IOERR
            Self::Slow { .. } => 75,          // EX_TEMPFAIL
            Self::NotS3 { .. } => 76,         // EX_PROTOCOL
            Self::Denied { .. } => 77,        // EX_NOPERM
            Self::NoCredentials { .. } => 78, // EX_CONFIG
        }
    }

    /// What a failure of the first requests means for the start of the daemon.
    pub(super) fn of(error: StoreError, bucket: &str, endpoint: &str) -> Self {
        let bucket = bucket.to_owned();
        let endpoint = endpoint.to_owned();
        match error {
            StoreError::NoSuchBucket => Self::NoSuchBucket { bucket, endpoint },
            StoreError::Denied(cause) | StoreError::SignatureRefused(cause) => {
                Self::Denied { bucket, cause }
            }
            StoreError::NoCredentials(cause) => Self::NoCredentials { cause },
            StoreError::WrongRegion(region) => Self::WrongRegion { bucket, region },
            StoreError::Throttled { retry_after: None } => {
                Self::Slow { endpoint, cause: "it asks to slow down".to_owned() }
            }
            StoreError::Throttled { retry_after: Some(_) } => {
                Self::Slow { endpoint, cause: error.to_string() }
            }
            StoreError::TimedOut(cause) => Self::Slow { endpoint, cause },
            StoreError::Unreachable(cause) => Self::Unreachable { endpoint, cause },
            StoreError::Unavailable(cause) => Self::Failing { endpoint, cause },
            StoreError::Nonsense(Nonsense::Protocol(cause)) => Self::NotS3 { endpoint, cause },
            // None of these is an answer to a listing of one key.
            StoreError::NotFound
            | StoreError::Changed
            | StoreError::Archived
            | StoreError::Nonsense(Nonsense::Backwards(_) | Nonsense::Unordered(_)) => {
                Self::NotS3 { endpoint, cause: error.to_string() }
            }
        }
    }
}
