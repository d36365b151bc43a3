//! A store that fails on cue: scripted failures and delays around any other store, for tests.
//!
//! The steps of a call, in this order: wait while the gate is closed, sleep the
//! operation's delay, then the oldest scripted fault for the operation, else the hook, else
//! nothing.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::{
    Destination, ListEntry, ListFrom, ListPage, ListRequest, ObjectHead, ObjectStore,
    ObjectVersion, StoreError,
};

/// One of the three methods of [`ObjectStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`ObjectStore::list_page`]
    List,
    /// [`ObjectStore::head`]
    Head,
    /// [`ObjectStore::get_range`]
    Get,
}

/// A call, as a hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Which method.
    pub operation: Operation,
    /// The key, or the prefix of a listing.
    pub key: &'a str,
    /// The range of a GET; empty for other calls.
    pub range: &'a Range<u64>,
    /// A listing without a delimiter.
    pub flat: bool,
    /// The number of calls before this one.
    pub number: u64,
}

/// The fault of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The call fails, and nothing reaches the store below.
    Fail(StoreError),
    /// The call takes this much longer.
    Delay(Duration),
    /// The call never ends.
    Hang,
    /// A GET delivers this many bytes of its range, then fails; other calls just fail.
    BreakAfter(usize, StoreError),
    /// A page of a listing is replaced by nonsense; other calls are left alone.
    Page(BadPage),
}

/// The fault of a page of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPage {
    /// The next token is the one that was sent (no effect on a first page).
    RepeatsToken,
    /// The entries go backwards.
    GoesBackwards,
    /// An entry lies outside of the prefix (no effect on the empty prefix).
    OutsidePrefix,
    /// No entry, and a new token that leads to the page itself. One of them is legal, and S3 sends
    /// them; without end they are not.
    Empty,
    /// The entries, and this number of keys that cannot be decoded.
    Undecodable(usize),
}

type Hook = dyn Fn(&Call<'_>) -> Fault + Send + Sync;

/// A store around another, with scripted failures.
pub struct FaultyStore {
    below: Arc<dyn ObjectStore>,
    script: Mutex<Script>,
    /// Calls may pass.
    gate: watch::Sender<bool>,
}

#[derive(Default)]
struct Script {
    calls: u64,
    faults: VecDeque<(Operation, Fault)>,
    delays: HashMap<Operation, Duration>,
    hook: Option<Arc<Hook>>,
    /// Tokens that [`BadPage::Empty`] made up, and where they really lead.
    tokens: HashMap<String, ListFrom>,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").finish_non_exhaustive()
    }
}

impl FaultyStore {
    /// Wraps `below`; nothing fails without a script.
    pub fn new(below: Arc<dyn ObjectStore>) -> Self {
        Self { below, script: Mutex::default(), gate: watch::Sender::new(true) }
    }

    /// The next call of this operation that has no older fault waiting fails with `error`.
    pub fn fail_next(&self, operation: Operation, error: StoreError) {
        self.next(operation, Fault::Fail(error));
    }

    /// Appends to the script of the operation; each call takes one fault, the oldest first.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.script.lock().faults.push_back((operation, fault));
    }

    /// Every call of this operation takes this much longer from now on.
    pub fn delay(&self, operation: Operation, delay: Duration) {
        self.script.lock().delays.insert(operation, delay);
    }

    /// Decides the calls that are not in the script.
    pub fn hook(&self, hook: impl Fn(&Call<'_>) -> Fault + Send + Sync + 'static) {
        self.script.lock().hook = Some(Arc::new(hook));
    }

    /// Holds every call that comes from now on, until [`Self::open_gate`].
    pub fn close_gate(&self) {
        self.gate.send_replace(false);
    }

    /// Lets the held calls go, and all that follow.
    pub fn open_gate(&self) {
        self.gate.send_replace(true);
    }

    /// The number of calls that have arrived, held ones included.
    pub fn calls(&self) -> u64 {
        self.script.lock().calls
    }

    async fn fault(
        &self,
        operation: Operation,
        key: &str,
        range: &Range<u64>,
        flat: bool,
    ) -> Result<Fault, StoreError> {
        let number = {
            let mut script = self.script.lock();
            script.calls += 1;
            script.calls - 1
        };
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
        let delay = self.script.lock().delays.get(&operation).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let (scripted, hook) = {
            let mut script = self.script.lock();
            let at = script.faults.iter().position(|(of, _)| *of == operation);
            (at.and_then(|at| script.faults.remove(at)), script.hook.clone())
        };
        let fault = match (scripted, hook) {
            (Some((_, fault)), _) => fault,
            (None, Some(hook)) => hook(&Call { operation, key, range, flat, number }),
            (None, None) => Fault::None,
        };
        match fault {
            Fault::Fail(error) => return Err(error),
            Fault::BreakAfter(_, error) if operation != Operation::Get => return Err(error),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Hang => std::future::pending().await,
            Fault::None | Fault::BreakAfter(..) | Fault::Page(_) => {}
        }
        Ok(fault)
    }

    async fn spoiled_page(
        &self,
        request: &ListRequest,
        how: BadPage,
    ) -> Result<ListPage, StoreError> {
        if how == BadPage::Empty {
            let mut script = self.script.lock();
            let token = format!("empty {}", script.calls);
            script.tokens.insert(token.clone(), request.from.clone());
            return Ok(ListPage { next: Some(token), ..ListPage::default() });
        }
        let mut page = self.below.list_page(request).await?;
        let below = |name: &str| ListEntry::Prefix(format!("{}{name}", request.prefix));
        match (how, &request.from) {
            (BadPage::RepeatsToken, ListFrom::Token { token, .. }) => {
                page.next = Some(token.clone());
            }
            (BadPage::GoesBackwards, _) => page.entries.extend([below("b/"), below("a/")]),
            (BadPage::OutsidePrefix, _) if !request.prefix.is_empty() => {
                page.entries.insert(0, ListEntry::Prefix("\u{1}/".to_owned()));
            }
            (BadPage::Undecodable(keys), _) => page.undecodable += keys,
            (BadPage::RepeatsToken | BadPage::OutsidePrefix | BadPage::Empty, _) => {}
        }
        Ok(page)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let flat = !request.delimited;
        let fault = self.fault(Operation::List, &request.prefix, &(0..0), flat).await?;
        let mut request = request.clone();
        if let ListFrom::Token { token, .. } = &request.from {
            let leads_to = self.script.lock().tokens.get(token).cloned();
            request.from = leads_to.unwrap_or(request.from);
        }
        match fault {
            Fault::Page(how) => self.spoiled_page(&request, how).await,
            _ => self.below.list_page(&request).await,
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.fault(Operation::Head, key, &(0..0), false).await?;
        self.below.head(key).await
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let fault = self.fault(Operation::Get, &version.key, &range, false).await?;
        let Fault::BreakAfter(bytes, error) = fault else {
            return self.below.get_range(version, range, into).await;
        };
        let end = range.end.min(range.start.saturating_add(bytes as u64));
        if end > range.start {
            self.below.get_range(version, range.start..end, into).await?;
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::check_page;
    use crate::testing::memory::MemoryStore;

    fn faulty() -> (Arc<MemoryStore>, Arc<FaultyStore>) {
        let memory = Arc::new(MemoryStore::new());
        (memory.clone(), Arc::new(FaultyStore::new(memory)))
    }

    fn request(from: ListFrom) -> ListRequest {
        ListRequest {
            prefix: "d/".to_owned(),
            delimited: true,
            from,
            max_keys: 1,
            any_order: false,
        }
    }

    #[tokio::test]
    async fn a_broken_get_delivers_a_correct_beginning() {
        let (memory, store) = faulty();
        let version = memory.put("k", "0123456789").version;
        store.next(
            Operation::Get,
            Fault::BreakAfter(3, StoreError::Throttled { retry_after: None }),
        );
        let mut into = Vec::new();
        let broken = store.get_range(&version, 2..8, &mut into).await;
        assert_eq!(
            (broken, into.as_slice()),
            (Err(StoreError::Throttled { retry_after: None }), &b"234"[..])
        );
        assert_eq!(store.get_range(&version, 5..8, &mut into).await, Ok(()));
        assert_eq!(into, b"234567");
    }

    #[tokio::test]
    async fn every_bad_page_but_an_empty_one_is_refused() {
        let (memory, store) = faulty();
        memory.put("d/1", "");
        memory.put("d/2", "");
        memory.put("d/3", "");
        let first = store.list_page(&request(ListFrom::Start)).await.expect("a page");
        let token = first.next.expect("more pages");
        let second = request(ListFrom::Token { token, last: "d/1".to_owned() });
        for how in [BadPage::RepeatsToken, BadPage::GoesBackwards, BadPage::OutsidePrefix] {
            store.next(Operation::List, Fault::Page(how));
            let page = store.list_page(&second).await.expect("a page");
            assert!(check_page(&second, &page).is_err(), "{how:?}");
        }
        store.next(Operation::List, Fault::Page(BadPage::Empty));
        let page = store.list_page(&second).await.expect("a page");
        assert_eq!((check_page(&second, &page), page.entries.len()), (Ok(()), 0));
        let token = page.next.expect("more pages");
        let third = request(ListFrom::Token { token, last: "d/1".to_owned() });
        let page = store.list_page(&third).await.expect("a page");
        assert_eq!(page.entries[0].key(), "d/2");
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_holds_calls_and_delays_take_their_time() {
        let (memory, store) = faulty();
        memory.put("k", "");
        store.close_gate();
        store.delay(Operation::Head, Duration::from_secs(5));
        let held = tokio::spawn({
            let store = store.clone();
            async move { store.head("k").await }
        });
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!((store.calls(), memory.counts().heads), (1, 0));
        store.open_gate();
        let start = tokio::time::Instant::now();
        assert!(held.await.expect("not cancelled").is_ok());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }
}
