//! Values as JSON: from the text that pgoutput sends to what `row_to_json` prints, byte for byte.
//!
//! Between decoding and routing, and pure: no I/O, no clock, no state. The text is that of a session
//! with `client_encoding=UTF8`, `datestyle=ISO`, `intervalstyle=postgres`, `extra_float_digits=1`,
//! `bytea_output=hex`, `timezone=UTC` and `lc_monetary=C`. One thing differs from PostgreSQL on
//! purpose: newlines between the tokens of a `json` value become spaces, so that a record is one line.
//!
//! A text that does not fit its type is an error and leaves the output as it was; nothing panics and
//! recursion is bounded, whatever the input. Errors never carry the value.
//!
//! Must not know: tables, topics, the log. [`object`] takes records apart again, [`numbers`] quotes
//! what JavaScript cannot hold.

mod array;
mod composite;
mod escape;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hstore;
pub mod numbers;
pub mod object;
mod scalar;
mod unquote;

use crate::postgres::types::{Kind, MAX_DEPTH, Type, Unsupported};

pub use escape::write_string;
pub use object::{ObjectWriter, object_fields};

/// The text of a value is not what its type prints. Offsets count bytes from the value's start; within
/// a quoted element they are short by the escapes before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("expected {expected} at byte {offset} of a value; the type may have changed")]
    Expected { expected: &'static str, offset: usize },
    #[error("byte {offset} of a value is not UTF-8; mend the row, or use bytea")]
    Encoding { offset: usize },
    #[error("values of type {name} cannot be written: {why}")]
    Unsupported { name: String, why: Unsupported },
    #[error("a value nests more than {MAX_DEPTH} types")]
    TooDeep,
}

impl ValueError {
    fn expected(expected: &'static str, offset: usize) -> Self {
        ValueError::Expected { expected, offset }
    }

    /// Moves an error of a part to its place in the whole.
    fn within(self, start: usize) -> Self {
        match self {
            ValueError::Expected { expected, offset } => {
                ValueError::Expected { expected, offset: offset + start }
            }
            ValueError::Encoding { offset } => ValueError::Encoding { offset: offset + start },
            other => other,
        }
    }
}

/// Appends the JSON of one value that is not NULL. On an error `out` is as it was.
pub fn write_value(ty: &Type, text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    // Everything after this splits the text at ASCII bytes only, so that parts stay UTF-8.
    if let Err(error) = std::str::from_utf8(text) {
        return Err(ValueError::Encoding { offset: error.valid_up_to() });
    }
    let start = out.len();
    let written = write_nested(ty, text, out, 0);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// `text` is valid UTF-8; `depth` types are around it.
fn write_nested(ty: &Type, text: &[u8], out: &mut Vec<u8>, depth: usize) -> Result<(), ValueError> {
    if depth > MAX_DEPTH {
        return Err(ValueError::TooDeep);
    }
    match &ty.kind {
        Kind::Bool => scalar::write_bool(text, out),
        Kind::Number | Kind::WideNumber => scalar::write_number(text, out),
        Kind::Date => scalar::write_date(text, out),
        Kind::Timestamp => scalar::write_timestamp(text, false, out),
        Kind::TimestampTz => scalar::write_timestamp(text, true, out),
        Kind::Json | Kind::Jsonb => {
            scalar::write_json(text, out);
            Ok(())
        }
        Kind::Text => {
            escape::write_bytes(text, out);
            Ok(())
        }
        Kind::Array { element, delimiter } => array::write(element, *delimiter, text, out, depth + 1),
        Kind::Vector { element } => array::write_vector(element, text, out, depth + 1),
        Kind::Composite { fields } => composite::write(fields, text, out, depth + 1),
        Kind::Hstore => hstore::write(text, out),
        Kind::Unsupported { why } => Err(ValueError::Unsupported { name: ty.name.clone(), why: *why }),
    }
}

#[cfg(test)]
mod tests;
