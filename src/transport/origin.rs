//! Which web pages may speak to the relay: the `Origin` of a WebSocket, and CORS for everything else.
//!
//! Only browsers send `Origin`, and they cannot be told to lie. A request without one is no page's. A
//! page of the relay's own host is always welcome; others have to be named. Cookies are never read, so
//! a foreign page could only use a token that it has; this keeps pages from using an open relay, and
//! from trying tokens through their visitors.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::rate;

/// How long a browser need not ask again whether it may ask. Chromium remembers no longer.
const PREFLIGHT_AGE: Duration = Duration::from_secs(7200);

const ANY: &str = "*";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The origins that are named, or all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    named: Vec<String>,
}

/// Whether a text is an origin as browsers write it: `https://app.example.com`, without a path; or `null`,
/// or `*` for all of them.
pub(crate) fn is_origin(text: &str) -> bool {
    let host = |host: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        !host.is_empty() && host.bytes().all(plain)
    };
    let scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    match text.split_once("://") {
        Some((before, after)) => scheme(before) && host(after),
        None => text == ANY || text == "null",
    }
}

impl Origins {
    pub(crate) fn new(named: &[String]) -> Self {
        Origins { named: named.iter().map(|origin| origin.to_ascii_lowercase()).collect() }
    }

    /// Whether a socket may be opened by whoever sends these headers; `tls` where they came to the relay
    /// under TLS.
    pub(crate) fn allow(&self, headers: &HeaderMap, tls: bool) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return true };
        if origins.next().is_some() {
            return false;
        }
        let Ok(origin) = origin.to_str() else { return false };
        let origin = origin.to_ascii_lowercase();
        self.names(&origin) || is_own(&origin, headers, tls)
    }

    /// The answers that let pages of the named origins read ours; `None` where there are no such pages.
    pub(crate) fn cors(&self) -> Option<CorsLayer> {
        if self.named.is_empty() {
            return None;
        }
        let layer = CorsLayer::new()
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, LAST_EVENT_ID])
            .expose_headers([header::RETRY_AFTER, rate::POLICY, rate::REMAINING])
            .max_age(PREFLIGHT_AGE);
        if self.named.iter().any(|origin| origin == ANY) {
            return Some(layer.allow_origin(AllowOrigin::any()));
        }
        let origins = self.clone();
        let named = move |origin: &HeaderValue, _: &_| {
            origin.to_str().is_ok_and(|origin| origins.names(&origin.to_ascii_lowercase()))
        };
        Some(layer.allow_origin(AllowOrigin::predicate(named)))
    }

    fn names(&self, origin: &str) -> bool {
        self.named.iter().any(|named| named == ANY || named == origin)
    }
}

/// Whether a page's origin is the host that it asks. Where a proxy speaks TLS for the relay the scheme
/// cannot be compared.
fn is_own(origin: &str, headers: &HeaderMap, tls: bool) -> bool {
    let (port, origin) = match origin.split_once("://") {
        Some(("https", rest)) => (":443", rest),
        Some(("http", rest)) if !tls => (":80", rest),
        _ => return false,
    };
    let Some(host) = host(headers) else { return false };
    let host = host.to_ascii_lowercase();
    origin.strip_suffix(port).unwrap_or(origin) == host.strip_suffix(port).unwrap_or(&host)
}

/// The `Host` that was asked, if there is one, and only one.
fn host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next()?;
    if hosts.next().is_some() { None } else { first.to_str().ok() }
}

/// Whether the host that was asked is an address or this machine: no name that a foreign page could have
/// pointed here (DNS rebinding). A request without a host is no browser's.
pub(crate) fn asks_by_address(headers: &HeaderMap) -> bool {
    if !headers.contains_key(header::HOST) {
        return true;
    }
    let Some(host) = host(headers) else { return false };
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(origin: &[&str], host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for origin in origin {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn pages_of_other_hosts_have_to_be_named() {
        let listed = Origins::new(&["https://App.example.com".to_owned(), "null".to_owned()]);
        let cases: &[(&[&str], &str, bool, bool)] = &[
            (&[], "relay.test", false, true),
            (&["https://app.example.com"], "relay.test", false, true),
            (&["HTTPS://app.example.com"], "relay.test", false, true),
            (&["null"], "relay.test", false, true),
            (&["http://app.example.com"], "relay.test", false, false),
            (&["https://app.example.com:8443"], "relay.test", false, false),
            (&["https://app.example.com.evil.test"], "relay.test", false, false),
            (&["https://evil.test"], "relay.test", false, false),
            (&[""], "relay.test", false, false),
            // Its own.
            (&["https://relay.test"], "relay.test", false, true),
            (&["http://relay.test:4000"], "relay.test:4000", false, true),
            (&["https://relay.test"], "Relay.test:443", false, true),
            (&["http://relay.test"], "relay.test:80", false, true),
            (&["https://relay.test"], "relay.test:4000", false, false),
            (&["http://relay.test"], "relay.test", true, false),
            (&["https://relay.test"], "relay.test", true, true),
            (&["ftp://relay.test"], "relay.test", false, false),
            (&["https://relay.test/x"], "relay.test", false, false),
            (&["https://relay.test.evil.test"], "relay.test", false, false),
            // Which of two counts would depend on who reads them.
            (&["https://relay.test", "https://evil.test"], "relay.test", false, false),
        ];
        for (origin, host, tls, allowed) in cases {
            assert_eq!(listed.allow(&headers(origin, host), *tls), *allowed, "{origin:?} {host} {tls}");
        }
        assert!(!Origins::default().allow(&headers(&["https://app.example.com"], "relay.test"), false));
        let all = Origins::new(&["*".to_owned()]);
        assert!(all.allow(&headers(&["https://evil.test"], "relay.test"), true));
        assert!(Origins::default().cors().is_none());
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for good in [
            "https://a.test",
            "http://localhost:3000",
            "capacitor://localhost",
            "null",
            "*",
            "http://[::1]:3",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in
            ["", "a.test", "https://", "https://a.test/", "https://*.a.test", "://a", "https://a b", "1x://a"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn a_name_may_have_been_pointed_here_by_anyone() {
        for own in ["localhost", "LOCALHOST:4000", "127.0.0.1:4000", "127.0.0.1", "[::1]:4000", "[::1]"] {
            assert!(asks_by_address(&headers(&[], own)), "{own}");
        }
        for name in ["evil.test:4000", "localhost.evil.test", "127.0.0.1.evil.test", ""] {
            assert!(!asks_by_address(&headers(&[], name)), "{name}");
        }
        assert!(asks_by_address(&HeaderMap::new()));
    }
}
