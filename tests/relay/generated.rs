//! Generated columns: they leave only where PostgreSQL replicates them and they are named, and an identity
//! that holds one never breaks the application's statements.

use serde_json::json;

use crate::support::copy::Copy;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{changes_until_now, frames_until_now, listening, scene, scene_with, told};
use crate::support::versions::since;

const SINCE: u32 = 18;

/// A device's copy by full sync.
async fn full(relay: &Relay, user: &str) -> Copy {
    let mut copy = Copy::default();
    copy.sync(&relay.http_as(user), &json!({"device_id": "full", "topics": [format!("user:{user}:*")]}))
        .await;
    copy
}

async fn refusal(pg: &TestPostgres, statement: &str) -> String {
    let error = pg.refusal(statement).await;
    format!("{} {} {}", error.message(), error.detail().unwrap_or_default(), error.hint().unwrap_or_default())
}

const ORDERS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, price numeric(10,2) NOT NULL, quantity int,
      total numeric GENERATED ALWAYS AS (price * quantity) STORED, label text GENERATED ALWAYS AS (repeat('x', id)) STORED,
      gross numeric GENERATED ALWAYS AS (price * 2) VIRTUAL);
    INSERT INTO orders VALUES (1, 1, 9.50, 3), (2, 1, 0.10, NULL), (3, 2, 7, 1);
    SELECT rowcast.track('orders', columns => ARRAY['total', 'price', 'user_id', 'id']);";
const LEAVES: &str = "SELECT id, user_id, price, total FROM orders WHERE user_id = 1";

#[tokio::test]
async fn a_stored_column_leaves_where_it_is_named() {
    if !since(SINCE, "generated columns in publications") {
        return;
    }
    let (pg, relay) = scene(ORDERS).await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let mut copy = full(&relay, "1").await;
    copy.assert_equals(&pg, "orders", LEAVES).await;
    pg.sql("INSERT INTO orders VALUES (4, 1, 2.25, 4)").await;
    pg.sql("UPDATE orders SET quantity = 5 WHERE id <= 2").await;
    pg.sql("UPDATE orders SET user_id = 1, price = 8 WHERE id = 3; UPDATE orders SET id = 40 WHERE id = 4")
        .await;
    pg.sql("DELETE FROM orders WHERE id = 1").await;
    let changes = changes_until_now(&pg, &mut device, "user:1").await;
    assert_eq!(
        told(&changes)[0],
        r#"INSERT user:1:orders {"id":4,"user_id":1,"price":2.25,"total":9.00} last"#
    );
    changes.iter().for_each(|change| copy.apply(change));
    copy.assert_equals(&pg, "orders", LEAVES).await;
    assert_eq!(full(&relay, "1").await.records("orders"), copy.records("orders"));
}

#[tokio::test]
async fn a_new_expression_makes_copies_stale() {
    if !since(SINCE, "generated columns in publications") {
        return;
    }
    let (pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")).await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    // Rewrites the table, and puts no row into the stream.
    pg.sql("ALTER TABLE orders ALTER COLUMN total SET EXPRESSION AS (price * quantity + 1)").await;
    assert_eq!(device.expect("sync_required").await.json()["reason"], "schema_changed");
    full(&relay, "1").await.assert_equals(&pg, "orders", LEAVES).await;
}

#[tokio::test]
async fn what_is_not_named_or_not_stored_does_not_leave() {
    if !since(SINCE, "generated columns in publications") {
        return;
    }
    let (pg, relay) = scene(ORDERS).await;
    let said =
        refusal(&pg, "SELECT rowcast.track('orders', columns => ARRAY['id', 'user_id', 'gross'])").await;
    assert!(said.contains("gross") && said.contains("virtual column has no value"), "{said}");
    let said = refusal(&pg, "SELECT rowcast.track('orders', topics => ARRAY['user:{total}:orders'])").await;
    assert!(said.contains("cannot stand in a topic"), "{said}");
    pg.sql("SELECT rowcast.track('orders')").await;
    // The relay has come behind the track.
    let (mut other, _) = listening(&relay, "1", "tablet").await;
    frames_until_now(&pg, &mut other, "user:1").await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let mut copy = full(&relay, "1").await;
    pg.sql("UPDATE orders SET quantity = 6; INSERT INTO orders VALUES (9, 1, 1, 1)").await;
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    copy.assert_equals(&pg, "orders", "SELECT id, user_id, price, quantity FROM orders WHERE user_id = 1")
        .await;
    let parts = "
        CREATE TABLE parts (id int PRIMARY KEY, user_id int NOT NULL, twice int GENERATED ALWAYS AS (user_id * 2) STORED)
          PARTITION BY RANGE (id);
        CREATE TABLE parts_one PARTITION OF parts FOR VALUES FROM (0) TO (10);";
    pg.sql(parts).await;
    let said =
        refusal(&pg, "SELECT rowcast.track('parts', columns => ARRAY['id', 'user_id', 'twice'])").await;
    assert!(said.contains("by a column list, which partitions cannot have"), "{said}");
}

/// From 18 on such an identity makes the application's UPDATE and DELETE fail; none is left on any version.
#[tokio::test]
async fn an_identity_with_a_generated_column_is_replaced() {
    let (pg, relay) = scene(
        "CREATE TABLE coded (id int PRIMARY KEY, user_id int NOT NULL, note text,
           code int GENERATED ALWAYS AS (id + 1) STORED NOT NULL);
         CREATE UNIQUE INDEX coded_code ON coded (code, user_id, id);
         ALTER TABLE coded REPLICA IDENTITY USING INDEX coded_code;
         CREATE TABLE whole (id int PRIMARY KEY, user_id int NOT NULL, note text, code int GENERATED ALWAYS AS (id + 1) STORED);
         ALTER TABLE whole REPLICA IDENTITY FULL;
         SELECT rowcast.track('coded'); SELECT rowcast.track('whole');",
    )
    .await;
    let (mut device, _) = listening(&relay, "1", "phone").await;
    let mut copy = Copy::default();
    for table in ["coded", "whole"] {
        pg.sql(&format!("INSERT INTO {table} VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c')")).await;
        pg.sql(&format!(
            "UPDATE {table} SET note = 'changed' WHERE id = 1; DELETE FROM {table} WHERE id = 2"
        ))
        .await;
        pg.sql(&format!(
            "UPDATE {table} SET user_id = 1 WHERE id = 3; UPDATE {table} SET id = 10 WHERE id = 1"
        ))
        .await;
    }
    for change in changes_until_now(&pg, &mut device, "user:1").await {
        copy.apply(&change);
    }
    for table in ["coded", "whole"] {
        let rows = format!("SELECT id, user_id, note FROM {table} WHERE user_id = 1");
        copy.assert_equals(&pg, table, &rows).await;
        full(&relay, "1").await.assert_equals(&pg, table, &rows).await;
    }
}
