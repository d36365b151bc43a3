//! GETs of bytes of an object, past the SDK ([`Direct`]).

use std::ops::Range;

use ::http::Response;
use ::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap};
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use bytes::BufMut;

use super::checksum::{self, Checksum};
use super::direct::Direct;
use super::errors::{About, failure};
use super::form::Blank;
use super::http::Answered;
use super::{protocol, quoted};
use crate::store::wire::Body;
use crate::store::{ObjectVersion, StoreError};

/// Whole objects of up to so many bytes are shown only when their checksum was right, if the store has
/// one: until then they lie outside of the cache, which has no way to take bytes back that came too
/// early, and so outside of the memory budget: 128 GETs in flight take 32 MiB.
const CHECKED_BYTES: u64 = 256 << 10;

impl Direct {
    /// One request, and its body into the target.
    pub(super) async fn get(
        &self,
        version: &ObjectVersion,
        range: &Range<u64>,
        into: &mut (dyn BufMut + Send),
    ) -> Result<(), StoreError> {
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let is_checked = *range == (0..version.size_bytes) && version.size_bytes <= CHECKED_BYTES;
        // S3 tells no checksum of the whole with a range.
        let last = if is_checked { checksum::ASK } else { ("range", bytes.as_str()) };
        let headers = [("if-match", version.etag.as_str()), last];
        let response =
            self.send(&Blank { key: &version.key, query: "", headers: &headers }).await?;
        if !response.status().is_success() {
            return Err(self.refusal(&version.key, response).await);
        }
        let (head, body) = response.into_parts();
        check_response(version, range, &head.headers)?;
        let length = range.end - range.start;
        match Checksum::told(&head.headers).filter(|_| is_checked) {
            Some(checksum) => receive_checked(body, length, checksum, into).await,
            None => body.receive(length, into).await,
        }
    }

    /// What the SDK makes of a response that is no success.
    async fn refusal(&self, key: &str, response: Response<Body>) -> StoreError {
        let answer = Answered::new(response);
        let sent = self
            .get_by_sdk(key)
            .customize()
            .mutate_request(move |request| request.add_extension(answer.clone()))
            .send()
            .await;
        let failure = match sent {
            Err(error) => failure(About::Key, &error),
            Ok(_) => protocol("a refusal that the SDK takes for a success"),
        };
        self.refused(&failure);
        failure
    }

    pub(super) fn get_by_sdk(&self, key: &str) -> GetObjectFluentBuilder {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        get.set_request_payer(self.payer.clone())
    }
}

/// Receives a small body, and gives it out if it is right.
async fn receive_checked(
    body: Body,
    length: u64,
    checksum: Checksum,
    into: &mut (dyn BufMut + Send),
) -> Result<(), StoreError> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    let received = body.receive(length, &mut bytes).await;
    if received.is_ok() {
        checksum.check(&bytes)?;
    }
    // What came of a body that broke is gone on from, so that a broken line gets on: no sum is told
    // of the rest.
    into.put_slice(&bytes);
    received
}

/// Checks, before a byte of it is taken, that a response carries these bytes of this version.
fn check_response(
    version: &ObjectVersion,
    range: &Range<u64>,
    headers: &HeaderMap,
) -> Result<(), StoreError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let length = range.end - range.start;
    match text(CONTENT_RANGE) {
        Some(text) => {
            let want = format!("bytes {}-{}/{}", range.start, range.end - 1, version.size_bytes);
            if text != want {
                return Err(protocol(format!("asked for {want:?}, got {text:?}")));
            }
        }
        // 200: the whole object, which is right only when all of it was asked for.
        None if length == version.size_bytes => {}
        None => return Err(protocol(format!("asked for bytes {range:?}, got the whole object"))),
    }
    let got = text(CONTENT_LENGTH);
    if got.and_then(|length| length.parse().ok()) != Some(length) {
        return Err(protocol(format!("asked for {length} bytes, got a body of {got:?}")));
    }
    match text(ETAG) {
        Some(etag) if quoted(etag) == quoted(&version.etag) => Ok(()),
        // `If-Match` should have made this a 412; whoever ignores it sends another version.
        Some(_) => Err(StoreError::Changed),
        None => Err(protocol("a body without an ETag")),
    }
}

#[cfg(test)]
mod tests;
