//! Every way in which a store can fail, by meaning, and the one match over them:
//! [`StoreError::class`].

use std::time::Duration;

/// A failed request, by the meaning of its failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// 404: no such key.
    #[error("no such key")]
    NotFound,
    /// 412: the object is no longer the version that was asked for.
    #[error("the object has changed")]
    Changed,
    /// The object is in an archive storage class and has not been restored.
    #[error("the object is archived")]
    Archived,
    /// 404 with `NoSuchBucket`.
    #[error("no such bucket")]
    NoSuchBucket,
    /// 403.
    #[error("access denied: {0}")]
    Denied(String),
    /// A request was refused for its signature, not for its subject: credentials that have
    /// expired, or the clock. The store has replaced them since, so it may be asked once more.
    #[error("the signature is refused: {0}")]
    SignatureRefused(String),
    /// The chain of credential providers gave nothing to sign a request with.
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// The bucket is in another region, which the store may have named.
    #[error("the bucket is in another region")]
    WrongRegion(Option<String>),
    /// 503 `SlowDown`, 429, or any transient failure with a `Retry-After`.
    #[error("{}", throttled(*.retry_after))]
    Throttled { retry_after: Option<Duration> },
    /// No connection to the endpoint.
    #[error("the store is unavailable: cannot connect: {0}")]
    Unreachable(String),
    /// The store failed: 5xx, a connection that broke.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store did not answer in time.
    #[error("the store did not answer in time: {0}")]
    TimedOut(String),
    /// The response contradicts itself, the request, or the protocol.
    #[error(transparent)]
    Nonsense(Nonsense),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// Against the protocol, the request, or itself.
    #[error("the store's answer makes no sense: {0}")]
    Protocol(String),
    /// A page of a listing begins before the place where it should: an answer to another question,
    /// or a store that lists in no order.
    #[error("the listing goes backwards: {0}")]
    Backwards(String),
    /// The entries of a page are not in key order: no accident does that, this store lists so.
    #[error("the listing is in no order: {0}")]
    Unordered(String),
}

/// The distinctions of the layers above: errno, metric label, retries and the doctor's advice
/// depend on this alone.
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
    /// Another attempt may be answered better.
    Nonsense,
    /// This store lists in no order: another attempt gives the same.
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
