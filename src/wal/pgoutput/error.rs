//! What can be wrong with a pgoutput message. Names the place, never holds a value.

use std::fmt;

/// A message body that is not what protocol version 1 says it is.
///
/// The server and this decoder disagree about the protocol, or the bytes were damaged. Not transient:
/// the same position decodes to the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput {message} message, field `{field}` at byte {offset}: {why}")]
pub struct DecodeError {
    /// The kind of message, as the protocol names it.
    pub message: &'static str,
    pub field: &'static str,
    /// Bytes from the start of the message's body.
    pub offset: usize,
    pub why: Why,
}

/// The reason inside a [`DecodeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The field needs more bytes than are left.
    Short { wanted: usize, left: usize },
    /// A string without its terminating zero byte.
    Unterminated,
    /// A name that is not UTF-8, although the session asked for UTF-8.
    NotUtf8,
    /// A length or count below zero.
    Negative(i32),
    /// A count that the rest of the body cannot hold.
    Count { claimed: usize, possible: usize },
    /// A tag that protocol version 1 does not know here.
    UnknownTag(u8),
    /// Bytes after the end of the message.
    Trailing(usize),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Why::Short { wanted, left } => write!(f, "needs {wanted} bytes, {left} are left"),
            Why::Unterminated => f.write_str("the string does not end"),
            Why::NotUtf8 => f.write_str("the name is not UTF-8"),
            Why::Negative(value) => write!(f, "negative length or count {value}"),
            Why::Count { claimed, possible } => {
                write!(f, "claims {claimed} items, the rest of the message can hold {possible}")
            }
            Why::UnknownTag(tag) => write!(f, "unknown tag 0x{tag:02x}"),
            Why::Trailing(bytes) => write!(f, "{bytes} bytes too many"),
        }
    }
}
