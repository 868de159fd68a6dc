//! Errors of the REST interface as `application/problem+json` (RFC 9457).
//!
//! One shape for every REST error, whatever stage it comes from. `code` is what programs look at and
//! is listed in docs/PROTOCOL.md; `detail` is for people. Neither ever holds a row's values or a token.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// The media type of a [`Problem`]'s body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One REST error, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    pub code: &'static str,
    pub detail: String,
    /// Seconds; also sent as the `Retry-After` header.
    pub retry_after: Option<u32>,
    /// Further members, after the standard ones.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Problem { status, code, detail: detail.into(), retry_after: None, extra: serde_json::Map::new() }
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// The status' own phrase: what `about:blank` asks for.
    pub fn title(&self) -> &'static str {
        axum::http::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|s| s.canonical_reason())
            .unwrap_or("Error")
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", "about:blank")?;
        map.serialize_entry("title", self.title())?;
        map.serialize_entry("status", &self.status)?;
        map.serialize_entry("code", self.code)?;
        map.serialize_entry("detail", &self.detail)?;
        if let Some(seconds) = self.retry_after {
            map.serialize_entry("retry_after", &seconds)?;
        }
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_that_of_rfc_9457() {
        let problem = Problem::new(503, "not_caught_up", "wait").retry_after(2).with("topic", "user:1:*");
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"code":"not_caught_up","detail":"wait","retry_after":2,"topic":"user:1:*"}"#
        );
    }
}
