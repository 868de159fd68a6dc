//! Senders that are slow on purpose, or send what nobody should.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ORDERS, SYNC, exchange};
use crate::support::device::Device;
use crate::support::scene::scene;
use crate::support::token;
use crate::support::wait::within;

/// Sends a byte every little while; how long the relay bears it.
async fn trickle(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let sending = async {
        let mut pause = tokio::time::interval(Duration::from_millis(500));
        loop {
            pause.tick().await;
            if writer.write_all(b"X").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    within("a slow sender is cut off", async {
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => {}
            () = sending => {}
        }
    })
    .await;
    begun.elapsed()
}

#[tokio::test]
async fn who_sends_a_head_byte_by_byte_is_cut_off() {
    let (_pg, relay) = scene(ORDERS).await;
    let address = relay.address();
    let fresh = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ").await.unwrap();
        trickle(&mut stream).await
    };
    // Also after a request that was in order.
    let again = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 1024];
        assert!(within("an answer", stream.read(&mut answer)).await.unwrap() > 0);
        stream.write_all(b"GET /health HTTP/1.1\r\nX: ").await.unwrap();
        trickle(&mut stream).await
    };
    // A connection that is kept and says nothing, and a quiet socket, are left alone meanwhile.
    let mut kept = TcpStream::connect(address).await.unwrap();
    let ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    kept.write_all(ask).await.unwrap();
    let mut answer = [0; 1024];
    assert!(within("an answer", kept.read(&mut answer)).await.unwrap() > 0);
    let mut socket = Device::of(&relay, "42", "phone").connect().await;
    let (fresh, again) = tokio::join!(fresh, again);
    for took in [fresh, again] {
        assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(14), "{took:?}");
    }
    kept.write_all(ask).await.unwrap();
    assert!(within("an answer", kept.read(&mut answer)).await.unwrap() > 0);
    socket.send(&json!({"type": "ping"})).await;
    socket.expect("pong").await;
}

#[tokio::test]
async fn heads_beyond_reason_are_not_read() {
    let (_pg, relay) = scene(ORDERS).await;
    let address = relay.address();
    let head =
        |header: &str| format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n");
    assert!(
        exchange(address, head(&format!("X: {}", "x".repeat(40_000))).as_bytes()).await.contains("200 OK")
    );
    let answer = exchange(address, head(&format!("X: {}", "x".repeat(4_000_000))).as_bytes()).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let many: String = (0..200).map(|number| format!("X-{number}: y\r\n")).collect();
    assert!(exchange(address, head(many.trim_end()).as_bytes()).await.contains("431 "));
    // Two lengths, or a length and chunks, could hide a second request behind a proxy.
    let token = token::user("42");
    for lengths in ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 6", "Content-Length: -1"] {
        let request = format!(
            "POST {SYNC} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{lengths}\r\n\r\nhello!"
        );
        assert!(exchange(address, request.as_bytes()).await.contains(" 400 "), "{lengths}");
    }
    for garbage in [&[0_u8; 4096][..], &[0xff; 4096], b"\r\n\r\n\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let answer = exchange(address, garbage).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    relay.http().get("/health").await.expect_status(200);
}

#[tokio::test]
async fn a_body_larger_than_a_head_may_be_is_read() {
    let (_pg, relay) = scene(ORDERS).await;
    let topics = vec!["user:42:*"; 5_000];
    let answer = relay.http_as("42").post(SYNC, &json!({"device_id": "d", "topics": topics})).await;
    assert_ne!(answer.status, 413, "{}", answer.text());
    let too_large = json!({"device_id": "d", "topics": ["x".repeat(300_000)]});
    relay.http_as("42").post(SYNC, &too_large).await.expect_status(413);
}
