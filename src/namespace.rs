//! Names to inodes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::store::{ObjectMeta, StoreError};

pub mod inodes;
pub mod listing;
pub mod tree;

/// An inode number: names one version of one object, or one directory; never reused while mounted.
pub type Ino = u64;

/// The root directory's inode number, as FUSE wants it.
pub const ROOT: Ino = 1;

/// How names are kept.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Empty, or a key prefix that ends with `/`: the root directory.
    pub root_prefix: String,
    /// How long a listing or a point lookup is believed; `None` is for ever.
    pub metadata_ttl: Option<Duration>,
    /// How long a negative answer is believed in a directory that is not listed.
    pub negative_ttl: Duration,
    /// Wall-clock time of the mount: what tokio's clock counts directory mtimes from.
    pub mounted_at: SystemTime,
    /// Keys a page may hold, 1 to 1000; less only in tests.
    pub page_keys: u16,
}

/// An inode as the kernel is told of it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: NodeKind,
    /// How long the kernel may believe the *name* without asking.
    pub name_ttl: Duration,
    /// How long the kernel may believe the attributes: practically for ever for a file, whose
    /// inode names one version.
    pub attr_ttl: Duration,
}

/// File or directory.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A directory; the mtime changes whenever its listing may have changed.
    Directory {
        /// Modification time.
        mtime: SystemTime,
    },
    /// One version of one object.
    File(Arc<ObjectMeta>),
}

/// Why a name or an inode gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A complete answer says that there is no such name; believe it for this long.
    #[error("no such name")]
    NotFound {
        /// How long the kernel may believe it without asking.
        ttl: Duration,
    },
    /// A component over 255 bytes.
    #[error("name too long")]
    TooLong,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A file was needed.
    #[error("is a directory")]
    IsADirectory,
    /// An inode number or a directory cookie that nobody was given, or that is long forgotten.
    #[error("stale inode or directory position")]
    Stale,
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}
