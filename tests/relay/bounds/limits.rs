//! What one device can ask for again and again.

use serde_json::{Value, json};

use crate::support::device::Device;
use crate::support::scene::{scene, scene_with};
use crate::support::wait::{PATIENCE, eventually};

const TABLE: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders');
    INSERT INTO orders VALUES (1, 1);";

#[tokio::test]
async fn what_reads_much_takes_from_a_bucket() {
    let limits = |setup: crate::support::relay::Setup| {
        setup.env("ROWCAST_RATE_LIMIT_REQUESTS", "2").env("ROWCAST_RATE_LIMIT_POLLS", "4")
    };
    let (pg, relay) = scene_with(TABLE, limits).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO orders VALUES (2, 1)").await;
    device.change().await;
    // The socket took one, and each of these reads the log.
    for _ in 0..3 {
        device.subscribe(&["user:1:orders"], Some(&cursor)).await;
        device.until("caught_up").await;
    }
    device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "cursor": cursor, "ref": 7})).await;
    assert_limited(&device.expect_error("rate_limited").await);
    // Rows are read as by a full sync.
    for _ in 0..2 {
        device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "snapshot": true})).await;
        device.until("snapshot_end").await;
    }
    device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "snapshot": true, "ref": 7})).await;
    assert_limited(&device.expect_error("rate_limited").await);
    // From here on costs nothing; and what is subscribed goes on.
    device.subscribe(&["user:1:meals"], None).await;
    pg.sql("INSERT INTO orders VALUES (3, 1)").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":3}"#);
    let mut other = Device::of(&relay, "2", "phone").connect().await;
    other.subscribe(&["user:2:*"], Some(&cursor)).await;
}

fn assert_limited(error: &Value) {
    assert!(error["retryable"] == true && error["ref"] == 7, "{error}");
    assert!(error["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{error}");
}

/// A device whose patience is shorter than a full sync asks again and again: it is one full sync.
#[tokio::test]
async fn the_same_request_is_answered_by_the_same_full_sync() {
    let (pg, relay) = scene_with(TABLE, |setup| setup.env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "15s")).await;
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE orders").await.unwrap();
    let body = json!({"device_id": "phone", "topics": ["user:1:*"]});
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (http, body) = (relay.http_as("1"), body.clone());
        asking.spawn(async move { http.post("/api/realtime/sync", &body).await });
    }
    // Another device's, and another request, are others.
    for body in [
        json!({"device_id": "tablet", "topics": ["user:1:*"]}),
        json!({"device_id": "phone", "topics": ["user:1:*"], "force_full_sync": true}),
    ] {
        let http = relay.http_as("1");
        asking.spawn(async move { http.post("/api/realtime/sync", &body).await });
    }
    eventually(PATIENCE, "all have asked", async || {
        let answered =
            "rowcast_http_requests_total{route=\"/api/realtime/sync\",method=\"POST\",status=\"200\"}";
        assert_eq!(relay.metric(answered).await, None);
        (relay.metric("rowcast_full_syncs_total").await == Some(3.0)).then_some(())
    })
    .await;
    lock.rollback().await.unwrap();
    while let Some(answer) = asking.join_next().await {
        let answer = answer.unwrap().expect_status(200).json();
        assert_eq!(answer["changes"]["orders"][0]["record"], json!({"id": 1, "user_id": 1}));
    }
    assert_eq!(relay.metric("rowcast_full_syncs_total").await, Some(3.0));
}

/// An answer that went out whole need not wait for anyone.
#[tokio::test]
async fn an_answer_that_nobody_can_ask_for_again_is_not_kept() {
    let (_pg, relay) = scene(TABLE).await;
    for number in 0..8 {
        let body = json!({"device_id": format!("d{number}"), "topics": ["user:1:*"]});
        relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200);
    }
    eventually(PATIENCE, "they are gone", async || {
        (relay.metric("rowcast_full_syncs_kept").await == Some(0.0)).then_some(())
    })
    .await;
}
