//! WebSocket: `GET /api/realtime/ws/{device_id}`.
//!
//! `protocol` has the messages, `subscriptions` what a session reads (pure), `delivery` turns
//! transactions into frames, `session` is the state of one session and what it does next, `driver`
//! moves bytes between it and the socket.
//!
//! Invariants: a session's frames are in commit order, and each frame's cursor is honest: the device
//! has everything before it. Nothing outside the token's grants is ever subscribed; a socket without a
//! token gets nothing and is closed soon. A socket that is not read costs one outbox, then only a place
//! in the log.

mod delivery;
mod driver;
mod outgoing;
mod protocol;
mod rights;
mod session;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::problem_response::ProblemResponse;
use super::{Caller, Relay};
use crate::auth::AuthError;
use crate::auth::bearer::{self, Carriers};

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

/// Takes a device's request for a WebSocket.
pub(crate) async fn upgrade(
    State(relay): State<Arc<Relay>>,
    Path(device_id): Path<String>,
    RawQuery(query): RawQuery,
    ConnectInfo(caller): ConnectInfo<Caller>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Err(refused) =
        relay.gate.check_origin(&caller, &headers).and_then(|()| relay.gate.check_host(&headers))
    {
        return refused.into_response();
    }
    if !is_device_id(&device_id) {
        let detail = "a device id is 1 to 64 of the characters A-Z a-z 0-9 _ -";
        return ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_device_id", detail).into_response();
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
    let token = match headers.get_all(header::AUTHORIZATION).iter().nth(1) {
        // Which of several counts would depend on who reads the request.
        Some(_) => Err(AuthError::Several),
        None => bearer::find(carriers).map(|token| token.map(str::to_owned)),
    };
    let address = relay.gate.client(&caller, &headers);
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
        tasks.track_future(driver::run(relay, socket, device_id.into(), address, token, wishes))
    })
}

fn is_device_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
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
