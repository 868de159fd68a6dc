//! What ends all topics at once: the log began anew, no longer reaches back, or has left a slow reader behind.

use std::time::Duration;

use rowcast::embedded::Options;
use serde_json::{Value, json};

use super::ear::{Ear, KINDS, Kind, fully, poll, topics};
use crate::support::copy::Copy;
use crate::support::device::{Device, Incoming};
use crate::support::events::{Events, ask};
use crate::support::frame::place;
use crate::support::orders::with_orders;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

const LONG: Duration = Duration::from_secs(60);

async fn stage(age: &str) -> (TestPostgres, Relay) {
    let pg = with_orders(Options::scratch()).await;
    pg.sql(
        "CREATE TABLE meals (user_id text, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('meals');
         INSERT INTO orders VALUES (1, '1', 'first'); INSERT INTO meals VALUES ('1', 1)",
    )
    .await;
    let relay = Relay::on(&pg).env("ROWCAST_LOG_MAX_AGE", age).start().await;
    (pg, relay)
}

/// A first copy of everything, and where it stands.
async fn begun(relay: &Relay) -> (Copy, String) {
    let body = json!({"device_id": "ear", "topics": topics("1", false)});
    let answer = fully(&relay.http_as("1"), &body).await;
    let mut copy = Copy::default();
    copy.apply_sync(&answer);
    (copy, answer[answer.len() - 1].cursor.clone())
}

async fn arrive(ear: &mut Ear, pg: &TestPostgres) {
    let id = pg
        .value("INSERT INTO meals SELECT '1', max(id) + 1 FROM meals WHERE user_id = '1' RETURNING id")
        .await;
    ear.until_change(|change| change.key_text() == format!(r#"{{"user_id":"1","id":{id}}}"#)).await;
    for table in ["orders", "meals"] {
        ear.copy.assert_equals(pg, table, &format!("SELECT * FROM {table} WHERE user_id = '1'")).await;
    }
}

/// Each transport and form, from the cursor of before: told, does what it is told, and is live.
async fn come_back(pg: &TestPostgres, relay: &Relay, begun: &(Copy, String), reason: &str) {
    for kind in KINDS {
        for named in [false, true] {
            let mut ear = Ear::from(relay, kind, "1", topics("1", named), begun).await;
            let told = ear.told(&topics("1", named), reason).await;
            assert_eq!(told["to"].is_string(), reason == "too_old", "{}: {told}", ear.name);
            assert_eq!(told["from"].as_str().map(place), Some(place(&begun.1)));
            ear.obey(&told, reason).await;
            arrive(&mut ear, pg).await;
        }
    }
}

async fn sync_reason(relay: &Relay, body: &Value) -> Option<String> {
    relay.http_as("1").post("/api/realtime/sync", body).await.expect_status(200).full_reason("orders")
}

#[tokio::test]
async fn epoch() {
    let (pg, relay) = stage("72h").await;
    let begun = begun(&relay).await;
    let mut live = Vec::new();
    for kind in [Kind::Socket, Kind::Stream] {
        for named in [false, true] {
            let mut ear = Ear::from(&relay, kind, "1", topics("1", named), &begun).await;
            ear.until("subscribed").await;
            live.push((ear, topics("1", named)));
        }
    }
    let waiting = tokio::spawn({
        let (http, cursor) = (relay.http_as("1"), begun.1.clone());
        async move { poll(&http, &topics("1", false), json!(cursor), 15).await }
    });
    eventually(PATIENCE, "a poll that waits", async || {
        (relay.metric("rowcast_sessions").await == Some(5.0)).then_some(())
    })
    .await;
    lose_the_slot(&pg, &relay).await;
    for (ear, topics) in &mut live {
        let told = ear.told(topics, "epoch").await;
        assert!(told["to"].is_null() && told["from"].is_string(), "{}: {told}", ear.name);
    }
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("unavailable")));
    assert!(answer.headers.get("retry-after").is_some());
    relay.wait_ready().await;
    come_back(&pg, &relay, &begun, "epoch").await;
    let by_cursor = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun.1});
    assert_eq!(sync_reason(&relay, &by_cursor).await.as_deref(), Some("epoch"));
    // No time before this log can be told of by it.
    let by_time = json!({"device_id": "d", "topics": ["user:1:*"], "last_sync_timestamp": 1_000_000});
    assert_eq!(sync_reason(&relay, &by_time).await.as_deref(), Some("too_old"));
}

/// The slot goes, and with it a change that no device has seen.
async fn lose_the_slot(pg: &TestPostgres, relay: &Relay) {
    relay.freeze();
    pg.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await;
    eventually(PATIENCE, "the walsender is gone", async || {
        (pg.value("SELECT count(*) FROM pg_replication_slots WHERE active").await == "0").then_some(())
    })
    .await;
    pg.sql("SELECT pg_drop_replication_slot('rowcast'); INSERT INTO orders VALUES (0, '1', 'lost')").await;
    relay.thaw();
}

/// A new log takes the place of the old one, whoever is still reading that: answers of either kind on their
/// way to readers that take nothing, rows on a socket, an answer that waits for its next page.
#[tokio::test]
async fn a_new_epoch_waits_for_no_slow_reader() {
    let (pg, relay) = stage("72h").await;
    let (_, cursor) = begun(&relay).await;
    pg.sql("INSERT INTO orders SELECT n, '1', repeat('x', 200) FROM generate_series(2, 20000) n").await;
    let http = relay.http_as("1");
    let body = json!({"device_id": "pages", "topics": ["user:1:*"]});
    let page = eventually(LONG, "a full answer of all rows", async || {
        let answer = http.post("/api/realtime/sync", &body).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!(page["has_more"], true);
    let mut streams = Vec::new();
    for rest in ["".to_owned(), format!("&cursor={cursor}")] {
        let path = format!("/api/realtime/sync?device_id=slow&topics=user:1:*{rest}");
        let request = http.request("GET", &path).header("accept", "application/x-ndjson");
        streams.push(request.small_buffer().open().await);
    }
    let mut socket = Device::of(&relay, "1", "rows").small_buffer().connect().await;
    socket.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
    socket.expect("snapshot_begin").await;
    lose_the_slot(&pg, &relay).await;
    relay.wait_line("a new epoch begins").await;
    relay.wait_ready().await;
    for mut stream in streams {
        let mut last = String::new();
        while let Some(line) = stream.line().await {
            last = line;
        }
        let end: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&end["type"], &end["code"]), (&json!("error"), &json!("unavailable")));
    }
    // Who takes nothing hears no goodbye either.
    while let Incoming::Frame(_) = socket.incoming().await {}
    let old = json!({"device_id": "pages", "topics": ["user:1:*"], "cursor": cursor});
    assert_eq!(sync_reason(&relay, &old).await.as_deref(), Some("epoch"));
}

#[tokio::test]
async fn too_old() {
    let (pg, relay) = stage("6s").await;
    let begun = begun(&relay).await;
    let time = "SELECT (extract(epoch FROM now() - interval '1 minute') * 1000)::bigint";
    let time: i64 = pg.value(time).await.parse().unwrap();
    let by_cursor = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun.1});
    forget(&pg, &relay, &begun.1).await;
    let by_time = json!({"device_id": "d", "topics": ["user:1:*"], "last_sync_timestamp": time});
    for body in [by_cursor, by_time] {
        let mut copy = Copy::default();
        let answer = fully(&relay.http_as("1"), &body).await;
        let orders = &answer[0].tables["orders"];
        assert_eq!((orders.full, orders.reason.as_deref()), (true, Some("too_old")));
        copy.apply_sync(&answer);
        copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = '1'").await;
    }
    for named in [false, true] {
        let answer =
            poll(&relay.http_as("1"), &topics("1", named), json!(time), 0).await.expect_status(200).json();
        let told = &answer["messages"][0]["payload"];
        assert_eq!((&told["reason"], &told["topics"]), (&json!("too_old"), &json!(topics("1", named))));
        assert!(told["from"].is_null() && told["to"].is_string() && answer["cursor"].is_null(), "{answer}");
    }
    come_back(&pg, &relay, &begun, "too_old").await;
}

/// Writes until the log does not reach back to a cursor.
async fn forget(pg: &TestPostgres, relay: &Relay, cursor: &str) {
    let body = json!({"device_id": "d", "topics": ["user:2:*"], "cursor": place(cursor)});
    eventually(LONG, "the log forgets", async || {
        pg.sql("INSERT INTO orders SELECT coalesce(max(id), 0) + 1, '2', 'x' FROM orders").await;
        (sync_reason_of_2(relay, &body).await.as_deref() == Some("too_old")).then_some(())
    })
    .await;
}

async fn sync_reason_of_2(relay: &Relay, body: &Value) -> Option<String> {
    relay.http_as("2").post("/api/realtime/sync", body).await.expect_status(200).full_reason("orders")
}

/// About 1.3 MB of rows that do not compress, for readers that take nothing.
async fn fill(pg: &TestPostgres, round: usize) {
    pg.sql(&format!(
        "INSERT INTO orders SELECT 1000000 + {round} * 1000 + n, '1',
            (SELECT string_agg(md5(n::text || m::text || '{round}'), '') FROM generate_series(1, 100) m)
         FROM generate_series(1, 400) n"
    ))
    .await;
}

/// A reader of either kind that takes nothing while the log goes on without it; a poll has no such thing: it
/// reads the log from where it stands.
#[tokio::test]
async fn backlog() {
    let (pg, relay) = stage("2s").await;
    let http = relay.http_as("1");
    let mut socket = Device::of(&relay, "1", "slow").small_buffer().connect().await;
    socket.subscribe(&["user:1:*"], None).await;
    let mut stream = Events::open(ask(&http, "user:1:*", "").small_buffer()).await;
    for kind in ["connection_established", "subscribed"] {
        stream.expect(kind).await;
    }
    let mut fast = Device::of(&relay, "2", "fast").connect().await;
    fast.subscribe(&["user:2:*"], None).await;
    // More than an outbox and what sockets hold; then as much that will be forgotten.
    for round in 0..6 {
        fill(&pg, round).await;
    }
    let mut fresh = Device::of(&relay, "1", "fresh").connect().await;
    let later = fresh.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    fresh.close().await;
    forget(&pg, &relay, &later).await;

    let begun = std::time::Instant::now();
    let told = loop {
        assert!(begun.elapsed() < PATIENCE, "the socket is not told");
        let frame = socket.recv().await;
        if frame.kind != "database_change" && frame.kind != "heartbeat" {
            break frame.json();
        }
    };
    assert_backlog(&told);
    let told = loop {
        assert!(begun.elapsed() < 2 * PATIENCE, "the stream is not told");
        let frame = stream.recv().await;
        if frame.kind != "database_change" && frame.kind != "progress" {
            break frame.json();
        }
    };
    assert_backlog(&told);
    // The id has not passed what is missing: who resumes by it is told again.
    let id = stream.id.clone().unwrap();
    assert!(id.as_str() < told["to"].as_str().unwrap(), "{id}: {told}");
    let mut again = Events::open(ask(&http, "user:1:*", "").header("last-event-id", &id)).await;
    again.expect("connection_established").await;
    assert_eq!(again.expect("sync_required").await.json()["reason"], "too_old");
    // What is asked for, done: a copy, and the same socket goes on from it.
    let mut copy = Copy::default();
    let cursor = copy.sync(&http, &json!({"device_id": "d", "topics": told["topics"]})).await;
    socket.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": cursor})).await;
    pg.sql("INSERT INTO orders VALUES (-1, '1', 'live')").await;
    loop {
        let frame = socket.recv().await;
        assert!(frame.kind != "sync_required" && frame.kind != "error", "{}", frame.text);
        let Some(change) = frame.change() else { continue };
        copy.apply(&change);
        if change.key_text() == r#"{"id":-1}"# {
            break;
        }
    }
    copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = '1'").await;
    // Others were told nothing but rows.
    let last = pg.value("SELECT max(id) FROM orders WHERE user_id = '2'").await;
    while fast.change().await.key_text() != format!(r#"{{"id":{last}}}"#) {}
}

fn assert_backlog(told: &Value) {
    assert_eq!(
        (&told["type"], &told["topics"], &told["reason"]),
        (&json!("sync_required"), &json!(["user:1:*"]), &json!("backlog"))
    );
    assert!(told["from"].as_str().unwrap() < told["to"].as_str().unwrap(), "{told}");
    assert!(told["retry_after_ms"].as_u64().is_some_and(|pause| pause <= 5_000), "{told}");
}
