//! `track`, a second `track` and `untrack`, as readers meet them: at their place in the stream, with no
//! restart, and with nothing left to be read of what was taken back.

use serde_json::{Value, json};

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::frame::{Change, Frame};
use crate::support::http::Response;
use crate::support::postgres::{DATABASE, TestPostgres, explain};
use crate::support::proxy::{Flow, Proxy, Upstream};
use crate::support::relay::Relay;
use crate::support::stage::{database, frames_until_now, relay_on, synced};
use crate::support::wait::{PATIENCE, eventually, within};

const TABLES: &str = "
    CREATE TABLE orders (user_id int, id int, other int, note text, secret text, PRIMARY KEY (user_id, id));
    CREATE TABLE meals (user_id int, id int, name text, PRIMARY KEY (user_id, id));
    SELECT rowcast.track('meals')";

/// What must never leave once the column is taken back.
const SECRET: &str = "planted-secret-value";

/// Only `meals` is tracked.
async fn stage() -> (TestPostgres, Relay) {
    stage_with("SELECT").await
}

/// The same, with `orders` tracked before the relay is there.
async fn stage_tracked() -> (TestPostgres, Relay) {
    stage_with("SELECT rowcast.track('orders')").await
}

async fn stage_with(more: &str) -> (TestPostgres, Relay) {
    let pg = database().await;
    pg.sql(TABLES).await;
    pg.sql(more).await;
    let relay = relay_on(&pg).start().await;
    (pg, relay)
}

/// A device of user 1 that reads everything, and the cursor at which it began.
async fn reader(relay: &Relay, name: &str) -> (Device, String) {
    let mut device = Device::of(relay, "1", name).connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    (device, cursor)
}

/// The next frame must be `sync_required` for exactly this topic and reason; gives its `to`.
async fn told(device: &mut Device, topic: &str, reason: &str) -> Option<String> {
    let frame = device.expect("sync_required").await.json();
    assert_eq!((&frame["topics"], &frame["reason"]), (&json!([topic]), &json!(reason)), "{frame}");
    assert!(frame["retry_after_ms"].is_u64(), "{frame}");
    frame["to"].as_str().map(str::to_owned)
}

async fn sync(relay: &Relay, user: &str, topics: &[&str], cursor: &str) -> Response {
    let body = json!({"device_id": "rest", "topics": topics, "cursor": cursor});
    relay.http_as(user).post("/api/realtime/sync", &body).await
}

/// An answer that has one table in full, for a reason.
fn assert_full_sync(answer: &Response, table: &str, reason: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.full_reason(table).as_deref(), Some(reason), "{}", answer.text());
}

fn changes(frames: &[Frame]) -> Vec<Change> {
    frames.iter().filter_map(Frame::change).collect()
}

fn notes(frames: &[Frame]) -> Vec<String> {
    let note = |change: Change| {
        let record: Value = serde_json::from_str(change.record_text()).unwrap();
        record["note"].as_str().map(str::to_owned)
    };
    changes(frames).into_iter().filter(|change| change.new_record.is_some()).filter_map(note).collect()
}

#[tokio::test]
async fn a_track_takes_effect_at_its_place_in_its_transaction() {
    let (pg, relay) = stage().await;
    let (mut device, old) = reader(&relay, "phone").await;
    pg.sql("BEGIN; INSERT INTO orders VALUES (1, 1, 0, 'before'); INSERT INTO meals VALUES (1, 1, 'soup');
            SELECT rowcast.track('orders'); INSERT INTO orders VALUES (1, 2, 0, 'after'); INSERT INTO meals VALUES (1, 2, 'soup'); COMMIT").await;
    let mut frames = device.until("sync_required").await;
    let to = frames.pop().unwrap().json();
    assert_eq!((&to["topics"], &to["reason"]), (&json!(["user:1:orders"]), &json!("newly_tracked")));
    let to = to["to"].as_str().unwrap();
    frames.extend(frames_until_now(&pg, &mut device, "user:1").await);
    assert_eq!(notes(&frames), Vec::<String>::new(), "the wildcard runs on without the table");
    assert_eq!(changes(&frames).len(), 2, "and misses nothing else");
    // Everything after `to`, nothing of before the track.
    device.subscribe(&["user:1:orders"], Some(to)).await;
    pg.sql("INSERT INTO orders VALUES (1, 3, 0, 'later')").await;
    let seen = notes(&frames_until_now(&pg, &mut device, "user:1").await);
    assert!(seen == ["later"] || seen == ["after", "later"], "{seen:?}");
    // An older cursor: the table's history begins later.
    assert_full_sync(&sync(&relay, "1", &["user:1:*"], &old).await, "orders", "newly_tracked");
    let mut second = Device::of(&relay, "1", "tablet").connect().await;
    second.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "cursor": old})).await;
    told(&mut second, "user:1:orders", "newly_tracked").await;
    // For the other table the old cursor is as good as ever.
    let meals = json!({"device_id": "rest", "topics": ["user:1:meals"], "cursor": old});
    synced(&relay.http_as("1"), &meals, 2).await;
}

#[tokio::test]
async fn a_track_that_is_rolled_back_never_was() {
    let (pg, relay) = stage().await;
    let (mut device, old) = reader(&relay, "phone").await;
    pg.sql("BEGIN; SELECT rowcast.track('orders'); INSERT INTO orders VALUES (1, 1, 0, 'a'); ROLLBACK; INSERT INTO orders VALUES (1, 2, 0, 'b')").await;
    pg.sql("BEGIN; SAVEPOINT s; SELECT rowcast.untrack('meals'); ROLLBACK TO s; INSERT INTO meals VALUES (1, 1, 'soup'); COMMIT").await;
    let frames = frames_until_now(&pg, &mut device, "user:1").await;
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(changes(&frames)[0].topic, "user:1:meals");
    sync(&relay, "1", &["user:1:*"], &old).await.expect_status(200);
}

#[tokio::test]
async fn a_track_waits_for_open_transactions_and_loses_nothing_after_it() {
    let (pg, relay) = stage().await;
    let (mut device, _) = reader(&relay, "phone").await;
    let (writer, tracker) = (pg.client().await, pg.client().await);
    for (number, statement, reason) in [
        (1, "SELECT rowcast.track('orders')", "newly_tracked"),
        (2, "SELECT rowcast.track('orders', columns => '{user_id,id,note}')", "retracked"),
    ] {
        writer
            .batch_execute(&format!("BEGIN; INSERT INTO orders VALUES (1, {number}0, 0, 'open')"))
            .await
            .unwrap();
        tracker.batch_execute("SET lock_timeout = '30s'").await.unwrap();
        let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted";
        let write = async {
            eventually(PATIENCE, "track waits for the writer", async || {
                (pg.value(waiting).await == "1").then_some(())
            })
            .await;
            writer
                .batch_execute(&format!("INSERT INTO orders VALUES (1, {number}1, 0, 'still open'); COMMIT"))
                .await
                .unwrap();
        };
        let (tracked, ()) = tokio::join!(within("track", tracker.batch_execute(statement)), write);
        tracked.unwrap_or_else(|error| panic!("{}", explain(&error)));
        pg.sql(&format!("INSERT INTO orders VALUES (1, {number}2, 0, 'after')")).await;
        // What lies before `to` is declared, what lies after it comes.
        let mut frames = device.until("sync_required").await;
        let to = frames.pop().unwrap().json();
        assert_eq!(to["reason"], reason);
        let before = notes(&frames);
        assert!(
            before.iter().all(|note| note.contains("open")) && (number == 2 || before.is_empty()),
            "{before:?}"
        );
        device.subscribe(&["user:1:orders"], to["to"].as_str()).await;
        pg.sql(&format!("INSERT INTO orders VALUES (1, {number}3, 0, 'later')")).await;
        let seen = notes(&frames_until_now(&pg, &mut device, "user:1").await);
        assert!(seen == ["later"] || seen == ["after", "later"], "{seen:?}");
    }
    assert_eq!(relay.metric("rowcast_new_epochs_total").await.unwrap_or(0.0), 0.0);
}

#[tokio::test]
async fn a_column_taken_back_is_nowhere_to_be_read() {
    let (pg, mut relay) = stage_tracked().await;
    let (mut device, old) = reader(&relay, "phone").await;
    let since = pg.value("SELECT (extract(epoch FROM now()) * 1000)::int8").await;
    pg.sql(&format!("INSERT INTO orders VALUES (1, 1, 0, 'a', '{SECRET}'); UPDATE orders SET note = 'b'"))
        .await;
    let published = device.changes(2).await;
    assert!(published[0].record_text().contains(SECRET));
    let middle = published[0].cursor.clone().unwrap();
    pg.sql("SELECT rowcast.track('orders', columns => '{user_id,id,note}')").await;
    let to = told(&mut device, "user:1:orders", "retracked").await.unwrap();
    pg.sql("UPDATE orders SET note = 'c'; UPDATE orders SET id = 2; UPDATE orders SET user_id = 2; UPDATE orders SET user_id = 1; INSERT INTO meals VALUES (1, 1, 'soup')").await;
    let mut everything = frames_until_now(&pg, &mut device, "user:1").await;
    for restarted in [false, true] {
        if restarted {
            relay.restart().await;
        }
        let mut second = Device::of(&relay, "1", "tablet").connect().await;
        for (topics, cursor) in [("user:1:orders", &old), ("user:1:orders", &middle), ("user:1:*", &old)] {
            assert_full_sync(&sync(&relay, "1", &[topics], cursor).await, "orders", "retracked");
            second.send(&json!({"type": "subscribe", "topics": [topics], "cursor": cursor})).await;
            told(&mut second, "user:1:orders", "retracked").await;
            if topics.ends_with('*') {
                everything.extend(second.until("caught_up").await);
            }
        }
        // By time, by NDJSON, and with a cursor that is just new enough.
        for path in [
            format!("/api/realtime/sync?device_id=d&topics=user:1:*&last_sync_timestamp={since}"),
            format!("/api/realtime/sync?device_id=d&topics=user:1:*&cursor={old}"),
        ] {
            for accept in ["application/json", "application/x-ndjson"] {
                let answer = relay.http_as("1").request("GET", &path).header("accept", accept).send().await;
                assert!(answer.status == 200 && !answer.text().contains(SECRET), "{path}: {}", answer.text());
                assert!(
                    answer.text().contains(r#""full":true,"reason":"retracked""#),
                    "{path}: {}",
                    answer.text()
                );
            }
        }
        let newer = eventually(PATIENCE, "the log reaches the meal", async || {
            let answer = sync(&relay, "1", &["user:1:*"], &to).await;
            (answer.status == 200 && answer.text().contains("soup")).then_some(answer)
        })
        .await;
        assert!(!newer.text().contains(SECRET), "{}", newer.text());
        second.subscribe(&["user:1:orders"], Some(&to)).await;
        pg.sql("UPDATE orders SET note = 'd'; UPDATE orders SET secret = secret || '!'; DELETE FROM orders; INSERT INTO orders VALUES (1, 1, 0, 'e', 'planted-secret-value')").await;
        everything.extend(frames_until_now(&pg, &mut second, "user:1").await);
    }
    let leaked: Vec<_> = everything
        .iter()
        .filter(|frame| frame.text.contains(SECRET) || frame.text.contains("secret"))
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    assert!(changes(&everything).iter().any(|change| change.topic == "user:1:orders"));
}

#[tokio::test]
async fn a_replay_under_way_stops_where_a_column_is_taken_back() {
    const ROWS: usize = 20_000;
    let (pg, relay) = stage_tracked().await;
    let (mut watcher, old) = reader(&relay, "watcher").await;
    watcher.unsubscribe(&["user:1:*"]).await;
    watcher.subscribe(&["user:1:mark"], None).await;
    pg.sql(&format!("INSERT INTO orders SELECT 1, i, 0, 'n', '{SECRET}' || repeat('x', 1000) FROM generate_series(1, {ROWS}) AS i")).await;
    frames_until_now(&pg, &mut watcher, "user:1").await;
    // Reads a few rows, and then nothing more, while the relay still has most of them to send.
    let mut slow = Device::of(&relay, "1", "slow").small_buffer().connect().await;
    slow.subscribe(&["user:1:*"], Some(&old)).await;
    slow.expect("replay_begin").await;
    slow.changes(10).await;
    pg.sql("SELECT rowcast.track('orders', columns => '{user_id,id,note}'); INSERT INTO meals VALUES (1, 1, 'soup')").await;
    watcher.subscribe(&["user:1:orders"], None).await;
    // In force once the retrack's commit is readable: later requests are refused.
    eventually(PATIENCE, "the retrack is in force", async || {
        sync(&relay, "1", &["user:1:orders"], &old).await.full_reason("orders").map(drop)
    })
    .await;
    let mut frames = slow.until("sync_required").await;
    let told = frames.pop().unwrap().json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:orders"]), &json!("retracked")));
    // What lay in the sockets' buffers was on its way before.
    assert!(frames.len() < ROWS / 2, "{} rows of the past were sent", frames.len());
    let rest = slow.until("caught_up").await;
    let after = frames_until_now(&pg, &mut slow, "user:1").await;
    let rest: Vec<_> = rest.into_iter().chain(after).collect();
    assert!(rest.iter().all(|frame| !frame.text.contains(SECRET)), "rows of the past after sync_required");
    assert_eq!(
        changes(&rest).iter().filter(|change| change.topic == "user:1:meals").count(),
        1,
        "the wildcard runs on"
    );
}

#[tokio::test]
async fn a_retrack_under_other_topics_moves_the_rows_to_others() {
    let (pg, relay) = stage_tracked().await;
    let (mut one, old) = reader(&relay, "phone").await;
    let mut two = Device::of(&relay, "2", "phone").connect().await;
    two.subscribe(&["user:2:*", "user:2:orders"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1, 2, 'for one')").await;
    assert_eq!(one.change().await.topic, "user:1:orders");
    // The same audience by another column.
    pg.sql("SELECT rowcast.track('orders', topics => ARRAY['user:{other}:orders'])").await;
    told(&mut one, "user:1:orders", "retracked").await;
    let to = told(&mut two, "user:2:orders", "retracked").await.unwrap();
    two.subscribe(&["user:2:orders"], Some(&to)).await;
    one.subscribe(&["user:1:orders"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 2, 2, 'for two')").await;
    assert_eq!(notes(&frames_until_now(&pg, &mut two, "user:2").await), ["for two"]);
    assert_eq!(notes(&frames_until_now(&pg, &mut one, "user:1").await), Vec::<String>::new());
    // The old rows are nobody's by the new topics.
    for (user, topic) in [("1", "user:1:orders"), ("2", "user:2:orders")] {
        assert_full_sync(&sync(&relay, user, &[topic], &old).await, "orders", "retracked");
    }
    // Another scope: readers of the one that is gone are told as well.
    pg.sql("SELECT rowcast.track('orders', topics => ARRAY['global:orders'])").await;
    told(&mut two, "user:2:orders", "retracked").await;
    told(&mut one, "user:1:orders", "retracked").await;
    two.subscribe(&["global:orders"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 3, 2, 'for all')").await;
    assert_eq!(notes(&frames_until_now(&pg, &mut two, "user:2").await), ["for all"]);
    assert_eq!(notes(&frames_until_now(&pg, &mut one, "user:1").await), Vec::<String>::new());
}

#[tokio::test]
async fn a_retrack_under_another_name_ends_the_old_one() {
    let (pg, relay) = stage_tracked().await;
    let (mut device, old) = reader(&relay, "phone").await;
    pg.sql("INSERT INTO orders VALUES (1, 1, 0, 'old name')").await;
    device.change().await;
    pg.sql("SELECT rowcast.track('orders', topics => ARRAY['user:{user_id}:purchases'])").await;
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let frame = device.expect("sync_required").await.json();
        reasons.push(format!(
            "{} {}",
            frame["topics"][0].as_str().unwrap(),
            frame["reason"].as_str().unwrap()
        ));
    }
    reasons.sort();
    assert_eq!(reasons, ["user:1:orders untracked", "user:1:purchases retracked"]);
    assert!(sync(&relay, "1", &["user:1:orders"], &old).await.full_reason("orders").is_some());
    assert!(sync(&relay, "1", &["user:1:purchases"], &old).await.full_reason("purchases").is_some());
    device.subscribe(&["user:1:purchases"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 2, 0, 'new name')").await;
    let change = device.change().await;
    assert_eq!((change.topic.as_str(), change.table.as_deref()), ("user:1:purchases", Some("orders")));
    // The name is free for another table.
    pg.sql("CREATE TABLE others (user_id int, id int, note text, PRIMARY KEY (user_id, id)); SELECT rowcast.track('others', ARRAY['user:{user_id}:orders'])").await;
    told(&mut device, "user:1:orders", "newly_tracked").await;
    device.subscribe(&["user:1:orders"], None).await;
    pg.sql("INSERT INTO others VALUES (1, 1, 'another table')").await;
    assert_eq!(notes(&frames_until_now(&pg, &mut device, "user:1").await), ["another table"]);
}

#[tokio::test]
async fn an_untracked_table_is_over_for_its_readers() {
    let (pg, relay) = stage_tracked().await;
    let (mut device, old) = reader(&relay, "phone").await;
    pg.sql("INSERT INTO orders VALUES (1, 1, 0, 'tracked')").await;
    let cursor = device.change().await.cursor.unwrap();
    pg.sql("BEGIN; SELECT rowcast.untrack('orders'); INSERT INTO orders VALUES (1, 2, 0, 'in the transaction'); COMMIT;
            INSERT INTO orders VALUES (1, 3, 0, 'after'); INSERT INTO meals VALUES (1, 1, 'soup')").await;
    told(&mut device, "user:1:orders", "untracked").await;
    let rest = frames_until_now(&pg, &mut device, "user:1").await;
    assert_eq!(
        changes(&rest).iter().map(|change| change.topic.as_str()).collect::<Vec<_>>(),
        ["user:1:meals"]
    );
    for cursor in [&old, &cursor] {
        assert_full_sync(&sync(&relay, "1", &["user:1:orders"], cursor).await, "orders", "untracked");
    }
    // By name it can be subscribed like any topic that does not exist; nothing comes.
    let subscribed = device.subscribe(&["user:1:orders"], None).await.json();
    assert_eq!(subscribed["tables"], json!({}));
    pg.sql("UPDATE orders SET note = 'unseen'").await;
    assert!(frames_until_now(&pg, &mut device, "user:1").await.is_empty());
    // Tracked again, it begins anew: also for the one who waits by name.
    pg.sql("SELECT rowcast.track('orders')").await;
    told(&mut device, "user:1:orders", "newly_tracked").await;
    device.subscribe(&["user:1:orders"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 4, 0, 'again')").await;
    assert_eq!(notes(&frames_until_now(&pg, &mut device, "user:1").await), ["again"]);
    assert_full_sync(&sync(&relay, "1", &["user:1:orders"], &old).await, "orders", "newly_tracked");
}

#[tokio::test]
async fn rows_of_a_time_keep_its_topics_over_a_restart() {
    let (pg, mut relay) = stage_tracked().await;
    let (mut one, old) = reader(&relay, "phone").await;
    pg.sql("INSERT INTO orders VALUES (1, 1, 2, 'seen')").await;
    assert_eq!(one.change().await.topic, "user:1:orders");
    relay.terminate().await;
    // All of this happens while the relay is away.
    pg.sql(&format!(
        "INSERT INTO orders VALUES (1, 2, 2, 'of one', '{SECRET}'); INSERT INTO meals VALUES (1, 1, 'soup');
         SELECT rowcast.track('orders', topics => ARRAY['user:{{other}}:orders'], columns => '{{user_id,id,other,note}}');
         INSERT INTO orders VALUES (1, 3, 2, 'of two', '{SECRET}'); INSERT INTO meals VALUES (1, 2, 'soup')"
    ))
    .await;
    relay.start_again().await;
    relay.wait_ready().await;
    let mut two = Device::of(&relay, "2", "phone").connect().await;
    two.send(&json!({"type": "subscribe", "topics": ["user:2:*"], "cursor": old})).await;
    // At once, or when the relay has read that far.
    let mut frames = two.until("sync_required").await;
    let retracked = frames.last().unwrap().json();
    assert_eq!(retracked["reason"], "retracked");
    let to = retracked["to"].as_str().unwrap().to_owned();
    // The wildcard's own answer may come before or after what it was told.
    let named = json!({"type": "subscribe", "ref": "named", "topics": ["user:2:orders"], "cursor": to});
    two.send(&named).await;
    while frames.last().is_none_or(|frame| frame.json()["ref"] != "named") {
        frames.extend(two.until("subscribed").await);
    }
    pg.sql("INSERT INTO orders VALUES (1, 4, 2, 'later', 'planted-secret-value')").await;
    frames.extend(frames_until_now(&pg, &mut two, "user:2").await);
    let seen = notes(&frames);
    assert!(seen == ["later"] || seen == ["of two", "later"], "{frames:?}");
    let mut one = Device::of(&relay, "1", "phone").connect().await;
    one.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": old})).await;
    let mut first = one.until("sync_required").await;
    assert!(first.iter().all(|frame| !frame.text.contains(SECRET)));
    let first = first.pop().unwrap().json();
    assert_eq!(first["topics"], json!(["user:1:orders"]));
    let rest = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(changes(&rest).iter().filter(|change| change.topic == "user:1:meals").count(), 2);
    assert_eq!(notes(&rest), Vec::<String>::new());
    assert!(frames.iter().chain(&rest).all(|frame| !frame.text.contains(SECRET)));
}

#[tokio::test]
async fn what_happened_to_the_catalog_while_the_relay_was_away_is_applied_in_order() {
    let (pg, mut relay) = stage_tracked().await;
    let (_, old) = reader(&relay, "phone").await;
    for crash in [false, true] {
        if crash {
            relay.kill9().await
        } else {
            relay.terminate().await
        }
        pg.sql(&format!(
            "INSERT INTO orders SELECT 1, coalesce(max(id), 0) + 1, 0, 'one', '{SECRET}' FROM orders; SELECT rowcast.untrack('orders');
             INSERT INTO orders SELECT 1, max(id) + 1, 0, 'two', '{SECRET}' FROM orders;
             CREATE TABLE IF NOT EXISTS gone (user_id int, id int, note text, PRIMARY KEY (user_id, id)); SELECT rowcast.track('gone');
             INSERT INTO gone VALUES (1, 1, 'gone'); SELECT rowcast.untrack('gone'); DROP TABLE gone;
             SELECT rowcast.track('orders', topics => ARRAY['user:{{user_id}}:orders'], columns => '{{user_id,id,note}}');
             INSERT INTO orders SELECT 1, max(id) + 1, 0, 'three', '{SECRET}' FROM orders; INSERT INTO meals SELECT 1, coalesce(max(id), 0) + 1, 'soup' FROM meals"
        ))
        .await;
        relay.start_again().await;
        relay.wait_ready().await;
        let mut device = Device::of(&relay, "1", "phone").connect().await;
        device.subscribe(&["user:1:mark"], None).await;
        frames_until_now(&pg, &mut device, "user:1").await;
        device.subscribe(&["user:1:orders"], None).await;
        pg.sql(&format!("INSERT INTO orders SELECT 1, max(id) + 1, 0, 'now', '{SECRET}' FROM orders")).await;
        let frames = frames_until_now(&pg, &mut device, "user:1").await;
        let records: Vec<_> = changes(&frames).iter().map(|change| change.record_text().to_owned()).collect();
        assert_eq!(records.len(), 1, "{frames:?}");
        assert!(
            records[0].ends_with(r#""note":"now"}"#) && records[0].starts_with(r#"{"user_id":1,"id":"#),
            "{records:?}"
        );
        assert!(sync(&relay, "1", &["user:1:orders"], &old).await.full_reason("orders").is_some());
        assert!(sync(&relay, "1", &["user:1:gone"], &old).await.full_reason("gone").is_some());
        let meals = json!({"device_id": "rest", "topics": ["user:1:meals"], "cursor": old});
        synced(&relay.http_as("1"), &meals, if crash { 2 } else { 1 }).await;
    }
    assert_eq!(relay.metric("rowcast_new_epochs_total").await.unwrap_or(0.0), 0.0);
}

/// What such an answer's cursor vouches for lies behind the second track: the table has to come with its rows.
#[tokio::test]
async fn a_full_answer_that_began_before_a_table_was_tracked_again_has_its_rows() {
    let pg = database().await;
    pg.sql(TABLES).await;
    pg.sql("SELECT rowcast.track('orders'); INSERT INTO orders VALUES (1, 1, 0, 'there all the time')").await;
    let link = Proxy::start_before_postgres(Upstream::Unix(pg.socket())).await;
    let relay = Relay::on_url(&link.postgres_url(DATABASE))
        .env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
        .start()
        .await;
    let http = relay.http_as("1");
    // Tables in full for a mark, and because nothing can be gone on from.
    for cursor in [None, Some("0000000000000001.0000000000000001.00000000".to_owned())] {
        let mut body = json!({"device_id": "rest", "topics": ["user:1:*"]});
        let mut copy = Copy::default();
        body["cursor"] = copy.sync(&http, &body).await.into();
        assert_eq!(copy.records("orders").len(), 1);
        pg.sql("SELECT rowcast.untrack('orders')").await;
        eventually(PATIENCE, "the untrack is in force", async || {
            sync(&relay, "1", &["user:1:*"], body["cursor"].as_str().unwrap())
                .await
                .full_reason("orders")
                .map(drop)
        })
        .await;
        // The database knows of the second track when the answer begins, and the relay not yet.
        link.set_changes(Flow::Stalled);
        pg.sql("SELECT rowcast.track('orders')").await;
        let fences = relay.metric("rowcast_fences_total").await;
        if let Some(cursor) = cursor {
            body["cursor"] = cursor.into();
        }
        let syncing = copy.sync(&http, &body);
        let going_on = async {
            eventually(PATIENCE, "a fence is committed", async || {
                (relay.metric("rowcast_fences_total").await > fences).then_some(())
            })
            .await;
            link.set_changes(Flow::Open);
        };
        tokio::join!(syncing, going_on);
        copy.assert_equals(&pg, "orders", "SELECT * FROM orders").await;
    }
}
