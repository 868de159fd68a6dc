//! What a token grants, and what opens nothing.

use super::*;

#[tokio::test]
async fn every_user_reads_exactly_their_own_rows_whatever_they_are_called() {
    let pg = database().await;
    pg.sql(NOTES).await;
    let relay = relay_on(&pg).start().await;
    let users = strange_users();
    let mut devices = Vec::new();
    for user in &users {
        let mut device = Device::of(&relay, user, "phone").connect().await;
        let topic = topic_of(&pg, user).await;
        let begun = device.subscribe(&[&topic], None).await.cursor().unwrap();
        devices.push((device, topic, begun));
    }
    for (id, user) in users.iter().enumerate() {
        pg.sql(&format!("INSERT INTO notes VALUES ({id}, {}, 'of {id}')", quoted(user))).await;
    }
    // Nobody's: no owner, an empty one, and one that is too long for a topic.
    pg.sql("INSERT INTO notes VALUES (1000, NULL, 'x'), (1001, '', 'x'), (1002, repeat('x', 257), 'x'), (1003, repeat('x', 300), 'x'), (1004, repeat('é', 129), 'x')").await;
    pg.sql("UPDATE notes SET text = text || '!'").await;
    for (id, (device, topic, begun)) in devices.iter_mut().enumerate() {
        let user = &users[id];
        for operation in ["INSERT", "UPDATE"] {
            let change = device.change().await;
            let record: Value = serde_json::from_str(change.record_text()).unwrap();
            assert_eq!(
                (record["id"].as_u64(), record["owner"].as_str()),
                (Some(id as u64), Some(user.as_str())),
                "{user:?}"
            );
            assert_eq!((&change.operation[..], &change.topic), (operation, &*topic), "{user:?}");
        }
        let body = json!({"device_id": "rest", "topics": [&*topic], "cursor": &*begun});
        let answer = synced(&relay.http_as(user), &body, 1).await;
        assert_eq!(answer["changes"]["notes"][0]["record"]["id"], id, "{user:?}");
        // No other user's topic, as it is and as someone careless would write it.
        for other in users.iter().filter(|other| *other != user) {
            let topics =
                [topic_of(&pg, other).await, format!("user:{other}:notes"), format!("user:{other}:*")];
            for topic in topics {
                device.send(&json!({"type": "subscribe", "topics": [&topic]})).await;
                let error = device.expect("error").await.json();
                let code = error["code"].as_str().unwrap().to_owned();
                assert!(
                    code == "not_granted" || code == "invalid_topic",
                    "{user:?} asked for {topic:?}: {error}"
                );
            }
            if id % 7 != 0 {
                break;
            }
        }
    }
    // Nothing more came than one insert and one update each.
    for (device, topic, _) in &mut devices {
        device.send(&json!({"type": "ping"})).await;
        let rest = device.until("pong").await;
        assert_eq!(rest.len(), 1, "{topic}: {rest:?}");
    }
}

#[tokio::test]
async fn integer_claims_keep_their_digits_and_unusable_ones_grant_nothing() {
    let pg = database().await;
    pg.sql("CREATE TABLE notes (owner int8, id int, PRIMARY KEY (owner, id)); SELECT rowcast.track('notes', ARRAY['user:{owner}:notes'])").await;
    let relay = relay_on(&pg).start().await;
    let exact = raw_token(r#"{"sub":9007199254740993,"exp":4102444800}"#);
    let mut device = Device::of(&relay, "?", "phone").token(&exact).connect().await;
    device.subscribe(&["user:9007199254740993:*"], None).await;
    device.send(&json!({"type": "subscribe", "topics": ["user:9007199254740992:*"]})).await;
    assert_eq!(device.expect("error").await.json()["code"], "not_granted");
    pg.sql("INSERT INTO notes VALUES (9007199254740992, 1), (9007199254740994, 1), (9007199254740993, 2)")
        .await;
    assert_eq!(device.change().await.key_text(), r#"{"owner":9007199254740993,"id":2}"#);
    for sub in ["1.0", "1e3", "1.5", "null", "true", "[]", "[\"1\"]", "{}", "\"\"", "-0.0"] {
        let token = raw_token(&format!(r#"{{"sub":{sub},"exp":4102444800}}"#));
        refused(&relay, &token, "token_invalid").await;
    }
    let long = token::mint(&json!({"sub": "x".repeat(300), "exp": FAR_FUTURE}));
    refused(&relay, &long, "token_invalid").await;
    refused(&relay, &raw_token(r#"{"exp":4102444800}"#), "token_invalid").await;
}

#[tokio::test]
async fn claims_that_are_lists_grant_each_element_and_no_more() {
    let pg = database().await;
    pg.sql("CREATE TABLE tasks (team_id text, id int, PRIMARY KEY (team_id, id)); SELECT rowcast.track('tasks', ARRAY['team:{team_id}:tasks'])").await;
    let relay = relay_on(&pg).env("ROWCAST_GRANTS", "user:{sub}:*,team:{team_ids}:*").start().await;
    let claims = json!({"sub": "1", "exp": FAR_FUTURE, "team_ids": [7, "a:b", "*", "", null, {"x": 1}, 1.5, [8], "x".repeat(257)]});
    let mut device = Device::of(&relay, "1", "phone").token(&token::mint(&claims)).connect().await;
    for (topic, granted) in [
        ("team:7:*", true),
        ("team:a%3Ab:tasks", true),
        ("team:%2A:*", true),
        ("team:8:*", false),
        ("team:1:*", false),
        ("team:a:*", false),
        ("team:null:*", false),
        ("team:*", false),
        ("global:*", false),
    ] {
        device.send(&json!({"type": "subscribe", "topics": [topic], "ref": topic})).await;
        let frame = device.recv().await.json();
        assert_eq!(
            (&frame["type"], &frame["ref"]),
            (&json!(if granted { "subscribed" } else { "error" }), &json!(topic)),
            "{frame}"
        );
    }
    pg.sql("INSERT INTO tasks VALUES ('8', 1), ('x', 2), ('*', 3), ('a', 4), ('a:b', 5), ('7', 6)").await;
    let ids: Vec<_> = device.changes(3).await.iter().map(|change| change.key_text().to_owned()).collect();
    assert_eq!(
        ids,
        [r#"{"team_id":"*","id":3}"#, r#"{"team_id":"a:b","id":5}"#, r#"{"team_id":"7","id":6}"#]
    );
    // One scalar is a list of one; none is none.
    for (claim, granted) in [(json!("7"), true), (json!(7), true), (Value::Null, false), (json!([]), false)] {
        let token = token::mint(&json!({"sub": "2", "exp": FAR_FUTURE, "team_ids": claim}));
        let mut device = Device::of(&relay, "2", "phone").token(&token).connect().await;
        device.send(&json!({"type": "subscribe", "topics": ["team:7:*"]})).await;
        assert_eq!(device.recv().await.kind == "subscribed", granted, "{claim}");
    }
}

#[tokio::test]
async fn tokens_that_do_not_verify_open_nothing() {
    let pg = database().await;
    pg.sql(NOTES).await;
    let relay = relay_on(&pg)
        .env("ROWCAST_JWT_ISSUER", "https://login.example")
        .env("ROWCAST_JWT_AUDIENCE", "app")
        .env("ROWCAST_JWT_LEEWAY", "0s")
        .start()
        .await;
    let now = pg.value("SELECT extract(epoch FROM now())::int8").await.parse::<i64>().unwrap();
    let good = json!({"sub": "1", "exp": now + 600, "nbf": now - 600, "iss": "https://login.example", "aud": ["other", "app"]});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value;
        }
        token::mint(&claims)
    };
    let valid = token::mint(&good);
    Device::of(&relay, "1", "phone").token(&valid).connect().await.close().await;
    let parts: Vec<&str> = valid.split('.').collect();
    let header = |json: &str| base64url(json.as_bytes());
    let (payload, signature) = (parts[1], parts[2]);
    let cases = [
        (format!("{}.{payload}.", header(r#"{"alg":"none","typ":"JWT"}"#)), "token_invalid"),
        (format!("{}.{payload}.{signature}", header(r#"{"alg":"none"}"#)), "token_invalid"),
        (format!("{}.{payload}.{signature}", header(r#"{"alg":"HS512","typ":"JWT"}"#)), "token_invalid"),
        (format!("{}.{payload}.{signature}", header(r#"{"alg":"RS256","typ":"JWT"}"#)), "token_invalid"),
        (format!("{}.{payload}", parts[0]), "token_invalid"),
        (
            format!("{}.{}.{signature}", parts[0], base64url(br#"{"sub":"2","exp":4102444800}"#)),
            "token_invalid",
        ),
        (format!("{valid}x"), "token_invalid"),
        (valid[..valid.len() - 1].to_owned(), "token_invalid"),
        ("a.b.c".to_owned(), "token_invalid"),
        (token::mint_with("another secret of at least thirty-two bytes", &good), "token_invalid"),
        (with("exp", json!(now - 60)), "token_expired"),
        (with("exp", Value::Null), "token_invalid"),
        (with("exp", json!("never")), "token_invalid"),
        (with("nbf", json!(now + 600)), "token_not_yet_valid"),
        (with("iss", json!("https://evil.example")), "token_invalid"),
        (with("iss", Value::Null), "token_invalid"),
        (with("aud", json!("other")), "token_invalid"),
        (with("aud", Value::Null), "token_invalid"),
    ];
    for (token, code) in &cases {
        refused(&relay, token, code).await;
    }
}
