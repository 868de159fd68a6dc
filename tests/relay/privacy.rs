//! What must never reach a device: rows of others, columns that were not published, messages that were
//! not signed; and what must never reach the relay's log: values and tokens.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::support::device::{Connect, Device, Incoming};
use crate::support::frame::Frame;
use crate::support::postgres::{TestPostgres, connect};
use crate::support::relay::Relay;
use crate::support::stage::{database, frames_until_now, relay_on, synced};
use crate::support::token;

const NOTES: &str = "
    CREATE TABLE notes (id int PRIMARY KEY, owner text, text text);
    SELECT rowcast.track('notes', ARRAY['user:{owner}:notes']);";

const FAR_FUTURE: i64 = 4_102_444_800;

/// Users, as claims and as column values, that would be someone else if anything were read twice.
fn strange_users() -> Vec<String> {
    let mut users: Vec<String> = [
        "a",
        "b",
        "a:b",
        "a%3Ab",
        "a%253Ab",
        "*",
        "%2A",
        "%",
        "%%",
        "%2",
        "%2a",
        ":",
        "::",
        "a:*",
        "user:a",
        "a:notes",
        "{sub}",
        "{owner}",
        " ",
        " a",
        "a ",
        "A",
        "null",
        "NULL",
        "true",
        "0",
        "00",
        "1",
        "01",
        "1.0",
        "+1",
        "-1",
        "9007199254740992",
        "9007199254740993",
        "ünïcødé 日本語 😀",
        "u\u{308}",
        "ü",
        "\u{feff}a",
        "\u{200b}",
        "\u{1}",
        "a\tb",
        "a\nb",
        "\u{7f}",
        "\u{85}",
        "\"",
        "\\",
        "'",
        "a,b",
        "/",
        "a/b",
        "../a",
        "?",
        "#",
        "&",
        "<script>",
    ]
    .map(str::to_owned)
    .into();
    users.push("x".repeat(256));
    users.push("é".repeat(128));
    users
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn topic_of(pg: &TestPostgres, user: &str) -> String {
    let segment = pg.value(&format!("SELECT rowcast.encode_segment({})", quoted(user))).await;
    format!("user:{segment}:notes")
}

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

/// No way in with this token: neither WebSocket, by subprotocol or first message, nor REST.
async fn refused(relay: &Relay, token: &str, code: &str) {
    let handshake = Device::of(relay, "1", "phone").token(token);
    let first_message = async {
        let mut device = Device::of(relay, "1", "phone").without_token().try_connect().await.unwrap();
        device.send(&json!({"type": "auth", "token": token})).await;
        closed(device).await
    };
    for said in [rejection(handshake).await, first_message.await] {
        assert!(said.contains(code), "expected {code} for {token}, not {said}");
        assert!(!said.contains(token), "the answer repeats the token: {said}");
    }
    let body = json!({"device_id": "d", "topics": ["user:1:*"]});
    let answer = relay.http().with_token(token).post("/api/realtime/sync", &body).await.expect_status(401);
    assert_eq!(answer.json()["code"], code, "{token}");
    assert!(!answer.text().contains(token));
}

/// Why the relay did not let a device in, as text.
async fn rejection(connect: Connect) -> String {
    match connect.try_connect().await {
        Ok(device) => closed(device).await,
        Err(Error::Http(answer)) => {
            assert_eq!(answer.status(), 401);
            String::from_utf8(answer.body().clone().unwrap_or_default()).unwrap()
        }
        Err(error) => panic!("{error}"),
    }
}

/// All that comes until the relay closes with 4401.
async fn closed(mut device: Device) -> String {
    let mut said = String::new();
    loop {
        match device.incoming().await {
            Incoming::Frame(frame) => {
                assert_eq!(frame.kind, "error", "{}", frame.text);
                said.push_str(&frame.text);
            }
            Incoming::Closed(close) => {
                let (code, reason) = close.expect("a close frame");
                assert_eq!(code, 4401, "{reason}");
                return said + &reason;
            }
        }
    }
}

/// A device of user 1 and the rows of users 1 and 2.
async fn two_users() -> (TestPostgres, Relay) {
    let pg = database().await;
    pg.sql(NOTES).await;
    let relay = relay_on(&pg).start().await;
    (pg, relay)
}

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

#[tokio::test]
async fn a_row_that_moves_away_takes_its_new_values_with_it() {
    let (pg, relay) = two_users().await;
    for identity in ["DEFAULT, then what track chose", "FULL"] {
        if identity == "FULL" {
            pg.sql("DELETE FROM notes; ALTER TABLE notes REPLICA IDENTITY FULL; SELECT rowcast.track('notes', ARRAY['user:{owner}:notes'], columns => '{id,owner,text}')").await;
        }
        let mut one = Device::of(&relay, "1", "phone").connect().await;
        let mut two = Device::of(&relay, "2", "phone").connect().await;
        let mut barrier = Device::of(&relay, "3", "phone").connect().await;
        barrier.subscribe(&["user:3:*"], None).await;
        frames_until_now(&pg, &mut barrier, "user:3").await;
        let begun = one.subscribe(&["user:1:*"], None).await.cursor().unwrap();
        two.subscribe(&["user:2:*"], None).await;
        pg.sql(
            "INSERT INTO notes VALUES (1, '1', 'value-of-one');
             UPDATE notes SET owner = '2', text = 'value-of-two'; UPDATE notes SET text = 'value-of-two-again';
             UPDATE notes SET id = 5, owner = '1', text = 'value-of-one-again'; UPDATE notes SET owner = NULL, text = 'value-of-nobody'; DELETE FROM notes",
        )
        .await;
        let ones = frames_until_now(&pg, &mut one, "user:1").await;
        let twos = frames_until_now(&pg, &mut two, "user:2").await;
        let seen = |frames: &[Frame]| -> Vec<String> {
            let changes =
                frames.iter().map(|frame| frame.change().unwrap_or_else(|| panic!("{}", frame.text)));
            changes.map(|change| format!("{} {}", change.operation, change.key_text())).collect()
        };
        assert_eq!(
            seen(&ones),
            ["INSERT {\"id\":1}", "DELETE {\"id\":1}", "INSERT {\"id\":5}", "DELETE {\"id\":5}"],
            "{identity}"
        );
        assert_eq!(
            seen(&twos),
            ["INSERT {\"id\":1}", "UPDATE {\"id\":1}", "DELETE {\"id\":1}"],
            "{identity}"
        );
        let of = |frames: &[Frame]| frames.iter().map(|frame| frame.text.as_str()).collect::<String>();
        assert!(!of(&ones).contains("value-of-two") && !of(&ones).contains("value-of-nobody"), "{identity}");
        assert!(!of(&twos).contains("value-of-one") && !of(&twos).contains("value-of-nobody"), "{identity}");
        // The key of a row that moved with a new key is not told to those who never had it.
        assert!(!of(&twos).contains("\"id\":5"), "{identity}");
        // Replay and sync say the same.
        let mut again = Device::of(&relay, "1", "tablet").connect().await;
        again.subscribe(&["user:1:*"], Some(&begun)).await;
        let replayed: Vec<Frame> = again
            .until("caught_up")
            .await
            .into_iter()
            .filter(|frame| frame.kind == "database_change")
            .collect();
        assert_eq!(seen(&replayed), seen(&ones), "{identity}");
        let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun});
        let synced = relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200);
        for text in [of(&replayed), synced.text().to_owned()] {
            assert!(
                !text.contains("value-of-two") && !text.contains("value-of-nobody"),
                "{identity}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn columns_that_are_not_published_are_in_no_answer() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE listed (user_id int, id int, note text, hidden text, PRIMARY KEY (user_id, id));
         CREATE TABLE listed_full (id int PRIMARY KEY, user_id int, note text, hidden text);
         SELECT rowcast.track('listed', columns => '{user_id,id,note}'), rowcast.track('listed_full', columns => '{id,user_id,note}');",
    )
    .await;
    let relay = relay_on(&pg).start().await;
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    let mut strings = Device::of(&relay, "1", "tablet").query("numbers=string&batch=1").connect().await;
    let subscribed = device.subscribe(&["user:1:*"], None).await;
    let begun = subscribed.cursor().unwrap();
    strings.subscribe(&["user:1:*"], None).await;
    let mut texts = vec![subscribed.text];
    for table in ["listed", "listed_full"] {
        pg.sql(&format!(
            "INSERT INTO {table} (user_id, id, note, hidden) VALUES (1, 1, 'n', 'planted-value'), (1, 2, 'n', repeat('planted-value', 10000)), (2, 3, 'n', 'planted-value');
             UPDATE {table} SET note = 'm'; UPDATE {table} SET hidden = 'planted-value-2' WHERE id < 3; UPDATE {table} SET id = id + 10;
             UPDATE {table} SET user_id = 1 WHERE id = 13; UPDATE {table} SET user_id = 2 WHERE id = 11; DELETE FROM {table} WHERE id = 12"
        ))
        .await;
    }
    for device in [&mut device, &mut strings] {
        let mut frames = frames_until_now(&pg, device, "user:1").await;
        frames.retain(|frame| frame.kind != "broadcast");
        assert!(frames.len() >= 20, "{} {frames:?}", frames.len());
        let kinds: Vec<_> = frames.iter().filter(|frame| frame.kind != "database_change").collect();
        assert!(kinds.is_empty(), "{kinds:?}");
        // An update of hidden columns alone is none where the old row is known.
        let updates = frames
            .iter()
            .filter_map(Frame::change)
            .filter(|c| c.operation == "UPDATE" && c.table.as_deref() == Some("listed_full"));
        assert_eq!(updates.count(), 2);
        texts.extend(frames.into_iter().map(|frame| frame.text));
    }
    let mut again = Device::of(&relay, "1", "laptop").connect().await;
    again.subscribe(&["user:1:*"], Some(&begun)).await;
    texts.extend(again.until("caught_up").await.into_iter().map(|frame| frame.text));
    let body = json!({"device_id": "d", "topics": ["user:1:*"], "cursor": begun});
    texts.push(
        relay.http_as("1").post("/api/realtime/sync", &body).await.expect_status(200).text().to_owned(),
    );
    let path = format!("/api/realtime/sync?device_id=d&topics=user:1:*&cursor={begun}");
    let lines = relay
        .http_as("1")
        .request("GET", &path)
        .header("accept", "application/x-ndjson")
        .send()
        .await
        .expect_status(200);
    texts.push(lines.text().to_owned());
    for text in &texts {
        assert!(!text.contains("planted-value") && !text.contains("hidden"), "{text}");
    }
}

#[tokio::test]
async fn forged_messages_are_dropped_and_counted() {
    let (pg, relay) = two_users().await;
    pg.sql("CREATE ROLE app LOGIN; GRANT SELECT, INSERT ON notes TO app; CREATE ROLE writer LOGIN; GRANT rowcast_writer TO writer").await;
    let (app, writer) = tokio::join!(connect_as(&pg, "app"), connect_as(&pg, "writer"));
    let mut device = Device::of(&relay, "1", "phone").connect().await;
    device.subscribe(&["user:1:*", "global:*"], None).await;
    // A real one, whose content everyone who reads the WAL has seen.
    pg.sql("SELECT pg_create_logical_replication_slot('spy', 'test_decoding')").await;
    writer.batch_execute(r#"SELECT rowcast.broadcast('user:1:news', 'real', '{"n":1}')"#).await.unwrap();
    assert_eq!(device.expect("broadcast").await.json()["event"], "real");
    let seen = pg.value("SELECT string_agg(data, '') FROM pg_logical_slot_get_changes('spy', NULL, NULL) WHERE data LIKE 'message:%'").await;
    let (_, signed) = seen.split_once("content:").unwrap();
    assert!(signed.contains("\n{\"broadcast\":"), "{signed}");
    pg.sql("SELECT pg_drop_replication_slot('spy')").await;
    let forged = "rowcast_messages_dropped_total{why=\"forged\"}";
    let before = relay.metric(forged).await.unwrap_or(0.0);
    let (mac, body) = signed.split_once('\n').unwrap();
    let zeros = "0".repeat(64);
    let contents = [
        signed.to_owned(),
        format!("{mac}\n{}", body.replace("user:1:news", "user:1:fake")),
        format!("{}\n{body}", mac.to_uppercase()),
        format!("{zeros}\n{body}"),
        body.to_owned(),
        String::new(),
        "x".to_owned(),
        format!("{zeros}\n"),
        format!("{zeros}\n{{\"tag\":{{\"device\":\"phone\",\"correlation\":null,\"user\":\"1\"}}}}"),
        format!("{zeros}\n{{\"fence\":{{\"id\":\"x\"}}}}"),
    ];
    for (number, content) in contents.iter().enumerate() {
        app.batch_execute(&format!(
            "BEGIN; SELECT pg_logical_emit_message(true, 'rowcast', {}); INSERT INTO notes VALUES ({number}, '1', 'x'); COMMIT",
            quoted(content)
        ))
        .await
        .unwrap();
        // The row of the same transaction comes, and is nobody's device's.
        let change = device.change().await;
        assert_eq!((change.source_device, change.correlation_id), (None, None), "{content}");
    }
    // Bytes that are no text, other prefixes, and messages outside transactions.
    app.batch_execute(&format!(
        "SELECT pg_logical_emit_message(true, 'rowcast', '\\xff00fe'::bytea); SELECT pg_logical_emit_message(false, 'rowcast', {0});
         SELECT pg_logical_emit_message(true, 'rowcast2', {0}); SELECT pg_logical_emit_message(true, 'Rowcast', {0}); SELECT pg_logical_emit_message(true, '', {0})",
        quoted(signed)
    ))
    .await
    .unwrap();
    let rest = frames_until_now(&pg, &mut device, "user:1").await;
    assert!(rest.is_empty(), "{rest:?}");
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let expected = before + contents.len() as f64 + 1.0;
    assert_eq!(relay.metric(forged).await, Some(expected));
    assert_eq!(relay.metric("rowcast_messages_dropped_total{why=\"not_transactional\"}").await, Some(1.0));
}

#[tokio::test]
async fn whose_device_wrote_is_told_to_that_user_alone() {
    let pg = database().await;
    pg.sql("CREATE TABLE board (id int PRIMARY KEY, text text); SELECT rowcast.track('board', ARRAY['global:board'])").await;
    let relay = relay_on(&pg).start().await;
    let mut phone = Device::of(&relay, "1", "phone").connect().await;
    let mut tablet = Device::of(&relay, "1", "tablet").connect().await;
    // Another user's device of the same name.
    let mut other = Device::of(&relay, "2", "phone").connect().await;
    let begun = other.subscribe(&["global:*"], None).await.cursor().unwrap();
    for device in [&mut phone, &mut tablet] {
        device.subscribe(&["global:*"], None).await;
    }
    pg.sql("BEGIN; INSERT INTO board VALUES (1, 'a'); SELECT rowcast.tag('phone', 'c1', '1'); INSERT INTO board VALUES (2, 'b'); COMMIT").await;
    for device in [&mut phone, &mut tablet] {
        // A tag holds for its whole transaction, also for what was written before it.
        for change in device.changes(2).await {
            assert_eq!(
                (change.source_device.as_deref(), change.correlation_id.as_deref()),
                (Some("phone"), Some("c1"))
            );
        }
    }
    for frame in [other.expect("database_change").await, other.expect("database_change").await] {
        assert!(
            !frame.text.contains("source_device") && !frame.text.contains("correlation_id"),
            "{}",
            frame.text
        );
    }
    let mut again = Device::of(&relay, "2", "laptop").connect().await;
    again.subscribe(&["global:*"], Some(&begun)).await;
    for frame in again.until("caught_up").await {
        assert!(
            !frame.text.contains("source_device") && !frame.text.contains("correlation_id"),
            "{}",
            frame.text
        );
    }
    // The next transaction has no tag.
    pg.sql("INSERT INTO board VALUES (3, 'c')").await;
    assert_eq!(phone.change().await.source_device, None);
}

#[tokio::test]
async fn row_security_is_the_databases_own_and_topics_decide_here() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE docs (user_id int, id int, text text, PRIMARY KEY (user_id, id));
         ALTER TABLE docs ENABLE ROW LEVEL SECURITY; ALTER TABLE docs FORCE ROW LEVEL SECURITY;
         CREATE POLICY nobody ON docs USING (false); SELECT rowcast.track('docs')",
    )
    .await;
    let warned = pg.query_text("SELECT mend FROM rowcast.status WHERE problem LIKE '%row security%'").await;
    assert_eq!(warned, [[Some("As a superuser: ALTER ROLE rowcast_relay BYPASSRLS;".to_owned())]]);
    let relay = relay_on(&pg).start().await;
    let mut one = Device::of(&relay, "1", "phone").connect().await;
    one.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO docs VALUES (1, 1, 'of one'), (2, 2, 'of two'); UPDATE docs SET text = text || '!'")
        .await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert!(frames.len() == 2 && frames.iter().all(|frame| frame.text.contains("of one")), "{frames:?}");
}

#[tokio::test]
async fn the_relays_log_and_its_errors_hold_no_values_and_no_tokens() {
    let pg = database().await;
    pg.sql(
        "CREATE TABLE docs (user_id text, id int, text text, doc json, PRIMARY KEY (user_id, id));
         SELECT rowcast.track('docs')",
    )
    .await;
    let secret = "planted";
    let mut relay = relay_on(&pg).env("ROWCAST_LOG_LEVEL", "trace").start().await;
    let user = format!("{secret}-user");
    let jwt = token::user(&user);
    let mut device = Device::of(&relay, &user, "phone").connect().await;
    let topic = format!("user:{user}:*");
    let begun = device.subscribe(&[&topic], None).await.cursor().unwrap();
    pg.sql(&format!(
        "INSERT INTO docs VALUES ('{user}', 1, '{secret}-text', '{{\"a\":\"{secret}-json\"}}'); UPDATE docs SET text = '{secret}-text-2', id = 2;
         SELECT rowcast.broadcast('{topic}', '{secret}-event', '{{\"x\":\"{secret}-payload\"}}');",
        topic = format_args!("user:{user}:news")
    ))
    .await;
    device.until("broadcast").await;
    // DDL under way, mistakes of devices, forged messages, refused tokens and requests.
    pg.sql(&format!(
        "BEGIN; UPDATE docs SET text = '{secret}-before'; ALTER TABLE docs ALTER id TYPE int8, ADD extra text DEFAULT '{secret}-default'; UPDATE docs SET text = '{secret}-after'; COMMIT;
         ALTER TABLE docs REPLICA IDENTITY NOTHING; INSERT INTO docs VALUES ('{user}', 9, '{secret}-blocked');
         SELECT pg_logical_emit_message(true, 'rowcast', '{secret}-forged'); SELECT rowcast.tag('phone', '{secret}-correlation')"
    ))
    .await;
    device.until("sync_required").await;
    device.send_text(&format!("{{\"type\":\"subscribe\",\"topics\":[\"{secret}-topic\"]")).await;
    device.send(&json!({"type": format!("{secret}-type")})).await;
    device.send(&json!({"type": "subscribe", "topics": [format!("user:{secret}-other:*")]})).await;
    device.send(&json!({"type": "auth", "token": jwt})).await;
    device.until("granted").await;
    let mut answers = Vec::new();
    for token in [
        jwt.clone(),
        token::mint_with("another secret of at least thirty-two bytes", &json!({"sub": user, "exp": 1})),
    ] {
        let http = relay.http().with_token(&token);
        for body in [
            json!({"device_id": "d", "topics": [&topic], "cursor": begun}),
            json!({"device_id": "d", "topics": [&topic], "cursor": format!("{secret}-cursor")}),
            json!({"device_id": format!("{secret} device"), "topics": [&topic]}),
        ] {
            answers.push(http.post("/api/realtime/sync", &body).await);
        }
        answers.push(http.get(&format!("/api/realtime/sync?token={token}&topics={topic}")).await);
        answers.push(http.get(&format!("/{secret}-path?token={token}")).await);
    }
    answers.push(relay.http().get("/metrics").await);
    answers.push(relay.http().get("/ready").await);
    relay.restart().await;
    for answer in &answers {
        let (_, signature) = jwt.rsplit_once('.').unwrap();
        assert!(!answer.text().contains(signature), "a token in an answer: {}", answer.text());
        for value in ["-text", "-json", "-payload", "-blocked", "-default", "-before", "-after"] {
            let value = format!("{secret}{value}");
            assert!(answer.status == 200 || !answer.text().contains(&value), "{value} in {}", answer.text());
        }
    }
    let output = relay.output();
    assert!(
        output.iter().any(|line| line.contains("TRACE") || line.contains("DEBUG")),
        "the relay did log in detail"
    );
    let password = token::SECRET;
    let leaked: Vec<_> = output
        .iter()
        .filter(|line| {
            let values = [
                "-text",
                "-json",
                "-payload",
                "-blocked",
                "-default",
                "-before",
                "-after",
                "-forged",
                "-correlation",
                "-event",
            ];
            values.iter().any(|value| line.contains(&format!("{secret}{value}")))
                || line.contains(&jwt)
                || line.contains("eyJ")
                || line.contains(password)
        })
        .collect();
    let leaked: Vec<String> = leaked.into_iter().map(|line| line.chars().take(300).collect()).collect();
    assert!(leaked.is_empty(), "{leaked:#?}");
}

/// A token with exactly this payload, digit for digit.
fn raw_token(payload: &str) -> String {
    use jsonwebtoken::crypto::sign;
    use jsonwebtoken::{Algorithm, EncodingKey};
    let signed =
        format!("{}.{}", base64url(br#"{"alg":"HS256","typ":"JWT"}"#), base64url(payload.as_bytes()));
    let key = EncodingKey::from_secret(token::SECRET.as_bytes());
    let signature = sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{signed}.{signature}")
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit = |place: usize| char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]);
        text.extend((0..=chunk.len()).map(digit));
    }
    text
}

async fn connect_as(pg: &TestPostgres, role: &str) -> tokio_postgres::Client {
    connect(&pg.url_as(role)).await
}
