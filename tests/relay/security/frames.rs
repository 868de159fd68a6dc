//! WebSocket frames that are no good, byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::ORDERS;
use crate::support::device::Device;
use crate::support::scene::{listening, scene, scene_with};
use crate::support::token;
use crate::support::wait::within;

/// A socket whose frames are written by hand.
struct Raw {
    incoming: Incoming,
    writer: OwnedWriteHalf,
}

/// Its other half.
struct Incoming {
    reader: OwnedReadHalf,
    read: Vec<u8>,
}

/// What the relay sent.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Text(String),
    Pong(Vec<u8>),
    Close(u16),
    Other,
    /// The connection ended.
    Cut,
}

impl Raw {
    async fn connect(address: SocketAddr, token: Option<&str>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Not reading is felt at the other end soon.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /api/realtime/ws/raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n{authorization}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let end = loop {
            let mut part = [0; 4096];
            let length = within("the handshake's answer", stream.read(&mut part)).await.unwrap();
            read.extend_from_slice(&part[..length]);
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8(read.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        // Compressed messages are not agreed to: there is nothing to unpack.
        assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{head}");
        let (reader, writer) = stream.into_split();
        Raw { incoming: Incoming { reader, read }, writer }
    }

    /// As much of it as the relay takes.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.writer.write_all(bytes).await.is_ok()
    }

    /// How it ends when it begins with one and goes on with the other, again and again.
    async fn end_of(address: SocketAddr, token: Option<&str>, opening: Vec<u8>, then: Vec<u8>) -> Sent {
        let mut raw = Raw::connect(address, token).await;
        raw.send(&opening).await;
        let Raw { mut incoming, mut writer } = raw;
        let going_on = async {
            while !then.is_empty() && writer.write_all(&then).await.is_ok() {
                // Pieces that keep coming, and no flood: that is another test.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = incoming.end() => end.0,
            () = going_on => unreachable!(),
        }
    }
}

impl Incoming {
    async fn next(&mut self) -> Sent {
        loop {
            if let Some((opcode, payload)) = self.frame() {
                return match opcode {
                    1 => Sent::Text(String::from_utf8(payload).unwrap()),
                    10 => Sent::Pong(payload),
                    8 => Sent::Close(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))),
                    _ => Sent::Other,
                };
            }
            let mut part = [0; 4096];
            match self.reader.read(&mut part).await {
                Ok(0) | Err(_) => return Sent::Cut,
                Ok(length) => self.read.extend_from_slice(&part[..length]),
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &second) = (self.read.first()?, self.read.get(1)?);
        let (length, head) = match second & 127 {
            126 => (usize::from(u16::from_be_bytes(self.read.get(2..4)?.try_into().unwrap())), 4),
            127 => {
                (usize::try_from(u64::from_be_bytes(self.read.get(2..10)?.try_into().unwrap())).unwrap(), 10)
            }
            short => (usize::from(short), 2),
        };
        let payload = self.read.get(head..head + length)?.to_vec();
        self.read.drain(..head + length);
        Some((first & 15, payload))
    }

    /// The first text that holds this.
    async fn until(&mut self, part: &str) -> String {
        loop {
            match self.next().await {
                Sent::Text(text) if text.contains(part) => return text,
                Sent::Text(_) | Sent::Pong(_) | Sent::Other => {}
                end => panic!("{end:?} before {part}"),
            }
        }
    }

    /// How it ends, and what the last error says.
    async fn end(&mut self) -> (Sent, String) {
        let mut said = String::new();
        within("the relay gives the socket up", async {
            loop {
                match self.next().await {
                    Sent::Text(text) => {
                        if text.contains("\"error\"") {
                            said = text;
                        }
                    }
                    Sent::Pong(_) | Sent::Other => {}
                    end => return (end, said),
                }
            }
        })
        .await
    }
}

/// A masked frame with a key of zeros: bytes as they are.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

#[tokio::test]
async fn a_frame_that_breaks_the_rules_ends_its_socket_and_no_other() {
    let (_pg, relay) = scene(ORDERS).await;
    let token = token::user("42");
    let (mut quiet, _) = listening(&relay, "42", "quiet").await;
    let length = |bytes: [u8; 8]| [&[TEXT, 0xff][..], &bytes, &[0; 4]].concat();
    let cases: [(&str, Vec<u8>); 16] = [
        ("not masked", [&[TEXT, 15][..], b"{\"type\":\"ping\"}"].concat()),
        ("said to be compressed", frame(0xc1, b"{\"type\":\"ping\"}")),
        ("a reserved bit", frame(0xa1, b"{}")),
        ("another one", frame(0x91, b"{}")),
        ("a reserved kind", frame(0x83, b"{}")),
        ("a reserved control", frame(0x8b, b"")),
        ("a large ping", frame(PING, &[b'x'; 126])),
        ("a ping in pieces", frame(0x09, b"x")),
        ("a piece of nothing", frame(0x80, b"x")),
        ("a message within a message", [frame(0x01, b"{"), frame(TEXT, b"{}")].concat()),
        ("text that is no text", frame(TEXT, b"\xff\xfe")),
        ("half a character in two pieces", [frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat()),
        ("a binary message", frame(0x82, b"{}")),
        ("larger than the address space", length([0xff; 8])),
        ("a little larger than allowed", length(65_537_u64.to_be_bytes())),
        ("a close that says nothing readable", frame(0x88, b"\x03")),
    ];
    for (what, bytes) in cases {
        let mut raw = Raw::connect(relay.address(), Some(&token)).await;
        raw.send(&bytes).await;
        let (end, said) = raw.incoming.end().await;
        assert!(matches!(end, Sent::Close(4400 | 1002 | 1007) | Sent::Cut), "{what}: {end:?} {said}");
        quiet.send(&json!({"type": "ping"})).await;
        quiet.expect("pong").await;
    }
    // Pieces add up.
    let mut raw = Raw::connect(relay.address(), Some(&token)).await;
    raw.send(&frame(0x01, &[b' '; 40_000])).await;
    raw.send(&frame(0x00, &[b' '; 40_000])).await;
    let (end, said) = raw.incoming.end().await;
    assert!(end == Sent::Close(4400) && said.contains("message_too_large"), "{end:?} {said}");
}

#[tokio::test]
async fn what_the_protocol_asks_for_is_answered() {
    let (_pg, relay) = scene(ORDERS).await;
    let token = token::user("42");
    for (code, told) in [(&b"\x03\xe8bye"[..], 1000), (b"\x0f\xa1", 4001), (b"", 1005)] {
        let mut raw = Raw::connect(relay.address(), Some(&token)).await;
        raw.incoming.until("connection_established").await;
        // Control frames may stand between the pieces of a message.
        let pieces = [
            frame(0x01, b"{\"type\":"),
            frame(PING, b"are you there"),
            frame(0x00, b"\"ping\","),
            frame(PONG, b""),
            frame(0x80, b"\"ref\":7}"),
        ];
        for part in pieces.concat().chunks(5) {
            assert!(raw.send(part).await);
        }
        let pong = within("the pong", raw.incoming.next()).await;
        assert_eq!(pong, Sent::Pong(b"are you there".to_vec()));
        let answer = within("the answer", raw.incoming.until("\"pong\"")).await;
        assert!(answer.contains("\"ref\":7"), "{answer}");
        assert!(raw.send(&frame(0x88, code)).await);
        assert_eq!(raw.incoming.end().await.0, Sent::Close(told));
        assert_eq!(within("the end", raw.incoming.next()).await, Sent::Cut);
    }
}

#[tokio::test]
async fn who_never_finishes_a_message_is_given_up() {
    let impatient = |setup: crate::support::relay::Setup| {
        setup.env("ROWCAST_HEARTBEAT", "1s").env("ROWCAST_AUTH_TIMEOUT", "2s")
    };
    let (_pg, relay) = scene_with(ORDERS, impatient).await;
    let token = token::user("42");
    let half = frame(TEXT, b"{\"type\":\"ping\"}");
    let address = relay.address();
    let empty = frame(0x00, b"").repeat(200);
    let (silent, started, endless, stranger, pinging) = tokio::join!(
        Raw::end_of(address, Some(&token), half[..9].to_vec(), Vec::new()),
        Raw::end_of(address, Some(&token), half[..1].to_vec(), Vec::new()),
        Raw::end_of(address, Some(&token), frame(0x01, b"{"), empty.clone()),
        Raw::end_of(address, None, frame(0x01, b"{"), empty),
        Raw::end_of(address, None, Vec::new(), frame(PING, b"x").repeat(100)),
    );
    assert_eq!(silent, Sent::Close(4408), "half a frame");
    assert_eq!(started, Sent::Close(4408), "a byte of a frame");
    assert_eq!(endless, Sent::Close(4408), "endless pieces");
    assert_eq!(stranger, Sent::Close(4401), "endless pieces without a token");
    assert_eq!(pinging, Sent::Close(4401), "pings without a token");
}

#[tokio::test]
async fn whoever_sends_too_many_frames_is_closed() {
    let limited = |setup: crate::support::relay::Setup| setup.env("ROWCAST_RATE_LIMIT_MESSAGES", "20");
    let (_pg, relay) = scene_with(ORDERS, limited).await;
    let text = |message: serde_json::Value| frame(TEXT, message.to_string().as_bytes());
    let cases = [
        ("pings of the protocol", frame(PING, b"x")),
        ("its pongs", frame(PONG, b"x")),
        ("ping", text(json!({"type": "ping"}))),
        ("ack", text(json!({"type": "ack", "cursor": "x"}))),
        ("unsubscribe", text(json!({"type": "unsubscribe", "topics": []}))),
        ("auth", text(json!({"type": "auth", "token": token::user("auth")}))),
        ("no message at all", frame(TEXT, b"x")),
    ];
    for (what, one) in cases {
        // Each is a user, whose sockets share what is allowed.
        let token = token::user(what);
        let mut first = Raw::connect(relay.address(), Some(&token)).await;
        first.send(&one.repeat(15)).await;
        first.send(&text(json!({"type": "ping", "ref": "all taken"}))).await;
        let pong = within("the pong", first.incoming.until("all taken")).await;
        assert!(pong.contains(r#""type":"pong""#), "{what}: {pong}");
        let mut second = Raw::connect(relay.address(), Some(&token)).await;
        second.send(&one.repeat(5)).await;
        let (end, said) = second.incoming.end().await;
        assert_eq!(end, Sent::Close(4429), "{what}: {said}");
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&said["code"], &said["retryable"]), (&json!("rate_limited"), &json!(true)), "{what}");
        // At most a 20th of the window, and at least a 100th.
        assert!((9_000..=45_000).contains(&said["retry_after_ms"].as_u64().unwrap()), "{what}: {said}");
    }
    let limited = relay.metric(r#"rowcast_rate_limited_total{bucket="messages"}"#).await;
    assert_eq!(limited, Some(7.0));
    let (mut other, _) = listening(&relay, "42", "phone").await;
    other.send(&json!({"type": "ping"})).await;
    other.expect("pong").await;
}

/// Also where nothing limits how many there are.
#[tokio::test]
async fn floods_cost_their_own_socket() {
    let impatient = |setup: crate::support::relay::Setup| setup.env("ROWCAST_HEARTBEAT", "1s");
    let (pg, relay) = scene_with(ORDERS, impatient).await;
    let token = token::user("7");
    let before = relay.memory_kib("VmRSS");
    let floods = [
        frame(PING, &[b'p'; 125]).repeat(500),
        frame(TEXT, b"x").repeat(500),
        frame(TEXT, b"{\"type\":\"ping\"}").repeat(300),
        frame(
            TEXT,
            format!("{{\"type\":\"subscribe\",\"topics\":[{}]}}", vec!["\"a\""; 400].join(",")).as_bytes(),
        )
        .repeat(10),
        frame(
            TEXT,
            format!("{{\"type\":\"unsubscribe\",\"topics\":[{}]}}", vec!["\"user:7:a\""; 4000].join(","))
                .as_bytes(),
        ),
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for flood in floods {
        // One that reads nothing, and one that reads what comes.
        for reads in [false, true] {
            let (address, token, flood) = (relay.address(), token.clone(), flood.clone());
            tasks.spawn(async move {
                let mut raw = Raw::connect(address, Some(&token)).await;
                let writing = async { while raw.writer.write_all(&flood).await.is_ok() {} };
                let reading = async {
                    let mut sink = vec![0; 64 * 1024];
                    while reads && raw.incoming.reader.read(&mut sink).await.is_ok_and(|length| length > 0) {}
                    std::future::pending::<()>().await;
                };
                tokio::select! { () = writing => {}, () = reading => {} }
            });
        }
    }
    let (mut device, _) = listening(&relay, "42", "phone").await;
    for id in 0..20 {
        pg.sql(&format!("INSERT INTO orders VALUES ({id}, 42)")).await;
        device.change().await;
    }
    let grown = relay.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 192 * 1024, "{grown} KiB more");
    // Those that read nothing are closed; the others go on until they are ended here.
    let given_up = async {
        for _ in 0..5 {
            tasks.join_next().await.unwrap().unwrap();
        }
    };
    // The machine is busy with the others.
    let given_up = tokio::time::timeout(Duration::from_secs(90), given_up).await;
    assert!(given_up.is_ok(), "those that read nothing go on");
    tasks.shutdown().await;
    Device::of(&relay, "7", "again").connect().await;
}
