//! The race of snapshot and stream, at a rate: the relay itself is the synchronous standby and confirms
//! late, so that at each moment some commits are decoded and not yet visible.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::copy::{Copy, SyncPage, pages};
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::{Change, place};
use crate::support::http::Http;
use crate::support::postgres::{TestPostgres, explain};
use crate::support::relay::Relay;
use crate::support::scene::scene_with;
use crate::support::wait::{PATIENCE, eventually, within};

/// Each row counts its own changes, over its deletions and returns too.
const TABLE: &str = "
    CREATE TABLE counted (id int PRIMARY KEY, user_id int NOT NULL, version bigint NOT NULL);
    CREATE UNIQUE INDEX ON counted (user_id, id);
    SELECT rowcast.track('counted');";

const WRITERS: u64 = 6;
/// Of each writer: few, so that each is changed again and again.
const ROWS: u64 = 12;
/// Devices that sync at the same time: they share fences.
const DEVICES: usize = 3;

/// Full syncs; a thousand by hand.
fn handoffs() -> usize {
    std::env::var("ROWCAST_TEST_HANDOFFS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// A copy, and the cursor up to which it is one.
struct Handoff {
    user: &'static str,
    cursor: String,
    copy: Copy,
}

/// What the handoffs of a device came to.
#[derive(Default)]
struct Taken {
    handoffs: Vec<Handoff>,
    /// Answers that held changes which the snapshot did not show, and those changes.
    joined: usize,
    unseen: usize,
}

#[tokio::test]
async fn no_handoff_loses_or_repeats_a_change() {
    let mut dice = Dice::seeded("no_handoff_loses_or_repeats_a_change");
    let (pg, relay) = scene_with(TABLE, |setup| setup.env("ROWCAST_GROUP_COMMIT_INTERVAL", "10ms")).await;
    let mut watching = Vec::new();
    for user in ["1", "2"] {
        let mut device = Device::of(&relay, user, "watch").connect().await;
        device.subscribe(&[&format!("user:{user}:*")], None).await;
        watching.push(tokio::spawn(watch(device)));
    }
    await_the_relay(&pg).await;
    let relay = Arc::new(relay);
    let over = Arc::new(AtomicBool::new(false));
    let mut writing = Vec::new();
    for writer in 0..WRITERS {
        let (client, dice) = (pg.client().await, Dice(dice.next()));
        writing.push(tokio::spawn(write(client, writer, dice, Arc::clone(&over))));
    }
    let left = Arc::new(AtomicUsize::new(handoffs()));
    let syncing: Vec<_> = (0..DEVICES)
        .map(|device| tokio::spawn(take(Arc::clone(&relay), device, Arc::clone(&left))))
        .collect();
    let mut taken = Taken::default();
    for device in syncing {
        let of_device = device.await.unwrap();
        taken.handoffs.extend(of_device.handoffs);
        taken.joined += of_device.joined;
        taken.unseen += of_device.unseen;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writing {
        writer.await.unwrap();
    }
    pg.sql("SELECT rowcast.broadcast('user:1:end', 'end', 'null'), rowcast.broadcast('user:2:end', 'end', 'null')")
        .await;
    for (user, watched) in ["1", "2"].into_iter().zip(watching) {
        let changes = within("the watcher's end", watched).await.unwrap();
        check(&pg, user, &changes, &taken.handoffs).await;
    }
    println!(
        "{} handoffs and {} copies in all: {} handoffs joined {} changes that the snapshot did not show",
        handoffs(),
        taken.handoffs.len(),
        taken.joined,
        taken.unseen
    );
    // Else nothing was tested.
    assert!(taken.joined * 2 > handoffs(), "the race was rare: {} of {}", taken.joined, handoffs());
}

/// Makes commits wait for the relay, and waits until they do.
async fn await_the_relay(pg: &TestPostgres) {
    pg.sql("ALTER SYSTEM SET synchronous_standby_names = 'rowcast'").await;
    pg.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "the relay is the synchronous standby", async || {
        let state = pg.query_text("SELECT sync_state FROM pg_stat_replication").await;
        (state == [[Some("sync".to_owned())]]).then_some(())
    })
    .await;
    // A new session has the setting from its beginning.
    let shown = pg.client().await.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
    assert_eq!(shown.get::<_, String>(0), "rowcast");
}

/// Changes its own rows: each statement is a commit, and the next version of its row.
async fn write(client: Client, writer: u64, mut dice: Dice, over: Arc<AtomicBool>) {
    // Versions, and the owners of those that exist.
    let mut rows: HashMap<u64, (u64, Option<u64>)> = HashMap::new();
    while !over.load(Ordering::Relaxed) {
        let id = writer * ROWS + dice.roll(ROWS);
        let (version, owner) = rows.entry(id).or_insert((0, None));
        *version += 1;
        let statement = match (*owner, dice.roll(10)) {
            (None, _) => {
                let user = *owner.insert(1 + dice.roll(2));
                format!("INSERT INTO counted VALUES ({id}, {user}, {version})")
            }
            (Some(_), 0) => {
                *owner = None;
                format!("DELETE FROM counted WHERE id = {id}")
            }
            (Some(user), 1..=2) => {
                let other = *owner.insert(3 - user);
                format!("UPDATE counted SET user_id = {other}, version = {version} WHERE id = {id}")
            }
            (Some(_), _) => format!("UPDATE counted SET version = {version} WHERE id = {id}"),
        };
        client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
    }
}

/// All changes that a session is told until the end.
async fn watch(mut device: Device) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let frame = device.recv().await;
        match frame.kind.as_str() {
            "database_change" => changes.extend(frame.change()),
            "broadcast" => return changes,
            "heartbeat" | "other_device_synced" => {}
            _ => panic!("unexpected: {}", frame.text),
        }
    }
}

/// One device: full syncs, and after each an incremental one from its cursor.
async fn take(relay: Arc<Relay>, device: usize, left: Arc<AtomicUsize>) -> Taken {
    let mut taken = Taken::default();
    let mut turn = device;
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        turn += 1;
        let user = ["1", "2"][turn % 2];
        let http = relay.http_as(user);
        let mut body = json!({"device_id": format!("d{device}"), "topics": [format!("user:{user}:*")]});
        let full = sync(&http, &body).await;
        let unseen = join(&full);
        taken.unseen += unseen;
        taken.joined += usize::from(unseen > 0);
        let mut copy = Copy::default();
        copy.apply_sync(&full);
        let cursor = full[full.len() - 1].cursor.clone();
        body["cursor"] = cursor.clone().into();
        taken.handoffs.push(Handoff { user, cursor, copy: copy.clone() });
        let next = sync(&http, &body).await;
        assert!(next.iter().flat_map(|page| page.tables.values()).all(|table| !table.full));
        copy.apply_sync(&next);
        taken.handoffs.push(Handoff { user, cursor: next[next.len() - 1].cursor.clone(), copy });
    }
    taken
}

async fn sync(http: &Http, body: &Value) -> Vec<SyncPage> {
    pages(http, body).await
}

/// Checks the seam within a full answer, and counts the changes behind it: none repeats what the
/// snapshot showed.
fn join(pages: &[SyncPage]) -> usize {
    let mut versions: HashMap<&str, Option<u64>> = HashMap::new();
    let mut unseen = 0;
    for change in pages.iter().flat_map(|page| page.changes.values()).flatten() {
        let version = version_of(change);
        let before = versions.insert(change.key_text(), version).flatten();
        if change.commit_timestamp.is_null() {
            assert!(unseen == 0 && before.is_none(), "a row behind the changes, or twice: {change:?}");
        } else {
            unseen += 1;
            assert!(version.is_none() || version > before, "repeated, over version {before:?}: {change:?}");
        }
    }
    unseen
}

fn version_of(change: &Change) -> Option<u64> {
    let record: Value = serde_json::from_str(change.new_record.as_ref()?.get()).unwrap();
    record["version"].as_u64()
}

/// A session's changes follow each other without a gap and end at what the database holds; each copy is
/// what they had come to at its cursor.
async fn check(pg: &TestPostgres, user: &str, changes: &[Change], handoffs: &[Handoff]) {
    let mut handoffs: Vec<&Handoff> = handoffs.iter().filter(|handoff| handoff.user == user).collect();
    handoffs.sort_by_key(|handoff| place(&handoff.cursor));
    let (mut truth, mut versions) = (Copy::default(), HashMap::new());
    let mut changes = changes.iter().peekable();
    for (number, handoff) in handoffs.into_iter().enumerate() {
        let upto = place(&handoff.cursor);
        let within = |change: &&Change| change.cursor.as_deref().map(place) <= Some(upto);
        while let Some(change) = changes.next_if(within) {
            step(&mut truth, &mut versions, change);
        }
        let (copy, truth) = (handoff.copy.records("counted"), truth.records("counted"));
        assert_eq!(copy, truth, "copy {number} of user {user} (left) and the stream up to its cursor");
    }
    changes.for_each(|change| step(&mut truth, &mut versions, change));
    truth.assert_equals(pg, "counted", &format!("SELECT * FROM counted WHERE user_id = {user}")).await;
}

/// The version right behind the one before, for as long as the row stays with its owner.
fn step(truth: &mut Copy, versions: &mut HashMap<String, u64>, change: &Change) {
    let key = change.key_text().to_owned();
    match (change.operation.as_str(), version_of(change)) {
        ("DELETE", None) => assert!(versions.remove(&key).is_some(), "not there: {change:?}"),
        ("INSERT", Some(version)) => assert_eq!(versions.insert(key, version), None, "{change:?}"),
        ("UPDATE", Some(version)) => {
            assert_eq!(versions.insert(key, version), Some(version - 1), "{change:?}")
        }
        _ => panic!("unexpected: {change:?}"),
    }
    truth.apply(change);
}
