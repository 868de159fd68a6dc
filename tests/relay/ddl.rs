//! DDL: what changes the shape of a table is told to its readers, and to them alone; what does not
//! change it is told to nobody; and ingest never stops for either.

use serde_json::json;

use crate::support::copy::rows_as_json;
use crate::support::device::Device;
use crate::support::frame::{Change, Frame};
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::stage::{database, frames_until_now, relay_on, synced};

/// `orders` is what DDL is done to; `meals` must not notice.
const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TYPE size AS (width int, height int);
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, amount int, note text, mood mood, size size, spare text, UNIQUE (user_id, id));
    CREATE TABLE meals (id int PRIMARY KEY, user_id int NOT NULL, name text, UNIQUE (user_id, id));
    SELECT rowcast.track('orders'), rowcast.track('meals');
    INSERT INTO orders (id, user_id, amount, note, mood, size, spare)
      SELECT i, 1, i * 10, 'n', 'good', ROW(1, 2)::size, 's' FROM generate_series(1, 3) AS i;";

struct Stage {
    pg: TestPostgres,
    relay: Relay,
    device: Device,
}

/// A device of user 1 that reads everything, by a wildcard.
async fn stage() -> Stage {
    let pg = database().await;
    pg.sql(TABLES).await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    Stage { pg, relay, device }
}

impl Stage {
    /// The next `sync_required`; nothing may come before it but changes of `meals`.
    async fn told(&mut self, what: &str) -> Frame {
        let mut frames = self.device.until("sync_required").await;
        let told = frames.pop().expect("the frame");
        for frame in frames {
            let of = frame.change().map(|change| change.topic);
            assert_eq!(of.as_deref(), Some("user:1:meals"), "{what}: {}", frame.text);
        }
        told
    }

    /// Told `reason` about `orders` and nothing else.
    async fn expect_told(&mut self, reason: &str, what: &str) -> Frame {
        let told = self.told(what).await;
        let json = told.json();
        assert_eq!(json["topics"], json!(["user:1:orders"]), "{what}");
        assert_eq!(json["reason"], reason, "{what}");
        told
    }

    /// Reads `orders` again by name; rows from then on are as the database prints them.
    async fn rejoin(&mut self, what: &str) {
        self.device.subscribe(&["user:1:orders"], None).await;
        self.equal_rows("orders", what).await;
    }

    /// Updates all rows of user 1 in a table, and compares what comes with the database.
    async fn equal_rows(&mut self, table: &str, what: &str) {
        self.equal_rows_after(table, "user_id = user_id", what).await;
    }

    /// The same by an update that changes something: others are dropped where the old row is known.
    async fn equal_rows_after(&mut self, table: &str, assignment: &str, what: &str) {
        self.pg.sql(&format!("UPDATE {table} SET {assignment} WHERE user_id = 1")).await;
        let frames = frames_until_now(&self.pg, &mut self.device, "user:1").await;
        let changes: Vec<Change> = frames.iter().map(|frame| change_of(frame, what)).collect();
        let topic = changes.first().map(|change| change.topic_table().to_owned());
        let mut records: Vec<_> = changes.iter().map(|change| change.record_text().to_owned()).collect();
        records.sort();
        let query = format!("SELECT * FROM {table} WHERE user_id = 1");
        assert_eq!(records, rows_as_json(&self.pg, &query).await, "{what}, in {topic:?}");
    }

    /// `meals` flows, and nothing else was said.
    async fn meals_flow(&mut self, what: &str) {
        self.pg.sql("INSERT INTO meals SELECT coalesce(max(id), 0) + 1, 1, 'soup' FROM meals").await;
        let frames = frames_until_now(&self.pg, &mut self.device, "user:1").await;
        assert_eq!(frames.len(), 1, "{what}: {frames:?}");
        assert_eq!(change_of(&frames[0], what).topic, "user:1:meals", "{what}");
    }

    /// Waits until the relay has compared all tables with the database, by a change that it must find:
    /// what it found before about others has been told as well.
    async fn compared(&mut self) -> Vec<Frame> {
        self.pg
            .sql("CREATE TABLE IF NOT EXISTS canary (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('canary')")
            .await;
        let mut others = Vec::new();
        loop {
            self.device.subscribe(&["user:1:canary"], None).await;
            let column = self.pg.value("SELECT 'c' || replace(gen_random_uuid()::text, '-', '')").await;
            self.pg.sql(&format!("ALTER TABLE canary ADD COLUMN {column} int")).await;
            let told = loop {
                let mut frames = self.device.until("sync_required").await;
                let told = frames.pop().expect("the frame");
                others.extend(frames);
                if told.json()["topics"] == json!(["user:1:canary"]) {
                    break told;
                }
                others.push(told);
            };
            // Another reason is of the track, before.
            if told.json()["reason"] == "schema_changed" {
                break;
            }
        }
        others.extend(frames_until_now(&self.pg, &mut self.device, "user:1").await);
        others
    }
}

fn change_of(frame: &Frame, what: &str) -> Change {
    frame.change().unwrap_or_else(|| panic!("{what}: {}", frame.text))
}

#[tokio::test]
async fn ddl_is_told_to_readers_of_the_table_and_rows_have_the_new_shape() {
    let mut stage = stage().await;
    for ddl in [
        "ALTER TABLE orders ADD COLUMN added int",
        "ALTER TABLE orders ADD COLUMN with_default int NOT NULL DEFAULT 7",
        "ALTER TABLE orders ADD COLUMN volatile uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE orders DROP COLUMN spare",
        "ALTER TABLE orders RENAME COLUMN note TO remark",
        "ALTER TABLE orders ALTER amount TYPE int USING amt100(amount)",
        "ALTER TABLE orders ALTER amount TYPE numeric(10,2) USING amount / 100.0",
        "ALTER TYPE mood ADD VALUE 'so so'",
        "ALTER TYPE mood RENAME VALUE 'good' TO 'great'",
        "ALTER TYPE size ADD ATTRIBUTE depth int",
        "ALTER TYPE size RENAME ATTRIBUTE depth TO deep",
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (user_id, id)",
        "ALTER TABLE orders RENAME TO purchases",
        "ALTER TABLE purchases RENAME TO orders",
        "CREATE SCHEMA shop; ALTER TABLE orders SET SCHEMA shop; ALTER ROLE postgres SET search_path = shop, public; SET search_path = shop, public",
    ] {
        if ddl.contains("amt100") {
            stage.pg.sql("CREATE FUNCTION amt100(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 100'").await;
        }
        stage.pg.sql(ddl).await;
        stage.expect_told("schema_changed", ddl).await;
        stage.meals_flow(ddl).await;
        stage.device.subscribe(&["user:1:orders"], None).await;
        let table = if ddl.ends_with("TO purchases") { "purchases" } else { "orders" };
        stage.equal_rows(table, ddl).await;
        stage.meals_flow(ddl).await;
    }
}

#[tokio::test]
async fn values_of_a_changed_type_arrive_in_their_new_text() {
    let mut stage = stage().await;
    stage.pg.sql("ALTER TYPE mood ADD VALUE 'so so'").await;
    stage.expect_told("schema_changed", "ADD VALUE").await;
    stage.device.subscribe(&["user:1:orders"], None).await;
    stage.pg.sql("UPDATE orders SET mood = 'so so' WHERE id = 1").await;
    assert!(stage.device.change().await.record_text().contains(r#""mood":"so so""#));
    stage.pg.sql("ALTER TYPE size ADD ATTRIBUTE depth int").await;
    stage.expect_told("schema_changed", "ADD ATTRIBUTE").await;
    stage.device.subscribe(&["user:1:orders"], None).await;
    stage.pg.sql("UPDATE orders SET size = ROW(1, 2, 3) WHERE id = 1").await;
    assert!(stage.device.change().await.record_text().contains(r#""size":{"width":1,"height":2,"depth":3}"#));
}

#[tokio::test]
async fn a_cursor_from_before_the_ddl_is_refused_for_that_table_alone() {
    let mut stage = stage().await;
    let before = stage.device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    stage
        .pg
        .sql("INSERT INTO meals VALUES (7, 1, 'soup'); ALTER TABLE orders ADD COLUMN added int DEFAULT 3")
        .await;
    stage.expect_told("schema_changed", "ADD COLUMN").await;
    // By REST for both tables: in full for the one alone.
    let sync = async |topics: serde_json::Value, cursor: &str| {
        let body = json!({"device_id": "phone", "topics": topics, "cursor": cursor});
        stage.relay.http_as("1").post("/api/realtime/sync", &body).await
    };
    let both = sync(json!(["user:1:*"]), &before).await.expect_status(200);
    assert_eq!(both.full_reason("orders").as_deref(), Some("schema_changed"));
    assert_eq!(both.full_reason("meals"), None);
    let meals = json!({"device_id": "phone", "topics": ["user:1:meals"], "cursor": before});
    synced(&stage.relay.http_as("1"), &meals, 1).await;
    // A second device with the old cursor is told, and goes on with what it can.
    let mut second = Device::of(&stage.relay, "1", "tablet").connect().await;
    second.send(&json!({"type": "subscribe", "topics": ["user:1:orders"], "cursor": before})).await;
    let told = second.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:orders"]), &json!("schema_changed")));
    second.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": before})).await;
    let told = second.expect("sync_required").await.json();
    assert_eq!(told["topics"], json!(["user:1:orders"]));
    second.expect("subscribed").await;
    second.expect("replay_begin").await;
    assert_eq!(second.change().await.topic, "user:1:meals");
    second.expect("caught_up").await;
    // With a cursor as new as `to`, everything after it comes.
    let to = told["to"].as_str().unwrap().to_owned();
    second.subscribe(&["user:1:orders"], Some(&to)).await;
    stage.pg.sql("UPDATE orders SET note = 'after' WHERE id = 1").await;
    let change = second.until("database_change").await.pop().unwrap().change().unwrap();
    assert!(
        change.record_text().contains(r#""note":"after""#) && change.record_text().contains(r#""added":3"#),
        "{change:?}"
    );
}

#[tokio::test]
async fn maintenance_is_told_to_nobody() {
    let mut stage = stage().await;
    stage.pg.sql("CREATE ROLE reader; CREATE INDEX orders_note ON orders (note)").await;
    stage.device.subscribe(&["user:1:orders"], None).await;
    for maintenance in [
        "VACUUM orders",
        "VACUUM (FREEZE) orders",
        "VACUUM FULL orders",
        "ANALYZE orders",
        "GRANT SELECT ON orders TO reader",
        "REVOKE SELECT ON orders FROM reader",
        "CREATE INDEX ON orders (amount)",
        "CREATE INDEX CONCURRENTLY ON orders (spare)",
        "DROP INDEX orders_note",
        "CLUSTER orders USING orders_pkey",
        "REINDEX TABLE orders",
        "REINDEX TABLE CONCURRENTLY orders",
        "COMMENT ON TABLE orders IS 'text'",
        "ALTER TABLE orders SET (fillfactor = 90)",
        "CREATE TABLE unrelated (id int); DROP TABLE unrelated",
        "CREATE STATISTICS orders_statistics ON amount, note FROM orders",
        "VACUUM FULL pg_attribute",
        "CHECKPOINT",
    ] {
        // Statements of their own: VACUUM runs in no transaction.
        for statement in maintenance.split("; ") {
            stage.pg.sql(statement).await;
        }
        let told: Vec<_> =
            stage.compared().await.into_iter().filter(|frame| frame.kind != "subscribed").collect();
        assert!(told.is_empty(), "{maintenance}: {told:?}");
        stage.equal_rows("orders", maintenance).await;
    }
    stage.pg.sql("TRUNCATE orders").await;
    assert_eq!(stage.device.change().await.operation, "TRUNCATE");
    let told = stage.compared().await;
    assert!(told.is_empty(), "TRUNCATE: {told:?}");
}

#[tokio::test]
async fn ddl_and_rows_in_one_transaction() {
    let mut stage = stage().await;
    stage.pg.sql(
        "BEGIN; UPDATE orders SET note = 'old shape' WHERE id = 1; ALTER TABLE orders ADD COLUMN added int DEFAULT 5;
         UPDATE orders SET note = 'new shape' WHERE id = 1; INSERT INTO meals VALUES (1, 1, 'soup');
         ALTER TABLE orders DROP COLUMN spare; INSERT INTO orders (id, user_id) VALUES (9, 1); COMMIT",
    )
    .await;
    let mut before = stage.device.until("sync_required").await;
    let told = before.pop().unwrap().json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:orders"]), &json!("schema_changed")));
    // A row that came before has the shape that the table had at its place, and nothing in between.
    for change in
        before.iter().map(|frame| change_of(frame, "mixed")).filter(|change| change.topic == "user:1:orders")
    {
        let record: serde_json::Value = serde_json::from_str(change.record_text()).unwrap();
        let added = if record["note"] == "old shape" { None } else { Some(&json!(5)) };
        // The last row was written after `spare` was dropped.
        let spare = if record["id"] == 9 { None } else { Some(&json!("s")) };
        assert_eq!((record.get("added"), record.get("spare")), (added, spare), "{change:?}");
    }
    let rest = frames_until_now(&stage.pg, &mut stage.device, "user:1").await;
    for frame in &rest {
        assert_eq!(change_of(frame, "mixed").topic, "user:1:meals");
    }
    stage.rejoin("mixed").await;
    stage.meals_flow("mixed").await;
}

#[tokio::test]
async fn ddl_while_the_relay_is_down() {
    let mut stage = stage().await;
    for (number, ddl) in [
        "ALTER TABLE orders ADD COLUMN added int DEFAULT 5",
        "ALTER TABLE orders ALTER amount TYPE text USING amount::text || ' EUR'; UPDATE orders SET note = 'again'",
        "ALTER TABLE orders DROP COLUMN mood; ALTER TYPE mood RENAME TO old_mood; DROP TYPE old_mood",
        "ALTER TABLE orders RENAME COLUMN note TO remark; ALTER TABLE orders ADD COLUMN note int DEFAULT 1; UPDATE orders SET note = 2",
    ]
    .into_iter()
    .enumerate()
    {
        let before = frames_cursor(&mut stage.device).await;
        stage.relay.terminate().await;
        stage.pg.sql(&format!("UPDATE orders SET amount = amount; {ddl}; INSERT INTO meals VALUES ({}, 1, 'while away')", number + 100)).await;
        stage.relay.start_again().await;
        stage.relay.wait_ready().await;
        stage.device = Device::of(&stage.relay, "1", "phone").connect().await;
        stage.device.send(&json!({"type": "subscribe", "topics": ["user:1:*"], "cursor": before})).await;
        // Told on subscribing, or as soon as the relay knows; and of the other table nothing is missing.
        let mut meals = 0;
        let mut told = false;
        while !told || meals == 0 {
            let frame = stage.device.recv().await;
            match frame.kind.as_str() {
                "sync_required" => {
                    assert_eq!(frame.json()["topics"], json!(["user:1:orders"]), "{ddl}");
                    assert_eq!(frame.json()["reason"], "schema_changed", "{ddl}");
                    told = true;
                }
                "database_change" => {
                    let change = change_of(&frame, ddl);
                    meals += usize::from(change.topic == "user:1:meals");
                }
                _ => {}
            }
        }
        stage.compared().await;
        stage.device.subscribe(&["user:1:orders"], None).await;
        stage.equal_rows("orders", ddl).await;
    }
}

#[tokio::test]
async fn a_broken_identity_blocks_the_table_until_it_is_mended() {
    let mut stage = stage().await;
    stage
        .pg
        .sql("CREATE TABLE notes (id int PRIMARY KEY, user_id int, text text); SELECT rowcast.track('notes')")
        .await;
    let newly = stage.device.expect("sync_required").await.json();
    assert_eq!(newly["reason"], "newly_tracked");
    stage.device.subscribe(&["user:1:notes"], None).await;
    stage.pg.sql("INSERT INTO notes VALUES (1, 1, 'a')").await;
    assert_eq!(stage.device.change().await.operation, "INSERT");
    for breaking in ["DEFAULT", "NOTHING"] {
        stage.pg.sql(&format!("ALTER TABLE notes REPLICA IDENTITY {breaking}")).await;
        // The change of shape is told first; what matters is told with the first row.
        assert_eq!(
            stage.device.expect("sync_required").await.json()["reason"],
            "schema_changed",
            "{breaking}"
        );
        stage.device.subscribe(&["user:1:notes"], None).await;
        stage
            .pg
            .sql(&format!("INSERT INTO notes SELECT max(id) + 1, 1, 'secret of {breaking}' FROM notes"))
            .await;
        let told = stage.device.expect("sync_required").await.json();
        assert_eq!(
            (&told["topics"], &told["reason"], &told["to"]),
            (&json!(["user:1:notes"]), &json!("identity"), &json!(null)),
            "{breaking}"
        );
        // Subscribing again is answered with the same, and nothing comes.
        stage.device.send(&json!({"type": "subscribe", "topics": ["user:1:notes"]})).await;
        assert_eq!(stage.device.expect("sync_required").await.json()["reason"], "identity");
        stage.pg.sql("INSERT INTO notes SELECT max(id) + 1, 1, 'not delivered' FROM notes").await;
        stage.meals_flow(breaking).await;
        assert_eq!(stage.relay.http().get("/ready").await.status, 200, "one table does not stop the rest");
        // Mended by track again; its readers sync, and rows flow.
        stage.pg.sql("SELECT rowcast.track('notes')").await;
        stage.compared().await;
        stage.device.subscribe(&["user:1:notes"], None).await;
        stage.equal_rows_after("notes", &format!("text = 'mended after {breaking}'"), breaking).await;
    }
}

#[tokio::test]
async fn an_identity_mended_by_hand_ends_the_block() {
    let mut stage = stage().await;
    stage
        .pg
        .sql("ALTER TABLE orders REPLICA IDENTITY DEFAULT; UPDATE orders SET note = 'x' WHERE id = 1")
        .await;
    loop {
        let told = stage.expect_told_any().await;
        if told["reason"] == "identity" {
            break;
        }
        stage.device.subscribe(&["user:1:orders"], None).await;
        stage.pg.sql("UPDATE orders SET note = 'y' WHERE id = 1").await;
    }
    stage.pg.sql("ALTER TABLE orders REPLICA IDENTITY FULL; UPDATE orders SET note = 'z' WHERE id = 1").await;
    stage.compared().await;
    stage.device.subscribe(&["user:1:orders"], None).await;
    stage.equal_rows_after("orders", "note = 'mended'", "mended").await;
    stage.meals_flow("mended").await;
}

#[tokio::test]
async fn a_dropped_table_ends_for_its_readers_alone() {
    let mut stage = stage().await;
    stage.pg.sql("DROP TABLE orders").await;
    stage.expect_told("schema_changed", "DROP TABLE").await;
    stage.meals_flow("DROP TABLE").await;
    // The name may be used again, by another table of another shape.
    stage.pg.sql(
        "CREATE TABLE orders (user_id int, code text, PRIMARY KEY (user_id, code)); INSERT INTO orders VALUES (1, 'before');
         SELECT rowcast.track('orders')",
    )
    .await;
    stage.expect_told("newly_tracked", "made again").await;
    stage.rejoin("made again").await;
    stage.relay.restart().await;
    stage.device = Device::of(&stage.relay, "1", "phone").connect().await;
    stage.device.subscribe(&["user:1:*"], None).await;
    stage.equal_rows("orders", "after a restart").await;
    stage.meals_flow("after a restart").await;
}

#[tokio::test]
async fn a_track_that_is_read_before_it_is_visible_is_understood_later() {
    let mut stage = stage().await;
    // A commit that waits for a standby is in the stream, and no session sees it.
    let tracker = stage.pg.client().await;
    stage.pg.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    stage.pg.sql("SELECT pg_reload_conf()").await;
    let track = tokio::spawn(async move {
        let create = "CREATE TABLE notes (user_id int, id int, text text, PRIMARY KEY (user_id, id)); SELECT rowcast.track('notes')";
        tracker.batch_execute(create).await
    });
    stage.pg.sql("SET synchronous_commit = local").await;
    let told = stage.device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:notes"]), &json!("newly_tracked")));
    assert_eq!(stage.pg.value("SELECT to_regclass('notes') IS NULL").await, "t", "the test's own premise");
    stage.meals_flow("while the commit waits").await;
    stage.pg.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    stage.pg.sql("SELECT pg_reload_conf()").await;
    crate::support::wait::within("the track's commit", track).await.unwrap().unwrap();
    stage.compared().await;
    let subscribed = stage.device.subscribe(&["user:1:notes"], None).await.json();
    assert_eq!(subscribed["tables"]["notes"], json!({"key": ["user_id", "id"]}));
    stage.pg.sql("INSERT INTO notes VALUES (1, 1, 'a')").await;
    assert_eq!(stage.device.change().await.operation, "INSERT");
    stage.equal_rows("notes", "visible").await;
    stage.pg.sql("ALTER TABLE notes ADD COLUMN more int").await;
    let told = stage.device.expect("sync_required").await.json();
    assert_eq!((&told["topics"], &told["reason"]), (&json!(["user:1:notes"]), &json!("schema_changed")));
}

#[tokio::test]
async fn dropped_and_made_again_while_rows_are_written() {
    let mut stage = stage().await;
    // Every statement with rows around it, in one go, so that the stream lags behind the catalogs.
    stage.pg.sql("
        UPDATE orders SET note = '1'; ALTER TABLE orders ADD COLUMN a int DEFAULT 1; UPDATE orders SET note = '2';
        ALTER TABLE orders DROP COLUMN a; UPDATE orders SET note = '3'; ALTER TABLE orders ADD COLUMN a text DEFAULT 'x';
        INSERT INTO meals VALUES (1, 1, 'soup');
        UPDATE orders SET note = '4'; DROP TABLE orders; CREATE TABLE orders (user_id int, id int, b json, PRIMARY KEY (user_id, id));
        SELECT rowcast.track('orders'); INSERT INTO orders VALUES (1, 1, '{}'); ALTER TABLE orders ALTER b TYPE jsonb;
        UPDATE orders SET b = '{\"a\":1}'; INSERT INTO meals VALUES (2, 1, 'soup');").await;
    let frames = frames_until_now(&stage.pg, &mut stage.device, "user:1").await;
    let meals =
        frames.iter().filter_map(Frame::change).filter(|change| change.topic == "user:1:meals").count();
    assert_eq!(meals, 2, "{frames:?}");
    assert!(frames.iter().any(|frame| frame.kind == "sync_required"), "{frames:?}");
    stage.compared().await;
    stage.device.subscribe(&["user:1:orders"], None).await;
    stage.equal_rows("orders", "in the end").await;
    assert_eq!(stage.relay.metric("rowcast_ingest_failures_total").await.unwrap_or(0.0), 0.0);
}

impl Stage {
    async fn expect_told_any(&mut self) -> serde_json::Value {
        self.told("any").await.json()
    }
}

/// The cursor up to which this device has everything.
async fn frames_cursor(device: &mut Device) -> String {
    device.send(&json!({"type": "ping"})).await;
    device.expect("pong").await.cursor().unwrap()
}
