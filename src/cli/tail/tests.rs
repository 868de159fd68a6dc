//! A tail against a server of our own.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

use rowcast::auth::Verifier;
use rowcast::config::{Purpose, Sources};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{Request as Asked, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;

fn config(grants: &str) -> Config {
    let env = [("ROWCAST_JWT_SECRET", "0123456789abcdef0123456789abcdef"), ("ROWCAST_GRANTS", grants)];
    let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let sources = Sources { env, directory: "/nonexistent".into(), ..Sources::default() };
    Config::load(&sources, Purpose::Tool).unwrap()
}

/// One connection: the user it was for and what it subscribed, then `frames`, then the close.
async fn serve_one(listener: &TcpListener, frames: &[&str], code: u16, reason: &str) -> (String, String) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut subject = String::new();
    let check = |asked: &Asked, response: Response| {
        assert_eq!(asked.uri().path(), "/api/realtime/ws/rowcast-tail");
        let header = asked.headers()[AUTHORIZATION].to_str().unwrap();
        let token = rowcast::auth::bearer::from_authorization(header).unwrap();
        let auth = config("user:{sub}:*").auth().unwrap();
        let now = jiff::Timestamp::now().as_second();
        subject = Verifier::new(auth).unwrap().verify(token, now).unwrap().user.subject;
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, check).await.unwrap();
    let subscribed = socket.next().await.unwrap().unwrap().into_text().unwrap().to_string();
    socket.send(Message::Ping("x".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("x".into()));
    for frame in frames {
        socket.send(Message::text(*frame)).await.unwrap();
    }
    let close = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
    socket.close(Some(close)).await.unwrap();
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    (subject, subscribed)
}

#[tokio::test]
async fn it_resumes_after_a_restart_and_ends_where_a_new_try_would_not_help() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let patterns = vec!["user:42:*".to_owned()];
    let config = config("user:{sub}:*");
    let tail = Tail {
        address: address(Some(&url), &config, "rowcast-tail").unwrap(),
        token: None,
        claims: Claims::of(None, &patterns, &config),
        config,
    };
    let mut follow = Follow::new(patterns, false);
    let server = async {
        let frames = [r#"{"type":"subscribed","topics":["user:42:*"],"cursor":"e.1.0"}"#];
        let first = serve_one(&listener, &frames, 1012, r#"{"retry_after_ms":5}"#).await;
        let second = serve_one(&listener, &[], 4401, "token_expired").await;
        (first, second)
    };
    let (ended, (first, second)) = tokio::join!(tail.follow(&mut follow), server);
    assert_eq!(first, ("42".to_owned(), r#"{"topics":["user:42:*"],"type":"subscribe"}"#.to_owned()));
    assert_eq!(second.1, r#"{"cursor":"e.1.0","topics":["user:42:*"],"type":"subscribe"}"#);
    assert!(format!("{:?}", ended.unwrap_err()).contains("token_expired"));
}

#[test]
fn the_token_is_made_for_what_is_watched() {
    let config = config("user:{sub}:*,team:{team_ids}:*,global:*");
    let patterns = ["team:7:*", "user:a%3Ab:orders", "team:8:notes", "global:*"].map(str::to_owned);
    let claims = Claims::of(None, &patterns, &config).unwrap();
    assert_eq!(claims.sub, "a:b");
    assert_eq!(claims.extra["team_ids"].get(), r#"["7","8"]"#);
    let two = ["user:1:*", "user:2:*"].map(str::to_owned);
    assert!(Claims::of(None, &two, &config).is_err());
}

#[test]
fn the_address_is_the_configured_one_unless_named() {
    let config = config("global:*");
    let of = |url| address(url, &config, "d").map_err(|failure| format!("{failure:?}"));
    assert_eq!(of(None).unwrap(), "ws://127.0.0.1:4000/api/realtime/ws/d");
    assert_eq!(of(Some("ws://h:1/")).unwrap(), "ws://h:1/api/realtime/ws/d");
    assert!(of(Some("wss://h")).is_err() && of(Some("h:1")).is_err());
}
