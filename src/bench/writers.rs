//! Writes rows through SQL, by a schedule that does not wait for anyone.
//!
//! Each write has a time at which it is due, whatever became of the one before: a database that is late for a
//! moment makes the writes behind it late, and that shows, instead of making them fewer. One thread for all
//! connections, so that a commit's return is noted by who waited for it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_postgres::types::ToSql;

use super::board::Board;
use super::service::Audience;
use super::{histogram, tables};
use crate::postgres::{Driver, Target, connect};

/// One write may take this long.
const PATIENCE: Duration = Duration::from_secs(60);
const APPLICATION: &str = "rowcast bench";

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Load {
    pub database: Target,
    pub audience: Audience,
    /// Users whose rows are written in turn, from 1 on. Of [`Audience::All`] there is one, with the number 0.
    pub users: u64,
    pub connections: usize,
    /// Transactions a second.
    pub rate: f64,
    /// Transactions.
    pub count: u64,
    /// Rows of a transaction, all of one user.
    pub rows_each: u64,
    /// The number (`id`) of the first row.
    pub first: u64,
    /// What `n` begins with for each user.
    pub n_from: u64,
    pub body_bytes: usize,
}

impl Load {
    /// The same, with users and connections such that all rows of a user are written over one connection: else
    /// their order would be anybody's guess.
    pub fn ordered(mut self) -> Self {
        match self.audience {
            Audience::All => (self.users, self.connections) = (1, 1),
            Audience::Own => {
                self.users = self.users.max(1);
                let most = usize::try_from(self.users).unwrap_or(usize::MAX);
                self.connections = self.connections.clamp(1, most);
                self.users -= self.users % self.connections as u64;
            }
        }
        self
    }

    /// All rows.
    pub fn rows(&self) -> u64 {
        self.count * self.rows_each
    }

    /// The rows of one user. What `n` they end with is this and `n_from`, less one.
    pub fn rows_of(&self, user: u64) -> u64 {
        if self.audience == Audience::All {
            return self.rows();
        }
        match user.checked_sub(1).filter(|place| *place < self.users) {
            None => 0,
            Some(place) => {
                (self.count / self.users + u64::from(place < self.count % self.users)) * self.rows_each
            }
        }
    }

    fn due(&self, begun: Instant, write: u64) -> Instant {
        begun + Duration::from_secs_f64(write as f64 / self.rate)
    }
}

/// Writing under way, on a thread of its own.
#[derive(Debug)]
pub struct Writing(JoinHandle<anyhow::Result<Written>>);

/// What writing was like.
#[derive(Debug)]
pub struct Written {
    /// From the first write's time to the last commit's return.
    pub took: Duration,
    /// Transactions: all of the load, unless the board was stopped.
    pub count: u64,
    /// Nanoseconds that a commit took to return.
    pub commit: Histogram<u64>,
    /// Nanoseconds by which writes began too late.
    pub late: Histogram<u64>,
}

/// Begins to write, until all is written or the board is stopped. The board must have places for all rows.
pub fn start(load: Load, board: Arc<Board>) -> io::Result<Writing> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let written = runtime.block_on(write(Arc::new(load), Arc::clone(&board)));
        board.stop();
        written
    };
    Ok(Writing(std::thread::Builder::new().name("writers".to_owned()).spawn(work)?))
}

impl Writing {
    /// Waits for the end.
    pub fn finish(self) -> anyhow::Result<Written> {
        self.0.join().map_err(|_| anyhow::anyhow!("the writers panicked"))?
    }
}

struct Connection {
    client: tokio_postgres::Client,
    statement: tokio_postgres::Statement,
    _driver: Driver,
}

async fn write(load: Arc<Load>, board: Arc<Board>) -> anyhow::Result<Written> {
    let target = load.database.with_application_name(APPLICATION);
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let (client, driver) = connect(&target).await.context("a writer cannot connect to the database")?;
        let statement = client.prepare(&tables::insert(load.audience, load.rows_each)).await?;
        connections.push(Connection { client, statement, _driver: driver });
    }
    let mut written = Written { took: Duration::ZERO, count: 0, commit: histogram(), late: histogram() };
    let begun = Instant::now();
    let mut writing = JoinSet::new();
    for (place, connection) in connections.into_iter().enumerate() {
        writing.spawn(write_share(Arc::clone(&load), Arc::clone(&board), connection, place as u64, begun));
    }
    while let Some(share) = writing.join_next().await {
        let share = share.context("a writer panicked")??;
        written.count += share.count;
        written.commit.add(&share.commit)?;
        written.late.add(&share.late)?;
    }
    written.took = begun.elapsed();
    Ok(written)
}

/// Every so many-th write, on one connection.
async fn write_share(
    load: Arc<Load>,
    board: Arc<Board>,
    connection: Connection,
    place: u64,
    begun: Instant,
) -> anyhow::Result<Written> {
    let mut written = Written { took: Duration::ZERO, count: 0, commit: histogram(), late: histogram() };
    let bodies: Vec<String> = (0..64).map(|seed| tables::body(seed, load.body_bytes)).collect();
    for write in (place..load.count).step_by(load.connections) {
        let due = load.due(begun, write);
        if due > Instant::now() {
            sleep_until(due.into()).await;
        }
        if board.is_stopped() {
            break;
        }
        let first = load.first + write * load.rows_each;
        let ids = first..first + load.rows_each;
        ids.clone().for_each(|id| board.due(id, due));
        let user = if load.audience == Audience::All { 0 } else { 1 + write % load.users };
        let n = load.n_from + write / load.users * load.rows_each;
        let (id, user, n) = (i64::try_from(first)?, i64::try_from(user)?, i64::try_from(n)?);
        let body = &bodies[write as usize % bodies.len()];
        let sent = Instant::now();
        let values: [&(dyn ToSql + Sync); 4] = [&id, &user, &n, body];
        let commit = connection.client.execute(&connection.statement, &values);
        tokio::time::timeout(PATIENCE, commit).await.context("a write took more than a minute")??;
        let returned = Instant::now();
        ids.for_each(|id| board.returned(id, returned));
        written.commit.saturating_record(nanoseconds(returned - sent));
        written.count += 1;
        written.late.saturating_record(nanoseconds(sent.saturating_duration_since(due)));
    }
    Ok(written)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(audience: Audience, users: u64, connections: usize, count: u64) -> Load {
        Load {
            database: Target::parse("postgres://nobody@127.0.0.1/none").unwrap(),
            audience,
            users,
            connections,
            rate: 1000.0,
            count,
            rows_each: 2,
            first: 1,
            n_from: 1,
            body_bytes: 10,
        }
        .ordered()
    }

    #[test]
    fn every_user_has_one_connection() {
        for (users, connections) in [(10, 4), (3, 8), (1, 1), (0, 2), (1000, 16)] {
            let load = load(Audience::Own, users, connections, 100);
            assert_eq!(load.users % load.connections as u64, 0, "{users} {connections}");
            assert!(load.users >= 1);
        }
    }

    #[test]
    fn expected_rows_add_up() {
        for count in [0, 1, 7, 100, 101] {
            let load = load(Audience::Own, 10, 4, count);
            assert_eq!((0..20).map(|user| load.rows_of(user)).sum::<u64>(), load.rows());
        }
        assert_eq!(load(Audience::All, 10, 4, 5).rows_of(0), 10);
    }
}
