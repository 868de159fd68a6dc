//! Subscriptions of one session, cursors of a quiet one, and two sessions of one device.

use serde_json::json;

use crate::support::device::Device;
use crate::support::frame::Frame;
use crate::support::scene::{
    changes_of, changes_until_now, frames_until_now, listening, replayed, scene, scene_with, told,
};
use crate::support::wait::{PATIENCE, eventually};

const TABLES: &str = "
    CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('orders');
    CREATE TABLE items (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('items');";

#[tokio::test]
async fn the_first_frames_say_what_the_session_and_its_topics_are() {
    let (_pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_HEARTBEAT", "7s")).await;
    let mut device = Device::of(&relay, "1", "phone").try_connect().await.unwrap();
    let established = device.expect("connection_established").await.json();
    assert_eq!((&established["protocol"], &established["heartbeat_ms"]), (&json!(1), &json!(7000)));
    assert_eq!((&established["user_id"], &established["device_id"]), (&json!("1"), &json!("phone")));
    device.send(&json!({"type": "subscribe", "topics": ["user:1:*", "user:1:orders"], "ref": "r"})).await;
    let subscribed = device.expect("subscribed").await.json();
    assert_eq!(
        (&subscribed["ref"], &subscribed["topics"]),
        (&json!("r"), &json!(["user:1:*", "user:1:orders"]))
    );
    assert_eq!(
        subscribed["tables"],
        json!({"items": {"key": ["user_id", "id"]}, "orders": {"key": ["user_id", "id"]}})
    );
}

#[tokio::test]
async fn nothing_of_a_pattern_follows_unsubscribed_and_other_patterns_go_on() {
    let (pg, relay) = scene(TABLES).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*", "user:1:orders", "user:1:items"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1); INSERT INTO items VALUES (1, 1)").await;
    // Once, though two patterns cover each.
    assert_eq!(changes_until_now(&pg, &mut device, "user:1").await.len(), 2);
    device.unsubscribe(&["user:1:items"]).await;
    pg.sql("INSERT INTO items VALUES (1, 2)").await;
    assert_eq!(changes_until_now(&pg, &mut device, "user:1").await.len(), 1);
    device.unsubscribe(&["user:1:*", "user:1:never"]).await;
    device.subscribe(&["user:1:mark"], None).await;
    pg.sql("INSERT INTO items VALUES (1, 3); INSERT INTO orders VALUES (1, 3)").await;
    let lines = told(&changes_until_now(&pg, &mut device, "user:1").await);
    assert_eq!(lines, [r#"INSERT user:1:orders {"user_id":1,"id":3} last"#]);
}

#[tokio::test]
async fn unsubscribed_is_the_end_even_while_changes_pour_in() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let writer = pg.client().await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let over = std::sync::Arc::clone(&done);
    // However far the device is behind, there is always more to come.
    let writing = tokio::spawn(async move {
        for n in (0..).take_while(|_| !over.load(std::sync::atomic::Ordering::Relaxed)) {
            writer
                .batch_execute(&format!(
                    "INSERT INTO orders VALUES (1, {n}); INSERT INTO items VALUES (1, {n})"
                ))
                .await
                .unwrap();
        }
    });
    device.subscribe(&["user:1:orders", "user:1:mark"], None).await;
    for _ in 0..5 {
        device.changes(3).await;
        device.send(&json!({"type": "unsubscribe", "topics": ["user:1:*"]})).await;
        while device.recv().await.kind != "unsubscribed" {}
        let next = device.change().await;
        assert_eq!(next.topic, "user:1:orders");
        device.send(&json!({"type": "subscribe", "topics": ["user:1:*"]})).await;
        while device.recv().await.kind != "subscribed" {}
    }
    device.send(&json!({"type": "unsubscribe", "topics": ["user:1:*", "user:1:orders"]})).await;
    while device.recv().await.kind != "unsubscribed" {}
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.await.unwrap();
    assert!(frames_until_now(&pg, &mut device, "user:1").await.is_empty());
}

#[tokio::test]
async fn a_topic_subscribed_again_stays_or_begins_again_at_its_cursor() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    pg.sql("INSERT INTO items VALUES (1, 1)").await;
    let live = device.changes(2).await;
    let stays = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    assert!(stays >= *live[1].cursor.as_ref().unwrap());
    let again = changes_of(&replayed(&mut device, &["user:1:orders"], &cursor).await);
    assert_eq!(told(&again), [r#"INSERT user:1:orders {"user_id":1,"id":1} last"#]);
    let again = replayed(&mut device, &["user:1:*"], &cursor).await;
    let again: Vec<Frame> = again.into_iter().filter(|frame| frame.kind == "database_change").collect();
    assert_eq!(told(&changes_of(&again)), told(&live));
    // From its last cursor on there is nothing, and what comes then is delivered once.
    let last = live[1].cursor.clone().unwrap();
    device.subscribe(&["user:1:*"], Some(&last)).await;
    pg.sql("INSERT INTO items VALUES (1, 2)").await;
    let frames = frames_until_now(&pg, &mut device, "user:1").await;
    let changes: Vec<Frame> = frames.into_iter().filter(|frame| frame.kind == "database_change").collect();
    assert_eq!(told(&changes_of(&changes)), [r#"INSERT user:1:items {"user_id":1,"id":2} last"#]);
}

#[tokio::test]
async fn a_quiet_devices_cursor_follows_the_log_and_is_honest() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_HEARTBEAT", "300ms")).await;
    let (mut quiet, from) = listening(&relay, "1", "phone").await;
    let (mut busy, _) = listening(&relay, "2", "phone").await;
    pg.sql("INSERT INTO orders VALUES (2, 1)").await;
    let seen = busy.change().await.cursor.unwrap();
    // Not before the relay has seen it, and then with a heartbeat.
    let beat = eventually(PATIENCE, "a heartbeat's cursor beyond another user's change", async || {
        let beat = quiet.recv().await;
        assert_eq!(beat.kind, "heartbeat", "{}", beat.text);
        beat.cursor().filter(|cursor| *cursor > seen)
    })
    .await;
    assert!(beat > from);
    quiet.send(&json!({"type": "ping", "ref": 2})).await;
    let pong = quiet.expect("pong").await;
    assert!(pong.cursor().unwrap() >= beat, "{}", pong.text);
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    let change = quiet.change().await;
    assert!(change.cursor.as_ref().unwrap() > &pong.cursor().unwrap());
    quiet.send(&json!({"type": "ping"})).await;
    let after = quiet.expect("pong").await.cursor().unwrap();
    assert!(after > change.cursor.clone().unwrap());
    // What a device misses when it comes back with each of them.
    for (cursor, missed) in [(&beat, 1), (&pong.cursor().unwrap(), 1), (&after, 0)] {
        let mut late = Device::of(&relay, "1", "late").connect().await;
        late.subscribe(&["user:1:*"], Some(cursor)).await;
        let frames = frames_until_now(&pg, &mut late, "user:1").await;
        let changes = frames.iter().filter(|frame| frame.kind == "database_change").count();
        assert_eq!(changes, missed, "{cursor}: {frames:?}");
    }
}

#[tokio::test]
async fn two_sessions_of_one_device_are_both_served() {
    let (pg, relay) = scene(TABLES).await;
    let (mut tab, _) = listening(&relay, "1", "web").await;
    let (mut other, _) = listening(&relay, "1", "web").await;
    // The same name is another device for another user.
    let (mut stranger, _) = listening(&relay, "2", "web").await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    assert_eq!(changes_until_now(&pg, &mut tab, "user:1").await.len(), 1);
    tab.close().await;
    pg.sql("INSERT INTO orders VALUES (1, 2)").await;
    let frames = frames_until_now(&pg, &mut other, "user:1").await;
    assert_eq!(frames.iter().filter(|frame| frame.kind == "database_change").count(), 2);
    assert!(changes_until_now(&pg, &mut stranger, "user:2").await.is_empty());
}

/// A device that gets changes all the time and says nothing lives by its pongs.
#[tokio::test]
async fn a_device_that_only_listens_is_not_taken_for_dead() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_HEARTBEAT", "200ms")).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:orders"], None).await;
    // Ten times as long as a silent device would have been given.
    let begun = std::time::Instant::now();
    for id in 1.. {
        pg.sql(&format!("INSERT INTO orders VALUES (1, {id})")).await;
        assert_eq!(device.change().await.key_text(), format!(r#"{{"user_id":1,"id":{id}}}"#));
        if begun.elapsed() > std::time::Duration::from_secs(5) {
            break;
        }
    }
}
