//! TLS for devices: a certificate and its key from PEM files, and what keeps them up to date.
//!
//! The files are read every few seconds, by content, so that every way to replace them works: written in
//! place, renamed, or swapped behind a symbolic link. A pair that cannot be used leaves the one before in
//! force. Handshakes that begin after a change take the new pair; connections that are open stay.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// How often the files are read. Certificates live for days at least.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// Why the files give no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not PEM: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate (`-----BEGIN CERTIFICATE-----`)", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key without a password (`-----BEGIN PRIVATE KEY-----`)", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate in tls_cert and the key in tls_key cannot be used together: {0}")]
    Pair(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Serves with what the files hold.
#[derive(Debug)]
pub(crate) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    /// What is in force came from this.
    loaded: Files,
    served: Arc<Served>,
    config: Arc<ServerConfig>,
}

#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// The pair for the next handshake.
#[derive(Debug)]
struct Served(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// Reads both files; what is wrong with them names the file.
    pub(crate) async fn load(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let loaded = read(&cert, &key).await?;
        let pair = certified(&cert, &key, &loaded, &provider)?;
        let served = Arc::new(Served(RwLock::new(Arc::new(pair))));
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&served) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A herd that comes back resumes without signatures, and without a memory of sessions here.
        config.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
        tell_expiry(&loaded.cert);
        Ok(Tls { cert, key, loaded, served, config: Arc::new(config) })
    }

    /// For every handshake: what is replaced later is replaced inside it.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Follows the files until the relay ends.
    pub(crate) async fn follow(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(RELOAD_INTERVAL);
        // What the files held at the look before, where it is not what is in force.
        let mut pending = None;
        let mut complained = None;
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            let found = read(&self.cert, &self.key).await;
            let found = found.and_then(|files| Ok((self.take(&files)?, files)));
            match found {
                Ok((false, _)) => {
                    (pending, complained) = (None, None);
                }
                Ok((true, files)) => {
                    tracing::info!(cert = %self.cert.display(), "the TLS certificate was replaced; new connections get it");
                    tell_expiry(&files.cert);
                    self.loaded = files;
                    (pending, complained) = (None, None);
                }
                Err(error) => {
                    // One file may be written before the other: what is seen twice is meant.
                    let said = error.to_string();
                    if pending.as_ref() == Some(&said) && complained.as_ref() != Some(&said) {
                        tracing::error!(%error, "the TLS certificate cannot be replaced; the one before stays in force. Mend the files, and it is tried again");
                        complained = Some(said.clone());
                    }
                    pending = Some(said);
                }
            }
        }
    }

    /// Puts a pair in force; whether it is another one.
    fn take(&self, files: &Files) -> Result<bool, TlsError> {
        if *files == self.loaded {
            return Ok(false);
        }
        let pair = certified(&self.cert, &self.key, files, self.config.crypto_provider())?;
        *self.served.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
        Ok(true)
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files")
    }
}

async fn read(cert: &Path, key: &Path) -> Result<Files, TlsError> {
    let file = async |path: &Path| {
        tokio::fs::read(path).await.map_err(|source| TlsError::Read { path: path.to_owned(), source })
    };
    Ok(Files { cert: file(cert).await?, key: file(key).await? })
}

fn certified(
    cert: &Path,
    key: &Path,
    files: &Files,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files.cert).collect();
    let chain = chain.map_err(|source| TlsError::Pem { path: cert.to_owned(), source })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: cert.to_owned() });
    }
    let private = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { path: key.to_owned() },
        source => TlsError::Pem { path: key.to_owned(), source },
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(TlsError::Pair)
}

/// When the certificate ends, for whoever watches the metrics.
fn tell_expiry(pem: &[u8]) {
    if let Some(end) = expiry(pem) {
        metrics::gauge!("rowcast_tls_certificate_expiry_seconds").set(end.as_secs_f64());
    }
}

/// The end of the first certificate's validity since 1970.
fn expiry(pem: &[u8]) -> Option<Duration> {
    let leaf = CertificateDer::from_pem_slice(pem).ok()?;
    let leaf = Certificate::from_der(&leaf).ok()?;
    Some(leaf.tbs_certificate().validity().not_after.to_unix_duration())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Pair {
        cert: String,
        key: String,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(vec!["relay.test".to_owned()]).unwrap();
        Pair { cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn holding(cert: &str, key: &str) -> Self {
            let place = Place(tempfile::tempdir().unwrap());
            std::fs::write(place.cert(), cert).unwrap();
            std::fs::write(place.key(), key).unwrap();
            place
        }

        fn cert(&self) -> PathBuf {
            self.0.path().join("cert.pem")
        }

        fn key(&self) -> PathBuf {
            self.0.path().join("key.pem")
        }

        async fn load(&self) -> Result<Tls, TlsError> {
            Tls::load(self.cert(), self.key()).await
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_files_is_said() {
        let (one, other) = (pair(), pair());
        for (cert, key, says) in [
            ("", one.key.as_str(), "cert.pem holds no certificate"),
            (&one.key, &one.key, "cert.pem holds no certificate"),
            (&one.cert, "", "key.pem holds no private key"),
            (&one.cert, &one.cert, "key.pem holds no private key"),
            (&one.cert, &other.key, "cannot be used together"),
            (
                "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n",
                &one.key,
                "cert.pem is not PEM",
            ),
        ] {
            let error = Place::holding(cert, key).load().await.unwrap_err().to_string();
            assert!(error.contains(says), "{says:?} is not in {error:?}");
            assert!(
                !error.contains("BEGIN RSA") && !error.contains(key.get(30..60).unwrap_or("?")),
                "{error}"
            );
        }
        let place = Place::holding(&one.cert, &one.key);
        std::fs::remove_file(place.key()).unwrap();
        assert!(place.load().await.unwrap_err().to_string().contains("key.pem cannot be read"));
    }

    #[tokio::test]
    async fn a_bad_pair_leaves_the_one_before_in_force() {
        let (one, other) = (pair(), pair());
        let tls = Place::holding(&one.cert, &one.key).load().await.unwrap();
        let before = Arc::clone(&tls.served.0.read().unwrap());
        let mixed = Files { cert: other.cert.clone().into(), key: one.key.clone().into() };
        assert!(tls.take(&mixed).is_err());
        assert!(Arc::ptr_eq(&before, &tls.served.0.read().unwrap()));
        assert!(!tls.take(&Files { cert: one.cert.into(), key: one.key.into() }).unwrap());
        assert!(tls.take(&Files { cert: other.cert.into(), key: other.key.into() }).unwrap());
        assert!(!Arc::ptr_eq(&before, &tls.served.0.read().unwrap()));
    }

    #[test]
    fn the_end_of_a_certificate_is_read() {
        // What rcgen makes ends in the year 4096.
        let years = expiry(pair().cert.as_bytes()).unwrap().as_secs() / (365 * 86_400);
        assert!((2_100..2_200).contains(&years), "{years}");
        assert_eq!(expiry(b"no certificate"), None);
    }
}
