//! Fetches a directory's listing, several pages at a time.
//!
//! A store lists in no order if a page is in no order, or begins before its place even after
//! retries. Then all pages are fetched one by one from the beginning, and sorted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::names::asking::plan::{ListingOrder, ListingPlan, MAX_EMPTY_PAGES, RangeId};
use crate::names::entries::{Assembly, EntryRun, Rest};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, Nonsense, ObjectStore, StoreError, check_page,
};

/// Entries of a run of a sorted listing; else a run is a page.
const RUN_ENTRIES: usize = 1000;

/// The pages of one directory, under way. Dropping it cancels the requests in flight.
pub(crate) struct Pages {
    store: Arc<dyn ObjectStore>,
    prefix: Arc<str>,
    page_keys: u16,
    plan: ListingPlan,
    /// A first page of the same prefix and size that was fetched and checked before.
    pub(super) first: Option<ListPage>,
    /// Tasks of their own, because parsing a page is work for a core.
    flights: JoinSet<(RangeId, Result<ListPage, StoreError>)>,
    /// Entries that have come, in front of which others are missing.
    early: HashMap<RangeId, Vec<EntryRun>>,
    assembly: Assembly,
    /// Entries have been given out, which cannot be taken back.
    shown: bool,
    over: bool,
}

impl Pages {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Arc<str>,
        page_keys: u16,
        workers: usize,
        order: ListingOrder,
    ) -> Self {
        Self {
            store,
            page_keys,
            plan: ListingPlan::new(&prefix, page_keys, workers, order),
            first: None,
            flights: JoinSet::new(),
            early: HashMap::new(),
            assembly: Assembly::new(prefix.clone()),
            shown: false,
            over: false,
            prefix,
        }
    }

    pub(crate) fn order(&self) -> ListingOrder {
        self.plan.order
    }

    /// Memory of entries that have come and cannot be shown yet.
    pub(crate) fn memory_bytes(&self) -> usize {
        let early = self.early.values().flatten();
        early.map(EntryRun::memory_bytes).sum::<usize>() + self.assembly.memory_bytes()
    }

    /// Waits for a page and gives the next entries that can be shown, in runs of about a page,
    /// without inode numbers; `None` behind the last page.
    ///
    /// Always ends: a page that does not lead on is [`Nonsense::Protocol`]. It is an error if the
    /// store turns out to list in no order after entries were given out.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<EntryRun>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        let mut settled = if self.order() == ListingOrder::Unordered {
            self.all_sorted().await?
        } else {
            match self.next_in_order().await {
                Err(
                    error @ StoreError::Nonsense(Nonsense::Unordered(_) | Nonsense::Backwards(_)),
                ) => {
                    self.plan.order = ListingOrder::Unordered;
                    if self.shown {
                        return Err(error);
                    }
                    self.flights = JoinSet::new();
                    self.early.clear();
                    self.assembly = Assembly::new(self.prefix.clone());
                    self.all_sorted().await?
                }
                settled => settled?,
            }
        };
        settled.retain(|run| !run.is_empty());
        self.shown |= !settled.is_empty();
        Ok(Some(settled))
    }

    async fn next_in_order(&mut self) -> Result<Vec<EntryRun>, StoreError> {
        let landed = match self.first.take() {
            Some(first) => self.plan.ask().map(|ask| (ask.range, first)),
            None => self.land().await?,
        };
        let Some((range, page)) = landed else { return Ok(Vec::new()) };
        self.assembly.count(&page);
        for (range, share) in self.plan.answer(range, &page)? {
            self.early.entry(range).or_default().push(self.assembly.run(&page, share)?);
        }
        let mut settled = Vec::new();
        while let Some((range, done)) = self.plan.leftmost() {
            for run in self.early.remove(&range).unwrap_or_default() {
                self.assembly.append(run)?;
                settled.push(self.assembly.settled()?);
            }
            if !done {
                break;
            }
            self.plan.take_leftmost();
        }
        if self.plan.leftmost().is_none() {
            settled.push(self.assembly.last()?);
            self.over = true;
        }
        Ok(settled)
    }

    /// All entries, in whatever order they come.
    async fn all_sorted(&mut self) -> Result<Vec<EntryRun>, StoreError> {
        let wrong = |what: &str| {
            Err(StoreError::nonsense(format!("{what} in the listing of {:?}", self.prefix)))
        };
        let mut entries: BTreeMap<String, ListEntry> = BTreeMap::new();
        let (mut undecodable, mut foreign, mut in_vain) = (0, 0, 0);
        let (mut tokens, mut from) = (HashSet::new(), ListFrom::Start);
        loop {
            let prefix = self.prefix.to_string();
            let max_keys = self.page_keys;
            let request = ListRequest { prefix, delimited: true, from, max_keys, any_order: true };
            let page = self.store.list_page(&request).await?;
            check_page(&request, &page)?;
            undecodable += page.undecodable;
            foreign += page.foreign;
            let last = page.entries.last().map_or_else(String::new, |entry| entry.key().to_owned());
            let before = entries.len();
            // A common prefix may come on each page.
            entries.extend(page.entries.into_iter().map(|entry| (entry.key().to_owned(), entry)));
            in_vain = if entries.len() > before { 0 } else { in_vain + 1 };
            let Some(token) = page.next else { break };
            if in_vain >= MAX_EMPTY_PAGES {
                return wrong("nothing new on 100 pages in a row");
            }
            if !tokens.insert(token.clone()) {
                return wrong("a continuation token of before");
            }
            from = ListFrom::Token { token, last };
        }
        let entries = entries.into_values().collect();
        let page = ListPage { entries, next: None, undecodable, foreign };
        self.assembly.count(&page);
        let mut settled = Vec::new();
        for start in (0..page.entries.len()).step_by(RUN_ENTRIES) {
            let end = page.entries.len().min(start + RUN_ENTRIES);
            settled.push(self.assembly.add(&page, start..end)?);
        }
        settled.push(self.assembly.last()?);
        self.over = true;
        Ok(settled)
    }

    /// Sends the requests of the plan and waits for a page; `None` if an unneeded one failed.
    async fn land(&mut self) -> Result<Option<(RangeId, ListPage)>, StoreError> {
        while let Some(ask) = self.plan.ask() {
            let request = ListRequest {
                prefix: self.prefix.to_string(),
                delimited: true,
                from: ask.from,
                max_keys: self.page_keys,
                any_order: false,
            };
            let (store, range) = (self.store.clone(), ask.range);
            self.flights.spawn(async move {
                let page = store.list_page(&request).await;
                (range, page.and_then(|page| check_page(&request, &page).map(|()| page)))
            });
        }
        let landed = self.flights.join_next().await.expect("an open range has a page in flight");
        match landed.map_err(|died| StoreError::Unavailable(died.to_string()))? {
            (range, Ok(page)) => Ok(Some((range, page))),
            (range, Err(_)) if self.plan.failed(range) => Ok(None),
            (_, Err(error)) => Err(error),
        }
    }

    pub(crate) fn rest(self) -> Rest {
        self.assembly.rest()
    }
}

#[cfg(test)]
mod tests;
