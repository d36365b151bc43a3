//! An S3 server for the demo, the tests and the benchmarks of fasts3-mount. It answers what a
//! read-only client asks exactly as S3 does, from memory or from bytes computed on the way, as
//! fast or as slowly as it is told to, and counts what it was asked.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! let server = devserver::Server::builder().start_blocking()?;
//! let bucket = server.bucket("data");
//! bucket.put("a/b", "hello");
//! bucket.put_synthetic("big", 10 << 30);
//! assert_eq!(&bucket.bytes("a/b", 1..3)[..], b"el");
//! println!("{}", server.endpoint_url());
//! assert_eq!(server.counts().requests(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! From the bottom up: [`content`] computes bytes; `objects` holds a bucket's objects in key order
//! and `listing` cuts pages from them, both pure; `bucket`, `settings` and `counts` are what tests
//! set and read; `body` streams an object; `service` is the S3 operations and `auth` the right to
//! call them, both for s3s, which does routing, signatures and XML; `sessions` are those of
//! directory buckets; `gate` stands around s3s, `net` and `tls` around connections, `log` tells
//! when each wrote, and `server` starts it all.
//! [`proxy`] stands apart: it breaks answers on their way to the client.

pub mod content;
pub mod proxy;

mod auth;
mod body;
mod bucket;
mod counts;
mod gate;
mod listing;
mod log;
mod net;
mod objects;
mod pattern;
mod server;
mod service;
mod sessions;
mod settings;
mod target;
mod tls;

pub use bucket::{Bucket, ObjectInfo};
pub use counts::{Counts, Kind, LoggedRequest};
pub use objects::Family;
pub use pattern::Pattern;
pub use server::{Builder, Credentials, Server};

/// The access key id that signatures must be made with.
pub const ACCESS_KEY: &str = "AKIADEVSERVER0000000";
/// The secret key that signatures must be made with.
pub const SECRET_KEY: &str = "devserver/secret/key/known/to/everybody0";
/// The region that the endpoint is in, as far as requests without a signature are concerned.
pub const ENDPOINT_REGION: &str = "us-east-1";
