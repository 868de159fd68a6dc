//! Messages as a server writes them, for tests and fuzz targets: the relay itself only reads them. Written
//! from the documentation, and not from the decoder.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Message, OldTuple, ReplicaIdentity, Tuple, Value};

/// As the server writes it (PostgreSQL documentation, "Logical Replication Message Formats").
pub(crate) fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.get());
            out.put_i64(begin.commit_time.micros());
            out.put_u32(begin.xid);
        }
        Message::Commit(commit) => {
            out.put_slice(&[b'C', commit.flags]);
            out.put_u64(commit.commit_lsn.get());
            out.put_u64(commit.end_lsn.get());
            out.put_i64(commit.commit_time.micros());
        }
        Message::Origin(origin) => {
            out.put_u8(b'O');
            out.put_u64(origin.commit_lsn.get());
            put_name(&mut out, &origin.name);
        }
        Message::Relation(relation) => {
            out.put_u8(b'R');
            out.put_u32(relation.relid);
            put_namespace(&mut out, &relation.namespace);
            put_name(&mut out, &relation.name);
            out.put_u8(match relation.identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            out.put_u16(count(relation.columns.len()));
            for column in &relation.columns {
                out.put_u8(u8::from(column.key));
                put_name(&mut out, &column.name);
                out.put_u32(column.type_oid);
                out.put_i32(column.type_modifier);
            }
        }
        Message::Type(ty) => {
            out.put_u8(b'Y');
            out.put_u32(ty.type_oid);
            put_namespace(&mut out, &ty.namespace);
            put_name(&mut out, &ty.name);
        }
        Message::Insert(insert) => {
            out.put_u8(b'I');
            out.put_u32(insert.relid);
            put_tuple(&mut out, b'N', &insert.new);
        }
        Message::Update(update) => {
            out.put_u8(b'U');
            out.put_u32(update.relid);
            update.old.iter().for_each(|old| put_old(&mut out, old));
            put_tuple(&mut out, b'N', &update.new);
        }
        Message::Delete(delete) => {
            out.put_u8(b'D');
            out.put_u32(delete.relid);
            put_old(&mut out, &delete.old);
        }
        Message::Truncate(truncate) => {
            out.put_u8(b'T');
            out.put_u32(u32::from(count(truncate.relids.len())));
            out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            truncate.relids.iter().for_each(|relid| out.put_u32(*relid));
        }
        Message::Message(message) => {
            out.put_slice(&[b'M', u8::from(message.transactional)]);
            out.put_u64(message.lsn.get());
            put_name(&mut out, &message.prefix);
            out.put_u32(u32::try_from(message.content.len()).unwrap_or(u32::MAX));
            out.put_slice(&message.content);
        }
    }
    out.freeze()
}

/// No input of a test holds more.
fn count(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn put_name(out: &mut BytesMut, name: &str) {
    out.put_slice(name.as_bytes());
    out.put_u8(0);
}

fn put_namespace(out: &mut BytesMut, namespace: &str) {
    put_name(out, if namespace == "pg_catalog" { "" } else { namespace });
}

fn put_old(out: &mut BytesMut, old: &OldTuple) {
    match old {
        OldTuple::Key(tuple) => put_tuple(out, b'K', tuple),
        OldTuple::Full(tuple) => put_tuple(out, b'O', tuple),
    }
}

fn put_tuple(out: &mut BytesMut, tag: u8, tuple: &Tuple) {
    out.put_u8(tag);
    out.put_u16(count(tuple.len()));
    tuple.iter().for_each(|value| put_value(out, value));
}

pub(super) fn put_value(out: &mut BytesMut, value: Value<'_>) {
    let (kind, bytes) = match value {
        Value::Null => return out.put_u8(b'n'),
        Value::UnchangedToast => return out.put_u8(b'u'),
        Value::Text(bytes) => (b't', bytes),
        Value::Binary(bytes) => (b'b', bytes),
    };
    out.put_u8(kind);
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}
