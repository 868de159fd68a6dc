//! The relay's REST side as a device uses it: one request, one answer, one connection.
//!
//! HTTP/1.0, so that an answer is neither chunked nor compressed and ends with its connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer of the demo is nearly as long.
const LONGEST_ANSWER: u64 = 16 << 20;

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// What `POST /api/realtime/sync` answers, as far as the demo looks at it.
#[derive(Debug, Deserialize)]
pub(super) struct Synced {
    pub(super) cursor: String,
    pub(super) changes: BTreeMap<String, Vec<SyncedChange>>,
    pub(super) total_changes: u64,
    pub(super) has_more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct SyncedChange {
    pub(super) operation: String,
    pub(super) key: Box<RawValue>,
    pub(super) record: Option<Box<RawValue>>,
    pub(super) topic: String,
}

/// The changes since a cursor, for a device that was away.
pub(super) async fn sync(
    address: SocketAddr,
    token: &str,
    device: &str,
    topics: &[String],
    cursor: &str,
) -> anyhow::Result<Synced> {
    let body = sync_request(device, topics, cursor).to_string();
    let head = format!(
        "POST /api/realtime/sync HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = ask(address, &(head + &body)).await?;
    if answer.status != 200 {
        bail!("POST /api/realtime/sync answered {}: {}", answer.status, answer.body);
    }
    serde_json::from_str(&answer.body)
        .with_context(|| format!("unexpected answer of a sync: {}", answer.body))
}

/// The body of a sync; also what the demo shows for curl.
pub(super) fn sync_request(device: &str, topics: &[String], cursor: &str) -> Value {
    json!({"device_id": device, "topics": topics, "cursor": cursor})
}

pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    ask(address, &format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")).await
}

async fn ask(address: SocketAddr, request: &str) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut text).await?;
    parse(&text).with_context(|| format!("this is no HTTP answer: {text}"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer = parse("HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\n{\"c\":1}").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "{\"c\":1}"));
        assert!(parse("").is_none() && parse("HTTP/1.0 x\r\n\r\n").is_none());
    }
}
