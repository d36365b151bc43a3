//! Single lookups: their requests, and what else the answers prove.
//!
//! The kernel asks for a path component by component and waits for each answer, so a round trip has
//! to bring more than one. Three requests go out together: a HEAD of the key; the first page of all
//! keys below it, without a delimiter, which proves the directories on the way to its first key and
//! lists a small tree whole ([`Flat`]); and, for the next component in a large tree, the first page
//! of the directory itself.
//!
//! A policy may deny some of them: listings without a delimiter, those of other prefixes than
//! some, and the HEAD of a key that does not exist. The listing of the parent, which is allowed
//! where there is anything to see, then answers instead.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::flat::{Flat, Proved};
use super::plan::{ListingOrder, ListingPlan};
use super::shared::{Names, NamesConfig, PointLookup, PointOutcome, State, now, shut_down};
use crate::errno::FsError;
use crate::names::entries::{Assembly, EntryRun, Inode, Rest};
use crate::names::known::{Directory, Expiry, ListingWriter, PointAnswer, ScanFrom, Shown};
use crate::names::rules;
use crate::store::{ListPage, ListRequest, Nonsense, ObjectStore, StoreError, check_page};

/// A lookup waits for a directory's own page as long again as the other answers took, and this: the
/// page probably saves the next lookup a round trip.
const LEAST_PATIENCE: Duration = Duration::from_millis(2);

struct StoreAnswer {
    found: Option<Inode>,
    /// The first page of all keys below it, unless that is denied.
    flat: Option<ListPage>,
    /// The first page of the directory.
    own: Option<ListPage>,
    /// No key below it may be listed: what was found may be hidden by a directory (N3).
    is_doubtful: bool,
}

/// How a lookup asks.
#[derive(Clone, Copy)]
struct LookupScope {
    /// Pages of this many keys to learn from; else one key, in whatever order the store lists.
    page_keys: Option<u16>,
    /// All keys below it, without a delimiter, may be asked for.
    flat: bool,
    /// Nobody has asked for it yet.
    is_bet: bool,
}

impl Names {
    /// The lookup of a key that is under way, or one that begins now and counts as a miss.
    pub(crate) fn point_lookup(
        self: &Arc<Self>,
        state: &mut State,
        prefix: &Arc<str>,
        key: String,
        now: Instant,
    ) -> PointLookup {
        if let Some(lookup) = state.lookups.get(&key)
            && lookup.is_alive()
            && state.known.directories.is_current(prefix, lookup.epoch)
        {
            return lookup.clone();
        }
        // Its listing does not tell all of it.
        let is_listed = state.known.directories.believed_listing(prefix, now).is_some();
        // Behind thousands of files and no directory, one more file is likely. Where nothing is
        // believed, or a page proves nothing, there is nothing to learn.
        let is_alone = is_listed
            || self.config.metadata_ttl == Some(Duration::ZERO)
            || state.order == ListingOrder::Unordered
            || state.known.directories.begins_with_files(prefix, now);
        let page_keys = (!is_alone).then_some(self.config.page_keys);
        let scope = LookupScope { page_keys, flat: !state.flat_denied, is_bet: false };
        let lookup = self.begin_lookup(state, prefix.clone(), key, scope, now);
        if !is_listed && state.known.directories.with(prefix, Directory::missed) {
            self.listing_under_way(state, prefix, now);
        }
        lookup
    }

    /// A name is looked up in a directory of which only its own name is known: asks for the
    /// directory, as a lookup of it would have, because a program that begins there goes on there,
    /// and below.
    pub(crate) fn enter(self: &Arc<Self>, state: &mut State, prefix: &Arc<str>, now: Instant) {
        let NamesConfig { page_keys, metadata_ttl, ref root_prefix, .. } = self.config;
        let teaches = metadata_ttl != Some(Duration::ZERO)
            && state.order != ListingOrder::Unordered
            && !state.flat_denied;
        if !teaches || **prefix == **root_prefix {
            return;
        }
        if !state.known.directories.may_enter(prefix, page_keys.into(), now) {
            return;
        }
        let Some((parent, _)) = rules::parent_and_name(prefix) else { return };
        let key = prefix.strip_suffix('/').unwrap_or(prefix).to_owned();
        let scope = LookupScope { page_keys: Some(page_keys), flat: true, is_bet: true };
        self.begin_lookup(state, parent.into(), key, scope, now);
    }

    fn begin_lookup(
        self: &Arc<Self>,
        state: &mut State,
        prefix: Arc<str>,
        key: String,
        scope: LookupScope,
        now: Instant,
    ) -> PointLookup {
        let epoch = state.known.directories.epoch();
        let (lookup, outcome) = PointLookup::new(epoch);
        state.lookups.insert(key.clone(), lookup.clone());
        tokio::spawn(self.clone().look_up(prefix, key, scope, (now, epoch), outcome));
        lookup
    }

    async fn look_up(
        self: Arc<Self>,
        prefix: Arc<str>,
        key: String,
        mut scope: LookupScope,
        (asked, epoch): (Instant, u64),
        outcome: watch::Sender<Option<PointOutcome>>,
    ) {
        let mut answer = ask(&self.store, &key, scope).await;
        if matches!(answer, Err(StoreError::Nonsense(Nonsense::Unordered(_)))) {
            self.state.lock().found_out(ListingOrder::Unordered);
            scope.page_keys = None;
            answer = ask(&self.store, &key, scope).await;
        }
        let by_listing = match &answer {
            Err(StoreError::Denied(_)) | Ok(StoreAnswer { is_doubtful: true, .. })
                if scope.is_bet =>
            {
                Some(Err(FsError::Denied))
            }
            // A file that is there is one that may not be read.
            Err(StoreError::Denied(_)) => {
                Some(self.by_listing(&prefix, &key, epoch).await.and_then(|point| {
                    if point.is_file() { Err(FsError::Denied) } else { Ok(point) }
                }))
            }
            Ok(StoreAnswer { found, is_doubtful: true, .. }) => {
                let listed = self.by_listing(&prefix, &key, epoch).await;
                let is_denied = matches!(listed, Err(FsError::Denied));
                Some(listed).filter(|_| found.is_none() || !is_denied)
            }
            _ => None,
        };
        let mut state = self.state.lock();
        if state.lookups.get(&key).is_some_and(|lookup| lookup.epoch == epoch) {
            state.lookups.remove(&key);
        }
        let point = by_listing.unwrap_or_else(|| {
            Ok(self.believe(&mut state, &prefix, key, answer?, scope, (asked, epoch)))
        });
        drop(state);
        outcome.send_replace(Some(point));
    }

    /// Takes in an answer, and all that it shows beside the key.
    fn believe(
        &self,
        state: &mut State,
        prefix: &Arc<str>,
        key: String,
        answer: StoreAnswer,
        scope: LookupScope,
        (asked, epoch): (Instant, u64),
    ) -> PointAnswer {
        let StoreAnswer { found, flat, own, .. } = answer;
        let ttl = match found {
            Some(_) => self.config.metadata_ttl,
            None => Some(self.config.negative_ttl),
        };
        let found = found.map(|inode| (state.known.number(&inode), inode));
        let point = PointAnswer { found, expiry: Expiry::after(asked, ttl), epoch };
        if state.known.directories.is_current(prefix, epoch) {
            state.known.points.put(key, point.clone());
        }
        if scope.flat && flat.is_none() && own.is_some() {
            state.flat_is_denied();
        }
        if let (Some((_, Inode::Directory(below))), Some(_)) = (&point.found, scope.page_keys) {
            let is_bet = scope.is_bet;
            let mut learning = Learning { names: self, state, asked, epoch, is_bet };
            if let Some(flat) = flat {
                learning.learn_flat_page(below, flat);
            }
            if let Some(own) = own {
                learning.learn_own_page(below, own);
            }
        }
        point
    }

    /// What the parent's listing says of a key that may not be asked for by itself.
    async fn by_listing(
        self: &Arc<Self>,
        prefix: &Arc<str>,
        key: &str,
        epoch: u64,
    ) -> PointOutcome {
        let progress = self.listing_under_way(&mut self.state.lock(), prefix, now());
        let (mut cell, expiry) = (progress.cell, progress.expiry);
        let name = &key.as_bytes()[prefix.len()..];
        let behind = ScanFrom::Behind { name: name.to_vec(), is_directory: true };
        let is_passed = |shown: &Shown| {
            shown.outcome.is_some() || behind.index(&shown.listing) < shown.listing.len()
        };
        let shown = cell.wait_for(is_passed).await.map_err(|_died| shut_down())?;
        let found = match &shown.outcome {
            Some(Err(error)) => return Err(error.clone()),
            Some(Ok(listing)) => listing.find_inode(name),
            None => shown.listing.find_inode(name),
        };
        if matches!(found, Some((_, Inode::Untold(_)))) {
            return Err(FsError::Denied);
        }
        Ok(PointAnswer { found, expiry, epoch })
    }

    /// Believes a directory that answers to requests from `asked`, in `epoch`, show whole.
    /// False if that is known, or was dropped since.
    pub(super) fn learn(
        &self,
        state: &mut State,
        proved: Proved,
        asked: Instant,
        epoch: u64,
    ) -> bool {
        let Proved { prefix, runs, rest, .. } = proved;
        let directories = &mut state.known.directories;
        if !directories.is_current(&prefix, epoch) || directories.needs_nothing(&prefix, now()) {
            return false;
        }
        let mut writer = directories.begin(&prefix, asked);
        self.show_whole(state, &mut writer, runs, asked, rest);
        true
    }

    /// Shows all entries of a directory at once.
    pub(super) fn show_whole(
        &self,
        state: &mut State,
        writer: &mut ListingWriter,
        runs: Vec<EntryRun>,
        asked: Instant,
        rest: Rest,
    ) {
        let mut hint = 0;
        for run in runs {
            state.known.show(writer, run, &mut hint);
        }
        self.listing_ends(state, writer, asked, Ok(rest));
    }
}

/// Takes in what answers show beside the key that was asked for.
struct Learning<'a> {
    names: &'a Names,
    state: &'a mut State,
    asked: Instant,
    epoch: u64,
    /// It was asked for because it may be used.
    is_bet: bool,
}

impl Learning<'_> {
    fn learn_flat_page(&mut self, below: &str, page: ListPage) {
        let is_all = page.next.is_none();
        let mut flat = Flat::new(below);
        // A page that proves nothing is no error here.
        let Ok(mut proved) = flat.add(page) else { return };
        if is_all {
            let Ok(rest) = flat.end() else { return };
            proved.extend(rest);
        } else {
            // No listing shows the directories whose parents were not seen whole.
            let incomplete: HashSet<_> =
                flat.in_middle_of().map(|directory| &**directory).collect();
            let proved = proved.iter().map(|proved| &proved.prefix);
            for directory in flat.in_middle_of().chain(proved) {
                let parent = rules::parent_and_name(directory).map(|(parent, _)| parent);
                if parent.is_some_and(|parent| parent == below || incomplete.contains(parent)) {
                    self.exists(directory);
                }
            }
        }
        for proved in proved {
            self.learn(proved);
        }
    }

    fn learn(&mut self, proved: Proved) {
        let prefix = proved.prefix.clone();
        if self.names.learn(self.state, proved, self.asked, self.epoch) {
            self.is_learnt(&prefix);
        }
    }

    fn is_learnt(&mut self, prefix: &str) {
        if self.is_bet {
            self.state.known.directories.with_known(prefix, |directory| directory.is_bet = true);
        }
    }

    fn learn_own_page(&mut self, below: &Arc<str>, page: ListPage) {
        let mut assembly = Assembly::new(below.clone());
        assembly.count(&page);
        // A bad page is no error: the lookup has its answer without it.
        let Ok(mut beginning) = assembly.add(&page, 0..page.entries.len()) else { return };
        if page.next.is_none() {
            let Ok(last) = assembly.last() else { return };
            let (prefix, runs, rest) = (below.clone(), vec![beginning, last], assembly.rest());
            let proved = Proved { prefix, runs, rest, keys: page.entries.len() };
            return self.learn(proved);
        }
        let known = &mut self.state.known;
        let directories = &known.directories;
        if directories.is_current(below, self.epoch) && !directories.needs_nothing(below, now()) {
            known.number_all(below, &mut beginning, &mut 0);
            known.directories.begins_with(below, (page, self.asked, self.epoch), beginning);
            self.is_learnt(below);
        }
    }

    /// A directory exists, and nothing else is known of it.
    fn exists(&mut self, directory: &Arc<str>) {
        let Some((parent, _)) = rules::parent_and_name(directory) else { return };
        if !self.state.known.directories.is_current(parent, self.epoch) {
            return;
        }
        let inode = Inode::Directory(directory.clone());
        let number = self.state.known.number(&inode);
        let expiry = Expiry::after(self.asked, self.names.config.metadata_ttl);
        let point = PointAnswer { found: Some((number, inode)), expiry, epoch: self.epoch };
        let key = directory.strip_suffix('/').unwrap_or(directory);
        self.state.known.points.put(key.to_owned(), point);
    }
}

/// Asks the store what a key is, with all requests at once. The directory wins (N3), so the answer
/// of the listing decides, and is enough if it has found a key.
async fn ask(
    store: &Arc<dyn ObjectStore>,
    key: &str,
    LookupScope { page_keys, flat, .. }: LookupScope,
) -> Result<StoreAnswer, StoreError> {
    let started = tokio::time::Instant::now();
    let below = rules::directory_prefix(key);
    let own = below.clone().zip(page_keys).filter(|_| flat).map(|(prefix, keys)| {
        let store = store.clone();
        // A task, because to cancel a request costs its connection.
        tokio::spawn(async move { first_page(&*store, &prefix, true, Some(keys)).await })
    });
    let list = async {
        let Some(prefix) = &below else { return Ok((ListPage::default(), flat)) };
        if flat {
            match first_page(&**store, prefix, false, page_keys).await {
                Err(StoreError::Denied(_)) => {}
                page => return Ok((page?, true)),
            }
        }
        Ok((first_page(&**store, prefix, true, page_keys).await?, false))
    };
    tokio::pin!(list);
    let mut head = store.head(key);
    let (listed, file) = tokio::select! {
        biased;
        listed = &mut list => {
            let is_enough = match &listed {
                Ok((page, _)) => !is_empty(page),
                Err(error) => !matches!(error, StoreError::Denied(_)),
            };
            (listed, if is_enough { Err(StoreError::NotFound) } else { head.await })
        }
        file = &mut head => (list.await, file),
    };
    let file = match file {
        Ok(head) => Ok(Some(Inode::File(Arc::new(head.meta)))),
        Err(StoreError::NotFound) => Ok(None),
        Err(error) => Err(error),
    };
    let (page, is_flat) = match listed {
        Ok(listed) => listed,
        Err(StoreError::Denied(_)) => {
            return Ok(StoreAnswer { found: file?, flat: None, own: None, is_doubtful: true });
        }
        Err(error) => return Err(error),
    };
    let found = if is_empty(&page) {
        file?
    } else {
        below.as_deref().map(|prefix| Inode::Directory(prefix.into()))
    };
    if !is_flat {
        return Ok(StoreAnswer { found, flat: None, own: Some(page), is_doubtful: false });
    }
    // A page that holds the whole tree shows more than the directory's own.
    let own = match own.filter(|_| page.next.is_some() || page.undecodable > 0) {
        Some(own) => {
            let waited = timeout(started.elapsed() + LEAST_PATIENCE, own).await;
            waited.ok().and_then(Result::ok).and_then(Result::ok)
        }
        None => None,
    };
    Ok(StoreAnswer { found, flat: Some(page), own, is_doubtful: false })
}

/// The first page of a prefix that is not empty, or an empty one if there is none.
async fn first_page(
    store: &dyn ObjectStore,
    prefix: &str,
    delimited: bool,
    page_keys: Option<u16>,
) -> Result<ListPage, StoreError> {
    let (max_keys, any_order) = (page_keys.unwrap_or(1), page_keys.is_none());
    let mut plan = ListingPlan::new(prefix, max_keys, 1, ListingOrder::Sequential);
    while let Some(ask) = plan.ask() {
        let prefix = prefix.to_owned();
        let request = ListRequest { prefix, delimited, from: ask.from, max_keys, any_order };
        let page = store.list_page(&request).await?;
        check_page(&request, &page)?;
        if !is_empty(&page) {
            return Ok(page);
        }
        plan.answer(ask.range, &page)?;
    }
    Ok(ListPage::default())
}

fn is_empty(page: &ListPage) -> bool {
    page.entries.is_empty() && page.undecodable == 0
}
