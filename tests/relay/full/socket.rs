//! `subscribe` with `"snapshot": true`.

use serde_json::{Value, json};

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::frame::Frame;
use crate::support::scene::{changes_until_now, frames_until_now, scene, scene_with};

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, n bigint, note text);
    CREATE TABLE meals (user_id int, id int, PRIMARY KEY (user_id, id));
    SELECT rowcast.track('orders'); SELECT rowcast.track('meals');
    INSERT INTO orders SELECT n, 1 + n % 2, n, repeat('x', n % 700) FROM generate_series(1, 400) n;
    INSERT INTO meals SELECT 1, n FROM generate_series(1, 30) n;";

/// What a snapshot frame holds: a change for each row, as an INSERT with this key would be.
fn rows(frame: &Frame, begin: &Value) -> Vec<crate::support::frame::Change> {
    #[derive(serde::Deserialize)]
    struct Rows {
        table: String,
        rows: Vec<Box<serde_json::value::RawValue>>,
    }
    let Rows { table, rows } = serde_json::from_str(&frame.text).unwrap();
    assert!(frame.text.len() <= 16 * 1024 || rows.len() == 1, "a frame of {} bytes", frame.text.len());
    let key_columns = begin["tables"][&table]["key"].as_array().unwrap().clone();
    rows.into_iter()
        .map(|row| {
            let values: serde_json::Map<String, Value> = serde_json::from_str(row.get()).unwrap();
            let key: Vec<String> = key_columns
                .iter()
                .map(|column| format!("{column}:{}", values[column.as_str().unwrap()]))
                .collect();
            let change = format!(
                r#"{{"topic":"user:1:{table}","operation":"INSERT","key":{{{}}},"new_record":{},"commit_timestamp":null}}"#,
                key.join(","),
                row.get()
            );
            serde_json::from_str(&change).unwrap()
        })
        .collect()
}

/// Asks for a snapshot and follows it to its end; gives what it made of the copy, and the last frame.
async fn snapshot(device: &mut Device, topics: &[&str]) -> (Copy, Value) {
    device.send(&json!({"type": "subscribe", "topics": topics, "snapshot": true, "ref": 7})).await;
    let begin = device.expect("snapshot_begin").await.json();
    assert_eq!((&begin["ref"], &begin["topics"]), (&json!(7), &json!(topics)));
    let mut copy = Copy::default();
    let mut count = 0;
    loop {
        let frame = device.recv().await;
        match frame.kind.as_str() {
            "snapshot" => {
                let rows = rows(&frame, &begin);
                count += rows.len();
                copy.put_rows(&rows);
            }
            "database_change" => copy.apply(&frame.change().unwrap()),
            "snapshot_end" => {
                let end = frame.json();
                assert_eq!(begin["total_rows"], count);
                assert_eq!((&end["ref"], &end["topics"]), (&json!(7), &json!(topics)));
                return (copy, end);
            }
            "heartbeat" => {}
            _ => panic!("unexpected: {}", frame.text),
        }
    }
}

#[tokio::test]
async fn a_device_without_a_copy_gets_one_and_then_the_stream() {
    let (pg, relay) = scene(TABLES).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let (mut copy, end) = snapshot(&mut device, &["user:1:*"]).await;
    copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = 1").await;
    copy.assert_equals(&pg, "meals", "SELECT * FROM meals").await;
    pg.sql("UPDATE orders SET n = n + 1 WHERE id < 50; DELETE FROM meals WHERE id < 5; UPDATE orders SET user_id = 1 WHERE id = 1; UPDATE orders SET user_id = 2 WHERE id = 2").await;
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = 1").await;
    copy.assert_equals(&pg, "meals", "SELECT * FROM meals").await;
    // Its cursor is as good as any.
    let mut again = Device::of(&relay, "1", "tablet").connect().await;
    again.subscribe(&["user:1:*"], end["cursor"].as_str()).await;
    let replayed = again.until("caught_up").await;
    assert!(replayed.iter().filter(|frame| frame.kind == "database_change").count() > 20);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_had_says_why() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "50ms")).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let ask = json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true, "ref": 1});
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE orders").await.unwrap();
    device.send(&ask).await;
    let busy = device.expect_error("busy").await;
    assert!(busy["retryable"] == true && busy["retry_after_ms"].is_u64() && busy["ref"] == 1, "{busy}");
    lock.rollback().await.unwrap();
    device.send(&json!({"type": "subscribe", "topics": ["user:2:*"], "snapshot": true})).await;
    device.expect_error("not_granted").await;
    device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true, "cursor": "0"})).await;
    device.expect_error("bad_message").await;
    snapshot(&mut device, &["user:1:*"]).await;
}

/// Other topics run on between the rows, a slow device gets all of it, and an unsubscribe ends it.
#[tokio::test]
async fn a_large_snapshot_leaves_other_topics_alone() {
    let (pg, relay) = scene(&format!(
        "{TABLES} INSERT INTO orders SELECT n, 1, n, repeat('y', 300) FROM generate_series(1000, 40000) n"
    ))
    .await;
    let mut device = Device::of(&relay, "1", "phone").small_buffer().connect().await;
    device.subscribe(&["user:1:meals", "user:1:mark"], None).await;
    device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "snapshot": true})).await;
    device.expect("snapshot_begin").await;
    pg.sql(
        "INSERT INTO meals VALUES (1, 1000); UPDATE orders SET note = 'seen by the stream' WHERE id = 40000",
    )
    .await;
    let frames = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(frames.iter().any(|frame| frame.change().is_some_and(|change| change.topic == "user:1:meals")));
    assert!(frames.iter().all(|frame| frame.kind != "snapshot_end"), "the device was too fast to tell");
    let rest = device.until("snapshot_end").await;
    let rows = frames.iter().chain(&rest).filter(|frame| frame.kind == "snapshot").count();
    assert!(rows > 100, "{rows} frames");
    assert!(rest.iter().any(|frame| frame.text.contains("seen by the stream")));

    device.unsubscribe(&["user:1:orders"]).await;
    device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "snapshot": true})).await;
    device.expect("snapshot_begin").await;
    device.send(&json!({"type": "unsubscribe", "topics": ["user:1:orders"]})).await;
    device.until("unsubscribed").await;
    let after = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(after.is_empty(), "{after:?}");
}
