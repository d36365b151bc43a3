//! Which bucket and key a request names, in either style of address.

use http::header::HOST;
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Empty if the request is about no bucket.
    pub(crate) bucket: String,
    /// Empty if the request is about the bucket itself.
    pub(crate) key: String,
}

impl Target {
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        Self::parse(uri.path(), host)
    }

    pub(crate) fn parse(path: &str, host: &str) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy();
        let path = path.strip_prefix('/').unwrap_or(&path);
        let (bucket, key) = match bucket_of_host(host) {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        Self { bucket: bucket.into(), key: key.into() }
    }

    pub(crate) fn is_object(&self) -> bool {
        !self.key.is_empty()
    }
}

/// Addresses of the form `bucket.localhost` name a bucket; all others are path-style.
pub(crate) struct LocalhostDomains;

impl S3Host for LocalhostDomains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let domain = VirtualHost::new("localhost");
        Ok(match bucket_of_host(host) {
            Some(bucket) => domain.with_bucket(bucket),
            None => domain,
        })
    }
}

fn bucket_of_host(host: &str) -> Option<&str> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix(".localhost").filter(|bucket| !bucket.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_address_name_the_same_key() {
        let same = Target { bucket: "abc".into(), key: "d/ e".into() };
        assert_eq!(Target::parse("/abc/d/%20e", "127.0.0.1:9"), same);
        assert_eq!(Target::parse("/d/%20e", "abc.localhost:9"), same);
        assert_eq!(Target::parse("/abc//", "127.0.0.1").key, "/");
        assert!(!Target::parse("/abc/", "127.0.0.1").is_object());
    }
}
