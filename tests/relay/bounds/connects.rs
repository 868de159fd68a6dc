//! A day's worth of devices that come and go, in a moment: sockets, streams, polls, tickets, syncs; tokens
//! that are over, or end on the way; users with few devices, and one with more than are remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rowcast::embedded::Options;
use serde_json::{Value, json};

use super::{AGAIN_KIB, LONG, base, loopback, size};
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::events::{Events, ask};
use crate::support::http::Http;
use crate::support::orders::with_orders;
use crate::support::relay::Relay;
use crate::support::token;
use crate::support::wait::eventually;

/// Coming and going at once.
const WORKERS: usize = 32;

/// Devices of one user that are remembered.
const REMEMBERED: usize = 100;

/// Who comes, and how.
struct Visitor {
    relay: Arc<Relay>,
    dice: Dice,
    users: u64,
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

impl Visitor {
    async fn visit(&mut self) {
        let user = format!("u{}", self.dice.roll(self.users));
        let device = format!("d{}", self.dice.roll(1 << 40));
        let topic = format!("user:{user}:*");
        let http = self.relay.http_as(&user);
        let connect =
            Device::of(&self.relay, &user, &device).from(loopback(self.dice.next() as usize)).lean();
        match self.dice.roll(11) {
            0 | 1 => {
                let mut device = connect.connect().await;
                device.subscribe(&[&topic, "global:*"], None).await;
                device.send(&json!({"type": "ping"})).await;
                device.expect("pong").await;
                device.close().await;
            }
            2 => {
                let mut device = connect.connect().await;
                device.subscribe(&[&topic], None).await;
                // Gone without a word.
                drop(device);
            }
            3 => {
                let mut device = connect.without_token().try_connect().await.unwrap();
                device.send(&json!({"type": "auth", "token": token::user(&user)})).await;
                device.expect("connection_established").await;
                device.close().await;
            }
            4 => {
                let over = token::user_until(&user, now() - 3_600);
                let mut device = connect.token(&over).try_connect().await.unwrap();
                assert_eq!(device.expect_close().await.0, 4401);
            }
            5 => {
                let mut device =
                    connect.token(&token::user_until(&user, now() + 2)).try_connect().await.unwrap();
                let code = device.expect_close().await.0;
                assert_eq!(code, 4401);
            }
            6 => drop(Events::of(&http, &topic, None).await),
            7 => {
                let ticket = http.post("/api/realtime/ticket", &Value::Null).await.expect_status(200).json();
                let ticket = ticket["ticket"].as_str().unwrap().to_owned();
                let mut events =
                    Events::open(ask(&self.relay.http(), &topic, &format!("&ticket={ticket}"))).await;
                events.expect("connection_established").await;
            }
            8 => {
                let body = json!({"device_id": device, "topics": [topic], "wait": 0});
                http.post("/api/sync/poll", &body).await.expect_status(200);
            }
            9 => {
                let body = json!({"device_id": device, "topics": [topic]});
                http.post("/api/realtime/sync", &body).await.expect_status(200);
            }
            _ => crowd(&self.relay.http_as("crowded"), &device).await,
        }
    }
}

/// One more device of a user who has too many.
async fn crowd(http: &Http, device: &str) {
    let body = json!({"device_id": device, "topics": ["user:crowded:*"], "wait": 0});
    let answer = http.post("/api/sync/poll", &body).await;
    // A user has so many sessions at once.
    assert!(matches!(answer.status, 200 | 429), "{}: {}", answer.status, answer.text());
}

/// So many visits, by all workers together.
async fn visits(relay: &Arc<Relay>, dice: &mut Dice, count: usize) {
    let left = Arc::new(AtomicUsize::new(count));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (relay, dice, left) = (Arc::clone(relay), Dice(dice.next()), Arc::clone(&left));
        let mut visitor = Visitor { relay, dice, users: (count / 10).max(20) as u64 };
        workers.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                visitor.visit().await;
            }
        });
    }
    let all = async {
        while let Some(done) = workers.join_next().await {
            done.unwrap()
        }
    };
    // A twelfth of them waits for the end of its token.
    tokio::time::timeout(LONG * 2, all).await.expect("everyone has been here");
    eventually(LONG, "all sessions are over", async || {
        (relay.metric("rowcast_sessions").await == Some(0.0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_devices_that_come_and_go() {
    let count = size(200, 50_000);
    let mut dice = Dice::seeded("bounds::connects::a_day_of_devices_that_come_and_go");
    let pg = with_orders(Options::scratch()).await;
    pg.sql("INSERT INTO orders SELECT n, 'u' || n % 100, 'here' FROM generate_series(1, 1000) n").await;
    let relay = Arc::new(Relay::on(&pg).env("ROWCAST_JWT_LEEWAY", "0s").start().await);
    let before = base(&relay, &pg).await;
    visits(&relay, &mut dice, count / 2).await;
    let half = before.come_back(&relay, &pg, "half a day").await;
    visits(&relay, &mut dice, count - count / 2).await;
    let after = before.come_back(&relay, &pg, "a day").await;
    // What stays of the first half (the allocator's pages, the engine's caches) is not twice there.
    let grown = after.rss_kib.saturating_sub(half.rss_kib);
    println!("the second half of the day: {grown} KiB more");
    assert!(grown < AGAIN_KIB, "{grown} KiB more after the second half");

    for number in 0..size(REMEMBERED / 2, REMEMBERED * 2) {
        crowd(&relay.http_as("crowded"), &format!("more-{number}")).await;
    }
    // Those that were noted and not written yet are listed as well.
    let devices = eventually(LONG, "more devices are forgotten than came", async || {
        let devices = relay.http_as("crowded").get("/api/realtime/devices").await.expect_status(200).json();
        let devices = devices["devices"].as_array().unwrap().len();
        (devices <= REMEMBERED + WORKERS).then_some(devices)
    })
    .await;
    println!("one user with any number of devices: {devices} are remembered");
}
