//! A disk that is full or fails beneath the log: nothing is lost, nothing is confirmed that is not durable,
//! PostgreSQL and devices are served meanwhile, and the relay goes on by itself.

use std::time::Duration;

use rowcast::embedded::Options;
use serde_json::{Value, json};

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::disk::DiskFault;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

/// Opening a log anew on a busy machine takes its time.
const LONG: Duration = Duration::from_secs(60);

async fn confirmed(pg: &TestPostgres) -> String {
    pg.value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await
}

/// What `/ready` says once the relay has noticed.
async fn held_up(relay: &Relay, reason: &str) -> Value {
    eventually(LONG, &format!("not ready: {reason}"), async || {
        let answer = relay.http().get("/ready").await;
        (answer.status == 503 && answer.json()["reason"] == reason).then(|| answer.json())
    })
    .await
}

/// Commits rows through one fault, and asserts that a device saw each of them once, and that the fault was
/// told once.
async fn rides_out(fault: DiskFault, reason: Option<&str>) {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).faulty_disk().start().await;
    let mut copy = Copy::default();
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'before')").await;
    copy.apply(&device.change().await);
    relay.break_disk(fault);
    pg.sql("INSERT INTO orders VALUES (2, '1', 'during')").await;
    // Devices do not wait for the disk.
    copy.apply(&device.change().await);
    if let Some(reason) = reason {
        let told = held_up(&relay, reason).await;
        let detail = told["detail"].as_str().unwrap();
        assert!(detail.contains(relay.log_directory().to_str().unwrap()), "{told}");
        assert_eq!(relay.metric("rowcast_log_stalled").await, Some(1.0));
        let before = confirmed(&pg).await;
        pg.sql("INSERT INTO orders SELECT n, '1', 'during' FROM generate_series(3, 30) n").await;
        pg.sql("UPDATE orders SET note = 'changed' WHERE id = 1").await;
        for change in device.changes(29).await {
            copy.apply(&change);
        }
        assert_eq!(confirmed(&pg).await, before, "what is not durable is not confirmed");
        relay.mend_disk();
    }
    relay.wait_line("the log goes on").await;
    relay.wait_ready().await;
    pg.sql("INSERT INTO orders VALUES (100, '1', 'after')").await;
    copy.apply(&device.change().await);
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    assert_eq!(relay.metric("rowcast_log_stalled").await, Some(0.0));
    assert_eq!(relay.metric("rowcast_log_failures_total").await, Some(1.0));
    assert_eq!(relay.count_lines("the log takes nothing more"), 1);
    // The engine has a word of its own for what it was doing.
    assert!(relay.count_lines("ERROR") <= 6, "{:#?}", relay.output());
    let end = pg.value("SELECT pg_current_wal_lsn()").await;
    eventually(PATIENCE, "all of it is confirmed", async || {
        let caught_up = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
        (pg.value(&caught_up).await == "t").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_is_waited_out() {
    rides_out(DiskFault::Full, Some("disk_full")).await;
}

#[tokio::test]
async fn flushes_that_fail_are_waited_out() {
    rides_out(DiskFault::Fsync, Some("disk_fails")).await;
}

#[tokio::test]
async fn writes_that_fail_are_waited_out() {
    rides_out(DiskFault::Write, Some("disk_fails")).await;
}

/// Linux tells a failed flush once, and may have let go of what it was to write.
#[tokio::test]
async fn a_flush_that_failed_once_is_not_made_good_by_the_next() {
    rides_out(DiskFault::FsyncOnce, None).await;
}

/// What devices have seen and the log lost comes again under the same positions.
#[tokio::test]
async fn a_relay_that_is_killed_while_its_disk_fails_loses_nothing() {
    for fault in [DiskFault::Full, DiskFault::Fsync] {
        let pg = with_orders(Options::scratch()).await;
        let mut relay = Relay::on(&pg).faulty_disk().start().await;
        let mut copy = Copy::default();
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:*"], None).await;
        relay.break_disk(fault);
        pg.sql("INSERT INTO orders VALUES (1, '1', 'during')").await;
        let seen = device.change().await;
        copy.apply(&seen);
        relay.wait_line("the log takes nothing more").await;
        relay.kill9().await;
        if fault == DiskFault::Full {
            // It waits for room, as one that runs does.
            relay.start_again().await;
            held_up(&relay, "disk_full").await;
            relay.mend_disk();
        } else {
            relay.mend_disk();
            relay.start_again().await;
        }
        relay.wait_ready().await;
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:*"], seen.cursor.as_deref()).await;
        pg.sql("INSERT INTO orders VALUES (2, '1', 'after')").await;
        let next = device.change().await;
        assert_eq!(next.key_text(), r#"{"id":2}"#, "{fault:?}");
        copy.apply(&next);
        copy.assert_equals(&pg, "orders", &orders_of("1")).await;
        assert_eq!(relay.count_lines("a new epoch begins"), 0);
    }
}

/// It would wait for a confirmation that cannot come.
#[tokio::test]
async fn postgres_stops_while_the_log_stalls() {
    let mut pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).faulty_disk().start().await;
    let mut copy = Copy::default();
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    relay.break_disk(DiskFault::Fsync);
    pg.sql("INSERT INTO orders VALUES (1, '1', 'during')").await;
    copy.apply(&device.change().await);
    held_up(&relay, "disk_fails").await;
    pg.stop_fast().await;
    relay.wait_line("would wait for the log").await;
    pg.start_again().await;
    relay.mend_disk();
    relay.wait_line("the log goes on").await;
    relay.wait_ready().await;
    pg.sql("INSERT INTO orders VALUES (2, '1', 'after')").await;
    copy.apply(&device.change().await);
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    // Nor does it keep itself from ending.
    relay.break_disk(DiskFault::Fsync);
    pg.sql("INSERT INTO orders VALUES (3, '1', 'at the end')").await;
    held_up(&relay, "disk_fails").await;
    relay.terminate().await;
    assert_eq!(relay.count_lines("a new epoch begins"), 0);
}

/// A file system that is full, and not only said to be.
#[tokio::test]
async fn a_disk_that_fills_is_waited_out() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).small_disk(200 << 20).start().await;
    let mut copy = Copy::default();
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    relay.fill_disk(1 << 20);
    pg.sql(
        "INSERT INTO orders SELECT n, '1',
            (SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 1000) m)
         FROM generate_series(1, 100) n",
    )
    .await;
    for change in device.changes(100).await {
        copy.apply(&change);
    }
    let told = held_up(&relay, "disk_full").await;
    assert!(told["detail"].as_str().unwrap().contains("128 MiB are needed"), "{told}");
    assert!(relay.metric("rowcast_log_free_bytes").await.unwrap() < f64::from(2 << 20));
    relay.free_disk();
    relay.wait_line("the log goes on").await;
    relay.wait_ready().await;
    pg.sql("INSERT INTO orders VALUES (1000, '1', 'after')").await;
    copy.apply(&device.change().await);
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    // A device that reads the log finds the same.
    let mut synced = Copy::default();
    synced.sync(&relay.http_as("1"), &json!({"device_id": "tablet", "topics": ["user:1:*"]})).await;
    synced.assert_equals(&pg, "orders", &orders_of("1")).await;
}

#[tokio::test]
async fn an_answer_that_finds_no_room_is_refused_for_now() {
    let pg = with_orders(Options::scratch()).await;
    pg.sql("INSERT INTO orders SELECT n, '1', 'x' FROM generate_series(1, 1000) n").await;
    let relay = Relay::on(&pg).faulty_disk().env("ROWCAST_SPOOL_MEMORY", "1KiB").start().await;
    let ask = json!({"device_id": "phone", "topics": ["user:1:*"]});
    relay.break_disk(DiskFault::Full);
    let refused = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(503);
    assert!(refused.headers.get("retry-after").is_some(), "{}", refused.text());
    assert!(refused.json()["code"].is_string(), "{}", refused.text());
    relay.mend_disk();
    relay.wait_ready().await;
    let synced = eventually(LONG, "the answer, once there is room", async || {
        let answer = relay.http_as("1").post("/api/realtime/sync", &ask).await;
        (answer.status == 200).then_some(())
    });
    synced.await;
    let mut copy = Copy::default();
    copy.sync(&relay.http_as("1"), &ask).await;
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    let spool = relay.log_directory().join("home/spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0, "files without a name");
}
