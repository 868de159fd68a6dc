//! Values of the log on disk.
//!
//! An entry stands for itself: a reader needs nothing else but the shape that it names, and, for a
//! transaction in parts, the transaction's record. Values are read by checked reads only: bytes that no
//! writer of this format made are an error, never a panic.
//!
//! Must not know: the storage engine, which entries a reader wants.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Broadcast, Membership, RowChange, Tag, Transaction};
use crate::log::LogError;

/// Raised by every change to what this file writes.
pub(super) const FORMAT: u32 = 1;

const KIND_ROW: u8 = 0;
const KIND_TRUNCATE: u8 = 1;
const KIND_BROADCAST: u8 = 2;
const KIND_MASK: u8 = 0b11;
const FLAG_BEFORE: u8 = 1 << 2;
const FLAG_AFTER: u8 = 1 << 3;
const FLAG_RECORD: u8 = 1 << 4;
const FLAG_PART: u8 = 1 << 5;
const FLAG_TAG: u8 = 1 << 6;

/// One delivery as it stands in one audience's (or the control) order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) stamp: Stamp,
    pub(super) body: EntryBody,
}

/// What an entry knows of its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) xid: u32,
    pub(super) committed_at: i64,
    pub(super) sending: Sending,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sending {
    /// The transaction was appended at once.
    Whole { greatest_committed_at: i64, tag: Option<Tag> },
    /// It came in parts; the transaction's record says which attempt counts, and the rest.
    Part { attempt: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryBody {
    Row(RowEntry),
    Truncate { shape: u32 },
    Broadcast { name: Arc<str>, id: Arc<str>, event: Arc<str>, payload: Bytes },
}

/// A row change as one audience has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowEntry {
    pub(super) shape: u32,
    pub(super) before: bool,
    pub(super) after: bool,
    pub(super) key: Bytes,
    pub(super) record: Option<RowRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowRecord {
    pub(super) json: Bytes,
    pub(super) unchanged: Vec<Arc<str>>,
}

/// What the log keeps of a transaction as a whole; the last one written under a commit counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransactionRecord {
    pub(super) xid: u32,
    pub(super) committed_at: i64,
    pub(super) greatest_committed_at: i64,
    pub(super) attempt: Option<u32>,
    pub(super) tag: Option<Tag>,
}

pub(super) fn put_row(
    out: &mut Vec<u8>,
    transaction: &Transaction,
    row: &RowChange,
    membership: &Membership,
) {
    // Who had the row before needs only what changed; who is new to it needs all of it.
    let record = row.record.as_ref().filter(|_| membership.after).map(|record| match &record.whole {
        Some(whole) if !membership.before => (whole, [].as_slice()),
        _ => (&record.json, record.unchanged.as_slice()),
    });
    let mut flags = KIND_ROW;
    for (set, flag) in
        [(membership.before, FLAG_BEFORE), (membership.after, FLAG_AFTER), (record.is_some(), FLAG_RECORD)]
    {
        flags |= if set { flag } else { 0 };
    }
    put_stamp(out, transaction, flags);
    put_varint(out, row.shape.id.into());
    put_bytes(out, &row.key);
    if let Some((json, unchanged)) = record {
        put_bytes(out, json);
        put_varint(out, unchanged.len() as u64);
        for column in unchanged {
            put_bytes(out, column.as_bytes());
        }
    }
}

pub(super) fn put_truncate(out: &mut Vec<u8>, transaction: &Transaction, shape: u32) {
    put_stamp(out, transaction, KIND_TRUNCATE);
    put_varint(out, shape.into());
}

pub(super) fn put_broadcast(out: &mut Vec<u8>, transaction: &Transaction, broadcast: &Broadcast) {
    put_stamp(out, transaction, KIND_BROADCAST);
    for text in [&broadcast.name, &broadcast.id, &broadcast.event] {
        put_bytes(out, text.as_bytes());
    }
    put_bytes(out, &broadcast.payload);
}

pub(super) fn decode_entry(value: &[u8]) -> Result<Entry, LogError> {
    let mut reader = Reader { rest: value, what: "an entry" };
    let flags = reader.byte()?;
    let stamp = take_stamp(&mut reader, flags)?;
    let body = match flags & KIND_MASK {
        KIND_ROW => EntryBody::Row(take_row(&mut reader, flags)?),
        KIND_TRUNCATE => EntryBody::Truncate { shape: reader.varint32()? },
        KIND_BROADCAST => EntryBody::Broadcast {
            name: reader.text()?.into(),
            id: reader.text()?.into(),
            event: reader.text()?.into(),
            payload: reader.copied()?,
        },
        _ => return Err(reader.corrupt()),
    };
    reader.end()?;
    Ok(Entry { stamp, body })
}

fn take_row(reader: &mut Reader<'_>, flags: u8) -> Result<RowEntry, LogError> {
    let shape = reader.varint32()?;
    let key = reader.copied()?;
    let record = if flags & FLAG_RECORD == 0 {
        None
    } else {
        let json = reader.copied()?;
        let count = reader.varint()?;
        let mut unchanged = Vec::new();
        for _ in 0..count {
            unchanged.push(reader.text()?.into());
        }
        Some(RowRecord { json, unchanged })
    };
    Ok(RowEntry { shape, before: flags & FLAG_BEFORE != 0, after: flags & FLAG_AFTER != 0, key, record })
}

fn put_stamp(out: &mut Vec<u8>, transaction: &Transaction, flags: u8) {
    let tag = transaction.tag.as_ref().filter(|_| transaction.attempt.is_none());
    let part = if transaction.attempt.is_some() { FLAG_PART } else { 0 };
    out.push(flags | part | if tag.is_some() { FLAG_TAG } else { 0 });
    put_varint(out, transaction.xid.into());
    out.extend_from_slice(&transaction.committed_at.to_be_bytes());
    match transaction.attempt {
        Some(attempt) => put_varint(out, attempt.into()),
        None => put_greatest(out, transaction.greatest_committed_at, transaction.committed_at),
    }
    if let Some(tag) = tag {
        put_tag(out, tag);
    }
}

fn take_stamp(reader: &mut Reader<'_>, flags: u8) -> Result<Stamp, LogError> {
    let xid = reader.varint32()?;
    let committed_at = i64::from_be_bytes(reader.array()?);
    let sending = if flags & FLAG_PART != 0 {
        Sending::Part { attempt: reader.varint32()? }
    } else {
        let greatest_committed_at = take_greatest(reader, committed_at)?;
        let tag = (flags & FLAG_TAG != 0).then(|| take_tag(reader)).transpose()?;
        Sending::Whole { greatest_committed_at, tag }
    };
    Ok(Stamp { xid, committed_at, sending })
}

impl TransactionRecord {
    pub(super) fn of(transaction: &Transaction) -> Self {
        TransactionRecord {
            xid: transaction.xid,
            committed_at: transaction.committed_at,
            greatest_committed_at: transaction.greatest_committed_at,
            attempt: transaction.attempt,
            tag: transaction.tag.clone(),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let part = if self.attempt.is_some() { FLAG_PART } else { 0 };
        out.push(part | if self.tag.is_some() { FLAG_TAG } else { 0 });
        put_varint(out, self.xid.into());
        out.extend_from_slice(&self.committed_at.to_be_bytes());
        put_greatest(out, self.greatest_committed_at, self.committed_at);
        if let Some(attempt) = self.attempt {
            put_varint(out, attempt.into());
        }
        if let Some(tag) = &self.tag {
            put_tag(out, tag);
        }
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, LogError> {
        let mut reader = Reader { rest: value, what: "a transaction's record" };
        let flags = reader.byte()?;
        let xid = reader.varint32()?;
        let committed_at = i64::from_be_bytes(reader.array()?);
        let greatest_committed_at = take_greatest(&mut reader, committed_at)?;
        let attempt = (flags & FLAG_PART != 0).then(|| reader.varint32()).transpose()?;
        let tag = (flags & FLAG_TAG != 0).then(|| take_tag(&mut reader)).transpose()?;
        reader.end()?;
        Ok(TransactionRecord { xid, committed_at, greatest_committed_at, attempt, tag })
    }
}

/// The greatest commit time is mostly this commit's own: a small difference.
fn put_greatest(out: &mut Vec<u8>, greatest: i64, committed_at: i64) {
    let delta = greatest.wrapping_sub(committed_at);
    put_varint(out, ((delta << 1) ^ (delta >> 63)).cast_unsigned());
}

fn take_greatest(reader: &mut Reader<'_>, committed_at: i64) -> Result<i64, LogError> {
    let zigzag = reader.varint()?;
    let delta = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
    Ok(committed_at.wrapping_add(delta))
}

fn put_tag(out: &mut Vec<u8>, tag: &Tag) {
    put_bytes(out, tag.device.as_bytes());
    for text in [&tag.correlation, &tag.user] {
        out.push(u8::from(text.is_some()));
        if let Some(text) = text {
            put_bytes(out, text.as_bytes());
        }
    }
}

fn take_tag(reader: &mut Reader<'_>) -> Result<Tag, LogError> {
    let device = reader.text()?.into();
    let mut optional = || match reader.byte()? {
        0 => Ok(None),
        1 => reader.text().map(|text| Some(text.into())),
        _ => Err(reader.corrupt()),
    };
    Ok(Tag { device, correlation: optional()?, user: optional()? })
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Checked reads from the front of a value.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
    /// What is being read, for the error.
    pub(super) what: &'static str,
}

impl<'a> Reader<'a> {
    fn corrupt(&self) -> LogError {
        LogError::Corrupt(self.what)
    }

    fn byte(&mut self) -> Result<u8, LogError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], LogError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(LogError::Corrupt(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<u64, LogError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.corrupt())
    }

    fn varint32(&mut self) -> Result<u32, LogError> {
        u32::try_from(self.varint()?).map_err(|_| self.corrupt())
    }

    fn bytes(&mut self) -> Result<&'a [u8], LogError> {
        let length = usize::try_from(self.varint()?).map_err(|_| self.corrupt())?;
        let (head, rest) = self.rest.split_at_checked(length).ok_or(LogError::Corrupt(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    /// A copy, because a slice of the value would keep the storage's whole block in memory.
    fn copied(&mut self) -> Result<Bytes, LogError> {
        self.bytes().map(Bytes::copy_from_slice)
    }

    fn text(&mut self) -> Result<&'a str, LogError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.corrupt())
    }

    pub(super) fn end(&self) -> Result<(), LogError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}
