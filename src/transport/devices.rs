//! A user's devices over REST, and who is here.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::guard::{self, Places};
use super::http_auth::Authenticated;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::rest::NO_LOG_RETRY;
use crate::auth::Identity;
use crate::cursor::Cursor;
use crate::devices::{self, Channel, is_device_id};
use crate::feed::Feed;
use crate::hub::timestamp;
use crate::log::{LogError, ReadError};
use crate::sync::{Pending, pending};
use crate::timestamp::PgTimestamp;

/// Users in one answer of `active-users`, by default and at most.
const ACTIVE_USERS: usize = 100;
const MAX_ACTIVE_USERS: usize = 1_000;

#[derive(Debug, Serialize)]
pub(super) struct List {
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct Device {
    device_id: Arc<str>,
    device_type: Option<String>,
    app_version: Option<String>,
    last_seen: String,
    is_active: bool,
    cursor: Option<Cursor>,
}

/// GET `/api/realtime/devices`
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
) -> Result<Json<List>, ProblemResponse> {
    let _place = guard::place(&places).await?;
    let feed = feed(&relay)?;
    let devices = blocking(move || relay.devices.of(&*feed.log, &identity.user)).await?;
    let device = |device: devices::Device| Device {
        device_id: device.id,
        device_type: device.record.device_type,
        app_version: device.record.app_version,
        last_seen: timestamp(device.record.last_seen),
        is_active: device.is_active,
        cursor: device.record.cursor,
    };
    Ok(Json(List { devices: devices.into_iter().map(device).collect() }))
}

/// DELETE `/api/realtime/devices/{device_id}`
pub(super) async fn remove(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
    Path(device_id): Path<String>,
) -> Result<StatusCode, ProblemResponse> {
    let device_id = checked(Some(device_id))?;
    let _place = guard::place(&places).await?;
    let feed = feed(&relay)?;
    let known = blocking(move || relay.devices.forget(&*feed.log, &identity.user, &device_id)).await?;
    if known { Ok(StatusCode::NO_CONTENT) } else { Err(unknown_device()) }
}

#[derive(Debug, Deserialize)]
pub(super) struct StatusQuery {
    device_id: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct SyncStatus {
    last_sync: Option<String>,
    pending_changes: Option<usize>,
    pending_uploads: u32,
    server_version: &'static str,
    device_id: Arc<str>,
    is_online: bool,
    cursor: Option<Cursor>,
    /// Milliseconds.
    lag: Option<i64>,
}

/// GET `/api/realtime/sync-status`
pub(super) async fn sync_status(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Json<SyncStatus>, ProblemResponse> {
    let Query(query) = query.map_err(|_| undecodable())?;
    let device_id = checked(query.device_id)?;
    let _place = guard::place(&places).await?;
    let feed = feed(&relay)?;
    let looked = blocking(move || {
        let Some(device) = relay.devices.find(&*feed.log, &identity.user, &device_id)? else {
            return Ok(None);
        };
        let pending = pending_of(&feed, &identity, device.record.cursor)?;
        Ok(Some((device, pending)))
    });
    let (device, pending) = looked.await?.ok_or_else(unknown_device)?;
    let now = PgTimestamp::now().unix_micros();
    let lag = |pending: Pending| pending.oldest.map_or(0, |oldest| (now - oldest).max(0) / 1000);
    Ok(Json(SyncStatus {
        last_sync: device.record.last_sync.map(timestamp),
        pending_changes: pending.map(|pending| pending.changes),
        pending_uploads: 0,
        server_version: env!("CARGO_PKG_VERSION"),
        device_id: device.id,
        is_online: device.is_active,
        cursor: device.record.cursor,
        lag: pending.map(lag),
    }))
}

/// `None` where the log does not tell what is missing after a cursor.
fn pending_of(feed: &Feed, identity: &Identity, cursor: Option<Cursor>) -> Result<Option<Pending>, LogError> {
    let Some(Ok(after)) = cursor.map(|cursor| feed.readable(cursor)) else { return Ok(None) };
    match pending(feed, &identity.grants, after) {
        Ok(pending) => Ok(Some(pending)),
        Err(ReadError::TooOld { .. }) => Ok(None),
        Err(ReadError::Log(error)) => Err(error),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ActiveQuery {
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct ActiveUsers {
    users: Vec<ActiveUser>,
    /// For `after`, where there are more.
    next: Option<String>,
    total: usize,
}

#[derive(Debug, Serialize)]
struct ActiveUser {
    user_id: String,
    issuer: Option<String>,
    sessions: usize,
    devices: usize,
    since: String,
}

/// GET `/api/realtime/active-users`
pub(super) async fn active_users(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    query: Result<Query<ActiveQuery>, QueryRejection>,
) -> Result<Json<ActiveUsers>, ProblemResponse> {
    admin_only(&identity)?;
    let Query(ActiveQuery { after, limit }) = query.map_err(|_| undecodable())?;
    let most = limit.unwrap_or(ACTIVE_USERS).clamp(1, MAX_ACTIVE_USERS);
    let (users, more) = relay.sessions.active_users(after.as_deref().unwrap_or_default(), most);
    let next = users.last().map(|user| user.place.clone()).filter(|_| more);
    let user = |user: devices::ActiveUser| ActiveUser {
        user_id: user.user.subject,
        issuer: user.user.issuer,
        sessions: user.sessions,
        devices: user.devices,
        since: timestamp(user.since),
    };
    let total = relay.sessions.count().1;
    Ok(Json(ActiveUsers { users: users.into_iter().map(user).collect(), next, total }))
}

#[derive(Debug, Serialize)]
pub(super) struct Status {
    success: bool,
    status: Counts,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    websocket: Count,
    polling: Count,
    last_check: i64,
}

#[derive(Debug, Serialize)]
struct Count {
    connections: usize,
    users: usize,
    devices: usize,
}

/// GET `/api/sync/status`
pub(super) async fn status(State(relay): State<Arc<Relay>>, _: Authenticated) -> Json<Status> {
    let count = |channel| {
        let present = relay.sessions.present(channel);
        Count { connections: present.sessions, users: present.users, devices: present.devices }
    };
    let last_check = PgTimestamp::now().unix_micros() / 1000;
    let counts = Counts { websocket: count(Channel::WebSocket), polling: count(Channel::Http), last_check };
    Json(Status { success: true, status: counts })
}

pub(super) fn admin_only(identity: &Identity) -> Result<(), ProblemResponse> {
    if identity.admin {
        return Ok(());
    }
    let detail =
        "this is for admins; `admin_claim` in the relay's configuration names the claim that makes one";
    Err(ProblemResponse::new(StatusCode::FORBIDDEN, "admin_only", detail))
}

fn checked(device_id: Option<String>) -> Result<Arc<str>, ProblemResponse> {
    match device_id {
        Some(id) if is_device_id(&id) => Ok(id.into()),
        _ => {
            let detail = "`device_id` is required: 1 to 64 of the characters A-Z a-z 0-9 _ -";
            Err(ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_device_id", detail))
        }
    }
}

/// The same for a device that is not there and for another user's.
fn unknown_device() -> ProblemResponse {
    let detail = "this user has no device of this id; it may have been removed, or unseen for too long";
    ProblemResponse::new(StatusCode::NOT_FOUND, "unknown_device", detail)
}

fn undecodable() -> ProblemResponse {
    let detail = "the query string cannot be decoded";
    ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
}

fn feed(relay: &Relay) -> Result<Arc<Feed>, ProblemResponse> {
    relay.current_feed().ok_or_else(|| {
        let detail = "the relay has no log yet; /ready says why";
        ProblemResponse::unavailable("not_ready", detail, NO_LOG_RETRY)
    })
}

/// Runs what reads or writes the log.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, ProblemResponse> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(LogError::Stopped(_) | LogError::Stalled(_))) => {
            let detail = "the relay's log is closed for a moment";
            Err(ProblemResponse::unavailable("unavailable", detail, NO_LOG_RETRY))
        }
        Ok(Err(error)) => Err(ProblemResponse::internal(&error)),
        Err(error) => Err(ProblemResponse::internal(&error)),
    }
}
