//! The behaviour and the speed of a store, through the trait that the mount uses as well.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::diagnosis::Diagnosis;
use super::requests::LoadLimits;
use crate::app::config::Config;
use crate::store::{ListEntry, ObjectMeta, ObjectStore, ObjectVersion};

mod behaviour;
mod speed;

/// The doctor ends within a minute whatever the store does; the checks before and behind these take
/// the rest of it.
const LONGEST: Duration = Duration::from_secs(35);
/// The most requests of one load, however fast the store is.
const MOST_REQUESTS: usize = 20_000;
/// A load whose first answer takes longer than this fails.
const LONGEST_LOAD: Duration = Duration::from_secs(3);

/// The subject and the limits of the examination.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) prefix: String,
    pub(super) part_bytes: u64,
    pub(super) max_connections: usize,
    pub(super) limits: LoadLimits,
}

impl Scope {
    /// As the mount would do it with `max_connections`; `quick` measures for a shorter time.
    pub(super) fn new(config: &Config, max_connections: usize, quick: bool) -> Self {
        let time = Duration::from_millis(if quick { 200 } else { 1000 });
        Self {
            prefix: config.first().prefix.clone(),
            part_bytes: config.layout().part_bytes,
            max_connections,
            limits: LoadLimits { time, longest: LONGEST_LOAD, requests: MOST_REQUESTS },
        }
    }
}

/// Examines a store that does not retry; returns an object of it that can be read.
pub(super) async fn run(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    report: &mut Diagnosis,
) -> Option<ObjectVersion> {
    let mut readable = None;
    if timeout(LONGEST, examine(store, scope, &mut readable, report)).await.is_err() {
        let limit = LONGEST.as_secs();
        let what = "the store is too slow or too silent: not every check was made within";
        report.slow("time", format!("{what} {limit} s"));
    }
    readable
}

async fn examine(
    store: &Arc<dyn ObjectStore>,
    scope: &Scope,
    readable: &mut Option<ObjectVersion>,
    report: &mut Diagnosis,
) {
    let Some(pages) = behaviour::listings(store, &scope.prefix, report).await else { return };
    let told = behaviour::told(store, &pages.entries).await;
    let listed = pages.entries.iter().filter_map(|entry| match entry {
        ListEntry::Object(meta) => Some(meta),
        ListEntry::Untold(_) | ListEntry::Prefix(_) => None,
    });
    let mut objects: Vec<&ObjectMeta> =
        listed.chain(&told).filter(|meta| !meta.archived && meta.version.size_bytes > 0).collect();
    objects.sort_by_key(|meta| Reverse(meta.version.size_bytes));
    if let Some(largest) = objects.first() {
        if behaviour::metadata(store, largest, report).await
            && behaviour::ranges(store, &largest.version, report).await
        {
            *readable = Some(largest.version.clone());
        }
    } else {
        report.slow("objects", "there is no object that can be read, so reads were not tried");
    }
    // Speed comes last: if the time runs out, the checks of behaviour have been made.
    speed::pages(store, scope, &pages, report).await;
    if let Some(version) = readable {
        speed::first_bytes(store, version, report).await;
        speed::bandwidth(store, scope, version, report).await;
        speed::small_files(store, scope, &objects, report).await;
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;

    use super::*;
    use crate::app::doctor::diagnosis::Severity;
    use crate::store::{Destination, ListFrom, ListPage, ListRequest, ObjectHead, StoreError};
    use crate::testing::memory::MemoryStore;

    fn scope() -> Scope {
        let time = Duration::from_millis(50);
        Scope {
            prefix: String::new(),
            part_bytes: 1 << 20,
            max_connections: 8,
            limits: LoadLimits { time, longest: LONGEST_LOAD, requests: 20 },
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

    async fn examined(store: Arc<dyn ObjectStore>) -> Diagnosis {
        let mut report = Diagnosis::default();
        run(&store, &scope(), &mut report).await;
        report
    }

    fn topics(report: &Diagnosis, severity: Severity) -> Vec<&'static str> {
        let such = report.findings.iter().filter(|finding| finding.severity == severity);
        such.map(|finding| finding.topic).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_store_is_found_to_be_good() {
        let report = examined(filled()).await;
        assert_eq!(topics(&report, Severity::Wrong), Vec::<&str>::new(), "{report:?}");
        assert_eq!(topics(&report, Severity::Slow), Vec::<&str>::new(), "{report:?}");
        let topics = topics(&report, Severity::Ok);
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
        assert_eq!(topics(&report, Severity::Slow), ["listing"]);
        assert!(report.measured.expected().is_none());
    }

    /// The faults of a store.
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
            into: &mut dyn Destination,
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
        for (wrong, topic, severity, says) in [
            (Wrong::IgnoresIfMatch, "overwriting", Severity::Wrong, "would give a mixture"),
            (Wrong::IgnoresStartAfter, "start-after", Severity::Slow, "one page after the other"),
            (Wrong::ListsInNoOrder, "listing", Severity::Slow, "in no order"),
            (Wrong::ListsInNoOrder, "paging", Severity::Ok, "follows"),
            (Wrong::ListsInNoOrder, "directories", Severity::Ok, "roll directories up"),
            (Wrong::RepeatsPages, "paging", Severity::Wrong, "no listing of more than one page"),
            (Wrong::OtherEtagInHead, "versions", Severity::Wrong, "do not agree about \"big\""),
            (Wrong::OtherBytes, "ranges", Severity::Wrong, "gave different bytes"),
            (Wrong::Denies, "ranges", Severity::Wrong, "may be listed but not read"),
            (Wrong::Throttles, "bandwidth", Severity::Slow, "the store throttled"),
            (Wrong::Hangs, "ranges", Severity::Wrong, "the store hangs"),
            (Wrong::Late, "first byte", Severity::Slow, "a first byte takes 300"),
        ] {
            let report = examined(Arc::new(Bad(filled(), wrong))).await;
            let found = report.findings.iter().find(|finding| finding.topic == topic);
            let found = found.unwrap_or_else(|| panic!("{wrong:?}: nothing of {topic}"));
            assert_eq!(found.severity, severity, "{wrong:?}: {found:?}");
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
