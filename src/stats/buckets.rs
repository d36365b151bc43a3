//! What became of the requests to each of several buckets.

use super::Counter;

#[derive(Debug, Default)]
pub struct BucketCounts {
    /// The bucket's directory in the root of the mount.
    pub directory: String,
    /// `s3://bucket/prefix/`
    pub source: String,
    pub answered: Counter,
    /// Given up, or refused.
    pub failed: Counter,
}
