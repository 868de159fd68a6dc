//! `rowcast tables`: what could be tracked and what it would cost, as `track` then finds it.

use serde_json::Value;

use crate::support::cli::{Outcome, rowcast, rowcast_at, run};
use crate::support::postgres::TestPostgres;
use crate::support::stage::database;

const TABLES: &str = "
    CREATE TABLE orders (user_id int, id int, note text, PRIMARY KEY (user_id, id));
    CREATE TABLE notes (id int PRIMARY KEY, user_id int NOT NULL, body text);
    CREATE TABLE nullable (id int PRIMARY KEY, user_id int);
    CREATE TABLE messages (id int PRIMARY KEY, sender_id int NOT NULL, recipient_id int NOT NULL);
    CREATE TABLE tasks (id int PRIMARY KEY, team_id uuid NOT NULL);
    CREATE TABLE exercises (id int PRIMARY KEY, title text);
    CREATE TABLE no_key (id int, user_id int);
    CREATE TABLE \"Odd name\" (id int PRIMARY KEY, owner_id bigint NOT NULL);
    CREATE TABLE secured (id int PRIMARY KEY, user_id int NOT NULL);
    ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
    CREATE TABLE referring (id int PRIMARY KEY, user_id int NOT NULL, kind regclass);
    CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY, user_id int);
    INSERT INTO notes SELECT n, n, 'x' FROM generate_series(1, 1200) n; ANALYZE notes;
    SELECT rowcast.track('orders')";

async fn listed(pg: &TestPostgres) -> Vec<Value> {
    let outcome = rowcast(pg, &["tables", "--json"]).await.expect_success();
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    json["tables"].as_array().unwrap().clone()
}

fn of<'a>(tables: &'a [Value], name: &str) -> &'a Value {
    tables.iter().find(|table| table["name"] == name).unwrap_or_else(|| panic!("no {name} in {tables:#?}"))
}

fn texts(value: &Value) -> String {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_table_says_what_tracking_it_takes() {
    let pg = database().await;
    pg.sql(TABLES).await;
    let tables = listed(&pg).await;
    assert_eq!(tables.len(), 11, "nothing of the catalog: {tables:#?}");
    let table = |name: &str| of(&tables, &format!("public.{name}"));

    let orders = table("orders");
    assert_eq!((orders["tracked"].as_bool(), &orders["command"]), (Some(true), &Value::Null));
    assert_eq!(texts(&orders["key"]), "user_id\nid");
    assert_eq!(orders["identity_then"], "keep");

    let notes = table("notes");
    assert_eq!((&notes["row_estimate"], &notes["identity_then"]), (&1200.into(), &"build".into()));
    assert_eq!(notes["command"], "rowcast track public.notes");
    assert!(texts(&notes["costs"]).contains("an index on (user_id, id)"), "{notes}");
    assert!(
        texts(&notes["prepare"]).contains("CREATE INDEX CONCURRENTLY ON public.notes (user_id)"),
        "{notes}"
    );

    let nullable = table("nullable");
    assert_eq!(nullable["identity_then"], "full");
    assert!(texts(&nullable["costs"]).contains("writes the whole old row"), "{nullable}");
    assert_eq!(
        texts(&table("messages")["topics"]),
        "user:{recipient_id}:messages\nuser:{sender_id}:messages"
    );
    assert_eq!(table("tasks")["command"], "rowcast track public.tasks --topic 'team:{team_id}:tasks'");
    assert!(table("exercises")["topics"].is_null() && table("exercises")["command"].is_null());
    assert!(table("no_key")["obstacle"].as_str().unwrap().contains("no primary key"));
    assert!(table("no_key")["mend"].as_str().unwrap().contains("ADD PRIMARY KEY"));
    assert!(table("referring")["mend"].as_str().unwrap().contains("columns => '{id,user_id}'"));
    assert!(table("scratch")["mend"].as_str().unwrap().contains("SET LOGGED"));
    assert!(texts(&table("secured")["prepare"]).contains("ALTER ROLE rowcast_relay BYPASSRLS"));

    let page = rowcast(&pg, &["tables"]).await.expect_success().stdout;
    for text in [
        "Tracked:",
        "user:{user_id}:orders",
        "about 1,200 rows",
        "Cannot be tracked as they are:",
        "whose rows they hold",
    ] {
        assert!(page.contains(text), "{text:?} in {page}");
    }
    let one = rowcast(&pg, &["tables", "--schema", "nowhere"]).await.expect_success();
    assert!(one.stdout.contains("there are no tables"), "{one:?}");
    // The relay's role reads the same.
    let relays = rowcast_at(&pg.url_as("rowcast_relay"), &["tables", "--json"]).await.expect_success();
    assert_eq!(relays.stdout, rowcast(&pg, &["tables", "--json"]).await.stdout);
}

/// What is shown is what a shell then runs, and what `track` then does.
#[tokio::test]
async fn each_suggested_command_does_what_was_said() {
    let pg = database().await;
    pg.sql(TABLES).await;
    let mut tracked = 0;
    for table in listed(&pg).await {
        let Some(command) = table["command"].as_str() else { continue };
        // An existing index is one kind of identity, a built one the same.
        let expected = match table["identity_then"].as_str().unwrap() {
            "build" | "index" => "index",
            "full" => "full",
            _ => table["identity_now"].as_str().unwrap(),
        };
        let mut shell = tokio::process::Command::new("sh");
        let program = command.replacen("rowcast", env!("CARGO_BIN_EXE_rowcast"), 1);
        shell.args(["-c", &program]).env("ROWCAST_DATABASE_URL", pg.url());
        let _: Outcome = run(shell).await.expect_success();
        let after = listed(&pg).await;
        let after = of(&after, table["name"].as_str().unwrap());
        assert_eq!(after["tracked"], true, "{command}");
        assert_eq!(after["identity_now"], expected, "{command}");
        assert_eq!(after["topics"], table["topics"], "{command}");
        tracked += 1;
    }
    assert_eq!(tracked, 6);
}

#[tokio::test]
async fn without_a_catalog_or_the_right_to_it_the_way_out_is_told() {
    let pg = TestPostgres::start().await;
    let none = rowcast(&pg, &["tables"]).await;
    assert!(none.code == 1 && none.stderr.contains("rowcast init"), "{none:?}");
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("CREATE ROLE stranger LOGIN").await;
    let stranger = rowcast_at(&pg.url_as("stranger"), &["tables"]).await;
    assert!(stranger.code == 1 && stranger.stderr.contains("rowcast_owner"), "{stranger:?}");
}
