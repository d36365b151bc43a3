//! How to reach a store: plain values, checked where they come from.

use std::path::PathBuf;

pub use crate::store::wire::Proxies;

#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// The store's address; when absent, that of the AWS configuration, or else AWS itself.
    pub endpoint_url: Option<String>,
    /// When absent, by the rules of the AWS configuration.
    pub region: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    pub no_sign_request: bool,
    pub first_credentials: FirstCredentials,
    pub requester_pays: bool,
    pub path_style: PathStyle,
    /// PEM file of root certificates, in addition to the system's.
    pub ca_bundle: Option<PathBuf>,
    pub no_verify_tls: bool,
    pub hedging: Hedging,
    pub proxies: Proxies,
    pub sessions: SessionAccess,
}

/// What the sessions of a directory bucket are asked to allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionAccess {
    #[default]
    Read,
    /// Only reading, where this is denied.
    ReadWrite,
}

/// When there must be credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstCredentials {
    /// When it connects.
    #[default]
    Now,
    /// Requests fail until there are some.
    Later,
}

/// When a request is sent a second time because its response is late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hedging {
    /// After a time that is learnt from the responses so far.
    #[default]
    Auto,
    Never,
}

/// Where the bucket's name goes in a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathStyle {
    /// In the path when the endpoint is an address or a host outside AWS.
    #[default]
    Auto,
    /// `https://host/bucket/key`
    Always,
    /// `https://bucket.host/key`
    Never,
}

/// Keys to sign with, in place of the chain of credential providers.
#[derive(Clone)]
pub struct Keys {
    pub access_key_id: String,
    /// Never shown.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keys").field(&self.access_key_id).finish()
    }
}
