//! Names that are SQL, formats, paths or nothing that can be typed: of schemas, tables, columns, types, labels,
//! indexes and partitions. Every one works, and none does anything else.

use serde_json::{Value, json};

use super::SYNC;
use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{database, frames_until_now, listening};
use crate::support::wait::{PATIENCE, eventually};

/// Stands by, to be there in the end.
const VICTIM: &str = "CREATE TABLE x (id int PRIMARY KEY); CREATE TABLE public.victim (id int PRIMARY KEY); INSERT INTO x VALUES (1); INSERT INTO victim VALUES (1)";

fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a\"; drop table x; --",
        "a'; drop table x; --",
        "'); drop table x; --",
        "\"",
        "\"\"",
        "'",
        "$1",
        "$$; drop table x; $$",
        "%I",
        "%s%1$I%%",
        "E'\\''",
        "\\",
        "\\'; drop table x; --",
        "/* */",
        "-- x",
        "public.victim",
        "select",
        "user",
        "NULL",
        "Table",
        " ",
        "a b",
        "a,b(c)",
        "{user_id}",
        "*",
        ":",
        "a\nb\tc",
        "\u{1}",
        "\u{85}",
        "日本語😀",
        "\u{202e}rtl",
        "-1",
        "tableoid x",
        "rowcast",
        "<script>",
    ]
    .map(str::to_owned)
    .into();
    names.push("n".repeat(63));
    names.push(format!("{}é", "\"".repeat(61)));
    names
}

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Of a name that is as long as names can be, a shorter one of the same kind.
fn with(name: &str, end: &str) -> String {
    let most = 63 - end.len();
    let mut cut = name.len().min(most);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{end}", &name[..cut])
}

/// Everything of a name is called by that name.
struct Named {
    schema: String,
    table: String,
    qualified: String,
    /// May stand in a template.
    column: String,
    name: String,
}

impl Named {
    fn new(number: usize, name: &str) -> Self {
        // A schema of this name is there already.
        let schema = if name == "rowcast" { "rowcast2".to_owned() } else { name.to_owned() };
        let fits = !name.contains(['%', '*', '{', '}', ':']) && !name.chars().any(char::is_control);
        let column = if fits { with(name, &format!("{number}")) } else { format!("owner{number}") };
        let qualified = format!("{}.{}", ident(&schema), ident(name));
        Named { schema, table: name.to_owned(), qualified, column, name: name.to_owned() }
    }

    async fn make(&self, pg: &TestPostgres) {
        let (schema, table, column, label) =
            (ident(&self.schema), &self.qualified, ident(&self.column), literal(&self.name));
        let (kind, index, key, other) = (
            ident(&with(&self.name, "k")),
            ident(&with(&self.name, "i")),
            ident(&with(&self.name, "p")),
            ident(&with(&self.name, "o")),
        );
        pg.sql(&format!(
            "CREATE SCHEMA {schema};
             CREATE TYPE {schema}.{kind} AS ENUM ({label}, 'b');
             CREATE TABLE {table} ({key} int PRIMARY KEY, user_id int NOT NULL, {column} {schema}.{kind} NOT NULL, {other} text DEFAULT {label});
             CREATE UNIQUE INDEX {index} ON {table} ({key}, user_id, {column});
             COMMENT ON TABLE {table} IS {label}"
        ))
        .await;
    }

    /// The last segment of its topics, in which braces have a meaning of their own.
    fn topic_name(&self) -> String {
        self.name.replace(['{', '}'], "|")
    }

    /// The table as `::regclass` reads it.
    fn regclass(&self) -> String {
        format!("{}::regclass", literal(&self.qualified))
    }
}

#[tokio::test]
async fn every_name_works_and_is_only_a_name() {
    let pg = database(VICTIM).await;
    let relay = Relay::on(&pg)
        .env("ROWCAST_FINGERPRINT_INTERVAL", "200ms")
        .env("ROWCAST_GRANTS", "user:{sub}:*,global:*")
        .start()
        .await;
    let (mut barrier, _) = listening(&relay, "0", "barrier").await;
    let all: Vec<Named> = names().iter().enumerate().map(|(number, name)| Named::new(number, name)).collect();
    for named in &all {
        named.make(&pg).await;
        let track = format!(
            "SELECT rowcast.track({0}, ARRAY['user:{{user_id}}:' || rowcast.encode_segment({1}), {2} || rowcast.encode_segment({1})])",
            named.regclass(),
            literal(&named.topic_name()),
            literal(&format!("kind:{{{}}}:", named.column)),
        );
        pg.sql(&track).await;
        // Again, it is tracked so already.
        pg.sql(&track).await;
    }
    frames_until_now(&pg, &mut barrier, "user:0").await;
    let mut device = Device::of(&relay, "42", "phone").connect().await;
    let begun = device.subscribe(&["user:42:*"], None).await.cursor().unwrap();
    for named in &all {
        let (table, column, label) = (&named.qualified, ident(&named.column), literal(&named.name));
        pg.sql(&format!("INSERT INTO {table} VALUES (1, 42, {label}), (2, 42, 'b'), (3, 7, {label}); UPDATE {table} SET {column} = 'b'; UPDATE {table} SET user_id = 42 WHERE user_id = 7")).await;
        let mut records = Vec::new();
        for expected in ["INSERT", "INSERT", "UPDATE", "UPDATE", "INSERT"] {
            let change = device.change().await;
            assert_eq!(change.operation, expected, "{}", named.name);
            assert_eq!(
                (change.schema.as_deref(), change.table.as_deref()),
                (Some(&*named.schema), Some(&*named.table))
            );
            records.push(change.record_text().to_owned());
        }
        let rows = pg.query_text(&format!("SELECT row_to_json(t)::text FROM {table} AS t ORDER BY 1")).await;
        let last = rows.last().unwrap()[0].clone().unwrap();
        assert_eq!(records.last(), Some(&last), "{}", named.name);
    }
    // The same rows in full, from the database; and by the label alone.
    let body = json!({"device_id": "d", "topics": ["user:42:*"], "force_full_sync": true});
    let full = relay.http_as("42").post(SYNC, &body).await.expect_status(200).json();
    for named in &all {
        let rows = pg
            .query_text(&format!(
                "SELECT row_to_json(t)::text FROM {} AS t ORDER BY {}",
                named.qualified,
                ident(&with(&named.name, "p"))
            ))
            .await;
        let rows: Vec<Value> =
            rows.iter().map(|row| serde_json::from_str(row[0].as_ref().unwrap()).unwrap()).collect();
        let mut changes: Vec<Value> = full["changes"][&named.topic_name()]
            .as_array()
            .unwrap_or_else(|| panic!("{}", named.name))
            .iter()
            .map(|change| change["record"].clone())
            .collect();
        changes.sort_by_key(|record| record[with(&named.name, "p")].as_i64());
        assert_eq!(changes, rows, "{}", named.name);
    }
    for label in ["b", "a\"; drop table x; --", "' OR true --", "\\"] {
        let topic = format!("kind:{}:*", label.replace(':', "%3A").replace('*', "%2A"));
        let relay_all = crate::support::token::mint(&json!({"sub": "1", "exp": 4_000_000_000_u32}));
        let refused = relay
            .http()
            .with_token(&relay_all)
            .post(SYNC, &json!({"device_id": "d", "topics": [topic], "force_full_sync": true}))
            .await;
        assert_eq!(refused.status, 403, "{label}: {}", refused.text());
    }
    // From the log too.
    let replayed = relay
        .http_as("42")
        .post(SYNC, &json!({"device_id": "d", "topics": ["user:42:*"], "cursor": begun}))
        .await
        .expect_status(200);
    assert!(replayed.text().contains("drop table x"));
    // Those who run it see each, and what is wrong with one that is altered.
    let named = &all[0];
    pg.sql(&format!("ALTER TABLE {} REPLICA IDENTITY NOTHING", named.qualified)).await;
    let status =
        pg.query_text("SELECT mend FROM rowcast.status WHERE part = 'table' AND problem IS NOT NULL").await;
    let mends: Vec<String> = status.into_iter().flatten().flatten().collect();
    assert!(mends.iter().any(|mend| mend.contains("SELECT rowcast.track(")), "{mends:?}");
    for mend in mends.iter().filter(|mend| mend.starts_with("SELECT rowcast.track(")) {
        pg.sql(mend).await;
    }
    let check = rowcast(&pg, &["check"]).await;
    assert!(!check.stdout.contains("cannot") && check.stderr.is_empty(), "{check:?}");
    let tables = rowcast(&pg, &["tables", "--json"]).await.expect_success();
    let listed: Value = serde_json::from_str(&tables.stdout).unwrap();
    assert!(listed.to_string().contains("drop table x"), "{listed}");
    // Taken back, one by its program and all others at once.
    rowcast(&pg, &["untrack", &named.qualified]).await.expect_success();
    let mut relay = relay;
    relay.terminate().await;
    rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert_eq!(pg.value("SELECT (SELECT count(*) FROM x) + (SELECT count(*) FROM victim)").await, "2");
    for named in &all {
        let identity = format!("SELECT relreplident FROM pg_class WHERE oid = {}", named.regclass());
        let expected = if named.name == all[0].name { "n" } else { "d" };
        let found = pg.value(&identity).await;
        assert!(found == expected || found == "d", "{}: {found}", named.name);
    }
}

#[tokio::test]
async fn rows_of_any_name_grant_and_partitions_of_any_name_belong() {
    let pg = database(VICTIM).await;
    let relay = Relay::on(&pg).env("ROWCAST_FINGERPRINT_INTERVAL", "200ms").start().await;
    let (mut barrier, _) = listening(&relay, "0", "barrier").await;
    let hostile = ["a\"; drop table x; --", "'); drop table x; --", "%I$1\\", "a\nb", "select"];
    for (number, name) in hostile.iter().enumerate() {
        let (table, part) = (ident(name), ident(&format!("{name} part")));
        let key = ident(&format!("{name} key"));
        pg.sql(&format!(
            "CREATE TABLE {table} ({key} int, who text, day int, team text, PRIMARY KEY ({key}))"
        ))
        .await;
        pg.sql(&format!("SELECT rowcast.grant_by({0}, 'who', 'team{number}:{{team}}:*'), rowcast.grant_by({0}, 'team', 'global:x')", literal(&table))).await;
        let parted = ident(&format!("{name} parted"));
        pg.sql(&format!(
            "CREATE TABLE {parted} ({key} int, user_id int, day int, PRIMARY KEY ({key}, day)) PARTITION BY LIST (day);
             CREATE TABLE {part} PARTITION OF {parted} FOR VALUES IN (1);
             CREATE TABLE {} PARTITION OF {parted} DEFAULT;
             SELECT rowcast.track({}, ARRAY['user:{{user_id}}:parted{number}'])",
            ident(&format!("{name} rest")),
            literal(&parted),
        ))
        .await;
        frames_until_now(&pg, &mut barrier, "user:0").await;
        let mut device = Device::of(&relay, "42", "phone").connect().await;
        device.subscribe(&["user:42:*"], None).await;
        pg.sql(&format!("INSERT INTO {table} VALUES (1, '42', 1, {})", literal(name))).await;
        let granted = device.expect("granted").await.json()["topics"].to_string();
        assert!(granted.contains(&format!("team{number}:")), "{granted}");
        pg.sql(&format!(
            "INSERT INTO {parted} VALUES (1, 42, 1); UPDATE {parted} SET day = 2; DELETE FROM {parted}"
        ))
        .await;
        let told: Vec<String> = device.changes(4).await.into_iter().map(|change| change.operation).collect();
        assert_eq!(told, ["INSERT", "DELETE", "INSERT", "DELETE"], "{name}");
        pg.sql(&format!("DELETE FROM {table}")).await;
        device.until("revoked").await;
        pg.sql(&format!(
            "SELECT rowcast.revoke_by({0}), rowcast.untrack({1})",
            literal(&table),
            literal(&parted)
        ))
        .await;
    }
    eventually(PATIENCE, "nothing is published any more", async || {
        let left = pg.value("SELECT count(*) FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid WHERE c.relnamespace <> 'rowcast'::regnamespace").await;
        (left == "0").then_some(())
    })
    .await;
    assert_eq!(pg.value("SELECT (SELECT count(*) FROM x) + (SELECT count(*) FROM victim)").await, "2");
}
