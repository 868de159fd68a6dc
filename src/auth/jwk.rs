//! JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037): an issuer's key set, made into keys.
//!
//! `kty` and `crv` bind a key to its one algorithm; where `alg` says another, the key is left out. So is
//! what is not for signatures, of an unknown kind, symmetric, too weak, or not well-formed: a key set
//! may hold keys for other readers, and one odd entry must not cost the others. Pure.

use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::keys::{Key, KeySet, Material};

/// Issuers have two to ten keys. A token without `kid` is tried with each of its algorithm, before
/// anyone is known: this bounds what that costs.
pub(super) const MAX_KEYS: usize = 32;

/// A name longer than this is no name; a token is short too.
const MAX_KID_BYTES: usize = 512;

/// 32 bytes in base64url without padding, the only spelling of a coordinate on these curves.
const COORDINATE_CHARS: usize = 43;

/// The members that are read; others, such as a private half that should not be there, are not even
/// remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_ops: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The usable keys of a set, and how they are written down.
#[derive(Debug, Clone, Default)]
pub(super) struct JwkSet {
    pub(super) keys: KeySet,
    /// Keys that were left out.
    pub(super) ignored: usize,
    accepted: Vec<Jwk>,
}

/// The document is no JSON Web Key Set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a JSON Web Key Set, an object with an array `keys`")]
pub(crate) struct NoKeySet;

impl JwkSet {
    pub(super) fn parse(document: &[u8]) -> Result<Self, NoKeySet> {
        let document: Document<'_> = serde_json::from_slice(document).map_err(|_| NoKeySet)?;
        let mut set = JwkSet::default();
        let mut keys = Vec::new();
        for raw in document.keys {
            let jwk = serde_json::from_str::<Jwk>(raw.get()).ok();
            match jwk.filter(|_| keys.len() < MAX_KEYS).and_then(|jwk| Some((jwk.key()?, jwk))) {
                Some((key, jwk)) => {
                    keys.push(key);
                    set.accepted.push(jwk);
                }
                None => set.ignored += 1,
            }
        }
        set.keys = KeySet::new(keys);
        Ok(set)
    }

    /// The accepted keys as `{"keys":[…]}`, which [`JwkSet::parse`] reads.
    pub(super) fn to_json(&self) -> String {
        // Texts and arrays of them always serialize.
        serde_json::to_string(&serde_json::json!({ "keys": self.accepted })).unwrap_or_default()
    }
}

impl Jwk {
    fn key(&self) -> Option<Key> {
        let verifies = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        let for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(verifies);
        let short = self.kid.as_ref().is_none_or(|kid| kid.len() <= MAX_KID_BYTES);
        if !for_signatures || !short {
            return None;
        }
        let is_for = |names: &[&str]| self.alg.as_deref().is_none_or(|alg| names.contains(&alg));
        let public = |material: Material<'_>| Key::public(self.kid.clone(), material).ok();
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) if is_for(&["RS256"]) => {
                let decoded =
                    DecodingKey::from_rsa_components(self.n.as_deref()?, self.e.as_deref()?).ok()?;
                let DecodingKeyKind::RsaModulusExponent { n, e } = decoded.kind() else { return None };
                public(Material::Rsa { n, e })
            }
            ("EC", Some("P-256")) if is_for(&["ES256"]) => {
                let (x, y) = (coordinate(&self.x)?, coordinate(&self.y)?);
                let decoded = DecodingKey::from_ec_components(x, y).ok()?;
                public(Material::P256(decoded.try_get_as_bytes().ok()?))
            }
            // RFC 9864 names the algorithm by its curve.
            ("OKP", Some("Ed25519")) if is_for(&["EdDSA", "Ed25519"]) => {
                let decoded = DecodingKey::from_ed_components(coordinate(&self.x)?).ok()?;
                public(Material::Ed25519(decoded.try_get_as_bytes().ok()?))
            }
            _ => None,
        }
    }
}

fn coordinate(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| text.len() == COORDINATE_CHARS)
}
