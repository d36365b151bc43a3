//! Every way in which a call can fail, and the errno that a program sees (docs/semantics.md,
//! "Errors").

use std::time::Duration;

use crate::store::{Class, StoreError};

/// Why a call of the file system failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// ENOENT. A complete answer says so; the kernel may believe it for `ttl`.
    #[error("no such name")]
    NotFound { ttl: Duration },
    /// ENOTDIR
    #[error("not a directory")]
    NotADirectory,
    /// EISDIR
    #[error("is a directory")]
    IsADirectory,
    /// ENAMETOOLONG: a component of more than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// ENODATA
    #[error("no such extended attribute")]
    NoSuchAttribute,
    /// EOPNOTSUPP
    #[error("not supported")]
    NotSupported,
    /// EACCES: the store refuses, or the object is archived.
    #[error("access denied")]
    Denied,
    /// ESTALE: the object has changed since its lookup, or the inode number or directory cookie is
    /// not known.
    #[error("the object has changed since it was looked up")]
    Stale,
    /// ETIMEDOUT: no byte from the store until the deadline.
    #[error("timed out")]
    TimedOut,
    /// EINTR: a signal ended the wait.
    #[error("interrupted by a signal")]
    Interrupted,
    /// EIO: the store failed until the deadline, or its answers contradict themselves.
    #[error("input/output error")]
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

impl From<&StoreError> for FsError {
    fn from(error: &StoreError) -> Self {
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

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}
