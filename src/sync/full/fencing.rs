//! One fence after another, each shared by all who were ready before it was sent.
//!
//! To commit a fence takes a moment, to meet it as long as ingest is behind. So these are two steps: a
//! snapshot is open, and holds locks, only until the fence is committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::snapshot::{self, Place, SnapshotError};
use crate::cursor::Epoch;
use crate::feed::Feed;
use crate::fence::{Expected, Fence};
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
    sent: Sent,
}

/// A fence that was committed.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    expected: Arc<Expected>,
    /// Where it was.
    pub(super) place: Place,
    patience: Duration,
}

impl Sent {
    /// Waits until ingest meets it.
    pub(super) async fn met(&self) -> Result<Fence, FenceError> {
        let met = tokio::time::timeout(self.patience, self.expected.met()).await;
        met.map_err(|_| FenceError::Late(self.patience))
    }
}

impl Fencing {
    pub(super) fn new(target: Target, patience: Duration) -> Self {
        let line = Line { database: Database::new(target), last: None };
        Fencing { tickets: AtomicU64::new(1), line: Mutex::new(line), patience }
    }

    /// A fence that was committed after this was called.
    pub(super) async fn send(&self, feed: &Feed) -> Result<Sent, FenceError> {
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst);
        let mut line = self.line.lock().await;
        if let Some(last) = &line.last
            && ticket < last.serves
            && last.epoch == feed.epoch
        {
            return Ok(last.sent.clone());
        }
        let serves = self.tickets.load(Ordering::SeqCst);
        let sending = send(feed, &mut line.database, self.patience);
        let result = tokio::time::timeout(self.patience, sending).await;
        match result.unwrap_or(Err(FenceError::Late(self.patience))) {
            Ok(sent) => {
                line.last = Some(Last { serves, epoch: feed.epoch, sent: sent.clone() });
                Ok(sent)
            }
            Err(error) => {
                line.database.disconnect();
                Err(error)
            }
        }
    }
}

async fn send(feed: &Feed, database: &mut Database, patience: Duration) -> Result<Sent, FenceError> {
    let client = database.client().await.map_err(SnapshotError::from)?;
    let place = snapshot::place(client).await?;
    let expected = Arc::new(feed.fences.expect());
    commit(client, expected.id()).await.map_err(SnapshotError::from)?;
    metrics::counter!("rowcast_fences_total").increment(1);
    Ok(Sent { expected, place, patience })
}

async fn commit(client: &mut tokio_postgres::Client, id: &str) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    // A standby that does not answer must not hold this up.
    transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
    transaction.query_one("SELECT rowcast.fence($1)", &[&id]).await?;
    transaction.commit().await
}
