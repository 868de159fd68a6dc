//! Why a full sync has no answer. All of it is the relay's or the database's matter, not the device's,
//! and most of it passes: a device is told when to come back, the relay's log says why.

use std::time::Duration;

use super::fencing::FenceError;
use super::snapshot::SnapshotError;
use super::spool::SpoolError;
use crate::ingest::VisibilityError;
use crate::json::object::RecordError;
use crate::log::LogError;

#[derive(Debug, thiserror::Error)]
pub enum FullError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error(transparent)]
    Visibility(#[from] VisibilityError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(
        "transactions of the log are not yet visible to other sessions; a synchronous standby may not be answering"
    )]
    NotVisible,
    #[error("the tables changed again and again while they were read")]
    Restless,
    #[error("reading the tables took longer than {0:?}")]
    TooLong(Duration),
    #[error("too many full syncs wait already")]
    Crowded,
    #[error("an answer holds at most 65,535 tables")]
    TooManyTables,
    #[error("the log has ended")]
    Over,
    #[error("a task ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl FullError {
    /// The error's name on the wire, and when to come back, in seconds.
    pub(crate) fn told(&self) -> (&'static str, u32) {
        match self {
            FullError::Fence(FenceError::Late(_)) | FullError::NotVisible => ("not_caught_up", 5),
            FullError::Crowded | FullError::Spool(SpoolError::Full) => ("busy", 15),
            FullError::Snapshot(SnapshotError::Locked { .. } | SnapshotError::Moved)
            | FullError::Restless
            | FullError::TooLong(_) => ("busy", 10),
            _ => ("unavailable", 10),
        }
    }

    /// What a device is told; the tables' own errors are the DBA's matter.
    pub(crate) fn detail(&self) -> &'static str {
        match self {
            FullError::Fence(FenceError::Late(_)) => {
                "the relay is behind the database; try again when it has caught up"
            }
            FullError::NotVisible => "not all commits of the log are visible in the database yet; try again",
            FullError::Crowded | FullError::Spool(SpoolError::Full) => {
                "too many full syncs are under way; try again"
            }
            FullError::Snapshot(SnapshotError::Locked { .. }) => "a table is being altered; try again",
            FullError::Snapshot(SnapshotError::Moved) | FullError::Restless => {
                "the tables changed while they were read; try again"
            }
            _ => "the tables could not be read; the relay's log says why",
        }
    }

    /// Whether a DBA has something to do about it.
    pub(crate) fn needs_mending(&self) -> bool {
        match self {
            FullError::Snapshot(error) | FullError::Fence(FenceError::Snapshot(error)) => !matches!(
                error,
                SnapshotError::Locked { .. }
                    | SnapshotError::Moved
                    | SnapshotError::Silent(_)
                    | SnapshotError::Connect(_)
            ),
            // Told by the log itself, once.
            FullError::Log(LogError::Stalled(_)) => false,
            FullError::Spool(SpoolError::Write { .. } | SpoolError::Read(_))
            | FullError::Log(_)
            | FullError::Record(_)
            | FullError::TooManyTables
            | FullError::TooLong(_)
            | FullError::Task(_) => true,
            _ => false,
        }
    }
}
