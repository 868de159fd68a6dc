//! What newer versions of PostgreSQL brought that rows, keys or identities are made of.

use serde_json::json;

use crate::support::copy::Copy;
use crate::support::scene::{changes_until_now, database, listening, scene};
use crate::support::versions::since;

#[tokio::test]
async fn infinite_intervals_are_as_row_to_json_prints_them() {
    if !since(17, "infinite intervals") {
        return;
    }
    let (pg, relay) = scene(
        "CREATE TABLE waits (id int PRIMARY KEY, user_id int NOT NULL, span interval, spans interval[]);
         SELECT rowcast.track('waits')",
    )
    .await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let mut copy = Copy::default();
    pg.sql(
        "INSERT INTO waits VALUES (1, 1, 'infinity', ARRAY['infinity', '1 day', '-infinity']::interval[]),
           (2, 1, '-infinity', '{}'), (3, 1, NULL, NULL);
         UPDATE waits SET span = -span WHERE id < 3",
    )
    .await;
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    let rows = "SELECT * FROM waits WHERE user_id = 1";
    copy.assert_equals(&pg, "waits", rows).await;
    let mut full = Copy::default();
    full.sync(&relay.http_as("1"), &json!({"device_id": "full", "topics": ["user:1:waits"]})).await;
    full.assert_equals(&pg, "waits", rows).await;
}

#[tokio::test]
async fn a_temporal_key_identifies_no_row() {
    if !since(18, "temporal keys") {
        return;
    }
    let pg = database(
        "CREATE TABLE stays (room int4range, during daterange, user_id int NOT NULL,
           PRIMARY KEY (room, during WITHOUT OVERLAPS))",
    )
    .await;
    let refused = pg.refusal("SELECT rowcast.track('stays')").await;
    assert!(refused.message().contains("temporal"), "{refused:?}");
    pg.sql("INSERT INTO stays VALUES ('[1,2)', '[2026-01-01,2026-02-01)', 1); UPDATE stays SET user_id = 2")
        .await;
}

/// Rows from before the constraint may hold NULL, so no identity may be built on it.
#[tokio::test]
async fn a_not_null_constraint_that_was_not_validated_is_none() {
    if !since(18, "NOT NULL NOT VALID") {
        return;
    }
    let (pg, relay) = scene(
        "CREATE TABLE old_rows (id int PRIMARY KEY, user_id int, note text);
         INSERT INTO old_rows VALUES (1, NULL, 'nobody''s'), (2, 1, 'x');
         ALTER TABLE old_rows ADD CONSTRAINT owned NOT NULL user_id NOT VALID;
         SELECT rowcast.track('old_rows')",
    )
    .await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let mut copy = Copy::default();
    copy.sync(&relay.http_as("1"), &json!({"device_id": "full", "topics": ["user:1:old_rows"]})).await;
    pg.sql("UPDATE old_rows SET user_id = 1 WHERE id = 1; UPDATE old_rows SET note = 'y' WHERE id = 2").await;
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    copy.assert_equals(&pg, "old_rows", "SELECT * FROM old_rows WHERE user_id = 1").await;
}
