//! Whole answers and refusals.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::log::MemoryLog;
use super::world::{Op, World};
use super::{feed, full_sync, identity, mark, request};
use crate::auth::{NamedUser, RightsChange};
use crate::change::{Body, Reason};
use crate::cursor::{Cursor, Epoch};
use crate::feed::Feed;
use crate::log::Watermark;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::coverage::SyncCursor;
use crate::sync::{Answered, SyncError, SyncStream, answer, sync};
use crate::topic::Pattern;

const PUT: Op = Op::Put { table: 1, key: 1, audiences: 0b010, a: 1, big: Some(9) };

fn small_world() -> (World, Arc<MemoryLog>, Arc<Feed>) {
    let keep_big = Op::Put { table: 1, key: 1, audiences: 0b110, a: 2, big: None };
    let gone = Op::Delete { table: 1, key: 2 };
    let two = Op::Put { table: 1, key: 2, audiences: 0b010, a: 7, big: Some(1) };
    let world = World::of(&[
        (vec![PUT, two], 1_000_000),
        (vec![keep_big.clone()], 3_000_000),
        (vec![gone], 2_000_000),
        (vec![keep_big], 1_500_000),
    ]);
    let log = Arc::new(MemoryLog::new(world.transactions.clone(), world.end));
    let feed = feed(log.clone());
    (world, log, feed)
}

fn code(result: Result<impl std::fmt::Debug, SyncError>) -> (u16, &'static str, Value) {
    let problem = result.unwrap_err().problem();
    (problem.status, problem.code, Value::Object(problem.extra))
}

#[test]
fn an_answer_has_the_protocols_form() {
    let (world, _, feed) = small_world();
    let cursor = feed.cursor(Position::boundary(world.transactions[1].commit)).to_string();
    let fields = json!({"topics": ["user:1:*"], "cursor": cursor, "numbers": "string"});
    let answer = sync(&feed, &identity(&["user:1:*"]), &request(fields)).unwrap();
    let text = String::from_utf8(answer.to_json().to_vec()).unwrap();
    let (before, next) = text.split_once(r#""next_sync_recommended":""#).unwrap();
    assert_eq!(next.len(), r#"2026-01-01T00:00:00.000000Z"}"#.len());
    assert_eq!(
        before,
        concat!(
            r#"{"sync_timestamp":"1970-01-01T00:00:03.000000Z","cursor":"0000000000000007.00000000000000a0.00000000.66743b7163e304c72f644a08ed06d776","#,
            r#""topics":["user:1:*"],"tables":{"notes":{"full":false,"key":[]},"orders":{"full":false,"key":["id"]}},"#,
            r#""changes":{"orders":[{"operation":"DELETE","key":{"id":"2"},"record":null,"#,
            r#""commit_timestamp":"1970-01-01T00:00:02.000000Z","topic":"user:1:orders"},"#,
            r#"{"operation":"UPDATE","key":{"id":"1"},"record":{"id":"1","a":"2"},"unchanged":["big"],"#,
            r#""commit_timestamp":"1970-01-01T00:00:01.500000Z","topic":"user:1:orders"}]},"#,
            r#""revoked":[],"conflicts":[],"total_changes":2,"has_more":false,"consistent":true,"#,
        )
    );
}

#[test]
fn values_left_out_come_from_the_same_page() {
    let (_, _, feed) = small_world();
    let from = |cursor: u64, topics: Value| {
        let cursor = feed.cursor(Position::boundary(Lsn::new(cursor))).to_string();
        let fields = json!({"topics": topics, "cursor": cursor});
        let answer = sync(&feed, &identity(&["user:1:*", "user:2:*"]), &request(fields)).unwrap();
        let answer: Value = serde_json::from_slice(&answer.to_json()).unwrap();
        let changes = answer["changes"]["orders"].as_array().unwrap().clone();
        changes.iter().find(|change| change["key"]["id"] == 1).unwrap().clone()
    };
    for whole in [
        from(100, json!(["user:1:*"])),
        from(100, json!(["user:1:*", "user:2:*"])),
        from(119, json!(["user:2:*"])),
    ] {
        assert_eq!(whole["operation"], "INSERT");
        assert_eq!(whole["record"].to_string(), r#"{"a":2,"big":9,"id":1}"#);
        assert!(whole.get("unchanged").is_none());
    }
}

#[test]
fn topics_outside_the_grants_say_nothing_of_tables() {
    let (_, _, feed) = small_world();
    for topic in ["user:2:orders", "user:2:unknown", "user:2:*", "global:orders"] {
        let refused = sync(&feed, &identity(&["user:1:*"]), &request(json!({"topics": ["user:1:*", topic]})));
        assert_eq!(code(refused), (403, "not_granted", json!({ "topic": topic })));
    }
}

#[test]
fn an_answer_under_way_ends_with_its_rights() {
    let named = || NamedUser { issuer: None, subject: "1".into() };
    let team = || Pattern::parse("team:1:*").unwrap();
    let lines = |stream: &mut SyncStream| String::from_utf8(stream.next_lines().unwrap().to_vec()).unwrap();
    let begun = || {
        let (_, _, feed) = small_world();
        feed.rights.apply([RightsChange::Grant(named(), team())]);
        let mut me = identity(&["user:1:*"]);
        feed.rights.admit(&mut me).unwrap();
        let start = feed.cursor(Position::boundary(Lsn::new(1))).to_string();
        let fields = json!({"topics": ["user:1:*", "team:1:*"], "cursor": start});
        assert!(sync(&feed, &me, &request(fields.clone())).is_ok());
        (SyncStream::open(Arc::clone(&feed), &me, &request(fields)).unwrap(), feed, me)
    };
    let (mut stream, feed, _) = begun();
    feed.rights.apply([RightsChange::Ungrant(named(), team())]);
    let text = lines(&mut stream);
    assert!(text.contains("\"not_granted\"") && !text.contains("\"change\""), "{text}");
    assert_eq!(stream.next_lines(), None);
    let (mut stream, feed, me) = begun();
    feed.rights.apply([RightsChange::Revoke { user: named(), before: 1 }]);
    let text = lines(&mut stream);
    assert!(text.contains("\"token_revoked\"") && !text.contains("\"change\""), "{text}");
    let fields =
        json!({"topics": ["user:1:*"], "cursor": feed.cursor(Position::boundary(Lsn::new(1))).to_string()});
    assert_eq!(code(sync(&feed, &me, &request(fields))).0, 401);
}

#[test]
fn what_cannot_be_incremental_is_refused_as_a_whole() {
    let (world, log, feed) = small_world();
    let me = identity(&["user:1:*"]);
    let ask = |mut fields: Value| {
        fields["topics"] = json!(["user:1:*"]);
        let (status, code, extra) = code(sync(&feed, &me, &request(fields)));
        assert_eq!((status, code), (409, "full_sync_required"));
        extra["tables"].clone()
    };
    let both = |reason: &str| json!({"notes": {"reason": reason}, "orders": {"reason": reason}});
    assert_eq!(ask(json!({})), both("no_cursor"));
    let end = feed.cursor(Position::boundary(world.end)).to_string();
    assert_eq!(ask(json!({"cursor": end, "force_full_sync": true})), both("no_cursor"));
    let foreign = Cursor::new(Epoch::new(8), Position::boundary(world.end)).to_string();
    assert_eq!(ask(json!({ "cursor": foreign })), both("epoch"));
    assert_eq!(ask(json!({"last_sync_timestamp": 3001})), both("timestamp_in_future"));
    let old = feed.cursor(Position::boundary(Lsn::new(100))).to_string();
    *log.oldest.lock().unwrap() = Position::boundary(Lsn::new(101));
    assert_eq!(ask(json!({ "cursor": old })), both("too_old"));
    log.mark(mark("orders", Position::boundary(world.end), Reason::Retracked));
    let older = feed.cursor(Position::boundary(Lsn::new(120))).to_string();
    assert_eq!(ask(json!({ "cursor": older })), json!({"orders": {"reason": "retracked"}}));
    let fields = json!({"topics": ["user:1:*"], "cursor": end});
    assert!(sync(&feed, &me, &request(fields)).is_ok());
}

#[test]
fn a_table_that_becomes_stale_while_it_is_read_is_not_given() {
    let (world, log, feed) = small_world();
    let fields =
        json!({"topics": ["user:1:*"], "cursor": feed.cursor(Position::boundary(Lsn::new(100))).to_string()});
    let stale = mark("orders", Position::boundary(world.end), Reason::SchemaChanged);
    *log.mark_during_read.lock().unwrap() = Some(stale.clone());
    let refused = sync(&feed, &identity(&["user:1:*"]), &request(fields));
    assert_eq!(code(refused).2["tables"], json!({"orders": {"reason": "schema_changed"}}));

    let fields = json!({"topics": ["user:1:notes"], "cursor": feed.cursor(Position::boundary(Lsn::new(100))).to_string()});
    *log.mark_during_read.lock().unwrap() = Some(stale);
    assert!(sync(&feed, &identity(&["user:1:*"]), &request(fields)).is_ok());
}

#[test]
fn a_stream_that_fails_on_the_way_says_so() {
    let (world, log, feed) = small_world();
    let fields =
        json!({"topics": ["user:1:*"], "cursor": feed.cursor(Position::boundary(Lsn::new(100))).to_string()});
    let mut stream = SyncStream::open(Arc::clone(&feed), &identity(&["user:1:*"]), &request(fields)).unwrap();
    *log.mark_during_read.lock().unwrap() =
        Some(mark("orders", Position::boundary(world.end), Reason::Retracked));
    let lines = stream.next_lines().unwrap();
    assert!(stream.next_lines().is_none());
    let last = lines.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap();
    let last: Value = serde_json::from_slice(last).unwrap();
    assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!("full_sync_required")));
    assert_eq!(last["tables"], json!({"orders": {"reason": "retracked"}}));
}

#[test]
fn a_transaction_of_many_bytes_stays_whole() {
    let ops: Vec<Op> =
        (0..20).map(|key| Op::Put { table: 1, key, audiences: 0b010, a: 1, big: Some(1) }).collect();
    let mut world = World::of(&[(vec![PUT], 1), (ops, 2), (vec![PUT], 3)]);
    let heavy = Arc::make_mut(&mut world.transactions[1]);
    for delivery in &mut heavy.deliveries {
        if let Body::Row(row) = &mut delivery.body {
            let json = format!("{{\"id\":1,\"big\":\"{}\",\"a\":1}}", "x".repeat(200_000));
            row.record.as_mut().unwrap().json = json.into();
        }
    }
    let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
    let mut cursor = feed.cursor(world.states[0].0).to_string();
    let mut sizes = Vec::new();
    loop {
        let fields = json!({"topics": ["user:1:*"], "cursor": cursor});
        let answer = sync(&feed, &identity(&["user:1:*"]), &request(fields)).unwrap();
        assert!(answer.tail.consistent);
        sizes.push(answer.tail.total_changes);
        cursor = answer.tail.cursor.to_string();
        if !answer.tail.has_more {
            break;
        }
    }
    assert_eq!(sizes, [1, 20, 1]);
}

#[tokio::test]
async fn a_cursor_ahead_of_the_log_waits_for_it() {
    let (world, log, feed) = small_world();
    let full = full_sync();
    let me = Arc::new(identity(&["user:1:*"]));
    let server_end = Lsn::new(world.end.get() + 100);
    let ahead = Position::new(Lsn::new(world.end.get() + 10), 3);
    let ask = |position: Position| {
        let fields = json!({"topics": ["user:1:*"], "cursor": feed.cursor(position).to_string()});
        answer(&full, Arc::clone(&feed), Arc::clone(&me), request(fields), server_end)
    };
    let beyond = ask(Position::new(Lsn::new(server_end.get() + 1), 0)).await;
    assert_eq!(code(beyond).1, "invalid_cursor");
    // Nothing is answered before the log has passed the cursor.
    let mut waiting = std::pin::pin!(ask(ahead));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    log.watermark.send_replace(Watermark { lsn: server_end, greatest_committed_at: 5 });
    let Ok(Answered::Log(answered)) = waiting.await else { panic!("an answer from the log") };
    let reached = SyncCursor::parse(&answered.tail.cursor).unwrap().cursor;
    assert_eq!(reached, feed.cursor(Position::boundary(server_end)));

    log.watermark.send_replace(Watermark { lsn: world.end, greatest_committed_at: 5 });
    feed.hub.close();
    let refused = ask(ahead).await.unwrap_err().problem();
    assert_eq!((refused.status, refused.code, refused.retry_after), (503, "not_caught_up", Some(2)));
}

#[tokio::test]
async fn an_answer_holds_what_was_pushed_before_it_was_asked_for() {
    let (world, log, feed) = small_world();
    let full = full_sync();
    let me = Arc::new(identity(&["user:1:*"]));
    let pushed = Lsn::new(world.end.get() + 10);
    feed.hub.advance(pushed);
    let start = feed.cursor(Position::boundary(Lsn::new(1))).to_string();
    let ask = || {
        let fields = json!({"topics": ["user:1:*"], "cursor": start});
        answer(&full, Arc::clone(&feed), Arc::clone(&me), request(fields), pushed)
    };
    let reached = |answered: Result<Answered<crate::sync::SyncAnswer>, SyncError>| {
        let Ok(Answered::Log(answered)) = answered else { panic!("an answer from the log") };
        SyncCursor::parse(&answered.tail.cursor).unwrap().cursor.position
    };
    let mut waiting = std::pin::pin!(ask());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    log.watermark.send_replace(Watermark { lsn: pushed, greatest_committed_at: 5 });
    assert_eq!(reached(waiting.await), Position::boundary(pushed));
    // A log that does not get there answers with what it has.
    log.watermark.send_replace(Watermark { lsn: world.end, greatest_committed_at: 5 });
    assert_eq!(reached(ask().await), Position::boundary(world.end));
}
