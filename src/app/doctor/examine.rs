//! How a store behaves and how fast it is, seen through the seam that the mount uses: whatever is
//! wrong here would be wrong there.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::report::Report;
use crate::app::config::Config;
use crate::store::{ListEntry, ObjectMeta, ObjectStore, ObjectVersion};

mod behaviour;
mod speed;

/// Whatever a store does, the examination ends: with what comes before and behind it, within a
/// minute.
const LONGEST: Duration = Duration::from_secs(35);
/// However fast the store is, a step ends after so many requests.
const MOST_REQUESTS: usize = 20_000;

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the keys.
    pub prefix: String,
    /// The most that one request asks for.
    pub part_bytes: u64,
    /// Requests at once, at the most.
    pub max_connections: usize,
    /// For each step.
    pub step: Duration,
    /// A step ends after so many.
    pub most_requests: usize,
}

impl Plan {
    /// As the mount would do it.
    pub fn new(config: &Config, quick: bool) -> Self {
        Self {
            prefix: config.prefix.clone(),
            part_bytes: config.part_bytes,
            max_connections: config.max_connections,
            step: Duration::from_millis(if quick { 200 } else { 1000 }),
            most_requests: MOST_REQUESTS,
        }
    }
}

/// Examines a store that tries once; gives an object of it that can be read.
pub async fn run(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    report: &mut Report,
) -> Option<ObjectVersion> {
    let mut readable = None;
    if timeout(LONGEST, examine(store, plan, &mut readable, report)).await.is_err() {
        let limit = LONGEST.as_secs();
        report.slow(
            "time",
            format!(
                "not all was tried within {limit} s: the store is too slow or too silent for it"
            ),
        );
    }
    readable
}

async fn examine(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    readable: &mut Option<ObjectVersion>,
    report: &mut Report,
) {
    let Some(entries) = behaviour::listings(store, plan, report).await else { return };
    let mut objects: Vec<&ObjectMeta> = entries
        .iter()
        .filter_map(|entry| match entry {
            ListEntry::Object(meta) if !meta.archived && meta.version.size_bytes > 0 => Some(meta),
            _ => None,
        })
        .collect();
    objects.sort_by_key(|meta| Reverse(meta.version.size_bytes));
    if let Some(largest) = objects.first() {
        if behaviour::metadata(store, largest, report).await
            && behaviour::ranges(store, &largest.version, report).await
        {
            *readable = Some(largest.version.clone());
        }
    } else {
        let what = "there is no object that can be read, so nothing of reading was tried";
        report.slow("objects", what);
    }
    // Speed comes last, so that it takes no time from what is more important.
    speed::pages(store, plan, &entries, report).await;
    if let Some(version) = readable {
        speed::first_bytes(store, version, report).await;
        speed::bandwidth(store, plan, version, report).await;
        speed::small_files(store, plan, &objects, report).await;
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;
    use bytes::BufMut;

    use super::*;
    use crate::app::doctor::report::State;
    use crate::store::{ListFrom, ListPage, ListRequest, ObjectHead, StoreError};
    use crate::testing::memory::MemoryStore;

    fn plan() -> Plan {
        Plan {
            prefix: String::new(),
            part_bytes: 1 << 20,
            max_connections: 8,
            step: Duration::from_millis(50),
            most_requests: 20,
        }
    }

    fn filled() -> Arc<MemoryStore> {
        let store = MemoryStore::new();
        for number in 0..1500 {
            store.put(&format!("a/{number:04}"), vec![7; 1000]);
        }
        store.put("big", (0..3 << 20).map(|byte: u32| (byte % 251) as u8).collect::<Vec<_>>());
        Arc::new(store)
    }

    async fn examined(store: Arc<dyn ObjectStore>) -> Report {
        let mut report = Report::default();
        run(&store, &plan(), &mut report).await;
        report
    }

    fn states(report: &Report, state: State) -> Vec<&'static str> {
        let such = report.findings.iter().filter(|finding| finding.state == state);
        such.map(|finding| finding.topic).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_store_is_found_to_be_good() {
        let report = examined(filled()).await;
        assert_eq!(states(&report, State::Wrong), Vec::<&str>::new(), "{report:?}");
        assert_eq!(states(&report, State::Slow), Vec::<&str>::new(), "{report:?}");
        let topics = states(&report, State::Ok);
        for topic in [
            "listing",
            "paging",
            "start-after",
            "directories",
            "versions",
            "ranges",
            "overwriting",
            "first byte",
            "bandwidth",
            "small files",
            "names",
        ] {
            assert!(topics.contains(&topic), "{topic}");
        }
        assert!(report.measured.expected().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_bucket_is_no_fault() {
        let report = examined(Arc::new(MemoryStore::new())).await;
        assert_eq!(states(&report, State::Slow), ["listing"]);
        assert!(report.measured.expected().is_none());
    }

    /// What a store may do wrong.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Wrong {
        IgnoresIfMatch,
        IgnoresStartAfter,
        RepeatsPages,
        ListsInNoOrder,
        OtherEtagInHead,
        OtherBytes,
        Denies,
        Throttles,
        Late,
        Hangs,
    }

    struct Bad(Arc<MemoryStore>, Wrong);

    #[async_trait]
    impl ObjectStore for Bad {
        async fn list_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
            let mut request = request.clone();
            if self.1 == Wrong::ListsInNoOrder {
                self.0.list_in_no_order();
            }
            match &request.from {
                ListFrom::After(_) if self.1 == Wrong::IgnoresStartAfter => {
                    request.from = ListFrom::Start;
                }
                ListFrom::Token { .. } if self.1 == Wrong::RepeatsPages => {
                    request.from = ListFrom::Start;
                }
                _ => {}
            }
            self.0.list_page(&request).await
        }

        async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
            let mut head = self.0.head(key).await?;
            if self.1 == Wrong::OtherEtagInHead {
                head.meta.version.etag = "\"x\"".to_owned();
            }
            Ok(head)
        }

        async fn get_range(
            &self,
            version: &ObjectVersion,
            range: Range<u64>,
            into: &mut (dyn BufMut + Send),
        ) -> Result<(), StoreError> {
            match self.1 {
                Wrong::Denies => return Err(StoreError::Denied("403".to_owned())),
                Wrong::Throttles if range.start > 0 && range.end - range.start >= 1 << 20 => {
                    return Err(StoreError::Throttled { retry_after: None });
                }
                Wrong::Hangs => std::future::pending().await,
                Wrong::Late => tokio::time::sleep(Duration::from_millis(300)).await,
                Wrong::OtherBytes => {
                    into.put_bytes(
                        u8::try_from(range.start / 1024 % 251).unwrap(),
                        usize::try_from(range.end - range.start).unwrap(),
                    );
                    return Ok(());
                }
                _ => {}
            }
            let meta = self.0.head(&version.key).await?.meta;
            let version = if self.1 == Wrong::IgnoresIfMatch { &meta.version } else { version };
            self.0.get_range(version, range, into).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_store_does_wrong_is_said_in_a_sentence() {
        for (wrong, topic, state, says) in [
            (Wrong::IgnoresIfMatch, "overwriting", State::Wrong, "would give a mixture"),
            (Wrong::IgnoresStartAfter, "start-after", State::Slow, "one page after the other"),
            (Wrong::ListsInNoOrder, "listing", State::Slow, "in no order"),
            (Wrong::ListsInNoOrder, "paging", State::Ok, "follows"),
            (Wrong::ListsInNoOrder, "directories", State::Ok, "roll directories up"),
            (Wrong::RepeatsPages, "paging", State::Wrong, "no listing of more than one page"),
            (Wrong::OtherEtagInHead, "versions", State::Wrong, "do not agree about \"big\""),
            (Wrong::OtherBytes, "ranges", State::Wrong, "gave different bytes"),
            (Wrong::Denies, "ranges", State::Wrong, "may be listed but not read"),
            (Wrong::Throttles, "bandwidth", State::Slow, "the store throttled"),
            (Wrong::Hangs, "ranges", State::Wrong, "the store hangs"),
            (Wrong::Late, "first byte", State::Slow, "a first byte takes 300"),
        ] {
            let report = examined(Arc::new(Bad(filled(), wrong))).await;
            let found = report.findings.iter().find(|finding| finding.topic == topic);
            let found = found.unwrap_or_else(|| panic!("{wrong:?}: nothing of {topic}"));
            assert_eq!(found.state, state, "{wrong:?}: {found:?}");
            assert!(found.sentence.contains(says), "{wrong:?}: {}", found.sentence);
            let fewer = report.measured.connections_wanted(8);
            assert_eq!(
                fewer.is_some_and(|n| n < 8),
                wrong == Wrong::Throttles,
                "{wrong:?}: {fewer:?}"
            );
        }
    }
}
