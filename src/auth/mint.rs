//! Makes tokens, for development and tests. In production the application's own login does it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::value::{RawValue, to_raw_value};

use super::secret::Secret;

/// Claims as JSON texts, so that a long integer stays what it is.
pub type ExtraClaims = BTreeMap<String, Box<RawValue>>;

/// A token for `subject`, signed with HS256, valid from now for `ttl`. What `extra` names replaces
/// the claims that would be set here.
pub fn mint(
    secret: &Secret,
    subject: &str,
    ttl: Duration,
    extra: ExtraClaims,
) -> Result<String, jsonwebtoken::errors::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = ExtraClaims::new();
    claims.insert("sub".to_owned(), to_raw_value(subject)?);
    claims.insert("iat".to_owned(), to_raw_value(&now.as_secs())?);
    claims.insert("exp".to_owned(), to_raw_value(&now.saturating_add(ttl).as_secs())?);
    claims.extend(extra);
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key)
}
