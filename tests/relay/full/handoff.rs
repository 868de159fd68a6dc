//! The race of snapshot and stream, made certain: a commit that is decoded and not yet visible.

use serde_json::json;

use crate::support::copy::Copy;
use crate::support::device::Device;
use crate::support::postgres::explain;
use crate::support::scene::scene;
use crate::support::wait::{PATIENCE, eventually};

const TABLE: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, n int);
    SELECT rowcast.track('orders');
    INSERT INTO orders SELECT n, 1, 0 FROM generate_series(1, 10) n;";

/// A standby that does not exist holds commits up: the stream has them, no session sees them.
#[tokio::test]
async fn a_commit_that_is_decoded_and_not_visible_is_neither_lost_nor_repeated() {
    let (pg, relay) = scene(TABLE).await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(pg.client().await);
    }
    pg.await_absent_standby().await;
    let statements = [
        "INSERT INTO orders VALUES (100, 1, 1)",
        "UPDATE orders SET n = 7 WHERE id = 1",
        "DELETE FROM orders WHERE id = 2",
        "UPDATE orders SET user_id = 2 WHERE id = 3",
    ];
    let mut waiting = Vec::new();
    for (client, statement) in writers.into_iter().zip(statements) {
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        waiting.push((
            pid,
            tokio::spawn(async move {
                client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
            }),
        ));
        // Decoded: the device has it.
        device.change().await;
    }
    // Not visible: the table is as it was.
    assert_eq!(
        pg.value("SELECT count(*) || ' ' || sum(n) || ' ' || min(id) FROM orders WHERE user_id = 1").await,
        "10 0 1"
    );

    let mut fresh = Device::of(&relay, "1", "fresh").connect().await;
    fresh.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "snapshot": true})).await;
    let told = fresh.until("snapshot_end").await;
    let of = |kind: &str| told.iter().filter(|frame| frame.kind == kind).collect::<Vec<_>>();
    assert_eq!(of("snapshot_begin")[0].json()["total_rows"], 10, "as other sessions see the table");
    assert_eq!(of("database_change").len(), 4, "and what they do not see yet: {told:?}");

    let http = relay.http_as("1");
    let mut copy = Copy::default();
    let cursor = copy.sync(&http, &json!({"device_id": "d", "topics": ["user:1:*"]})).await;
    let expected = [r#"{"id":1,"user_id":1,"n":7}"#, r#"{"id":100,"user_id":1,"n":1}"#];
    let mut ids: Vec<String> = (4..=10).map(|id| format!(r#"{{"id":{id},"user_id":1,"n":0}}"#)).collect();
    ids.extend(expected.map(str::to_owned));
    ids.sort();
    assert_eq!(copy.records("orders"), ids, "what is committed, visible or not");
    // Behind the cursor there is nothing of it any more.
    let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor});
    let next = http.post("/api/realtime/sync", &body);
    assert_eq!(next.await.expect_status(200).json()["total_changes"], 0);

    pg.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    pg.sql("SELECT pg_reload_conf()").await;
    for (pid, writer) in waiting {
        eventually(PATIENCE, "the commits return", async || {
            (pg.value(&format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
            ))
            .await
                == "0")
                .then_some(())
        })
        .await;
        writer.await.unwrap();
    }
    copy.sync(&http, &json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor})).await;
    copy.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = 1").await;
    // And a full sync from here on sees them.
    let mut fresh = Copy::default();
    fresh.sync(&http, &json!({"device_id": "e", "topics": ["user:1:*"]})).await;
    fresh.assert_equals(&pg, "orders", "SELECT * FROM orders WHERE user_id = 1").await;
}
