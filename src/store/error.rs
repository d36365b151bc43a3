//! Every way in which a store can fail, by meaning, and the one match over them:
//! [`StoreError::class`].

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// 404.
    #[error("no such key")]
    NotFound,
    /// 412.
    #[error("the object has changed")]
    Changed,
    #[error("the object is archived")]
    Archived,
    /// 404 with `NoSuchBucket`.
    #[error("no such bucket")]
    NoSuchBucket,
    /// 403.
    #[error("access denied: {0}")]
    Denied(String),
    /// Expired credentials, or a wrong clock. The store below has corrected them since, so the
    /// request may be sent once more.
    #[error("the signature is refused: {0}")]
    SignatureRefused(String),
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// Holds the region that the store has named.
    #[error("the bucket is in another region")]
    WrongRegion(Option<String>),
    /// 503 `SlowDown`, 429, or any transient failure with a `Retry-After`.
    #[error("{}", throttled(*.retry_after))]
    Throttled { retry_after: Option<Duration> },
    #[error("the store is unavailable: cannot connect: {0}")]
    Unreachable(String),
    /// The store failed: 5xx, a connection that broke.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the store did not answer in time: {0}")]
    TimedOut(String),
    #[error(transparent)]
    Nonsense(Nonsense),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// It contradicts the protocol, the request, or itself.
    #[error("the store's answer makes no sense: {0}")]
    Protocol(String),
    /// A page of a listing begins before the place where it should.
    #[error("the listing goes backwards: {0}")]
    Backwards(String),
    /// The entries of a page are not in key order: no accident, this store always lists so.
    #[error("the listing is in no order: {0}")]
    Unordered(String),
}

/// The errno, the metric label, retries and the doctor's advice depend on this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    NotFound,
    Changed,
    Archived,
    NoSuchBucket,
    WrongRegion,
    Denied,
    /// The credentials, or the signature made with them.
    Unsigned,
    Throttled,
    Unavailable,
    TimedOut,
    Nonsense,
    /// Another attempt gives the same.
    Unordered,
}

impl StoreError {
    pub(crate) fn nonsense(cause: impl Into<String>) -> Self {
        Self::Nonsense(Nonsense::Protocol(cause.into()))
    }

    pub fn class(&self) -> Class {
        match self {
            Self::NotFound => Class::NotFound,
            Self::Changed => Class::Changed,
            Self::Archived => Class::Archived,
            Self::NoSuchBucket => Class::NoSuchBucket,
            Self::WrongRegion(_) => Class::WrongRegion,
            Self::Denied(_) => Class::Denied,
            Self::SignatureRefused(_) | Self::NoCredentials(_) => Class::Unsigned,
            Self::Throttled { .. } => Class::Throttled,
            Self::Unreachable(_) | Self::Unavailable(_) => Class::Unavailable,
            Self::TimedOut(_) => Class::TimedOut,
            Self::Nonsense(Nonsense::Protocol(_) | Nonsense::Backwards(_)) => Class::Nonsense,
            Self::Nonsense(Nonsense::Unordered(_)) => Class::Unordered,
        }
    }

    /// Another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        match self.class() {
            Class::Throttled | Class::Unavailable | Class::TimedOut | Class::Nonsense => true,
            Class::NotFound
            | Class::Changed
            | Class::Archived
            | Class::NoSuchBucket
            | Class::WrongRegion
            | Class::Denied
            | Class::Unsigned
            | Class::Unordered => false,
        }
    }
}

fn throttled(retry_after: Option<Duration>) -> String {
    match retry_after {
        None => "the store asks to slow down".to_owned(),
        Some(wait) => format!("the store asks to come back after {} s", wait.as_secs()),
    }
}
