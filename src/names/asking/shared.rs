//! What all questions share: the store, the configuration, and what is known, under one lock.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::flight::Flight;
use super::plan::StartAfter;
use crate::names::known::directories::Directories;
use crate::names::known::inodes::Inodes;
use crate::names::known::numbers::{Known, Point};
use crate::store::{ObjectStore, StoreError};

/// Point answers that are kept, negative ones included: 100,000 of some 300 bytes are 30 MB.
const MAX_POINT_ANSWERS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// Listings that are made anew at once before their time. What finds no place is listed when it is
/// asked for: to walk through ten thousand directories at the end of their lives must not list each
/// of them.
const MOST_REFRESHES: usize = 4;

/// How names are kept.
#[derive(Clone, Debug)]
pub struct NamesConfig {
    /// Empty, or a key prefix that ends with `/`: the root directory.
    pub root_prefix: String,
    /// How long a listing or a point lookup is believed; `None` is for ever.
    pub metadata_ttl: Option<Duration>,
    /// How long a negative answer is believed in a directory that is not listed.
    pub negative_ttl: Duration,
    /// Wall-clock time of the mount: what tokio's clock counts directory mtimes from.
    pub mounted_at: SystemTime,
    /// Memory that all that is known of directories may take together: listings, complete or under
    /// way, and what goes with them. What is in use may take more.
    pub listings_bytes: usize,
    /// Keys a page may hold, 1 to 1000; less only in tests.
    pub page_keys: u16,
    /// Pages of one listing in flight at once; 1 lists sequentially.
    pub pages_at_once: usize,
}

pub(crate) type PointFlight = Flight<Result<Point, StoreError>>;

/// Everything behind the one lock, which is never held across an `.await`.
pub(crate) struct State {
    pub(crate) known: Known,
    pub(crate) lookups: HashMap<String, PointFlight>,
    /// What is known of the store.
    pub(crate) start_after: StartAfter,
}

impl State {
    /// A listing has found out how the store lists. That it does not begin where it is told to is
    /// not remembered: it may have been busy or out of reach.
    pub(crate) fn found_out(&mut self, start_after: StartAfter) {
        match (self.start_after, start_after) {
            (StartAfter::Untried, StartAfter::Works) => self.start_after = start_after,
            (known, StartAfter::Unordered) if known != start_after => {
                self.start_after = start_after;
                tracing::info!(
                    "the store does not list in key order: its directories are listed one page after \
                     the other, and shown when all of their pages are there"
                );
                // Some of it may rest on an order that there was not.
                self.known.directories.drop_all_names(Instant::now());
            }
            _ => {}
        }
    }
}

/// The names of a bucket, as inodes.
///
/// Its asynchronous methods need a tokio runtime, on which they start tasks.
pub struct Names {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) config: NamesConfig,
    pub(crate) state: Mutex<State>,
    /// Listings that are made anew before their time.
    pub(crate) refreshes: Arc<Semaphore>,
}

impl Names {
    /// The names of the bucket behind `store`; asks nothing yet.
    pub fn new(store: Arc<dyn ObjectStore>, config: NamesConfig) -> Arc<Self> {
        let (mounted_at, now) = (config.mounted_at, Instant::now());
        let (bytes, ttl) = (config.listings_bytes, config.metadata_ttl);
        let directories = Directories::new(mounted_at, now, bytes, ttl);
        let state = State {
            known: Known {
                inodes: Inodes::new(&config.root_prefix),
                directories,
                points: LruCache::new(MAX_POINT_ANSWERS),
            },
            lookups: HashMap::new(),
            start_after: StartAfter::Untried,
        };
        let refreshes = Arc::new(Semaphore::new(MOST_REFRESHES));
        Arc::new(Self { store, config, state: Mutex::new(state), refreshes })
    }

    pub(crate) fn known(&self) -> MappedMutexGuard<'_, Known> {
        MutexGuard::map(self.state.lock(), |state| &mut state.known)
    }
}

/// A task died before it had its answer.
pub(crate) fn shut_down() -> StoreError {
    StoreError::Unavailable("shutting down".to_owned())
}
