//! Counters, histograms and tables of all that the mount does; nothing of ours is below this.
//!
//! They are added to on the path of every read, so nothing here locks or allocates: relaxed atomics
//! in tables of fixed size. A reader sees each number right, and no two at exactly the same moment.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// An enum whose values are labels of metrics and keys of status.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $label:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $value,)*
        }

        impl $name {
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$value),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $label,)*
                }
            }
        }
    };
}

mod buckets;
mod busiest;
mod counters;
mod histogram;
mod operations;
mod requests;

pub use buckets::BucketCounts;
pub use busiest::Busiest;
pub use counters::{Counter, Counters, Series, Snapshot};
pub use histogram::{Durations, Histogram};
pub use operations::{Answering, Operation, Operations};
pub use requests::{Outcome, RequestInFlight, RequestKind, Requests};

/// Totals since the mount; each only ever grows. The counters read like fields of this.
#[derive(Debug, Default)]
pub struct Stats {
    counters: Counters,
    /// From asking for a range to its first byte, pauses and retries included.
    pub first_byte: Histogram,
    /// Requests to the store, each attempt by itself.
    pub requests: Requests,
    /// Set if there are several buckets.
    pub buckets: OnceLock<Vec<Arc<BucketCounts>>>,
    pub fuse: Operations,
    /// Bytes served of each file, by inode number.
    pub files: Busiest,
    /// Bytes served to each thread, by the number that the kernel tells.
    pub threads: Busiest,
}

impl Deref for Stats {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}
