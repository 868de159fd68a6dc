//! What is wrong with a token, or with the configuration that tokens are checked by.

use std::time::Duration;

use super::jwks::JwksSetupError;
use super::keys::MIN_SECRET_BYTES;
use super::public_key::PublicKeyError;

/// When a token that could not be checked may be sent again: the first retries of a fetch take a second.
const KEYS_RETRY: Duration = Duration::from_secs(2);

/// When to come back before the first log is open.
const LOG_RETRY: Duration = Duration::from_secs(2);

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
    #[error("the token's algorithm is not accepted here: no key of this relay is for it")]
    Algorithm,
    #[error("the token's signature does not match")]
    Signature,
    #[error("the token's key (`kid`) is not among those of its issuer")]
    UnknownKey,
    #[error("the issuer's keys cannot be had at the moment, so this token was not checked; send it again")]
    KeysUnavailable,
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
    #[error("the ticket is not known: one counts once, and within 30 seconds; ask for another")]
    Ticket,
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
            AuthError::Ticket => "ticket_invalid",
            AuthError::Revoked => "token_revoked",
            AuthError::NotReady => "not_ready",
            AuthError::KeysUnavailable => "keys_unavailable",
            _ => "token_invalid",
        }
    }

    /// When the same token may be sent again, where nothing is known to be wrong with it.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            AuthError::KeysUnavailable => Some(KEYS_RETRY),
            AuthError::NotReady => Some(LOG_RETRY),
            _ => None,
        }
    }
}

/// Why tokens cannot be checked safely with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    #[error("there is no key to check tokens with; set jwt_secret, jwt_public_key or jwks_url")]
    NoKey,
    #[error("the secret is {length} bytes long; at least {MIN_SECRET_BYTES} bytes are needed")]
    ShortSecret { length: usize },
    #[error(
        "the secret is the text of a key or certificate, and public: whoever knows it could sign tokens; put a public key into jwt_public_key"
    )]
    SecretIsKey,
    #[error("jwt_public_key: {0}")]
    PublicKey(#[from] PublicKeyError),
    #[error("jwks_url: {0}")]
    Jwks(#[from] JwksSetupError),
    #[error(
        "with several issuers every grant must name the issuer, as in user:{{iss}}|{{sub}}:*; `{pattern}` does not"
    )]
    IssuerNotInPattern { pattern: String },
}
