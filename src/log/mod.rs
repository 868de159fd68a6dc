//! The relay's durable record of recent changes, in commit order, read by audience.
//!
//! Ingest submits what it decoded and never waits for the disk, only for room in a bounded queue. A
//! reader sees whole transactions up to the watermark, which runs ahead of what is flushed; progress
//! is confirmed to Postgres only up to what is durable.
//!
//! Invariants: durable ≤ watermark ≤ submitted. One [`Append`] is atomic: after a crash all of it is
//! there or nothing. The log opens with a prefix of what was submitted; parts of a transaction whose
//! end is missing are never shown. Appends arrive in order; a transaction whose commit lies before the
//! watermark is ignored, so sending it again changes nothing.
//!
//! A disk that is full or fails loses nothing: the log takes nothing more ([`Log::trouble`] says why), and
//! goes on by itself once the disk works again, with everything that it had made readable.
//!
//! The log knows positions, audiences and tables; it must not know sockets, tokens or grants.

mod fjall;

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::change::{Mark, Transaction};
use crate::cursor::Epoch;
use crate::lsn::Lsn;
use crate::position::Position;
use crate::topic::Audience;

pub use self::fjall::FjallLog;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::fjall::fuzzing;

/// What ingest hands over at once; applied as one atomic batch.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// A transaction or a part of one.
    pub transaction: Option<Arc<Transaction>>,
    /// The boundary that readers may see once this is applied: a transaction's end LSN, or a position
    /// up to which there is nothing for anyone. `None`: nothing new becomes visible.
    pub watermark: Option<Lsn>,
    /// In force from here on, even if the watermark is not there yet. A mark replaces the one of the
    /// same table and audience, one for the whole table those of its audiences; but none that reaches
    /// further than itself, so that an append sent again makes nothing readable that was not. Only a mark
    /// without end (`Position::MAX`, a table that is blocked) gives way to any other.
    pub marks: Vec<Mark>,
    /// Named values of other stages (catalog, shapes, types), kept as they are; `None` removes.
    pub state: Vec<StateChange>,
}

impl Append {
    /// Nothing in it is a part of something.
    fn is_whole(&self) -> bool {
        self.transaction.as_ref().is_none_or(|transaction| transaction.attempt.is_none())
    }
}

/// A named value of another stage, or its removal.
pub type StateChange = (String, Option<Vec<u8>>);

/// How far readers may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermark {
    /// A boundary: every transaction that begins to commit before it is readable.
    pub lsn: Lsn,
    /// The greatest commit time so far, microseconds since 1970.
    pub greatest_committed_at: i64,
}

impl Watermark {
    pub const fn position(self) -> Position {
        Position::boundary(self.lsn)
    }
}

/// Which tables of an audience a reader wants, by the last segment of their topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tables {
    All { except: Vec<Arc<str>> },
    Only(Vec<Arc<str>>),
}

impl Tables {
    pub fn contains(&self, table: &str) -> bool {
        match self {
            Tables::All { except } => !except.iter().any(|name| **name == *table),
            Tables::Only(names) => names.iter().any(|name| **name == *table),
        }
    }
}

/// One audience of a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    pub audience: Audience,
    pub tables: Tables,
    /// This audience is read from here on if this is later than where the reading begins.
    pub after: Position,
}

/// A range of the log for a reader.
#[derive(Debug, Clone)]
pub struct ReadRequest<'a> {
    /// Each audience may stand here several times, for tables with different beginnings; a delivery
    /// that any of them wants is given once.
    pub interests: &'a [Interest],
    /// Exclusive.
    pub after: Position,
    /// Inclusive; what lies beyond the watermark is never read.
    pub upto: Position,
    /// Give no more than so many deliveries (at least one).
    pub max_deliveries: usize,
    /// Stop after about so many bytes (but give at least one delivery).
    pub max_bytes: usize,
    /// Stop after about so many entries were looked at, wanted or not, so that a rare table in a busy
    /// audience costs no more than others. A transaction of which the page holds something is gone
    /// through all the same: whether it goes on has to be known.
    pub max_visited: usize,
}

/// What a range holds, merged from all its audiences in the order of positions.
#[derive(Debug, Clone)]
pub struct Page {
    /// Deliveries that no interest wants and rows of tables before their mark are left out. A
    /// delivery's memberships are those of the wanted audiences. Frames, tags and times are as given
    /// on append.
    pub transactions: Vec<Arc<Transaction>>,
    /// All of the range up to here was looked at: the request's `upto` (or the watermark, if that is
    /// less) when `more` is false, else the position of the last delivery, or beyond it of the last
    /// entry that `max_visited` let through.
    pub through: Position,
    /// The range goes on. There may be nothing more in it, and nothing in this page.
    pub more: bool,
    /// The next delivery that the reader would get belongs to the last transaction of this page.
    pub cut: bool,
    /// Where `max_visited` ended the page: the greatest commit time at or before `through`.
    pub paused_at: Option<i64>,
}

/// Names of kept values that outlive the epoch begin with this: a log that takes another's place takes
/// them over.
pub const LASTING: &str = "lasting/";

/// Numbers for people and metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStats {
    pub bytes_on_disk: u64,
    pub spans: usize,
    /// Bytes accepted and not yet readable.
    pub queued_bytes: usize,
    /// Bytes that the file system has left for the log.
    pub free_bytes: u64,
}

/// Where to keep a log, and how much of it.
#[derive(Debug, Clone)]
pub struct LogOptions {
    pub directory: PathBuf,
    pub max_age: Duration,
    /// Bytes on disk.
    pub max_size: u64,
    /// Flush after so long or so many bytes, whichever comes first.
    pub group_commit_interval: Duration,
    pub group_commit_size: usize,
    /// Room for what is accepted and not yet readable, in bytes.
    pub queue_size: usize,
    /// Appends that come as quickly as this, in bytes a second, are let gather for a moment and written without
    /// the way by the journal, as a backlog should be. 0: all are written like that, and none is let wait for more.
    pub gather_rate: usize,
}

/// What a new log begins with.
#[derive(Debug, Clone)]
pub struct Beginning {
    pub epoch: Epoch,
    /// The first watermark and the oldest cursor.
    pub start: Lsn,
    /// No commit before `start` has a commit time beyond this, microseconds since 1970.
    pub greatest_committed_at: i64,
    pub state: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log in {directory} cannot be used: {source}")]
    Storage { directory: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the log in {directory} is damaged: {source}; check its disk, then move the directory away to begin a new epoch"
    )]
    Damaged { directory: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the log holds a record that cannot be read ({0}); move the log's directory away to begin a new epoch"
    )]
    Corrupt(&'static str),
    #[error(
        "the log was written in format {found}, this rowcast reads {expected}; move its directory away to begin a new epoch"
    )]
    Format { found: u32, expected: u32 },
    #[error("the log's writer has stopped: {0}")]
    Stopped(Arc<str>),
    #[error("the log cannot be used for now, and goes on by itself: {0}")]
    Stalled(Arc<str>),
}

impl LogError {
    /// Whether the same may work later, with nothing done to the log.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Storage { .. } | LogError::Stalled(_))
    }

    /// There is no room left on its disk.
    pub fn is_full(&self) -> bool {
        std::iter::successors(Some(self as &(dyn std::error::Error + 'static)), |error| error.source())
            .filter_map(|error| error.downcast_ref::<std::io::Error>())
            .any(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }
}

/// Why a log takes nothing for now. It tries again by itself, for as long as it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub kind: TroubleKind,
    /// What is wrong, where, and what to do.
    pub what: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// There is no room left on the disk.
    DiskFull,
    /// Writing or flushing failed.
    DiskFails,
}

/// Why a range cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has passed the beginning of the range. The log begins at `oldest`.
    #[error("the log no longer reaches back that far; it begins at {oldest}")]
    TooOld { oldest: Position },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Where reading has to begin to see every commit at or after a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLookup {
    /// Read after this boundary. It may lie before the first such commit, never behind it.
    From(Position),
    /// A commit at or after that time may lie before the log's beginning.
    TooOld,
    /// No commit that the log knows of has that time or a later one.
    InFuture,
}

/// The contract of a log. Embedded by default; a cluster keeps the same log elsewhere, so nothing here
/// may depend on one process owning the storage.
///
/// Reading methods may block on the disk: call them where blocking is allowed.
pub trait Log: Send + Sync + fmt::Debug + 'static {
    fn epoch(&self) -> Epoch;

    /// Every cursor at or after this can be read from. Moves when old spans are dropped.
    fn oldest(&self) -> Position;

    /// How far readers may see. Changes are published once they are accepted, so a moment earlier.
    fn watermark(&self) -> watch::Receiver<Watermark>;

    /// The boundary up to which everything survives a crash of the machine.
    fn durable(&self) -> watch::Receiver<Lsn>;

    /// Takes an append into the queue if there is room, else gives it back. Accepted is neither
    /// readable nor durable. One append is always taken by an empty queue, whatever its size.
    /// Fails once the writer has died.
    fn submit(&self, append: Append) -> Result<Result<(), Append>, LogError>;

    /// Waits until an append would be taken. With one producer, the next `submit` succeeds then.
    fn room(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// Waits until everything accepted so far is applied (readable as far as the watermark allows, not
    /// yet durable).
    fn applied(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// Flushes at once what is applied, and waits for it.
    fn flush(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// The writer's end: completes with the error that it died of. For supervision.
    fn failed(&self) -> BoxFuture<'_, LogError>;

    /// Completes when everybody has let go of the log and its storage is closed, with all that was accepted:
    /// its place is free for another.
    fn closed(&self) -> BoxFuture<'static, ()>;

    fn read(&self, request: &ReadRequest<'_>) -> Result<Page, ReadError>;

    /// See [`TimeLookup`]. `time` in microseconds since 1970.
    fn lookup_time(&self, time: i64) -> Result<TimeLookup, LogError>;

    /// Ids and commits of the transactions after a position that readers may see, in commit order, at most
    /// `max` of them; also those that brought nothing for anyone. Those that retention took are left out.
    fn commits(&self, after: Position, max: usize) -> Result<Vec<(u32, Lsn)>, LogError>;

    /// The newest known JSON text of one column of a row that is a member of `audience`, from entries
    /// before `before` (also such that the watermark has not reached). `None` when the log does not
    /// know it: older than the log or a mark, or more than `max_entries` of the audience back.
    fn column_value(&self, query: &ColumnQuery<'_>) -> Result<Option<String>, LogError>;

    /// Marks in force, and a number that changes whenever they do. A mark is visible here as soon as
    /// its append is submitted.
    fn marks(&self) -> Marks;
    fn marks_version(&self) -> u64;

    /// Marks whose `upto` lies beyond `after`, for one table of one audience: the one that reaches furthest.
    fn mark_beyond(&self, audience: &Audience, table: &str, after: Position) -> Option<Mark>;

    fn state(&self, name: &str) -> Result<Option<Vec<u8>>, LogError>;

    /// All named values whose names begin with `prefix`, in the order of their names.
    fn states(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError>;

    /// Keeps a small named value beside the log: what belongs to no position, such as the registry of
    /// devices. Readable at once, durable with the next group commit, gone with the epoch unless its name
    /// begins with [`LASTING`]; `None` removes. Anyone may call it at any time; of one name the last call counts.
    fn keep(&self, name: &str, value: Option<&[u8]>) -> Result<(), LogError>;

    fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, LogError>;

    /// All kept values whose names begin with `prefix`, in the order of their names.
    fn kept_under(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, LogError>;

    /// The same, at most so many and only names behind `after`: for going through many in bounded memory.
    fn kept_page(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, Vec<u8>)>, LogError>;

    fn stats(&self) -> LogStats;

    /// Why nothing is written just now, if so: what is accepted waits, and what is readable stays so.
    fn trouble(&self) -> Option<Trouble> {
        None
    }
}

/// A row's column that an entry owes.
#[derive(Debug, Clone, Copy)]
pub struct ColumnQuery<'a> {
    pub audience: &'a Audience,
    pub table: &'a str,
    /// The row's key, as the log's entries have it.
    pub key: &'a [u8],
    pub column: &'a str,
    pub before: Position,
    pub attempt: Option<u32>,
    pub max_entries: usize,
}

/// A snapshot of the marks in force.
pub type Marks = Arc<Vec<Mark>>;
