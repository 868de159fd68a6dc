//! Tables that are tracked, or tracked otherwise, while a full sync waits for its turn.

use serde_json::json;

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{frames_until_now, listening, scene_with};
use crate::support::wait::{PATIENCE, eventually};

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, note text);
    CREATE TABLE meals (id int PRIMARY KEY, user_id int NOT NULL);
    CREATE TABLE snacks (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders'); SELECT rowcast.track('meals');
    INSERT INTO orders VALUES (1, 1, 'taken back'); INSERT INTO meals VALUES (1, 1); INSERT INTO snacks VALUES (1, 1);";

async fn one_at_a_time() -> (TestPostgres, Relay) {
    scene_with(TABLES, |setup| {
        setup.env("ROWCAST_MAX_SNAPSHOTS", "1").env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "20s")
    })
    .await
}

/// Runs `sql` after `ask` has had its turn put off, and lets it go on when the relay knows of it.
async fn meanwhile(pg: &TestPostgres, relay: &Relay, ask: impl AsyncFnOnce(), sql: &str) {
    let (mut other, _) = listening(relay, "2", "other").await;
    let (mut first, _) = listening(relay, "2", "first").await;
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE meals").await.unwrap();
    first.send(&json!({"type": "subscribe", "topics": ["user:2:meals"], "snapshot": true})).await;
    eventually(PATIENCE, "the first waits for its lock", async || {
        (pg.value("SELECT count(*) FROM pg_locks WHERE NOT granted").await == "1").then_some(())
    })
    .await;
    ask().await;
    eventually(PATIENCE, "the second waits for its turn", async || {
        let metrics = relay.http().get("/metrics").await;
        metrics.text().contains("rowcast_full_syncs_total 2").then_some(())
    })
    .await;
    pg.sql(sql).await;
    frames_until_now(pg, &mut other, "user:2").await;
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_over_a_socket_is_of_the_tables_as_they_are_tracked_at_its_turn() {
    let (pg, relay) = one_at_a_time().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let ask =
        async || device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
    meanwhile(
        &pg,
        &relay,
        ask,
        "SELECT rowcast.track('snacks'); SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id'])",
    )
    .await;
    let frames = device.until("snapshot_end").await;
    let told = frames.iter().map(|frame| frame.text.as_str()).collect::<Vec<_>>().join("\n");
    assert!(!told.contains("taken back"), "a column that was taken back: {told}");
    assert!(told.contains(r#""table":"snacks","rows":[{"id":1"#), "rows of a new table: {told}");
    assert!(!told.contains("sync_required"), "{told}");
}

#[tokio::test]
async fn a_full_answer_is_of_the_tables_as_they_are_tracked_at_its_turn() {
    let (pg, relay) = one_at_a_time().await;
    let http = relay.http_as("1");
    let task = std::cell::RefCell::new(None);
    let ask = async || {
        *task.borrow_mut() = Some(tokio::spawn(async move {
            let mut copy = Copy::default();
            copy.sync(&http, &json!({"device_id": "phone", "topics": ["user:1:*"]})).await;
            copy
        }));
    };
    meanwhile(&pg, &relay, ask, "SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id'])").await;
    let copy = task.take().unwrap().await.unwrap();
    assert_eq!(copy.records("orders"), [r#"{"id":1,"user_id":1}"#], "a column was taken back");
}

/// An answer that waits for its device is not a place where a column is kept that was taken back.
#[tokio::test]
async fn a_full_answer_is_not_served_once_its_tables_are_tracked_otherwise() {
    // There before the relay: what it would have to read of the stream first is not what this is about.
    let many = "INSERT INTO orders SELECT n, 1, repeat('taken back ', 80) FROM generate_series(2, 20000) n";
    let (pg, relay) = scene_with(&format!("{TABLES}; {many}"), |setup| setup).await;
    let (mut other, _) = listening(&relay, "2", "other").await;
    let mut device = Device::of(&relay, "1", "tablet").small_buffer().connect().await;
    let http = relay.http_as("1");
    let ask = json!({"device_id": "phone", "topics": ["user:1:orders"]});
    let first = http.post("/api/realtime/sync", &ask).await.expect_status(200).json();
    assert_eq!(first["has_more"], true);
    device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "snapshot": true})).await;
    device.expect("snapshot_begin").await;
    pg.sql("SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id'])").await;
    frames_until_now(&pg, &mut other, "user:2").await;
    let next = json!({"device_id": "phone", "cursor": first["cursor"]});
    let gone = http.post("/api/realtime/sync", &next).await.expect_status(410).json();
    assert_eq!(gone["code"], "full_sync_expired");
    let frames = device.until("snapshot_end").await;
    assert!(frames.iter().any(|frame| frame.text.contains("\"code\":\"busy\"")), "the rows were sent on");
}

/// Whoever gives up again and again must not leave readings behind in the database, each with its locks.
#[tokio::test]
async fn a_reading_that_is_given_up_ends_in_the_database_too() {
    let (pg, relay) = scene_with(TABLES, |setup| {
        setup.env("ROWCAST_MAX_SNAPSHOTS", "1").env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "4m")
    })
    .await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE meals").await.unwrap();
    let waiting = async || pg.value("SELECT count(*) FROM pg_locks WHERE NOT granted").await;
    for _ in 0..3 {
        device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
        eventually(PATIENCE, "it waits for its lock", async || (waiting().await != "0").then_some(())).await;
        assert_eq!(waiting().await, "1", "readings at once");
        device.unsubscribe(&["user:1:*"]).await;
        eventually(PATIENCE, "nobody waits any more", async || (waiting().await == "0").then_some(())).await;
    }
    lock.rollback().await.unwrap();
    device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
    device.until("snapshot_end").await;
}
