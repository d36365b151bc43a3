//! Hints by inode number or by path: from what a program names to the objects that are queued.

use std::collections::BTreeSet;
use std::ops::{AddAssign, Range};
use std::pin::pin;
use std::sync::Arc;

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::BucketFs;
use crate::cache::Source;
use crate::names::{Ino, Inode, Names};
use crate::readahead::hints::{Hints, TellerId};
use crate::store::{ObjectMeta, ObjectStore};

/// Touches that are looked up at once: a round trip for each level of a tree whose directories are
/// listed together.
const LOOKED_UP_AT_ONCE: usize = 64;

/// Touches of which the directories are listed together, before the files are looked up.
const TAKEN_AT_ONCE: usize = 4096;

/// What a program touched, or will touch. Paths are below the root of the mount, without a slash at
/// their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The names in a directory.
    Names(String),
    Bytes(String, Range<u64>),
    /// A file, or the files of a directory.
    Whole(String),
}

/// What became of a list of touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hinted {
    /// Files, or ranges of files, that are queued, cached or being fetched.
    pub files: u64,
    pub directories: u64,
    /// Paths that lead to nothing that can be read.
    pub missing: u64,
    /// Files that found the queue full.
    pub refused: u64,
}

impl AddAssign for Hinted {
    fn add_assign(&mut self, more: Self) {
        self.files += more.files;
        self.directories += more.directories;
        self.missing += more.missing;
        self.refused += more.refused;
    }
}

impl BucketFs {
    /// Queues a file, or the files of a directory once it is listed, without waiting for anything.
    /// Returns the number of files that now wait or are being fetched, and their bytes (X5).
    pub(super) fn prefetch(&self, ino: Ino, inode: Inode, teller: TellerId) -> String {
        let told = Hinting::new(self, teller);
        let mut telling = async move { told.hint((ino, inode), None).await }.boxed();
        // A listing that is believed needs no task.
        if telling.as_mut().now_or_never().is_none() {
            tokio::spawn(telling);
        }
        let (files, bytes) = self.readahead.hints.waiting();
        // Programs ask for its length first.
        format!("{files:>6} {bytes:>20}")
    }

    /// Has the names of directories listed, and queues files in the order of the list. Waits for
    /// names, and for no byte of a file.
    pub async fn prefetch_all(
        &self,
        touches: impl Stream<Item = Touch>,
        teller: TellerId,
    ) -> Hinted {
        let (names, told) = (&self.names, &Hinting::new(self, teller));
        let mut taken = pin!(touches.chunks(TAKEN_AT_ONCE));
        let mut all = Hinted::default();
        while let Some(touches) = taken.next().await {
            let (mut directories, mut files) = (BTreeSet::new(), Vec::new());
            for touch in touches {
                match touch {
                    Touch::Names(path) => _ = directories.insert(names.prefix_of(&path)),
                    Touch::Bytes(path, range) => files.push((path, Some(range))),
                    Touch::Whole(path) => files.push((path, None)),
                }
            }
            let wanted = directories.len() as u64;
            let directories = names.list_all(directories).await;
            all += Hinted { directories, missing: wanted - directories, ..Hinted::default() };
            let look_up = |(path, range): (String, _)| async move {
                names.find_path(&path).await.map(|found| (found, range))
            };
            let mut found = pin!(stream::iter(files).map(look_up).buffered(LOOKED_UP_AT_ONCE));
            while let Some(found) = found.next().await {
                all += match found {
                    Ok((found, range)) => told.hint(found, range).await,
                    Err(_) => Hinted { missing: 1, ..Hinted::default() },
                };
            }
        }
        self.stats.hints_missing.add(all.missing);
        all
    }
}

/// What hints of a teller go through.
struct Hinting {
    names: Arc<Names>,
    hints: Arc<Hints>,
    store: Arc<dyn ObjectStore>,
    teller: TellerId,
}

impl Hinting {
    fn new(fs: &BucketFs, teller: TellerId) -> Self {
        let (names, hints) = (fs.names.clone(), fs.readahead.hints.clone());
        Self { names, hints, store: fs.store.clone(), teller }
    }

    /// Queues a range of a file, all of it, or all files of a directory.
    async fn hint(&self, (ino, inode): (Ino, Inode), range: Option<Range<u64>>) -> Hinted {
        let mut all = Hinted::default();
        match inode {
            Inode::File(meta) => _ = self.hint_file(&mut all, ino, meta, range).await,
            Inode::Directory(prefix) => match self.names.listing(&prefix).await {
                Ok(listing) => {
                    for index in 0..listing.len() {
                        if let Inode::File(meta) = listing.inode(index)
                            && !self.hint_file(&mut all, listing.ino(index), meta, None).await
                        {
                            // The others would not find room either.
                            break;
                        }
                    }
                    all.directories += 1;
                }
                Err(_) => all.missing += 1,
            },
            // What its listing does not tell is asked for when it is read.
            Inode::Untold(_) => all.missing += 1,
        }
        all
    }

    /// False if there is no room.
    async fn hint_file(
        &self,
        all: &mut Hinted,
        id: Ino,
        meta: Arc<ObjectMeta>,
        range: Option<Range<u64>>,
    ) -> bool {
        // What is a file of this machine needs no copy in memory; the kernel may read it by itself.
        let is_local = match self.store.local_copy(&meta.version) {
            Some(copy) => copy.file().await.is_some(),
            None => false,
        };
        let range = range.unwrap_or(0..meta.version.size_bytes);
        let is_taken = is_local || self.hints.tell(self.teller, Source { id, meta }, range);
        *(if is_taken { &mut all.files } else { &mut all.refused }) += 1;
        is_taken
    }
}

#[cfg(test)]
mod tests;
