//! Why a sync has no answer, and how that is told to the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::full::FullError;
use super::problem::Problem;
use crate::auth::AuthError;
use crate::change::Reason;
use crate::json::object::RecordError;
use crate::log::LogError;
use crate::topic::{Pattern, TopicError, decode_segment};

/// Seconds after which a device may ask again when the relay has to catch up first.
const RETRY_AFTER_SECONDS: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Where it stops to be one. What stands there is not repeated: it may be as large as the body.
    #[error(
        "the body is not a JSON object (line {line}, column {column}); send an object with device_id, topics and cursor"
    )]
    Body { line: usize, column: usize },
    #[error("`{field}` {expected}")]
    Field { field: &'static str, expected: &'static str },
    #[error("the topic `{topic}` cannot be read: {source}")]
    Topic { topic: String, source: TopicError },
    #[error("`cursor` is not a cursor of this server; send back unchanged what the server gave")]
    Cursor,
    #[error("the topic `{0}` is not granted to this token; ask for topics within its grants")]
    NotGranted(Pattern),
    /// While the answer was made.
    #[error(transparent)]
    Token(#[from] AuthError),
    #[error(
        "these tables cannot be synced from the given position; fetch them anew and go on with a new cursor"
    )]
    FullRequired(BTreeMap<Arc<str>, Reason>),
    /// The pages of a full answer are gone, or are not this user's.
    #[error("this full answer is no longer kept; drop the pages that came and begin again")]
    Expired,
    #[error("the tables could not be read: {0}")]
    Full(FullError),
    /// Of an answer that several requests may ask for.
    #[error(transparent)]
    Failed(Arc<SyncError>),
    #[error("the relay has not yet read again all that this cursor vouches for; retry shortly")]
    NotCaughtUp,
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the task that read the log ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl SyncError {
    /// A body that could not be read as JSON.
    pub(crate) fn body(error: &serde_json::Error) -> Self {
        SyncError::Body { line: error.line(), column: error.column() }
    }
}

impl From<FullError> for SyncError {
    fn from(error: FullError) -> Self {
        SyncError::Full(error)
    }
}

impl SyncError {
    /// The error's name on the wire.
    pub fn code(&self) -> &'static str {
        match self {
            SyncError::Failed(error) => error.code(),
            SyncError::Body { .. } | SyncError::Field { .. } => "invalid_request",
            SyncError::Topic { .. } => "invalid_topic",
            SyncError::Cursor => "invalid_cursor",
            SyncError::NotGranted(_) => "not_granted",
            SyncError::Token(error) => error.code(),
            SyncError::FullRequired(_) => "full_sync_required",
            SyncError::Expired => "full_sync_expired",
            SyncError::Full(error) => error.told().0,
            SyncError::NotCaughtUp => "not_caught_up",
            SyncError::Log(LogError::Stopped(_) | LogError::Stalled(_)) => "unavailable",
            SyncError::Log(_) | SyncError::Record(_) | SyncError::Task(_) => "internal",
        }
    }

    pub fn status(&self) -> u16 {
        match self {
            SyncError::Failed(error) => error.status(),
            SyncError::Body { .. }
            | SyncError::Field { .. }
            | SyncError::Topic { .. }
            | SyncError::Cursor => 400,
            SyncError::NotGranted(_) => 403,
            SyncError::Token(_) => 401,
            SyncError::FullRequired(_) => 409,
            SyncError::Expired => 410,
            SyncError::Full(_) => 503,
            SyncError::NotCaughtUp | SyncError::Log(LogError::Stopped(_) | LogError::Stalled(_)) => 503,
            SyncError::Log(_) | SyncError::Record(_) | SyncError::Task(_) => 500,
        }
    }

    /// Whether the cause lies in the relay and belongs into its own log.
    pub fn is_internal(&self) -> bool {
        matches!(self, SyncError::Log(_) | SyncError::Record(_) | SyncError::Task(_))
    }

    pub fn problem(&self) -> Problem {
        if let SyncError::Failed(error) = self {
            return error.problem();
        }
        // What failed inside names directories and tasks: nothing for a device.
        let detail = match self {
            SyncError::Full(error) => error.detail().to_owned(),
            _ if self.is_internal() => "the relay could not read its log".to_owned(),
            _ => self.to_string(),
        };
        let problem = Problem::new(self.status(), self.code(), detail);
        match self {
            SyncError::Field { field, .. } => problem.with("field", *field),
            SyncError::Topic { topic, .. } => problem.with("topic", topic.as_str()),
            SyncError::NotGranted(topic) => problem.with("topic", topic.to_string()),
            SyncError::FullRequired(tables) => problem.with("tables", tables_with_reasons(tables)),
            SyncError::Full(error) => problem.retry_after(error.told().1),
            SyncError::NotCaughtUp | SyncError::Log(LogError::Stopped(_) | LogError::Stalled(_)) => {
                problem.retry_after(RETRY_AFTER_SECONDS)
            }
            _ => problem,
        }
    }
}

fn tables_with_reasons(tables: &BTreeMap<Arc<str>, Reason>) -> serde_json::Value {
    let entry = |(name, reason): (&Arc<str>, &Reason)| {
        (table_name(name), serde_json::json!({ "reason": reason.as_str() }))
    };
    serde_json::Value::Object(tables.iter().map(entry).collect())
}

/// A table as answers name it: its topics' last segment, decoded.
pub(super) fn table_name(segment: &str) -> String {
    decode_segment(segment).unwrap_or_else(|_| segment.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_by_their_plain_names() {
        let tables = [("a%3Ab".into(), Reason::TooOld), ("orders".into(), Reason::NoCursor)];
        let problem = SyncError::FullRequired(tables.into()).problem();
        assert_eq!((problem.status, problem.code), (409, "full_sync_required"));
        assert_eq!(
            serde_json::to_value(&problem).unwrap()["tables"],
            serde_json::json!({"a:b": {"reason": "too_old"}, "orders": {"reason": "no_cursor"}})
        );
    }

    #[test]
    fn what_fails_inside_stays_inside() {
        let source = std::io::Error::other("secret").into();
        let problem = SyncError::Log(LogError::Storage { directory: "/var/lib/x".into(), source }).problem();
        assert_eq!((problem.status, problem.code), (500, "internal"));
        assert!(!problem.detail.contains("/var") && !problem.detail.contains("secret"));
        let stopped = SyncError::Log(LogError::Stopped("disk".into())).problem();
        assert_eq!((stopped.status, stopped.retry_after), (503, Some(2)));
    }
}
