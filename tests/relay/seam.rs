//! Where live, replay and sync join: whatever a device does while writers commit, its copy becomes
//! what the database holds, with nothing twice and nothing out of order.

mod sync;

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::frame::Frame;
use crate::support::relay::Relay;
use crate::support::scene::{
    changes_of, changes_until_now, frames_until_now, listening, replayed, scene, told,
};
use crate::support::writers::TABLES;

#[tokio::test]
async fn a_commit_right_after_subscribed_is_always_delivered() {
    let (pg, relay) = scene(TABLES).await;
    for n in 0..60 {
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:a"], None).await;
        pg.sql(&format!("INSERT INTO a VALUES ({n}, 1, 0, '')")).await;
        assert_eq!(device.change().await.key_text(), format!("{{\"id\":{n}}}"));
    }
}

#[tokio::test]
async fn one_topic_is_replayed_while_another_is_live() {
    let (pg, relay) = scene(TABLES).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:a", "user:1:mark"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO b SELECT n, 1, n, '' FROM generate_series(1, 1500) n").await;
    pg.sql("INSERT INTO a VALUES (1, 1, 0, '')").await;
    device.change().await;
    let writer = pg.client().await;
    let writing = tokio::spawn(async move {
        for n in 2..100 {
            let sql = format!(
                "BEGIN; INSERT INTO a VALUES ({n}, 1, 0, ''); UPDATE b SET n = n + 1 WHERE id = {n}; COMMIT"
            );
            writer.batch_execute(&sql).await.unwrap();
        }
    });
    // All of it lies before the replay's end or comes live after it.
    device.send(&serde_json::json!({"type": "subscribe", "topics": ["user:1:b"], "cursor": cursor})).await;
    let mut frames: Vec<Frame> = Vec::new();
    while frames.iter().filter(|frame| frame.kind == "caught_up").count() == 0 {
        frames.push(device.recv().await);
    }
    let begin = frames.iter().position(|frame| frame.kind == "replay_begin").unwrap();
    let during: Vec<_> = frames[begin + 1..frames.len() - 1].to_vec();
    let during = changes_of(&during);
    assert!(during.iter().all(|change| change.topic == "user:1:b"), "another topic within the replay");
    assert!(during.len() >= 1500);
    let upto = frames.last().unwrap().cursor().unwrap();
    assert!(during.iter().all(|change| *change.cursor.as_ref().unwrap() <= upto));
    writing.await.unwrap();
    let after = changes_until_now(&pg, &mut device, "user:1").await;
    assert!(after.iter().all(|change| *change.cursor.as_ref().unwrap() > upto));
    told(&after);
    let before = frames[..begin].iter().filter_map(Frame::change);
    let all: Vec<_> = before.chain(during).chain(after).collect();
    assert_eq!(all.iter().filter(|change| change.topic == "user:1:a").count(), 98);
    assert_eq!(all.iter().filter(|change| change.topic == "user:1:b").count(), 1500 + 98);
}

/// What waits for a replay to end goes on waiting when the device asks for more meanwhile.
#[tokio::test]
async fn a_subscription_within_a_replay_does_not_disturb_it() {
    let (pg, relay) = scene(TABLES).await;
    let (mut watch, cursor) = listening(&relay, "1", "watch").await;
    pg.sql("INSERT INTO b SELECT n, 1, 0, repeat('x', 500) FROM generate_series(1, 4000) n").await;
    frames_until_now(&pg, &mut watch, "user:1").await;
    let writer = pg.client().await;
    let writing = tokio::spawn(async move {
        for n in 1..200 {
            let sql = format!("UPDATE b SET n = n + 1 WHERE id = {n}; INSERT INTO a VALUES ({n}, 1, 0, '')");
            writer.batch_execute(&sql).await.unwrap();
        }
    });
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:mark"], None).await;
    let subscribe =
        |topic: &str| serde_json::json!({"type": "subscribe", "topics": [topic], "cursor": cursor});
    device.send(&subscribe("user:1:b")).await;
    device.expect("subscribed").await;
    device.expect("replay_begin").await;
    let (mut copy, mut replays) = (Copy::default(), 0);
    while replays < 2 {
        let frame = device.recv().await;
        if let Some(change) = frame.change() {
            assert!(replays > 0 || change.topic == "user:1:b", "within another replay: {}", frame.text);
            copy.apply(&change);
            if copy.len() % 100 == 0 {
                device.send(&serde_json::json!({"type": "subscribe", "topics": ["user:1:other"]})).await;
            }
            if copy.len() == 1000 && change.operation == "INSERT" {
                device.send(&subscribe("user:1:a")).await;
            }
        }
        replays += usize::from(frame.kind == "caught_up");
    }
    writing.await.unwrap();
    for frame in frames_until_now(&pg, &mut device, "user:1").await {
        frame.change().iter().for_each(|change| copy.apply(change));
    }
    for table in ["a", "b"] {
        copy.assert_equals(&pg, table, &format!("SELECT * FROM {table} WHERE user_id = 1")).await;
    }
}

#[tokio::test]
async fn a_device_goes_on_from_the_middle_of_a_transaction() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("BEGIN; INSERT INTO a SELECT n, 1, n, '' FROM generate_series(1, 30) n; UPDATE a SET n = 0 WHERE id = 30; COMMIT").await;
    pg.sql("INSERT INTO b VALUES (1, 1, 1, '')").await;
    let live = device.changes(32).await;
    for taken in [1, 2, 29, 30, 31] {
        let from = live[taken - 1].cursor.as_ref().unwrap();
        let rest = rest_from(&relay, from).await;
        assert_eq!(rest, told(&live[taken..]), "after {taken} changes");
    }
    assert_eq!(rest_from(&relay, &cursor).await, told(&live));
}

async fn rest_from(relay: &Relay, cursor: &str) -> Vec<String> {
    let mut late = Device::of(relay, "1", "late").connect().await;
    let mut frames = replayed(&mut late, &["user:1:*"], cursor).await;
    frames.retain(|frame| !frame.text.contains(":mark\""));
    told(&changes_of(&frames))
}
