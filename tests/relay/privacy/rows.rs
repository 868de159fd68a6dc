//! What leaves of a row, a message and a log line.

use super::*;

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
