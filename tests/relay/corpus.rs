//! Seeds for the fuzz targets, captured from a real server and a real log: `make corpus` writes them.
//!
//! The first byte of most seeds says which check of its target they are for, as in `src/fuzzing`.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use fjall::{Database, KeyspaceCreateOptions};
use rowcast::embedded::Options;
use rowcast::lsn::Lsn;
use rowcast::postgres::{Target, catalog};
use rowcast::wal::pgoutput::{Message, Value, decode};
use rowcast::wal::{Frame, ReplicationConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::postgres::{DATABASE, TestPostgres};
use crate::support::scene::{frames_until_now, listening, scene_with};
use crate::support::tls::Door;
use crate::support::wait::within;
use crate::values::{SETUP, VALUES};

/// Longer inputs are slow and teach little: what grows with size has tests of its own.
const MAX_SEED_BYTES: usize = 4_096;

/// In the order of `BUILTIN` in `src/json/fuzzing.rs`.
const BUILTIN: [u32; 19] =
    [16, 20, 22, 23, 25, 114, 701, 17, 2950, 1082, 1114, 1184, 1700, 3802, 1007, 1009, 1231, 1020, 2205];

/// What happens while the stream is captured, besides rows of all types.
const STORY: &str = r#"
CREATE TABLE orders (id int8, user_id int8, note text, photo text, PRIMARY KEY (id));
ALTER TABLE orders ALTER photo SET STORAGE EXTERNAL;
CREATE TABLE members (team_id int, user_id text, PRIMARY KEY (team_id, user_id));
CREATE TABLE events (id int, user_id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE events_2 (at date NOT NULL, user_id int, id int NOT NULL, PRIMARY KEY (id, at));
ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
SELECT rowcast.track('orders', topics => ARRAY['user:{user_id}:orders', 'global:orders']);
SELECT rowcast.track('events', topics => ARRAY['user:{user_id}:events']);
SELECT rowcast.grant_by('members', 'user_id', 'team:{team_id}:*');
INSERT INTO members VALUES (7, '42'), (8, 'a:b*c');
INSERT INTO orders VALUES (1, 42, 'rye', repeat('photo', 600)), (2, 7, NULL, ''), (3, NULL, E'\t\n', 'x');
UPDATE orders SET note = 'oats' WHERE id = 1;
UPDATE orders SET user_id = 7 WHERE id = 1;
UPDATE orders SET id = 9 WHERE id = 1;
ALTER TABLE orders REPLICA IDENTITY FULL;
UPDATE orders SET note = 'full' WHERE id = 9;
DELETE FROM orders WHERE id = 2;
BEGIN; SELECT rowcast.tag('phone', 'c9', '42'); INSERT INTO orders VALUES (4, 42, 'tagged', NULL);
SELECT rowcast.broadcast('user:42:news', 'news.new', '{"title": "é"}'); COMMIT;
SELECT pg_logical_emit_message(true, 'rowcast', 'forged');
SELECT pg_logical_emit_message(false, 'other', 'not transactional');
ALTER TABLE orders ADD extra numeric DEFAULT 1.50; INSERT INTO orders VALUES (5, 42, 'a', 'b', 1e20);
ALTER TABLE orders RENAME note TO remark; UPDATE orders SET remark = 'renamed' WHERE id = 5;
ALTER TABLE orders DROP extra; INSERT INTO orders VALUES (6, 42, 'c', 'd');
INSERT INTO events VALUES (1, 42, '2026-01-05'), (2, 42, '2026-02-05');
UPDATE events SET at = '2026-02-06' WHERE id = 1;
TRUNCATE events_1; TRUNCATE events; TRUNCATE orders RESTART IDENTITY CASCADE;
DELETE FROM members WHERE team_id = 8;
SELECT rowcast.revoke('42');
SELECT rowcast.track('orders', topics => ARRAY['user:{user_id}:orders'], columns => ARRAY['id', 'user_id', 'remark']);
INSERT INTO orders VALUES (7, 42, 'fewer', 'columns');
SELECT rowcast.untrack('orders');
"#;

struct Seeds(PathBuf);

impl Seeds {
    fn put(&self, target: &str, seed: &[u8]) {
        if seed.len() > MAX_SEED_BYTES {
            return;
        }
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        let directory = self.0.join(target);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{:016x}", hasher.finish())), seed).unwrap();
    }
}

#[tokio::test]
#[ignore = "writes seeds of the fuzz targets; run by `make corpus`"]
async fn seeds_are_captured() {
    let seeds = Seeds(std::env::var_os("ROWCAST_CORPUS").expect("ROWCAST_CORPUS: a directory").into());
    let pg = TestPostgres::start_with(Options::scratch().with_tcp()).await;
    catalog::install(&mut pg.client().await).await.unwrap();
    pg.sql("CREATE PUBLICATION everything FOR ALL TABLES").await;
    tell(&pg).await;
    within("the stream", capture_stream(&pg, &seeds)).await;
    within("what a server says", capture_server(&pg, &seeds)).await;
    capture_log(&seeds).await;
}

/// What the stream is to hold; the slot is there before.
async fn tell(pg: &TestPostgres) {
    pg.sql("SELECT pg_create_logical_replication_slot('seeds', 'pgoutput')").await;
    pg.sql(SETUP).await;
    pg.sql(&values_of_all_types()).await;
    for statement in STORY.lines() {
        pg.sql(statement).await;
    }
    pg.sql("SELECT pg_logical_emit_message(true, 'end', '')").await;
}

/// Messages, whole transactions, and the texts of values.
async fn capture_stream(pg: &TestPostgres, seeds: &Seeds) {
    let target: Target = pg.url().parse().unwrap();
    let connection = ReplicationConnection::connect(&target).await.unwrap();
    let mut stream = connection.start_replication("seeds", Lsn::ZERO, "everything").await.unwrap();
    let (mut whole, mut columns) = (vec![0], Vec::new());
    loop {
        let Frame::XLogData(data) = stream.next().await.unwrap() else { continue };
        seeds.put("pgoutput", &[&[2], &data.body[..]].concat());
        let copy = [&b"w"[..], &[0; 24], &data.body[..]].concat();
        seeds.put("frames", &[&[1 | 15 << 2], &packet(b'd', &copy)[..]].concat());
        let message = decode(data.body.clone()).unwrap();
        // A stream that the router follows begins anew with each tenth of it or so.
        if whole.len() + data.body.len() > MAX_SEED_BYTES {
            seeds.put("pgoutput", &whole);
            whole.truncate(1);
        }
        if let Ok(length) = u16::try_from(data.body.len()) {
            whole.extend(length.to_be_bytes());
            whole.extend_from_slice(&data.body);
        }
        match message {
            Message::Relation(relation) => {
                columns = relation.columns.iter().map(|column| column.type_oid).collect();
            }
            Message::Insert(insert) => {
                for (oid, value) in columns.iter().zip(&insert.new) {
                    let known = BUILTIN.iter().position(|builtin| builtin == oid);
                    if let (Some(known), Value::Text(text)) = (known, value) {
                        seeds.put("values", &[&[3, u8::try_from(known).unwrap()], text].concat());
                    }
                }
            }
            Message::Message(message) if message.prefix == "rowcast" => {
                let body = message.content.get(65..).unwrap_or_default();
                seeds.put("pgoutput", &[&[1], body].concat());
            }
            Message::Message(message) if message.prefix == "end" => break,
            _ => {}
        }
    }
    seeds.put("pgoutput", &whole);
}

fn values_of_all_types() -> String {
    let mut sql = String::from("SET search_path = public; SET timezone = 'UTC';");
    for (number, (ty, expressions)) in VALUES.iter().enumerate() {
        sql.push_str(&format!("CREATE TABLE v{number} (id serial PRIMARY KEY, v {ty});"));
        for expression in *expressions {
            sql.push_str(&format!("INSERT INTO v{number} (v) VALUES (({expression})::{ty});"));
        }
    }
    sql
}

/// A message of either side.
fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag][..], &length, body].concat()
}

/// All that the server says in a session, by all ways to sign in, with commands and the begin of a stream.
async fn capture_server(pg: &TestPostgres, seeds: &Seeds) {
    pg.sql("SET password_encryption = 'scram-sha-256'; CREATE ROLE app SUPERUSER LOGIN PASSWORD 'secret'")
        .await;
    let port: u16 = pg.value("SHOW port").await.parse().unwrap();
    for method in ["trust", "scram-sha-256", "password"] {
        let rules = format!("host all app 127.0.0.1/32 {method}");
        pg.set_door(Door { rules: &rules, ..Door::default() }).await;
        let said = session(TcpStream::connect(("127.0.0.1", port)).await.unwrap(), "app").await;
        seeds.put("frames", &[&[2 | 15 << 2], &said[..]].concat());
        seeds.put("frames", &[&[2], &said[..]].concat());
    }
    let said = session(UnixStream::connect(pg.socket()).await.unwrap(), "nobody").await;
    seeds.put("frames", &[&[2 | 15 << 2], &said[..]].concat());
}

/// What a server says to someone who signs in, asks for its identity, makes a slot and begins to stream.
async fn session(mut socket: impl AsyncReadExt + AsyncWriteExt + Unpin, user: &str) -> Vec<u8> {
    use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
    use postgres_protocol::message::frontend;

    let mut out = bytes::BytesMut::new();
    let parameters = [("user", user), ("database", DATABASE), ("replication", "database")];
    frontend::startup_message(parameters, &mut out).unwrap();
    let mut scram = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let nonce = scram.message().split(|byte| *byte == b'=').next_back().unwrap().to_vec();
    let slot = format!("s{}", std::process::id());
    let mut commands = [
        "IDENTIFY_SYSTEM".to_owned(),
        format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"),
        format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'everything')"
        ),
    ]
    .into_iter();
    let mut said = Vec::new();
    loop {
        socket.write_all_buf(&mut out).await.unwrap();
        let mut head = [0; 5];
        if socket.read_exact(&mut head).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        socket.read_exact(&mut body).await.unwrap();
        said.extend(head);
        said.extend_from_slice(&body);
        match (head[0], body.first_chunk::<4>().map(|kind| u32::from_be_bytes(*kind))) {
            (b'R', Some(3)) => frontend::password_message(b"secret", &mut out).unwrap(),
            (b'R', Some(10)) => {
                frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap();
            }
            (b'R', Some(11)) => {
                scram.update(&body[4..]).unwrap();
                frontend::sasl_response(scram.message(), &mut out).unwrap();
            }
            (b'Z', _) => match commands.next() {
                Some(command) => frontend::query(&command, &mut out).unwrap(),
                None => break,
            },
            // The stream has begun, and says so.
            (b'd', _) => break,
            _ => {}
        }
    }
    // The nonce of another session, see `NONCE` in `src/wal/fuzzing.rs`.
    match said.windows(nonce.len()).position(|bytes| bytes == nonce) {
        Some(at) => [&said[..at], b"{nonce}", &said[at + nonce.len()..]].concat(),
        None => said,
    }
}

/// Keys and values of a log that a relay has written.
async fn capture_log(seeds: &Seeds) {
    let (pg, mut relay) = scene_with("", |setup| setup.env("ROWCAST_BIG_TRANSACTION_SIZE", "1KiB")).await;
    let (mut device, cursor) = listening(&relay, "42", "phone").await;
    seeds.put("cursors", &[&[2], cursor.as_bytes()].concat());
    for statement in STORY.lines().filter(|line| !line.contains("revoke")) {
        pg.sql(statement).await;
    }
    pg.sql("CREATE TABLE big (id int PRIMARY KEY, user_id int, v text); SELECT rowcast.track('big')").await;
    pg.sql("INSERT INTO big SELECT i, 42, repeat('v', i) FROM generate_series(1, 60) i").await;
    frames_until_now(&pg, &mut device, "user:42").await;
    let body = serde_json::json!({ "device_id": "phone", "force_full_sync": true });
    let answer = relay.http_as("42").post("/api/realtime/sync", &body).await.expect_status(200).json();
    seeds.put("cursors", &[&[2], answer["cursor"].as_str().unwrap().as_bytes()].concat());
    relay.terminate().await;
    drain(relay.log_directory(), seeds);
}

fn drain(log: &Path, seeds: &Seeds) {
    let db = Database::builder(log.join("data")).open().unwrap();
    for name in db.list_keyspace_names() {
        let keyspace = db.keyspace(&name, KeyspaceCreateOptions::default).unwrap();
        for guard in keyspace.iter() {
            let (key, value) = guard.into_inner().unwrap();
            seeds.put("records", &[&[3], &key[..]].concat());
            seeds.put("records", &[&[3], &value[..]].concat());
            if value.starts_with(b"{\"catalog\"") {
                seeds.put("records", &[&[2], &value[..]].concat());
            }
        }
    }
}
