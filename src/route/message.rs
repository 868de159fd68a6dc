//! Logical messages of `rowcast.tag`, `rowcast.broadcast` and `rowcast.fence`.
//!
//! Anyone may call `pg_logical_emit_message`, so a message counts only with a code made with the
//! catalog's secret over the transaction's id and the body. Content: 64 hexadecimal digits of
//! HMAC-SHA256(secret, xid ":" body), a newline, the body as JSON.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::change::{Broadcast, Tag};
use crate::topic::Topic;

/// The prefix under which rowcast's messages travel.
pub const PREFIX: &str = "rowcast";

/// The catalog's secret, as the two padded keys of HMAC (RFC 2104).
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Secret {
    inner: Vec<u8>,
    outer: Vec<u8>,
}

/// A message that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogicalMessage {
    Tag(Tag),
    Broadcast(Broadcast),
    Fence(String),
}

/// Why a message is dropped (and counted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    #[error("it carries no valid authentication code")]
    Forged,
    #[error("its body is not what rowcast's functions write")]
    Malformed,
}

impl Secret {
    /// Takes over one row of `rowcast.settings`. Other settings are not the secret's business.
    pub fn setting(&mut self, name: &str, value: &str) {
        let part = match name {
            "mac_inner" => &mut self.inner,
            "mac_outer" => &mut self.outer,
            _ => return,
        };
        *part = unhex(value).unwrap_or_default();
    }

    /// Checks the code and reads the body.
    pub fn open(&self, xid: u32, content: &[u8]) -> Result<LogicalMessage, Dropped> {
        let (code, body) = content.split_at_checked(64).ok_or(Dropped::Forged)?;
        let body = body.strip_prefix(b"\n").ok_or(Dropped::Forged)?;
        let code = std::str::from_utf8(code).ok().and_then(unhex).ok_or(Dropped::Forged)?;
        if self.inner.len() != 64 || self.outer.len() != 64 || !same(&code, &self.code(xid, body)) {
            return Err(Dropped::Forged);
        }
        let body: MessageBody = serde_json::from_slice(body).map_err(|_| Dropped::Malformed)?;
        body.checked()
    }

    fn code(&self, xid: u32, body: &[u8]) -> [u8; 32] {
        let inner =
            Sha256::new().chain_update(&self.inner).chain_update(format!("{xid}:")).chain_update(body);
        Sha256::new().chain_update(&self.outer).chain_update(inner.finalize()).finalize().into()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MessageBody {
    Tag { device: Arc<str>, correlation: Option<Arc<str>>, user: Option<Arc<str>> },
    Broadcast { id: Arc<str>, topic: String, event: Arc<str>, payload: Box<RawValue> },
    Fence { id: String },
}

impl MessageBody {
    pub(super) fn checked(self) -> Result<LogicalMessage, Dropped> {
        Ok(match self {
            MessageBody::Tag { device, correlation, user } => {
                LogicalMessage::Tag(Tag { device, correlation, user })
            }
            MessageBody::Broadcast { id, topic, event, payload } => {
                let topic = Topic::parse(&topic).map_err(|_| Dropped::Malformed)?;
                // As in records: a newline between tokens would end an NDJSON line.
                let payload = payload.get().replace(['\n', '\r'], " ");
                LogicalMessage::Broadcast(Broadcast {
                    name: topic.table().into(),
                    audience: topic.audience,
                    id,
                    event,
                    payload: Bytes::from(payload),
                })
            }
            MessageBody::Fence { id } => LogicalMessage::Fence(id),
        })
    }
}

/// In constant time for equal lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        let key = [7u8; 32];
        let pad = |with: u8| {
            let mut pad = [with; 64];
            pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
            pad.to_vec()
        };
        Secret { inner: pad(0x36), outer: pad(0x5c) }
    }

    fn signed(xid: u32, body: &str) -> Vec<u8> {
        use hmac::{KeyInit, Mac};
        let mut mac = hmac::Hmac::<Sha256>::new_from_slice(&[7u8; 32]).unwrap();
        mac.update(format!("{xid}:{body}").as_bytes());
        let code: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{code}\n{body}").into_bytes()
    }

    #[test]
    fn what_the_catalog_signs_is_read() {
        let fence = r#"{"fence": {"id": "f1"}}"#;
        assert_eq!(secret().open(7, &signed(7, fence)), Ok(LogicalMessage::Fence("f1".into())));
        let broadcast =
            r#"{"broadcast":{"id":"i","topic":"user:42:news","event":"e","payload":{"a" : 1.0}}}"#;
        let Ok(LogicalMessage::Broadcast(read)) = secret().open(7, &signed(7, broadcast)) else { panic!() };
        assert_eq!(
            (read.audience.as_str(), &*read.name, &read.payload[..]),
            ("user:42", "news", &b"{\"a\" : 1.0}"[..])
        );
    }

    #[test]
    fn forged_messages_are_dropped() {
        let body = r#"{"fence":{"id":"f1"}}"#;
        let good = signed(7, body);
        let mut changed = good.clone();
        *changed.last_mut().unwrap() = b' ';
        for (xid, content) in
            [(8, good.clone()), (7, changed), (7, body.into()), (7, vec![]), (7, good[..70].to_vec())]
        {
            assert_eq!(secret().open(xid, &content), Err(Dropped::Forged));
        }
        assert_eq!(Secret::default().open(7, &good), Err(Dropped::Forged));
        for body in [
            "{}",
            "[]",
            r#"{"tag":{}}"#,
            r#"{"broadcast":{"id":"i","topic":"user:*:x","event":"e","payload":1}}"#,
        ] {
            assert_eq!(secret().open(7, &signed(7, body)), Err(Dropped::Malformed), "{body}");
        }
    }
}
