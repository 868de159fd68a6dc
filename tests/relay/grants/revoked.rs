//! Revoked tokens: refused on every path from that commit on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{heard, stage};
use crate::support::device::{Device, Incoming};
use crate::support::relay::Relay;
use crate::support::stage::{database, relay_on};
use crate::support::token;
use crate::support::wait::{PATIENCE, eventually};

const FAR_FUTURE: i64 = 4_102_444_800;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

fn issued(sub: &str, iat: i64) -> String {
    token::mint(&json!({"sub": sub, "iat": iat, "exp": FAR_FUTURE}))
}

async fn status(relay: &Relay, token: &str) -> (u16, String) {
    let body =
        json!({"device_id": "d", "topics": ["global:*"], "last_sync_timestamp": 4_000_000_000_000_i64});
    let answer = relay.http().with_token(token).post("/api/realtime/sync", &body).await;
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

fn refused() -> (u16, String) {
    (401, "token_revoked".to_owned())
}

#[tokio::test]
async fn a_revocation_closes_sessions_and_refuses_older_tokens() {
    let (pg, relay) = stage().await;
    let (old, new) = (issued("ann", now() - 60), issued("ann", now() + 60));
    let mut sessions = Vec::new();
    for (user, token) in
        [("ann", &old), ("ann", &token::user("ann")), ("ann", &new), ("bob", &issued("bob", 1))]
    {
        let mut device = Device::of(&relay, user, "phone").token(token).connect().await;
        device.subscribe(&[&format!("user:{user}:*")], None).await;
        sessions.push(device);
    }
    assert_ne!(status(&relay, &old).await, refused());
    // What the same transaction writes is not for her any more.
    pg.sql("BEGIN; INSERT INTO notes VALUES ('ann', 1), ('bob', 1); SELECT rowcast.revoke('ann'); COMMIT")
        .await;
    for device in &mut sessions[..2] {
        let error = device.expect("error").await.json();
        assert_eq!(error["code"], "token_revoked");
        assert_eq!(device.expect_close().await, (4401, "token_revoked".to_owned()));
    }
    for device in &mut sessions[2..] {
        device.change().await;
    }
    assert_eq!(status(&relay, &old).await, refused());
    assert_eq!(status(&relay, &token::user("ann")).await, refused());
    assert_ne!(status(&relay, &new).await, refused());
    let answer = relay
        .http()
        .with_token(&old)
        .request("GET", "/api/realtime/sync?device_id=d&topics=user:ann:*")
        .send()
        .await;
    assert!(answer.headers.get("www-authenticate").is_some_and(|value| value.contains("revoked")));
    // A new socket, and a new token on an open one.
    let mut again = Device::of(&relay, "ann", "phone").token(&old).try_connect().await.unwrap();
    assert_eq!(again.expect_close().await, (4401, "token_revoked".to_owned()));
    sessions[2].send(&json!({"type": "auth", "token": old})).await;
    assert_eq!(sessions[2].expect_close().await, (4401, "token_revoked".to_owned()));
    // An earlier moment takes nothing back; unrevoke does.
    pg.sql("SELECT rowcast.revoke('ann', '2020-01-01')").await;
    pg.sql("SELECT rowcast.revoke('eve', '2020-01-01')").await;
    let eve = token::user("eve");
    eventually(PATIENCE, "eve is revoked", async || (status(&relay, &eve).await == refused()).then_some(()))
        .await;
    assert_ne!(status(&relay, &issued("eve", now())).await, refused());
    assert_eq!(status(&relay, &old).await, refused());
    assert_eq!(pg.value("SELECT rowcast.unrevoke('ann')").await, "t");
    eventually(PATIENCE, "ann is back", async || (status(&relay, &old).await != refused()).then_some(()))
        .await;
    // Rolled back, it never was.
    pg.sql("BEGIN; SELECT rowcast.revoke('bob'); ROLLBACK; INSERT INTO notes VALUES ('bob', 2)").await;
    sessions[3].change().await;
}

#[tokio::test]
async fn a_session_in_the_middle_of_a_replay_ends_at_once() {
    let (pg, relay) = stage().await;
    let token = issued("ann", 1);
    let mut ann = Device::of(&relay, "ann", "phone").token(&token).small_buffer().connect().await;
    let cursor = ann.subscribe(&["user:ann:*"], None).await.cursor().unwrap();
    pg.sql("INSERT INTO tasks SELECT '7', n, repeat('x', 2000) FROM generate_series(1, 20000) n").await;
    assert_eq!(heard(&pg, &mut ann, "ann").await, Vec::<String>::new());
    ann.subscribe(&["team:7:tasks"], Some(&cursor)).await;
    ann.expect("replay_begin").await;
    ann.change().await;
    pg.sql("SELECT rowcast.revoke('ann')").await;
    // It reads nothing while the relay learns of it; then all that is left is what was on the way.
    eventually(PATIENCE, "REST refuses", async || (status(&relay, &token).await == refused()).then_some(()))
        .await;
    let mut changes = 0;
    loop {
        match ann.incoming().await {
            Incoming::Frame(frame) if frame.kind == "database_change" => changes += 1,
            Incoming::Frame(_) => {}
            Incoming::Closed(why) => {
                if let Some(why) = why {
                    assert_eq!(why, (4401, "token_revoked".to_owned()));
                }
                break;
            }
        }
    }
    assert!(changes < 18_000, "the replay went on: {changes}");
}

#[tokio::test]
async fn an_issuer_narrows_a_revocation_and_must_name_who_is_granted() {
    let pg = database().await;
    pg.sql(super::TEAMS).await;
    pg.sql(super::GRANT).await;
    let relay = relay_on(&pg)
        .env("ROWCAST_JWT_ISSUER", "https://a,https://b")
        .env("ROWCAST_GRANTS", "user:{iss}|{sub}:*,global:*")
        .start()
        .await;
    let of = |issuer| token::mint(&json!({"sub": "ann", "iss": issuer, "iat": 1, "exp": FAR_FUTURE}));
    let (a, b) = (of("https://a"), of("https://b"));
    let may = async |token: &str, topic: &str| {
        let body = json!({"device_id": "d", "topics": [topic], "last_sync_timestamp": 4_000_000_000_000_i64});
        let answer = relay.http().with_token(token).post("/api/realtime/sync", &body).await;
        answer.status != 403
    };
    // Whose ann is it? Nobody's.
    assert!(!may(&a, "team:7:*").await && !may(&b, "team:7:*").await);
    pg.sql("SELECT rowcast.grant_by('team_members', 'user_id', 'team:{team_id}:*', issuer => 'https://a')")
        .await;
    eventually(PATIENCE, "ann of a is granted", async || may(&a, "team:7:*").await.then_some(())).await;
    assert!(!may(&b, "team:7:*").await);
    pg.sql("SELECT rowcast.revoke('ann', issuer => 'https://b')").await;
    eventually(PATIENCE, "ann of b is revoked", async || {
        (status(&relay, &b).await == refused()).then_some(())
    })
    .await;
    assert_ne!(status(&relay, &a).await, refused());
    pg.sql("SELECT rowcast.revoke('ann')").await;
    eventually(PATIENCE, "every ann is revoked", async || {
        (status(&relay, &a).await == refused()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_who_is_allowed_revokes() {
    let (pg, relay) = stage().await;
    pg.sql("CREATE ROLE app LOGIN; CREATE ROLE support LOGIN; GRANT EXECUTE ON FUNCTION rowcast.revoke(text, timestamptz, text) TO support").await;
    for role in ["app", "rowcast_relay", "rowcast_writer"] {
        let refusal = pg.refusal(&format!("SET ROLE {role}; SELECT rowcast.revoke('ann')")).await;
        assert_eq!(refusal.code().code(), "42501", "{role}");
    }
    for bad in ["NULL", "''", "repeat('x', 257)", "'ann', NULL", "'ann', now(), ''"] {
        let refusal = pg.refusal(&format!("SELECT rowcast.revoke({bad})")).await;
        assert_eq!(refusal.code().code(), "22023", "{bad}");
    }
    let client = pg.client().await;
    client.batch_execute("SET ROLE support; SELECT rowcast.revoke('ann')").await.unwrap();
    let token = issued("ann", 1);
    eventually(PATIENCE, "ann is revoked", async || {
        (status(&relay, &token).await == refused()).then_some(())
    })
    .await;
    // What a DBA prunes counts no more.
    pg.sql("DELETE FROM rowcast.revocations").await;
    eventually(PATIENCE, "ann is back", async || (status(&relay, &token).await != refused()).then_some(()))
        .await;
}
