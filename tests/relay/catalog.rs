//! The catalog in the database: its installation, what `track` refuses and why, what it does to a
//! table's replica identity, and the least rights with which all of it works.

use serde_json::json;
use tokio::process::Command;

use crate::support::cli::{rowcast, rowcast_at, run};
use crate::support::device::Device;
use crate::support::postgres::{TestPostgres, connect, refusal};
use crate::support::relay::Relay;
use crate::support::stage::{database, frames_until_now, relay_on};
use crate::support::wait::{PATIENCE, eventually};

/// All that a second installation must leave as it is.
const INSTALLED: &str = "SELECT x FROM (
    SELECT format('setting %s %s %s', name, value, xmin) FROM rowcast.settings
    UNION ALL SELECT format('table %s %s %s', relid, topics, generation) FROM rowcast.tables
    UNION ALL SELECT format('published %s %s', oid, prrelid) FROM pg_publication_rel
    UNION ALL SELECT format('function %s %s %s', oid, proname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(proacl) AS a)) FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace
    UNION ALL SELECT format('relation %s %s %s', oid, relname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) AS a)) FROM pg_class WHERE relnamespace = 'rowcast'::regnamespace
  ) AS i (x) ORDER BY x";

async fn installed(pg: &TestPostgres) -> Vec<String> {
    pg.query_text(INSTALLED).await.into_iter().flatten().map(Option::unwrap).collect()
}

fn assert_same(now: &[String], before: &[String]) {
    let lacking =
        |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    assert_eq!((lacking(now, before), lacking(before, now)), (vec![], vec![]), "new, and gone");
}

#[tokio::test]
async fn installing_again_changes_nothing() {
    let pg = TestPostgres::start().await;
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL)").await;
    rowcast(&pg, &["track", "public.orders"]).await.expect_success();
    let before = installed(&pg).await;
    assert!(
        before.iter().any(|line| line.starts_with("setting mac_inner "))
            && before.iter().any(|line| line.contains("user:{user_id}:orders"))
    );
    rowcast(&pg, &["init"]).await.expect_success();
    assert_same(&installed(&pg).await, &before);
    // Two at once, as from two hosts of one deployment.
    let (one, two) = tokio::join!(rowcast(&pg, &["init"]), rowcast(&pg, &["init"]));
    one.expect_success();
    two.expect_success();
    assert_same(&installed(&pg).await, &before);
}

#[tokio::test]
async fn the_printed_sql_installs_by_psql_once_and_again() {
    let pg = TestPostgres::start().await;
    let printed = rowcast(&pg, &["init", "--print"]).await.expect_success().stdout;
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), &printed).unwrap();
    let mut before = None;
    for _ in 0..2 {
        let mut psql = Command::new(pg.program("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--dbname"]).arg(pg.url()).arg("--file").arg(file.path());
        let said = run(psql).await.expect_success();
        assert!(!said.stderr.contains("ERROR"), "{said:?}");
        let now = installed(&pg).await;
        assert_same(&now, before.get_or_insert(now.clone()));
    }
    // What psql installed is what the program would install.
    rowcast(&pg, &["init"]).await.expect_success();
    assert_same(&installed(&pg).await, &before.unwrap());
}

#[tokio::test]
async fn a_newer_catalog_is_left_alone() {
    let pg = database().await;
    pg.sql("UPDATE rowcast.settings SET value = '999' WHERE name = 'version'").await;
    let before = installed(&pg).await;
    let init = rowcast(&pg, &["init"]).await;
    assert_eq!(init.code, 1);
    assert!(init.stderr.contains("version 999"), "{init:?}");
    assert_same(&installed(&pg).await, &before);
}

#[tokio::test]
async fn commands_without_a_catalog_or_a_table_say_what_to_do() {
    let pg = TestPostgres::start().await;
    pg.sql("CREATE TABLE orders (id int PRIMARY KEY, user_id int)").await;
    let early = rowcast(&pg, &["track", "public.orders"]).await;
    assert!(early.code == 1 && early.stderr.contains("rowcast init"), "{early:?}");
    rowcast(&pg, &["init"]).await.expect_success();
    let missing = rowcast(&pg, &["track", "public.nothing"]).await;
    assert!(missing.code == 1 && missing.stderr.contains("public.nothing"), "{missing:?}");
    // The server's own hint reaches the terminal.
    pg.sql("CREATE TABLE plain (id int PRIMARY KEY)").await;
    let whose = rowcast(&pg, &["track", "public.plain"]).await;
    assert!(whose.code == 1 && whose.stderr.contains("global:plain"), "{whose:?}");
    rowcast(&pg, &["track", "public.plain", "--topic", "global:plain"]).await.expect_success();
    rowcast(&pg, &["untrack", "public.plain"]).await.expect_success();
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.tables").await, "0");
}

/// Statement, SQLSTATE, and what message, detail and hint together must say.
const REFUSALS: &[(&str, &str, &[&str])] = &[
    ("'no_key'", "55000", &["no_key has no primary key", "ADD PRIMARY KEY"]),
    ("'deferred'", "55000", &["deferrable", "DROP CONSTRAINT deferred_pkey", "(id)"]),
    (
        "'plain'",
        "22023",
        &["whose rows does public.plain hold?", "global:plain", "user:{owner_column}:plain"],
    ),
    ("'generated_owner'", "22023", &["whose rows"]),
    ("'orders', topics => '{}'", "22023", &["no topics are given for public.orders"]),
    ("'orders', topics => ARRAY[NULL]", "22023", &["null is no topic template"]),
    ("'orders', topics => ARRAY['']", "22023", &["'' is no topic template", "two or three segments"]),
    ("'orders', topics => ARRAY['orders']", "22023", &["two or three segments"]),
    ("'orders', topics => ARRAY['a:b:c:d']", "22023", &["two or three segments"]),
    ("'orders', topics => ARRAY['user:{user_id}:*']", "22023", &["`*` may not stand in it"]),
    ("'orders', topics => ARRAY['user:*:orders']", "22023", &["`*` may not stand in it"]),
    ("'orders', topics => ARRAY['{user_id}:1:orders']", "22023", &["literal"]),
    ("'orders', topics => ARRAY['user:x{user_id}:orders']", "22023", &["one {column}"]),
    ("'orders', topics => ARRAY['user:{user_id}{id}:orders']", "22023", &["cannot be named in a template"]),
    ("'orders', topics => ARRAY['user:{user_id:orders']", "22023", &["one {column}"]),
    ("'orders', topics => ARRAY['user:{}:orders']", "22023", &["one {column}"]),
    ("'orders', topics => ARRAY['user:{user_id}:{id}']", "22023", &["literal"]),
    ("'orders', topics => ARRAY['user::orders']", "22023", &["empty"]),
    ("'orders', topics => ARRAY[':{user_id}:orders']", "22023", &["empty"]),
    ("'orders', topics => ARRAY['user:a%41:orders']", "22023", &["upper-case digits"]),
    ("'orders', topics => ARRAY['user:a%3a:orders']", "22023", &["upper-case digits"]),
    ("'orders', topics => ARRAY[E'user:a\\tb:orders']", "22023", &["upper-case digits"]),
    ("'orders', topics => ARRAY['user:' || repeat('x', 257) || ':orders']", "22023", &["256 bytes"]),
    (
        "'orders', topics => ARRAY['user:{user_id}:orders', 'global:other']",
        "22023",
        &["different names", "orders, other"],
    ),
    ("'orders', topics => ARRAY['user:{nobody}:orders']", "42703", &["nobody", "no such column", "user_id"]),
    ("'orders', topics => ARRAY['user:{User_ID}:orders']", "42703", &["no such column"]),
    ("'orders', topics => ARRAY['user:{price}:orders']", "0A000", &["numeric", "uuid"]),
    ("'orders', topics => ARRAY['user:{at}:orders']", "0A000", &["timestamp"]),
    ("'orders', topics => ARRAY['user:{padded}:orders']", "0A000", &["character"]),
    ("'orders', topics => ARRAY['user:{doc}:orders']", "0A000", &["jsonb"]),
    ("'orders', topics => ARRAY['user:{ids}:orders']", "0A000", &["integer[]"]),
    ("'orders', topics => ARRAY['user:{label}:orders']", "0A000", &["public.label", "enums may"]),
    ("'generated_owner', topics => ARRAY['user:{user_id}:g']", "0A000", &["generated column"]),
    (
        "'orders', topics => ARRAY['user:{user_id}:taken']",
        "23505",
        &["the name taken", "public.holder is tracked"],
    ),
    ("'orders', columns => '{}'", "22023", &["lacks id, user_id"]),
    ("'orders', columns => ARRAY['id']", "22023", &["lacks user_id", "columns =>"]),
    ("'orders', columns => ARRAY['user_id']", "22023", &["lacks id"]),
    (
        "'orders', columns => ARRAY['id', 'user_id', 'none']",
        "42703",
        &["no column \"none\"", "The columns are: id, user_id"],
    ),
    ("'orders', columns => ARRAY['id', 'user_id', NULL]", "42703", &["no column null"]),
    ("'orders', columns => ARRAY['id', 'user_id', 'id']", "22023", &["twice"]),
    ("'orders', columns => ARRAY['id', 'user_id', 'total']", "0A000", &["generated"]),
    ("'orders', columns => ARRAY['id', 'user_id', 'ctid']", "42703", &["no column ctid"]),
    ("'registered'", "0A000", &["kind", "regclass", "search path", "columns => '{id,user_id}'"]),
    ("'registered_array'", "0A000", &["regtype"]),
    ("'registered_inside'", "0A000", &["regrole"]),
    ("'cast'", "0A000", &["castable_to_json", "columns => '{id,user_id}'"]),
    ("'parts_one'", "0A000", &["is a partition", "SELECT rowcast.track('public.parts')"]),
    ("'parent'", "0A000", &["inheritance", "NO INHERIT"]),
    ("'child'", "0A000", &["inheritance"]),
    ("'a_view'", "0A000", &["is a view", "tables below it"]),
    ("'a_matview'", "0A000", &["is a view"]),
    ("'a_sequence'", "0A000", &["is no table"]),
    ("'orders_pkey'", "0A000", &["is no table"]),
    ("'a_foreign'", "0A000", &["foreign table"]),
    ("'a_temporary'", "0A000", &["temporary"]),
    ("'an_unlogged'", "0A000", &["unlogged", "SET LOGGED"]),
    ("'pg_class'", "0A000", &["table of the system"]),
    ("'information_schema.sql_features'", "0A000", &["table of the system"]),
    ("'rowcast.settings'", "0A000", &["belongs to the catalog"]),
    ("'rowcast.tables', topics => ARRAY['global:tables']", "0A000", &["belongs to the catalog"]),
    ("'rowcast.identity_changes'", "0A000", &["belongs to the catalog"]),
    ("0", "42P01", &["no table"]),
    ("NULL", "42P01", &[]),
    ("'stuck'", "55000", &["no replica identity of public.stuck", "SET NOT NULL"]),
];

const REFUSED_TABLES: &str = "
    CREATE DOMAIN public.label AS text;
    CREATE TYPE public.castable AS ENUM ('x');
    CREATE FUNCTION public.castable_to_json(castable) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';
    CREATE CAST (castable AS json) WITH FUNCTION castable_to_json(castable);
    CREATE TYPE public.inside AS (a int, b regrole[]);
    CREATE TABLE orders (id int PRIMARY KEY, user_id int, price numeric, at timestamptz, padded char(5), doc jsonb,
      ids int[], label label, total int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE no_key (id int, user_id int);
    CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, user_id int);
    CREATE TABLE plain (id int PRIMARY KEY);
    CREATE TABLE generated_owner (id int PRIMARY KEY, user_id int GENERATED ALWAYS AS (id) STORED);
    CREATE TABLE stuck (id int PRIMARY KEY, user_id int, total int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE holder (id int PRIMARY KEY, user_id int NOT NULL);
    CREATE TABLE registered (id int PRIMARY KEY, user_id int, kind regclass);
    CREATE TABLE registered_array (id int PRIMARY KEY, user_id int, kinds regtype[]);
    CREATE TABLE registered_inside (id int PRIMARY KEY, user_id int, kinds inside[]);
    CREATE TABLE \"cast\" (id int PRIMARY KEY, user_id int, value castable);
    CREATE TABLE parts (id int PRIMARY KEY, user_id int) PARTITION BY RANGE (id);
    CREATE TABLE parts_one PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE TABLE parent (id int PRIMARY KEY, user_id int);
    CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
    CREATE VIEW a_view AS SELECT * FROM orders;
    CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM orders;
    CREATE SEQUENCE a_sequence;
    CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
    CREATE FOREIGN TABLE a_foreign (id int, user_id int) SERVER nowhere;
    CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY, user_id int);
    SELECT rowcast.track('holder', topics => ARRAY['user:{user_id}:taken']);";

#[tokio::test]
async fn what_cannot_be_tracked_is_refused_with_a_way_out() {
    let pg = database().await;
    pg.sql(REFUSED_TABLES).await;
    let client = pg.client().await;
    client
        .batch_execute("CREATE TEMPORARY TABLE a_temporary (id int PRIMARY KEY, user_id int)")
        .await
        .unwrap();
    let publication = "SELECT string_agg(prrelid::regclass::text, ' ' ORDER BY 1) FROM pg_publication_rel";
    let before = (pg.value(publication).await, pg.value("SELECT count(*) FROM rowcast.tables").await);
    let mut wrong = Vec::new();
    for (arguments, state, texts) in REFUSALS {
        // From 18 on a stored column may leave.
        if arguments.contains("'total'") && pg.major() >= 18 {
            continue;
        }
        let statement = format!("SELECT rowcast.track({arguments})");
        let error = match client.batch_execute(&statement).await {
            Ok(()) => {
                wrong.push(format!("{statement}: accepted"));
                continue;
            }
            Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}")).clone(),
        };
        let said =
            [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default).join("\n");
        let missing: Vec<_> = texts.iter().filter(|text| !said.contains(**text)).collect();
        let helps = error.detail().is_some()
            && error.hint().is_some()
            && error.message().starts_with("rowcast.track: ");
        if error.code().code() != *state || !missing.is_empty() || !helps {
            wrong.push(format!("{statement}: {} lacks {missing:?} in: {said}", error.code().code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let after = (pg.value(publication).await, pg.value("SELECT count(*) FROM rowcast.tables").await);
    assert_eq!(after, before, "a refused track left something behind");
    // And the application noticed nothing.
    pg.sql("INSERT INTO no_key VALUES (1, 1); UPDATE no_key SET user_id = 2; DELETE FROM no_key").await;
    pg.sql("INSERT INTO stuck VALUES (1, 1); UPDATE stuck SET user_id = 2; DELETE FROM stuck").await;
}

/// Table, arguments of `track` after the name, the identity that the table has then.
const CHOICES: &[(&str, &str, &str, &str)] = &[
    ("by_key", "(user_id int, id int, v text, PRIMARY KEY (user_id, id))", "", "d"),
    ("everyones", "(id int, user_id int, v text, PRIMARY KEY (id))", ", ARRAY['global:everyones']", "d"),
    (
        "indexed",
        "(id int PRIMARY KEY, user_id int NOT NULL, v text, UNIQUE (user_id, id))",
        "",
        "i indexed_user_id_id_key",
    ),
    ("built", "(id int PRIMARY KEY, user_id uuid NOT NULL, v text)", "", "i rowcast_identity"),
    ("nullable", "(id int PRIMARY KEY, user_id int, v text)", "", "f"),
    ("long_owner", "(id int PRIMARY KEY, user_id text NOT NULL, v text)", "", "f"),
    ("short_owner", "(id int PRIMARY KEY, user_id varchar(40) NOT NULL, v text)", "", "i rowcast_identity"),
    (
        "listed",
        "(id int PRIMARY KEY, user_id int NOT NULL, v text, secret text)",
        ", columns => '{id,user_id,v}'",
        "i rowcast_identity",
    ),
    (
        "listed_full",
        "(id int PRIMARY KEY, user_id int, v text, secret text)",
        ", columns => '{id,user_id,v}'",
        "f",
    ),
    (
        "deferred_index",
        "(id int PRIMARY KEY, user_id int NOT NULL, v text, UNIQUE (user_id, id) DEFERRABLE)",
        "",
        "i rowcast_identity",
    ),
    (
        "generated",
        "(id int PRIMARY KEY, user_id int NOT NULL, v text, g int GENERATED ALWAYS AS (id) STORED, UNIQUE (user_id, id, g))",
        "",
        "i rowcast_identity",
    ),
    (
        "two_owners",
        "(id int PRIMARY KEY, user_id int NOT NULL, other int NOT NULL, v text)",
        ", ARRAY['user:{user_id}:two_owners','user:{other}:two_owners']",
        "i rowcast_identity",
    ),
    (
        "\"Odd \"\"name\"\"\"",
        "(\"the id\" int PRIMARY KEY, user_id int NOT NULL, v text)",
        "",
        "i rowcast_identity",
    ),
];

#[tokio::test]
async fn every_accepted_track_leaves_update_and_delete_working() {
    let pg = database().await;
    for (table, definition, arguments, expected) in CHOICES {
        pg.sql(&format!("CREATE TABLE {table} {definition}")).await;
        let name = table.replace('\'', "''");
        pg.sql(&format!("SELECT rowcast.track('public.{name}'{arguments})")).await;
        let identity = pg
            .value(&format!(
                "SELECT concat_ws(' ', relreplident, (SELECT regexp_replace(i.indexrelid::regclass::text, '_\\d+$', '')
                   FROM pg_index i WHERE i.indrelid = c.oid AND indisreplident)) FROM pg_class c WHERE oid = 'public.{name}'::regclass"
            ))
            .await;
        assert_eq!(identity, *expected, "{table}");
        let of_catalog = pg
            .value(&format!("SELECT identity FROM rowcast.tables WHERE relid = 'public.{name}'::regclass"))
            .await;
        let letter = identity.split(' ').next().unwrap();
        assert_eq!(&of_catalog[..1], letter, "{table}");
        // The application goes on, with owners that move and keys that change.
        let id = if table.starts_with('"') { "\"the id\"" } else { "id" };
        let owner = |n: u32| {
            if *table == "built" {
                format!("'00000000-0000-0000-0000-00000000000{n}'")
            } else {
                format!("'{n}'")
            }
        };
        let other = if *table == "two_owners" { ", other" } else { "" };
        let value = if *table == "two_owners" { ", 3" } else { "" };
        pg.sql(&format!(
            "INSERT INTO {table} ({id}, user_id{other}, v) VALUES (1, {}{value}, 'a'), (2, {}{value}, 'b');
             UPDATE {table} SET v = 'c'; UPDATE {table} SET user_id = {}; UPDATE {table} SET {id} = {id} + 10;
             DELETE FROM {table} WHERE {id} = 11; DELETE FROM {table}",
            owner(1),
            owner(2),
            owner(3)
        ))
        .await;
        // Tracked as it is already, nothing happens.
        let generation =
            format!("SELECT generation FROM rowcast.tables WHERE relid = 'public.{name}'::regclass");
        let before = pg.value(&generation).await;
        pg.sql(&format!("SELECT rowcast.track('public.{name}'{arguments})")).await;
        assert_eq!(pg.value(&generation).await, before, "{table}");
        assert_eq!(pg.query_text("SELECT name, problem, mend FROM rowcast.status WHERE problem NOT LIKE 'no index of%' AND part = 'table'").await, Vec::<Vec<_>>::new());
        // Taken back, the table is as it was.
        pg.sql(&format!("SELECT rowcast.untrack('public.{name}')")).await;
        let left = format!(
            "SELECT format('%s %s %s', relreplident, (SELECT count(*) FROM pg_index WHERE indrelid = c.oid AND indexrelid::regclass::text LIKE '%rowcast%'),
               has_table_privilege('rowcast_relay', oid, 'SELECT')) FROM pg_class c WHERE oid = 'public.{name}'::regclass"
        );
        assert_eq!(pg.value(&left).await, "d 0 f", "{table}");
    }
}

#[tokio::test]
async fn a_large_table_needs_its_index_made_first() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE big (id int PRIMARY KEY, user_id int NOT NULL);
         UPDATE pg_class SET reltuples = 2000000 WHERE oid = 'big'::regclass;
         INSERT INTO big VALUES (1, 1); UPDATE pg_class SET reltuples = 2000000, relpages = 1 WHERE oid = 'big'::regclass",
    )
    .await;
    let refused = pg.refusal("SELECT rowcast.track('public.big')").await;
    assert_eq!(refused.code().code(), "55000");
    let hint = refused.hint().unwrap();
    let statement = hint.split(';').next().unwrap();
    assert!(statement.starts_with("CREATE UNIQUE INDEX CONCURRENTLY"), "{hint}");
    // The hint is a command that runs as it stands, and then it works.
    pg.sql(statement).await;
    pg.sql("SELECT rowcast.track('public.big')").await;
    assert_eq!(pg.value("SELECT relreplident::text FROM pg_class WHERE oid = 'big'::regclass").await, "i");
    pg.sql("UPDATE big SET user_id = 2; DELETE FROM big").await;
}

#[tokio::test]
async fn track_gives_up_while_a_transaction_is_open_on_the_table() {
    let pg = database().await;
    pg.sql("CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id)); CREATE TABLE loose (id int PRIMARY KEY, user_id int NOT NULL)").await;
    let writer = pg.client().await;
    writer.batch_execute("BEGIN; INSERT INTO orders VALUES (1, 1); SELECT 1 FROM loose").await.unwrap();
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let tracker = pg.client().await;
    tracker.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    // `orders` is only locked against writers; `loose` changes its identity, so readers count too.
    for table in ["orders", "loose"] {
        let refused = refusal(&tracker, &format!("SELECT rowcast.track('{table}')")).await;
        assert_eq!(refused.code().code(), "55P03", "{refused:?}");
        assert!(
            refused.detail().unwrap().contains("50ms")
                && refused.detail().unwrap().contains(&pid.to_string()),
            "{refused:?}"
        );
    }
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.tables").await, "0");
    writer.batch_execute("COMMIT").await.unwrap();
    for table in ["orders", "loose"] {
        tracker.batch_execute(&format!("SELECT rowcast.track('{table}')")).await.unwrap();
    }
    // The session's own setting is as it was, and without one there is a limit all the same.
    let timeout: String = tracker.query_one("SHOW lock_timeout", &[]).await.unwrap().get(0);
    assert_eq!(timeout, "50ms");
    writer.batch_execute("BEGIN; INSERT INTO orders VALUES (1, 2)").await.unwrap();
    let refused = pg.refusal("SELECT rowcast.untrack('orders')").await;
    assert_eq!(refused.code().code(), "55P03", "{refused:?}");
    assert!(refused.detail().unwrap().contains("2s"), "{refused:?}");
    let (one, two) = (pg.client().await, pg.client().await);
    // In a snapshot of its own it could not see what others changed.
    one.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let refused = refusal(&one, "SELECT rowcast.track('loose', ARRAY['global:loose'])").await;
    assert_eq!(refused.code().code(), "25000", "{refused:?}");
    drop(two);
}

/// A table owner who is no superuser, in a schema of the owner's own.
const OWNER: &str = "
    CREATE ROLE app_owner LOGIN; CREATE ROLE app LOGIN; CREATE ROLE stranger LOGIN;
    CREATE SCHEMA shop AUTHORIZATION app_owner;
    GRANT USAGE ON SCHEMA shop TO app;
    SET ROLE app_owner;
    CREATE TABLE shop.orders (id int PRIMARY KEY, user_id int NOT NULL, note text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO app;
    RESET ROLE;";

#[tokio::test]
async fn owners_track_and_the_relay_serves_with_the_least_rights() {
    let pg = database().await;
    pg.sql(OWNER).await;
    let (owner, app, stranger) =
        tokio::join!(connect_as(&pg, "app_owner"), connect_as(&pg, "app"), connect_as(&pg, "stranger"));
    // Neither who owns but is no member, nor who is a member but does not own.
    let refused = refusal(&owner, "SELECT rowcast.track('shop.orders')").await;
    assert_eq!(refused.code().code(), "42501");
    assert!(refused.hint().unwrap().contains("GRANT rowcast_owner TO app_owner;"), "{refused:?}");
    pg.sql("GRANT rowcast_owner TO stranger; GRANT rowcast_owner TO app_owner; GRANT rowcast_writer TO app; GRANT USAGE ON SCHEMA shop TO stranger").await;
    let refused = refusal(&stranger, "SELECT rowcast.track('shop.orders')").await;
    assert_eq!(refused.code().code(), "42501");
    assert!(refused.message().contains("does not own"), "{refused:?}");
    let cli = rowcast_at(&pg.url_as("app_owner"), &["track", "shop.orders"]).await.expect_success();
    assert!(cli.stderr.contains("replica identity"), "the NOTICE is shown: {cli:?}");

    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let begun = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    app.batch_execute(
        "BEGIN; SELECT rowcast.tag(device => 'phone', correlation => 'c1', user_id => '1');
         INSERT INTO shop.orders VALUES (1, 1, 'a'); COMMIT;
         UPDATE shop.orders SET note = 'b', user_id = 2; UPDATE shop.orders SET user_id = 1; DELETE FROM shop.orders;
         SELECT rowcast.broadcast('user:1:news', 'n', '{}')",
    )
    .await
    .unwrap();
    let operations: Vec<_> = device.changes(4).await.into_iter().map(|change| change.operation).collect();
    assert_eq!(operations, ["INSERT", "DELETE", "INSERT", "DELETE"]);
    assert_eq!(device.expect("broadcast").await.json()["event"], "n");
    let body = json!({"device_id": "phone", "topics": ["user:1:*"], "cursor": begun});
    relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200);
    // DDL by the owner is noticed, a new track as well.
    owner.batch_execute("ALTER TABLE shop.orders ADD COLUMN extra int").await.unwrap();
    assert_eq!(device.expect("sync_required").await.json()["reason"], "schema_changed");
    owner.batch_execute("SELECT rowcast.untrack('shop.orders')").await.unwrap();
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.tables").await, "0");
    assert_eq!(
        pg.value("SELECT relreplident::text FROM pg_class WHERE oid = 'shop.orders'::regclass").await,
        "d"
    );
    let forbidden = relay.output().into_iter().find(|line| line.contains("permission denied"));
    assert_eq!(forbidden, None);
}

#[tokio::test]
async fn ordinary_roles_reach_nothing_of_the_catalog() {
    let pg = database().await;
    pg.sql("CREATE ROLE app LOGIN; CREATE ROLE writer LOGIN; GRANT rowcast_writer TO writer").await;
    let (app, writer, relay) =
        tokio::join!(connect_as(&pg, "app"), connect_as(&pg, "writer"), connect_as(&pg, "rowcast_relay"));
    for statement in [
        "SELECT * FROM rowcast.settings",
        "SELECT * FROM rowcast.tables",
        "SELECT * FROM rowcast.status",
        "SELECT rowcast.emit('{}')",
        "SELECT rowcast.fence('x')",
        "UPDATE rowcast.settings SET value = ''",
        "INSERT INTO rowcast.settings VALUES ('a', 'b')",
    ] {
        for client in [&app, &writer] {
            assert_eq!(refusal(client, statement).await.code().code(), "42501", "{statement}");
        }
    }
    for statement in [
        "SELECT rowcast.tag('phone')",
        "SELECT rowcast.broadcast('user:1:a', 'e', '1')",
        "SELECT rowcast.user_topics('1')",
    ] {
        assert_eq!(refusal(&app, statement).await.code().code(), "42501", "{statement}");
        writer.batch_execute(statement).await.unwrap();
    }
    for statement in [
        "UPDATE rowcast.tables SET topics = '{global:x}'",
        "DELETE FROM rowcast.settings",
        "CREATE TABLE rowcast.mine (id int)",
        "ALTER PUBLICATION rowcast ADD TABLE rowcast.identity_changes",
        "SET ROLE rowcast_owner",
    ] {
        assert_eq!(refusal(&relay, statement).await.code().code(), "42501", "{statement}");
    }
}

#[tokio::test]
async fn tag_and_broadcast_refuse_what_no_device_could_read() {
    let pg = database().await;
    let cases = [
        ("rowcast.tag(NULL)", "22023"),
        ("rowcast.tag('')", "22023"),
        ("rowcast.tag('a b')", "22023"),
        ("rowcast.tag(repeat('x', 65))", "22023"),
        ("rowcast.tag('d', repeat('x', 257))", "54000"),
        ("rowcast.tag('d', 'c', repeat('x', 257))", "54000"),
        ("rowcast.broadcast(NULL, 'e', '1')", "22023"),
        ("rowcast.broadcast('user:*:a', 'e', '1')", "22023"),
        ("rowcast.broadcast('user:1:*', 'e', '1')", "22023"),
        ("rowcast.broadcast('user:%41:a', 'e', '1')", "22023"),
        ("rowcast.broadcast('user', 'e', '1')", "22023"),
        ("rowcast.broadcast('user:1:a', '', '1')", "22023"),
        ("rowcast.broadcast('user:1:a', NULL, '1')", "22023"),
        ("rowcast.broadcast('user:1:a', 'e', NULL)", "22004"),
        ("rowcast.broadcast('user:1:a', 'e', to_json(repeat('x', 262144)))", "54000"),
    ];
    for (call, state) in cases {
        let refused = pg.refusal(&format!("SELECT {call}")).await;
        assert_eq!(refused.code().code(), state, "{call}: {refused:?}");
        assert!(refused.detail().is_some() && refused.hint().is_some(), "{call}: {refused:?}");
    }
}

#[tokio::test]
async fn user_topics_are_those_of_the_user_alone() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE orders (user_id text, id int, PRIMARY KEY (user_id, id));
         CREATE TABLE messages (sender_id int, recipient_id int, id int, PRIMARY KEY (sender_id, recipient_id, id));
         CREATE TABLE exercises (id int PRIMARY KEY); CREATE TABLE tasks (team_id int, id int, PRIMARY KEY (team_id, id));
         CREATE TABLE fixed (id int PRIMARY KEY);
         SELECT rowcast.track('orders'), rowcast.track('exercises', ARRAY['global:exercises']), rowcast.track('tasks', ARRAY['team:{team_id}:tasks']),
           rowcast.track('fixed', ARRAY['user:42:fixed']),
           rowcast.track('messages', ARRAY['user:{sender_id}:messages', 'user:{recipient_id}:messages'])",
    )
    .await;
    let topics = async |user: &str| {
        pg.value(&format!(
            "SELECT coalesce(string_agg(t, ' ' ORDER BY t), '') FROM rowcast.user_topics({user}) AS t"
        ))
        .await
    };
    assert_eq!(topics("'42'").await, "global:exercises user:42:fixed user:42:messages user:42:orders");
    assert_eq!(topics("'4'").await, "global:exercises user:4:messages user:4:orders");
    assert_eq!(topics("'a:*%'").await, "global:exercises user:a%3A%2A%25:messages user:a%3A%2A%25:orders");
    assert_eq!(topics("''").await, "");
}

#[tokio::test]
async fn status_names_what_is_wrong_and_the_command_that_mends_it() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL); CREATE TABLE other (user_id int, id int, PRIMARY KEY (user_id, id));
         SELECT rowcast.track('orders'), rowcast.track('other')",
    )
    .await;
    let problems =
        "SELECT name, problem, mend FROM rowcast.status WHERE part = 'table' AND problem IS NOT NULL";
    assert_eq!(pg.query_text(problems).await, Vec::<Vec<_>>::new());
    for (breaking, word) in [
        ("ALTER TABLE orders REPLICA IDENTITY DEFAULT", "replica identity"),
        ("ALTER PUBLICATION rowcast DROP TABLE orders", "the publication lacks it"),
        ("ALTER TABLE orders RENAME TO orders2; ALTER TABLE orders2 RENAME TO orders3", "renamed"),
        ("REVOKE SELECT ON orders3 FROM rowcast_relay", "may not read it"),
    ] {
        pg.sql(breaking).await;
        let found = pg.query_text(problems).await;
        let [problem] = found.as_slice() else { panic!("{breaking}: {found:?}") };
        assert!(problem[1].as_ref().unwrap().contains(word), "{breaking}: {problem:?}");
        // What it says to run mends it.
        pg.sql(problem[2].as_ref().unwrap()).await;
        assert_eq!(pg.query_text(problems).await, Vec::<Vec<_>>::new(), "after {breaking}");
    }
    pg.sql("DROP TABLE orders3").await;
    let found = pg.query_text(problems).await;
    assert!(found.len() == 1 && found[0][1].as_ref().unwrap().contains("no table with oid"), "{found:?}");
    pg.sql(found[0][2].as_ref().unwrap()).await;
    assert_eq!(pg.query_text(problems).await, Vec::<Vec<_>>::new());
}

#[tokio::test]
async fn a_relay_that_may_not_replicate_says_so_and_ends() {
    let pg = database().await;
    pg.sql("ALTER ROLE rowcast_relay NOREPLICATION").await;
    let mut relay = relay_on(&pg).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    let mend = "ALTER ROLE rowcast_relay REPLICATION";
    eventually(PATIENCE, "what is missing is told", async || (relay.count_lines(mend) > 0).then_some(()))
        .await;
    pg.sql(mend).await;
    relay.start_again().await;
    relay.wait_ready().await;
}

#[tokio::test]
async fn a_relay_without_a_catalog_or_rights_to_it_says_so_and_ends() {
    let pg = TestPostgres::start().await;
    pg.sql("CREATE ROLE bare LOGIN REPLICATION").await;
    let mut relay = Relay::on_url(&pg.url_as("bare")).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    eventually(PATIENCE, "told to install", async || (relay.count_lines("rowcast init") > 0).then_some(()))
        .await;
    rowcast(&pg, &["init"]).await.expect_success();
    relay.start_again().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    eventually(PATIENCE, "told to grant", async || {
        (relay.count_lines("permission denied") + relay.count_lines("GRANT") > 0).then_some(())
    })
    .await;
    pg.sql("GRANT rowcast_relay TO bare; CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('orders')").await;
    relay.start_again().await;
    relay.wait_ready().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    assert_eq!(device.change().await.key_text(), r#"{"user_id":1,"id":1}"#);
    assert!(frames_until_now(&pg, &mut device, "user:1").await.is_empty());
}

async fn connect_as(pg: &TestPostgres, role: &str) -> tokio_postgres::Client {
    connect(&pg.url_as(role)).await
}
