//! The document by itself: well-formed, closed, and with examples that are what it says.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::document::{Document, accept};

/// Calls `visit` with every object of the document.
fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a Value)) {
    match value {
        Value::Object(members) => {
            visit(value);
            members.values().for_each(|member| walk(member, visit));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere_and_nothing_lies_idle() {
    let document = Document::new();
    let mut used = BTreeSet::new();
    walk(document.root(), &mut |object| {
        if let Some(to) = object["$ref"].as_str() {
            document.resolve(object);
            used.insert(to.to_owned());
        }
    });
    for (kind, components) in document.root()["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            let place = format!("#/components/{kind}/{name}");
            assert!(used.contains(&place), "nobody uses {place}");
        }
    }
}

#[test]
fn operations_are_whole() {
    let document = Document::new();
    let (mut ids, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for tag in document.root()["tags"].as_array().unwrap() {
        assert!(tags.insert(tag["name"].as_str().unwrap()));
    }
    for (method, path, operation) in document.operations() {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{what} has no operationId"));
        assert!(ids.insert(id), "{id} twice");
        assert!(
            operation["summary"].is_string() && tags.contains(operation["tags"][0].as_str().unwrap()),
            "{what}"
        );
        let mut in_path = BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = document.resolve(parameter);
            assert!(parameter["name"].is_string() && parameter["schema"].is_object(), "{what}");
            if parameter["in"] == "path" {
                assert_eq!(parameter["required"], true, "{what}");
                in_path.insert(format!("{{{}}}", parameter["name"].as_str().unwrap()));
            }
        }
        let named: BTreeSet<String> =
            path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
        assert_eq!(in_path, named, "{what}");
        let security = operation.get("security").unwrap_or(&document.root()["security"]);
        for scheme in security.as_array().unwrap().iter().flat_map(|one| one.as_object().unwrap().keys()) {
            assert!(document.root()["components"]["securitySchemes"][scheme].is_object(), "{what}: {scheme}");
        }
        let responses = operation["responses"].as_object().unwrap();
        let success = responses.keys().filter(|status| !status.starts_with(['4', '5']));
        assert_eq!(success.count(), 1, "{what}");
        for (status, response) in responses {
            let response = document.resolve(response);
            assert!(response["description"].is_string(), "{what} {status} has no description");
            let problem = &response["content"]["application/problem+json"]["schema"];
            let said = problem["properties"]["status"]["const"].as_u64();
            assert!(said.is_none_or(|said| said.to_string() == *status), "{what} {status}");
        }
    }
}

#[test]
fn answers_have_no_fields_that_are_not_written_down() {
    let document = Document::new();
    for (name, schema) in document.root()["components"]["schemas"].as_object().unwrap() {
        jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        // What is asked may hold more: newer apps speak to older relays.
        if !name.ends_with("Request") && schema["properties"].is_object() {
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
    }
}

#[test]
fn examples_are_what_they_are_examples_of() {
    let document = Document::new();
    let mut examples = 0;
    walk(document.root(), &mut |object| {
        let of_schema = object["examples"].as_array().into_iter().flatten().map(|example| (object, example));
        let of_media = object.get("example").map(|example| (&object["schema"], example));
        for (schema, example) in of_schema.chain(of_media) {
            accept(&document.validator(schema), example, "an example");
            examples += 1;
        }
    });
    assert!(examples > 30, "{examples}");
}

/// The messages that the relay's own tests hold to.
#[test]
fn the_messages_of_a_stream_are_those_of_a_socket() {
    let document = Document::new();
    let event = document.component("Event");
    let ours: BTreeSet<String> = document.root()["components"]["schemas"]["Event"]["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| document.resolve(message)["properties"]["type"]["const"].as_str().unwrap().to_owned())
        .collect();
    let mut read = BTreeSet::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/messages");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let message: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let kind = message["type"].as_str().unwrap();
        if ours.contains(kind) {
            accept(&event, &message, &path.display().to_string());
            read.insert(kind.to_owned());
        }
    }
    assert_eq!(read, ours);
}
