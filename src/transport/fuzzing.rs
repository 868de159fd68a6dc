//! Any bytes as what devices send: messages on a socket, bodies, query strings and headers.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use serde_json::value::RawValue;

use super::address::{TrustedProxies, neighbourhood};
use super::events::fuzzing::read_back;
use super::fields::Fields;
use super::origin::{Origins, asks_by_address, is_origin};
use super::poll::fuzzing::asked;
use super::protocol::{Answer, Envelope, KINDS, Request};
use super::{messages, ws};
use crate::auth::{Grants, Identity, UserId};
use crate::cursor::{Cursor, Epoch};
use crate::devices::is_device_id;
use crate::fuzzing::Source;
use crate::position::Position;
use crate::sync::{MAX_LIMIT, SyncError, SyncRequest};
use crate::topic::Pattern;

fn identity() -> Identity {
    Identity {
        user: UserId { issuer: None, subject: "42".to_owned() },
        grants: Grants::new(vec![Pattern::parse("user:42:*").expect("a pattern")]),
        expires_at: None,
        issued_at: None,
        admin: false,
    }
}

/// The text of a frame, and the body of each request that has one.
pub(crate) fn message(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        frame(text);
    }
    if let Ok(request) = SyncRequest::from_json(data).map_err(explained) {
        check_sync(&request);
    }
    messages::fuzzing::body(data);
    if let Ok(fields) = serde_json::from_slice(data) {
        check_fields(&Fields::of(fields));
    }
}

fn frame(text: &str) {
    let envelope: Result<Envelope, _> = serde_json::from_str(text);
    let request: Result<Request, _> = serde_json::from_str(text);
    // It is looked at first: a message that has none is refused.
    let Ok(envelope) = envelope else { return };
    if request.is_ok() {
        assert!(envelope.kind.as_deref().is_some_and(|kind| KINDS.contains(&kind)));
    }
    // What is echoed is echoed as one value, whatever it is.
    let answer = Answer::Error {
        r#ref: envelope.r#ref.as_ref(),
        code: "bad_message",
        message: text.to_owned(),
        retryable: false,
        retry_after_ms: None,
        topic: envelope.kind,
    };
    let json = answer.to_json();
    let read: serde_json::Value = serde_json::from_str(&json).expect("a frame is JSON");
    let whole = |value: &&serde_json::Value| !value.to_string().contains(['.', 'e', 'E']);
    // Fractions may change in their last digit.
    if let Some(r#ref) = envelope.r#ref.as_ref().filter(whole) {
        assert_eq!(read.get("ref"), Some(r#ref));
    }
    assert!(!json.contains(['\n', '\r']));
}

fn explained(error: SyncError) {
    let problem = error.problem();
    assert!((400..600).contains(&problem.status) && !problem.detail.is_empty());
}

fn check_sync(request: &SyncRequest) {
    assert!(is_device_id(&request.device_id));
    assert!((1..=MAX_LIMIT).contains(&request.page_limit()));
    assert!(request.cursor.is_none() || request.page.is_none());
    for (place, topic) in request.topics.iter().enumerate() {
        assert!(!request.topics[..place].contains(topic), "each once");
    }
    if let Some(tables) = &request.tables {
        assert!(!tables.is_empty() && tables.is_sorted_by(|one, other| one < other));
    }
    for label in [&request.device_type, &request.app_version].into_iter().flatten() {
        assert!(!label.chars().any(char::is_control));
    }
}

fn check_fields(fields: &Fields) {
    let identity = identity();
    asked(fields, &identity);
    let _ = (fields.labels(), fields.text("cursor"), fields.device_id());
}

/// What comes on a socket after its handshake.
pub(crate) fn socket(data: &[u8]) {
    ws::fuzzing::frames(data);
}

/// The query string of every request that has one.
pub(crate) fn query(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(uri) = format!("/x?{text}").parse::<Uri>() else { return };
    ws::fuzzing::query(&uri);
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri);
    let Ok(axum::extract::Query(pairs)) = pairs else { return };
    check_fields(&Fields::from_query(pairs.clone()));
    if let Ok(request) = SyncRequest::from_query(pairs).map_err(explained) {
        check_sync(&request);
    }
}

/// A stream's events as a browser reads them: one for each frame, with its type, its text and its cursor.
pub(crate) fn events(data: &[u8]) {
    let mut source = Source::new(data);
    let cursor = Cursor::new(Epoch::new(source.u64()), Position::new(Default::default(), source.u32()));
    let cursor = source.flag().then_some(cursor);
    let Ok(payload) = serde_json::from_slice::<Box<RawValue>>(source.rest()) else { return };
    read_back(&format!("{{\"type\":\"broadcast\",\"payload\":{}}}", payload.get()), "broadcast", cursor);
}

/// Headers that say from where a request comes and which page sent it.
pub(crate) fn headers(data: &[u8]) {
    let mut source = Source::new(data);
    let tls = source.flag();
    let peer = IpAddr::V4(Ipv4Addr::from_bits(source.u32()));
    let mut headers = HeaderMap::new();
    let names = [HeaderName::from_static("x-forwarded-for"), header::ORIGIN, header::HOST, header::ACCEPT];
    while !source.is_empty() {
        let name = &names[usize::from(source.below(4))];
        if let Ok(value) = HeaderValue::from_bytes(source.short()) {
            headers.append(name, value);
        }
    }
    let all = TrustedProxies::new(vec!["0.0.0.0/0".parse().expect("a network")]);
    let _ = neighbourhood(all.client(peer, &headers));
    assert_eq!(TrustedProxies::default().client(peer, &headers), peer, "nobody is believed unasked");
    let _ = asks_by_address(&headers);
    let origin = headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
    let named = Origins::new(&["https://app.example.com".to_owned()]);
    let allowed = named.allow(&headers, tls);
    let Some(origin) = origin else { return };
    let _ = is_origin(origin);
    if allowed && !origin.eq_ignore_ascii_case("https://app.example.com") {
        let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
        let host = hosts.first().and_then(|host| host.to_str().ok()).expect("a host to be a page of");
        assert_eq!(hosts.len(), 1);
        let bare = |text: &str| text.to_ascii_lowercase().replace(":443", "").replace(":80", "");
        let page = bare(origin.split_once("://").map_or("", |(_, page)| page));
        assert_eq!(page, bare(host), "a page of another host");
    }
}
