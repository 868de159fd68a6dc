//! Long-poll: exact like a socket, answered at once when there is something and not before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::copy::Copy;
use crate::support::dice::Dice;
use crate::support::frame::Frame;
use crate::support::http::Http;
use crate::support::poll::{Answer, Message};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{listening, scene, scene_with};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually, within};
use crate::support::writers::{A, B, TABLES, write_all};

async fn poll(http: &Http, body: &Value) -> Answer {
    let answer: Answer = http.post("/api/sync/poll", body).await.expect_status(200).parse();
    assert!(answer.is_whole());
    let kind = |message: &Message| Frame::parse(message.payload.get().to_owned()).kind;
    assert!(answer.messages.iter().all(|message| message.r#type == kind(message)));
    answer
}

fn ask(user: &str, since: impl Into<Value>, wait: u64) -> Value {
    json!({"device_id": "d", "topics": [format!("user:{user}:*")], "since": since.into(), "wait": wait})
}

/// The note of the rows that are written last.
const LAST: &str = "the last";

/// A device that polls, by cursor or by time, and keeps its copy.
struct Poller {
    user: String,
    http: Http,
    dice: Dice,
    copy: Copy,
    cursor: String,
}

impl Poller {
    async fn start(relay: &Relay, user: &str, dice: Dice) -> Self {
        let http = relay.http_as(user);
        let cursor = poll(&http, &ask(user, Value::Null, 0)).await.cursor.unwrap();
        Poller { user: user.to_owned(), http, dice, copy: Copy::default(), cursor }
    }

    async fn ask(&mut self) {
        let mut body = ask(&self.user, self.cursor.clone(), self.dice.roll(2));
        body["limit"] = (1 + self.dice.roll(40)).into();
        let answer = poll(&self.http, &body).await;
        if self.dice.roll(4) == 0 {
            // The answer never arrived: asked again, it is there again.
            let again = poll(&self.http, &body).await;
            let texts = |answer: &Answer| -> Vec<String> {
                answer.messages.iter().map(|message| message.payload.get().to_owned()).collect()
            };
            let both = answer.count.min(again.count);
            assert_eq!(texts(&answer)[..both], texts(&again)[..both]);
        }
        for message in &answer.messages {
            assert_eq!(message.user, self.user);
            let change = message.frame().change();
            let change = change.unwrap_or_else(|| panic!("no change: {}", message.payload));
            assert!(change.topic.starts_with(&format!("user:{}:", self.user)), "{change:?}");
            assert_eq!(change.cursor.as_ref(), Some(&message.id));
            self.copy.apply(&change);
        }
        let cursor = answer.cursor.unwrap();
        assert!(cursor >= self.cursor, "{cursor} after {}", self.cursor);
        assert!(answer.messages.iter().all(|message| message.id <= cursor && message.id > self.cursor));
        self.cursor = cursor;
    }

    async fn arrive(&mut self, pg: &TestPostgres) {
        let begun = Instant::now();
        while !self.copy.records("a").iter().any(|record| record.contains(LAST)) {
            assert!(begun.elapsed() < 3 * PATIENCE, "user {} is at {}", self.user, self.cursor);
            self.ask().await;
        }
        for table in ["a", "b"] {
            let rows = format!("SELECT * FROM {table} WHERE user_id = {}", self.user);
            self.copy.assert_equals(pg, table, &rows).await;
        }
    }
}

/// Rows move between three users, who poll pages of any size.
#[tokio::test]
async fn copies_become_what_the_database_holds() {
    let mut dice = Dice::seeded("poll::copies_become_what_the_database_holds");
    let (pg, relay) = scene(TABLES).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut polling = Vec::new();
    for user in ["1", "2", "3"] {
        let mut poller = Poller::start(&relay, user, Dice(dice.next())).await;
        let done = Arc::clone(&done);
        polling.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                poller.ask().await;
            }
            poller
        }));
    }
    write_all(&pg, &[A, B], &mut dice, 4, 120).await;
    pg.sql("INSERT INTO a SELECT n, 1 + n % 3, n, '' FROM generate_series(1001, 1030) n").await;
    pg.sql(&format!("INSERT INTO a SELECT 2000 + n, n, n, '{LAST}' FROM generate_series(1, 3) n")).await;
    done.store(true, Ordering::Relaxed);
    for poller in polling {
        poller.await.unwrap().arrive(&pg).await;
    }
}

/// By time alone: may repeat, never misses.
#[tokio::test]
async fn polls_by_timestamp_never_miss() {
    let mut dice = Dice::seeded("polls_by_timestamp_never_miss");
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let (mut device, _) = listening(&relay, "1", "watch").await;
    pg.sql("INSERT INTO a VALUES (1000, 1, 0, '')").await;
    let cursor = device.change().await.cursor.unwrap();
    // A later millisecond: what the answer calls its time, cut to milliseconds, lies in the log.
    pg.sql("SELECT pg_sleep(0.002); INSERT INTO a VALUES (1001, 1, 0, '')").await;
    device.change().await;
    let mut first = poll(&http, &ask("1", cursor, 1)).await;
    assert_eq!(first.count, 1);
    let mut rows = std::collections::BTreeSet::new();
    let mut since = first.timestamp.take().unwrap();
    // An answer may end before the present, and more may be of one moment than it holds: so the next one is
    // mostly asked for by cursor, as PROTOCOL.md has it, and begins by time again now and then.
    let mut cut: Option<String> = None;
    let mut times = dice.clone();
    let writing = async {
        write_all(&pg, &[A, B], &mut dice, 3, 60).await;
        pg.sql("INSERT INTO a SELECT n, 1, n, '' FROM generate_series(2001, 2030) n").await;
    };
    tokio::pin!(writing);
    let mut written = false;
    let begun = Instant::now();
    while !(written && rows.len() >= 30) {
        assert!(begun.elapsed() < 3 * PATIENCE, "{} of 30 rows, at {since}", rows.len());
        let by_time = cut.take().map_or_else(|| ask("1", since, 1), |cursor| ask("1", cursor, 1));
        tokio::select! {
            () = &mut writing, if !written => written = true,
            answer = poll(&http, &by_time) => {
                assert!(answer.timestamp >= Some(since), "{:?} after {since}", answer.timestamp);
                since = answer.timestamp.unwrap();
                cut = answer.cursor.clone().filter(|_| answer.count > 0 && times.roll(8) != 0);
                for message in &answer.messages {
                    assert_ne!(message.r#type, "sync_required", "{}", message.payload);
                }
                for change in answer.messages.iter().filter_map(|message| message.frame().change()) {
                    let late = change.operation == "INSERT" && change.record_text().contains("\"id\":20");
                    if late { rows.insert(change.key_text().to_owned()); }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_poll_waits_and_is_woken_by_a_commit() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let begun = Instant::now();
    let polling = tokio::spawn({
        let http = http.clone();
        async move { (poll(&http, &ask("1", Value::Null, 30)).await, Instant::now()) }
    });
    waiting(&relay, 1.0).await;
    assert!(!polling.is_finished());
    // What is not for it does not end it.
    pg.sql("INSERT INTO a VALUES (1, 2, 1, '')").await;
    let (mut other, _) = listening(&relay, "2", "watch").await;
    pg.sql("INSERT INTO a VALUES (2, 2, 1, '')").await;
    other.change().await;
    assert!(!polling.is_finished());
    let committed = Instant::now();
    pg.sql("BEGIN; INSERT INTO a VALUES (3, 1, 1, 'x'); INSERT INTO b VALUES (3, 1, 1, 'y'); COMMIT").await;
    let (answer, answered) = within("a poll is woken", polling).await.unwrap();
    assert!(answered > committed && answered - begun < Duration::from_secs(25), "it was not woken");
    assert_eq!(answer.messages.iter().map(|m| m.r#type.as_str()).collect::<Vec<_>>(), ["database_change"; 2]);
    let last = answer.messages[1].frame();
    assert_eq!(last.json()["last"], true);
    let committed: jiff::Timestamp = last.json()["commit_timestamp"].as_str().unwrap().parse().unwrap();
    assert_eq!(answer.messages[1].timestamp, committed.as_millisecond());
    // A broadcast's id is its own.
    let id = pg.value("SELECT rowcast.broadcast('user:1:mark', 'mark', '{\"a\":1}')").await;
    let answer = poll(&http, &ask("1", answer.cursor.unwrap(), 30)).await;
    assert_eq!((answer.messages[0].r#type.as_str(), &answer.messages[0].id), ("broadcast", &id));
}

/// Waits until so many sessions (polls among them) are there.
async fn waiting(relay: &Relay, count: f64) {
    eventually(PATIENCE, &format!("{count} sessions"), async || {
        (relay.metric("rowcast_sessions").await == Some(count)).then_some(())
    })
    .await;
}

/// More polls wait than requests may read at once, and others are answered all the same.
#[tokio::test]
async fn who_waits_holds_no_place() {
    const WAITING: usize = 40;
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_MAX_SESSIONS_PER_USER", "100")).await;
    let mut polls = tokio::task::JoinSet::new();
    for _ in 0..WAITING {
        let http = relay.http_as("1");
        polls.spawn(async move { poll(&http, &ask("1", Value::Null, 30)).await });
    }
    waiting(&relay, WAITING as f64).await;
    let empty = poll(&relay.http_as("2"), &ask("2", Value::Null, 0)).await;
    assert_eq!(empty.count, 0);
    pg.sql("INSERT INTO a VALUES (1, 1, 1, '')").await;
    while let Some(answer) = within("all are woken", polls.join_next()).await {
        assert_eq!(answer.unwrap().count, 1);
    }
    waiting(&relay, 0.0).await;
}

#[tokio::test]
async fn an_empty_poll_does_not_grow_old() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let (mut other, _) = listening(&relay, "2", "watch").await;
    let first = poll(&http, &ask("1", Value::Null, 0)).await.cursor.unwrap();
    pg.sql("INSERT INTO a VALUES (1, 2, 1, '')").await;
    let foreign = other.change().await.cursor.unwrap();
    let next = poll(&http, &ask("1", first.clone(), 1)).await;
    assert_eq!(next.count, 0);
    assert!(next.cursor.as_ref().unwrap() > &foreign);
    // The same by query string, without topics: all that is granted.
    let path = format!("/api/sync/poll?device_id=d&since={first}&wait=0");
    let answer: Answer = relay.http_as("2").get(&path).await.expect_status(200).parse();
    assert_eq!((answer.count, answer.messages[0].user.as_str()), (1, "2"));
}

#[tokio::test]
async fn answers_end_with_a_transaction_where_they_can() {
    let (pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    let (mut device, cursor) = listening(&relay, "1", "watch").await;
    for n in 0..5 {
        pg.sql(&format!("INSERT INTO a SELECT {n} * 10 + m, 1, 0, '' FROM generate_series(1, 3) m")).await;
    }
    pg.sql("INSERT INTO b SELECT n, 1, 0, repeat('x', 1000) FROM generate_series(1, 1500) n").await;
    device.changes(15 + 1500).await;
    let page = async |since: &str, limit: usize| {
        let mut body = ask("1", since, 0);
        body["limit"] = limit.into();
        poll(&http, &body).await
    };
    for (limit, count) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 6), (15, 15), (16, 15)] {
        assert_eq!(page(&cursor, limit).await.count, count, "limit {limit}");
    }
    // A transaction that is alone too large for an answer is cut, and goes on where it was cut.
    let (mut since, mut counts) = (page(&cursor, 15).await.cursor.unwrap(), Vec::new());
    loop {
        let answer = page(&since, 1000).await;
        since = answer.cursor.unwrap();
        if answer.count == 0 {
            break;
        }
        counts.push(answer.count);
    }
    assert!(counts.len() >= 2 && counts.iter().sum::<usize>() == 1500, "{counts:?}");
    assert!(counts.iter().all(|count| *count <= 1000), "{counts:?}");
}

#[tokio::test]
async fn a_loss_is_told_and_the_cursor_does_not_pass_it() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")).await;
    let http = relay.http_as("1");
    let begun = poll(&http, &ask("1", Value::Null, 0)).await.cursor.unwrap();
    let polling = tokio::spawn({
        let (http, begun) = (http.clone(), begun.clone());
        async move { poll(&http, &ask("1", begun, 30)).await }
    });
    waiting(&relay, 1.0).await;
    pg.sql("ALTER TABLE a ADD COLUMN more int DEFAULT 7").await;
    let answer = within("a loss ends a poll", polling).await.unwrap();
    let lost = answer.messages.last().unwrap().frame().json();
    assert_eq!((&lost["type"], &lost["reason"]), (&json!("sync_required"), &json!("schema_changed")));
    let cursor = answer.cursor.unwrap();
    assert!(cursor.as_str() < lost["to"].as_str().unwrap());
    let again = poll(&http, &ask("1", cursor, 30)).await;
    assert_eq!(again.messages[0].frame().json()["topics"], lost["topics"]);
    // Nothing is known of these.
    let foreign = format!("0123456789abcdef{}", &begun[16..]);
    let answer = poll(&http, &ask("1", foreign.clone(), 30)).await;
    assert_eq!(answer.messages[0].frame().json()["reason"], "epoch");
    assert_eq!(answer.cursor, Some(foreign));
    let answer = poll(&http, &ask("1", 4_102_444_800_000_i64, 30)).await;
    assert_eq!(answer.messages[0].frame().json()["reason"], "timestamp_in_future");
    assert_eq!(answer.cursor, None);
}

#[tokio::test]
async fn what_is_wrong_is_a_problem() {
    let (_pg, relay) = scene(TABLES).await;
    let http = relay.http_as("1");
    for (body, status, code) in [
        (json!({"device_id": "d", "topics": ["user:2:*"]}), 403, "not_granted"),
        (json!({"topics": ["user:1:*"]}), 400, "invalid_device_id"),
        (json!({"device_id": "d", "since": "yesterday"}), 400, "invalid_cursor"),
        (json!({"device_id": "d", "since": true}), 400, "invalid_request"),
        (json!({"device_id": "d", "wait": -1}), 400, "invalid_request"),
        (json!({"device_id": "d", "limit": 0}), 400, "invalid_request"),
        (json!({"device_id": "d", "topics": []}), 400, "invalid_request"),
        (json!([]), 400, "invalid_request"),
    ] {
        let refused = http.post("/api/sync/poll", &body).await.expect_status(status);
        assert_eq!(refused.headers.get("content-type"), Some("application/problem+json"));
        assert_eq!(refused.json()["code"], code, "{body}");
    }
    relay.http().get("/api/sync/poll?device_id=d").await.expect_status(401);
}

#[tokio::test]
async fn a_poll_ends_with_its_token_and_with_the_relay() {
    let (_pg, mut relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_JWT_LEEWAY", "0s")).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = token::user_until("1", i64::try_from(now).unwrap() + 3);
    let http = relay.http().with_token(&token);
    let over = http.post("/api/sync/poll", &ask("1", Value::Null, 30)).await.expect_status(401);
    assert_eq!(over.json()["code"], "token_expired");
    let http = relay.http_as("1");
    let polling = tokio::spawn(async move { http.post("/api/sync/poll", &ask("1", Value::Null, 30)).await });
    waiting(&relay, 1.0).await;
    relay.terminate().await;
    let ended = polling.await.unwrap().expect_status(503);
    assert_eq!(ended.json()["code"], "unavailable");
    assert!(ended.headers.get("retry-after").is_some());
}
