//! Any text as a value of any type; and values printed as PostgreSQL prints them, against a model.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::numbers::{Quoting, quote_numbers};
use super::object::merge;
use super::{ObjectWriter, object_fields, write_string, write_value};
use crate::fuzzing::Source;
use crate::postgres::types::{Kind, Type};

/// How deep types nest here; what is deeper is refused, which tests beside the code show.
const DEPTH: u8 = 3;

/// Types whose texts are of all shapes: bool, int8, int2vector, int4, text, json, float8, bytea, uuid, date,
/// timestamp, timestamptz, numeric, jsonb, int4[], text[], numeric[], box[], regclass.
const BUILTIN: [u32; 19] =
    [16, 20, 22, 23, 25, 114, 701, 17, 2950, 1082, 1114, 1184, 1700, 3802, 1007, 1009, 1231, 1020, 2205];

/// A text is refused, and leaves nothing behind, or becomes one value of JSON on one line.
pub(crate) fn text(data: &[u8]) {
    let mut source = Source::new(data);
    let ty = any_type(&mut source, DEPTH);
    let text = source.rest();
    let mut out = b"before".to_vec();
    let written = write_value(&ty, text, &mut out);
    let json = out.strip_prefix(b"before").expect("what was there stays");
    if let Err(error) = written {
        assert!(json.is_empty(), "{error}");
        return;
    }
    let json = std::str::from_utf8(json).expect("text");
    // What PostgreSQL has checked is not checked again: a text that is no JSON is no value of type json.
    if is_json(json) {
        assert!(!json.contains(['\n', '\r']), "one line: {json:?}");
        // Within others a text that is no JSON may pull what is around it along.
        if !holds_json(&ty) || matches!(ty.kind, Kind::Json | Kind::Jsonb) {
            record(&ty, json);
        }
    } else {
        assert!(holds_json(&ty), "{json:?}");
    }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The value comes back from a record as it was, and its wide numbers can be quoted.
fn record(ty: &Type, json: &str) {
    let mut record = Vec::new();
    let mut object = ObjectWriter::new(&mut record);
    object.raw("a\"b", "1");
    object.raw("c", json);
    object.end();
    let record = String::from_utf8(record).expect("text");
    let fields: Vec<_> = object_fields(&record).map(|field| field.expect("a record")).collect();
    let fields: Vec<_> = fields.iter().map(|(name, raw)| (name.as_ref(), *raw)).collect();
    assert_eq!(fields, [("a\"b", "1"), ("c", json)]);

    let quoting = Quoting::of(ty);
    let mut quoted = Vec::new();
    let columns = [("a\"b".to_owned(), Quoting::Nothing), ("c".to_owned(), quoting.clone())];
    quote_numbers(&record, &columns, &mut quoted).expect("a record of this type");
    let expected = format!("{{\"a\\\"b\":1,\"c\":{}}}", with_quotes(&quoting, json));
    assert_eq!(String::from_utf8(quoted).expect("text"), expected);
}

/// What `numbers=string` makes of a value, by a JSON reader of another make.
fn with_quotes(quoting: &Quoting, json: &str) -> String {
    let number = json.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    match quoting {
        _ if json == "null" => json.to_owned(),
        Quoting::Number if number => format!("\"{json}\""),
        Quoting::Nothing | Quoting::Number => json.to_owned(),
        Quoting::Elements(element) => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).expect("an array");
            let quoted = elements.iter().map(|raw| match raw.get() {
                inner if inner.starts_with('[') => with_quotes(quoting, inner),
                inner => with_quotes(element, inner),
            });
            format!("[{}]", quoted.collect::<Vec<_>>().join(","))
        }
        Quoting::Fields(fields) => {
            let found = object_fields(json).map(|field| field.expect("an object").1);
            let quoted = fields.iter().zip(found).map(|((name, quoting), raw)| {
                let mut key = Vec::new();
                write_string(name, &mut key);
                format!("{}:{}", String::from_utf8_lossy(&key), with_quotes(quoting, raw))
            });
            format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
        }
    }
}

fn holds_json(ty: &Type) -> bool {
    match &ty.kind {
        Kind::Json | Kind::Jsonb => true,
        Kind::Array { element, .. } | Kind::Vector { element } => holds_json(element),
        Kind::Composite { fields } => fields.iter().any(|(_, field)| holds_json(field)),
        _ => false,
    }
}

fn made(kind: Kind) -> Arc<Type> {
    Arc::new(Type { oid: 99_999, name: "public.made".to_owned(), kind })
}

fn any_type(source: &mut Source<'_>, depth: u8) -> Arc<Type> {
    let choice = source.byte();
    let nested = if depth == 0 { 0 } else { choice >> 5 };
    match nested {
        1 => made(Kind::Hstore),
        2 => made(Kind::Array { element: any_type(source, depth - 1), delimiter: b',' }),
        3 => made(Kind::Array { element: any_type(source, depth - 1), delimiter: b';' }),
        4 => composite(source, depth, choice & 3),
        _ => builtin(BUILTIN[usize::from(choice & 31) % BUILTIN.len()]),
    }
}

fn composite(source: &mut Source<'_>, depth: u8, width: u8) -> Arc<Type> {
    // Names come in twice where there are more: PostgreSQL's own never do, but nothing may hang on it.
    let names = ["a", "b \"quoted\"", "é"];
    let field = |name: &&str| ((*name).to_owned(), any_type(source, depth - 1));
    made(Kind::Composite { fields: names.iter().take(usize::from(width)).map(field).collect() })
}

fn builtin(oid: u32) -> Arc<Type> {
    Type::builtin(oid).expect("a type of every server")
}

/// A value of a type, printed as its output function does, becomes the JSON that its parts make.
pub(crate) fn printed(data: &[u8]) {
    let mut source = Source::new(data);
    let ty = printable(&mut source, DEPTH);
    let (text, json) = print(&ty, &mut source);
    let mut out = Vec::new();
    write_value(&ty, text.as_bytes(), &mut out).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    assert_eq!(String::from_utf8_lossy(&out), json, "{text:?}");
    record(&ty, &json);
}

fn printable(source: &mut Source<'_>, depth: u8) -> Arc<Type> {
    let choice = source.byte();
    match if depth == 0 { choice % 4 } else { choice % 9 } {
        0 => builtin(16),
        1 => builtin(20),
        2 | 3 => builtin(25),
        4 => made(Kind::Hstore),
        5 | 6 => {
            let delimiter = if choice & 16 == 0 { b',' } else { b';' };
            made(Kind::Array { element: printable(source, depth - 1), delimiter })
        }
        _ => {
            let names = ["a", "b \"quoted\"", "é"];
            let width = usize::from(source.below(4));
            let field = |name: &&str| ((*name).to_owned(), printable(source, depth - 1));
            made(Kind::Composite { fields: names.iter().take(width).map(field).collect() })
        }
    }
}

/// A value as text and as JSON.
fn print(ty: &Type, source: &mut Source<'_>) -> (String, String) {
    match &ty.kind {
        Kind::Bool if source.flag() => ("t".to_owned(), "true".to_owned()),
        Kind::Bool => ("f".to_owned(), "false".to_owned()),
        Kind::WideNumber => {
            let number = source.u64().cast_signed().to_string();
            (number.clone(), number)
        }
        Kind::Hstore => print_hstore(source),
        Kind::Array { element, delimiter } => print_array(element, char::from(*delimiter), source),
        Kind::Composite { fields } => {
            let (mut texts, mut members) = (Vec::new(), Vec::new());
            for (name, ty) in fields {
                let (text, json) = match source.flag() {
                    true => (String::new(), "null".to_owned()),
                    false => {
                        let (text, json) = print(ty, source);
                        (in_record(&text), json)
                    }
                };
                texts.push(text);
                members.push(format!("{}:{json}", json_string(name)));
            }
            (format!("({})", texts.join(",")), format!("{{{}}}", members.join(",")))
        }
        _ => {
            let text = source.text().replace('\0', "");
            let json = json_string(&text);
            (text, json)
        }
    }
}

/// Of one dimension, or of two; empty arrays have none.
fn print_array(element: &Type, delimiter: char, source: &mut Source<'_>) -> (String, String) {
    let (rows, width, bounds) = (source.below(4), source.below(4), source.flag());
    let mut row = || {
        let (mut texts, mut members) = (Vec::new(), Vec::new());
        for _ in 0..width {
            let (text, json) = match source.flag() {
                true => ("NULL".to_owned(), "null".to_owned()),
                false => {
                    let (text, json) = print(element, source);
                    (in_array(&text, delimiter), json)
                }
            };
            texts.push(text);
            members.push(json);
        }
        (format!("{{{}}}", texts.join(&delimiter.to_string())), format!("[{}]", members.join(",")))
    };
    match (rows, width) {
        (_, 0) => ("{}".to_owned(), "[]".to_owned()),
        (0, _) => row(),
        (1, _) if bounds => {
            let (text, json) = row();
            (format!("[-1:{}]={text}", i16::from(width) - 2), json)
        }
        _ => {
            let rows: Vec<_> = (0..rows).map(|_| row()).collect();
            let texts: Vec<_> = rows.iter().map(|(text, _)| text.as_str()).collect();
            let members: Vec<_> = rows.iter().map(|(_, json)| json.as_str()).collect();
            (format!("{{{}}}", texts.join(&delimiter.to_string())), format!("[{}]", members.join(",")))
        }
    }
}

/// `array_out`.
fn in_array(text: &str, delimiter: char) -> String {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}') || c == delimiter || is_space(c);
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

/// `record_out`.
fn in_record(text: &str) -> String {
    let special = |c: char| matches!(c, '"' | '\\' | '(' | ')' | ',') || is_space(c);
    if text.is_empty() || text.contains(special) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// `scanner_isspace`, which knows ASCII alone.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `hstore_out`, and the extension's cast to json.
fn print_hstore(source: &mut Source<'_>) -> (String, String) {
    let (mut texts, mut members) = (Vec::new(), Vec::new());
    for _ in 0..source.below(4) {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let (key, null) = (source.text(), source.flag());
        let (value, json) = match null {
            true => ("NULL".to_owned(), "null".to_owned()),
            false => {
                let value = source.text();
                (quoted(&value), json_string(&value))
            }
        };
        texts.push(format!("{}=>{value}", quoted(&key)));
        members.push(format!("{}: {json}", json_string(&key)));
    }
    (texts.join(", "), format!("{{{}}}", members.join(", ")))
}

/// By a JSON writer of another make, whose escapes are those of PostgreSQL.
fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a text")
}

/// Any text as stored records: taken apart within its bounds, and merged only into an object.
pub(crate) fn objects(data: &[u8]) {
    let mut source = Source::new(data);
    let (older, newer) = (source.text(), source.rest_text());
    for text in [&older, &newer] {
        let mut fields = object_fields(text);
        let read: Result<Vec<_>, _> = fields.by_ref().collect();
        assert!(fields.next().is_none(), "nothing follows the end or an error");
        let Ok(read) = read else { continue };
        assert!(read.iter().map(|(_, raw)| raw.len()).sum::<usize>() <= text.len());
        if is_json(text) {
            assert!(read.iter().all(|(_, raw)| is_json(raw)), "{text:?}");
        }
    }
    let names: Vec<String> = object_fields(&newer)
        .chain(object_fields(&older))
        .filter_map(|field| Some(field.ok()?.0.into_owned()))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut merged = Vec::new();
    if merge(&newer, &older, &names, &mut merged).is_ok() && is_json(&newer) && is_json(&older) {
        assert!(is_json(&String::from_utf8_lossy(&merged)), "{older:?} {newer:?}");
    }
    let columns: Vec<_> = names.iter().map(|name| ((*name).to_owned(), Quoting::Number)).collect();
    let mut quoted = b"before".to_vec();
    if quote_numbers(&newer, &columns, &mut quoted).is_err() {
        assert_eq!(quoted, b"before");
    }
}
