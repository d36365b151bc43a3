//! An inode: its number, what it names, and what the kernel is told of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::store::ObjectMeta;

/// "Forever", as a TTL for the kernel: ten years.
pub const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// Stores round `LastModified` differently in a listing and in a HEAD, by up to a second.
const ROUNDED: Duration = Duration::from_secs(2);

/// An inode number: names one version of one object, or one directory; never reused while mounted.
pub type Ino = u64;

/// The root directory's inode number, by the FUSE protocol.
pub const ROOT: Ino = 1;

/// The thing that an inode number names.
#[derive(Clone, Debug)]
pub enum Inode {
    /// A directory, by its prefix: empty, or the path and a `/`.
    Directory(Arc<str>),
    /// A version of an object.
    File(Arc<ObjectMeta>),
    /// An object whose listing does not tell its version, by its key. Its name is shown in the
    /// directory, and leads to a [`Self::File`] when it is looked up.
    Untold(Arc<str>),
}

impl Inode {
    /// The object's key, or the directory's prefix.
    pub fn key(&self) -> &str {
        match self {
            Self::Directory(key) | Self::Untold(key) => key,
            Self::File(meta) => &meta.version.key,
        }
    }

    /// One number may name both. `LastModified` is not compared: the bytes of an object that was
    /// put again unchanged stay good.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory(a), Self::Directory(b)) | (Self::Untold(a), Self::Untold(b)) => a == b,
            (Self::File(a), Self::File(b)) => a.version == b.version && a.archived == b.archived,
            (Self::Directory(_) | Self::File(_) | Self::Untold(_), _) => false,
        }
    }

    /// The same object was put again after `other`. Less than [`ROUNDED`] proves nothing.
    pub(crate) fn is_newer(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => {
                let later = a.last_modified.duration_since(b.last_modified);
                later.is_ok_and(|later| later >= ROUNDED)
            }
            _ => false,
        }
    }
}

/// An inode as the kernel is told of it.
#[derive(Clone, Debug)]
pub struct Node {
    pub ino: Ino,
    pub inode: Inode,
    /// `LastModified` of an object. A directory's changes with its content.
    pub mtime: SystemTime,
    /// The kernel's TTL of the *name*.
    pub name_ttl: Duration,
    /// How long the kernel may believe the attributes: [`FOREVER`] for a file.
    pub attr_ttl: Duration,
}
