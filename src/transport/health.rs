//! Liveness and readiness.
//!
//! `/health` says that the process answers, whatever becomes of the database: a supervisor that restarts
//! on it must not restart because PostgreSQL is away. `/ready` says whether devices get what commits now.
//! Both are open to everyone who reaches the port, so neither tells names or addresses: why ingest
//! failed stands in the log. Of a disk that has to be seen to `/ready` names the directory.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::relay::Relay;
use crate::hub::timestamp;
use crate::ingest;
use crate::log::TroubleKind;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// What this version can do, for clients that choose by it.
const FEATURES: &[&str] = &[
    "websocket",
    "sse",
    "long_poll",
    "replay",
    "sync",
    "sync_ndjson",
    "full_sync",
    "broadcast",
    "devices",
    "messages",
];

#[derive(Serialize)]
struct Health {
    status: &'static str,
    service: &'static str,
    version: &'static str,
    active_connections: usize,
    total_devices: usize,
    timestamp: String,
    features: &'static [&'static str],
}

/// GET `/health`
pub(super) async fn health(State(relay): State<Arc<Relay>>) -> Response {
    let health = Health {
        status: "healthy",
        service: "rowcast",
        version: env!("CARGO_PKG_VERSION"),
        active_connections: relay.sessions.count().0,
        total_devices: relay.sessions.devices(),
        timestamp: timestamp(PgTimestamp::now().unix_micros()),
        features: FEATURES,
    };
    Json(health).into_response()
}

/// Why devices do not get what commits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum NotReady {
    ShuttingDown,
    /// Another relay streams; this one takes over when that one goes.
    Standby,
    NotStreaming,
    NoLog,
    /// Ingest waits until the log's disk has room again, or works again.
    DiskFull,
    DiskFails,
    LagBytes,
    LagTime,
    KeysUnavailable,
}

#[derive(Debug, Serialize)]
struct Readiness {
    status: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<NotReady>,
    /// What to do, where the relay knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Arc<str>>,
    epoch: Option<String>,
    lag_bytes: u64,
    lag_ms: i64,
    watermark: Option<String>,
    confirmed: String,
}

/// GET `/ready`
pub(super) async fn ready(State(relay): State<Arc<Relay>>) -> Response {
    let readiness = look(&relay);
    let status = if readiness.reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Whether `/ready` says yes.
pub(super) fn is_ready(relay: &Relay) -> bool {
    look(relay).reason.is_none()
}

fn look(relay: &Relay) -> Readiness {
    let (state, feed) = (relay.progress.state(), relay.current_feed());
    let lag_bytes = relay.progress.lag_bytes();
    let lag_micros = relay.progress.lag_micros(PgTimestamp::now().unix_micros());
    let limits = &relay.limits;
    let trouble = feed.as_ref().and_then(|feed| feed.log.trouble()).or_else(|| relay.progress.log_trouble());
    let reason = if relay.shutdown.is_cancelled() {
        Some(NotReady::ShuttingDown)
    } else if let Some(trouble) = &trouble {
        Some(match trouble.kind {
            TroubleKind::DiskFull => NotReady::DiskFull,
            TroubleKind::DiskFails => NotReady::DiskFails,
        })
    } else if state == ingest::State::Waiting {
        Some(NotReady::Standby)
    } else if state != ingest::State::Streaming {
        Some(NotReady::NotStreaming)
    } else if feed.is_none() {
        Some(NotReady::NoLog)
    } else if lag_bytes > limits.ready_lag_bytes {
        Some(NotReady::LagBytes)
    } else if u128::from(lag_micros.unsigned_abs()) > limits.ready_lag_time.as_micros() {
        Some(NotReady::LagTime)
    } else if relay.verifier.as_ref().is_some_and(|verifier| !verifier.keys_available()) {
        Some(NotReady::KeysUnavailable)
    } else {
        None
    };
    Readiness {
        status: if reason.is_none() { "ready" } else { "not_ready" },
        state: state.name(),
        reason,
        detail: trouble.map(|trouble| trouble.what),
        epoch: feed.as_ref().map(|feed| feed.epoch.to_string()),
        lag_bytes,
        lag_ms: lag_micros / 1000,
        watermark: feed.as_ref().map(|feed| lsn(feed.watermark().lsn)),
        confirmed: lsn(relay.progress.confirmed()),
    }
}

/// As PostgreSQL prints it.
fn lsn(lsn: Lsn) -> String {
    lsn.to_string()
}
