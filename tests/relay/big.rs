//! Large transactions and large rows: bounded memory, nothing shown twice, nothing out of order.

use std::time::{Duration, Instant};

use rowcast::embedded::Options;

use crate::support::copy::Copy;
use crate::support::device::{Device, Incoming};
use crate::support::frame::Change;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::{TestPostgres, explain};
use crate::support::proxy::{Direction, Flow, Proxy, Upstream};
use crate::support::relay::Relay;
use crate::support::wait::eventually;

/// On a busy machine, in a debug build.
const LONG: Duration = Duration::from_secs(120);
const MEMORY_KIB: u64 = 256 * 1024;
const USERS: usize = 1000;

/// How many rows the large transaction has: `ROWCAST_TEST_BIG_ROWS`.
fn rows() -> usize {
    std::env::var("ROWCAST_TEST_BIG_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(200_000)
}

/// Runs a statement that takes long.
async fn run(pg: &TestPostgres, sql: &str) {
    let client = pg.client().await;
    let done = tokio::time::timeout(LONG, client.batch_execute(sql)).await.expect("the statement ends");
    done.unwrap_or_else(|error| panic!("{}", explain(&error)));
}

/// `count` rows for [`USERS`] users in turn, from `first` on.
fn many(first: usize, count: usize) -> String {
    format!(
        "INSERT INTO orders SELECT n, (n % {USERS})::text, 'a row of a large transaction'
         FROM generate_series({first}, {first} + {count} - 1) n"
    )
}

async fn next_change(device: &mut Device) -> Change {
    let incoming = async {
        loop {
            match device.next_incoming().await {
                Incoming::Frame(frame) => {
                    assert!(frame.kind != "sync_required" && frame.kind != "error", "{}", frame.text);
                    if let Some(change) = frame.change() {
                        return change;
                    }
                }
                Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, incoming).await.expect("a change within the time for long work")
}

/// The rows of user 7 of one large transaction: each once, in order, `last` on the last alone.
async fn expect_rows(device: &mut Device, copy: &mut Copy, first: usize, count: usize) {
    let ids: Vec<usize> = (first..first + count).filter(|n| n % USERS == 7).collect();
    for (place, id) in ids.iter().enumerate() {
        let change = next_change(device).await;
        assert_eq!(change.key_text(), format!(r#"{{"id":{id}}}"#));
        assert_eq!(change.last, Some(place + 1 == ids.len()), "row {id}");
        copy.apply(&change);
    }
}

#[tokio::test]
async fn a_large_transaction_takes_little_memory_and_arrives_exactly() {
    let count = rows();
    let pg = with_orders(Options::scratch().setting("max_wal_size", "4GB")).await;
    let relay = Relay::on(&pg).start().await;
    let mut device = Device::of(&relay, "7", "phone").connect().await;
    let cursor = device.subscribe(&["user:7:*"], None).await.cursor().unwrap();
    let before = relay.memory_kib("VmHWM");
    let begun = Instant::now();
    run(&pg, &many(0, count)).await;
    let committed = begun.elapsed();
    // Right behind it, and in order.
    pg.sql("INSERT INTO orders VALUES (100000007, '7', 'right behind')").await;
    pg.sql("UPDATE orders SET note = 'and after that' WHERE id = 7").await;
    let mut copy = Copy::default();
    expect_rows(&mut device, &mut copy, 0, count).await;
    for id in [100_000_007, 7] {
        let change = next_change(&mut device).await;
        assert_eq!((change.key_text(), change.last), (&*format!(r#"{{"id":{id}}}"#), Some(true)));
        copy.apply(&change);
    }
    let all = begun.elapsed();
    let peak = relay.memory_kib("VmHWM") - before;
    eprintln!(
        "{count} rows: committed after {committed:?}, delivered after {all:?}; the relay's peak grew by {peak} KiB"
    );
    assert!(peak < MEMORY_KIB, "the relay's peak grew by {peak} KiB");
    copy.assert_equals(&pg, "orders", &orders_of("7")).await;

    // From the log alone, too.
    let mut late = Device::of(&relay, "7", "late").connect().await;
    late.subscribe(&["user:7:*"], Some(&cursor)).await;
    let mut replayed = Copy::default();
    expect_rows(&mut late, &mut replayed, 0, count).await;
    let peak = relay.memory_kib("VmHWM") - before;
    assert!(peak < MEMORY_KIB, "the relay's peak grew by {peak} KiB with a replay");
}

/// A large transaction of which the relay has some parts, and the rest is held up on the way.
struct InTheMiddle {
    pg: TestPostgres,
    proxy: Proxy,
    relay: Relay,
    device: Device,
    cursor: String,
}

const HELD_UP: usize = 60_000;

async fn in_the_middle() -> InTheMiddle {
    let pg = with_orders(Options::scratch()).await;
    let proxy = Proxy::start(Upstream::Unix(pg.socket())).await;
    let relay = Relay::on_url(&proxy.postgres_url("postgres"))
        .env("ROWCAST_BIG_TRANSACTION_SIZE", "16KiB")
        .start()
        .await;
    let mut device = Device::of(&relay, "7", "phone").connect().await;
    let cursor = device.subscribe(&["user:7:*"], None).await.cursor().unwrap();
    // About 8 MB of it come; slow enough to be caught in the middle.
    proxy.set(Direction::ToClient, Flow::BytesPerSecond(600_000));
    let written = log_size(&relay);
    run(&pg, &many(0, HELD_UP)).await;
    eventually(LONG, "parts of the transaction are in the log", async || {
        (log_size(&relay) > written + 200_000).then_some(())
    })
    .await;
    proxy.set(Direction::ToClient, Flow::Stalled);
    InTheMiddle { pg, proxy, relay, device, cursor }
}

/// Bytes in the log's files.
fn log_size(relay: &Relay) -> u64 {
    fn size(directory: &std::path::Path) -> u64 {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let of = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            // What is allocated: journals are made large and empty.
            Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
            Err(_) => 0,
        };
        entries.map(of).sum()
    }
    size(relay.log_directory())
}

#[tokio::test]
async fn a_device_that_connects_in_the_middle_of_a_transaction_gets_all_of_it() {
    let InTheMiddle { pg, proxy, relay, mut device, cursor } = in_the_middle().await;
    let mut late = Device::of(&relay, "7", "late").connect().await;
    let here = late.subscribe(&["user:7:*"], None).await.cursor().unwrap();
    let mut resumed = Device::of(&relay, "7", "resumed").connect().await;
    resumed.subscribe(&["user:7:*"], Some(&cursor)).await;
    assert!(here >= cursor);
    proxy.set(Direction::ToClient, Flow::Open);
    for device in [&mut device, &mut late, &mut resumed] {
        let mut copy = Copy::default();
        expect_rows(device, &mut copy, 0, HELD_UP).await;
        copy.assert_equals(&pg, "orders", &orders_of("7")).await;
    }
}

#[tokio::test]
async fn parts_left_over_from_a_crash_are_not_shown_twice() {
    let InTheMiddle { pg, proxy, mut relay, device, cursor } = in_the_middle().await;
    relay.kill9().await;
    drop(device);
    proxy.cut();
    proxy.set(Direction::ToClient, Flow::Open);
    relay.start_again().await;
    let mut device = Device::of(&relay, "7", "phone").connect().await;
    device.subscribe(&["user:7:*"], Some(&cursor)).await;
    let mut copy = Copy::default();
    expect_rows(&mut device, &mut copy, 0, HELD_UP).await;
    pg.sql("INSERT INTO orders VALUES (100000007, '7', 'right behind')").await;
    let change = next_change(&mut device).await;
    assert_eq!(change.key_text(), r#"{"id":100000007}"#);
    copy.apply(&change);
    copy.assert_equals(&pg, "orders", &orders_of("7")).await;
    assert_eq!(relay.count_lines("a new epoch begins"), 0);

    // Nor to one that reads all of it from the log, or over REST.
    let mut late = Device::of(&relay, "7", "late").connect().await;
    late.subscribe(&["user:7:*"], Some(&cursor)).await;
    let mut replayed = Copy::default();
    expect_rows(&mut late, &mut replayed, 0, HELD_UP).await;
    let mut synced = Copy::default();
    let ask = serde_json::json!({"device_id": "d", "topics": ["user:7:*"], "cursor": cursor});
    synced.sync(&relay.http_as("7"), &ask).await;
    synced.assert_equals(&pg, "orders", &orders_of("7")).await;
}

#[tokio::test]
async fn rows_of_twenty_megabytes_arrive_whole() {
    let pg = with_orders(Options::scratch().setting("max_wal_size", "4GB")).await;
    let relay = Relay::on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    let before = relay.memory_kib("VmHWM");
    let mut copy = Copy::default();
    for id in 1..=3 {
        // Quotes and backslashes: longer as JSON than as text.
        run(&pg, &format!("INSERT INTO orders SELECT {id}, '1', repeat(E'\"a\\\\ü', 4000000) || {id}")).await;
        copy.apply(&next_change(&mut device).await);
    }
    run(&pg, "UPDATE orders SET note = note || '!' WHERE id = 2").await;
    let change = next_change(&mut device).await;
    assert!(change.unchanged.is_empty());
    copy.apply(&change);
    eprintln!("rows of 20 MB: the relay's peak grew by {} KiB", relay.memory_kib("VmHWM") - before);
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    let mut late = Device::of(&relay, "1", "late").connect().await;
    late.subscribe(&["user:1:*"], Some(&cursor)).await;
    let mut replayed = Copy::default();
    for _ in 0..4 {
        replayed.apply(&next_change(&mut late).await);
    }
    replayed.assert_equals(&pg, "orders", &orders_of("1")).await;
}

#[tokio::test]
async fn a_large_transaction_for_one_slow_device_waits_in_the_log() {
    const ROWS: usize = 100_000;
    let pg = with_orders(Options::scratch().setting("max_wal_size", "4GB")).await;
    let relay = Relay::on(&pg).start().await;
    let mut slow = Device::of(&relay, "1", "slow").small_buffer().query("batch=1").connect().await;
    slow.subscribe(&["user:1:*"], None).await;
    let mut other = Device::of(&relay, "2", "other").connect().await;
    other.subscribe(&["user:2:*"], None).await;
    let before = relay.memory_kib("VmHWM");
    run(
        &pg,
        &format!("INSERT INTO orders SELECT n, '1', repeat('x', 200) FROM generate_series(1, {ROWS}) n"),
    )
    .await;
    pg.sql("INSERT INTO orders VALUES (0, '2', 'y')").await;
    // Past the large transaction, of which the slow device has read nothing.
    assert_eq!(next_change(&mut other).await.key_text(), r#"{"id":0}"#);
    let mut last = String::new();
    for number in 1..=ROWS {
        let change = next_change(&mut slow).await;
        assert_eq!(change.key_text(), format!(r#"{{"id":{number}}}"#));
        assert_eq!(change.last, Some(number == ROWS));
        let cursor = change.cursor.unwrap();
        assert!(last < cursor);
        last = cursor;
    }
    let peak = relay.memory_kib("VmHWM") - before;
    eprintln!("{ROWS} rows for one slow device: the relay's peak grew by {peak} KiB");
    assert!(peak < MEMORY_KIB, "the relay's peak grew by {peak} KiB");
}
