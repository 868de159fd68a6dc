//! What travels in the log beside rows: tags and broadcasts.

use serde_json::json;

use super::assert_replays;
use crate::support::device::Device;
use crate::support::frame::Change;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{changes_of, frames_until_now, listening, replayed, scene, scene_with, told};

const EXERCISES: &str = "
    CREATE TABLE exercises (id int PRIMARY KEY);
    SELECT rowcast.track('exercises', topics => ARRAY['global:exercises']);";

async fn tags(pg: &TestPostgres, device: &mut Device, user: &str) -> Vec<(Option<String>, Option<String>)> {
    let changes = changes_of(&frames_until_now(pg, device, &format!("user:{user}")).await);
    changes.into_iter().map(tag_of).collect()
}

fn tag_of(change: Change) -> (Option<String>, Option<String>) {
    (change.source_device, change.correlation_id)
}

fn tag(device: &str, correlation: Option<&str>) -> (Option<String>, Option<String>) {
    (Some(device.to_owned()), correlation.map(str::to_owned))
}

async fn global_replay(relay: &Relay, user: &str, cursor: &str) -> Vec<(Option<String>, Option<String>)> {
    let mut late = Device::of(relay, user, "late").connect().await;
    let frames = replayed(&mut late, &["global:exercises"], cursor).await;
    changes_of(&frames).into_iter().map(tag_of).collect()
}

#[tokio::test]
async fn a_tag_is_told_to_the_devices_of_the_same_user_alone() {
    let (pg, relay) = scene(EXERCISES).await;
    let (mut phone, cursor) = listening(&relay, "1", "phone").await;
    let (mut tablet, _) = listening(&relay, "1", "tablet").await;
    let (mut other, _) = listening(&relay, "2", "desk").await;
    pg.sql("BEGIN; SELECT rowcast.tag('phone', 'c9'); INSERT INTO exercises VALUES (1); COMMIT").await;
    // The tag holds for what stands before it too; the last one of a transaction counts.
    pg.sql("BEGIN; INSERT INTO exercises VALUES (2); SELECT rowcast.tag('web', 'c10', '1'); COMMIT").await;
    pg.sql("INSERT INTO exercises VALUES (3)").await;
    pg.sql("BEGIN; SELECT rowcast.tag('phone', user_id => '2'); INSERT INTO exercises VALUES (4); COMMIT")
        .await;
    pg.sql("BEGIN; SELECT rowcast.tag('nobodys', 'c11'); INSERT INTO exercises VALUES (5); COMMIT").await;
    let none = (None, None);
    let own = [tag("phone", Some("c9")), tag("web", Some("c10")), none.clone(), none.clone(), none.clone()];
    let others = [none.clone(), none.clone(), none.clone(), tag("phone", None), none.clone()];
    assert_eq!(tags(&pg, &mut phone, "1").await, own);
    assert_eq!(tags(&pg, &mut tablet, "1").await, own);
    assert_eq!(tags(&pg, &mut other, "2").await, others);
    assert_eq!(global_replay(&relay, "1", &cursor).await, own);
    assert_eq!(global_replay(&relay, "2", &cursor).await, others);
}

#[tokio::test]
async fn a_message_that_rowcast_did_not_sign_is_dropped() {
    let (pg, relay) = scene(EXERCISES).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    let body = r#"{"broadcast":{"id":"x","topic":"user:1:mark","event":"forged","payload":1}}"#;
    let signed = format!("{}\n{body}", "0".repeat(64));
    for content in [body, &signed, "", "\n", "{"] {
        pg.sql(&format!("SELECT pg_logical_emit_message(true, 'rowcast', '{content}')")).await;
        pg.sql(&format!("SELECT pg_logical_emit_message(false, 'rowcast', '{content}')")).await;
        pg.sql(&format!("SELECT pg_logical_emit_message(true, 'another', '{content}')")).await;
    }
    assert!(frames_until_now(&pg, &mut one, "user:1").await.is_empty());
}

#[tokio::test]
async fn a_broadcast_comes_if_its_transaction_commits_in_order_with_the_rows() {
    let (pg, relay) = scene(EXERCISES).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    let mut named = Device::of(&relay, "1", "tablet").connect().await;
    named.subscribe(&["user:1:news", "user:1:mark"], None).await;
    let (mut two, _) = listening(&relay, "2", "phone").await;
    pg.sql("BEGIN; SELECT rowcast.broadcast('user:1:news', 'undone', '1'); ROLLBACK").await;
    let id = pg
        .value(r#"SELECT rowcast.broadcast('user:1:news', 'alone', '{"a":  [1.50, null], "b\u00e9":"x"}')"#)
        .await;
    pg.sql(
        "BEGIN; INSERT INTO exercises VALUES (1); SELECT rowcast.broadcast('user:1:other', 'middle', 'null');
         SAVEPOINT s; SELECT rowcast.broadcast('user:1:news', 'undone', '1'); ROLLBACK TO s;
         INSERT INTO exercises VALUES (2); SELECT rowcast.broadcast('user:1:news', 'after', '2'); COMMIT",
    )
    .await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    let events: Vec<_> = frames
        .iter()
        .map(|frame| match frame.change() {
            Some(change) => told(&[change]).remove(0),
            None => format!(
                "{} {}",
                frame.json()["topic"].as_str().unwrap(),
                frame.json()["event"].as_str().unwrap()
            ),
        })
        .collect();
    assert_eq!(
        events,
        [
            "user:1:news alone",
            r#"INSERT global:exercises {"id":1}"#,
            "user:1:other middle",
            r#"INSERT global:exercises {"id":2} last"#,
            "user:1:news after",
        ]
    );
    assert!(frames.windows(2).all(|pair| pair[0].cursor() < pair[1].cursor()), "{frames:?}");
    let first = frames[0].json();
    assert_eq!((&first["id"], &first["type"]), (&json!(id), &json!("broadcast")));
    assert!(
        frames[0].text.contains(r#""payload":{"a":  [1.50, null], "b\u00e9":"x"}"#),
        "{}",
        frames[0].text
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
    let by_name = frames_until_now(&pg, &mut named, "user:1").await;
    let by_name: Vec<_> =
        by_name.iter().filter(|f| !f.text.contains(":mark\"")).map(|f| f.json()["event"].clone()).collect();
    assert_eq!(by_name, ["alone", "after"]);
    assert_eq!(frames_until_now(&pg, &mut two, "user:2").await.len(), 2);
}

#[tokio::test]
async fn a_broadcast_that_is_over_is_not_replayed() {
    let (pg, relay) = scene_with(EXERCISES, |setup| setup.env("ROWCAST_BROADCAST_REPLAY", "0s")).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("BEGIN; SELECT rowcast.broadcast('user:1:news', 'gone', '1'); INSERT INTO exercises VALUES (1); COMMIT").await;
    assert_eq!(frames_until_now(&pg, &mut one, "user:1").await.len(), 2);
    let mut late = Device::of(&relay, "1", "late").connect().await;
    let frames = replayed(&mut late, &["user:1:*", "global:*"], &cursor).await;
    assert_eq!(told(&changes_of(&frames)), [r#"INSERT global:exercises {"id":1} last"#]);
}
