//! Any bytes as COPY's text; and rows printed as the server prints them.

use super::copy::{Fields, Lines};
use crate::fuzzing::Source;
use crate::wal::pgoutput::Value;

pub(crate) fn copy(data: &[u8]) {
    let mut source = Source::new(data);
    let piece = usize::from(source.byte()) + 1;
    let text = source.clone().rest();
    let whole = lines(text, usize::MAX);
    assert_eq!(lines(text, piece), whole, "a row may come in any pieces");
    for line in &whole {
        let read = fields(line);
        let size: usize = read.iter().flatten().map(Vec::len).sum();
        assert!(size <= line.len() && read.len() == line.split(|byte| *byte == b'\t').count());
    }
    printed(source);
}

fn lines(text: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let (mut lines, mut read) = (Lines::default(), Vec::new());
    for piece in text.chunks(piece) {
        lines.add(piece);
        read.extend(std::iter::from_fn(|| lines.next()).map(|line| line.to_vec()));
    }
    assert_eq!(lines.is_cut(), !text.is_empty() && !text.ends_with(b"\n"));
    read
}

fn fields(line: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut fields = Fields::default();
    let row = fields.read(line);
    row.iter().map(|value| if let Value::Text(text) = value { Some(text.to_vec()) } else { None }).collect()
}

/// As `CopyAttributeOutText` writes it.
fn printed(mut source: Source<'_>) {
    let mut row = Vec::new();
    while !source.is_empty() {
        row.push((!source.flag()).then(|| source.short().to_vec()));
    }
    if row.is_empty() {
        return;
    }
    let escape = |value: &Option<Vec<u8>>| {
        let Some(bytes) = value else { return b"\\N".to_vec() };
        let mut out = Vec::new();
        for byte in bytes {
            let letter = match byte {
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                b'\\' => b'\\',
                plain => {
                    out.push(*plain);
                    continue;
                }
            };
            out.extend([b'\\', letter]);
        }
        out
    };
    let line = row.iter().map(escape).collect::<Vec<_>>().join(&b'\t');
    assert_eq!(fields(&line), row);
}
