//! Bodies that never come to an end.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ORDERS, SYNC, statuses};
use crate::support::scene::scene_with;
use crate::support::token;
use crate::support::wait::within;

/// Sends a head, then the same again and again; what was answered, and how long the relay bore it.
async fn dribble(address: std::net::SocketAddr, head: String, then: &[u8]) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        while writer.write_all(then).await.is_ok() {
            // Slow on purpose, and faster than any time-out of a connection that is silent.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    within("a slow sender is cut off", async {
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => {}
            () = sending => {}
        }
    })
    .await;
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn a_request_has_so_long_to_be_there() {
    let (_pg, relay) = scene_with(ORDERS, |setup| setup.env("ROWCAST_REQUEST_TIMEOUT", "2s")).await;
    let address = relay.address();
    let head = |path: &str, token: Option<&str>, lines: &str| {
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        format!("POST {path} HTTP/1.1\r\nHost: x\r\n{authorization}{lines}\r\n\r\n")
    };
    let token = token::user("42");
    let (sized, chunked) = ("Content-Length: 60000", "Transfer-Encoding: chunked");
    let all =
        futures_util::future::join_all(
            [SYNC, "/api/sync/poll", "/api/realtime/events", "/api/sync/send"].map(|path| {
                let (sized, chunked) = (head(path, Some(&token), sized), head(path, Some(&token), chunked));
                async move {
                    tokio::join!(dribble(address, sized, b" "), dribble(address, chunked, b"1\r\n \r\n"))
                }
            }),
        );
    // Who does not say who they are is not even waited for; and a chunk can be endless by itself.
    let (answers, stranger, extension) = tokio::join!(
        all,
        dribble(address, head(SYNC, None, sized), b" "),
        dribble(address, format!("{}1;", head(SYNC, Some(&token), chunked)), b"e"),
    );
    for (answer, took) in answers.into_iter().flat_map(|(sized, chunked)| [sized, chunked]).chain([extension])
    {
        assert!([503, 400].contains(statuses(&answer).first().unwrap_or(&400)), "{answer}");
        assert!(took >= Duration::from_millis(1_900) && took < Duration::from_secs(15), "{took:?} {answer}");
    }
    assert_eq!(statuses(&stranger.0), [401]);
    // A poll may wait for as long, and one that waits longer is told to come again.
    let path = "/api/sync/poll?device_id=d&wait=1";
    relay.http_as("42").get(path).await.expect_status(200);
    let late = relay.http_as("42").get("/api/sync/poll?device_id=d&wait=20").await.expect_status(503);
    assert_eq!(late.json()["code"], "timeout");
    assert!(late.headers.get("retry-after").is_some());
}
