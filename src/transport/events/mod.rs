//! Server-Sent Events: `/api/realtime/events`, a session's frames as a stream that any HTTP client reads.
//!
//! `encode` writes frames as events (pure), `stream` drives the session and hands what is written to the
//! connection.
//!
//! Invariants: an event's `id` is a cursor from which all topics of the request can be resumed, with
//! nothing missed in silence (see [`Vouched`]); what is wrong with the request is a problem, not a stream;
//! a reader that takes nothing costs one outbox and one chunk, and ends after two heartbeats.

mod encode;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::fields::Fields;
use super::http_auth::Admitted;
use super::joining::enter;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::session::{From, Vouched};
use crate::sync::SyncError;
use stream::Stream;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx, and those who copied it, to pass each event on at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Chunks that wait for the connection: the one that it takes next. What comes meanwhile waits in the
/// session's outbox, which falls back to the log.
const CHUNKS: usize = 1;

/// GET or POST `/api/realtime/events`
pub(super) async fn events(
    State(relay): State<Arc<Relay>>,
    Admitted(identity): Admitted,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, ProblemResponse> {
    let (device, topics) = (fields.device_id()?, fields.topics(&identity.grants)?);
    let cursor = match headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
        Some(value) => Some(value.to_str().map_err(|_| SyncError::Cursor)?),
        None => fields.text("cursor")?,
    };
    let (place, mut session) =
        enter(&relay, identity, device, fields.labels()?, fields.numbers_as_strings()?)?;
    let mut out = vec![session.established()];
    let from = cursor.map_or(From::Here, From::Cursor);
    let vouched = Vouched::new(session.open(&topics, from, &mut out).await?);
    let (pipe, mut chunks) = mpsc::channel::<Bytes>(CHUNKS);
    relay.tasks.spawn(Stream::new(session, place, vouched, out, pipe).run());
    let chunks = futures_util::stream::poll_fn(move |context| {
        chunks.poll_recv(context).map(|chunk| chunk.map(Ok::<_, Infallible>))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}
