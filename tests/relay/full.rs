//! Full sync over REST: what a device without a usable cursor gets, and that it joins the stream.

mod handoff;
mod pages;
mod queued;
mod rate;
mod socket;

use serde_json::{Value, json};

use crate::support::copy::{Copy, SyncPage};
use crate::support::device::Device;
use crate::support::http::Http;
use crate::support::postgres::TestPostgres;
use crate::support::scene::{changes_until_now, scene, scene_with};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

/// Rows of several types, one that is private to others, and a shared table.
const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('happy', 'sad');
    CREATE TABLE orders (id bigint PRIMARY KEY, user_id int NOT NULL, price numeric(20,4), note text, tags text[], at timestamptz, m mood, j json, secret text);
    CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text COLLATE \"C\", body text);
    CREATE TABLE exercises (id int PRIMARY KEY, name text);
    CREATE INDEX ON orders (user_id);
    SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id', 'price', 'note', 'tags', 'at', 'm', 'j']);
    SELECT rowcast.track('notes', topics => ARRAY['user:{owner}:notes']);
    SELECT rowcast.track('exercises', topics => ARRAY['global:exercises']);
    INSERT INTO orders SELECT n, 1 + n % 3, n * 1.5, E'line\\nbreak \\\\ tab\\t' || n, ARRAY['a,b', NULL, '\"'],
        '2026-01-01 12:00+01'::timestamptz + n * interval '1 second', 'sad', E'{\"a\": 1,\\n \"b\": [1, 2]}', 'secret'
        FROM generate_series(1, 200) n;
    INSERT INTO orders (id, user_id) VALUES (201, 1), (202, -1);
    INSERT INTO notes (owner, body) SELECT (1 + n % 3)::text, repeat('long ', 2000 * (n % 2)) FROM generate_series(1, 20) n;
    INSERT INTO notes (owner, body) VALUES ('o''hara', 'x'), ('a:b*c', 'y'), (NULL, 'nobody''s'), ('', 'nobody''s either'), ('O''HARA', 'z');
    INSERT INTO exercises VALUES (1, 'squat'), (2, 'pull-up');
";

const ORDERS: &str = "SELECT id, user_id, price, note, tags, at, m, j FROM orders WHERE user_id =";

async fn assert_user_1(pg: &TestPostgres, copy: &Copy) {
    copy.assert_equals(pg, "orders", &format!("{ORDERS} 1")).await;
    copy.assert_equals(pg, "notes", "SELECT * FROM notes WHERE owner = '1'").await;
    copy.assert_equals(pg, "exercises", "SELECT * FROM exercises").await;
}

async fn page(http: &Http, body: &Value) -> SyncPage {
    http.post("/api/realtime/sync", body).await.expect_status(200).parse()
}

#[tokio::test]
async fn a_new_device_gets_all_that_is_its_own_and_then_the_stream() {
    let (pg, relay) = scene(TABLES).await;
    let mut copy = Copy::default();
    let http = relay.http_as("1");
    let first = http.post("/api/realtime/sync", &json!({"device_id": "phone"})).await.expect_status(200);
    assert!(!first.text().contains("secret"), "an unpublished column");
    let answer = first.json();
    assert_eq!(answer["topics"], json!(["global:*", "user:1:*"]));
    assert_eq!(answer["tables"]["orders"], json!({"full": true, "reason": "no_cursor", "key": ["id"]}));
    let rows: u64 = pg.value("SELECT (SELECT count(*) FROM orders WHERE user_id = 1) + (SELECT count(*) FROM notes WHERE owner = '1') + 2").await.parse().unwrap();
    assert_eq!((&answer["total_rows"], &answer["total_changes"]), (&json!(rows), &json!(rows)));
    assert_eq!((&answer["has_more"], &answer["consistent"]), (&json!(false), &json!(true)));
    copy.apply_sync(&[first.parse()]);
    assert_user_1(&pg, &copy).await;

    // The cursor is good on a socket, and for the next sync.
    let cursor = answer["cursor"].as_str().unwrap();
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*", "global:*"], Some(cursor)).await;
    pg.sql("UPDATE orders SET user_id = 1 WHERE id = 202; DELETE FROM orders WHERE id = 201; INSERT INTO notes (owner) VALUES ('1')").await;
    pg.sql("UPDATE notes SET body = 'short' WHERE owner = '1'").await;
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    assert_user_1(&pg, &copy).await;
    let next = page(&http, &json!({"device_id": "phone", "cursor": cursor})).await;
    assert!(next.tables.values().all(|table| !table.full), "{next:?}");
}

#[tokio::test]
async fn only_a_users_own_text_finds_its_rows() {
    let (pg, relay) = scene(TABLES).await;
    for (user, orders, owner) in [
        ("-1", "-1", "-1"),
        ("o'hara", "0", "o''hara"),
        ("a:b*c", "0", "a:b*c"),
        ("01", "0", "01"),
        ("1 ", "0", "1 "),
    ] {
        let mut copy = Copy::default();
        copy.sync(&relay.http_as(user), &json!({"device_id": "d", "tables": ["orders", "notes"]})).await;
        copy.assert_equals(&pg, "orders", &format!("{ORDERS} {orders}")).await;
        copy.assert_equals(&pg, "notes", &format!("SELECT * FROM notes WHERE owner = '{owner}'")).await;
    }
}

#[tokio::test]
async fn stale_tables_are_full_next_to_the_others() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let mut copy = Copy::default();
    let cursor = copy.sync(&http, &json!({"device_id": "phone"})).await;
    pg.sql("DELETE FROM orders WHERE id < 50; UPDATE notes SET body = 'n' WHERE owner = '1'; DELETE FROM exercises WHERE id = 1").await;
    pg.sql("ALTER TABLE orders ADD COLUMN extra int DEFAULT 7; SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id', 'extra'])").await;
    let body = json!({"device_id": "phone", "cursor": cursor});
    let next = eventually(PATIENCE, "the retracked table is full", async || {
        let next = page(&http, &body).await;
        next.tables["orders"].full.then_some(next)
    })
    .await;
    assert_eq!(next.tables["orders"].reason.as_deref(), Some("retracked"));
    assert!(!next.tables["notes"].full && !next.tables["exercises"].full && !next.has_more);
    assert!(next.changes["notes"].iter().all(|change| change.operation == "UPDATE"));
    assert_eq!(next.changes["exercises"].len(), 1);
    copy.apply_sync(&[next]);
    copy.assert_equals(&pg, "orders", "SELECT id, user_id, extra FROM orders WHERE user_id = 1").await;
    copy.assert_equals(&pg, "notes", "SELECT * FROM notes WHERE owner = '1'").await;
    copy.assert_equals(&pg, "exercises", "SELECT * FROM exercises").await;
}

#[tokio::test]
async fn what_was_granted_since_comes_in_full_and_what_is_gone_is_told() {
    let grants = "user:{sub}:*,team:{teams}:*";
    let tables = "CREATE TABLE tasks (id int PRIMARY KEY, team int, user_id int, t text);
        SELECT rowcast.track('tasks', topics => ARRAY['team:{team}:tasks']);
        CREATE TABLE own (id int PRIMARY KEY, user_id int); SELECT rowcast.track('own');
        INSERT INTO tasks SELECT n, n % 3, 1, '' FROM generate_series(1, 30) n;
        INSERT INTO own VALUES (1, 1)";
    let (pg, relay) = scene_with(tables, |setup| setup.env("ROWCAST_GRANTS", grants)).await;
    let of_teams = |teams: Value| {
        relay.http().with_token(&token::mint(&json!({"sub": "1", "exp": 4_102_444_800i64, "teams": teams})))
    };
    let mut copy = Copy::default();
    let cursor = copy.sync(&of_teams(json!([1])), &json!({"device_id": "d"})).await;
    copy.assert_equals(&pg, "tasks", "SELECT * FROM tasks WHERE team = 1").await;
    pg.sql("UPDATE tasks SET t = 'new' WHERE id < 10; INSERT INTO own VALUES (2, 1)").await;

    // Team 2 is new: its table is full, the others are not. An answer that got lost counts for nothing.
    let body = json!({"device_id": "d", "cursor": cursor});
    page(&of_teams(json!([1, 2])), &body).await;
    let wider = page(&of_teams(json!([1, 2])), &body).await;
    assert_eq!((wider.tables["tasks"].full, wider.tables["own"].full), (true, false));
    assert_eq!(wider.tables["tasks"].reason.as_deref(), Some("newly_granted"));
    let cursor = wider.cursor.clone();
    copy.apply_sync(&[wider]);
    copy.assert_equals(&pg, "tasks", "SELECT * FROM tasks WHERE team IN (1, 2)").await;
    copy.assert_equals(&pg, "own", "SELECT * FROM own").await;

    // Team 1 is gone: the device is told to drop it, and nothing is full.
    let body = json!({"device_id": "d", "cursor": cursor});
    let narrower = page(&of_teams(json!([2])), &body).await;
    assert_eq!(narrower.revoked, ["team:1:*"]);
    assert!(narrower.tables.values().all(|table| !table.full));
    assert!(
        narrower.topics == ["team:2:*", "user:1:*"] || narrower.topics == ["user:1:*", "team:2:*"],
        "{narrower:?}"
    );
    // And once dropped it is not told again, but full if it ever comes back.
    let body = json!({"device_id": "d", "cursor": narrower.cursor});
    assert!(page(&of_teams(json!([2])), &body).await.revoked.is_empty());
    assert!(page(&of_teams(json!([1, 2])), &body).await.tables["tasks"].full);
    // Tables that were left out are not vouched for either.
    let some =
        page(&of_teams(json!([2])), &json!({"device_id": "d", "cursor": body["cursor"], "tables": ["own"]}))
            .await;
    let all = page(&of_teams(json!([2])), &json!({"device_id": "d", "cursor": some.cursor})).await;
    assert_eq!((all.tables["tasks"].full, all.tables["own"].full), (true, false));
}

#[tokio::test]
async fn a_cursor_of_a_session_is_for_the_topics_that_are_named() {
    let (pg, relay) = scene(TABLES).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO exercises VALUES (3, 'dip'); INSERT INTO orders VALUES (300, 1)").await;
    changes_until_now(&pg, &mut device, "user:1").await;
    let http = relay.http_as("1");
    let named = page(&http, &json!({"device_id": "d", "cursor": cursor, "topics": ["user:1:*"]})).await;
    assert!(named.tables.values().all(|table| !table.full) && named.changes["orders"].len() == 1);
    let unnamed = page(&http, &json!({"device_id": "d", "cursor": cursor})).await;
    assert!(unnamed.tables.values().all(|table| table.full));
}

#[tokio::test]
async fn an_untracked_table_is_emptied_and_a_blocked_one_is_left_alone() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let mut copy = Copy::default();
    let cursor = copy.sync(&http, &json!({"device_id": "d"})).await;
    pg.sql("SELECT rowcast.untrack('notes')").await;
    let body = json!({"device_id": "d", "cursor": cursor});
    let next = eventually(PATIENCE, "the untracked table is told", async || {
        let next = page(&http, &body).await;
        next.tables.get("notes").is_some_and(|table| table.full).then_some(next)
    })
    .await;
    assert_eq!(next.tables["notes"].reason.as_deref(), Some("untracked"));
    assert!(!next.changes.contains_key("notes"));
    // Behind the relay's back the topic column goes from the identity: the stream cannot be followed.
    pg.sql("ALTER TABLE orders REPLICA IDENTITY DEFAULT").await;
    let _ = pg.client().await.batch_execute("UPDATE orders SET note = 'x' WHERE id = 3").await;
    eventually(PATIENCE, "the blocked table is unavailable", async || {
        let answer =
            http.post("/api/realtime/sync", &json!({"device_id": "d"})).await.expect_status(200).json();
        (answer["tables"]["orders"]
            == json!({"full": false, "unavailable": true, "reason": "identity", "key": []})
            && answer["tables"]["exercises"]["full"] == true)
            .then_some(())
    })
    .await;
    pg.sql("SELECT rowcast.track('orders')").await;
    eventually(PATIENCE, "it is full again when mended", async || {
        page(&http, &json!({"device_id": "d"})).await.tables["orders"].full.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_locked_table_or_a_missing_right_is_said_and_passes() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "100ms")).await;
    let http = relay.http_as("1");
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE orders").await.unwrap();
    let busy = http.post("/api/realtime/sync", &json!({"device_id": "d"})).await.expect_status(503);
    assert_eq!(busy.json()["code"], "busy");
    assert!(busy.headers.get("retry-after").is_some());
    lock.rollback().await.unwrap();
    page(&http, &json!({"device_id": "d"})).await;
    let readers = pg.value("SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relname IN ('orders', 'notes')").await;
    assert_eq!(readers, "0", "a snapshot leaves no locks behind");
}

/// As the relay's role, which is no superuser: row security would hide rows, so it is refused and said.
#[tokio::test]
async fn row_security_never_shortens_an_answer() {
    let pg = crate::support::stage::database().await;
    pg.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, user_id int); INSERT INTO orders VALUES (1, 1), (2, 1);
        SELECT rowcast.track('orders'); ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
        CREATE POLICY half ON orders USING (id = 1)",
    )
    .await;
    let relay = crate::support::stage::relay_on(&pg).start().await;
    let http = relay.http_as("1");
    let refused = http.post("/api/realtime/sync", &json!({"device_id": "d"})).await.expect_status(503);
    assert_eq!(refused.json()["code"], "unavailable");
    assert!(!refused.text().contains("policy"), "{}", refused.text());
    relay.wait_line("BYPASSRLS").await;
    pg.sql("ALTER ROLE rowcast_relay BYPASSRLS").await;
    let answer = eventually(PATIENCE, "it is read", async || {
        let answer = http.post("/api/realtime/sync", &json!({"device_id": "d"})).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!(answer["total_rows"], 2);
}

/// Many devices at once: few snapshots are open, the rest waits in order, and fences are shared.
#[tokio::test]
async fn a_crowd_shares_snapshots_and_fences_and_everyone_gets_its_rows() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_MAX_SNAPSHOTS", "4")).await;
    let asking = (0..45).map(|n| {
        let user = 1 + n % 3;
        let (http, body) = (relay.http_as(&user.to_string()), json!({"device_id": format!("d{n}")}));
        tokio::spawn(async move { (user, page(&http, &body).await) })
    });
    for asked in asking.collect::<Vec<_>>() {
        let (user, answer) = asked.await.unwrap();
        assert!(!answer.has_more);
        let mut copy = Copy::default();
        copy.apply_sync(&[answer]);
        copy.assert_equals(&pg, "orders", &format!("{ORDERS} {user}")).await;
        copy.assert_equals(&pg, "notes", &format!("SELECT * FROM notes WHERE owner = '{user}'")).await;
    }
    let fences = relay.metric("rowcast_fences_total").await.unwrap();
    println!("45 full syncs shared {fences} fences");
    assert!(fences < 45.0, "{fences} fences");
    let backends = pg
        .value("SELECT count(*) FROM pg_stat_activity WHERE query ~ 'COPY|fence' OR application_name = 'rowcast'")
        .await;
    assert!(backends.parse::<u32>().unwrap() < 20, "{backends} sessions of the relay");
}

/// The queue has an end, and whoever stands there is told when to come back.
#[tokio::test]
async fn who_waits_too_long_for_a_snapshot_is_told() {
    let (pg, relay) = scene_with(TABLES, |setup| {
        setup
            .env("ROWCAST_MAX_SNAPSHOTS", "1")
            .env("ROWCAST_SNAPSHOT_TIMEOUT", "700ms")
            .env("ROWCAST_SNAPSHOT_LOCK_TIMEOUT", "20s")
    })
    .await;
    let mut locker = pg.client().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE orders").await.unwrap();
    let http = relay.http_as("1");
    let asking = ["a", "b", "c"].map(|device| {
        let http = http.clone();
        tokio::spawn(async move { http.post("/api/realtime/sync", &json!({"device_id": device})).await })
    });
    for asked in asking {
        let busy = asked.await.unwrap().expect_status(503);
        assert_eq!(busy.json()["code"], "busy");
        assert!(busy.headers.get("retry-after").is_some());
    }
    // What was given up holds no lock, and waits for none.
    eventually(PATIENCE, "no session of the relay waits", async || {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        (pg.value(waits).await == "0").then_some(())
    })
    .await;
    lock.rollback().await.unwrap();
    page(&http, &json!({"device_id": "d"})).await;
}
