//! Syncs over REST while writers commit.

use serde_json::{Value, json};

use crate::support::copy::{Copy, SyncPage};
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::http::Http;
use crate::support::postgres::TestPostgres;
use crate::support::scene::{changes_until_now, listening, scene, told};
use crate::support::wait::{PATIENCE, eventually};
use crate::support::writers::{A, B, TABLES, write_all};

/// Devices are told before the log can be read. Waits until a sync can see all that a device was told.
async fn logged(device: &mut Device, http: &Http) {
    device.send(&json!({"type": "ping"})).await;
    let cursor = device.expect("pong").await.cursor().unwrap();
    let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor});
    eventually(PATIENCE, "the log has what a device has", async || {
        (http.post("/api/realtime/sync", &body).await.status == 200).then_some(())
    })
    .await;
}

async fn assert_copies(pg: &TestPostgres, copy: &Copy, user: &str) {
    for table in ["a", "b"] {
        copy.assert_equals(pg, table, &format!("SELECT * FROM {table} WHERE user_id = {user}")).await;
    }
}

#[tokio::test]
async fn a_sync_and_a_subscription_with_its_cursor_join_without_a_gap() {
    let mut dice = Dice::seeded("a_sync_and_a_subscription_with_its_cursor_join_without_a_gap");
    let (pg, relay) = scene(TABLES).await;
    let (_, cursor) = listening(&relay, "1", "phone").await;
    let http = relay.http_as("1");
    let writing = write_all(&pg, &[A, B], &mut dice, 3, 60);
    let joining = async {
        let mut copies = Vec::new();
        for n in 1..=8 {
            let mut copy = Copy::default();
            let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor, "limit": n * 7});
            let cursor = copy.sync(&http, &body).await;
            let mut device = Device::of(&relay, "1", "d").connect().await;
            device.subscribe(&["user:1:*"], Some(&cursor)).await;
            copies.push((device, copy));
        }
        copies
    };
    let ((), copies) = tokio::join!(writing, joining);
    for (mut device, mut copy) in copies {
        let id = pg.value("SELECT rowcast.broadcast('user:1:mark', 'mark', 'null')").await;
        loop {
            let frame = device.recv().await;
            if let Some(change) = frame.change() {
                copy.apply(&change);
            } else if frame.kind == "broadcast" && frame.json()["id"] == id.as_str() {
                break;
            }
        }
        assert_copies(&pg, &copy, "1").await;
    }
}

#[tokio::test]
async fn pages_of_any_size_come_to_the_same_rows() {
    let mut dice = Dice::seeded("pages_of_any_size_come_to_the_same_rows");
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "phone").await;
    write_all(&pg, &[A, B], &mut dice, 3, 60).await;
    changes_until_now(&pg, &mut device, "user:1").await;
    logged(&mut device, &relay.http_as("1")).await;
    for limit in [1, 2, 7, 100, 1000] {
        let mut copy = Copy::default();
        let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor, "limit": limit});
        copy.sync(&relay.http_as("1"), &body).await;
        assert_copies(&pg, &copy, "1").await;
    }
}

#[tokio::test]
async fn a_transaction_larger_than_a_page_is_cut_and_says_so() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO a SELECT n, 1, n, '' FROM generate_series(1, 25) n").await;
    pg.sql("INSERT INTO b VALUES (1, 1, 1, '')").await;
    device.changes(26).await;
    logged(&mut device, &relay.http_as("1")).await;
    let mut body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor, "limit": 10});
    let mut pages = Vec::new();
    loop {
        let page: SyncPage =
            relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).parse();
        body["cursor"] = page.cursor.clone().into();
        let more = page.has_more;
        pages.push((page.changes.values().map(Vec::len).sum::<usize>(), page.consistent));
        if !more {
            break;
        }
    }
    assert!(pages.iter().all(|(count, _)| *count <= 10), "{pages:?}");
    assert_eq!(pages.iter().map(|(count, _)| count).sum::<usize>(), 26);
    assert_eq!(pages[..2], [(10, false), (10, false)]);
    assert!(pages.last().unwrap().1);
}

/// By time alone, again and again with the answer's `sync_timestamp`: may repeat, never misses.
#[tokio::test]
async fn a_sync_by_timestamp_never_misses() {
    let mut dice = Dice::seeded("a_sync_by_timestamp_never_misses");
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO a VALUES (1000, 1, 0, '')").await;
    device.change().await;
    let mut copy = Copy::default();
    let http = relay.http_as("1");
    logged(&mut device, &http).await;
    let first = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor});
    let mut since = sync_once(&http, &mut copy, first).await;
    let writing = write_all(&pg, &[A, B], &mut dice, 4, 60);
    tokio::pin!(writing);
    loop {
        let by_time =
            json!({"device_id": "d", "topics": ["user:1:*"], "last_sync_timestamp": since, "limit": 50});
        tokio::select! {
            () = &mut writing => break,
            next = sync_once(&http, &mut copy, by_time) => {
                assert!(next >= since, "{next} after {since}");
                since = next;
            }
        }
    }
    told(&changes_until_now(&pg, &mut device, "user:1").await);
    logged(&mut device, &http).await;
    let last = json!({"device_id": "d", "topics": ["user:1:*"], "last_sync_timestamp": since});
    sync_once(&http, &mut copy, last).await;
    assert_copies(&pg, &copy, "1").await;
}

/// All pages, the further ones by cursor; returns the last `sync_timestamp`.
async fn sync_once(http: &Http, copy: &mut Copy, mut body: Value) -> String {
    let mut pages: Vec<SyncPage> = Vec::new();
    loop {
        let answer = http.post("/api/realtime/sync", &body).await.expect_status(200);
        let timestamp = answer.json()["sync_timestamp"].as_str().unwrap().to_owned();
        let page: SyncPage = answer.parse();
        body["cursor"] = page.cursor.clone().into();
        let more = page.has_more;
        pages.push(page);
        if !more {
            copy.apply_sync(&pages);
            return timestamp;
        }
    }
}

/// A cursor that REST gave in the middle of a transaction is one to go on from over the socket.
#[tokio::test]
async fn a_cut_pages_cursor_goes_on_over_the_socket() {
    let (pg, relay) = scene(TABLES).await;
    let (mut device, cursor) = listening(&relay, "1", "tablet").await;
    pg.sql("INSERT INTO a SELECT n, 1, n, '' FROM generate_series(1, 25) n").await;
    device.changes(25).await;
    let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor, "limit": 10});
    // A session has seen it; a replay waits until the log has.
    super::rest_from(&relay, &cursor).await;
    let page: SyncPage =
        relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).parse();
    assert!(page.has_more && !page.consistent);
    let rest = super::rest_from(&relay, &page.cursor).await;
    assert_eq!(rest.len(), 15, "{rest:?}");
}
