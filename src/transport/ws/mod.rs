//! WebSocket: `GET /api/realtime/ws/{device_id}`.
//!
//! `driver` moves messages between a `socket` and its [session](super::session); `incoming` reads what the
//! device sends, `outgoing` groups and writes frames. The connection is taken out of HTTP whole: all that a
//! quiet device costs is here.
//!
//! Invariants: a socket without a token gets nothing and is closed soon. A socket that is not read is
//! closed after two heartbeats.

mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod incoming;
mod outgoing;
mod socket;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::line::Line;
use super::problem_response::ProblemResponse;
use super::{Caller, Relay};
use crate::auth::bearer::{self, Carriers};
use crate::auth::{AuthError, Identity};
use crate::devices::{Labels, is_device_id};
use driver::Visit;
use socket::Socket;

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

/// A device that asked for a socket.
struct Arrival {
    relay: Arc<Relay>,
    device: Arc<str>,
    address: IpAddr,
    proof: Result<Proof, AuthError>,
    wishes: Wishes,
    labels: Labels,
}

/// Takes a device's request for a WebSocket.
pub(crate) async fn upgrade(
    State(relay): State<Arc<Relay>>,
    Path(device_id): Path<String>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    uri: Uri,
    headers: HeaderMap,
    connection: Option<Extension<OnUpgrade>>,
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
        query: uri.query().filter(|_| relay.limits.url_token),
    };
    // A browser cannot see the status of a refused upgrade, so a bad token is told on the socket.
    let proof = match headers.get_all(header::AUTHORIZATION).iter().nth(1) {
        // Which of several counts would depend on who reads the request.
        Some(_) => Err(AuthError::Several),
        None => proof(&relay, carriers, uri.query()),
    };
    let address = relay.gate.client(&caller, &headers);
    let labels = labels(&uri);
    let wishes = wishes(uri.query().unwrap_or_default());
    let upgrade = upgrade.protocols([bearer::SUBPROTOCOL]);
    // The request is one for a socket, or there would be no `upgrade`.
    let (Some(Extension(connection)), Some(key)) = (connection, headers.get(header::SEC_WEBSOCKET_KEY))
    else {
        return ProblemResponse::bare(StatusCode::UPGRADE_REQUIRED).into_response();
    };
    let answer = accept(key, upgrade.selected_protocol());
    let tasks = relay.tasks.clone();
    let arrival = Box::new(Arrival { relay, device: device_id.into(), address, proof, wishes, labels });
    tokio::spawn(tasks.track_future(serve(connection, arrival)));
    answer
}

/// `101 Switching Protocols` (RFC 6455, section 4.2.2).
fn accept(key: &HeaderValue, protocol: Option<&HeaderValue>) -> Response {
    let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(proof) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, proof);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    }
    answer
}

/// One device, from its handshake to its end. What comes before its session has a future of its own, which is
/// gone when the session begins.
async fn serve(connection: OnUpgrade, arrival: Box<Arrival>) {
    if let Some(visit) = open(connection, arrival).await {
        visit.run().await;
    }
}

fn open(connection: OnUpgrade, arrival: Box<Arrival>) -> BoxFuture<'static, Option<Box<Visit>>> {
    Box::pin(async move {
        // HTTP gives it up with its answer.
        let upgraded = connection.await.ok()?;
        let socket = take_over(upgraded, &arrival)?;
        driver::enter(socket, *arrival).await
    })
}

/// Takes the connection out of HTTP; what that has read of it goes with its buffer, which is large.
fn take_over(upgraded: Upgraded, arrival: &Arrival) -> Option<Socket> {
    // Every connection comes through the front door.
    let parts = downcast::<TokioIo<Line>>(upgraded).ok()?;
    let most = arrival.relay.limits.max_message_size;
    Some(Socket::new(parts.io.into_inner(), &parts.read_buf, most, arrival.wishes.batch))
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
