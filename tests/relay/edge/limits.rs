//! Rate limits: exactly as many as are allowed, each user and each address by itself.

use serde_json::{Value, json};

use super::{ORDERS, SYNC};
use crate::support::device::{Device, Incoming};
use crate::support::http::{Http, Response};
use crate::support::relay::{Relay, Setup};
use crate::support::scene::{database, scene, scene_with};
use crate::support::token;

fn limited(setup: Setup) -> Setup {
    setup
        .env("ROWCAST_RATE_LIMIT_REQUESTS", "5")
        .env("ROWCAST_RATE_LIMIT_POLLS", "3")
        .env("ROWCAST_RATE_LIMIT_FAILURES", "4")
        .env("ROWCAST_RATE_LIMIT_WINDOW", "10m")
}

/// A request that is understood: what it is told does not matter here.
async fn ask(http: &Http) -> Response {
    http.post(SYNC, &json!({"device_id": "d", "topics": ["user:42:*"]})).await
}

fn assert_limited(answer: &Response, policy: &str, at_most: u64) {
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.headers.get("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("rate_limited"), &json!(429)));
    let wait: u64 = answer.headers.get("retry-after").unwrap().parse().unwrap();
    assert!(wait <= at_most && wait + 15 >= at_most, "{wait} of {at_most}");
    assert_eq!(problem["retry_after"], json!(wait));
    assert_eq!(answer.headers.get("ratelimit-policy"), Some(policy));
    let name = policy.split(';').next().unwrap();
    assert_eq!(answer.headers.get("ratelimit"), Some(format!("{name};r=0;t=600").as_str()));
}

#[tokio::test]
async fn a_user_asks_as_often_as_is_allowed() {
    let (_pg, relay) = scene_with(ORDERS, limited).await;
    let user = relay.http_as("42");
    let policy = "\"requests\";q=5;w=600";
    for remaining in [4, 3, 2, 1, 0] {
        let answer = ask(&user).await;
        assert_ne!(answer.status, 429);
        assert_eq!(answer.headers.get("ratelimit-policy"), Some(policy));
        let left = answer.headers.get("ratelimit").unwrap();
        let full = 120 * (5 - remaining);
        assert_eq!(left, format!("\"requests\";r={remaining};t={full}"));
    }
    assert_limited(&ask(&user).await, policy, 120);
    // All devices of the user share it, whatever token they bring; other users do not.
    let renewed = relay.http().with_token(&token::user_until("42", 4_000_000_000));
    assert_limited(&ask(&renewed).await, policy, 120);
    assert_ne!(ask(&relay.http_as("7")).await.status, 429);
    // Nobody is counted who did not say who they are, and what is open to all stays so.
    for _ in 0..10 {
        assert!(relay.http().get("/health").await.expect_status(200).headers.get("ratelimit").is_none());
    }
    // Sockets take from another bucket.
    Device::of(&relay, "42", "phone").connect().await;
    assert_eq!(relay.metric(r#"rowcast_rate_limited_total{bucket="requests"}"#).await, Some(2.0));
}

#[tokio::test]
async fn sockets_beyond_the_limit_are_told_when_to_come_back() {
    let (_pg, relay) = scene_with(ORDERS, limited).await;
    for _ in 0..3 {
        Device::of(&relay, "42", "phone").connect().await.close().await;
    }
    for first_message in [false, true] {
        let connect = Device::of(&relay, "42", "phone");
        let mut device = match first_message {
            false => connect.try_connect().await.unwrap(),
            true => connect.without_token().try_connect().await.unwrap(),
        };
        if first_message {
            device.send(&json!({"type": "auth", "token": token::user("42")})).await;
        }
        let error = device.expect_error("rate_limited").await;
        let wait = error["retry_after_ms"].as_u64().unwrap();
        assert!(error["retryable"] == json!(true) && (100_000..=200_000).contains(&wait), "{error}");
        assert_eq!(device.expect_close().await, (4429, "rate_limited".to_owned()));
    }
    Device::of(&relay, "7", "phone").connect().await;
    assert_ne!(ask(&relay.http_as("42")).await.status, 429);
}

#[tokio::test]
async fn refused_tokens_count_against_their_address() {
    let proxied = |setup: Setup| limited(setup).env("ROWCAST_TRUSTED_PROXIES", "127.0.0.0/8");
    let (_pg, relay) = scene_with(ORDERS, proxied).await;
    let forged = relay.http().with_token(&token::mint_with(&"x".repeat(32), &json!({"sub": "42"})));
    let from = async |http: &Http, forwarded: &str| {
        http.request("GET", SYNC).header("x-forwarded-for", forwarded).send().await
    };
    // What the device itself claims stands to the left of what the proxy saw.
    for claimed in 1..=4 {
        let answer = from(&forged, &format!("203.0.113.{claimed}, 198.51.100.1")).await;
        assert_eq!(answer.status, 401);
        assert!(answer.headers.get("ratelimit").is_none());
    }
    let refused = from(&forged, "203.0.113.9, 198.51.100.1").await;
    assert_limited(&refused, "\"failures\";q=4;w=600", 150);
    assert_eq!(from(&relay.http(), "198.51.100.1").await.status, 429);
    // Their neighbours with a valid token notice nothing, nor do those whose token just expired.
    assert_eq!(from(&relay.http_as("42"), "198.51.100.1").await.status, 400);
    let expired = relay.http().with_token(&token::user_until("42", 1_000_000_000));
    for _ in 0..6 {
        assert_eq!(from(&expired, "198.51.100.1").await.status, 401);
    }
    assert_eq!(from(&forged, "198.51.100.2").await.status, 401);
    // One subscriber's addresses are one.
    for host in 1..=4 {
        assert_eq!(from(&forged, &format!("2001:db8::{host}")).await.status, 401);
    }
    assert_eq!(from(&forged, "2001:db8::ffff:5").await.status, 429);
    assert_eq!(from(&forged, "2001:db8:0:1::1").await.status, 401);
}

#[tokio::test]
async fn sockets_without_a_valid_token_count_too() {
    let (_pg, relay) = scene_with(ORDERS, limited).await;
    for _ in 0..4 {
        let mut device =
            Device::of(&relay, "42", "phone").token("no.token.atall").try_connect().await.unwrap();
        device.expect_error("token_invalid").await;
        assert_eq!(device.expect_close().await.0, 4401);
    }
    let mut device = Device::of(&relay, "42", "phone").token("no.token.atall").try_connect().await.unwrap();
    device.expect_error("rate_limited").await;
    assert_eq!(device.expect_close().await.0, 4429);
    // Without a trusted proxy, nothing in a request changes where it comes from.
    let answer = relay.http().request("GET", SYNC).header("x-forwarded-for", "198.51.100.1").send().await;
    assert_eq!(answer.status, 429);
    Device::of(&relay, "42", "phone").connect().await;
}

#[tokio::test]
async fn the_defaults_are_those_of_the_documentation() {
    let pg = database(ORDERS).await;
    let relay = Relay::on(&pg).env("ROWCAST_RATE_LIMIT_REQUESTS", "1000").start().await;
    let answer = ask(&relay.http_as("42")).await;
    assert_eq!(answer.headers.get("ratelimit-policy"), Some("\"requests\";q=1000;w=900"));
    assert_eq!(answer.headers.get("ratelimit"), Some("\"requests\";r=999;t=1"));
}

#[tokio::test]
async fn messages_subscriptions_and_sessions_are_bounded() {
    let (_pg, relay) = scene(ORDERS).await;
    let mut phone = Device::of(&relay, "42", "phone").connect().await;
    // As large as is allowed, in one frame; then a byte more.
    let message = |length: usize| {
        let mut message = json!({"type": "ping", "padding": ""});
        let missing = length - message.to_string().len();
        message["padding"] = Value::String("x".repeat(missing));
        message
    };
    phone.send(&message(65_536)).await;
    phone.expect("pong").await;
    let topics: Vec<String> = (0..101).map(|number| format!("user:42:t{number}")).collect();
    phone.send(&json!({"type": "subscribe", "topics": topics})).await;
    let error = phone.expect_error("too_many_subscriptions").await;
    assert_eq!(error["topic"], json!("user:42:t100"));
    phone.send(&message(65_537)).await;
    loop {
        match phone.incoming().await {
            Incoming::Closed(close) => break assert_eq!(close.unwrap().0, 4400),
            Incoming::Frame(frame) => assert!(
                ["subscribed", "heartbeat"].contains(&frame.kind.as_str())
                    || frame.json()["code"] == json!("message_too_large"),
                "{}",
                frame.text
            ),
        }
    }
    let mut sessions = Vec::new();
    for number in 0..20 {
        sessions.push(Device::of(&relay, "42", &format!("d{number}")).connect().await);
    }
    let mut more = Device::of(&relay, "42", "more").try_connect().await.unwrap();
    assert_eq!(more.expect_close().await, (4429, "too many sessions of this user".to_owned()));
    Device::of(&relay, "7", "phone").connect().await;
}
