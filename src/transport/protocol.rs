//! The messages of protocol 1, as docs/PROTOCOL.md lists them: what devices send, and the small
//! frames that answer. Changes are encoded by the hub.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::change::Reason;
use crate::cursor::Cursor;

/// What a device may send. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Request {
    Subscribe {
        topics: Vec<String>,
        cursor: Option<String>,
        #[serde(default)]
        snapshot: bool,
    },
    Unsubscribe {
        topics: Vec<String>,
    },
    Ping {},
    Auth {
        token: String,
    },
    Ack {
        cursor: String,
    },
}

/// What of any message can be read without knowing its type.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Envelope {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    /// Echoed by answers; any JSON value would do, but it is bounded.
    pub(super) r#ref: Option<Value>,
}

/// Types of [`Request`], to tell a wrong field from an unknown type.
pub(super) const KINDS: [&str; 5] = ["subscribe", "unsubscribe", "ping", "auth", "ack"];

/// What the server sends besides changes.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Answer<'a> {
    ConnectionEstablished {
        protocol: u32,
        user_id: &'a str,
        device_id: &'a str,
        heartbeat_ms: u64,
        timestamp: String,
    },
    Subscribed {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
        cursor: Cursor,
        tables: serde_json::Map<String, Value>,
    },
    Unsubscribed {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
    },
    ReplayBegin {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
    },
    SnapshotBegin {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
        tables: serde_json::Map<String, Value>,
        total_rows: u64,
    },
    SnapshotEnd {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
        cursor: Cursor,
    },
    CaughtUp {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
        cursor: Cursor,
    },
    Heartbeat {
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        timestamp: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    /// A stream's heartbeat.
    Progress {
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    /// The last event of a stream; codes and reasons are those of a socket.
    Close {
        code: u16,
        reason: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    SyncRequired {
        topics: Vec<String>,
        from: Option<String>,
        to: Option<Cursor>,
        reason: Reason,
        retry_after_ms: u64,
    },
    OtherDeviceSynced {
        device_id: &'a str,
        timestamp: String,
    },
    Revoked {
        topics: Vec<String>,
    },
    Granted {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        topics: Vec<String>,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        code: &'static str,
        message: String,
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<String>,
    },
}

impl<'a> Answer<'a> {
    /// What may succeed when it is sent again.
    pub(super) fn not_now(
        r#ref: Option<&'a Value>,
        code: &'static str,
        message: String,
        retry_after_ms: u64,
    ) -> Self {
        let retry_after_ms = Some(retry_after_ms);
        Answer::Error { r#ref, code, message, retryable: true, retry_after_ms, topic: None }
    }

    pub(super) fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Why the server closes a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    BadMessage(&'static str),
    Token(&'static str),
    NotGranted(&'static str),
    Idle,
    TooMany(&'static str),
    /// The user removed this device.
    Removed,
    /// The relay restarts, its log begins anew, or it cannot check tokens at the moment: come back.
    Restart {
        retry_after_ms: u64,
    },
    /// The device said goodbye, or its connection broke.
    Gone,
}

impl Closing {
    pub(super) fn code(self) -> u16 {
        match self {
            Closing::BadMessage(_) => 4400,
            Closing::Token(_) => 4401,
            Closing::NotGranted(_) => 4403,
            Closing::Idle => 4408,
            Closing::Removed => 4410,
            Closing::TooMany(_) => 4429,
            Closing::Restart { .. } => 1012,
            Closing::Gone => 1000,
        }
    }

    /// At most 123 bytes, as RFC 6455 has it.
    pub(super) fn reason(self) -> String {
        match self {
            Closing::BadMessage(why)
            | Closing::Token(why)
            | Closing::NotGranted(why)
            | Closing::TooMany(why) => why.to_owned(),
            Closing::Removed => "this device was removed".to_owned(),
            Closing::Idle => "nothing was heard for two heartbeats".to_owned(),
            Closing::Restart { retry_after_ms } => format!("{{\"retry_after_ms\":{retry_after_ms}}}"),
            Closing::Gone => String::new(),
        }
    }
}

/// Spread, so that a herd of devices does not come back at once.
pub(super) fn spread(least: u64, most: u64) -> u64 {
    rand::random_range(least..=most)
}

/// The same from a pause on, up to twice as long.
pub(super) fn spread_after(pause: Duration) -> u64 {
    let least = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    spread(least, least.saturating_mul(2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cursor::Epoch;
    use crate::hub::golden::check;
    use crate::lsn::Lsn;
    use crate::position::Position;

    #[test]
    fn answers_are_as_documented() {
        let ping = json!(2);
        let r#ref = Some(&ping);
        let topics = || vec!["user:42:*".to_owned()];
        let timestamp = || "2026-01-01T12:00:00.123456Z".to_owned();
        let cursor = Cursor::new(Epoch::new(0xab), Position::new(Lsn::new(0x16_B374_D848), 2));
        let tables = json!({"orders": {"key": ["id"]}}).as_object().unwrap().clone();
        let established = Answer::ConnectionEstablished {
            protocol: 1,
            user_id: "42",
            device_id: "phone",
            heartbeat_ms: 30_000,
            timestamp: timestamp(),
        };
        let required = Answer::SyncRequired {
            topics: vec!["user:42:orders".into()],
            from: Some(cursor.to_string()),
            to: None,
            reason: Reason::Identity,
            retry_after_ms: 1_840,
        };
        let error = Answer::Error {
            r#ref,
            code: "not_granted",
            message: "the token does not grant this topic".into(),
            retryable: false,
            retry_after_ms: None,
            topic: Some("user:7:orders".into()),
        };
        let answers = [
            ("connection_established", established),
            ("subscribed", Answer::Subscribed { r#ref, topics: topics(), cursor, tables: tables.clone() }),
            ("unsubscribed", Answer::Unsubscribed { r#ref, topics: topics() }),
            ("replay_begin", Answer::ReplayBegin { r#ref, topics: topics() }),
            ("snapshot_begin", Answer::SnapshotBegin { r#ref, topics: topics(), tables, total_rows: 2 }),
            ("snapshot_end", Answer::SnapshotEnd { r#ref, topics: topics(), cursor }),
            ("caught_up", Answer::CaughtUp { r#ref, topics: topics(), cursor }),
            ("heartbeat", Answer::Heartbeat { cursor: Some(cursor) }),
            ("heartbeat_replaying", Answer::Heartbeat { cursor: None }),
            ("progress", Answer::Progress { cursor: Some(cursor) }),
            (
                "close",
                Answer::Close { code: 1012, reason: "the relay restarts", retry_after_ms: Some(1_840) },
            ),
            ("pong", Answer::Pong { r#ref, timestamp: timestamp(), cursor: Some(cursor) }),
            ("sync_required", required),
            (
                "other_device_synced",
                Answer::OtherDeviceSynced { device_id: "tablet", timestamp: timestamp() },
            ),
            ("revoked", Answer::Revoked { topics: topics() }),
            ("granted", Answer::Granted { r#ref: None, topics: topics() }),
            ("error", error),
        ];
        for (name, answer) in answers {
            check(name, answer.to_json().as_bytes());
        }
    }

    #[test]
    fn close_reasons_fit_their_frame() {
        let restart = Closing::Restart { retry_after_ms: u64::MAX };
        assert_eq!((restart.code(), Closing::Idle.code()), (1012, 4408));
        assert!([restart, Closing::Idle].iter().all(|why| why.reason().len() <= 123));
    }
}
