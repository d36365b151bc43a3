//! The kernel's requests, by kind.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Counter, Histogram, Stats};

labels! {
    /// The kernel's requests that are answered with more than a constant.
    Operation {
        Lookup = "lookup",
        Getattr = "getattr",
        Open = "open",
        Read = "read",
        Readdir = "readdir",
        Readdirplus = "readdirplus",
        Getxattr = "getxattr",
    }
}

macro_rules! errnos {
    ($($name:ident)*) => { [$((libc::$name, stringify!($name))),*] };
}

/// Errors that programs see. An errno that is not listed counts as the last.
const ERRNOS: [(i32, &str); 11] = errnos! {
    ENOENT ENOTDIR EISDIR ENAMETOOLONG EACCES ESTALE ETIMEDOUT EINTR ENODATA EOPNOTSUPP EIO
};

#[derive(Debug, Default)]
pub struct Operations {
    took: [Histogram; Operation::ALL.len()],
    begun: [Counter; Operation::ALL.len()],
    errors: [Counter; ERRNOS.len()],
}

impl Operations {
    pub fn took(&self, operation: Operation) -> &Histogram {
        &self.took[operation as usize]
    }

    pub fn in_flight(&self, operation: Operation) -> u64 {
        let ended = self.took[operation as usize].count();
        self.begun[operation as usize].get().saturating_sub(ended)
    }

    pub fn failed(&self, errno: i32) {
        let known = ERRNOS.iter().position(|&(number, _)| number == errno);
        self.errors[known.unwrap_or(ERRNOS.len() - 1)].add(1);
    }

    /// The number of requests that were answered with each errno.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ERRNOS.iter().zip(&self.errors).map(|(&(_, name), count)| (name, count.get()))
    }
}

impl Stats {
    /// Notes a request of the kernel; dropping the result notes its answer.
    pub fn answering(self: &Arc<Self>, operation: Operation) -> Answering {
        self.fuse.begun[operation as usize].add(1);
        Answering { stats: Arc::clone(self), operation, begun: Instant::now() }
    }
}

/// A request of the kernel that is being answered.
pub struct Answering {
    stats: Arc<Stats>,
    operation: Operation,
    begun: Instant,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stats.fuse.took(self.operation).add(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_that_nobody_expected_counts_as_an_error() {
        let operations = Operations::default();
        operations.failed(libc::ESTALE);
        operations.failed(libc::ENOSPC);
        let errors: Vec<_> = operations.errors().filter(|&(_, count)| count > 0).collect();
        assert_eq!(errors, [("ESTALE", 1), ("EIO", 1)]);
    }
}
