//! A record's object: written field by field as `row_to_json` does, and taken apart again into raw
//! fields, for columns that an update left out and for compaction.
//!
//! Raw values are never interpreted: what stood between colon and comma is handed on byte for byte,
//! white space of `json` columns included.

use std::borrow::Cow;

use super::{ValueError, escape, write_value};
use crate::postgres::types::Type;

/// A text is not a JSON object as this module writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored record is damaged: expected {expected} at byte {offset}")]
pub struct RecordError {
    pub expected: &'static str,
    pub offset: usize,
}

impl RecordError {
    pub(super) fn new(expected: &'static str, offset: usize) -> Self {
        RecordError { expected, offset }
    }
}

/// Writes `{"a":1,"b":null}`, without white space, as `row_to_json` does.
#[derive(Debug)]
pub struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> ObjectWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        ObjectWriter { out, empty: true }
    }

    /// Begins a field. The caller appends exactly one JSON value to what this returns.
    pub fn key(&mut self, name: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        escape::write_string(name, self.out);
        self.out.push(b':');
        self.out
    }

    /// A column's value from its text; `None` is NULL.
    ///
    /// On an error the object is unfinished: the caller discards it.
    pub fn value(&mut self, name: &str, ty: &Type, text: Option<&[u8]>) -> Result<(), ValueError> {
        let out = self.key(name);
        match text {
            Some(text) => write_value(ty, text, out),
            None => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    /// A value that is JSON already.
    pub fn raw(&mut self, name: &str, json: &str) {
        self.key(name).extend_from_slice(json.as_bytes());
    }

    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// The fields of an object in order: names unescaped, values raw. Nothing follows an error.
pub fn object_fields(json: &str) -> ObjectFields<'_> {
    ObjectFields { json, at: 0, state: State::Start }
}

/// See [`object_fields`].
#[derive(Debug, Clone)]
pub struct ObjectFields<'a> {
    json: &'a str,
    at: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Fields,
    Ended,
}

impl<'a> ObjectFields<'a> {
    fn step(&mut self) -> Result<Option<(Cow<'a, str>, &'a str)>, RecordError> {
        let bytes = self.json.as_bytes();
        match (self.state, bytes.get(self.at)) {
            (State::Ended, _) => return Ok(None),
            (State::Start, Some(b'{')) if bytes.get(1) == Some(&b'}') => {
                self.at = 2;
                return self.end();
            }
            (State::Start, Some(b'{')) | (State::Fields, Some(b',')) => {}
            (State::Start, _) => return Err(RecordError::new("an object", self.at)),
            (State::Fields, Some(b'}')) => {
                self.at += 1;
                return self.end();
            }
            (State::Fields, _) => return Err(RecordError::new("the end of an object", self.at)),
        }
        self.state = State::Fields;
        let open = self.at + 1;
        if bytes.get(open) != Some(&b'"') {
            return Err(RecordError::new("a field's name", open));
        }
        let colon = string_end(bytes, open)?;
        if bytes.get(colon) != Some(&b':') {
            return Err(RecordError::new("a colon", colon));
        }
        let end = value_end(bytes, colon + 1)?;
        self.at = end;
        let name = unescape(&self.json[open..colon]).ok_or(RecordError::new("a field's name", open))?;
        Ok(Some((name, &self.json[colon + 1..end])))
    }

    fn end<T>(&mut self) -> Result<Option<T>, RecordError> {
        self.state = State::Ended;
        if self.at == self.json.len() {
            Ok(None)
        } else {
            Err(RecordError::new("nothing after an object", self.at))
        }
    }
}

impl<'a> Iterator for ObjectFields<'a> {
    type Item = Result<(Cow<'a, str>, &'a str), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.state = State::Ended;
        }
        step.transpose()
    }
}

/// Appends the object that holds, in the order of `columns`, each one's value in `newer`, else the one
/// in `older`; what neither has is left out.
pub fn merge(newer: &str, older: &str, columns: &[&str], out: &mut Vec<u8>) -> Result<(), RecordError> {
    let newer: Vec<_> = object_fields(newer).collect::<Result<_, _>>()?;
    let older: Vec<_> = object_fields(older).collect::<Result<_, _>>()?;
    let (mut newer, mut older) = (Lookup::new(&newer), Lookup::new(&older));
    let mut object = ObjectWriter::new(out);
    for column in columns {
        // Both cursors move on, so that neither falls behind.
        let (new, old) = (newer.find(column), older.find(column));
        if let Some(value) = new.or(old) {
            object.raw(column, value);
        }
    }
    object.end();
    Ok(())
}

/// Finds fields by name; at once where they are asked for in the order in which they stand.
struct Lookup<'f, 'a> {
    fields: &'f [(Cow<'a, str>, &'a str)],
    next: usize,
}

impl<'f, 'a> Lookup<'f, 'a> {
    fn new(fields: &'f [(Cow<'a, str>, &'a str)]) -> Self {
        Lookup { fields, next: 0 }
    }

    fn find(&mut self, name: &str) -> Option<&'a str> {
        let (later, earlier) = (self.fields.get(self.next..)?, self.fields.get(..self.next)?);
        let at = match later.iter().position(|field| field.0 == name) {
            Some(at) => self.next + at,
            None => earlier.iter().position(|field| field.0 == name)?,
        };
        self.next = at + 1;
        Some(self.fields.get(at)?.1)
    }
}

/// Where the string whose opening quote is at `open` ends.
pub(super) fn string_end(json: &[u8], open: usize) -> Result<usize, RecordError> {
    let unclosed = || RecordError::new("a closing quote", json.len());
    let mut at = open + 1;
    loop {
        let rest = json.get(at..).ok_or_else(unclosed)?;
        at += memchr::memchr2(b'"', b'\\', rest).ok_or_else(unclosed)?;
        if json[at] == b'"' {
            return Ok(at + 1);
        }
        at += 2;
    }
}

/// Where the raw value at `at` ends: at the comma or bracket that belongs to what is around it.
pub(super) fn value_end(json: &[u8], mut at: usize) -> Result<usize, RecordError> {
    let start = at;
    let mut depth = 0_usize;
    loop {
        match json.get(at).ok_or(RecordError::new("the end of a value", at))? {
            b'"' => {
                at = string_end(json, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            b'}' | b']' | b',' if depth == 0 => {
                return if at == start { Err(RecordError::new("a value", at)) } else { Ok(at) };
            }
            _ => {}
        }
        at += 1;
    }
}

/// The text behind a JSON string, quotes included.
pub(super) fn unescape(string: &str) -> Option<Cow<'_, str>> {
    if string.contains('\\') {
        return serde_json::from_str(string).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(string.get(1..string.len().checked_sub(1)?)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(json: &str) -> Result<Vec<(String, String)>, RecordError> {
        object_fields(json)
            .map(|field| field.map(|(name, raw)| (name.into_owned(), raw.to_owned())))
            .collect()
    }

    #[test]
    fn fields_keep_their_raw_text() {
        let json = r#"{"a":1,"b \"q\"":  {"x" : [1, "}"] } ,"c":"\\\",","d":null}"#;
        let expected =
            [("a", "1"), ("b \"q\"", r#"  {"x" : [1, "}"] } "#), ("c", r#""\\\",""#), ("d", "null")];
        assert_eq!(fields(json).unwrap(), expected.map(|(name, raw)| (name.to_owned(), raw.to_owned())));
        let mut again = Vec::new();
        let mut object = ObjectWriter::new(&mut again);
        for (name, raw) in &fields(json).unwrap() {
            object.raw(name, raw);
        }
        object.end();
        assert_eq!(String::from_utf8(again).unwrap(), json);
        assert_eq!(fields("{}"), Ok(vec![]));
    }

    #[test]
    fn damage_is_an_error_and_ends_the_fields() {
        for json in [
            "",
            "{",
            "[]",
            "{}x",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,}",
            "{\"a\":1}}",
            "{\"a\":[1}",
            "{\"a\":\"",
            "{\"a\\",
            "{\"\\x\":1}",
            "{a:1}",
            "{\"a\":1]",
        ] {
            assert!(fields(json).is_err(), "{json}");
        }
        let mut damaged = object_fields("{\"a\":1,x");
        assert!(damaged.next().unwrap().is_ok());
        assert!(damaged.next().unwrap().is_err());
        assert!(damaged.next().is_none());
    }

    #[test]
    fn newer_values_win_in_the_order_of_the_columns() {
        let mut out = Vec::new();
        merge(r#"{"a":1,"c":3}"#, r#"{"c":0,"b":2,"a":0,"x":9}"#, &["a", "b", "c", "none"], &mut out)
            .unwrap();
        assert_eq!(out, br#"{"a":1,"b":2,"c":3}"#);
        assert!(merge("{", "{}", &[], &mut out).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(json in "[{}\\[\\],:\"\\\\a1 é]{0,40}") {
            for field in object_fields(&json) {
                let _ = field;
            }
        }
    }
}
