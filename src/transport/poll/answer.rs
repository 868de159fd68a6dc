//! A poll's answer: what of the messages fits into it, and how it is written. Pure.

use std::io::Write as _;

use serde::Deserialize;

use crate::cursor::Cursor;
use crate::json::write_string;
use crate::timestamp::PgTimestamp;
use crate::transport::session::Frame;

/// Frames of a session's own book-keeping. A poll has none.
const BOOK_KEEPING: [&str; 4] = ["connection_established", "subscribed", "replay_begin", "caught_up"];

/// Whether a frame is told to who polls.
pub(super) fn is_message(frame: &Frame) -> bool {
    !BOOK_KEEPING.contains(&frame.kind())
}

/// How many messages an answer keeps of more than fit: so many that it ends where a transaction does, if
/// it can; at least one.
pub(super) fn cut(messages: &[Frame], limit: usize, max_bytes: usize) -> usize {
    let mut bytes = 0;
    let fit = messages.iter().take(limit).take_while(|frame| {
        bytes += frame.json.len();
        bytes <= max_bytes
    });
    let fit = fit.count().max(1).min(messages.len());
    let commit = |place: usize| messages.get(place).and_then(|frame| frame.at).map(|at| at.position.commit);
    let within = |end: &usize| commit(*end).is_some() && commit(*end - 1) == commit(*end);
    (1..=fit).rev().find(|end| !within(end)).unwrap_or(fit)
}

/// One answer.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) messages: Vec<Frame>,
    /// None where the device has to sync all of its topics first.
    pub(super) cursor: Option<Cursor>,
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<i64>,
}

impl Page {
    pub(super) fn to_json(&self, user: &str) -> Vec<u8> {
        let size: usize = self.messages.iter().map(|frame| frame.json.len() + 256).sum();
        let mut out = Vec::with_capacity(size + 256);
        let now = PgTimestamp::now().unix_micros();
        let mut cursor = self.cursor;
        out.extend_from_slice(b"{\"success\":true,\"messages\":[");
        for (place, frame) in self.messages.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            if let (Some(at), Some(cursor)) = (frame.at, &mut cursor) {
                cursor.position = at.position;
            }
            out.extend_from_slice(b"{\"id\":");
            write_string(&id(frame, cursor), &mut out);
            out.extend_from_slice(b",\"type\":");
            write_string(frame.kind(), &mut out);
            out.extend_from_slice(b",\"payload\":");
            out.extend_from_slice(&frame.json);
            let micros = frame.at.and_then(|at| at.committed_at).unwrap_or(now);
            // Writing to memory cannot fail.
            let _ = write!(out, ",\"timestamp\":{},\"userId\":", micros.div_euclid(1_000));
            write_string(user, &mut out);
            out.push(b'}');
        }
        out.extend_from_slice(b"],\"timestamp\":");
        let timestamp = self.timestamp.map_or_else(|| "null".to_owned(), |time| time.to_string());
        let cursor = self.cursor.map_or_else(|| "null".to_owned(), |cursor| format!("\"{cursor}\""));
        let _ = write!(out, "{timestamp},\"cursor\":{cursor},\"count\":{}}}", self.messages.len());
        out
    }
}

/// A broadcast has one of its own; of anything else it is the cursor.
fn id(frame: &Frame, cursor: Option<Cursor>) -> String {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    let own = match frame.kind() {
        "broadcast" => serde_json::from_slice(&frame.json).ok().map(|Named { id }| id),
        _ => None,
    };
    own.or_else(|| cursor.map(|cursor| cursor.to_string())).unwrap_or_default()
}
