//! One transaction that reads tables as a snapshot shows them.
//!
//! The tables are locked first (ACCESS SHARE, which stands in the way of nothing but DDL and TRUNCATE),
//! for rewritten tables are not MVCC-safe; then the snapshot is taken; then the rows are read at the
//! database's speed. In: tables and audiences. Out: each row as the change that an INSERT of it would be.
//!
//! Must not know: the log, devices, where the rows go.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyOutStream};

use super::copy::{Fields, Lines};
use super::{FullOptions, select};
use crate::change::RowChange;
use crate::feed::Directory;
use crate::horizon::{ParseSnapshotError, Snapshot};
use crate::postgres::types::{self, Type, TypeError};
use crate::postgres::{ConnectError, SET_LOCAL};
use crate::route::{Plan, PlanError, RowError, Tracked};
use crate::topic::Audience;

/// One table, and whose rows of it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) tracked: Arc<Tracked>,
    pub(super) audiences: Vec<Audience>,
}

impl Wanted {
    /// Whether the table is tracked as it was when this was made.
    pub(super) fn is_tracked_so(&self, directory: &Directory) -> bool {
        directory.generation(&self.tracked.name) == Some(self.tracked.generation)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("reading the tables failed: {0}")]
    Query(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Types(#[from] TypeError),
    #[error(transparent)]
    Snapshot(#[from] ParseSnapshotError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("a row of {table} cannot be read: {source}")]
    Row { table: String, source: RowError },
    #[error("{table} is locked by DDL, or DDL waits for it")]
    Locked { table: String },
    #[error(
        "the relay's role may not read {table} as it is: {message}; run SELECT rowcast.track again for it, and \
         ALTER ROLE … BYPASSRLS where the table has row security"
    )]
    Rights { table: String, message: String },
    /// To be tried again.
    #[error("the tables were changed while they were looked at")]
    Moved,
    #[error("the server is a standby")]
    Standby,
    #[error("the database did not answer within {0:?}; the path to it may be gone")]
    Silent(Duration),
    #[error("the server sent a row in pieces that do not fit together")]
    Cut,
}

/// Which server answers, and since when: two sessions of one place see one history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    system: i64,
    started: String,
    database: String,
}

/// An open transaction with its snapshot.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) snapshot: Snapshot,
    pub(super) place: Place,
    pub(super) tables: Vec<Table>,
}

/// A table that can be read.
#[derive(Debug)]
pub(super) struct Table {
    plan: Plan,
    /// `None`: no row of it can be of the audiences, or the table is gone.
    statement: Option<String>,
}

impl Table {
    pub(super) fn key(&self) -> &[String] {
        &self.plan.shape.key
    }

    fn refused(&self, error: tokio_postgres::Error) -> SnapshotError {
        refused(error, &self.plan.shape.schema, &self.plan.shape.table)
    }

    fn unreadable(&self, source: RowError) -> SnapshotError {
        let shape = &self.plan.shape;
        SnapshotError::Row { table: format!("{}.{}", shape.schema, shape.table), source }
    }
}

type Names = HashMap<u32, (String, String)>;

const NAMES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1::pg_catalog.oid[])";

const COLUMNS: &str = "
SELECT a.attrelid, a.attname::text, a.atttypid, a.attgenerated <> '' AS generated,
       (SELECT pg_catalog.array_position((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1], a.attnum)
          FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary) AS key_place
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = ANY ($1::pg_catalog.oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

const PLACE: &str = "
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       pg_catalog.pg_postmaster_start_time()::pg_catalog.text, pg_catalog.current_database()::pg_catalog.text,
       pg_catalog.pg_is_in_recovery()";

/// What the server answers at once, if there is a way to it.
pub(super) async fn answered<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, SnapshotError>>,
) -> Result<T, SnapshotError> {
    tokio::time::timeout(patience, asked).await.unwrap_or(Err(SnapshotError::Silent(patience)))
}

/// Locks the tables, takes the snapshot, and reads what the tables look like in it.
pub(super) async fn open(
    client: &Client,
    wanted: &[Wanted],
    options: &FullOptions,
) -> Result<Opened, SnapshotError> {
    let relids: Vec<u32> = wanted.iter().map(|wanted| wanted.tracked.relid).collect();
    let before = names(client, &relids).await?;
    let begin = format!(
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {SET_LOCAL}; SET LOCAL row_security = off; \
         SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {longest}; \
         SET LOCAL idle_in_transaction_session_timeout = {idle}",
        options.lock_timeout.as_millis(),
        longest = options.longest.as_millis(),
        // It does nothing for longer only if the relay is gone, and its locks must not stay for that.
        idle = (options.fence_wait * 2).as_millis(),
    );
    client.batch_execute(&begin).await?;
    // One after the other, each in the same order for everybody; the snapshot is taken by the first query.
    for relid in &relids {
        if let Some((schema, table)) = before.get(relid) {
            let name = select::qualified(schema, table);
            let locked = client.batch_execute(&format!("LOCK TABLE {name} IN ACCESS SHARE MODE")).await;
            locked.map_err(|error| refused(error, schema, table))?;
        }
    }
    let snapshot = client.query_one("SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text", &[]).await?;
    let snapshot = Snapshot::parse(snapshot.get(0))?;
    if names(client, &relids).await? != before {
        return Err(SnapshotError::Moved);
    }
    let place = place(client).await?;
    let tables = tables(client, wanted, &relids, &before).await?;
    Ok(Opened { snapshot, place, tables })
}

/// The rows of one table, as they come.
pub(super) struct Rows<'a> {
    table: &'a Table,
    /// Absent where there is nothing to read.
    stream: Option<Pin<Box<CopyOutStream>>>,
    lines: Lines,
    fields: Fields,
}

/// Begins to read a table.
pub(super) async fn rows<'a>(client: &Client, table: &'a Table) -> Result<Rows<'a>, SnapshotError> {
    let stream = match &table.statement {
        Some(statement) => {
            let stream = client.copy_out(statement).await.map_err(|error| table.refused(error))?;
            Some(Box::pin(stream))
        }
        None => None,
    };
    Ok(Rows { table, stream, lines: Lines::default(), fields: Fields::default() })
}

impl Rows<'_> {
    /// The next row that is of some audience; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<RowChange>, SnapshotError> {
        loop {
            while let Some(line) = self.lines.next() {
                let row = self.table.plan.insert(&self.fields.read(&line));
                if let Some(row) = row.map_err(|source| self.table.unreadable(source))? {
                    return Ok(Some(row));
                }
            }
            let Some(stream) = &mut self.stream else { return Ok(None) };
            match stream.try_next().await.map_err(|error| self.table.refused(error))? {
                Some(bytes) => self.lines.add(&bytes),
                None if self.lines.is_cut() => return Err(SnapshotError::Cut),
                None => self.stream = None,
            }
        }
    }
}

/// Ends the transaction. That it answers shows that what the snapshot saw was not lost in a crash.
pub(super) async fn close(client: &Client) -> Result<(), SnapshotError> {
    client.query_one("SELECT 1", &[]).await?;
    Ok(client.batch_execute("COMMIT").await?)
}

/// Which server this is.
pub(super) async fn place(client: &Client) -> Result<Place, SnapshotError> {
    let row = client.query_one(PLACE, &[]).await?;
    if row.get(3) {
        return Err(SnapshotError::Standby);
    }
    Ok(Place { system: row.get(0), started: row.get(1), database: row.get(2) })
}

async fn names(client: &Client, relids: &[u32]) -> Result<Names, SnapshotError> {
    let rows = client.query(NAMES, &[&relids]).await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

async fn tables(
    client: &Client,
    wanted: &[Wanted],
    relids: &[u32],
    names: &Names,
) -> Result<Vec<Table>, SnapshotError> {
    let rows = client.query(COLUMNS, &[&relids]).await?;
    let oids: Vec<u32> = rows.iter().map(|row| row.get(2)).collect();
    let types = types::load(client, &oids).await?;
    let mut tables = Vec::with_capacity(wanted.len());
    for Wanted { tracked, audiences } in wanted {
        let own = rows.iter().filter(|row| row.get::<_, u32>(0) == tracked.relid);
        let mut columns: Vec<(String, Arc<Type>)> = Vec::new();
        let mut key: Vec<(i32, String)> = Vec::new();
        for row in own {
            let name: String = row.get(1);
            // The stream has those that are named, and no others.
            if row.get(3) && !tracked.columns.as_ref().is_some_and(|named| named.contains(&name)) {
                continue;
            }
            if let Some(place) = row.get::<_, Option<i32>>(4) {
                key.push((place, name.clone()));
            }
            let ty = types.get(&row.get::<_, u32>(2)).ok_or(SnapshotError::Moved)?;
            columns.push((name, Arc::clone(ty)));
        }
        key.sort_unstable();
        let key: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
        tables.push(table(tracked, audiences, columns, &key, names)?);
    }
    Ok(tables)
}

fn table(
    tracked: &Tracked,
    audiences: &[Audience],
    mut columns: Vec<(String, Arc<Type>)>,
    key: &[String],
    names: &Names,
) -> Result<Table, SnapshotError> {
    let topics: Vec<&str> = tracked.templates.iter().filter_map(|template| template.column()).collect();
    columns
        .retain(|(name, _)| tracked.publishes(name) || key.contains(name) || topics.contains(&name.as_str()));
    let Some((schema, name)) = names.get(&tracked.relid) else {
        // Dropped: there are no rows, and its readers are about to be told.
        let nothing = Tracked { templates: Vec::new(), columns: None, ..tracked.clone() };
        let plan = Plan::of_table(&nothing, (&tracked.schema, &tracked.table), &[], &[])?;
        return Ok(Table { plan, statement: None });
    };
    let name = (schema.as_str(), name.as_str());
    let plan = Plan::of_table(tracked, name, &columns, key)?;
    let type_of =
        |column: &str| columns.iter().find(|(name, _)| name == column).map(|(_, ty)| Arc::as_ref(ty));
    let read = columns.iter().map(|(name, _)| name.as_str());
    let statement = select::copy_statement(tracked, name, read, type_of, audiences);
    Ok(Table { plan, statement })
}

fn refused(error: tokio_postgres::Error, schema: &str, table: &str) -> SnapshotError {
    let table = format!("{schema}.{table}");
    match error.as_db_error() {
        Some(server) if *server.code() == SqlState::LOCK_NOT_AVAILABLE => SnapshotError::Locked { table },
        Some(server) if *server.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            SnapshotError::Rights { table, message: server.message().to_owned() }
        }
        // Dropped or renamed between the question for its name and its lock.
        Some(server) if *server.code() == SqlState::UNDEFINED_TABLE => SnapshotError::Moved,
        _ => SnapshotError::Query(error),
    }
}
