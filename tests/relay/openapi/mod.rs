//! The OpenAPI document and the running relay say the same: what is routed is documented, what is
//! documented is routed, and every answer is as its schema has it.

mod document;
mod structure;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::document::{Document, TEXT, accept};
use crate::support::device::Device;
use crate::support::events::{Events, ask};
use crate::support::http::{Http, Response};
use crate::support::relay::Relay;
use crate::support::scene::{scene, scene_with};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

const SYNC: &str = "/api/realtime/sync";
const TABLES: &str = "
    CREATE TABLE orders (id bigint PRIMARY KEY, user_id text NOT NULL, note text);
    SELECT rowcast.track('orders');
    INSERT INTO orders VALUES (1, '1', 'one'), (2, '1', null), (3, '2', 'of another');";

/// Method and path of all that the router names.
fn routes() -> BTreeSet<(String, String)> {
    let source = include_str!("../../../src/transport/router.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut routes = BTreeSet::new();
    for call in source.split(".route(\"").skip(1) {
        let (path, rest) = call.split_once('"').unwrap();
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let handlers = &rest[..end.unwrap()];
        let methods = handlers.split(|c: char| !c.is_ascii_alphabetic());
        for method in methods.filter(|word| ["get", "post", "put", "patch", "delete", "any"].contains(word)) {
            // A handler may bear a method's name; a route's method is called.
            if handlers.contains(&format!("{method}(")) {
                routes.insert((method.to_ascii_uppercase(), path.to_owned()));
            }
        }
    }
    routes
}

#[test]
fn every_route_is_documented() {
    let document = Document::new();
    let documented: BTreeSet<_> =
        document.operations().map(|(method, path, _)| (method, path.to_owned())).collect();
    assert!(routes().len() > 15);
    assert_eq!(documented, routes());
}

#[tokio::test]
async fn the_document_is_open_to_everyone_and_everything_in_it_is_routed() {
    let (_pg, relay) = scene(TABLES).await;
    let mut document = Document::new();
    let served = relay.http().get("/api/openapi.json").await.expect_status(200);
    document.judge("openapi", &served);
    assert_eq!(served.text(), TEXT);
    assert_eq!(served.json()["info"]["version"], relay.http().get("/health").await.json()["version"]);
    let operations: Vec<_> = document
        .operations()
        .map(|(method, path, operation)| {
            (method, path.to_owned(), operation["operationId"].as_str().unwrap().to_owned())
        })
        .collect();
    for (method, path, id) in operations {
        // Without a token nothing happens, and what is answered is documented.
        let answer = relay.http().request(&method, &path.replace("{device_id}", "phone")).send().await;
        assert!(![404, 405].contains(&answer.status), "{method} {path}: {}", answer.text());
        document.judge(&id, &answer);
    }
}

/// A user's requests, judged.
struct Asking<'a> {
    document: &'a mut Document,
    http: Http,
}

impl Asking<'_> {
    async fn get(&mut self, id: &str, path: &str, status: u16) -> Response {
        self.send("GET", id, path, None, status).await
    }

    async fn post(&mut self, id: &str, path: &str, body: &Value, status: u16) -> Response {
        self.send("POST", id, path, Some(body), status).await
    }

    async fn send(
        &mut self,
        method: &str,
        id: &str,
        path: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Response {
        let request = self.http.request(method, path);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await.expect_status(status);
        self.document.judge(id, &answer);
        answer
    }
}

#[tokio::test]
async fn answers_are_as_the_document_has_them() {
    let (pg, relay) = scene_with(TABLES, |setup| setup.env("ROWCAST_ADMIN_CLAIM", "role=admin")).await;
    let mut document = Document::new();
    let mut user = Asking { document: &mut document, http: relay.http_as("1") };
    let first = json!({"device_id": "phone", "topics": ["user:1:*"], "device_type": "ios"});
    let full = user.post("sync", SYNC, &first, 200).await;
    assert_eq!(full.json()["total_rows"], 2);
    let mut next = first.clone();
    next["cursor"] = full.json()["cursor"].clone();
    let mut phone = Device::of(&relay, "1", "phone").connect().await;
    let before = phone.subscribe(&["user:1:*"], None).await.cursor().unwrap();
    user.document.seen.insert(("socket".to_owned(), 101));
    pg.sql("BEGIN; SELECT rowcast.tag('phone', 'c9', '1'); INSERT INTO orders VALUES (4, '1', 'x'); COMMIT")
        .await;
    pg.sql("UPDATE orders SET note = 'y' WHERE id = 1; DELETE FROM orders WHERE id = 2").await;
    pg.sql("SELECT rowcast.broadcast('user:1:news', 'e', '{\"a\": [1]}')").await;
    while phone.recv().await.kind != "broadcast" {}

    let all = format!("/api/sync/poll?device_id=phone&topics=user:1:*&wait=0&since={before}");
    // The log is a moment behind what sockets are sent.
    let polled = eventually(PATIENCE, "all of it is in the log", async || {
        let polled = user.http.get(&all).await.expect_status(200);
        (polled.json()["count"] == 4).then_some(polled)
    });
    let polled = polled.await;
    user.document.judge("pollByQuery", &polled);
    pg.sql("TRUNCATE orders").await;
    phone.expect("database_change").await;
    let since =
        json!({"device_id": "phone", "topics": ["user:1:*"], "since": polled.json()["cursor"], "wait": 20});
    let polled = user.post("poll", "/api/sync/poll", &since, 200).await;
    assert_eq!(polled.json()["messages"][0]["payload"]["operation"], "TRUNCATE");
    let lost =
        user.get("pollByQuery", "/api/sync/poll?device_id=phone&topics=user:1:*&wait=0&since=1", 200).await;
    assert_eq!(lost.json()["messages"][0]["type"], "sync_required");

    let changes = user.post("sync", SYNC, &next, 200).await.json();
    assert_eq!(changes["tables"]["orders"]["full"], false);
    let query = format!("{SYNC}?device_id=phone&topics=user:1:*");
    user.get("syncByQuery", &query, 200).await;
    for rest in ["", &format!("&cursor={before}")] {
        let lines =
            user.http.request("GET", &format!("{query}{rest}")).header("accept", "application/x-ndjson");
        let lines = lines.send().await.expect_status(200);
        assert!(lines.text().lines().last().unwrap().contains(r#""type":"end""#), "{}", lines.text());
        user.document.judge("syncByQuery", &lines);
    }

    user.get("listDevices", "/api/realtime/devices", 200).await;
    user.get("syncStatus", "/api/realtime/sync-status?device_id=phone", 200).await;
    user.post("ticket", "/api/realtime/ticket", &json!({}), 200).await;
    let message =
        json!({"type": "note.opened", "payload": {"id": 7}, "correlationId": "c9", "deviceId": "phone"});
    user.post("send", "/api/sync/send", &message, 200).await;
    user.get("status", "/api/sync/status", 200).await;
    for (id, path) in [
        ("health", "/health"),
        ("realtimeHealth", "/api/realtime/health"),
        ("ready", "/ready"),
        ("metrics", "/metrics"),
    ] {
        user.get(id, path, 200).await;
    }
    user.get("openapi", "/api/openapi.json", 200).await;

    let claims = json!({"sub": "9", "role": "admin", "exp": 4_102_444_800_i64});
    let http = relay.http().with_token(&token::mint(&claims));
    let mut admin = Asking { document: user.document, http };
    admin.get("activeUsers", "/api/realtime/active-users?limit=1", 200).await;
    let message = json!({"type": "news", "payload": null, "topics": ["global:a", "global:b"]});
    admin.post("broadcast", "/api/sync/broadcast", &message, 200).await;

    judge_events(&mut document, &relay, &before).await;
    let mut user = Asking { document: &mut document, http: relay.http_as("1") };
    user.send("DELETE", "removeDevice", "/api/realtime/devices/phone", None, 204).await;

    for (method, path, operation) in document.operations() {
        let id = operation["operationId"].as_str().unwrap();
        let judged = document.seen.iter().any(|(seen, status)| seen == id && *status < 300);
        assert!(judged, "{method} {path} was never answered");
    }
}

/// What a stream brings that goes on from a cursor, by GET and by POST.
async fn judge_events(document: &mut Document, relay: &Relay, before: &str) {
    let http = relay.http_as("1");
    let body = json!({"device_id": "tablet", "topics": ["user:1:*"], "cursor": before});
    let by_post = http.request("POST", "/api/realtime/events").json(&body);
    let by_get = ask(&http, "user:1:*", &format!("&cursor={before}"));
    for (id, request) in [("eventsByQuery", by_get), ("events", by_post)] {
        let open = request.open().await;
        let event = document.judge_stream(id, &open);
        let mut events = Events::begun(open);
        let mut kinds = Vec::new();
        while kinds.last().map(String::as_str) != Some("caught_up") {
            let frame = events.recv().await;
            accept(&event, &frame.json(), id);
            kinds.push(frame.kind);
        }
        kinds.dedup();
        let begin = ["connection_established", "subscribed", "replay_begin", "database_change", "broadcast"];
        assert_eq!(kinds[..5], begin);
    }
}

#[tokio::test]
async fn problems_are_as_the_document_has_them() {
    let (_pg, relay) = scene(TABLES).await;
    let mut document = Document::new();
    let mut user = Asking { document: &mut document, http: relay.http_as("1") };
    let foreign = json!({"device_id": "phone", "topics": ["user:2:*"]});
    for (id, path) in [("sync", SYNC), ("poll", "/api/sync/poll"), ("events", "/api/realtime/events")] {
        for wrong in [json!([]), json!({"device_id": "a b"}), json!({"device_id": "phone", "topics": ["x"]})]
        {
            user.post(id, path, &wrong, 400).await;
        }
        assert_eq!(user.post(id, path, &foreign, 403).await.json()["topic"], "user:2:*");
        let large = json!({"device_id": "x".repeat(100_000)});
        user.post(id, path, &large, 413).await;
    }
    user.get("syncByQuery", &format!("{SYNC}?device_id=phone&limit=0"), 400).await;
    user.get("syncByQuery", &format!("{SYNC}?device_id=phone&cursor=x"), 400).await;
    let gone = format!("full.{}.00000000", "0".repeat(32));
    user.get("syncByQuery", &format!("{SYNC}?device_id=phone&cursor={gone}"), 410).await;
    user.post("sync", SYNC, &json!({"device_id": "phone", "cursor": gone}), 410).await;
    user.get("syncStatus", "/api/realtime/sync-status?device_id=phone2", 404).await;
    user.send("DELETE", "removeDevice", "/api/realtime/devices/phone2", None, 404).await;
    user.send("DELETE", "removeDevice", "/api/realtime/devices/a%20b", None, 400).await;
    user.get("activeUsers", "/api/realtime/active-users", 403).await;
    user.post("broadcast", "/api/sync/broadcast", &json!({}), 403).await;
    user.post("send", "/api/sync/send", &json!({"type": ""}), 400).await;
    user.get("socket", "/api/realtime/ws/phone", 400).await;
    for _ in 0..64 {
        user.post("ticket", "/api/realtime/ticket", &json!({}), 200).await;
    }
    user.post("ticket", "/api/realtime/ticket", &json!({}), 429).await;
    user.http = relay.http().with_token(&token::user_until("1", 1_000_000_000));
    user.get("listDevices", "/api/realtime/devices", 401).await;
    user.http = relay.http();
    user.get("eventsByQuery", "/api/realtime/events?device_id=phone&ticket=x", 401).await;
}

#[tokio::test]
async fn a_limited_relay_answers_as_the_document_has_it() {
    let limited = |setup: crate::support::relay::Setup| {
        setup.env("ROWCAST_RATE_LIMIT_REQUESTS", "1").env("ROWCAST_RATE_LIMIT_FAILURES", "1")
    };
    let (_pg, relay) = scene_with(TABLES, limited).await;
    let mut document = Document::new();
    let mut user = Asking { document: &mut document, http: relay.http_as("1") };
    let counted = user.get("listDevices", "/api/realtime/devices", 200).await;
    assert!(counted.headers.get("ratelimit").is_some() && counted.headers.get("ratelimit-policy").is_some());
    user.get("listDevices", "/api/realtime/devices", 429).await;
    user.http = relay.http();
    user.get("status", "/api/sync/status", 401).await;
    user.get("status", "/api/sync/status", 429).await;
}

#[tokio::test]
async fn a_relay_without_a_database_answers_as_the_document_has_it() {
    let relay = Relay::on_url("postgres://nobody@127.0.0.1:1/none").start_listening().await;
    let mut document = Document::new();
    let mut user = Asking { document: &mut document, http: relay.http_as("1") };
    user.get("ready", "/ready", 503).await;
    user.get("health", "/health", 200).await;
    user.get("listDevices", "/api/realtime/devices", 503).await;
    let device = json!({"device_id": "phone", "topics": ["user:1:*"]});
    for (id, path) in [("sync", SYNC), ("poll", "/api/sync/poll"), ("events", "/api/realtime/events")] {
        user.post(id, path, &device, 503).await;
    }
    let message = json!({"type": "a", "payload": 1});
    user.post("send", "/api/sync/send", &message, 503).await;
}
