//! What `/api/sync/poll` answers: these fields and no others.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::frame::Frame;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) messages: Vec<Message>,
    pub(crate) timestamp: Option<i64>,
    pub(crate) cursor: Option<String>,
    pub(crate) count: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) r#type: String,
    pub(crate) payload: Box<RawValue>,
    pub(crate) timestamp: i64,
    #[serde(rename = "userId")]
    pub(crate) user: String,
}

impl Message {
    pub(crate) fn frame(&self) -> Frame {
        Frame { kind: self.r#type.clone(), text: self.payload.get().to_owned() }
    }
}

impl Answer {
    /// What holds for every answer.
    pub(crate) fn is_whole(&self) -> bool {
        self.success && self.count == self.messages.len()
    }
}
