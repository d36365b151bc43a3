//! Where a store sends a request instead: a storage node, or a URL that is signed already. Pure.

use std::sync::Arc;

use ::http::Uri;

use crate::store::wire::Origin;

/// Redirects of one request that are followed.
pub(super) const MOST: usize = 3;

/// A place that a redirect names.
#[derive(Debug)]
pub(super) struct RedirectTarget {
    pub(super) origin: Arc<Origin>,
    pub(super) path: String,
    /// In the order of a signature.
    pub(super) query: String,
    /// The store's own origin, and not signed yet: our credentials may go there, and must.
    pub(super) is_ours: bool,
}

impl RedirectTarget {
    /// The place that an answer of `from` names to a request that is for `home`.
    pub(super) fn of(location: &str, from: &Origin, home: &Origin) -> Result<Self, String> {
        let scheme = if from.tls { "https" } else { "http" };
        let location = location.trim();
        let absolute = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", from.authority)
        } else {
            location.to_owned()
        };
        let uri: Uri = absolute.parse().map_err(|_| format!("a redirect to {location:?}"))?;
        let origin = Origin::of(&uri).map_err(|cause| format!("a redirect: {cause}"))?;
        if from.tls && !origin.tls {
            return Err("a redirect from https to http".to_owned());
        }
        let query = uri.query().unwrap_or_default();
        let is_ours = origin == *home && !is_signed(query);
        let query = if is_ours { in_order(query) } else { query.to_owned() };
        let path = if uri.path().is_empty() { "/" } else { uri.path() }.to_owned();
        Ok(Self { origin: Arc::new(origin), path, query, is_ours })
    }
}

fn is_signed(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        name.eq_ignore_ascii_case("X-Amz-Signature") || name == "Signature"
    })
}

/// AWS redirects to the endpoint of the bucket's region, where the request must be signed anew. A
/// place that is signed already is not meant so.
pub(super) fn is_endpoint_of_aws(location: &str) -> bool {
    let (place, query) = location.split_once('?').unwrap_or((location, ""));
    let behind_scheme = place.split_once("//").map_or("", |(_, rest)| rest);
    let host = behind_scheme.split('/').next().unwrap_or_default();
    host.contains(".amazonaws.com") && !is_signed(query)
}

fn in_order(query: &str) -> String {
    let mut pairs: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    let with_value =
        |pair: &&str| if pair.contains('=') { (*pair).to_owned() } else { format!("{pair}=") };
    pairs.iter().map(with_value).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn only_an_unsigned_place_at_aws_is_an_endpoint_of_a_region() {
        for (location, is) in [
            ("https://bucket.s3.eu-west-1.amazonaws.com/key", true),
            ("http://bucket.s3.amazonaws.com/a?X-Amz-Algorithm=x&X-Amz-Signature=abc", false),
            ("http://node:9/a?x-host=b.s3.amazonaws.com", false),
            ("/b.s3.amazonaws.com/key", false),
        ] {
            assert_eq!(is_endpoint_of_aws(location), is, "{location}");
        }
    }

    fn place(from: &str, location: &str) -> Result<RedirectTarget, String> {
        RedirectTarget::of(location, &origin(from), &origin("https://s3.h:9000"))
    }

    #[test]
    fn credentials_go_to_the_store_itself_and_to_nobody_else() {
        let home = "https://s3.h:9000";
        for (location, is_ours) in [
            ("https://s3.h:9000/b/k?c&a=1", true),
            ("/b/k?c&a=1", true),
            ("//s3.h:9000/b/k?c&a=1", true),
            ("https://s3.h:9000/b/k?X-Amz-Signature=1", false),
            ("https://s3.h:9000/b/k?Signature=1", false),
            ("https://s3.h:9001/b/k", false),
            ("https://s3.h/b/k", false),
            ("https://node.s3.h:9000/b/k", false),
            ("https://s3.h.evil.example:9000/b/k", false),
            ("https://s3.h@evil.example:9000/b/k", false),
            ("//node/b/k", false),
        ] {
            let place = place(home, location).unwrap();
            assert_eq!(place.is_ours, is_ours, "{location}");
            assert_eq!(place.path, "/b/k", "{location}");
            if is_ours {
                assert_eq!(place.query, "a=1&c=", "{location}");
            }
        }
        // The same path at a node is not at home.
        assert!(!place("https://node:1", "/b/k").unwrap().is_ours);
    }

    #[test]
    fn nothing_leads_from_https_to_http_or_nowhere() {
        assert!(place("https://s3.h:9000", "http://s3.h:9000/b/k").is_err());
        assert!(place("https://node", "http://node/b/k").is_err());
        assert!(place("http://node", "https://node/b/k").is_ok());
        assert!(place("http://node", "http://other/b/k").is_ok());
        for nowhere in ["", "k", "ftp://h/k", "http://", "http://h/a b", "file:///etc/passwd"] {
            assert!(place("http://node", nowhere).is_err(), "{nowhere}");
        }
    }
}
