//! Counts each attempt of a request, with its duration and outcome, below the retrying layer. An
//! attempt that is dropped, at its deadline or with its reader, is counted as abandoned.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Class, Destination, ListPage, ListRequest, ObjectHead, ObjectStore, ObjectVersion, StoreError,
};
use crate::stats::{Outcome, RequestKind, Stats};

pub struct Metered {
    store: Arc<dyn ObjectStore>,
    stats: Arc<Stats>,
}

impl Metered {
    pub fn new(store: Arc<dyn ObjectStore>, stats: Arc<Stats>) -> Self {
        Self { store, stats }
    }

    async fn metered<T>(
        &self,
        kind: RequestKind,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = self.stats.requests.begin(kind);
        let result = request.await;
        begun.end(outcome(&result));
        result
    }
}

fn outcome<T>(result: &Result<T, StoreError>) -> Outcome {
    let Err(error) = result else { return Outcome::Ok };
    match error.class() {
        Class::NotFound => Outcome::NotFound,
        Class::Changed => Outcome::Changed,
        Class::Denied | Class::Unsigned => Outcome::Denied,
        Class::Archived => Outcome::Archived,
        Class::Throttled => Outcome::Throttled,
        Class::Unavailable => Outcome::Unavailable,
        Class::TimedOut => Outcome::TimedOut,
        Class::Nonsense | Class::Unordered => Outcome::Protocol,
        Class::NoSuchBucket | Class::WrongRegion => Outcome::Bucket,
    }
}

#[async_trait]
impl ObjectStore for Metered {
    async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let page = self.metered(RequestKind::List, self.store.list_page(request)).await?;
        self.stats.listed.add(page.entries.len() as u64);
        Ok(page)
    }

    async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
        self.metered(RequestKind::Head, self.store.head(key)).await
    }

    async fn get_range(
        &self,
        version: &ObjectVersion,
        range: Range<u64>,
        into: &mut dyn Destination,
    ) -> Result<(), StoreError> {
        self.metered(RequestKind::Get, self.store.get_range(version, range, into)).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::ListFrom;
    use crate::testing::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_request_is_counted_with_its_outcome() {
        let (stats, memory) = (Arc::new(Stats::default()), Arc::new(MemoryStore::new()));
        memory.put("a/b", vec![1; 10]);
        memory.put("c", vec![1; 10]);
        let store = Metered::new(memory, stats.clone());
        let meta = store.head("a/b").await.unwrap().meta;
        store.head("none").await.unwrap_err();
        store.get_range(&meta.version, 0..10, &mut Vec::new()).await.unwrap();
        let other = ObjectVersion { etag: "\"other\"".to_owned(), ..meta.version.clone() };
        store.get_range(&other, 0..10, &mut Vec::new()).await.unwrap_err();
        let request = ListRequest {
            prefix: String::new(),
            delimited: false,
            from: ListFrom::Start,
            max_keys: 1000,
            any_order: false,
        };
        store.list_page(&request).await.unwrap();
        let mut seen = Vec::new();
        for kind in RequestKind::ALL {
            for outcome in Outcome::ALL {
                let count = stats.requests.took(kind, outcome).count();
                if count > 0 {
                    seen.push((kind.name(), outcome.name(), count));
                }
            }
        }
        let want = [
            ("GET", "ok", 1),
            ("GET", "changed", 1),
            ("HEAD", "ok", 1),
            ("HEAD", "not_found", 1),
            ("LIST", "ok", 1),
        ];
        assert_eq!(seen, want);
        assert_eq!(stats.listed.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_cut_off_is_abandoned() {
        struct Silent;
        #[async_trait]
        impl ObjectStore for Silent {
            async fn list_page(&self, _: &ListRequest) -> Result<ListPage, StoreError> {
                std::future::pending().await
            }
            async fn head(&self, _: &str) -> Result<ObjectHead, StoreError> {
                std::future::pending().await
            }
            async fn get_range(
                &self,
                _: &ObjectVersion,
                _: Range<u64>,
                _: &mut dyn Destination,
            ) -> Result<(), StoreError> {
                std::future::pending().await
            }
        }
        let stats = Arc::new(Stats::default());
        let store = Metered::new(Arc::new(Silent), stats.clone());
        let second = Duration::from_secs(1);
        tokio::time::timeout(second, store.head("a")).await.unwrap_err();
        let took = stats.requests.took(RequestKind::Head, Outcome::Abandoned).counts();
        assert_eq!(took.count(), 1);
        assert!((0.99..1.1).contains(&took.seconds), "{}", took.seconds);
        assert_eq!(stats.requests.in_flight(RequestKind::Head), 0);
    }
}
