//! The messages of pgoutput, protocol version 1, as types.
//!
//! PostgreSQL documentation, "Logical Replication Message Formats". Tuples and contents are slices
//! of the received body, so a message that is kept keeps its receive chunk alive.

use std::fmt;

use bytes::Bytes;

use super::tuple::Tuple;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// One logical replication message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin),
    Relation(Relation),
    Type(Type),
    Insert(Insert),
    Update(Update),
    Delete(Delete),
    Truncate(Truncate),
    Message(LogicalMessage),
}

/// A transaction that committed begins; its changes follow, whole and contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// The LSN of the commit record.
    pub final_lsn: Lsn,
    pub commit_time: PgTimestamp,
    /// The top-level transaction, without its epoch: compare modulo 2^32.
    pub xid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// None is defined yet.
    pub flags: u8,
    /// The same as the Begin message's `final_lsn`.
    pub commit_lsn: Lsn,
    /// Behind the commit record: what is confirmed to the server.
    pub end_lsn: Lsn,
    pub commit_time: PgTimestamp,
}

/// The transaction was itself replicated here from another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The commit's LSN on the origin server.
    pub commit_lsn: Lsn,
    pub name: String,
}

/// The shape of a table, sent before its first change in a session and again whenever the server
/// cannot rule out that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub relid: u32,
    /// `pg_catalog` where the wire says nothing.
    pub namespace: String,
    pub name: String,
    pub identity: ReplicaIdentity,
    pub columns: Vec<Column>,
}

/// What the server sends of an old row: `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    Nothing,
    Full,
    /// The index of `REPLICA IDENTITY USING INDEX`.
    Index,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Whether the column is part of the replica identity.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// The name of a column type that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub type_oid: u32,
    /// `pg_catalog` where the wire says nothing.
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    pub relid: u32,
    pub new: Tuple,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub relid: u32,
    /// `None` where the identity is not FULL and none of its columns changed.
    pub old: Option<OldTuple>,
    pub new: Tuple,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    pub relid: u32,
    pub old: OldTuple,
}

/// What is known of a row before its change. Both have all columns of the relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// Only the columns of the replica identity; all others read as null.
    Key(Tuple),
    /// The whole row: the identity is FULL.
    Full(Tuple),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    pub cascade: bool,
    pub restart_identity: bool,
    pub relids: Vec<u32>,
}

/// What `pg_logical_emit_message` wrote.
#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Part of the transaction around it; otherwise it comes between transactions, at once.
    pub transactional: bool,
    pub lsn: Lsn,
    pub prefix: String,
    pub content: Bytes,
}

impl fmt::Debug for LogicalMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content", &format_args!("{} bytes", self.content.len()))
            .finish()
    }
}
