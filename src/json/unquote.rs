//! Quoted parts of arrays, composites and hstore.

use super::ValueError;

/// How a quote is written inside quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `\"`: arrays, hstore.
    Backslash,
    /// `""`, and a backslash takes the next byte as it is: composites.
    Doubled,
}

/// Reads the quoted text whose opening quote is at `open`: what it means, and where it ends.
///
/// Borrows where nothing is escaped; else the text is built in `scratch`.
pub(super) fn quoted<'a>(
    text: &'a [u8],
    open: usize,
    style: Style,
    scratch: &'a mut Vec<u8>,
) -> Result<(&'a [u8], usize), ValueError> {
    let unclosed = || ValueError::expected("a closing quote", text.len());
    scratch.clear();
    let first = open + 1;
    let mut from = first;
    let mut search = first;
    loop {
        let rest = text.get(search..).ok_or_else(unclosed)?;
        let at = search + memchr::memchr2(b'"', b'\\', rest).ok_or_else(unclosed)?;
        let next = text.get(at + 1);
        let escaped = text[at] == b'\\' || (style == Style::Doubled && next == Some(&b'"'));
        if !escaped {
            if from == first {
                return Ok((&text[first..at], at + 1));
            }
            scratch.extend_from_slice(&text[from..at]);
            return Ok((scratch, at + 1));
        }
        if next.is_none() {
            return Err(unclosed());
        }
        scratch.extend_from_slice(&text[from..at]);
        from = at + 1;
        search = at + 2;
    }
}
