//! What ends a session whatever it does: its token's end or revocation, its log's end, the relay's.

use std::time::Duration;

use tokio::time::Instant;

use super::{Frame, Session};
use crate::auth::Identity;
use crate::timestamp::PgTimestamp;
use crate::transport::protocol::{Closing, spread};

impl Session {
    /// Looks whether one of them has come. What the device is still told goes to `out`.
    pub(in crate::transport) fn check_over(&mut self, out: &mut Vec<Frame>) -> Result<(), Closing> {
        if expiry(&self.identity).is_some_and(|at| Instant::now() >= at) {
            return Err(Closing::Token("token_expired"));
        }
        if self.feed.hub.closed().is_cancelled() {
            self.epoch_over(out);
            return Err(restart());
        }
        if self.relay.shutdown.is_cancelled() { Err(restart()) } else { Ok(()) }
    }

    /// When the token is over.
    pub(in crate::transport) fn expires(&self) -> Option<Instant> {
        expiry(&self.identity)
    }

    /// Waits for the first of them. Cancel-safe.
    pub(in crate::transport) async fn over(&self) -> Closing {
        let expired = async {
            match expiry(&self.identity) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expired => Closing::Token("token_expired"),
            () = self.revoked() => Closing::Token("token_revoked"),
            () = self.relay.shutdown.cancelled() => restart(),
            () = self.feed.hub.closed().cancelled() => restart(),
        }
    }
}

pub(in crate::transport) fn restart() -> Closing {
    Closing::Restart { retry_after_ms: spread(500, 5_000) }
}

/// When the session's token is over.
fn expiry(identity: &Identity) -> Option<Instant> {
    let left = identity.expires_at?.saturating_mul(1_000_000) - PgTimestamp::now().unix_micros();
    Some(Instant::now() + Duration::from_micros(u64::try_from(left).unwrap_or(0)))
}
