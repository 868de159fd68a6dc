//! From a catalog of an earlier release to this one's: nothing is lost, nothing is left, and it is the
//! same as a fresh one; and a relay in between.

use rowcast::postgres::catalog::VERSION;

use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::stage::{database, frames_until_now, relay_on};
use crate::support::wait::{PATIENCE, eventually};

/// The complete catalog of version 1.
const V1: &str = include_str!("../fixtures/catalog/v1.sql");

/// All that there is in the schema, as a dump would have it.
const DESCRIPTION: &str = "SELECT line FROM (
    SELECT format('relation %s %s %s', relkind, relname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) AS a))
      FROM pg_class WHERE relnamespace = 'rowcast'::regnamespace
    UNION ALL SELECT format('column %s.%s %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull,
        pg_get_expr(d.adbin, d.adrelid), attacl)
      FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
      WHERE c.relnamespace = 'rowcast'::regnamespace AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'rowcast'::regnamespace
    UNION ALL SELECT format('view %s %s', viewname, definition) FROM pg_views WHERE schemaname = 'rowcast'
    UNION ALL SELECT format('index %s', indexdef) FROM pg_indexes WHERE schemaname = 'rowcast'
    UNION ALL SELECT format('function %s %s', pg_get_functiondef(oid), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(proacl) AS a))
      FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace
    UNION ALL SELECT format('trigger %s', pg_get_triggerdef(t.oid)) FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
      WHERE c.relnamespace = 'rowcast'::regnamespace AND NOT tgisinternal
    UNION ALL SELECT format('comment %s %s', pg_describe_object(classoid, objoid, objsubid), description) FROM pg_description
      WHERE (classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'rowcast'::regnamespace))
         OR (classoid = 'pg_proc'::regclass AND objoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace))
    UNION ALL SELECT format('published %s %s %s', prrelid::regclass, prattrs, prqual) FROM pg_publication_rel
      WHERE prrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'rowcast'::regnamespace)
    UNION ALL SELECT format('schema %s %s', nspowner::regrole, nspacl) FROM pg_namespace WHERE nspname = 'rowcast'
    UNION ALL SELECT format('setting %s %s', name, CASE WHEN name LIKE 'mac%' THEN length(value)::text ELSE value END) FROM rowcast.settings
    UNION ALL SELECT format('member %s of %s', member::regrole, roleid::regrole) FROM pg_auth_members WHERE roleid::regrole::text LIKE 'rowcast%'
  ) AS d (line) ORDER BY line";

async fn description(pg: &TestPostgres) -> Vec<String> {
    pg.query_text(DESCRIPTION).await.into_iter().flatten().map(Option::unwrap).collect()
}

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, note text);
    CREATE TABLE profiles (id int, user_id int, name text, secret text, PRIMARY KEY (user_id, id));
    CREATE TABLE exercises (id int PRIMARY KEY, title text);";
const TRACK: &str =
    "SELECT rowcast.track('orders'), rowcast.track('exercises', topics => ARRAY['global:exercises']),
    rowcast.track('profiles', columns => ARRAY['id', 'user_id', 'name'])";

#[tokio::test]
async fn an_upgraded_catalog_is_as_a_fresh_one() {
    let (fresh, old) = tokio::join!(TestPostgres::start(), TestPostgres::start());
    rowcast(&fresh, &["init"]).await.expect_success();
    old.sql(&format!("BEGIN; {V1}; COMMIT; {TABLES} {TRACK}")).await;
    let kept =
        "SELECT format('%s %s %s %s %s', relid, topics, columns, generation, identity) FROM rowcast.tables
        UNION ALL SELECT format('%s %s', name, value) FROM rowcast.settings WHERE name LIKE 'mac%'
        UNION ALL SELECT format('%s %s', prrelid, prattrs) FROM pg_publication_rel
          WHERE prrelid IN ('orders'::regclass, 'profiles'::regclass, 'exercises'::regclass)
        UNION ALL SELECT format('%s', (relid, was, was_index, now, now_index, built_index)) FROM rowcast.identity_changes ORDER BY 1";
    let before = old.query_text(kept).await;
    assert!(before.len() > 8, "{before:?}");
    let said = rowcast(&old, &["init"]).await.expect_success();
    assert!(said.stdout.contains(&format!("from version 1 to {VERSION}")), "{said:?}");
    assert_eq!(old.query_text(kept).await, before, "tracked tables and the secret stay");

    let (upgraded, fresh) = (description(&old).await, description(&fresh).await);
    let lacking =
        |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    assert_eq!(lacking(&upgraded, &fresh), Vec::<String>::new(), "only in the upgraded one");
    assert_eq!(lacking(&fresh, &upgraded), Vec::<String>::new(), "only in the fresh one");
    let wrong =
        "SELECT part, name, problem FROM rowcast.status WHERE part IN ('table', 'publication', 'server')
        AND problem NOT LIKE 'no index of%'";
    assert_eq!(old.query_text(wrong).await, Vec::<Vec<_>>::new());
    // What version 1 did to the tables, this one takes back.
    old.sql("SELECT rowcast.untrack('orders'), rowcast.untrack('profiles'), rowcast.untrack('exercises')")
        .await;
    assert_eq!(
        old.value(
            "SELECT string_agg(relreplident::text, '') FROM pg_class WHERE relname IN ('orders', 'profiles')"
        )
        .await,
        "dd"
    );
    assert_eq!(old.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'rowcast_identity%'").await, "0");
}

/// What an earlier release had and this one has not, goes; but never what something of the user's needs.
#[tokio::test]
async fn what_no_release_needs_any_more_goes() {
    let pg = TestPostgres::start().await;
    pg.sql(&format!(
        "BEGIN; {V1}; COMMIT; SET ROLE rowcast_owner;
         CREATE FUNCTION rowcast.of_old(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION rowcast.of_old(text) RETURNS int LANGUAGE sql AS 'SELECT 1'; RESET ROLE;
         CREATE VIEW public.mine AS SELECT rowcast.of_old('x'), part FROM rowcast.status"
    ))
    .await;
    let said = rowcast(&pg, &["init"]).await.expect_success();
    assert!(said.stderr.contains("rowcast.of_old(text) is of an earlier release and stays"), "{said:?}");
    let left = "SELECT string_agg(oid::regprocedure::text, ' ') FROM pg_proc WHERE proname = 'of_old'";
    assert_eq!(pg.value(left).await, "rowcast.of_old(text)");
    assert!(pg.query_text("SELECT * FROM public.mine").await.len() > 1, "what was built on the view works");
}

#[tokio::test]
async fn a_relay_asks_for_the_upgrade_and_then_goes_on() {
    let pg = TestPostgres::start().await;
    pg.sql(&format!("BEGIN; {V1}; COMMIT; ALTER ROLE rowcast_relay LOGIN; {TABLES} {TRACK}")).await;
    let mut relay = relay_on(&pg).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    eventually(PATIENCE, "told to upgrade", async || {
        let told =
            relay.output().iter().any(|line| line.contains("has version 1") && line.contains("rowcast init"));
        told.then_some(())
    })
    .await;
    assert_eq!(pg.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    rowcast(&pg, &["init"]).await.expect_success();
    relay.start_again().await;
    relay.wait_ready().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*", "global:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1, 'a'); INSERT INTO profiles VALUES (1, 1, 'n', 's'); INSERT INTO exercises VALUES (1, 't')").await;
    let records: Vec<String> =
        device.changes(3).await.iter().map(|change| change.record_text().to_owned()).collect();
    assert_eq!(
        records,
        [
            r#"{"id":1,"user_id":1,"note":"a"}"#,
            r#"{"id":1,"user_id":1,"name":"n"}"#,
            r#"{"id":1,"title":"t"}"#
        ]
    );
}

/// The catalog is put back to version 1 and upgraded again while a relay streams and a device listens.
#[tokio::test]
async fn a_relay_streams_on_while_the_catalog_is_upgraded() {
    let pg = database().await;
    pg.sql(&format!("{TABLES} {TRACK}")).await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*", "global:*"], None).await;
    pg.sql(&format!(
        "BEGIN; UPDATE rowcast.settings SET value = '1' WHERE name = 'version'; DROP VIEW rowcast.status; {V1}; COMMIT"
    ))
    .await;
    assert_eq!(pg.value("SELECT value FROM rowcast.settings WHERE name = 'version'").await, "1");
    pg.sql("INSERT INTO orders VALUES (1, 1, 'under version 1')").await;
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("INSERT INTO orders VALUES (2, 1, 'after it')").await;
    let keys: Vec<String> =
        device.changes(2).await.iter().map(|change| change.key_text().to_owned()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#]);
    pg.sql(
        "CREATE TABLE later (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('later')",
    )
    .await;
    assert_eq!(device.expect("sync_required").await.json()["reason"], "newly_tracked");
    // Nothing had to be synced because of the upgrade, and no epoch began.
    let rest = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(rest.iter().all(|frame| frame.json()["type"] != "sync_required"), "{rest:?}");
    assert_eq!(relay.metric("rowcast_new_epochs_total").await.unwrap_or(0.0), 0.0);
    assert_eq!(relay.count_lines("ERROR"), 0, "{:?}", relay.output());
}

#[tokio::test]
async fn a_relay_refuses_a_catalog_of_a_later_release() {
    let pg = database().await;
    pg.sql(&format!("UPDATE rowcast.settings SET value = '{}' WHERE name = 'version'", VERSION + 1)).await;
    let mut relay = relay_on(&pg).start_listening().await;
    assert_eq!(relay.wait_exit().await, Some(1));
    eventually(PATIENCE, "told to use another release", async || {
        (relay.count_lines("run the rowcast release that installed the catalog") > 0).then_some(())
    })
    .await;
    let check = rowcast(&pg, &["check"]).await;
    assert!(check.code == 1 && check.stdout.contains("or a later one"), "{check:?}");
}

/// A publication that was dropped comes back empty: what was tracked is told, with what to run.
#[tokio::test]
async fn after_a_lost_publication_init_names_the_tables_to_track_again() {
    let pg = database().await;
    pg.sql(&format!("{TABLES} {TRACK}; DROP PUBLICATION rowcast")).await;
    let said = rowcast(&pg, &["init"]).await.expect_success();
    let again: Vec<&str> =
        said.stderr.lines().map(str::trim).filter(|l| l.starts_with("SELECT rowcast.track")).collect();
    assert_eq!(again.len(), 3, "{said:?}");
    pg.sql(&again.join(" ")).await;
    let said = rowcast(&pg, &["init"]).await.expect_success();
    assert!(!said.stderr.contains("rowcast.track"), "{said:?}");
}
