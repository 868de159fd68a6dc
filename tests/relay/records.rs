//! Conformance of records: what `json` writes from a value's text is what `row_to_json` prints, and so
//! is what devices get: live, replayed and over REST.

use std::fmt::Write as _;

use rowcast::json::numbers::{Quoting, quote_numbers};
use rowcast::json::{ObjectWriter, object_fields};
use rowcast::postgres::types::{self, Type};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::support::copy::SyncPage;
use crate::support::device::Device;
use crate::support::frame::Change;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::{changes_of, database, replayed, scene};
use crate::values::{REFUSED, SETUP, VALUES};

const PIN: &str = "SET client_encoding='UTF8'; SET datestyle='ISO'; SET intervalstyle='postgres'; \
    SET extra_float_digits=1; SET bytea_output='hex'; SET timezone='UTC'; SET lc_monetary='C'; SET search_path=''";

#[tokio::test]
async fn values_are_written_as_row_to_json_prints_them() {
    let pg = TestPostgres::start().await;
    let client = pg.client().await;
    let compared = check_records(&client).await;
    assert!(compared > 1500, "only {compared} values were compared");
    check_refused(&client).await;
}

#[tokio::test]
async fn the_builtin_types_are_those_of_the_servers_catalog() {
    let pg = TestPostgres::start().await;
    check_builtin(&pg.client().await).await;
}

#[tokio::test]
async fn a_type_that_cannot_be_written_is_refused_when_it_is_tracked() {
    let pg = database(SETUP).await;
    let client = pg.client().await;
    for (number, refused) in REFUSED.iter().enumerate() {
        let sql = format!(
            "CREATE TABLE refused{number} (user_id int, id int, v {refused}, PRIMARY KEY (user_id, id))"
        );
        pg.sql(&sql).await;
        let track = client.batch_execute(&format!("SELECT rowcast.track('refused{number}')")).await;
        assert!(track.is_err(), "{refused} was accepted");
    }
}

/// Every value of every type: as the database prints it, live, replayed and over REST.
#[tokio::test]
async fn records_are_the_same_on_every_way() {
    let pg = database(SETUP).await;
    for (number, (ty, expressions)) in VALUES.iter().enumerate() {
        pg.sql("SET search_path=public; SET timezone='Europe/Berlin'").await;
        pg.sql(&table(number, ty, expressions)).await;
        pg.sql(&format!(
            "ALTER TABLE t{number} ADD id serial, ADD user_id int NOT NULL DEFAULT 1, ADD PRIMARY KEY (user_id, id);
             SELECT rowcast.track('t{number}')"
        ))
        .await;
    }
    let relay = Relay::on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let cursor = device.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    for number in 0..VALUES.len() {
        // Whatever the application's session has set, its rows are printed in one way.
        pg.sql("SET datestyle='German'; SET intervalstyle='iso_8601'; SET bytea_output='escape'; SET extra_float_digits=0").await;
        pg.sql(&format!("INSERT INTO t{number} SELECT v, \"the \"\"array\", h, hs FROM t{number}")).await;
    }
    pg.sql(PIN).await;
    for (number, (ty, _)) in VALUES.iter().enumerate() {
        let query = format!(
            "SELECT row_to_json(t)::text FROM public.t{number} t
             WHERE id > (SELECT count(*) / 2 FROM public.t{number}) ORDER BY id"
        );
        let expected: Vec<String> = pg
            .query_text(&query)
            .await
            .into_iter()
            .map(|row| row[0].as_ref().unwrap().replace(['\n', '\r'], " "))
            .collect();
        let table = format!("t{number}");
        let live = of_table(&mut device, &table, expected.len()).await;
        assert_same(ty, "live", &live, &expected);
        let mut late = Device::of(&relay, "1", "late").connect().await;
        let again = changes_of(&replayed(&mut late, &[&format!("user:1:{table}")], &cursor).await);
        let again: Vec<Change> = again.into_iter().filter(|change| change.operation == "INSERT").collect();
        assert_same(ty, "replayed", &again, &expected);
        assert_same(ty, "over REST", &synced(&relay, &table, &cursor).await, &expected);
    }
}

/// The next `count` INSERTs, all of one table.
async fn of_table(device: &mut Device, table: &str, count: usize) -> Vec<Change> {
    let mut inserts = Vec::new();
    while inserts.len() < count {
        let change = device.change().await;
        assert_eq!(change.topic_table(), table);
        if change.operation == "INSERT" {
            inserts.push(change);
        }
    }
    inserts
}

async fn synced(relay: &Relay, table: &str, cursor: &str) -> Vec<Change> {
    let mut body =
        serde_json::json!({"device_id": "d", "topics": [format!("user:1:{table}")], "cursor": cursor});
    let mut changes = Vec::new();
    loop {
        let page: SyncPage =
            relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).parse();
        changes.extend(page.changes.into_values().flatten());
        if !page.has_more {
            return changes;
        }
        body["cursor"] = page.cursor.into();
    }
}

fn assert_same(ty: &str, way: &str, changes: &[Change], expected: &[String]) {
    assert_eq!(changes.len(), expected.len(), "{ty} {way}");
    for (change, expected) in changes.iter().zip(expected) {
        assert_eq!(change.record_text(), expected, "{ty} {way} (left) and in the database (right)");
    }
}

#[tokio::test]
async fn on_request_numbers_beyond_javascript_come_as_strings() {
    let (pg, relay) = scene(
        r#"CREATE TYPE pair AS (a int8, "b c" numeric[], d int4);
           CREATE DOMAIN big AS int8;
           CREATE TABLE numbers (
             user_id int, id int8, a numeric, b big, c int8[], d pair, e pair[], f int4, g float8, h json, i int8range,
             PRIMARY KEY (user_id, id));
           SELECT rowcast.track('numbers');"#,
    )
    .await;
    let mut plain = Device::of(&relay, "1", "plain").connect().await;
    let cursor = plain.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    let mut quoted = Device::of(&relay, "1", "quoted").query("numbers=string").connect().await;
    quoted.subscribe(&["user:1:*"], None).await;
    pg.sql(
        r#"INSERT INTO numbers VALUES (1, 9007199254740993, 1.50, -7, '{{1,NULL},{3,4}}', (5, '{NaN,0.10}', 6),
           ARRAY[(7, NULL, 8)::pair, NULL], 9, 1e20, '{"a": 12345678901234567890}', '[1,5)')"#,
    )
    .await;
    let as_numbers = r#"{"user_id":1,"id":9007199254740993,"a":1.50,"b":-7,"c":[[1,null],[3,4]],"d":{"a":5,"b c":["NaN",0.10],"d":6},"e":[{"a":7,"b c":null,"d":8},null],"f":9,"g":1e+20,"h":{"a": 12345678901234567890},"i":"[1,5)"}"#;
    let as_strings = r#"{"user_id":1,"id":"9007199254740993","a":"1.50","b":"-7","c":[["1",null],["3","4"]],"d":{"a":"5","b c":["NaN","0.10"],"d":6},"e":[{"a":"7","b c":null,"d":8},null],"f":9,"g":1e+20,"h":{"a": 12345678901234567890},"i":"[1,5)"}"#;
    let key = r#"{"user_id":1,"id":"9007199254740993"}"#;
    assert_eq!(plain.change().await.record_text(), as_numbers);
    let change = quoted.change().await;
    assert_eq!((change.record_text(), change.key_text()), (as_strings, key));
    let mut late = Device::of(&relay, "1", "late").query("numbers=string").connect().await;
    let again = changes_of(&replayed(&mut late, &["user:1:*"], &cursor).await);
    assert_eq!((again[0].record_text(), again[0].key_text()), (as_strings, key));
    let body =
        serde_json::json!({"device_id": "d", "topics": ["user:1:*"], "cursor": cursor, "numbers": "string"});
    let page: SyncPage =
        relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).parse();
    let synced = &page.changes["numbers"][0];
    assert_eq!((synced.record_text(), synced.key_text()), (as_strings, key));
    pg.sql("DELETE FROM numbers").await;
    let gone = quoted.change().await;
    assert_eq!((gone.key_text(), gone.old_record.as_ref().unwrap().get()), (key, key));
}

/// Compares every value, alone and within arrays and composites. Returns how many were compared.
///
/// `client` is a superuser's connection to an empty database.
async fn check_records(client: &Client) -> usize {
    client.batch_execute(SETUP).await.unwrap();
    let mut compared = 0;
    for (number, (ty, expressions)) in VALUES.iter().enumerate() {
        client.batch_execute("SET search_path=public; SET timezone='Europe/Berlin'").await.unwrap();
        let sql = table(number, ty, expressions);
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{ty}: {error:?}\n{sql:.3000}"));
        client.batch_execute(PIN).await.unwrap();
        compared += check_table(client, &format!("t{number}")).await;
    }
    compared
}

/// A table whose rows hold each expression, a NULL, and all of them together in arrays.
fn table(number: usize, ty: &str, expressions: &[&str]) -> String {
    let name = format!("public.t{number}");
    let holder = format!("public.holder{number}");
    // An array of arrays is one array with more dimensions, which the table of values has itself.
    let array = if ty.ends_with(']') { ty.to_owned() } else { format!("{ty}[]") };
    let element =
        |values: &str| if ty.ends_with(']') { "NULL".to_owned() } else { format!("ARRAY[{values}]") };
    let mut sql = format!(
        "CREATE TYPE {holder} AS (v {ty}, \"vs \" {array}, note text);
         CREATE TABLE {name} (v {ty}, \"the \"\"array\" {array}, h {holder}, hs {holder}[]);
         INSERT INTO {name} VALUES (NULL, NULL, NULL, NULL), (NULL, '{{}}', ROW(NULL,NULL,NULL), '{{}}');\n"
    );
    let mut all = Vec::new();
    for expression in expressions {
        let value = format!("({expression})::{ty}");
        let held =
            format!("ROW({value}, {}::{array}, 'a \"note\"')::{holder}", element(&format!("{value}, NULL")));
        writeln!(
            sql,
            "INSERT INTO {name} VALUES ({value}, {}::{array}, {held}, ARRAY[{held}, NULL]);",
            element(&format!("{value}, NULL, {value}"))
        )
        .unwrap();
        all.push(value);
    }
    let all = all.join(", ");
    writeln!(sql, "INSERT INTO {name} VALUES (NULL, {}::{array}, NULL, NULL);", element(&all)).unwrap();
    sql
}

async fn check_table(client: &Client, table: &str) -> usize {
    let columns = client
        .query(
            "SELECT attname::text, atttypid FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
            &[&format!("public.{table}")],
        )
        .await
        .unwrap();
    let oids: Vec<u32> = columns.iter().map(|row| row.get(1)).collect();
    let types = types::load(client, &oids).await.unwrap();
    let columns: Vec<(String, &Type)> =
        columns.iter().map(|row| (row.get(0), &*types[&row.get::<_, u32>(1)])).collect();
    let mut compared = 0;
    for row in rows(client, &format!("SELECT t.*, row_to_json(t)::text FROM public.{table} t")).await {
        check_row(&columns, &row);
        compared += columns.len();
    }
    compared
}

fn check_row(columns: &[(String, &Type)], row: &SimpleQueryRow) {
    let expected = row.get(columns.len()).unwrap().replace(['\n', '\r'], " ");
    let mut out = Vec::new();
    let mut object = ObjectWriter::new(&mut out);
    for (index, (name, ty)) in columns.iter().enumerate() {
        let text = row.get(index);
        object.value(name, ty, text.map(str::as_bytes)).unwrap_or_else(|e| panic!("{ty} {text:?}: {e}"));
    }
    object.end();
    let written = String::from_utf8(out).unwrap();
    assert_eq!(written, expected);
    serde_json::from_str::<serde::de::IgnoredAny>(&written).unwrap();

    let fields: Vec<_> = object_fields(&written).collect::<Result<_, _>>().unwrap();
    let names: Vec<_> = fields.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());

    let plan: Vec<_> = columns.iter().map(|(name, ty)| (name.clone(), Quoting::of(ty))).collect();
    let mut quoted = Vec::new();
    quote_numbers(&written, &plan, &mut quoted).unwrap();
    let quoted = String::from_utf8(quoted).unwrap();
    serde_json::from_str::<serde::de::IgnoredAny>(&quoted).unwrap();
    assert_eq!(quoted.replace('"', ""), written.replace('"', ""));
    if plan.iter().all(|(_, quoting)| quoting.is_nothing()) {
        assert_eq!(quoted, written);
    }
    for (_, ty) in columns {
        let kept = serde_json::to_string(ty).unwrap();
        assert_eq!(serde_json::from_str::<Type>(&kept).unwrap(), **ty);
    }
}

/// Types that cannot be written are known before a row of them arrives. Run after [`check_records`].
async fn check_refused(client: &Client) {
    for name in REFUSED {
        let oid: u32 = client.query_one("SELECT $1::text::regtype::oid", &[name]).await.unwrap().get(0);
        let types = types::load(client, &[oid]).await.unwrap();
        assert!(types[&oid].unsupported().is_some(), "{name}");
    }
    assert!(types::load(client, &[4_000_000_000]).await.unwrap().is_empty());
    check_too_complex(client, "deep", types::MAX_DEPTH + 10, "p PREV").await;
    let wide = (0..10).map(|field| format!("p{field} PREV")).collect::<Vec<_>>().join(", ");
    check_too_complex(client, "wide", 5, &wide).await;
}

/// Composites of composites, each with `fields` of the one before: the last is refused, the first is not.
async fn check_too_complex(client: &Client, name: &str, levels: usize, fields: &str) {
    let mut sql = format!("CREATE TYPE public.{name}0 AS (a int, b text[]);");
    for level in 1..=levels {
        let fields = fields.replace("PREV", &format!("public.{name}{}", level - 1));
        writeln!(sql, "CREATE TYPE public.{name}{level} AS ({fields});").unwrap();
    }
    client.batch_execute(&sql).await.unwrap();
    let mut refused = Vec::new();
    for level in [0, levels] {
        let name = format!("public.{name}{level}");
        let oid: u32 = client.query_one("SELECT $1::text::regtype::oid", &[&name]).await.unwrap().get(0);
        let types = types::load(client, &[oid]).await.unwrap();
        refused.push(types[&oid].unsupported().map(|(_, why)| why));
    }
    assert_eq!(refused, [None, Some(types::Unsupported::TooComplex)]);
}

/// The built-in types are what this server's catalog says, and every type of it resolves.
async fn check_builtin(client: &Client) {
    let all = client
        .query(
            "SELECT t.oid, 'pg_catalog.' || quote_ident(coalesce(e.typname, t.typname))
                    || CASE WHEN e.oid IS NULL THEN '' ELSE '[]' END, coalesce(e.oid, 0::oid), e.typdelim, t.typarray
               FROM pg_type t LEFT JOIN pg_type e ON e.typarray = t.oid
              WHERE t.typtype <> 'p'",
            &[],
        )
        .await
        .unwrap();
    let oids: Vec<u32> = all.iter().map(|row| row.get(0)).collect();
    let types = types::load(client, &oids).await.unwrap();
    assert_eq!(types.len(), oids.len());
    for row in &all {
        let Some(ty) = Type::builtin(row.get(0)) else { continue };
        assert_eq!(ty.oid, row.get::<_, u32>(0));
        // Key words are quoted by quote_ident, which names in messages do without.
        assert_eq!(ty.name.replace('"', ""), row.get::<_, &str>(1).replace('"', ""));
        if let types::Kind::Array { element, delimiter } = &ty.kind {
            assert_eq!(element.oid, row.get::<_, u32>(2), "{ty}");
            assert_eq!(*delimiter, row.get::<_, i8>(3).cast_unsigned(), "{ty}");
        } else {
            assert!(Type::builtin(row.get(4)).is_some(), "{ty}");
        }
    }
}

async fn rows(client: &Client, sql: &str) -> Vec<SimpleQueryRow> {
    let messages = client.simple_query(sql).await.unwrap();
    messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect()
}
