//! The issuer's key set (`jwks_url`): fetched in the background, kept, and followed as it rotates.
//!
//! One task fetches ([`Jwks::run`]); everybody else reads what it published, and never waits for it
//! to check a token whose key is known. A token with an unknown key asks for a refresh, of which there
//! is one in a while whatever devices send ([`state`]), and may wait for it for a moment.
//!
//! Invariants: a key counts from the fetch that brought it to the one that no longer does; an endpoint
//! that fails changes nothing but what is logged. Nothing of a token reaches the request: neither its
//! `kid` nor its `jku`. What stands on disk ([`kept`]) is checked like an answer.

mod fetch;
mod kept;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claims::Claims;
use super::error::AuthError;
use super::jwk::JwkSet;
use super::keys::Sealed;
use fetch::{FetchError, Fetcher};
pub use fetch::{JwksSetupError, JwksUrl, JwksUrlError};
use kept::Kept;
use state::{Backoff, State};

/// How long a request may wait for a refresh that it asked for: a fetch takes a round trip or three,
/// and a device that waits much longer believes the relay dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// Relays that were started together do not ask together for long.
const REFRESH_SPREAD: f64 = 0.1;

/// Where an issuer publishes its keys, and how they are followed.
#[derive(Debug, Clone)]
pub struct JwksConfig {
    pub url: JwksUrl,
    /// How often the set is fetched.
    pub refresh: Duration,
    /// PEM file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where the last good set is kept for a start while the endpoint is down.
    pub kept_in: PathBuf,
}

/// What became of a fetch that a token asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refreshed {
    /// It has ended, well or not: look again.
    Done,
    /// It takes longer than a request may wait.
    NotYet,
    /// There was one for such a token too short a time ago.
    TooSoon,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Jwks {
    fetcher: Fetcher,
    kept: Kept,
    refresh: Duration,
    state: watch::Sender<State>,
}

impl Jwks {
    /// Reads what is kept on disk, and makes no connection yet.
    pub(super) fn new(config: &JwksConfig) -> Result<Self, JwksSetupError> {
        let fetcher = Fetcher::new(&config.url, config.ca_file.as_deref())?;
        let kept = Kept::new(&config.kept_in, &config.url);
        let keys = kept.read().map(|set| set.keys).unwrap_or_default();
        let state = watch::Sender::new(State::with(Arc::new(keys)));
        Ok(Jwks { fetcher, kept, refresh: config.refresh, state })
    }

    /// Whether there are keys to check tokens with.
    pub(super) fn available(&self) -> bool {
        self.state.borrow().keys.len() > 0
    }

    /// The claims of a token that a key of the set has signed.
    pub(super) fn open(&self, sealed: &Sealed<'_>) -> Result<Claims, AuthError> {
        let (keys, healthy) = {
            let state = self.state.borrow();
            (Arc::clone(&state.keys), state.healthy)
        };
        // With an endpoint that fails nobody knows whether the issuer has this key by now.
        let unknown = if healthy { AuthError::UnknownKey } else { AuthError::KeysUnavailable };
        if keys.len() == 0 {
            return Err(AuthError::KeysUnavailable);
        }
        if sealed.kid.as_ref().is_some_and(|kid| !keys.has_kid(kid)) {
            return Err(unknown);
        }
        match keys.open_by_kid(sealed) {
            // Without a name, a key that fits none may be one that is not known yet.
            Err(AuthError::Signature) if sealed.kid.is_none() => Err(unknown),
            other => other,
        }
    }

    /// Asks for a fetch where that may help a token that was refused, and waits for it for a moment.
    /// Cancel-safe.
    pub(super) async fn refreshed(&self) -> Refreshed {
        let mut asked = None;
        self.state.send_if_modified(|state| {
            let before = state.asked();
            asked = state.ask(Instant::now());
            state.asked() != before
        });
        let Some(asked) = asked else { return Refreshed::TooSoon };
        let mut state = self.state.subscribe();
        let answered = state.wait_for(|state| state.answered() >= asked);
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(_) => Refreshed::Done,
            Err(_) => Refreshed::NotYet,
        }
    }

    /// Fetches the set at once, when it is due and when somebody asks; until shutdown.
    pub(super) async fn run(&self, shutdown: &CancellationToken) {
        let mut state = self.state.subscribe();
        let mut backoff = Backoff::default();
        loop {
            let asked = state.borrow_and_update().asked();
            let Some(fetched) = shutdown.run_until_cancelled(self.fetcher.fetch()).await else { return };
            let pause = self.take(asked, fetched, &mut backoff).await;
            // Both branches are cancel-safe: what is asked for stays in the state.
            let due = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = state.wait_for(|state| state.asked() > state.answered()) => {}
                }
            };
            if shutdown.run_until_cancelled(due).await.is_none() {
                return;
            }
        }
    }

    /// Publishes what a fetch brought, and says when the next one is due.
    async fn take(&self, asked: u64, fetched: Result<JwkSet, FetchError>, backoff: &mut Backoff) -> Duration {
        let (set, failure) = match fetched {
            // The issuer has withdrawn all that counted: so be it; but it can hardly be meant.
            Ok(set) if set.keys.len() == 0 => {
                let ignored = set.ignored;
                (Some(set), Some(FetchError::NoUsableKey { ignored }))
            }
            Ok(set) => (Some(set), None),
            Err(error) => (None, Some(error)),
        };
        let healthy = failure.is_none();
        let (keys, first) = (set.as_ref().map(|set| set.keys.clone()), !self.state.borrow().fetched());
        // Devices first: they may be waiting for it.
        self.state.send_modify(|state| state.answer(asked, keys, healthy));
        self.report(set.as_ref(), failure.as_ref(), first, backoff.failures());
        if let Some(set) = &set {
            self.kept.write(set).await;
        }
        if healthy {
            backoff.reset();
            self.refresh.mul_f64(1.0 - rand::random_range(0.0..REFRESH_SPREAD))
        } else {
            backoff.next(self.refresh)
        }
    }

    /// Counts every fetch; tells the log only what changed.
    fn report(&self, set: Option<&JwkSet>, failure: Option<&FetchError>, first: bool, failures: u32) {
        let keys = self.state.borrow().keys.len();
        let outcome = if failure.is_none() { "ok" } else { "failed" };
        metrics::counter!("rowcast_jwks_fetches_total", "outcome" => outcome).increment(1);
        metrics::gauge!("rowcast_jwks_keys").set(u32::try_from(keys).unwrap_or(u32::MAX));
        metrics::gauge!("rowcast_jwks_failing").set(if failure.is_none() { 0 } else { 1 });
        let url = self.fetcher.url();
        match (failure, set) {
            (Some(error), _) if failures == 0 => {
                let error = error.with_causes();
                tracing::warn!(%url, error, keys, "the signing keys of jwks_url cannot be fetched; tokens are checked with those that are known, and it is tried again until it works");
            }
            (Some(error), _) => tracing::debug!(%url, error = error.with_causes(), "jwks_url still fails"),
            (None, Some(set)) if first || failures > 0 => {
                tracing::info!(%url, keys, ignored = set.ignored, "the signing keys of jwks_url were fetched");
            }
            (None, _) => {}
        }
    }
}
