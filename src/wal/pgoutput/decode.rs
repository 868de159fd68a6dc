//! From the body of one XLogData frame to a [`Message`].

use bytes::Bytes;

use super::error::{DecodeError, Why};
use super::message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, Truncate, Type, Update,
};
use super::reader::Reader;
use super::tuple::{self, Extent, Tuple};
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// The fewest bytes that a column takes in a Relation message: flags, empty name, type, modifier.
const SMALLEST_COLUMN: usize = 1 + 1 + 4 + 4;

/// Decodes one message, which must fill `body` exactly.
#[inline]
pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
    // The reader borrows a second handle's bytes so that a row can take `body` itself at the end.
    let mut reader = Reader::new("unknown", &body);
    let tag = reader.u8("message type")?;
    match tag {
        b'I' => {
            let (relid, new) = insert(reader)?;
            Ok(Message::Insert(Insert { relid, new: Tuple::last(body, new) }))
        }
        b'U' => {
            let (relid, old, new) = update(reader)?;
            let old = old.map(|old| old.cut(&body));
            Ok(Message::Update(Update { relid, old, new: Tuple::last(body, new) }))
        }
        b'D' => {
            let (relid, old) = delete(reader)?;
            Ok(Message::Delete(Delete { relid, old: old.cut(&body) }))
        }
        b'B' => begin(reader).map(Message::Begin),
        b'C' => commit(reader).map(Message::Commit),
        b'R' => relation(reader).map(Message::Relation),
        b'T' => truncate(reader).map(Message::Truncate),
        b'M' => logical_message(reader, &body).map(Message::Message),
        b'Y' => type_name(reader).map(Message::Type),
        b'O' => origin(reader).map(Message::Origin),
        _ => Err(reader.fail("message type", Why::UnknownTag(tag))),
    }
}

fn begin(mut reader: Reader<'_>) -> Result<Begin, DecodeError> {
    reader.name("Begin");
    let begin = Begin {
        final_lsn: lsn(&mut reader, "final LSN")?,
        commit_time: time(&mut reader, "commit time")?,
        xid: reader.u32("xid")?,
    };
    reader.end()?;
    Ok(begin)
}

fn commit(mut reader: Reader<'_>) -> Result<Commit, DecodeError> {
    reader.name("Commit");
    let commit = Commit {
        flags: reader.u8("flags")?,
        commit_lsn: lsn(&mut reader, "commit LSN")?,
        end_lsn: lsn(&mut reader, "end LSN")?,
        commit_time: time(&mut reader, "commit time")?,
    };
    reader.end()?;
    Ok(commit)
}

fn origin(mut reader: Reader<'_>) -> Result<Origin, DecodeError> {
    reader.name("Origin");
    let commit_lsn = lsn(&mut reader, "commit LSN")?;
    let name = reader.name_text("name")?.to_owned();
    reader.end()?;
    Ok(Origin { commit_lsn, name })
}

fn relation(mut reader: Reader<'_>) -> Result<Relation, DecodeError> {
    reader.name("Relation");
    let relid = reader.u32("relid")?;
    let namespace = namespace(&mut reader)?;
    let name = reader.name_text("name")?.to_owned();
    let identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        tag => return Err(reader.fail("replica identity", Why::UnknownTag(tag))),
    };
    let claimed = usize::from(reader.u16("column count")?);
    let count = reader.fits("column count", claimed, SMALLEST_COLUMN)?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(Column {
            key: reader.u8("column flags")? & 1 != 0,
            name: reader.name_text("column name")?.to_owned(),
            type_oid: reader.u32("column type")?,
            type_modifier: reader.i32("column type modifier")?,
        });
    }
    reader.end()?;
    Ok(Relation { relid, namespace, name, identity, columns })
}

fn type_name(mut reader: Reader<'_>) -> Result<Type, DecodeError> {
    reader.name("Type");
    let type_oid = reader.u32("type")?;
    let namespace = namespace(&mut reader)?;
    let name = reader.name_text("name")?.to_owned();
    reader.end()?;
    Ok(Type { type_oid, namespace, name })
}

#[inline]
fn insert(mut reader: Reader<'_>) -> Result<(u32, Extent), DecodeError> {
    reader.name("Insert");
    let relid = reader.u32("relid")?;
    match reader.u8("tuple tag")? {
        b'N' => {}
        tag => return Err(reader.fail("tuple tag", Why::UnknownTag(tag))),
    }
    let new = tuple::scan(&mut reader)?;
    reader.end()?;
    Ok((relid, new))
}

/// An old tuple's place and kind.
enum Old {
    Key(Extent),
    Full(Extent),
}

impl Old {
    #[inline]
    fn cut(self, body: &Bytes) -> OldTuple {
        match self {
            Old::Key(extent) => OldTuple::Key(Tuple::within(body, extent)),
            Old::Full(extent) => OldTuple::Full(Tuple::within(body, extent)),
        }
    }
}

#[inline]
fn update(mut reader: Reader<'_>) -> Result<(u32, Option<Old>, Extent), DecodeError> {
    reader.name("Update");
    let relid = reader.u32("relid")?;
    let mut tag = reader.u8("tuple tag")?;
    let old = match tag {
        b'K' => Some(Old::Key(tuple::scan(&mut reader)?)),
        b'O' => Some(Old::Full(tuple::scan(&mut reader)?)),
        _ => None,
    };
    if old.is_some() {
        tag = reader.u8("new tuple tag")?;
    }
    if tag != b'N' {
        return Err(reader.fail("new tuple tag", Why::UnknownTag(tag)));
    }
    let new = tuple::scan(&mut reader)?;
    reader.end()?;
    Ok((relid, old, new))
}

#[inline]
fn delete(mut reader: Reader<'_>) -> Result<(u32, Old), DecodeError> {
    reader.name("Delete");
    let relid = reader.u32("relid")?;
    let old = match reader.u8("tuple tag")? {
        b'K' => Old::Key(tuple::scan(&mut reader)?),
        b'O' => Old::Full(tuple::scan(&mut reader)?),
        tag => return Err(reader.fail("tuple tag", Why::UnknownTag(tag))),
    };
    reader.end()?;
    Ok((relid, old))
}

fn truncate(mut reader: Reader<'_>) -> Result<Truncate, DecodeError> {
    reader.name("Truncate");
    let claimed = reader.length("relation count")?;
    let options = reader.u8("options")?;
    let count = reader.fits("relation count", claimed, size_of::<u32>())?;
    let mut relids = Vec::with_capacity(count);
    for _ in 0..count {
        relids.push(reader.u32("relid")?);
    }
    reader.end()?;
    Ok(Truncate { cascade: options & 1 != 0, restart_identity: options & 2 != 0, relids })
}

fn logical_message(mut reader: Reader<'_>, body: &Bytes) -> Result<LogicalMessage, DecodeError> {
    reader.name("Message");
    let transactional = reader.u8("flags")? & 1 != 0;
    let lsn = lsn(&mut reader, "LSN")?;
    let prefix = reader.name_text("prefix")?.to_owned();
    let len = reader.length("content length")?;
    let start = reader.offset();
    reader.bytes("content", len)?;
    reader.end()?;
    Ok(LogicalMessage { transactional, lsn, prefix, content: body.slice(start..) })
}

/// The wire leaves the namespace empty for `pg_catalog`.
fn namespace(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let text = reader.name_text("namespace")?;
    Ok(if text.is_empty() { "pg_catalog" } else { text }.to_owned())
}

fn lsn(reader: &mut Reader<'_>, field: &'static str) -> Result<Lsn, DecodeError> {
    reader.u64(field).map(Lsn::new)
}

fn time(reader: &mut Reader<'_>, field: &'static str) -> Result<PgTimestamp, DecodeError> {
    reader.i64(field).map(PgTimestamp::from_micros)
}
