//! Composites: `(1,,"a ""b""")`, where nothing between the commas is NULL and `""` is empty.

use std::sync::Arc;

use super::unquote::{Style, quoted};
use super::{ObjectWriter, ValueError, write_nested};
use crate::postgres::types::Type;

/// `depth` types are around the fields.
pub(super) fn write(
    fields: &[(String, Arc<Type>)],
    text: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ValueError> {
    let mut object = ObjectWriter::new(out);
    let mut scratch = Vec::new();
    if text.first() != Some(&b'(') {
        return Err(ValueError::expected("a composite's opening parenthesis", 0));
    }
    let mut at = 1;
    for (index, (name, ty)) in fields.iter().enumerate() {
        if index > 0 {
            if text.get(at) != Some(&b',') {
                return Err(ValueError::expected("the comma before a composite's next field", at));
            }
            at += 1;
        }
        let out = object.key(name);
        let rest = text.get(at..).unwrap_or_default();
        if rest.first() == Some(&b'"') {
            let (value, end) = quoted(text, at, Style::Doubled, &mut scratch)?;
            write_nested(ty, value, out, depth).map_err(|error| error.within(at + 1))?;
            at = end;
            continue;
        }
        let length = memchr::memchr2(b',', b')', rest)
            .ok_or(ValueError::expected("a composite's closing parenthesis", text.len()))?;
        match &rest[..length] {
            b"" => out.extend_from_slice(b"null"),
            value => write_nested(ty, value, out, depth).map_err(|error| error.within(at))?,
        }
        at += length;
    }
    object.end();
    match text.get(at..) {
        Some(b")") => Ok(()),
        _ => Err(ValueError::expected("the closing parenthesis after a composite's last field", at)),
    }
}
