//! What can go wrong with a replication connection, in one type.

use std::io;

use tokio_postgres::error::SqlState;

use crate::postgres::{ConnectError, ServerError};

/// Why a replication connection or stream ended. Every one of them ends it: connect again.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke. `None`: the server closed it without a word.
    #[error("the replication connection was lost")]
    Lost(#[source] Option<io::Error>),
    #[error("{during}: {error}")]
    Server { during: During, error: ServerError },
    /// The server ended the stream in good order, as it does when it shuts down.
    #[error("the server ended the replication stream")]
    Ended,
    /// PostgreSQL 18 goes on without a publication that did not exist at a change's place in the log.
    #[error("the server is leaving out changes: {0}")]
    PublicationSkipped(ServerError),
    /// The command was given up on request, and the server has stopped working on it.
    #[error("the command was aborted")]
    Aborted,
    /// An earlier command on this connection was dropped before its answer was complete.
    #[error("the replication connection was left in the middle of a command; open a new one")]
    Interrupted,
    /// The server does not speak the protocol as documented.
    #[error("unexpected answer from the server: {0}")]
    Protocol(&'static str),
    #[error("a message of {len} bytes from the server is larger than the protocol allows ({limit})")]
    TooLarge { len: usize, limit: usize },
    #[error("a name or value for the server holds a zero byte")]
    ZeroByte,
}

/// What the server was doing when it reported an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    Identify,
    TimelineHistory,
    CreateSlot,
    AlterSlot,
    DropSlot,
    StartReplication,
    Streaming,
}

impl std::fmt::Display for During {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            During::Identify => "IDENTIFY_SYSTEM",
            During::TimelineHistory => "TIMELINE_HISTORY",
            During::CreateSlot => "creating the replication slot",
            During::AlterSlot => "altering the replication slot",
            During::DropSlot => "dropping the replication slot",
            During::StartReplication => "starting replication",
            During::Streaming => "replication stream",
        })
    }
}

impl WalError {
    /// Whether connecting again and repeating the request may help with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            WalError::Connect(error) => error.is_transient(),
            WalError::Server { error, .. } => {
                (error.is_transient() || self.cannot_decode()) && !self.no_free_slot()
            }
            WalError::Lost(_) | WalError::Ended | WalError::Interrupted => true,
            WalError::PublicationSkipped(_)
            | WalError::Aborted
            | WalError::Protocol(_)
            | WalError::TooLarge { .. }
            | WalError::ZeroByte => false,
        }
    }

    /// What the server reported, if this is its report.
    pub fn server(&self) -> Option<(During, &ServerError)> {
        match self {
            WalError::Server { during, error } => Some((*during, error)),
            _ => None,
        }
    }

    fn code(&self) -> Option<&SqlState> {
        self.server().map(|(_, error)| &error.code)
    }

    /// Another process, or the server's side of a connection just lost, still holds the slot.
    pub fn slot_in_use(&self) -> bool {
        self.code() == Some(&SqlState::OBJECT_IN_USE)
    }

    /// A slot of this name exists already.
    pub fn slot_exists(&self) -> bool {
        self.code() == Some(&SqlState::DUPLICATE_OBJECT)
    }

    /// There is no such slot. The text is translated and differs between versions; what tells this
    /// from a missing publication is when it comes: a slot is looked up before streaming begins.
    pub fn slot_missing(&self) -> bool {
        self.code() == Some(&SqlState::UNDEFINED_OBJECT) && !self.streaming()
    }

    /// The publication did not exist when a change in the stream was made (see [`Self::slot_missing`]).
    pub fn publication_missing(&self) -> bool {
        let missing = self.code() == Some(&SqlState::UNDEFINED_OBJECT) && self.streaming();
        missing || matches!(self, WalError::PublicationSkipped(_))
    }

    /// 55000: `wal_level` is too low, the slot was lost, and several other mistakes. Look at the
    /// slot's `wal_status` before concluding anything.
    pub fn not_in_required_state(&self) -> bool {
        self.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
    }

    /// All of `max_replication_slots` are taken, or no walsender is free (`max_wal_senders`).
    pub fn no_free_slot(&self) -> bool {
        matches!(self.server(), Some((During::CreateSlot, error)) if error.code == SqlState::CONFIGURATION_LIMIT_EXCEEDED)
    }

    /// The server failed inside, at something in the stream. Behind a new slot that may be a TRUNCATE or a
    /// rewrite that was under way when the slot was made ("could not map filenode"): it is made again, elsewhere.
    /// An old slot keeps failing, and the state says with what, until a DBA drops it.
    fn cannot_decode(&self) -> bool {
        self.streaming() && self.code().is_some_and(|code| code.code().starts_with("XX"))
    }

    /// The role lacks REPLICATION, or another right.
    pub fn not_permitted(&self) -> bool {
        match self {
            WalError::Connect(error) => matches!(error, ConnectError::NotPermitted(_)),
            _ => self.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        }
    }

    /// The server is going down or coming up.
    pub fn server_stopping(&self) -> bool {
        match self {
            WalError::Connect(error) => matches!(error, ConnectError::NotAccepting(_)),
            WalError::Ended => true,
            _ => self.code().is_some_and(|code| matches!(code.code(), "57P01" | "57P02" | "57P03")),
        }
    }

    fn streaming(&self) -> bool {
        matches!(self.server(), Some((During::Streaming, _)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Severity;

    fn told(during: During, code: SqlState) -> WalError {
        let error = ServerError {
            code,
            message: "could not map filenode \"base/5/17267\" to relation OID".to_owned(),
            detail: None,
            hint: None,
            severity: Severity::Error,
        };
        WalError::Server { during, error }
    }

    #[test]
    fn what_the_server_fails_at_inside_the_stream_is_tried_again() {
        assert!(told(During::Streaming, SqlState::INTERNAL_ERROR).is_transient());
        assert!(!told(During::StartReplication, SqlState::INTERNAL_ERROR).is_transient());
        assert!(!told(During::Streaming, SqlState::INSUFFICIENT_PRIVILEGE).is_transient());
    }
}
