//! `rowcast uninstall`: the database is afterwards what it was before `rowcast init`.

use crate::support::cli::{rowcast, rowcast_at};
use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::stage::{database, relay_on};
use crate::support::wait::{PATIENCE, eventually};

/// All objects, rights and roles of the database. Rights that are there by default count as such.
const EVERYTHING: &str = "SELECT line FROM (
    SELECT format('relation %s %s %s %s %s', relkind, oid::regclass, relowner::regrole, relreplident,
        (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))) AS a))
      FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT format('function %s', oid::regprocedure) FROM pg_proc
    UNION ALL SELECT format('type %s', oid::regtype) FROM pg_type WHERE typnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT format('schema %s %s', nspname, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) AS a))
      FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
    UNION ALL SELECT format('database %s', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(datacl, acldefault('d', datdba))) AS a))
      FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT format('publication %s', pubname) FROM pg_publication
    UNION ALL SELECT format('published %s %s', prpubid, prrelid) FROM pg_publication_rel
    UNION ALL SELECT format('slot %s', slot_name) FROM pg_replication_slots
    UNION ALL SELECT format('role %s', to_jsonb(r) - 'rolpassword') FROM pg_roles r
    UNION ALL SELECT format('member %s of %s', member::regrole, roleid::regrole) FROM pg_auth_members
    UNION ALL SELECT format('identity %s', indexrelid::regclass) FROM pg_index WHERE indisreplident
  ) AS e (line) ORDER BY line";

const TABLES: &str = "
    CREATE ROLE app LOGIN; CREATE ROLE shop_owner;
    CREATE SCHEMA shop AUTHORIZATION shop_owner;
    CREATE TABLE orders (id int PRIMARY KEY, user_id int NOT NULL, note text);
    CREATE TABLE nullable (id int PRIMARY KEY, user_id int);
    CREATE TABLE nothing (id int PRIMARY KEY, user_id int NOT NULL);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE shop.items (user_id int, id int, PRIMARY KEY (user_id, id));
    ALTER TABLE shop.items OWNER TO shop_owner;
    GRANT SELECT ON orders TO app;";

async fn everything(pg: &TestPostgres) -> Vec<String> {
    pg.query_text(EVERYTHING).await.into_iter().flatten().map(Option::unwrap).collect()
}

fn assert_same(now: &[String], before: &[String]) {
    let lacking =
        |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    assert_eq!((lacking(now, before), lacking(before, now)), (vec![], vec![]), "new, and gone");
}

/// A database in use, and what it was before.
async fn installed() -> (TestPostgres, Vec<String>) {
    let pg = TestPostgres::start().await;
    pg.sql(TABLES).await;
    let before = everything(&pg).await;
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql(
        "GRANT rowcast_owner TO shop_owner; GRANT rowcast_writer TO app; ALTER ROLE rowcast_relay LOGIN;
         SELECT rowcast.track('orders'), rowcast.track('nullable'), rowcast.track('nothing'), rowcast.track('shop.items')",
    )
    .await;
    (pg, before)
}

#[tokio::test]
async fn nothing_is_left_behind() {
    let (pg, before) = installed().await;
    let mut relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    device.change().await;

    // Not while a relay streams, and then it says who.
    let refused = rowcast(&pg, &["uninstall", "--yes"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("as rowcast_relay"), "{refused:?}");
    relay.terminate().await;
    // Not without a word.
    let asked = rowcast(&pg, &["uninstall"]).await;
    assert!(
        asked.code == 2 && asked.stderr.contains("--yes") && asked.stderr.contains("public.orders"),
        "{asked:?}"
    );
    assert_eq!(pg.value("SELECT count(*) FROM rowcast.tables").await, "4");

    rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert_same(&everything(&pg).await, &before);
    pg.sql("UPDATE orders SET note = 'x'; DELETE FROM orders").await;
    let again = rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert!(again.stdout.contains("nothing of rowcast"), "{again:?}");
    // And it can be installed again.
    rowcast(&pg, &["init"]).await.expect_success();
    pg.sql("SELECT rowcast.track('orders')").await;
}

#[tokio::test]
async fn a_catalog_of_version_1_is_removed_too() {
    let pg = TestPostgres::start().await;
    pg.sql(TABLES).await;
    let before = everything(&pg).await;
    let v1 = include_str!("../fixtures/catalog/v1.sql");
    pg.sql(&format!("BEGIN; {v1}; COMMIT; SELECT rowcast.track('orders'), rowcast.track('nullable')")).await;
    rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert_same(&everything(&pg).await, &before);
}

/// As on a managed service: who may create roles and owns the database, and is no superuser.
#[tokio::test]
async fn a_database_owner_installs_and_removes_it() {
    let pg = TestPostgres::start().await;
    pg.sql(
        "CREATE ROLE dba LOGIN CREATEROLE; ALTER DATABASE postgres OWNER TO dba;
         CREATE SCHEMA own AUTHORIZATION dba; SET ROLE dba;
         CREATE TABLE own.orders (id int PRIMARY KEY, user_id int NOT NULL); RESET ROLE",
    )
    .await;
    let before = everything(&pg).await;
    let url = pg.url_as("dba");
    let said = rowcast_at(&url, &["init"]).await.expect_success();
    assert!(said.stderr.contains("may not give rowcast_relay the right to replicate"), "{said:?}");
    rowcast_at(&url, &["track", "own.orders"]).await.expect_success();
    let said = rowcast_at(&url, &["uninstall", "--yes"]).await.expect_success();
    assert!(!said.stderr.contains("stays"), "{said:?}");
    assert_same(&everything(&pg).await, &before);
}

#[tokio::test]
async fn roles_that_others_need_stay() {
    let (pg, before) = installed().await;
    rowcast(&pg, &["uninstall", "--yes", "--keep-roles"]).await.expect_success();
    let now = everything(&pg).await;
    let new: Vec<&String> = now.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        new.len() >= 3 && new.iter().all(|l| l.starts_with("role ") || l.starts_with("member ")),
        "{new:?}"
    );

    pg.sql("CREATE DATABASE other").await;
    let url = pg.url_of("other");
    rowcast_at(&url, &["init"]).await.expect_success();
    rowcast(&pg, &["init"]).await.expect_success();
    let said = rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert!(said.stderr.contains("the role rowcast_relay stays: it is used in other"), "{said:?}");
    let there = crate::support::postgres::connect(&url).await;
    there.batch_execute("SELECT count(*) FROM rowcast.status").await.unwrap();
}

#[tokio::test]
async fn a_table_in_use_and_what_is_built_on_rowcast_stop_it() {
    let (pg, before) = installed().await;
    let busy = pg.client().await;
    busy.batch_execute("BEGIN; INSERT INTO orders VALUES (1, 1)").await.unwrap();
    let stopped = rowcast(&pg, &["uninstall", "--yes"]).await;
    assert!(stopped.code == 1 && stopped.stderr.contains("still tracked: public.orders;"), "{stopped:?}");
    assert_eq!(pg.value("SELECT string_agg(table_name, ' ') FROM rowcast.tables").await, "orders");
    busy.batch_execute("ROLLBACK").await.unwrap();

    pg.sql("CREATE VIEW mine AS SELECT * FROM rowcast.status").await;
    let stopped = rowcast(&pg, &["uninstall", "--yes"]).await;
    assert!(stopped.code == 1 && stopped.stderr.contains("view mine"), "{stopped:?}");
    assert_eq!(pg.value("SELECT count(*) FROM pg_publication WHERE pubname = 'rowcast'").await, "1");
    pg.sql("DROP VIEW mine").await;
    rowcast(&pg, &["uninstall", "--yes"]).await.expect_success();
    assert_same(&everything(&pg).await, &before);
}

#[tokio::test]
async fn a_slot_of_another_name_is_named() {
    let pg = database().await;
    let mut relay = relay_on(&pg).arg("--slot=rowcast_two").start().await;
    relay.terminate().await;
    let said = rowcast(&pg, &["uninstall", "--yes", "--keep-roles"]).await.expect_success();
    assert!(said.stderr.contains("pg_drop_replication_slot('rowcast_two')"), "{said:?}");
    rowcast(&pg, &["init"]).await.expect_success();
    rowcast(&pg, &["uninstall", "--yes", "--slot", "rowcast_two"]).await.expect_success();
    eventually(PATIENCE, "the slot is gone", async || {
        (pg.value("SELECT count(*) FROM pg_replication_slots").await == "0").then_some(())
    })
    .await;
}
