//! `tls-server-end-point`: the hash of the server's certificate by which SCRAM notices that someone
//! stands between us and the server. RFC 5929, section 4.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ContextSpecific;
use x509_cert::der::{Decode, oid::ObjectIdentifier};
use x509_cert::der::{Reader, SliceReader, TagNumber};
use x509_cert::spki::AlgorithmIdentifierOwned;

/// The hash; `None` where the RFC defines none, as for Ed25519.
pub(super) fn tls_server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    Some(match signature_hash(parsed.signature_algorithm())? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash within a signature algorithm; SHA-256 takes the place of MD5 and SHA-1.
fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    match algorithm.oid.to_string().as_str() {
        // RSA with MD5, SHA-1 and SHA-256, ECDSA with SHA-1 and SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(Hash::Sha256),
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Some(Hash::Sha224),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        // RSASSA-PSS names its hash in its parameters.
        "1.2.840.113549.1.1.10" => pss_hash(algorithm),
        _ => None,
    }
}

/// Field 0 of the parameters of RSASSA-PSS (RFC 4055); SHA-1 where it is left out.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    let mut reader = SliceReader::new(algorithm.parameters.as_ref()?.value()).ok()?;
    if reader.is_finished() {
        return Some(Hash::Sha256);
    }
    let field = ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(&mut reader, TagNumber(0));
    field.ok()?.map_or(Some(Hash::Sha256), |field| digest(field.value.oid))
}

fn digest(oid: ObjectIdentifier) -> Option<Hash> {
    match oid.to_string().as_str() {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use x509_cert::der::Tag;
    use x509_cert::der::asn1::Any;

    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(["db".to_owned()]).unwrap().self_signed(&key).unwrap().into()
    }

    #[test]
    fn the_hash_is_the_signatures_own() {
        let certificate256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        let expected = Sha256::digest(&certificate256).to_vec();
        assert_eq!(tls_server_end_point(&certificate256), Some(expected));
        let certificate384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        let expected = Sha384::digest(&certificate384).to_vec();
        assert_eq!(tls_server_end_point(&certificate384), Some(expected));
    }

    #[test]
    fn without_a_hash_there_is_no_binding() {
        assert_eq!(tls_server_end_point(&certificate(&rcgen::PKCS_ED25519)), None);
        assert_eq!(tls_server_end_point(&CertificateDer::from(vec![0x30, 1])), None);
    }

    #[test]
    fn weak_hashes_are_replaced_and_pss_tells_its_own() {
        let named = |oid: &str, parameters: Option<&[u8]>| AlgorithmIdentifierOwned {
            oid: oid.parse().unwrap(),
            parameters: parameters.map(|bytes| Any::new(Tag::Sequence, bytes).unwrap()),
        };
        for weak in ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5", "1.2.840.10045.4.1"] {
            assert_eq!(signature_hash(&named(weak, None)), Some(Hash::Sha256), "{weak}");
        }
        const PSS: &str = "1.2.840.113549.1.1.10";
        // [0] { SEQUENCE { OID 2.16.840.1.101.3.4.2.3 } }
        let sha512 = [0xa0, 13, 0x30, 11, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];
        assert_eq!(signature_hash(&named(PSS, Some(&sha512))), Some(Hash::Sha512));
        assert_eq!(signature_hash(&named(PSS, Some(&[]))), Some(Hash::Sha256));
        assert_eq!(signature_hash(&named(PSS, Some(&[0xa0, 99]))), None);
        assert_eq!(signature_hash(&named(PSS, None)), None);
    }
}
