//! Looks at the database every few seconds, on a connection of its own: fingerprints of the tracked
//! tables, and the publication.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{ANSWER_PATIENCE, PUBLICATION, publication};
use crate::lsn::Lsn;
use crate::postgres::tables::{self, TableError};
use crate::postgres::{self, ConnectError, Target};

/// One look.
#[derive(Debug)]
pub(super) struct Poll {
    pub(super) publication: Option<publication::Found>,
    pub(super) asked: HashSet<u32>,
    pub(super) fingerprints: HashMap<u32, String>,
    pub(super) insert_lsn: Lsn,
    /// Rules of `rowcast.grants` whose tables are not what they were.
    pub(super) faults: Vec<FoundFault>,
}

/// Why the grants of a rule must end.
#[derive(Debug)]
pub(super) struct FoundFault {
    pub(super) generation: i64,
    pub(super) why: String,
}

/// What `rowcast.status` says too.
pub(super) const GRANT_FAULTS: &str = "
SELECT g.generation, min(p.problem) FROM rowcast.grants g CROSS JOIN LATERAL rowcast.grant_problems(g.generation) p
GROUP BY g.generation";

pub(super) struct Poller {
    pub(super) target: Target,
    pub(super) interval: Duration,
    pub(super) tables: watch::Receiver<Vec<u32>>,
    /// Look at once: the stream announced a table anew.
    pub(super) nudge: Arc<Notify>,
    pub(super) polls: mpsc::Sender<Poll>,
    pub(super) progress: Arc<Progress>,
}

#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("asking about the publication failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error("the server did not answer within {ANSWER_PATIENCE:?}")]
    TimedOut,
}

/// The rules whose tables are not what they were; none where the catalog is of a time before there were rules.
pub(super) async fn grant_faults(client: &Client) -> Result<Vec<FoundFault>, tokio_postgres::Error> {
    if !knows_grants(client).await? {
        return Ok(Vec::new());
    }
    let rows = client.query(GRANT_FAULTS, &[]).await?;
    Ok(rows.iter().map(|row| FoundFault { generation: row.get(0), why: row.get(1) }).collect())
}

/// Whether the catalog has rights. A relay may be newer than the catalog, until `rowcast init` is run.
pub(super) async fn knows_grants(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let known = "SELECT pg_catalog.to_regclass('rowcast.grant_seeds') IS NOT NULL";
    Ok(client.query_one(known, &[]).await?.get(0))
}

impl Poller {
    pub(super) async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let result = stop.run_until_cancelled(self.poll_until_failure()).await;
            if let Some(Err(error)) = result {
                tracing::warn!(%error, "the database could not be looked at; trying again");
                stop.run_until_cancelled(tokio::time::sleep(self.interval)).await;
            }
        }
    }

    async fn poll_until_failure(&self) -> Result<(), PollError> {
        let (client, _driver) = postgres::connect(&self.target).await?;
        loop {
            let looking = tokio::time::timeout(ANSWER_PATIENCE, self.look(&client));
            let poll = looking.await.map_err(|_| PollError::TimedOut)??;
            // Also when ingest stands still and takes no polls: how far behind it is must show.
            self.progress.saw_server_end(poll.insert_lsn);
            // When ingest is behind with the last look, this one would tell it nothing more.
            let _ = self.polls.try_send(poll);
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    async fn look(&self, client: &Client) -> Result<Poll, PollError> {
        let asked = self.tables.borrow().clone();
        let (fingerprints, insert_lsn) = tables::fingerprints(client, PUBLICATION, &asked).await?;
        // Behind the fingerprints: a publication made again changes these too, and must not pass for DDL.
        let publication = publication::look(client).await?;
        let faults = grant_faults(client).await?;
        Ok(Poll { publication, asked: asked.into_iter().collect(), fingerprints, insert_lsn, faults })
    }
}
