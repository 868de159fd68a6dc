//! Server-Sent Events: the same guarantees as a socket, over plain HTTP.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rowcast::embedded::Options;
use serde_json::{Value, json};

use crate::support::copy::Copy;
use crate::support::device::{Device, Incoming};
use crate::support::dice::Dice;
use crate::support::events::{Events, ask};
use crate::support::frame::Frame;
use crate::support::http::Http;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{listening, scene, scene_with};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually, within};
use crate::support::writers::{A, B, TABLES, write_all};

/// A reader that keeps its copy, and the id of the last event that it has taken.
struct Reader {
    user: String,
    http: Http,
    dice: Dice,
    copy: Copy,
    id: String,
}

impl Reader {
    /// Begins with an empty copy of empty tables.
    async fn start(relay: &Relay, user: &str, dice: Dice) -> Self {
        let http = relay.http_as(user);
        let id = Events::of(&http, &format!("user:{user}:*"), None).await.id.unwrap();
        Reader { user: user.to_owned(), http, dice, copy: Copy::default(), id }
    }

    /// Comes back where it was, by the header or by a cursor in the body.
    async fn resume(&mut self) -> Events {
        let topics = format!("user:{}:*", self.user);
        if self.dice.roll(2) == 0 {
            return Events::of(&self.http, &topics, Some(&self.id)).await;
        }
        let body = json!({"device_id": "phone", "topics": [topics], "cursor": self.id});
        let mut events = Events::open(self.http.request("POST", "/api/realtime/events").json(&body)).await;
        events.expect("connection_established").await;
        events.expect("subscribed").await;
        events
    }

    fn take(&mut self, frame: &Frame, events: &Events) {
        let id = events.id.clone().expect("every event has an id");
        assert!(id >= self.id, "{id} after {}: {}", self.id, frame.text);
        if let Some(change) = frame.change() {
            assert!(change.topic.starts_with(&format!("user:{}:", self.user)), "{}", frame.text);
            assert!(id > self.id, "a change that was there already: {}", frame.text);
            self.copy.apply(&change);
        }
        assert!(frame.kind != "error" && frame.kind != "sync_required", "unexpected: {}", frame.text);
        self.id = id;
    }

    /// Reads for a while, and drops the connection anywhere.
    async fn visit(&mut self) {
        let mut events = self.resume().await;
        for _ in 0..self.dice.roll(60) {
            // Something comes within two heartbeats.
            let frame = events.recv().await;
            self.take(&frame, &events);
        }
    }

    async fn arrive(&mut self, pg: &TestPostgres) {
        let mut events = self.resume().await;
        let topic = format!("user:{}:mark", self.user);
        let id = pg.value(&format!("SELECT rowcast.broadcast('{topic}', 'mark', 'null')")).await;
        loop {
            let frame = events.recv().await;
            self.take(&frame, &events);
            if frame.kind == "broadcast" && frame.json()["id"] == id.as_str() {
                break;
            }
        }
        for table in ["a", "b"] {
            let rows = format!("SELECT * FROM {table} WHERE user_id = {}", self.user);
            self.copy.assert_equals(pg, table, &rows).await;
        }
    }
}

/// Rows move between three users, whose readers come and go.
#[tokio::test]
async fn copies_become_what_the_database_holds() {
    let mut dice = Dice::seeded("events::copies_become_what_the_database_holds");
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_HEARTBEAT", "1s")).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut reading = Vec::new();
    for user in ["1", "2", "3"] {
        let mut reader = Reader::start(&relay, user, Dice(dice.next())).await;
        let done = Arc::clone(&done);
        reading.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                reader.visit().await;
            }
            reader
        }));
    }
    write_all(&pg, &[A, B], &mut dice, 4, 120).await;
    pg.sql("INSERT INTO a SELECT n, 1 + n % 3, n, '' FROM generate_series(1001, 1030) n").await;
    done.store(true, Ordering::Relaxed);
    for reader in reading {
        reader.await.unwrap().arrive(&pg).await;
    }
}

#[tokio::test]
async fn events_are_the_frames_of_a_socket() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "watch").await;
    let http = relay.http_as("1");
    let mut live = Events::of(&http, "user:1:*,global:*", None).await;
    assert!(live.retry.is_some_and(|retry| (1_000..=5_000).contains(&retry)));
    pg.sql("BEGIN; INSERT INTO a SELECT n, 1, n, '' FROM generate_series(1, 5) n; UPDATE a SET user_id = 2 WHERE id = 5; COMMIT").await;
    let mut told = Vec::new();
    for _ in 0..6 {
        let frame = device.recv().await;
        assert_eq!(live.expect("database_change").await.text, frame.text);
        assert_eq!(live.id, frame.cursor());
        told.push(frame);
    }
    // `Last-Event-ID` counts more than the cursor in the URL; and goes on within a transaction.
    let middle = told[2].cursor().unwrap();
    let request = ask(&http, "user:1:*,global:*", &format!("&cursor={cursor}"));
    let mut late = Events::open(request.header("last-event-id", &middle)).await;
    late.expect("connection_established").await;
    assert_eq!(late.expect("subscribed").await.cursor().as_ref(), Some(&middle));
    late.expect("replay_begin").await;
    assert_eq!(late.id.as_ref(), Some(&middle));
    for frame in &told[3..] {
        assert_eq!(late.expect("database_change").await.text, frame.text);
    }
    let caught_up = late.expect("caught_up").await.cursor();
    assert_eq!(caught_up, late.id);
    // Without topics, all that is granted.
    let body = json!({"device_id": "d", "cursor": cursor, "numbers": "string"});
    let mut all = Events::open(http.request("POST", "/api/realtime/events").json(&body)).await;
    all.expect("connection_established").await;
    assert_eq!(all.expect("subscribed").await.json()["topics"], json!(["global:*", "user:1:*"]));
}

#[tokio::test]
async fn what_is_wrong_is_said_before_the_stream() {
    let (_pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_MAX_SESSIONS_PER_USER", "1")).await;
    let http = relay.http_as("1");
    let (_device, cursor) = listening(&relay, "2", "phone").await;
    let beyond = format!("{}.ffffffffffffff00.00000000", &cursor[..16]);
    for (query, status, code) in [
        ("device_id=d&topics=user:2:*", 403, "not_granted"),
        ("device_id=d&topics=user:1:a,user:2:a", 403, "not_granted"),
        ("device_id=d&topics=user", 400, "invalid_topic"),
        ("device_id=d%20d&topics=user:1:*", 400, "invalid_device_id"),
        ("topics=user:1:*", 400, "invalid_device_id"),
        ("device_id=d&topics=user:1:*&cursor=x", 400, "invalid_cursor"),
        (&format!("device_id=d&topics=user:1:*&cursor={beyond}"), 400, "invalid_cursor"),
        ("device_id=d&topics=user:1:*&numbers=float", 400, "invalid_request"),
    ] {
        let refused = http.get(&format!("/api/realtime/events?{query}")).await.expect_status(status);
        assert_eq!(refused.headers.get("content-type"), Some("application/problem+json"));
        assert_eq!(refused.json()["code"], code, "{query}");
    }
    let unknown = relay.http().get("/api/realtime/events?device_id=d&topics=user:1:*").await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (401, &json!("token_missing")));
    let _one = Events::of(&http, "user:1:*", None).await;
    let second = ask(&http, "user:1:*", "").send().await.expect_status(429);
    assert_eq!(second.json()["code"], "too_many_sessions");
    assert!(second.headers.get("retry-after").is_some());
}

/// The ids of a stream never pass what one of its topics has lost: who comes back by them is told again.
#[tokio::test]
async fn a_loss_is_told_as_an_event_and_again_to_who_resumes() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")).await;
    let http = relay.http_as("1");
    let mut events = Events::of(&http, "user:1:a,user:1:b", None).await;
    pg.sql("INSERT INTO a VALUES (1, 1, 1, '')").await;
    events.change().await;
    pg.sql("ALTER TABLE a ADD COLUMN more int DEFAULT 7").await;
    let lost = events.expect("sync_required").await.json();
    assert_eq!((&lost["topics"], &lost["reason"]), (&json!(["user:1:a"]), &json!("schema_changed")));
    let to = lost["to"].as_str().unwrap();
    // The others run on.
    for n in 1..=3 {
        pg.sql(&format!("INSERT INTO b VALUES ({n}, 1, 1, '')")).await;
    }
    let mut last = String::new();
    while last.as_str() < to {
        pg.sql("UPDATE b SET n = n + 1 WHERE id = 1").await;
        last = events.expect("database_change").await.cursor().unwrap();
    }
    let id = events.id.clone().unwrap();
    assert!(id.as_str() < to, "{id} has passed {to}");
    let mut again = Events::open(ask(&http, "user:1:a,user:1:b", "").header("last-event-id", &id)).await;
    again.expect("connection_established").await;
    assert_eq!(again.expect("sync_required").await.json()["topics"], json!(["user:1:a"]));
    assert_eq!(again.expect("subscribed").await.json()["topics"], json!(["user:1:b"]));
    // And what nobody knows any more is told for all topics, in the stream.
    let foreign = format!("{}{}", "0123456789abcdef", &id[16..]);
    let mut other = Events::open(ask(&http, "user:1:a,user:1:b", "").header("last-event-id", &foreign)).await;
    other.expect("connection_established").await;
    let lost = other.expect("sync_required").await.json();
    assert_eq!((&lost["topics"], &lost["reason"]), (&json!(["user:1:a", "user:1:b"]), &json!("epoch")));
    assert_eq!(other.id, Some(foreign));
}

#[tokio::test]
async fn a_quiet_stream_is_told_how_far_it_is() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_HEARTBEAT", "200ms")).await;
    let mut events = Events::of(&relay.http_as("1"), "user:1:*", None).await;
    let begun = events.id.clone().unwrap();
    let mut other = Events::of(&relay.http_as("2"), "user:2:*", None).await;
    pg.sql("INSERT INTO a VALUES (1, 2, 1, '')").await;
    let foreign = other.change().await.cursor.unwrap();
    eventually(PATIENCE, "progress passes what others were told", async || {
        let progress = events.expect("progress").await;
        assert_eq!(progress.cursor(), events.id);
        (events.id.as_ref() > Some(&foreign)).then_some(())
    })
    .await;
    assert!(events.id.as_ref() > Some(&begun));
}

#[tokio::test]
async fn a_token_that_expires_ends_its_stream_at_that_moment() {
    let (_pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_JWT_LEEWAY", "0s")).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = token::user_until("1", i64::try_from(now).unwrap() + 3);
    let mut events = Events::of(&relay.http().with_token(&token), "user:1:*", None).await;
    assert_eq!(events.expect("error").await.json()["code"], "token_expired");
    let close = events.expect("close").await.json();
    assert_eq!((&close["code"], &close["reason"]), (&json!(4401), &json!("token_expired")));
    assert!(events.next().await.is_none());
    assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() >= now + 3);
}

#[tokio::test]
async fn a_relay_that_stops_says_when_to_come_back() {
    let (_pg, mut relay) = scene(TABLES).await;
    let mut events = Events::of(&relay.http_as("1"), "user:1:*", None).await;
    let id = events.id.clone();
    relay.terminate().await;
    let close = events.expect("close").await.json();
    assert_eq!((&close["code"], close["retry_after_ms"].as_u64()), (&json!(1012), events.retry));
    assert!(events.retry.is_some_and(|retry| retry >= 500));
    assert!(events.next().await.is_none());
    assert_eq!(events.id, id);
}

/// Every event can be read when it is there, and not when a buffer is full.
#[tokio::test]
async fn a_compressed_stream_is_flushed_at_each_event() {
    let (pg, relay) = scene(TABLES).await;
    let request = ask(&relay.http_as("1"), "user:1:*", "").header("accept-encoding", "gzip, zstd");
    let mut open = request.open().await;
    assert_eq!((open.status, open.headers.get("content-encoding")), (200, Some("gzip")));
    let mut compressed = Vec::new();
    for n in 0..5 {
        let wanted = match n {
            0 => "event: subscribed".to_owned(),
            n => {
                pg.sql(&format!("INSERT INTO a VALUES ({n}, 1, 1, 'row {n}')")).await;
                format!("\"note\":\"row {n}\"")
            }
        };
        while !gunzip(&compressed).contains(&wanted) {
            let part = within("a part of a compressed stream", open.part()).await.unwrap();
            compressed.extend(part.expect("the stream goes on"));
        }
    }
}

/// What can be read of a file that is not whole yet.
fn gunzip(compressed: &[u8]) -> String {
    let mut gzip = Command::new("gzip");
    let gzip = gzip.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut gzip = gzip.spawn().unwrap();
    gzip.stdin.take().unwrap().write_all(compressed).unwrap();
    String::from_utf8(gzip.wait_with_output().unwrap().stdout).unwrap()
}

/// What the relay may grow by in a debug build, whatever is written.
const FLAT_KIB: u64 = 96 * 1024;

#[tokio::test]
async fn a_reader_that_stops_costs_nobody_and_gets_everything_later() {
    const ROWS: usize = 3000;
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).start().await;
    let http = relay.http_as("1");
    let mut slow = Events::open(ask(&http, "user:1:*", "").small_buffer()).await;
    slow.expect("connection_established").await;
    slow.expect("subscribed").await;
    let mut fast = Device::of(&relay, "1", "fast").connect().await;
    fast.subscribe(&["user:1:*"], None).await;
    let before = relay.memory_kib("VmRSS");
    for batch in 0..ROWS / 50 {
        let first = batch * 50 + 1;
        pg.sql(&format!(
            "INSERT INTO orders SELECT n, '1', repeat('x', 4000) FROM generate_series({first}, {first} + 49) n"
        ))
        .await;
        for _ in 0..50 {
            fast.change().await;
        }
    }
    let grown = relay.memory_kib("VmRSS").saturating_sub(before);
    eprintln!("one slow stream, {} MB written: the relay grew by {grown} KiB", ROWS * 4000 / 1_000_000);
    assert!(grown < FLAT_KIB, "the relay grew by {grown} KiB");
    let mut copy = Copy::default();
    for number in 1..=ROWS {
        let change = slow.change().await;
        assert_eq!(change.key_text(), format!(r#"{{"id":{number}}}"#));
        copy.apply(&change);
    }
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
    // What it had not taken came from the log, and not from memory.
    assert!(relay.metric("rowcast_sessions_behind_total").await.is_some_and(|count| count >= 1.0));
    // And it is live again.
    pg.sql("INSERT INTO orders VALUES (0, '1', 'live')").await;
    assert_eq!(slow.change().await.key_text(), r#"{"id":0}"#);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_given_up_and_can_come_back() {
    let pg = with_orders(Options::scratch()).await;
    let relay = Relay::on(&pg).env("ROWCAST_HEARTBEAT", "500ms").start().await;
    let http = relay.http_as("1");
    let mut slow = Events::open(ask(&http, "user:1:*", "").small_buffer()).await;
    slow.expect("connection_established").await;
    slow.expect("subscribed").await;
    pg.sql("INSERT INTO orders SELECT n, '1', repeat('x', 4000) FROM generate_series(1, 3000) n").await;
    eventually(PATIENCE, "the session of a reader that takes nothing ends", async || {
        let given_up = relay.metric("rowcast_sessions_closed_total{code=\"4408\"}").await;
        (given_up == Some(1.0) && relay.metric("rowcast_sessions").await == Some(0.0)).then_some(())
    })
    .await;
    // What was on its way is still read, or cut; the id says from where to go on.
    let mut copy = Copy::default();
    let mut id = slow.id.clone().unwrap();
    for _ in 0..100 {
        let change = slow.change().await;
        copy.apply(&change);
        id = slow.id.clone().unwrap();
    }
    drop(slow);
    let mut again = Events::of(&http, "user:1:*", Some(&id)).await;
    again.expect("replay_begin").await;
    for _ in 0..2900 {
        copy.apply(&again.change().await);
    }
    copy.assert_equals(&pg, "orders", &orders_of("1")).await;
}

/// A stream and a socket of one user count alike, and a stream that is left is let go.
#[tokio::test]
async fn a_stream_that_is_left_gives_its_place_back() {
    let (_pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_MAX_SESSIONS_PER_USER", "1")).await;
    let events = Events::of(&relay.http_as("1"), "user:1:*", None).await;
    let mut socket = Device::of(&relay, "1", "d").try_connect().await.unwrap();
    match socket.incoming().await {
        Incoming::Closed(Some((4429, _))) => {}
        other => panic!("{other:?}"),
    }
    drop(events);
    eventually(PATIENCE, "the place is free", async || {
        (relay.metric("rowcast_sessions").await == Some(0.0)).then_some(())
    })
    .await;
    let health: Value = relay.http().get("/health").await.json();
    assert_eq!(health["active_connections"], 0);
    Device::of(&relay, "1", "d").connect().await;
}
