//! Each fault by itself, where no other test has it: kills, stops and takeovers are in `crash` and
//! `slot`, a track with transactions open across it in `tracking`, revocations in `grants`.

use std::time::Duration;

use serde_json::{Value, json};

use super::Fault;
use super::world::{ANEW, World};
use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::dice::Dice;
use crate::support::frame::place;
use crate::support::http::Http;
use crate::support::proxy::Flow;
use crate::support::token;
use crate::support::wait::eventually;

use super::world::RECOVERY;

const ORDERS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, amount int, note text);
    CREATE UNIQUE INDEX ON orders (user_id, id);
    CREATE TABLE meals (id int PRIMARY KEY, user_id int NOT NULL, note text);
    CREATE UNIQUE INDEX ON meals (user_id, id);
    SELECT rowcast.track('orders'), rowcast.track('meals');
    INSERT INTO orders SELECT n, 1, n, 'x' FROM generate_series(1, 20) n;
    INSERT INTO meals SELECT n, 1, 'soup' FROM generate_series(1, 5) n";

async fn world() -> World {
    World::start(ORDERS, &["1"], |setup| setup).await
}

/// A copy of user 1's rows that is kept over REST.
struct Reader {
    http: Http,
    copy: Copy,
    cursor: Option<String>,
}

impl Reader {
    fn of(world: &World) -> Self {
        let http = Http::at(world.address()).with_token(&token::user("1"));
        Reader { http, copy: Copy::default(), cursor: None }
    }

    fn body(&self) -> Value {
        json!({"device_id": "reader", "topics": ["user:1:*"], "cursor": self.cursor})
    }

    /// Syncs until the copy is what the database holds.
    async fn equals(&mut self, world: &World) {
        // What was committed before is in the log once a fence has come through it.
        let mut fence = Device::of(&world.relay, "1", "fence").connect().await;
        fence.subscribe(&["user:1:mark"], None).await;
        world.pg.sql("SELECT rowcast.broadcast('user:1:mark', 'mark', 'null')").await;
        let mark = fence.expect("broadcast").await.json()["cursor"].as_str().unwrap().to_owned();
        eventually(RECOVERY, "a sync is answered", async || {
            let answer =
                self.http.request("POST", "/api/realtime/sync").json(&self.body()).try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        // Devices hear of it at once, and the log has it when its disk does.
        eventually(RECOVERY, "the log has what devices heard", async || {
            let reached = self.copy.sync(&self.http, &self.body()).await;
            let there = place(&reached) >= place(&mark);
            self.cursor = Some(reached);
            there.then_some(())
        })
        .await;
        for table in ["orders", "meals"] {
            self.copy
                .assert_equals(&world.pg, table, &format!("SELECT * FROM {table} WHERE user_id = 1"))
                .await;
        }
    }
}

/// Throws one fault, some of its ways one after the other; the copy is right after each.
async fn endure(fault: Fault, rounds: u64) {
    let mut world = world().await;
    let mut reader = Reader::of(&world);
    reader.equals(&world).await;
    for round in 1..=rounds {
        world.pg.sql(&format!("INSERT INTO orders VALUES ({}, 1, 0, 'before')", 1000 + round)).await;
        world.suffer(fault, &mut Dice(round)).await;
        world.pg.sql(&format!("INSERT INTO orders VALUES ({}, 1, 0, 'after')", 2000 + round)).await;
        reader.equals(&world).await;
    }
}

#[tokio::test]
async fn a_slot_dropped_and_made_by_a_foreign_hand_is_a_new_epoch() {
    endure(Fault::DropSlot, 4).await;
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_is_told_and_nothing_is_missed_once_it_is_back() {
    endure(Fault::Unpublish, 4).await;
}

/// What the stream leaves out meanwhile nobody knows: a new epoch, and until it is mended no stream.
#[tokio::test]
async fn a_publication_with_other_options_is_refused_with_what_to_do_and_then_a_new_epoch() {
    endure(Fault::PublicationOptions, 4).await;
}

#[tokio::test]
async fn a_stream_that_lags_behind_its_catalog_arrives_at_it() {
    endure(Fault::LagBehindCatalog, 3).await;
}

#[tokio::test]
async fn tables_rewritten_while_they_are_synced_in_full() {
    endure(Fault::Rewrite, 2).await;
}

#[tokio::test]
async fn a_disk_that_is_full_is_waited_out() {
    endure(Fault::DiskFull, 3).await;
}

#[tokio::test]
async fn a_disk_that_fails_is_waited_out() {
    endure(Fault::DiskErrors, 8).await;
}

/// The first comes back with the log that it had, which is of an epoch before the other's.
#[tokio::test]
async fn two_relays_take_turns_on_one_slot() {
    endure(Fault::SecondRelay, 3).await;
}

#[tokio::test]
async fn links_with_devices_that_stall_and_slow_lose_nothing() {
    let world = world().await;
    let mut device = Device::of(&world.relay, "1", "phone").via(world.address()).connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let mut dice = Dice(5);
    for round in 0..3 {
        let slow = async { world.slow(super::Link::Devices, &mut dice).await };
        let write = async {
            for number in 0..40 {
                let sql = format!(
                    "INSERT INTO orders VALUES ({}, 1, 0, repeat('x', 500))",
                    1000 + round * 100 + number
                );
                world.pg.sql(&sql).await;
            }
        };
        let read = async {
            for number in 0..40 {
                let key = format!(r#"{{"id":{}}}"#, 1000 + round * 100 + number);
                assert_eq!(device.change().await.key_text(), key);
            }
        };
        tokio::join!(slow, write, read);
    }
}

/// A full sync that waits for a stream which lags holds no lock meanwhile: an application's DDL, and all
/// that would queue behind it, goes on.
#[tokio::test]
async fn a_full_sync_that_waits_for_the_stream_makes_no_ddl_wait() {
    let world = world().await;
    world.link.set_changes(Flow::Stalled);
    let reader = Reader::of(&world);
    let ask = reader.http.request("POST", "/api/realtime/sync").json(&reader.body());
    let syncing = tokio::spawn(ask.send());
    eventually(RECOVERY, "a fence is committed", async || {
        (world.relay.metric("rowcast_fences_total").await >= Some(1.0)).then_some(())
    })
    .await;
    // Less than a fence is waited for.
    world
        .pg
        .sql("SET lock_timeout = '2s'; ALTER TABLE orders ADD COLUMN added int DEFAULT 1; RESET lock_timeout")
        .await;
    world.link.set_changes(Flow::Open);
    let answer = syncing.await.unwrap();
    assert!([200, 503].contains(&answer.status), "{}", answer.text());
    Reader::of(&world).equals(&world).await;
}

/// A time of the log before may lie ahead of the clock, and then among the times of the new one.
#[tokio::test]
async fn a_time_of_an_epoch_before_misses_nothing() {
    an_older_time_misses_nothing(async |world| world.suffer(Fault::DropSlot, &mut Dice(2)).await).await;
}

/// The new one is not there yet, and the old one is over.
#[tokio::test]
async fn nor_does_it_where_the_relay_is_killed_between_the_two() {
    an_older_time_misses_nothing(async |world| {
        const MAKES: &str = "creating the replication slot";
        let begun = world.relay.count_lines(MAKES);
        let mut client = world.pg.client().await;
        let open = client.transaction().await.unwrap();
        open.batch_execute("SELECT pg_current_xact_id()").await.unwrap();
        world.take_slot_away().await;
        eventually(RECOVERY, "it waits for the transaction", async || {
            (world.relay.count_lines(MAKES) > begun).then_some(())
        })
        .await;
        world.relay.kill9().await;
        open.commit().await.unwrap();
        world.start_relay().await;
        world.new_epochs(2).await;
        world.recovered().await;
    })
    .await;
}

async fn an_older_time_misses_nothing(another_epoch: impl AsyncFnOnce(&mut World)) {
    let mut world = world().await;
    world.link.jump_commit_times(7, Duration::from_secs(3600));
    for number in 1..=3 {
        world.pg.sql(&format!("INSERT INTO orders VALUES (1000 + {number}, 1, 0, 'before')")).await;
    }
    let mut reader = Reader::of(&world);
    reader.equals(&world).await;
    let page = reader.http.post("/api/realtime/sync", &reader.body()).await.expect_status(200).json();
    let time = page["sync_timestamp"].clone();
    another_epoch(&mut world).await;
    world.pg.sql("DELETE FROM orders WHERE id <= 3").await;
    for number in 1..=60 {
        world.pg.sql(&format!("INSERT INTO orders VALUES (2000 + {number}, 1, 0, 'after')")).await;
    }
    let mut other = Reader::of(&world);
    other.equals(&world).await;
    let mut body = Reader::of(&world).body();
    body["last_sync_timestamp"] = time;
    let pages = crate::support::copy::pages(&reader.http, &body).await;
    reader.copy.apply_repeating(&pages);
    reader.cursor = pages.last().map(|page| page.cursor.clone());
    reader.equals(&world).await;
}

/// By timestamp, nothing is missed: what is asked for begins at the first commit that is as late.
#[tokio::test]
async fn commit_times_that_jump_are_no_order() {
    let mut world = world().await;
    let mut reader = Reader::of(&world);
    reader.equals(&world).await;
    let mut copies = Vec::new();
    for round in 1..=6 {
        world.suffer(Fault::CommitTimes, &mut Dice(round)).await;
        for number in 0..4 {
            let sql = format!(
                "INSERT INTO orders VALUES ({}, 1, 0, 'jump'); DELETE FROM orders WHERE id = {}; UPDATE orders SET amount = amount + 1 WHERE id = {number}",
                1000 + round * 10 + number,
                number + round,
            );
            world.pg.sql(&sql).await;
        }
        let page = reader.http.post("/api/realtime/sync", &reader.body()).await.expect_status(200).json();
        reader.equals(&world).await;
        copies.push((reader.copy.clone(), page["sync_timestamp"].clone()));
    }
    assert!(world.link.jumped() > 0);
    // An older copy, by its time, and then by cursor.
    for (copy, time) in copies {
        let mut again = Reader { copy, ..Reader::of(&world) };
        let mut body = again.body();
        body["last_sync_timestamp"] = time;
        let pages = crate::support::copy::pages(&again.http, &body).await;
        again.copy.apply_repeating(&pages);
        again.cursor = pages.last().map(|page| page.cursor.clone());
        again.equals(&world).await;
    }
    assert_eq!(world.relay.count_lines(ANEW), 0);
}

/// A session that full syncs keep may have lost its path, of which nobody tells: the next sync is answered all
/// the same, and so is the same request by the same device, which waits for what is under way.
#[tokio::test]
async fn a_session_whose_path_is_gone_keeps_no_full_sync() {
    let world = world().await;
    let reader = Reader::of(&world);
    let sync = async || {
        let answer = reader.http.request("POST", "/api/realtime/sync").json(&reader.body()).try_send().await;
        answer.unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(sync().await.status, 200);
    world.link.silence();
    eventually(RECOVERY, "a full sync is answered", async || {
        let answer = sync().await;
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
        // While it takes long, there are pages without rows.
        (answer.status == 200 && answer.json()["has_more"] == false).then_some(())
    })
    .await;
}
