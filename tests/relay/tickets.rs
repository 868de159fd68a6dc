//! Tickets: for one use, where a browser can send nothing but a URL.

use serde_json::{Value, json};

use crate::support::device::{Device, Incoming};
use crate::support::events::{Events, ask};
use crate::support::http::Http;
use crate::support::relay::Relay;
use crate::support::scene::scene;
use crate::support::writers::TABLES;

async fn ticket(http: &Http) -> String {
    let answer = http.post("/api/realtime/ticket", &json!({})).await.expect_status(200).json();
    assert!(answer["expires_at"].as_str().is_some_and(|text| text.ends_with('Z')), "{answer}");
    answer["ticket"].as_str().unwrap().to_owned()
}

async fn refusal(relay: &Relay, ticket: &str) -> (u16, Value) {
    let refused = ask(&relay.http(), "user:1:*", &format!("&ticket={ticket}")).send().await;
    (refused.status, refused.json()["code"].clone())
}

#[tokio::test]
async fn a_ticket_opens_one_stream() {
    let (pg, relay) = scene(TABLES).await;
    let ticket = ticket(&relay.http_as("1")).await;
    let mut events = Events::open(ask(&relay.http(), "user:1:*", &format!("&ticket={ticket}"))).await;
    let established = events.expect("connection_established").await.json();
    assert_eq!(established["user_id"], "1");
    events.expect("subscribed").await;
    pg.sql("INSERT INTO a VALUES (1, 1, 1, '')").await;
    events.change().await;
    assert_eq!(refusal(&relay, &ticket).await, (401, json!("ticket_invalid")), "a second time");
    assert_eq!(relay.count_lines(&ticket), 0, "a ticket in the relay's output");
}

#[tokio::test]
async fn a_ticket_is_its_owners_and_for_streams_alone() {
    let (_pg, relay) = scene(TABLES).await;
    let one = ticket(&relay.http_as("1")).await;
    // It grants what its token grants.
    let foreign = ask(&relay.http(), "user:2:*", &format!("&ticket={one}")).send().await;
    assert_eq!((foreign.status, &foreign.json()["code"]), (403, &json!("not_granted")));
    for wrong in ["", "x", &one, &"0".repeat(64)] {
        assert_eq!(refusal(&relay, wrong).await, (401, json!("ticket_invalid")), "{wrong:?}");
    }
    let other = ticket(&relay.http_as("1")).await;
    let with = |path: &str| format!("{path}?device_id=d&topics=user:1:*&ticket={other}");
    for path in ["/api/sync/poll", "/api/realtime/sync"] {
        let refused = relay.http().get(&with(path)).await.expect_status(401);
        assert_eq!(refused.json()["code"], "token_missing");
    }
    let refused = relay.http().post(&with("/api/realtime/ticket"), &json!({})).await.expect_status(401);
    assert_eq!(refused.json()["code"], "token_missing");
    // With a token, which of the two counts would depend on who reads the request.
    let both = relay.http_as("2").get(&with("/api/realtime/events")).await.expect_status(401);
    assert_eq!(both.json()["code"], "token_invalid");
    // None of that has used it up.
    Events::open(ask(&relay.http(), "user:1:*", &format!("&ticket={other}"))).await;
}

#[tokio::test]
async fn a_ticket_opens_a_socket() {
    let (_pg, relay) = scene(TABLES).await;
    let ticket = ticket(&relay.http_as("1")).await;
    let query = format!("batch=1&ticket={ticket}");
    let connect = Device::of(&relay, "1", "phone").without_token().query(&query);
    let mut device = connect.clone().connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let mut second = connect.try_connect().await.unwrap();
    second.expect_error("ticket_invalid").await;
    assert_eq!(second.expect_close().await, (4401, "ticket_invalid".to_owned()));
    device.send(&json!({"type": "ping"})).await;
    match device.incoming().await {
        Incoming::Frame(frame) => assert_eq!(frame.kind, "pong"),
        other => panic!("{other:?}"),
    }
}
