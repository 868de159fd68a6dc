//! A full sync of many rows to readers that take their time, while others go on.

use serde_json::json;

use super::{Figures, LONG, base, size};
use crate::support::device::{Device, Incoming};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{changes_until_now, database, listening};
use crate::support::wait::{PATIENCE, eventually};

/// What full answers may take of the relay's memory: `spool_memory`, and a page for each reader on its way.
const MEMORY_KIB: u64 = 128 * 1024;

const TABLE: &str = "
    CREATE TABLE rows (id bigint PRIMARY KEY, user_id int NOT NULL, body text);
    SELECT rowcast.track('rows');";

/// Others are told what they write, at once, and the database waits for no reader.
async fn others_go_on(pg: &TestPostgres, relay: &Relay, first: usize) {
    let (mut other, _) = listening(relay, "2", "other").await;
    for id in first..first + 20 {
        pg.sql(&format!("INSERT INTO rows VALUES (-{id}, 2, 'live')")).await;
        assert_eq!(changes_until_now(pg, &mut other, "user:2").await.len(), 1);
    }
    other.close().await;
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
                AND backend_type = 'client backend'";
    // The relay's own short questions come and go.
    eventually(PATIENCE, "no transaction is open while a device takes its time", async || {
        (pg.value(open).await == "0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_sync_of_a_million_rows_to_slow_readers() {
    let rows = size(20_000, 1_000_000);
    let pg = database(TABLE).await;
    let insert =
        format!("INSERT INTO rows SELECT n, 1, repeat('x', 200) || n FROM generate_series(1, {rows}) n");
    let client = pg.client().await;
    tokio::time::timeout(LONG, client.batch_execute(&insert)).await.expect("it commits").unwrap();
    drop(client);
    // The rows are there before the relay, which has not to catch up with them.
    let setup = Relay::on(&pg).env("ROWCAST_SPOOL_MAX_AGE", "2s");
    // One of them takes nothing while the other reads: it would be given up after two heartbeats.
    let relay = setup.env("ROWCAST_HEARTBEAT", "20m").start().await;
    let before = base(&relay, &pg).await;

    let request = relay.http_as("1").request("GET", "/api/realtime/sync?device_id=d&topics=user:1:*");
    let request = request.header("accept", "application/x-ndjson").small_buffer();
    let opened = tokio::time::timeout(LONG, request.try_open()).await;
    let mut lines = opened.expect("an answer begins").unwrap();
    assert_eq!(lines.status, 200);
    let mut changes = 0;
    while changes < 10 {
        let line = lines.line().await.expect("a line");
        changes += usize::from(line.starts_with(r#"{"type":"change""#));
    }
    let mut device = Device::of(&relay, "1", "snapshot").small_buffer().connect().await;
    device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
    let begin = loop {
        match tokio::time::timeout(LONG, device.next_incoming()).await.expect("a snapshot") {
            Incoming::Frame(frame) if frame.kind == "snapshot_begin" => break frame.json(),
            Incoming::Frame(frame) => assert_eq!(frame.kind, "heartbeat", "{}", frame.text),
            Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
        }
    };
    assert_eq!(begin["total_rows"], rows);
    // Both have just begun to read.
    others_go_on(&pg, &relay, 1).await;
    let held = Figures::of(&relay, &pg).await;
    println!("{rows} rows for two slow readers: {held}");

    let all = async {
        let mut end = None;
        while let Some(line) = lines.line().await {
            assert!(!line.starts_with(r#"{"type":"error""#), "{line}");
            changes += usize::from(line.starts_with(r#"{"type":"change""#));
            end = Some(line);
        }
        assert!(
            end.is_some_and(|end| end.contains(r#""type":"end""#) && end.contains(r#""consistent":true"#))
        );
    };
    tokio::time::timeout(LONG, all).await.expect("all lines");
    assert_eq!(changes, rows);
    others_go_on(&pg, &relay, 100).await;
    let mut sent = 0;
    let all = async {
        loop {
            match device.next_incoming().await {
                Incoming::Frame(frame) if frame.kind == "snapshot_end" => return,
                Incoming::Frame(frame) => sent += frame.text.matches(r#"{"id":"#).count(),
                Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, all).await.expect("the whole snapshot");
    assert_eq!(sent, rows);
    device.close().await;
    let peak = Figures::of(&relay, &pg).await.peak_kib - before.rss_kib;
    println!("{rows} rows for two slow readers: the peak was {} MiB above the base", peak / 1024);
    assert!(peak < MEMORY_KIB, "{peak} KiB above the base");
    before.come_back(&relay, &pg, "full syncs").await;
}
