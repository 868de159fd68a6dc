//! Partitioned tables: rows of all leaves are rows of the table, in its order of columns; leaves join,
//! leave, are emptied and are mended later, and devices are told exactly when their copies suffer.

use serde_json::json;

use crate::support::copy::{Copy, SyncPage, rows_as_json};
use crate::support::device::Device;
use crate::support::frame::{Change, Frame};
use crate::support::postgres::{TestPostgres, refusal};
use crate::support::relay::Relay;
use crate::support::scene::{changes_of, replayed, told};
use crate::support::stage::{database, frames_until_now, relay_on};
use crate::support::wait::{PATIENCE, eventually};

/// Three levels; `orders_eu` has another order of columns and once had one more; `meals` must not notice.
/// The owner is not in the key, so the leaves need another identity.
const TREE: &str = "
    CREATE TABLE orders (id int, region varchar(8), user_id int NOT NULL, note text, doc json,
      twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE orders_eu (doc json, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED, user_id int NOT NULL,
      region varchar(8) NOT NULL, note text, id int NOT NULL);
    ALTER TABLE orders_eu DROP COLUMN gone;
    ALTER TABLE orders ATTACH PARTITION orders_eu FOR VALUES IN ('eu');
    CREATE TABLE orders_us PARTITION OF orders FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE orders_us_low PARTITION OF orders_us FOR VALUES FROM (0) TO (100);
    CREATE TABLE orders_us_high PARTITION OF orders_us FOR VALUES FROM (100) TO (200);
    CREATE TABLE orders_rest PARTITION OF orders DEFAULT;
    CREATE TABLE meals (user_id int, id int, name text, PRIMARY KEY (user_id, id));";

const TRACK: &str = "SELECT rowcast.track('orders'), rowcast.track('meals')";
/// What a query of the table shows, without the generated column.
const ROWS: &str = "SELECT id, region, user_id, note, doc FROM orders";

struct Stage {
    pg: TestPostgres,
    relay: Relay,
    device: Device,
    begun: String,
}

/// A device of user 1 that reads everything, by a wildcard.
async fn stage(tables: &str) -> Stage {
    let pg = database().await;
    pg.sql(tables).await;
    pg.sql(TRACK).await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let begun = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    Stage { pg, relay, device, begun }
}

impl Stage {
    /// Everything up to a change of another table that the relay has to find by looking: what it found
    /// before has been told as well.
    async fn looked(&mut self) -> Vec<Frame> {
        let canary =
            "CREATE TABLE IF NOT EXISTS canary (user_id int PRIMARY KEY); SELECT rowcast.track('canary')";
        self.pg.sql(canary).await;
        let mut others = Vec::new();
        for reason in ["any", "schema_changed"] {
            self.device.send(&json!({"type": "subscribe", "topics": ["user:1:canary"]})).await;
            let column = self.pg.value("SELECT 'c' || replace(gen_random_uuid()::text, '-', '')").await;
            self.pg.sql(&format!("ALTER TABLE canary ADD COLUMN {column} int")).await;
            loop {
                let frame = self.device.recv().await;
                let of_canary = frame.text.contains("user:1:canary");
                if frame.kind == "sync_required"
                    && of_canary
                    && (reason == "any" || frame.json()["reason"] == reason)
                {
                    break;
                }
                if !of_canary && frame.kind != "heartbeat" {
                    others.push(frame);
                }
            }
        }
        others.extend(frames_until_now(&self.pg, &mut self.device, "user:1").await);
        others.retain(|frame| !frame.text.contains("user:1:canary"));
        others
    }

    /// The reasons of which readers of `orders` were told, once the relay has looked; it may say nothing
    /// else but changes.
    async fn reasons(&mut self, what: &str) -> Vec<String> {
        let frames = self.looked().await;
        let told = frames.iter().filter(|frame| frame.kind == "sync_required").map(|frame| {
            assert_eq!(frame.json()["topics"], json!(["user:1:orders"]), "{what}");
            frame.json()["reason"].as_str().unwrap().to_owned()
        });
        told.collect()
    }

    /// Changes that come now, and nothing else.
    async fn changes(&mut self) -> Vec<Change> {
        changes_of(&frames_until_now(&self.pg, &mut self.device, "user:1").await)
    }

    /// Reads `orders` again; every row comes as the database prints it.
    async fn rejoin(&mut self, what: &str) {
        self.device.subscribe(&["user:1:orders"], None).await;
        self.all_rows_flow(what).await;
    }

    async fn all_rows_flow(&mut self, what: &str) {
        self.pg.sql("UPDATE orders SET note = gen_random_uuid()::text WHERE user_id = 1").await;
        let mut records: Vec<_> =
            self.changes().await.iter().map(|change| change.record_text().to_owned()).collect();
        records.sort();
        assert_eq!(records, rows_as_json(&self.pg, &format!("{ROWS} WHERE user_id = 1")).await, "{what}");
    }

    /// Waits until `orders` can be read from now on, and reads it.
    async fn open_again(&mut self) {
        eventually(PATIENCE, "the table is open again", async || {
            self.device.send(&json!({"type": "subscribe", "topics": ["user:1:mark", "user:1:orders"]})).await;
            // It may be blocked a moment later, by a row that was written before.
            let mut frames = self.device.until("subscribed").await;
            frames.extend(frames_until_now(&self.pg, &mut self.device, "user:1").await);
            (!frames.iter().any(|frame| frame.kind == "sync_required")).then_some(())
        })
        .await;
    }

    /// A sync from the beginning replaces the copy, and says why.
    async fn stale_copies_are_replaced(&mut self) {
        let http = self.relay.http_as("1");
        let body = json!({"device_id": "rest", "topics": ["user:1:orders"], "cursor": self.begun});
        let page: SyncPage = http.post("/api/realtime/sync", &body).await.expect_status(200).parse();
        let about = &page.tables["orders"];
        assert_eq!((about.full, about.reason.as_deref()), (true, Some("schema_changed")));
        let mut copy = Copy::default();
        copy.sync(&http, &body).await;
        copy.assert_equals(&self.pg, "orders", &format!("{ROWS} WHERE user_id = 1")).await;
    }

    /// All that the log holds, over WebSocket and over REST, from the beginning.
    async fn equal_copies(&mut self, live: &Copy, user: u32) {
        let query = format!("{ROWS} WHERE user_id = {user}");
        live.assert_equals(&self.pg, "orders", &query).await;
        let topic = format!("user:{user}:orders");
        let mut late = Device::of(&self.relay, &user.to_string(), "tablet").connect().await;
        let mut copy = Copy::default();
        for change in changes_of(&replayed(&mut late, &[&topic], &self.begun).await) {
            copy.apply(&change);
        }
        copy.assert_equals(&self.pg, "orders", &query).await;
        let http = self.relay.http_as(&user.to_string());
        let body = json!({"device_id": "rest", "topics": [topic], "cursor": self.begun, "limit": 7});
        eventually(PATIENCE, "the log holds what was sent", async || {
            let mut copy = Copy::default();
            copy.sync(&http, &body).await;
            (copy.records("orders") == rows_as_json(&self.pg, &query).await).then_some(())
        })
        .await;
        let mut full = Copy::default();
        full.sync(&http, &json!({"device_id": "rest", "topics": [topic], "force_full_sync": true})).await;
        full.assert_equals(&self.pg, "orders", &query).await;
    }
}

/// What happens to rows: on every leaf, within leaves and between them, with owners that move and keys
/// that change.
const WRITES: &[&str] = &[
    "INSERT INTO orders (id, region, user_id, note, doc) SELECT i, r, 1 + i % 2, 'n' || i, '{\"b\": 1,  \"a\": [1.50]}'
       FROM generate_series(90, 110) AS i, unnest(ARRAY['eu', 'us', 'xx']) AS r",
    "UPDATE orders SET note = 'changed' WHERE id % 3 = 0",
    "UPDATE orders SET region = 'eu', note = 'moved', id = id + 1000 WHERE region = 'us' AND id < 95",
    "UPDATE orders SET region = 'us', id = id - 1000 + 40, user_id = 3 - user_id WHERE region = 'eu' AND id >= 1090",
    "UPDATE orders SET user_id = 3 - user_id WHERE id IN (97, 98, 99)",
    "UPDATE orders SET id = id + 50 WHERE region = 'us' AND id BETWEEN 96 AND 99",
    "BEGIN; DELETE FROM orders WHERE id = 101; INSERT INTO orders VALUES (101, 'eu', 1, NULL, NULL);
       UPDATE orders SET region = 'us' WHERE id = 101; UPDATE orders SET region = 'yy' WHERE id = 101; COMMIT",
    "BEGIN; UPDATE orders SET note = 'never'; SAVEPOINT s; DELETE FROM orders; ROLLBACK TO s; ROLLBACK",
    "DELETE FROM orders WHERE id > 105 AND region <> 'us'",
];

async fn rows_of_leaves_are_rows_of_the_table(tables: &str, identities: &str) {
    let mut stage = stage(tables).await;
    let found = "SELECT string_agg(DISTINCT relreplident::text, '' ORDER BY relreplident::text) FROM pg_class
                 WHERE oid IN (SELECT rowcast.leaves('orders'::regclass))";
    assert_eq!(stage.pg.value(found).await, identities);
    let mut second = Device::of(&stage.relay, "2", "phone").connect().await;
    second.subscribe(&["user:2:*"], None).await;
    let (mut one, mut two) = (Copy::default(), Copy::default());
    for statement in WRITES {
        stage.pg.sql(statement).await;
        let changes = stage.changes().await;
        for change in &changes {
            assert_eq!((change.schema.as_deref(), change.table.as_deref()), (Some("public"), Some("orders")));
            assert!(!change.key_text().is_empty() && change.topic == "user:1:orders");
            one.apply(change);
        }
        let others = frames_until_now(&stage.pg, &mut second, "user:2").await;
        changes_of(&others).iter().for_each(|change| two.apply(change));
        one.assert_equals(&stage.pg, "orders", &format!("{ROWS} WHERE user_id = 1")).await;
        two.assert_equals(&stage.pg, "orders", &format!("{ROWS} WHERE user_id = 2")).await;
    }
    assert!(one.len() > 10 && two.len() > 10);
    stage.equal_copies(&one, 1).await;
    stage.equal_copies(&two, 2).await;
    assert_eq!(stage.reasons("ordinary writes").await, Vec::<String>::new());
    assert_eq!(stage.relay.metric("rowcast_ingest_failures_total").await.unwrap_or(0.0), 0.0);
}

#[tokio::test]
async fn rows_of_all_levels_with_an_index_as_identity() {
    rows_of_leaves_are_rows_of_the_table(TREE, "i").await;
}

#[tokio::test]
async fn rows_of_all_levels_with_the_whole_old_row() {
    let loose = TREE
        .replace("twice int GENERATED ALWAYS AS (id * 2) STORED,", "")
        .replace("user_id int NOT NULL", "user_id int");
    rows_of_leaves_are_rows_of_the_table(&loose, "f").await;
}

#[tokio::test]
async fn rows_of_all_levels_with_the_owner_in_the_key() {
    let keyed = TREE.replace("PRIMARY KEY (id, region)", "PRIMARY KEY (user_id, id, region)");
    rows_of_leaves_are_rows_of_the_table(&keyed, "d").await;
}

#[tokio::test]
async fn a_row_that_moves_is_gone_here_and_new_there_in_one_transaction() {
    let mut stage = stage(TREE).await;
    stage.pg.sql("INSERT INTO orders VALUES (1, 'eu', 1, 'a', NULL)").await;
    stage.pg.sql("UPDATE orders SET region = 'us' WHERE id = 1").await;
    stage.pg.sql("UPDATE orders SET region = 'zz', user_id = 2 WHERE id = 1").await;
    stage.pg.sql("UPDATE orders SET region = 'eu', user_id = 1 WHERE id = 1").await;
    let lines = told(&stage.changes().await);
    assert_eq!(
        lines,
        [
            r#"INSERT user:1:orders {"id":1,"region":"eu","user_id":1,"note":"a","doc":null} last"#,
            r#"DELETE user:1:orders {"id":1,"region":"eu"}"#,
            r#"INSERT user:1:orders {"id":1,"region":"us","user_id":1,"note":"a","doc":null} last"#,
            r#"DELETE user:1:orders {"id":1,"region":"us"} last"#,
            r#"INSERT user:1:orders {"id":1,"region":"eu","user_id":1,"note":"a","doc":null} last"#,
        ]
    );
}

#[tokio::test]
async fn columns_that_are_not_named_leave_no_leaf() {
    let pg = database().await;
    pg.sql(TREE).await;
    pg.sql("SELECT rowcast.track('orders', columns => '{user_id,region,id}'), rowcast.track('meals')").await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 'eu', 1, 'planted', NULL), (1, 'us', 1, 'planted', NULL); UPDATE orders SET user_id = 2").await;
    let frames = frames_until_now(&pg, &mut device, "user:1").await;
    let lines = told(&changes_of(&frames));
    assert_eq!(lines[0], r#"INSERT user:1:orders {"id":1,"region":"eu","user_id":1}"#);
    assert_eq!(lines.len(), 4);
    assert!(frames.iter().all(|frame| !frame.text.contains("planted")));
}

#[tokio::test]
async fn a_leaf_that_comes_without_rows_disturbs_nobody() {
    let mut stage =
        stage(&TREE.replace("PRIMARY KEY (id, region)", "PRIMARY KEY (user_id, id, region)")).await;
    // Found empty, filled at once, made and filled in one transaction, of a new level, and attached empty.
    let made = [
        "CREATE TABLE orders_fr PARTITION OF orders FOR VALUES IN ('fr')",
        "CREATE TABLE orders_de PARTITION OF orders FOR VALUES IN ('de'); INSERT INTO orders VALUES (1, 'de', 1, 'a', NULL)",
        "BEGIN; CREATE TABLE orders_it PARTITION OF orders FOR VALUES IN ('it'); INSERT INTO orders VALUES (1, 'it', 1, 'a', NULL); COMMIT",
        "CREATE TABLE orders_es PARTITION OF orders FOR VALUES IN ('es') PARTITION BY LIST (user_id);
         CREATE TABLE orders_es_1 PARTITION OF orders_es FOR VALUES IN (1); INSERT INTO orders VALUES (1, 'es', 1, 'a', NULL)",
        "CREATE TABLE orders_pl (LIKE orders INCLUDING ALL); ALTER TABLE orders ATTACH PARTITION orders_pl FOR VALUES IN ('pl')",
    ];
    for statements in made {
        stage.pg.sql(statements).await;
        assert_eq!(stage.reasons(statements).await, Vec::<String>::new(), "{statements}");
    }
    stage.pg.sql("INSERT INTO orders VALUES (2, 'fr', 1, 'b', NULL), (2, 'pl', 1, 'b', NULL)").await;
    assert_eq!(stage.changes().await.len(), 2);
    stage.all_rows_flow("new leaves").await;
    // Nor does one that is made while the relay is away, and all goes on after a restart.
    stage.relay.terminate().await;
    stage.pg.sql("CREATE TABLE orders_pt PARTITION OF orders FOR VALUES IN ('pt'); INSERT INTO orders VALUES (1, 'pt', 1, 'c', NULL)").await;
    stage.relay.start_again().await;
    stage.relay.wait_ready().await;
    stage.device = Device::of(&stage.relay, "1", "phone").connect().await;
    stage.device.subscribe(&["user:1:*"], None).await;
    assert_eq!(stage.reasons("made while away").await, Vec::<String>::new());
    let mut copy = Copy::default();
    let body = json!({"device_id": "rest", "topics": ["user:1:orders"], "cursor": stage.begun});
    copy.sync(&stage.relay.http_as("1"), &body).await;
    copy.assert_equals(&stage.pg, "orders", &format!("{ROWS} WHERE user_id = 1")).await;
    stage.all_rows_flow("after a restart").await;
}

#[tokio::test]
async fn leaves_that_join_with_rows_or_leave_or_are_emptied_make_the_table_stale() {
    let mut stage = stage(TREE).await;
    let fill = "INSERT INTO orders SELECT i, r, 1, 'n', NULL FROM generate_series(96, 99) AS i, unnest(ARRAY['eu', 'us', 'xx']) AS r
                ON CONFLICT DO NOTHING";
    let identity = "ALTER TABLE loose ADD UNIQUE (user_id, id, region), REPLICA IDENTITY USING INDEX loose_user_id_id_region_key;";
    let loose = format!(
        "CREATE TABLE loose (LIKE orders INCLUDING ALL); {identity} INSERT INTO loose VALUES (7, 'fr', 1, 'before', NULL);"
    );
    for (statements, reasons) in [
        (format!("{loose} ALTER TABLE orders ATTACH PARTITION loose FOR VALUES IN ('fr')"), vec!["schema_changed"]),
        ("ALTER TABLE orders DETACH PARTITION loose".to_owned(), vec!["schema_changed"]),
        ("INSERT INTO loose VALUES (8, 'fr', 1, 'detached', NULL)".to_owned(), vec![]),
        ("DROP TABLE loose".to_owned(), vec![]),
        // In one transaction, it was no partition from the first.
        (format!("BEGIN; {loose} ALTER TABLE orders ATTACH PARTITION loose FOR VALUES IN ('fr'); COMMIT"), vec!["schema_changed"]),
        // Nothing was seen to change but the place.
        ("BEGIN; ALTER TABLE orders DETACH PARTITION loose; DELETE FROM loose; ALTER TABLE orders ATTACH PARTITION loose FOR VALUES IN ('fr'); COMMIT".to_owned(), vec!["schema_changed"]),
        ("TRUNCATE orders_eu".to_owned(), vec!["schema_changed"]),
        ("TRUNCATE orders_us".to_owned(), vec!["schema_changed"]),
        ("INSERT INTO orders VALUES (100, 'us', 1, 'n', NULL); DROP TABLE orders_us_high".to_owned(), vec!["schema_changed"]),
        ("CREATE TABLE orders_us_high PARTITION OF orders_us FOR VALUES FROM (100) TO (200); SELECT rowcast.track('orders')".to_owned(), vec![]),
        ("ALTER TABLE orders ADD COLUMN more int DEFAULT 3; ALTER TABLE orders DROP COLUMN more".to_owned(), vec!["schema_changed"]),
    ] {
        stage.pg.sql(fill).await;
        stage.changes().await;
        stage.pg.sql(&statements).await;
        let mut told = stage.reasons(&statements).await;
        told.dedup();
        assert_eq!(told, reasons, "{statements}");
        if !reasons.is_empty() {
            stage.stale_copies_are_replaced().await;
            stage.rejoin(&statements).await;
        }
    }
    // All at once is a TRUNCATE of the table.
    stage.pg.sql("INSERT INTO meals VALUES (1, 1, 'soup'); TRUNCATE orders, meals").await;
    let lines = told(&stage.changes().await);
    let mut truncated: Vec<_> = lines[1..].iter().map(|line| line.trim_end_matches(" last")).collect();
    truncated.sort_unstable();
    assert_eq!(truncated, ["TRUNCATE user:1:meals", "TRUNCATE user:1:orders"]);
    assert_eq!(stage.reasons("TRUNCATE").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_new_leaf_with_a_weak_identity_delivers_new_rows_until_it_is_mended() {
    let mut stage = stage(TREE).await;
    let problems =
        "SELECT problem, mend FROM rowcast.status WHERE part = 'table' AND problem LIKE '%replica identity%'";
    assert_eq!(stage.pg.query_text(problems).await.len(), 0);
    stage.pg.sql("CREATE TABLE orders_fr PARTITION OF orders FOR VALUES IN ('fr')").await;
    stage.pg.sql("INSERT INTO orders VALUES (1, 'fr', 1, 'a', NULL), (1, 'eu', 1, 'a', NULL)").await;
    assert_eq!(stage.changes().await.len(), 2);
    let found = stage.pg.query_text(problems).await;
    assert!(found.len() == 1 && found[0][0].as_ref().unwrap().contains("orders_fr"), "{found:?}");
    eventually(PATIENCE, "the relay warns", async || {
        (stage.relay.count_lines("orders_fr") > 0).then_some(())
    })
    .await;
    // The application goes on; but whose row it was, nobody says.
    stage.pg.sql("UPDATE orders SET user_id = 2 WHERE region = 'fr'").await;
    let frame = stage.device.expect("sync_required").await.json();
    assert_eq!(
        (&frame["topics"], &frame["reason"], &frame["to"]),
        (&json!(["user:1:orders"]), &json!("identity"), &json!(null))
    );
    stage.pg.sql("INSERT INTO orders VALUES (2, 'eu', 1, 'b', NULL), (2, 'fr', 1, 'b', NULL); DELETE FROM orders WHERE region = 'fr' AND id = 1").await;
    assert_eq!(stage.changes().await.len(), 0, "all of the table waits");
    stage.relay.restart().await;
    stage.device = Device::of(&stage.relay, "1", "phone").connect().await;
    stage.device.send(&json!({"type": "subscribe", "topics": ["user:1:orders"]})).await;
    assert_eq!(
        stage.device.expect("sync_required").await.json()["reason"],
        "identity",
        "still, after a restart"
    );
    // What status says to run mends it, for readers as well, without a new history of the table.
    let generation = "SELECT generation FROM rowcast.tables WHERE table_name = 'orders'";
    let before = stage.pg.value(generation).await;
    stage.pg.sql(found[0][1].as_ref().unwrap()).await;
    assert_eq!(stage.pg.value(generation).await, before);
    assert_eq!(stage.pg.query_text(problems).await.len(), 0);
    stage.open_again().await;
    stage.all_rows_flow("mended").await;
    stage.pg.sql("UPDATE orders SET user_id = 2 WHERE region = 'fr'").await;
    assert_eq!(told(&stage.changes().await), [r#"DELETE user:1:orders {"id":2,"region":"fr"} last"#]);
    // Weak and mended while the relay is away: it meets both at once, and does not wait for another row.
    stage.relay.terminate().await;
    stage.pg.sql("CREATE TABLE orders_it PARTITION OF orders FOR VALUES IN ('it'); INSERT INTO orders VALUES (1, 'it', 1, 'a', NULL)").await;
    stage.pg.sql("UPDATE orders SET note = 'weak' WHERE region = 'it'").await;
    stage.pg.sql("SELECT rowcast.track('orders')").await;
    stage.relay.start_again().await;
    stage.relay.wait_ready().await;
    stage.device = Device::of(&stage.relay, "1", "phone").connect().await;
    stage.open_again().await;
    stage.all_rows_flow("mended before it was met").await;
}

#[tokio::test]
async fn a_leaf_whose_changes_do_not_come_blocks_the_table() {
    let mut stage = stage(TREE).await;
    let problems = "SELECT problem, mend FROM rowcast.status WHERE part = 'table' AND problem LIKE '%partition%' AND problem NOT LIKE 'no index%'";
    for (breaking, word) in [
        ("ALTER TABLE orders_rest SET UNLOGGED", "unlogged"),
        (
            "CREATE TABLE fr (LIKE orders INCLUDING ALL); SELECT rowcast.track('fr', ARRAY['team:{user_id}:fr']); ALTER TABLE orders ATTACH PARTITION fr FOR VALUES IN ('fr')",
            "tracked by itself",
        ),
    ] {
        stage.pg.sql(breaking).await;
        let reasons = stage.reasons(breaking).await;
        assert_eq!(reasons.last().map(String::as_str), Some("identity"), "{breaking}: {reasons:?}");
        let found = stage.pg.query_text(problems).await;
        let problem = found.iter().find(|row| row[0].as_ref().unwrap().contains(word));
        stage.pg.sql(problem.unwrap_or_else(|| panic!("{found:?}"))[1].as_ref().unwrap()).await;
        stage.looked().await;
        stage.pg.sql("SELECT rowcast.track('orders')").await;
        stage.looked().await;
        stage.rejoin(breaking).await;
    }
    // An order of columns does not hide a generated one (16 and later refuse it themselves).
    if stage.pg.major() == 15 {
        stage.pg.sql("CREATE TABLE odd (id int NOT NULL, region varchar(8) NOT NULL, user_id int NOT NULL, note text GENERATED ALWAYS AS ('x') STORED, doc json,
                      twice int GENERATED ALWAYS AS (id * 2) STORED); ALTER TABLE orders ATTACH PARTITION odd FOR VALUES IN ('odd')").await;
        let refused =
            stage.pg.refusal("SELECT rowcast.track('orders', topics => ARRAY['global:orders'])").await;
        assert!(
            refused.message().contains("generates a column")
                && refused.hint().unwrap().contains("DROP EXPRESSION"),
            "{refused:?}"
        );
        assert_eq!(stage.reasons("generated").await, ["identity"]);
    }
}

#[tokio::test]
async fn taken_back_every_leaf_is_as_it_was_and_reaches_nobody() {
    let mut stage = stage(TREE).await;
    let identities =
        "SELECT string_agg(relname || ' ' || relreplident::text, ', ' ORDER BY relname) FROM pg_class
                      WHERE relname LIKE 'orders%' AND relkind = 'r'";
    assert!(stage.pg.value(identities).await.contains("orders_eu i"));
    stage.pg.sql("CREATE TABLE orders_fr PARTITION OF orders FOR VALUES IN ('fr'); ALTER TABLE orders_us DETACH PARTITION orders_us_high; DROP TABLE orders_rest").await;
    stage.pg.sql("INSERT INTO orders VALUES (1, 'eu', 1, 'a', NULL)").await;
    stage.looked().await;
    stage.pg.sql("SELECT rowcast.untrack('orders')").await;
    assert_eq!(
        stage.pg.value(identities).await,
        "orders_eu d, orders_fr d, orders_us_high d, orders_us_low d"
    );
    assert_eq!(
        stage.pg.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'rowcast_identity%'").await,
        "0"
    );
    assert_eq!(stage.pg.value("SELECT count(*) FROM rowcast.identity_changes").await, "0");
    stage.pg.sql("UPDATE orders SET note = 'secret'; INSERT INTO orders VALUES (2, 'fr', 1, 'secret', NULL); TRUNCATE orders").await;
    let frames = stage.looked().await;
    assert!(frames.iter().all(|frame| frame.kind == "sync_required"), "{frames:?}");
    // Published by hand, it is still nobody's.
    stage.pg.sql("ALTER PUBLICATION rowcast ADD TABLE orders; INSERT INTO orders VALUES (3, 'fr', 1, 'secret', NULL); TRUNCATE orders").await;
    stage.pg.sql("INSERT INTO meals VALUES (1, 1, 'soup')").await;
    let changes = stage.changes().await;
    assert_eq!(told(&changes), [r#"INSERT user:1:meals {"user_id":1,"id":1,"name":"soup"} last"#]);
}

#[tokio::test]
async fn a_writer_on_a_leaf_is_waited_for() {
    let pg = database().await;
    pg.sql(TREE).await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let writer = pg.client().await;
    writer.batch_execute("BEGIN; INSERT INTO orders_us_low VALUES (1, 'us', 1, 'open', NULL)").await.unwrap();
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let tracker = pg.client().await;
    tracker.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let refused = refusal(&tracker, "SELECT rowcast.track('orders')").await;
    assert_eq!(refused.code().code(), "55P03", "{refused:?}");
    assert!(refused.detail().unwrap().contains(&pid.to_string()), "{refused:?}");
    // With more patience it comes after the writer, whose rows then precede the table's history.
    tracker.batch_execute("SET lock_timeout = '20s'").await.unwrap();
    let track = tokio::spawn(async move { tracker.batch_execute("SELECT rowcast.track('orders')").await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%rowcast.track%'";
    eventually(PATIENCE, "track waits", async || (pg.value(waits).await == "1").then_some(())).await;
    writer
        .batch_execute("INSERT INTO orders_us_low VALUES (2, 'us', 1, 'open', NULL); COMMIT")
        .await
        .unwrap();
    track.await.unwrap().unwrap();
    assert_eq!(device.expect("sync_required").await.json()["reason"], "newly_tracked");
    let subscribed = device.subscribe(&["user:1:orders"], None).await.json();
    assert_eq!(subscribed["tables"]["orders"], json!({"key": ["id", "region"]}));
    writer.batch_execute("UPDATE orders SET note = 'after'").await.unwrap();
    let mut copy = Copy::default();
    changes_of(&frames_until_now(&pg, &mut device, "user:1").await)
        .iter()
        .for_each(|change| copy.apply(change));
    copy.assert_equals(&pg, "orders", &format!("{ROWS} WHERE user_id = 1")).await;
}
