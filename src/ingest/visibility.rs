//! Moves the visible horizon on: asks the database each second what it sees, while something of the log
//! is not yet known to be visible.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ANSWER_PATIENCE;
use crate::feed::Feed;
use crate::horizon::{ParseSnapshotError, Snapshot};
use crate::log::LogError;
use crate::postgres::{ConnectError, Database};

const INTERVAL: Duration = Duration::from_secs(1);

/// A standby's snapshot says nothing of what its primary has in progress.
const SNAPSHOT: &str =
    "SELECT pg_catalog.pg_current_snapshot()::text WHERE NOT pg_catalog.pg_is_in_recovery()";

/// Why what is visible could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum VisibilityError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("asking what is visible failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error("the server did not answer within {ANSWER_PATIENCE:?}")]
    TimedOut,
    #[error("the server is a standby")]
    Standby,
    #[error(transparent)]
    Snapshot(#[from] ParseSnapshotError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the task that read the log ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// Asks once, and takes the answer into the feed's horizon.
pub async fn look(feed: &Arc<Feed>, database: &mut Database) -> Result<(), VisibilityError> {
    let reading = Arc::clone(feed);
    tokio::task::spawn_blocking(move || reading.horizon.refill(&*reading.log)).await??;
    if !feed.horizon.is_behind() {
        return Ok(());
    }
    let asking = async { Ok(database.client().await?.query_opt(SNAPSHOT, &[]).await?) };
    let answer: Result<_, VisibilityError> =
        tokio::time::timeout(ANSWER_PATIENCE, asking).await.map_err(|_| VisibilityError::TimedOut)?;
    let row = answer?.ok_or(VisibilityError::Standby)?;
    feed.horizon.see(&Snapshot::parse(row.get(0))?);
    Ok(())
}

/// Runs until `stop`.
pub(super) async fn watch(feed: Arc<Feed>, mut database: Database, stop: CancellationToken) {
    let looking = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if feed.horizon.is_behind()
                && let Err(error) = look(&feed, &mut database).await
            {
                tracing::debug!(%error, "what is visible could not be asked; trying again");
                database.disconnect();
            }
        }
    };
    stop.run_until_cancelled(looking).await;
}
