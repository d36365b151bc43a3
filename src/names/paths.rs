//! Names by path, for programs that say what they will use: no lookup of the kernel is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};

use super::asking::plan::ListingOrder;
use super::asking::shared::{Names, State, now, shut_down};
use super::entries::{Ino, Inode, Listing, ROOT};
use super::known::{Ahead, Progress};
use super::rules::parent_and_name;
use crate::errno::FsError;

/// Directories of one parent are listed together if they are so many: then some of its other
/// directories may lie between them, and requests are saved all the same.
const LEAST_TOGETHER: usize = 16;

/// So many in one run, whose pages come one after the other. A page of 1,000 keys is enough for as
/// many small ones, and other runs are under way beside it.
const MOST_TOGETHER: usize = 128;

/// Directories of a run that justify another page.
const PER_PAGE: usize = 16;

/// Requests under way for a list of directories; and of a run that has failed, for each of its
/// directories.
const GROUPS_AT_ONCE: usize = 64;
const SINGLY_AT_ONCE: usize = 8;

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
            if let Some(known) = self.known_listing(&mut state, prefix, now) {
                return known;
            }
            self.listing_under_way(&mut state, prefix, now)
        };
        whole(progress).await
    }

    fn known_listing(
        &self,
        state: &mut State,
        prefix: &Arc<str>,
        now: Instant,
    ) -> Option<Result<Arc<Listing>, FsError>> {
        let directories = &mut state.known.directories;
        if let Some((listing, _)) = directories.believed_listing(prefix, now) {
            return Some(Ok(listing));
        }
        let (parent, name) = parent_and_name(prefix)?;
        if **prefix == *self.config.root_prefix {
            return None;
        }
        let answer = directories.answer(parent, name.as_bytes(), now)?;
        let is_there = matches!(answer.found, Some((_, Inode::Directory(_))));
        (!is_there).then_some(Err(FsError::NotFound { ttl: answer.ttl }))
    }

    /// Has directories listed, and gives the number of those that are there. Many of one parent are
    /// listed together, with what is below them, in pages without a delimiter.
    pub(crate) async fn list_all(self: &Arc<Self>, directories: BTreeSet<Arc<str>>) -> u64 {
        let (mut there, mut left) = (0, directories);
        while !left.is_empty() {
            let (groups, below) = groups(left);
            let names = self.clone();
            let listed = stream::iter(groups).map(move |group| names.clone().list_group(group));
            there += listed.buffer_unordered(GROUPS_AT_ONCE).fold(0, async |a, b| a + b).await;
            left = below;
        }
        there
    }

    /// Directories of one parent, in key order.
    async fn list_group(self: Arc<Self>, group: Vec<Arc<str>>) -> u64 {
        self.list_together(&group);
        let listed = stream::iter(group).map(move |directory| {
            let names = self.clone();
            async move { u64::from(names.listing(&directory).await.is_ok()) }
        });
        listed.buffer_unordered(SINGLY_AT_ONCE).fold(0, async |a, b| a + b).await
    }

    /// Begins to list those of a group of which nothing is known, if they are enough.
    fn list_together(self: &Arc<Self>, group: &[Arc<str>]) {
        let (mut state, now) = (self.state.lock(), now());
        if state.flat_denied || state.order == ListingOrder::Unordered {
            return;
        }
        let mut directories = group.to_vec();
        directories.retain(|directory| {
            self.known_listing(&mut state, directory, now).is_none()
                && !state.known.directories.needs_nothing(directory, now)
        });
        let most_pages = directories.len() / PER_PAGE;
        let parent = directories.first().and_then(|first| parent_and_name(first));
        if let Some((parent, _)) = parent.filter(|_| directories.len() >= LEAST_TOGETHER) {
            let parent = parent.into();
            let run = Ahead::Together { parent, directories, most_pages };
            self.list_ahead(&mut state, vec![run], now);
        }
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

/// Directories that may be listed together, and those below them, which may come with them.
fn groups(wanted: BTreeSet<Arc<str>>) -> (Vec<Vec<Arc<str>>>, BTreeSet<Arc<str>>) {
    let parent = |directory: &str| parent_and_name(directory).map(|(parent, _)| parent.into());
    let mut children: HashMap<Arc<str>, usize> = HashMap::new();
    for parent in wanted.iter().filter_map(|directory| parent(directory)) {
        *children.entry(parent).or_default() += 1;
    }
    let (mut groups, mut runs) = (Vec::new(), BTreeMap::<Arc<str>, Vec<_>>::new());
    let (mut below, mut above) = (BTreeSet::new(), None::<Arc<str>>);
    for directory in wanted {
        let is_below = above.as_ref().is_some_and(|above| directory.starts_with(&**above));
        match parent(&directory) {
            _ if is_below => _ = below.insert(directory),
            Some(parent) if children[&parent] >= LEAST_TOGETHER => {
                above = Some(directory.clone());
                runs.entry(parent).or_default().push(directory);
            }
            _ => groups.push(vec![directory]),
        }
    }
    for run in runs.into_values() {
        let length = run.len().div_ceil(run.len().div_ceil(MOST_TOGETHER));
        groups.extend(run.chunks(length).map(<[_]>::to_vec));
    }
    (groups, below)
}

/// A listing when it is complete.
async fn whole(progress: Progress) -> Result<Arc<Listing>, FsError> {
    let mut cell = progress.cell;
    let shown = cell.wait_for(|shown| shown.outcome.is_some()).await;
    let outcome = shown.ok().and_then(|shown| shown.outcome.clone());
    outcome.unwrap_or_else(|| Err(shut_down().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_of_one_parent_are_groups_and_what_is_below_them_comes_later() {
        let neighbours = |number| (0..number).map(|number| format!("d/{number:03}/"));
        let below = neighbours(3).map(|directory| format!("{directory}x/"));
        let others = ["", "a/", "a/b/", "d/", "d/000-/y/", "e/"].map(str::to_owned);
        let wanted = |number| {
            let all = neighbours(number).chain(below.clone()).chain(others.clone());
            all.map(Arc::from).collect::<BTreeSet<Arc<str>>>()
        };
        let lengths = |groups: &[Vec<_>]| groups.iter().map(Vec::len).collect::<Vec<_>>();
        let (found, later) = groups(wanted(200));
        assert_eq!(lengths(&found), [1, 1, 1, 1, 1, 1, 100, 100]);
        assert!(found[6].is_sorted() && found[6][99] < found[7][0]);
        assert_eq!(later, below.clone().map(Arc::from).collect());
        let (found, later) = groups(wanted(LEAST_TOGETHER - 1));
        assert_eq!((found.len(), later.len()), (15 + 3 + 6, 0));
        assert_eq!(groups(BTreeSet::new()), (Vec::new(), BTreeSet::new()));
    }
}
