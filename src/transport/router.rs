//! Every route of the relay.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::{events, guard, health, metrics, poll, rest, tickets, ws};

/// Requests that read the log at the same time: each takes a thread while it does, and the rest waits in
/// order, so that a herd of returning devices costs latency and not memory.
const CONCURRENT_READS: usize = 32;

pub(crate) fn router(relay: Arc<Relay>) -> Router {
    let rest = Router::new()
        .route("/api/realtime/sync", get(rest::sync_by_query).post(rest::sync_by_body))
        .route("/api/sync/poll", get(poll::poll).post(poll::poll))
        .route("/api/realtime/ticket", post(tickets::ticket))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(Extension(Arc::new(Semaphore::new(CONCURRENT_READS))))
        .layer(from_fn(guard::in_time));
    let streams = Router::new()
        .route("/api/realtime/events", get(events::events).post(events::events))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(from_fn(guard::in_time))
        // Whenever a stream has nothing more, what was compressed is flushed. Of the encodings the one whose
        // window is small: each stream has its own for as long as it lives.
        .layer(CompressionLayer::new().no_zstd().compress_when(SizeAbove::new(0)));
    let operation = Router::new()
        .route("/health", get(health::health))
        .route("/api/realtime/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics));
    Router::new()
        .merge(rest)
        .merge(operation)
        .layer(CompressionLayer::new())
        // Below the compression: streams have one of their own, and a socket's frames are its own.
        .merge(streams)
        .route("/api/realtime/ws/{device_id}", get(ws::upgrade))
        .fallback(async || ProblemResponse::bare(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || ProblemResponse::bare(StatusCode::METHOD_NOT_ALLOWED))
        .layer(from_fn(guard::every_answer))
        .with_state(relay)
}
