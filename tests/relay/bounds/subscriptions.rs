//! Many subscriptions.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use rowcast::embedded::Options;
use serde_json::json;

use super::{Figures, LONG, allow_files, base, loopback, size};
use crate::support::device::{Device, Incoming};
use crate::support::dice::Dice;
use crate::support::orders::with_orders;
use crate::support::relay::Relay;
use crate::support::token;
use crate::support::wait::eventually;

/// Teams of one device; each team is in two of them.
const TEAMS: usize = 100;
const AT_ONCE: usize = 32;
const ROWS: usize = 500;

/// The teams of a device: those of its own, and those of the device before.
fn teams(number: usize, devices: usize) -> Vec<usize> {
    let half = TEAMS / 2;
    (0..TEAMS).map(|place| (number * half + place) % (devices * half)).collect()
}

async fn connect(relay: &Relay, number: usize, devices: usize) -> Device {
    let teams: Vec<String> = teams(number, devices).iter().map(usize::to_string).collect();
    let token = token::mint(&json!({"sub": number.to_string(), "exp": 4_102_444_800_i64, "teams": teams}));
    let connect = Device::of(relay, "", &format!("d{number}")).token(&token).from(loopback(number)).lean();
    let mut device = connect.connect().await;
    let topics: Vec<String> = teams.iter().map(|team| format!("team:{team}:tasks")).collect();
    let mut topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    topics.push("global:*");
    device.subscribe(&topics, None).await;
    device
}

/// The rows of its teams and no others, up to the mark that all are told.
async fn read(mut device: Device, expected: BTreeSet<usize>) {
    let mut got = BTreeSet::new();
    loop {
        let frame = match device.next_incoming().await {
            Incoming::Frame(frame) => frame,
            Incoming::Closed(why) => panic!("the relay closed: {why:?}"),
        };
        match frame.kind.as_str() {
            "broadcast" => break,
            "heartbeat" => {}
            _ => {
                let key = frame.change().expect("a change").key_text().to_owned();
                let id = key.trim_start_matches("{\"id\":").trim_end_matches('}').parse().unwrap();
                assert!(got.insert(id), "{id} twice");
            }
        }
    }
    assert_eq!(got, expected);
    device.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_subscriptions() {
    let devices = size(20, 1_000);
    allow_files(devices);
    let mut dice = Dice::seeded("bounds::subscriptions::a_hundred_thousand_subscriptions");
    let pg = with_orders(Options::scratch()).await;
    pg.sql("CREATE TABLE tasks (id int PRIMARY KEY, team_id text); SELECT rowcast.track('tasks', topics => ARRAY['team:{team_id}:tasks'])")
        .await;
    let relay = Relay::on(&pg)
        .env("ROWCAST_GRANTS", "user:{sub}:*,global:*,team:{teams}:*")
        .env("ROWCAST_MAX_SUBSCRIPTIONS_PER_SESSION", &(TEAMS + 1).to_string())
        .start()
        .await;
    let before = base(&relay, &pg).await;
    let connected = stream::iter(0..devices).map(|n| connect(&relay, n, devices)).buffered(AT_ONCE);
    let connected: Vec<Device> =
        tokio::time::timeout(LONG, connected.collect()).await.expect("all of them connect");
    let all = devices * (TEAMS + 1);
    let now = Figures::of(&relay, &pg).await;
    let each = (now.rss_kib.saturating_sub(before.rss_kib) * 1024) as usize / all;
    println!("{all} subscriptions: {now}\neach takes {each} bytes, its part of a session included");

    let rows: Vec<usize> = (0..ROWS).map(|_| dice.roll((devices * TEAMS / 2) as u64) as usize).collect();
    let mut reading = tokio::task::JoinSet::new();
    for (number, device) in connected.into_iter().enumerate() {
        let own: BTreeSet<usize> = teams(number, devices).into_iter().collect();
        let of_own = rows.iter().enumerate().filter(|(_, team)| own.contains(team)).map(|(id, _)| id);
        reading.spawn(read(device, of_own.collect()));
    }
    let values: Vec<String> = rows.iter().enumerate().map(|(id, team)| format!("({id}, '{team}')")).collect();
    for values in values.chunks(20) {
        pg.sql(&format!("INSERT INTO tasks VALUES {}", values.join(", "))).await;
    }
    pg.sql("SELECT rowcast.broadcast('global:mark', 'mark', 'null')").await;
    let read = async {
        while let Some(read) = reading.join_next().await {
            read.unwrap()
        }
    };
    tokio::time::timeout(LONG, read).await.expect("everyone is told the own rows");
    eventually(LONG, "all sessions are over", async || {
        (relay.metric("rowcast_sessions").await == Some(0.0)).then_some(())
    })
    .await;
    before.come_back(&relay, &pg, "subscriptions").await;
}
