//! No spelling of a topic, cursor or header reaches beyond the grants.

use super::*;

#[tokio::test]
async fn no_spelling_of_a_topic_reaches_beyond_the_grants() {
    let (pg, relay) = two_users().await;
    let mut own = Device::of(&relay, "2", "phone").connect().await;
    let begun = own.subscribe(&["user:2:*"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO notes VALUES (1, '2', 'of two')").await;
    own.change().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*"], None).await;
    let tricks = [
        "*",
        "*:*",
        "user:*",
        "user:*:notes",
        "user:*:*",
        "user:2:*",
        "user:2:notes",
        "user:%32:notes",
        "user:1*:notes",
        "user:1%2A:notes",
        "user:1:..:2:notes",
        "user:1:notes,user:2:notes",
        "user:1%3A2:notes",
        "user:2%3A:notes",
        "user:1/../2:notes",
        "user: 2:notes",
        "User:2:notes",
        "user:2",
        "user",
        "",
        ":",
        "::",
        "user::notes",
        "user:2:",
        "user:2:*:",
        "team:1:*",
        "user:1%00:*",
        "user:1\u{0}:notes",
        "user:1\n2:notes",
        "user:２:notes",
        "user:1:%2A",
        "user:1%:notes",
        "user:1:no*",
        "rowcast:tables",
        "global",
        "notes",
    ];
    let harmless = ["user:1:%2A"];
    for trick in tricks {
        for cursor in [None, Some(&begun)] {
            let mut message = json!({"type": "subscribe", "topics": [trick], "ref": trick});
            if let Some(cursor) = cursor {
                message["cursor"] = cursor.as_str().into();
            }
            device.send(&message).await;
            let frame = device.recv().await.json();
            if harmless.contains(&trick) {
                // A table by the name of `*` among one's own topics, which there is not.
                assert_eq!(frame["type"], "subscribed", "{trick:?}: {frame}");
                if cursor.is_some() {
                    device.until("caught_up").await;
                }
                continue;
            }
            assert_eq!((&frame["type"], &frame["ref"]), (&json!("error"), &json!(trick)), "{frame}");
            assert!(["not_granted", "invalid_topic"].contains(&frame["code"].as_str().unwrap()), "{frame}");
        }
        if !harmless.contains(&trick) {
            for request in [
                json!({"device_id": "d", "topics": [trick], "cursor": begun}),
                json!({"device_id": "d", "topics": ["user:1:*", trick], "cursor": begun}),
            ] {
                let answer = relay.http_as("1").post("/api/realtime/sync", &request).await;
                assert!(
                    answer.status == 403 || answer.status == 400,
                    "{trick:?}: {} {}",
                    answer.status,
                    answer.text()
                );
                assert!(!answer.text().contains("of two"), "{}", answer.text());
            }
        }
    }
    // What exists and what does not is refused alike.
    let refusals =
        ["user:2:notes", "user:2:nothing", "user:99:notes"].map(|topic| {
            let body = json!({"device_id": "d", "topics": [topic], "cursor": begun});
            let http = relay.http_as("1");
            async move {
                http.post("/api/realtime/sync", &body).await.expect_status(403).text().replace(topic, "T")
            }
        });
    let [one, two, three] = refusals;
    let (one, two, three) = tokio::join!(one, two, three);
    assert!(one == two && two == three, "{one} {two} {three}");
    // Another's cursor says where one stands, never who one is; tables narrow and never widen.
    for body in [
        json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun}),
        json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun, "tables": ["notes", "user:2:notes", "2:notes", "*"]}),
        json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun, "user_id": "2", "sub": "2", "grants": ["user:2:*"]}),
        json!({"device_id": "phone", "topics": ["user:1:*"], "last_sync_timestamp": 0}),
    ] {
        let answer = relay.http_as("1").post("/api/realtime/sync", &body).await;
        assert!(!answer.text().contains("of two"), "{body}: {}", answer.text());
    }
    let spoofed = relay
        .http_as("1")
        .request(
            "GET",
            &format!(
                "/api/realtime/sync?device_id=d&topics=user:1:*&cursor={begun}&user_id=2&token={}",
                token::user("2")
            ),
        )
        .header("x-user-id", "2")
        .header("x-forwarded-user", "2")
        .header("cookie", &format!("token={}", token::user("2")))
        .send()
        .await;
    assert!(!spoofed.text().contains("of two"), "{}", spoofed.text());
    device.subscribe(&["user:1:notes"], Some(&begun)).await;
    let replayed = device.until("caught_up").await;
    assert!(replayed.iter().all(|frame| frame.kind != "database_change"), "{replayed:?}");
    pg.sql("UPDATE notes SET text = 'of two again'").await;
    let rest = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn one_pattern_out_of_many_is_refused_alone() {
    let (pg, relay) = two_users().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device
        .send(&json!({"type": "subscribe", "topics": ["user:1:*", "user:2:*", "global:notes"], "ref": 1}))
        .await;
    let error = device.expect("error").await.json();
    assert_eq!(
        (&error["code"], &error["topic"], &error["ref"]),
        (&json!("not_granted"), &json!("user:2:*"), &json!(1))
    );
    let subscribed = device.expect("subscribed").await.json();
    assert_eq!(subscribed["topics"], json!(["user:1:*", "global:notes"]));
    pg.sql("INSERT INTO notes VALUES (1, '2', 'of two'), (2, '1', 'of one')").await;
    let frames = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(frames.len() == 1 && frames[0].text.contains("of one"), "{frames:?}");
}
