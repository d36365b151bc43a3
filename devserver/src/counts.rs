//! Counts of requests and of bytes sent.

use std::collections::VecDeque;
use std::ops::{Range, Sub};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Length of the log; older requests are dropped.
const LOG_ENTRIES: usize = 100_000;

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A page of a listing.
    List,
    /// HEAD of an object.
    Head,
    /// GET of an object or of a range of it.
    Get,
    /// Anything else: PUT, DELETE, HEAD of a bucket, …
    Other,
}

/// Totals since the server started or was last reset. Requests count when they arrive,
/// also those that are then refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages of listings asked for.
    pub list: u64,
    /// HEADs of objects.
    pub head: u64,
    /// GETs of objects.
    pub get: u64,
    /// All other requests.
    pub other: u64,
    /// Bytes of object content handed to connections. What a client no longer waited for can be
    /// counted too, up to about a megabyte a connection.
    pub body_bytes: u64,
    /// Connections accepted.
    pub connections: u64,
}

impl Counts {
    /// All requests together.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.list + self.head + self.get + self.other
    }
}

/// The difference of two snapshots: the later less the earlier.
impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            list: self.list - earlier.list,
            head: self.head - earlier.head,
            get: self.get - earlier.get,
            other: self.other - earlier.other,
            body_bytes: self.body_bytes - earlier.body_bytes,
            connections: self.connections - earlier.connections,
        }
    }
}

/// One request, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// Its kind.
    pub kind: Kind,
    /// The bucket, or nothing for a request about none.
    pub bucket: String,
    /// The object's key; of a listing, the prefix.
    pub key: String,
    /// The delimiter of a listing; empty for none.
    pub delimiter: String,
    /// The `Range` header, as sent.
    pub range: Option<String>,
}

impl LoggedRequest {
    /// The range as half-open offsets, if it has the form `bytes=first-last`.
    #[must_use]
    pub fn bytes(&self) -> Option<Range<u64>> {
        let (first, last) = self.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    list: AtomicU64,
    head: AtomicU64,
    get: AtomicU64,
    other: AtomicU64,
    body_bytes: AtomicU64,
    connections: AtomicU64,
    log: Mutex<VecDeque<LoggedRequest>>,
}

impl Counters {
    pub(crate) fn request(&self, request: LoggedRequest) {
        let counter = match request.kind {
            Kind::List => &self.list,
            Kind::Head => &self.head,
            Kind::Get => &self.get,
            Kind::Other => &self.other,
        };
        counter.fetch_add(1, Relaxed);
        let mut log = self.log.lock().expect("no panic while it is held");
        if log.len() == LOG_ENTRIES {
            log.pop_front();
        }
        log.push_back(request);
    }

    pub(crate) fn body(&self, bytes: u64) {
        self.body_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counts {
        self.read(|counter| counter.load(Relaxed))
    }

    pub(crate) fn reset(&self) {
        self.read(|counter| counter.swap(0, Relaxed));
        self.log.lock().expect("no panic while it is held").clear();
    }

    pub(crate) fn log(&self) -> Vec<LoggedRequest> {
        self.log.lock().expect("no panic while it is held").iter().cloned().collect()
    }

    fn read(&self, read: impl Fn(&AtomicU64) -> u64) -> Counts {
        Counts {
            list: read(&self.list),
            head: read(&self.head),
            get: read(&self.get),
            other: read(&self.other),
            body_bytes: read(&self.body_bytes),
            connections: read(&self.connections),
        }
    }
}
