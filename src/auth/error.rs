//! What is wrong with a token, or with the configuration that tokens are checked by.

use super::keys::MIN_SECRET_BYTES;

/// Why a token is refused. Safe to show to whoever sent it: says nothing of keys or claim values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no token: send it as `Authorization: Bearer`, as WebSocket subprotocol or in an `auth` message")]
    Missing,
    #[error("more than one token was sent; send it in one place")]
    Several,
    #[error("the token is longer than {} bytes", super::MAX_TOKEN_BYTES)]
    TooLong,
    #[error("the token is not a JSON Web Token")]
    Malformed,
    #[error("the token's algorithm is not accepted here; it must be HS256")]
    Algorithm,
    #[error("the token's signature does not match")]
    Signature,
    #[error("the token's `{0}` is not a time in seconds")]
    Time(&'static str),
    #[error("the token has expired; get a new one")]
    Expired,
    #[error("the token has no `exp`, which is required here")]
    NoExpiry,
    #[error("the token is not valid yet; check the clocks of both sides")]
    NotYetValid,
    #[error("the token's issuer (`iss`) is not accepted here")]
    Issuer,
    #[error("the token is not meant for this service (`aud`)")]
    Audience,
    #[error("the token names no user: `sub` must be a text or an integer, not empty, of at most 256 bytes")]
    Subject,
    #[error("the token was revoked; sign in again")]
    Revoked,
    #[error("the relay does not know yet which tokens were revoked; /ready says why")]
    NotReady,
}

impl AuthError {
    /// The `code` of errors on the wire.
    pub fn code(self) -> &'static str {
        match self {
            AuthError::Missing => "token_missing",
            AuthError::Expired => "token_expired",
            AuthError::NotYetValid => "token_not_yet_valid",
            AuthError::Revoked => "token_revoked",
            AuthError::NotReady => "not_ready",
            _ => "token_invalid",
        }
    }
}

/// Why tokens cannot be checked safely with this configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthConfigError {
    #[error("the secret is {length} bytes long; at least {MIN_SECRET_BYTES} bytes are needed")]
    ShortSecret { length: usize },
    #[error(
        "with several issuers every grant must name the issuer, as in user:{{iss}}|{{sub}}:*; `{pattern}` does not"
    )]
    IssuerNotInPattern { pattern: String },
}
