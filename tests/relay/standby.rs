//! Failover of PostgreSQL: a standby is promoted, and the relay finds it, goes on where the history is the
//! same, and tells devices where it is not.

use rowcast::embedded::Options;
use serde_json::json;

use crate::support::copy::{Copy, rows_as_json};
use crate::support::device::Device;
use crate::support::orders::{orders_of, with_orders};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::standby::{SLOT_SYNC_SINCE, STANDBY_SLOT, Standby, url_of_all};
use crate::support::versions::since;
use crate::support::wait::{PATIENCE, eventually};

const TOPICS: &[&str] = &["user:1:*"];
/// Said by the relay, as an error, whenever a log begins that is not the first.
const ANEW: &str = "a new epoch begins";

/// Whether a promoted standby can have the relay's slot.
fn slots_are_kept() -> bool {
    since(SLOT_SYNC_SINCE, "failover slots")
}

/// A primary with the orders, and its standby.
async fn pair() -> (TestPostgres, Standby) {
    let mut primary = with_orders(Options::scratch()).await;
    let standby = Standby::of(&mut primary).await;
    (primary, standby)
}

/// No logical slot goes ahead of the standby.
async fn hold_back_for_standby(primary: &TestPostgres) {
    primary.sql(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{STANDBY_SLOT}'")).await;
    primary.sql("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, "the setting is in force", async || {
        (primary.value("SHOW synchronized_standby_slots").await == STANDBY_SLOT).then_some(())
    })
    .await;
}

/// A standby that must have all before the relay does, and a device that has three rows.
async fn followed_pair() -> (TestPostgres, Standby, Relay, Follower) {
    let (primary, standby) = pair().await;
    hold_back_for_standby(&primary).await;
    let relay = relay_on(&primary, &standby).await;
    let mut device = Follower::of(&relay, "phone").await;
    insert(&primary, 1..4).await;
    device.get(3).await;
    (primary, standby, relay, device)
}

/// The standby, which has all, takes the primary's place.
async fn fail_over(primary: &mut TestPostgres, standby: Standby) -> TestPostgres {
    standby.caught_up(primary).await;
    primary.kill9();
    standby.promote().await
}

async fn relay_on(primary: &TestPostgres, standby: &Standby) -> Relay {
    Relay::on_url(&url_of_all(&[primary, standby.postgres()])).start().await
}

/// A device, and the rows that it gets as they are written; what it holds is checked with each.
struct Follower {
    device: Device,
    copy: Copy,
    cursor: String,
}

impl Follower {
    async fn of(relay: &Relay, name: &str) -> Self {
        let mut device = Device::of(relay, "1", name).connect().await;
        let cursor = device.subscribe(TOPICS, None).await.cursor().unwrap();
        Follower { device, copy: Copy::default(), cursor }
    }

    async fn get(&mut self, changes: usize) {
        for change in self.device.changes(changes).await {
            self.copy.apply(&change);
            self.cursor = change.cursor.unwrap();
        }
    }

    /// Goes on from its cursor on a new socket, up to now.
    async fn come_back(&mut self, relay: &Relay) {
        self.device = Device::of(relay, "1", "back").connect().await;
        self.device.subscribe(TOPICS, Some(&self.cursor)).await;
        for frame in self.device.until("caught_up").await {
            if let Some(change) = frame.change() {
                self.copy.apply(&change);
            }
        }
    }

    async fn assert_exact(&self, server: &TestPostgres) {
        self.copy.assert_equals(server, "orders", &orders_of("1")).await;
    }
}

async fn insert(server: &TestPostgres, ids: std::ops::Range<u32>) {
    for id in ids {
        server.sql(&format!("INSERT INTO orders VALUES ({id}, '1', 'number {id}')")).await;
    }
}

fn assert_one_epoch(relay: &Relay) {
    assert_eq!(relay.count_lines(ANEW), 0, "history went on as it was");
}

/// The relay says once why it began anew, and on the new primary all is as in a first epoch.
async fn expect_new_epoch(server: &TestPostgres, relay: &Relay, old: &str, why: &str) {
    relay.wait_line(ANEW).await;
    relay.wait_ready().await;
    let lines: Vec<String> = relay.output().into_iter().filter(|line| line.contains(ANEW)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains(why), "{lines:?}");

    let mut device = Device::of(relay, "1", "later").connect().await;
    device.send(&json!({"type": "subscribe", "topics": TOPICS, "cursor": old})).await;
    let told = device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(TOPICS), &json!("epoch")));
    let ask = json!({"device_id": "later", "topics": TOPICS, "cursor": old});
    let answer = relay.http_as("1").post("/api/realtime/sync", &ask).await.expect_status(200);
    assert_eq!(answer.full_reason("orders").as_deref(), Some("epoch"));

    let mut copy = Copy::default();
    let cursor = copy.sync(&relay.http_as("1"), &ask).await;
    copy.assert_equals(server, "orders", &orders_of("1")).await;
    device.subscribe(TOPICS, Some(&cursor)).await;
    insert(server, 900..901).await;
    assert_eq!(device.change().await.key_text(), r#"{"id":900}"#);
}

#[tokio::test]
async fn a_promoted_standby_that_has_all_keeps_the_epoch() {
    if !slots_are_kept() {
        return;
    }
    let (mut primary, standby) = pair().await;
    hold_back_for_standby(&primary).await;
    let relay = relay_on(&primary, &standby).await;
    let (mut online, mut away) = (Follower::of(&relay, "online").await, Follower::of(&relay, "away").await);
    insert(&primary, 1..6).await;
    online.get(5).await;
    away.get(5).await;
    away.device.close().await;
    away.device = Device::of(&relay, "1", "idle").connect().await;
    insert(&primary, 6..11).await;
    online.get(5).await;
    standby.has_slot().await;
    // Written, and seen by nobody but the primary and the standby: the relay stands still.
    relay.freeze();
    insert(&primary, 11..16).await;
    let promoted = fail_over(&mut primary, standby).await;
    insert(&promoted, 16..21).await;
    relay.thaw();
    online.get(10).await;
    online.assert_exact(&promoted).await;
    away.come_back(&relay).await;
    away.assert_exact(&promoted).await;
    let mut new = Copy::default();
    new.sync(&relay.http_as("1"), &json!({"device_id": "new", "topics": TOPICS})).await;
    new.assert_equals(&promoted, "orders", &orders_of("1")).await;
    assert_one_epoch(&relay);
    // The control file tells it only after the next checkpoint.
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(promoted.value(timeline).await, "00000002");
}

#[tokio::test]
async fn commits_that_the_new_primary_lacks_are_told() {
    if !slots_are_kept() {
        return;
    }
    let (mut primary, standby) = pair().await;
    let relay = relay_on(&primary, &standby).await;
    let mut device = Follower::of(&relay, "phone").await;
    insert(&primary, 1..6).await;
    device.get(5).await;
    standby.has_slot().await;
    standby.caught_up(&primary).await;
    standby.cut_off().await;
    insert(&primary, 6..9).await;
    device.get(3).await;
    primary.kill9();
    let promoted = standby.promote().await;
    assert_eq!(rows_as_json(&promoted, &orders_of("1")).await.len(), 5);
    // More than was lost, so that the new history reaches beyond the old one.
    insert(&promoted, 100..110).await;
    let told = device.device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(TOPICS), &json!("epoch")));
    assert_eq!(device.device.expect_close().await.0, 1012);
    expect_new_epoch(&promoted, &relay, &device.cursor, "moved to another timeline").await;
}

#[tokio::test]
async fn the_relay_is_never_ahead_of_a_standby_that_must_have_all() {
    if !slots_are_kept() {
        return;
    }
    let (primary, standby) = pair().await;
    hold_back_for_standby(&primary).await;
    let relay = relay_on(&primary, &standby).await;
    let mut device = Follower::of(&relay, "phone").await;
    insert(&primary, 1..2).await;
    device.get(1).await;
    standby.cut_off().await;
    insert(&primary, 2..4).await;
    let waits = "SELECT count(*) FROM pg_stat_replication r JOIN pg_stat_activity a USING (pid)
        WHERE r.application_name = 'rowcast' AND a.wait_event = 'WaitForStandbyConfirmation'";
    eventually(PATIENCE, "the relay's walsender waits for the standby", async || {
        (primary.value(waits).await == "1").then_some(())
    })
    .await;
    device.device.drain_into(&mut device.copy).await;
    assert_eq!(device.copy.len(), 1, "only what the standby has");
    standby.let_follow();
    device.get(2).await;
    device.assert_exact(&primary).await;
}

#[tokio::test]
async fn a_promoted_standby_without_the_slot_is_a_new_epoch() {
    let mut primary = with_orders(Options::scratch()).await;
    let standby = Standby::without_slots_of(&mut primary).await;
    let relay = relay_on(&primary, &standby).await;
    let mut device = Follower::of(&relay, "phone").await;
    insert(&primary, 1..6).await;
    device.get(5).await;
    let promoted = fail_over(&mut primary, standby).await;
    let told = device.device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(TOPICS), &json!("epoch")));
    // By its history or by its slot, whichever is looked at first: the relay may have read a record more.
    expect_new_epoch(&promoted, &relay, &device.cursor, "every device has to sync in full").await;
}

#[tokio::test]
async fn a_former_primary_that_comes_back_is_not_followed() {
    if !slots_are_kept() {
        return;
    }
    let (mut primary, standby, mut relay, mut device) = followed_pair().await;
    standby.has_slot().await;
    let promoted = fail_over(&mut primary, standby).await;
    insert(&promoted, 4..5).await;
    device.get(1).await;
    relay.terminate().await;
    // Nobody fenced it, and it stands first in the list.
    primary.start_again().await;
    insert(&primary, 500..501).await;
    relay.start_again().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    relay.wait_line("it is a former primary").await;
    primary.stop_fast().await;
    relay.start_again().await;
    relay.wait_ready().await;
    insert(&promoted, 5..6).await;
    device.come_back(&relay).await;
    device.assert_exact(&promoted).await;
    assert_one_epoch(&relay);
}

#[tokio::test]
async fn a_crash_of_the_relay_and_a_promotion_at_once_are_a_new_epoch() {
    if !slots_are_kept() {
        return;
    }
    let (mut primary, standby, mut relay, device) = followed_pair().await;
    standby.has_slot().await;
    standby.caught_up(&primary).await;
    relay.kill9().await;
    primary.kill9();
    let promoted = standby.promote().await;
    relay.start_again().await;
    expect_new_epoch(&promoted, &relay, &device.cursor, "the relay had crashed").await;
}

#[tokio::test]
async fn a_relay_that_ended_in_order_goes_on_with_a_promoted_standby() {
    if !slots_are_kept() {
        return;
    }
    let (mut primary, standby, mut relay, mut device) = followed_pair().await;
    // A crash that the same primary has made good since does not count.
    relay.kill9().await;
    relay.start_again().await;
    relay.wait_ready().await;
    device.come_back(&relay).await;
    insert(&primary, 4..5).await;
    device.get(1).await;
    standby.has_slot().await;
    relay.terminate().await;
    let promoted = fail_over(&mut primary, standby).await;
    insert(&promoted, 5..7).await;
    relay.start_again().await;
    relay.wait_ready().await;
    device.come_back(&relay).await;
    device.assert_exact(&promoted).await;
    assert_one_epoch(&relay);
}
