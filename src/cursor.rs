//! Cursors: what a device keeps to go on from where it was.
//!
//! Opaque to apps. Inside: `epoch.commit.index` in fixed-width lower-case hexadecimal, so that
//! cursors of one epoch compare as text. A cursor says "all changes up to here, of the topics that
//! this cursor was given for, I have".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::lsn::Lsn;
use crate::position::Position;

/// Identity of one unbroken log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    pub const fn new(value: u64) -> Self {
        Epoch(value)
    }

    /// The epoch of a log made at `created_at` (microseconds since 1970) from one slot. `nonce` keeps
    /// two logs made in the same microsecond apart.
    pub fn of(system_id: &str, database: &str, slot: &str, created_at: i64, nonce: u64) -> Self {
        let mut hash = Sha256::new();
        for part in [system_id, database, slot] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(created_at.to_be_bytes());
        hash.update(nonce.to_be_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        Epoch(u64::from_be_bytes(first))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub epoch: Epoch,
    pub position: Position,
}

impl Cursor {
    pub const fn new(epoch: Epoch, position: Position) -> Self {
        Cursor { epoch, position }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}.{:08x}", self.epoch, self.position.commit.get(), self.position.index)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no cursor of this server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: send back unchanged what the server gave")]
pub struct ParseCursorError;

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let mut field = |width: usize| {
            let digits = parts.next().filter(|part| part.len() == width).ok_or(ParseCursorError)?;
            let plain = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if plain {
                u64::from_str_radix(digits, 16).map_err(|_| ParseCursorError)
            } else {
                Err(ParseCursorError)
            }
        };
        let epoch = Epoch(field(16)?);
        let commit = Lsn::new(field(16)?);
        let index = u32::try_from(field(8)?).map_err(|_| ParseCursorError)?;
        if parts.next().is_some() {
            return Err(ParseCursorError);
        }
        Ok(Cursor { epoch, position: Position { commit, index } })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_spellings_are_refused() {
        let good = "00000000000000ab.0000000100000000.00000003";
        assert!(good.parse::<Cursor>().is_ok());
        let longer = format!("{good}.0");
        for bad in ["", "..", &good[1..], &good.to_uppercase(), &longer, "0.0.0", &good.replace('3', "é")] {
            assert_eq!(bad.parse::<Cursor>(), Err(ParseCursorError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_orders_as_positions_do(a: (u64, u32), b: (u64, u32)) {
            let cursor = |(commit, index)| Cursor::new(Epoch(7), Position::new(Lsn::new(commit), index));
            let (a, b) = (cursor(a), cursor(b));
            prop_assert_eq!(a.position.cmp(&b.position), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(a.to_string().parse::<Cursor>().unwrap(), a);
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error(text in "\\PC{0,60}|[0-9a-f.]{40,44}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
