//! A range of the log as one reader gets it by REST: compacted, the newest change of each key.
//!
//! Pure. A page ends at a commit, so that a copy after it is one that the database once had; only a
//! transaction that is too large for a page by itself is cut, and then the page says so.
//!
//! What a compacted change says about how the row came to be:
//! * DELETE: the row is gone for this reader. Also where it came and went within the page: the device
//!   may hold an older copy.
//! * INSERT: the page holds an INSERT of the row after its last DELETE or TRUNCATE. The record is
//!   whole and replaces whatever the device holds. DELETE then INSERT of a key is therefore an INSERT,
//!   never an UPDATE.
//! * UPDATE: the device has the row from before the page. Columns in `unchanged` keep their values.
//!
//! All are upserts and tombstones, safe to apply twice. Where a page repeats what the device has (by
//! timestamp), an UPDATE with `unchanged` may name a row that the device has lost since: the device
//! passes it over, for the row's end is repeated later too. Broadcasts have no place in a page.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Body, Operation, RowChange, Shape, Transaction};
use crate::hub::{View, view};
use crate::json::object::{self, RecordError};
use crate::log::{Interest, Page};
use crate::position::Position;
use crate::topic::Audience;

/// The newest change of one key, or a TRUNCATE of its table.
#[derive(Debug, Clone)]
pub struct Entry {
    pub operation: Operation,
    pub shape: Arc<Shape>,
    pub audience: Audience,
    /// `None` for TRUNCATE.
    pub key: Option<Bytes>,
    /// `None` for DELETE and TRUNCATE.
    pub record: Option<Bytes>,
    /// Columns that the record lacks and that keep their values.
    pub unchanged: Vec<Arc<str>>,
    /// Microseconds since 1970; unknown of a row that a snapshot showed.
    pub committed_at: Option<i64>,
    pub position: Position,
}

/// The part of a page that is given.
#[derive(Debug)]
pub struct Stretch<'a> {
    pub transactions: &'a [Arc<Transaction>],
    /// All up to here is in the stretch.
    pub end: Position,
    pub more: bool,
    /// Ends at a commit.
    pub consistent: bool,
}

impl<'a> Stretch<'a> {
    /// Drops the last transaction if it is incomplete and not alone.
    pub fn of(page: &'a Page) -> Self {
        let transactions = page.transactions.as_slice();
        if !page.cut {
            return Stretch { transactions, end: page.through, more: page.more, consistent: true };
        }
        let incomplete = transactions.last().map(|last| last.commit);
        // A transaction in parts may stand in several pieces.
        let whole = transactions.iter().rposition(|t| Some(t.commit) != incomplete).map_or(0, |at| at + 1);
        let (complete, _) = transactions.split_at(whole);
        match complete.last().and_then(|last| Some(last.position(last.deliveries.last()?))) {
            Some(end) => Stretch { transactions: complete, end, more: true, consistent: true },
            None => Stretch { transactions, end: page.through, more: true, consistent: false },
        }
    }

    /// The greatest commit time at or before the end, if the stretch holds a commit.
    pub fn greatest_committed_at(&self) -> Option<i64> {
        self.transactions.last().map(|last| last.greatest_committed_at)
    }
}

/// The newest change of each key by table, each table's in order, a TRUNCATE first.
///
/// Only what `interests` want is looked at, also of rows that others see as well.
pub fn compact(
    transactions: &[Arc<Transaction>],
    interests: &[Interest],
) -> Result<BTreeMap<Arc<str>, Vec<Entry>>, RecordError> {
    let mut tables: BTreeMap<Arc<str>, Table> = BTreeMap::new();
    for transaction in transactions {
        for delivery in &transaction.deliveries {
            let place =
                Place { committed_at: transaction.committed_at, position: transaction.position(delivery) };
            match &delivery.body {
                Body::Row(row) => {
                    let wants = |audience: &Audience| wants(interests, audience, &row.shape);
                    if let Some(view) = view(row, |member| wants(&member.audience)) {
                        let table = match tables.get_mut(&row.shape.name) {
                            Some(table) => table,
                            None => {
                                let deliveries = transactions.iter().map(|t| t.deliveries.len()).sum();
                                tables
                                    .entry(Arc::clone(&row.shape.name))
                                    .or_insert_with(|| Table::with_room(deliveries))
                            }
                        };
                        table.apply(row, &view, place)?;
                    }
                }
                Body::Truncate(shape) => {
                    if let Some(audience) = reader_of(interests, shape) {
                        let table = tables.entry(Arc::clone(&shape.name)).or_default();
                        table.truncate(shape, audience, place);
                    }
                }
                Body::Broadcast(_) => {}
            }
        }
    }
    Ok(tables.into_iter().map(|(name, table)| (name, table.into_entries())).collect())
}

fn wants(interests: &[Interest], audience: &Audience, shape: &Shape) -> bool {
    interests.iter().any(|interest| interest.audience == *audience && interest.tables.contains(&shape.name))
}

/// Under which audience a reader reads a table.
fn reader_of<'a>(interests: &'a [Interest], shape: &Shape) -> Option<&'a Audience> {
    interests
        .iter()
        .filter(|interest| interest.tables.contains(&shape.name))
        .map(|interest| &interest.audience)
        .find(|audience| shape.scopes.iter().any(|scope| scope == audience.scope()))
}

#[derive(Debug, Clone, Copy)]
struct Place {
    committed_at: i64,
    position: Position,
}

#[derive(Debug, Default)]
struct Table {
    truncate: Option<Entry>,
    rows: HashMap<Bytes, Entry>,
}

/// Rows that a table is given room for beforehand, at most.
const ROOM: usize = 1024;

impl Table {
    /// For about so many changes of all tables.
    fn with_room(changes: usize) -> Self {
        Table { truncate: None, rows: HashMap::with_capacity(changes.min(ROOM)) }
    }

    fn apply(&mut self, row: &RowChange, view: &View<'_>, place: Place) -> Result<(), RecordError> {
        let mut entry = Entry {
            operation: view.operation,
            shape: Arc::clone(&row.shape),
            audience: view.audience.clone(),
            key: Some(row.key.clone()),
            record: view.record.cloned(),
            unchanged: view.unchanged.to_vec(),
            committed_at: Some(place.committed_at),
            position: place.position,
        };
        match self.rows.entry(row.key.clone()) {
            Slot::Vacant(slot) => {
                slot.insert(entry);
            }
            Slot::Occupied(mut slot) => {
                let older = slot.get();
                if entry.operation == Operation::Update {
                    if older.operation == Operation::Insert {
                        entry.operation = Operation::Insert;
                    }
                    entry.fill_from(older)?;
                }
                slot.insert(entry);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, shape: &Arc<Shape>, audience: &Audience, place: Place) {
        self.rows.clear();
        self.truncate = Some(Entry {
            operation: Operation::Truncate,
            shape: Arc::clone(shape),
            audience: audience.clone(),
            key: None,
            record: None,
            unchanged: Vec::new(),
            committed_at: Some(place.committed_at),
            position: place.position,
        });
    }

    fn into_entries(self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.truncate.into_iter().chain(self.rows.into_values()).collect();
        // Rows of before the TRUNCATE are gone, so it comes first by position as well.
        entries.sort_unstable_by_key(|entry| entry.position);
        entries
    }
}

impl Entry {
    /// Takes values that this change did not send from an earlier one of the same row.
    fn fill_from(&mut self, older: &Entry) -> Result<(), RecordError> {
        let (Some(newer), Some(record), false) = (&self.record, &older.record, self.unchanged.is_empty())
        else {
            return Ok(());
        };
        let columns: Vec<&str> = self.shape.columns.iter().map(|(name, _)| name.as_str()).collect();
        let mut merged = Vec::with_capacity(newer.len() + record.len());
        object::merge(text(newer)?, text(record)?, &columns, &mut merged)?;
        self.record = Some(merged.into());
        self.unchanged.retain(|column| older.unchanged.contains(column));
        Ok(())
    }
}

fn text(record: &Bytes) -> Result<&str, RecordError> {
    std::str::from_utf8(record)
        .map_err(|error| RecordError { expected: "UTF-8", offset: error.valid_up_to() })
}
