//! hstore, `"a"=>"1", "b"=>NULL`, as the extension's own cast to json prints it.

use super::ValueError;
use super::escape::write_bytes;
use super::unquote::{Style, quoted};

/// Keys and values are always quoted in text; the separators are the cast's, wider than a record's.
pub(super) fn write(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut scratch = Vec::new();
    let mut at = 0;
    out.push(b'{');
    while at < text.len() {
        if at > 0 {
            at = expect(text, at, b", ", "the comma between pairs")?;
            out.extend_from_slice(b", ");
        }
        at = string(text, at, "a quoted key", &mut scratch, out)?;
        at = expect(text, at, b"=>", "=> after a key")?;
        out.extend_from_slice(b": ");
        if text[at..].starts_with(b"NULL") {
            out.extend_from_slice(b"null");
            at += 4;
        } else {
            at = string(text, at, "a quoted value or NULL", &mut scratch, out)?;
        }
    }
    out.push(b'}');
    Ok(())
}

fn expect(text: &[u8], at: usize, wanted: &[u8], expected: &'static str) -> Result<usize, ValueError> {
    if text[at..].starts_with(wanted) {
        Ok(at + wanted.len())
    } else {
        Err(ValueError::expected(expected, at))
    }
}

fn string(
    text: &[u8],
    at: usize,
    expected: &'static str,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<usize, ValueError> {
    if text.get(at) != Some(&b'"') {
        return Err(ValueError::expected(expected, at));
    }
    let (value, end) = quoted(text, at, Style::Backslash, scratch)?;
    write_bytes(value, out);
    Ok(end)
}
