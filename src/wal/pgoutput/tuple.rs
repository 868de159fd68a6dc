//! The values of one row version, kept as the bytes that arrived.
//!
//! PostgreSQL documentation, "Logical Replication Message Formats", TupleData. A tuple is checked
//! once, when its message is decoded; iterating it afterwards cannot fail and allocates nothing.
//! Values are not checked for UTF-8 here: the stage that writes them out has to look at every byte anyway.

use std::fmt;

use bytes::{Buf, Bytes};

use super::error::{DecodeError, Why};
use super::reader::Reader;

/// One column of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// An out-of-line value that the change did not touch; the server did not send it.
    UnchangedToast,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's binary output; only where the stream asked for it.
    Binary(&'a [u8]),
}

/// Columns in the order of the last Relation message for the table.
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    columns: u16,
    /// Exactly `columns` well-formed columns, nothing after them.
    values: Bytes,
}

/// Where a tuple lies in its message: what [`scan`] found before the bytes are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    columns: u16,
    start: usize,
    end: usize,
}

impl Tuple {
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes that the tuple takes in its message.
    pub fn byte_len(&self) -> usize {
        self.values.len()
    }

    #[inline]
    pub fn iter(&self) -> Values<'_> {
        Values { left: self.columns, rest: &self.values }
    }

    /// The tuple that ends its message: takes the body itself, with no new reference to it.
    #[inline]
    pub(super) fn last(mut body: Bytes, extent: Extent) -> Self {
        body.advance(extent.start);
        Tuple { columns: extent.columns, values: body }
    }

    #[inline]
    pub(super) fn within(body: &Bytes, extent: Extent) -> Self {
        Tuple { columns: extent.columns, values: body.slice(extent.start..extent.end) }
    }
}

impl<'a> IntoIterator for &'a Tuple {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

/// Shape only: a row's values stay out of logs.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuple({} columns, {} bytes)", self.columns, self.values.len())
    }
}

/// Iterator over a [`Tuple`]'s values.
#[derive(Clone)]
pub struct Values<'a> {
    left: u16,
    rest: &'a [u8],
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({} left)", self.left)
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    /// `scan` has seen these bytes, so the checks here only ever succeed; they stay so that no
    /// path can panic.
    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        let wrap: fn(&'a [u8]) -> Value<'a> = match kind {
            b't' => Value::Text,
            b'b' => Value::Binary,
            b'n' => return Some(Value::Null),
            _ => return Some(Value::UnchangedToast),
        };
        let (len, rest) = self.rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        self.rest = rest;
        Some(wrap(value))
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// Checks one TupleData and moves the reader past it.
#[inline]
pub(super) fn scan(reader: &mut Reader<'_>) -> Result<Extent, DecodeError> {
    let columns = reader.u16("column count")?;
    reader.fits("column count", usize::from(columns), 1)?;
    let start = reader.offset();
    for _ in 0..columns {
        match reader.u8("column kind")? {
            b'n' | b'u' => {}
            b't' | b'b' => {
                let len = reader.length("value length")?;
                reader.bytes("value", len)?;
            }
            tag => return Err(reader.fail("column kind", Why::UnknownTag(tag))),
        }
    }
    Ok(Extent { columns, start, end: reader.offset() })
}
