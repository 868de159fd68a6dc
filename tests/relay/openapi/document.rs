//! The document as a judge of answers.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Map, Value};

use crate::support::http::{Headers, Open, Response};

/// As it is in the repository.
pub(super) const TEXT: &str = include_str!("../../../src/transport/openapi.json");

/// Header fields that no answer has unless the document says so.
const TOLD: [&str; 4] = ["RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"];

pub(super) struct Document {
    root: Value,
    /// Operations by their ids, with the statuses that were judged.
    pub(super) seen: BTreeSet<(String, u16)>,
}

impl Document {
    pub(super) fn new() -> Self {
        Document { root: serde_json::from_str(TEXT).unwrap(), seen: BTreeSet::new() }
    }

    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// Where a value's `$ref` leads, or the value itself.
    pub(super) fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            None => value,
            Some(to) => {
                let place = to.strip_prefix('#').unwrap_or_else(|| panic!("{to} is elsewhere"));
                self.root.pointer(place).unwrap_or_else(|| panic!("{to} is nowhere"))
            }
        }
    }

    /// Method, path and operation.
    pub(super) fn operations(&self) -> impl Iterator<Item = (String, &str, &Value)> {
        self.root["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter();
            methods.map(|(method, operation)| (method.to_ascii_uppercase(), path.as_str(), operation))
        })
    }

    /// Of a schema that may refer to others of the document.
    pub(super) fn validator(&self, schema: &Value) -> Validator {
        let mut schema: Map<String, Value> = schema.as_object().unwrap().clone();
        schema.insert("components".to_owned(), self.root["components"].clone());
        let options = jsonschema::options().should_validate_formats(true);
        options.build(&schema.into()).unwrap_or_else(|error| panic!("no schema: {error}"))
    }

    pub(super) fn component(&self, name: &str) -> Validator {
        self.validator(&serde_json::json!({"$ref": format!("#/components/schemas/{name}")}))
    }

    /// Judges a whole answer to an operation.
    pub(super) fn judge(&mut self, id: &str, answer: &Response) {
        let schema = self.answered(id, answer.status, &answer.headers);
        let Some(schema) = schema else { return assert!(answer.body.is_empty(), "{id}") };
        let validator = self.validator(&schema);
        match answer.headers.get("content-type").unwrap() {
            "application/json" | "application/problem+json" => accept(&validator, &answer.json(), id),
            "application/x-ndjson" => {
                assert!(!answer.text().is_empty());
                for line in answer.text().lines() {
                    accept(&validator, &serde_json::from_str(line).unwrap(), id);
                }
            }
            _ => accept(&validator, &answer.text().into(), id),
        }
    }

    /// Judges the head of a stream; gives what its events are judged by.
    pub(super) fn judge_stream(&mut self, id: &str, stream: &Open) -> Validator {
        let schema = self.answered(id, stream.status, &stream.headers).expect("a schema");
        self.validator(&schema)
    }

    /// The schema of an answer's body, whose head is judged here.
    fn answered(&mut self, id: &str, status: u16, headers: &Headers) -> Option<Value> {
        let (_, _, operation) = self.operations().find(|(.., o)| o["operationId"] == id).unwrap();
        let response = self.resolve(&operation["responses"][status.to_string()]);
        assert!(response.is_object(), "{id} answers {status}, which is not documented");
        for name in TOLD {
            let told = self.resolve(&response["headers"][name]);
            let value = headers.get(&name.to_ascii_lowercase());
            assert!(value.is_none() || told.is_object(), "{id} {status} has {name}, which is not documented");
            assert!(value.is_some() || told["required"] != true, "{id} {status} lacks {name}");
        }
        let contents = response["content"].as_object();
        let schema = contents.map(|contents| {
            let media = headers.get("content-type").unwrap_or_default();
            let content = contents.get(media);
            content.unwrap_or_else(|| panic!("{id} {status}: {media:?} is not documented"))["schema"].clone()
        });
        assert_eq!(headers.get("cache-control"), Some("no-store"));
        self.seen.insert((id.to_owned(), status));
        schema
    }
}

pub(super) fn accept(validator: &Validator, value: &Value, what: &str) {
    let mistakes: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{error} at {:?}", error.instance_path().to_string()))
        .collect();
    assert!(mistakes.is_empty(), "{what}: {value}\n{}", mistakes.join("\n"));
}
