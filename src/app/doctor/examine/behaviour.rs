//! Whether the store does what the mount relies on: listings that can be believed, ranges that are
//! exactly what was asked for, versions that are not mixed.

use std::cell::Cell;
use std::sync::Arc;

use super::super::report::{Report, because};
use super::Plan;
use crate::app::doctor::report::State;
use crate::app::doctor::requests::{again, ask, get, state};
use crate::store::{
    ListEntry, ListFrom, ListPage, ListRequest, Nonsense, ObjectMeta, ObjectStore, ObjectVersion,
    StoreError, check_page,
};

/// What a range is checked with: two blocks of the cache.
const RANGE_BYTES: u64 = 256 << 10;

async fn checked_page(
    store: &Arc<dyn ObjectStore>,
    request: ListRequest,
) -> Result<ListPage, StoreError> {
    let page = store.list_page(&request).await?;
    check_page(&request, &page)?;
    Ok(page)
}

/// Whether listings can be believed; the entries of the first pages, unless they cannot.
pub(super) async fn listings(
    store: &Arc<dyn ObjectStore>,
    plan: &Plan,
    report: &mut Report,
) -> Option<Vec<ListEntry>> {
    let is_unordered = Cell::new(false);
    let list = |from, delimited| {
        let request = ListRequest {
            prefix: plan.prefix.clone(),
            delimited,
            from,
            max_keys: 1000,
            any_order: is_unordered.get(),
        };
        checked_page(store, request)
    };
    let (mut page, mut failures) = ask(|| list(ListFrom::Start, false)).await;
    if matches!(page, Err(StoreError::Nonsense(Nonsense::Unordered(_)))) {
        is_unordered.set(true);
        (page, failures) = ask(|| list(ListFrom::Start, false)).await;
    }
    let first = match page {
        Ok(page) => page,
        Err(error) => {
            report.wrong("listing", because("names cannot be listed", &error));
            return None;
        }
    };
    let mut entries = first.entries;
    let count = entries.len();
    let Some(end) = entries.last() else {
        report.slow("listing", "it works, but there is nothing to list");
        return None;
    };
    let (how, order) = if is_unordered.get() {
        let slow =
            "in no order, so a directory is listed one page after the other and shown as a whole";
        (State::Slow, slow)
    } else {
        (state(failures), "in order")
    };
    report.add(
        "listing",
        how,
        format!("ListObjectsV2 lists {count} keys on its first page, {order}{}", again(failures)),
    );
    if first.undecodable > 0 {
        let what =
            format!("{} keys of the first page are not UTF-8 and stay hidden", first.undecodable);
        report.slow("names", what);
    }
    if let Some(token) = first.next {
        let end = end.key().to_owned();
        let next = || ListFrom::Token { token: token.clone(), last: end.clone() };
        match ask(|| list(next(), false)).await.0 {
            Ok(page) => {
                entries.extend(page.entries);
                report.ok("paging", "the second page follows the first");
            }
            Err(error) => {
                let what = because("no listing of more than one page can be believed", &error);
                report.wrong("paging", what);
                return None;
            }
        }
    }
    if count >= 3 && !is_unordered.get() {
        let middle = count / 2;
        let after = || ListFrom::After(entries[middle].key().to_owned());
        match ask(|| list(after(), false)).await.0 {
            Ok(page) if page.entries.first() == entries.get(middle + 1) => {
                let what = "start-after is honoured, so large directories are listed in parallel";
                report.ok("start-after", what);
            }
            Ok(_) | Err(StoreError::Nonsense(Nonsense::Backwards(_) | Nonsense::Unordered(_))) => report.slow(
                "start-after",
                "start-after is not honoured, so a directory is listed one page after the other",
            ),
            Err(error) => {
                let what = because("a listing from the middle fails", &error);
                report.wrong("start-after", what);
            }
        }
    }
    match ask(|| list(ListFrom::Start, true)).await.0 {
        Ok(page) => {
            let first = page.entries.first().map(ListEntry::key);
            // In no order, it begins anywhere.
            if first.is_some_and(|name| is_unordered.get() || entries[0].key().starts_with(name)) {
                report.ok("directories", "delimiter listings roll directories up");
            } else {
                let what =
                    format!("a delimiter listing begins with {first:?} and not with what is there");
                report.wrong("directories", what);
            }
        }
        Err(error) => {
            let what = because("directories cannot be listed", &error);
            report.wrong("directories", what);
        }
    }
    Some(entries)
}

/// Whether listing and HEAD tell the same.
pub(super) async fn metadata(
    store: &Arc<dyn ObjectStore>,
    listed: &ObjectMeta,
    report: &mut Report,
) -> bool {
    let key = &listed.version.key;
    let (told, failures) = ask(|| store.head(key)).await;
    match told {
        Ok(told) if told.meta.version == listed.version => {
            let what = format!("listing and HEAD tell the same size and ETag{}", again(failures));
            report.add("versions", state(failures), what);
            true
        }
        Ok(told) => {
            let (one, other) = (&listed.version, &told.meta.version);
            let what = format!(
                "listing and HEAD do not agree about {key:?}: {} and {} bytes, ETags {} and {}; is it \
                 being written?",
                one.size_bytes, other.size_bytes, one.etag, other.etag
            );
            report.wrong("versions", what);
            false
        }
        Err(error) => {
            report.wrong("versions", because(&format!("HEAD of {key:?} fails"), &error));
            false
        }
    }
}

/// Whether ranges are what was asked for, of the version that was asked for.
pub(super) async fn ranges(
    store: &Arc<dyn ObjectStore>,
    version: &ObjectVersion,
    report: &mut Report,
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
    // A store below the seam gives exactly what was asked for, or it is no store of this program's.
    let same = usize::try_from(middle).is_ok_and(|middle| whole.get(middle..) == Some(&half[..]));
    if !same {
        let what = format!(
            "two GETs of the same bytes of {key:?} gave different bytes; trust \
             nothing that is read through it, and look for what changes answers between here and the \
             store"
        );
        report.wrong("ranges", what);
        return false;
    }
    let what = format!("ranges are exactly what was asked for{}", again(failures));
    report.add("ranges", state(failures), what);
    let other = ObjectVersion { etag: "\"doctor\"".to_owned(), ..version.clone() };
    match ask(|| get(store, &other, 0..1)).await.0 {
        Err(StoreError::Changed) => {
            report.ok("overwriting", "an object that is overwritten while it is read is noticed");
        }
        Ok(_) => report.wrong(
            "overwriting",
            "neither If-Match nor the ETag of an answer tells that an object was overwritten while it \
             was read, which would give a mixture; write new keys instead",
        ),
        Err(error) => report.wrong("overwriting", because("a GET with If-Match fails", &error)),
    }
    true
}
