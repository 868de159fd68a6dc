//! INSERT, UPDATE and DELETE of rows that stay with their owner.

use super::assert_replays;
use crate::support::device::Device;
use crate::support::scene::{changes_of, changes_until_now, frames_until_now, listening, scene, told};

const ORDERS: &str = "
    CREATE TABLE orders (user_id int, id int, note text, PRIMARY KEY (user_id, id));
    CREATE TABLE items (user_id int, id int, n int, PRIMARY KEY (user_id, id));
    CREATE TABLE exercises (id int PRIMARY KEY, name text);
    SELECT rowcast.track('orders'); SELECT rowcast.track('items');
    SELECT rowcast.track('exercises', topics => ARRAY['global:exercises']);";

#[tokio::test]
async fn each_user_is_told_the_own_rows_and_all_are_told_the_global_ones() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    let (mut two, _) = listening(&relay, "2", "phone").await;
    let mut by_name = Device::of(&relay, "1", "tablet").connect().await;
    by_name.subscribe(&["user:1:items", "user:1:mark"], None).await;
    for statement in [
        "INSERT INTO orders VALUES (1, 7, 'a'), (2, 7, 'b')",
        "UPDATE orders SET note = 'c' WHERE user_id = 2",
        "INSERT INTO exercises VALUES (1, 'squat')",
        "INSERT INTO items VALUES (1, 1, 1)",
        "UPDATE exercises SET name = 'press'",
        "UPDATE orders SET note = NULL WHERE user_id = 1",
        "DELETE FROM orders WHERE user_id = 2",
        "DELETE FROM orders",
    ] {
        pg.sql(statement).await;
    }
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:orders {"user_id":1,"id":7,"note":"a"} last"#,
            r#"INSERT global:exercises {"id":1,"name":"squat"} last"#,
            r#"INSERT user:1:items {"user_id":1,"id":1,"n":1} last"#,
            r#"UPDATE global:exercises {"id":1,"name":"press"} last"#,
            r#"UPDATE user:1:orders {"user_id":1,"id":7,"note":null} last"#,
            r#"DELETE user:1:orders {"user_id":1,"id":7} last"#,
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
    assert_eq!(
        told(&changes_until_now(&pg, &mut two, "user:2").await),
        [
            r#"INSERT user:2:orders {"user_id":2,"id":7,"note":"b"} last"#,
            r#"UPDATE user:2:orders {"user_id":2,"id":7,"note":"c"} last"#,
            r#"INSERT global:exercises {"id":1,"name":"squat"} last"#,
            r#"UPDATE global:exercises {"id":1,"name":"press"} last"#,
            r#"DELETE user:2:orders {"user_id":2,"id":7} last"#,
        ]
    );
    let named = changes_until_now(&pg, &mut by_name, "user:1").await;
    assert_eq!(told(&named), [r#"INSERT user:1:items {"user_id":1,"id":1,"n":1} last"#]);
}

#[tokio::test]
async fn a_frame_says_which_table_when_and_with_which_key() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO orders VALUES (1, 7, 'a')").await;
    let frame = one.expect("database_change").await;
    let json = frame.json();
    assert_eq!((&json["schema"], &json["table"]), (&"public".into(), &"orders".into()));
    assert_eq!(frame.change().unwrap().key_text(), r#"{"user_id":1,"id":7}"#);
    assert!(json.get("unchanged").is_none() && json.get("source_device").is_none(), "{}", frame.text);
    let committed = json["commit_timestamp"].as_str().unwrap();
    let age = pg.value(&format!("SELECT now() - '{committed}'::timestamptz BETWEEN '0' AND '20s'")).await;
    assert_eq!(age, "t", "{committed}");
    assert!(committed.len() == 27 && committed.ends_with('Z'), "{committed}");
}

#[tokio::test]
async fn a_transaction_comes_whole_and_only_its_last_change_is_last() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    let (mut two, _) = listening(&relay, "2", "phone").await;
    // Interleaved with another transaction, which commits in the middle of it.
    let (a, b) = (pg.client().await, pg.client().await);
    a.batch_execute("BEGIN; INSERT INTO orders VALUES (1, 1, 'a')").await.unwrap();
    b.batch_execute("INSERT INTO orders VALUES (1, 2, 'b')").await.unwrap();
    a.batch_execute(
        "SAVEPOINT s; INSERT INTO orders VALUES (1, 3, 'undone'); ROLLBACK TO s;
         INSERT INTO items VALUES (1, 1, 1); INSERT INTO exercises VALUES (1, 'squat');
         SAVEPOINT t; UPDATE orders SET note = 'A' WHERE id = 1; RELEASE t;
         INSERT INTO orders VALUES (2, 9, 'z'); COMMIT",
    )
    .await
    .unwrap();
    pg.sql("BEGIN; INSERT INTO orders VALUES (1, 4, 'undone'); ROLLBACK").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:orders {"user_id":1,"id":2,"note":"b"} last"#,
            r#"INSERT user:1:orders {"user_id":1,"id":1,"note":"a"}"#,
            r#"INSERT user:1:items {"user_id":1,"id":1,"n":1}"#,
            r#"INSERT global:exercises {"id":1,"name":"squat"}"#,
            r#"UPDATE user:1:orders {"user_id":1,"id":1,"note":"A"} last"#,
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
    assert_eq!(
        told(&changes_until_now(&pg, &mut two, "user:2").await),
        [
            r#"INSERT global:exercises {"id":1,"name":"squat"}"#,
            r#"INSERT user:2:orders {"user_id":2,"id":9,"note":"z"} last"#,
        ]
    );
}

#[tokio::test]
async fn a_change_of_the_key_is_a_delete_and_an_insert() {
    let (pg, relay) = scene(
        "CREATE TABLE orders (user_id int, id int, note text, PRIMARY KEY (user_id, id));
         CREATE TABLE full_ones (id int PRIMARY KEY, user_id int, note text);
         SELECT rowcast.track('orders'); SELECT rowcast.track('full_ones');
         INSERT INTO orders VALUES (1, 1, 'a'); INSERT INTO full_ones VALUES (1, 1, 'a'), (2, 1, 'b');",
    )
    .await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("UPDATE orders SET id = 2, note = 'b'").await;
    pg.sql("UPDATE full_ones SET id = id + 10 WHERE id = 2").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"DELETE user:1:orders {"user_id":1,"id":1}"#,
            r#"INSERT user:1:orders {"user_id":1,"id":2,"note":"b"} last"#,
            r#"DELETE user:1:full_ones {"id":2}"#,
            r#"INSERT user:1:full_ones {"id":12,"user_id":1,"note":"b"} last"#,
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
}

#[tokio::test]
async fn only_published_columns_leave_and_an_update_of_the_others_is_no_change() {
    let (pg, relay) = scene(
        "CREATE TABLE full_ones (id int PRIMARY KEY, user_id int, note text, secret text);
         SELECT rowcast.track('full_ones', columns => ARRAY['id', 'user_id', 'note']);
         CREATE TABLE keyed (user_id int, id int, secret text, note text, PRIMARY KEY (user_id, id));
         SELECT rowcast.track('keyed', columns => ARRAY['note', 'id', 'user_id']);",
    )
    .await;
    assert_eq!(pg.value("SELECT relreplident FROM pg_class WHERE relname = 'full_ones'").await, "f");
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO full_ones VALUES (1, 1, 'a', 'hush')").await;
    pg.sql("UPDATE full_ones SET secret = 'hush hush'").await;
    pg.sql("UPDATE full_ones SET note = note").await;
    pg.sql("UPDATE full_ones SET secret = 'hush', note = 'b'").await;
    pg.sql("INSERT INTO keyed VALUES (1, 1, 'hush', 'a')").await;
    pg.sql("UPDATE keyed SET note = 'b', secret = 'hush hush'").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:full_ones {"id":1,"user_id":1,"note":"a"} last"#,
            r#"UPDATE user:1:full_ones {"id":1,"user_id":1,"note":"b"} last"#,
            r#"INSERT user:1:keyed {"user_id":1,"id":1,"note":"a"} last"#,
            r#"UPDATE user:1:keyed {"user_id":1,"id":1,"note":"b"} last"#,
        ]
    );
    assert!(frames.iter().all(|frame| !frame.text.contains("hush") && !frame.text.contains("secret")));
    assert_replays(&relay, "1", &cursor, &frames).await;
}

#[tokio::test]
async fn with_batch_what_is_ready_together_comes_in_groups() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    let mut batched = Device::of(&relay, "1", "tablet").query("batch=1").connect().await;
    batched.subscribe(&["user:1:*", "global:*"], None).await;
    let insert = "INSERT INTO orders SELECT 1, n, repeat('x', 1000) FROM generate_series(1, 200) n";
    pg.sql(insert).await;
    let single = one.changes(200).await;
    let (mut together, mut groups) = (Vec::new(), 0);
    while together.len() < 200 {
        let whole = batched.recv_whole().await;
        assert!(whole.text.len() < 64 * 1024 + 2000, "a group of {} bytes", whole.text.len());
        groups += usize::from(whole.kind == "database_changes");
        together.extend(changes_of(&whole.split()));
    }
    assert_eq!(told(&together), told(&single));
    assert!(groups >= 4, "200 KB in {groups} groups");
    let mut late = Device::of(&relay, "1", "late").query("batch=1").connect().await;
    late.subscribe(&["user:1:*"], Some(&cursor)).await;
    late.expect("replay_begin").await;
    assert_eq!(told(&late.changes(200).await), told(&single));
    late.expect("caught_up").await;
}
