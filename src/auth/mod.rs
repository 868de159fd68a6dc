//! Tokens: who a device speaks for, and which topics that lets it read.
//!
//! Asked on joining and at every grant change; what `transport` and `sync` may show follows from the
//! [`Identity`] alone. The way of a token: [`bearer`] finds it in a request, [`keys`] checks its
//! signature, [`claims`] reads the payload with every value's text kept, [`pattern`] turns claims
//! into [`Grants`]. Keys are a secret, public keys of the configuration ([`public_key`]), and those that
//! the issuer publishes ([`jwks`], the only part that does I/O; [`jwk`] reads them). What changes
//! rights while a token lives is in [`LiveRights`].
//!
//! Invariants: nothing in the payload is looked at before the signature holds; every key is bound to one
//! algorithm, and all keys are trusted alike, for every accepted issuer; a claim that cannot be read
//! grants nothing; no token, secret or claim value appears in an error or in `Debug`.
//!
//! Must not know: connections of devices, tables of the database, the clock (the caller passes the time).

mod anonymous;
pub mod bearer;
mod claims;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod grants;
mod jwk;
mod jwks;
mod keys;
mod live;
mod mint;
mod pattern;
mod public_key;
mod secret;

use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio_util::sync::CancellationToken;

use crate::topic::Pattern;

use claims::Claims;
pub use error::{AuthConfigError, AuthError};
pub use grants::Grants;
use jwks::{Jwks, Refreshed};
pub use jwks::{JwksConfig, JwksSetupError, JwksUrl, JwksUrlError};
pub use keys::{KeyError, MIN_SECRET_BYTES};
use keys::{KeySet, Sealed};
pub use live::{LiveRights, NamedUser, RightsChange, RightsWatch};
pub use mint::{ExtraClaims, mint};
pub use pattern::{GrantPattern, GrantPatternError};
pub use public_key::{PublicKeyError, PublicKeySource};
pub use secret::Secret;

/// The longest token that is looked at, in bytes. Below the 8 KiB after which an unauthenticated
/// socket is closed, so that every way to send a token takes the same ones.
pub const MAX_TOKEN_BYTES: usize = 7 * 1024;

/// How tokens are checked and what their claims grant.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The HS256 secret, at least [`MIN_SECRET_BYTES`] long.
    pub secret: Option<Secret>,
    /// Keys for RS256, ES256 and EdDSA.
    pub public_keys: Vec<PublicKeySource>,
    /// The issuer's published keys. There is a secret, a public key or these.
    pub jwks: Option<JwksConfig>,
    /// Accepted values of `iss`; empty accepts any, also none.
    pub issuers: Vec<String>,
    /// A token's `aud` must name one of these; empty does not look at `aud`.
    pub audiences: Vec<String>,
    /// How far clocks may differ, for `exp` and `nbf`.
    pub leeway: Duration,
    /// Whether a token without `exp` is refused.
    pub require_expiry: bool,
    pub grants: Vec<GrantPattern>,
    /// The claim that opens the admin endpoints; without it nobody is an admin.
    pub admin: Option<AdminClaim>,
}

impl AuthConfig {
    /// The first thing that makes this configuration unsafe to run with.
    fn check(&self) -> Result<(), AuthConfigError> {
        if self.secret.is_none() && self.public_keys.is_empty() && self.jwks.is_none() {
            return Err(AuthConfigError::NoKey);
        }
        self.secret.as_ref().map_or(Ok(()), check_secret)?;
        check_issuers(&self.issuers, &self.grants)
    }
}

/// Refuses a secret that can be guessed, or that is none.
pub fn check_secret(secret: &Secret) -> Result<(), AuthConfigError> {
    if secret.expose().contains("-----BEGIN ") {
        return Err(AuthConfigError::SecretIsKey);
    }
    let length = secret.expose().len();
    if length < MIN_SECRET_BYTES { Err(AuthConfigError::ShortSecret { length }) } else { Ok(()) }
}

/// With several issuers, `42` of one is another person than `42` of the other: every pattern that
/// names somebody must name the issuer too.
pub fn check_issuers(issuers: &[String], grants: &[GrantPattern]) -> Result<(), AuthConfigError> {
    let mixes = |pattern: &&GrantPattern| pattern.has_placeholder() && !pattern.names("iss");
    match grants.iter().find(mixes) {
        Some(pattern) if issuers.len() > 1 => {
            Err(AuthConfigError::IssuerNotInPattern { pattern: pattern.to_string() })
        }
        _ => Ok(()),
    }
}

/// Which claim makes an admin: `role=admin`. A claim that is an array must hold the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminClaim {
    pub name: String,
    pub value: String,
}

impl AdminClaim {
    /// From `name=value`.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=')?;
        (!name.is_empty() && !value.is_empty())
            .then(|| AdminClaim { name: name.to_owned(), value: value.to_owned() })
    }
}

/// The user that a token speaks for. Two issuers' users are never the same user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId {
    pub issuer: Option<String>,
    pub subject: String,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    pub grants: Grants,
    /// Unix seconds from which [`Verifier::verify`] refuses this token: `exp` and the leeway.
    pub expires_at: Option<i64>,
    /// `iat`, in Unix seconds.
    pub issued_at: Option<i64>,
    pub admin: bool,
}

impl Identity {
    /// Whether the token counts no more at the moment `now_unix`, in Unix seconds.
    pub fn has_expired(&self, now_unix: i64) -> bool {
        self.expires_at.is_some_and(|end| now_unix >= end)
    }
}

/// Turns tokens into identities. Made once, shared by all connections.
#[derive(Debug)]
pub struct Verifier {
    /// Those of the configuration.
    keys: KeySet,
    jwks: Option<Jwks>,
    config: AuthConfig,
    leeway_seconds: i64,
}

impl Verifier {
    /// Reads the keys that are there: files, and what a former run has kept of the issuer's.
    pub fn new(config: AuthConfig) -> Result<Self, AuthConfigError> {
        config.check()?;
        let mut keys = KeySet::default();
        if let Some(secret) = &config.secret {
            keys.add_secret(secret);
        }
        for source in &config.public_keys {
            keys.add(source.load()?);
        }
        let jwks = config.jwks.as_ref().map(Jwks::new).transpose()?;
        if jwks.is_some() && config.issuers.is_empty() && config.audiences.is_empty() {
            tracing::warn!(
                "jwks_url is set without jwt_issuer and jwt_audience: where an issuer signs for many customers                  with the same keys, the tokens of all of them are accepted here; set at least one of the two"
            );
        }
        let leeway_seconds = i64::try_from(config.leeway.as_secs()).unwrap_or(i64::MAX);
        Ok(Verifier { keys, jwks, config, leeway_seconds })
    }

    /// Checks a token at the moment `now_unix`, in Unix seconds, with the keys that are known.
    pub fn verify(&self, token: &str, now_unix: i64) -> Result<Identity, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::TooLong);
        }
        let claims = self.open(&Sealed::read(token)?)?;
        let expires_at = self.check_times(&claims, now_unix)?;
        let issuer = self.check_issuer(&claims)?;
        self.check_audience(&claims)?;
        let subject = claims.scalar("sub").ok_or(AuthError::Subject)?;
        Ok(Identity {
            user: UserId { issuer, subject },
            grants: self.grants(&claims),
            expires_at,
            issued_at: claims.time("iat").ok().flatten(),
            admin: self.config.admin.as_ref().is_some_and(|admin| claims.holds(&admin.name, &admin.value)),
        })
    }

    /// Like [`Verifier::verify`], at the entrances: a token whose key is not known (yet) may wait a
    /// moment for the issuer's keys to be fetched. Cancel-safe.
    pub async fn verify_refreshing(&self, token: &str, now_unix: i64) -> Result<Identity, AuthError> {
        let first = self.verify(token, now_unix);
        match (&self.jwks, &first) {
            (Some(jwks), Err(AuthError::UnknownKey | AuthError::KeysUnavailable)) => {
                match jwks.refreshed().await {
                    Refreshed::Done => self.verify(token, now_unix),
                    Refreshed::NotYet => Err(AuthError::KeysUnavailable),
                    Refreshed::TooSoon => first,
                }
            }
            _ => first,
        }
    }

    /// Whether there are keys to check every kind of token with that is accepted here.
    pub fn keys_available(&self) -> bool {
        self.jwks.as_ref().is_none_or(Jwks::available)
    }

    /// Keeps the issuer's keys fresh, until shutdown.
    pub async fn refresh_keys(&self, shutdown: &CancellationToken) {
        match &self.jwks {
            Some(jwks) => jwks.run(shutdown).await,
            None => shutdown.cancelled().await,
        }
    }

    fn open(&self, sealed: &Sealed<'_>) -> Result<Claims, AuthError> {
        let own = self.keys.open(sealed);
        match &self.jwks {
            // What the configured keys refuse the issuer's may accept; HS256 is never theirs.
            Some(jwks) if own.is_err() && sealed.algorithm != Algorithm::HS256 => jwks.open(sealed),
            _ => own,
        }
    }

    /// The moment from which the token counts no more.
    fn check_times(&self, claims: &Claims, now: i64) -> Result<Option<i64>, AuthError> {
        let expires_at = claims.time("exp")?.map(|exp| exp.saturating_add(self.leeway_seconds));
        match expires_at {
            Some(end) if now >= end => return Err(AuthError::Expired),
            None if self.config.require_expiry => return Err(AuthError::NoExpiry),
            _ => {}
        }
        match claims.time("nbf")? {
            Some(start) if now < start.saturating_sub(self.leeway_seconds) => Err(AuthError::NotYetValid),
            _ => Ok(expires_at),
        }
    }

    fn check_issuer(&self, claims: &Claims) -> Result<Option<String>, AuthError> {
        let issuer = claims.scalar("iss");
        let accepted = &self.config.issuers;
        if accepted.is_empty() || issuer.as_ref().is_some_and(|issuer| accepted.contains(issuer)) {
            Ok(issuer)
        } else {
            Err(AuthError::Issuer)
        }
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), AuthError> {
        let accepted = &self.config.audiences;
        if accepted.is_empty() || accepted.iter().any(|audience| claims.holds("aud", audience)) {
            Ok(())
        } else {
            Err(AuthError::Audience)
        }
    }

    fn grants(&self, claims: &Claims) -> Grants {
        let mut patterns: Vec<Pattern> = Vec::new();
        for grant in &self.config.grants {
            grant.resolve(claims, &mut patterns);
        }
        Grants::new(patterns)
    }
}

#[cfg(test)]
mod key_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod test_signer;
#[cfg(test)]
mod tests;
