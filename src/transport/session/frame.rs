//! What a session hands to its transport.

use bytes::Bytes;

use crate::position::Position;

/// One message to the device: its JSON, and beside it what a transport needs to know without reading it.
#[derive(Debug, Clone)]
pub(in crate::transport) struct Frame {
    pub(in crate::transport) json: Bytes,
    /// Where the device stands when it has this frame; `None`: where it stood before.
    pub(in crate::transport) at: Option<At>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::transport) struct At {
    pub(in crate::transport) position: Position,
    /// Of its transaction, microseconds since 1970; `None`: it stands for no commit.
    pub(in crate::transport) committed_at: Option<i64>,
}

/// Every frame begins with its type.
const HEAD: &[u8] = b"{\"type\":\"";

impl Frame {
    /// An answer that says where the device's copy stands.
    pub(super) fn standing(json: String, position: Position) -> Self {
        Frame { json: json.into(), at: Some(At { position, committed_at: None }) }
    }

    /// The message's type.
    pub(in crate::transport) fn kind(&self) -> &str {
        let name = self.json.strip_prefix(HEAD).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == b'"').unwrap_or_default();
        std::str::from_utf8(&name[..end]).unwrap_or_default()
    }
}

impl From<Bytes> for Frame {
    fn from(json: Bytes) -> Self {
        Frame { json, at: None }
    }
}

impl From<String> for Frame {
    fn from(json: String) -> Self {
        Frame { json: json.into(), at: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_knows_its_type() {
        assert_eq!(Frame::from("{\"type\":\"pong\",\"timestamp\":\"\"}".to_owned()).kind(), "pong");
        assert_eq!(Frame::from("{}".to_owned()).kind(), "");
        assert_eq!(Frame::from("{\"type\":\"cut".to_owned()).kind(), "");
    }
}
