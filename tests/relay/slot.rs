//! The slot, the epoch, and PostgreSQL's own life: what must go on, and what must begin anew.

use std::time::{Duration, Instant};

use rowcast::embedded::Options;
use serde_json::json;

use crate::support::copy::{Copy, rows_as_json};
use crate::support::device::{Device, Incoming};
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::proxy::{Direction, Flow, Proxy, Upstream};
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

const TOPICS: &[&str] = &["user:1:*"];
/// Said by the relay, as an error, whenever a log begins that is not the first.
const ANEW: &str = "a new epoch begins";
const SLOT_THERE: &str = "the replication slot is there";

async fn subscribed(relay: &Relay) -> (Device, String) {
    let mut device = Device::of(relay, "1", "phone").connect().await;
    let cursor = device.subscribe(TOPICS, None).await.cursor().unwrap();
    (device, cursor)
}

async fn slots(pg: &TestPostgres) -> String {
    pg.value("SELECT count(*) FROM pg_replication_slots").await
}

/// A device of the old epoch: on its socket it was told so and then sent away.
async fn expect_epoch_over(device: &mut Device) {
    let told = device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(TOPICS), &json!("epoch")));
    assert!(told["retry_after_ms"].is_u64() && told["to"].is_null(), "{told}");
    let (code, reason) = device.expect_close().await;
    assert_eq!(code, 1012);
    assert!(reason.contains("retry_after_ms"), "{reason}");
}

/// A cursor of the old epoch counts for nothing on both surfaces; and the new epoch works.
async fn expect_new_epoch(pg: &TestPostgres, relay: &Relay, old: &str, why: &str) {
    eventually(PATIENCE, "a new epoch", async || (relay.count_lines(ANEW) > 0).then_some(())).await;
    relay.wait_ready().await;
    let lines: Vec<String> = relay.output().into_iter().filter(|line| line.contains(ANEW)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains(why), "{lines:?}");
    assert_eq!(relay.metric("rowcast_new_epochs_total").await, Some(1.0));

    let mut device = Device::of(relay, "1", "phone").connect().await;
    device.send(&json!({"type": "subscribe", "topics": TOPICS, "cursor": old})).await;
    let told = device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(TOPICS), &json!("epoch")));
    let ask = json!({"device_id": "phone", "topics": TOPICS, "cursor": old});
    let answer = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(200);
    assert_eq!(answer.full_reason("orders").as_deref(), Some("epoch"));

    let cursor = device.subscribe(TOPICS, None).await.cursor().unwrap();
    assert_ne!(cursor[..16], old[..16]);
    pg.sql("INSERT INTO orders VALUES (777, '1', 'in the new epoch')").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":777}"#);
}

/// Ends the relay's walsender and waits until the slot is free. The relay is frozen, and cannot come back.
async fn free_slot(pg: &TestPostgres) {
    pg.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await;
    eventually(PATIENCE, "the walsender is gone", async || {
        (pg.value("SELECT count(*) FROM pg_replication_slots WHERE active").await == "0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn opening_waits_for_open_transactions_and_sigterm_leaves_no_slot() {
    let pg = with_orders(Options::scratch()).await;
    let open = pg.client().await;
    open.batch_execute("BEGIN; INSERT INTO orders VALUES (1, '1', 'x')").await.unwrap();
    let mut relay = Relay::on(&pg).start_listening().await;
    relay.wait_line("PostgreSQL waits for transactions that are open now").await;
    eventually(PATIENCE, "the slot's creation waits", async || {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted";
        (pg.value(waits).await == "1").then_some(())
    })
    .await;
    let ready = relay.http().get("/ready").await.expect_status(503).json();
    assert_eq!(ready["state"], "opening");
    relay.terminate().await;
    assert_eq!(slots(&pg).await, "0");

    relay.start_again().await;
    eventually(PATIENCE, "the slot's creation waits again", async || {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted";
        (pg.value(waits).await == "1").then_some(())
    })
    .await;
    open.batch_execute("COMMIT").await.unwrap();
    relay.wait_ready().await;
    assert_eq!(slots(&pg).await, "1");
    assert_eq!(relay.count_lines(ANEW), 0, "an interrupted opening is no lost history");
}

#[tokio::test]
async fn sigterm_after_the_slot_is_made_and_before_the_log_is_leaves_no_slot() {
    let pg = with_orders(Options::scratch()).await;
    let (mut relay, open) = opening_behind_transactions(&pg).await;
    relay.wait_line("waiting for transactions that were open when the slot was made").await;
    relay.terminate().await;
    assert_eq!(slots(&pg).await, "0", "a slot without a log keeps WAL for nobody");
    drop(open);
}

/// Begins a log behind a chain of open transactions, each begun before the one before it ends, until the
/// slot is there and a transaction is still open. Gives that transaction.
async fn opening_behind_transactions(pg: &TestPostgres) -> (Relay, tokio_postgres::Client) {
    let first = pg.client().await;
    first
        .batch_execute("BEGIN; INSERT INTO orders VALUES (1, '1', 'open while the log is opened')")
        .await
        .unwrap();
    let relay = Relay::on(pg).start_listening().await;
    let mut open = (first, xid_of_open(pg).await);
    for number in 2.. {
        let waits = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid = '{}'",
            open.1
        );
        eventually(PATIENCE, "the slot's creation waits, or is over", async || {
            (relay.count_lines(SLOT_THERE) > 0 || pg.value(&waits).await != "0").then_some(())
        })
        .await;
        if relay.count_lines(SLOT_THERE) > 0 {
            break;
        }
        let next = pg.client().await;
        let sql = format!("BEGIN; INSERT INTO orders VALUES ({number}, '1', 'open while the log is opened')");
        next.batch_execute(&sql).await.unwrap();
        let newest = xid_of_open(pg).await;
        open.0.batch_execute("COMMIT").await.unwrap();
        open = (next, newest);
    }
    (relay, open.0)
}

/// The newest transaction that is open.
async fn xid_of_open(pg: &TestPostgres) -> String {
    pg.value("SELECT backend_xid FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) LIMIT 1").await
}

#[tokio::test]
async fn commits_decoded_but_not_visible_while_opening_are_not_lost() {
    let pg = with_orders(Options::scratch()).await;
    let (relay, open) = opening_behind_transactions(&pg).await;
    let number = pg.value("SELECT count(*) + 1 FROM orders").await;
    // Its commit is in the WAL behind the slot's beginning, and no session sees it.
    pg.await_absent_standby().await;
    let hanging = tokio::spawn(async move { open.batch_execute("COMMIT").await });
    eventually(PATIENCE, "the commit waits for the standby", async || {
        (pg.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await == "1")
            .then_some(())
    })
    .await;
    relay.wait_line("waiting for transactions that were open when the slot was made").await;
    assert_eq!(relay.http().get("/ready").await.status, 503);
    assert_eq!(pg.value("SELECT count(*) + 1 FROM orders").await, number, "the commit hangs");

    pg.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pg.sql("SELECT pg_reload_conf()").await;
    hanging.await.unwrap().unwrap();
    relay.wait_ready().await;
    // What lies before the oldest cursor is seen by whoever copies the table with it.
    let (mut device, _) = subscribed(&relay).await;
    let mut copied = rows_as_json(&pg, &orders_of("1")).await;
    assert_eq!(copied.len().to_string(), number);
    pg.sql("INSERT INTO orders VALUES (500, '1', 'later')").await;
    let later = device.change().await;
    assert_eq!(later.key_text(), r#"{"id":500}"#, "nothing that the copy has comes again");
    copied.push(later.record_text().to_owned());
    copied.sort();
    assert_eq!(copied, rows_as_json(&pg, &orders_of("1")).await);
}

/// Commits that wait for a synchronous standby are delivered, and the relay never is that standby.
#[tokio::test]
async fn commits_that_wait_for_a_standby_do_not_wait_for_the_relay() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, _) = subscribed(&relay).await;
    pg.await_absent_standby().await;
    let client = pg.client().await;
    let hanging =
        tokio::spawn(async move { client.batch_execute("INSERT INTO orders VALUES (1, '1', 'x')").await });
    assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);
    assert_eq!(pg.value("SELECT count(*) FROM orders").await, "0");
    pg.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pg.sql("SELECT pg_reload_conf()").await;
    hanging.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slot_dropped_under_the_relay_is_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, old) = subscribed(&relay).await;
    relay.freeze();
    free_slot(&pg).await;
    pg.sql("SELECT pg_drop_replication_slot('rowcast'); INSERT INTO orders VALUES (1, '1', 'lost')").await;
    relay.thaw();
    expect_epoch_over(&mut device).await;
    expect_new_epoch(&pg, &relay, &old, "the replication slot is gone").await;
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_a_new_epoch() {
    let pg = with_orders(Options::scratch().setting("max_slot_wal_keep_size", "1MB")).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, old) = subscribed(&relay).await;
    relay.freeze();
    for _ in 0..4 {
        pg.sql("INSERT INTO orders VALUES (1, '2', 'x') ON CONFLICT (id) DO UPDATE SET note = 'y'").await;
        pg.sql("SELECT pg_switch_wal()").await;
    }
    pg.sql("CHECKPOINT").await;
    assert_eq!(pg.value("SELECT wal_status FROM pg_replication_slots").await, "lost");
    relay.thaw();
    expect_epoch_over(&mut device).await;
    expect_new_epoch(&pg, &relay, &old, "wal_status = lost").await;
}

#[tokio::test]
async fn a_slot_advanced_behind_the_relays_back_is_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    let (_, old) = subscribed(&relay).await;
    relay.terminate().await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'lost')").await;
    pg.sql("SELECT pg_replication_slot_advance('rowcast', pg_current_wal_lsn())").await;
    relay.start_again().await;
    expect_new_epoch(&pg, &relay, &old, "the log misses something").await;
}

/// Keeps what makes the same publication again, as a dump would.
const KEEP_PUBLICATION: &str = "CREATE TABLE kept AS
    SELECT 'CREATE PUBLICATION rowcast FOR TABLE ' || string_agg(format('%I.%I', schemaname, tablename), ', ') AS made
    FROM pg_publication_tables WHERE pubname = 'rowcast'";
const MAKE_PUBLICATION: &str = "DO $$ BEGIN EXECUTE (SELECT made FROM kept); END $$";

async fn make_publication_again(pg: &TestPostgres) {
    pg.sql(KEEP_PUBLICATION).await;
    pg.sql(&format!("BEGIN; DROP PUBLICATION rowcast; {MAKE_PUBLICATION}; COMMIT")).await;
}

#[tokio::test]
async fn a_publication_made_again_while_the_relay_is_down_is_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    let (_, old) = subscribed(&relay).await;
    relay.terminate().await;
    make_publication_again(&pg).await;
    relay.start_again().await;
    expect_new_epoch(&pg, &relay, &old, "the publication was dropped and made again").await;
}

#[tokio::test]
async fn a_publication_made_again_under_the_relay_is_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, old) = subscribed(&relay).await;
    make_publication_again(&pg).await;
    expect_epoch_over(&mut device).await;
    expect_new_epoch(&pg, &relay, &old, "the publication was dropped and made again").await;
}

#[tokio::test]
async fn a_publication_dropped_under_the_relay_is_waited_for_and_then_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, old) = subscribed(&relay).await;
    pg.sql(KEEP_PUBLICATION).await;
    pg.sql("DROP PUBLICATION rowcast").await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'lost')").await;
    relay.wait_line("the publication rowcast is missing").await;
    eventually(PATIENCE, "/ready says no", async || {
        (relay.http().get("/ready").await.status == 503).then_some(())
    })
    .await;
    pg.sql(MAKE_PUBLICATION).await;
    expect_epoch_over(&mut device).await;
    expect_new_epoch(&pg, &relay, &old, "the publication was dropped and made again").await;
}

#[tokio::test]
async fn a_log_moved_away_is_a_new_epoch() {
    let pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    let (_, old) = subscribed(&relay).await;
    relay.terminate().await;
    std::fs::remove_dir_all(relay.log_directory()).unwrap();
    relay.start_again().await;
    expect_new_epoch(&pg, &relay, &old, "there is no log yet").await;
}

#[tokio::test]
async fn a_database_restored_to_an_older_state_is_a_new_epoch() {
    let mut pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    relay.terminate().await;
    pg.stop_fast().await;
    let kept = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    let data = pg.data_directory();
    copy(&data, &kept.path().join("data"));
    pg.start_again().await;
    relay.start_again().await;
    relay.wait_ready().await;
    let (mut device, _) = subscribed(&relay).await;
    pg.sql("INSERT INTO orders SELECT n, '1', repeat('x', 500) FROM generate_series(1, 2000) n").await;
    let old = device.changes(2000).await.pop().unwrap().cursor.unwrap();
    relay.terminate().await;
    pg.stop_fast().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy(&kept.path().join("data"), &data);
    pg.start_again().await;
    relay.start_again().await;
    expect_new_epoch(&pg, &relay, &old, "before the log's end").await;
}

async fn takes_over(kill: bool) {
    let pg = with_orders(Options::scratch()).await;
    let mut first = Relay::on(&pg).start().await;
    let (_, old) = subscribed(&first).await;
    let second = Relay::on(&pg).start_listening().await;
    second.wait_line("is in use by process").await;
    let ready = second.http().get("/ready").await.expect_status(503).json();
    assert_eq!((&ready["state"], &ready["reason"]), (&json!("waiting"), &json!("standby")), "{ready}");
    assert_eq!(first.http().get("/ready").await.status, 200, "the first is left alone");
    if kill {
        first.kill9().await;
    } else {
        first.terminate().await;
    }
    let gone = Instant::now();
    second.wait_ready().await;
    let took = gone.elapsed();
    eprintln!("takeover after {}: {took:?}", if kill { "kill -9" } else { "SIGTERM" });
    expect_new_epoch(&pg, &second, &old, "there is no log yet").await;
}

#[tokio::test]
async fn a_second_relay_takes_over_after_sigterm() {
    takes_over(false).await;
}

#[tokio::test]
async fn a_second_relay_takes_over_after_a_crash() {
    takes_over(true).await;
}

async fn expect_refusal(pg: &TestPostgres, words: &[&str]) {
    let mut relay = Relay::on(pg).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    for word in words {
        relay.wait_line(word).await;
    }
}

#[tokio::test]
async fn a_foreign_slot_of_the_same_name_is_left_alone() {
    let pg = with_orders(Options::scratch()).await;
    let drop = "SELECT pg_drop_replication_slot('rowcast')";
    pg.sql("SELECT pg_create_logical_replication_slot('rowcast', 'test_decoding')").await;
    expect_refusal(&pg, &["slot rowcast belongs to something else", "test_decoding", "--slot"]).await;
    assert_eq!(slots(&pg).await, "1");
    pg.sql(drop).await;
    pg.sql("SELECT pg_create_physical_replication_slot('rowcast')").await;
    expect_refusal(&pg, &["slot rowcast belongs to something else", "--slot"]).await;
    assert_eq!(slots(&pg).await, "1");
    pg.sql(drop).await;
    pg.sql("CREATE DATABASE other").await;
    let other = crate::support::postgres::connect(&pg.url_of("other")).await;
    other.batch_execute("SELECT pg_create_logical_replication_slot('rowcast', 'pgoutput')").await.unwrap();
    expect_refusal(&pg, &["slot rowcast belongs to something else", "other", "--slot"]).await;
    assert_eq!(slots(&pg).await, "1");
}

#[tokio::test]
async fn without_a_free_slot_the_relay_says_what_to_do() {
    let pg = with_orders(Options::scratch().setting("max_replication_slots", "1")).await;
    pg.sql("SELECT pg_create_physical_replication_slot('standby')").await;
    expect_refusal(&pg, &["max_replication_slots", "pg_replication_slots"]).await;
}

#[tokio::test]
async fn a_walsender_that_is_ended_costs_nothing() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, _) = subscribed(&relay).await;
    for id in 1..=3 {
        let ended = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active";
        pg.sql(&format!("INSERT INTO orders VALUES ({id}, '1', 'before')")).await;
        eventually(PATIENCE, "a walsender to end", async || (pg.value(ended).await == "1").then_some(()))
            .await;
        pg.sql(&format!("INSERT INTO orders VALUES ({id} + 10, '1', 'after')")).await;
        assert_eq!(device.change().await.key_text(), format!(r#"{{"id":{id}}}"#));
        assert_eq!(device.change().await.key_text(), format!(r#"{{"id":{}}}"#, id + 10));
    }
    assert_eq!(relay.count_lines(ANEW), 0);
}

#[tokio::test]
async fn a_link_that_stalls_and_breaks_costs_nothing() {
    let pg = with_orders(Options::scratch().setting("wal_sender_timeout", "1s")).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let relay = Relay::on_url(&proxy.postgres_url("postgres")).start().await;
    let (mut device, _) = subscribed(&relay).await;
    let mut copy = Copy::default();
    for (number, cut) in [(1, false), (2, true), (3, false), (4, true)] {
        proxy.set(Direction::ToClient, Flow::Stalled);
        proxy.set(Direction::ToServer, Flow::Stalled);
        pg.sql(&format!("INSERT INTO orders VALUES ({number}, '1', 'while it stalled')")).await;
        if cut {
            proxy.cut();
        } else {
            // The server hears nothing of the relay, and gives up.
            eventually(PATIENCE, "the server gives the walsender up", async || {
                (pg.value("SELECT count(*) FROM pg_stat_replication").await == "0").then_some(())
            })
            .await;
        }
        proxy.set(Direction::ToClient, Flow::Open);
        proxy.set(Direction::ToServer, Flow::Open);
        copy.apply(&device.change().await);
    }
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    assert_eq!(relay.count_lines(ANEW), 0);
}

/// No FIN, no RST: the path is gone. The relay has to notice by itself.
#[tokio::test]
async fn a_link_that_is_silent_is_given_up() {
    let pg = with_orders(Options::scratch().setting("wal_sender_timeout", "1s")).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let relay = Relay::on_url(&proxy.postgres_url("postgres")).start().await;
    let (mut device, _) = subscribed(&relay).await;
    proxy.silence();
    pg.sql("INSERT INTO orders VALUES (1, '1', 'x')").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);
}

#[tokio::test]
async fn other_traffic_does_not_pin_wal() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    for round in 0..3 {
        pg.sql(&format!("INSERT INTO untracked SELECT n, repeat('x', 300) FROM generate_series({round} * 1000, {round} * 1000 + 999) n")).await;
        let written = pg.value("SELECT pg_current_wal_lsn()").await;
        let behind = format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots");
        eventually(Duration::from_secs(10), "the slot follows other traffic", async || {
            (pg.value(&behind).await == "t").then_some(())
        })
        .await;
    }
    assert_eq!(relay.count_lines(ANEW), 0);
}

#[tokio::test]
async fn postgres_stops_at_once_with_the_relay_connected() {
    let mut pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let (mut device, _) = subscribed(&relay).await;
    for round in 0..3 {
        pg.sql(&format!("INSERT INTO orders VALUES ({round}, '1', 'x')")).await;
        // Idle, or with changes that were received a moment ago.
        if round != 1 {
            assert_eq!(device.change().await.key_text(), format!(r#"{{"id":{round}}}"#));
        }
        let begun = Instant::now();
        pg.stop_fast().await;
        let took = begun.elapsed();
        eprintln!("pg_ctl stop -m fast: {took:?}");
        assert!(took < Duration::from_secs(5), "PostgreSQL took {took:?} to stop");
        pg.start_again().await;
        relay.wait_ready().await;
        if round == 1 {
            assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);
        }
    }
    assert_eq!(relay.count_lines(ANEW), 0);
}

#[tokio::test]
async fn a_short_wal_sender_timeout_disconnects_nobody() {
    let pg = with_orders(Options::scratch().setting("wal_sender_timeout", "3s")).await;
    let relay = Relay::on(&pg).start().await;
    let mut deaf = Device::of(&relay, "1", "deaf").small_buffer().connect().await;
    deaf.subscribe(TOPICS, None).await;
    let walsender = "SELECT pid FROM pg_stat_replication";
    let pid = pg.value(walsender).await;
    let note = "x".repeat(50_000);
    let mut sent = 0;
    // Idle at first, then with a device that never reads.
    for traffic in [false, true] {
        let begun = pg.value("SELECT clock_timestamp()").await;
        let heard = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE reply_time > '{begun}'::timestamptz + interval '7 s'"
        );
        eventually(PATIENCE, "replies over more than two time-outs", async || {
            if traffic {
                sent += 1;
                pg.sql(&format!("INSERT INTO orders VALUES ({sent}, '1', '{note}')")).await;
            }
            (pg.value(&heard).await == "1").then_some(())
        })
        .await;
        assert_eq!(pg.value(walsender).await, pid, "the walsender was given up");
    }
    assert!(!pg.log().contains("due to replication timeout"));
    for number in 1..=sent {
        let change = loop {
            match deaf.incoming().await {
                Incoming::Frame(frame) => {
                    if let Some(change) = frame.change() {
                        break change;
                    }
                }
                Incoming::Closed(why) => panic!("{why:?}"),
            }
        };
        assert_eq!(change.key_text(), format!(r#"{{"id":{number}}}"#));
    }
}
