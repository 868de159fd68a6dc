//! WebSocket: `GET /api/realtime/ws/{device_id}`.
//!
//! `driver` moves bytes between a socket and its [session](super::session), `outgoing` groups and
//! writes frames.
//!
//! Invariants: a socket without a token gets nothing and is closed soon. A socket that is not read is
//! closed after two heartbeats.

mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod outgoing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, Path, Query, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::problem_response::ProblemResponse;
use super::{Caller, Relay};
use crate::auth::bearer::{self, Carriers};
use crate::auth::{AuthError, Identity};
use crate::devices::{Labels, is_device_id};

/// Sizes of a socket's buffers: small, since most devices are quiet most of the time.
const READ_BUFFER: usize = 4 * 1024;
/// A frame may be as large as a row; beyond it a socket that takes nothing holds no more than this.
const MAX_WRITE_BUFFER: usize = 2 * 1024 * 1024 * 1024;

/// How the device wants its frames.
#[derive(Debug, Clone, Copy, Default)]
struct Wishes {
    batch: bool,
    numbers_as_strings: bool,
}

/// What a request for a socket brings along about who sends it.
enum Proof {
    Token(String),
    /// The identity for which a ticket was given.
    Ticket(Box<Identity>),
    /// The first message has to bring a token.
    Later,
}

fn proof(relay: &Relay, carriers: Carriers<'_>, query: Option<&str>) -> Result<Proof, AuthError> {
    let token = bearer::find(carriers)?;
    match (token, query.and_then(bearer::ticket)) {
        (Some(_), Some(_)) => Err(AuthError::Several),
        (None, Some(ticket)) => relay.tickets.redeem(ticket, Instant::now()).map(Box::new).map(Proof::Ticket),
        (Some(token), None) => Ok(Proof::Token(token.to_owned())),
        (None, None) => Ok(Proof::Later),
    }
}

/// Takes a device's request for a WebSocket.
pub(crate) async fn upgrade(
    State(relay): State<Arc<Relay>>,
    Path(device_id): Path<String>,
    RawQuery(query): RawQuery,
    ConnectInfo(caller): ConnectInfo<Caller>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Err(refused) =
        relay.gate.check_origin(&caller, &headers).and_then(|()| relay.gate.check_host(&headers))
    {
        return refused.into_response();
    }
    if !is_device_id(&device_id) {
        return invalid_device_id().into_response();
    }
    if relay.current_feed().is_none() {
        let detail = "the relay has no log yet; /ready says why";
        return ProblemResponse::unavailable("not_ready", detail, Duration::from_secs(2)).into_response();
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let carriers = Carriers {
        authorization: text(header::AUTHORIZATION),
        subprotocols: text(header::SEC_WEBSOCKET_PROTOCOL),
        query: query.as_deref().filter(|_| relay.limits.url_token),
    };
    // A browser cannot see the status of a refused upgrade, so a bad token is told on the socket.
    let proof = match headers.get_all(header::AUTHORIZATION).iter().nth(1) {
        // Which of several counts would depend on who reads the request.
        Some(_) => Err(AuthError::Several),
        None => proof(&relay, carriers, query.as_deref()),
    };
    let address = relay.gate.client(&caller, &headers);
    let labels = labels(&uri);
    let wishes = wishes(query.as_deref().unwrap_or_default());
    let limits = &relay.limits;
    let upgrade = upgrade
        .protocols([bearer::SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(limits.max_message_size)
        .max_frame_size(limits.max_message_size);
    let tasks = relay.tasks.clone();
    upgrade.on_upgrade(move |socket| {
        tasks.track_future(driver::run(relay, socket, device_id.into(), address, proof, wishes, labels))
    })
}

pub(super) fn invalid_device_id() -> ProblemResponse {
    let detail = "a device id is 1 to 64 of the characters A-Z a-z 0-9 _ -";
    ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_device_id", detail)
}

/// What the device says about itself; a query that cannot be decoded says nothing.
fn labels(uri: &Uri) -> Labels {
    let (mut device_type, mut app_version) = (None, None);
    if let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) {
        for (name, value) in pairs {
            match name.as_str() {
                "device_type" => device_type = Some(value),
                "app_version" => app_version = Some(value),
                _ => {}
            }
        }
    }
    Labels::new(device_type, app_version)
}

fn wishes(query: &str) -> Wishes {
    let mut wishes = Wishes::default();
    for pair in query.split('&') {
        match pair {
            "batch=1" | "batch=true" => wishes.batch = true,
            "numbers=string" => wishes.numbers_as_strings = true,
            _ => {}
        }
    }
    wishes
}
