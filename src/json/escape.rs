//! JSON strings with exactly the escapes of PostgreSQL's `escape_json`: `\b \f \n \r \t \" \\`, other
//! control characters as `\u00xx` in lower case, and everything else, DEL included, as it is.

/// Appends `text` as a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    write_bytes(text.as_bytes(), out);
}

/// As [`write_string`], for bytes that are known to be UTF-8.
pub(super) fn write_bytes(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = find_special(rest) {
        let (clean, from) = rest.split_at(at);
        out.extend_from_slice(clean);
        let Some((&special, tail)) = from.split_first() else { break };
        write_escape(special, out);
        rest = tail;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The first byte that must be escaped. Whole blocks are tested without a branch for each byte, which
/// the compiler turns into vector instructions.
fn find_special(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let clean = blocks
        .iter()
        .take_while(|block| !block.iter().fold(false, |found, &byte| found | is_special(byte)))
        .count()
        * BLOCK;
    let rest = bytes.get(clean..)?;
    rest.iter().position(|&byte| is_special(byte)).map(|at| clean + at)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        write_string(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_are_those_of_postgres() {
        assert_eq!(json(""), r#""""#);
        assert_eq!(json("a\"b\\c/"), r#""a\"b\\c/""#);
        assert_eq!(json("\u{8}\u{c}\n\r\t"), r#""\b\f\n\r\t""#);
        assert_eq!(json("\u{1}\u{b}\u{1f}\u{7f}\u{80}é😀"), "\"\\u0001\\u000b\\u001f\u{7f}\u{80}é😀\"");
    }

    #[test]
    fn a_special_byte_is_found_at_every_place() {
        for length in 0..100 {
            for at in 0..length {
                let mut text = "x".repeat(length);
                text.replace_range(at..=at, "\n");
                assert_eq!(json(&text), format!("\"{}\\n{}\"", "x".repeat(at), "x".repeat(length - at - 1)));
            }
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "(\\PC|[\\x00-\\x7f]){0,120}") {
            prop_assert_eq!(serde_json::from_str::<String>(&json(&text)).unwrap(), text);
        }
    }
}
