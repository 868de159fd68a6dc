//! What newer servers do with slots: keep them on standbys (17), and give them up when nobody uses them (18).

use std::process::Command;

use rowcast::embedded::Options;
use serde_json::json;

use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::orders::with_orders;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::standby::SLOT_SYNC_SINCE;
use crate::support::versions::since;
use crate::support::wait::{PATIENCE, eventually};

const TOPICS: &[&str] = &["user:1:*"];
const ANEW: &str = "a new epoch begins";

/// A command of the replication protocol.
fn replication_command(pg: &TestPostgres, command: &str) {
    let url = format!("{}&replication=database", pg.url());
    let output = Command::new(pg.program("psql")).args(["-X", "-c", command, &url]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn failover(pg: &TestPostgres) -> bool {
    pg.value("SELECT failover FROM pg_replication_slots WHERE slot_name = 'rowcast'").await == "t"
}

#[tokio::test]
async fn a_slot_is_made_for_failover_and_an_older_one_becomes_so() {
    if !since(SLOT_SYNC_SINCE, "failover slots") {
        return;
    }
    let pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    assert!(failover(&pg).await, "made so");
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(TOPICS, None).await.cursor().unwrap();
    relay.terminate().await;
    replication_command(&pg, "ALTER_REPLICATION_SLOT rowcast (FAILOVER false)");
    assert!(!failover(&pg).await);
    pg.sql("INSERT INTO orders VALUES (1, '1', 'meanwhile')").await;
    relay.start_again().await;
    relay.wait_ready().await;
    assert!(failover(&pg).await, "altered");
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(TOPICS, Some(&cursor)).await;
    device.expect("replay_begin").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);
    assert_eq!(relay.count_lines(ANEW), 0);
}

/// Waits until a moment on the server's clock lies so far back, by SQL interval.
async fn after(pg: &TestPostgres, moment: &str, interval: &str) {
    let passed = format!("SELECT clock_timestamp() > '{moment}'::timestamptz + interval '{interval}'");
    eventually(PATIENCE, "time passes on the server", async || {
        (pg.value(&passed).await == "t").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_relay_keeps_its_slot_and_one_that_is_away_too_long_begins_anew() {
    if !since(18, "idle_replication_slot_timeout") {
        return;
    }
    let pg = with_orders(Options::scratch().setting("idle_replication_slot_timeout", "1s")).await;
    let mut relay = Relay::on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let old = device.subscribe(TOPICS, None).await.cursor().unwrap();

    let warned = "SELECT count(*) FROM rowcast.status WHERE part = 'server' AND problem LIKE 'idle_replication_slot_timeout is 1s%'";
    assert_eq!(pg.value(warned).await, "1");
    let check = rowcast(&pg, &["check"]).await;
    assert!(check.stdout.contains("idle_replication_slot_timeout is 1s"), "{}", check.stdout);

    let invalidated =
        "SELECT coalesce(invalidation_reason, 'none') FROM pg_replication_slots WHERE slot_name = 'rowcast'";
    let begun = pg.value("SELECT clock_timestamp()").await;
    after(&pg, &begun, "2 s").await;
    pg.sql("CHECKPOINT").await;
    assert_eq!(
        pg.value(invalidated).await,
        "none",
        "a relay that streams uses its slot, also when nothing comes"
    );
    pg.sql("INSERT INTO orders VALUES (1, '1', 'after a pause')").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);

    relay.terminate().await;
    let left = pg.value("SELECT inactive_since FROM pg_replication_slots WHERE slot_name = 'rowcast'").await;
    after(&pg, &left, "2 s").await;
    pg.sql("CHECKPOINT").await;
    assert_eq!(pg.value(invalidated).await, "idle_timeout");
    let problem = "SELECT problem FROM rowcast.status WHERE part = 'slot' AND problem LIKE '%idle_timeout%'";
    assert!(pg.value(problem).await.contains("idle_timeout"));
    relay.start_again().await;
    relay.wait_ready().await;
    let lines: Vec<String> = relay.output().into_iter().filter(|line| line.contains(ANEW)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("idle_timeout"), "{lines:?}");
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.send(&json!({"type": "subscribe", "topics": TOPICS, "cursor": old})).await;
    assert_eq!(device.expect("sync_required").await.json()["reason"], "epoch");
}
