//! The behaviour that the mount relies on: listings that can be believed, ranges that are exactly
//! as requested, versions that are not mixed.

use std::sync::Arc;

use crate::app::doctor::diagnosis::{Diagnosis, Severity, because};
use crate::app::doctor::requests::{again, ask, get};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, Nonsense, ObjectMeta, ObjectStore, ObjectVersion,
    StoreError, check_page,
};

/// The range of the range check: two blocks of the cache.
const RANGE_BYTES: u64 = 256 << 10;

/// Objects that are asked about one by one because their listing tells too little.
const MOST_ASKED: usize = 20;

/// The listing of a prefix.
struct Lister<'a> {
    store: &'a dyn ObjectStore,
    prefix: &'a str,
    /// The store lists in no order.
    any_order: bool,
    /// Listings without a delimiter are allowed.
    flat: bool,
}

/// The entries of the first pages.
pub(super) struct FirstPages {
    pub(super) entries: Vec<ListEntry>,
    /// They were listed without a delimiter.
    pub(super) flat: bool,
}

impl Lister<'_> {
    async fn page(&self, from: ListFrom, delimited: bool) -> Result<ListPage, StoreError> {
        let request = ListRequest {
            prefix: self.prefix.to_owned(),
            delimited: delimited || !self.flat,
            from,
            max_keys: 1000,
            any_order: self.any_order,
        };
        let page = self.store.list_page(&request).await?;
        check_page(&request, &page)?;
        Ok(page)
    }

    /// `start-after` a key whose successor is known.
    async fn start_after(&self, key: &str, next: Option<&ListEntry>, report: &mut Diagnosis) {
        let topic = "start-after";
        match ask(|| self.page(ListFrom::After(key.to_owned()), false)).await.0 {
            Ok(page) if page.entries.first() == next => report
                .ok(topic, "start-after is honoured, so large directories are listed in parallel"),
            Ok(_) | Err(StoreError::Nonsense(Nonsense::Backwards(_) | Nonsense::Unordered(_))) => {
                let what = "start-after is not honoured, so a directory is listed one page after the other";
                report.slow(topic, what);
            }
            Err(error) => report.wrong(topic, because("a listing from the middle fails", &error)),
        }
    }

    /// A delimiter rolls keys up; `first_key` is the first one without.
    async fn delimiter(&self, first_key: &str, report: &mut Diagnosis) {
        match ask(|| self.page(ListFrom::Start, true)).await.0 {
            Ok(page) => {
                let first = page.entries.first().map(ListEntry::key);
                // In no order, it begins anywhere.
                if first.is_some_and(|name| self.any_order || first_key.starts_with(name)) {
                    report.ok("directories", "delimiter listings roll directories up");
                } else {
                    let what = format!(
                        "a delimiter listing begins with {first:?}, and a listing without \
                         delimiter with {first_key:?}"
                    );
                    report.wrong("directories", what);
                }
            }
            Err(error) => {
                report.wrong("directories", because("directories cannot be listed", &error));
            }
        }
    }
}

/// Checks listings; returns the entries of the first pages, unless they cannot be believed.
pub(super) async fn listings(
    store: &Arc<dyn ObjectStore>,
    prefix: &str,
    report: &mut Diagnosis,
) -> Option<FirstPages> {
    let mut lister = Lister { store: &**store, prefix, any_order: false, flat: true };
    let (mut page, mut failures) = ask(|| lister.page(ListFrom::Start, false)).await;
    if matches!(page, Err(StoreError::Denied(_))) {
        lister.flat = false;
        (page, failures) = ask(|| lister.page(ListFrom::Start, false)).await;
        if page.is_ok() {
            let what = "listings without a delimiter are denied, so the mount lists each directory \
                        by itself; allow s3:ListBucket without the condition s3:delimiter";
            report.slow("policy", what);
        }
    }
    if matches!(page, Err(StoreError::Nonsense(Nonsense::Unordered(_)))) {
        lister.any_order = true;
        (page, failures) = ask(|| lister.page(ListFrom::Start, false)).await;
    }
    let ListPage { mut entries, next, undecodable, foreign } = page
        .map_err(|error| report.wrong("listing", because("names cannot be listed", &error)))
        .ok()?;
    let count = entries.len();
    let Some(end) = entries.last() else {
        report.slow("listing", "it works, but there is nothing to list");
        return None;
    };
    let (how, order) = if lister.any_order {
        let what =
            "in no order, so a directory is listed one page after the other and shown as a whole";
        (Severity::Slow, what)
    } else {
        (Severity::slow_if(failures > 0), "in order")
    };
    report.add(
        "listing",
        how,
        format!("ListObjectsV2 lists {count} keys on its first page, {order}{}", again(failures)),
    );
    if undecodable > 0 {
        let what = format!("{undecodable} keys of the first page are not UTF-8 and stay hidden");
        report.slow("names", what);
    }
    if foreign > 0 {
        let what = "entries of the first page are not of the prefix that was asked for, and stay";
        report.slow("names", format!("{foreign} {what} hidden"));
    }
    if let Some(token) = next {
        let last = end.key().to_owned();
        let next = || ListFrom::Token { token: token.clone(), last: last.clone() };
        match ask(|| lister.page(next(), false)).await.0 {
            Ok(page) => entries.extend(page.entries),
            Err(error) => {
                let what = because("no listing of more than one page can be believed", &error);
                report.wrong("paging", what);
                return None;
            }
        }
        report.ok("paging", "the second page follows the first");
    }
    let middle = count / 2;
    // Behind a directory's name it comes again.
    let is_object = matches!(entries[middle], ListEntry::Object(_));
    if count >= 3 && !lister.any_order && is_object {
        lister.start_after(entries[middle].key(), entries.get(middle + 1), report).await;
    }
    lister.delimiter(entries[0].key(), report).await;
    Some(FirstPages { entries, flat: lister.flat })
}

/// The first objects that the listing does not tell whole, as the mount would ask for them.
pub(super) async fn told(store: &Arc<dyn ObjectStore>, entries: &[ListEntry]) -> Vec<ObjectMeta> {
    let untold = entries.iter().filter(|entry| matches!(entry, ListEntry::Untold(_)));
    let mut told = Vec::new();
    for entry in untold.take(MOST_ASKED) {
        told.extend(ask(|| store.head(entry.key())).await.0.ok().map(|head| head.meta));
    }
    told
}

/// Checks that listing and HEAD agree.
pub(super) async fn metadata(
    store: &Arc<dyn ObjectStore>,
    listed: &ObjectMeta,
    report: &mut Diagnosis,
) -> bool {
    let key = &listed.version.key;
    let (head, failures) = ask(|| store.head(key)).await;
    let what = match head {
        Ok(head) if head.meta.version == listed.version => {
            let what = format!("listing and HEAD tell the same size and ETag{}", again(failures));
            report.add("versions", Severity::slow_if(failures > 0), what);
            return true;
        }
        Ok(head) => {
            let (one, other) = (&listed.version, &head.meta.version);
            format!(
                "listing and HEAD do not agree about {key:?}: {} and {} bytes, ETags {} and {}; is \
                 it being written to?",
                one.size_bytes, other.size_bytes, one.etag, other.etag
            )
        }
        Err(error) => because(&format!("HEAD of {key:?} fails"), &error),
    };
    report.wrong("versions", what);
    false
}

/// Checks that ranges are what was requested, of the version that was requested.
pub(super) async fn ranges(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    report: &mut Diagnosis,
) -> bool {
    let key = &version.key;
    let end = version.size_bytes.min(RANGE_BYTES);
    let middle = end / 2;
    let (whole, failures) = ask(|| get(store, version, 0..end)).await;
    let (half, more) = ask(|| get(store, version, middle..end)).await;
    let failures = failures + more;
    let (whole, half) = match (whole, half) {
        (Ok(whole), Ok(half)) => (whole, half),
        (Err(error), _) | (_, Err(error)) => {
            let what = match &error {
                StoreError::Denied(_) => because("objects may be listed but not read", &error),
                _ => because(&format!("a range of {key:?} cannot be read"), &error),
            };
            report.wrong("ranges", what);
            return false;
        }
    };
    // The length of a range is checked by the store itself (`ObjectStore::get_range`).
    let same = usize::try_from(middle).is_ok_and(|middle| whole.get(middle..) == Some(&half[..]));
    if !same {
        let what = format!(
            "two GETs of the same bytes of {key:?} gave different bytes; trust nothing that is \
             read through it, and look for what changes answers between here and the store"
        );
        report.wrong("ranges", what);
        return false;
    }
    let what = format!("ranges are exactly what was asked for{}", again(failures));
    report.add("ranges", Severity::slow_if(failures > 0), what);
    let other = ObjectVersion { etag: "\"doctor\"".to_owned(), ..version.clone() };
    match ask(|| get(store, &other, 0..1)).await.0 {
        Err(StoreError::Changed) => {
            report.ok("overwriting", "an object that is overwritten while it is read is noticed");
        }
        Ok(_) => report.wrong(
            "overwriting",
            "neither If-Match nor the ETag of an answer tells that an object was overwritten while \
             it was read, which would give a mixture; write new keys instead",
        ),
        Err(error) => report.wrong("overwriting", because("a GET with If-Match fails", &error)),
    }
    true
}
