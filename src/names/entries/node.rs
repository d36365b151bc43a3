//! An inode: its number, what it names, and what the kernel is told of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::store::ObjectMeta;

/// "Practically for ever", as a TTL for the kernel: ten years.
pub const FOREVER: Duration = Duration::from_hours(10 * 365 * 24);

/// An inode number: names one version of one object, or one directory; never reused while mounted.
pub type Ino = u64;

/// The root directory's inode number, as FUSE wants it.
pub const ROOT: Ino = 1;

/// What a number names.
#[derive(Clone, Debug)]
pub enum Inode {
    /// A directory, by its prefix: empty, or the path and a `/`.
    Directory(Arc<str>),
    /// A version of an object.
    File(Arc<ObjectMeta>),
}

/// Borrowed [`Inode`]: what a number is sought for.
#[derive(Clone, Copy, Debug)]
pub enum InodeRef<'a> {
    /// A directory, by its prefix.
    Directory(&'a str),
    /// A version of an object.
    File(&'a ObjectMeta),
}

impl Inode {
    /// Borrows it.
    pub fn by_ref(&self) -> InodeRef<'_> {
        match self {
            Self::Directory(prefix) => InodeRef::Directory(prefix),
            Self::File(meta) => InodeRef::File(meta),
        }
    }
}

impl<'a> InodeRef<'a> {
    /// The object's key, or the directory's prefix.
    pub fn key(self) -> &'a str {
        match self {
            Self::Directory(prefix) => prefix,
            Self::File(meta) => &meta.version.key,
        }
    }

    /// Whether one number may name both.
    ///
    /// `LastModified` is not asked: stores round it differently in a listing and in a HEAD, and
    /// bytes that were put again unchanged are worth keeping in the page cache.
    pub fn is_same(self, other: InodeRef<'_>) -> bool {
        match (self, other) {
            (Self::Directory(a), InodeRef::Directory(b)) => a == b,
            (Self::File(a), InodeRef::File(b)) => {
                a.version == b.version && a.archived == b.archived
            }
            _ => false,
        }
    }
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
