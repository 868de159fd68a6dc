//! Texts that would become something else where they are printed: lines of a log or a stream, labels of a
//! metric, commands of a terminal.

use serde_json::json;

use super::{SYNC, exchange};
use crate::support::cli::rowcast;
use crate::support::device::Device;
use crate::support::events::{Events, ask};
use crate::support::scene::scene_with;
use crate::support::token;

/// A table whose name is a message of the relay's, and clears the screen.
const TABLE: &str = "\"a\n2026-01-01T00:00:00.000000Z ERROR rowcast: planted\u{1b}[2J\r\"";

#[tokio::test]
async fn a_message_of_the_relay_is_one_line_and_its_own() {
    for format in ["text", "json"] {
        let noisy = |setup: crate::support::relay::Setup| {
            setup
                .env("ROWCAST_LOG_LEVEL", "trace")
                .env("ROWCAST_LOG_FORMAT", format)
                .env("ROWCAST_FINGERPRINT_INTERVAL", "100ms")
        };
        let sql = format!(
            "CREATE TABLE {TABLE} (id int PRIMARY KEY, user_id int); SELECT rowcast.track('{TABLE}'::regclass, ARRAY['user:{{user_id}}:a'])"
        );
        let (pg, relay) = scene_with(&sql, noisy).await;
        let hostile = "x\r\n2026-01-01T00:00:00.000000Z ERROR rowcast: planted\u{1b}[2J\u{9b}2J";
        let encoded = hostile
            .replace('\r', "%0d")
            .replace('\n', "%0a")
            .replace(' ', "%20")
            .replace('\u{1b}', "%1b")
            .replace('\u{9b}', "%c2%9b");
        let mut device = Device::of(&relay, "42", "phone")
            .query(&format!("device_type={encoded}&app_version={encoded}"))
            .connect()
            .await;
        device.subscribe(&["user:42:*"], None).await;
        for message in [
            json!({"type": hostile}),
            json!({"type": "subscribe", "topics": [hostile]}),
            json!({"type": "ack", "cursor": hostile}),
            json!({"type": "ping", "ref": hostile}),
        ] {
            device.send(&message).await;
            device.recv().await;
        }
        let user = relay.http_as(hostile);
        user.post(SYNC, &json!({"device_id": hostile, "topics": [hostile], "device_type": hostile})).await;
        user.get(&format!("{SYNC}?device_id={encoded}&topics={encoded}")).await;
        user.get(&format!("/{encoded}")).await;
        let request = format!(
            "GET /health HTTP/1.1\r\nHost: {host}\r\nUser-Agent: planted\u{1b}[2J\r\nX-Forwarded-For: planted\r\nReferer: planted\r\nConnection: close\r\n\r\n",
            host = "planted\u{1b}"
        );
        exchange(relay.address(), request.as_bytes()).await;
        // The table is held up, and the log says so with its name.
        pg.sql(&format!("ALTER TABLE {TABLE} REPLICA IDENTITY NOTHING; INSERT INTO {TABLE} VALUES (1, 42)"))
            .await;
        device.until("sync_required").await;
        relay.wait_line("rows of this table are not delivered").await;
        drop(user);
        for line in relay.output().iter().filter(|line| !line.starts_with("listening on")) {
            assert!(!line.contains(['\u{1b}', '\r', '\u{9b}']), "{format}: {line:?}");
            match format {
                "json" => drop(
                    serde_json::from_str::<serde_json::Value>(line)
                        .unwrap_or_else(|error| panic!("{error} in {line}")),
                ),
                _ => assert!(
                    line.get(..4).is_some_and(|year| year >= "2026")
                        && !line.starts_with("2026-01-01T00:00:00"),
                    "{line:?}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn metrics_have_the_labels_that_the_relay_gives_them() {
    let admins = |setup: crate::support::relay::Setup| setup.env("ROWCAST_ADMIN_CLAIM", "role=admin");
    let (_pg, relay) = scene_with(super::ORDERS, admins).await;
    let series = async || {
        let answer = relay.http().get("/metrics").await.expect_status(200);
        let lines = answer.text().lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let visit = async |number: u32| {
        let hostile = format!("planted{number}%22%7d%0aplanted_total%201");
        let user = relay.http_as(&format!("planted{number}\"}}\n"));
        for method in ["GET", "POST", "DELETE", "PUT", &format!("PLANTED{number}")] {
            for path in [
                format!("/{hostile}"),
                format!("/api/realtime/devices/{hostile}"),
                format!("{SYNC}?device_id={hostile}&topics={hostile}"),
            ] {
                user.request(method, &path).header("user-agent", "planted").send().await;
            }
        }
        let query = format!("device_type=planted{number}&app_version=planted{number}");
        let mut device = Device::of(&relay, &format!("planted{number}"), &format!("planted{number}"))
            .query(&query)
            .connect()
            .await;
        device.send(&json!({"type": format!("planted{number}"), "topics": []})).await;
        device.recv().await;
        device.send(&json!({"type": "auth", "token": token::user("someone else")})).await;
        device.expect_close().await;
    };
    // What is asked for here is counted too.
    series().await;
    visit(0).await;
    let before = series().await;
    for number in 1..4 {
        visit(number).await;
    }
    let after = series().await;
    // A figure without labels may come to be known at any moment.
    let new: Vec<_> = after.difference(&before).filter(|series| series.contains('{')).collect();
    assert!(new.is_empty(), "labels that a client chooses: {new:?}");
    assert!(after.iter().all(|line| !line.contains("planted") && !line.contains("PLANTED")), "{after:?}");
}

#[tokio::test]
async fn no_value_becomes_a_line_of_a_stream() {
    let docs = "CREATE TABLE docs (id int PRIMARY KEY, user_id int, doc json, note text); SELECT rowcast.track('docs')";
    let (pg, relay) = scene_with(docs, |setup| setup).await;
    let mut events = Events::open(ask(&relay.http_as("1"), "user:1:*", "")).await;
    events.expect("connection_established").await;
    let begun = events.expect("subscribed").await.json()["cursor"].as_str().unwrap().to_owned();
    let hostile = "x\nid: 0\nevent: planted\ndata: {}\n\n\r\rretry: 1\u{2028}\u{85}";
    let text = hostile.replace('\n', "\\n").replace('\r', "\\r");
    pg.sql(&format!("INSERT INTO docs VALUES (1, 1, E'{{\\n\\r\\n \"a\" :\\n\"b\"\\r}}', E'{text}')")).await;
    pg.sql(&format!("SELECT rowcast.broadcast('user:1:docs', E'{text}', E'[\\n\\r1,\\n\\n\"data: x\"\\n]')"))
        .await;
    let change = events.change().await;
    let record: serde_json::Value = serde_json::from_str(change.record_text()).unwrap();
    assert_eq!(record["note"], hostile);
    let broadcast = events.expect("broadcast").await.json();
    assert_eq!((&broadcast["event"], &broadcast["payload"]), (&json!(hostile), &json!([1, "data: x"])));
    // Of NDJSON, each line is one entry.
    let path = format!("{SYNC}?device_id=d&topics=user:1:docs&cursor={begun}");
    let answer = crate::support::wait::eventually(
        crate::support::wait::PATIENCE,
        "the change is in the log",
        async || {
            let lines = relay
                .http_as("1")
                .request("GET", &path)
                .header("accept", "application/x-ndjson")
                .send()
                .await;
            lines.text().contains("planted").then_some(lines)
        },
    )
    .await;
    for line in answer.text().lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        assert!(entry["type"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn commands_print_no_commands_to_the_terminal() {
    let sql = format!(
        "CREATE TABLE {TABLE} (id int PRIMARY KEY, user_id int); SELECT rowcast.track('{TABLE}'::regclass, ARRAY['user:{{user_id}}:a']); ALTER TABLE {TABLE} REPLICA IDENTITY NOTHING"
    );
    let pg = crate::support::scene::database(&sql).await;
    for arguments in [
        &["tables"][..],
        &["check"],
        &["untrack", TABLE],
        &["track", TABLE, "--topic=user:{user_id}:a"],
        &["uninstall"],
    ] {
        let outcome = rowcast(&pg, arguments).await;
        let printed = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!printed.contains(['\u{1b}', '\r']), "{arguments:?}: {printed:?}");
        assert!(printed.contains("planted") || arguments[0] == "uninstall", "{arguments:?}: {printed:?}");
    }
}
