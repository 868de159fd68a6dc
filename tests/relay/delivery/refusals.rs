//! What a device may not ask for, and how it is told.

use serde_json::json;
use tokio_tungstenite::tungstenite::Error;

use crate::support::device::Device;
use crate::support::relay::Relay;
use crate::support::scene::{changes_until_now, listening, scene, scene_with};

const ORDERS: &str = "
    CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('orders');";

#[tokio::test]
async fn a_message_that_cannot_be_read_is_an_error_and_the_session_goes_on() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    for text in [
        "",
        "{",
        "null",
        "[]",
        "\"ping\"",
        "{\"type\":7}",
        "{}}",
        "{\"type\":\"ping\"} x",
        "{\"type\":\"subscribe\"}",
    ] {
        one.send_text(text).await;
        let error = one.expect_error("bad_message").await;
        assert_eq!(error["retryable"], false, "{text}");
    }
    for (message, code) in [
        (json!({"type": "dance", "ref": [1]}), "unknown_type"),
        (json!({"ref": [1]}), "unknown_type"),
        (json!({"type": "subscribe", "topics": "user:1:*", "ref": [1]}), "bad_message"),
        (json!({"type": "subscribe", "topics": ["user"], "ref": [1]}), "invalid_topic"),
        (json!({"type": "subscribe", "topics": ["user:*:orders"], "ref": [1]}), "invalid_topic"),
        (json!({"type": "subscribe", "topics": ["user:1:or%64ers"], "ref": [1]}), "invalid_topic"),
        (json!({"type": "subscribe", "topics": ["*"], "ref": [1]}), "invalid_topic"),
        (json!({"type": "subscribe", "topics": ["user:2:orders"], "ref": [1]}), "not_granted"),
        (json!({"type": "subscribe", "topics": ["user:2:nothing"], "ref": [1]}), "not_granted"),
        (json!({"type": "subscribe", "topics": ["user:11:orders"], "ref": [1]}), "not_granted"),
        (
            json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": "yesterday", "ref": [1]}),
            "invalid_cursor",
        ),
    ] {
        one.send(&message).await;
        let error = one.expect_error(code).await;
        assert_eq!(error["ref"], json!([1]), "{message}");
    }
    one.send(&json!({"type": "ping", "ref": {"a": 1}, "more": true})).await;
    assert_eq!(one.expect("pong").await.json()["ref"], json!({"a": 1}));
    one.send(&json!({"type": "ack", "cursor": "x"})).await;
    one.expect_error("invalid_cursor").await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    assert_eq!(changes_until_now(&pg, &mut one, "user:1").await.len(), 1);
}

#[tokio::test]
async fn a_cursor_beyond_the_servers_wal_is_invalid_and_a_foreign_one_needs_a_sync() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    let epoch = &cursor[..16];
    let subscribe =
        |cursor: String| json!({"type": "subscribe", "topics": ["user:1:orders"], "cursor": cursor});
    one.send(&subscribe(format!("{epoch}.00ffffff00000000.00000000"))).await;
    one.expect_error("invalid_cursor").await;
    let other = if epoch.starts_with('0') { "1" } else { "0" };
    one.send(&subscribe(format!("{other}{}", &cursor[1..]))).await;
    let required = one.expect("sync_required").await.json();
    assert_eq!((&required["reason"], &required["topics"]), (&json!("epoch"), &json!(["user:1:orders"])));
    one.send(&subscribe(format!("{epoch}.0000000000000001.00000000"))).await;
    let required = one.expect("sync_required").await.json();
    assert_eq!(required["reason"], "too_old");
    assert!(required["retry_after_ms"].as_u64().is_some_and(|ms| ms <= 5000), "{required}");
    // Such a refusal leaves no subscription of that name behind.
    one.unsubscribe(&["user:1:*"]).await;
    one.subscribe(&["user:1:mark"], None).await;
    assert!(changes_until_now(&pg, &mut one, "user:1").await.is_empty());
}

#[tokio::test]
async fn a_binary_or_oversized_message_closes_the_socket() {
    let (_pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_MAX_MESSAGE_SIZE", "1KiB")).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    one.send_binary(b"{\"type\":\"ping\"}".to_vec()).await;
    one.expect_error("bad_message").await;
    assert_eq!(one.expect_close().await.0, 4400);
    let (mut one, _) = listening(&relay, "1", "phone").await;
    one.send(&json!({"type": "ping", "ref": "x", "pad": "y".repeat(900)})).await;
    one.expect("pong").await;
    one.send(&json!({"type": "ping", "pad": "y".repeat(1100)})).await;
    one.expect_error("message_too_large").await;
    assert_eq!(one.expect_close().await.0, 4400);
}

#[tokio::test]
async fn a_user_has_so_many_sessions_and_a_session_so_many_subscriptions() {
    let (_pg, relay) = scene_with(ORDERS, |setup| {
        setup.env("ROWCAST_MAX_SESSIONS_PER_USER", "2").env("ROWCAST_MAX_SUBSCRIPTIONS_PER_SESSION", "3")
    })
    .await;
    let mut first = Device::of(&relay, "1", "a").connect().await;
    let second = Device::of(&relay, "1", "a").connect().await;
    let mut third = Device::of(&relay, "1", "b").try_connect().await.unwrap();
    assert_eq!(third.expect_close().await.0, 4429);
    Device::of(&relay, "2", "a").connect().await;
    second.close().await;
    // Its place is free as soon as the relay has seen it go.
    crate::support::wait::eventually(crate::support::wait::PATIENCE, "a free place", async || {
        let mut again = Device::of(&relay, "1", "b").try_connect().await.unwrap();
        matches!(again.incoming().await, crate::support::device::Incoming::Frame(_)).then_some(())
    })
    .await;

    first.subscribe(&["user:1:a", "user:1:b"], None).await;
    first.send(&json!({"type": "subscribe", "topics": ["user:1:b", "user:1:c", "user:1:d"]})).await;
    let error = first.expect_error("too_many_subscriptions").await;
    assert_eq!(error["topic"], "user:1:d");
    assert_eq!(first.expect("subscribed").await.json()["topics"], json!(["user:1:b", "user:1:c"]));
    first.unsubscribe(&["user:1:a"]).await;
    first.subscribe(&["user:1:d"], None).await;
}

#[tokio::test]
async fn a_device_id_is_checked_before_the_upgrade() {
    let (_pg, relay) = scene(ORDERS).await;
    let long = "x".repeat(65);
    for bad in ["a.b", "a%20b", "%C3%A9", &long] {
        match Device::of(&relay, "1", bad).try_connect().await {
            Err(Error::Http(answer)) => {
                assert_eq!(answer.status(), 400);
                let body = answer.body().as_deref().unwrap_or_default();
                assert!(String::from_utf8_lossy(body).contains("invalid_device_id"), "{body:?}");
            }
            other => panic!("{bad}: {:?}", other.map(|_| "connected")),
        }
    }
    connects(&relay, &"x".repeat(64)).await;
    connects(&relay, "A-z_0").await;
}

async fn connects(relay: &Relay, device: &str) {
    Device::of(relay, "1", device).connect().await.close().await;
}
