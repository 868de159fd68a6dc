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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cursor::Epoch;
    use crate::lsn::Lsn;
    use crate::position::Position;
    use crate::transport::session::At;

    /// Changes by their commits; 0 is a message of no commit.
    fn messages(commits: &[u64]) -> Vec<Frame> {
        let message = |(place, commit): (usize, &u64)| {
            let position = Position::new(Lsn::new(*commit), 2 * (place as u32 + 1));
            let at = (*commit > 0).then_some(At { position, committed_at: Some(1_767_268_800_123_456) });
            Frame { json: bytes::Bytes::from_static(b"{\"type\":\"database_change\"}"), at }
        };
        commits.iter().enumerate().map(message).collect()
    }

    #[test]
    fn an_answer_ends_where_a_transaction_does() {
        let cut = |commits: &[u64], limit| cut(&messages(commits), limit, 1_000);
        assert_eq!(cut(&[1, 1, 2, 2, 2], 4), 2);
        assert_eq!(cut(&[1, 1, 2, 3, 3], 3), 3);
        assert_eq!(cut(&[1, 1, 1, 1, 2], 3), 3, "one that does not fit alone");
        assert_eq!(cut(&[1, 0, 2, 2], 3), 2, "a message of no commit is no part of one");
        assert_eq!(super::cut(&messages(&[1, 1]), 10, 1), 1, "however large, one is told");
    }

    proptest! {
        #[test]
        fn a_cut_is_never_empty_and_never_too_long(mut commits in prop::collection::vec(0u64..6, 1..30), limit in 1usize..20) {
            commits.sort_unstable();
            let kept = cut(&messages(&commits), limit, usize::MAX);
            prop_assert!(kept >= 1 && kept <= limit);
        }
    }

    #[test]
    fn an_answer_is_as_documented() {
        let cursor: Cursor = "00000000000000ab.0000000000000009.00000009".parse().unwrap();
        assert_eq!(cursor.epoch, Epoch::new(0xab));
        let broadcast = Frame {
            json: bytes::Bytes::from_static(b"{\"type\":\"broadcast\",\"id\":\"0b7c\"}"),
            at: messages(&[9])[0].at,
        };
        let mut messages = messages(&[7]);
        messages.push(broadcast);
        let page = Page { messages, cursor: Some(cursor), timestamp: Some(1_767_268_800_123) };
        assert_eq!(
            String::from_utf8(page.to_json("4\"2")).unwrap(),
            concat!(
                r#"{"success":true,"messages":[{"id":"00000000000000ab.0000000000000007.00000002","type":"database_change","#,
                r#""payload":{"type":"database_change"},"timestamp":1767268800123,"userId":"4\"2"},"#,
                r#"{"id":"0b7c","type":"broadcast","payload":{"type":"broadcast","id":"0b7c"},"timestamp":1767268800123,"userId":"4\"2"}],"#,
                r#""timestamp":1767268800123,"cursor":"00000000000000ab.0000000000000009.00000009","count":2}"#
            )
        );
        let empty = Page { messages: Vec::new(), cursor: None, timestamp: None };
        assert_eq!(
            empty.to_json("1"),
            br#"{"success":true,"messages":[],"timestamp":null,"cursor":null,"count":0}"#
        );
    }
}
