//! Every way in which a call can fail, and the errno that a program sees (docs/semantics.md,
//! "Errors").

use std::time::Duration;

use crate::store::{Class, StoreError};

/// Why a call of the file system failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsError {
    /// A complete answer says so; the kernel may believe it for `ttl`.
    NotFound {
        ttl: Duration,
    },
    NotADirectory,
    IsADirectory,
    /// A component of more than 255 bytes.
    NameTooLong,
    /// There is no such extended attribute.
    NoSuchAttribute,
    NotSupported,
    /// The store refuses, or the object is archived.
    Denied,
    /// The object has changed since its lookup, or the inode number or cookie is not known.
    Stale,
    /// No byte from the store until the deadline.
    TimedOut,
    Interrupted,
    /// The store failed until the deadline, or its answers contradict themselves.
    Io,
}

impl FsError {
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound { .. } => libc::ENOENT,
            Self::NotADirectory => libc::ENOTDIR,
            Self::IsADirectory => libc::EISDIR,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NoSuchAttribute => libc::ENODATA,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Denied => libc::EACCES,
            Self::Stale => libc::ESTALE,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Interrupted => libc::EINTR,
            Self::Io => libc::EIO,
        }
    }
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        match error.class() {
            // The name led to a version that is gone. "No such key" is `FsError::NotFound` only
            // where it answers a lookup.
            Class::NotFound | Class::Changed => Self::Stale,
            Class::Denied | Class::Unsigned | Class::Archived => Self::Denied,
            Class::TimedOut => Self::TimedOut,
            Class::Throttled
            | Class::Unavailable
            | Class::Nonsense
            | Class::Unordered
            | Class::NoSuchBucket
            | Class::WrongRegion => Self::Io,
        }
    }
}
