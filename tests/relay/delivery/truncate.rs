//! TRUNCATE: told once for each table, in its place.

use super::assert_replays;
use crate::support::scene::{changes_of, changes_until_now, frames_until_now, listening, scene, told};

const TABLES: &str = "
    CREATE TABLE parents (user_id int, id int UNIQUE, PRIMARY KEY (user_id, id));
    CREATE TABLE children (user_id int, id int, parent int REFERENCES parents (id), PRIMARY KEY (user_id, id));
    CREATE TABLE exercises (id int PRIMARY KEY);
    CREATE TABLE untracked (id int);
    SELECT rowcast.track('parents'); SELECT rowcast.track('children');
    SELECT rowcast.track('exercises', topics => ARRAY['global:exercises']);
    INSERT INTO parents VALUES (1, 1), (2, 2);";

#[tokio::test]
async fn a_truncate_is_told_to_all_readers_of_the_table_in_its_place() {
    let (pg, relay) = scene(TABLES).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    // No row of the third user was ever there; the table is empty for that one too.
    let (mut three, _) = listening(&relay, "3", "phone").await;
    pg.sql("BEGIN; INSERT INTO children VALUES (1, 1, 1); TRUNCATE children; INSERT INTO children VALUES (1, 2, 1); COMMIT").await;
    pg.sql("TRUNCATE untracked").await;
    pg.sql("TRUNCATE exercises").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:children {"user_id":1,"id":1,"parent":1}"#,
            "TRUNCATE user:1:children",
            r#"INSERT user:1:children {"user_id":1,"id":2,"parent":1} last"#,
            "TRUNCATE global:exercises last",
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
    assert_eq!(
        told(&changes_until_now(&pg, &mut three, "user:3").await),
        ["TRUNCATE user:3:children last", "TRUNCATE global:exercises last"]
    );
}

#[tokio::test]
async fn several_tables_and_those_that_cascade_are_truncated_in_one_transaction() {
    let (pg, relay) = scene(TABLES).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("TRUNCATE exercises, parents CASCADE").await;
    pg.sql("BEGIN; TRUNCATE exercises; ROLLBACK").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    let mut lines = told(&changes_of(&frames));
    assert_eq!(lines.iter().filter(|line| line.ends_with(" last")).count(), 1);
    assert!(lines[2].ends_with(" last"));
    lines = lines.iter().map(|line| line.trim_end_matches(" last").to_owned()).collect();
    lines.sort();
    assert_eq!(lines, ["TRUNCATE global:exercises", "TRUNCATE user:1:children", "TRUNCATE user:1:parents"]);
    assert_replays(&relay, "1", &cursor, &frames).await;
}
