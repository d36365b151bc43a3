//! Behaviour, in requests counted and answers given.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::asking::plan::ListingOrder;
use super::*;
use crate::store::StoreError;
use crate::testing::fault::{BadPage, Fault, FaultyStore, Operation};
use crate::testing::memory::{Counts, MemoryStore};

mod freshness;
mod kept;
mod listings;
mod lookups;
mod walks;

const TTL: Duration = Duration::from_mins(1);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

struct Mount {
    memory: Arc<MemoryStore>,
    faults: Arc<FaultyStore>,
    names: Arc<Names>,
}

fn mount_with(keys: &[&str], adjust: impl FnOnce(&mut NamesConfig)) -> Mount {
    let memory = Arc::new(MemoryStore::new());
    for key in keys {
        memory.put(key, "x");
    }
    let faults = Arc::new(FaultyStore::new(memory.clone()));
    let mut config = NamesConfig {
        root_prefix: String::new(),
        metadata_ttl: Some(TTL),
        negative_ttl: NEGATIVE_TTL,
        listings_bytes: usize::MAX,
        page_keys: 1000,
        pages_at_once: 4,
        is_unordered: false,
    };
    adjust(&mut config);
    let names = Names::new(faults.clone(), config);
    Mount { memory, faults, names }
}

fn mount(keys: &[&str]) -> Mount {
    mount_with(keys, |_| ())
}

fn mount_with_ttl(keys: &[&str], ttl: Option<Duration>) -> Mount {
    mount_with(keys, |config| {
        config.metadata_ttl = ttl;
    })
}

/// Whatever a test has done, what is held is what was counted.
impl Drop for Mount {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (counted, there) = self.names.known().directories.charged_bytes();
            assert_eq!(counted, there, "bytes of names");
        }
    }
}

impl Mount {
    fn charged_bytes(&self) -> usize {
        self.names.known().directories.charged_bytes().0
    }

    async fn look(&self, path: &str) -> Result<Node, FsError> {
        let (mut ino, mut node) = (ROOT, Err(FsError::Stale));
        for name in path.split('/') {
            node = self.names.lookup(ino, name.as_bytes()).await;
            ino = node.as_ref().map_err(Clone::clone)?.ino;
        }
        node
    }

    async fn ino(&self, path: &str) -> Ino {
        self.look(path).await.expect("the path exists").ino
    }

    async fn scan(&self, ino: Ino, cookie: u64) -> Result<Vec<(String, Ino, u64)>, FsError> {
        let entry = |entry: ScanEntry<'_>| {
            (String::from_utf8_lossy(entry.name).into_owned(), entry.ino, entry.cookie)
        };
        let mut entries: Vec<(String, Ino, u64)> = Vec::new();
        loop {
            let cookie = entries.last().map_or(cookie, |last| last.2);
            let scan = self.names.read_directory(ino, cookie).await?;
            let before = entries.len();
            entries.extend(scan.iter().map(entry));
            if entries.len() == before {
                return Ok(entries);
            }
        }
    }

    async fn list(&self, ino: Ino) -> Result<Vec<String>, FsError> {
        Ok(self.scan(ino, 0).await?.into_iter().skip(2).map(|(name, ..)| name).collect())
    }

    fn mtime(&self, ino: Ino) -> SystemTime {
        let node = self.names.attributes(ino).expect("known");
        match node.inode {
            Inode::Directory(_) => node.mtime,
            Inode::File(_) | Inode::Untold(_) => panic!("a file"),
        }
    }

    /// The kernel asks before it uses its pages of a directory, and drops them if they are old.
    fn pages_are_old(&self, ino: Ino) -> bool {
        let old = self.names.old_pages(ino);
        if let Some(old) = old {
            assert_eq!(self.names.attributes(ino).expect("known").attr_ttl, Duration::ZERO);
            self.names.pages_dropped(ino, old);
        }
        old.is_some()
    }

    fn requests(&self) -> (u64, u64) {
        let Counts { lists, heads, .. } = self.memory.counts();
        (lists, heads)
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Lets background work that needs no time come to its end.
async fn settle() {
    pass(Duration::from_millis(1)).await;
}

fn is_absent(answer: &Result<Node, FsError>) -> bool {
    matches!(answer, Err(FsError::NotFound { .. }))
}

/// Pages of two names, one after the other, a second each.
fn slow_mount(keys: &[&str]) -> Mount {
    let mount = mount_with(keys, |config| {
        config.page_keys = 2;
        config.pages_at_once = 1;
    });
    mount.faults.delay(Operation::List, Duration::from_secs(1));
    mount
}

impl Mount {
    /// One piece of a scan: names, and the cookie behind them.
    async fn piece(&self, ino: Ino, cookie: u64) -> Result<(Vec<String>, u64), FsError> {
        let scan = self.names.read_directory(ino, cookie).await?;
        let name = |entry: ScanEntry<'_>| String::from_utf8_lossy(entry.name).into_owned();
        let behind = scan.iter().last().map_or(cookie, |last| last.cookie);
        let names = scan.iter().map(name).filter(|name| !name.starts_with('.'));
        Ok((names.collect(), behind))
    }
}
