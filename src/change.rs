//! What moves through the relay once bytes are decoded: transactions of deliveries.
//!
//! Made by `route`, kept by `log`, fanned out by `hub`, shown by `transport` and `sync`. The log gives
//! back on reading what it was given, restricted to what the reader asked for, so that live changes
//! and replay take the same way from here on.
//!
//! Invariants: deliveries of a transaction stand in order of their index; one row change appears once,
//! whatever the number of its audiences; text fields hold JSON exactly as PostgreSQL would print it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::json::numbers::Quoting;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

/// The changes of one commit, in order, as far as they are for anyone.
///
/// A transaction too large to be held is sent on in parts; all parts carry the same `attempt`.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// The commit record's LSN, as Begin names it.
    pub commit: Lsn,
    /// Top-level transaction id.
    pub xid: u32,
    /// Commit time, microseconds since 1970-01-01 UTC. Not monotone in commit order.
    pub committed_at: i64,
    /// The greatest commit time at or before this commit, in commit order.
    pub greatest_committed_at: i64,
    /// Set where the transaction comes in parts: which sending of it this is. Parts that a crash or a
    /// lost connection left incomplete carry another number than the complete ones.
    pub attempt: Option<u32>,
    /// Known only with the last part.
    pub tag: Option<Tag>,
    pub deliveries: Vec<Delivery>,
}

impl Transaction {
    pub fn position(&self, delivery: &Delivery) -> Position {
        Position::new(self.commit, delivery.index)
    }

    /// Roughly the memory that it holds, in bytes.
    pub fn size(&self) -> usize {
        256 + self.deliveries.iter().map(Delivery::size).sum::<usize>()
    }
}

/// Which device of the user made a transaction, as `rowcast.tag` said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub device: Arc<str>,
    pub correlation: Option<Arc<str>>,
    /// Whose device; a device's id alone does not say it.
    pub user: Option<Arc<str>>,
}

/// One thing to deliver, at its place in its transaction.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// From 1; see [`Position`].
    pub index: u32,
    pub body: Body,
}

impl Delivery {
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Row(row) => {
                160 + row.key.len()
                    + row.record.as_ref().map_or(0, |r| r.json.len() + r.whole.as_ref().map_or(0, Bytes::len))
                    + row.memberships.len() * 64
            }
            Body::Truncate(_) => 64,
            Body::Broadcast(broadcast) => 256 + broadcast.payload.len(),
        }
    }
}

#[derive(Debug, Clone)]
pub enum Body {
    Row(RowChange),
    /// All rows of a table are gone, for every reader of it.
    Truncate(Arc<Shape>),
    Broadcast(Broadcast),
}

/// One row's INSERT, UPDATE or DELETE.
#[derive(Debug, Clone)]
pub struct RowChange {
    pub shape: Arc<Shape>,
    /// The primary key as a JSON object.
    pub key: Bytes,
    /// Absent where the row is gone for everyone.
    pub record: Option<Record>,
    /// Who is concerned; never empty, sorted by audience, each audience once.
    pub memberships: SmallVec<[Membership; 1]>,
}

/// The new row.
#[derive(Debug, Clone)]
pub struct Record {
    /// The row as a JSON object of the published columns in their order, without those in `unchanged`.
    pub json: Bytes,
    /// Columns whose value was not sent because it did not change.
    pub unchanged: Vec<Arc<str>>,
    /// The row with all columns, for those to whom it is new; only where `unchanged` is not empty and
    /// some membership begins with this change.
    pub whole: Option<Bytes>,
}

/// Whether the row belonged to an audience before the change, and whether it does after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub audience: Audience,
    pub before: bool,
    pub after: bool,
}

/// An event that `rowcast.broadcast` sent with its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    pub audience: Audience,
    /// The topic's last segment, as in text.
    pub name: Arc<str>,
    pub id: Arc<str>,
    pub event: Arc<str>,
    /// JSON text as the sender wrote it.
    pub payload: Bytes,
}

/// What a change's table looked like when the change was made. Kept in the log by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Unique in one log; two shapes that differ in anything have different numbers.
    pub id: u32,
    pub relid: u32,
    pub schema: String,
    pub table: String,
    /// The last segment of the table's topics, as in text.
    pub name: Arc<str>,
    /// The primary key's columns.
    pub key: Vec<String>,
    /// First segments of the table's topics: whose readers read this table.
    pub scopes: Vec<String>,
    /// The published columns in their order, and where int8 and numeric stand in each.
    pub columns: Vec<(String, Quoting)>,
}

/// What happened to a row, as one reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Operation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "INSERT",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Truncate => "TRUNCATE",
        }
    }
}

/// A table's copies up to a position have to be synced in full, and what the log holds of the table up
/// to there is unreadable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The last segment of the table's topics, as in text.
    pub table: Arc<str>,
    /// For the copies of one audience only; `None` is all.
    pub audience: Option<Audience>,
    /// Scopes of the table's topics, before and after.
    pub scopes: Vec<String>,
    pub upto: Position,
    pub reason: Reason,
}

/// Why a device has to sync in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    TooOld,
    Epoch,
    NewlyTracked,
    Retracked,
    Untracked,
    SchemaChanged,
    Identity,
    Toast,
    Backlog,
    /// The token grants what the cursor did not vouch for.
    NewlyGranted,
    NoCursor,
    TimestampInFuture,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::TooOld => "too_old",
            Reason::Epoch => "epoch",
            Reason::NewlyTracked => "newly_tracked",
            Reason::Retracked => "retracked",
            Reason::Untracked => "untracked",
            Reason::SchemaChanged => "schema_changed",
            Reason::Identity => "identity",
            Reason::Toast => "toast",
            Reason::Backlog => "backlog",
            Reason::NewlyGranted => "newly_granted",
            Reason::NoCursor => "no_cursor",
            Reason::TimestampInFuture => "timestamp_in_future",
        }
    }
}
