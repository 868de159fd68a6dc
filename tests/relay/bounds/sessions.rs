//! Many sessions, of which half never read.

use futures_util::{StreamExt, stream};
use rowcast::embedded::Options;

use super::{AGAIN_KIB, Figures, KEPT_KIB, LONG, allow_files, base, loopback, size};
use crate::support::device::{Device, Incoming};
use crate::support::orders::with_orders;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::wait::eventually;

const OF_A_USER: usize = 10;
/// Connecting at once.
const AT_ONCE: usize = 64;
/// More than an outbox (256 KiB) and what the system holds for a socket.
const ROWS: usize = 200;
const ROW_BYTES: usize = 4_000;

/// What one device that reads nothing may cost: an outbox, or a page of the log in frames.
const SLOW_KIB: u64 = 256;
/// What any session may cost in a debug build.
const IDLE_KIB: u64 = 16;

async fn connect(relay: &Relay, number: usize) -> Device {
    let user = (number / OF_A_USER).to_string();
    let connect = Device::of(relay, &user, &format!("d{number}")).from(loopback(number)).lean();
    let connect = if reads(number) { connect } else { connect.small_buffer() };
    let mut device = connect.connect().await;
    device.subscribe(&[&format!("user:{user}:*"), "global:*"], None).await;
    device
}

fn reads(number: usize) -> bool {
    number.is_multiple_of(2)
}

/// Every row, once and in order, and the own one between them.
async fn read_all(mut device: Device, user: usize) {
    let (mut news, mut own) = (0, 0);
    while news < ROWS || own < 1 {
        let frame = match device.next_incoming().await {
            Incoming::Frame(frame) => frame,
            Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
        };
        let Some(change) = frame.change() else {
            assert_eq!(frame.kind, "heartbeat", "{}", frame.text);
            continue;
        };
        if change.topic == "global:news" {
            news += 1;
            assert_eq!(change.key_text(), format!(r#"{{"id":{news}}}"#));
        } else {
            own += 1;
            assert_eq!(change.topic, format!("user:{user}:orders"));
        }
    }
    device.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_sessions_of_which_half_never_read() {
    let sessions = size(100, 10_000);
    allow_files(sessions);
    let pg = with_orders(Options::scratch()).await;
    pg.sql("CREATE TABLE news (id int PRIMARY KEY, body text); SELECT rowcast.track('news', topics => ARRAY['global:news'])")
        .await;
    // Those that read nothing would be given up after two heartbeats.
    let relay = Relay::on(&pg).env("ROWCAST_HEARTBEAT", "20m").start().await;
    let before = base(&relay, &pg).await;
    // The allocator keeps much of what slow devices took, and uses it again: a second crowd finds it there.
    let kept = KEPT_KIB + (sessions / 2) as u64 * SLOW_KIB;
    crowd(&pg, &relay, before, sessions).await;
    let first = before.come_back_to(kept, &relay, &pg, "sessions").await;
    pg.sql("TRUNCATE news, orders").await;
    crowd(&pg, &relay, before, sessions / 2).await;
    let second = before.come_back_to(kept, &relay, &pg, "half as many sessions again").await;
    assert!(second.rss_kib < first.rss_kib + AGAIN_KIB, "{second} after {first}");
}

/// So many sessions, from their connecting to their end.
async fn crowd(pg: &TestPostgres, relay: &Relay, before: Figures, sessions: usize) {
    let connected = stream::iter(0..sessions).map(|number| connect(relay, number)).buffered(AT_ONCE);
    let devices: Vec<Device> =
        tokio::time::timeout(LONG, connected.collect()).await.expect("all of them connect");
    let idle = Figures::of(relay, pg).await;
    println!("{sessions} sessions connected: {idle}");
    println!("each idle session takes {:.1} KiB", of_each(idle.rss_kib, before, sessions));
    let mut reading = tokio::task::JoinSet::new();
    let mut stuck = Vec::new();
    for (number, device) in devices.into_iter().enumerate() {
        if reads(number) {
            reading.spawn(read_all(device, number / OF_A_USER));
        } else {
            stuck.push(device);
        }
    }
    tokio::time::timeout(LONG, write(pg, sessions)).await.expect("the database goes on");
    let read = async {
        while let Some(read) = reading.join_next().await {
            read.unwrap();
        }
    };
    tokio::time::timeout(LONG, read).await.expect("whoever reads gets everything");
    let full = Figures::of(relay, pg).await;
    println!("{} of them never read {} KB: {full}", stuck.len(), ROWS * ROW_BYTES / 1000);
    let (now, peak) =
        (of_each(full.rss_kib, before, stuck.len()), of_each(full.peak_kib, before, stuck.len()));
    println!("each session that never reads takes {now:.1} KiB, at the peak {peak:.1}");
    let most = before.rss_kib + KEPT_KIB + stuck.len() as u64 * SLOW_KIB + sessions as u64 * IDLE_KIB;
    assert!(full.peak_kib < most, "{full}");
    drop(stuck);
    eventually(LONG, "all sessions are over", async || {
        (relay.metric("rowcast_sessions").await == Some(0.0)).then_some(())
    })
    .await;
}

/// One row after another for all, and one for each user between them.
async fn write(pg: &TestPostgres, sessions: usize) {
    let writer = pg.client().await;
    let users = sessions / OF_A_USER - 1;
    let own = format!("INSERT INTO orders SELECT n, n::text, 'own' FROM generate_series(0, {users}) n");
    for id in 1..=ROWS {
        let row = format!("INSERT INTO news VALUES ({id}, repeat('x', {ROW_BYTES}))");
        writer.batch_execute(&row).await.unwrap();
        if id == ROWS / 2 {
            writer.batch_execute(&own).await.unwrap();
        }
    }
}

fn of_each(kib: u64, before: Figures, count: usize) -> f64 {
    kib.saturating_sub(before.rss_kib) as f64 / count as f64
}
