//! Sync over REST: `/api/realtime/sync`.
//!
//! The stage `sync` knows what to answer; here requests are read and answers sent, whole or as NDJSON,
//! one page at a time and at the device's pace.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::guard::{self, Places};
use super::http_auth::Authenticated;
use super::problem_response::ProblemResponse;
use super::relay::Relay;
use crate::auth::{AuthError, Identity};
use crate::devices::Labels;
use crate::sync::{self, Answered, FullStream, SyncRequest, SyncStream};
use crate::timestamp::PgTimestamp;

const NDJSON: &str = "application/x-ndjson";

/// When a device should come back that came before the first log was open.
pub(super) const NO_LOG_RETRY: Duration = Duration::from_secs(2);

type Pairs = Vec<(String, String)>;

/// GET `/api/realtime/sync`
pub(super) async fn sync_by_query(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
    headers: HeaderMap,
    pairs: Result<Query<Pairs>, QueryRejection>,
) -> Result<Response, ProblemResponse> {
    let Query(pairs) = pairs.map_err(|_| invalid("the query string cannot be decoded"))?;
    let request = SyncRequest::from_query(pairs)?;
    answer(&relay, &places, identity, request, &headers).await
}

/// POST `/api/realtime/sync`
pub(super) async fn sync_by_body(
    State(relay): State<Arc<Relay>>,
    Authenticated(identity): Authenticated,
    Extension(places): Places,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ProblemResponse> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(relay.limits.max_message_size),
        _ => invalid("the request's body could not be read"),
    })?;
    let request = SyncRequest::from_json(&body)?;
    answer(&relay, &places, identity, request, &headers).await
}

async fn answer(
    relay: &Arc<Relay>,
    places: &Semaphore,
    identity: Identity,
    request: SyncRequest,
    headers: &HeaderMap,
) -> Result<Response, ProblemResponse> {
    let place = guard::place(places).await?;
    let Some(feed) = relay.current_feed() else {
        let detail = "the relay has no log yet; /ready says why";
        return Err(ProblemResponse::unavailable("not_ready", detail, NO_LOG_RETRY));
    };
    let labels = Labels::new(request.device_type.clone(), request.app_version.clone());
    relay.devices.seen(&identity.user, &request.device_id, labels);
    let device = Arc::clone(&request.device_id);
    let (identity, server_end) = (Arc::new(identity), relay.progress.server_end());
    if wants_ndjson(headers) {
        let answered =
            sync::stream(&relay.full, Arc::clone(&feed), Arc::clone(&identity), request, server_end).await?;
        // Who waits for the database must not keep readers of the log waiting.
        drop(place);
        let lines = match answered {
            Answered::Log(stream) => Lines::Log(Box::new(stream)),
            Answered::Full(token) => Lines::Full(relay.full.lines(&feed, &identity, token).await?),
        };
        let reader = LineReader { relay: Arc::clone(relay), identity, device };
        return Ok(with_type(NDJSON, Body::from_stream(pages(lines, reader))));
    }
    let answered =
        sync::answer(&relay.full, Arc::clone(&feed), Arc::clone(&identity), request, server_end).await?;
    drop(place);
    let (body, has_more, completes_explicit) = match answered {
        Answered::Log(answer) => (answer.to_json(), answer.tail.has_more, false),
        Answered::Full(token) => {
            let served = relay.full.page(&feed, &identity, token).await?;
            (served.body, served.has_more, served.completes_explicit)
        }
    };
    if !has_more {
        relay.devices.answered(&identity.user, &device);
    }
    if completes_explicit {
        relay.devices.synced(&identity.user, &device);
    }
    Ok(with_type("application/json", body.into()))
}

/// An NDJSON answer under way.
enum Lines {
    Log(Box<SyncStream>),
    Full(FullStream),
    /// Nothing follows what was said last.
    Over,
}

/// Who takes it.
struct LineReader {
    relay: Arc<Relay>,
    identity: Arc<Identity>,
    device: Arc<str>,
}

impl LineReader {
    fn has_expired(&self) -> bool {
        self.identity.has_expired(PgTimestamp::now().unix_micros().div_euclid(1_000_000))
    }

    /// The answer has been taken to its end.
    fn done(&self, lines: &Lines) {
        let devices = &self.relay.devices;
        let complete = match lines {
            Lines::Log(stream) => stream.is_complete(),
            Lines::Full(stream) => stream.is_complete(),
            Lines::Over => false,
        };
        if complete {
            devices.answered(&self.identity.user, &self.device);
            if matches!(lines, Lines::Full(stream) if stream.is_explicit()) {
                devices.synced(&self.identity.user, &self.device);
            }
        }
    }
}

/// The next page is read when the device has taken the one before, and only while its token counts.
fn pages(lines: Lines, reader: LineReader) -> impl stream::Stream<Item = Result<Bytes, JoinError>> {
    stream::try_unfold((lines, reader), async |(lines, reader)| {
        let (next, lines) = match lines {
            Lines::Over => (None, Lines::Over),
            _ if reader.has_expired() => (Some(token_expired()), Lines::Over),
            Lines::Log(mut stream) => {
                let step = move || (stream.next_lines(), Lines::Log(stream));
                tokio::task::spawn_blocking(step).await?
            }
            Lines::Full(mut stream) => (stream.next_lines().await, Lines::Full(stream)),
        };
        if next.is_none() {
            reader.done(&lines);
        }
        Ok(next.map(|next| (next, (lines, reader))))
    })
}

/// The last line of an answer whose token ended meanwhile.
fn token_expired() -> Bytes {
    let error = AuthError::Expired;
    let line = serde_json::json!({"type": "error", "status": 401, "code": error.code(), "detail": error.to_string()});
    format!("{line}\n").into()
}

fn with_type(kind: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

/// Whether NDJSON is named in `Accept`; what else is accepted is JSON.
fn wants_ndjson(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|text| text.split(',')).any(|range| {
        let kind = range.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case(NDJSON)
    })
}

pub(super) fn invalid(detail: &'static str) -> ProblemResponse {
    ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
}

pub(super) fn too_large(limit: usize) -> ProblemResponse {
    let detail = format!("the request's body is larger than {limit} bytes");
    ProblemResponse::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ndjson_is_given_to_those_who_ask() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_ndjson(&headers)
        };
        assert!(wants("application/x-ndjson") && wants("application/json, Application/X-NDJSON;q=0.9"));
        assert!(!wants("*/*") && !wants("application/json") && !wants_ndjson(&HeaderMap::new()));
    }
}
