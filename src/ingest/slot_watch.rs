//! Looks after the slot from beside the stream: how much WAL it makes PostgreSQL keep, whether commits
//! wait for it, and, only where `wal_limit` says so, that it goes before the disk is full.
//!
//! It runs as long as the relay does, whatever becomes of ingest: also while ingest fails again and
//! again, waits for a slow disk, or for another relay to leave. It has a connection of its own, and
//! needs nothing of the log. A relay that waits for the slot watches it as well, so that one of two
//! that hangs is no danger. What no process of ours can do once it is dead, `max_slot_wal_keep_size`
//! does in the server.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::IngestOptions;
use super::progress::{Progress, State};
use crate::postgres::{ConnectError, Database};

/// A server that does not answer one look is asked again on another connection.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The walsender has to end before its slot can go, and one that waits for a slow client takes a moment.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);
const DROP_RETRY: Duration = Duration::from_millis(50);

/// Held WAL, the server's own limit, whether commits wait for the slot's process, and whether the slot is ours.
const LOOK: &str = "
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0
         ELSE pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::int8 END,
       (SELECT setting::int8 * 1048576 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
       EXISTS (SELECT FROM pg_catalog.pg_stat_replication r
               WHERE r.pid = s.active_pid AND r.sync_state IN ('sync', 'quorum', 'potential')),
       coalesce(s.plugin = 'pgoutput' AND s.database = pg_catalog.current_database(), false)
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";

#[derive(Debug)]
pub struct SlotWatch {
    database: Database,
    slot: String,
    interval: Duration,
    /// Beyond it the slot is dropped; `None`: never.
    wal_limit: Option<u64>,
    progress: Arc<Progress>,
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("asking about the replication slot failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error("the server did not answer within {LOOK_TIMEOUT:?}")]
    TimedOut,
    #[error("the replication slot could not be dropped within {DROP_TIMEOUT:?}: it is in use")]
    StillInUse,
}

impl SlotWatch {
    pub fn new(options: &IngestOptions, wal_limit: Option<u64>, progress: Arc<Progress>) -> Self {
        SlotWatch {
            database: Database::new(options.target.clone()),
            slot: options.slot.clone(),
            interval: options.poll_interval,
            wal_limit,
            progress,
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.look()).await.is_some() {
            shutdown.run_until_cancelled(tokio::time::sleep(self.interval)).await;
        }
    }

    /// One look. What goes wrong is told only while ingest itself gets on with the server: else it tells.
    pub async fn look(&mut self) {
        if let Err(error) = self.look_and_act().await {
            self.database.disconnect();
            if self.progress.state() == State::Streaming {
                tracing::warn!(slot = %self.slot, %error, "the replication slot could not be looked at; trying again");
            } else {
                tracing::debug!(slot = %self.slot, %error, "the replication slot could not be looked at");
            }
        }
    }

    async fn look_and_act(&mut self) -> Result<(), WatchError> {
        let looking = async {
            let client = self.database.client().await?;
            Ok::<_, WatchError>(client.query_one(LOOK, &[&self.slot]).await?)
        };
        let row = tokio::time::timeout(LOOK_TIMEOUT, looking).await.map_err(|_| WatchError::TimedOut)??;
        let bytes = |column| row.get::<_, Option<i64>>(column).and_then(|bytes| u64::try_from(bytes).ok());
        let held = bytes(0).unwrap_or(0);
        self.progress.set_wal(held, bytes(1));
        self.tell_synchronous(row.get(2));
        match self.wal_limit {
            Some(limit) if held > limit && row.get(3) => self.drop_slot(held, limit).await,
            _ => Ok(()),
        }
    }

    fn tell_synchronous(&self, synchronous: bool) {
        match (self.progress.set_synchronous(synchronous), synchronous) {
            (false, true) => tracing::error!(
                "PostgreSQL counts this relay as a synchronous standby: commits may wait for it; name your \
                 standbys in synchronous_standby_names instead of '*'"
            ),
            (true, false) => {
                tracing::info!("PostgreSQL no longer counts this relay as a synchronous standby")
            }
            _ => {}
        }
    }

    async fn drop_slot(&mut self, held: u64, limit: u64) -> Result<(), WatchError> {
        tracing::error!(
            slot = %self.slot, held_bytes = held, wal_limit = limit,
            "the slot makes PostgreSQL keep more WAL than wal_limit: dropping it, as told; every device has to sync in full"
        );
        self.progress.set_dropping_slot(true);
        let client = self.database.client().await;
        let dropped = match client {
            Ok(client) => drop_slot(client, &self.slot).await,
            Err(error) => Err(error.into()),
        };
        self.progress.set_dropping_slot(false);
        dropped?;
        self.progress.set_wal(0, self.progress.wal_limit());
        metrics::counter!("rowcast_slots_dropped_total").increment(1);
        tracing::error!(slot = %self.slot, "the replication slot was dropped; a new epoch begins as soon as ingest can");
        Ok(())
    }
}

/// Ends whoever streams from the slot, and drops it. One that is gone already is dropped.
async fn drop_slot(client: &Client, slot: &str) -> Result<(), WatchError> {
    const END: &str =
        "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
                       WHERE slot_name = $1 AND active_pid IS NOT NULL";
    let until = Instant::now() + DROP_TIMEOUT;
    loop {
        client.execute(END, &[&slot]).await?;
        match client.execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&slot]).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error) if error.code() != Some(&SqlState::OBJECT_IN_USE) => return Err(error.into()),
            Err(_) if Instant::now() > until => return Err(WatchError::StillInUse),
            Err(_) => tokio::time::sleep(DROP_RETRY).await,
        }
    }
}
