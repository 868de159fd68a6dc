//! Rights that change while sessions are open: grants that rows make, and revoked tokens.

mod revoked;
mod rows;
mod seam;
mod tables;

use serde_json::{Value, json};

use crate::support::device::Device;
use crate::support::postgres::TestPostgres;
use crate::support::relay::Relay;
use crate::support::scene::frames_until_now;
use crate::support::stage::{database, relay_on};

/// Team data and memberships; ann is in team 7 before the relay is there.
const TEAMS: &str = "
    CREATE TABLE team_members (id int PRIMARY KEY, team_id text, user_id text, note text);
    CREATE TABLE tasks (team_id text, id int, title text, PRIMARY KEY (team_id, id));
    CREATE TABLE notes (user_id text, id int, PRIMARY KEY (user_id, id));
    INSERT INTO team_members VALUES (1, '7', 'ann');
    SELECT rowcast.track('tasks', topics => ARRAY['team:{team_id}:tasks']);
    SELECT rowcast.track('notes');";
const GRANT: &str = "SELECT rowcast.grant_by('team_members', 'user_id', 'team:{team_id}:*')";

async fn stage() -> (TestPostgres, Relay) {
    let pg = database().await;
    pg.sql(TEAMS).await;
    pg.sql(GRANT).await;
    let relay = relay_on(&pg).start().await;
    (pg, relay)
}

/// A device that reads its user's topics and these.
async fn member(relay: &Relay, user: &str, topics: &[&str]) -> Device {
    let mut device = Device::of(relay, user, "phone").connect().await;
    device.subscribe(&[&format!("user:{user}:*")], None).await;
    for topic in topics {
        device.subscribe(&[topic], None).await;
    }
    device
}

/// What came until now in short: changes as `INSERT team:7:tasks`, other frames as `revoked team:7:*`.
async fn heard(pg: &TestPostgres, device: &mut Device, user: &str) -> Vec<String> {
    let frames = frames_until_now(pg, device, &format!("user:{user}")).await;
    let line = |frame: &crate::support::frame::Frame| {
        let json = frame.json();
        match frame.change() {
            Some(change) => format!("{} {}", change.operation, change.topic),
            None => {
                let topics = json["topics"].as_array().into_iter().flatten();
                let topics: Vec<&str> = topics.filter_map(Value::as_str).collect();
                format!("{} {}", frame.kind, topics.join(" "))
            }
        }
    };
    frames.iter().map(line).collect()
}

/// The status of a sync of these topics, and its code where it is refused.
async fn sync(relay: &Relay, user: &str, topic: &str) -> (u16, String) {
    let body = json!({"device_id": "rest", "topics": [topic], "last_sync_timestamp": 4_000_000_000_000_i64});
    let answer = relay.http_as(user).post("/api/realtime/sync", &body).await;
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

/// Whether REST lets a user read a topic now. The time that is asked for lies in the future, which is
/// refused as well, but later.
async fn may_sync(relay: &Relay, user: &str, topic: &str) -> bool {
    match sync(relay, user, topic).await {
        (403, code) if code == "not_granted" => false,
        (200 | 409, _) => true,
        other => panic!("{other:?}"),
    }
}

async fn grant_problems(pg: &TestPostgres) -> Vec<String> {
    let rows = pg
        .query_text("SELECT problem FROM rowcast.status WHERE part = 'grant' AND problem IS NOT NULL")
        .await;
    rows.into_iter().filter_map(|mut row| row.remove(0)).collect()
}
