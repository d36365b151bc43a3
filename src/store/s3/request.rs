//! Requests for a bucket and the objects in it: a template, made once, and the fields filled in.
//!
//! The SDK's orchestrator takes ten times the CPU of the rest of a small request, so that only its
//! endpoint rules are used, once. The SDK's own requests are the oracle (`request/tests.rs`).

use std::sync::Arc;
use std::time::SystemTime;

use ::http::Uri;
use aws_credential_types::Credentials;
use aws_smithy_types::endpoint::Endpoint;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::learnt::OptionalHeader;
use super::redirect::RedirectTarget;
use super::sign::{NO_BODY, Signer, UNSIGNED, amz_date};
use crate::store::wire::{Kind, Message, Origin};
use crate::store::{ListFrom, ListRequest, StoreError};

/// Sent and signed as they are: the unreserved characters of RFC 3986, and slashes.
const KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a query, where a slash is encoded.
const QUERY: &AsciiSet = &KEY.add(b'/');

/// Signatures by the endpoint rules, and the header that carries the token of each.
const TOKENS: [(&str, &str); 2] =
    [("sigv4", "x-amz-security-token"), ("sigv4-s3express", "x-amz-s3session-token")];

#[derive(Debug)]
pub(super) struct RequestTemplate {
    origin: Arc<Origin>,
    /// The path up to the key.
    path: String,
    user_agent: String,
    /// Sent and signed with every request; names in lower case.
    headers: Vec<(String, String)>,
    signer: Option<Signer>,
}

pub(super) struct RequestFields<'a> {
    pub(super) kind: Kind,
    /// Empty for the bucket.
    pub(super) key: &'a str,
    /// Encoded; empty for none.
    pub(super) query: &'a str,
    /// Names in lower case.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) optional: Option<OptionalHeader>,
    /// In pieces; none for none.
    pub(super) body: &'a [Bytes],
}

impl RequestTemplate {
    pub(super) fn new(
        endpoint: &Endpoint,
        user_agent: String,
        mut headers: Vec<(String, String)>,
        is_signed: bool,
    ) -> Result<Self, StoreError> {
        let odd = |what: &str| StoreError::nonsense(format!("no request could be made: {what}"));
        let base = format!("{}/", endpoint.url().trim_end_matches('/'));
        let uri: Uri = base.parse().map_err(|_| odd("an unknown URL"))?;
        let origin = Origin::of(&uri).map_err(|cause| odd(&cause))?;
        for (name, values) in endpoint.headers() {
            headers.extend(values.map(|value| (name.to_ascii_lowercase(), value.to_owned())));
        }
        let signer = if is_signed {
            let schemes = endpoint.auth_schemes();
            let found = TOKENS.into_iter().find_map(|(name, header)| {
                Some((schemes.iter().find(|scheme| scheme.name() == name)?, header))
            });
            let (scheme, token_header) = found.ok_or_else(|| odd("an unknown signature"))?;
            let text = |name| scheme.get(name).and_then(|value| value.as_string());
            let region = text("signingRegion").ok_or_else(|| odd("a signature for no region"))?;
            let service = text("signingName").unwrap_or("s3");
            Some(Signer::new(region.to_owned(), service.to_owned(), token_header))
        } else {
            None
        };
        let path = uri.path().to_owned();
        Ok(Self { origin: Arc::new(origin), path, user_agent, headers, signer })
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Signed for `time` if the template has a signer and there are credentials; for another place
    /// if it was redirected. A place that is not the store's gets only what the request is about.
    pub(super) fn fill(
        &self,
        fields: &RequestFields<'_>,
        place: Option<&RedirectTarget>,
        time: SystemTime,
        credentials: Option<&Credentials>,
    ) -> Result<Message, StoreError> {
        let method = match fields.kind {
            Kind::Head => "HEAD",
            Kind::List | Kind::Get => "GET",
            Kind::Put => "PUT",
        };
        let payload = if fields.body.is_empty() { NO_BODY } else { UNSIGNED };
        let (origin, path, query) = if let Some(place) = place {
            (&place.origin, place.path.clone(), &*place.query)
        } else {
            let path = format!("{}{}", self.path, utf8_percent_encode(fields.key, KEY));
            (&self.origin, path, fields.query)
        };
        let is_ours = place.is_none_or(|place| place.is_ours);
        let date = amz_date(time);
        let mut headers = Vec::with_capacity(16);
        headers.push(("host", origin.authority.as_str()));
        headers.extend(fields.headers);
        if is_ours {
            headers.extend(fields.optional.map(|header| (header.name, header.value)));
            headers.extend(self.headers.iter().map(|(name, value)| (&**name, &**value)));
        }
        let credentials = credentials.filter(|_| is_ours);
        let authorization = self.signer.as_ref().zip(credentials).map(|(signer, credentials)| {
            headers.extend([("x-amz-content-sha256", payload), ("x-amz-date", &date)]);
            let token = credentials.session_token();
            headers.extend(token.map(|token| (signer.token_header, token)));
            headers.sort_unstable_by_key(|(name, _)| *name);
            // A parameter without a value is signed with one that is empty.
            let is_bare = !query.is_empty() && !query.contains('=');
            let valued = is_bare.then(|| format!("{query}="));
            let line = (method, &*path, valued.as_deref().unwrap_or(query));
            signer.authorization(line, payload, &headers, (time, &date), credentials)
        });
        headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
        // Not signed, because proxies change them.
        let length = fields.body.iter().map(Bytes::len).sum::<usize>();
        let length = (length > 0).then(|| length.to_string());
        headers.extend(length.as_deref().map(|length| ("content-length", length)));
        headers.extend([("accept-encoding", "identity"), ("user-agent", &self.user_agent)]);
        // A line's end in a value would begin another header.
        let visible = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if let Some((name, _)) = headers.iter().find(|(_, value)| !visible(value)) {
            return Err(StoreError::nonsense(format!("no request could be made: an odd {name}")));
        }
        let mut text = String::with_capacity(1024);
        let mark = if query.is_empty() { "" } else { "?" };
        text.extend([method, " ", &path, mark, query, " HTTP/1.1\r\n"]);
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        Ok(Message::new(origin, text, fields.body, fields.kind))
    }
}

/// The query of a `ListObjectsV2`, encoded; names ascend, as they are signed.
pub(super) fn list_query(request: &ListRequest) -> String {
    let (after, token) = match &request.from {
        ListFrom::Start => (None, None),
        ListFrom::After(key) => (Some(&**key), None),
        ListFrom::Token { token, last: _ } => (None, Some(&**token)),
    };
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
    let mut query = String::with_capacity(256);
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        query.extend([if query.is_empty() { "" } else { "&" }, name, "="]);
        query.extend(utf8_percent_encode(value, QUERY));
    }
    query
}

#[cfg(test)]
mod tests;
