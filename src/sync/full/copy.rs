//! COPY's text format (PostgreSQL documentation, COPY, "Text Format"), as `COPY … TO STDOUT` writes it:
//! a line for each row, tabs between columns, `\N` for NULL, backslash escapes for what would be
//! mistaken. Pure.

use std::ops::Range;

use bytes::BytesMut;
use memchr::memchr;

use crate::route::Row;
use crate::wal::pgoutput::Value;

/// Splits what arrives into lines. A row may come in any number of pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: BytesMut,
}

impl Lines {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<BytesMut> {
        let end = memchr(b'\n', &self.pending)?;
        let mut line = self.pending.split_to(end + 1);
        line.truncate(end);
        Some(line)
    }

    /// Whether something is left that is no whole line.
    pub(super) fn is_cut(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Takes a line apart. Its memory is used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Fields {
    fields: Vec<Field>,
    /// Values that had escapes, without them.
    unescaped: Vec<u8>,
}

#[derive(Debug)]
enum Field {
    Null,
    AsSent(Range<usize>),
    Unescaped(Range<usize>),
}

impl Fields {
    pub(super) fn read<'a>(&'a mut self, line: &'a [u8]) -> Row<'a> {
        self.fields.clear();
        self.unescaped.clear();
        let mut start = 0;
        loop {
            let end = memchr(b'\t', &line[start..]).map_or(line.len(), |at| start + at);
            let field = self.field(line, start..end);
            self.fields.push(field);
            if end == line.len() {
                break;
            }
            start = end + 1;
        }
        let value = |field: &Field| match field {
            Field::Null => Value::Null,
            Field::AsSent(range) => Value::Text(&line[range.clone()]),
            Field::Unescaped(range) => Value::Text(&self.unescaped[range.clone()]),
        };
        self.fields.iter().map(value).collect()
    }

    fn field(&mut self, line: &[u8], range: Range<usize>) -> Field {
        let text = &line[range.clone()];
        if text == b"\\N" {
            return Field::Null;
        }
        let Some(first) = memchr(b'\\', text) else { return Field::AsSent(range) };
        let start = self.unescaped.len();
        let (plain, mut rest) = text.split_at(first);
        self.unescaped.extend_from_slice(plain);
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            let byte = match (byte, tail.split_first()) {
                (b'\\', Some((&escape, tail))) => {
                    rest = tail;
                    unescape(escape)
                }
                _ => byte,
            };
            self.unescaped.push(byte);
        }
        Field::Unescaped(start..self.unescaped.len())
    }
}

/// The server writes no other escapes than these and the escaped backslash.
fn unescape(byte: u8) -> u8 {
    match byte {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(line: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut fields = Fields::default();
        let row = fields.read(line);
        row.iter()
            .map(|value| if let Value::Text(text) = value { Some(text.to_vec()) } else { None })
            .collect()
    }

    #[test]
    fn a_line_is_read_as_the_server_writes_it() {
        let some = |text: &[u8]| Some(text.to_vec());
        assert_eq!(texts(b"1\t\\N\t"), [some(b"1"), None, some(b"")]);
        assert_eq!(texts(b"a\\tb\\nc\\\\N\t\\\\N"), [some(b"a\tb\nc\\N"), some(b"\\N")]);
        assert_eq!(texts(b"\\\\x6162\t\\b\\f\\r\\v"), [some(b"\\x6162"), some(b"\x08\x0c\r\x0b")]);
        assert_eq!(texts(b""), [some(b"")]);
        assert_eq!(texts(b"cut\\"), [some(b"cut\\")]);
    }

    #[test]
    fn lines_come_in_any_pieces() {
        let mut lines = Lines::default();
        lines.add(b"a\tb");
        assert_eq!((lines.next(), lines.is_cut()), (None, true));
        lines.add(b"c\n\nd");
        assert_eq!((&lines.next().unwrap()[..], &lines.next().unwrap()[..]), (&b"a\tbc"[..], &b""[..]));
        assert_eq!((lines.next(), lines.is_cut()), (None, true));
        lines.add(b"\n");
        assert_eq!((&lines.next().unwrap()[..], lines.is_cut()), (&b"d"[..], false));
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(values: Vec<Option<Vec<u8>>>) {
            prop_assume!(!values.is_empty());
            let escape = |value: &Option<Vec<u8>>| match value {
                None => b"\\N".to_vec(),
                Some(bytes) => bytes.iter().flat_map(|byte| match byte {
                    b'\n' => b"\\n".to_vec(),
                    b'\t' => b"\\t".to_vec(),
                    b'\r' => b"\\r".to_vec(),
                    b'\\' => b"\\\\".to_vec(),
                    other => vec![*other],
                }).collect(),
            };
            let line = values.iter().map(escape).collect::<Vec<_>>().join(&b'\t');
            prop_assert_eq!(texts(&line), values);
        }
    }
}
