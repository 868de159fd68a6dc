//! What must never reach a device: rows of others, columns that were not published, messages that were
//! not signed; and what must never reach the relay's log: values and tokens.

mod claims;
mod rows;
mod topics;

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
