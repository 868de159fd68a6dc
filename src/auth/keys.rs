//! The keys that signatures are checked with.
//!
//! A key belongs to exactly one algorithm, and the key decides which algorithm a token may name:
//! a token never chooses how it is checked. Public keys and key sets become further [`Key`]s,
//! chosen by the header's `kid`.

use std::fmt;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};

use super::claims::Claims;
use super::error::AuthError;
use super::secret::Secret;

/// The shortest HS256 secret: as long as the hash (RFC 7518, section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// The keys of a [`super::Verifier`].
pub(super) struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    decoding: DecodingKey,
    /// Carries the one algorithm of this key. Of the claims it checks nothing: their rules are in
    /// [`super::Verifier`], with the caller's clock.
    validation: Validation,
}

impl KeySet {
    pub(super) fn from_secret(secret: &Secret) -> Self {
        let decoding = DecodingKey::from_secret(secret.expose().as_bytes());
        KeySet { keys: vec![Key { decoding, validation: signature_only(Algorithm::HS256) }] }
    }

    /// The claims of a token that one of the keys has signed.
    pub(super) fn open(&self, token: &str) -> Result<Claims, AuthError> {
        let mut refusal = AuthError::Algorithm;
        for key in &self.keys {
            match decode::<Claims>(token, &key.decoding, &key.validation) {
                // RFC 7515, section 4.1.11: extensions that are critical and not understood.
                Ok(data) if data.header.crit.is_some() => return Err(AuthError::Malformed),
                Ok(data) => return Ok(data.claims),
                Err(error) => refusal = refused(&error),
            }
        }
        Err(refusal)
    }
}

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
