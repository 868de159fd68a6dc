//! The relay and PostgreSQL die again and again: nothing is lost, nothing comes twice, and nobody has
//! to sync who has not lost history.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rowcast::embedded::Options;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::support::copy::Copy;
use crate::support::device::{Device, Incoming};
use crate::support::follower::Follower;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::proxy::{Proxy, Upstream};
use crate::support::relay::Relay;
use crate::support::wait::{PATIENCE, eventually};

const USERS: [&str; 3] = ["1", "2", "3"];
const WRITERS: u64 = 3;
const ROUNDS: u64 = 5;
/// The note of the last row of each user.
const LAST: &str = "the last row";

/// A small generator, so that a failure replays: `ROWCAST_TEST_SEED`.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = std::env::var("ROWCAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) << 20 | now.as_secs() & 0xfffff
        });
        eprintln!("ROWCAST_TEST_SEED={seed}");
        Random(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillRelay,
    StopRelay,
    Postgres,
}

/// Settings under which a crash of PostgreSQL keeps what was committed.
fn durable() -> Options {
    Options::scratch().setting("fsync", "on").setting("full_page_writes", "on")
}

/// One statement or transaction of a writer on its own rows: inserts, updates, moves, key changes,
/// deletes, savepoints.
fn statement(writer: u64, random: &mut Random) -> String {
    let id = writer * 1000 + random.below(20);
    let user = USERS[random.below(3) as usize];
    let note = random.below(1 << 30);
    let upsert = |id: u64| {
        format!(
            "INSERT INTO orders VALUES ({id}, '{user}', 'n{note}')
             ON CONFLICT (id) DO UPDATE SET note = excluded.note, user_id = excluded.user_id"
        )
    };
    match random.below(8) {
        0..3 => upsert(id),
        3 => format!("DELETE FROM orders WHERE id = {id}"),
        4 => format!(
            "UPDATE orders SET user_id = '{user}' WHERE id BETWEEN {id} AND {id} + 3 AND id < ({writer} + 1) * 1000"
        ),
        5 => format!(
            "DELETE FROM orders WHERE id = {id} + 500; UPDATE orders SET id = id + 500 WHERE id = {id}"
        ),
        6 => format!(
            "BEGIN; {}; SAVEPOINT s; DELETE FROM orders WHERE id / 1000 = {writer}; ROLLBACK TO s; {}; COMMIT",
            upsert(id),
            upsert(writer * 1000 + random.below(20))
        ),
        _ => format!("BEGIN; {}; ROLLBACK", upsert(id)),
    }
}

/// Writes until told to stop, connecting again whenever the server goes away.
async fn write(
    url: String,
    writer: u64,
    mut random: Random,
    commits: Arc<AtomicU64>,
    mut allowed: watch::Receiver<Option<u64>>,
) {
    'connect: loop {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        loop {
            let now = commits.load(Ordering::Relaxed);
            // The load is bounded: no further than what the present round allows.
            let go = *allowed.wait_for(|most| most.is_none_or(|most| now < most)).await.unwrap();
            if go.is_none() {
                return;
            }
            match client.batch_execute(&statement(writer, &mut random)).await {
                Ok(()) => drop(commits.fetch_add(1, Ordering::Relaxed)),
                Err(error) if error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57")) => {
                    panic!("{error:?}")
                }
                Err(_) => continue 'connect,
            }
        }
    }
}

/// Writers and followers at work while `faults` happen at random points; in the end every copy is right.
async fn survive(fault: Fault, relay_env: &[(&str, &str)]) {
    let mut random = Random::seeded();
    let mut pg = with_orders(durable()).await;
    let setup = relay_env.iter().fold(Relay::on(&pg), |setup, (name, value)| setup.env(name, value));
    let mut relay = setup.start().await;
    let (tell_address, address) = watch::channel::<SocketAddr>(relay.address());
    let mut followers = Vec::new();
    for user in USERS {
        let connect = Device::of(&relay, user, "phone");
        followers.push(Follower::start(connect, &format!("user:{user}:*"), address.clone(), LAST).await);
    }
    let commits = Arc::new(AtomicU64::new(0));
    let (allow, allowed) = watch::channel(Some(0));
    let mut writers = JoinSet::new();
    for writer in 1..=WRITERS {
        let random = Random(random.below(1 << 30) | 1);
        writers.spawn(write(pg.url(), writer, random, Arc::clone(&commits), allowed.clone()));
    }
    for round in 0..ROUNDS {
        let done = commits.load(Ordering::Relaxed);
        let strike_at = done + 1 + random.below(60);
        // Writers go on while the fault lasts, and for a while after it.
        allow.send_replace(Some(strike_at + 60));
        eventually(PATIENCE, "writers reach the point of the fault", async || {
            (commits.load(Ordering::Relaxed) >= strike_at).then_some(())
        })
        .await;
        match (fault, round % 3) {
            (Fault::KillRelay, _) => {
                relay.kill9().await;
                relay.start_again().await;
            }
            (Fault::StopRelay, _) => {
                relay.terminate().await;
                relay.start_again().await;
            }
            (Fault::Postgres, 0) => {
                pg.kill9();
                pg.start_again().await;
            }
            (Fault::Postgres, 1) => {
                pg.stop_immediate().await;
                pg.start_again().await;
            }
            (Fault::Postgres, _) => pg.restart().await,
        }
        tell_address.send_replace(relay.address());
    }
    allow.send_replace(None);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    relay.wait_ready().await;
    for (number, user) in USERS.into_iter().enumerate() {
        pg.sql(&format!("INSERT INTO orders VALUES ({}, '{user}', '{LAST}')", 90_000 + number)).await;
    }
    for (user, follower) in USERS.into_iter().zip(followers) {
        let followed = follower.finish().await;
        followed.copy.assert_equals(&pg, "orders", &orders_of(user)).await;
        match fault {
            Fault::Postgres => {
                assert_eq!(followed.connections, 1, "PostgreSQL's fault cost a device its socket")
            }
            Fault::StopRelay => assert!(followed.restarts > 0, "no device was told of a restart"),
            Fault::KillRelay => {}
        }
    }
    assert_eq!(relay.count_lines("a new epoch begins"), 0);
    assert_eq!(relay.metric("rowcast_new_epochs_total").await.unwrap_or(0.0), 0.0);
}

#[tokio::test]
async fn copies_are_right_after_the_relay_is_killed_under_load() {
    survive(Fault::KillRelay, &[]).await;
}

/// Nothing but what the log's own life forces is flushed, and every transaction goes in parts.
#[tokio::test]
async fn copies_are_right_after_a_relay_that_never_flushed_is_killed() {
    survive(
        Fault::KillRelay,
        &[
            ("ROWCAST_GROUP_COMMIT_INTERVAL", "1h"),
            ("ROWCAST_GROUP_COMMIT_SIZE", "1GiB"),
            ("ROWCAST_BIG_TRANSACTION_SIZE", "1B"),
        ],
    )
    .await;
}

#[tokio::test]
async fn copies_are_right_after_restarts_of_the_relay_under_load() {
    survive(Fault::StopRelay, &[]).await;
}

#[tokio::test]
async fn copies_are_right_after_postgres_crashed_stopped_and_restarted_under_load() {
    survive(Fault::Postgres, &[]).await;
}

fn copy_directory(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "copying {}: {status}", from.display());
}

fn restore_directory(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    copy_directory(from, to);
}

#[tokio::test]
async fn a_device_ahead_of_the_log_is_waited_for() {
    let pg = with_orders(Options::scratch()).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let mut relay = Relay::on_url(&proxy.postgres_url("postgres"))
        // Nothing is flushed, so nothing is confirmed, and PostgreSQL sends it all again.
        .env("ROWCAST_GROUP_COMMIT_INTERVAL", "1h")
        .env("ROWCAST_GROUP_COMMIT_SIZE", "1GiB")
        .start()
        .await;
    relay.terminate().await;
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().join("log");
    copy_directory(relay.log_directory(), &kept);
    relay.start_again().await;
    relay.wait_ready().await;

    let mut copy = Copy::default();
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'seen'), (2, '1', 'seen too')").await;
    for change in device.changes(2).await {
        copy.apply(&change);
    }
    let ahead = device.drain_into(&mut copy).await;

    // What was not flushed is gone, as after a crash of the machine; and PostgreSQL is away.
    relay.kill9().await;
    restore_directory(&kept, relay.log_directory());
    proxy.shut_out();
    relay.start_again().await;
    pg.sql("INSERT INTO orders VALUES (3, '1', 'new')").await;

    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let subscribed = device.subscribe(&["user:1:*"], Some(&ahead)).await;
    assert_eq!(subscribed.cursor().as_deref(), Some(ahead.as_str()));
    let ask = json!({"device_id": "phone", "topics": ["user:1:*"], "cursor": ahead});
    let refused = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(503);
    assert_eq!(refused.json()["code"], "not_caught_up");
    assert!(refused.headers.get("retry-after").is_some());
    let asked = format!("/api/realtime/sync?device_id=phone&topics=user:1:*&cursor={ahead}");
    assert_eq!(relay.http_as("1").get(&asked).await.status, 503);

    proxy.let_in();
    // Rows 1 and 2 are sent again by PostgreSQL, and not shown again.
    let change = device.change().await;
    assert_eq!(change.record_text(), r#"{"id":3,"user_id":"1","note":"new"}"#);
    copy.apply(&change);
    device.drain_into(&mut copy).await;
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    let mut synced = Copy::default();
    synced.sync(&relay.http_as("1"), &ask).await;
    assert_eq!(synced.records("orders"), [r#"{"id":3,"user_id":"1","note":"new"}"#]);
    assert_eq!(relay.count_lines("a new epoch begins"), 0);
}

/// The session itself was cut off in the middle: the cursor of a change that is not the last.
#[tokio::test]
async fn a_transaction_is_gone_on_with_in_its_middle_after_a_crash() {
    let pg = with_orders(Options::scratch()).await;
    for part in ["8MiB", "1B"] {
        let mut relay = Relay::on(&pg).env("ROWCAST_BIG_TRANSACTION_SIZE", part).start().await;
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:*"], None).await;
        pg.sql("TRUNCATE untracked; INSERT INTO orders SELECT n, '1', 'x' FROM generate_series(1, 50) n")
            .await;
        let mut copy = Copy::default();
        let mut cursor = None;
        for change in device.changes(20).await {
            assert_eq!(change.last, Some(false));
            copy.apply(&change);
            cursor = change.cursor;
        }
        relay.kill9().await;
        relay.start_again().await;
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:*"], cursor.as_deref()).await;
        for number in 21..=50 {
            let change = loop {
                let frame = device.recv().await;
                assert!(frame.kind != "sync_required" && frame.kind != "error", "{}", frame.text);
                if let Some(change) = frame.change() {
                    break change;
                }
            };
            assert_eq!(change.key_text(), format!(r#"{{"id":{number}}}"#));
            assert_eq!(change.last, Some(number == 50));
            copy.apply(&change);
        }
        device.drain_into(&mut copy).await;
        copy.assert_equals(&pg, "orders", &orders_of("1")).await;
        relay.terminate().await;
        pg.sql("DELETE FROM orders; SELECT pg_drop_replication_slot('rowcast')").await;
    }
}

#[tokio::test]
async fn sigterm_tells_sessions_and_confirms_the_end_of_the_log() {
    let pg = with_orders(Options::scratch()).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let mut relay = Relay::on_url(&proxy.postgres_url("postgres"))
        .env("ROWCAST_GROUP_COMMIT_INTERVAL", "1h")
        .env("ROWCAST_GROUP_COMMIT_SIZE", "1GiB")
        .start()
        .await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, '1', 'x')").await;
    let cursor = device.change().await.cursor.unwrap();
    relay.terminate().await;
    let (code, reason) = device.expect_close().await;
    assert_eq!(code, 1012);
    let reason: serde_json::Value = serde_json::from_str(&reason).unwrap();
    assert!(reason["retry_after_ms"].is_u64(), "{reason}");
    let confirmed = pg.value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await;

    // Without PostgreSQL the relay can only say what its log holds.
    proxy.shut_out();
    relay.start_again().await;
    let ready = relay.http().get("/ready").await.expect_status(503);
    assert_eq!(ready.json()["watermark"], confirmed.as_str(), "the log's end and what PostgreSQL may forget");
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], Some(&cursor)).await;
    proxy.let_in();
    relay.wait_ready().await;
    pg.sql("INSERT INTO orders VALUES (2, '1', 'y')").await;
    let change = loop {
        match device.incoming().await {
            Incoming::Frame(frame) => {
                if let Some(change) = frame.change() {
                    break change;
                }
            }
            Incoming::Closed(why) => panic!("{why:?}"),
        }
    };
    assert_eq!(change.key_text(), r#"{"id":2}"#);
    // Counted after it was published.
    let received = eventually(PATIENCE, "the transaction is counted", async || {
        relay.metric("rowcast_transactions_total").await.filter(|received| *received > 0.0)
    })
    .await;
    assert!((received - 1.0).abs() < f64::EPSILON, "PostgreSQL sent something again: {received}");
}

/// A cursor beyond everything that the database has written is no cursor to wait for.
#[tokio::test]
async fn a_cursor_beyond_the_servers_end_is_invalid() {
    let pg: TestPostgres = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    let mut beyond = cursor.clone();
    let parts: Vec<&str> = cursor.split('.').collect();
    if let [epoch, commit, index] = parts[..] {
        let commit = u64::from_str_radix(commit, 16).unwrap() + (1 << 40);
        beyond = format!("{epoch}.{commit:016x}.{index}");
    }
    assert_ne!(beyond, cursor);
    device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": beyond, "ref": 7})).await;
    let error = device.expect("error").await.json();
    assert_eq!((&error["code"], &error["ref"]), (&json!("invalid_cursor"), &json!(7)));
    let ask = json!({"device_id": "phone", "topics": ["user:1:*"], "cursor": beyond});
    let refused = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(400);
    assert_eq!(refused.json()["code"], "invalid_cursor");
}
