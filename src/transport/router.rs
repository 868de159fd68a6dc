//! Every route of the relay.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::{devices, events, guard, health, messages, metrics, openapi, poll, rest, tickets, ws};

/// Requests that read the log at the same time: each takes a thread while it does, and the rest waits in
/// order, so that a herd of returning devices costs latency and not memory.
const CONCURRENT_READS: usize = 32;

pub(crate) fn router(relay: Arc<Relay>) -> Router {
    let rest = Router::new()
        .route("/api/realtime/sync", get(rest::sync_by_query).post(rest::sync_by_body))
        .route("/api/sync/poll", get(poll::poll).post(poll::poll))
        .route("/api/realtime/ticket", post(tickets::ticket))
        .route("/api/realtime/sync-status", get(devices::sync_status))
        .route("/api/realtime/devices", get(devices::list))
        .route("/api/realtime/devices/{device_id}", delete(devices::remove))
        .route("/api/realtime/active-users", get(devices::active_users))
        .route("/api/sync/send", post(messages::send))
        .route("/api/sync/broadcast", post(messages::broadcast))
        .route("/api/sync/status", get(devices::status))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(Extension(Arc::new(Semaphore::new(CONCURRENT_READS))))
        .layer(from_fn_with_state(Arc::clone(&relay), guard::in_time))
        .layer(from_fn(guard::unpacked));
    let streams = Router::new()
        .route("/api/realtime/events", get(events::events).post(events::events))
        .layer(DefaultBodyLimit::max(relay.limits.max_message_size))
        .layer(from_fn_with_state(Arc::clone(&relay), guard::in_time))
        .layer(from_fn(guard::unpacked))
        // Whenever a stream has nothing more, what was compressed is flushed. Of the encodings the one whose
        // window is small: each stream has its own for as long as it lives.
        .layer(CompressionLayer::new().no_zstd().compress_when(SizeAbove::new(0)));
    let mut open = operation().route("/api/openapi.json", get(openapi::document));
    if !relay.limits.metrics_apart {
        open = open.route("/metrics", get(metrics::metrics));
    }
    let router = Router::new()
        .merge(rest)
        .merge(open)
        .layer(CompressionLayer::new())
        // Below the compression: streams have one of their own, and a socket's frames are its own.
        .merge(streams)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;
    use axum::http::header::CONTENT_TYPE;
    use futures_util::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_event_is_on_its_way_while_its_stream_goes_on() {
        let events = get(async || {
            let event = bytes::Bytes::from("id: 1\ndata: an event of some length\n\n".repeat(10));
            let body = stream::iter([Ok::<_, std::io::Error>(event)]).chain(stream::pending());
            ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(body))
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/events", events).layer(CompressionLayer::new());
        tokio::spawn(axum::serve(listener, router).into_future());
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET /events HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip, zstd\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        while !answer.contains("an event") {
            let mut part = [0; 4096];
            let reading = tokio::time::timeout(std::time::Duration::from_secs(10), stream.read(&mut part));
            let length = reading.await.unwrap().unwrap();
            answer.push_str(std::str::from_utf8(&part[..length]).unwrap());
        }
        assert!(!answer.contains("content-encoding"), "{answer}");
    }
}
