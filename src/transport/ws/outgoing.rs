//! Frames on their way to the socket: grouped where the device asked for it, written with a bound on
//! how long a device may take nothing.

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;

use crate::transport::protocol::Closing;
use crate::transport::session::Frame;

/// A group of changes is closed when it is this large.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_HEAD: &[u8] = b"{\"type\":\"database_changes\",\"changes\":[";
/// What may stand in a group.
const CHANGE: &str = "database_change";

#[derive(Debug)]
pub(super) struct Outgoing {
    sink: SplitSink<WebSocket, Message>,
    batch: bool,
}

impl Outgoing {
    pub(super) fn new(sink: SplitSink<WebSocket, Message>, batch: bool) -> Self {
        Outgoing { sink, batch }
    }

    /// Writes all frames. Not cancel-safe as a whole (frames that were not begun are lost), but no frame
    /// is ever torn: the socket's buffer keeps what is half written.
    pub(super) async fn send(&mut self, frames: &mut Vec<Frame>) -> Result<(), Closing> {
        if self.batch {
            *frames = grouped(std::mem::take(frames));
        }
        for Frame { json, .. } in frames.drain(..) {
            // Made by us from checked text: always UTF-8.
            let Ok(text) = Utf8Bytes::try_from(json) else { continue };
            self.sink.feed(Message::Text(text)).await.map_err(|_| Closing::Gone)?;
        }
        self.sink.flush().await.map_err(|_| Closing::Gone)
    }

    pub(super) async fn ping(&mut self) -> Result<(), Closing> {
        self.sink.send(Message::Ping(Bytes::new())).await.map_err(|_| Closing::Gone)
    }

    pub(super) async fn close(&mut self, why: Closing) {
        let frame = CloseFrame { code: why.code(), reason: why.reason().into() };
        // The device may be gone already.
        let _ = self.sink.send(Message::Close(Some(frame))).await;
    }
}

/// Runs of changes become one frame each; everything else stays as it is, in its place.
fn grouped(frames: Vec<Frame>) -> Vec<Frame> {
    let mut out = Vec::new();
    let mut group = BytesMut::new();
    let close = |group: &mut BytesMut, out: &mut Vec<Frame>| {
        if !group.is_empty() {
            group.extend_from_slice(b"]}");
            out.push(Frame { json: group.split().freeze(), at: None });
        }
    };
    for frame in frames {
        if frame.kind() != CHANGE {
            close(&mut group, &mut out);
            out.push(frame);
            continue;
        }
        if group.is_empty() {
            group.extend_from_slice(BATCH_HEAD);
        } else {
            group.extend_from_slice(b",");
        }
        group.extend_from_slice(&frame.json);
        if group.len() >= BATCH_BYTES {
            close(&mut group, &mut out);
        }
    }
    close(&mut group, &mut out);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_changes_are_grouped_in_order() {
        let change = |n: u32| Frame::from(format!("{{\"type\":\"database_change\",\"n\":{n}}}"));
        let other = Frame::from("{\"type\":\"heartbeat\"}".to_owned());
        let frames = grouped(vec![change(1), change(2), other.clone(), change(3)]);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1].json, other.json);
        let first: serde_json::Value = serde_json::from_slice(&frames[0].json).unwrap();
        assert_eq!(first["changes"].as_array().unwrap().len(), 2);
        assert_eq!(first["changes"][1]["n"], 2);
        let large =
            Frame::from(format!("{{\"type\":\"database_change\",\"n\":\"{}\"}}", "x".repeat(BATCH_BYTES)));
        assert_eq!(grouped(vec![large.clone(), large]).len(), 2);
    }
}
