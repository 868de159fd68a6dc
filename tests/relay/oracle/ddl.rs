//! A DBA at work while the writers write: alters, rewrites, untracks and tracks the generated tables.
//!
//! Whatever becomes of a statement (refused, or its connection lost), what the schema is then is asked of the
//! database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::columns::{self, Column, literal, pick, quoted};
use super::line::{Line, Outcome};
use super::schema::{Now, Schema, Table, TableNow, Track};
use super::statements::{Reach, some_statement};
use super::writing::Writers;
use crate::support::dice::Dice;

/// Behind a lock that is waited for, everybody waits.
const SETTINGS: &str = "SET lock_timeout = '200ms'; SET client_min_messages = error";
/// How long a busy table is tried.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(30);
/// What a DBA may hear besides: that a column list or a view depends on a column, that a partition came to
/// lack a column while it was away, that rows in the way of a new partition are elsewhere, that a filter of
/// the publication needs a column's type.
const EXPECTED: &[SqlState] = &[
    SqlState::FEATURE_NOT_SUPPORTED,
    SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
    SqlState::INVALID_TABLE_DEFINITION,
    SqlState::DUPLICATE_OBJECT,
    SqlState::WRONG_OBJECT_TYPE,
    SqlState::UNSAFE_NEW_ENUM_VALUE_USAGE,
];

pub(super) struct Dba {
    schema: Arc<Schema>,
    line: Line,
    /// Partitions that were taken out: what they were part of, and what for.
    detached: Vec<Detached>,
    names: u64,
    done: u64,
}

struct Detached {
    leaf: String,
    parent: String,
    bound: String,
}

/// Statements to be run as one batch.
#[derive(Default)]
struct Alteration {
    sql: Vec<String>,
    tracks: Vec<Track>,
}

impl Alteration {
    fn of(sql: String) -> Self {
        Alteration { sql: vec![sql], tracks: Vec::new() }
    }

    fn and(mut self, track: Track) -> Self {
        self.sql.push(track.sql.clone());
        self.tracks.push(track);
        self
    }
}

impl Dba {
    pub(super) fn new(schema: &Arc<Schema>, url: &str) -> Self {
        let line = Line::new(url, SETTINGS).expecting(EXPECTED);
        Dba { schema: Arc::clone(schema), line, detached: Vec::new(), names: 0, done: 0 }
    }

    /// How many alterations took effect so far.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// So many alterations, some transactions of the writers apart.
    pub(super) async fn work(&mut self, writers: &Writers, alterations: u64, apart: u64, dice: &mut Dice) {
        for _ in 0..alterations {
            writers.others_went_on(dice.roll(apart)).await;
            self.alter(dice).await;
            self.look().await;
        }
    }

    /// Tracks what is not tracked, and puts back partitions, where that can be.
    pub(super) async fn tidy_up(&mut self, dice: &mut Dice) {
        for number in 0..self.schema.tables.len() {
            let now = self.schema.now();
            if now.tables[number].tracking.is_none() {
                let track = self.schema.tables[number].some_track(&now.tables[number], dice);
                self.run(Alteration::default().and(track)).await;
            }
        }
        self.look().await;
    }

    async fn alter(&mut self, dice: &mut Dice) {
        let (schema, now) = (Arc::clone(&self.schema), self.schema.now());
        let number = dice.roll(schema.tables.len() as u64) as usize;
        let (table, at) = (&schema.tables[number], &now.tables[number]);
        let alteration = match dice.roll(16) {
            0 => self.detach_or_attach(at, dice).await,
            1 => self.replace_leaf(at, dice).await,
            // In pieces: rows are written under a shape that nobody else ever sees.
            2 | 3 => self.several(table, at, &now, dice),
            4 => Some(maintenance(at, dice)),
            5 => Some(self.new_label()),
            6..=8 => Some(track_otherwise(table, at, dice)),
            _ => self.alter_columns(table, at, &now, dice),
        };
        if let Some(alteration) = alteration {
            self.run(alteration).await;
        }
    }

    /// Until the table is free, or for a while.
    async fn run(&mut self, alteration: Alteration) -> Outcome {
        alteration.tracks.iter().for_each(|track| self.schema.announce(track));
        let (sql, begun) = (alteration.sql.join("; "), Instant::now());
        loop {
            let outcome = self.line.run(&sql).await;
            if outcome == Outcome::Done {
                self.done += 1;
            }
            if outcome != Outcome::Refused {
                return outcome;
            }
            let busy = self.line.was_busy();
            self.line.run("ROLLBACK").await;
            if !busy || begun.elapsed() > PATIENCE {
                return outcome;
            }
            // Others have to get on.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look(&mut self) {
        loop {
            let client = self.line.client().await;
            let Err(error) = self.schema.look(client).await else { return };
            assert!(self.line.is_lost(&error), "{error:?}");
        }
    }

    fn alter_columns(
        &mut self,
        table: &Table,
        at: &TableNow,
        now: &Now,
        dice: &mut Dice,
    ) -> Option<Alteration> {
        let name = &at.name;
        let alter = |what: String| Some(Alteration::of(format!("ALTER TABLE {name} {what}")));
        let taken = at.columns.iter().map(|column| column.name.as_str());
        let data = some_data(table, at, dice);
        match dice.roll(10) {
            0..=3 => {
                let added = quoted(columns::some_name(taken, dice));
                alter(match dice.roll(4) {
                    0 => format!("ADD COLUMN {added} integer NOT NULL DEFAULT 7"),
                    // Every row is written anew, and none of them is in the stream.
                    1 => format!("ADD COLUMN {added} uuid DEFAULT gen_random_uuid()"),
                    2 => format!("ADD COLUMN {added} text DEFAULT {}", literal("it's new")),
                    _ => format!("ADD COLUMN {added} {}", columns::some_type(&now.labels, dice)),
                })
            }
            4 | 5 => alter(format!("DROP COLUMN {}", quoted(&data?.name))),
            6 => {
                let named = columns::some_name(taken, dice);
                self.rename(table, at, data?, &named, dice)
            }
            7 => {
                let owner = at.column(*table.owners.first()?)?;
                let named = format!("renamed owner {}", self.next_name());
                self.rename(table, at, owner, &named, dice)
            }
            8 => {
                let column = at.columns.iter().find(|column| may_widen(table, column))?;
                let wider = if column.ty == "smallint" { "integer" } else { "bigint" };
                alter(format!("ALTER COLUMN {} TYPE {wider}", quoted(&column.name)))
            }
            // The type of what is generated follows its expression.
            _ => {
                let data = data.filter(|column| !column.generated)?;
                let (name, ty) = (quoted(&data.name), &data.ty);
                alter(match ty.as_str() {
                    // The same type, and the Relation message is the same too.
                    "smallint" | "integer" => format!("ALTER COLUMN {name} TYPE {ty} USING {name} / 2 + 1"),
                    "boolean" => format!("ALTER COLUMN {name} TYPE text USING {name}::text || '!'"),
                    "uuid" | "date" => format!("ALTER COLUMN {name} TYPE text"),
                    _ => format!("ALTER COLUMN {name} SET STATISTICS 7"),
                })
            }
        }
    }

    /// A template or a list of columns goes by the name, so the table is tracked again with it.
    fn rename(
        &self,
        table: &Table,
        at: &TableNow,
        column: &Column,
        name: &str,
        dice: &mut Dice,
    ) -> Option<Alteration> {
        let sql =
            format!("ALTER TABLE {} RENAME COLUMN {} TO {}", at.name, quoted(&column.name), quoted(name));
        let mut then = at.clone();
        then.columns.iter_mut().filter(|c| c.number == column.number).for_each(|c| c.name = name.to_owned());
        at.tracking.as_ref()?;
        Some(Alteration::of(sql).and(table.some_track(&then, dice)))
    }

    /// Alterations and rows in one transaction, which may come to nothing.
    fn several(&mut self, table: &Table, at: &TableNow, now: &Now, dice: &mut Dice) -> Option<Alteration> {
        let mut whole = Alteration::of("BEGIN".to_owned());
        let statement = |dice: &mut Dice| some_statement(&self.schema, now, Reach::Few, dice);
        let before = statement(dice);
        let after = statement(dice);
        let mut alteration = self.alter_columns(table, at, now, dice)?;
        whole.sql.push(before);
        whole.sql.append(&mut alteration.sql);
        whole.sql.push(after);
        if alteration.tracks.is_empty() && dice.roll(3) == 0 {
            whole.sql.push(format!("ALTER TABLE {} ADD COLUMN {} int DEFAULT 3", at.name, self.next_name()));
        }
        whole.tracks = alteration.tracks;
        whole.sql.push(if dice.roll(4) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
        Some(whole)
    }

    fn new_label(&mut self) -> Alteration {
        let label = literal(format!("label {}'s", self.next_name()));
        Alteration::of(format!("ALTER TYPE \"Mood 😀\" ADD VALUE {label} BEFORE 'ünï'"))
    }

    /// A partition leaves with its rows, or one that left comes back with them.
    async fn detach_or_attach(&mut self, at: &TableNow, dice: &mut Dice) -> Option<Alteration> {
        if let Some(Detached { leaf, parent, bound }) = self.detached.pop() {
            return Some(Alteration::of(format!("ALTER TABLE {parent} ATTACH PARTITION {leaf} {bound}")));
        }
        let place = self.place_of_some_leaf(at, dice).await?;
        let sql = format!("ALTER TABLE {} DETACH PARTITION {}", place.parent, place.leaf);
        self.detached.push(place);
        Some(Alteration::of(sql))
    }

    /// An empty partition in the place of one with rows, which tells as much of its old rows.
    async fn replace_leaf(&mut self, at: &TableNow, dice: &mut Dice) -> Option<Alteration> {
        let Detached { leaf, parent, bound } = self.place_of_some_leaf(at, dice).await?;
        let fresh = quoted(format!("leaf {}", self.next_name()));
        let track = at.tracking.as_ref()?.again(&at.name);
        let detach = format!("ALTER TABLE {parent} DETACH PARTITION {leaf}");
        let create = format!("CREATE TABLE {fresh} PARTITION OF {parent} {bound}");
        let sql = vec!["BEGIN".to_owned(), detach, create, track, "COMMIT".to_owned()];
        Some(Alteration { sql, tracks: Vec::new() })
    }

    async fn place_of_some_leaf(&mut self, at: &TableNow, dice: &mut Dice) -> Option<Detached> {
        let leaf = (!at.leaves.is_empty()).then(|| pick(&at.leaves, dice).clone())?;
        let query = format!(
            "SELECT inhparent::regclass::text, pg_get_expr(c.relpartbound, c.oid)
             FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhrelid = to_regclass({})",
            literal(&leaf)
        );
        let row = one_row(self.line.client().await, &query).await?;
        Some(Detached { leaf, parent: row.0, bound: row.1 })
    }

    fn next_name(&mut self) -> String {
        self.names += 1;
        format!("x{}", self.names)
    }
}

/// Nothing that devices may notice, but that some of it looks like DDL.
fn maintenance(at: &TableNow, dice: &mut Dice) -> Alteration {
    let name = &at.name;
    Alteration::of(match dice.roll(5) {
        0 | 1 => format!("VACUUM FULL {name}"),
        2 => format!("CREATE INDEX ON {name} ({})", quoted(&at.columns[0].name)),
        3 => format!("GRANT SELECT ON {name} TO PUBLIC"),
        _ => format!("ANALYZE {name}"),
    })
}

/// Other topics or columns, or none for a while.
fn track_otherwise(table: &Table, at: &TableNow, dice: &mut Dice) -> Alteration {
    let untrack = format!("SELECT rowcast.untrack({})", literal(&at.name));
    match (&at.tracking, dice.roll(3)) {
        (Some(_), 0) => Alteration::of(untrack),
        (Some(_), 1) => Alteration::of(untrack).and(table.some_track(at, dice)),
        _ => Alteration::default().and(table.some_track(at, dice)),
    }
}

/// A column that nothing needs.
fn some_data<'a>(table: &Table, at: &'a TableNow, dice: &mut Dice) -> Option<&'a Column> {
    let needed = |column: &&Column| {
        let is = |wanted: Option<i16>| wanted == Some(column.number);
        table.key.contains(&column.number)
            || table.owners.contains(&column.number)
            || is(table.hidden)
            || is(table.large)
            || is(table.parent.map(|(number, _)| number))
    };
    let data: Vec<&Column> = at.columns.iter().filter(|column| !needed(column)).collect();
    (!data.is_empty()).then(|| *pick(&data, dice))
}

/// PostgreSQL leaves alone what a table is divided by.
fn may_widen(table: &Table, column: &Column) -> bool {
    let divides = table.division.is_some() && column.number == table.id;
    matches!(column.ty.as_str(), "smallint" | "integer") && !divides && !column.generated
}

async fn one_row(client: &Client, query: &str) -> Option<(String, String)> {
    let messages = client.simple_query(query).await.ok()?;
    messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()))
        }
        _ => None,
    })
}
