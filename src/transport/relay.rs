//! What every handler shares.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use crate::auth::{AuthError, Identity, Verifier};
use crate::devices::{Channel, Devices, Labels, SessionPlace, Sessions};
use crate::feed::{CurrentFeed, Feed};
use crate::ingest::Progress;
use crate::sync::FullSync;
use crate::timestamp::PgTimestamp;
use crate::transport::messages::Messages;
use crate::transport::tickets::Tickets;

/// The relay as its handlers see it. Cheap to clone behind an `Arc`.
#[derive(Debug)]
pub struct Relay {
    pub feed: CurrentFeed,
    /// Absent where nobody is asked for a token.
    pub verifier: Option<Verifier>,
    pub(crate) gate: Gate,
    pub progress: Arc<Progress>,
    pub full: Arc<FullSync>,
    pub sessions: Sessions,
    pub tickets: Tickets,
    pub devices: Devices,
    pub messages: Messages,
    pub limits: Limits,
    pub metrics: PrometheusHandle,
    /// Sessions say goodbye and end.
    pub shutdown: CancellationToken,
    /// Every session's task; shutdown waits for them.
    pub tasks: TaskTracker,
}

impl Relay {
    pub fn current_feed(&self) -> Option<Arc<Feed>> {
        self.feed.borrow().clone()
    }

    /// Who a token speaks for, or the one user that everyone is where nobody is asked for a token, with all
    /// that he is granted now. The way of every token: also one that is valid may have been revoked.
    pub(crate) async fn identify(&self, token: Option<&str>) -> Result<Identity, AuthError> {
        let mut identity = match &self.gate.anonymous {
            Some(anonymous) => anonymous.identity.clone(),
            None => {
                let (verifier, token) = self.verifier.as_ref().zip(token).ok_or(AuthError::Missing)?;
                let now = PgTimestamp::now().unix_micros().div_euclid(1_000_000);
                verifier.verify_refreshing(token, now).await?
            }
        };
        self.current_feed().ok_or(AuthError::NotReady)?.rights.admit(&mut identity)?;
        Ok(identity)
    }

    /// A place for one more live session of a device, if the user has one left. The device is in the
    /// registry from here on; drop the place when the session ends.
    pub fn enter(
        &self,
        identity: &Identity,
        device: &Arc<str>,
        labels: Labels,
        channel: Channel,
    ) -> Option<SessionPlace> {
        self.devices.enter(&identity.user, device, labels, channel, self.limits.max_sessions_per_user)
    }
}

/// Bounds on what devices may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    pub heartbeat: Duration,
    pub auth_timeout: Duration,
    /// A request is there whole and the head of its answer is written.
    pub request_timeout: Duration,
    pub max_message_size: usize,
    pub outbox_size: usize,
    pub max_sessions_per_user: usize,
    pub max_subscriptions_per_session: usize,
    pub broadcast_replay: Duration,
    /// A token may stand in the URL.
    pub url_token: bool,
    /// `/metrics` is served on the operator's own address alone.
    pub metrics_apart: bool,
    /// `/ready` while ingest is no further behind than this.
    pub ready_lag_bytes: u64,
    pub ready_lag_time: Duration,
}
