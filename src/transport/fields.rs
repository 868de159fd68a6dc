//! The fields of a request for a stream or a poll: a query string's for GET, a JSON object's for POST.
//!
//! Every mistake is answered with the field's name and what it should have been. Unknown fields are
//! ignored, so that newer apps can speak to older relays. Whether topics are granted is not decided here.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Query, Request};
use axum::http::{Method, StatusCode};
use serde_json::{Map, Value};

use super::problem_response::ProblemResponse;
use super::relay::Relay;
use super::ws::invalid_device_id;
use crate::auth::Grants;
use crate::devices::{Labels, is_device_id};
use crate::sync::SyncError;
use crate::topic::Pattern;

/// Bounds the work of reading one request; a session has far fewer subscriptions.
const MAX_TOPICS: usize = 1_000;
/// How much of an unreadable topic an error repeats, in characters.
const MAX_ECHO: usize = 100;

/// Values by name. All of a query's are texts.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl FromRequest<Arc<Relay>> for Fields {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, relay: &Arc<Relay>) -> Result<Self, ProblemResponse> {
        if request.method() != Method::POST {
            let pairs = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
            let Query(pairs) = pairs.map_err(|_| invalid("the query string cannot be decoded"))?;
            return Ok(Fields::from_query(pairs));
        }
        let body = Bytes::from_request(request, relay).await;
        let body = body.map_err(|rejection: BytesRejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ProblemResponse::bare(StatusCode::PAYLOAD_TOO_LARGE),
            _ => invalid("the request's body could not be read"),
        })?;
        Ok(Fields(serde_json::from_slice(&body).map_err(|error| SyncError::body(&error))?))
    }
}

impl Fields {
    /// `topics` are separated by commas or repeated (a topic that holds a comma needs a POST); of other
    /// fields the last one counts, and an empty one is none.
    pub(super) fn from_query(pairs: Vec<(String, String)>) -> Self {
        let mut fields = Map::new();
        let mut topics: Vec<Value> = Vec::new();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            if name == "topics" {
                topics.extend(value.split(',').filter(|part| !part.is_empty()).map(Value::from));
            } else {
                fields.insert(name, value.into());
            }
        }
        if !topics.is_empty() {
            fields.insert("topics".to_owned(), topics.into());
        }
        Fields(fields)
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of(body: Map<String, Value>) -> Self {
        Fields(body)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, field: &'static str) -> Result<Option<&str>, SyncError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => mistake(field, "must be text"),
        }
    }

    /// A whole number, which a JSON body may also hold as text.
    pub(super) fn number(&self, field: &'static str) -> Result<Option<i64>, SyncError> {
        let number = match self.get(field) {
            None => return Ok(None),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_i64(),
        };
        number.map_or_else(|| mistake(field, "must be a whole number"), |number| Ok(Some(number)))
    }

    pub(super) fn device_id(&self) -> Result<Arc<str>, ProblemResponse> {
        match self.text("device_id")? {
            Some(id) if is_device_id(id) => Ok(id.into()),
            _ => Err(invalid_device_id()),
        }
    }

    /// What the device says about itself.
    pub(super) fn labels(&self) -> Result<Labels, SyncError> {
        let label = |field| Ok::<_, SyncError>(self.text(field)?.map(str::to_owned));
        Ok(Labels::new(label("device_type")?, label("app_version")?))
    }

    /// The topics that are named, each once; without any, all that is granted.
    pub(super) fn topics(&self, grants: &Grants) -> Result<Vec<Pattern>, SyncError> {
        const EXPECTED: &str = "must be a list of topics, as in [\"user:42:*\"]";
        let texts = match self.get("topics") {
            None if grants.patterns().is_empty() => {
                return mistake("topics", "is missing, and the token grants none");
            }
            None => return Ok(grants.patterns().to_vec()),
            Some(Value::Array(texts)) if texts.is_empty() => {
                return mistake("topics", "names none; leave it out for all that the token grants");
            }
            Some(Value::Array(texts)) if texts.len() > MAX_TOPICS => {
                return mistake("topics", "names more than 1000 topics; use a pattern such as user:42:*");
            }
            Some(Value::Array(texts)) => texts,
            Some(_) => return mistake("topics", EXPECTED),
        };
        let mut topics: Vec<Pattern> = Vec::with_capacity(texts.len());
        for text in texts {
            let Value::String(text) = text else { return mistake("topics", EXPECTED) };
            let pattern = Pattern::parse(text).map_err(|source| SyncError::Topic {
                topic: text.chars().take(MAX_ECHO).collect(),
                source,
            })?;
            if !topics.contains(&pattern) {
                topics.push(pattern);
            }
        }
        Ok(topics)
    }

    pub(super) fn numbers_as_strings(&self) -> Result<bool, SyncError> {
        match self.text("numbers")? {
            None => Ok(false),
            Some("string") => Ok(true),
            Some(_) => mistake("numbers", "can only be \"string\"; leave it out for JSON numbers"),
        }
    }
}

pub(super) fn mistake<T>(field: &'static str, expected: &'static str) -> Result<T, SyncError> {
    Err(SyncError::Field { field, expected })
}

fn invalid(detail: &'static str) -> ProblemResponse {
    ProblemResponse::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(text: &str) -> Fields {
        Fields(serde_json::from_str(text).unwrap())
    }

    fn query(pairs: &[(&str, &str)]) -> Fields {
        Fields::from_query(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        )
    }

    fn texts(topics: Vec<Pattern>) -> Vec<String> {
        topics.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn body_and_query_say_the_same() {
        let grants = Grants::new(vec![Pattern::parse("user:1:*").unwrap()]);
        let of_body =
            body(r#"{"device_id":"d-1","topics":["a:b","c:d","a:b"],"wait":5,"numbers":"string","x":[]}"#);
        let of_query = query(&[
            ("device_id", "d-1"),
            ("topics", "a:b,c:d"),
            ("topics", "a:b"),
            ("wait", "5"),
            ("numbers", "string"),
            ("cursor", ""),
        ]);
        for fields in [of_body, of_query] {
            assert_eq!(&*fields.device_id().unwrap(), "d-1");
            assert_eq!(texts(fields.topics(&grants).unwrap()), ["a:b", "c:d"]);
            assert_eq!(fields.number("wait").unwrap(), Some(5));
            assert!(fields.numbers_as_strings().unwrap() && fields.text("cursor").unwrap().is_none());
        }
        assert_eq!(texts(query(&[]).topics(&grants).unwrap()), ["user:1:*"]);
        assert!(matches!(
            query(&[]).topics(&Grants::default()),
            Err(SyncError::Field { field: "topics", .. })
        ));
    }

    #[test]
    fn mistakes_name_the_field() {
        let grants = Grants::default();
        for text in [r#"{"topics":"a:b"}"#, r#"{"topics":[1]}"#, r#"{"topics":[]}"#] {
            let why = body(text).topics(&grants).unwrap_err();
            assert!(matches!(why, SyncError::Field { field: "topics", .. }), "{why}");
        }
        assert!(matches!(body(r#"{"topics":["*"]}"#).topics(&grants), Err(SyncError::Topic { .. })));
        assert!(
            body(r#"{"wait":1.5}"#).number("wait").is_err()
                && body(r#"{"wait":"x"}"#).number("wait").is_err()
        );
        assert!(body(r#"{"numbers":"float"}"#).numbers_as_strings().is_err());
        for bad in [r#"{}"#, r#"{"device_id":""}"#, r#"{"device_id":"a b"}"#, r#"{"device_id":7}"#] {
            assert!(body(bad).device_id().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(name in "topics|wait|device_id|numbers", value in "\\PC{0,80}") {
            let fields = query(&[(&name, &value)]);
            let _ = (fields.topics(&Grants::default()), fields.number("wait"), fields.device_id());
        }
    }
}
