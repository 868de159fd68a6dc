//! Rows that change their owner: gone for the old one, whole and new for the new one.

use super::assert_replays;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{changes_of, frames_until_now, listening, scene, told};

async fn assert_identity(pg: &TestPostgres, identity: &str) {
    assert_eq!(pg.value("SELECT relreplident FROM pg_class WHERE relname = 'tasks'").await, identity);
}

/// Moves rows of `tasks (id, user_id, note)` between users 1 and 2, as both are told it.
async fn move_rows(pg: &TestPostgres, relay: &Relay, key: impl Fn(u32, u32) -> String) {
    let (mut one, from_one) = listening(relay, "1", "phone").await;
    let (mut two, from_two) = listening(relay, "2", "phone").await;
    pg.sql("INSERT INTO tasks (id, user_id, note) VALUES (1, 1, 'mine')").await;
    pg.sql("UPDATE tasks SET user_id = 2, note = 'yours'").await;
    // There and back within one transaction, with another row around it.
    pg.sql(
        "BEGIN; UPDATE tasks SET user_id = 1; UPDATE tasks SET note = 'ours';
         UPDATE tasks SET user_id = 2; COMMIT",
    )
    .await;
    pg.sql("DELETE FROM tasks").await;
    let record = |user: u32, note: &str| format!(r#"{{"id":1,"user_id":{user},"note":"{note}"}}"#);
    let frames = frames_until_now(pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            format!("INSERT user:1:tasks {} last", record(1, "mine")),
            format!("DELETE user:1:tasks {} last", key(1, 1)),
            format!("INSERT user:1:tasks {}", record(1, "yours")),
            format!("UPDATE user:1:tasks {}", record(1, "ours")),
            format!("DELETE user:1:tasks {} last", key(1, 1)),
        ]
    );
    assert!(!frames[1].text.contains("yours"), "the old owner saw a new value: {}", frames[1].text);
    assert_replays(relay, "1", &from_one, &frames).await;
    let frames = frames_until_now(pg, &mut two, "user:2").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            format!("INSERT user:2:tasks {} last", record(2, "yours")),
            format!("DELETE user:2:tasks {}", key(2, 1)),
            format!("INSERT user:2:tasks {} last", record(2, "ours")),
            format!("DELETE user:2:tasks {} last", key(2, 1)),
        ]
    );
    assert_replays(relay, "2", &from_two, &frames).await;
}

#[tokio::test]
async fn a_row_moves_with_the_owner_in_the_primary_key() {
    let (pg, relay) = scene(
        "CREATE TABLE tasks (id int, user_id int, note text, PRIMARY KEY (user_id, id));
         SELECT rowcast.track('tasks');",
    )
    .await;
    assert_identity(&pg, "d").await;
    move_rows(&pg, &relay, |user, id| format!(r#"{{"user_id":{user},"id":{id}}}"#)).await;
}

#[tokio::test]
async fn a_row_moves_with_an_index_as_identity() {
    let (pg, relay) = scene(
        "CREATE TABLE tasks (id int PRIMARY KEY, user_id int NOT NULL, note text);
         CREATE UNIQUE INDEX ON tasks (user_id, id);
         SELECT rowcast.track('tasks');",
    )
    .await;
    assert_identity(&pg, "i").await;
    move_rows(&pg, &relay, |_, id| format!(r#"{{"id":{id}}}"#)).await;
}

#[tokio::test]
async fn a_row_moves_with_full_identity() {
    let (pg, relay) = scene(
        "CREATE TABLE tasks (id int PRIMARY KEY, user_id int, note text); SELECT rowcast.track('tasks');",
    )
    .await;
    assert_identity(&pg, "f").await;
    move_rows(&pg, &relay, |_, id| format!(r#"{{"id":{id}}}"#)).await;
}
