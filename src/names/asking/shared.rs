//! What all questions share: the store, the configuration, and what is known, under one lock.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};

use super::plan::ListingOrder;
use crate::errno::FsError;
use crate::names::known::{Directories, Inodes, Known, PointAnswer};
use crate::names::rules;
use crate::store::{ObjectStore, StoreError};

/// Point answers that are kept, negative ones included: 100,000 of some 300 bytes are 30 MB.
const MAX_POINT_ANSWERS: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");

/// Listings that are renewed at once before they expire. A walk through ten thousand directories at
/// the end of their lives must not list each of them.
const MOST_REFRESHES: usize = 4;

#[derive(Clone, Debug)]
pub struct NamesConfig {
    /// Empty, or a key prefix that ends with `/`: the root directory.
    pub root_prefix: String,
    /// Life of a listing or a point lookup; `None` is forever.
    pub metadata_ttl: Option<Duration>,
    /// Life of a negative answer in a directory that is not listed.
    pub negative_ttl: Duration,
    /// Limit on the memory of listings and what else is known of directories. A listing in use may
    /// exceed it.
    pub listings_bytes: usize,
    /// Keys a page may hold, 1 to 1000; less only in tests.
    pub page_keys: u16,
    /// Pages of one listing in flight at once; 1 lists sequentially.
    pub pages_at_once: usize,
    /// The store is known to list in no order.
    pub is_unordered: bool,
}

/// A single lookup under way, for all callers that ask for the same key. Its task runs to its end
/// even without callers, because what it learns is worth keeping.
#[derive(Clone)]
pub(crate) struct PointLookup {
    /// Callers that come after the directory's names were dropped must not get older answers.
    pub(super) epoch: u64,
    outcome: watch::Receiver<Option<PointOutcome>>,
}

pub(super) type PointOutcome = Result<PointAnswer, FsError>;

impl PointLookup {
    pub(super) fn new(epoch: u64) -> (Self, watch::Sender<Option<PointOutcome>>) {
        let (sender, outcome) = watch::channel(None);
        (Self { epoch, outcome }, sender)
    }

    /// There is or will be an outcome: the task has not died.
    pub(super) fn is_alive(&self) -> bool {
        self.outcome.has_changed().is_ok() || self.outcome.borrow().is_some()
    }

    pub(crate) async fn outcome(mut self) -> PointOutcome {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(|| Err(shut_down().into()))
    }
}

/// Everything behind the one lock, which is never held across an `.await`.
pub(crate) struct State {
    pub(crate) known: Known,
    pub(crate) lookups: HashMap<String, PointLookup>,
    pub(crate) order: ListingOrder,
    /// Listings without a delimiter are denied, as by policies with the condition `s3:delimiter`.
    pub(crate) flat_denied: bool,
}

impl State {
    /// Where a listing with a delimiter is allowed, one without was denied.
    pub(super) fn flat_is_denied(&mut self) {
        if !std::mem::replace(&mut self.flat_denied, true) {
            tracing::info!(
                "listings without a delimiter are denied: directories are listed one by one, and a \
                 tree of small ones takes a request for each"
            );
        }
    }

    /// The lookup of a directory itself that is under way, because a name was looked up in it.
    pub(crate) fn entering(&self, prefix: &str) -> Option<PointLookup> {
        let (parent, _) = rules::parent_and_name(prefix)?;
        let lookup = self.lookups.get(prefix.strip_suffix('/')?)?;
        let is_current = self.known.directories.is_current(parent, lookup.epoch);
        (lookup.is_alive() && is_current).then(|| lookup.clone())
    }

    /// A listing has found out how the store lists. `Sequential` is not remembered: the store may
    /// have been busy or out of reach.
    pub(crate) fn found_out(&mut self, order: ListingOrder) {
        match (self.order, order) {
            (ListingOrder::Unknown, ListingOrder::Seekable) => self.order = order,
            (known, ListingOrder::Unordered) if known != order => {
                self.order = order;
                tracing::info!(
                    "the store does not list in key order: its directories are listed one page \
                     after the other, and shown when all of their pages are there"
                );
                // Some may rest on a wrong order.
                self.known.directories.drop_all_names();
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
    pub(crate) refreshes: Arc<Semaphore>,
}

impl Names {
    /// Sends no request yet.
    pub fn new(store: Arc<dyn ObjectStore>, config: NamesConfig) -> Arc<Self> {
        let NamesConfig { listings_bytes, metadata_ttl, .. } = config;
        let root = config.root_prefix.as_str().into();
        let directories = Directories::new(root, listings_bytes, metadata_ttl);
        let order =
            if config.is_unordered { ListingOrder::Unordered } else { ListingOrder::Unknown };
        let state = State {
            known: Known {
                inodes: Inodes::new(&config.root_prefix),
                directories,
                points: LruCache::new(MAX_POINT_ANSWERS),
            },
            lookups: HashMap::new(),
            order,
            flat_denied: false,
        };
        let refreshes = Arc::new(Semaphore::new(MOST_REFRESHES));
        Arc::new(Self { store, config, state: Mutex::new(state), refreshes })
    }

    pub(crate) fn known(&self) -> MappedMutexGuard<'_, Known> {
        MutexGuard::map(self.state.lock(), |state| &mut state.known)
    }
}

/// The one clock of names: tokio's, which tests can pause.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The error of callers whose task has died.
pub(crate) fn shut_down() -> StoreError {
    StoreError::Unavailable("shutting down".to_owned())
}
