//! Several stores as one, each in a directory of its own: a key is `DIRECTORY/KEY`.
//!
//! Above this, one cache, one table of names and one budget serve all of them; below it, each has
//! its own connections, retries and throttling. The root is answered here without a request, so a
//! store that fails takes nothing but its directory with it.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::{
    Class, Destination, ListEntry, ListFrom, ListPage, ListRequest, LocalCopy, ObjectHead,
    ObjectMeta, ObjectStore, ObjectVersion, StoreError,
};
use crate::stats::BucketCounts;

/// S3's limit for a key.
const MAX_KEY_BYTES: usize = 1024;

/// The continuation token of a directory's beginning, behind its marker. Those of stores are marked
/// by the other letter.
const BEGINNING: &str = "b";
const TOKEN: &str = "t";

pub struct Joined {
    /// In the order of their directories.
    branches: Vec<Branch>,
}

/// A store, and the place of its keys in the whole.
pub struct Branch {
    /// Ends with `/`, and has no other.
    pub directory: String,
    /// Of the store's keys that are shown: empty, or ends with `/`.
    pub prefix: String,
    pub store: Arc<dyn ObjectStore>,
    pub counts: Arc<BucketCounts>,
}

impl Joined {
    /// The directories differ.
    pub fn new(mut branches: Vec<Branch>) -> Self {
        branches.sort_by(|a, b| a.directory.cmp(&b.directory));
        Self { branches }
    }

    /// The store of a key or a prefix in one of the directories.
    fn branch(&self, key: &str) -> Option<&Branch> {
        self.branches.iter().find(|branch| key.starts_with(&branch.directory))
    }

    /// The directories, without a request.
    fn root(&self, request: &ListRequest) -> ListPage {
        let is_behind = |directory: &str| match &request.from {
            ListFrom::Start => true,
            // As S3 does it: a directory that holds the key comes again.
            ListFrom::After(key) => directory > key.as_str() || key.starts_with(directory),
            ListFrom::Token { last, .. } => directory > last.as_str(),
        };
        let directories = self.branches.iter().map(|branch| &branch.directory);
        let mut entries: Vec<_> = directories
            .filter(|directory| directory.starts_with(&request.prefix) && is_behind(directory))
            .map(|directory| ListEntry::Prefix(directory.clone()))
            .collect();
        let is_cut = entries.len() > request.max_keys.into();
        entries.truncate(request.max_keys.into());
        let next = entries.last().filter(|_| is_cut).map(|last| last.key().to_owned());
        ListPage { entries, next, ..ListPage::default() }
    }

    /// The keys of all stores, one store after the other. A token begins with the number of its
    /// store.
    async fn all(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let (number, from) = match &request.from {
            ListFrom::Start => (0, ListFrom::Start),
            ListFrom::After(key) => {
                let ends_before = |branch: &Branch| {
                    branch.directory.as_str() <= key.as_str() && !key.starts_with(&branch.directory)
                };
                let number = self.branches.partition_point(ends_before);
                let is_inside = self
                    .branches
                    .get(number)
                    .is_some_and(|branch| key.starts_with(&branch.directory));
                (number, if is_inside { request.from.clone() } else { ListFrom::Start })
            }
            ListFrom::Token { token, last } => {
                let parts = token.split_once(' ');
                let number = parts.and_then(|(number, token)| Some((number.parse().ok()?, token)));
                let (number, token) = number.ok_or_else(|| unknown_token(token))?;
                let from = ListFrom::Token { token: token.to_owned(), last: last.clone() };
                (number, if token.is_empty() { ListFrom::Start } else { from })
            }
        };
        let Some(branch) = self.branches.get(number) else { return Ok(ListPage::default()) };
        let prefix = branch.directory.clone();
        let mut page = branch.list(&ListRequest { prefix, from, ..request.clone() }).await?;
        page.next = match page.next {
            Some(token) => Some(format!("{number} {token}")),
            None if number + 1 < self.branches.len() => Some(format!("{} ", number + 1)),
            None => None,
        };
        Ok(page)
    }
}

impl Branch {
    /// The store's key, or prefix of keys; `None` if it would be longer than a key can be.
    fn inner(&self, key: &str) -> Option<String> {
        let below = key.strip_prefix(&self.directory)?;
        let inner = format!("{}{below}", self.prefix);
        (inner.len() <= MAX_KEY_BYTES).then_some(inner)
    }

    /// A key of the store, as part of the whole.
    fn outer(&self, key: &str) -> Result<String, StoreError> {
        let below = key.strip_prefix(&self.prefix).ok_or_else(|| {
            StoreError::nonsense(format!("{key:?} outside of prefix {:?}", self.prefix))
        })?;
        Ok(format!("{}{below}", self.directory))
    }

    /// A page below the directory. It begins with a marker, so that the directory exists however
    /// little the bucket holds.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let is_whole = request.prefix == self.directory;
        let begins = is_whole && request.from == ListFrom::Start;
        let marker = begins.then(|| self.marker());
        let max_keys = request.max_keys - u16::from(begins);
        if max_keys == 0 {
            let next = Some(BEGINNING.to_owned());
            let entries = marker.into_iter().collect();
            return Ok(ListPage { entries, next, ..ListPage::default() });
        }
        let inner = |key: &str| self.inner(key);
        let from = match &request.from {
            ListFrom::Start => Some(ListFrom::Start),
            ListFrom::After(key) if *key < request.prefix => Some(ListFrom::Start),
            ListFrom::After(key) => inner(key).map(ListFrom::After),
            ListFrom::Token { token, .. } if token == BEGINNING => Some(ListFrom::Start),
            ListFrom::Token { token, last } => {
                let token = token.strip_prefix(TOKEN).ok_or_else(|| unknown_token(token))?;
                inner(last).map(|last| ListFrom::Token { token: token.to_owned(), last })
            }
        };
        // Nothing is behind a key, or below a prefix, that no key can have.
        let Some((prefix, from)) = inner(&request.prefix).zip(from) else {
            return Ok(ListPage::default());
        };
        let asked = ListRequest { prefix, from, max_keys, ..request.clone() };
        let mut page = self.counted(self.store.list_page(&asked).await)?;
        let mut entries: Vec<_> = marker.into_iter().collect();
        // Without the marker that the bucket itself may have.
        let listed = std::mem::take(&mut page.entries).into_iter();
        for entry in listed.filter(|entry| entry.key() != self.prefix) {
            entries.push(match entry {
                ListEntry::Prefix(prefix) => ListEntry::Prefix(self.outer(&prefix)?),
                ListEntry::Object(meta) => ListEntry::Object(self.shown(meta)?),
                ListEntry::Untold(key) => ListEntry::Untold(self.outer(&key)?),
            });
        }
        let next = page.next.take().map(|token| format!("{TOKEN}{token}"));
        Ok(ListPage { entries, next, ..page })
    }

    fn marker(&self) -> ListEntry {
        let (key, etag) = (self.directory.clone(), String::new());
        let version = ObjectVersion { key, etag, size_bytes: 0 };
        let last_modified = SystemTime::UNIX_EPOCH;
        ListEntry::Object(ObjectMeta { version, last_modified, archived: false })
    }

    fn shown(&self, mut meta: ObjectMeta) -> Result<ObjectMeta, StoreError> {
        meta.version.key = self.outer(&meta.version.key)?;
        Ok(meta)
    }

    fn counted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let is_answer = result.as_ref().err().is_none_or(|error| {
            matches!(error.class(), Class::NotFound | Class::Changed | Class::Archived)
        });
        let counter = if is_answer { &self.counts.answered } else { &self.counts.failed };
        counter.add(1);
        result
    }
}

fn unknown_token(token: &str) -> StoreError {
    StoreError::nonsense(format!("unknown token {token:?}"))
}

#[async_trait]
impl ObjectStore for Joined {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        match self.branch(&request.prefix) {
            Some(branch) => branch.list(request).await,
            None if request.prefix.contains('/') => Ok(ListPage::default()),
            None if request.delimited => Ok(self.root(request)),
            None => self.all(request).await,
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        let branch = self.branch(key).ok_or(StoreError::NotFound)?;
        let inner = branch.inner(key).ok_or(StoreError::NotFound)?;
        let mut head = branch.counted(branch.store.head(&inner).await)?;
        head.meta = branch.shown(head.meta)?;
        Ok(head)
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        let branch = self.branch(&version.key).ok_or(StoreError::NotFound)?;
        let key = branch.inner(&version.key).ok_or(StoreError::NotFound)?;
        let version = ObjectVersion { key, ..version.clone() };
        branch.counted(branch.store.get_range(&version, range, into).await)
    }

    fn local_copy(&self, version: &ObjectVersion) -> Option<Arc<dyn LocalCopy>> {
        let branch = self.branch(&version.key)?;
        let key = branch.inner(&version.key)?;
        branch.store.local_copy(&ObjectVersion { key, ..version.clone() })
    }
}

#[cfg(test)]
mod tests;
