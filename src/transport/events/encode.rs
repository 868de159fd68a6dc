//! A frame as an event: <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::cursor::Cursor;
use crate::transport::session::Frame;

/// A chunk is handed on when it is this large.
const CHUNK_BYTES: usize = 64 * 1024;

/// Events that were written, in chunks.
#[derive(Debug, Default)]
pub(super) struct Events {
    chunks: Vec<Bytes>,
    last: BytesMut,
}

impl Events {
    /// When the reader should come back once the stream has ended. Goes with the next event.
    pub(super) fn retry(&mut self, after: Duration) {
        self.put(format!("retry: {}\n", after.as_millis()).as_bytes());
    }

    /// `id`: up to where the reader stands when it has this event.
    pub(super) fn push(&mut self, frame: &Frame, id: Option<Cursor>) {
        if let Some(cursor) = id {
            self.put(format!("id: {cursor}\n").as_bytes());
        }
        self.put(b"event: ");
        self.put(frame.kind().as_bytes());
        self.put(b"\ndata: ");
        self.data(&frame.json);
        self.put(b"\n\n");
        if self.last.len() >= CHUNK_BYTES {
            self.close();
        }
    }

    /// All chunks, in order.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.close();
        std::mem::take(&mut self.chunks)
    }

    fn data(&mut self, json: &Bytes) {
        // JSON may hold newlines between its tokens, where they say nothing.
        if json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            for (place, line) in json.split(|byte| matches!(byte, b'\n' | b'\r')).enumerate() {
                if place > 0 {
                    self.put(b"\ndata: ");
                }
                self.put(line);
            }
        } else if json.len() >= CHUNK_BYTES {
            // Shared with the other sessions that see it, however large.
            self.close();
            self.chunks.push(json.clone());
        } else {
            self.put(json);
        }
    }

    fn put(&mut self, text: &[u8]) {
        self.last.extend_from_slice(text);
    }

    fn close(&mut self) {
        if !self.last.is_empty() {
            self.chunks.push(self.last.split().freeze());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(rest: &str) -> Frame {
        format!("{{\"type\":\"pong\"{rest}}}").into()
    }

    fn text(events: &mut Events) -> String {
        String::from_utf8(events.take().concat()).unwrap()
    }

    #[test]
    fn events_are_written_as_the_standard_has_them() {
        let cursor = "00000000000000ab.00000016b374d848.00000002";
        let mut events = Events::default();
        events.retry(Duration::from_secs(2));
        events.push(&frame(""), None);
        events.push(&frame(",\"a\":\n1,\r\n\"b\":2"), cursor.parse().ok());
        assert_eq!(
            text(&mut events),
            format!(
                "retry: 2000\nevent: pong\ndata: {{\"type\":\"pong\"}}\n\n\
                 id: {cursor}\nevent: pong\ndata: {{\"type\":\"pong\",\"a\":\ndata: 1,\ndata: \ndata: \"b\":2}}\n\n"
            )
        );
        assert!(events.take().is_empty());
    }

    #[test]
    fn large_frames_are_shared_and_chunks_bounded() {
        let large = frame(&format!(",\"x\":\"{}\"", "x".repeat(CHUNK_BYTES)));
        let mut events = Events::default();
        events.push(&large, None);
        events.push(&frame(""), None);
        let chunks = events.take();
        assert_eq!(chunks[1].as_ptr(), large.json.as_ptr());
        assert!(chunks.concat().ends_with(b"x\"}\n\nevent: pong\ndata: {\"type\":\"pong\"}\n\n"));
        let half = frame(&format!(",\"x\":\"{}\"", "x".repeat(CHUNK_BYTES / 2)));
        (0..10).for_each(|_| events.push(&half, None));
        assert_eq!(events.take().len(), 5);
    }
}
