//! What holds for every answer, whatever its handler did: it is never cached, is nothing but what its
//! `Content-Type` says, an error is a problem document, a panic is a bare 500, it says how the sender's rate limit stands, and it is counted. The
//! URL's query, which may hold a token, is looked at nowhere here.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::HttpBody;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::line::Caller;
use super::metrics::count_request;
use super::problem_response::ProblemResponse;
use super::rate::Standing;
use super::relay::Relay;

/// How long a request waits for a place among those that are answered at once.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn every_answer(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let caller = request.extensions().get::<ConnectInfo<Caller>>().cloned();
    if let Some(ConnectInfo(caller)) = &caller {
        caller.head_came();
    }
    let tally = Tally::default();
    request.extensions_mut().insert(tally.clone());
    // Nothing of the request is used after a panic, and shared state recovers its locks.
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        let route = route.as_ref().map_or("unknown", MatchedPath::as_str);
        ProblemResponse::internal(&format_args!("the handler of {route} panicked")).into_response()
    });
    let status = response.status();
    if (status.is_client_error() || status.is_server_error()) && !has_document(&response) {
        response = explain(response);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Answers repeat texts of requests: no browser may find markup in them.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(standing) = tally.0.get() {
        standing.write(response.headers_mut());
    }
    // The end of a stream is not seen from here; and what follows an upgrade is no request.
    let ends_here =
        status != StatusCode::SWITCHING_PROTOCOLS && response.body().size_hint().exact().is_some();
    if let Some(ConnectInfo(caller)) = caller.filter(|_| ends_here) {
        caller.await_head();
    }
    count_request(&method, route.as_ref(), status, begun.elapsed());
    response
}

/// How the rate limit stands that a request took from, from its extractor to its answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<OnceLock<Standing>>);

impl Tally {
    pub(super) fn set(&self, standing: Standing) {
        // The first one counts; a request takes from one bucket.
        let _ = self.0.set(standing);
    }
}

/// Bounds the time until the head of the answer is there, the request's body included.
pub(super) async fn in_time(State(relay): State<Arc<Relay>>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(relay.limits.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = "the relay did not answer in time";
            ProblemResponse::unavailable("timeout", detail, Duration::from_secs(1)).into_response()
        }
    }
}

/// Bodies are taken as they are: one that is packed would have no size before it is unpacked.
pub(super) async fn unpacked(request: Request, next: Next) -> Response {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if request.headers().get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return next.run(request).await;
    }
    let detail = "bodies are not taken compressed; send it without Content-Encoding";
    ProblemResponse::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request", detail).into_response()
}

/// The framework's own refusals are empty or plain text.
fn has_document(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| !kind.as_bytes().starts_with(b"text/plain"))
}

/// A problem document in the place of the body; the other headers (`Allow`, `Upgrade`) stay.
fn explain(refusal: Response) -> Response {
    let (mut head, _) = refusal.into_parts();
    let mut problem = ProblemResponse::bare(head.status).into_response();
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    head.headers.extend(problem.headers_mut().drain());
    Response::from_parts(head, problem.into_body())
}

/// The places of requests that are answered at once.
pub(super) type Places = Extension<Arc<Semaphore>>;

/// Waits for a place; a crowd is told to come back. Asked for when the request is there whole: who sends
/// it slowly must not keep others waiting.
pub(super) async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, ProblemResponse> {
    match tokio::time::timeout(PLACE_TIMEOUT, places.acquire()).await {
        Ok(Ok(place)) => Ok(place),
        // The semaphore is never closed.
        Ok(Err(_)) | Err(_) => {
            let detail = "too many requests are being answered";
            Err(ProblemResponse::unavailable("busy", detail, Duration::from_secs(2)))
        }
    }
}
