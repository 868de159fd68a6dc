//! Every route of the relay.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::routing::get;
use axum::{Extension, Router};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::{guard, health, metrics, rest, ws};

/// Requests that read the log at the same time: each takes a thread while it does, and the rest waits in
/// order, so that a herd of returning devices costs latency and not memory.
const CONCURRENT_READS: usize = 32;

pub(crate) fn router(relay: Arc<Relay>) -> Router {
    let rest = Router::new()
        .route("/api/realtime/sync", get(rest::sync_by_query).post(rest::sync_by_body))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(Extension(Arc::new(Semaphore::new(CONCURRENT_READS))))
        .layer(from_fn(guard::in_time));
    let mut open = operation();
    if !relay.limits.metrics_apart {
        open = open.route("/metrics", get(metrics::metrics));
    }
    let router = Router::new()
        .merge(rest)
        .merge(open)
        // Server-sent events stay as they are: each has to be flushed, and none compresses well alone.
        .layer(CompressionLayer::new())
        // Below the compression: a socket's frames are its own.
        .route("/api/realtime/ws/{device_id}", get(ws::upgrade))
        .fallback(async || ProblemResponse::bare(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || ProblemResponse::bare(StatusCode::METHOD_NOT_ALLOWED));
    let router = match relay.gate.origins.cors() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn(guard::every_answer)).with_state(relay)
}

/// What the operator's own address serves.
pub(crate) fn operation_router(relay: Arc<Relay>) -> Router {
    operation()
        .route("/metrics", get(metrics::metrics))
        .fallback(async || ProblemResponse::bare(StatusCode::NOT_FOUND))
        .layer(from_fn(guard::every_answer))
        .with_state(relay)
}

fn operation() -> Router<Arc<Relay>> {
    Router::new()
        .route("/health", get(health::health))
        .route("/api/realtime/health", get(health::health))
        .route("/ready", get(health::ready))
}
