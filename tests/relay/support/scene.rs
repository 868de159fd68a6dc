//! What most tests begin with: a database with the catalog and a test's tables, a relay on it, and
//! short ways to say what a device was told.

use rowcast::postgres::catalog;

use super::device::Device;
use super::frame::{Change, Frame};
use super::postgres::TestPostgres;
use super::relay::{Relay, Setup};

/// A table of users' rows, for tests in which anything does.
pub(crate) const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL);
    SELECT rowcast.track('orders')";

/// A cluster with the catalog, where `sql` was run.
pub(crate) async fn database(sql: &str) -> TestPostgres {
    let pg = TestPostgres::start().await;
    catalog::install(&mut pg.client().await).await.unwrap();
    pg.sql(sql).await;
    pg
}

/// A database, and a relay with the defaults.
pub(crate) async fn scene(sql: &str) -> (TestPostgres, Relay) {
    scene_with(sql, |setup| setup).await
}

/// A database, and a relay that is set up as the test likes.
pub(crate) async fn scene_with(sql: &str, setup: impl FnOnce(Setup) -> Setup) -> (TestPostgres, Relay) {
    let pg = database(sql).await;
    let relay = setup(Relay::on(&pg)).start().await;
    (pg, relay)
}

/// A device of a user, connected and subscribed from now on to `user:{user}:*` and `global:*`.
/// Returns the cursor of `subscribed` too.
pub(crate) async fn listening(relay: &Relay, user: &str, device: &str) -> (Device, String) {
    let mut device = Device::of(relay, user, device).connect().await;
    let subscribed = device.subscribe(&[&format!("user:{user}:*"), "global:*"], None).await;
    (device, subscribed.cursor().unwrap())
}

/// All frames but heartbeats up to a broadcast that is committed now: what was committed before it and
/// is for the device is among them. The device must have subscribed a pattern that covers the topic
/// `{audience}:mark`.
pub(crate) async fn frames_until_now(pg: &TestPostgres, device: &mut Device, audience: &str) -> Vec<Frame> {
    let id = pg.value(&format!("SELECT rowcast.broadcast('{audience}:mark', 'mark', 'null')")).await;
    let mut frames = Vec::new();
    loop {
        let frame = device.recv().await;
        if frame.kind == "broadcast" && frame.json()["id"] == id.as_str() {
            return frames;
        }
        // Other devices' marks may be for this one too.
        let mark = frame.kind == "broadcast" && frame.json()["event"] == "mark";
        if frame.kind != "heartbeat" && !mark {
            frames.push(frame);
        }
    }
}

/// Like [`frames_until_now`], where only changes may come.
pub(crate) async fn changes_until_now(pg: &TestPostgres, device: &mut Device, audience: &str) -> Vec<Change> {
    changes_of(&frames_until_now(pg, device, audience).await)
}

pub(crate) fn changes_of(frames: &[Frame]) -> Vec<Change> {
    frames.iter().map(|frame| frame.change().unwrap_or_else(|| panic!("no change: {}", frame.text))).collect()
}

/// Subscribes from an older cursor, and returns the frames between `replay_begin` and `caught_up`.
pub(crate) async fn replayed(device: &mut Device, topics: &[&str], cursor: &str) -> Vec<Frame> {
    device.subscribe(topics, Some(cursor)).await;
    device.expect("replay_begin").await;
    let mut frames = Vec::new();
    loop {
        let frame = device.recv().await;
        match frame.kind.as_str() {
            "caught_up" => return frames,
            "heartbeat" => {}
            _ => frames.push(frame),
        }
    }
}

/// Each change in a line: operation, topic, the record (or the key where there is none), what is
/// unchanged, and `last`. Asserts what holds for every change: rising cursors, and what stands in
/// `old_record` and `new_record`.
pub(crate) fn told(changes: &[Change]) -> Vec<String> {
    for pair in changes.windows(2) {
        assert!(pair[0].cursor < pair[1].cursor, "{pair:?}");
    }
    changes.iter().map(tell).collect()
}

fn tell(change: &Change) -> String {
    let text = |value: &Option<Box<serde_json::value::RawValue>>| {
        value.as_ref().map(|value| value.get().to_owned()).filter(|text| text != "null")
    };
    let (key, old, new) = (text(&change.key), text(&change.old_record), text(&change.new_record));
    let shown = match change.operation.as_str() {
        "INSERT" | "UPDATE" => {
            assert!(key.is_some() && old.is_none(), "{change:?}");
            new.clone()
        }
        "DELETE" => {
            assert!(new.is_none() && old == key, "{change:?}");
            key
        }
        _ => {
            assert!(new.is_none() && old.is_none() && key.is_none(), "{change:?}");
            Some(String::new())
        }
    };
    let shown = shown.expect("a record or a key");
    let mut line = format!("{} {} {shown}", change.operation, change.topic).trim_end().to_owned();
    if !change.unchanged.is_empty() {
        line.push_str(&format!(" unchanged {}", change.unchanged.join(",")));
    }
    if change.last.expect("last") {
        line.push_str(" last");
    }
    line
}
