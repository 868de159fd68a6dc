//! `numbers=string`: quotes int8 and numeric in a record that is written already, for clients whose
//! numbers are doubles.
//!
//! A [`Quoting`] is made once for each column, from its type; rewriting then needs no type and leaves
//! everything else byte for byte as it was, json and jsonb columns included. Nulls and what PostgreSQL
//! quotes itself (NaN, the infinities) stay.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::object::{RecordError, string_end, unescape, value_end};
use super::scalar::number_end;
use crate::postgres::types::{Kind, Type};

/// Where int8 and numeric stand within the values of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quoting {
    Nothing,
    /// The value is a number.
    Number,
    /// An array, of any number of dimensions, and arrays of arrays through a domain: what is in it.
    Elements(Box<Quoting>),
    /// A composite's fields in order.
    Fields(Vec<(String, Quoting)>),
}

impl Quoting {
    pub fn of(ty: &Type) -> Quoting {
        match &ty.kind {
            Kind::WideNumber => Quoting::Number,
            Kind::Array { element, .. } | Kind::Vector { element } => match Quoting::of(element) {
                Quoting::Nothing => Quoting::Nothing,
                elements @ Quoting::Elements(_) => elements,
                element => Quoting::Elements(Box::new(element)),
            },
            Kind::Composite { fields } => {
                let fields: Vec<_> =
                    fields.iter().map(|(name, ty)| (name.clone(), Quoting::of(ty))).collect();
                if fields.iter().all(|(_, quoting)| quoting.is_nothing()) {
                    Quoting::Nothing
                } else {
                    Quoting::Fields(fields)
                }
            }
            Kind::Bool
            | Kind::Number
            | Kind::Date
            | Kind::Timestamp
            | Kind::TimestampTz
            | Kind::Json
            | Kind::Jsonb
            | Kind::Text
            | Kind::Hstore
            | Kind::Unsupported { .. } => Quoting::Nothing,
        }
    }

    pub fn is_nothing(&self) -> bool {
        *self == Quoting::Nothing
    }
}

/// Appends a record's object with the numbers of `columns` quoted. Columns may be missing from the
/// record and fields from `columns`; fastest where both have the same order. On an error `out` is as it was.
pub fn quote_numbers(
    json: &str,
    columns: &[(String, Quoting)],
    out: &mut Vec<u8>,
) -> Result<(), RecordError> {
    out.reserve(json.len() + 2 * columns.len());
    let start = out.len();
    let mut pass = Pass { json, at: 0, copied: 0, out };
    let result = pass.object(columns).and_then(|()| pass.finish());
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// One walk over a record. What lies between `copied` and `at` is output unchanged when needed.
struct Pass<'a, 'o> {
    json: &'a str,
    at: usize,
    copied: usize,
    out: &'o mut Vec<u8>,
}

impl<'a> Pass<'a, '_> {
    /// As deep as `columns` is, whatever the record holds.
    fn object(&mut self, columns: &[(String, Quoting)]) -> Result<(), RecordError> {
        self.expect(b'{', "an object")?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut expected = 0;
        loop {
            let name = self.name()?;
            self.expect(b':', "a colon")?;
            match find(columns, &mut expected, &name) {
                None | Some(Quoting::Nothing) => self.at = value_end(self.json.as_bytes(), self.at)?,
                Some(quoting) => self.value(quoting)?,
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}', "the end of an object"),
            }
        }
    }

    fn value(&mut self, quoting: &Quoting) -> Result<(), RecordError> {
        match (quoting, self.peek()) {
            (Quoting::Nothing, _) | (_, Some(b'n')) => {
                self.at = value_end(self.json.as_bytes(), self.at)?;
                Ok(())
            }
            (Quoting::Number, Some(b'"')) => {
                self.at = string_end(self.json.as_bytes(), self.at)?;
                Ok(())
            }
            (Quoting::Number, _) => self.number(),
            (Quoting::Elements(element), _) => self.array(element),
            (Quoting::Fields(fields), _) => self.object(fields),
        }
    }

    fn number(&mut self) -> Result<(), RecordError> {
        let rest = &self.json.as_bytes()[self.at..];
        let length = number_end(rest).ok_or(RecordError::new("a number", self.at))?;
        self.copy();
        self.out.push(b'"');
        self.at += length;
        self.copy();
        self.out.push(b'"');
        Ok(())
    }

    /// Of any number of dimensions: an inner bracket is one more, for elements are never arrays.
    fn array(&mut self, element: &Quoting) -> Result<(), RecordError> {
        let mut dimensions = 0_usize;
        loop {
            while self.peek() == Some(b'[') {
                dimensions += 1;
                self.at += 1;
            }
            if dimensions == 0 {
                return Err(RecordError::new("an array", self.at));
            }
            if self.peek() != Some(b']') {
                self.value(element)?;
            }
            while dimensions > 0 && self.peek() == Some(b']') {
                dimensions -= 1;
                self.at += 1;
            }
            if dimensions == 0 {
                return Ok(());
            }
            self.expect(b',', "the end of an array")?;
        }
    }

    fn name(&mut self) -> Result<Cow<'a, str>, RecordError> {
        let open = self.at;
        if self.peek() != Some(b'"') {
            return Err(RecordError::new("a field's name", open));
        }
        self.at = string_end(self.json.as_bytes(), open)?;
        unescape(&self.json[open..self.at]).ok_or(RecordError::new("a field's name", open))
    }

    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), RecordError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(RecordError::new(expected, self.at))
        }
    }

    fn copy(&mut self) {
        self.out.extend_from_slice(&self.json.as_bytes()[self.copied..self.at]);
        self.copied = self.at;
    }

    fn finish(&mut self) -> Result<(), RecordError> {
        self.copy();
        if self.at == self.json.len() {
            Ok(())
        } else {
            Err(RecordError::new("nothing after an object", self.at))
        }
    }
}

/// Looks at the column after the last one found first.
fn find<'c>(columns: &'c [(String, Quoting)], expected: &mut usize, name: &str) -> Option<&'c Quoting> {
    let at = match columns.get(*expected) {
        Some(column) if column.0 == name => *expected,
        _ => columns.iter().position(|column| column.0 == name)?,
    };
    *expected = at + 1;
    columns.get(at).map(|column| &column.1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> Vec<(String, Quoting)> {
        let price = Quoting::Fields(vec![
            ("amount".to_owned(), Quoting::Number),
            ("currency".to_owned(), Quoting::Nothing),
        ]);
        [
            ("id", Quoting::Number),
            ("doc", Quoting::Nothing),
            ("list", Quoting::Elements(Box::new(Quoting::Number))),
            ("prices", Quoting::Elements(Box::new(price))),
        ]
        .map(|(name, quoting)| (name.to_owned(), quoting))
        .to_vec()
    }

    fn quote(json: &str) -> Result<String, RecordError> {
        let mut out = b"before".to_vec();
        let result = quote_numbers(json, &plan(), &mut out);
        let out = String::from_utf8(out).unwrap();
        let json = out.strip_prefix("before").unwrap();
        result.map(|()| json.to_owned()).inspect_err(|_| assert_eq!(json, ""))
    }

    #[test]
    fn only_the_numbers_of_the_plan_are_quoted() {
        for (json, expected) in [
            ("{}", "{}"),
            (r#"{"id":1,"doc": {"id" : [1, 2]} ,"x":3}"#, r#"{"id":"1","doc": {"id" : [1, 2]} ,"x":3}"#),
            (r#"{"id":null,"list":null}"#, r#"{"id":null,"list":null}"#),
            (
                r#"{"id":"NaN","list":["Infinity",-1.5e9,null]}"#,
                r#"{"id":"NaN","list":["Infinity","-1.5e9",null]}"#,
            ),
            (r#"{"list":[[1,null],[[],2]]}"#, r#"{"list":[["1",null],[[],"2"]]}"#),
            (
                r#"{"prices":[{"amount":1.50,"currency":"1"},null,{"amount":null,"currency":null}],"id":9}"#,
                r#"{"prices":[{"amount":"1.50","currency":"1"},null,{"amount":null,"currency":null}],"id":"9"}"#,
            ),
        ] {
            assert_eq!(quote(json).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_plan_follows_the_type() {
        let of = |oid| Quoting::of(&Type::builtin(oid).unwrap());
        assert_eq!((of(20), of(1700)), (Quoting::Number, Quoting::Number));
        assert_eq!(of(1016), Quoting::Elements(Box::new(Quoting::Number)));
        assert_eq!(
            (of(23), of(701), of(114), of(1007)),
            (Quoting::Nothing, Quoting::Nothing, Quoting::Nothing, Quoting::Nothing)
        );
    }

    #[test]
    fn damage_is_an_error() {
        for json in [
            "",
            "{",
            "[",
            "{\"id\":1",
            "{\"id\":}",
            "{\"id\":x}",
            "{\"id\":1 }",
            "{\"id\":{}}",
            "{\"list\":[1}",
            "{\"list\":[1]]}",
            "{\"list\":{}}",
            "{\"list\":[,]}",
            "{\"prices\":[1]}",
            "{\"id\":1}x",
            "{\"id\" :1}",
        ] {
            assert!(quote(json).is_err(), "{json}");
        }
        assert!(quote(&format!("{{\"list\":{}", "[".repeat(1_000_000))).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(json in "(\\{|\\}|\\[|\\]|,|:|null|1|\"id\"|\"list\"|\"prices\"|\"|\\\\|é| ){0,30}") {
            let _ = quote(&json);
        }
    }
}
