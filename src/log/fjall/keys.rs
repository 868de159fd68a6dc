//! Keys of the log on disk.
//!
//! Positions are big-endian, so that the storage's order is the log's order. An audience's text holds no
//! control characters, so the zero byte behind it keeps one audience's entries together and apart from
//! those of every other.

use super::codec::Reader;
use crate::log::LogError;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

/// Length of a position at the end of a key.
const POSITION_BYTES: usize = 12;

/// Commits whose greatest commit times fall into one slot share an entry of the time index.
const TIME_SLOT_MICROS: i64 = 100_000;

/// Truncates stand in an order of their own, whatever their audiences.
pub(super) const CONTROL_PREFIX: &[u8] = b"c";

pub(super) fn put_audience_prefix(out: &mut Vec<u8>, audience: &Audience) {
    out.push(b'a');
    out.extend_from_slice(audience.as_str().as_bytes());
    out.push(0);
}

/// What makes an audience's or the control prefix a key.
pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.commit.get().to_be_bytes());
    out.extend_from_slice(&position.index.to_be_bytes());
}

pub(super) fn audience_prefix(audience: &Audience) -> Vec<u8> {
    let mut key = Vec::with_capacity(audience.as_str().len() + 2 + POSITION_BYTES);
    put_audience_prefix(&mut key, audience);
    key
}

pub(super) fn control_prefix() -> Vec<u8> {
    CONTROL_PREFIX.to_vec()
}

/// The key of a position under an audience's or the control prefix.
pub(super) fn entry_key(prefix: Vec<u8>, position: Position) -> Vec<u8> {
    let mut key = prefix;
    put_position(&mut key, position);
    key
}

pub(super) fn entry_position(key: &[u8]) -> Result<Position, LogError> {
    let tail = key.last_chunk::<POSITION_BYTES>().ok_or(LogError::Corrupt("an entry's key"))?;
    let mut reader = Reader { rest: tail, what: "an entry's key" };
    Ok(Position::new(Lsn::new(u64::from_be_bytes(reader.array()?)), u32::from_be_bytes(reader.array()?)))
}

/// The commit to which an entry of any kind belongs.
pub(super) fn commit_of(key: &[u8], value: &[u8]) -> Result<Lsn, LogError> {
    match key.first() {
        Some(b't') => commit_of_transaction_key(key),
        Some(b'g') => commit_of_time_value(value),
        _ => entry_position(key).map(|position| position.commit),
    }
}

pub(super) fn transaction_key(commit: Lsn) -> [u8; 9] {
    numbered(b't', commit.get())
}

pub(super) fn commit_of_transaction_key(key: &[u8]) -> Result<Lsn, LogError> {
    match key {
        [b't', commit @ ..] => commit.try_into().map(|commit| Lsn::new(u64::from_be_bytes(commit))),
        _ => return Err(LogError::Corrupt("a transaction's key")),
    }
    .map_err(|_| LogError::Corrupt("a transaction's key"))
}

/// The slot of the time index into which a greatest commit time falls; ordered as times are.
pub(super) fn time_slot(greatest_committed_at: i64) -> u64 {
    greatest_committed_at.div_euclid(TIME_SLOT_MICROS).cast_unsigned() ^ (1 << 63)
}

pub(super) fn time_key(slot: u64) -> [u8; 9] {
    numbered(b'g', slot)
}

/// The first commit of a span whose greatest commit time falls into the slot.
pub(super) fn commit_of_time_value(value: &[u8]) -> Result<Lsn, LogError> {
    let commit = value.try_into().map_err(|_| LogError::Corrupt("an entry of the time index"))?;
    Ok(Lsn::new(u64::from_be_bytes(commit)))
}

pub(super) fn slot_of_time_key(key: &[u8]) -> Result<u64, LogError> {
    match key {
        [b'g', slot @ ..] => slot.try_into().map(u64::from_be_bytes),
        _ => return Err(LogError::Corrupt("a key of the time index")),
    }
    .map_err(|_| LogError::Corrupt("a key of the time index"))
}

fn numbered(prefix: u8, number: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}
