//! Proxies: which requests go through one, and how they are written to it. Sockets are opened in
//! [`dial`](super::dial).

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use http::{StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::CallError;
use super::connection::{HEAD_READ_BYTES, Stream};
use super::head;
use super::pool::Origin;

/// The proxies of the environment, read as curl does, except that machines know their own
/// link-local addresses best: a proxy is another machine than the one whose role is asked for.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Option<Arc<Matcher>>);

/// Each kind of variable, by the name that counts if both are set.
const HTTP: [&str; 2] = ["http_proxy", "HTTP_PROXY"];
const HTTPS: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const ALL: [&str; 2] = ["all_proxy", "ALL_PROXY"];
const NONE: [&str; 2] = ["no_proxy", "NO_PROXY"];

impl Proxies {
    /// The error names the variable that is no address of a proxy.
    pub fn of_environment() -> Result<Self, String> {
        Self::by(|name| std::env::var(name).ok())
    }

    fn by(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let told = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name)?)))
        };
        let proxy = |names| {
            let Some((name, url)) = told(names) else { return Ok(String::new()) };
            let any = Uri::from_static("http://any");
            match Matcher::builder().all(url.as_str()).build().intercept(&any) {
                Some(proxy) if Origin::of(proxy.uri()).is_ok() => Ok(url),
                // The value may hold a password.
                _ => Err(format!("{name} is not the address of an http or https proxy")),
            }
        };
        let (http, https, all) = (proxy(HTTP)?, proxy(HTTPS)?, proxy(ALL)?);
        if [&http, &https, &all].iter().all(|url| url.is_empty()) {
            return Ok(Self(None));
        }
        let none = told(NONE).map(|(_, hosts)| hosts).unwrap_or_default();
        // For the matcher this is a name, and addresses have none.
        if none.split(',').any(|host| host.trim() == "*") {
            return Ok(Self(None));
        }
        let matcher = Matcher::builder().http(http).https(https).all(all).no(none).build();
        Ok(Self(Some(Arc::new(matcher))))
    }

    /// The address of the proxy through which requests to this one go, without its password.
    pub fn to(&self, uri: &Uri) -> Option<Uri> {
        Some(self.found(uri)?.uri().clone())
    }

    fn found(&self, uri: &Uri) -> Option<Intercept> {
        let matcher = self.0.as_ref()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let is_local = host.parse().is_ok_and(|address| match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => {
                // The second is where the services of an EC2 instance answer.
                address.is_unicast_link_local() || address.segments()[..2] == [0xfd00, 0xec2]
            }
        });
        matcher.intercept(uri).filter(|_| !is_local)
    }

    pub(super) fn on_the_way_to(&self, origin: &Origin) -> Option<Proxy> {
        self.0.as_ref()?;
        let found = self.found(&origin.uri()?)?;
        let authorization = found.basic_auth().and_then(|value| value.to_str().ok());
        let authorization = authorization
            .map(|value| format!("proxy-authorization: {value}\r\n"))
            .unwrap_or_default();
        Some(Proxy { origin: Origin::of(found.uri()).ok()?, authorization })
    }
}

pub(super) struct Proxy {
    pub(super) origin: Origin,
    /// A header line, or empty.
    authorization: String,
}

impl Proxy {
    /// Has the proxy connect this stream to an origin (RFC 9110, section 9.3.6).
    pub(super) async fn tunnel<S: Stream>(
        &self,
        mut stream: S,
        to: &Origin,
    ) -> Result<S, CallError> {
        let host = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.clone() };
        let (port, authorization) = (to.port, &self.authorization);
        let request =
            format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n{authorization}\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut received = BytesMut::new();
        let answer = loop {
            if let Some(head) = head::parse(&mut received, true).map_err(CallError::NotHttp)? {
                break head.response;
            }
            received.reserve(HEAD_READ_BYTES);
            if stream.read_buf(&mut received).await? == 0 {
                return Err(self.refuses("it closes the connection"));
            }
        };
        self.check(answer.status())?;
        if !answer.status().is_success() || !received.is_empty() {
            return Err(self.refuses(&format!("{} for {host}:{port}", answer.status())));
        }
        Ok(stream)
    }

    /// A request without a tunnel, as a proxy reads it: with the whole URL (RFC 9112, section
    /// 3.2.2). `text` is one for the origin.
    pub(super) fn absolute(&self, text: &[u8], origin: &Origin) -> Vec<u8> {
        let after = |end: &[u8]| {
            let at = text.windows(end.len()).position(|found| found == end);
            at.map_or(text.len(), |at| at + end.len())
        };
        let (path, headers) = (after(b" "), after(b"\r\n"));
        let origin = format!("http://{}", origin.authority);
        let authorization = self.authorization.as_bytes();
        let (line, rest) = (&text[path..headers], &text[headers..]);
        [&text[..path], origin.as_bytes(), line, authorization, rest].concat()
    }

    /// An answer may be the proxy's own.
    pub(super) fn check(&self, status: StatusCode) -> Result<(), CallError> {
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(self.refuses("407, it wants a name and a password in its URL"));
        }
        Ok(())
    }

    /// Why no connection is made to it or through it.
    pub(super) fn refuses(&self, cause: &str) -> CallError {
        CallError::Unreachable(format!("the proxy {}: {cause}", self.origin.authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, String> {
        Proxies::by(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn to(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.to(&url.parse().unwrap()).map(|uri| uri.to_string())
    }

    #[test]
    fn the_scheme_chooses_the_proxy_and_lower_case_goes_before_upper_case() {
        let some = proxies(&[
            ("HTTPS_PROXY", "http://secure:1"),
            ("HTTP_PROXY", "http://upper:1"),
            ("http_proxy", "lower:2"),
        ]);
        let some = some.unwrap();
        assert_eq!(to(&some, "http://store:9000").as_deref(), Some("http://lower:2/"));
        assert_eq!(to(&some, "https://store").as_deref(), Some("http://secure:1/"));
        let all = proxies(&[("ALL_PROXY", "https://all"), ("http_proxy", "http://one")]).unwrap();
        assert_eq!(to(&all, "https://store").as_deref(), Some("https://all/"));
        assert_eq!(to(&all, "http://store").as_deref(), Some("http://one/"));
        assert_eq!(to(&Proxies::default(), "http://store"), None);
    }

    #[test]
    fn hosts_of_no_proxy_are_asked_directly() {
        let hosts = "example.com, .dotted.org,10.0.0.0/8,192.168.1.1,fd12::/16";
        let some = proxies(&[("https_proxy", "http://p:1"), ("NO_PROXY", hosts)]).unwrap();
        for (host, direct) in [
            ("example.com", true),
            ("a.EXAMPLE.com", true),
            ("notexample.com", false),
            ("a.dotted.org", true),
            ("10.1.2.3:9000", true),
            ("11.1.2.3", false),
            ("192.168.1.1", true),
            ("192.168.1.2", false),
            ("[fd12::1]:9000", true),
            ("[fd13::1]", false),
            // The roles of machines and containers.
            ("169.254.169.254", true),
            ("[fd00:ec2::254]", true),
            ("127.0.0.1:9000", false),
        ] {
            assert_eq!(to(&some, &format!("https://{host}/b")).is_none(), direct, "{host}");
        }
        let all = proxies(&[("https_proxy", "http://p:1"), ("no_proxy", "a, *")]).unwrap();
        assert_eq!((to(&all, "https://store"), to(&all, "https://10.0.0.1")), (None, None));
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_name_and_never_shown() {
        for url in ["socks5://me:hush@p:1", "ftp://me:hush@p", "http://", "me:hush@"] {
            let refused = proxies(&[("HTTPS_PROXY", url)]).unwrap_err();
            assert!(refused.contains("HTTPS_PROXY") && !refused.contains("hush"), "{refused}");
        }
        let some = proxies(&[("http_proxy", "http://me:hu%3Ash@p:1")]).unwrap();
        assert!(!format!("{some:?} {:?}", to(&some, "http://store")).contains("hu"));
    }

    #[test]
    fn a_request_to_a_proxy_has_the_whole_url() {
        let some = proxies(&[("http_proxy", "http://me:hu%3Ash@p:1")]).unwrap();
        let store = Origin::of(&"http://store:9000/".parse().unwrap()).unwrap();
        let proxy = some.on_the_way_to(&store).unwrap();
        let text = b"GET /b/k HTTP/1.1\r\nhost: store:9000\r\n\r\n";
        let want = "GET http://store:9000/b/k HTTP/1.1\r\n\
                    proxy-authorization: Basic bWU6aHU6c2g=\r\nhost: store:9000\r\n\r\n";
        assert_eq!(String::from_utf8(proxy.absolute(text, &store)).unwrap(), want);
    }
}
