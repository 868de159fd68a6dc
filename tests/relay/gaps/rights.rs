//! What a device is not given because of what it may read, or of what it asked for.

use serde_json::json;

use super::ear::{Ear, Kind, fully, poll, topics};
use crate::support::copy::Copy;
use crate::support::scene::scene;
use crate::support::wait::{PATIENCE, eventually};

const TABLES: &str = "
    CREATE TABLE team_members (id int PRIMARY KEY, team_id text, user_id text);
    CREATE TABLE tasks (team_id text, id int, PRIMARY KEY (team_id, id));
    CREATE TABLE orders (id int PRIMARY KEY, user_id text);
    CREATE TABLE meals (user_id text, id int, PRIMARY KEY (user_id, id));
    INSERT INTO team_members VALUES (1, '7', '1'); INSERT INTO tasks VALUES ('7', 1);
    SELECT rowcast.track('tasks', topics => ARRAY['team:{team_id}:tasks']);
    SELECT rowcast.track('orders'); SELECT rowcast.track('meals');
    SELECT rowcast.grant_by('team_members', 'user_id', 'team:{team_id}:*')";

/// A row that granted goes: all transports are told, live and when they come back, and get no more of it.
#[tokio::test]
async fn a_grant_that_ends_is_told_on_every_transport() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let both = vec!["user:1:*".to_owned(), "team:7:*".to_owned()];
    let mut copy = Copy::default();
    // Without naming topics: all that is granted, and the cursor says so.
    let cursor = copy.sync(&http, &json!({"device_id": "d"})).await;
    copy.assert_equals(&pg, "tasks", "SELECT * FROM tasks").await;
    let begun = (Copy::default(), cursor.clone());
    let mut ears = Vec::new();
    for kind in [Kind::Socket, Kind::Stream] {
        ears.push(Ear::from(&relay, kind, "1", both.clone(), &begun).await);
    }
    for ear in &mut ears {
        ear.until("subscribed").await;
    }
    // The next poll will be refused what it may no longer ask for; this one waits when the row goes.
    let waiting = tokio::spawn({
        let (http, cursor, both) = (http.clone(), cursor.clone(), both.clone());
        async move { poll(&http, &both, json!(cursor), 15).await.expect_status(200).json() }
    });
    eventually(PATIENCE, "a poll that waits", async || {
        (relay.metric("rowcast_sessions").await == Some(3.0)).then_some(())
    })
    .await;
    pg.sql("BEGIN; DELETE FROM team_members; INSERT INTO tasks VALUES ('7', 2); COMMIT; INSERT INTO orders VALUES (1, '1')")
        .await;
    for ear in &mut ears {
        assert_eq!(ear.until("revoked").await["topics"], json!(["team:7:*"]), "{}", ear.name);
        // Nothing of it follows; the others run on. (A change of a team would be refused by the ear.)
        ear.until_change(|change| change.topic == "user:1:orders").await;
    }
    let answer = waiting.await.unwrap();
    let revoked = answer["messages"].as_array().unwrap().iter().find(|message| message["type"] == "revoked");
    assert_eq!(revoked.expect("told")["payload"]["topics"], json!(["team:7:*"]), "{answer}");
    assert!(!answer.to_string().contains("team:7:tasks"), "{answer}");

    let refused = poll(&http, &both, json!(cursor), 0).await.expect_status(403).json();
    assert_eq!((&refused["code"], &refused["topic"]), (&json!("not_granted"), &json!("team:7:*")));
    let answer = fully(&http, &json!({"device_id": "d", "cursor": cursor})).await;
    assert_eq!(answer[0].revoked, ["team:7:*"]);
    assert!(answer[0].tables.values().all(|table| !table.full));
    // Granted again, its table comes in full, for what the cursor of meanwhile does not vouch for.
    pg.sql("INSERT INTO team_members VALUES (2, '7', '1')").await;
    let cursor = answer[0].cursor.clone();
    for ear in &mut ears {
        assert_eq!(ear.until("granted").await["topics"], json!(["team:7:*"]), "{}", ear.name);
    }
    let answer = fully(&http, &json!({"device_id": "d", "cursor": cursor})).await;
    let tasks = &answer[0].tables["tasks"];
    assert_eq!((tasks.full, tasks.reason.as_deref()), (true, Some("newly_granted")));
    assert!(!answer[0].tables["orders"].full);
    let mut copy = Copy::default();
    copy.apply_sync(&answer);
    copy.assert_equals(&pg, "tasks", "SELECT * FROM tasks").await;
}

/// A time that has not come yet, and no place at all.
#[tokio::test]
async fn a_place_that_the_log_does_not_know_is_answered_in_full() {
    let (pg, relay) = scene(TABLES).await;
    pg.sql("INSERT INTO orders VALUES (1, '1'), (2, '2')").await;
    let http = relay.http_as("1");
    let future = 4_102_444_800_000_i64;
    for (reason, body) in [
        ("no_cursor", json!({"device_id": "d", "topics": ["user:1:*"]})),
        ("no_cursor", json!({"device_id": "d", "topics": ["user:1:*"], "force_full_sync": true})),
        (
            "timestamp_in_future",
            json!({"device_id": "d", "topics": ["user:1:*"], "last_sync_timestamp": future}),
        ),
    ] {
        let answer = fully(&http, &body).await;
        for table in ["orders", "meals"] {
            let head = &answer[0].tables[table];
            assert_eq!((head.full, head.reason.as_deref()), (true, Some(reason)), "{body}");
        }
        let mut copy = Copy::default();
        copy.apply_sync(&answer);
        copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = '1'").await;
    }
    for named in [false, true] {
        let answer = poll(&http, &topics("1", named), json!(future), 10).await.expect_status(200).json();
        let told = &answer["messages"][0]["payload"];
        assert_eq!(
            (&told["type"], &told["reason"]),
            (&json!("sync_required"), &json!("timestamp_in_future"))
        );
        assert_eq!(told["topics"], json!(topics("1", named)));
        assert!(told["from"].is_null() && told["to"].is_null() && answer["cursor"].is_null(), "{answer}");
        assert!(told["retry_after_ms"].is_u64(), "{answer}");
    }
}
