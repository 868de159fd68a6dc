//! The check of the server's certificate, as libpq's modes define it.
//!
//! rustls' own verifier wants more than libpq does: names only in the alternative names, and no
//! certificate that is its own authority. Both are usual with PostgreSQL, so here a common name
//! counts where there are no alternative names, and a certificate of the file of authorities is
//! itself trusted. The handshake's signature is checked in every mode: who shows a certificate has its key.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_cert::der::{Decode, Encode};
use x509_cert::{Certificate, Version};

use super::error::FirstVersion;

#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Trust,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Which certificates are accepted.
#[derive(Debug)]
pub(super) enum Trust {
    /// Any: encryption against listeners, none against impostors.
    Anyone,
    Authorities(Authorities),
}

#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    /// The certificates of the file.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Whether the certificate must be the named host's.
    pub(super) named: bool,
}

impl Authorities {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.certificates.iter().any(|known| known == certificate) {
            check_time(certificate, now)?;
        } else {
            match self.chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
                // The name is looked at last, when all else holds; ours to judge, below.
                Err(Error::InvalidCertificate(error)) if concerns_name(&error) => {}
                Err(Error::InvalidCertificate(CertificateError::Other(other))) => {
                    return Err(in_libpqs_words(certificate, other)?);
                }
                other => {
                    other?;
                }
            }
        }
        if self.named { check_name(certificate, name) } else { Ok(()) }
    }
}

fn concerns_name(error: &CertificateError) -> bool {
    matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

/// rustls tells a certificate that is its own authority, and not one of ours, by its form.
fn in_libpqs_words(certificate: &CertificateDer<'_>, other: OtherError) -> Result<Error, Error> {
    let parsed = parse(certificate)?;
    let certified = parsed.tbs_certificate();
    Ok(Error::from(if certified.issuer() == certified.subject() {
        CertificateError::UnknownIssuer
    } else if certified.version() == Version::V1 {
        CertificateError::Other(OtherError(Arc::new(FirstVersion)))
    } else {
        CertificateError::Other(other)
    }))
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let validity = parsed.tbs_certificate().validity();
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let Err(error) = verify_server_name(&ParsedCertificate::try_from(certificate)?, name) else {
        return Ok(());
    };
    match &error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, expected })
            if presented.is_empty() =>
        {
            let common = parse(certificate)?.tbs_certificate().subject().common_name().ok().flatten();
            let common = common.map(|name| name.value().into_owned());
            if common.as_deref().is_some_and(|common| common_name_fits(common, name)) {
                return Ok(());
            }
            let presented = common.into_iter().collect();
            let expected = expected.clone();
            Err(CertificateError::NotValidForNameContext { expected, presented }.into())
        }
        _ => Err(error),
    }
}

/// A `*` stands for the first label of a name, and for no more.
fn common_name_fits(common: &str, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(name) => {
            let name = name.as_ref();
            let behind_first_label = name.split_once('.').map(|(_, rest)| rest);
            let wild = common.strip_prefix("*.").filter(|rest| rest.contains('.'));
            common.eq_ignore_ascii_case(name)
                || wild.zip(behind_first_label).is_some_and(|(wild, rest)| wild.eq_ignore_ascii_case(rest))
        }
        ServerName::IpAddress(address) => common.parse() == Ok(IpAddr::from(*address)),
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anyone => {}
            Trust::Authorities(known) => known.check(certificate, intermediates, name, ocsp, now)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    /// By the bare key, so that a certificate of X.509's first version will do where none is checked:
    /// `openssl x509 -req` made such ones for years.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = parse(certificate)?.tbs_certificate().subject_public_key_info().to_der();
        let key = SubjectPublicKeyInfoDer::from(key.map_err(|_| CertificateError::BadEncoding)?);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn common_names_fit_as_libpq_has_them() {
        for (common, host, fits) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", false),
            ("*", "db", false),
            ("other", "db", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("::1", "::1", true),
        ] {
            assert_eq!(common_name_fits(common, &host.try_into().unwrap()), fits, "{common} {host}");
        }
    }
}
