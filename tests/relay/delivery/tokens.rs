//! Who may connect and for how long.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::device::{Device, Incoming};
use crate::support::scene::{changes_until_now, frames_until_now, listening, scene, scene_with, told};
use crate::support::token;

const ORDERS: &str = "
    CREATE TABLE orders (user_id int, id int, PRIMARY KEY (user_id, id)); SELECT rowcast.track('orders');
    CREATE TABLE tasks (team_id int, id int, PRIMARY KEY (team_id, id));
    SELECT rowcast.track('tasks', topics => ARRAY['team:{team_id}:tasks']);";
const FAR_FUTURE: i64 = 4_102_444_800;

fn in_seconds(seconds: u64) -> (i64, SystemTime) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let at = now + seconds;
    (i64::try_from(at).unwrap(), UNIX_EPOCH + Duration::from_secs(at))
}

#[tokio::test]
async fn a_token_that_expires_closes_its_session_at_that_moment() {
    let (pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_JWT_LEEWAY", "0s")).await;
    let (exp, at) = in_seconds(3);
    let mut short = Device::of(&relay, "1", "phone").token(&token::user_until("1", exp)).connect().await;
    let mut renewed = Device::of(&relay, "1", "tablet").token(&token::user_until("1", exp)).connect().await;
    short.subscribe(&["user:1:*"], None).await;
    renewed.subscribe(&["user:1:*"], None).await;
    renewed.send(&json!({"type": "auth", "ref": "r", "token": token::user("1")})).await;
    let granted = renewed.expect("granted").await.json();
    assert_eq!(granted, json!({"type": "granted", "ref": "r", "topics": ["global:*", "user:1:*"]}));
    let close = short.expect_close().await;
    let late = SystemTime::now().duration_since(at).expect("not closed before the token is over");
    assert_eq!(close, (4401, "token_expired".to_owned()));
    assert!(late < Duration::from_secs(2), "closed {late:?} late");
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    assert_eq!(changes_until_now(&pg, &mut renewed, "user:1").await.len(), 1);
}

#[tokio::test]
async fn a_new_token_takes_away_what_it_does_not_grant() {
    let (pg, relay) =
        scene_with(ORDERS, |setup| setup.env("ROWCAST_GRANTS", "user:{sub}:*,team:{teams}:*")).await;
    let with = |teams| token::mint(&json!({"sub": "1", "exp": FAR_FUTURE, "teams": teams}));
    let mut device = Device::of(&relay, "1", "phone").token(&with(json!([7, 8]))).connect().await;
    let topics = ["user:1:*", "team:7:*", "team:8:tasks"];
    let cursor = device.subscribe(&topics, None).await.cursor().unwrap();
    pg.sql("INSERT INTO tasks VALUES (7, 1), (8, 1)").await;
    assert_eq!(device.changes(2).await.len(), 2);
    device.send(&json!({"type": "auth", "token": with(json!([8]))})).await;
    assert_eq!(device.expect("revoked").await.json()["topics"], json!(["team:7:*"]));
    assert_eq!(device.expect("granted").await.json()["topics"], json!(["team:8:*", "user:1:*"]));
    pg.sql("INSERT INTO tasks VALUES (7, 2), (8, 2)").await;
    let lines = told(&changes_until_now(&pg, &mut device, "user:1").await);
    assert_eq!(lines, [r#"INSERT team:8:tasks {"team_id":8,"id":2} last"#]);
    device.send(&json!({"type": "subscribe", "topics": ["team:7:*"], "cursor": cursor})).await;
    device.expect_error("not_granted").await;
    // What a renewed token grants anew can be subscribed.
    device.send(&json!({"type": "auth", "token": with(json!([7]))})).await;
    assert_eq!(device.expect("revoked").await.json()["topics"], json!(["team:8:tasks"]));
    device.expect("granted").await;
    device.subscribe(&["team:7:*"], None).await;
}

#[tokio::test]
async fn a_new_token_of_another_user_or_a_bad_one_ends_the_session() {
    let (_pg, relay) = scene(ORDERS).await;
    let (mut one, _) = listening(&relay, "1", "phone").await;
    one.send(&json!({"type": "auth", "token": token::user("2")})).await;
    assert_eq!(one.expect_close().await.0, 4403);
    for (bad, code) in [
        (token::user_until("1", 1_000_000_000), "token_expired"),
        (
            token::mint_with("another secret of at least 32 bytes", &json!({"sub": "1", "exp": FAR_FUTURE})),
            "token_invalid",
        ),
        ("no token".to_owned(), "token_invalid"),
        (token::mint(&json!({"sub": "1", "exp": FAR_FUTURE, "nbf": FAR_FUTURE - 1})), "token_not_yet_valid"),
        (token::mint(&json!({"sub": "1"})), "token_invalid"),
    ] {
        let (mut one, _) = listening(&relay, "1", "phone").await;
        one.send(&json!({"type": "auth", "token": bad})).await;
        one.expect_error(code).await;
        assert_eq!(one.expect_close().await, (4401, code.to_owned()));
        let mut first =
            Device::of(&relay, "1", "phone").token(&bad.replace(' ', "-")).try_connect().await.unwrap();
        first.expect_error(code).await;
        assert_eq!(first.expect_close().await, (4401, code.to_owned()));
    }
}

#[tokio::test]
async fn a_socket_without_a_token_may_only_send_one() {
    let (pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_AUTH_TIMEOUT", "400ms")).await;
    let connect = || Device::of(&relay, "1", "phone").without_token().try_connect();
    let mut late = connect().await.unwrap();
    let begun = Instant::now();
    late.expect_error("token_missing").await;
    assert_eq!(late.expect_close().await, (4401, "token_missing".to_owned()));
    assert!(begun.elapsed() >= Duration::from_millis(350), "closed after {:?}", begun.elapsed());

    let mut eager = connect().await.unwrap();
    eager.send(&json!({"type": "subscribe", "topics": ["global:*"]})).await;
    eager.expect_error("token_missing").await;
    assert_eq!(eager.expect_close().await.0, 4401);

    let mut large = connect().await.unwrap();
    large.send(&json!({"type": "auth", "token": "x".repeat(20_000)})).await;
    match large.incoming().await {
        Incoming::Frame(frame) => assert_eq!(frame.kind, "error", "{}", frame.text),
        Incoming::Closed(close) => assert_eq!(close.unwrap().0, 4401),
    }

    let mut good = connect().await.unwrap();
    good.send(&json!({"type": "auth", "token": token::user("1")})).await;
    assert_eq!(good.expect("connection_established").await.json()["user_id"], "1");
    good.subscribe(&["user:1:*"], None).await;
    pg.sql("INSERT INTO orders VALUES (1, 1)").await;
    let frames = frames_until_now(&pg, &mut good, "user:1").await;
    assert_eq!(frames.len(), 1);
}
