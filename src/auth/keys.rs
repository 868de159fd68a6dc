//! The keys that signatures are checked with.
//!
//! A key belongs to exactly one algorithm, and the key decides which algorithm a token may name: a
//! token never chooses how it is checked. So the text of a public key is never an HS256 secret, and a
//! key on one curve never checks the signatures of another. A key set's keys are chosen by the header's
//! `kid`, which is only ever compared; `jku`, `x5u`, `x5c` and `jwk` are not looked at.
//!
//! Pure: where keys come from is the concern of [`super::public_key`] (configuration) and
//! [`super::jwks`] (the issuer's address).

use std::fmt;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, crypto, decode, decode_header};

use super::claims::Claims;
use super::error::AuthError;
use super::secret::Secret;

/// The shortest HS256 secret: as long as the hash (RFC 7518, section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// RFC 7518, section 3.3.
const MIN_RSA_BITS: usize = 2048;
/// What the library computes with; a larger key costs every token, and serves nobody.
const MAX_RSA_BITS: usize = 4096;
/// Public exponents are small; one of this size makes each check a hundred times dearer.
const MAX_RSA_EXPONENT_BYTES: usize = 4;
const ED25519_BYTES: usize = 32;

/// A signature of zeros, in base64url: as long as those of ES256 and EdDSA.
const NO_SIGNATURE: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What a public key is made of, by its algorithm.
#[derive(Debug, Clone, Copy)]
pub(super) enum Material<'a> {
    /// RS256: modulus and exponent, big-endian.
    Rsa { n: &'a [u8], e: &'a [u8] },
    /// ES256: a point on P-256 (SEC 1, section 2.3.3).
    P256(&'a [u8]),
    /// EdDSA (RFC 8032, section 5.1.2).
    Ed25519(&'a [u8]),
}

/// Why a public key is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "it is an RSA key of {bits} bits; accepted are {MIN_RSA_BITS} to {MAX_RSA_BITS}: make a new pair, as with `openssl genrsa 2048`"
    )]
    RsaSize { bits: usize },
    #[error("its public exponent is not an odd number from 3 to 4294967295; make a new pair")]
    RsaExponent,
    #[error("it is no point on its curve; export the public key again")]
    Point,
    #[error(
        "it is of a kind that is not accepted; use RSA (RS256), elliptic curve P-256 (ES256) or Ed25519 (EdDSA)"
    )]
    Kind,
}

/// One key, bound to its algorithm.
#[derive(Clone)]
pub(super) struct Key {
    /// Its name in a key set.
    kid: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl Key {
    fn secret(secret: &Secret) -> Self {
        let decoding = DecodingKey::from_secret(secret.expose().as_bytes());
        Key { kid: None, algorithm: Algorithm::HS256, decoding }
    }

    pub(super) fn public(kid: Option<String>, material: Material<'_>) -> Result<Self, KeyError> {
        let (algorithm, decoding) = match material {
            Material::Rsa { n, e } => {
                check_rsa(n, e)?;
                (Algorithm::RS256, DecodingKey::from_rsa_raw_components(n, e))
            }
            Material::P256(point) => (Algorithm::ES256, DecodingKey::from_ec_der(point)),
            // Checked here, since the library would cut a longer one and panic at a shorter one.
            Material::Ed25519(point) if point.len() != ED25519_BYTES => return Err(KeyError::Point),
            Material::Ed25519(point) => (Algorithm::EdDSA, DecodingKey::from_ed_der(point)),
        };
        // The library looks at a point when it first checks a signature with it: let it do so now.
        crypto::verify(NO_SIGNATURE, b"", &decoding, algorithm).map_err(|_| KeyError::Point)?;
        Ok(Key { kid, algorithm, decoding })
    }
}

fn check_rsa(n: &[u8], e: &[u8]) -> Result<(), KeyError> {
    let (n, e) = (without_zeros(n), without_zeros(e));
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(KeyError::RsaSize { bits });
    }
    let odd = e.last().is_some_and(|last| last % 2 == 1);
    if odd && e != [1] && e.len() <= MAX_RSA_EXPONENT_BYTES { Ok(()) } else { Err(KeyError::RsaExponent) }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

/// A token whose header was read, and nothing else.
pub(super) struct Sealed<'a> {
    token: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
}

impl<'a> Sealed<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, AuthError> {
        let header = decode_header(token).map_err(|_| AuthError::Malformed)?;
        // RFC 7515, section 4.1.11: extensions that are critical and not understood.
        if header.crit.is_some() {
            return Err(AuthError::Malformed);
        }
        Ok(Sealed { token, algorithm: header.alg, kid: header.kid })
    }
}

/// Keys that are trusted alike.
#[derive(Clone, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    pub(super) fn new(keys: Vec<Key>) -> Self {
        KeySet { keys }
    }

    pub(super) fn add_secret(&mut self, secret: &Secret) {
        self.keys.push(Key::secret(secret));
    }

    pub(super) fn add(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.keys.extend(keys);
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn has_kid(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// The claims of a token that one of the keys has signed, whatever `kid` says: configured keys
    /// have no names.
    pub(super) fn open(&self, sealed: &Sealed<'_>) -> Result<Claims, AuthError> {
        try_keys(sealed, self.keys.iter())
    }

    /// The same by the key that `kid` names; without it by any.
    pub(super) fn open_by_kid(&self, sealed: &Sealed<'_>) -> Result<Claims, AuthError> {
        let named = |key: &&Key| sealed.kid.is_none() || key.kid == sealed.kid;
        try_keys(sealed, self.keys.iter().filter(named))
    }
}

/// How many there are is bounded where sets are made: by the operator, and by `jwk::MAX_KEYS`.
fn try_keys<'k>(sealed: &Sealed<'_>, keys: impl Iterator<Item = &'k Key>) -> Result<Claims, AuthError> {
    let mut refusal = AuthError::Algorithm;
    for key in keys.filter(|key| key.algorithm == sealed.algorithm) {
        match decode::<Claims>(sealed.token, &key.decoding, &signature_only(key.algorithm)) {
            Ok(data) => return Ok(data.claims),
            Err(error) => refusal = refused(&error),
        }
    }
    Err(refusal)
}

/// Of the claims nothing is checked: their rules are in [`super::Verifier`], with the caller's clock.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn refused(error: &Error) -> AuthError {
    match error.kind() {
        ErrorKind::InvalidAlgorithm => AuthError::Algorithm,
        ErrorKind::InvalidSignature => AuthError::Signature,
        _ => AuthError::Malformed,
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}
