//! Large values that an UPDATE did not change, which PostgreSQL does not send.

use super::assert_replays;
use crate::support::device::Device;
use crate::support::scene::{
    changes_of, changes_until_now, frames_until_now, listening, replayed, scene, told,
};

/// A value that is stored out of line, as SQL: it does not compress.
const LARGE: &str = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) n)";

fn tables(owner: &str, more: &str) -> String {
    format!(
        "CREATE TABLE notes (id int PRIMARY KEY, user_id int {owner}, title text, body text);
         ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
         {more}
         SELECT rowcast.track('notes');"
    )
}

fn indexed() -> String {
    tables("NOT NULL", "CREATE UNIQUE INDEX ON notes (user_id, id);")
}

#[tokio::test]
async fn an_unchanged_large_value_is_named_and_left_out() {
    let (pg, relay) = scene(&indexed()).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql(&format!("INSERT INTO notes VALUES (1, 1, 'a', {LARGE})")).await;
    pg.sql("UPDATE notes SET title = 'b'").await;
    pg.sql("UPDATE notes SET body = NULL").await;
    let large = pg.value(&format!("SELECT {LARGE}")).await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            format!(r#"INSERT user:1:notes {{"id":1,"user_id":1,"title":"a","body":"{large}"}} last"#),
            r#"UPDATE user:1:notes {"id":1,"user_id":1,"title":"b"} unchanged body last"#.to_owned(),
            r#"UPDATE user:1:notes {"id":1,"user_id":1,"title":"b","body":null} last"#.to_owned(),
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
}

#[tokio::test]
async fn with_full_identity_an_unchanged_large_value_comes_from_the_old_row() {
    let (pg, relay) =
        scene(&format!("{} INSERT INTO notes VALUES (1, 1, 'a', {LARGE});", tables("", ""))).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    let (mut two, _) = listening(&relay, "2", "phone").await;
    pg.sql("UPDATE notes SET title = 'b'").await;
    pg.sql("UPDATE notes SET user_id = 2").await;
    let large = pg.value(&format!("SELECT {LARGE}")).await;
    assert_eq!(
        told(&changes_until_now(&pg, &mut one, "user:1").await),
        [
            format!(r#"UPDATE user:1:notes {{"id":1,"user_id":1,"title":"b","body":"{large}"}} last"#),
            r#"DELETE user:1:notes {"id":1} last"#.to_owned(),
        ]
    );
    assert_eq!(
        told(&changes_until_now(&pg, &mut two, "user:2").await),
        [format!(r#"INSERT user:2:notes {{"id":1,"user_id":2,"title":"b","body":"{large}"}} last"#)]
    );
}

#[tokio::test]
async fn a_move_or_key_change_takes_an_unchanged_large_value_from_the_log() {
    let (pg, relay) = scene(&indexed()).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    let (mut two, cursor) = listening(&relay, "2", "phone").await;
    pg.sql(&format!("INSERT INTO notes VALUES (1, 1, 'a', {LARGE})")).await;
    // Not the newest entry of the row holds it.
    pg.sql("UPDATE notes SET title = 'b'").await;
    pg.sql("UPDATE notes SET user_id = 2").await;
    pg.sql("UPDATE notes SET id = 5").await;
    // Within one transaction.
    pg.sql(&format!(
        "BEGIN; INSERT INTO notes VALUES (6, 1, 'x', {LARGE}); UPDATE notes SET title = 'y', user_id = 2 WHERE id = 6; COMMIT"
    ))
    .await;
    let large = pg.value(&format!("SELECT {LARGE}")).await;
    let frames = frames_until_now(&pg, &mut two, "user:2").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            format!(r#"INSERT user:2:notes {{"id":1,"user_id":2,"title":"b","body":"{large}"}} last"#),
            r#"DELETE user:2:notes {"id":1}"#.to_owned(),
            format!(r#"INSERT user:2:notes {{"id":5,"user_id":2,"title":"b","body":"{large}"}} last"#),
            format!(r#"INSERT user:2:notes {{"id":6,"user_id":2,"title":"y","body":"{large}"}} last"#),
        ]
    );
    assert_replays(&relay, "2", &cursor, &frames).await;
    let lines = told(&changes_until_now(&pg, &mut one, "user:1").await);
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[2], r#"DELETE user:1:notes {"id":1} last"#);
    assert_eq!(lines[4], r#"DELETE user:1:notes {"id":6} last"#);
}

#[tokio::test]
async fn a_move_with_a_large_value_that_is_not_to_be_had_asks_that_audience_alone_to_sync() {
    let (pg, relay) = {
        let sql = format!("{} INSERT INTO notes VALUES (1, 1, 'a', {LARGE});", indexed());
        scene(&sql).await
    };
    let (mut one, _) = listening(&relay, "1", "phone").await;
    let (mut two, before) = listening(&relay, "2", "phone").await;
    let (mut three, _) = listening(&relay, "3", "phone").await;
    pg.sql("UPDATE notes SET user_id = 2").await;
    pg.sql("INSERT INTO notes VALUES (9, 3, 'c', NULL)").await;
    let lines = told(&changes_until_now(&pg, &mut one, "user:1").await);
    assert_eq!(lines, [r#"DELETE user:1:notes {"id":1} last"#]);
    let lines = told(&changes_until_now(&pg, &mut three, "user:3").await);
    assert_eq!(lines, [r#"INSERT user:3:notes {"id":9,"user_id":3,"title":"c","body":null} last"#]);

    let frames = frames_until_now(&pg, &mut two, "user:2").await;
    let required: Vec<_> = frames.iter().map(|frame| frame.json()).collect();
    assert_eq!(required.len(), 1, "{frames:?}");
    assert_eq!(required[0]["type"], "sync_required");
    assert_eq!(required[0]["topics"], serde_json::json!(["user:2:notes"]));
    assert_eq!(required[0]["reason"], "toast");
    // An older cursor is stale, one from there on is not.
    let to = required[0]["to"].as_str().unwrap();
    let mut late = Device::of(&relay, "2", "late").connect().await;
    late.subscribe(&["user:2:notes"], Some(to)).await;
    pg.sql("UPDATE notes SET title = 'd', body = NULL WHERE id = 1").await;
    loop {
        let frame = late.recv().await;
        if let Some(change) = frame.change() {
            let line = r#"UPDATE user:2:notes {"id":1,"user_id":2,"title":"d","body":null} last"#;
            assert_eq!(told(&[change]), [line]);
            break;
        }
        assert!(frame.kind == "replay_begin" || frame.kind == "caught_up", "{}", frame.text);
    }
    let mut stale = Device::of(&relay, "2", "stale").connect().await;
    stale.send(&serde_json::json!({"type": "subscribe", "topics": ["user:2:notes"], "cursor": before})).await;
    assert_eq!(stale.expect("sync_required").await.json()["reason"], "toast");
    let mut other = Device::of(&relay, "3", "late").connect().await;
    assert_eq!(changes_of(&replayed(&mut other, &["user:3:notes"], &before).await).len(), 1);
}
