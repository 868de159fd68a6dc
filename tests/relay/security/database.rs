//! The database's side: roles that try to get further than they were let, and objects that are named like
//! others to be taken for them.

use tokio_postgres::Client;

use super::SYNC;
use crate::support::device::Device;
use crate::support::postgres::{TestPostgres, connect, refusal};
use crate::support::stage::{database, relay_on};
use crate::support::wait::{PATIENCE, eventually};

const NOTES: &str = "
    CREATE TABLE notes (id int PRIMARY KEY, user_id int, text text);
    CREATE TABLE private (id int PRIMARY KEY, text text); INSERT INTO private VALUES (1, 'planted');
    SELECT rowcast.track('notes');";

/// Functions that run with the owner's rights, and who may call them. All others run with the caller's.
const DEFINERS: [(&str, &str); 6] = [
    ("broadcast", "rowcast_relay,rowcast_writer"),
    ("fence", "rowcast_relay"),
    ("revoke", ""),
    ("tag", "rowcast_relay,rowcast_writer"),
    ("unrevoke", ""),
    ("user_topics", "rowcast_relay,rowcast_writer"),
];

async fn role(pg: &TestPostgres, name: &str, grants: &str) -> Client {
    pg.sql(&format!("CREATE ROLE {name} LOGIN; {grants}")).await;
    connect(&pg.url_as(name)).await
}

async fn lines(pg: &TestPostgres, query: &str) -> Vec<String> {
    pg.query_text(query)
        .await
        .into_iter()
        .map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" "))
        .collect()
}

#[tokio::test]
async fn the_relays_role_has_what_the_documentation_says_and_no_more() {
    let pg = database().await;
    pg.sql(NOTES).await;
    let attributes = "SELECT rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = 'rowcast_relay'";
    assert_eq!(lines(&pg, attributes).await, ["f t f f t f"]);
    let member_of =
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'rowcast_relay'::regrole";
    assert_eq!(lines(&pg, member_of).await, ["pg_read_all_stats"]);
    // What was granted to it by name, in all of the database.
    let granted = "SELECT DISTINCT kind || ' ' || string_agg(DISTINCT a.privilege_type, ',') FROM (
          SELECT 'table', oid::regclass::text, relacl FROM pg_class WHERE relacl IS NOT NULL
          UNION ALL SELECT 'function', '', proacl FROM pg_proc WHERE proacl IS NOT NULL
          UNION ALL SELECT 'schema', nspname, nspacl FROM pg_namespace WHERE nspacl IS NOT NULL
          UNION ALL SELECT 'database', datname, datacl FROM pg_database WHERE datacl IS NOT NULL
          UNION ALL SELECT 'type', '', typacl FROM pg_type WHERE typacl IS NOT NULL
          UNION ALL SELECT 'language', '', lanacl FROM pg_language WHERE lanacl IS NOT NULL
        ) AS objects (kind, name, acl), aclexplode(acl) AS a
        WHERE a.grantee = 'rowcast_relay'::regrole GROUP BY kind, name ORDER BY 1";
    assert_eq!(lines(&pg, granted).await, ["function EXECUTE", "table SELECT"]);
    let readable = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
          AND has_table_privilege('rowcast_relay', c.oid, 'SELECT') ORDER BY 1";
    let catalog =
        ["grant_seeds", "grants", "identity_changes", "revocations", "settings", "status", "tables"];
    let mut expected = vec!["notes".to_owned()];
    expected.extend(catalog.map(|table| format!("rowcast.{table}")));
    assert_eq!(lines(&pg, readable).await, expected);
    // Whoever took the relay over could not choose what leaves, nor who may read it.
    let relay = connect(&pg.url_as("rowcast_relay")).await;
    for statement in [
        "INSERT INTO notes VALUES (1, 1, '')",
        "SELECT * FROM private",
        "UPDATE rowcast.tables SET columns = NULL",
        "DELETE FROM rowcast.revocations",
        "INSERT INTO rowcast.grant_seeds VALUES (1, 1, '[]')",
        "INSERT INTO rowcast.grants (generation) VALUES (1)",
        "UPDATE rowcast.settings SET value = ''",
        "SELECT nextval('rowcast.generation')",
        "SELECT rowcast.track('notes')",
        "SELECT rowcast.track('private', ARRAY['global:private'])",
        "SELECT rowcast.untrack('notes')",
        "SELECT rowcast.grant_by('notes', 'user_id', 'global:*')",
        "SELECT rowcast.publish('private'::regclass, NULL)",
        "SELECT rowcast.record('private'::regclass, ARRAY['global:private'], NULL)",
        "SELECT rowcast.grant_relay('private'::regclass)",
        "SELECT rowcast.revoke('42')",
        "SELECT rowcast.unrevoke('42')",
        "ALTER PUBLICATION rowcast ADD TABLE private",
        "CREATE FUNCTION rowcast.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION rowcast.fence(id text) RETURNS void LANGUAGE sql AS ''",
        "SET ROLE rowcast_owner",
        "CREATE ROLE other",
        "CREATE DATABASE other",
        "COPY notes TO '/tmp/x'",
        "COPY notes TO PROGRAM 'id'",
        "SELECT pg_read_file('PG_VERSION')",
    ] {
        let refused = refusal(&relay, statement).await;
        assert_eq!(refused.code().code(), "42501", "{statement}: {refused:?}");
    }
}

#[tokio::test]
async fn functions_that_lend_rights_are_these_and_look_nothing_up_elsewhere() {
    let pg = database().await;
    let definers = "SELECT proname, coalesce((SELECT string_agg(coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC'), ',' ORDER BY a.grantee::regrole::text) FROM aclexplode(proacl) AS a WHERE a.grantee <> proowner), '')
        FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace AND prosecdef ORDER BY proname";
    let expected = DEFINERS.map(|(name, who)| format!("{name} {who}").trim_end().to_owned());
    let found: Vec<String> =
        lines(&pg, definers).await.iter().map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(found, expected);
    // The same settings for every function, so that none is found by a name of the caller's choice.
    let paths = "SELECT DISTINCT proowner::regrole::text, (SELECT setting FROM unnest(proconfig) AS setting WHERE setting LIKE 'search_path=%') FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace";
    assert_eq!(lines(&pg, paths).await, ["rowcast_owner search_path=pg_catalog, pg_temp"]);
    let open = "SELECT DISTINCT proname FROM pg_proc, aclexplode(proacl) AS a WHERE pronamespace = 'rowcast'::regnamespace AND a.grantee = 0 ORDER BY 1";
    assert_eq!(lines(&pg, open).await, ["check_rights", "grant_by", "revoke_by", "track", "untrack"]);
    let unowned =
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace AND proacl IS NULL";
    assert_eq!(pg.value(unowned).await, "0", "functions with the default rights, which are everyone's");
}

/// Objects of the names that the catalog's functions use, each of which tells that it was reached.
const TRAPS: &str = r#"
    CREATE SCHEMA trap;
    CREATE FUNCTION trap.tell() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
    CREATE FUNCTION trap.convert_to(text, text) RETURNS bytea LANGUAGE sql AS $$ SELECT trap.tell(); SELECT ''::bytea $$;
    CREATE FUNCTION trap.convert_to(text, name) RETURNS bytea LANGUAGE sql AS $$ SELECT trap.tell(); SELECT ''::bytea $$;
    CREATE FUNCTION trap.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT trap.tell(); SELECT ''::bytea $$;
    CREATE FUNCTION trap.encode(bytea, text) RETURNS text LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '' $$;
    CREATE FUNCTION trap.decode(text, text) RETURNS bytea LANGUAGE sql AS $$ SELECT trap.tell(); SELECT ''::bytea $$;
    CREATE FUNCTION trap.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '' $$;
    CREATE FUNCTION trap.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
    CREATE FUNCTION trap.to_json(text) RETURNS json LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '{}'::json $$;
    CREATE FUNCTION trap.quote_ident(text) RETURNS text LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '' $$;
    CREATE FUNCTION trap.octet_length(text) RETURNS int LANGUAGE sql AS $$ SELECT trap.tell(); SELECT 1 $$;
    CREATE FUNCTION trap.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '' $$;
    CREATE FUNCTION trap.pg_has_role(name, text) RETURNS boolean LANGUAGE sql AS $$ SELECT trap.tell(); SELECT true $$;
    CREATE FUNCTION trap.pg_logical_emit_message(boolean, text, bytea) RETURNS pg_lsn LANGUAGE sql AS $$ SELECT trap.tell(); SELECT '0/0'::pg_lsn $$;
    CREATE FUNCTION trap.concat_bytes(bytea, bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT trap.tell(); SELECT ''::bytea $$;
    CREATE OPERATOR trap.|| (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = trap.concat_bytes);
    CREATE FUNCTION trap.same(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT trap.tell(); SELECT true $$;
    CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
    CREATE OPERATOR trap.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
    CREATE FUNCTION trap.same(oid, oid) RETURNS boolean LANGUAGE sql AS $$ SELECT trap.tell(); SELECT true $$;
    CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.same);
    CREATE FUNCTION trap.same(name, text) RETURNS boolean LANGUAGE sql AS $$ SELECT trap.tell(); SELECT true $$;
    CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = text, FUNCTION = trap.same);
    CREATE TABLE trap.pg_class (oid oid, relname name); CREATE TABLE trap.pg_publication (oid oid, pubname name);
    CREATE TABLE trap.settings (name text, value text); CREATE TABLE trap.tables (relid oid);
    CREATE DOMAIN trap.uuid AS text CHECK (trap.tell() IS NULL); CREATE DOMAIN trap.regclass AS text; CREATE DOMAIN trap.jsonb AS text;
    GRANT USAGE ON SCHEMA trap TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA trap TO PUBLIC;"#;

#[tokio::test]
async fn names_that_are_like_the_catalogs_catch_nobody() {
    let pg = database().await;
    pg.sql(NOTES).await;
    pg.sql(TRAPS).await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "42", "phone").connect().await;
    device.subscribe(&["user:42:*", "global:*"], None).await;
    let writer = role(&pg, "writer", "GRANT rowcast_writer TO writer").await;
    let owner =
        role(&pg, "owner", "GRANT rowcast_owner TO owner; GRANT CREATE ON SCHEMA public TO owner").await;
    let superuser = pg.client().await;
    let trapped = "SET search_path = trap, pg_temp, pg_catalog, public; CREATE TEMP TABLE settings (name text, value text); CREATE TEMP TABLE tables (relid oid);
        CREATE TEMP TABLE pg_class (oid oid); CREATE TEMP TABLE pg_publication_rel (prrelid oid); CREATE TEMP VIEW pg_roles AS SELECT 'x' AS rolname";
    for client in [&writer, &owner, &superuser] {
        client.batch_execute(trapped).await.unwrap();
    }
    writer
        .batch_execute("BEGIN; SELECT rowcast.tag('phone', 'c'); SELECT rowcast.broadcast('user:42:news', 'e', '{\"a\":1}'::pg_catalog.json); SELECT * FROM rowcast.user_topics('42'); COMMIT")
        .await
        .unwrap();
    let broadcast = device.expect("broadcast").await.json();
    assert_eq!(broadcast["payload"]["a"], 1);
    owner.batch_execute("CREATE TABLE public.theirs (id int PRIMARY KEY, user_id int); SELECT rowcast.track('public.theirs'::pg_catalog.regclass)").await.unwrap();
    for statement in [
        "SELECT rowcast.track('public.notes'::pg_catalog.regclass, columns => '{id,user_id}')",
        "SELECT rowcast.track('public.notes'::pg_catalog.regclass)",
        "SELECT rowcast.grant_by('public.notes'::pg_catalog.regclass, 'user_id', 'team:{id}:*')",
        "SELECT rowcast.revoke_by('public.notes'::pg_catalog.regclass)",
        "SELECT count(*) FROM rowcast.status",
        "SELECT count(*) FROM rowcast.candidates()",
        "SELECT rowcast.revoke('7'), rowcast.unrevoke('7')",
        "SELECT rowcast.untrack('public.theirs'::pg_catalog.regclass)",
        "SELECT rowcast.fence('f')",
    ] {
        superuser.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    // Nor can the schema itself be shadowed or added to.
    for statement in [
        "CREATE FUNCTION rowcast.emit(body text, more int) RETURNS void LANGUAGE sql AS ''",
        "ALTER SCHEMA rowcast RENAME TO x",
        "CREATE TABLE rowcast.x ()",
    ] {
        assert_eq!(refusal(&writer, statement).await.code().code(), "42501", "{statement}");
    }
}

#[tokio::test]
async fn who_may_do_one_thing_may_not_do_another() {
    let pg = database().await;
    pg.sql(NOTES).await;
    let writer = role(&pg, "writer", "GRANT rowcast_writer TO writer").await;
    let stranger = role(&pg, "stranger", "GRANT CREATE ON SCHEMA public TO stranger").await;
    let owner = role(&pg, "owner", "GRANT rowcast_owner TO owner").await;
    for client in [&writer, &stranger] {
        for statement in [
            "SELECT value FROM rowcast.settings",
            "SELECT * FROM rowcast.tables",
            "INSERT INTO rowcast.tables (relid) VALUES (1)",
            "INSERT INTO rowcast.grants (generation) VALUES (1)",
            "INSERT INTO rowcast.grant_seeds VALUES (1, 1, '[[[\"1\"],\"7\",null]]')",
            "INSERT INTO rowcast.revocations VALUES ('42', '', now(), 0)",
            "SELECT rowcast.emit('{}')",
            "SELECT rowcast.fence('x')",
            "SELECT rowcast.seed_grants(NULL)",
            "SELECT rowcast.publish('private'::regclass, NULL)",
            "SELECT rowcast.track('private', ARRAY['global:private'])",
            "SELECT rowcast.grant_by('notes', 'user_id', 'global:*')",
            "SELECT rowcast.untrack('notes')",
            "SELECT rowcast.revoke('42')",
            "ALTER PUBLICATION rowcast ADD TABLE private",
            "DROP PUBLICATION rowcast",
            "SELECT pg_create_logical_replication_slot('spy', 'test_decoding')",
        ] {
            let refused = refusal(client, statement).await;
            assert_eq!(refused.code().code(), "42501", "{statement}: {refused:?}");
        }
    }
    assert_eq!(
        refusal(&stranger, "SELECT rowcast.broadcast('user:42:x', 'e', '1')").await.code().code(),
        "42501"
    );
    // Its own table a stranger cannot publish; of others' tables one who may track cannot track any.
    stranger.batch_execute("CREATE TABLE theirs (id int PRIMARY KEY, user_id int)").await.unwrap();
    assert_eq!(refusal(&stranger, "SELECT rowcast.track('theirs')").await.code().code(), "42501");
    for statement in [
        "SELECT rowcast.track('private', ARRAY['global:private'])",
        "SELECT rowcast.track('theirs')",
        "SELECT rowcast.grant_by('private', 'text', 'global:*')",
        "SELECT rowcast.untrack('notes')",
    ] {
        assert_eq!(refusal(&owner, statement).await.code().code(), "42501", "{statement}");
    }
}

#[tokio::test]
async fn what_takes_a_tables_name_is_not_that_table() {
    let pg = database().await;
    pg.sql(NOTES).await;
    let relay = relay_on(&pg).start().await;
    pg.sql("INSERT INTO notes VALUES (1, 42, 'mine')").await;
    let full = serde_json::json!({"device_id": "d", "topics": ["user:42:notes"], "force_full_sync": true});
    let user = relay.http_as("42");
    assert!(user.post(SYNC, &full).await.expect_status(200).text().contains("mine"));
    // A view that is read with the reader's rights, where the table was; the relay may read it.
    pg.sql(
        "CREATE SEQUENCE reached; GRANT USAGE ON SEQUENCE reached TO PUBLIC;
         CREATE FUNCTION spring() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.reached'); RETURN 42; END $$;
         BEGIN; ALTER TABLE notes RENAME TO notes_before; CREATE VIEW notes AS SELECT id, spring() AS user_id, 'planted'::text AS text FROM private;
         GRANT SELECT ON notes TO rowcast_relay, PUBLIC; COMMIT",
    )
    .await;
    for _ in 0..3 {
        let answer = user.post(SYNC, &full).await;
        assert!(!answer.text().contains("planted"), "{}", answer.text());
        let mut device = Device::of(&relay, "42", "phone").connect().await;
        device
            .send(&serde_json::json!({"type": "subscribe", "topics": ["user:42:notes"], "snapshot": true}))
            .await;
        let frame = device.recv().await;
        assert!(!frame.text.contains("planted"), "{}", frame.text);
    }
    // The same when the table is gone for good.
    pg.sql("DROP TABLE notes_before").await;
    eventually(PATIENCE, "the table has no rows left", async || {
        let answer = user.post(SYNC, &full).await;
        assert!(!answer.text().contains("planted"), "{}", answer.text());
        (!answer.text().contains("mine")).then_some(())
    })
    .await;
    assert_eq!(
        pg.value("SELECT is_called FROM reached").await,
        "f",
        "code of the view's owner ran as the relay"
    );
}
