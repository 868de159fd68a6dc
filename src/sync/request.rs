//! What a device asks for, from a JSON body or a query string.
//!
//! Every mistake is answered with the field's name and what it should have been. Unknown fields are
//! ignored, so that newer apps can speak to older relays. Whether topics are granted is not decided
//! here.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::coverage::SyncCursor;
use super::error::SyncError;
use super::full::PageToken;
use crate::route::Tracked;
use crate::topic::{Audience, Pattern, encode_segment};

/// The most changes that one page holds.
pub const MAX_LIMIT: usize = 1000;
/// Bounds the work that one request can ask for; a session has as many subscriptions.
const MAX_TOPICS: usize = 100;
const MAX_TABLES: usize = 1000;
const MAX_DEVICE_ID_BYTES: usize = 64;
const MAX_LABEL_BYTES: usize = 128;
/// How much of an unreadable topic an error repeats, in characters.
const MAX_ECHO: usize = 100;

/// Whose rows of a table the readers of these topics get.
pub(super) fn audiences_of(topics: &[Pattern], tracked: &Tracked) -> Vec<Audience> {
    let reads = |topic: &&Pattern| tracked.templates.iter().any(|template| template.may_match(topic));
    let mut audiences: Vec<_> = topics.iter().filter(reads).map(|topic| topic.audience.clone()).collect();
    audiences.sort_unstable();
    audiences.dedup();
    audiences
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRequest {
    pub device_id: Arc<str>,
    /// Each once, in the order in which they were sent; none is all that the token grants.
    pub topics: Vec<Pattern>,
    /// Last segments of topics, as in a topic's text.
    pub tables: Option<Vec<Arc<str>>>,
    /// Counts more than `last_sync_timestamp` where both are given.
    pub cursor: Option<SyncCursor>,
    /// A page of a full answer that was begun before; nothing else counts then.
    pub page: Option<PageToken>,
    /// Microseconds since 1970.
    pub last_sync_timestamp: Option<i64>,
    pub force_full_sync: bool,
    /// 1 to [`MAX_LIMIT`].
    pub limit: Option<usize>,
    pub device_type: Option<String>,
    pub app_version: Option<String>,
    /// int8 and numeric as strings.
    pub numbers_as_strings: bool,
}

/// The fields as they were sent.
#[derive(Debug, Default)]
struct Raw {
    device_id: Option<String>,
    topics: Vec<String>,
    tables: Option<Vec<String>>,
    cursor: Option<String>,
    last_sync_timestamp: Option<Moment>,
    force_full_sync: bool,
    limit: Option<u64>,
    device_type: Option<String>,
    app_version: Option<String>,
    numbers: Option<String>,
}

#[derive(Debug)]
enum Moment {
    Milliseconds(i64),
    Text(String),
}

impl SyncRequest {
    /// From the body of a POST.
    pub fn from_json(body: &[u8]) -> Result<Self, SyncError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|error| SyncError::body(&error))?;
        let fields = Fields(fields);
        Raw {
            device_id: fields.text("device_id")?,
            topics: fields.texts("topics")?.unwrap_or_default(),
            tables: fields.texts("tables")?,
            cursor: fields.text("cursor")?,
            last_sync_timestamp: fields.moment("last_sync_timestamp")?,
            force_full_sync: fields.flag("force_full_sync")?,
            limit: fields.count("limit")?,
            device_type: fields.text("device_type")?,
            app_version: fields.text("app_version")?,
            numbers: fields.text("numbers")?,
        }
        .check()
    }

    /// From the decoded pairs of a query string. `topics` and `tables` are separated by commas or
    /// repeated (a topic that holds a comma needs a POST); of other fields the last one counts, and an
    /// empty one is none.
    pub fn from_query(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, SyncError> {
        let mut raw = Raw::default();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            let list = || value.split(',').filter(|part| !part.is_empty()).map(str::to_owned);
            match name.as_str() {
                "topics" => raw.topics.extend(list()),
                "tables" => raw.tables.get_or_insert_default().extend(list()),
                "device_id" => raw.device_id = Some(value),
                "cursor" => raw.cursor = Some(value),
                // An offset's plus sign that was not escaped arrives as a space.
                "last_sync_timestamp" if value.contains(['T', 't']) => {
                    raw.last_sync_timestamp = Some(Moment::Text(value.replace(' ', "+")));
                }
                "last_sync_timestamp" => raw.last_sync_timestamp = Some(Moment::Text(value)),
                "force_full_sync" => raw.force_full_sync = query_flag("force_full_sync", &value)?,
                "limit" => raw.limit = Some(value.parse().map_err(|_| LIMIT)?),
                "device_type" => raw.device_type = Some(value),
                "app_version" => raw.app_version = Some(value),
                "numbers" => raw.numbers = Some(value),
                _ => {}
            }
        }
        raw.check()
    }

    /// How many changes a page may hold.
    pub fn page_limit(&self) -> usize {
        self.limit.unwrap_or(MAX_LIMIT).clamp(1, MAX_LIMIT)
    }
}

/// Kinds of mistakes in one field.
struct Mistake {
    field: &'static str,
    expected: &'static str,
}

const LIMIT: Mistake = Mistake { field: "limit", expected: "must be a whole number from 1 to 1000" };

impl From<Mistake> for SyncError {
    fn from(Mistake { field, expected }: Mistake) -> Self {
        SyncError::Field { field, expected }
    }
}

fn mistake<T>(field: &'static str, expected: &'static str) -> Result<T, SyncError> {
    Err(SyncError::Field { field, expected })
}

impl Raw {
    fn check(self) -> Result<SyncRequest, SyncError> {
        let (cursor, page) = check_cursor(self.cursor.as_deref())?;
        Ok(SyncRequest {
            device_id: check_device_id(self.device_id)?,
            topics: check_topics(&self.topics)?,
            tables: self.tables.as_deref().map(check_tables).transpose()?,
            cursor,
            page,
            last_sync_timestamp: self.last_sync_timestamp.map(|moment| moment.micros()).transpose()?,
            force_full_sync: self.force_full_sync,
            limit: match self.limit {
                Some(0) => return Err(LIMIT.into()),
                Some(limit) => Some(usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT)),
                None => None,
            },
            device_type: check_label("device_type", self.device_type)?,
            app_version: check_label("app_version", self.app_version)?,
            numbers_as_strings: match self.numbers.as_deref() {
                None => false,
                Some("string") => true,
                Some(_) => {
                    return mistake("numbers", "can only be \"string\"; leave it out for JSON numbers");
                }
            },
        })
    }
}

fn check_device_id(id: Option<String>) -> Result<Arc<str>, SyncError> {
    const EXPECTED: &str = "is required: 1 to 64 characters of A-Z, a-z, 0-9, `_` and `-`";
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match id {
        Some(id) if (1..=MAX_DEVICE_ID_BYTES).contains(&id.len()) && id.bytes().all(plain) => Ok(id.into()),
        _ => mistake("device_id", EXPECTED),
    }
}

fn check_topics(texts: &[String]) -> Result<Vec<Pattern>, SyncError> {
    if texts.len() > MAX_TOPICS {
        return mistake("topics", "names more than 100 topics; use a pattern such as user:42:*");
    }
    let mut topics: Vec<Pattern> = Vec::with_capacity(texts.len());
    for text in texts {
        let pattern = Pattern::parse(text)
            .map_err(|source| SyncError::Topic { topic: text.chars().take(MAX_ECHO).collect(), source })?;
        if !topics.contains(&pattern) {
            topics.push(pattern);
        }
    }
    Ok(topics)
}

fn check_cursor(text: Option<&str>) -> Result<(Option<SyncCursor>, Option<PageToken>), SyncError> {
    let Some(text) = text else { return Ok((None, None)) };
    if let Some(page) = PageToken::parse(text) {
        return Ok((None, Some(page)));
    }
    Ok((Some(SyncCursor::parse(text).map_err(|_| SyncError::Cursor)?), None))
}

/// Names of tables become segments as they stand in a topic's text.
fn check_tables(names: &[String]) -> Result<Vec<Arc<str>>, SyncError> {
    if names.is_empty() {
        return mistake("tables", "names no table; leave it out for all tables of the topics");
    }
    if names.len() > MAX_TABLES {
        return mistake("tables", "names more than 1000 tables; leave it out for all tables of the topics");
    }
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        let mut segment = String::with_capacity(name.len());
        if encode_segment(name, &mut segment).is_err() {
            return mistake("tables", "holds a name that is empty or longer than 256 bytes");
        }
        tables.push(segment.into());
    }
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

fn check_label(field: &'static str, value: Option<String>) -> Result<Option<String>, SyncError> {
    match value {
        Some(value) if value.len() > MAX_LABEL_BYTES || value.chars().any(char::is_control) => {
            mistake(field, "must be text of at most 128 bytes without control characters")
        }
        value => Ok(value),
    }
}

impl Moment {
    /// Microseconds since 1970. What lies between two microseconds counts as the earlier one: a sync
    /// may repeat changes, and never misses one.
    fn micros(&self) -> Result<i64, SyncError> {
        let milliseconds = match self {
            Moment::Milliseconds(value) => Some(*value),
            Moment::Text(text) => text.parse().ok(),
        };
        match (milliseconds, self) {
            (Some(value), _) => Ok(value.saturating_mul(1000)),
            (None, Moment::Text(text)) => match text.parse::<jiff::Timestamp>() {
                Ok(time) => Ok(i64::try_from(time.as_nanosecond().div_euclid(1000)).unwrap_or(i64::MAX)),
                Err(_) => Err(MOMENT.into()),
            },
            (None, Moment::Milliseconds(_)) => Err(MOMENT.into()),
        }
    }
}

const MOMENT: Mistake = Mistake {
    field: "last_sync_timestamp",
    expected: "must be a time as in 2026-01-31T12:00:00.000000Z, or whole milliseconds since 1970",
};

fn query_flag(field: &'static str, value: &str) -> Result<bool, SyncError> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => mistake(field, "must be true or false"),
    }
}

/// A JSON object's members, by the type that each should have; null is none.
struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn text(&self, field: &'static str) -> Result<Option<String>, SyncError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => mistake(field, "must be a string"),
        }
    }

    fn texts(&self, field: &'static str) -> Result<Option<Vec<String>>, SyncError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let texts = value.as_array().and_then(|values| {
            values.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => mistake(field, "must be an array of strings"),
        }
    }

    fn moment(&self, field: &'static str) -> Result<Option<Moment>, SyncError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(Moment::Text(text.clone()))),
            Some(value) => match value.as_i64() {
                Some(value) => Ok(Some(Moment::Milliseconds(value))),
                None => Err(MOMENT.into()),
            },
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, SyncError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => mistake(field, "must be true or false"),
        }
    }

    fn count(&self, field: &'static str) -> Result<Option<u64>, SyncError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| LIMIT.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(body: &str) -> Result<SyncRequest, SyncError> {
        SyncRequest::from_json(body.as_bytes())
    }

    fn query(pairs: &[(&str, &str)]) -> Result<SyncRequest, SyncError> {
        SyncRequest::from_query(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn said(result: Result<SyncRequest, SyncError>) -> (&'static str, String) {
        let problem = result.unwrap_err().problem();
        assert_eq!(problem.status, 400);
        (problem.code, problem.detail)
    }

    #[test]
    fn body_and_query_say_the_same() {
        let cursor = "00000000000000ab.0000000100000000.00000003";
        let body = json(&format!(
            r#"{{"device_id":"d-1","topics":["user:42:*","global:exercises","user:42:*"],"cursor":"{cursor}",
                "last_sync_timestamp":"2026-01-31T12:00:00.0000019+00:00","tables":["orders","a:b"],
                "force_full_sync":true,"limit":5000,"device_type":"ios","app_version":"1.2","numbers":"string",
                "later":{{"x":1}},"conflicts":null}}"#
        ))
        .unwrap();
        assert_eq!(body.topics.len(), 2);
        assert_eq!(body.page_limit(), MAX_LIMIT);
        assert_eq!(body.last_sync_timestamp, Some(1_769_860_800_000_001));
        assert_eq!(body.tables.as_deref().unwrap(), ["a%3Ab".into(), Arc::from("orders")]);
        let same = query(&[
            ("device_id", "d-1"),
            ("topics", "user:42:*,global:exercises"),
            ("topics", "user:42:*"),
            ("cursor", cursor),
            ("last_sync_timestamp", "2026-01-31T12:00:00.0000019 00:00"),
            ("tables", "orders,a:b"),
            ("force_full_sync", "true"),
            ("limit", "5000"),
            ("device_type", "ios"),
            ("app_version", "1.2"),
            ("numbers", "string"),
            ("later", "x"),
        ])
        .unwrap();
        assert_eq!(same, body);
        for milliseconds in [r#""1769860800000""#, "1769860800000"] {
            let body =
                format!(r#"{{"device_id":"d","topics":["a:b"],"last_sync_timestamp":{milliseconds}}}"#);
            assert_eq!(json(&body).unwrap().last_sync_timestamp, Some(1_769_860_800_000_000));
        }
    }

    #[test]
    fn mistakes_name_the_field() {
        assert_eq!(said(json("[]")).0, "invalid_request");
        assert_eq!(said(json("{")).0, "invalid_request");
        assert!(json(r#"{"device_id":"d"}"#).unwrap().topics.is_empty());
        assert!(said(json(r#"{"topics":["a:b"]}"#)).1.contains("device_id"));
        for bad in ["", "a b", "é", &"x".repeat(65)] {
            let body = serde_json::json!({"device_id": bad, "topics": ["a:b"]}).to_string();
            assert!(said(json(&body)).1.contains("device_id"), "{bad}");
        }
        let (code, detail) = said(json(r#"{"device_id":"d","topics":["user:*:x"]}"#));
        assert!(code == "invalid_topic" && detail.contains("user:*:x"));
        for (field, value) in [
            ("tables", "[]"),
            ("tables", "\"orders\""),
            ("tables", "[\"\"]"),
            ("topics", "[1]"),
            ("limit", "0"),
            ("limit", "-1"),
            ("limit", "1.5"),
            ("last_sync_timestamp", "\"yesterday\""),
            ("last_sync_timestamp", "1.5"),
            ("force_full_sync", "\"yes\""),
            ("device_type", "7"),
            ("app_version", "\"a\\nb\""),
            ("numbers", "\"float\""),
        ] {
            let body = format!(r#"{{"device_id":"d","topics":["a:b"],"{field}":{value}}}"#);
            let (code, detail) = said(json(&body));
            assert!(code == "invalid_request" && detail.contains(field), "{field} {detail}");
        }
        assert_eq!(
            said(query(&[("device_id", "d"), ("topics", "a:b"), ("cursor", "x")])).0,
            "invalid_cursor"
        );
        assert_eq!(
            said(query(&[("device_id", "d"), ("topics", "a:b"), ("limit", "x")])).0,
            "invalid_request"
        );
    }

    proptest! {
        #[test]
        fn no_input_panics(body in "\\PC{0,80}", name in "[a-z_]{0,20}|last_sync_timestamp|limit", value in "\\PC{0,30}") {
            let _ = json(&body);
            let _ = query(&[("device_id", "d"), ("topics", &body), (&name, &value)]);
            let object = serde_json::json!({"device_id": "d", "topics": ["a:b"], name: value});
            let _ = json(&object.to_string());
        }
    }
}
