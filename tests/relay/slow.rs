//! Devices that stop reading: they cost nobody anything, and get everything when they read again; or,
//! when the log has moved on without them, are told so.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rowcast::embedded::Options;
use serde_json::json;

use crate::support::copy::Copy;
use crate::support::device::{Device, Incoming};
use crate::support::frame::Change;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

/// What the relay may grow by in a debug build, whatever is written.
const FLAT_KIB: u64 = 96 * 1024;

async fn stalled(relay: &Relay, user: &str, device: &str, topic: &str) -> Device {
    let mut device = Device::of(relay, user, device).small_buffer().connect().await;
    device.subscribe(&[topic], None).await;
    device
}

/// The next change; other frames but bad news are passed over.
async fn next_change(device: &mut Device) -> Change {
    loop {
        match device.incoming().await {
            Incoming::Frame(frame) => {
                assert!(frame.kind != "sync_required" && frame.kind != "error", "{}", frame.text);
                if let Some(change) = frame.change() {
                    return change;
                }
            }
            Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
        }
    }
}

#[tokio::test]
async fn a_device_that_stops_reading_costs_nobody_and_gets_everything_later() {
    const ROWS: usize = 4000;
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let mut slow = stalled(&relay, "1", "slow", "user:1:*").await;
    let mut fast = Device::of(&relay, "1", "fast").connect().await;
    fast.subscribe(&["user:1:*"], None).await;
    let mut other = Device::of(&relay, "2", "other").connect().await;
    other.subscribe(&["user:2:*"], None).await;
    let before = relay.memory_kib("VmRSS");
    let client = pg.client().await;
    let writer = tokio::spawn(async move {
        for batch in 0..ROWS / 50 {
            let first = batch * 50 + 1;
            let sql = format!(
                "INSERT INTO orders SELECT n, '1', repeat('x', 4000) FROM generate_series({first}, {first} + 49) n;
                 INSERT INTO orders VALUES ({batch} + 1000000, '2', 'y')"
            );
            client.batch_execute(&sql).await.unwrap();
        }
    });
    // All of it arrives while the slow one has read nothing.
    let mut copy = Copy::default();
    for _ in 0..ROWS {
        copy.apply(&next_change(&mut fast).await);
    }
    for batch in 0..ROWS / 50 {
        assert_eq!(next_change(&mut other).await.key_text(), format!(r#"{{"id":{}}}"#, batch + 1_000_000));
    }
    writer.await.unwrap();
    let grown = relay.memory_kib("VmRSS").saturating_sub(before);
    eprintln!("one slow device, {} MB written: the relay grew by {grown} KiB", ROWS * 4000 / 1_000_000);
    assert!(grown < FLAT_KIB, "the relay grew by {grown} KiB");
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;

    let mut late = Copy::default();
    for number in 1..=ROWS {
        let change = next_change(&mut slow).await;
        assert_eq!(change.key_text(), format!(r#"{{"id":{number}}}"#));
        late.apply(&change);
    }
    assert_eq!(late.records("orders"), copy.records("orders"));
    // Counted when it finds that its outbox was lost, which is once it reads.
    assert!(relay.metric("rowcast_sessions_behind_total").await.is_some_and(|count| count >= 1.0));
    // And it is live again.
    pg.sql("INSERT INTO orders VALUES (0, '1', 'live')").await;
    assert_eq!(next_change(&mut slow).await.key_text(), r#"{"id":0}"#);
}

#[tokio::test]
async fn two_hundred_slow_devices_do_not_grow_the_relay() {
    const DEVICES: usize = 200;
    const ROWS: usize = 150;
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).env("ROWCAST_MAX_SESSIONS_PER_USER", "300").start().await;
    let mut slow = Vec::new();
    for number in 0..DEVICES {
        slow.push(stalled(&relay, "1", &format!("slow-{number}"), "user:1:*").await);
    }
    let mut fast = Device::of(&relay, "1", "fast").connect().await;
    fast.subscribe(&["user:1:*"], None).await;
    let before = relay.memory_kib("VmRSS");
    for number in 0..ROWS {
        // Values that compress to nothing in the log, and fill sockets all the same.
        pg.sql(&format!("INSERT INTO orders VALUES ({number}, '1', repeat('x', 40000))")).await;
        assert_eq!(next_change(&mut fast).await.key_text(), format!(r#"{{"id":{number}}}"#));
    }
    let grown = relay.memory_kib("VmRSS").saturating_sub(before);
    eprintln!(
        "{DEVICES} slow devices, {} MB owed: the relay grew by {grown} KiB",
        DEVICES * ROWS * 40_000 / 1_000_000
    );
    assert!(grown < 2 * FLAT_KIB, "the relay grew by {grown} KiB");
    // Some of them read again, at once; the others go away unread.
    let mut reading = tokio::task::JoinSet::new();
    for mut device in slow.drain(..20) {
        reading.spawn(async move {
            for number in 0..ROWS {
                assert_eq!(next_change(&mut device).await.key_text(), format!(r#"{{"id":{number}}}"#));
            }
        });
    }
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
    drop(slow);
    eventually(PATIENCE, "the relay lets go of devices that went away", async || {
        // Those that were read to the end are gone as well.
        (relay.metric("rowcast_sessions").await == Some(1.0)).then_some(())
    })
    .await;
}

/// About 1.3 MB.
const ROWS_AT_ONCE: i64 = 400;

/// Writes rows that do not compress until a condition holds.
async fn write_until(pg: &TestPostgres, user: &str, what: &str, mut done: impl AsyncFnMut() -> bool) {
    static NEXT: AtomicI64 = AtomicI64::new(1_000_000);
    eventually(Duration::from_secs(60), what, async || {
        let first = NEXT.fetch_add(ROWS_AT_ONCE, Ordering::Relaxed);
        pg.sql(&format!(
            "INSERT INTO orders SELECT {first} + n, '{user}',
                (SELECT string_agg(md5(n::text || m::text || {first}), '') FROM generate_series(1, 100) m)
             FROM generate_series(1, {ROWS_AT_ONCE}) n"
        ))
        .await;
        done().await.then_some(())
    })
    .await;
}

const SMALL_LOG: u64 = 4 * 1024 * 1024;
/// What the storage engine keeps whatever the limit is: its journal, and what is on its way to the tables.
const ENGINE: u64 = 160 * 1024 * 1024;

async fn with_small_log(pg: &TestPostgres) -> Relay {
    Relay::on(pg).env("ROWCAST_LOG_MAX_SIZE", &SMALL_LOG.to_string()).start().await
}

async fn too_old(relay: &Relay, user: &str, cursor: &str) -> bool {
    let ask = json!({"device_id": "d", "topics": [format!("user:{user}:*")], "cursor": cursor});
    let answer = relay.http_as(user).post("/api/realtime/sync", &ask).await;
    answer.status == 200 && answer.full_reason("orders").as_deref() == Some("too_old")
}

#[tokio::test]
async fn a_slow_device_that_the_log_has_left_behind_is_told_to_sync() {
    let pg = with_orders(Options::scratch()).await;
    let relay = with_small_log(&pg).await;
    let mut slow = Device::of(&relay, "1", "slow").small_buffer().connect().await;
    let begun = slow.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    // Its socket is full long before the log is.
    write_until(&pg, "1", "retention passes the slow device", async || too_old(&relay, "1", &begun).await)
        .await;
    // And once more as much, so that it has passed everything that sockets hold, too.
    let mut fresh = Device::of(&relay, "1", "fresh").connect().await;
    let later = fresh.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    fresh.close().await;
    write_until(&pg, "1", "retention passes again", async || too_old(&relay, "1", &later).await).await;
    let mut copy = Copy::default();
    let told = loop {
        let frame = slow.recv().await;
        match frame.change() {
            Some(change) => copy.apply(&change),
            None if frame.kind == "sync_required" => break frame.json(),
            None => assert_eq!(frame.kind, "heartbeat", "{}", frame.text),
        }
    };
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:*"]), &json!("backlog")));
    let (from, to) = (told["from"].as_str().unwrap(), told["to"].as_str().unwrap());
    assert!(from < to, "{told}");
    // The session goes on, and may begin again.
    slow.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'live')").await;
    assert_eq!(next_change(&mut slow).await.key_text(), r#"{"id":1}"#);
}

#[tokio::test]
async fn what_retention_has_passed_is_too_old_and_the_log_stays_small() {
    let pg = with_orders(Options::scratch()).await;
    let relay = with_small_log(&pg).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let old = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    let mut most = 0;
    let mut rounds = 0;
    write_until(&pg, "2", "the log forgets, many times over", async || {
        rounds += 1;
        let bytes = relay.metric("rowcast_log_bytes").await.unwrap_or(0.0);
        most = most.max(bytes as u64);
        rounds > 60 && too_old(&relay, "1", &old).await
    })
    .await;
    eprintln!("log_max_size {SMALL_LOG}: at most {most} bytes after about {} MB", rounds * 13 / 10);
    assert!(most < SMALL_LOG + ENGINE, "the log grew to {most} bytes");

    let mut again = Device::of(&relay, "1", "again").connect().await;
    again.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": old})).await;
    let told = again.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:*"]), &json!("too_old")));
    let ask = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": old});
    let answer = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(200);
    assert_eq!(answer.full_reason("orders").as_deref(), Some("too_old"));

    // A quiet device that stayed did not grow old.
    pg.sql("INSERT INTO orders VALUES (1, '1', 'live')").await;
    let change = next_change(&mut device).await;
    assert_eq!(change.key_text(), r#"{"id":1}"#);
    let mut resumed = Device::of(&relay, "1", "resumed").connect().await;
    resumed.subscribe(&["user:1:*"], change.cursor.as_deref()).await;
}
