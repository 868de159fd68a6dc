//! A user against the others: what one can use up, and what one can find out.

use serde_json::{Value, json};

use super::{ORDERS, SYNC};
use crate::support::device::{Device, Incoming};
use crate::support::relay::Setup;
use crate::support::scene::{scene, scene_with};
use crate::support::token;

/// An error without what it repeats of the request.
fn bare(mut error: Value) -> Value {
    error.as_object_mut().unwrap().remove("topic");
    let detail = error["detail"].as_str().unwrap_or_default().to_owned();
    if let Some((_, rest)) = detail.split_once("` ") {
        error["detail"] = rest.into();
    }
    error
}

#[tokio::test]
async fn nobody_learns_what_others_have() {
    let (pg, relay) = scene(ORDERS).await;
    pg.sql("INSERT INTO orders VALUES (1, 7); CREATE TABLE secrets (id int PRIMARY KEY, user_id int); SELECT rowcast.track('secrets')")
        .await;
    let theirs = Device::of(&relay, "7", "theirs").connect().await;
    let full = json!({"device_id": "theirs", "topics": ["user:7:*"], "force_full_sync": true});
    let answer = relay.http_as("7").post(SYNC, &full).await.expect_status(200).json();
    let cursor = answer["cursor"].as_str().unwrap().to_owned();
    let mine = relay.http_as("42");
    // Topics that have rows, that are empty, of tables that do not exist, of users who do not.
    let topics = [
        "user:7:orders",
        "user:7:secrets",
        "user:7:nothing",
        "user:8:orders",
        "nobody:x:orders",
        "user:7:*",
        "team:1:*",
    ];
    let mut device = Device::of(&relay, "42", "phone").connect().await;
    let mut told = Vec::new();
    for topic in topics {
        device.send(&json!({"type": "subscribe", "topics": [topic]})).await;
        told.push(bare(device.expect_error("not_granted").await).to_string());
        for path in [SYNC, "/api/sync/poll", "/api/realtime/events"] {
            let answer = mine
                .post(path, &json!({"device_id": "d", "topics": [topic], "wait": 0}))
                .await
                .expect_status(403);
            told.push(format!("{path} {}", bare(answer.json())));
        }
    }
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 4, "{told:#?}");
    // Their devices, and none.
    let mut told = Vec::new();
    for id in ["theirs", "nobodys"] {
        for answer in [
            mine.get(&format!("/api/realtime/sync-status?device_id={id}")).await,
            mine.delete(&format!("/api/realtime/devices/{id}")).await,
        ] {
            told.push(answer.expect_status(404).text().to_owned());
        }
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    drop(theirs);
    // A cursor of theirs vouches for nothing of mine, and a page of theirs is none.
    let answer = mine.post(SYNC, &json!({"device_id": "d", "cursor": cursor})).await.expect_status(200);
    assert!(
        !answer.text().contains("user:7") && !answer.text().contains("\"user_id\":7"),
        "{}",
        answer.text()
    );
    let many = "INSERT INTO orders SELECT n, 7 FROM generate_series(10, 40000) n";
    pg.sql(many).await;
    let paged = relay.http_as("7").post(SYNC, &full).await.expect_status(200).json();
    let page = paged["cursor"].as_str().unwrap();
    assert!(page.starts_with("full."), "{page}");
    let guess = format!("full.{}", "0".repeat(page.len() - 5));
    let mut told = Vec::new();
    for page in [page, &guess] {
        let answer = mine.post(SYNC, &json!({"device_id": "theirs", "cursor": page})).await;
        told.push((answer.status, answer.text().to_owned()));
    }
    assert_eq!(told[0].0, 410, "{told:?}");
    assert!(told[1].0 == 410 || told[1].0 == 400, "{told:?}");
    // Nor whether a token of theirs is good, by one that is not.
    let forged = token::mint_with(
        "another secret of at least thirty-two bytes",
        &json!({"sub": "7", "exp": 4_000_000_000_u32}),
    );
    let nobody =
        token::mint_with("another secret of at least thirty-two bytes", &json!({"sub": "nobody", "exp": 1}));
    let [one, other] = [forged, nobody].map(|token| relay.http().with_token(&token));
    assert_eq!(
        one.get(SYNC).await.expect_status(401).text(),
        other.get(SYNC).await.expect_status(401).text()
    );
}

#[tokio::test]
async fn what_one_user_may_hold_is_bounded() {
    let (_pg, relay) = scene(ORDERS).await;
    let user = relay.http_as("42");
    // Polls wait in the places of sessions.
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            user.request("GET", &format!("/api/sync/poll?device_id=d{number}&wait=20&topics=user:42:*"))
                .send()
        })
        .map(tokio::spawn)
        .collect();
    crate::support::wait::eventually(crate::support::wait::PATIENCE, "all polls wait", async || {
        let answer = relay.http_as("7").get("/api/sync/status").await.expect_status(200).json();
        (answer["status"]["polling"]["connections"] == 20).then_some(())
    })
    .await;
    for path in ["/api/sync/poll?device_id=more&wait=0", "/api/realtime/events?device_id=more"] {
        let answer = user.get(path).await.expect_status(429);
        assert_eq!(answer.json()["code"], "too_many_sessions");
    }
    let mut socket = Device::of(&relay, "42", "more").try_connect().await.unwrap();
    assert!(matches!(socket.incoming().await, Incoming::Closed(Some((4429, _)))));
    // Nobody else waits for that.
    relay.http_as("7").get("/api/sync/poll?device_id=d&wait=0").await.expect_status(200);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    // Tickets: as many as devices of one user come back with at once.
    let mut given = 0;
    let refused = loop {
        let answer = user.post("/api/realtime/ticket", &json!({})).await;
        match answer.status {
            200 => given += 1,
            _ => break answer,
        }
    };
    assert_eq!((given, refused.status), (64, 429));
    // Devices: a hundred, whatever they are called; the ones seen last stay.
    for number in 0..130 {
        let body = json!({"device_id": format!("many{number}"), "topics": ["user:42:*"], "device_type": "x".repeat(128)});
        user.post(SYNC, &body).await;
    }
    crate::support::wait::eventually(
        crate::support::wait::PATIENCE,
        "no more than a hundred devices",
        async || {
            let known = user.get("/api/realtime/devices").await.expect_status(200).json();
            let known = known["devices"].as_array().unwrap().len();
            (known == 100).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn a_foreign_page_asks_nothing_of_a_relay_without_tokens() {
    let open = |setup: Setup| {
        setup
            .env("ROWCAST_AUTH", "none")
            .env("ROWCAST_JWT_SECRET", "")
            .env("ROWCAST_GRANTS", "global:*,user:{sub}:*")
            .env("ROWCAST_ALLOWED_ORIGINS", "https://app.test")
    };
    let (_pg, relay) = scene_with(ORDERS, open).await;
    let mut device = Device::of(&relay, "anonymous", "phone").without_token().connect().await;
    device.subscribe(&["user:anonymous:*"], None).await;
    // What a browser sends for any page without asking before: no header but a plain one.
    let send = async |origin: Option<&str>| {
        let request = relay.http().request("POST", "/api/sync/send").header("content-type", "text/plain");
        let request = match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        };
        request.body(r#"{"type":"note","payload":1}"#).send().await
    };
    let own = format!("http://{}", relay.address());
    for origin in
        ["https://evil.test", "null", "http://localhost", "https://app.test.evil.test", "http://app.test"]
    {
        let answer = send(Some(origin)).await;
        assert_eq!(answer.status, 403, "{origin}: {}", answer.text());
        assert_eq!(answer.json()["code"], "origin_not_allowed");
    }
    for origin in [Some("https://app.test"), Some(own.as_str()), None] {
        send(origin).await.expect_status(200);
        assert_eq!(device.expect("broadcast").await.json()["event"], "note", "{origin:?}");
    }
}
