//! What every handler shares.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use crate::auth::{AuthError, Identity, UserId, Verifier};
use crate::feed::{CurrentFeed, Feed};
use crate::ingest::Progress;
use crate::sync::FullSync;
use crate::timestamp::PgTimestamp;
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

    /// Who a token speaks for; or the one user that everyone is, where nobody is asked for a token.
    pub(crate) async fn identify(&self, token: Option<&str>) -> Result<Identity, AuthError> {
        if let Some(anonymous) = &self.gate.anonymous {
            return Ok(anonymous.identity.clone());
        }
        let (verifier, token) = self.verifier.as_ref().zip(token).ok_or(AuthError::Missing)?;
        verifier.verify_refreshing(token, PgTimestamp::now().unix_micros().div_euclid(1_000_000)).await
    }
}

/// Bounds on what devices may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    pub heartbeat: Duration,
    pub auth_timeout: Duration,
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

/// The devices of a user beyond this many are not remembered for telling a write's source.
const MAX_KNOWN_DEVICES: usize = 64;

/// Live sessions, by user.
#[derive(Debug, Default)]
pub struct Sessions {
    inner: Arc<Mutex<HashMap<UserId, UserSessions>>>,
}

#[derive(Debug, Default)]
struct UserSessions {
    live: usize,
    /// Ids of devices seen since the user's first live session.
    devices: HashSet<Arc<str>>,
}

/// A session's place; given back when dropped.
#[derive(Debug)]
pub struct SessionPlace {
    sessions: Arc<Mutex<HashMap<UserId, UserSessions>>>,
    user: UserId,
}

impl Sessions {
    /// A place for one more session of a user, if there is one.
    pub fn enter(&self, user: &UserId, device: &Arc<str>, most: usize) -> Option<SessionPlace> {
        let mut users = self.lock();
        let entry = users.entry(user.clone()).or_default();
        if entry.live >= most {
            return None;
        }
        entry.live += 1;
        if entry.devices.len() < MAX_KNOWN_DEVICES {
            entry.devices.insert(Arc::clone(device));
        }
        metrics::gauge!("rowcast_sessions").increment(1.0);
        Some(SessionPlace { sessions: Arc::clone(&self.inner), user: user.clone() })
    }

    /// Whether this user is known to have a device of this name.
    pub fn knows_device(&self, user: &UserId, device: &str) -> bool {
        self.lock().get(user).is_some_and(|entry| entry.devices.contains(device))
    }

    /// Live sessions, and users that have one.
    pub fn count(&self) -> (usize, usize) {
        let users = self.lock();
        (users.values().map(|entry| entry.live).sum(), users.len())
    }

    /// Distinct devices with a live user.
    pub fn devices(&self) -> usize {
        self.lock().values().map(|entry| entry.devices.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, UserSessions>> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut users = self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(entry) = users.get_mut(&self.user) {
            entry.live -= 1;
            if entry.live == 0 {
                users.remove(&self.user);
            }
        }
        metrics::gauge!("rowcast_sessions").decrement(1.0);
    }
}
