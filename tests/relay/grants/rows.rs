//! Rows come, change and go, and with them grants: at that commit, on open sessions too.

use serde_json::json;

use super::{heard, may_sync, member, stage};
use crate::support::device::Device;
use crate::support::wait::{PATIENCE, eventually};

#[tokio::test]
async fn a_row_grants_and_its_end_revokes_at_that_commit() {
    let (pg, relay) = stage().await;
    let mut ann = member(&relay, "ann", &["team:7:*"]).await;
    let mut bob = member(&relay, "bob", &[]).await;
    bob.send(&json!({"type": "subscribe", "topics": ["team:7:tasks"]})).await;
    bob.expect_error("not_granted").await;
    pg.sql("INSERT INTO tasks VALUES ('7', 1, 'a'); INSERT INTO team_members VALUES (2, '7', 'bob')").await;
    assert_eq!(bob.expect("granted").await.json(), json!({"type": "granted", "topics": ["team:7:*"]}));
    assert!(may_sync(&relay, "bob", "team:7:*").await && !may_sync(&relay, "bob", "team:8:*").await);
    bob.subscribe(&["team:7:tasks"], None).await;
    pg.sql("INSERT INTO tasks VALUES ('7', 2, 'b')").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["INSERT team:7:tasks"]);
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["INSERT team:7:tasks", "INSERT team:7:tasks"]);
    // What the same transaction changes of the team, before the row goes or after, is not for bob any more.
    pg.sql(
        "BEGIN; INSERT INTO tasks VALUES ('7', 3, 'c'); DELETE FROM team_members WHERE id = 2;
            INSERT INTO tasks VALUES ('7', 4, 'd'); COMMIT; INSERT INTO tasks VALUES ('7', 5, 'e')",
    )
    .await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["revoked team:7:* team:7:tasks"]);
    assert_eq!(heard(&pg, &mut ann, "ann").await.len(), 3);
    assert!(!may_sync(&relay, "bob", "team:7:tasks").await);
    bob.send(&json!({"type": "subscribe", "topics": ["team:7:tasks"]})).await;
    bob.expect_error("not_granted").await;
    // A device that comes now is granted what the rows say.
    let mut late = Device::of(&relay, "bob", "tablet").connect().await;
    late.send(&json!({"type": "subscribe", "topics": ["team:7:*"]})).await;
    late.expect_error("not_granted").await;
    pg.sql("INSERT INTO team_members VALUES (2, '7', 'bob')").await;
    late.expect("granted").await;
    // A rollback grants nothing.
    pg.sql("BEGIN; INSERT INTO team_members VALUES (3, '8', 'bob'); ROLLBACK").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["granted team:7:*"]);
}

#[tokio::test]
async fn two_rows_grant_until_the_last_of_them_goes() {
    let (pg, relay) = stage().await;
    let mut ann = member(&relay, "ann", &["team:7:*"]).await;
    pg.sql("INSERT INTO team_members VALUES (2, '7', 'ann'); DELETE FROM team_members WHERE id = 1").await;
    pg.sql("INSERT INTO tasks VALUES ('7', 1, 'a'); UPDATE team_members SET note = 'x'").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["INSERT team:7:tasks"]);
    // Within one transaction only what it comes to counts.
    pg.sql("BEGIN; DELETE FROM team_members; INSERT INTO team_members VALUES (9, '7', 'ann'); COMMIT").await;
    pg.sql("INSERT INTO tasks VALUES ('7', 2, 'a')").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["INSERT team:7:tasks"]);
    pg.sql("DELETE FROM team_members; INSERT INTO tasks VALUES ('7', 3, 'a')").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["revoked team:7:*"]);
}

#[tokio::test]
async fn a_row_that_moves_takes_its_grant_along() {
    let (pg, relay) = stage().await;
    let mut ann = member(&relay, "ann", &["team:7:*"]).await;
    let mut bob = member(&relay, "bob", &[]).await;
    pg.sql("UPDATE team_members SET team_id = '8'").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["revoked team:7:*", "granted team:8:*"]);
    pg.sql("UPDATE team_members SET user_id = 'bob'").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["revoked team:8:*"]);
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["granted team:8:*"]);
    // Under another key, and with nothing in it.
    pg.sql("UPDATE team_members SET id = 5; UPDATE team_members SET team_id = NULL").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["revoked team:8:*"]);
    pg.sql("UPDATE team_members SET team_id = '7', user_id = ''; UPDATE team_members SET user_id = 'bob', team_id = ''").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, Vec::<String>::new());
    pg.sql("UPDATE team_members SET team_id = '9'").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["granted team:9:*"]);
    pg.sql("INSERT INTO team_members VALUES (6, '7', 'bob')").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["granted team:7:*"]);
    pg.sql("TRUNCATE team_members").await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["revoked team:7:* team:9:*"]);
    // Within one transaction in its place.
    pg.sql(
        "BEGIN; INSERT INTO team_members VALUES (7, '5', 'bob'); TRUNCATE team_members;
         INSERT INTO team_members VALUES (6, '6', 'bob'); COMMIT",
    )
    .await;
    assert_eq!(heard(&pg, &mut bob, "bob").await, ["granted team:6:*"]);
}

#[tokio::test]
async fn a_hostile_value_grants_itself_and_nothing_more() {
    let (pg, relay) = stage().await;
    let mut mal = member(&relay, "mal", &[]).await;
    pg.sql("INSERT INTO team_members VALUES (2, '*', 'mal'), (3, '7:tasks', 'mal'), (4, '%2A', 'mal'), (5, E'7\\n', 'mal'), (6, repeat('7', 300), 'mal')").await;
    assert_eq!(
        heard(&pg, &mut mal, "mal").await,
        ["granted team:%252A:* team:%2A:* team:7%0A:* team:7%3Atasks:*"]
    );
    for foreign in ["team:7:*", "team:7:tasks", "team:8:*"] {
        assert!(!may_sync(&relay, "mal", foreign).await, "{foreign}");
    }
    mal.subscribe(&["team:%2A:*"], None).await;
    pg.sql("INSERT INTO tasks VALUES ('7', 2, 'a'), ('*', 2, 'b')").await;
    assert_eq!(heard(&pg, &mut mal, "mal").await, ["INSERT team:%2A:tasks"]);
    // A user whose name looks like another's is not that one.
    pg.sql("INSERT INTO team_members VALUES (8, '7', 'ma%6C'), (9, '7', ' mal'), (10, '7', 'mal ')").await;
    assert!(!may_sync(&relay, "mal", "team:7:*").await);
}

#[tokio::test]
async fn a_replay_under_way_ends_with_its_grant() {
    let (pg, relay) = stage().await;
    let mut ann = Device::of(&relay, "ann", "phone").small_buffer().connect().await;
    let cursor = ann.subscribe(&["user:ann:*"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO tasks SELECT '7', n, repeat('x', 2000) FROM generate_series(1, 5000) n").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new());
    ann.subscribe(&["team:7:tasks"], Some(&cursor)).await;
    ann.expect("replay_begin").await;
    ann.change().await;
    // The device stands still in the middle of it: what was written for it already still comes.
    pg.sql("DELETE FROM team_members; INSERT INTO tasks VALUES ('7', 9999, 'secret')").await;
    eventually(PATIENCE, "REST refuses", async || (!may_sync(&relay, "ann", "team:7:*").await).then_some(()))
        .await;
    let mut changes = 0;
    loop {
        let frame = ann.recv().await;
        match frame.kind.as_str() {
            "database_change" => changes += 1,
            "revoked" => break,
            "heartbeat" => {}
            _ => panic!("{}", frame.text),
        }
        assert!(!frame.text.contains("secret"));
    }
    assert!(changes < 4_500, "the replay went on: {changes}");
    assert_eq!(heard(&pg, &mut ann, "ann").await, ["caught_up "]);
}
