//! Rows that need more than the stream: tables that have to be asked about, values that were not
//! sent, and rows that cannot be read.

use tokio::time::Instant;

use super::driver::Driver;
use super::error::IngestError;
use super::poller::Poll;
use super::{ANSWER_PATIENCE, PUBLICATION, publication};
use crate::change::{Mark, Reason};
use crate::lsn::Lsn;
use crate::position::Position;
use crate::postgres::Database;
use crate::postgres::partitions;
use crate::postgres::tables::{self, TableError, TableFetch};
use crate::route::{Known, Need, Plan, Reading, RowError};
use std::sync::Arc;
use std::time::Duration;

/// How long a question waits for the transaction that it is about to be seen by other sessions.
const VISIBLE_PATIENCE: Duration = Duration::from_millis(250);

/// Whether a transaction, by the 32 bits of its id that the stream tells, is over for other sessions.
const IS_VISIBLE: &str = "
SELECT pg_catalog.pg_visible_in_snapshot((CASE WHEN near > xmax + 2147483648 THEN near - 4294967296 ELSE near END)::text::xid8, s)
FROM pg_catalog.pg_current_snapshot() s
CROSS JOIN LATERAL (SELECT pg_catalog.pg_snapshot_xmax(s)::text::int8 AS xmax) x
CROSS JOIN LATERAL (SELECT (xmax >> 32 << 32) + $1::int8 AS near) n";

impl Driver {
    /// How to read the rows of a table at this place; `None`: they are for nobody.
    pub(super) async fn plan(
        &mut self,
        relid: u32,
        at: Position,
        need: Need,
    ) -> Result<Option<Arc<Plan>>, IngestError> {
        loop {
            match self.router.reading(relid, at, need) {
                Reading::Plan(plan) => return Ok(Some(plan)),
                Reading::Skip => return Ok(None),
                Reading::Ask => self.ask(relid, at, None).await?,
                Reading::Mark(mark) => self.assembly()?.add_mark(mark),
            }
        }
    }

    /// Asks the database about a table, and takes in what it says. `why`: what readers are told if they
    /// have to sync for it, where that is known better than from the answer.
    pub(super) async fn ask(
        &mut self,
        relid: u32,
        at: Position,
        why: Option<Reason>,
    ) -> Result<(), IngestError> {
        let Some(table) = self.table_of(relid).await? else { return Ok(()) };
        let fetch = self.fetch(table).await?;
        self.progress.saw_server_end(fetch.insert_lsn);
        let mark = self.router.learn_through(table, relid, fetch, at);
        if self.router.table_of(relid).is_none() {
            // It left the table in between.
            self.router.stranger(relid);
        }
        if let Some(mark) = mark {
            let reason = why.unwrap_or(mark.reason);
            let beyond = Position::boundary(self.push_on().await?);
            self.mark_now(Mark { reason, upto: mark.upto.max(beyond), ..mark }).await?;
        }
        Ok(())
    }

    /// The tracked table whose rows a relation holds. One that nobody has heard of may be a leaf that
    /// joined lately: the database is asked, once for each announcement of it.
    async fn table_of(&mut self, relid: u32) -> Result<Option<u32>, IngestError> {
        if let Some(table) = self.router.table_of(relid) {
            return Ok(Some(table));
        }
        self.await_visible().await?;
        let mut database = self.take_database();
        let question = async {
            let client = database.client().await?;
            Ok(partitions::root_of(client, relid).await.map_err(TableError::from)?)
        };
        let root = self.answer(question).await;
        self.database = database;
        let table = root?.filter(|root| self.router.catalog().get(*root).is_some());
        if table.is_none() {
            self.router.stranger(relid);
        }
        Ok(table)
    }

    /// The question itself. The server hears of us while it lasts.
    async fn fetch(&mut self, table: u32) -> Result<TableFetch, IngestError> {
        let mut database = self.take_database();
        let known = self.router.known(table);
        let question = async {
            let client = database.client().await?;
            let mut fetch = tables::fetch(client, PUBLICATION, table).await?;
            let joined = fetch.info.as_ref().zip(known).and_then(|(info, known)| info.joined(&known));
            if let Some(leaves) = joined.filter(|leaves| !leaves.is_empty()) {
                let answer = partitions::came_without_rows(client, &leaves).await;
                fetch.joined_without_rows = answer.map_err(TableError::from)?;
            }
            Ok(fetch)
        };
        let answer = self.answer(question).await;
        self.database = database;
        answer
    }

    /// Waits until the transaction under way is visible to questions, which it is a moment after it is in
    /// the stream. Where a standby holds it up longer, the poller finds later what was not seen.
    pub(super) async fn await_visible(&mut self) -> Result<(), IngestError> {
        let xid = i64::from(self.assembly()?.xid());
        let mut database = self.take_database();
        let waiting = async {
            let client = database.client().await?;
            let until = Instant::now() + VISIBLE_PATIENCE;
            while !client.query_one(IS_VISIBLE, &[&xid]).await?.get::<_, bool>(0) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        };
        let waited = self.answer(waiting).await;
        self.database = database;
        waited
    }

    /// Taken out, so that the stream can be served while an answer is awaited.
    fn take_database(&mut self) -> Database {
        let spare = self.database.another();
        std::mem::replace(&mut self.database, spare)
    }

    /// An answer of the database, with the stream served meanwhile. No change passes until it is there, so a
    /// database that does not answer is left.
    async fn answer<T>(
        &mut self,
        question: impl Future<Output = Result<T, IngestError>>,
    ) -> Result<T, IngestError> {
        let answer = tokio::time::timeout(ANSWER_PATIENCE, question);
        self.serve_while(async { answer.await.unwrap_or(Err(IngestError::Silent(ANSWER_PATIENCE))) }).await
    }

    pub(super) async fn serve_while<T>(
        &mut self,
        work: impl Future<Output = Result<T, IngestError>>,
    ) -> Result<T, IngestError> {
        tokio::pin!(work);
        loop {
            let due = Instant::now() + self.status_interval;
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep_until(due) => self.report(true).await?,
            }
        }
    }

    /// Writes one small message (to no table) and gives its end, for a mark to reach there.
    ///
    /// A mark has to lie beyond every cursor that was given out before it, and a cursor may stand at the
    /// very end of the WAL; and an idle server would never get to a mark by itself.
    async fn push_on(&mut self) -> Result<Lsn, IngestError> {
        let mut database = self.take_database();
        let writing = async {
            let transaction = database.client().await?.transaction().await?;
            // A standby that does not answer must not hold this up.
            transaction.batch_execute("SET LOCAL synchronous_commit = local").await?;
            const MESSAGE: &str =
                "SELECT pg_catalog.pg_logical_emit_message(true, 'rowcast-advance', '')::text";
            let row = transaction.query_one(MESSAGE, &[]).await?;
            transaction.commit().await?;
            Ok(row.get::<_, &str>(0).parse().map_err(|_| TableError::Lsn)?)
        };
        let end = self.answer(writing).await;
        self.database = database;
        let end = end?;
        self.progress.saw_server_end(end);
        Ok(end)
    }

    /// Compares what the database says of its tables with what is known.
    pub(super) async fn compare(&mut self, poll: Poll) -> Result<(), IngestError> {
        self.progress.saw_server_end(poll.insert_lsn);
        let goes_on = |now: &publication::Found| {
            (now.oid, &now.fault) == (self.publication, &None) && self.publishes.goes_on_as(&now.publishes)
        };
        if !poll.publication.as_ref().is_some_and(goes_on) {
            return Err(IngestError::PublicationChanged);
        }
        self.end_grants_now(poll.faults).await?;
        // A table whose track was read from the stream before its transaction was visible is not known yet.
        let state = self.router.state();
        let fingerprint = |relid| state.tables.get(&relid).map(|known| known.info.fingerprint.clone());
        // A leaf may have been mended before the stream met that it was weak.
        let waits = |relid| state.tables.get(&relid).is_some_and(Known::waits_for_leaf);
        let known: Vec<(u32, Option<String>, bool)> = state
            .catalog
            .tables()
            .map(|tracked| (tracked.relid, fingerprint(tracked.relid), waits(tracked.relid)))
            .collect();
        for (relid, fingerprint, waits) in known {
            // A table that the poll did not ask about was tracked since.
            let differs = poll.fingerprints.get(&relid) != fingerprint.as_ref();
            if poll.asked.contains(&relid) && (differs || waits) {
                self.ask(relid, self.here(), None).await?;
            }
        }
        Ok(())
    }

    /// A row that cannot be read. If the table changed under it, its copies are stale, and the row with
    /// them; if not, going on would lose it.
    pub(super) async fn unreadable(
        &mut self,
        relid: u32,
        at: Position,
        error: RowError,
    ) -> Result<(), IngestError> {
        let relid = self.router.table_of(relid).unwrap_or(relid);
        // Readers were told to sync in full to beyond this row, so nobody misses it.
        let name = self.router.catalog().get(relid).map(|tracked| Arc::clone(&tracked.name));
        let whole_table = |mark: &&Mark| mark.audience.is_none() && Some(&mark.table) == name.as_ref();
        let pending = self.assembly()?.marks.iter().filter(whole_table);
        let pending = pending.map(|mark| mark.upto).max();
        let stale = name.and_then(|name| self.reach.upto(&name)).max(pending);
        if let Some(upto) = stale.filter(|upto| at <= *upto) {
            self.router.leave_out(relid, upto);
            return Ok(());
        }
        let fingerprint =
            |driver: &Driver| driver.router.state().tables.get(&relid).map(|k| k.info.fingerprint.clone());
        let before = fingerprint(self);
        self.ask(relid, at, None).await?;
        if fingerprint(self) != before {
            self.router.leave_out(relid, Position::boundary(self.progress.server_end()));
            return Ok(());
        }
        let table = self
            .router
            .catalog()
            .get(relid)
            .map_or_else(|| relid.to_string(), |t| format!("{}.{}", t.schema, t.table));
        Err(IngestError::Row { table, at, source: error })
    }
}
