//! The life of a listing: it is begun, its pages come, and its end is shown to all who wait for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pages::Pages;
use super::shared::{Names, State};
use crate::errno::FsError;
use crate::names::entries::assembly::Rest;
use crate::names::entries::listing::Listing;
use crate::names::entries::node::InodeRef;
use crate::names::entries::run::Part;
use crate::names::known::expiry::Expiry;
use crate::names::known::numbers::Known;
use crate::names::known::progress::{Grower, Growing};
use crate::store::{ListPage, StoreError};

impl Names {
    /// Lists a directory anew that is used at the end of its listing's life, so that nobody has to
    /// wait when that is over.
    pub(crate) fn refresh(self: &Arc<Self>, state: &mut State, prefix: &Arc<str>, now: Instant) {
        if !state.known.directories.is_due(prefix, now) {
            return;
        }
        let Ok(permit) = self.refreshes.clone().try_acquire_owned() else { return };
        let expiry = Expiry::after(now, self.config.metadata_ttl);
        let (growing, grower) = state.known.directories.listing_begins(prefix, expiry);
        let listing = self.clone().list(prefix.clone(), now, growing, grower, None);
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
    ) -> Growing {
        if let Some(growing) = state.known.directories.under_way(prefix) {
            return growing.clone();
        }
        let first = state.known.directories.take_first_page(prefix, now);
        // A listing is no younger than its oldest page.
        let asked = first.as_ref().map_or(now, |first| first.asked);
        let expiry = Expiry::after(asked, self.config.metadata_ttl);
        let (growing, grower) = state.known.directories.listing_begins(prefix, expiry);
        let first = first.map(|first| first.page);
        tokio::spawn(self.clone().list(prefix.clone(), now, growing.clone(), grower, first));
        growing
    }

    pub(crate) async fn list(
        self: Arc<Self>,
        prefix: Arc<str>,
        asked: Instant,
        growing: Growing,
        grower: Grower,
        first: Option<ListPage>,
    ) {
        let listed = self.pages(&prefix, &growing, &grower, first).await;
        self.listing_ends(&mut self.state.lock(), &growing, &grower, asked, listed);
    }

    /// All pages of a listing have been shown, or one has failed.
    pub(crate) fn listing_ends(
        &self,
        state: &mut State,
        growing: &Growing,
        grower: &Grower,
        asked: Instant,
        listed: Result<Rest, StoreError>,
    ) {
        let prefix = growing.now().listing.prefix().clone();
        let now = Instant::now();
        let Known { inodes, directories, .. } = &mut state.known;
        let outcome = match listed {
            Ok(rest) if rest.exists || *prefix == *self.config.root_prefix => {
                for keys in &rest.hidden {
                    if directories.is_first_warning(&prefix, keys.reason) {
                        let (count, example) = (keys.count, keys.keys.first());
                        let directory = &*prefix;
                        let reason = keys.reason;
                        tracing::warn!(
                            directory,
                            count,
                            example,
                            "hidden keys: {reason}; `getfattr -n user.s3.hidden-keys` lists them"
                        );
                    }
                }
                let knows = |prefix: &str| inodes.number(InodeRef::Directory(prefix)).is_some();
                Ok(directories.install(growing, asked, now, knows))
            }
            Ok(_) => {
                directories.listing_failed(&prefix, growing, true, now);
                Err(FsError::NotFound { ttl: Duration::ZERO })
            }
            Err(error) => {
                // Those who wait log or answer it; a background listing has nobody.
                tracing::debug!(directory = &*prefix, %error, "listing failed");
                directories.listing_failed(&prefix, growing, false, now);
                Err(error.into())
            }
        };
        let is_known = inodes.number(InodeRef::Directory(&prefix)).is_some();
        if outcome.is_err() && !is_known {
            // It was listed ahead, and nobody has come.
            directories.release(&prefix, now);
        }
        grower.send_modify(|growth| {
            if outcome.is_err() {
                // Nobody reads on in it.
                growth.listing = Listing::new(prefix, growing.generation);
            }
            growth.outcome = Some(outcome);
        });
    }

    async fn pages(
        &self,
        prefix: &Arc<str>,
        growing: &Growing,
        grower: &Grower,
        first: Option<ListPage>,
    ) -> Result<Rest, StoreError> {
        let (page_keys, workers) = (self.config.page_keys, self.config.pages_at_once);
        let start_after = self.state.lock().start_after;
        let store = self.store.clone();
        let pages = Pages::new(store, prefix.clone(), page_keys, workers, start_after);
        let mut pages = pages.begin_with(first);
        let mut hint = 0;
        loop {
            let parts = pages.next().await;
            if pages.start_after() != start_after {
                self.state.lock().found_out(pages.start_after());
            }
            let Some(parts) = parts? else { return Ok(pages.rest()) };
            self.known().directories.waits(prefix, growing, pages.memory_bytes());
            for part in parts {
                // Between two parts, others have their turn.
                show(&mut self.state.lock(), growing, grower, part, &mut hint);
            }
        }
    }
}

/// Gives the next entries of a listing their numbers and shows them.
pub(crate) fn show(
    state: &mut State,
    growing: &Growing,
    grower: &Grower,
    mut part: Part,
    hint: &mut usize,
) {
    let (prefix, start) = {
        let shown = growing.now();
        (shown.listing.prefix().clone(), shown.listing.len())
    };
    state.known.number_all(&prefix, &mut part, hint);
    let now = Instant::now();
    state.known.directories.about_to_show(&prefix, growing, start, &part, now);
    grower.send_modify(|growth| growth.listing.push(Arc::new(part)));
    let Known { inodes, directories, .. } = &mut state.known;
    let knows = |prefix: &str| inodes.number(InodeRef::Directory(prefix)).is_some();
    directories.make_room(&prefix, now, knows);
}
