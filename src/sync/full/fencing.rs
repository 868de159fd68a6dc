//! One fence after another, each shared by all who were ready before it was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::snapshot::{self, Place, SnapshotError};
use crate::cursor::Epoch;
use crate::feed::Feed;
use crate::fence::Fence;
use crate::postgres::{Database, Target};

#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Ingest is behind by more than anyone waits for.
    #[error("the stream did not reach the present within {0:?}")]
    Late(Duration),
}

/// Where fences are committed.
#[derive(Debug)]
pub(super) struct Fencing {
    tickets: AtomicU64,
    line: Mutex<Line>,
    /// How long one fence is waited for.
    patience: Duration,
}

#[derive(Debug)]
struct Line {
    database: Database,
    last: Option<Last>,
}

#[derive(Debug, Clone)]
struct Last {
    /// Of those who drew their ticket before this number, the snapshots existed when it was sent.
    serves: u64,
    epoch: Epoch,
    fence: Fence,
    place: Place,
}

impl Fencing {
    pub(super) fn new(target: Target, patience: Duration) -> Self {
        let line = Line { database: Database::new(target), last: None };
        Fencing { tickets: AtomicU64::new(1), line: Mutex::new(line), patience }
    }

    /// A fence that was committed after this was called, and the place where it was.
    pub(super) async fn fence(&self, feed: &Arc<Feed>) -> Result<(Fence, Place), FenceError> {
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst);
        let mut line = self.line.lock().await;
        if let Some(last) = &line.last
            && ticket < last.serves
            && last.epoch == feed.epoch
        {
            return Ok((last.fence, last.place.clone()));
        }
        let serves = self.tickets.load(Ordering::SeqCst);
        let sent = tokio::time::timeout(self.patience, send(feed, &mut line.database)).await;
        let result = sent.unwrap_or(Err(FenceError::Late(self.patience)));
        match result {
            Ok((fence, place)) => {
                line.last = Some(Last { serves, epoch: feed.epoch, fence, place: place.clone() });
                Ok((fence, place))
            }
            Err(error) => {
                line.database.disconnect();
                Err(error)
            }
        }
    }
}

async fn send(feed: &Arc<Feed>, database: &mut Database) -> Result<(Fence, Place), FenceError> {
    let client = database.client().await.map_err(SnapshotError::from)?;
    let place = snapshot::place(client).await?;
    let mut expected = feed.fences.expect();
    commit(client, expected.id()).await.map_err(SnapshotError::from)?;
    metrics::counter!("rowcast_fences_total").increment(1);
    Ok((expected.met().await, place))
}

async fn commit(client: &mut tokio_postgres::Client, id: &str) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    // A standby that does not answer must not hold this up.
    transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
    transaction.query_one("SELECT rowcast.fence($1)", &[&id]).await?;
    transaction.commit().await
}
