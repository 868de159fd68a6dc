//! What a device reads: frames and changes whose records stay the text that was sent.

use rowcast::topic::decode_segment;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// One text frame, or one change out of a `database_changes` frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// One row's change, from a `database_change` frame or an entry of a sync answer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Change {
    pub(crate) topic: String,
    #[serde(default)]
    pub(crate) schema: Option<String>,
    #[serde(default)]
    pub(crate) table: Option<String>,
    pub(crate) operation: String,
    #[serde(default)]
    pub(crate) key: Option<Box<RawValue>>,
    #[serde(default)]
    pub(crate) old_record: Option<Box<RawValue>>,
    /// `record` in sync answers.
    #[serde(default, alias = "record")]
    pub(crate) new_record: Option<Box<RawValue>>,
    #[serde(default)]
    pub(crate) unchanged: Vec<String>,
    pub(crate) commit_timestamp: Value,
    /// Only on frames.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
    #[serde(default)]
    pub(crate) last: Option<bool>,
    #[serde(default)]
    pub(crate) source_device: Option<String>,
    #[serde(default)]
    pub(crate) correlation_id: Option<String>,
}

/// A cursor without what it says besides its place: as text it compares as its place does.
pub(crate) fn place(cursor: &str) -> &str {
    let end = cursor.match_indices('.').nth(2).map_or(cursor.len(), |(at, _)| at);
    &cursor[..end]
}

impl Frame {
    pub(crate) fn parse(text: String) -> Self {
        #[derive(Deserialize)]
        struct Head {
            r#type: String,
        }
        let head: Head =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in frame {text}"));
        Frame { kind: head.r#type, text }
    }

    /// The changes of a `database_changes` frame as frames of their own; any other frame alone.
    pub(crate) fn split(self) -> Vec<Frame> {
        #[derive(Deserialize)]
        struct Batch {
            changes: Vec<Box<RawValue>>,
        }
        if self.kind != "database_changes" {
            return vec![self];
        }
        let batch: Batch = serde_json::from_str(&self.text).unwrap();
        let frame =
            |change: Box<RawValue>| Frame { kind: "database_change".into(), text: change.get().into() };
        batch.changes.into_iter().map(frame).collect()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// The change of a `database_change` frame.
    pub(crate) fn change(&self) -> Option<Change> {
        (self.kind == "database_change").then(|| {
            serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
        })
    }

    /// The frame's `cursor`, where it has one.
    pub(crate) fn cursor(&self) -> Option<String> {
        self.json().get("cursor")?.as_str().map(str::to_owned)
    }
}

impl Change {
    /// The table as answers name it: the last segment of its topics, decoded.
    pub(crate) fn topic_table(&self) -> String {
        decode_segment(self.topic.rsplit(':').next().unwrap_or_default()).unwrap()
    }

    /// The key's text; panics where there is none.
    pub(crate) fn key_text(&self) -> &str {
        self.key.as_ref().unwrap_or_else(|| panic!("a change without a key: {self:?}")).get()
    }

    /// The new record's text; panics where there is none.
    pub(crate) fn record_text(&self) -> &str {
        self.new_record.as_ref().unwrap_or_else(|| panic!("a change without a record: {self:?}")).get()
    }
}
