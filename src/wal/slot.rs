//! CREATE_REPLICATION_SLOT, ALTER_REPLICATION_SLOT and DROP_REPLICATION_SLOT.

use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::connection::{ReplicationConnection, field, quote_identifier, single};
use super::error::{During, WalError};
use crate::lsn::Lsn;

/// From this major version on a slot can be kept in step on standbys.
const FAILOVER_SINCE: u32 = 17;

/// A new logical slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Streaming can begin here: transactions that commit later arrive.
    pub consistent_point: Lsn,
}

impl ReplicationConnection {
    /// Creates a logical slot for pgoutput, without a snapshot; `failover` counts on 17 and later.
    ///
    /// The server waits for every transaction that is open anywhere in the cluster, however long it
    /// takes ([`Self::backend_pid`] tells whom it waits for, by `pg_blocking_pids`). Merely closing the
    /// connection would not stop it: it would make the slot in the end. So cancelling `abort` asks the
    /// server to stop and waits for its word; on [`WalError::Aborted`] there is no slot. Do not drop the
    /// future instead.
    pub async fn create_slot(
        &mut self,
        name: &str,
        failover: bool,
        abort: &CancellationToken,
    ) -> Result<CreatedSlot, WalError> {
        let failover = if failover && self.server_major() >= FAILOVER_SINCE { ", FAILOVER true" } else { "" };
        let command = format!(
            "CREATE_REPLICATION_SLOT {} LOGICAL \"pgoutput\" (SNAPSHOT 'nothing'{failover})",
            quote_identifier(name)
        );
        self.send(&command)?;
        let rows = tokio::select! {
            rows = self.answer(During::CreateSlot) => rows?,
            () = abort.cancelled() => return Err(self.abort_create(name).await),
        };
        Ok(CreatedSlot { consistent_point: field(&single(rows)?, 1)? })
    }

    /// Makes a slot that nobody uses a failover slot (17 and later).
    pub async fn set_failover(&mut self, name: &str) -> Result<(), WalError> {
        let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_identifier(name));
        self.command(During::AlterSlot, &command).await.map(drop)
    }

    async fn abort_create(&mut self, name: &str) -> WalError {
        if let Err(error) = self.request_cancel().await {
            return error.into();
        }
        match self.answer(During::CreateSlot).await {
            Err(WalError::Server { error, .. }) if error.code == SqlState::QUERY_CANCELED => {
                WalError::Aborted
            }
            Err(error) => error,
            // It was done before the request came.
            Ok(_) => self.drop_slot(name, false).await.err().unwrap_or(WalError::Aborted),
        }
    }

    /// Drops a slot. With `wait`, waits until nobody uses it; without, that is [`WalError::slot_in_use`].
    pub async fn drop_slot(&mut self, name: &str, wait: bool) -> Result<(), WalError> {
        let wait = if wait { " WAIT" } else { "" };
        let command = format!("DROP_REPLICATION_SLOT {}{wait}", quote_identifier(name));
        self.command(During::DropSlot, &command).await.map(drop)
    }
}
