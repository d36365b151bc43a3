//! Lists neighbouring directories together, ahead of a walk, in pages without a delimiter.
//!
//! Every directory of a run has a listing under way from the beginning, so a program that comes to
//! one waits for the run. A directory that the run does not reach, because a page failed or another
//! directory was large, gets a listing of its own if a caller waits for it; else none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::flat::{Flat, Proved};
use super::plan::ListingOrder;
use super::shared::{Names, State, now};
use crate::names::entries::Rest;
use crate::names::known::{Ahead, ListingWriter};
use crate::store::{ListFrom, ListPage, ListRequest, Nonsense, StoreError, check_page};

/// Pages of one directory after which the run skips it.
const LARGE_PAGES: usize = 2;

struct AheadRun {
    names: Arc<Names>,
    parent: Arc<str>,
    /// The listings that are not over.
    open: BTreeMap<Arc<str>, ListingWriter>,
    asked: Instant,
    epoch: u64,
    /// Keys in and below the directories of the run that were seen whole, and their number.
    measured: (usize, usize),
}

impl Names {
    pub(crate) fn list_ahead(self: &Arc<Self>, state: &mut State, ahead: Vec<Ahead>, now: Instant) {
        for ahead in ahead {
            match ahead {
                Ahead::Single(directory) => {
                    self.listing_under_way(state, &directory, now);
                }
                Ahead::Together { .. } if state.order == ListingOrder::Unordered => {}
                Ahead::Together { parent, directories, most_pages } => {
                    let Some(first) = directories.first().cloned() else { continue };
                    let epoch = state.known.directories.epoch();
                    let open = directories.into_iter().map(|directory| {
                        let writer = state.known.directories.begin(&directory, now);
                        (directory, writer)
                    });
                    let (open, names) = (open.collect(), self.clone());
                    let (asked, measured) = (now, (0, 0));
                    let run = AheadRun { names, parent, open, asked, epoch, measured };
                    tokio::spawn(run.list(first, most_pages));
                }
            }
        }
    }
}

impl AheadRun {
    async fn list(mut self, first: Arc<str>, most_pages: usize) {
        let mut flat = Flat::begun_behind(&self.parent);
        // Right before the first directory, so that no file before it is listed.
        let mut last = first.strip_suffix('/').unwrap_or(&first).to_owned();
        let mut from = ListFrom::After(last.clone());
        let large_keys = LARGE_PAGES * usize::from(self.names.config.page_keys);
        for _ in 0..most_pages {
            let page = match self.page(from).await {
                Ok(page) => page,
                Err(error) => {
                    match error {
                        StoreError::Nonsense(Nonsense::Unordered(_)) => {
                            self.names.state.lock().found_out(ListingOrder::Unordered);
                        }
                        // The parent's own listing was allowed.
                        StoreError::Denied(_) => self.names.state.lock().flat_is_denied(),
                        _ => {}
                    }
                    tracing::debug!(directory = &*self.parent, %error, "listing ahead failed");
                    break;
                }
            };
            let next = page.next.clone();
            if let Some(entry) = page.entries.last() {
                entry.key().clone_into(&mut last);
            }
            let Ok(proved) = flat.add(page) else { break };
            self.ends(proved);
            let Some(token) = next else {
                if let Ok(proved) = flat.end() {
                    self.ends(proved);
                    self.are_gone(|_| true);
                }
                break;
            };
            self.are_gone(|directory| *last > *directory && !last.starts_with(directory));
            if self.open.is_empty() {
                break;
            }
            from = match flat.in_child() {
                Some((child, keys)) if keys > large_keys => {
                    self.leave(child);
                    // Behind every name that a key of the directory is likely to have.
                    last = format!("{child}\u{10ffff}");
                    flat.leave_child();
                    ListFrom::After(last.clone())
                }
                _ => ListFrom::Token { token, last: last.clone() },
            };
        }
        let left: Vec<_> = self.open.keys().cloned().collect();
        for directory in left {
            self.leave(&directory);
        }
        let (keys, directories) = self.measured;
        self.names.known().directories.with_known(&self.parent, |parent| {
            parent.walk.measured(keys, directories);
        });
    }

    async fn page(&self, from: ListFrom) -> Result<ListPage, StoreError> {
        let (prefix, max_keys) = (self.parent.to_string(), self.names.config.page_keys);
        let request = ListRequest { prefix, delimited: false, from, max_keys, any_order: false };
        let page = self.names.store.list_page(&request).await?;
        check_page(&request, &page)?;
        Ok(page)
    }

    fn ends(&mut self, proved: Vec<Proved>) {
        let mut state = self.names.state.lock();
        for proved in proved {
            let Some(mut writer) = self.open.remove(&proved.prefix) else {
                self.names.learn(&mut state, proved, self.asked, self.epoch);
                continue;
            };
            self.measured.0 += proved.keys;
            self.measured.1 += 1;
            let Proved { runs, rest, .. } = proved;
            self.names.show_whole(&mut state, &mut writer, runs, self.asked, rest);
        }
    }

    /// Ends the listings of open directories that have no keys any more.
    fn are_gone(&mut self, is_gone: impl Fn(&str) -> bool) {
        let mut state = self.names.state.lock();
        for (_, writer) in self.open.extract_if(.., |directory, _| is_gone(directory)) {
            let rest = Rest { hidden: Vec::new(), exists: false };
            self.names.listing_ends(&mut state, &writer, self.asked, Ok(rest));
        }
    }

    /// The run does not list this directory.
    fn leave(&mut self, directory: &str) {
        let Some(writer) = self.open.remove(directory) else { return };
        let mut state = self.names.state.lock();
        if writer.has_readers() {
            tokio::spawn(self.names.clone().list(writer, now(), None));
        } else {
            state.known.directories.withdraw(&writer);
        }
    }
}
