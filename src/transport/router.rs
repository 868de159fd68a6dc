//! Every route of the relay.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::{devices, guard, health, messages, metrics, rest, ws};

/// Requests that read the log at the same time: each takes a thread while it does, and the rest waits in
/// order, so that a herd of returning devices costs latency and not memory.
const CONCURRENT_READS: usize = 32;

pub(crate) fn router(relay: Arc<Relay>) -> Router {
    let rest = Router::new()
        .route("/api/realtime/sync", get(rest::sync_by_query).post(rest::sync_by_body))
        .route("/api/realtime/sync-status", get(devices::sync_status))
        .route("/api/realtime/devices", get(devices::list))
        .route("/api/realtime/devices/{device_id}", delete(devices::remove))
        .route("/api/realtime/active-users", get(devices::active_users))
        .route("/api/sync/send", post(messages::send))
        .route("/api/sync/broadcast", post(messages::broadcast))
        .route("/api/sync/status", get(devices::status))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(Extension(Arc::new(Semaphore::new(CONCURRENT_READS))))
        .layer(from_fn(guard::in_time));
    let operation = Router::new()
        .route("/health", get(health::health))
        .route("/api/realtime/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics));
    Router::new()
        .merge(rest)
        .merge(operation)
        .layer(CompressionLayer::new())
        // Below the compression: a socket's frames are its own.
        .route("/api/realtime/ws/{device_id}", get(ws::upgrade))
        .fallback(async || ProblemResponse::bare(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || ProblemResponse::bare(StatusCode::METHOD_NOT_ALLOWED))
        .layer(from_fn(guard::every_answer))
        .with_state(relay)
}
