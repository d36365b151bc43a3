//! Pages of listings (`ListObjectsV2`), past the SDK ([`Direct`]).

use ::http::Response;
use aws_sdk_s3::operation::list_objects_v2::builders::ListObjectsV2FluentBuilder;
use aws_sdk_s3::types::EncodingType;
use tokio::time::timeout;

use super::connect::ATTEMPT_TIMEOUT;
use super::direct::Direct;
use super::errors::{About, failure};
use super::form::{Blank, query};
use super::http::Answered;
use super::protocol;
use crate::store::wire::Body;
use crate::store::{ListFrom, ListPage, ListRequest, StoreError};

mod page;

/// A thousand keys of 1,024 bytes, each written as three, and half a KiB about each of them, are
/// 3.5 MiB. Whoever sends more than twice that sends something else.
const LONGEST_PAGE: u64 = 8 << 20;

impl Direct {
    /// One request, and what it lists; [`check_page`](crate::store::check_page) checks its order.
    pub(super) async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        timeout(ATTEMPT_TIMEOUT, self.ask_for_page(request)).await.unwrap_or_else(|_elapsed| {
            let limit = ATTEMPT_TIMEOUT.as_secs();
            Err(StoreError::TimedOut(format!("no page of a listing within {limit} s")))
        })
    }

    async fn ask_for_page(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let query = asked(request);
        let response = self.send(&Blank { key: "", query: &query, headers: &[] }).await?;
        if !response.status().is_success() {
            return Err(self.refused_page(request, response).await);
        }
        let xml = response.into_body().whole(LONGEST_PAGE).await?;
        page::read(&xml)
    }

    /// What the SDK makes of a response that is no success.
    async fn refused_page(&self, request: &ListRequest, response: Response<Body>) -> StoreError {
        let answer = Answered::new(response);
        let sent = self
            .list_by_sdk(request)
            .customize()
            .mutate_request(move |request| request.add_extension(answer.clone()))
            .send()
            .await;
        let failure = match sent {
            Err(error) => failure(About::Bucket, &error),
            Ok(_) => protocol("a refusal that the SDK takes for a success"),
        };
        self.refused(&failure);
        failure
    }

    pub(super) fn list_by_sdk(&self, request: &ListRequest) -> ListObjectsV2FluentBuilder {
        let (after, token) = place(request);
        let (after, token) = (after.map(str::to_owned), token.map(str::to_owned));
        self.client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&request.prefix)
            .set_delimiter(request.delimited.then(|| "/".to_owned()))
            .set_start_after(after)
            .set_continuation_token(token)
            .max_keys(i32::from(request.max_keys))
            .encoding_type(EncodingType::Url)
            .set_request_payer(self.payer.clone())
    }
}

pub(super) fn asked(request: &ListRequest) -> String {
    let (after, token) = place(request);
    let max_keys = request.max_keys.to_string();
    let pairs = [
        ("continuation-token", token),
        ("delimiter", request.delimited.then_some("/")),
        // XML cannot carry every character that a key can.
        ("encoding-type", Some("url")),
        ("list-type", Some("2")),
        ("max-keys", Some(&*max_keys)),
        ("prefix", Some(&*request.prefix)),
        ("start-after", after),
    ];
    let given = pairs.iter().filter_map(|(name, value)| value.map(|value| (*name, value)));
    query(&given.collect::<Vec<_>>())
}

/// `start-after` and `continuation-token`.
fn place(request: &ListRequest) -> (Option<&str>, Option<&str>) {
    match &request.from {
        ListFrom::Start => (None, None),
        ListFrom::After(key) => (Some(key), None),
        ListFrom::Token { token, last: _ } => (None, Some(token)),
    }
}
