//! Arrays: `{1,NULL,"a b"}`, with bounds `[0:1]={…}` that JSON does not show, in up to six dimensions;
//! and the two vector types, whose text is elements between spaces.

use super::unquote::{Style, quoted};
use super::{ValueError, write_nested};
use crate::postgres::types::Type;

/// PostgreSQL's own `MAXDIM`.
const MAX_DIMENSIONS: usize = 6;

/// What stands before the next byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Open,
    Delimiter,
    Value,
}

/// `depth` types are around the elements.
pub(super) fn write(
    element: &Type,
    delimiter: u8,
    text: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ValueError> {
    let mut elements = Elements { ty: element, delimiter, depth, scratch: Vec::new() };
    let mut at = bounds_end(text)?;
    let mut dimensions = 0;
    let mut last = Last::Delimiter;
    if text.get(at) != Some(&b'{') {
        return Err(ValueError::expected("an array's opening brace", at));
    }
    loop {
        let byte = *text.get(at).ok_or(ValueError::expected("an array's closing brace", at))?;
        (last, at) = match (byte, last) {
            (b'{', Last::Open | Last::Delimiter) if dimensions < MAX_DIMENSIONS => {
                dimensions += 1;
                out.push(b'[');
                (Last::Open, at + 1)
            }
            (b'}', Last::Open | Last::Value) => {
                dimensions -= 1;
                out.push(b']');
                (Last::Value, at + 1)
            }
            (b'{' | b'}', _) => return Err(ValueError::expected("an element of an array", at)),
            (_, Last::Value) if byte == delimiter => {
                out.push(b',');
                (Last::Delimiter, at + 1)
            }
            (_, Last::Value) => return Err(ValueError::expected("an array's delimiter", at)),
            (_, Last::Open | Last::Delimiter) => (Last::Value, elements.write(text, at, out)?),
        };
        if dimensions == 0 {
            break;
        }
    }
    if at == text.len() { Ok(()) } else { Err(ValueError::expected("the end of an array", at)) }
}

struct Elements<'a> {
    ty: &'a Type,
    delimiter: u8,
    depth: usize,
    /// Kept from element to element, so that none allocates.
    scratch: Vec<u8>,
}

impl Elements<'_> {
    /// Writes the element that begins at `at`; returns where it ends.
    fn write(&mut self, text: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, ValueError> {
        let rest = text.get(at..).unwrap_or_default();
        if rest.first() == Some(&b'"') {
            let (value, end) = quoted(text, at, Style::Backslash, &mut self.scratch)?;
            write_nested(self.ty, value, out, self.depth).map_err(|error| error.within(at + 1))?;
            return Ok(end);
        }
        let length = memchr::memchr2(self.delimiter, b'}', rest)
            .ok_or(ValueError::expected("an array's closing brace", text.len()))?;
        match &rest[..length] {
            b"" => return Err(ValueError::expected("an element of an array", at)),
            b"NULL" => out.extend_from_slice(b"null"),
            value => write_nested(self.ty, value, out, self.depth).map_err(|error| error.within(at))?,
        }
        Ok(at + length)
    }
}

/// `1 2 3`.
pub(super) fn write_vector(
    element: &Type,
    text: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ValueError> {
    out.push(b'[');
    let mut at = 0;
    if !text.is_empty() {
        for value in text.split(|&byte| byte == b' ') {
            if at > 0 {
                out.push(b',');
            }
            write_nested(element, value, out, depth).map_err(|error| error.within(at))?;
            at += value.len() + 1;
        }
    }
    out.push(b']');
    Ok(())
}

/// Where `[-1:0][2:3]=` ends, if the text begins with it.
fn bounds_end(text: &[u8]) -> Result<usize, ValueError> {
    if text.first() != Some(&b'[') {
        return Ok(0);
    }
    let end = text
        .iter()
        .position(|byte| !matches!(byte, b'[' | b']' | b':' | b'-' | b'+' | b'0'..=b'9'))
        .unwrap_or(text.len());
    if text.get(end) == Some(&b'=') {
        Ok(end + 1)
    } else {
        Err(ValueError::expected("an array's bounds", end))
    }
}
