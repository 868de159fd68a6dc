//! What ends single topics: each cause, told to every transport that reads the topic, live and when it comes
//! back; to nobody else; and doing what is asked makes the copy the database's again.

use serde_json::{Value, json};

use super::ear::{Ear, KINDS, Kind, fully, poll, topics};
use crate::support::copy::{Copy, SyncPage};
use crate::support::frame::place;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::scene_with;
use crate::support::wait::{PATIENCE, eventually};

/// Rows of three users; the owner is in an index, so that identities are small and values may be left out.
const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, note text, body text);
    ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;
    CREATE UNIQUE INDEX ON orders (user_id, id);
    CREATE TABLE meals (user_id int, id int, PRIMARY KEY (user_id, id));
    INSERT INTO orders VALUES (1, 1, 'first'), (2, 2, 'of another');
    INSERT INTO orders SELECT 3, 3, 'large', string_agg(md5(n::text), '') FROM generate_series(1, 200) n;
    INSERT INTO meals VALUES (1, 1), (2, 2);
    SELECT rowcast.track('meals');";
const TRACK: &str = "SELECT rowcast.track('orders');";
const PARTITIONED: &str = "
    CREATE TABLE orders (id int, user_id int, note text, PRIMARY KEY (user_id, id)) PARTITION BY RANGE (id);
    CREATE TABLE orders_low PARTITION OF orders FOR VALUES FROM (0) TO (1000);
    CREATE TABLE meals (user_id int, id int, PRIMARY KEY (user_id, id));
    INSERT INTO orders VALUES (1, 1, 'first'), (2, 2, 'of another');
    INSERT INTO meals VALUES (1, 1), (2, 2);
    SELECT rowcast.track('meals');";

/// One way to lose a topic.
struct Cause {
    reason: &'static str,
    tables: &'static str,
    /// After it the table waits for a DBA, who does this.
    mend: Option<&'static str>,
    sql: &'static str,
    /// Whose copies suffer: those of user 1 alone.
    only_user_1: bool,
    /// Whether its rows may still be read in the end.
    readable: bool,
}

const CAUSE: Cause =
    Cause { reason: "", tables: TABLES, mend: None, sql: "", only_user_1: false, readable: true };

struct Stage {
    pg: TestPostgres,
    relay: Relay,
    cause: Cause,
    /// What user 1 has before anything happens.
    begun: (Copy, String),
    /// And when that was: milliseconds since 1970.
    time: i64,
}

impl Stage {
    async fn of(cause: Cause) -> Self {
        let track = if cause.reason == "newly_tracked" { "" } else { TRACK };
        let tables = format!("{}{track}", cause.tables);
        let (pg, relay) =
            scene_with(&tables, |setup| setup.env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")).await;
        // Something that the log knows a time of.
        pg.sql("INSERT INTO meals VALUES (1, 10)").await;
        let http = relay.http_as("1");
        let begun = begun(&relay, "1").await;
        let time = eventually(PATIENCE, "a time to come back to", async || {
            let answer = poll(&http, &topics("1", false), json!(begun.1), 0).await.expect_status(200).json();
            answer["timestamp"].as_i64()
        })
        .await;
        Stage { pg, relay, cause, begun, time }
    }

    fn orders(&self, user: &str) -> Vec<String> {
        vec![format!("user:{user}:orders")]
    }

    fn tables(&self) -> &'static [&'static str] {
        if self.cause.readable { &["orders", "meals"] } else { &["meals"] }
    }

    async fn ears(&self) -> Vec<Ear> {
        let mut ears = Vec::new();
        for kind in KINDS {
            for named in [false, true] {
                ears.push(Ear::from(&self.relay, kind, "1", topics("1", named), &self.begun).await);
            }
        }
        ears
    }

    /// Devices that must not notice: of another table, and where only user 1 suffers, of the same one.
    async fn others(&self) -> Vec<Ear> {
        let begun = begun(&self.relay, "2").await;
        let mut others = Vec::new();
        for kind in KINDS {
            let topics = match self.cause.only_user_1 {
                true => topics("2", true),
                false => vec!["user:2:meals".to_owned(), "user:2:mark".to_owned()],
            };
            others.push(Ear::from(&self.relay, kind, "2", topics, &begun).await);
        }
        others
    }

    async fn happen(&self) {
        self.pg.sql(self.cause.sql).await;
    }

    fn assert_told(&self, ear: &Ear, told: &Value) {
        let blocked = self.cause.mend.is_some();
        assert_eq!(told["to"].is_null(), blocked, "{}: {told}", ear.name);
        assert!(told["from"].is_string(), "{}: {told}", ear.name);
    }
}

/// The first copy of a user, in full.
async fn begun(relay: &Relay, user: &str) -> (Copy, String) {
    let body = json!({"device_id": "ear", "topics": topics(user, false)});
    let answer = fully(&relay.http_as(user), &body).await;
    assert_eq!(answer[0].tables["meals"].reason.as_deref(), Some("no_cursor"));
    let mut copy = Copy::default();
    copy.apply_sync(&answer);
    (copy, answer[answer.len() - 1].cursor.clone())
}

async fn declared(cause: Cause) {
    let stage = Stage::of(cause).await;
    let Stage { pg, cause, begun, time, .. } = &stage;
    let (mut ears, mut others) = (stage.ears().await, stage.others().await);
    stage.happen().await;
    // Other topics of the same session run on. What waits for a DBA is told with the next news.
    pg.sql("INSERT INTO meals VALUES (1, 11), (2, 11)").await;
    let mut told = Vec::new();
    for ear in &mut ears {
        let frame = ear.told(&stage.orders("1"), cause.reason).await;
        stage.assert_told(ear, &frame);
        told.push(frame);
    }
    pg.sql("INSERT INTO meals VALUES (1, 12), (2, 12)").await;
    for ear in ears.iter_mut().filter(|ear| ear.kind != Kind::Poll) {
        ear.until_change(|change| change.key_text() == r#"{"user_id":1,"id":12}"#).await;
    }
    // Who comes back from before is told the same, at once.
    for mut late in stage.ears().await {
        let frame = late.told(&stage.orders("1"), cause.reason).await;
        stage.assert_told(&late, &frame);
        let from = frame["from"].as_str().unwrap();
        assert_eq!(place(from), place(&begun.1), "{}: it stood at its cursor", late.name);
        ears.push(late);
        told.push(frame);
    }
    by_time(&stage, *time).await;
    if let Some(mend) = cause.mend {
        unavailable(&stage).await;
        pg.sql(mend).await;
    }
    let reason = if cause.mend.is_some() { mended_as(&stage).await } else { cause.reason.to_owned() };
    synced(&stage, &reason).await;
    for (ear, told) in ears.iter_mut().zip(&told) {
        ear.mended = cause.mend.map(|_| reason.clone());
        ear.obey(told, &reason).await;
    }
    let note = if cause.readable {
        "INSERT INTO orders (id, user_id, note) VALUES (90, 1, 'after'), (91, 2, 'after');"
    } else {
        ""
    };
    pg.sql(&format!("{note} INSERT INTO meals VALUES (1, 13), (2, 13)")).await;
    for ear in &mut ears {
        ear.arrive(pg, stage.tables()).await;
    }
    // Nobody else was told anything but rows.
    for other in &mut others {
        let id = r#"{"user_id":2,"id":13}"#;
        other.until_change(|change| change.key_text() == id).await;
    }
}

/// By time, over REST and by poll.
async fn by_time(stage: &Stage, time: i64) {
    let (http, cause) = (stage.relay.http_as("1"), &stage.cause);
    for named in [false, true] {
        let topics = topics("1", named);
        let answer = poll(&http, &topics, json!(time), 0).await.expect_status(200).json();
        let frames = answer["messages"].as_array().unwrap().iter().map(|message| &message["payload"]);
        let told: Vec<&Value> = frames.filter(|frame| frame["type"] == "sync_required").collect();
        assert_eq!(told.len(), 1, "{answer}");
        assert_eq!(
            (&told[0]["topics"], &told[0]["reason"], told[0]["to"].is_null()),
            (&json!(stage.orders("1")), &json!(cause.reason), cause.mend.is_some())
        );
        if cause.mend.is_some() {
            continue;
        }
        let body = json!({"device_id": "ear", "topics": topics, "last_sync_timestamp": time});
        let answer = fully(&http, &body).await;
        assert_full(&answer, cause.reason);
        let mut copy = stage.begun.0.clone();
        copy.apply_repeating(&answer);
        compare(stage, &copy).await;
    }
}

/// By cursor over REST.
async fn synced(stage: &Stage, reason: &str) {
    for named in [false, true] {
        let body = json!({"device_id": "ear", "topics": topics("1", named), "cursor": stage.begun.1});
        let answer = fully(&stage.relay.http_as("1"), &body).await;
        assert_full(&answer, reason);
        let mut copy = stage.begun.0.clone();
        copy.apply_sync(&answer);
        compare(stage, &copy).await;
    }
}

fn assert_full(answer: &[SyncPage], reason: &str) {
    let tables = &answer[0].tables;
    assert_eq!((tables["orders"].full, tables["orders"].reason.as_deref()), (true, Some(reason)));
    assert!(!tables["meals"].full, "{tables:?}");
}

async fn compare(stage: &Stage, copy: &Copy) {
    for table in ["orders", "meals"] {
        let wanted = if stage.tables().contains(&table) { "true" } else { "false" };
        let rows = format!("SELECT * FROM {table} WHERE user_id = 1 AND {wanted}");
        copy.assert_equals(&stage.pg, table, &rows).await;
    }
}

/// A table that waits for a DBA is no reason to give up what the device has.
async fn unavailable(stage: &Stage) {
    let body = json!({"device_id": "ear", "topics": topics("1", false), "cursor": stage.begun.1});
    let answer = stage.relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).json();
    let orders = &answer["tables"]["orders"];
    assert_eq!(
        (&orders["full"], &orders["unavailable"], &orders["reason"]),
        (&json!(false), &json!(true), &json!(stage.cause.reason)),
        "{answer}"
    );
}

/// Why the table is full once it is mended.
async fn mended_as(stage: &Stage) -> String {
    let body = json!({"device_id": "ear", "topics": topics("1", false), "cursor": stage.begun.1});
    let answer = fully(&stage.relay.http_as("1"), &body).await;
    answer[0].tables["orders"].reason.clone().expect("a reason")
}

#[tokio::test]
async fn schema_changed() {
    let sql = "ALTER TABLE orders ADD COLUMN more int DEFAULT 7";
    declared(Cause { reason: "schema_changed", sql, ..CAUSE }).await;
}

#[tokio::test]
async fn schema_changed_by_a_partition() {
    let sql = "CREATE TABLE loose (id int, user_id int, note text, PRIMARY KEY (user_id, id));
        INSERT INTO loose VALUES (2001, 1, 'came along');
        ALTER TABLE orders ATTACH PARTITION loose FOR VALUES FROM (1000) TO (3000)";
    declared(Cause { reason: "schema_changed", tables: PARTITIONED, sql, ..CAUSE }).await;
}

#[tokio::test]
async fn newly_tracked() {
    declared(Cause { reason: "newly_tracked", sql: TRACK, ..CAUSE }).await;
}

#[tokio::test]
async fn retracked() {
    let sql = "SELECT rowcast.track('orders', topics => ARRAY['user:{user_id}:orders', 'global:orders'])";
    declared(Cause { reason: "retracked", sql, ..CAUSE }).await;
}

#[tokio::test]
async fn untracked() {
    declared(Cause {
        reason: "untracked",
        sql: "SELECT rowcast.untrack('orders')",
        readable: false,
        ..CAUSE
    })
    .await;
}

#[tokio::test]
async fn toast() {
    let sql = "UPDATE orders SET user_id = 1, note = 'moved' WHERE id = 3";
    declared(Cause { reason: "toast", sql, only_user_1: true, ..CAUSE }).await;
}

#[tokio::test]
async fn identity() {
    // In one transaction, so that the change of shape is not found before the row.
    let sql = "BEGIN; ALTER TABLE orders REPLICA IDENTITY NOTHING; INSERT INTO orders VALUES (4, 1, 'not told'); COMMIT";
    let mend = Some("SELECT rowcast.track('orders')");
    declared(Cause { reason: "identity", sql, mend, ..CAUSE }).await;
}
