//! Why ingest stopped. Everything makes it begin again; the kind says how soon, and how loudly.

use crate::log::LogError;
use crate::position::Position;
use crate::postgres::ConnectError;
use crate::postgres::catalog::CatalogError;
use crate::postgres::tables::TableError;
use crate::route::{CatalogRowError, RowError};
use crate::wal::WalError;
use crate::wal::pgoutput::DecodeError;

use super::assembly::TooManyChanges;

#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("a question to the database failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error(transparent)]
    CatalogVersion(#[from] CatalogError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    TooMany(#[from] TooManyChanges),
    #[error(
        "the catalog holds a row that this rowcast cannot use: {0}; run rowcast init, then track the table again"
    )]
    Catalog(#[from] CatalogRowError),
    #[error(
        "a row of {table} at {at} cannot be delivered: {source}; nothing after it is delivered either, until this is mended"
    )]
    Row { table: String, at: Position, source: RowError },
    #[error("the replication stream broke its protocol: {0}")]
    Protocol(&'static str),
    #[error("what the log keeps of the router cannot be read: {0}")]
    State(#[from] serde_json::Error),
    #[error("{what}; {mend}")]
    Setup { what: String, mend: String },
    #[error("the replication slot {slot} is in use by {holder}; waiting until it is free")]
    SlotInUse { slot: String, holder: String },
    #[error("nothing was heard from the server for {0:?}, and it did not answer")]
    Silent(std::time::Duration),
    #[error("the publication was dropped, made again or altered")]
    PublicationChanged,
}

impl IngestError {
    pub(super) fn setup(what: impl Into<String>, mend: impl Into<String>) -> Self {
        IngestError::Setup { what: what.into(), mend: mend.into() }
    }

    /// Someone else streams from the slot: another relay, or the server's side of a connection just lost.
    pub fn slot_in_use(&self) -> bool {
        match self {
            IngestError::SlotInUse { .. } => true,
            IngestError::Wal(error) => error.slot_in_use(),
            _ => false,
        }
    }

    /// Whether trying again may help with nobody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            IngestError::Wal(error) => {
                error.is_transient() || error.publication_missing() || error.slot_in_use()
            }
            IngestError::Connect(error) => error.is_transient(),
            IngestError::Query(error) | IngestError::Table(TableError::Query(error)) => {
                error.is_closed()
                    || error.code().is_none_or(|code| matches!(&code.code()[..2], "57" | "08" | "53" | "40"))
            }
            IngestError::CatalogVersion(error) => matches!(error, CatalogError::Connection(_)),
            IngestError::SlotInUse { .. }
            | IngestError::PublicationChanged
            | IngestError::Silent(_)
            | IngestError::Table(_) => true,
            IngestError::Log(_)
            | IngestError::Decode(_)
            | IngestError::TooMany(_)
            | IngestError::Catalog(_)
            | IngestError::Row { .. }
            | IngestError::Protocol(_)
            | IngestError::State(_)
            | IngestError::Setup { .. } => false,
        }
    }
}
