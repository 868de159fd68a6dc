//! A user's devices: what is remembered of them, how far behind they are, and what they send each other.

use rowcast::embedded::Options;
use serde_json::{Value, json};

use crate::support::device::Device;
use crate::support::frame::Frame;
use crate::support::http::Http;
use crate::support::orders::with_orders;
use crate::support::relay::Relay;
use crate::support::scene::{frames_until_now, listening, replayed, scene, scene_with};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

const ORDERS: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, user_id text NOT NULL);
    CREATE TABLE rare (id int PRIMARY KEY, user_id text NOT NULL);
    SELECT rowcast.track('orders'); SELECT rowcast.track('rare');";

async fn devices(http: &Http) -> Vec<Value> {
    let list = http.get("/api/realtime/devices").await.expect_status(200).json();
    list["devices"].as_array().unwrap().clone()
}

/// `id active` of each device, by id.
async fn listed(http: &Http) -> Vec<String> {
    let mut listed: Vec<String> = devices(http)
        .await
        .iter()
        .map(|device| format!("{} {}", device["device_id"].as_str().unwrap(), device["is_active"]))
        .collect();
    listed.sort();
    listed
}

async fn status(http: &Http, device: &str) -> Value {
    http.get(&format!("/api/realtime/sync-status?device_id={device}")).await.expect_status(200).json()
}

/// The status once so many changes are pending: acknowledgements are taken in their turn.
async fn pending(http: &Http, device: &str, changes: usize) -> Value {
    eventually(PATIENCE, &format!("{changes} pending changes"), async || {
        let status = status(http, device).await;
        (status["pending_changes"] == changes).then_some(status)
    })
    .await
}

async fn written(relay: &Relay) {
    eventually(PATIENCE, "the registry is written", async || {
        (relay.metric("rowcast_devices_unwritten").await? == 0.0).then_some(())
    })
    .await;
}

/// Returns when it was taken; frames before that are dropped.
async fn ack(device: &mut Device, cursor: &str) {
    device.send(&json!({"type": "ack", "cursor": cursor})).await;
    device.send(&json!({"type": "ping"})).await;
    let frames = device.until("pong").await;
    assert!(frames.iter().all(|frame| frame.kind != "error"), "{frames:?}");
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn devices_are_remembered_while_here_and_after() {
    let (_pg, relay) = scene(ORDERS).await;
    let (one, two) = (relay.http_as("1"), relay.http_as("2"));
    assert!(devices(&one).await.is_empty());
    let phone = Device::of(&relay, "1", "phone").query("device_type=iPhone%2015+%C3%A9&app_version=1.2");
    let phone = phone.connect().await;
    // Labels that are none are left out, whatever the query holds.
    let hostile = format!("device_type={}&app_version=a%0Ab&%zz", "x".repeat(129));
    let tablet = Device::of(&relay, "1", "tablet").query(&hostile).connect().await;
    let _same_name = Device::of(&relay, "2", "phone").connect().await;
    one.post(
        "/api/realtime/sync",
        &json!({"device_id": "desk", "topics": ["user:1:*"], "device_type": "web"}),
    )
    .await
    .expect_status(200);
    assert_eq!(listed(&one).await, ["desk false", "phone true", "tablet true"]);
    assert_eq!(listed(&two).await, ["phone true"]);
    let all = devices(&one).await;
    let of = |id: &str| all.iter().find(|device| device["device_id"] == id).unwrap().clone();
    let fields = ["app_version", "cursor", "device_id", "device_type", "is_active", "last_seen"];
    assert_eq!(keys(&of("phone")), fields);
    assert_eq!(
        (&of("phone")["device_type"], &of("phone")["app_version"]),
        (&json!("iPhone 15 é"), &json!("1.2"))
    );
    assert_eq!((&of("tablet")["device_type"], &of("tablet")["app_version"]), (&json!(null), &json!(null)));
    assert_eq!(of("desk")["device_type"], "web");
    assert!(of("desk")["last_seen"].as_str().unwrap().ends_with('Z'));
    phone.close().await;
    tablet.close().await;
    eventually(PATIENCE, "they are gone", async || {
        (listed(&one).await == ["desk false", "phone false", "tablet false"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_device_is_removed_by_its_own_user_alone() {
    let (_pg, relay) = scene(ORDERS).await;
    let (one, two) = (relay.http_as("1"), relay.http_as("2"));
    let mut phone = Device::of(&relay, "1", "phone").connect().await;
    let mut tablet = Device::of(&relay, "1", "tablet").connect().await;
    written(&relay).await;
    let refused = async |http: &Http, id: &str| {
        let answer = http.delete(&format!("/api/realtime/devices/{id}")).await.expect_status(404);
        let status = http.get(&format!("/api/realtime/sync-status?device_id={id}")).await.expect_status(404);
        assert_eq!(status.json(), answer.json());
        answer.json()
    };
    let theirs = refused(&two, "phone").await;
    assert_eq!((&theirs, &theirs["code"]), (&refused(&two, "nobodys").await, &json!("unknown_device")));
    for hostile in ["a%20b", "a%2Fb", "%2A", &"x".repeat(65), "1:phone", "%C3%A9"] {
        let answer = one.delete(&format!("/api/realtime/devices/{hostile}")).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("invalid_device_id")), "{hostile}");
        let answer = one.get(&format!("/api/realtime/sync-status?device_id={hostile}")).await;
        assert_eq!(answer.status, 400, "{hostile}");
    }
    one.get("/api/realtime/sync-status").await.expect_status(400);
    relay.http().get("/api/realtime/devices").await.expect_status(401);

    one.delete("/api/realtime/devices/phone").await.expect_status(204);
    assert_eq!(phone.expect_close().await, (4410, "this device was removed".to_owned()));
    refused(&one, "phone").await;
    assert_eq!(listed(&one).await, ["tablet true"]);
    tablet.send(&json!({"type": "ping"})).await;
    tablet.expect("pong").await;
    // Its token stays valid.
    let _again = Device::of(&relay, "1", "phone").connect().await;
    assert_eq!(listed(&one).await, ["phone true", "tablet true"]);
}

#[tokio::test]
async fn what_was_not_acknowledged_is_pending() {
    let (pg, relay) = scene(ORDERS).await;
    let http = relay.http_as("1");
    let (mut phone, begin) = listening(&relay, "1", "phone").await;
    let before = status(&http, "phone").await;
    let fields = [
        "cursor",
        "device_id",
        "is_online",
        "lag",
        "last_sync",
        "pending_changes",
        "pending_uploads",
        "server_version",
    ];
    assert_eq!(keys(&before), fields);
    assert_eq!(
        [&before["pending_changes"], &before["cursor"], &before["last_sync"], &before["lag"]],
        [&json!(null); 4]
    );
    assert_eq!((&before["pending_uploads"], &before["is_online"]), (&json!(0), &json!(true)));
    assert_eq!(before["server_version"], env!("CARGO_PKG_VERSION"));

    ack(&mut phone, &begin).await;
    let none = pending(&http, "phone", 0).await;
    assert_eq!((&none["lag"], none["last_sync"].is_string()), (&json!(0), true));
    assert_eq!(none["cursor"], begin.as_str());
    pg.sql(
        "INSERT INTO orders SELECT n, '1' FROM generate_series(1, 3) n; INSERT INTO rare VALUES (1, '1');
         INSERT INTO orders VALUES (9, '2'); SELECT rowcast.broadcast('user:1:news', 'x', '1');",
    )
    .await;
    let four = pending(&http, "phone", 4).await;
    assert!(four["lag"].as_i64().is_some_and(|lag| lag >= 0), "{four}");
    let changes = phone.changes(2).await;
    ack(&mut phone, changes[1].cursor.as_deref().unwrap()).await;
    pending(&http, "phone", 2).await;
    pg.sql("INSERT INTO orders SELECT n, '1' FROM generate_series(100, 1097) n").await;
    pending(&http, "phone", 1_000).await;
    let (mut other, _) = listening(&relay, "1", "other").await;
    pg.sql("INSERT INTO orders SELECT n, '1' FROM generate_series(2000, 2999) n").await;
    let seen = other.changes(1_000).await;
    pending(&http, "phone", 1_000).await;
    ack(&mut phone, seen[999].cursor.as_deref().unwrap()).await;
    pending(&http, "phone", 0).await;
}

#[tokio::test]
async fn a_cursor_that_is_none_is_not_acknowledged() {
    let (_pg, relay) = scene(ORDERS).await;
    let (mut phone, begin) = listening(&relay, "1", "phone").await;
    let foreign = format!("{}{}", "0".repeat(16), &begin[16..]);
    let beyond = format!("{}.{}.00000000", &begin[..16], "f".repeat(16));
    for bad in ["", "x", &foreign, &beyond] {
        phone.send(&json!({"type": "ack", "cursor": bad, "ref": 7})).await;
        assert_eq!(phone.expect_error("invalid_cursor").await["ref"], 7);
    }
    for bad in [json!({"type": "ack"}), json!({"type": "ack", "cursor": 5})] {
        phone.send(&bad).await;
        phone.expect_error("bad_message").await;
    }
    assert_eq!(status(&relay.http_as("1"), "phone").await["cursor"], json!(null));
}

#[tokio::test]
async fn the_registry_outlives_crashes_and_epochs() {
    let pg = with_orders(Options::scratch()).await;
    let mut relay = Relay::on(&pg).start().await;
    let (mut phone, begin) = listening(&relay, "1", "phone").await;
    ack(&mut phone, &begin).await;
    phone.close().await;
    eventually(PATIENCE, "it has gone", async || {
        (listed(&relay.http_as("1")).await == ["phone false"]).then_some(())
    })
    .await;
    written(&relay).await;
    let before = devices(&relay.http_as("1")).await;
    assert_eq!(before[0]["cursor"], begin.as_str());
    relay.kill9().await;
    relay.start_again().await;
    assert_eq!(devices(&relay.http_as("1")).await, before, "after a crash");
    // Without its slot the log's history has a hole.
    relay.kill9().await;
    eventually(PATIENCE, "the slot is free", async || {
        let free = pg.value("SELECT count(*) FROM pg_replication_slots WHERE active").await == "0";
        free.then_some(())
    })
    .await;
    pg.sql("SELECT pg_drop_replication_slot('rowcast')").await;
    relay.start_again().await;
    relay.wait_line("a new epoch begins").await;
    relay.wait_ready().await;
    assert_eq!(devices(&relay.http_as("1")).await, before, "in a new epoch");
    let status = status(&relay.http_as("1"), "phone").await;
    assert_eq!((&status["cursor"], &status["pending_changes"]), (&json!(begin), &json!(null)));
    let (mut phone, again) = listening(&relay, "1", "phone").await;
    assert_ne!(again[..16], begin[..16]);
    ack(&mut phone, &again).await;
    pending(&relay.http_as("1"), "phone", 0).await;
    relay.restart().await;
    assert_eq!(devices(&relay.http_as("1")).await[0]["cursor"], again.as_str(), "what was acknowledged last");
}

fn told(frame: &Frame) -> Value {
    let frame = frame.json();
    let text = |name: &str| frame.get(name).cloned().unwrap_or_default();
    json!([text("topic"), text("event"), text("payload"), text("source_device"), text("correlation_id")])
}

#[tokio::test]
async fn a_message_reaches_the_users_other_devices() {
    let (pg, relay) = scene(ORDERS).await;
    let (mut phone, _) = listening(&relay, "1", "phone").await;
    let (mut second_tab, _) = listening(&relay, "1", "phone").await;
    let (mut tablet, _) = listening(&relay, "1", "tablet").await;
    let (away, cursor) = listening(&relay, "1", "away").await;
    let (mut other, _) = listening(&relay, "2", "phone").await;
    away.close().await;
    let http = relay.http_as("1");
    let body =
        json!({"type": "note.opened", "payload": {"id": 7}, "correlationId": "c9", "deviceId": "phone"});
    let sent = http.post("/api/sync/send", &body).await.expect_status(200).json();
    assert_eq!((keys(&sent), &sent["success"]), (vec!["messageId", "success", "timestamp"], &json!(true)));
    assert!(sent["timestamp"].as_i64().is_some_and(|at| at > 1_600_000_000_000), "{sent}");
    // The device may also be named by a header, or not at all.
    let plain = json!({"type": "plain", "payload": null});
    http.request("POST", "/api/sync/send")
        .header("X-Device-Id", "phone")
        .json(&plain)
        .send()
        .await
        .expect_status(200);
    let nameless = json!({"type": "nameless", "payload": "é\n", "correlationId": "c10"});
    http.post("/api/sync/send", &nameless).await.expect_status(200);

    let topic = "user:1:devices";
    let by_phone = [
        json!([topic, "note.opened", {"id": 7}, "phone", "c9"]),
        json!([topic, "plain", null, "phone", null]),
    ];
    let frames = frames_until_now(&pg, &mut tablet, "user:1").await;
    assert_eq!(frames[0].json()["id"], sent["messageId"]);
    assert_eq!([told(&frames[0]), told(&frames[1])], by_phone);
    let nameless = told(&frames[2]);
    assert_eq!(
        (&nameless[1], &nameless[2], &nameless[4]),
        (&json!("nameless"), &json!("é\n"), &json!("c10"))
    );
    assert_eq!(frames.len(), 3);
    for own in [&mut phone, &mut second_tab] {
        let frames = frames_until_now(&pg, own, "user:1").await;
        assert_eq!(frames.iter().map(told).collect::<Vec<_>>(), std::slice::from_ref(&nameless));
    }
    assert!(frames_until_now(&pg, &mut other, "user:2").await.is_empty());
    // One that was away gets them, the sender does not.
    let mut away = Device::of(&relay, "1", "away").connect().await;
    let frames = replayed(&mut away, &["user:1:*"], &cursor).await;
    let messages = |frames: &[Frame]| {
        let of_devices = frames.iter().map(told).filter(|told| told[0] == topic);
        of_devices.map(|told| told[1].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(messages(&frames), ["note.opened", "plain", "nameless"]);
    let mut again = Device::of(&relay, "1", "phone").connect().await;
    assert_eq!(messages(&replayed(&mut again, &["user:1:*"], &cursor).await), ["nameless"]);
    // An application's own tagged broadcasts come to every device.
    pg.sql("BEGIN; SELECT rowcast.tag('tablet', user_id => '1'); SELECT rowcast.broadcast('user:1:news', 'x', '1'); COMMIT").await;
    let frames = frames_until_now(&pg, &mut tablet, "user:1").await;
    assert_eq!(told(frames.last().unwrap()), json!(["user:1:news", "x", 1, "tablet", null]));
}

#[tokio::test]
async fn a_message_that_is_none_is_refused() {
    let (_pg, relay) = scene(ORDERS).await;
    let http = relay.http_as("1");
    let long = "x".repeat(257);
    let cases = [
        (json!([]), "invalid_request"),
        (json!({"payload": 1}), "invalid_request"),
        (json!({"type": "x"}), "invalid_request"),
        (json!({"type": "", "payload": 1}), "invalid_request"),
        (json!({"type": "a\u{0}b", "payload": 1}), "invalid_request"),
        (json!({"type": long, "payload": 1}), "invalid_request"),
        (json!({"type": "x", "payload": 1, "correlationId": long}), "invalid_request"),
        (json!({"type": "x", "payload": 1, "correlationId": 7}), "invalid_request"),
        (json!({"type": "x", "payload": 1, "deviceId": "a b"}), "invalid_device_id"),
        (json!({"type": "x", "payload": 1, "deviceId": ""}), "invalid_device_id"),
    ];
    for (body, code) in cases {
        let refused = http.post("/api/sync/send", &body).await.expect_status(400).json();
        assert_eq!(refused["code"], code, "{body}");
    }
    let large = json!({"type": "x", "payload": "x".repeat(70_000)});
    assert_eq!(http.post("/api/sync/send", &large).await.expect_status(413).json()["code"], "too_large");
    relay.http().post("/api/sync/send", &json!({"type": "x", "payload": 1})).await.expect_status(401);
    // None of that was known as a device.
    assert!(devices(&http).await.is_empty());
}

#[tokio::test]
async fn messages_wait_for_no_database_that_is_away() {
    let (mut pg, relay) = scene(ORDERS).await;
    let http = relay.http_as("1");
    let body = json!({"type": "x", "payload": 1});
    http.post("/api/sync/send", &body).await.expect_status(200);
    pg.stop_fast().await;
    let refused = http.post("/api/sync/send", &body).await.expect_status(503);
    assert_eq!(
        (&refused.json()["code"], refused.headers.get("retry-after").is_some()),
        (&json!("unavailable"), true)
    );
    pg.start_again().await;
    eventually(PATIENCE, "messages go again", async || {
        (http.post("/api/sync/send", &body).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_admin_sees_who_is_here_and_speaks_to_everybody() {
    let (pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_ADMIN_CLAIM", "role=admin")).await;
    let (mut phone, _) = listening(&relay, "1", "phone").await;
    let (_tablet, _) = listening(&relay, "1", "tablet").await;
    let (mut other, _) = listening(&relay, "2", "phone").await;
    let admin = json!({"sub": "9", "role": "admin", "exp": 4_102_444_800_i64});
    let (user, admin) = (relay.http_as("1"), relay.http().with_token(&token::mint(&admin)));
    let message = json!({"type": "news", "payload": {"a": 1}});
    for refused in [
        user.get("/api/realtime/active-users").await,
        user.post("/api/sync/broadcast", &message).await,
        user.post("/api/sync/broadcast", &json!("no matter what")).await,
    ] {
        assert_eq!(refused.expect_status(403).json()["code"], "admin_only");
    }
    let here = admin.get("/api/realtime/active-users?limit=1").await.expect_status(200).json();
    let first = &here["users"][0];
    assert_eq!(
        (&first["user_id"], &first["devices"], &first["sessions"]),
        (&json!("1"), &json!(2), &json!(2))
    );
    assert!(first["since"].as_str().unwrap().ends_with('Z') && here["total"] == 2, "{here}");
    let next = here["next"].as_str().unwrap();
    let rest = admin.get(&format!("/api/realtime/active-users?after={next}")).await.expect_status(200).json();
    assert_eq!((rest["users"].as_array().unwrap().len(), &rest["users"][0]["user_id"]), (1, &json!("2")));
    assert_eq!(rest["next"], json!(null));

    let counts = user.get("/api/sync/status").await.expect_status(200).json();
    assert_eq!(counts["success"], true);
    assert_eq!(keys(&counts["status"]), ["lastCheck", "polling", "websocket"]);
    assert_eq!(counts["status"]["websocket"], json!({"connections": 3, "users": 2, "devices": 3}));
    assert_eq!(counts["status"]["polling"], json!({"connections": 0, "users": 0, "devices": 0}));

    let sent = admin.post("/api/sync/broadcast", &message).await.expect_status(200).json();
    assert_eq!(sent["messageIds"].as_array().unwrap().len(), 1, "{sent}");
    let named = json!({"type": "named", "payload": 1, "topics": ["user:2:a%3Ab", "user:1:x"]});
    let sent = admin.post("/api/sync/broadcast", &named).await.expect_status(200).json();
    let one = frames_until_now(&pg, &mut phone, "user:1").await;
    assert_eq!(
        one.iter().map(|frame| frame.json()["topic"].clone()).collect::<Vec<_>>(),
        ["global:broadcast", "user:1:x"]
    );
    assert_eq!(one[1].json()["id"], sent["messageIds"][1]);
    let two = frames_until_now(&pg, &mut other, "user:2").await;
    assert_eq!(
        two.iter().map(|frame| frame.json()["topic"].clone()).collect::<Vec<_>>(),
        ["global:broadcast", "user:2:a%3Ab"]
    );
    for topics in [json!([]), json!("x"), json!(["user:*"]), json!(["a", "b"])] {
        let body = json!({"type": "x", "payload": 1, "topics": topics});
        admin.post("/api/sync/broadcast", &body).await.expect_status(400);
    }
}

/// A full sync of a device to its end.
async fn full_sync(http: &Http, device: &str) {
    let mut body = json!({"device_id": device, "topics": ["user:1:*"], "force_full_sync": true});
    loop {
        let page = http.post("/api/realtime/sync", &body).await.expect_status(200).json();
        if page["has_more"] == false {
            return;
        }
        body = json!({"device_id": device, "topics": ["user:1:*"], "cursor": page["cursor"]});
    }
}

#[tokio::test]
async fn the_other_devices_hear_of_a_full_sync() {
    let (pg, relay) = scene(ORDERS).await;
    let http = relay.http_as("1");
    let (mut phone, _) = listening(&relay, "1", "phone").await;
    let (mut tablet, _) = listening(&relay, "1", "tablet").await;
    let (mut other, _) = listening(&relay, "2", "tablet").await;
    full_sync(&http, "phone").await;
    let told = tablet.expect("other_device_synced").await.json();
    assert_eq!((keys(&told), &told["device_id"]), (vec!["device_id", "timestamp", "type"], &json!("phone")));
    assert!(status(&http, "phone").await["last_sync"].is_string());
    // Not twice a minute, never the one that synced, nobody else.
    full_sync(&http, "tablet").await;
    full_sync(&http, "phone").await;
    for (device, user) in [(&mut phone, "1"), (&mut tablet, "1"), (&mut other, "2")] {
        assert!(frames_until_now(&pg, device, &format!("user:{user}")).await.is_empty());
    }
}
