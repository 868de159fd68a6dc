//! Bodies and messages that no app would send: deep, wide, huge, broken, packed.

use serde_json::json;

use super::{ORDERS, SYNC};
use crate::support::device::Device;
use crate::support::http::Response;
use crate::support::relay::Relay;
use crate::support::scene::{scene, scene_with};
use crate::support::token;

const ENDPOINTS: [&str; 6] = [
    SYNC,
    "/api/sync/poll",
    "/api/realtime/events",
    "/api/realtime/ticket",
    "/api/sync/send",
    "/api/sync/broadcast",
];

/// Deeper than any stack bears, in as many bytes as a message may have.
const DEPTH: usize = 30_000;

/// Where a value can stand that a parser has to walk through.
fn hostile_texts() -> Vec<String> {
    let arrays = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}1{}", "{\"a\":".repeat(DEPTH / 3), "}".repeat(DEPTH / 3));
    let digits = "9".repeat(60_000);
    let mut values = vec![
        arrays,
        "[".repeat(60_000),
        objects,
        "{\"a\":".repeat(10_000),
        digits.clone(),
        format!("-{digits}.{}", &digits[..5_000]),
        "1e999999999".to_owned(),
        "-1e-999999999".to_owned(),
        "-0".to_owned(),
        "18446744073709551616".to_owned(),
        format!("\"{}\"", "\\u0000".repeat(10_000)),
        "\"\\ud800\"".to_owned(),
        "\"\\udc00\\ud800\"".to_owned(),
        format!("\"{}\"", "\u{202e}".repeat(20_000)),
        "NaN".to_owned(),
        "Infinity".to_owned(),
        "'single'".to_owned(),
        "01".to_owned(),
        "+1".to_owned(),
        "\"tab\tinside\"".to_owned(),
        "/* comment */ 1".to_owned(),
    ];
    values.push(format!("[{}]", vec!["null"; 12_000].join(",")));
    let mut texts = values.clone();
    for field in [
        "x",
        "device_id",
        "topics",
        "tables",
        "cursor",
        "since",
        "wait",
        "limit",
        "payload",
        "type",
        "ref",
        "token",
    ] {
        for value in &values {
            texts.push(format!("{{\"type\":\"ping\",\"device_id\":\"d\",\"topics\":[\"user:42:*\"],\"wait\":0,\"{field}\":{value}}}"));
        }
    }
    let wide: Vec<String> = (0..4_000).map(|number| format!("\"k{number}\":{number}")).collect();
    texts.push(format!("{{{}}}", wide.join(",")));
    texts.push(
        "{\"device_id\":\"d\",\"device_id\":\"e\",\"topics\":[],\"topics\":[\"user:42:*\"]}".to_owned(),
    );
    texts.push("{\"type\":\"ping\",\"type\":\"subscribe\"}".to_owned());
    for text in
        ["", " ", "null", "true", "1", "\"x\"", "[]", "{", "}", "{}{}", "\u{feff}{}", "\u{0}", "{\"type\":"]
    {
        texts.push(text.to_owned());
    }
    texts.retain(|text| text.len() <= 65_536);
    texts
}

/// The relay's own answer, whatever it says; never a failure of its own.
fn assert_answered(answer: &Response, what: &str) {
    let what: String = what.chars().take(120).collect();
    // A poll that is understood waits.
    let waited = answer.status == 503 && answer.json()["code"] == "timeout" && what.contains("poll");
    assert!(answer.status < 500 || waited, "{} for {what}: {}", answer.status, answer.text());
    if answer.status >= 400 {
        assert_eq!(answer.headers.get("content-type"), Some("application/problem+json"), "{what}");
        assert!(answer.body.len() < 1024, "an answer repeats what was sent: {what}");
    }
}

async fn alive(relay: &Relay) {
    relay.http().get("/health").await.expect_status(200);
}

#[tokio::test]
async fn no_body_breaks_an_endpoint() {
    let (_pg, relay) = scene_with(ORDERS, |setup| {
        setup.env("ROWCAST_ADMIN_CLAIM", "role=admin").env("ROWCAST_REQUEST_TIMEOUT", "2s")
    })
    .await;
    let admin = token::mint(&json!({"sub": "42", "role": "admin", "exp": 4_000_000_000_u32}));
    let http = relay.http().with_token(&admin);
    let texts = hostile_texts();
    for endpoint in ENDPOINTS {
        let post = |body: Vec<u8>| {
            http.request("POST", endpoint).header("content-type", "application/json").body(body)
        };
        // Those that stand for all go everywhere; the rest, to keep it quick, to the one with most fields.
        let chosen =
            texts.iter().enumerate().filter(|(place, _)| endpoint == SYNC || place % 7 == 0 || *place < 12);
        for (_, text) in chosen {
            let open = post(text.as_bytes().to_vec()).open().await;
            // A stream that was opened says so by its status alone.
            if open.status == 200 && endpoint == "/api/realtime/events" {
                continue;
            }
            drop(open);
            let answer = post(text.as_bytes().to_vec()).send().await;
            assert_answered(&answer, &format!("{endpoint} {text}"));
        }
        for bytes in
            [&b"\xff\xfe{\0}\0"[..], b"{\"device_id\":\"\xc3\x28\"}", b"{\"\xed\xa0\x80\":1}", b"\x80"]
        {
            assert_answered(&post(bytes.to_vec()).send().await, endpoint);
        }
    }
    alive(&relay).await;
}

#[tokio::test]
async fn packed_bodies_are_not_unpacked() {
    let (_pg, relay) = scene(ORDERS).await;
    // 64 MiB of blanks before an object, in some 64 KiB; as far as anyone here is concerned, no JSON.
    let packed =
        [(0x1f_u8, 0x8b_u8, "gzip"), (0x28, 0xb5, "zstd"), (0x78, 0x9c, "deflate"), (0x0b, 0x02, "br")];
    for (first, second, encoding) in packed {
        let mut body = vec![first, second];
        body.resize(60_000, 0);
        for encoding in [encoding.to_owned(), format!("{encoding}, {encoding}"), format!("x-{encoding}")] {
            let request = relay.http_as("42").request("POST", SYNC).header("content-encoding", &encoding);
            let answer = request.body(body.clone()).send().await;
            assert_eq!(answer.status, 415, "{encoding}: {}", answer.text());
            assert_eq!(answer.json()["code"], "invalid_request");
        }
    }
    // It says nothing.
    let plain = json!({"device_id": "d", "topics": ["user:42:*"]});
    let request = relay.http_as("42").request("POST", SYNC).header("content-encoding", "identity");
    request.json(&plain).send().await.expect_status(200);
}

#[tokio::test]
async fn no_message_breaks_a_session() {
    let (_pg, relay) = scene(ORDERS).await;
    let mut device = Device::of(&relay, "42", "phone").connect().await;
    for (number, text) in hostile_texts().iter().enumerate() {
        device.send_text(text).await;
        if number % 50 == 0 {
            device.send(&json!({"type": "ping", "ref": number})).await;
            loop {
                let frame = device.recv().await;
                assert!(frame.text.len() < 1024, "an answer repeats what was sent: {}", &frame.text[..200]);
                if frame.kind == "pong" && frame.json()["ref"] == number {
                    break;
                }
            }
        }
    }
    // The same as the first message of a socket: nobody gets in.
    for text in hostile_texts().iter().step_by(9) {
        let mut stranger = Device::of(&relay, "42", "phone").without_token().try_connect().await.unwrap();
        stranger.send_text(text).await;
        assert_eq!(stranger.expect_close().await.0, 4401, "{}", &text[..text.len().min(100)]);
    }
    alive(&relay).await;
}
