//! What keeps the slot from filling the database's disk, and the relay from filling its own log.

use rowcast::embedded::Options;

use tokio::process::Command;

use crate::support::cli::run;
use crate::support::device::Device;
use crate::support::orders::with_orders;
use crate::support::postgres::TestPostgres;
use crate::support::proxy::{Direction, Flow, Proxy, Upstream};
use crate::support::relay::{Relay, Setup};
use crate::support::stage::{database, relay_on};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

const DROPPED: &str = "the replication slot was dropped";

/// WAL that the slot holds is bounded tightly, and looked at often.
fn guarded(setup: Setup) -> Setup {
    setup
        .env("ROWCAST_WAL_ALERT", "4MiB")
        .env("ROWCAST_WAL_LIMIT", "24MiB")
        .env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
}

/// More than the limit: each switch ends a segment of 16 MiB.
async fn write_much(pg: &TestPostgres) {
    for number in 0..3 {
        pg.sql(&format!("INSERT INTO untracked VALUES ({number}, 'x')")).await;
        pg.sql("SELECT pg_switch_wal()").await;
    }
}

/// An open transaction of the application keeps the slot from moving, whatever the relay does.
#[tokio::test]
async fn a_slot_that_holds_too_much_is_dropped_where_the_relay_is_told_so() {
    let pg = with_orders(Options::scratch()).await;
    let relay = guarded(Relay::on(&pg)).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let open = pg.client().await;
    open.batch_execute("BEGIN; INSERT INTO untracked VALUES (-1, 'open')").await.unwrap();
    write_much(&pg).await;
    relay.wait_line(DROPPED).await;
    assert_eq!(relay.metric("rowcast_slots_dropped_total").await, Some(1.0));
    assert_eq!(relay.metric("rowcast_wal_limit_bytes").await, Some(25_165_824.0));
    let told = device.expect("sync_required").await.json();
    assert_eq!(told["reason"], "epoch");
    let loud: Vec<String> =
        relay.output().into_iter().filter(|l| l.contains("more WAL than wal_limit")).collect();
    assert!(loud.len() == 1 && loud[0].contains("ERROR"), "{loud:?}");
    // It begins anew as soon as it can, and not again without need.
    open.batch_execute("ROLLBACK").await.unwrap();
    relay.wait_line("a new epoch begins").await;
    relay.wait_ready().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'in the new epoch')").await;
    assert_eq!(device.change().await.key_text(), r#"{"id":1}"#);
    assert_eq!(relay.count_lines(DROPPED), 1);
}

#[tokio::test]
async fn without_being_told_so_no_slot_is_dropped() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg)
        .env("ROWCAST_WAL_ALERT", "4MiB")
        .env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
        .start()
        .await;
    let open = pg.client().await;
    open.batch_execute("BEGIN; INSERT INTO untracked VALUES (-1, 'open')").await.unwrap();
    write_much(&pg).await;
    relay.wait_line("PostgreSQL keeps much WAL for this relay's slot").await;
    eventually(PATIENCE, "the metrics say so", async || {
        let held = relay.metric("rowcast_slot_wal_held_bytes").await?;
        (held > 24.0 * 1048576.0 && relay.metric("rowcast_wal_alert").await == Some(1.0)).then_some(())
    })
    .await;
    let problem = "SELECT wal_held_bytes > 24 * 1048576 FROM rowcast.status WHERE part = 'slot'";
    assert_eq!(pg.value(problem).await, "t");
    assert_eq!(relay.count_lines(DROPPED), 0);
    assert_eq!(pg.value("SELECT count(*) FROM pg_replication_slots").await, "1");
}

/// The relay's log cannot be opened, as on a broken disk: each start looks once before it ends.
#[tokio::test]
async fn a_relay_that_cannot_start_still_frees_the_disk() {
    let pg = with_orders(Options::scratch()).await;
    let mut relay = guarded(Relay::on(&pg)).start().await;
    relay.terminate().await;
    write_much(&pg).await;
    for entry in std::fs::read_dir(relay.log_directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::write(&path, "no directory").unwrap();
        }
    }
    let mut serve = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    serve.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--wal-alert",
        "4MiB",
        "--wal-limit",
        "24MiB",
        "--log-dir",
    ]);
    serve
        .arg(relay.log_directory())
        .env("ROWCAST_DATABASE_URL", pg.url())
        .env("ROWCAST_JWT_SECRET", token::SECRET);
    let ended = run(serve).await;
    assert!(ended.code != 0 && ended.stderr.contains(DROPPED), "{ended:?}");
    assert_eq!(pg.value("SELECT count(*) FROM pg_replication_slots").await, "0");
}

/// A second relay says that it waits, once, and not as if something had failed.
#[tokio::test]
async fn a_relay_that_waits_says_so() {
    let pg = database().await;
    let first = relay_on(&pg).start().await;
    let second = relay_on(&pg).start_listening().await;
    second.wait_line("this relay waits, and takes over when the slot is free").await;
    for _ in 0..3 {
        let ready = second.http().get("/ready").await.expect_status(503).json();
        assert_eq!((&ready["state"], &ready["reason"]), (&"waiting".into(), &"standby".into()), "{ready}");
        assert_eq!(second.metric(r#"rowcast_ingest_state{state="waiting"}"#).await, Some(1.0));
        // It asks again and again meanwhile.
        let asked = pg.value("SELECT sum(numbackends + xact_commit) FROM pg_stat_database").await;
        eventually(PATIENCE, "another question", async || {
            (pg.value("SELECT sum(numbackends + xact_commit) FROM pg_stat_database").await != asked)
                .then_some(())
        })
        .await;
    }
    let lines: Vec<String> =
        second.output().into_iter().filter(|line| line.contains("is in use by")).collect();
    assert!(lines.len() == 1 && lines[0].contains("as rowcast_relay"), "who has it, and once: {lines:?}");
    assert_eq!(second.metric("rowcast_ingest_failures_total").await.unwrap_or(0.0), 0.0);
    drop(first);
    second.wait_ready().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_told_once() {
    let pg = with_orders(Options::scratch()).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let relay = Relay::on_url(&proxy.postgres_url("postgres")).start().await;
    // Connections are taken and carry nothing, so that each try fails alike.
    proxy.set(Direction::ToServer, Flow::Stalled);
    proxy.cut();
    drop(proxy);
    eventually(PATIENCE, "several tries", async || {
        (relay.metric("rowcast_ingest_failures_total").await >= Some(4.0)).then_some(())
    })
    .await;
    let told: Vec<String> =
        relay.output().into_iter().filter(|line| line.contains("ingest was interrupted")).collect();
    let mut texts: Vec<&str> =
        told.iter().filter_map(|line| line.split("error=").nth(1)?.split(" retry_in").next()).collect();
    let all = texts.len();
    texts.sort_unstable();
    texts.dedup();
    assert!(all >= 1 && all == texts.len(), "the same thing twice: {told:#?}");
}

/// TRUNCATE of the catalog's table untracks everything, as a DELETE of its rows does.
#[tokio::test]
async fn a_truncated_catalog_untracks_every_table() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id));
         CREATE TABLE notes (user_id int, id int, PRIMARY KEY (user_id, id));
         SELECT rowcast.track('orders'), rowcast.track('notes')",
    )
    .await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:orders", "user:1:notes"], None).await;
    pg.sql("BEGIN; TRUNCATE rowcast.tables; INSERT INTO orders VALUES (1, 1); COMMIT").await;
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let told = device.expect("sync_required").await.json();
        assert_eq!(told["reason"], "untracked", "{told}");
        ended.extend(
            told["topics"].as_array().unwrap().iter().map(|topic| topic.as_str().unwrap().to_owned()),
        );
    }
    ended.sort();
    assert_eq!(ended, ["user:1:notes", "user:1:orders"]);
    pg.sql("SELECT rowcast.track('orders')").await;
    relay.wait_line("newly_tracked").await;
    let mut device = Device::of(&relay, "1", "other").connect().await;
    device.subscribe(&["user:1:orders"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 2)").await;
    assert_eq!(device.change().await.key_text(), r#"{"user_id":1,"id":2}"#);
}

/// A failover slot where the server knows them, also one that was made without.
#[tokio::test]
async fn the_slot_is_kept_on_standbys_where_the_server_can() {
    let pg = with_orders(Options::scratch()).await;
    let failover = "SELECT coalesce(to_jsonb(s) ->> 'failover', 'unknown') FROM pg_replication_slots s";
    let mut relay = Relay::on(&pg).start().await;
    let expected = if pg.major() >= 17 { "true" } else { "unknown" };
    assert_eq!(pg.value(failover).await, expected);
    relay.terminate().await;
    if pg.major() >= 17 {
        // As one of a server before 17 is after pg_upgrade.
        let lsn = pg.value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await;
        pg.sql("SELECT pg_drop_replication_slot('rowcast')").await;
        pg.sql("SELECT pg_create_logical_replication_slot('rowcast', 'pgoutput')").await;
        assert_eq!(pg.value(failover).await, "false", "made at {lsn}");
    }
    relay.start_again().await;
    relay.wait_ready().await;
    assert_eq!(pg.value(failover).await, expected);
}
