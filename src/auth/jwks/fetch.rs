//! One request for a key set: bounded in time and size, over TLS or to this machine alone.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::auth::jwk::{JwkSet, NoKeySet};

/// For all of it: name, connection, TLS, answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Key sets have a few kilobytes, with certificate chains some dozens.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Issuers redirect from an old address to a new one, not around.
const MAX_REDIRECTS: usize = 3;

const ACCEPTED: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");

/// The address of a key set: https, or http on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl(Url);

/// Why a text is no address that keys may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwksUrlError {
    #[error("it is not a URL such as https://login.example/.well-known/jwks.json")]
    NoUrl,
    #[error(
        "keys that come without TLS can be anyone's; use https (http only to 127.0.0.1, [::1] or localhost)"
    )]
    Insecure,
    #[error("it holds a user name or password; key sets are public, leave it out")]
    Credentials,
}

impl JwksUrl {
    pub fn parse(text: &str) -> Result<Self, JwksUrlError> {
        let url = Url::parse(text).map_err(|_| JwksUrlError::NoUrl)?;
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" => return Err(JwksUrlError::Insecure),
            _ => return Err(JwksUrlError::NoUrl),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(JwksUrlError::Credentials);
        }
        Ok(JwksUrl(url))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }
}

/// For messages: without the query, which is nobody's business.
impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.fmt(f)
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Why no request can be made at all.
#[derive(Debug, thiserror::Error)]
pub enum JwksSetupError {
    #[error("jwks_ca_file {} cannot be read as PEM certificates: {source}", path.display())]
    CaFile { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("jwks_ca_file {} holds no certificate that can be trusted", path.display())]
    NoCertificate { path: PathBuf },
    #[error("this system has no certificate authorities; install its `ca-certificates`, or set jwks_ca_file")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
}

/// Why a fetch brought no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the answer's status is {0}")]
    Status(u16),
    #[error("the answer is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    NoKeySet(#[from] NoKeySet),
    #[error("the set holds no key for RS256, ES256 or EdDSA; {ignored} others were ignored")]
    NoUsableKey { ignored: usize },
}

impl FetchError {
    /// In one line, down to what the system said.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    url: JwksUrl,
}

impl Fetcher {
    pub(super) fn new(url: &JwksUrl, ca_file: Option<&Path>) -> Result<Self, JwksSetupError> {
        let roots = if url.is_https() { roots(ca_file)? } else { RootCertStore::empty() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("rowcast/", env!("CARGO_PKG_VERSION")))
            // Between refreshes nothing stays open.
            .pool_max_idle_per_host(0);
        let builder = if url.is_https() {
            builder.redirect(to_https_only())
        } else {
            // What is meant for this machine must not pass through a proxy, in the clear.
            builder.redirect(Policy::none()).no_proxy()
        };
        Ok(Fetcher { client: builder.build()?, url: url.clone() })
    }

    pub(super) fn url(&self) -> &JwksUrl {
        &self.url
    }

    /// Cancel-safe: the connection is dropped.
    pub(super) async fn fetch(&self) -> Result<JwkSet, FetchError> {
        tokio::time::timeout(TIMEOUT, self.request()).await.unwrap_or(Err(FetchError::Timeout))
    }

    async fn request(&self) -> Result<JwkSet, FetchError> {
        let request = self.client.get(self.url.0.clone()).header(ACCEPT, ACCEPTED);
        let answer = request.send().await.map_err(failed)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(answer.status().as_u16()));
        }
        Ok(JwkSet::parse(&body(answer).await?)?)
    }
}

async fn body(mut answer: Response) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The address is told by whoever logs this.
fn failed(error: reqwest::Error) -> FetchError {
    FetchError::Request(error.without_url())
}

fn to_https_only() -> Policy {
    Policy::custom(|attempt| {
        if attempt.url().scheme() != "https" {
            attempt.error("it redirects to an address without TLS")
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("it redirects too often")
        } else {
            attempt.follow()
        }
    })
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, JwksSetupError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let failed = |source| JwksSetupError::CaFile { path: path.to_owned(), source };
        let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        roots.add_parsable_certificates(certificates);
        return if roots.is_empty() {
            Err(JwksSetupError::NoCertificate { path: path.to_owned() })
        } else {
            Ok(roots)
        };
    }
    // One that cannot be read is not trusted, which is all that follows.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(JwksSetupError::NoRoots) } else { Ok(roots) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for good in [
            "https://login.example/.well-known/jwks.json",
            "https://10.0.0.1:8443/jwks",
            "http://127.0.0.1:9000/jwks",
            "http://127.1.2.3/",
            "http://[::1]:9000/jwks",
            "http://localhost/jwks?x=1",
        ] {
            assert!(JwksUrl::parse(good).is_ok(), "{good}");
        }
        for (bad, expected) in [
            ("", JwksUrlError::NoUrl),
            ("login.example/jwks", JwksUrlError::NoUrl),
            ("file:///etc/passwd", JwksUrlError::NoUrl),
            ("ftp://localhost/", JwksUrlError::NoUrl),
            ("http://login.example/jwks", JwksUrlError::Insecure),
            ("http://127.0.0.1.example/jwks", JwksUrlError::Insecure),
            ("http://localhost.example/", JwksUrlError::Insecure),
            ("http://localhost@login.example/", JwksUrlError::Insecure),
            ("http://0.0.0.0/", JwksUrlError::Insecure),
            ("http://192.168.0.1/", JwksUrlError::Insecure),
            ("https://me:hunter2@login.example/", JwksUrlError::Credentials),
            ("http://me@127.0.0.1/", JwksUrlError::Credentials),
        ] {
            assert_eq!(JwksUrl::parse(bad), Err(expected), "{bad}");
        }
        let url = JwksUrl::parse("https://login.example/jwks?key=hunter2#x").unwrap();
        assert_eq!(url.to_string(), "https://login.example/jwks");
    }
}
