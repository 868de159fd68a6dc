//! Random transactions: a copy that follows the pages is, at every commit, what the database held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::log::MemoryLog;
use super::world::{AUDIENCES, Copy, Op, TABLES, World, copy_of, op};
use super::{feed, identity, request};
use crate::cursor::Epoch;
use crate::feed::Feed;
use crate::hub::timestamp;
use crate::log::{Append, Beginning, FjallLog, Log as _, LogOptions};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::sync::coverage::SyncCursor;
use crate::sync::{SyncStream, sync};

pub(super) const GRANTS: [&str; 3] = ["user:1:*", "user:2:*", "team:7:*"];

/// What a device asks for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    topics: Vec<String>,
    tables: Option<Vec<&'static str>>,
    /// The same as pairs of audience and table.
    pub(super) wanted: BTreeSet<(usize, usize)>,
}

pub(super) fn wish() -> impl Strategy<Value = Wish> {
    let topic = (0..AUDIENCES.len(), proptest::option::of(0..TABLES.len()));
    let tables = proptest::option::weighted(0.3, proptest::sample::subsequence(vec![0, 1], 1..=2));
    (proptest::collection::vec(topic, 1..4), tables).prop_map(|(topics, tables)| {
        let mut wanted = BTreeSet::new();
        for (audience, table) in &topics {
            let passes = |t: &usize| {
                table.is_none_or(|own| own == *t) && tables.as_ref().is_none_or(|f| f.contains(t))
            };
            wanted.extend((0..TABLES.len()).filter(passes).map(|table| (*audience, table)));
        }
        let text =
            |(a, t): &(usize, Option<usize>)| format!("{}:{}", AUDIENCES[*a], t.map_or("*", |t| TABLES[t]));
        Wish {
            topics: topics.iter().map(text).collect(),
            tables: tables.map(|tables| tables.iter().map(|t| TABLES[*t]).collect()),
            wanted,
        }
    })
}

fn history() -> impl Strategy<Value = Vec<(Vec<Op>, i64)>> {
    // Commit times in any order, some of them equal.
    proptest::collection::vec((proptest::collection::vec(op(), 0..9), 1_i64..12), 1..14)
}

impl Wish {
    pub(super) fn everything() -> Self {
        let wanted = (0..AUDIENCES.len()).flat_map(|a| (0..TABLES.len()).map(move |t| (a, t))).collect();
        Wish { topics: AUDIENCES.map(|audience| format!("{audience}:*")).into(), tables: None, wanted }
    }

    pub(super) fn fields(&self, from: &Value, limit: usize) -> Value {
        let mut fields = json!({"topics": self.topics, "limit": limit});
        if let Some(tables) = &self.tables {
            fields["tables"] = json!(tables);
        }
        fields.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
        fields
    }
}

/// As a client would apply it. What repeats changes that the copy has already may update a row that it
/// has lost since; such an update is passed over, for the row's end is repeated as well.
fn apply(copy: &mut Copy, table: &str, change: &Value, repeats: bool) {
    let key = change["key"].to_string();
    match change["operation"].as_str().unwrap() {
        "TRUNCATE" => copy.retain(|(of, _), _| of != table),
        "DELETE" => drop(copy.remove(&(table.to_owned(), key))),
        operation => {
            let unchanged: Vec<&str> =
                change["unchanged"].as_array().into_iter().flatten().map(|c| c.as_str().unwrap()).collect();
            assert!(operation == "UPDATE" || unchanged.is_empty(), "an INSERT is whole: {change}");
            let old = copy.remove(&(table.to_owned(), key.clone()));
            if repeats && old.is_none() && !unchanged.is_empty() {
                return;
            }
            let mut row: BTreeMap<String, String> = change["record"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(c, v)| (c.clone(), v.to_string()))
                .collect();
            for column in unchanged {
                assert!(!row.contains_key(column));
                let kept = old.as_ref().and_then(|old| old.get(column)).expect("a kept value is in the copy");
                row.insert(column.to_owned(), kept.clone());
            }
            copy.insert((table.to_owned(), key), row);
        }
    }
}

/// Follows pages to the end; gives every page's answer to `check` after it was applied.
pub(super) fn follow(
    feed: &Feed,
    wish: &Wish,
    mut from: Value,
    limit: usize,
    copy: &mut Copy,
    mut check: impl FnMut(&Value, &Copy),
) {
    let repeats = from.get("last_sync_timestamp").is_some();
    for _ in 0..500 {
        let answer = sync(feed, &identity(&GRANTS), &request(wish.fields(&from, limit))).unwrap();
        let answer: Value = serde_json::from_slice(&answer.to_json()).unwrap();
        let mut total = 0;
        for (table, changes) in answer["changes"].as_object().unwrap() {
            let mut keys = BTreeSet::new();
            for (place, change) in changes.as_array().unwrap().iter().enumerate() {
                assert!(change["operation"] != "TRUNCATE" || place == 0);
                assert!(keys.insert(change["key"].to_string()), "a key twice in a page");
                apply(copy, table, change, repeats);
                total += 1;
            }
        }
        assert_eq!(answer["total_changes"], total);
        assert!(total <= limit);
        check(&answer, copy);
        if answer["has_more"] == false {
            assert_eq!(answer["consistent"], true);
            return;
        }
        from = json!({"cursor": answer["cursor"]});
    }
    panic!("pages without end");
}

pub(super) fn position_of(answer: &Value) -> Position {
    SyncCursor::parse(answer["cursor"].as_str().unwrap()).unwrap().cursor.position
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn by_cursor_every_commit_is_met(history in history(), wish in wish(), limit in 1usize..12, start: prop::sample::Index) {
        let world = World::of(&history);
        let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
        let (start, state) = &world.states[start.index(world.states.len())];
        let mut copy = copy_of(state, &wish.wanted);
        let from = json!({"cursor": feed.cursor(*start).to_string()});
        follow(&feed, &wish, from, limit, &mut copy, |answer, copy| {
            if answer["consistent"] == true {
                assert_eq!(copy, &copy_of(world.state_at(position_of(answer)), &wish.wanted));
            }
        });
        assert_eq!(copy, copy_of(world.state_at(Position::MAX), &wish.wanted));
    }

    #[test]
    fn only_a_transaction_alone_above_the_limit_is_cut(history in history(), wish in wish(), limit in 1usize..12) {
        let world = World::of(&history);
        let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
        let from = json!({"cursor": feed.cursor(world.states[0].0).to_string()});
        follow(&feed, &wish, from, limit, &mut Copy::new(), |answer, _| {
            if answer["consistent"] == false {
                let cut = position_of(answer).commit;
                let transaction = world.transactions.iter().find(|t| t.commit == cut).unwrap();
                assert!(transaction.deliveries.len() > limit);
            }
        });
    }

    #[test]
    fn by_timestamp_nothing_is_missed(history in history(), wish in wish(), limit in 1usize..12, start: prop::sample::Index) {
        let world = World::of(&history);
        let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
        // A copy of any place, and what an answer ending there would have called its time.
        let (start, state) = &world.states[start.index(world.states.len())];
        let greatest = world.transactions.iter().filter(|t| t.commit <= start.commit).map(|t| t.committed_at).max();
        if let Some(time) = greatest {
            let mut copy = copy_of(state, &wish.wanted);
            let from = json!({"last_sync_timestamp": timestamp(time)});
            let mut last = String::new();
            follow(&feed, &wish, from, limit, &mut copy, |answer, _| {
                let end = position_of(answer);
                let greatest = world.transactions.iter().filter(|t| t.commit <= end.commit).map(|t| t.committed_at).max();
                let said = answer["sync_timestamp"].as_str().unwrap();
                // Empty transactions may lie between the last change and the page's end.
                assert!(said <= timestamp(greatest.unwrap()).as_str());
                last = said.to_owned();
            });
            assert_eq!(last, timestamp(history.iter().map(|(_, time)| *time).max().unwrap()));
            assert_eq!(copy, copy_of(world.state_at(Position::MAX), &wish.wanted));
        }
    }

    #[test]
    fn pages_times_lead_back_to_them(history in history(), wish in wish(), limit in 1usize..6) {
        let world = World::of(&history);
        let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
        let from = json!({"cursor": feed.cursor(world.states[0].0).to_string()});
        let mut copies = Vec::new();
        follow(&feed, &wish, from, limit, &mut Copy::new(), |answer, copy| {
            copies.push((answer["sync_timestamp"].clone(), copy.clone()));
        });
        for (time, mut copy) in copies {
            follow(&feed, &wish, json!({"last_sync_timestamp": time}), limit, &mut copy, |_, _| {});
            assert_eq!(copy, copy_of(world.state_at(Position::MAX), &wish.wanted));
        }
    }

    #[test]
    fn lines_say_the_same(history in history(), wish in wish(), start: prop::sample::Index) {
        let world = World::of(&history);
        let feed = feed(Arc::new(MemoryLog::new(world.transactions.clone(), world.end)));
        let (start, state) = &world.states[start.index(world.states.len())];
        let mut copy = copy_of(state, &wish.wanted);
        let mut fields = wish.fields(&json!({"cursor": feed.cursor(*start).to_string()}), 1);
        fields["limit"] = Value::Null;
        let mut stream = SyncStream::open(Arc::clone(&feed), &identity(&GRANTS), &request(fields)).unwrap();
        let mut lines = Vec::new();
        while let Some(bytes) = stream.next_lines() {
            assert!(bytes.ends_with(b"\n"));
            lines.extend(bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice::<Value>(l).unwrap()));
        }
        prop_assert_eq!(&lines.first().unwrap()["type"], "begin");
        prop_assert_eq!(&lines.last().unwrap()["type"], "end");
        prop_assert_eq!(&lines.last().unwrap()["total_changes"], lines.len() - 2);
        for line in &lines[1..lines.len() - 1] {
            prop_assert_eq!(&line["type"], "change");
            apply(&mut copy, line["table"].as_str().unwrap(), line, false);
        }
        prop_assert_eq!(copy, copy_of(world.state_at(Position::MAX), &wish.wanted));
    }
}

/// For a log that lives as long as its directory.
pub(super) fn options(directory: &std::path::Path, max_size: u64) -> LogOptions {
    LogOptions {
        directory: directory.to_owned(),
        max_age: Duration::from_secs(3600),
        max_size,
        group_commit_interval: Duration::from_millis(50),
        group_commit_size: 1 << 20,
        queue_size: 8 << 20,
        gather_rate: 32 << 20,
    }
}

/// The world in the embedded log, whose commits before it came to no greater time than `before`.
pub(super) fn embedded(world: &World, options: &LogOptions, before: i64) -> Arc<FjallLog> {
    let start = world.states[0].0.commit;
    let beginning =
        Beginning { epoch: Epoch::new(7), start, greatest_committed_at: before, state: Vec::new() };
    let log = FjallLog::create(options, beginning).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for transaction in &world.transactions {
        let watermark = Some(Lsn::new(transaction.commit.get() + 5));
        let append = Append { transaction: Some(Arc::clone(transaction)), watermark, ..Append::default() };
        assert!(log.submit(append).unwrap().is_ok(), "a small history fits the queue");
        // Each alone, so that spans may end between any two.
        runtime.block_on(log.applied()).unwrap();
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_log_gives_the_same(history in history(), wish in wish(), limit in 1usize..12, start: prop::sample::Index) {
        let world = World::of(&history);
        let directory = tempfile::tempdir().unwrap();
        let feed = feed(embedded(&world, &options(&directory.path().join("log"), 1 << 30), 0));
        let (start, state) = &world.states[start.index(world.states.len())];
        let mut copy = copy_of(state, &wish.wanted);
        let from = json!({"cursor": feed.cursor(*start).to_string()});
        follow(&feed, &wish, from, limit, &mut copy, |answer, copy| {
            if answer["consistent"] == true {
                assert_eq!(copy, &copy_of(world.state_at(position_of(answer)), &wish.wanted));
            }
        });
        prop_assert_eq!(&copy, &copy_of(world.state_at(Position::MAX), &wish.wanted));
        let greatest = world.transactions.iter().filter(|t| t.commit <= start.commit).map(|t| t.committed_at).max();
        if let Some(time) = greatest {
            let mut copy = copy_of(state, &wish.wanted);
            follow(&feed, &wish, json!({"last_sync_timestamp": timestamp(time)}), limit, &mut copy, |_, _| {});
            prop_assert_eq!(&copy, &copy_of(world.state_at(Position::MAX), &wish.wanted));
        }
    }
}
