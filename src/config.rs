//! Command-line arguments and environment variables, checked at the door, become one plain value.

use std::path::PathBuf;
use std::time::Duration;

/// Everything the daemon needs to know, valid by construction of `Args`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bucket's name.
    pub bucket: String,
    /// Empty, or a key prefix that ends with `/`: the root of the mount.
    pub prefix: String,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// How to reach the store.
    pub store: StoreConfig,
    /// The one bound on cached and in-flight object bytes.
    pub memory_budget_bytes: u64,
    /// Chunk size, a multiple of the 128 KiB block.
    pub chunk_bytes: u64,
    /// Size of one range GET of a sequential stream, a multiple of the block, at most a chunk.
    pub part_bytes: u64,
    /// Requests in flight at once, at least 1.
    pub max_connections: usize,
    /// How long names are believed; `None` is for ever.
    pub metadata_ttl: Option<Duration>,
    /// How long the absence of a name is believed.
    pub negative_ttl: Duration,
    /// Owner of every file.
    pub uid: u32,
    /// Group of every file.
    pub gid: u32,
    /// Permission bits of files, e.g. 0o444.
    pub file_mode: u16,
    /// Permission bits of directories, e.g. 0o555.
    pub dir_mode: u16,
    /// Who may use the mount.
    pub access: Access,
}

/// Who may use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The user who mounted.
    Owner,
    /// That user and root (`--allow-root`).
    OwnerAndRoot,
    /// Everybody (`--allow-other`).
    Everyone,
}

/// How to reach the store.
#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// The store's address; AWS when absent.
    pub endpoint_url: Option<String>,
    /// Region, when not left to the usual chain.
    pub region: Option<String>,
    /// Profile of the AWS configuration files.
    pub profile: Option<String>,
    /// Send requests without a signature.
    pub no_sign_request: bool,
    /// Let the requester pay.
    pub requester_pays: bool,
    /// Bucket in the path rather than in the host name.
    pub path_style: PathStyle,
    /// PEM file of further root certificates.
    pub ca_bundle: Option<PathBuf>,
    /// Accept any certificate.
    pub no_verify_tls: bool,
}

/// Where the bucket's name goes in a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PathStyle {
    /// Path style when the endpoint is an address or a custom host.
    #[default]
    Auto,
    /// `https://host/bucket/key`
    Always,
    /// `https://bucket.host/key`
    Never,
}
