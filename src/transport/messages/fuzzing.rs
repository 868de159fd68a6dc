//! Any bytes as the body of a message to other devices.

use axum::http::{HeaderMap, HeaderValue};
use serde::de::IgnoredAny;

use super::{DEVICE_HEADER, Fields, MAX_NAME_BYTES, sender};
use crate::devices::is_device_id;
use crate::topic::Topic;

pub(crate) fn body(body: &[u8]) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(body) {
        headers.append(DEVICE_HEADER, value);
    }
    let Ok(fields) = Fields::of(body) else { return };
    let names = [fields.event(), fields.name("correlationId").map(Option::unwrap_or_default)];
    for name in names.into_iter().flatten() {
        assert!(name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control));
    }
    if let Ok(payload) = fields.payload() {
        assert!(serde_json::from_str::<IgnoredAny>(payload).is_ok());
    }
    if let Ok(topics) = fields.topics() {
        assert!(!topics.is_empty() && topics.iter().all(|topic| Topic::parse(topic).is_ok()));
    }
    if let Ok(Some(device)) = sender(&fields, &headers) {
        assert!(is_device_id(&device));
    }
}
