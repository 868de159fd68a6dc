//! One frame that a device is to be sent, and whether another frame is it.

use anyhow::ensure;
use serde_json::json;
use serde_json::value::RawValue;

use super::device::Frame;
use super::rest::SyncedChange;

#[derive(Debug, Clone)]
pub(super) struct Want {
    /// A row's operation; `None` for a broadcast.
    operation: Option<&'static str>,
    topic: String,
    event: Option<&'static str>,
    /// The row's key.
    key: Option<String>,
    /// The record or the payload, byte for byte.
    body: Option<String>,
    /// The device that wrote it, and its correlation.
    tag: Option<(&'static str, &'static str)>,
}

impl Want {
    pub(super) fn row(operation: &'static str, topic: &str, column: &str, key: i64, record: String) -> Self {
        Want {
            operation: Some(operation),
            topic: topic.to_owned(),
            event: None,
            key: Some(key_text(column, key)),
            body: Some(record),
            tag: None,
        }
    }

    /// A row that left the device's topics: its key, and nothing else of it.
    pub(super) fn delete(topic: &str, column: &str, key: i64) -> Self {
        Want { body: None, ..Want::row("DELETE", topic, column, key, String::new()) }
    }

    pub(super) fn broadcast(topic: &str, event: &'static str, payload: &str) -> Self {
        Want {
            operation: None,
            topic: topic.to_owned(),
            event: Some(event),
            key: None,
            body: Some(payload.to_owned()),
            tag: None,
        }
    }

    pub(super) fn tagged(self, device: &'static str, correlation: &'static str) -> Self {
        Want { tag: Some((device, correlation)), ..self }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    pub(super) fn is_delete(&self) -> bool {
        self.operation == Some("DELETE")
    }

    /// In words, for the screen.
    pub(super) fn what(&self) -> String {
        let tag = self.tag.map(|(_, correlation)| format!("  {correlation}")).unwrap_or_default();
        format!("{} {}{tag}", self.operation.or(self.event).unwrap_or_default(), self.topic)
    }

    /// What there is to see of it: the record, the payload or the key.
    pub(super) fn shown(&self) -> &str {
        self.body.as_deref().or(self.key.as_deref()).unwrap_or_default()
    }

    /// `last`: it is the last change that the device gets from the transaction.
    pub(super) fn check(&self, frame: &Frame, last: bool) -> anyhow::Result<()> {
        let same = self.operation == frame.operation.as_deref()
            && self.event == frame.event.as_deref()
            && Some(self.topic.as_str()) == frame.topic.as_deref()
            && self.key.as_deref() == text(&frame.key)
            && self.body.as_deref()
                == text(if self.event.is_some() { &frame.payload } else { &frame.new_record })
            && self.tag.map(|(device, _)| device) == frame.source_device.as_deref()
            && self.tag.map(|(_, correlation)| correlation) == frame.correlation_id.as_deref()
            && (self.event.is_some() || frame.last == Some(last));
        ensure!(same, "expected {} {}{}, got {}", self.what(), self.shown(), mark(last), frame.text);
        Ok(())
    }

    /// The same in the answer of a sync, which knows upserts and tombstones.
    pub(super) fn is(&self, change: &SyncedChange) -> bool {
        let tombstone = change.operation == "DELETE";
        self.topic == change.topic
            && self.key.as_deref() == Some(change.key.get())
            && self.body.as_deref() == text(&change.record)
            && tombstone == self.body.is_none()
    }
}

fn mark(last: bool) -> &'static str {
    if last { " as the last of its transaction" } else { "" }
}

fn text(raw: &Option<Box<RawValue>>) -> Option<&str> {
    raw.as_deref().map(RawValue::get)
}

fn key_text(column: &str, key: i64) -> String {
    json!({column: key}).to_string()
}
