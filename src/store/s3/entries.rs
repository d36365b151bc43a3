//! The bucket of a shared cache: the only place where this program writes to a store, and never to
//! one that is mounted.

use std::ops::Range;
use std::time::Duration;

use ::http::StatusCode;
use ::http::header::{CONTENT_RANGE, DATE, HeaderMap, LAST_MODIFIED};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::clock::seconds_between;
use super::request::RequestFields;
use super::response::About;
use super::{HEAD_BUCKET, Kind, S3Store};
use crate::store::StoreError;
use crate::store::shared::{EntryBody, EntryStore, FoundEntry};
use crate::store::wire::Body;

/// Entries below a prefix of a bucket.
#[derive(Debug)]
pub struct S3Entries {
    store: S3Store,
    /// Empty, or ends with `/`.
    prefix: String,
}

impl S3Entries {
    pub fn new(store: S3Store, prefix: String) -> Self {
        Self { store, prefix }
    }

    /// The head of an answer that is a success, and its body; `None` for 404, 412 and 416, and for
    /// 409, which says that another such request is on its way.
    /// It is signed anew once if its signature is refused.
    async fn ask(
        &self,
        fields: &RequestFields<'_>,
    ) -> Result<Option<(HeaderMap, Body)>, StoreError> {
        match self.ask_once(fields).await {
            Err(StoreError::SignatureRefused(_)) => self.ask_once(fields).await,
            answer => answer,
        }
    }

    async fn ask_once(
        &self,
        fields: &RequestFields<'_>,
    ) -> Result<Option<(HeaderMap, Body)>, StoreError> {
        let begun = Instant::now();
        let (head, body) = self.store.send(fields, None).await?.into_parts();
        if head.status.is_success() {
            return Ok(Some((head.headers, body)));
        }
        let refusal = self.store.refusal(&head, body).await?;
        let is_answer = matches!(
            head.status,
            StatusCode::CONFLICT
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if is_answer {
            return Ok(None);
        }
        match self.store.refused(About::Key, fields, refusal, begun).await.error {
            StoreError::NotFound => Ok(None),
            error => Err(error),
        }
    }
}

#[async_trait]
impl EntryStore for S3Entries {
    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<FoundEntry>, StoreError> {
        let key = format!("{}{key}", self.prefix);
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let headers = &[("range", bytes.as_str())];
        let fields = RequestFields { kind: Kind::Get, key: &key, headers, ..HEAD_BUCKET };
        let Some((headers, body)) = self.ask(&fields).await? else { return Ok(None) };
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let whole = text(CONTENT_RANGE).and_then(|text| text.rsplit_once('/')?.1.parse().ok());
        let Some(length) = whole.or(body.length()) else {
            return Err(StoreError::nonsense("an entry without a length"));
        };
        let age = text(LAST_MODIFIED).zip(text(DATE));
        let age = age.and_then(|(stored, now)| seconds_between(stored, now));
        let age = age.map(|seconds| Duration::from_secs(seconds.try_into().unwrap_or_default()));
        Ok(Some(FoundEntry { length, age, body: Box::new(body) }))
    }

    async fn put(
        &self,
        key: &str,
        entry: &[Bytes],
        only_if_absent: bool,
    ) -> Result<bool, StoreError> {
        let key = format!("{}{key}", self.prefix);
        let headers: &[_] = if only_if_absent { &[("if-none-match", "*")] } else { &[] };
        let fields = RequestFields { key: &key, headers, body: entry, ..HEAD_BUCKET };
        let answer = self.ask(&RequestFields { kind: Kind::Put, ..fields }).await?;
        let Some((_, body)) = answer else { return Ok(false) };
        body.whole(super::LONGEST_REFUSAL).await?;
        Ok(true)
    }
}

#[async_trait]
impl EntryBody for Body {
    async fn take(&mut self, length: u64, into: &mut Vec<u8>) -> Result<(), StoreError> {
        // Nothing is shown before all of it is proved.
        self.take(length, length, into).await
    }
}
