//! Sessions against a model of the database: whatever the order in which transactions are logged and
//! published, devices subscribe, fall behind, lose their connection and come back, each copy ends as
//! the table is, and on the way no change is missed, doubled or out of order.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Frame, Session, Step};
use crate::auth::{AuthConfig, GrantPattern, Grants, Identity, Secret, UserId, Verifier};
use crate::change::*;
use crate::cursor::{Cursor, Epoch};
use crate::devices::{Devices, Sessions};
use crate::feed::Feed;
use crate::horizon::Horizon;
use crate::hub::Touched;
use crate::log::{Append, Beginning, FjallLog, Log, LogOptions};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::postgres::Target;
use crate::topic::{Audience, Pattern};
use crate::transport::{Gate, Limits, Messages, Relay, Tickets};

/// Topics that the device reads: a wildcard, and two tables by name. What the others hold is noise.
const PATTERNS: [&str; 3] = ["user:1:*", "team:7:t1", "team:7:t2"];
/// Audience and table of what is written. `user:1:t2` and `team:7:t2` are one table.
const TOPICS: [(&str, u32); 5] = [("team:7", 1), ("team:7", 2), ("user:1", 2), ("user:1", 3), ("user:2", 3)];
const START: u64 = 100;

type Rows = BTreeMap<u64, u64>;
type Tables = BTreeMap<(String, u32), Rows>;

fn boundary(lsn: u64) -> Position {
    Position::boundary(Lsn::new(lsn))
}

fn shape(table: u32) -> Arc<Shape> {
    let scopes: &[&str] = match table {
        1 => &["team"],
        2 => &["team", "user"],
        _ => &["user"],
    };
    Arc::new(Shape {
        id: table,
        relid: table,
        schema: "public".into(),
        table: format!("t{table}"),
        name: format!("t{table}").into(),
        key: vec!["id".into()],
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        columns: Vec::new(),
    })
}

/// What happened to the database, for good.
#[derive(Debug)]
enum Effect {
    Put(usize, u64, u64),
    Delete(usize, u64),
    Truncate(u32),
    /// DDL changed all rows, and the stream tells nothing of it.
    Rewrite(u32),
}

struct World {
    _directory: tempfile::TempDir,
    log: Arc<FjallLog>,
    feed: Arc<Feed>,
    relay: Arc<Relay>,
    history: Vec<(Position, Effect)>,
    now: Tables,
    /// In the log, and not yet handed to the hub.
    unpublished: VecDeque<(Arc<Transaction>, Option<Touched>, Lsn, bool)>,
    end: u64,
    version: u64,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = LogOptions {
            directory: directory.path().join("log"),
            max_age: Duration::from_secs(3600),
            max_size: 1 << 30,
            group_commit_interval: Duration::from_millis(50),
            group_commit_size: 1 << 20,
            queue_size: 8 << 20,
            gather_rate: 32 << 20,
        };
        let beginning = Beginning {
            epoch: Epoch::new(7),
            start: Lsn::new(START),
            greatest_committed_at: 0,
            state: Vec::new(),
        };
        let log = FjallLog::create(&options, beginning).unwrap();
        let feed =
            Feed::new(Arc::clone(&log) as Arc<dyn Log>, Lsn::new(START), Horizon::new(Lsn::new(START)));
        let relay = Arc::new(relay(&feed));
        World {
            _directory: directory,
            log,
            feed,
            relay,
            history: Vec::new(),
            now: Tables::new(),
            unpublished: VecDeque::new(),
            end: START,
            version: 0,
        }
    }

    fn happen(&mut self, at: Position, effect: Effect) {
        apply(&mut self.now, &effect);
        self.history.push((at, effect));
    }

    fn tables_at(&self, position: Position) -> Tables {
        let mut tables = Tables::new();
        let before = self.history.iter().filter(|(at, _)| *at <= position);
        before.for_each(|(_, effect)| apply(&mut tables, effect));
        tables
    }

    /// A change of a random row, which may be new or go.
    fn change(&mut self, at: Position, choice: u8) -> Delivery {
        let topic = usize::from(choice) % TOPICS.len();
        let (audience, table) = TOPICS[topic];
        let id = u64::from(choice >> 4) % 5;
        let before = self.now.get(&(audience.to_owned(), table)).is_some_and(|rows| rows.contains_key(&id));
        let after = !before || !choice.is_multiple_of(3);
        self.version += 1;
        let version = self.version;
        let effect = if after { Effect::Put(topic, id, version) } else { Effect::Delete(topic, id) };
        self.happen(at, effect);
        let record = after.then(|| Record {
            json: format!("{{\"id\":{id},\"v\":{version}}}").into(),
            unchanged: Vec::new(),
            whole: None,
        });
        let memberships = [Membership { audience: Audience::parse(audience).unwrap(), before, after }];
        let key = format!("{{\"id\":{id}}}").into();
        let row =
            RowChange { shape: shape(table), key, record, memberships: memberships.into_iter().collect() };
        Delivery { index: at.index, body: Body::Row(row) }
    }

    fn submit(&self, append: Append) {
        assert!(self.log.submit(append).unwrap().is_ok());
    }

    /// One transaction: rows, and perhaps a TRUNCATE, a mark, or an end that comes in parts.
    fn commit(&mut self, kind: u8, choices: &[u8]) {
        let commit = self.end + 5;
        let mut index = 0;
        let mut place = || {
            index += 2;
            Position::new(Lsn::new(commit), index)
        };
        let mut deliveries: Vec<Delivery> =
            choices.iter().map(|choice| self.change(place(), *choice)).collect();
        let mut marks = Vec::new();
        if kind == 1 {
            let at = place();
            let table = u32::from(choices[0] % 3) + 1;
            self.happen(at, Effect::Truncate(table));
            deliveries.push(Delivery { index: at.index, body: Body::Truncate(shape(table)) });
        }
        if kind == 2 {
            let at = place();
            self.happen(at, Effect::Rewrite(1));
            marks.push(mark(at));
            deliveries.push(self.change(place(), 5));
        }
        self.end = commit + 10;
        let end = Lsn::new(self.end);
        let transaction = |attempt, deliveries| {
            Arc::new(Transaction {
                commit: Lsn::new(commit),
                xid: 1,
                committed_at: i64::MAX / 2,
                greatest_committed_at: i64::MAX / 2,
                attempt,
                tag: None,
                deliveries,
            })
        };
        let marked = !marks.is_empty();
        let (whole, touched) = if kind == 3 {
            let mut touched = Touched::default();
            deliveries.iter().for_each(|delivery| touched.add(delivery));
            let last = deliveries.split_off(deliveries.len() / 2);
            self.submit(Append { transaction: Some(transaction(Some(1), deliveries)), ..Append::default() });
            (transaction(Some(1), last), Some(touched))
        } else {
            (transaction(None, deliveries), None)
        };
        let append =
            Append { transaction: Some(Arc::clone(&whole)), watermark: Some(end), marks, state: Vec::new() };
        self.submit(append);
        self.relay.progress.saw_server_end(end);
        self.unpublished.push_back((whole, touched, end, marked));
    }

    /// DDL that was found by looking at the database: the mark reaches beyond everything received.
    fn rewrite(&mut self) {
        self.happen(boundary(self.end), Effect::Rewrite(1));
        self.end += 20;
        self.submit(Append { marks: vec![mark(boundary(self.end))], ..Append::default() });
        self.feed.hub.wake_all();
    }

    fn publish(&mut self) -> bool {
        let Some((transaction, touched, end, marked)) = self.unpublished.pop_front() else { return false };
        match touched {
            None => self.feed.hub.publish(&transaction, end),
            Some(touched) => self.feed.hub.publish_parts(&touched, end),
        }
        if marked {
            self.feed.hub.wake_all();
        }
        true
    }

    fn session(&self) -> Session {
        let patterns = PATTERNS.iter().map(|pattern| Pattern::parse(pattern).unwrap()).collect();
        let identity = Identity {
            user: UserId { issuer: None, subject: "1".into() },
            grants: Grants::new(patterns),
            expires_at: None,
            issued_at: None,
            admin: false,
        };
        Session::new(Arc::clone(&self.relay), Arc::clone(&self.feed), identity, "d".into(), false)
    }
}

fn mark(upto: Position) -> Mark {
    Mark {
        table: "t1".into(),
        audience: None,
        scopes: vec!["team".into()],
        upto,
        reason: Reason::SchemaChanged,
    }
}

fn apply(tables: &mut Tables, effect: &Effect) {
    match effect {
        Effect::Put(topic, id, version) => {
            let (audience, table) = TOPICS[*topic];
            tables.entry((audience.to_owned(), table)).or_default().insert(*id, *version);
        }
        Effect::Delete(topic, id) => {
            let (audience, table) = TOPICS[*topic];
            tables.entry((audience.to_owned(), table)).or_default().remove(id);
        }
        Effect::Truncate(gone) => tables.retain(|(_, table), _| table != gone),
        Effect::Rewrite(changed) => {
            let rows =
                tables.iter_mut().filter(|((_, table), _)| table == changed).flat_map(|(_, rows)| rows);
            rows.for_each(|(_, version)| *version += 1_000_000);
        }
    }
}

fn relay(feed: &Arc<Feed>) -> Relay {
    let auth = AuthConfig {
        secret: Some(Secret::new("0123456789abcdef0123456789abcdef")),
        public_keys: Vec::new(),
        jwks: None,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::ZERO,
        require_expiry: false,
        grants: Vec::new(),
        admin: None,
    };
    let limits = Limits {
        heartbeat: Duration::from_secs(30),
        auth_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(60),
        max_message_size: 65_536,
        // A few transactions, so that outboxes overflow often.
        outbox_size: 1_200,
        max_sessions_per_user: 20,
        max_subscriptions_per_session: 100,
        broadcast_replay: Duration::from_secs(300),
        url_token: false,
        metrics_apart: false,
        ready_lag_bytes: 0,
        ready_lag_time: Duration::ZERO,
    };
    let (_, receiver) = tokio::sync::watch::channel(Some(Arc::clone(feed)));
    let sessions = Sessions::default();
    let target = Target::parse("postgres://nobody@localhost/none").unwrap();
    Relay {
        devices: Devices::new(receiver.clone(), sessions.clone(), Duration::MAX),
        messages: Messages::new(target, GrantPattern::parse("user:{sub}:devices").unwrap()),
        feed: receiver,
        verifier: Some(Verifier::new(auth).unwrap()),
        gate: Gate::default(),
        progress: Arc::default(),
        sessions,
        full: crate::sync::tests::full_sync(),
        tickets: Tickets::default(),
        limits,
        metrics: metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle(),
        shutdown: tokio_util::sync::CancellationToken::new(),
        tasks: tokio_util::task::TaskTracker::new(),
    }
}

/// What a device keeps of one pattern.
#[derive(Debug, Default)]
struct Kept {
    cursor: Option<Cursor>,
    /// Told to sync, to at least this cursor; its copy is worth nothing until then.
    stale: Option<Cursor>,
    tables: Tables,
    /// Subscribed on the connection at hand.
    live: bool,
    /// The copy with which a subscription was asked for, until it is answered.
    asked: Option<(Cursor, Tables)>,
}

/// A device as docs/PROTOCOL.md has it, and strict about what it is told.
#[derive(Default)]
struct Device {
    kept: BTreeMap<&'static str, Kept>,
    session: Option<Session>,
    /// Frames that were sent and not yet read.
    wire: VecDeque<Frame>,
    replaying: Option<BTreeSet<String>>,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn cursor(frame: &Value) -> Cursor {
    frame["cursor"].as_str().unwrap().parse().unwrap()
}

impl Device {
    fn disconnect(&mut self) {
        self.session = None;
        self.wire.clear();
        self.replaying = None;
        for kept in self.kept.values_mut() {
            (kept.live, kept.asked) = (false, None);
        }
    }

    async fn ask(&mut self, request: Value) {
        let Some(session) = &mut self.session else { return };
        let mut out = Vec::new();
        assert!(session.request(&request.to_string(), &mut out).await.is_ok());
        self.wire.extend(out);
    }

    async fn subscribe(&mut self, pattern: &'static str, world: &World) {
        let kept = self.kept.entry(pattern).or_default();
        if let Some(needed) = kept.stale {
            // A full sync, for which the device has to wait until the relay is that far.
            let there = Cursor::new(Epoch::new(7), world.feed.watermark().position());
            let received = world.history.iter().all(|(at, _)| *at <= there.position);
            if needed.position > there.position || !received {
                return;
            }
            *kept = Kept { cursor: Some(there), tables: of_pattern(&world.now, pattern), ..Kept::default() };
        }
        // Without a cursor, a table begins behind its marks, which is not what this model expects.
        let begins = self.session.as_ref().map_or(Position::ZERO, |session| session.position);
        let marked = world.log.marks().iter().any(|mark| mark.upto > begins && reads(pattern, 1));
        if kept.cursor.is_none() && marked {
            return;
        }
        let request = match kept.cursor {
            Some(cursor) => {
                kept.asked = Some((cursor, kept.tables.clone()));
                json!({"type": "subscribe", "topics": [pattern], "cursor": cursor})
            }
            None => json!({"type": "subscribe", "topics": [pattern]}),
        };
        self.ask(request).await;
    }

    async fn step(&mut self) -> Step {
        let Some(session) = &mut self.session else { return Step::Idle };
        let mut out = Vec::new();
        let step = session.step(&mut out).await;
        self.wire.extend(out);
        step.unwrap_or_else(|_| panic!("closed"))
    }

    fn read(&mut self, most: usize, world: &World) {
        for _ in 0..most {
            let Some(frame) = self.wire.pop_front() else { return };
            let frame: Value = serde_json::from_slice(&frame.json).unwrap();
            self.take(&frame, world);
        }
    }

    fn take(&mut self, frame: &Value, world: &World) {
        match frame["type"].as_str().unwrap() {
            "subscribed" => {
                for (pattern, kept) in self.named(frame) {
                    kept.live = true;
                    // What came in between is told again.
                    if let Some((cursor, tables)) = kept.asked.take() {
                        (kept.cursor, kept.tables) = (Some(cursor), tables);
                    }
                    if kept.cursor.is_none() {
                        let begins = cursor(frame);
                        kept.cursor = Some(begins);
                        kept.tables = of_pattern(&world.tables_at(begins.position), pattern);
                    }
                }
            }
            "unsubscribed" => self.named(frame).for_each(|(_, kept)| kept.live = false),
            "replay_begin" => {
                assert!(self.replaying.is_none(), "one replay after the other");
                self.replaying = Some(strings(&frame["topics"]).into_iter().collect());
            }
            "caught_up" => {
                assert!(self.replaying.take().is_some());
                self.named(frame).for_each(|(_, kept)| kept.cursor = kept.cursor.max_by(cursor(frame)));
            }
            "sync_required" => {
                for (_, kept) in self.named(frame) {
                    let needed = frame["to"].as_str().unwrap().parse().unwrap();
                    *kept = Kept { stale: kept.stale.max_by(needed), ..Kept::default() };
                }
            }
            "pong" => {
                if frame.get("cursor").is_some() {
                    assert!(self.replaying.is_none());
                    self.advance(cursor(frame));
                }
            }
            "database_change" => self.change(frame),
            other => panic!("{other}: {frame}"),
        }
    }

    /// The kept patterns that a frame names.
    fn named(&mut self, frame: &Value) -> impl Iterator<Item = (&'static str, &mut Kept)> {
        let topics = strings(&frame["topics"]);
        self.kept
            .iter_mut()
            .filter(move |(pattern, _)| topics.iter().any(|t| t == *pattern))
            .map(|(p, kept)| (*p, kept))
    }

    /// The patterns whose copy a frame brings further.
    fn concerned(&mut self, at: Cursor) -> impl Iterator<Item = (&'static str, &mut Kept)> {
        let replaying = self.replaying.clone();
        let concerned = move |pattern: &str, kept: &Kept| match &replaying {
            Some(topics) => topics.contains(pattern),
            None => kept.live && kept.cursor.is_some_and(|cursor| cursor.position < at.position),
        };
        self.kept
            .iter_mut()
            .filter(move |(pattern, kept)| concerned(pattern, kept))
            .map(|(p, kept)| (*p, kept))
    }

    fn advance(&mut self, to: Cursor) {
        self.concerned(to).for_each(|(_, kept)| kept.cursor = kept.cursor.max_by(to));
    }

    fn change(&mut self, frame: &Value) {
        let (audience, table) = frame["topic"].as_str().unwrap().rsplit_once(':').unwrap();
        let table: u32 = table[1..].parse().unwrap();
        if frame["operation"] == "TRUNCATE" {
            for (pattern, kept) in self.concerned(cursor(frame)) {
                if kept.live {
                    kept.tables.retain(|(_, other), _| *other != table || !reads(pattern, table));
                }
            }
            return self.advance(cursor(frame));
        }
        let at = cursor(frame);
        let (_, kept) = self
            .concerned(at)
            .find(|(pattern, _)| covers(pattern, audience, table))
            .unwrap_or_else(|| panic!("a change that nothing waits for: {frame}"));
        assert!(kept.live && kept.cursor.unwrap().position < at.position, "out of order: {frame}");
        let rows = kept.tables.entry((audience.to_owned(), table)).or_default();
        let id = frame["key"]["id"].as_u64().unwrap();
        let old = match frame["operation"].as_str().unwrap() {
            "DELETE" => rows.remove(&id),
            _ => rows.insert(id, frame["new_record"]["v"].as_u64().unwrap()),
        };
        assert_eq!(old.is_none(), frame["operation"] == "INSERT", "{frame}");
        kept.cursor = Some(at);
        self.advance(at);
    }
}

/// A cursor never goes back.
trait MaxBy {
    fn max_by(self, other: Cursor) -> Self;
}

impl MaxBy for Option<Cursor> {
    fn max_by(self, other: Cursor) -> Self {
        Some(self.filter(|own| own.position > other.position).unwrap_or(other))
    }
}

fn covers(pattern: &str, audience: &str, table: u32) -> bool {
    Pattern::parse(pattern).unwrap().matches(&Audience::parse(audience).unwrap(), &format!("t{table}"))
}

fn reads(pattern: &str, table: u32) -> bool {
    TOPICS.iter().any(|(audience, of)| *of == table && covers(pattern, audience, table))
}

fn of_pattern(tables: &Tables, pattern: &str) -> Tables {
    let wanted = tables.iter().filter(|((audience, table), _)| covers(pattern, audience, *table));
    wanted.filter(|(_, rows)| !rows.is_empty()).map(|(topic, rows)| (topic.clone(), rows.clone())).collect()
}

async fn play(choices: &[u8]) {
    let mut world = World::new();
    let mut device = Device::default();
    let mut choices = choices.iter().copied();
    while let Some(choice) = choices.next() {
        let pattern = PATTERNS[usize::from(choice) % PATTERNS.len()];
        match choice % 23 {
            kind @ 0..=7 => {
                let rows: Vec<u8> = choices.by_ref().take(1 + usize::from(choice) % 3).collect();
                if !rows.is_empty() {
                    world.commit(kind.min(4), &rows);
                }
            }
            8..=10 => drop(world.publish()),
            11 => world.log.applied().await.unwrap(),
            12..=14 => {
                device.step().await;
                if choice.is_multiple_of(2) {
                    device.read(usize::MAX, &world);
                }
            }
            15 => device.read(usize::from(choice) % 4, &world),
            16 => {
                device.read(usize::from(choice) % 4, &world);
                device.disconnect();
            }
            17 | 18 => {
                if device.session.is_none() {
                    device.session = Some(world.session());
                }
                device.read(usize::MAX, &world);
                device.subscribe(pattern, &world).await;
            }
            19 => {
                device.read(usize::MAX, &world);
                device.ask(json!({"type": "unsubscribe", "topics": [pattern]})).await;
            }
            20 => device.ask(json!({"type": "ping"})).await,
            21 => world.rewrite(),
            _ => {
                for _ in 0..20 {
                    device.step().await;
                }
                device.read(usize::MAX, &world);
            }
        }
    }
    finish(&mut world, &mut device).await;
}

/// Comes to rest, and compares every copy with the database.
async fn finish(world: &mut World, device: &mut Device) {
    settle(world, device).await;
    for (pattern, kept) in &device.kept {
        let copy = of_pattern(&kept.tables, pattern);
        assert_eq!(copy, of_pattern(&world.now, pattern), "{pattern}");
    }
}

/// Everything is published, and everything that the device wants comes to rest.
async fn settle(world: &mut World, device: &mut Device) {
    device.read(usize::MAX, world);
    world.commit(4, &[4]);
    world.log.applied().await.unwrap();
    while world.publish() {}
    for _ in 0..3 {
        device.session.get_or_insert_with(|| world.session());
        for pattern in PATTERNS {
            rest(world, device).await;
            let kept = device.kept.get(pattern);
            if !kept.is_some_and(|kept| kept.live) {
                device.subscribe(pattern, world).await;
            }
        }
    }
    rest(world, device).await;
    assert!(device.kept.values().all(|kept| kept.live && kept.stale.is_none()));
}

async fn rest(world: &World, device: &mut Device) {
    for _ in 0..1_000 {
        let step = device.step().await;
        device.read(usize::MAX, world);
        if step == Step::Idle {
            return;
        }
    }
    panic!("a session never comes to rest");
}

/// A device on a new connection that reads `pattern`, and is where the relay is.
async fn reading(world: &mut World, pattern: &'static str) -> Device {
    let mut device = Device { session: Some(world.session()), ..Device::default() };
    device.subscribe(pattern, world).await;
    rest(world, &mut device).await;
    device
}

/// A transaction that is in the log and published.
async fn publish(world: &mut World, kind: u8, choices: &[u8]) {
    world.commit(kind, choices);
    world.log.applied().await.unwrap();
    assert!(world.publish());
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
}

#[test]
fn a_subscription_made_while_joining_misses_nothing() {
    block_on(async {
        let mut world = World::new();
        let mut device = reading(&mut world, "user:1:*").await;
        for _ in 0..20 {
            publish(&mut world, 4, &[3]).await;
        }
        // The outbox was lost; the log is read; the outbox is open again, without the team's changes.
        for _ in 0..2 {
            assert_eq!(device.step().await, Step::Worked);
        }
        publish(&mut world, 4, &[1]).await;
        device.subscribe("team:7:t2", &world).await;
        finish(&mut world, &mut device).await;
    });
}

#[test]
fn a_mark_is_met_before_the_session_passes_it() {
    block_on(async {
        let mut world = World::new();
        let mut device = reading(&mut world, "team:7:t1").await;
        publish(&mut world, 4, &[0]).await;
        rest(&world, &mut device).await;
        publish(&mut world, 2, &[0]).await;
        // The session takes what was published because of a request, and not in its own time.
        device.subscribe("team:7:t2", &world).await;
        device.read(usize::MAX, &world);
        assert!(device.kept["team:7:t1"].stale.is_some());
        finish(&mut world, &mut device).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_copy_ends_as_the_table_is(choices in prop::collection::vec(any::<u8>(), 0..400)) {
        block_on(play(&choices));
    }
}
