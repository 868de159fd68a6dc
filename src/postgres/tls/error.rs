//! Why there is no TLS with a server.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription as Alert, CertificateError};

/// What went wrong, and what to do about it. The connection's error names the server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "the server does not offer TLS; turn on `ssl` there, or weaken sslmode if the network is trusted"
    )]
    NotOffered,
    /// Such as that it could not start a process.
    #[error("the server answered the request for TLS with an error; its log tells which")]
    ServerFailed,
    #[error("more than an answer came to the request for TLS: someone may be tampering with the connection")]
    Injected,
    #[error("the answer to the request for TLS is not PostgreSQL's; check host and port")]
    NotPostgres,
    #[error(
        "the connection broke in the handshake; before PostgreSQL 17 a server needs sslnegotiation=postgres"
    )]
    DirectRefused(#[source] io::Error),
    #[error("the connection broke in the handshake")]
    Socket(#[source] io::Error),
    #[error("TLS failed; check which versions and algorithms the server allows")]
    Handshake(#[source] rustls::Error),

    #[error(
        "the server's certificate comes from an authority that is not known here; name the authority's own \
         certificate with sslrootcert"
    )]
    UnknownAuthority,
    #[error(
        "the server's certificate is for {}, not for the host of database_url; connect by a name that it \
         has, or use sslmode=verify-ca", names(.0)
    )]
    WrongName(Vec<String>),
    #[error("the server's certificate has expired; renew it there")]
    Expired,
    #[error("the server's certificate is not valid yet; check the clocks on both sides")]
    NotYetValid,
    #[error("the server's certificate is on the list of revoked ones (sslcrl); renew it there")]
    Revoked,
    #[error("the list of revoked certificates (sslcrl) does not tell; bring it up to date")]
    RevocationUnknown,
    #[error(
        "the server's certificate is signed in a way that cannot be checked; have it signed by RSA or ECDSA \
         with SHA-256 or better"
    )]
    Algorithm,
    #[error(
        "the server's certificate is of X.509 version 1, which cannot be checked; make it anew with its names in \
         an extension (openssl x509 -req -extfile)"
    )]
    OldCertificate,
    #[error("the server's certificate cannot be used")]
    Certificate(#[source] rustls::Error),

    #[error("the server demands a client certificate; name one with sslcert and sslkey")]
    ClientCertificateMissing,
    #[error("the server refuses the client certificate ({0:?}); check sslcert, and the server's ssl_ca_file")]
    ClientCertificate(Alert),

    #[error(
        "sslmode demands that the server's certificate is checked, and there is no certificate of an \
         authority; name it with sslrootcert"
    )]
    NoAuthorities,
    #[error("the host's name cannot be that of a certificate; use another, or sslmode=verify-ca")]
    HostName,
    #[error("{keyword} {} cannot be read", path.display())]
    File { keyword: &'static str, path: PathBuf, source: io::Error },
    #[error("{keyword} {} {why}", path.display())]
    Content { keyword: &'static str, path: PathBuf, why: &'static str },
    #[error("sslcert and sslkey do not go together")]
    Mismatch(#[source] rustls::Error),
    #[error("the operating system has no certificates of authorities; name a file with sslrootcert")]
    NoSystemAuthorities,
}

impl TlsError {
    /// Whether trying again may help with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, TlsError::Socket(_) | TlsError::DirectRefused(_) | TlsError::ServerFailed)
    }

    /// Whether the two sides did not find a way to speak TLS at all: no check has failed.
    pub(crate) fn is_incompatible(&self) -> bool {
        matches!(self, TlsError::Handshake(_) | TlsError::Socket(_))
    }

    pub(super) fn from_handshake(error: io::Error, direct: bool) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(error) => Self::from(error),
            Err(error) if direct => TlsError::DirectRefused(error),
            Err(error) => TlsError::Socket(error),
        }
    }

    /// The reason within a failed read or write. In TLS 1.3 the server judges the client's certificate
    /// when the handshake is over for us, so that its refusal comes in place of its first message.
    pub(crate) fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<rustls::Error>().cloned().map(Self::from)
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => error.into(),
            rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => {
                TlsError::ClientCertificateMissing
            }
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied),
            ) => TlsError::ClientCertificate(alert),
            error => TlsError::Handshake(error),
        }
    }
}

impl From<CertificateError> for TlsError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => TlsError::UnknownAuthority,
            CertificateError::NotValidForNameContext { presented, .. } => TlsError::WrongName(presented),
            CertificateError::NotValidForName => TlsError::WrongName(Vec::new()),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsError::NotYetValid
            }
            CertificateError::Revoked => TlsError::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => TlsError::RevocationUnknown,
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                TlsError::Algorithm
            }
            CertificateError::Other(other) if other.0.is::<FirstVersion>() => TlsError::OldCertificate,
            error => TlsError::Certificate(error.into()),
        }
    }
}

/// What our own verifier adds to rustls' reasons.
#[derive(Debug, thiserror::Error)]
#[error("a certificate of X.509 version 1")]
pub(super) struct FirstVersion;

/// The names as rustls words them, `DnsName("db")`, less its words.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no host".to_owned();
    }
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        inner.trim_matches('"').to_owned()
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}
