//! Topics, audiences and patterns: who a change is for.
//!
//! A topic is `scope:id:table` or `scope:table`; an audience is a topic without its table. In text,
//! `:`, `*`, `%` and control characters of a segment are percent-encoded, and no other escape is
//! accepted, so one topic has exactly one text. Segments are decoded when parsed and only the
//! canonical text is compared, which is the same as comparing segments byte for byte.
//!
//! Must not know: tables of the database, tokens, connections.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest value, in bytes before encoding, that may stand in one segment.
pub const MAX_SEGMENT_BYTES: usize = 256;

/// Why a text is no topic or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("a topic has two or three segments, as in user:42:orders or global:exercises")]
    Segments,
    #[error("a segment of a topic is empty")]
    Empty,
    #[error("a segment of a topic is longer than {MAX_SEGMENT_BYTES} bytes")]
    TooLong,
    #[error("`*` may stand only as the whole last segment; as part of a value it is written %2A")]
    Wildcard,
    #[error("only `:` `*` `%` and control characters are percent-encoded, with upper-case digits")]
    Escape,
    #[error("a segment of a topic is not valid UTF-8")]
    Encoding,
}

/// A topic without its table: `user:42`, `team:7`, `global`. Canonical text, cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Audience(Arc<str>);

impl Audience {
    /// From raw values, which are encoded here. `id` is absent for two-segment topics.
    ///
    /// An empty or overlong value gives no audience.
    pub fn from_values(scope: &str, id: Option<&str>) -> Result<Self, TopicError> {
        let mut text = String::with_capacity(scope.len() + id.map_or(0, |id| id.len() + 1));
        encode_segment(scope, &mut text)?;
        if let Some(id) = id {
            text.push(':');
            encode_segment(id, &mut text)?;
        }
        Ok(Audience(text.into()))
    }

    /// From canonical text of one or two segments.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let mut segments = 0;
        for segment in text.split(':') {
            check_segment(segment)?;
            segments += 1;
        }
        if segments > 2 { Err(TopicError::Segments) } else { Ok(Audience(text.into())) }
    }

    /// `text` is known to be canonical text of one or two segments.
    pub(crate) fn from_canonical(text: String) -> Self {
        debug_assert!(Audience::parse(&text).is_ok(), "canonical text of an audience");
        Audience(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value of the second segment, decoded, if there is one.
    pub fn id(&self) -> Option<String> {
        let (_, id) = self.0.split_once(':')?;
        // Canonical text always decodes.
        decode_segment(id).ok()
    }

    /// The first segment, still encoded.
    pub fn scope(&self) -> &str {
        self.0.split(':').next().unwrap_or(&self.0)
    }
}

/// `audience:table`, e.g. `user:42:orders`. The table is the topic's last segment, decoded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Topic {
    pub audience: Audience,
    /// The last segment in canonical (encoded) text.
    table: Arc<str>,
}

impl Topic {
    /// `table` is a raw value; it is encoded here.
    pub fn new(audience: Audience, table: &str) -> Result<Self, TopicError> {
        let mut text = String::new();
        encode_segment(table, &mut text)?;
        Ok(Topic { audience, table: text.into() })
    }

    pub fn parse(text: &str) -> Result<Self, TopicError> {
        match Pattern::parse(text)? {
            Pattern { audience, table: Some(table) } => Ok(Topic { audience, table }),
            _ => Err(TopicError::Wildcard),
        }
    }

    /// The last segment in canonical text.
    pub fn table(&self) -> &str {
        &self.table
    }
}

/// What a grant or a subscription names: one topic, or all topics of one audience (`user:42:*`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pattern {
    pub audience: Audience,
    /// The last segment in canonical text; `None` is `*`.
    pub table: Option<Arc<str>>,
}

impl Pattern {
    /// All topics of an audience.
    pub fn all_of(audience: Audience) -> Self {
        Pattern { audience, table: None }
    }

    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let (audience, table) = text.rsplit_once(':').ok_or(TopicError::Segments)?;
        let audience = Audience::parse(audience)?;
        if table == "*" {
            return Ok(Pattern { audience, table: None });
        }
        check_segment(table)?;
        Ok(Pattern { audience, table: Some(table.into()) })
    }

    /// Whether everything that `other` names lies within this pattern.
    pub fn covers(&self, other: &Pattern) -> bool {
        self.audience == other.audience && (self.table.is_none() || self.table == other.table)
    }

    pub fn matches(&self, audience: &Audience, table: &str) -> bool {
        self.audience == *audience && self.table.as_deref().is_none_or(|own| own == table)
    }
}

/// Appends the canonical text of one segment.
pub fn encode_segment(value: &str, text: &mut String) -> Result<(), TopicError> {
    if value.is_empty() {
        return Err(TopicError::Empty);
    }
    if value.len() > MAX_SEGMENT_BYTES {
        return Err(TopicError::TooLong);
    }
    for c in value.chars() {
        if needs_escape(c) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                text.push('%');
                text.push(char::from(HEX[usize::from(byte >> 4)]));
                text.push(char::from(HEX[usize::from(byte & 15)]));
            }
        } else {
            text.push(c);
        }
    }
    Ok(())
}

/// The value behind the canonical text of one segment.
pub fn decode_segment(text: &str) -> Result<String, TopicError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return Err(TopicError::Escape) };
        bytes.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
        rest = tail;
    }
    let value = String::from_utf8(bytes).map_err(|_| TopicError::Encoding)?;
    let mut canonical = String::with_capacity(text.len());
    encode_segment(&value, &mut canonical)?;
    // Another spelling of the same value would be a second name for one topic.
    if canonical != text {
        return Err(if text.contains(['*', ':']) { TopicError::Wildcard } else { TopicError::Escape });
    }
    Ok(value)
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn needs_escape(c: char) -> bool {
    matches!(c, ':' | '*' | '%') || c.is_control()
}

fn hex_digit(byte: u8) -> Result<u8, TopicError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(TopicError::Escape),
    }
}

fn check_segment(text: &str) -> Result<(), TopicError> {
    decode_segment(text).map(drop)
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.audience, self.table)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.audience, self.table.as_deref().unwrap_or("*"))
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Audience {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Audience::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_never_become_separators_or_wildcards() {
        let audience = Audience::from_values("user", Some("a:b*c%d\n")).unwrap();
        assert_eq!(audience.as_str(), "user:a%3Ab%2Ac%25d%0A");
        assert_eq!(Audience::parse(audience.as_str()).unwrap(), audience);
        assert_eq!(Audience::from_values("user", Some("*")).unwrap().as_str(), "user:%2A");
        assert_eq!(Audience::from_values("user", Some("")), Err(TopicError::Empty));
        assert_eq!(Audience::from_values("user", Some(&"x".repeat(257))), Err(TopicError::TooLong));
    }

    #[test]
    fn one_topic_has_one_text() {
        for bad in ["user:%41:orders", "user:%3a:orders", "user:%:orders", "user:%2:orders", "user:a%00%ff:x"]
        {
            assert!(Topic::parse(bad).is_err(), "{bad}");
        }
        for bad in [
            "user",
            "user::orders",
            ":1:orders",
            "user:1:",
            "a:b:c:d",
            "user:*:orders",
            "*:1:orders",
            "user:1:o*",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Topic::parse("user:1:*"), Err(TopicError::Wildcard));
    }

    #[test]
    fn a_pattern_covers_what_lies_wholly_within_it() {
        let pattern = |text| Pattern::parse(text).unwrap();
        assert!(pattern("user:42:*").covers(&pattern("user:42:orders")));
        assert!(pattern("user:42:*").covers(&pattern("user:42:*")));
        assert!(!pattern("user:42:orders").covers(&pattern("user:42:*")));
        assert!(!pattern("user:42:*").covers(&pattern("user:4:orders")));
        assert!(!pattern("global:*").covers(&pattern("global:x:y")));
        assert_eq!(pattern("global:*").audience.as_str(), "global");
    }

    proptest! {
        #[test]
        fn every_value_survives_its_text(value in "\\PC{1,40}|[\\x00-\\x7f]{1,40}") {
            prop_assume!(value.len() <= MAX_SEGMENT_BYTES);
            let mut text = String::new();
            encode_segment(&value, &mut text).unwrap();
            prop_assert!(!text.contains([':', '*']) && !text.chars().any(char::is_control));
            prop_assert_eq!(decode_segment(&text).unwrap(), value);
        }

        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC{0,60}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(pattern.to_string(), text);
            }
        }
    }
}
