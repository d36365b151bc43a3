//! Names by path, for programs that say what they will use: no lookup of the kernel is counted.

use std::sync::Arc;

use super::asking::shared::{Names, now, shut_down};
use super::entries::{Ino, Inode, Listing, ROOT};
use super::known::Progress;
use super::rules::parent_and_name;
use crate::errno::FsError;

impl Names {
    /// What a path below the root names. Goes down from the root, so that nothing is remembered of
    /// directories that do not exist; waits for listings on the way that are under way.
    pub(crate) async fn find_path(self: &Arc<Self>, path: &str) -> Result<(Ino, Inode), FsError> {
        let mut prefix: Arc<str> = self.config.root_prefix.as_str().into();
        if path.is_empty() {
            return Ok((ROOT, Inode::Directory(prefix)));
        }
        let mut components = path.split('/').peekable();
        loop {
            let name = components.next().unwrap_or_default();
            let under_way = self.under_way(&prefix);
            if let Some(progress) = under_way {
                // What it lacks is looked up.
                let _ = whole(progress).await;
            }
            let answer = self.answer(&prefix, name.as_bytes()).await;
            self.known().directories.used_ahead(&prefix);
            let answer = answer?;
            let found = answer.found.ok_or(FsError::NotFound { ttl: answer.ttl })?;
            match found {
                found if components.peek().is_none() => return Ok(found),
                (_, Inode::Directory(below)) => prefix = below,
                (_, Inode::File(_) | Inode::Untold(_)) => return Err(FsError::NotADirectory),
            }
        }
    }

    /// All entries of a directory: the listing that is believed, or one that is made now, unless it
    /// is known that the directory does not exist.
    pub(crate) async fn listing(
        self: &Arc<Self>,
        prefix: &Arc<str>,
    ) -> Result<Arc<Listing>, FsError> {
        let progress = {
            let (mut state, now) = (self.state.lock(), now());
            if let Some((listing, _)) = state.known.directories.believed_listing(prefix, now) {
                return Ok(listing);
            }
            if **prefix != *self.config.root_prefix
                && let Some((parent, name)) = parent_and_name(prefix)
                && let Some(answer) = state.known.directories.answer(parent, name.as_bytes(), now)
                && !matches!(answer.found, Some((_, Inode::Directory(_))))
            {
                return Err(FsError::NotFound { ttl: answer.ttl });
            }
            self.listing_under_way(&mut state, prefix, now)
        };
        whole(progress).await
    }

    /// The prefix of the directory that a path below the root would name.
    pub(crate) fn prefix_of(&self, path: &str) -> Arc<str> {
        let slash = if path.is_empty() { "" } else { "/" };
        format!("{}{path}{slash}", self.config.root_prefix).into()
    }

    /// The path below the root of a key or prefix.
    pub(crate) fn path_below_root<'a>(&self, key: &'a str) -> Option<&'a str> {
        let path = key.strip_prefix(&self.config.root_prefix)?;
        Some(path.strip_suffix('/').unwrap_or(path))
    }

    /// Number of entries of a directory whose listing is believed. Sends no request.
    pub(crate) fn listed_entries(&self, prefix: &str) -> Option<usize> {
        let (listing, _) = self.known().directories.believed_listing(prefix, now())?;
        Some(listing.len())
    }

    fn under_way(&self, prefix: &str) -> Option<Progress> {
        self.known().directories.get(prefix)?.under_way().cloned()
    }
}

/// A listing when it is complete.
async fn whole(progress: Progress) -> Result<Arc<Listing>, FsError> {
    let mut cell = progress.cell;
    let shown = cell.wait_for(|shown| shown.outcome.is_some()).await;
    let outcome = shown.ok().and_then(|shown| shown.outcome.clone());
    outcome.unwrap_or_else(|| Err(shut_down().into()))
}
