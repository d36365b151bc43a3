//! A listing: it begins, its pages are shown as they come, and its end is shown to all readers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pages::Pages;
use super::plan::ListingOrder;
use super::shared::{Names, State, now};
use crate::errno::FsError;
use crate::names::entries::{HiddenKeys, Rest};
use crate::names::known::{Directory, ListingWriter, Progress};
use crate::store::{ListPage, StoreError};

impl Names {
    /// Lists a directory anew if it is used shortly before its listing expires, so that no caller
    /// waits then.
    pub(crate) fn refresh(self: &Arc<Self>, state: &mut State, prefix: &Arc<str>, now: Instant) {
        if state.known.directories.get(prefix).is_some_and(|directory| directory.is_due(now)) {
            self.list_again(state, prefix, now);
        }
    }

    /// Lists a small directory anew if its listing has expired or soon will, for a program that
    /// looks at nothing but the mtime: it sees the next time whether something has changed.
    pub(crate) fn refresh_small(
        self: &Arc<Self>,
        state: &mut State,
        prefix: &Arc<str>,
        now: Instant,
    ) {
        let keys = self.config.page_keys.into();
        let directory = state.known.directories.get(prefix);
        if directory.is_some_and(|directory| directory.is_worth_a_page(keys, now)) {
            self.list_again(state, prefix, now);
        }
    }

    fn list_again(self: &Arc<Self>, state: &mut State, prefix: &Arc<str>, now: Instant) {
        let directories = &mut state.known.directories;
        let Ok(permit) = self.refreshes.clone().try_acquire_owned() else { return };
        let listing = self.clone().list(directories.begin(prefix, now), now, None);
        tokio::spawn(async move {
            listing.await;
            drop(permit);
        });
    }

    /// The listing of a directory that is under way, or one that begins now.
    pub(crate) fn listing_under_way(
        self: &Arc<Self>,
        state: &mut State,
        prefix: &Arc<str>,
        now: Instant,
    ) -> Progress {
        let directories = &mut state.known.directories;
        if let Some(progress) = directories.get(prefix).and_then(Directory::under_way) {
            return progress.clone();
        }
        // A listing is no younger than its oldest page.
        let (first, oldest) = directories.take_page(prefix, now).unzip();
        let writer = directories.begin(prefix, oldest.unwrap_or(now));
        let progress = writer.progress();
        tokio::spawn(self.clone().list(writer, now, first));
        progress
    }

    /// Makes a listing from its first page, if that is there, to its end.
    pub(crate) async fn list(
        self: Arc<Self>,
        mut writer: ListingWriter,
        asked: Instant,
        first: Option<ListPage>,
    ) {
        let listed = self.show_pages(&mut writer, first).await;
        self.listing_ends(&mut self.state.lock(), &writer, asked, listed);
    }

    async fn show_pages(
        &self,
        writer: &mut ListingWriter,
        first: Option<ListPage>,
    ) -> Result<Rest, StoreError> {
        let (mut pages, order) = self.pages(&writer.prefix);
        pages.first = first;
        let mut hint = 0;
        loop {
            let runs = pages.next().await;
            if pages.order() != order {
                self.state.lock().found_out(pages.order());
            }
            let Some(runs) = runs? else { return Ok(pages.rest()) };
            self.known().directories.with_known(&writer.prefix, |_| {
                writer.set_waiting_bytes(pages.memory_bytes());
            });
            for run in runs {
                // Between two runs, other callers get the lock.
                self.known().show(writer, run, &mut hint);
            }
        }
    }

    /// The keys that the directory `prefix` hides, one item a reason. They are not kept, so it
    /// lists the directory.
    pub async fn hidden_keys(&self, prefix: &Arc<str>) -> Result<Vec<HiddenKeys>, FsError> {
        let (mut pages, _) = self.pages(prefix);
        loop {
            let runs = pages.next().await;
            self.state.lock().found_out(pages.order());
            if runs?.is_none() {
                return Ok(pages.rest().hidden);
            }
        }
    }

    fn pages(&self, prefix: &Arc<str>) -> (Pages, ListingOrder) {
        let (page_keys, workers) = (self.config.page_keys, self.config.pages_at_once);
        let order = self.state.lock().order;
        (Pages::new(self.store.clone(), prefix.clone(), page_keys, workers, order), order)
    }

    pub(crate) fn listing_ends(
        &self,
        state: &mut State,
        writer: &ListingWriter,
        asked: Instant,
        listed: Result<Rest, StoreError>,
    ) {
        let directories = &mut state.known.directories;
        let prefix = &writer.prefix;
        match listed {
            Ok(rest) if rest.exists || **prefix == *self.config.root_prefix => {
                for HiddenKeys { reason, count, keys } in &rest.hidden {
                    if directories.with(prefix, |directory| directory.warned.insert(*reason)) {
                        tracing::warn!(
                            directory = &**prefix,
                            count,
                            example = keys.first(),
                            "hidden keys: {reason}; `getfattr -n user.s3.hidden-keys` lists them"
                        );
                    }
                }
                state.known.finish(writer, asked, now());
            }
            Ok(_) => {
                let error = FsError::NotFound { ttl: Duration::ZERO };
                directories.fail(writer, error, true);
            }
            Err(error) => {
                // Callers log or answer it; a listing in the background has none.
                tracing::debug!(directory = &**prefix, %error, "listing failed");
                directories.fail(writer, error.into(), false);
            }
        }
    }
}
