//! Which topics a row has: none, special values, several, and several that one session reads.

use serde_json::json;

use super::assert_replays;
use crate::support::device::Device;
use crate::support::relay::Relay;
use crate::support::scene::{
    changes_of, changes_until_now, frames_until_now, listening, scene, scene_with, told,
};
use crate::support::token;

#[tokio::test]
async fn a_row_without_an_owner_reaches_nobody() {
    let (pg, relay) = scene(
        "CREATE TABLE numbered (id int PRIMARY KEY, user_id int);
         CREATE TABLE named (id int PRIMARY KEY, user_id text);
         SELECT rowcast.track('numbered'); SELECT rowcast.track('named');",
    )
    .await;
    let (mut one, cursor) = listening(&relay, "1", "phone").await;
    pg.sql("INSERT INTO numbered VALUES (1, NULL); INSERT INTO named VALUES (1, NULL), (2, '')").await;
    pg.sql("UPDATE numbered SET id = 2; UPDATE named SET id = id + 10").await;
    pg.sql("UPDATE numbered SET user_id = 1").await;
    pg.sql("UPDATE numbered SET user_id = NULL").await;
    pg.sql("UPDATE named SET user_id = '1' WHERE user_id = ''").await;
    pg.sql("UPDATE named SET user_id = '' WHERE user_id = '1'").await;
    pg.sql("DELETE FROM numbered; DELETE FROM named").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:numbered {"id":2,"user_id":1} last"#,
            r#"DELETE user:1:numbered {"id":2} last"#,
            r#"INSERT user:1:named {"id":12,"user_id":"1"} last"#,
            r#"DELETE user:1:named {"id":12} last"#,
        ]
    );
    assert_replays(&relay, "1", &cursor, &frames).await;
}

#[tokio::test]
async fn a_value_never_becomes_a_separator_or_a_wildcard() {
    let (pg, relay) = scene(
        r#"CREATE TABLE "no:tes" (id int PRIMARY KEY, user_id text); SELECT rowcast.track('"no:tes"');"#,
    )
    .await;
    let odd = "a:b*%\u{e9} \u{1f600}";
    let mut odd_one = Device::of(&relay, odd, "phone").connect().await;
    let audience = "user:a%3Ab%2A%25\u{e9} \u{1f600}";
    odd_one.subscribe(&[&format!("{audience}:no%3Ates"), &format!("{audience}:mark")], None).await;
    let (mut plain, _) = listening(&relay, "a", "phone").await;
    pg.sql(&format!("INSERT INTO \"no:tes\" VALUES (1, '{odd}'), (2, '*'), (3, 'a:*'), (4, 'A'), (5, ' a')"))
        .await;
    let lines = told(&changes_until_now(&pg, &mut odd_one, audience).await);
    assert_eq!(lines, [format!("INSERT {audience}:no%3Ates {{\"id\":1,\"user_id\":\"{odd}\"}} last")]);
    assert!(changes_until_now(&pg, &mut plain, "user:a").await.is_empty());
}

#[tokio::test]
async fn a_message_is_told_to_sender_and_recipient_once_each() {
    let (pg, relay) = scene(
        "CREATE TABLE messages (id int PRIMARY KEY, sender_id int, recipient_id int, body text);
         SELECT rowcast.track('messages', topics => ARRAY['user:{sender_id}:messages', 'user:{recipient_id}:messages']);",
    )
    .await;
    let (mut one, from) = listening(&relay, "1", "phone").await;
    let (mut two, _) = listening(&relay, "2", "phone").await;
    let (mut three, _) = listening(&relay, "3", "phone").await;
    pg.sql("INSERT INTO messages VALUES (1, 1, 2, 'hello')").await;
    pg.sql("INSERT INTO messages VALUES (2, 1, 1, 'to myself')").await;
    pg.sql("UPDATE messages SET recipient_id = 3 WHERE id = 1").await;
    pg.sql("UPDATE messages SET body = 'still me' WHERE id = 2").await;
    pg.sql("UPDATE messages SET sender_id = 3, recipient_id = 1 WHERE id = 1").await;
    pg.sql("DELETE FROM messages WHERE id = 2").await;
    let frames = frames_until_now(&pg, &mut one, "user:1").await;
    assert_eq!(
        told(&changes_of(&frames)),
        [
            r#"INSERT user:1:messages {"id":1,"sender_id":1,"recipient_id":2,"body":"hello"} last"#,
            r#"INSERT user:1:messages {"id":2,"sender_id":1,"recipient_id":1,"body":"to myself"} last"#,
            r#"UPDATE user:1:messages {"id":1,"sender_id":1,"recipient_id":3,"body":"hello"} last"#,
            r#"UPDATE user:1:messages {"id":2,"sender_id":1,"recipient_id":1,"body":"still me"} last"#,
            r#"UPDATE user:1:messages {"id":1,"sender_id":3,"recipient_id":1,"body":"hello"} last"#,
            r#"DELETE user:1:messages {"id":2} last"#,
        ]
    );
    assert_replays(&relay, "1", &from, &frames).await;
    assert_eq!(
        told(&changes_until_now(&pg, &mut two, "user:2").await),
        [
            r#"INSERT user:2:messages {"id":1,"sender_id":1,"recipient_id":2,"body":"hello"} last"#,
            r#"DELETE user:2:messages {"id":1} last"#,
        ]
    );
    assert_eq!(
        told(&changes_until_now(&pg, &mut three, "user:3").await),
        [
            r#"INSERT user:3:messages {"id":1,"sender_id":1,"recipient_id":3,"body":"hello"} last"#,
            r#"UPDATE user:3:messages {"id":1,"sender_id":3,"recipient_id":1,"body":"hello"} last"#,
        ]
    );
}

#[tokio::test]
async fn a_session_in_several_audiences_of_a_row_sees_it_as_one() {
    let (pg, relay) = scene_with(
        "CREATE TABLE tasks (id int PRIMARY KEY, user_id int, team_id int, note text);
         SELECT rowcast.track('tasks', topics => ARRAY['user:{user_id}:tasks', 'team:{team_id}:tasks']);",
        |setup| setup.env("ROWCAST_GRANTS", "user:{sub}:*,global:*,team:{teams}:*"),
    )
    .await;
    let token = token::mint(&json!({"sub": "1", "exp": 4_102_444_800_i64, "teams": [7, 8]}));
    let connect = |device| Device::of(&relay, "1", device).token(&token);
    let mut both = connect("both").connect().await;
    let both_topics = ["user:1:*", "team:7:tasks", "team:8:*"];
    let cursor = both.subscribe(&both_topics, None).await.cursor().unwrap();
    let mut team = connect("team").connect().await;
    team.subscribe(&["team:7:tasks", "user:1:mark"], None).await;
    pg.sql("INSERT INTO tasks VALUES (1, 1, 7, 'a')").await;
    pg.sql("UPDATE tasks SET team_id = 8").await;
    pg.sql("UPDATE tasks SET user_id = 2").await;
    pg.sql("UPDATE tasks SET team_id = 9, note = 'b'").await;
    pg.sql("UPDATE tasks SET user_id = 1, team_id = 7").await;
    pg.sql("UPDATE tasks SET user_id = NULL, team_id = 7, note = 'c'").await;
    pg.sql("TRUNCATE tasks").await;
    let frames = frames_until_now(&pg, &mut both, "user:1").await;
    let without_topic = |line: String| {
        let mut words: Vec<&str> = line.split(' ').collect();
        words.remove(1);
        words.join(" ")
    };
    let lines: Vec<String> = told(&changes_of(&frames)).into_iter().map(without_topic).collect();
    assert_eq!(
        lines,
        [
            r#"INSERT {"id":1,"user_id":1,"team_id":7,"note":"a"} last"#,
            r#"UPDATE {"id":1,"user_id":1,"team_id":8,"note":"a"} last"#,
            r#"UPDATE {"id":1,"user_id":2,"team_id":8,"note":"a"} last"#,
            r#"DELETE {"id":1} last"#,
            r#"INSERT {"id":1,"user_id":1,"team_id":7,"note":"b"} last"#,
            r#"UPDATE {"id":1,"user_id":null,"team_id":7,"note":"c"} last"#,
            r#"TRUNCATE last"#,
        ]
    );
    // Merged from the log as it was merged live.
    let mut late = connect("late").connect().await;
    let mut again = crate::support::scene::replayed(&mut late, &both_topics, &cursor).await;
    again.retain(|frame| frame.kind != "broadcast");
    let texts =
        |frames: &[crate::support::frame::Frame]| frames.iter().map(|f| f.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&again), texts(&frames));
    assert_eq!(
        told(&changes_until_now(&pg, &mut team, "user:1").await),
        [
            r#"INSERT team:7:tasks {"id":1,"user_id":1,"team_id":7,"note":"a"} last"#,
            r#"DELETE team:7:tasks {"id":1} last"#,
            r#"INSERT team:7:tasks {"id":1,"user_id":1,"team_id":7,"note":"b"} last"#,
            r#"UPDATE team:7:tasks {"id":1,"user_id":null,"team_id":7,"note":"c"} last"#,
            "TRUNCATE team:7:tasks last",
        ]
    );
    only_other_topics_are_refused(&relay, &token).await;
}

async fn only_other_topics_are_refused(relay: &Relay, token: &str) {
    let mut device = Device::of(relay, "1", "asking").token(token).connect().await;
    device
        .send(&json!({"type": "subscribe", "ref": 1, "topics": ["team:9:tasks", "team:8:tasks", "user:2:*"]}))
        .await;
    for topic in ["team:9:tasks", "user:2:*"] {
        let error = device.expect_error("not_granted").await;
        assert_eq!((&error["topic"], &error["ref"]), (&json!(topic), &json!(1)));
    }
    assert_eq!(device.expect("subscribed").await.json()["topics"], json!(["team:8:tasks"]));
}
