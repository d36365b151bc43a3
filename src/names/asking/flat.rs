//! What pages of a listing without a delimiter prove of the directories in it. Pure.
//!
//! All keys of a directory, those further down included, stand together. So a key proves that each
//! directory on its path exists, and a directory behind which a key or the end of the listing has
//! come is known completely.
//!
//! Each directory's keys are rolled up at the next `/`, as the store does it for a delimiter, and
//! go through the same [`Assembly`].

use std::sync::Arc;

use crate::names::entries::{Assembly, EntryRun, Rest};
use crate::names::rules::{self, Meaning};
use crate::store::{ListEntry, ListPage, StoreError};

/// Deeper levels are not opened: 1,000 keys of 1,024 bytes may hold half a million directories.
const DEEPEST: usize = 16;

/// Undelimited pages of one prefix, in their order.
pub(crate) struct Flat {
    /// The prefix, and below it the directories that the last key stands in.
    open: Vec<OpenDirectory>,
    /// A directory that was left in its middle; its keys are skipped.
    left: Option<String>,
    /// The pages do not begin at the first key of the prefix, so it is never known completely.
    begun_behind: bool,
}

/// A directory whose end has not come.
struct OpenDirectory {
    assembly: Assembly,
    prefix: Arc<str>,
    /// Its entries on this page, rolled up.
    entries: Vec<ListEntry>,
    /// The last directory that was rolled up.
    rolled_up: String,
    runs: Vec<EntryRun>,
    keys: usize,
}

/// A directory that was seen whole.
pub(crate) struct Proved {
    pub(crate) prefix: Arc<str>,
    /// Without inode numbers.
    pub(crate) runs: Vec<EntryRun>,
    pub(crate) rest: Rest,
    /// Number of keys in and below it.
    pub(crate) keys: usize,
}

impl Flat {
    /// Pages that begin at the first key of the directory `prefix`.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { open: vec![OpenDirectory::new(prefix.into())], left: None, begun_behind: false }
    }

    /// Pages that begin between two names of the directory `prefix`.
    pub(crate) fn begun_behind(prefix: &str) -> Self {
        Self { begun_behind: true, ..Self::new(prefix) }
    }

    /// Takes the next page, checked, and gives the directories that end on it, in the order of
    /// their ends. Keys that cannot be decoded are an error, because their places are unknown.
    pub(crate) fn add(&mut self, page: ListPage) -> Result<Vec<Proved>, StoreError> {
        if page.undecodable > 0 {
            return Err(StoreError::nonsense("keys that are not UTF-8".to_owned()));
        }
        let mut proved = Vec::new();
        for entry in page.entries {
            if self.left.as_ref().is_some_and(|left| entry.key().starts_with(left)) {
                continue;
            }
            while let [_, .., last] = &*self.open
                && !entry.key().starts_with(&*last.prefix)
            {
                proved.extend(self.open.pop().map(OpenDirectory::end).transpose()?);
            }
            self.put(entry);
        }
        for open in &mut self.open {
            open.flush()?;
        }
        Ok(proved)
    }

    /// The listing is over, and so are all directories.
    pub(crate) fn end(mut self) -> Result<Vec<Proved>, StoreError> {
        let complete = usize::from(self.begun_behind)..self.open.len();
        self.open.drain(complete).rev().map(OpenDirectory::end).collect()
    }

    /// The directories that the last key stands in, below the prefix, outermost first.
    pub(crate) fn in_middle_of(&self) -> impl Iterator<Item = &Arc<str>> {
        self.open[1..].iter().map(|open| &open.prefix)
    }

    /// The directory right below the prefix that the last key stands in, and its keys so far.
    pub(crate) fn in_child(&self) -> Option<(&Arc<str>, usize)> {
        self.open.get(1).map(|open| (&open.prefix, open.keys))
    }

    /// Leaves the directory of [`Self::in_child`]; the next page may begin behind it.
    pub(crate) fn leave_child(&mut self) {
        if let Some(child) = self.open.drain(1..).next() {
            self.left = Some(child.prefix.to_string());
        }
    }

    fn put(&mut self, entry: ListEntry) {
        for open in &mut self.open {
            open.keys += 1;
        }
        loop {
            let (depth, open) = (self.open.len(), self.open.last_mut().expect("never closed"));
            let key = entry.key();
            let Some(slash) = key[open.prefix.len()..].find('/') else {
                open.entries.push(entry);
                return;
            };
            let directory = &key[..=open.prefix.len() + slash];
            if open.rolled_up == directory {
                // Too deep, or hidden.
                return;
            }
            directory.clone_into(&mut open.rolled_up);
            let rolled_up = ListEntry::Prefix(directory.to_owned());
            let meaning = rules::meaning(&open.prefix, &rolled_up);
            let is_opened = depth <= DEEPEST && matches!(meaning, Some(Meaning::Directory(_)));
            open.entries.push(rolled_up);
            if !is_opened {
                return;
            }
            self.open.push(OpenDirectory { keys: 1, ..OpenDirectory::new(directory.into()) });
        }
    }
}

impl OpenDirectory {
    fn new(prefix: Arc<str>) -> Self {
        Self {
            assembly: Assembly::new(prefix.clone()),
            prefix,
            entries: Vec::new(),
            rolled_up: String::new(),
            runs: Vec::new(),
            keys: 0,
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.entries);
        let page = ListPage { entries, ..ListPage::default() };
        self.runs.push(self.assembly.add(&page, 0..page.entries.len())?);
        Ok(())
    }

    fn end(mut self) -> Result<Proved, StoreError> {
        self.flush()?;
        self.runs.push(self.assembly.last()?);
        self.runs.retain(|run| !run.is_empty());
        let Self { prefix, runs, keys, .. } = self;
        Ok(Proved { prefix, runs, rest: self.assembly.rest(), keys })
    }
}

#[cfg(test)]
mod tests;
