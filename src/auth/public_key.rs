//! Public keys of the configuration: PEM text, or a file that holds it.
//!
//! SubjectPublicKeyInfo (`BEGIN PUBLIC KEY`), what `openssl … -pubout` writes. One text may hold
//! several. Whatever else is there is refused with the command that turns it into that; what was given
//! is never shown, since it may be the private half.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{PemObject, SectionKind};
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Error as DerError, Reader, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::keys::{Key, KeyError, Material};
use super::secret::Secret;

/// A key has less than a kilobyte. Room for dozens, and a bound for a path that is not what was meant.
const MAX_FILE_BYTES: u64 = 64 * 1024;

// RFC 3279, sections 2.3.1 and 2.3.5; RFC 5480, section 2.1.1.1; RFC 8410, section 3.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Where a public key is to be had.
#[derive(Clone, PartialEq, Eq)]
pub enum PublicKeySource {
    Pem(Secret),
    File(PathBuf),
}

/// Why a public key cannot be used; the rest of a sentence about it.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeyError {
    #[error("the file {} cannot be read: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the file {} is larger than {MAX_FILE_BYTES} bytes, so it holds no public key", path.display())]
    FileSize { path: PathBuf },
    #[error("it holds no `BEGIN PUBLIC KEY`; write one with `openssl pkey -in private.pem -pubout`")]
    NoKey,
    #[error("it is not well-formed PEM")]
    Pem,
    #[error(
        "it holds a private key, which belongs to the issuer alone; give its public half: `openssl pkey -in private.pem -pubout`"
    )]
    Private,
    #[error("it holds a certificate; give its key: `openssl x509 -in cert.pem -pubkey -noout`")]
    Certificate,
    #[error("it is not a well-formed public key (SubjectPublicKeyInfo)")]
    Malformed,
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl PublicKeySource {
    /// PEM text, also with `\n` written out as in many environment files; anything else is a path.
    pub fn parse(text: &str) -> Self {
        if text.contains("-----BEGIN ") {
            PublicKeySource::Pem(Secret::new(text.replace("\\n", "\n")))
        } else {
            PublicKeySource::File(text.into())
        }
    }

    /// Reads the file, if it is one, and every key; whether that can be done, not whether it is used.
    pub fn check(&self) -> Result<(), PublicKeyError> {
        self.load().map(drop)
    }

    pub(super) fn load(&self) -> Result<Vec<Key>, PublicKeyError> {
        match self {
            PublicKeySource::Pem(text) => keys_of(text.expose().as_bytes()),
            PublicKeySource::File(path) => keys_of(&read(path)?),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PublicKeyError> {
    let failed = |source| PublicKeyError::File { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(PublicKeyError::FileSize { path: path.to_owned() });
    }
    Ok(text)
}

fn keys_of(pem: &[u8]) -> Result<Vec<Key>, PublicKeyError> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        match section.map_err(|_| PublicKeyError::Pem)? {
            (SectionKind::PublicKey, der) => keys.push(key_of(&der)?),
            (SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey, _) => {
                return Err(PublicKeyError::Private);
            }
            (SectionKind::Certificate, _) => return Err(PublicKeyError::Certificate),
            _ => {}
        }
    }
    if keys.is_empty() { Err(PublicKeyError::NoKey) } else { Ok(keys) }
}

fn key_of(der: &[u8]) -> Result<Key, PublicKeyError> {
    let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| PublicKeyError::Malformed)?;
    let bytes = info.subject_public_key.as_bytes().ok_or(PublicKeyError::Malformed)?;
    let curve = || info.algorithm.parameters_oid().ok();
    let key = match info.algorithm.oid {
        RSA => {
            let (n, e) = rsa_numbers(bytes).map_err(|_| PublicKeyError::Malformed)?;
            Key::public(None, Material::Rsa { n: n.as_bytes(), e: e.as_bytes() })
        }
        ELLIPTIC_CURVE if curve() == Some(P256) => Key::public(None, Material::P256(bytes)),
        ED25519 => Key::public(None, Material::Ed25519(bytes)),
        _ => Err(KeyError::Kind),
    };
    Ok(key?)
}

/// RSAPublicKey (RFC 8017, section A.1.1).
fn rsa_numbers(der: &[u8]) -> Result<(UintRef<'_>, UintRef<'_>), DerError> {
    let mut reader = SliceReader::new(der)?;
    let numbers = reader
        .sequence::<_, _, DerError>(|reader| Ok((UintRef::decode(reader)?, UintRef::decode(reader)?)))?;
    reader.finish()?;
    Ok(numbers)
}

impl fmt::Debug for PublicKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Perhaps a private key, given by mistake.
            PublicKeySource::Pem(_) => f.write_str("PEM"),
            PublicKeySource::File(path) => path.fmt(f),
        }
    }
}
