//! Arrays: `{1,NULL,"a b"}`, with bounds `[0:1]={…}` that JSON does not show, in up to six dimensions;
//! and the two vector types, whose text is elements between spaces.

use super::unquote::{Style, quoted};
use super::{ValueError, write_nested};
use crate::postgres::types::Type;

/// PostgreSQL's own `MAXDIM`.
const MAX_DIMENSIONS: usize = 6;

/// What may stand before the next byte.
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
    let mut at = bounds_end(text)?;
    let mut dimensions = 0;
    let mut last = Last::Delimiter;
    let mut scratch = Vec::new();
    if text.get(at) != Some(&b'{') {
        return Err(ValueError::expected("an array's opening brace", at));
    }
    loop {
        let byte = *text.get(at).ok_or(ValueError::expected("an array's closing brace", at))?;
        match byte {
            b'{' if last != Last::Value && dimensions < MAX_DIMENSIONS => {
                dimensions += 1;
                out.push(b'[');
                last = Last::Open;
                at += 1;
            }
            b'}' if last != Last::Delimiter => {
                dimensions -= 1;
                out.push(b']');
                last = Last::Value;
                at += 1;
                if dimensions == 0 {
                    break;
                }
            }
            _ if byte == delimiter && last == Last::Value => {
                out.push(b',');
                last = Last::Delimiter;
                at += 1;
            }
            b'{' | b'}' => return Err(ValueError::expected("an element of an array", at)),
            _ if last == Last::Value => return Err(ValueError::expected("an array's delimiter", at)),
            b'"' => {
                let (value, end) = quoted(text, at, Style::Backslash, &mut scratch)?;
                write_nested(element, value, out, depth).map_err(|error| error.within(at + 1))?;
                last = Last::Value;
                at = end;
            }
            _ => {
                let rest = &text[at..];
                let length = memchr::memchr2(delimiter, b'}', rest)
                    .ok_or(ValueError::expected("an array's closing brace", text.len()))?;
                match &rest[..length] {
                    b"" => return Err(ValueError::expected("an element of an array", at)),
                    b"NULL" => out.extend_from_slice(b"null"),
                    value => {
                        write_nested(element, value, out, depth).map_err(|error| error.within(at))?;
                    }
                }
                last = Last::Value;
                at += length;
            }
        }
    }
    if at == text.len() { Ok(()) } else { Err(ValueError::expected("the end of an array", at)) }
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
    while at < text.len() || at > 0 {
        let rest = &text[at..];
        let length = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        write_nested(element, &rest[..length], out, depth).map_err(|error| error.within(at))?;
        at += length;
        if at == text.len() {
            break;
        }
        out.push(b',');
        at += 1;
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
