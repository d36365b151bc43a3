//! Makes runs of entries from the pages of a listing, and notes what is hidden.
//!
//! One bad page fails the whole listing: a directory that silently lacks files is worse than an
//! error.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::run::EntryRun;
use crate::names::rules::{self, EntryKey, Hidden, Meaning};
use crate::store::{ListEntry, ListPage, StoreError};

/// A directory's entries on their way from pages to runs.
///
/// A directory hides an object of the same name (N3) and can come much later: every `a-…` lies
/// between `a` and `a/`. So an entry is shown only once it has *settled*: a key behind the
/// directory that might hide it has come.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    prefix: Arc<str>,
    /// In key order; the first of them has not settled.
    open: EntryRun,
    /// Objects in `open` that a directory may still hide, each one's name a beginning of the next.
    unsettled: Vec<usize>,
    /// Objects in `open` that are hidden.
    shadowed: Vec<usize>,
    shown: bool,
    marker: bool,
    hidden: Vec<HiddenKeys>,
}

/// Keys that a listing hides for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenKeys {
    pub reason: Hidden,
    /// A common prefix counts as one.
    pub count: usize,
    /// The first of them, in order, at most [`HiddenKeys::MOST_KEPT`]; none that is not UTF-8.
    pub keys: BTreeSet<String>,
}

impl HiddenKeys {
    /// 1,000 keys of 100 bytes are 100 KB for each directory and reason while it is being listed.
    pub const MOST_KEPT: usize = 1000;
}

/// The part of a complete listing that is not shown.
#[derive(Debug)]
pub(crate) struct Rest {
    /// One item for each reason.
    pub(crate) hidden: Vec<HiddenKeys>,
    /// N12: some key begins with the prefix.
    pub(crate) exists: bool,
}

impl Assembly {
    pub(crate) fn new(prefix: Arc<str>) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// Counts the keys of a page that it does not hold.
    pub(crate) fn count(&mut self, page: &ListPage) {
        for (reason, count) in
            [(Hidden::NotUtf8, page.undecodable), (Hidden::Foreign, page.foreign)]
        {
            if count > 0 {
                hide(&mut self.hidden, reason, count, None);
            }
        }
    }

    /// Some entries of a checked page, to be appended behind those before them.
    pub(crate) fn run(
        &mut self,
        page: &ListPage,
        share: Range<usize>,
    ) -> Result<EntryRun, StoreError> {
        let prefix = self.prefix.clone();
        let mut run = EntryRun::default();
        let mut directory = None;
        for entry in &page.entries[share] {
            let key = entry.key();
            match (rules::meaning(&prefix, entry), entry) {
                // A marker and its common prefix are one directory.
                (Some(Meaning::Directory(name)), _) if directory == Some(name) => {}
                (Some(Meaning::Directory(name)), _) => {
                    directory = Some(name);
                    run.push_directory(name)?;
                }
                (Some(Meaning::File(name)), ListEntry::Object(meta)) => {
                    run.push_file(name, meta)?;
                }
                (Some(Meaning::File(name)), ListEntry::Untold(_)) => run.push_untold(name)?,
                (Some(Meaning::Marker), _) => self.marker = true,
                (Some(Meaning::Hidden(reason)), _) => {
                    hide(&mut self.hidden, reason, 1, Some(key));
                }
                (Some(Meaning::File(_)) | None, _) => {
                    return Err(StoreError::nonsense(format!(
                        "{key:?} in a delimited listing of {prefix:?}"
                    )));
                }
            }
        }
        Ok(run)
    }

    /// Appends entries of a checked page and takes those that have settled.
    pub(crate) fn add(
        &mut self,
        page: &ListPage,
        share: Range<usize>,
    ) -> Result<EntryRun, StoreError> {
        let run = self.run(page, share)?;
        self.append(run)?;
        self.settled()
    }

    /// Appends entries that come behind all others.
    pub(crate) fn append(&mut self, run: EntryRun) -> Result<(), StoreError> {
        let open = self.open.len();
        self.open.append(run)?;
        for index in open..self.open.len() {
            let EntryKey { name, is_directory } = self.open.key(index);
            while let Some(last) = self.unsettled.last() {
                let object = self.open.key(*last).name;
                match name.strip_prefix(object) {
                    // `a` and `a-`: `a/` may follow.
                    Some([next, ..]) if *next < b'/' => break,
                    Some([]) if is_directory => {
                        let key = format!("{}{}", self.prefix, String::from_utf8_lossy(object));
                        self.shadowed.push(*last);
                        hide(&mut self.hidden, Hidden::ShadowedByDirectory, 1, Some(&key));
                    }
                    _ => {}
                }
                self.unsettled.pop();
            }
            if !is_directory {
                self.unsettled.push(index);
            }
        }
        Ok(())
    }

    pub(crate) fn settled(&mut self) -> Result<EntryRun, StoreError> {
        let settled = self.unsettled.first().copied().unwrap_or(self.open.len());
        if settled == 0 {
            return Ok(EntryRun::default());
        }
        // In the order of their directories, which is not that of the objects: `a-/` < `a/`.
        self.shadowed.sort_unstable();
        let open = self.open.split_off(settled);
        let mut shown = std::mem::replace(&mut self.open, open);
        let waiting = self.shadowed.split_off(self.shadowed.partition_point(|at| *at < settled));
        let shadowed = std::mem::replace(&mut self.shadowed, waiting);
        if !shadowed.is_empty() {
            let all = std::mem::take(&mut shown);
            for index in (0..settled).filter(|at| shadowed.binary_search(at).is_err()) {
                shown.push_copy(&all, index)?;
            }
        }
        for index in self.unsettled.iter_mut().chain(&mut self.shadowed) {
            *index -= settled;
        }
        shown.shrink();
        self.shown |= !shown.is_empty();
        Ok(shown)
    }

    /// Takes the rest, once the last entry has come.
    pub(crate) fn last(&mut self) -> Result<EntryRun, StoreError> {
        self.unsettled.clear();
        self.settled()
    }

    /// Memory of the entries that have not settled.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.open.memory_bytes()
    }

    pub(crate) fn rest(mut self) -> Rest {
        self.hidden.sort_unstable_by_key(|keys| keys.reason);
        let is_hidden = self.hidden.iter().any(|hidden| hidden.reason != Hidden::Foreign);
        let exists = self.shown || self.marker || is_hidden;
        Rest { hidden: self.hidden, exists }
    }
}

fn hide(hidden: &mut Vec<HiddenKeys>, reason: Hidden, count: usize, key: Option<&str>) {
    let at = hidden.iter().position(|hidden| hidden.reason == reason).unwrap_or_else(|| {
        hidden.push(HiddenKeys { reason, count: 0, keys: BTreeSet::new() });
        hidden.len() - 1
    });
    let hidden = &mut hidden[at];
    hidden.count += count;
    // Ranges are listed side by side, so the first to come need not be the first.
    hidden.keys.extend(key.map(str::to_owned));
    if hidden.keys.len() > HiddenKeys::MOST_KEPT {
        hidden.keys.pop_last();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_and_its_common_prefix_are_one_directory() {
        let entries = vec![
            ListEntry::Untold("a/b".to_owned()),
            ListEntry::Untold("p/".to_owned()),
            ListEntry::Prefix("p/".to_owned()),
            ListEntry::Untold("zz".to_owned()),
        ];
        let page = ListPage { entries, ..ListPage::default() };
        let run = Assembly::new("".into()).run(&page, 0..4).unwrap();
        let names: Vec<_> = (0..run.len()).map(|index| run.key(index)).collect();
        let key =
            |name: &'static str, is_directory| EntryKey { name: name.as_bytes(), is_directory };
        assert_eq!(names, [key("a", true), key("p", true), key("zz", false)]);
    }
}
