//! JSON Web Tokens with any claims.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// The secret that [`super::relay::Relay`] is given, unless a test names another.
pub(crate) const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
const FAR_FUTURE: i64 = 4_102_444_800;

/// A valid token of a user, with no other claims.
pub(crate) fn user(sub: &str) -> String {
    mint(&json!({"sub": sub, "exp": FAR_FUTURE}))
}

/// A token that ends at a Unix time.
pub(crate) fn user_until(sub: &str, exp: i64) -> String {
    mint(&json!({"sub": sub, "exp": exp}))
}

/// A token with exactly these claims.
pub(crate) fn mint(claims: &Value) -> String {
    mint_with(SECRET, claims)
}

/// A token signed with another secret.
pub(crate) fn mint_with(secret: &str, claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}
