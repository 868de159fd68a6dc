//! From settings to what a connection needs: reads the certificates, keys and lists that are named.
//!
//! A file that the user named must be there. Of libpq's usual ones in `~/.postgresql`, what does not
//! exist is not used.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::channel::{ALPN, Security, Terms};
use super::error::TlsError;
use super::settings::{Authorities, Identity, Mode, Source, TlsSettings};
use super::verify::{self, Trust, Verifier};

type Certificates = Vec<CertificateDer<'static>>;

impl TlsSettings {
    /// The ways to connect to a host, in the order in which they are to be tried: when the server
    /// refuses one, the next may still do. Reads files.
    pub(crate) async fn ways(&self, host: &str) -> Result<Vec<Security>, TlsError> {
        if self.mode == Mode::Disable {
            return Ok(vec![Security::Plain]);
        }
        let (settings, name) = (self.clone(), host.to_owned());
        let loading = tokio::task::spawn_blocking(move || settings.terms(&name));
        let terms = loading.await.map_err(|error| TlsError::Socket(io::Error::other(error)))??;
        Ok(match self.mode {
            Mode::Disable => vec![Security::Plain],
            Mode::Allow => vec![Security::Plain, Security::Required(terms)],
            Mode::Prefer => vec![Security::IfOffered(terms), Security::Plain],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => vec![Security::Required(terms)],
        })
    }

    fn terms(&self, host: &str) -> Result<Terms, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier {
            trust: self.trust(&provider)?,
            algorithms: provider.signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .map_err(TlsError::Handshake)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match self.identity.as_ref().map(load_identity).transpose()?.flatten() {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(TlsError::Mismatch)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = self.server_name_indication;
        // PostgreSQL resumes no session.
        config.resumption = Resumption::disabled();
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if self.mode == Mode::VerifyFull => return Err(TlsError::HostName),
            // Looked at by no one, and not sent.
            Err(_) => ServerName::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        };
        Ok(Terms { connector: TlsConnector::from(Arc::new(config)), name, direct: self.direct })
    }

    fn trust(&self, provider: &Arc<CryptoProvider>) -> Result<Trust, TlsError> {
        let Some(certificates) = self.authorities()? else { return Ok(Trust::Anyone) };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let chain = match self.revoked()? {
            Some(lists) => builder.with_crls(lists).enforce_revocation_expiration(),
            None => builder,
        };
        // Fails without a usable authority, or with a list that does not parse.
        let chain = chain.build().map_err(|_| match &self.authorities {
            Authorities::System => TlsError::NoSystemAuthorities,
            Authorities::Named(path) | Authorities::Usual(Some(path)) => {
                let why = "or sslcrl holds what cannot be used";
                TlsError::Content { keyword: "sslrootcert", path: path.clone(), why }
            }
            Authorities::Usual(None) => TlsError::NoAuthorities,
        })?;
        let named = self.mode == Mode::VerifyFull;
        Ok(Trust::Authorities(verify::Authorities { chain, certificates, named }))
    }

    /// `None`: the certificate is not to be checked. As in libpq a file of authorities makes `require`
    /// check as `verify-ca` does; a named one also makes the weaker modes do so.
    fn authorities(&self) -> Result<Option<Certificates>, TlsError> {
        match &self.authorities {
            Authorities::System => {
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    tracing::warn!(%error, "a certificate of the operating system is left out");
                }
                Ok(Some(found.certs))
            }
            Authorities::Named(path) => Ok(Some(certificates("sslrootcert", path)?)),
            Authorities::Usual(Some(path)) if self.mode >= Mode::Require && path.exists() => {
                Ok(Some(certificates("sslrootcert", path)?))
            }
            Authorities::Usual(_) if self.mode >= Mode::VerifyCa => Err(TlsError::NoAuthorities),
            Authorities::Usual(_) => Ok(None),
        }
    }

    fn revoked(&self) -> Result<Option<Vec<CertificateRevocationListDer<'static>>>, TlsError> {
        let Some(path) = existing(&self.revoked) else { return Ok(None) };
        let text = read("sslcrl", path)?;
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        match lists {
            Ok(lists) if !lists.is_empty() => Ok(Some(lists)),
            _ => Err(content("sslcrl", path, "holds no list of revoked certificates in PEM")),
        }
    }
}

/// The file to be read: one that is named, or a usual one that exists.
fn existing(source: &Source) -> Option<&Path> {
    match source {
        Source::Named(path) => Some(path),
        Source::Usual(path) => path.as_deref().filter(|path| path.exists()),
    }
}

type Shown = (Certificates, PrivateKeyDer<'static>);

fn load_identity(identity: &Identity) -> Result<Option<Shown>, TlsError> {
    let Some(certificate) = existing(&identity.certificate) else { return Ok(None) };
    let chain = certificates("sslcert", certificate)?;
    let key = match &identity.key {
        Source::Named(path) | Source::Usual(Some(path)) => path,
        Source::Usual(None) => {
            return Err(content("sslcert", certificate, "has no key: name it with sslkey"));
        }
    };
    Ok(Some((chain, private_key(key)?)))
}

fn certificates(keyword: &'static str, path: &Path) -> Result<Certificates, TlsError> {
    let found: Result<Certificates, _> = CertificateDer::pem_slice_iter(&read(keyword, path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(content(keyword, path, "holds no certificate in PEM")),
    }
}

/// Refuses, as libpq does, a key that others may read: a group may only where root owns the file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const KEYWORD: &str = "sslkey";
    let file = |source| TlsError::File { keyword: KEYWORD, path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(file)?;
    if !metadata.is_file() {
        return Err(content(KEYWORD, path, "is not a plain file"));
    }
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(content(KEYWORD, path, "may be read by others: chmod 600 (640 if root owns it)"));
    }
    let text = read(KEYWORD, path)?;
    if memchr::memmem::find(&text, b"ENCRYPTED").is_some() {
        return Err(content(KEYWORD, path, "is encrypted, which is not supported: decrypt it and chmod 600"));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| content(KEYWORD, path, "holds no private key in PEM"))
}

fn read(keyword: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { keyword, path: path.to_owned(), source })
}

fn content(keyword: &'static str, path: &Path, why: &'static str) -> TlsError {
    TlsError::Content { keyword, path: PathBuf::from(path), why }
}
